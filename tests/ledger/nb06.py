"""Equations first shown in notebook 06."""

import math

import torch

from ledger import close, equation, within
from rgdm_lib import schedules, stepwise
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.chain import small_chain
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Quadratic

F64 = torch.float64
WORLD = small_chain(tau=0.5)


@equation(
    "particle-weights-telescope",
    mutations={
        "initial factor forgotten": {"first": lambda v: 0 * v},
        "initial factor inverted": {"first": lambda v: -v},
        "gains with the wrong sign": {"gain": lambda after, before: before - after},
        "value a step late": {"gain": lambda after, before: before},  # noqa: ARG005
    },
)
def particle_weights_telescope(
    first=lambda v: v, gain=lambda after, before: after - before, tau=WORLD.tau
):
    """Any values on the small chain: the weighted law of x_0, over all paths, is the payoff's."""
    reference = WORLD.reference
    paths = reference.paths()
    value = torch.randn(reference.T + 1, 4, dtype=F64)
    value[0] = WORLD.reward
    along = torch.stack([value[t, paths[:, t]] for t in range(reference.T + 1)])
    log_weight = first(along[-1]) / tau
    for t in range(reference.T, 0, -1):
        log_weight = log_weight + gain(along[t - 1], along[t]) / tau
    share = torch.softmax(reference.log_prob(paths) + log_weight, 0)
    end = torch.stack([share[paths[:, 0] == s].sum() for s in range(4)])
    close(end, WORLD.exact().marginals()[0])


@equation(
    "ball-radius-rule",
    mutations={
        "d for d + 2": {"rule": lambda variance, d: (d * variance) ** 0.5},
        "no root": {"rule": lambda variance, d: (d + 2) * variance},
        "the standard deviation": {"rule": lambda variance, d: variance**0.5},  # noqa: ARG005
        "d = 1 whatever d": {"rule": lambda variance, d: (3 * variance) ** 0.5},  # noqa: ARG005
    },
)
def ball_radius_rule(rule=lambda variance, d: ((d + 2) * variance) ** 0.5, variance=0.3):
    """Second moments of uniform points of the library's balls: the variance that was asked for."""
    for d in (2, 5):
        x = stepwise.in_ball(torch.zeros(40_000, d, dtype=F64), rule(variance, d))
        within(x[:, :, None] * x[:, None, :], variance * torch.eye(d, dtype=F64))


@equation(
    "guess-against-value",
    mutations={
        "curvature alone": {"factor": lambda tau: 0 * tau},
        "tau inverted": {"factor": lambda tau: tau},
        "not halved": {"half": 1.0},
        "sign": {"half": -0.5},
    },
)
def guess_against_value(factor=lambda tau: 1 / tau, half=0.5, tau=0.7, k=1.3):
    """A Gaussian posterior of small variance c, by closed form: the difference over c."""
    bowl, mean = Quadratic([0.4, -0.2], k), torch.tensor([0.9, 0.5], dtype=F64)
    g = -k * (mean - bowl.centre)
    slope = half * (-2 * k + float(g @ g) * factor(tau))
    for c in (1e-5, 1e-6):
        variance = torch.tensor(c, dtype=F64)
        soft = tau * bowl.log_mean_exp(mean, variance, torch.tensor(tau, dtype=F64))
        close((soft - bowl(mean)) / c, slope, tolerance=20 * c)


# ---- several rounds --------------------------------------------------------------------------


@equation(
    "balance-weights-of-models",
    mutations={
        "each sample by its own model": {
            "mixture": lambda laws, share, own: laws[own]  # noqa: ARG005
        },
        "no correction": {"mixture": lambda laws, share, own: laws[0]},  # noqa: ARG005
        "the last model for all": {"mixture": lambda laws, share, own: laws[-1]},  # noqa: ARG005
        "models alike, whatever they drew": {
            "mixture": lambda laws, share, own: laws.mean(0)  # noqa: ARG005
        },
    },
)
def balance_weights_of_models(
    mixture=lambda laws, share, own: share @ laws,  # noqa: ARG005
):
    """Three laws drew 1 : 2 : 5 of five states: expected weighted counts; at most n / n_0."""
    laws = torch.softmax(torch.randn(3, 5, dtype=F64), 1)
    tilt = torch.randn(5, dtype=F64).exp()
    share = torch.tensor([0.125, 0.25, 0.625], dtype=F64)
    found, largest = torch.zeros(5, dtype=F64), 0.0
    for own in range(3):
        correction = laws[0] / mixture(laws, share, own)
        found += share[own] * laws[own] * correction * tilt
        largest = max(largest, float(correction.max()))
    close(found / found.sum(), laws[0] * tilt / (laws[0] @ tilt))
    assert largest <= 1 / share[0]


def chained_shift(variance, extra, rounds):
    """Mean of one mode over slope / tau after so many rounds; widened by ``extra`` in each fit."""
    return variance + (rounds - 1) / 2 * extra


@equation(
    "chained-fit-error-adds-up",
    mutations={
        "widened once": {"variance": lambda s2, h2, k: s2 + h2},  # noqa: ARG005
        "the last round not widened": {"variance": lambda s2, h2, k: s2 + (k - 1) * h2},
        "widened before the tilt": {"shift": lambda s2, h2, k: s2 + (k + 1) / 2 * h2},
        "the reference's own width": {"shift": lambda s2, h2, k: s2},  # noqa: ARG005
        "k for k - 1": {"shift": lambda s2, h2, k: s2 + k / 2 * h2},
    },
)
def chained_fit_error_adds_up(
    variance=lambda s2, h2, k: s2 + k * h2, shift=chained_shift, s2=0.3, h2=0.05, tau=0.7
):
    """One mode on a fine grid: multiply by exp(b y / (K tau)), widen by a Gaussian, K times."""
    y, b = torch.linspace(-9, 9, 601, dtype=F64), 1.4
    blur = torch.softmax(-(y - y[:, None]).square() / (2 * h2), 1)
    for rounds in (1, 3, 4):
        p = torch.softmax(-y.square() / (2 * s2), 0)
        for _ in range(rounds):
            p = p * (b * y / (rounds * tau)).exp()
            p = (p / p.sum()) @ blur
        mean = p @ y
        close(mean, b / tau * shift(s2, h2, rounds), 1e-8)
        close(p @ (y - mean).square(), variance(s2, h2, rounds), 1e-8)


# ---- best of K -------------------------------------------------------------------------------


NODES = torch.linspace(-22, 9, 125, dtype=F64)  # logarithms of u


def kept_of_k(p, g, k):
    """Law of the child kept: K p g times the integral of exp(-u g) E[exp(-u g)]^(K - 1) over u."""
    u = NODES.exp()  # du = u d log u
    decay = (-u[:, None] * g).exp()
    return k * p * g * ((NODES[1] - NODES[0]) * u * (decay @ p) ** (k - 1) @ decay)


@equation(
    "best-of-k-law",
    mutations={
        "nothing chosen": {"formula": lambda p, g, k: p},  # noqa: ARG005
        "as if K were infinite": {"formula": lambda p, g, k: p * g / (p @ g)},  # noqa: ARG005
        "factor K forgotten": {"formula": lambda p, g, k: kept_of_k(p, g, k) / k},
        "K for K - 1": {"formula": lambda p, g, k: kept_of_k(p, g, k + 1) * k / (k + 1)},
    },
)
def best_of_k_law(formula=kept_of_k):
    """All K-tuples of children of four states, kept in proportion to g: enumerated."""
    p = torch.softmax(torch.randn(4, dtype=F64), 0)
    g = torch.randn(4, dtype=F64).exp()
    for k in (2, 3, 4):
        children = torch.cartesian_prod(*[torch.arange(4)] * k)
        probability = p[children].prod(1)
        kept = probability[:, None] * g[children] / g[children].sum(1, keepdim=True)
        law = torch.zeros(4, dtype=F64).index_add_(0, children.flatten(), kept.flatten())
        close(formula(p, g, k), law, 1e-9)


# ---- one Gaussian, one bowl: policy N(0, I), reward -k |x - a|^2 / 2, a = delta, s_0 = 1 ------


def _by_quadrature(weight, kappa, delta, d=2, tau=1.0):
    """trace(Cov) / |mean|^2 of weight(r, w) x, x ~ N(0, I_2), on a grid."""
    line = torch.linspace(-9, 9, 121, dtype=F64)  # smooth and zero at the ends: converges fast
    x = torch.cartesian_prod(*[line] * d)
    p = torch.softmax(-x.square().sum(1) / 2, 0)
    centre = torch.zeros(d, dtype=F64)
    centre[0] = delta
    r = -kappa * tau * (x - centre).square().sum(1) / 2
    w = (r / tau).exp()
    g = weight(r - p @ r, w / (p @ w))[:, None] * x
    mean = p @ g
    return float(p @ g.square().sum(1) / mean.square().sum() - 1)


def second_moment(kappa, delta, d):
    """E[w^2] of weights with mean 1."""
    narrow = (1 + kappa) / (1 + 2 * kappa) ** 0.5
    return narrow**d * math.exp(kappa**2 * delta**2 / ((1 + kappa) * (1 + 2 * kappa)))


CASES = ((0.3, 0.7), (1.0, 1.5), (2.0, 0.5))


@equation(
    "reinforce-relative-variance",
    mutations={
        "d for d + 1": {"formula": lambda delta, d: d + (d * d + 4 * d) / (2 * delta**2)},
        "D not squared": {"formula": lambda delta, d: d + 1 + (d * d + 4 * d) / (2 * delta)},
        "without the noise's own": {"formula": lambda delta, d: d + 1 + d / (2 * delta**2)},
    },
)
def reinforce_relative_variance(
    formula=lambda delta, d: d + 1 + (d * d + 4 * d) / (2 * delta**2),
):
    """The mean reward as baseline; kappa does not matter."""
    for kappa, delta in CASES:
        close(formula(delta, 2), _by_quadrature(lambda r, w: r, kappa, delta), 1e-8)  # noqa: ARG005


@equation(
    "payoff-weight-second-moment",
    mutations={
        "kappa for 2 kappa": {
            "formula": lambda k, delta, d: (
                (1 + k) ** (d / 2) * math.exp(k**2 * delta**2 / (1 + k) ** 2)
            )
        },
        "one dimension": {"formula": lambda k, delta, d: second_moment(k, delta, 1)},  # noqa: ARG005
        "delta not squared": {"formula": lambda k, delta, d: second_moment(k, delta**0.5, d)},
    },
)
def payoff_weight_second_moment(formula=second_moment):
    """One over the effective share that the library's mixtures have in closed form."""
    for kappa, delta in CASES:
        law = GaussianMixture([[0.0, 0.0]], 1.0)
        share = law.ess_share(Quadratic([delta, 0.0], kappa * 0.6), 0.6)
        close(formula(kappa, delta, 2), 1 / share)


def payoff_relative_variance_formula(kappa, delta, d, baseline=0.0):
    """Relative variance of (w - baseline) times the score."""
    mean = kappa**2 * delta**2 / (1 + kappa) ** 2
    narrow = d / (1 + 2 * kappa) + 4 * kappa**2 * delta**2 / (1 + 2 * kappa) ** 2
    square = second_moment(kappa, delta, d) * narrow
    square += -2 * baseline * (d / (1 + kappa) + mean) + baseline**2 * d
    return square / mean - 1


@equation(
    "payoff-relative-variance",
    mutations={
        "minus one forgotten": {
            "formula": lambda k, delta, d: payoff_relative_variance_formula(k, delta, d) + 1
        },
        "variance of the weights alone": {
            "formula": lambda k, delta, d: second_moment(k, delta, d) - 1
        },
        "the payoff's moments for those of its square": {
            "formula": lambda k, delta, d: (
                second_moment(k, delta, d)
                * (d / (1 + k) + (k * delta / (1 + k)) ** 2)
                / (k * delta / (1 + k)) ** 2
                - 1
            )
        },
    },
)
def payoff_relative_variance(formula=payoff_relative_variance_formula):
    """Weights with mean 1, no baseline."""
    for kappa, delta in CASES:
        close(formula(kappa, delta, 2), _by_quadrature(lambda r, w: w, kappa, delta), 1e-8)  # noqa: ARG005


@equation(
    "payoff-relative-variance-with-baseline",
    mutations={
        "no baseline": {"baseline": 0.0},
        "a baseline of 2": {"baseline": 2.0},
        "a half": {"baseline": 0.5},
    },
)
def payoff_relative_variance_with_baseline(baseline=1.0):
    """Weights minus 1; at small kappa it becomes REINFORCE's."""
    for kappa, delta in CASES:
        found = payoff_relative_variance_formula(kappa, delta, 2, baseline)
        close(found, _by_quadrature(lambda r, w: w - 1, kappa, delta), 1e-8)  # noqa: ARG005
    small = payoff_relative_variance_formula(1e-5, 0.7, 2, baseline)
    assert abs(small / (3 + 12 / (2 * 0.7**2)) - 1) < 1e-3


@equation(
    "same-estimator-at-large-tau",
    mutations={
        "no baseline": {"first_order": lambda r, tau: r / tau},
        "tau inverted": {"first_order": lambda r, tau: (r - r.mean()) * tau},
        "sign": {"first_order": lambda r, tau: (r.mean() - r) / tau},
    },
)
def same_estimator_at_large_tau(first_order=lambda r, tau: (r - r.mean()) / tau):
    """Weights with mean 1 of 1,000 rewards; what is left falls with tau squared."""
    r = 1 + torch.randn(1000, dtype=F64)
    for tau in (1e3, 1e4):
        w = torch.softmax(r / tau, 0) * len(r)
        close(tau * (w - 1), tau * first_order(r, tau), tolerance=20 / tau)


# ---- gradients of networks -------------------------------------------------------------------

DIFFUSION = Diffusion(schedules.cosine(20))


@equation(
    "path-noise-target",
    mutations={
        "sign": {"target": lambda eps, z, w: eps + z / (2 * w) ** 0.5},
        "without the 2": {"target": lambda eps, z, w: eps - z / w**0.5},
        "no root": {"target": lambda eps, z, w: eps - z / (2 * w)},
        "simple weight": {"weight": lambda t: 1.0},  # noqa: ARG005
    },
)
def path_noise_target(
    target=lambda eps, z, w: eps - z / (2 * w) ** 0.5,
    weight=lambda t: float(DIFFUSION.loss_weight("vlb")[t]),
):
    """Steps of a wrong policy: log p less that of the policy that drew them, by the library."""
    old, new = torch.randn(2, 7, 3, dtype=F64)
    x_t, z = torch.randn(2, 7, 3, dtype=F64)
    for t in (1, 2, 11, 20):
        means = [DIFFUSION.step(x_t, t, t - 1, eps)[0] for eps in (old, new)]
        std = DIFFUSION.path_std(t, t - 1)
        x_s = means[0] + std * z
        log_p = [torch.distributions.Normal(m, std).log_prob(x_s).sum(1) for m in means]
        w = float(weight(t))
        error = [(eps - target(old, z, w)).square().sum(1) for eps in (old, new)]
        close(-w * (error[1] - error[0]), log_p[1] - log_p[0], 1e-8)


def square_of_mean(g):
    """Unbiased estimate of |E g|^2 from independent draws (B, p)."""
    total, n = g.sum(0), len(g)
    return (total.square().sum() - g.square().sum()) / (n * (n - 1))


@equation(
    "unbiased-square-of-mean",
    mutations={
        "the mean squared": {"formula": lambda g: g.mean(0).square().sum()},
        "over B squared": {"formula": lambda g: square_of_mean(g) * (1 - 1 / len(g))},
        "second moment": {"formula": lambda g: g.square().sum(1).mean()},
    },
)
def unbiased_square_of_mean(formula=square_of_mean):
    """All triples of draws from four points of the plane with unequal probabilities."""
    points = torch.randn(4, 2, dtype=F64)
    p = torch.softmax(torch.randn(4, dtype=F64), 0)
    triples = torch.cartesian_prod(*[torch.arange(4)] * 3)
    expected = sum(p[i].prod() * formula(points[i]) for i in triples)
    close(expected, (p @ points).square().sum())
