"""Equations first shown in notebook 01."""

import math

import numpy as np
import torch
from torch.distributions import Normal

from ledger import close, equation
from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.mixtures import GaussianMixture

SCHEDULE = schedules.cosine(40)
DIFFUSION = Diffusion(SCHEDULE)
MEANS, WEIGHTS, STD = (-1.0, 2.0), (0.3, 0.7), 0.25


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = GaussianMixture(vector(*MEANS)[:, None], STD, vector(*WEIGHTS))


def gauss_hermite(n=30):
    """Points and weights with which polynomials of z ~ N(0, 1) are averaged exactly."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(z), torch.from_numpy(w / w.sum())


def variance(values, weights):
    mean = (weights * values).sum()
    return (weights * (values - mean).square()).sum()


# ---- one step, and the jump ------------------------------------------------------------------


@equation(
    "variance-one-step",
    mutations={
        "no shrinking": {"formula": lambda v, beta: v + beta},
        "factor not squared": {"formula": lambda v, beta: (1 - beta) ** 0.5 * v + beta},
        "beta as a standard deviation": {"formula": lambda v, beta: (1 - beta) * v + beta**2},
    },
)
def variance_one_step(formula=lambda v, beta: (1 - beta) * v + beta):
    """Three data points, one step with the noise on Gauss-Hermite points: a finite sum."""
    x, p, beta = vector(-1.0, 0.5, 3.0), vector(0.2, 0.5, 0.3), 0.17
    z, w = gauss_hermite()
    stepped = math.sqrt(1 - beta) * x[:, None] + math.sqrt(beta) * z
    close(formula(variance(x, p), beta), variance(stepped, p[:, None] * w))


def jump(coefficients):
    """q_sample with other coefficients (of x_0, of the noise), given alpha_bar and t."""

    def q_sample(x0, t, noise):
        a, b = coefficients(SCHEDULE.alpha_bar, t)
        return a * x0 + b * noise

    return q_sample


@equation(
    "ddpm-marginal",
    mutations={
        "no square roots": {"formula": jump(lambda ab, t: (ab[t], 1 - ab[t]))},
        "t off by one": {"formula": jump(lambda ab, t: (ab[t - 1].sqrt(), (1 - ab[t - 1]).sqrt()))},
        "alpha for alpha_bar": {
            "formula": jump(lambda ab, t: (SCHEDULE.alpha[t].sqrt(), SCHEDULE.beta[t].sqrt()))
        },
        "coefficients swapped": {"formula": jump(lambda ab, t: ((1 - ab[t]).sqrt(), ab[t].sqrt()))},
    },
)
def ddpm_marginal(formula=DIFFUSION.q_sample):
    """Mean and variance of the jump against t single steps x -> sqrt(1 - beta) x + noise."""
    mean, v = vector(1.0)[None], 0.0
    for t in range(1, SCHEDULE.T + 1):
        beta = float(SCHEDULE.beta[t])
        mean, v = math.sqrt(1 - beta) * mean, (1 - beta) * v + beta
        close(formula(vector(1.0)[None], t, vector(0.0)[None]), mean)
        close(formula(vector(0.0)[None], t, vector(1.0)[None]).square(), [[v]])


@equation(
    "mixture-variance",
    mutations={
        "standard deviation for variance": {"formula": lambda ab, s: ab * s + 1 - ab},
        "root of alpha_bar": {"formula": lambda ab, s: ab.sqrt() * s**2 + 1 - ab},
        "noise left out": {"formula": lambda ab, s: ab * s**2},
    },
)
def mixture_variance(formula=lambda ab, s: ab * s**2 + 1 - ab):
    """x_t of one mode on Gauss-Hermite points, for its data and for the noise."""
    z, w = gauss_hermite()
    for t in (1, 12, 40):
        x0 = (2.0 + STD * z).repeat_interleave(len(z))[:, None]
        x_t = DIFFUSION.q_sample(x0, t, z.repeat(len(z))[:, None])[:, 0]
        close(formula(SCHEDULE.alpha_bar[t], STD), variance(x_t, torch.outer(w, w).flatten()))


@equation(
    "prior-kl",
    mutations={
        "mean over dimensions": {
            "formula": lambda ab, x0: (ab * x0.square() - ab - torch.log1p(-ab)).mean() / 2
        },
        "sign of the logarithm": {
            "formula": lambda ab, x0: (ab * x0.square() - ab + torch.log1p(-ab)).sum() / 2
        },
        "half left out": {"formula": lambda ab, x0: (ab * x0**2 - ab - torch.log1p(-ab)).sum()},
        "arguments swapped": {
            "formula": lambda ab, x0: (
                (ab * x0.square() + 1) / (1 - ab) - 1 + torch.log1p(-ab)
            ).sum() / 2
        },
    },
)  # fmt: skip
def prior_kl(
    formula=lambda ab, x0: (
        ab * x0.square().sum() - len(x0) * ab - len(x0) * torch.log1p(-ab)
    ) / 2
):  # fmt: skip
    """PyTorch's divergence of two Gaussians, summed over dimensions."""
    x0 = vector(1.5, -0.4, 0.2)
    for ab in (SCHEDULE.alpha_bar[-1], vector(0.36)[0]):
        q = Normal(ab.sqrt() * x0, (1 - ab).sqrt())
        close(formula(ab, x0), torch.distributions.kl_divergence(q, Normal(0 * x0, 1.0)).sum())


# ---- one step back ---------------------------------------------------------------------------


def conditional(t, x0, x_t):
    """Mean and variance of x_{t-1} given x_t and x_0, from the covariance of the pair.

    The chain gives it: Var(x_{t-1}) = v and x_t = sqrt(alpha_t) x_{t-1} + noise, so the covariance
    is sqrt(alpha_t) v.
    """
    mean, v = x0, 0.0
    for i in range(1, t):
        mean = SCHEDULE.alpha[i].sqrt() * mean
        v = SCHEDULE.alpha[i] * v + SCHEDULE.beta[i]
    root = SCHEDULE.alpha[t].sqrt()
    v_t = root**2 * v + SCHEDULE.beta[t]
    return mean + root * v / v_t * (x_t - root * mean), v - (root * v) ** 2 / v_t


def two_gaussians(prior, step):
    """Log of the product, from (mean, variance) of each as functions of x_0, x_{t-1} and t."""

    def log_product(x, x0, x_t, t):
        (m, v), (m_t, v_t) = prior(x0, t), step(x, t)
        return Normal(m, v.sqrt()).log_prob(x) + Normal(m_t, v_t.sqrt()).log_prob(x_t)

    return log_product


def of_x0(x0, t):
    return SCHEDULE.alpha_bar[t - 1].sqrt() * x0, 1 - SCHEDULE.alpha_bar[t - 1]


def of_step(x, t):
    return SCHEDULE.alpha[t].sqrt() * x, SCHEDULE.beta[t]


product = two_gaussians(of_x0, of_step)


@equation(
    "bayes-one-step",
    mutations={
        "alpha_bar off by one": {
            "formula": two_gaussians(lambda x0, t: of_x0(x0, t + 1), of_step)
        },
        "no shrinking": {"formula": two_gaussians(of_x0, lambda x, t: (x, SCHEDULE.beta[t]))},
        "alpha_bar for alpha": {
            "formula": two_gaussians(
                of_x0, lambda x, t: (SCHEDULE.alpha_bar[t].sqrt() * x, SCHEDULE.beta[t])
            )
        },
    },
)  # fmt: skip
def bayes_one_step(formula=product):
    """The product, normalised on a grid, against the conditional of the Gaussian pair."""
    x = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    for t in (5, 20):
        mean, v = conditional(t, x0=1.2, x_t=0.4)
        share = torch.softmax(formula(x, 1.2, vector(0.4), t), 0)
        close(share, torch.softmax(Normal(mean, v.sqrt()).log_prob(x), 0))


@equation(
    "posterior-precision",
    mutations={
        "beta for beta_tilde": {"closed": lambda s: s.beta[2:]},
        "t off by one": {"closed": lambda s: s.posterior_variance[1:-1]},
        "ratio inverted": {
            "closed": lambda s: (1 - s.alpha_bar[2:]) / (1 - s.alpha_bar[1:-1]) * s.beta[2:]
        },
        "alpha left out": {
            "precision": lambda s: 1 / (1 - s.alpha_bar[1:-1]) + 1 / s.beta[2:]
        },
        "precisions subtracted": {
            "precision": lambda s: s.alpha[2:] / s.beta[2:] - 1 / (1 - s.alpha_bar[1:-1])
        },
    },
)  # fmt: skip
def posterior_precision(
    precision=lambda s: 1 / (1 - s.alpha_bar[1:-1]) + s.alpha[2:] / s.beta[2:],
    closed=lambda s: s.posterior_variance[2:],
):
    v = torch.stack([conditional(t, 1.0, 1.0)[1] for t in range(2, SCHEDULE.T + 1)])
    close(closed(SCHEDULE), v)
    close(1 / precision(SCHEDULE), v)


def average(coefficients):
    """A posterior mean with other coefficients (of x_0, of x_t)."""

    def mean(x0, x_t, t):
        s = SCHEDULE
        of_data, of_now = coefficients(s.alpha_bar[t - 1], s.alpha_bar[t], s.alpha[t], s.beta[t])
        return of_data * x0 + of_now * x_t

    return mean


@equation(
    "posterior-mean",
    mutations={
        "coefficients swapped": {
            "formula": average(lambda p, ab, a, b: (
                a.sqrt() * (1 - p) / (1 - ab), p.sqrt() * b / (1 - ab)))
        },
        "alpha_bar off by one": {
            "formula": average(lambda p, ab, a, b: (
                ab.sqrt() * b / (1 - ab), a.sqrt() * (1 - p) / (1 - ab)))
        },
        "no square roots": {
            "formula": average(lambda p, ab, a, b: (p * b / (1 - ab), a * (1 - p) / (1 - ab)))
        },
    },
)  # fmt: skip
def posterior_mean(formula=lambda x0, x_t, t: DIFFUSION.posterior(x0, x_t, t)[0]):
    x0, x_t = vector(1.2)[None], vector(0.4)[None]
    for t in range(1, SCHEDULE.T + 1):
        close(formula(x0, x_t, t), conditional(t, x0, x_t)[0])


# ---- what x_t tells about x_0 ----------------------------------------------------------------

GRID = torch.linspace(-4, 5, 4001, dtype=torch.float64)  # of x_0; the modes are well inside


def joint(x_t, ab):
    """(n, K, grid) weight of (mode, x_0) given x_t, up to a constant a row: Bayes on a grid."""
    modes = torch.stack([w * Normal(m, STD).log_prob(GRID).exp()
                         for w, m in zip(WEIGHTS, MEANS, strict=True)])  # fmt: skip
    return modes * Normal(ab.sqrt() * GRID, (1 - ab).sqrt()).log_prob(x_t[:, None, None]).exp()


def shares(x_t, ab):
    """(n, K) by summing the grid."""
    of_mode = joint(x_t, ab).sum(-1)
    return of_mode / of_mode.sum(1, keepdim=True)


def of_library(x_t, ab):
    return MIXTURE._posterior(x_t[:, None], ab.expand(len(x_t)))[0].exp()


def by_density(shrink=True, spread=True, weighted=True):
    """r_k with parts of the formula left out."""

    def responsibilities(x_t, ab):
        mean = (ab.sqrt() if shrink else 1) * vector(*MEANS)
        v = ab * STD**2 + 1 - ab if spread else 1 - ab
        log_p = Normal(mean, v.sqrt()).log_prob(x_t[:, None])
        return torch.softmax(log_p + (vector(*WEIGHTS).log() if weighted else 0), 1)

    return responsibilities


@equation(
    "responsibility",
    mutations={
        "weights left out": {"formula": by_density(weighted=False)},
        "means not shrunk": {"formula": by_density(shrink=False)},
        "the modes' own width left out": {"formula": by_density(spread=False)},
    },
)
def responsibility(formula=of_library):
    for t in (8, 20, 35):
        ab, x_t = SCHEDULE.alpha_bar[t], vector(-1.0, 0.3, 1.7)
        close(formula(x_t, ab), shares(x_t, ab))


def inside_a_mode(coefficient, centre=lambda ab, mean: ab.sqrt() * mean):
    """E[x_0 | x_t] with another slope, or another centre, in each mode."""

    def guess(x_t, ab):
        mean = vector(*MEANS)
        v = ab * STD**2 + 1 - ab
        of_mode = mean + coefficient(ab, v) * (x_t[:, None] - centre(ab, mean))
        return (by_density()(x_t, ab) * of_mode).sum(1)

    return guess


def of_denoiser(x_t, ab):
    t = int((SCHEDULE.alpha_bar - ab).abs().argmin())
    x = x_t[:, None]
    eps = MIXTURE.denoiser(SCHEDULE)(x, torch.full((len(x),), t))
    return DIFFUSION.predict_x0(x, t, eps)[:, 0]


@equation(
    "mixture-denoiser",
    mutations={
        "the mode's mean alone": {"formula": inside_a_mode(lambda ab, v: 0 * v)},
        "root of alpha_bar left out": {"formula": inside_a_mode(lambda ab, v: STD**2 / v)},
        "mean not shrunk": {
            "formula": inside_a_mode(
                lambda ab, v: ab.sqrt() * STD**2 / v, lambda ab, mean: mean
            )
        },
    },
)  # fmt: skip
def mixture_denoiser(formula=of_denoiser):
    for t in (8, 20, 35):
        ab, x_t = SCHEDULE.alpha_bar[t], vector(-1.0, 0.3, 1.7)
        weight = joint(x_t, ab).sum(1)
        close(formula(x_t, ab), (weight * GRID).sum(1) / weight.sum(1))


@equation(
    "eps-loss-floor",
    mutations={
        "ratio inverted": {"formula": lambda ab, v: (1 - ab) / ab * v},
        "root of the ratio": {"formula": lambda ab, v: (ab / (1 - ab)).sqrt() * v},
        "noise not divided out": {"formula": lambda ab, v: ab * v},
    },
)
def eps_loss_floor(formula=lambda ab, v: ab / (1 - ab) * v):
    """Both conditional variances, of the noise and of x_0, by Bayes on a grid."""
    x_t = torch.linspace(-6, 7, 201, dtype=torch.float64)
    for t in (8, 20, 35):
        ab = SCHEDULE.alpha_bar[t]
        weight = joint(x_t, ab).sum(1)
        weight = weight / weight.sum()
        eps = (x_t[:, None] - ab.sqrt() * GRID) / (1 - ab).sqrt()

        def left(values, weight=weight):
            """E[Var(values | x_t)]: the least squared error of any function of x_t."""
            best = (weight * values).sum(1) / weight.sum(1)
            return (weight * (values - best[:, None]).square()).sum()

        close(formula(ab, left(GRID.expand(len(x_t), -1))), left(eps))


def from_start(density):
    """The share of each mode after x_T from a density, given responsibilities on its grid."""
    return lambda x, ab, r: (density(x, ab)[:, None] * r(x, ab)).sum(0) * (x[1] - x[0])


from_normal = from_start(lambda x, ab: Normal(0, 1).log_prob(x).exp())


@equation(
    "share-from-normal-start",
    mutations={
        "from the right start": {
            "formula": from_start(
                lambda x, ab: sum(
                    w * Normal(ab.sqrt() * m, (ab * STD**2 + 1 - ab).sqrt()).log_prob(x).exp()
                    for w, m in zip(WEIGHTS, MEANS, strict=True)
                )
            )
        },
        "start too narrow": {
            "formula": from_start(lambda x, ab: Normal(0, (1 - ab).sqrt()).log_prob(x).exp())
        },
        "not normalised": {"formula": from_start(lambda x, ab: (-x.square() / 2).exp())},
    },
)
def share_from_normal_start(formula=from_normal):
    """x_T from N(0, 1) on a grid, then the exact law of x_0; count what lies right of 0.5.

    The modes are 0.25 wide and 3 apart, so that 0.5, six widths from each, parts them to 1e-8.
    """
    x = torch.linspace(-9, 9, 301, dtype=torch.float64)
    start = torch.softmax(-x.square() / 2, 0)
    for ab in (vector(0.36)[0], vector(0.6)[0]):
        weight = joint(x, ab).sum(1)
        right = weight[:, GRID > 0.5].sum(1) / weight.sum(1)
        close(formula(x, ab, by_density())[1], start @ right, tolerance=1e-8)
