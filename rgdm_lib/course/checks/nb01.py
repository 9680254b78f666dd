"""Checks of notebook 01: the jump, the posterior of one step, the best guess of the noise."""

import math

import torch

from rgdm_lib.course.exercises import exercise, require, require_close, wrong

# A schedule typed in by hand: T = 3, alpha_bar = 1, 0.81, 0.36, 0.04.
_ALPHA_BAR = torch.tensor([1.0, 0.81, 0.36, 0.04], dtype=torch.float64)


@exercise("01.1")
def q_sample_is_the_jump(q_sample):
    """One row a step; the factors are 1, 0.9, 0.6, 0.2 for the data."""
    x0 = torch.tensor([[1.0, -2.0]], dtype=torch.float64).repeat(4, 1)
    t = torch.tensor([0, 1, 2, 3])
    zero = q_sample(x0, t, torch.zeros_like(x0), _ALPHA_BAR)
    require(
        zero.shape == x0.shape, f"it returns shape {tuple(zero.shape)}, x0's is {tuple(x0.shape)}"
    )
    require_close(zero[0], x0[0], "at t = 0 nothing may change")
    factors = torch.tensor([[1.0], [0.9], [0.6], [0.2]], dtype=torch.float64)
    require_close(zero, factors * x0, "without noise only the factor of x0 acts: check it")
    one = q_sample(torch.zeros_like(x0), t, torch.ones_like(x0), _ALPHA_BAR)
    expected = torch.tensor([0.0, 0.19, 0.64, 0.96], dtype=torch.float64).sqrt()
    require_close(one, expected[:, None].expand(4, 2), "check the factor of the noise")


@exercise("01.2")
def posterior_is_bayes(posterior):
    """Against Bayes' rule on a grid: prior times likelihood, normalised."""
    grid = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    for t in (2, 3):
        previous = _ALPHA_BAR[t - 1]
        alpha = _ALPHA_BAR[t] / previous
        for x0, x_t in ((1.0, -0.5), (-2.0, 1.5)):
            log_prior = -((grid - previous.sqrt() * x0) ** 2) / (2 * (1 - previous))
            log_likelihood = -((x_t - alpha.sqrt() * grid) ** 2) / (2 * (1 - alpha))
            weight = torch.softmax(log_prior + log_likelihood, 0)
            mean = (weight * grid).sum()
            variance = (weight * (grid - mean) ** 2).sum()
            pair = tuple(torch.tensor([v], dtype=torch.float64) for v in (x0, x_t))
            answer = posterior(*pair, t, _ALPHA_BAR)
            require(isinstance(answer, tuple) and len(answer) == 2, "it must return a pair")
            where = f"Bayes' rule on a grid says so at t = {t}"
            require_close(answer[0], mean.reshape(1), f"the mean; {where}")
            got = torch.as_tensor(answer[1])
            require(got.numel() == 1, f"the variance has shape {tuple(got.shape)}, not one value")
            require_close(got.reshape(()), variance, f"the variance; {where}")
    x0, x_t = torch.tensor([0.3, -1.0]).double(), torch.tensor([2.0, 2.0]).double()
    mean, variance = posterior(x0, x_t, 1, _ALPHA_BAR)
    require_close(mean, x0, "at t = 1 the mean is x0 itself")
    require_close(torch.as_tensor(variance).reshape(()), 0.0, "at t = 1 the variance is 0")


@exercise("01.3")
def best_eps_of_a_gaussian(best_eps):
    """Data N(0, 1): then E[x_0 | x_t] = sqrt(a) x_t and E[eps | x_t] = sqrt(1 - a) x_t."""
    x_t = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for a in (0.9, 0.36, 0.01):
        got = best_eps(x_t, math.sqrt(a) * x_t, torch.tensor(a, dtype=torch.float64))
        because = f"for data N(0, 1) and a = {a} the best guess is sqrt(1 - a) x_t"
        require_close(got, math.sqrt(1 - a) * x_t, because)
    x0, noise = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 0.25]).double()
    got = best_eps(0.6 * x0 + 0.8 * noise, x0, torch.tensor(0.36, dtype=torch.float64))
    require_close(got, noise, "with the true x_0 it must give the true noise back")


@wrong("01.1", "", "")
def _no_square_roots():
    def q_sample(x0, t, noise, alpha_bar):
        a = alpha_bar[t].unsqueeze(-1)
        return a * x0 + (1 - a) * noise

    return (q_sample,)


@wrong("01.1", "", "")
def _one_step_only():
    def q_sample(x0, t, noise, alpha_bar):
        before = alpha_bar[(t - 1).clamp(min=0)]
        a = (alpha_bar[t] / before).unsqueeze(-1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    return (q_sample,)


@wrong("01.1", "", "")
def _indexed_from_zero():
    def q_sample(x0, t, noise, alpha_bar):
        a = alpha_bar[(t - 1).clamp(min=0)].unsqueeze(-1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    return (q_sample,)


def _posterior(change):
    def posterior(x0, x_t, t, alpha_bar):
        previous, current = alpha_bar[t - 1], alpha_bar[t]
        alpha = current / previous
        beta = 1 - alpha
        mean = (previous.sqrt() * beta * x0 + alpha.sqrt() * (1 - previous) * x_t) / (1 - current)
        variance = (1 - previous) / (1 - current) * beta
        return change(mean, variance, alpha, beta, current)

    return (posterior,)


@wrong("01.2", "", "")
def _beta_for_beta_tilde():
    return _posterior(lambda mean, variance, alpha, beta, current: (mean, beta))


@wrong("01.2", "", "")
def _variance_without_denominator():
    return _posterior(
        lambda mean, variance, alpha, beta, current: (mean, variance * (1 - current))
    )


@wrong("01.2", "", "")
def _standard_deviation():
    return _posterior(lambda mean, variance, alpha, beta, current: (mean, variance.sqrt()))


@wrong("01.2", "", "")
def _mean_without_denominator():
    return _posterior(
        lambda mean, variance, alpha, beta, current: (mean * (1 - current), variance)
    )


@wrong("01.3", "", "")
def _divides_by_the_data_factor():
    return (lambda x_t, x0_hat, a: (x_t - a.sqrt() * x0_hat) / a.sqrt(),)


@wrong("01.3", "", "")
def _just_the_difference():
    return (lambda x_t, x0_hat, a: x_t - x0_hat,)
