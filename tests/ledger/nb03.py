"""Equations first shown in notebook 03."""

import math

import torch

from ledger import close, equation
from rgdm_lib import schedules
from rgdm_lib.baselines import classifier_guidance, conditional
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.mixtures import GaussianMixture, ring
from rgdm_lib.worlds.rewards import Ball, Indicator

F64 = torch.float64
T = 20
DIFFUSION = Diffusion(schedules.cosine(T))
WORLD = ring(std=0.4)
CLASS = GaussianMixture(WORLD.means[2:4], 0.4)  # a quarter of the world
ALL_T = torch.arange(1, T + 1).repeat_interleave(5)


def noised(law, t):
    """The law of x_t, exact, at one t."""
    ab = DIFFUSION.schedule.alpha_bar[t]
    return GaussianMixture(ab.sqrt() * law.means, (ab * law.std**2 + 1 - ab).sqrt(), law.weights)


def states():
    """Points near the noised world, five at each t."""
    x0 = WORLD.sample(len(ALL_T)).double()
    return DIFFUSION.q_sample(x0, ALL_T, torch.randn_like(x0))


def gradient(function, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def score(law, x):
    """By automatic differentiation of the log density, row by row at its own t."""
    return torch.cat(
        [gradient(noised(law, int(t)).log_prob, row[None]) for row, t in zip(x, ALL_T, strict=True)]
    )


def log_posterior(x, t):
    """log p(class | x_t) by Bayes' rule on exact densities."""
    terms = [
        noised(CLASS, int(s)).log_prob(row[None]) - noised(WORLD, int(s)).log_prob(row[None])
        for row, s in zip(x, t, strict=True)
    ]
    return torch.cat(terms) + math.log(1 / 4)


def noise_factor():
    return (1 - DIFFUSION.schedule.alpha_bar[ALL_T]).sqrt()[:, None]


@equation(
    "conditional-denoiser",
    mutations={
        "variance for standard deviation": {"factor": lambda s: -(s**2)},
        "sign": {"factor": lambda s: s},
        "unconditional score": {"law": WORLD},
    },
)
def conditional_denoiser(factor=lambda s: -s, law=CLASS):
    """E[eps | x_t, y] of the mixture's posterior against the score by autograd."""
    x = states()
    close(CLASS.denoiser(DIFFUSION.schedule)(x, ALL_T), factor(noise_factor()) * score(law, x))


@equation(
    "bayes-score",
    mutations={
        "sign": {"formula": lambda prior, likelihood: prior - likelihood},
        "likelihood alone": {"formula": lambda prior, likelihood: likelihood},
        "counted twice": {"formula": lambda prior, likelihood: prior + 2 * likelihood},
    },
)
def bayes_score(formula=lambda prior, likelihood: prior + likelihood):
    """Three gradients by autograd of three exact log densities."""
    x = states()
    likelihood = gradient(lambda x: log_posterior(x, ALL_T), x)
    close(score(CLASS, x), formula(score(WORLD, x), likelihood))


def _wrong_factor(denoiser, potential, diffusion, scale):
    def eps(x_t, t):
        a = diffusion.schedule.alpha_bar[t][:, None]
        return denoiser(x_t, t) - scale * (1 - a) * gradient(lambda x: potential(x, t), x_t)

    return eps


@equation(
    "classifier-guidance",
    mutations={
        "variance for standard deviation": {"guided": _wrong_factor},
        "sign": {
            "guided": lambda d, p, diffusion, w: classifier_guidance.guided(d, p, diffusion, -w)
        },
        "scale not used": {
            "guided": lambda d, p, diffusion, w: classifier_guidance.guided(d, p, diffusion, 1.0)
        },
    },
)
def guidance_by_a_classifier(guided=classifier_guidance.guided):
    """The library's guided noise against scores by autograd, at scales 1 and 2.5."""
    x = states()
    prior, likelihood = score(WORLD, x), gradient(lambda x: log_posterior(x, ALL_T), x)
    base = WORLD.denoiser(DIFFUSION.schedule)
    for scale in (1.0, 2.5):
        expected = -noise_factor() * (prior + scale * likelihood)
        close(guided(base, log_posterior, DIFFUSION, scale)(x, ALL_T), expected)


def _exact_network(x_t, t, cond):
    """Both laws in one network: the class where the flag is set."""
    given = CLASS.denoiser(DIFFUSION.schedule)(x_t, t)
    return torch.where(cond[:, -1:] > 0, given, WORLD.denoiser(DIFFUSION.schedule)(x_t, t))


@equation(
    "classifier-free-guidance",
    mutations={
        "scale off by one": {
            "formula": lambda net, w: conditional.classifier_free(net, w + 1),
        },
        "predictions exchanged": {
            "formula": lambda net, w: conditional.classifier_free(net, 1 - w),
        },
        "always the conditional model": {
            "formula": lambda net, w: conditional.classifier_free(net, 1.0),
        },
    },
)
def guidance_without_a_classifier(formula=conditional.classifier_free):
    """With exact denoisers it is the classifier's push: scores by autograd, scales 0, 1, 3."""
    x = states()
    prior, likelihood = score(WORLD, x), gradient(lambda x: log_posterior(x, ALL_T), x)
    cond = torch.ones(len(x), 2, dtype=F64)
    for scale in (0.0, 1.0, 3.0):
        expected = -noise_factor() * (prior + scale * likelihood)
        close(formula(_exact_network, scale)(x, ALL_T, cond), expected)


# a law on a grid on the line, its class probability, and noise at one level, by quadrature
_X0 = torch.linspace(-6, 6, 1201, dtype=F64)
_PRIOR = torch.softmax(torch.logaddexp(-((_X0 - 1) ** 2), -((_X0 + 1) ** 2) / 0.5), 0)
_CLASS = torch.sigmoid(2 * _X0 - 0.3)


@equation(
    "tempered-score",
    mutations={
        "power of the mean": {"average": lambda weight, w: w * (weight * _CLASS).sum(1).log()},
        "no power": {"average": lambda weight, w: (weight * _CLASS).sum(1).log()},
        "mean of the log": {"average": lambda weight, w: w * (weight * _CLASS.log()).sum(1)},
    },
)
def score_of_the_noised_tempered_law(
    average=lambda weight, w: (weight * _CLASS**w).sum(1).log(), power=3.0
):
    """d/dx of the log density of the noised tempered law, by quadrature and autograd."""
    a, s = 0.8, 0.6

    def log_q(x, law):
        return ((-((x[:, None] - a * _X0) ** 2) / (2 * s**2)).exp() * law).sum(1).log()

    def posterior(x):
        return torch.softmax(-((x[:, None] - a * _X0) ** 2) / (2 * s**2) + _PRIOR.log(), 1)

    x = torch.linspace(-2, 2, 9, dtype=F64)
    left = gradient(lambda x: log_q(x, _PRIOR * _CLASS**power), x)
    right = gradient(lambda x: log_q(x, _PRIOR) + average(posterior(x), power), x)
    close(left, right)


@equation(
    "payoff-of-an-indicator",
    mutations={
        "sign": {"formula": lambda p, tau: p / (p + (1 - p) * math.exp(1 / tau))},
        "tau inverted": {"formula": lambda p, tau: p * math.exp(tau) / (p * math.exp(tau) + 1 - p)},
        "not normalised": {"formula": lambda p, tau: p * math.exp(1 / tau)},
        "prior left out": {"formula": lambda p, tau: math.exp(1 / tau) / (1 + math.exp(1 / tau))},
    },
)
def payoff_of_an_indicator(
    formula=lambda p, tau: p * math.exp(1 / tau) / (p * math.exp(1 / tau) + 1 - p), tau=0.4
):
    """Against sums over a fine grid in the plane, of the density and of it times exp(r / tau)."""
    side = torch.linspace(-5, 5, 801, dtype=F64)
    points = torch.cartesian_prod(side, side)
    reward, density = Indicator(Ball([0.55, 0.55], 0.6))(points), WORLD.log_prob(points).exp()
    weight = density * (reward / tau).exp()
    share = float((density * reward).sum() / density.sum())
    close(formula(share, tau), float((weight * reward).sum() / weight.sum()))
