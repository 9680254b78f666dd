"""Equations first shown in notebook 09."""

import math

import torch

from ledger import close, equation
from ledger.nb02 import SIGMA_MUTATIONS, STEP_MUTATIONS, check_sigma, check_step
from rgdm_lib import payoff, schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.molecules.correction import corrected_toward
from rgdm_lib.molecules.data import center
from rgdm_lib.payoff import Draw
from rgdm_lib.strength import matching_strength, strength_for, strengthen
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Linear

DIFFUSION = Diffusion(schedules.cosine(40))


def projection(n):
    """Covariance (n, n) of one coordinate after the library's projection: P P^T, P its Jacobian."""
    x = torch.zeros(1, n, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: center(v)[0, :, 0], x)[:, 0, :, 0]
    return jacobian @ jacobian.T


@equation(
    "projected-noise",
    mutations={
        "not projected": {"formula": lambda n: (1.0, 0.0)},
        "n - 1 for n": {"formula": lambda n: (1 - 1 / (n - 1), -1 / (n - 1))},
        "sign of the covariance": {"formula": lambda n: (1 - 1 / n, 1 / n)},
        "independent atoms": {"formula": lambda n: (1 - 1 / n, 0.0)},
    },
)
def projected_noise(formula=lambda n: (1 - 1 / n, -1 / n)):
    for n in (3, 7, 20):
        variance, covariance = formula(n)
        expected = torch.full((n, n), covariance, dtype=torch.float64)
        close(expected.fill_diagonal_(variance), projection(n))


@equation(
    "ddim-step-with-sigma",
    mutations={name: {"step": step} for name, step in STEP_MUTATIONS.items()}
    | {name: {"sigma": sigma} for name, sigma in SIGMA_MUTATIONS.items()},
)
def ddim_step_with_sigma(
    step=lambda *arguments: DIFFUSION.step(*arguments)[0], sigma=DIFFUSION.step_std
):
    check_step(step, sigma)
    check_sigma(sigma)


SIZES = torch.tensor([5, 7, 5, 5, 9, 7, 9, 9, 9])
REWARD = torch.tensor([0.1, 0.9, 0.4, -0.3, 0.5, 0.2, 0.0, 0.7, -0.6], dtype=torch.float64)
TAU = 0.8


def by_size(share=None, normalise_inside=True):
    """Weights with another share for each size, or normalised over all samples."""

    def weights():
        w = (REWARD / TAU).exp()
        same = SIZES[:, None] == SIZES
        total = (same * w).sum(1) if normalise_inside else w.sum()
        return (same.sum(1) / len(SIZES) if share is None else share) * w / total

    return weights


@equation(
    "payoff-weights-by-size",
    mutations={
        "sizes ignored": {"formula": by_size(1.0, normalise_inside=False)},
        "equal shares of sizes": {"formula": by_size(1 / 3)},
        "not normalised inside": {"formula": by_size(normalise_inside=False)},
        "tau inverted": {
            "formula": lambda: payoff.log_weights(REWARD, 1 / TAU, strata=SIZES).exp()
        },
    },
)
def payoff_weights_by_size(
    formula=lambda: payoff.log_weights(REWARD, TAU, strata=SIZES).exp(),
):
    """Sums to 1, keeps each size's share, and tilts by exp(r / tau) between molecules of a size."""
    w = formula()
    close(w.sum(), 1)
    for size in (5, 7, 9):
        inside = torch.nonzero(SIZES == size).flatten().tolist()
        close(w[inside].sum(), len(inside) / 9)
        for i in inside:
            for j in inside:
                close(w[i] / w[j], math.exp(float(REWARD[i] - REWARD[j]) / TAU))


@equation(
    "ess-gaussian-reward",
    mutations={
        "tau inverted": {"formula": lambda s, tau: math.exp(-((s * tau) ** 2))},
        "not squared": {"formula": lambda s, tau: math.exp(-s / tau)},
        "factor one half": {"formula": lambda s, tau: math.exp(-(s**2) / tau**2 / 2)},
    },
)
def ess_gaussian_reward(formula=lambda s, tau: math.exp(-(s**2) / tau**2)):
    """Both averages by summing a grid; and the library's share for a Gaussian."""
    z = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    p = torch.softmax(-z.square() / 2, 0)
    for s, tau in ((0.3, 0.4), (0.063, 0.1), (1.0, 0.7)):
        one, two = ((p * (k * s * z / tau).exp()).sum() for k in (1, 2))
        close(formula(s, tau), one**2 / two)
        gaussian = GaussianMixture(torch.zeros(1, 1), s)
        close(formula(s, tau), gaussian.ess_share(Linear([1.0]), tau))


# ---- training on weights ---------------------------------------------------------------------

PLACES = torch.tensor([[0.5], [-1.0], [2.0]], dtype=torch.float64)
COUNTS = torch.tensor([5, 3, 2])  # ten samples at three places: the law is the sample, exactly
VALUES = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64)
SAMPLES, REWARDS = PLACES.repeat_interleave(COUNTS, 0), VALUES.repeat_interleave(COUNTS)
SLOPES = torch.linspace(1.5, 0.5, 41, dtype=torch.float64)  # a linear denoiser, c_t x


def denoising_loss(x0):
    """E over t and noise of |eps - c_t x_t|^2 for each x_0 (n, 1); closed form."""
    c, ab = SLOPES[1:], DIFFUSION.schedule.alpha_bar[1:]
    return ((1 - c * (1 - ab).sqrt()).square() + c.square() * ab * x0.square()).mean(1)


def weighted(weights):
    return lambda: (weights() * denoising_loss(SAMPLES)).sum()


@equation(
    "weighted-denoising-loss",
    mutations={
        "weights left out": {"formula": weighted(lambda: torch.full((10,), 0.1).double())},
        "not normalised": {"formula": weighted(lambda: (REWARDS / TAU).exp() / 10)},
        "reward subtracted": {"formula": weighted(lambda: torch.softmax(-REWARDS / TAU, 0))},
        "tau inverted": {"formula": weighted(lambda: torch.softmax(REWARDS * TAU, 0))},
        "reward as the weight": {"formula": weighted(lambda: REWARDS / REWARDS.sum())},
    },
)
def weighted_denoising_loss(
    formula=lambda: Draw(SAMPLES, REWARDS).weigh(TAU).expectation(denoising_loss),
):
    """Ten samples of frequencies equal to the law's, so that the sum is the expectation.

    The other side is the expectation under p* over three places, noise on Gauss-Hermite points.
    """
    p = COUNTS * (VALUES / TAU).exp()
    p = p / p.sum()
    z, w = (torch.tensor(v, dtype=torch.float64) for v in ((-(3**0.5), 0, 3**0.5), (1, 4, 1)))
    loss = torch.zeros(3, dtype=torch.float64)
    for t in range(1, 41):
        for place in range(3):
            x_t = DIFFUSION.q_sample(PLACES[place].expand(3, 1), t, z[:, None])[:, 0]
            loss[place] += (w / 6 * (z - SLOPES[t] * x_t).square()).sum() / 40
    close(formula(), (p * loss).sum())


@equation(
    "kl-of-the-payoff",
    mutations={
        "log Z added": {"formula": lambda mean, tau, log_z: mean / tau + log_z},
        "tau inverted": {"formula": lambda mean, tau, log_z: mean * tau - log_z},
        "log Z left out": {"formula": lambda mean, tau, log_z: mean / tau},
        "tau also under log Z": {"formula": lambda mean, tau, log_z: (mean - log_z) / tau},
    },
)
def kl_of_the_payoff(formula=lambda mean, tau, log_z: mean / tau - log_z):
    """sum w log(n w) over samples: their law is uniform, the payoff's is w."""
    w = Draw(SAMPLES, REWARDS).weigh(TAU)
    z = (REWARDS / TAU).exp().mean()
    p = w.log_weight.exp()
    close(formula(w.expectation(REWARDS), TAU, z.log()), (p * (10 * p).log()).sum())


COUNT = torch.tensor([[3, 1, 2, 4], [1, 1, 5, 1], [2, 6, 2, 2]])  # of answers x to the question c
MISS = torch.tensor([[0.1, 0.9, 0.4, 0.3], [0.5, 0.2, 0.0, 0.7], [0.6, 0.3, 1.1, 0.2]]).double()


def payoff_of_questions(p_c, p_x, reward, tau):
    """p*(x | c), and the law of the weighted answers, up to a factor."""
    tilted = p_x * (reward / tau).exp()
    z = tilted.sum(1, keepdim=True)
    return tilted / z, p_c[:, None] * z * (tilted / z)


@equation(
    "conditional-payoff",
    mutations={
        "Z left out on the right": {
            "formula": lambda p_c, p_x, r, tau: (
                payoff_of_questions(p_c, p_x, r, tau)[0],
                p_c[:, None] * payoff_of_questions(p_c, p_x, r, tau)[0],
            )
        },
        "one Z for all questions": {
            "formula": lambda p_c, p_x, r, tau: (
                p_x * (r / tau).exp() / (p_x * (r / tau).exp()).sum(),
                payoff_of_questions(p_c, p_x, r, tau)[1],
            )
        },
        "temperature inverted": {
            "formula": lambda p_c, p_x, r, tau: payoff_of_questions(p_c, p_x, r, 1 / tau)
        },
        "distance, not minus the distance": {
            "formula": lambda p_c, p_x, r, tau: payoff_of_questions(p_c, p_x, -r, tau)
        },
    },
)
def conditional_payoff(formula=payoff_of_questions):
    """p* maximises E[r] - tau KL for each c; the joint law is that of the library's weights."""
    n = COUNT.sum(1).double()
    p_c, p_x, reward = n / n.sum(), COUNT / n[:, None], -MISS
    p_star, joint = formula(p_c, p_x, reward, TAU)
    close(p_star.sum(1), torch.ones(3, dtype=torch.float64))
    level = reward - TAU * (p_star / p_x).log()  # no answer is worth more weight than another
    close(level, level[:, :1].expand(3, 4))
    answers = torch.repeat_interleave(torch.arange(12), COUNT.flatten())
    weight = Draw(answers, reward.flatten()[answers]).weigh(TAU).log_weight.exp()
    cells = torch.zeros(12, dtype=torch.float64).index_add(0, answers, weight)
    close(joint.flatten() / joint.sum(), cells)


# ---- strength --------------------------------------------------------------------------------


def exact(mean):
    """Exact denoiser of N(mean, 1): sqrt(1 - alpha_bar) (x_t - sqrt(alpha_bar) mean)."""
    ab = DIFFUSION.schedule.alpha_bar

    def eps(x_t, t, cond=None):
        return (1 - ab[t]).sqrt()[:, None] * (x_t - ab[t].sqrt()[:, None] * mean)

    return eps


LEARNED = 0.4  # of the tilt from N(0, 1) to N(1 / tau, 1), the payoff of r = x


@equation(
    "strength",
    mutations={
        "counted from the student": {"formula": lambda own, start, s: own + s * (own - start)},
        "the student alone": {"formula": lambda own, start, s: s * own},
        "roles exchanged": {"formula": lambda own, start, s: own + s * (start - own)},
        "the reference twice": {"formula": lambda own, start, s: start + s * own},
    },
)
def strength(
    formula=lambda own, start, s: strengthen(lambda *_: own, lambda *_: start, s)(None, None),
):
    """A student with part of the tilt, at one over that part, is the payoff's exact denoiser."""
    x_t, t = torch.randn(7, 1, dtype=torch.float64), torch.tensor([1, 5, 10, 20, 30, 39, 40])
    own, start = exact(LEARNED / TAU)(x_t, t), exact(0.0)(x_t, t)
    close(formula(own, start, 1 / LEARNED), exact(1 / TAU)(x_t, t))
    close(formula(own, start, 1.0), own)


@equation(
    "away-from-own",
    mutations={
        "toward its own": {"formula": lambda own, base, s: base + s * (own - base)},
        "counted from the base": {"formula": lambda own, base, s: base + s * (base - own)},
        "the base alone": {"formula": lambda own, base, s: s * base},
    },
)
def away_from_own(
    formula=lambda own, base, s: strengthen(lambda *_: base, lambda *_: own, s)(None, None),
):
    """A base that is off by 0.3, a copy that is off by half as much again: s = 3 is the data."""
    x_t, t = torch.randn(7, 1, dtype=torch.float64), torch.tensor([1, 5, 10, 20, 30, 39, 40])
    own, base = exact(1.45)(x_t, t), exact(1.3)(x_t, t)
    close(formula(own, base, 3.0), exact(1.0)(x_t, t))
    close(formula(own, base, 0.0), own)


@equation(
    "two-directions",
    mutations={
        "toward the mistake": {
            "formula": lambda base, own, guided, w, s: (
                base + (w - 1) * (own - base) + s * (guided - base)
            )
        },
        "away from the copy, not the base": {
            "formula": lambda base, own, guided, w, s: base + w * (base - own) + s * (guided - base)
        },
        "the tilt counted from the copy": {
            "formula": lambda base, own, guided, w, s: (
                base + (w - 1) * (base - own) + s * (guided - own)
            )
        },
        "one strength for both": {
            "formula": lambda base, own, guided, w, s: (
                base + s * (2 * base - own + guided - 2 * base)
            )
        },
    },
)
def two_directions(
    formula=lambda base, own, guided, w, s: corrected_toward(
        *(lambda *_, eps=eps: eps for eps in (guided, base, own)), s, w
    )(None, None),
):
    """A base off by 0.3, a copy by 0.45, a student of part of the tilt: the tilted data exactly."""
    x_t, t = torch.randn(7, 1, dtype=torch.float64), torch.tensor([1, 5, 10, 20, 30, 39, 40])
    base, own, guided = (exact(m)(x_t, t) for m in (1.3, 1.45, 1.3 + LEARNED / TAU))
    close(formula(base, own, guided, 3.0, 1 / LEARNED), exact(1.0 + 1 / TAU)(x_t, t))
    close(formula(base, own, guided, 1.0, 1.0), guided)


@equation(
    "matching-strength",
    mutations={
        "counted from 0": {"formula": lambda one, far, aim, s: s * (aim - one) / (far - one)},
        "inverted": {"formula": lambda one, far, aim, s: 1 + (s - 1) * (far - one) / (aim - one)},
        "to the far end": {"formula": lambda one, far, aim, s: 1 + s * (aim - one) / (far - one)},
        "in proportion": {"formula": lambda one, far, aim, s: aim / one},
    },
)
def matching_strength_of_a_line(
    formula=lambda one, far, aim, s: matching_strength(((1.0, one), (s, far)), aim),
):
    """A student with part of the tilt from N(1, 1): at strength s its mean is 1 + s part / tau."""
    mean = [1 + s * LEARNED / TAU for s in (1.0, 1.8)]
    close(torch.tensor(formula(*mean, 1 + 1 / TAU, 1.8)).double(), 1 / LEARNED)


@equation(
    "step-back",
    mutations={
        "forward": {"formula": lambda s, left, slope: s - left / slope},
        "without the slope": {"formula": lambda s, left, slope: s + left},
        "inverted": {"formula": lambda s, left, slope: s + left * slope},
        "twice": {"formula": lambda s, left, slope: s + 2 * left / slope},
    },
)
def step_back(formula=None):
    """Means 1 + s part / tau, but where the second trial is taken they are 0.03 lower."""
    slope, aim = LEARNED / TAU, 1 + 1 / TAU

    def measure(k, s):
        return 1 + s * slope - 0.03 * k

    if formula is None:
        got = strength_for(aim, 1.0, 1 + slope, measure)
    else:
        got = formula(1 / LEARNED, 0.03, slope)
    close(torch.tensor(got, dtype=torch.float64), (aim + 0.03 - 1) / slope)
