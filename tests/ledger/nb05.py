"""Equations first shown in notebook 05."""

import torch

from ledger import close, equation
from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.chain import small_chain
from rgdm_lib.worlds.mixtures import GaussianMixture, ring
from rgdm_lib.worlds.rewards import Quadratic

F64 = torch.float64
WORLD = small_chain(tau=0.5)
REFERENCE, TAU = WORLD.reference, WORLD.tau
PATHS = REFERENCE.paths()
LOG_REF = REFERENCE.log_prob(PATHS)
REWARD = WORLD.reward[PATHS[:, 0]]
LOG_Z = torch.logsumexp(LOG_REF + REWARD / TAU, 0)
LOG_PAYOFF = LOG_REF + REWARD / TAU - LOG_Z


def a_policy():
    return REFERENCE.with_kernel(torch.randn(REFERENCE.T, 4, 4, dtype=F64))


def objective(log_p):
    """J by its definition, summed over paths."""
    return (log_p.exp() * (REWARD - TAU * (log_p - LOG_REF))).sum()


def value_by_paths():
    """(T + 1, S) soft values from the list of all paths."""
    rows = []
    for t in range(REFERENCE.T + 1):
        through = [PATHS[:, t] == s for s in range(4)]
        rows.append(
            torch.stack(
                [
                    torch.logsumexp((LOG_REF + REWARD / TAU)[at], 0)
                    - torch.logsumexp(LOG_REF[at], 0)
                    for at in through
                ]
            )
        )
    return TAU * torch.stack(rows)


@equation(
    "maxent-over-paths",
    mutations={
        "log Z without tau": {"formula": lambda kl: LOG_Z - TAU * kl},
        "KL added": {"formula": lambda kl: TAU * LOG_Z + TAU * kl},
        "KL without tau": {"formula": lambda kl: TAU * LOG_Z - kl},
        "KL the wrong way round": {"kl": lambda log_p: LOG_PAYOFF.exp() * (LOG_PAYOFF - log_p)},
    },
)
def maxent_over_paths(
    formula=lambda kl: TAU * LOG_Z - TAU * kl,
    kl=lambda log_p: log_p.exp() * (log_p - LOG_PAYOFF),
):
    """J of a random policy and of the payoff by summing over 16,384 paths."""
    for policy in (a_policy(), WORLD.exact()):
        log_p = policy.log_prob(PATHS)
        close(formula(kl(log_p).sum()), objective(log_p))


@equation(
    "soft-value-recursion",
    mutations={
        "mean of the values": {"backup": lambda k, v: k.exp() @ v},
        "largest value": {"backup": lambda k, v: (k.exp() * v).max(1).values},
        "tau inverted": {"backup": lambda k, v: torch.logsumexp(k + v * TAU, 1) / TAU},
        "summed over the rows": {"backup": lambda k, v: TAU * torch.logsumexp(k.T + v / TAU, 1)},
    },
)
def soft_value_recursion(backup=lambda k, v: TAU * torch.logsumexp(k + v / TAU, 1)):
    """Backups from r up, and the library's values, against sums over all paths."""
    values = [WORLD.reward]
    for log_kernel in REFERENCE.log_kernel:
        values.append(backup(log_kernel, values[-1]))
    close(torch.stack(values), value_by_paths())
    close(WORLD.soft_values(), value_by_paths())


@equation(
    "soft-optimal-kernel",
    mutations={
        "not normalised by V_t": {"gain": lambda now, after: after[None, :] + 0 * now[:, None]},
        "sign": {"gain": lambda now, after: now[:, None] - after[None, :]},
        "values a step later": {"shift": 1},
    },
)
def soft_optimal_kernel(gain=lambda now, after: after[None, :] - now[:, None], shift=0):
    """P*'s conditional probabilities, from the masses of all paths, at every t."""
    value = value_by_paths()
    for t in range(1, REFERENCE.T):
        joint = torch.zeros(4, 4, dtype=F64)
        joint.index_put_((PATHS[:, t], PATHS[:, t - 1]), LOG_PAYOFF.exp(), accumulate=True)
        exact = joint / joint.sum(1, keepdim=True)
        tilt = gain(value[t + shift], value[t - 1 + shift]) / TAU
        close(REFERENCE.log_kernel[t - 1].exp() * tilt.exp(), exact)


@equation(
    "tilted-score",
    mutations={
        "without 1 / tau": {"factor": lambda tau: 1.0},
        "times tau": {"factor": lambda tau: tau},
        "sign": {"factor": lambda tau: -1 / tau},
    },
)
def tilted_score(factor=lambda tau: 1 / tau, tau=0.4):
    """Scores of noised mixtures by autograd: the payoff's own, the reference's plus the value's."""
    schedule, world = schedules.cosine(20), ring(std=0.3)
    t = torch.full((40,), 7)
    ab = schedule.alpha_bar[7]
    x = (1.2 * torch.randn(40, 2, dtype=F64)).requires_grad_()

    def noised(law):
        return GaussianMixture(
            ab.sqrt() * law.means, (ab * law.std**2 + 1 - ab).sqrt(), law.weights
        )

    def gradient(values):
        return torch.autograd.grad(values.sum(), x)[0]

    smooth = Quadratic([0.5, -0.2], 0.8)
    expected = gradient(noised(world.tilt(smooth, tau)).log_prob(x))
    value = gradient(world.soft_value(x, t, schedule, smooth, tau))
    close(gradient(noised(world).log_prob(x)) + factor(tau) * value, expected)


def _kl_of_starts(p, q):
    return (p.exp() * (p - q)).sum()


@equation(
    "start-kept",
    mutations={
        "KL the wrong way round": {"kl": lambda p, q: _kl_of_starts(q, p)},
        "KL without tau": {"kl": lambda p, q: _kl_of_starts(p, q) / TAU},
        "KL forgotten": {"kl": lambda p, q: 0.0},
    },
)
def start_kept(kl=_kl_of_starts):
    """E[V_T], J of the payoff's kernels by listing paths, and no nearby policy beats them."""
    start, tilted = REFERENCE.log_start, WORLD.exact().log_start
    best = TAU * LOG_Z - TAU * kl(start, tilted)
    close(best, start.exp() @ value_by_paths()[-1])
    kept = WORLD.kept_start()
    close(best, objective(kept.log_prob(PATHS)))
    for _ in range(5):
        near = REFERENCE.with_kernel(kept.log_kernel + 0.1 * torch.randn(6, 4, 4, dtype=F64))
        assert float(objective(near.log_prob(PATHS))) < float(best)


@equation(
    "kept-start-mean-shift",
    mutations={
        "correlation not squared": {"share": lambda rho: 1 - rho},
        "the start's part only": {"share": lambda rho: rho**2},
        "the whole way": {"share": lambda rho: 1.0},
    },
)
def kept_start_mean_shift(share=lambda rho: 1 - rho**2, slope_of_reward=0.7, spread=0.5, tau=0.3):
    """A linear Gaussian chain of 8 DDIM steps, its best kernels one by one from the soft values."""
    diffusion = Diffusion(schedules.cosine(40))
    times = diffusion.timesteps(8)
    for eta in (0.2, 0.6, 1.0):
        steps = []
        for t, s in zip(times[:-1], times[1:], strict=True):
            a = float(diffusion.schedule.alpha_bar[t])
            eps = torch.tensor([[(1 - a) ** 0.5 / (a * spread**2 + 1 - a)]], dtype=F64)
            mean, std, _ = diffusion.step(torch.ones(1, 1, dtype=F64), t, s, eps, eta)
            steps.append((float(mean), std))
        # V_s(x) = value x + const, from the end; the best step moves by std^2 value / tau
        value, moves = slope_of_reward, []
        for factor, std in reversed(steps):
            moves.append(std**2 * value / tau)
            value = factor * value
        mean, slope, variance = 0.0, 1.0, 1.0
        for (factor, std), move in zip(steps, reversed(moves), strict=True):
            mean = factor * mean + move
            slope, variance = factor * slope, factor**2 * variance + std**2
        whole = variance * slope_of_reward / tau  # m* - m of the chain's own law of x_0
        close(mean, share(slope / variance**0.5) * whole, tolerance=1e-9)


def _gradients():
    logits = torch.randn(REFERENCE.T, 4, 4, dtype=F64, requires_grad=True)
    policy = REFERENCE.with_kernel(logits)
    log_p = policy.log_prob(PATHS)
    (of_j,) = torch.autograd.grad(objective(log_p), logits, retain_graph=True)
    forward = (LOG_PAYOFF.exp() * (LOG_PAYOFF - log_p)).sum()
    (of_kl,) = torch.autograd.grad(forward, logits)
    with torch.no_grad():
        return log_p.detach(), policy.score(PATHS).flatten(1), of_j.flatten(), of_kl.flatten()


@equation(
    "reverse-kl-gradient",
    mutations={
        "no price": {"payoff": lambda log_p: REWARD},
        "price without tau": {"payoff": lambda log_p: REWARD - (log_p - LOG_REF)},
        "price with the wrong sign": {"payoff": lambda log_p: REWARD + TAU * (log_p - LOG_REF)},
        "samples of the reference": {"law": lambda log_p: LOG_REF},
    },
)
def reverse_kl_gradient(
    payoff=lambda log_p: REWARD - TAU * (log_p - LOG_REF), law=lambda log_p: log_p
):
    """The expectation over all paths against automatic differentiation of J."""
    log_p, score, of_j, _ = _gradients()
    close((law(log_p).exp() * payoff(log_p)) @ score, of_j)


@equation(
    "weighted-log-likelihood",
    mutations={
        "weights not normalised": {"weight": lambda: (REWARD / TAU).exp()},
        "tau inverted": {"weight": lambda: (REWARD * TAU).exp() / LOG_Z.exp()},
        "one step left out": {"first": 1},
    },
)
def weighted_log_likelihood(weight=lambda: (REWARD / TAU).exp() / LOG_Z.exp(), first=0):
    """The KL of two random policies by listing paths: it differs by the weighted likelihoods."""
    found = []
    for _ in range(2):
        policy = a_policy()
        kl = (LOG_PAYOFF.exp() * (LOG_PAYOFF - policy.log_prob(PATHS))).sum()
        steps = policy.log_kernel[torch.arange(6), PATHS[:, 1:], PATHS[:, :-1]][:, first:].sum(1)
        found.append(kl + (LOG_REF.exp() * weight()) @ steps)
    close(found[0], found[1])


@equation(
    "forward-kl-gradient",
    mutations={
        "sign": {"formula": lambda weight, score: (LOG_REF.exp() * weight) @ score},
        "samples of the policy": {
            "formula": lambda weight, score: -(_gradients()[0].exp() * weight) @ score
        },
        "not divided by Z": {
            "formula": lambda weight, score: -(LOG_REF.exp() * weight * LOG_Z.exp()) @ score
        },
    },
)
def forward_kl_gradient(formula=lambda weight, score: -(LOG_REF.exp() * weight) @ score):
    """The expectation under the reference against automatic differentiation of the KL."""
    _, score, _, of_kl = _gradients()
    close(formula((REWARD / TAU).exp() / LOG_Z.exp(), score), of_kl)
