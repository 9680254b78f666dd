"""World (g): fits of one Gaussian to a mixture, against adaptive quadrature on the line."""

import math

import pytest
import torch
from scipy import integrate, optimize

from rgdm_lib.worlds.misspecified import OneGaussian, two_modes
from rgdm_lib.worlds.mixtures import GaussianMixture

WEIGHTS, MEANS, STDS = (0.3, 0.7), (-2.5, 2.0), (0.4, 0.7)
UNEQUAL = GaussianMixture(torch.tensor(MEANS)[:, None], torch.tensor(STDS), torch.tensor(WEIGHTS))


def log_normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def log_density(x):
    """The unequal mixture, typed in once more; a logarithm, as its tails underflow."""
    parts = zip(WEIGHTS, MEANS, STDS, strict=True)
    terms = [math.log(w) + log_normal(x, m, s) for w, m, s in parts]
    return max(terms) + math.log(sum(math.exp(term - max(terms)) for term in terms))


def integral(f):
    value, error = integrate.quad(
        f, -20, 20, points=[-4, -2.5, 0, 2, 4], epsabs=1e-10, epsrel=1e-10
    )
    assert error < 1e-8
    return value


def average(f):
    """E[f(x)] under the unequal mixture."""
    return integral(lambda x: math.exp(log_density(x)) * f(x))


def forward(mean, std):
    return average(lambda x: log_density(x) - log_normal(x, mean, std))


def reverse(mean, std):
    def integrand(x):
        log_p = log_normal(x, mean, std)
        return math.exp(log_p) * (log_p - log_density(x))

    return integral(integrand)


def scalars(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def is_close(actual, expected, tolerance=1e-6):
    assert float(actual) == pytest.approx(float(expected), abs=tolerance, rel=0)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.2), (-2.5, 0.5), (1.0, 2.0)])
def test_both_divergences(mean, std):
    world = OneGaussian(UNEQUAL)
    is_close(world.forward_kl(*scalars(mean, std)), forward(mean, std))
    is_close(world.reverse_kl(*scalars(mean, std)), reverse(mean, std))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.2), (-2.5, 0.5), (1.0, 2.0)])
def test_gradient_of_the_reverse_kl(mean, std):
    world = OneGaussian(UNEQUAL)
    m, log_std = (v.requires_grad_() for v in scalars(mean, math.log(std)))
    of_autograd = torch.autograd.grad(world.reverse_kl(m, log_std.exp()), (m, log_std))
    gradient = world.reverse_kl_gradient(*scalars(mean, std))
    torch.testing.assert_close(gradient, torch.stack(of_autograd), atol=1e-10, rtol=0)


def test_forward_fit_is_moment_matching_and_the_minimum():
    fit = OneGaussian(UNEQUAL).forward_fit()
    mean = average(lambda x: x)
    variance = average(lambda x: (x - mean) ** 2)
    is_close(fit.mean, mean)
    is_close(fit.std, math.sqrt(variance))
    is_close(fit.kl, forward(mean, math.sqrt(variance)))
    found = optimize.minimize(
        lambda p: forward(p[0], math.exp(p[1])), (0.0, 0.0), method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12},
    )  # fmt: skip
    is_close(fit.kl, found.fun)
    is_close(fit.mean, found.x[0])
    is_close(fit.std, math.exp(found.x[1]))


def test_reverse_fits_are_the_minima():
    fits = OneGaussian(UNEQUAL).reverse_fits()
    assert len(fits) == 2 and fits[0].kl < fits[1].kl
    assert fits[0].mean == pytest.approx(2.0, abs=0.2)  # near the heavier mode, then the lighter
    assert fits[1].mean == pytest.approx(-2.5, abs=0.2)
    for fit in fits:
        found = optimize.minimize(
            lambda p: reverse(p[0], math.exp(p[1])), (fit.mean + 0.1, math.log(fit.std) + 0.1),
            method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12},
        )  # fmt: skip
        is_close(fit.kl, found.fun)
        is_close(fit.mean, found.x[0])
        is_close(fit.std, math.exp(found.x[1]))


def test_the_divergences_part_when_the_policy_cannot_follow():
    reference, reward = two_modes()
    world = OneGaussian(reference.tilt(reward, tau=1.0))
    cover, seek = world.forward_fit(), world.reverse_fits()[0]
    assert cover.std > 1.5 > 0.8 > seek.std
    assert world.reverse_kl(*scalars(cover.mean, cover.std)) > seek.kl + 0.2
    assert world.forward_kl(*scalars(seek.mean, seek.std)) > cover.kl + 0.2


def test_the_divergences_agree_when_the_policy_can_follow():
    one = OneGaussian(GaussianMixture(torch.tensor([[0.7]]), 0.4))
    (seek,), cover = one.reverse_fits(), one.forward_fit()
    for value, expected in zip(seek + cover, 2 * (0.7, 0.4, 0.0), strict=True):
        is_close(value, expected, 1e-7)  # 0.7 and 0.4 were read as float32


def test_two_modes():
    reference, reward = two_modes(separation=3.0, std=0.5)
    assert reference.means.tolist() == [[-1.5], [1.5]] and reference.weights.tolist() == [0.5, 0.5]
    assert reward(torch.tensor([[1.5], [-1.5]])).diff() < 0


def test_refuses_a_target_off_the_line():
    with pytest.raises(ValueError, match="dimension 2, not 1"):
        OneGaussian(GaussianMixture(torch.zeros(2, 2), 1.0))
