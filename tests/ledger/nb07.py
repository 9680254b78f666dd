"""Equations first shown in notebook 07."""

import math

import torch

from ledger import close, equation
from rgdm_lib import payoff, rgdm
from rgdm_lib.payoff import Draw
from rgdm_lib.worlds.chain import Chain, small_chain
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Linear

TAU = 0.6
REFERENCE = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)  # p_ref over four outcomes
REWARD = torch.tensor([1.0, -0.3, 0.5, 0.2], dtype=torch.float64)
PAYOFF = REFERENCE * (REWARD / TAU).exp()
Z = PAYOFF.sum()
PAYOFF = PAYOFF / Z


def laws(n):
    """n random laws over the four outcomes."""
    return torch.softmax(torch.randn(n, 4, dtype=torch.float64), 1)


def kl(p, q):
    return (p * (p / q).log()).sum()


# ---- the payoff distribution -----------------------------------------------------------------


@equation(
    "maxent-is-kl-to-payoff",
    mutations={
        "log Z without tau": {"formula": lambda w, p: w.log_Z() - w.tau * p.kl(w.exact())},
        "KL the wrong way round": {
            "formula": lambda w, p: w.tau * w.log_Z() - w.tau * w.exact().kl(p)
        },
        "KL added": {"formula": lambda w, p: w.tau * w.log_Z() + w.tau * p.kl(w.exact())},
        "KL without tau": {"formula": lambda w, p: w.tau * w.log_Z() - p.kl(w.exact())},
    },
)
def maxent_is_kl_to_payoff(formula=lambda w, p: w.tau * w.log_Z() - w.tau * p.kl(w.exact())):
    """J by enumeration of the paths of a chain, for a random policy and for the payoff itself."""
    world = small_chain()
    policy = world.reference.with_kernel(torch.randn(6, 4, 4, dtype=torch.float64))
    paths = world.reference.paths()
    log_ref, reward = world.reference.log_prob(paths), world.reward[paths[:, 0]]
    for law in (policy, world.exact()):
        log_p = law.log_prob(paths)
        close(formula(world, law), (log_p.exp() * (reward - world.tau * (log_p - log_ref))).sum())


SLOPE = torch.tensor([0.8, -0.3], dtype=torch.float64)
MODES = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [1.2, -0.5], [0.2, 1.0]], dtype=torch.float64),
    0.35,
    torch.tensor([1.0, 2.0, 1.5]),
)


def tilted(move=1.0, tau=TAU, reweigh=True):
    """The tilted mixture with parts of the formula changed."""

    def formula():
        b, variance = SLOPE, MODES.std**2
        log_w = MODES.means @ b / tau + variance * b.square().sum() / (2 * tau**2)
        weights = torch.softmax(MODES.weights.log() + reweigh * log_w, 0)
        means = MODES.means + move * variance[:, None] * b / tau
        return GaussianMixture(means, MODES.std, weights)

    return formula


@equation(
    "payoff-of-mixture-under-linear-reward",
    mutations={
        "modes not moved": {"formula": tilted(move=0.0)},
        "standard deviation for variance": {"formula": tilted(move=1 / 0.35)},
        "weights not changed": {"formula": tilted(reweigh=False)},
        "tau inverted": {"formula": tilted(tau=1 / TAU)},
    },
)
def payoff_of_mixture_under_linear_reward(
    formula=lambda: MODES.tilt(Linear(SLOPE), TAU),
):
    """The density against p_ref exp(r / tau) / Z, Z by summing a grid of the plane."""
    axis = torch.linspace(-5, 5, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_tilt = MODES.log_prob(grid) + grid @ SLOPE / TAU
    log_z = torch.logsumexp(log_tilt, 0) + 2 * (axis[1] - axis[0]).log()
    close(formula().log_prob(grid).exp(), (log_tilt - log_z).exp())


# ---- effective samples -----------------------------------------------------------------------

COUNTS = torch.tensor([2, 5, 3])  # ten samples at three places: the law is the sample, exactly
PLACES = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64)


def log_z(tau):
    return torch.logsumexp((COUNTS / 10).double().log() + PLACES / tau, 0)


def library_share(tau):
    atoms = GaussianMixture(PLACES[:, None], 1e-9, COUNTS)
    return atoms.ess_share(Linear([1.0]), tau)


@equation(
    "ess-share-from-z",
    mutations={
        "Z at twice tau": {"formula": lambda tau: (2 * log_z(tau) - log_z(2 * tau)).exp()},
        "Z not squared": {"formula": lambda tau: (log_z(tau) - log_z(tau / 2)).exp()},
        "inverted": {"formula": lambda tau: (log_z(tau / 2) - 2 * log_z(tau)).exp()},
    },
)
def ess_share_from_z(formula=library_share):
    """Ten samples whose frequencies are the law's probabilities, so that the limit is reached."""
    samples = PLACES.repeat_interleave(COUNTS)
    for tau in (0.3, 2.0):
        log_w = payoff.log_weights(samples, tau)
        close(formula(tau), payoff.effective_sample_size(log_w) / 10)


# ---- from weights to a model -----------------------------------------------------------------


def weighted_likelihood(log_p):
    log_w = payoff.log_weights(REWARD, TAU, log_base=REFERENCE.log())
    return -(log_w.exp() * log_p).sum()


@equation(
    "forward-kl-is-weighted-likelihood",
    mutations={
        "Z left out": {"formula": lambda log_p: -(REFERENCE * (REWARD / TAU).exp() * log_p).sum()},
        "tau inverted": {
            "formula": lambda log_p: (
                -(torch.softmax(REFERENCE.log() + REWARD * TAU, 0) * log_p).sum()
            )
        },
        "under the model": {"formula": lambda log_p: -(log_p.exp() * log_p).sum()},
        "weights without the reference": {
            "formula": lambda log_p: -(torch.softmax(REWARD / TAU, 0) * log_p).sum()
        },
        "sign": {"formula": lambda log_p: -weighted_likelihood(log_p)},
    },
)
def forward_kl_is_weighted_likelihood(formula=weighted_likelihood):
    """The constant is -H(p*), for every model; and the gradients agree."""
    entropy = -(PAYOFF * PAYOFF.log()).sum()
    for p in laws(3):
        close(formula(p.log()) - entropy, kl(PAYOFF, p))
        logits = p.log().requires_grad_()
        of_kl = torch.autograd.grad(kl(PAYOFF, logits.softmax(0)), logits)[0]
        close(torch.autograd.grad(formula(logits.log_softmax(0)), logits)[0], of_kl)


@equation(
    "naive-iteration-drifts",
    mutations={
        "the target stays": {"formula": lambda k: PAYOFF},
        "one round too few": {
            "formula": lambda k: torch.softmax(REFERENCE.log() + (k - 1) * REWARD / TAU, 0)
        },
        "tau times k": {
            "formula": lambda k: torch.softmax(REFERENCE.log() + REWARD / (TAU * k), 0)
        },
        "the reference is raised too": {
            "formula": lambda k: torch.softmax(k * (REFERENCE.log() + REWARD / TAU), 0)
        },
    },
)
def naive_iteration_drifts(
    formula=lambda k: torch.softmax(REFERENCE.log() + k * REWARD / TAU, 0),
):
    """Iterate: multiply by exp(r / tau), normalise."""
    p = REFERENCE
    for k in range(1, 6):
        p = p * (REWARD / TAU).exp()
        p = p / p.sum()
        if k > 1:
            close(formula(k), p)


# ---- several rounds --------------------------------------------------------------------------


def pooled(log_p, sizes):
    """The library's log of p_ref / mixture; (models, n) log-probabilities, n_j from each model."""
    pool, edges = rgdm._Pool(), [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for model, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        draw = Draw(
            torch.zeros(high - low), torch.zeros(high - low), None,
            lambda j, low=low, high=high: log_p[j, low:high],
        )  # fmt: skip
        pool.add(model, draw)
    return pool.merged()[1]


def own_model(log_p, sizes):
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return log_p[0] - log_p[of, torch.arange(log_p.shape[1])]


@equation(
    "balance-heuristic-weights",
    mutations={
        "each by its own model": {"formula": own_model},
        "equal shares": {
            "formula": lambda log_p, sizes: log_p[0] - log_p.logsumexp(0) + math.log(len(sizes))
        },
        "mean of logarithms": {
            "formula": lambda log_p, sizes: (
                log_p[0] - (torch.tensor(sizes).double() / sum(sizes)) @ log_p
            )
        },
        "ratio inverted": {"formula": lambda log_p, sizes: -pooled(log_p, sizes)},
        "reference left out of the mixture": {
            "formula": lambda log_p, sizes: (
                log_p[0]
                - (log_p[1:] + (torch.tensor(sizes[1:]) / sum(sizes)).log()[:, None]).logsumexp(0)
            )
        },
    },
)
def balance_heuristic_weights(formula=pooled):
    """Every path of a chain from each of three models: weighted, the pool is the payoff.

    A sample from model j counts n_j p_j(path) / n; its weight must turn the sum over j into
    p_ref exp(r / tau). And no ratio exceeds n / n_0.
    """
    world = small_chain()
    log_kernel = world.reference.log_kernel[:3]
    models = [Chain(world.reference.log_start, log_kernel)]
    models += [models[0].with_kernel(torch.randn(3, 4, 4, dtype=torch.float64)) for _ in range(2)]
    paths = models[0].paths()  # 256, given to each model
    log_p = torch.stack([m.log_prob(paths) for m in models])
    n_j = (128, 256, 512)
    # pooled() reads n_j off the pool: path i of model j stands in it n_j / 128 times
    times = [n // 128 for n in n_j]
    columns = torch.cat([log_p.repeat_interleave(k, 1) for k in times], 1)
    log_ratio = formula(columns, [256 * k for k in times])
    assert float(log_ratio.max()) <= math.log(sum(n_j) / n_j[0])
    reward = world.reward[paths[:, 0]]
    total = torch.zeros(256, dtype=torch.float64)
    low = 0
    for j, k in enumerate(times):
        block = log_ratio[low : low + 256 * k].reshape(256, k)
        low += 256 * k
        share = n_j[j] / sum(n_j) / k
        total += (share * (log_p[j][:, None] + block).exp()).sum(1)
    close(total * (reward / TAU).exp(), log_p[0].exp() * (reward / TAU).exp())


@equation(
    "perfect-fit-constant-ratio",
    mutations={
        "reward subtracted": {"formula": lambda ref, r, beta, model: ref - beta * r - model},
        "tau for beta": {"formula": lambda ref, r, beta, model: ref + r / beta - model},
        "ratio inverted": {"formula": lambda ref, r, beta, model: model + beta * r - ref},
    },
)
def perfect_fit_constant_ratio(formula=lambda ref, r, beta, model: ref + beta * r - model):
    """Every path of the chain; the model is the payoff, its start tilted too."""
    world = small_chain()
    paths = world.reference.paths()
    log_ref, log_p = world.reference.log_prob(paths), world.exact().log_prob(paths)
    reward = world.reward[paths[:, 0]]
    z = (log_ref.exp() * (reward / world.tau).exp()).sum()
    close(formula(log_ref, reward, 1 / world.tau, log_p), z.log().expand(len(paths)))


# ---- the frontier ----------------------------------------------------------------------------

LINE = GaussianMixture(
    torch.tensor([[-1.0], [1.5]], dtype=torch.float64), 0.5, torch.tensor([3.0, 1.0])
)


def frontier_with(cost, mean=None):
    """E[r] and KL from log Z of the mixture on the line, with parts changed."""

    def frontier(tau):
        t = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
        z = LINE.log_Z(Linear([1.0]), t)
        (of_tau,) = torch.autograd.grad(z, t)
        reward = (mean or (lambda slope, tau: -(tau**2) * slope))(of_tau, tau)
        return reward, cost(-(tau**2) * of_tau, tau, z.detach())

    return frontier


@equation(
    "frontier-kl",
    mutations={
        "log Z added": {"formula": frontier_with(lambda r, tau, z: r / tau + z)},
        "tau inverted": {"formula": frontier_with(lambda r, tau, z: r * tau - z)},
        "log Z left out": {"formula": frontier_with(lambda r, tau, z: r / tau)},
        "derivative in tau": {
            "formula": frontier_with(lambda r, tau, z: r / tau - z, lambda slope, tau: slope)
        },
    },
)
def frontier_kl(formula=lambda tau: LINE.frontier(Linear([1.0]), tau)):
    """Both averages by summing a grid of the line."""
    x = torch.linspace(-6, 9, 5001, dtype=torch.float64)
    p_ref = 0.75 * (-2 * (x + 1) ** 2).exp() + 0.25 * (-2 * (x - 1.5) ** 2).exp()
    p_ref = p_ref / p_ref.sum()
    for tau in (0.4, 2.0):
        p = p_ref * (x / tau).exp() / (p_ref * (x / tau).exp()).sum()
        reward, cost = formula(tau)
        close(reward, (p * x).sum())
        close(cost, kl(p, p_ref))
