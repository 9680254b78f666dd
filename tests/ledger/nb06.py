"""Equations first shown in notebook 06."""

import math

import torch

from ledger import close, equation, within
from rgdm_lib import stepwise
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


# ---- one Gaussian, one bowl: policy N(0, I), reward -k |x - a|^2 / 2, a = delta, s_0 = 1 ------


def _by_quadrature(weight, kappa, delta, d=2, tau=1.0):
    """trace(Cov) / |mean|^2 of weight(r, w) x, x ~ N(0, I_2), on a fine grid."""
    line = torch.linspace(-9, 9, 721, dtype=F64)
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
