"""Checks of notebook 01: the jump, the posterior of one step, the best guess of the noise."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import (
    also_right,
    as_tensor,
    exercise,
    require,
    require_close,
    unpack,
    wrong,
)

# A schedule typed in by hand: T = 3, alpha_bar = 1, 0.81, 0.36, 0.04.
_ALPHA_BAR = torch.tensor([1.0, 0.81, 0.36, 0.04], dtype=torch.float64)
_DATA_FACTOR = torch.tensor([1.0, 0.9, 0.6, 0.2], dtype=torch.float64)
_NOISE_FACTOR = torch.tensor([0.0, 0.19, 0.64, 0.96], dtype=torch.float64).sqrt()


@exercise("01.1")
def q_sample_is_the_jump(q_sample):
    """All rows and columns differ. First B = d: there a factor may run along the wrong axis."""
    for d in (4, 2):
        x0 = torch.tensor(
            [
                [1.0, -2.0, 3.0, 0.5],
                [2.0, 1.0, -1.0, 4.0],
                [-3.0, 2.5, 1.5, 1.0],
                [0.5, 3.0, 2.0, -1.0],
            ],
            dtype=torch.float64,
        )[:, :d]
        t = torch.tensor([1, 3, 0, 2])
        nothing = torch.zeros_like(x0)
        got, again = (as_tensor(q_sample(x0, t, nothing, _ALPHA_BAR)) for _ in range(2))
        require(
            got.shape == x0.shape, f"it returns shape {tuple(got.shape)}, x0's is {tuple(x0.shape)}"
        )
        require(torch.equal(got, again), "it draws noise of its own: use the argument `noise`")
        before = _ALPHA_BAR[(t - 1).clamp(min=0)][:, None]
        here = _ALPHA_BAR[t][:, None]
        mistakes = [
            (here * x0, "the factor of x0 is the square root of alpha_bar"),
            (before.sqrt() * x0, "alpha_bar is indexed by t itself: entry 0 is for t = 0"),
            ((here / before).sqrt() * x0, "that is one step from t - 1; the jump starts at 0"),
            (here.T[:, :d].sqrt() * x0,
             "the factors run along the columns: alpha_bar[t] must become (B, 1)"),
        ]  # fmt: skip
        because = "without noise only the factor of x0 acts: check it"
        require_close(got, _DATA_FACTOR[t, None] * x0, because, mistakes=mistakes)
        noise = x0.flip(0)
        got = q_sample(nothing, t, noise, _ALPHA_BAR)
        mistakes = [
            ((1 - here) * noise, "the factor of the noise is a square root too"),
            ((1 - here.sqrt()) * noise, "the squares of the two factors must add up to 1"),
            (noise, "the noise needs a factor: the variance at t is 1 - alpha_bar_t"),
        ]
        because = "with x0 = 0 only the factor of the noise acts: check it"
        require_close(got, _NOISE_FACTOR[t, None] * noise, because, mistakes=mistakes)
        both = q_sample(x0, t, noise, _ALPHA_BAR)
        expected = _DATA_FACTOR[t, None] * x0 + _NOISE_FACTOR[t, None] * noise
        require_close(both, expected, "x_t is the sum of both parts")


@also_right("01.1")
def _by_einsum():
    def q_sample(x0, t, noise, alpha_bar):
        a = alpha_bar[t]
        return torch.einsum("b,bd->bd", a**0.5, x0) + torch.einsum(
            "b,bd->bd", (1 - a) ** 0.5, noise
        )

    return (q_sample,)


@also_right("01.1")
def _row_by_row():
    def q_sample(x0, t, noise, alpha_bar):
        rows = []
        for x, step, n in zip(x0, t, noise, strict=True):
            a = float(alpha_bar[step])
            rows.append(math.sqrt(a) * x + math.sqrt(1 - a) * n)
        return torch.stack(rows)

    return (q_sample,)


def _jump(keep=lambda a: a.sqrt(), add=lambda a: (1 - a).sqrt(), index=lambda t: t):
    def q_sample(x0, t, noise, alpha_bar):
        a = alpha_bar[index(t)].unsqueeze(-1)
        return keep(a) * x0 + add(a) * noise

    return (q_sample,)


@wrong("01.1", "no square roots", says="the factor of x0 is the square root")
def _no_square_roots():
    return _jump(keep=lambda a: a, add=lambda a: 1 - a)


@wrong("01.1", "variance for standard deviation", says="the factor of the noise is a square root")
def _variance_as_factor():
    return _jump(add=lambda a: 1 - a)


@wrong("01.1", "factors that add up to 1", says="the squares of the two factors")
def _factors_add_up():
    return _jump(add=lambda a: 1 - a.sqrt())


@wrong("01.1", "noise without a factor", says="the noise needs a factor")
def _bare_noise():
    return _jump(add=lambda a: 1.0)


@wrong("01.1", "one step only", says="that is one step from t - 1")
def _one_step_only():
    def q_sample(x0, t, noise, alpha_bar):
        before = alpha_bar[(t - 1).clamp(min=0)]
        a = (alpha_bar[t] / before).unsqueeze(-1)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    return (q_sample,)


@wrong("01.1", "indexed from zero", says="indexed by t itself")
def _indexed_from_zero():
    return _jump(index=lambda t: (t - 1).clamp(min=0))


@wrong("01.1", "no unsqueeze", says="the factors run along the columns")
def _no_unsqueeze():
    def q_sample(x0, t, noise, alpha_bar):
        a = alpha_bar[t]
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    return (q_sample,)


@wrong("01.1", "its own noise", says="it draws noise of its own")
def _own_noise():
    def q_sample(x0, t, noise, alpha_bar):
        a = alpha_bar[t].unsqueeze(-1)
        return a.sqrt() * x0 + (1 - a).sqrt() * torch.randn_like(x0)

    return (q_sample,)


@exercise("01.2")
def posterior_is_bayes(posterior):
    """Against Bayes' rule on a grid: prior times likelihood, normalised."""
    grid = torch.linspace(-8, 8, 16_001, dtype=torch.float64)[:, None]
    x0 = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x_t = torch.tensor([-0.5, 1.5, 1.0], dtype=torch.float64)
    for t in (2, 3):
        previous, current = _ALPHA_BAR[t - 1], _ALPHA_BAR[t]
        alpha = current / previous
        beta = 1 - alpha
        log_prior = -((grid - previous.sqrt() * x0) ** 2) / (2 * (1 - previous))
        log_likelihood = -((x_t - alpha.sqrt() * grid) ** 2) / (2 * (1 - alpha))
        weight = torch.softmax(log_prior + log_likelihood, 0)
        mean = (weight * grid).sum(0)
        variance = (weight * (grid - mean) ** 2).sum(0)[0]
        got_mean, got_variance = unpack(posterior(x0, x_t, t, _ALPHA_BAR), "mean", "variance")
        from_x0, from_xt = previous.sqrt() * beta, alpha.sqrt() * (1 - previous)
        where = f"Bayes' rule on a grid says so at t = {t}"
        mistakes = [
            (mean * (1 - current), "the mean lacks its denominator 1 - alpha_bar_t"),
            ((from_x0 * x_t + from_xt * x0) / (1 - current),
             "the weights of x0 and x_t in the mean are exchanged"),
            (x_t / alpha.sqrt(), "the mean must use x0, not x_t alone"),
            ((beta * x0 + (1 - previous) * x_t) / (1 - current),
             "the mean lacks the square roots of alpha_bar_{t-1} and alpha_t"),
        ]  # fmt: skip
        require_close(got_mean, mean, f"the mean; {where}", mistakes=mistakes)
        got_variance = as_tensor(got_variance, "the variance")
        require(
            got_variance.numel() == 1,
            f"the variance has shape {tuple(got_variance.shape)}: it is one number for all entries",
        )
        mistakes = [
            (beta, "that is beta_t, the variance of a step forward; x0 is known here"),
            (variance.sqrt(), "that is the standard deviation: return the variance"),
            (variance * (1 - current), "the variance lacks its denominator 1 - alpha_bar_t"),
            (1 - previous, "that is the variance of x_{t-1} before x_t is seen"),
        ]
        require_close(got_variance.sum(), variance, f"the variance; {where}", mistakes=mistakes)
    mean, variance = unpack(posterior(x0, x_t, 1, _ALPHA_BAR), "mean", "variance")
    require_close(mean, x0, "at t = 1 the mean is x0 itself")
    require_close(variance, 0.0, "at t = 1 the variance is 0")


@also_right("01.2")
def _by_precisions():
    def posterior(x0, x_t, t, alpha_bar):
        alpha = float(alpha_bar[t] / alpha_bar[t - 1])
        if t == 1:
            return [x0, 0.0]
        prior, likelihood = 1 / (1 - float(alpha_bar[t - 1])), alpha / (1 - alpha)
        variance = 1 / (prior + likelihood)
        mean = prior * math.sqrt(alpha_bar[t - 1]) * x0 + likelihood * x_t / math.sqrt(alpha)
        return [variance * mean, variance]

    return (posterior,)


@also_right("01.2")
def _by_the_noise():
    def posterior(x0, x_t, t, alpha_bar):
        a, before = np.asarray(alpha_bar[t]), np.asarray(alpha_bar[t - 1])
        eps = (x_t.numpy() - np.sqrt(a) * x0.numpy()) / np.sqrt(1 - a)
        variance = (1 - before) / (1 - a) * (1 - a / before)
        return np.sqrt(before) * x0.numpy() + np.sqrt(1 - before - variance) * eps, variance

    return (posterior,)


def _posterior(change):
    def posterior(x0, x_t, t, alpha_bar):
        previous, current = alpha_bar[t - 1], alpha_bar[t]
        alpha = current / previous
        beta = 1 - alpha
        mean = (previous.sqrt() * beta * x0 + alpha.sqrt() * (1 - previous) * x_t) / (1 - current)
        variance = (1 - previous) / (1 - current) * beta
        return change(mean, variance, beta, current)

    return (posterior,)


@wrong("01.2", "beta for beta_tilde", says="that is beta_t")
def _beta_for_beta_tilde():
    return _posterior(lambda mean, variance, beta, current: (mean, beta))


@wrong("01.2", "variance without denominator", says="the variance lacks its denominator")
def _variance_without_denominator():
    return _posterior(lambda mean, variance, beta, current: (mean, variance * (1 - current)))


@wrong("01.2", "standard deviation", says="that is the standard deviation")
def _standard_deviation():
    return _posterior(lambda mean, variance, beta, current: (mean, variance.sqrt()))


@wrong("01.2", "mean without denominator", says="the mean lacks its denominator")
def _mean_without_denominator():
    return _posterior(lambda mean, variance, beta, current: (mean * (1 - current), variance))


@wrong("01.2", "weights exchanged", says="weights of x0 and x_t in the mean are exchanged")
def _exchanged():
    (right,) = _posterior(lambda mean, variance, beta, current: (mean, variance))
    return (lambda x0, x_t, t, alpha_bar: right(x_t, x0, t, alpha_bar),)


@wrong("01.2", "a variance for every entry", says="it is one number for all entries")
def _variance_of_every_entry():
    return _posterior(lambda mean, variance, beta, current: (mean, variance.expand_as(mean)))


@wrong("01.2", "mean only", says="it must return 2 values, (mean, variance)")
def _mean_only():
    return _posterior(lambda mean, variance, beta, current: mean)


@exercise("01.3")
def best_eps_of_a_gaussian(best_eps):
    """Data N(0, 1): then E[x_0 | x_t] = sqrt(a) x_t and E[eps | x_t] = sqrt(1 - a) x_t."""
    x_t = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for a in (0.9, 0.36, 0.01):
        x0_hat = math.sqrt(a) * x_t
        got = best_eps(x_t, x0_hat, torch.tensor(a, dtype=torch.float64))
        rest = x_t - math.sqrt(a) * x0_hat
        mistakes = [
            (rest / math.sqrt(a), "divide by the factor of the noise, not by that of the data"),
            (rest / (1 - a), "divide by the square root of 1 - a"),
            (rest, "that is sqrt(1 - a) eps: divide by the factor of the noise"),
            (x_t - x0_hat, "x_t is not x0_hat plus the noise: both have factors"),
            ((x_t - x0_hat) / math.sqrt(1 - a), "x0_hat needs its factor sqrt(a)"),
            ((x_t - a * x0_hat) / math.sqrt(1 - a), "the factor of x0_hat is the square root of a"),
            (-math.sqrt(1 - a) * x_t, "the sign is wrong: eps points from the data to x_t"),
        ]
        because = f"for data N(0, 1) and a = {a} the best guess is sqrt(1 - a) x_t"
        require_close(got, math.sqrt(1 - a) * x_t, because, mistakes=mistakes)
    x0, noise = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 0.25]).double()
    got = best_eps(0.6 * x0 + 0.8 * noise, x0, torch.tensor(0.36, dtype=torch.float64))
    require_close(got, noise, "with the true x_0 it must give the true noise back")


@also_right("01.3")
def _with_math():
    def best_eps(x_t, x0_hat, a):
        a = float(a)
        return x_t / math.sqrt(1 - a) - math.sqrt(a / (1 - a)) * x0_hat

    return (best_eps,)


@also_right("01.3")
def _in_place():
    def best_eps(x_t, x0_hat, a):
        x_t -= a.sqrt() * x0_hat
        x_t /= (1 - a).sqrt()
        return x_t

    return (best_eps,)


@wrong("01.3", "the data's factor below", says="not by that of the data")
def _divides_by_the_data_factor():
    return (lambda x_t, x0_hat, a: (x_t - a.sqrt() * x0_hat) / a.sqrt(),)


@wrong("01.3", "just the difference", says="x_t is not x0_hat plus the noise")
def _just_the_difference():
    return (lambda x_t, x0_hat, a: x_t - x0_hat,)


@wrong("01.3", "no square root below", says="divide by the square root of 1 - a")
def _no_root_below():
    return (lambda x_t, x0_hat, a: (x_t - a.sqrt() * x0_hat) / (1 - a),)


@wrong("01.3", "nothing below", says="that is sqrt(1 - a) eps")
def _nothing_below():
    return (lambda x_t, x0_hat, a: x_t - a.sqrt() * x0_hat,)


@wrong("01.3", "x0_hat without its factor", says="x0_hat needs its factor sqrt(a)")
def _x0_without_factor():
    return (lambda x_t, x0_hat, a: (x_t - x0_hat) / (1 - a).sqrt(),)


@wrong("01.3", "sign", says="the sign is wrong")
def _sign():
    return (lambda x_t, x0_hat, a: (a.sqrt() * x0_hat - x_t) / (1 - a).sqrt(),)
