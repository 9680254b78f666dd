"""Checks of notebook 02: the simple loss, the guess of the data, one step back."""

import math

import torch

from rgdm_lib.course.exercises import exercise, require, require_close, wrong

# A schedule typed in by hand: T = 4, alpha_bar = 1, 0.81, 0.64, 0.36, 0.04.
_ALPHA_BAR = torch.tensor([1.0, 0.81, 0.64, 0.36, 0.04], dtype=torch.float64)
_DATA_FACTOR = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.2], dtype=torch.float64)
_NOISE_FACTOR = torch.tensor([0.0, 0.19, 0.36, 0.64, 0.96], dtype=torch.float64).sqrt()


@exercise("02.1")
def loss_is_the_simple_one(simple_loss):
    """A spy in the denoiser's place, which knows x_0 and so can undo the jump."""
    torch.manual_seed(0)
    x0 = torch.tensor([0.5, -1.0], dtype=torch.float64).expand(4000, 2)
    seen = []

    def spy(x_t, t, cond=None, offset=0.0):
        t = torch.as_tensor(t)
        require(t.shape == (4000,), f"t has shape {tuple(t.shape)}: draw one for every row")
        require(int(t.min()) >= 1, "t = 0 was drawn, where there is no noise to guess")
        seen.append(t)
        noise = (x_t - _DATA_FACTOR[t, None] * x0) / _NOISE_FACTOR[t, None]
        return noise + offset

    loss = simple_loss(spy, x0, _ALPHA_BAR)
    require(loss.shape == (4000,), f"it returns shape {tuple(loss.shape)}, not one value a row")
    share = torch.bincount(seen[0], minlength=5)[1:] / 4000
    require(share[-1] > 0, "t = T is never drawn, yet that is where sampling starts")
    require((share - 0.25).abs().max() < 0.05, "t is not uniform over 1..T")
    because = "a denoiser that knows the noise must have loss 0: check the jump"
    require_close(loss, torch.zeros(4000), because, atol=1e-9)
    offset = torch.tensor([1.0, -3.0], dtype=torch.float64)
    loss = simple_loss(lambda x, t, cond=None: spy(x, t, offset=offset), x0, _ALPHA_BAR)
    because = "errors of 1 and -3 in the two elements make a mean square of 5"
    require_close(loss, torch.full((4000,), 5.0), because, rtol=1e-6)
    loss = simple_loss(lambda x, t, cond=None: torch.zeros_like(x), x0, _ALPHA_BAR)
    require(abs(float(loss.mean()) - 1) < 0.08, "guessing no noise at all must cost 1 on average")


@exercise("02.2")
def predict_x0_undoes_the_jump(predict_x0):
    """With the true noise it must return the data, at every t."""
    t = torch.tensor([1, 2, 3, 4])
    x0 = torch.tensor([[1.0, -2.0], [0.5, 0.0], [-1.5, 3.0], [2.0, 0.25]], dtype=torch.float64)
    noise = torch.tensor([[0.5, 1.0], [-2.0, 0.3], [0.0, 1.0], [-1.0, -0.5]], dtype=torch.float64)
    x_t = _DATA_FACTOR[t, None] * x0 + _NOISE_FACTOR[t, None] * noise
    got = predict_x0(x_t, t, noise, _ALPHA_BAR)
    require_close(got, x0, "with the true noise it must give the data back")
    got = predict_x0(x_t, t, torch.zeros_like(x_t), _ALPHA_BAR)
    require_close(got, x_t / _DATA_FACTOR[t, None], "without noise, x_t is x_0 times its factor")


@exercise("02.3")
def step_is_ddim(reverse_step):
    """DDPM's posterior by its precisions for eta = 1; typed-in factors for eta = 0."""
    x0_hat = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    eps = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    for t in (2, 3, 4):
        x_t = _DATA_FACTOR[t] * x0_hat + _NOISE_FACTOR[t] * eps
        answer = reverse_step(x_t, t, t - 1, eps, _ALPHA_BAR, 1.0)
        require(isinstance(answer, tuple) and len(answer) == 2, "it must return a pair (mean, std)")
        alpha = _ALPHA_BAR[t] / _ALPHA_BAR[t - 1]
        prior, likelihood = 1 / (1 - _ALPHA_BAR[t - 1]), alpha / (1 - alpha)
        variance = 1 / (prior + likelihood)
        mean = variance * (
            prior * _DATA_FACTOR[t - 1] * x0_hat + likelihood * x_t / alpha.sqrt()
        )
        std = torch.as_tensor(answer[1], dtype=torch.float64).reshape(())
        because = f"for eta = 1 at t = {t} it must be the posterior's"
        require_close(std, variance.sqrt(), f"the standard deviation; {because}")
        require_close(answer[0], mean, f"the mean; {because}")
        for s in range(1, t):
            mean, std = reverse_step(x_t, t, s, eps, _ALPHA_BAR, 0.0)
            require_close(float(std), 0.0, "for eta = 0 there is no noise")
            expected = _DATA_FACTOR[s] * x0_hat + _NOISE_FACTOR[s] * eps
            require_close(mean, expected, f"for eta = 0 from {t} to {s}: keep all of the noise")
    x_t = _DATA_FACTOR[4] * x0_hat + _NOISE_FACTOR[4] * eps
    for eta in (0.0, 1.0):
        mean, std = reverse_step(x_t, 4, 0, eps, _ALPHA_BAR, eta)
        require_close(float(std), 0.0, "the step to s = 0 has no noise")
        require_close(mean, x0_hat, "the step to s = 0 ends at x0_hat")
    _, half = reverse_step(x_t, 4, 2, eps, _ALPHA_BAR, 0.5)
    expected = 0.5 * math.sqrt(0.36 / 0.96 * (1 - 0.04 / 0.64))
    require_close(float(half), expected, "eta multiplies the standard deviation")


def _loss(low=1, past=0, reduce=lambda error: error.square().mean(1), factor=torch.sqrt):
    def simple_loss(denoiser, x0, alpha_bar):
        t = torch.randint(low, len(alpha_bar) + past, (len(x0),))
        noise = torch.randn_like(x0)
        a = alpha_bar[t].unsqueeze(-1)
        return reduce(denoiser(factor(a) * x0 + factor(1 - a) * noise, t, None) - noise)

    return (simple_loss,)


@wrong("02.1", "", "")
def _draws_t_equal_to_0():
    return _loss(low=0)


@wrong("02.1", "", "")
def _never_draws_t_equal_to_T():
    return _loss(past=-1)


@wrong("02.1", "", "")
def _sums_signed_errors():
    return _loss(reduce=lambda error: error.sum(1) ** 2 / 2)


@wrong("02.1", "", "")
def _sum_for_mean():
    return _loss(reduce=lambda error: error.square().sum(1))


@wrong("02.1", "", "")
def _one_number_for_the_batch():
    return _loss(reduce=lambda error: error.square().mean())


@wrong("02.1", "", "")
def _no_square_roots():
    return _loss(factor=lambda a: a)


@wrong("02.2", "", "")
def _divides_by_alpha_bar():
    def predict_x0(x_t, t, eps, alpha_bar):
        a = alpha_bar[t].unsqueeze(-1)
        return (x_t - (1 - a).sqrt() * eps) / a

    return (predict_x0,)


@wrong("02.2", "", "")
def _adds_the_noise():
    def predict_x0(x_t, t, eps, alpha_bar):
        a = alpha_bar[t].unsqueeze(-1)
        return (x_t + (1 - a).sqrt() * eps) / a.sqrt()

    return (predict_x0,)


def _step(std, keep=lambda a_s, std: max(1 - a_s - std**2, 0)):
    def reverse_step(x_t, t, s, eps, alpha_bar, eta):
        a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
        x0_hat = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        sigma = eta * math.sqrt(std(a_t, a_s))
        return math.sqrt(a_s) * x0_hat + math.sqrt(keep(a_s, sigma)) * eps, sigma

    return (reverse_step,)


@wrong("02.3", "", "")
def _beta_for_beta_tilde():
    return _step(lambda a_t, a_s: 1 - a_t / a_s)


@wrong("02.3", "", "")
def _variance_for_standard_deviation():
    return _step(lambda a_t, a_s: ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 2)


@wrong("02.3", "", "")
def _no_denominator():
    return _step(lambda a_t, a_s: (1 - a_s) * (1 - a_t / a_s))


@wrong("02.3", "", "")
def _keeps_all_of_the_noise():
    return _step(
        lambda a_t, a_s: (1 - a_s) / (1 - a_t) * (1 - a_t / a_s), keep=lambda a_s, std: 1 - a_s
    )
