"""Checks of notebook 02: the simple loss, the guess of the data, one step back."""

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

# A schedule typed in by hand: T = 4, alpha_bar = 1, 0.81, 0.64, 0.36, 0.04.
_ALPHA_BAR = torch.tensor([1.0, 0.81, 0.64, 0.36, 0.04], dtype=torch.float64)
_DATA_FACTOR = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.2], dtype=torch.float64)
_NOISE_FACTOR = torch.tensor([0.0, 0.19, 0.36, 0.64, 0.96], dtype=torch.float64).sqrt()
_ROWS = 4000


class _Spy:
    """In the denoiser's place: it knows x_0, so it can undo the jump and return the true noise."""

    def __init__(self, x0):
        self.x0, self.offset = x0, torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self.x_t = self.t = self.noise = None

    def __call__(self, x_t, t, cond=None):
        x_t, shape = as_tensor(x_t, "the x_t that the denoiser got"), tuple(self.x0.shape)
        require(
            x_t.shape == shape, f"the denoiser got x_t of shape {tuple(x_t.shape)}, not {shape}"
        )
        t = as_tensor(t, "the t that the denoiser got")
        require(t.shape == (_ROWS,), f"t has shape {tuple(t.shape)}: draw one for every row")
        require(
            torch.equal(t, t.round()),
            "the denoiser got a t that is not whole: give it t itself, 1..T, not t / T",
        )
        require(t.min() >= 1, f"t = {t.min():.0f} was drawn; at t = 0 there is no noise to guess")
        require(t.max() <= 4, f"t = {t.max():.0f} was drawn, and T is 4")
        self.x_t, self.t = x_t, t.long()
        self.noise = (x_t - _DATA_FACTOR[self.t, None] * self.x0) / _NOISE_FACTOR[self.t, None]
        return self.noise + self.offset


@exercise("02.1")
def loss_is_the_simple_one(simple_loss):
    """What the spy sees first (t, the jump, the noise), then the loss of known errors."""
    x0 = torch.tensor([50.0, -100.0], dtype=torch.float64).repeat(_ROWS, 1)
    spies = [_Spy(x0), _Spy(x0)]
    with torch.enable_grad():
        losses = [simple_loss(spy, x0, _ALPHA_BAR) for spy in spies]
    require(all(spy.t is not None for spy in spies), "it never calls the denoiser")
    spy, loss = spies[0], losses[0]
    share = torch.bincount(spy.t, minlength=5)[1:] / _ROWS
    require(share[-1] > 0, "t = T is never drawn, yet that is where sampling starts")
    require((share - 0.25).abs().max() < 0.04, "t is not uniform over 1..T")
    _check_jump(spy)
    _check_noise(spy.noise)
    first, second = spies
    require(
        not torch.equal(first.t, second.t) and not torch.allclose(first.noise, second.noise),
        "two calls draw the same numbers: do not set a seed in the loss",
    )

    got = as_tensor(loss)
    require(
        got.shape == (_ROWS,),
        f"it returns shape {tuple(got.shape)}: one value for each of the {_ROWS} rows, no more",
    )
    because = "a denoiser that returns the true noise must have loss 0: compare it with the noise"
    require_close(loss, torch.zeros(_ROWS), because, atol=1e-9)
    wrongness = torch.tensor([1.0, -3.0], dtype=torch.float64)
    spy.offset = wrongness.clone().requires_grad_()
    with torch.enable_grad():
        loss = simple_loss(spy, x0, _ALPHA_BAR)
    mistakes = [
        (torch.full((_ROWS,), 10.0), "take the mean over a row's elements, not the sum"),
        (torch.full((_ROWS,), 5.0**0.5), "the error is squared, without a root after it"),
        (torch.full((_ROWS,), 2.0), "square the errors; this is the mean of their size"),
    ]
    because = "errors of 1 and -3 in the two elements make a mean square of 5"
    require_close(loss, torch.full((_ROWS,), 5.0), because, mistakes=mistakes)
    differentiable = isinstance(loss, torch.Tensor) and loss.requires_grad
    require(
        differentiable,
        "its loss carries no gradient, so nothing can be trained: no detach, no_grad, numpy",
    )
    (gradient,) = torch.autograd.grad(loss.mean(), spy.offset, allow_unused=True)
    require(gradient is not None, "its gradient does not reach the denoiser: no detach")
    require_close(gradient, wrongness, "the gradient of the mean loss with respect to the guess")


def _check_jump(spy):
    """The factors, measured: x_0 is so large that its factor shows to 0.002."""
    for t in range(1, 5):
        x_t, a = spy.x_t[spy.t == t], _ALPHA_BAR[t]
        mistakes = [
            (a, "the factor of x0 in x_t is the square root of alpha_bar"),
            (_DATA_FACTOR[t - 1], "the denoiser's t is not the t that alpha_bar was indexed with"),
        ]
        because = f"that is the factor of x0 in x_t at t = {t}"
        factor = (x_t.mean(0) / spy.x0[0]).mean()
        require_close(factor, _DATA_FACTOR[t], because, rtol=0, atol=0.01, mistakes=mistakes)
        factor = x_t.var(0).mean().sqrt()
        mistakes = [(1 - a, "the factor of the noise in x_t is a square root")]
        require(factor > 0, "x_t has no noise, or the same noise in every row")
        because = f"that is the factor of the noise in x_t at t = {t}"
        require_close(factor, _NOISE_FACTOR[t], because, rtol=0.1, atol=0, mistakes=mistakes)


def _check_noise(noise):
    """Moments of 4000 times 2 values: each bound is at least 5 standard errors."""
    correlation = torch.corrcoef(noise.T)[0, 1].abs()
    require(correlation < 0.1, "the elements of a row share their noise: draw one for each element")
    require(noise.mean().abs() < 0.06, "the noise has not mean 0")
    fourth = noise.pow(4).mean()
    require(
        (fourth - 3).abs() < 0.6,
        f"the noise is not normal: its fourth moment is {fourth:.1f}, not 3 (torch.randn)",
    )


@also_right("02.1")
def _by_row_vectors():
    def simple_loss(denoiser, x0, alpha_bar):
        t = 1 + torch.multinomial(torch.ones(len(alpha_bar) - 1), len(x0), replacement=True)
        noise = torch.normal(0.0, 1.0, x0.shape, dtype=x0.dtype)
        x_t = (alpha_bar[t].sqrt() * x0.T + (1 - alpha_bar[t]).sqrt() * noise.T).T
        guess = denoiser(x_t, t, None)
        return torch.nn.functional.mse_loss(guess, noise, reduction="none").mean(-1)

    return (simple_loss,)


@also_right("02.1")
def _evenly_drawn():
    def simple_loss(denoiser, x0, alpha_bar):
        t = torch.randperm(len(x0)) % (len(alpha_bar) - 1) + 1
        std = (1 - alpha_bar[t])[:, None] ** 0.5
        mean = alpha_bar[t][:, None] ** 0.5 * x0
        x_t = torch.normal(mean, std.expand_as(mean))
        error = denoiser(x_t, t) - (x_t - mean) / std
        return torch.linalg.vector_norm(error, dim=1) ** 2 / x0.shape[1]

    return (simple_loss,)


def _loss(
    low=1,
    past=0,
    reduce=lambda error: error.square().mean(1),
    factor=torch.sqrt,
    draw=torch.randn_like,
    shown=lambda t, alpha_bar: t,
    steps=torch.randint,
):
    def simple_loss(denoiser, x0, alpha_bar):
        t = steps(low, len(alpha_bar) + past, (len(x0),))
        noise = draw(x0)
        a = alpha_bar[t].unsqueeze(-1)
        x_t = factor(a) * x0 + factor(1 - a) * noise
        return reduce(denoiser(x_t, shown(t, alpha_bar), None) - noise)

    return (simple_loss,)


@wrong("02.1", "draws t = 0", says="t = 0 was drawn")
def _draws_t_equal_to_0():
    return _loss(low=0)


@wrong("02.1", "never draws t = T", says="t = T is never drawn")
def _never_draws_t_equal_to_T():
    return _loss(past=-1)


@wrong("02.1", "t / T", says="give it t itself, 1..T, not t / T")
def _share_of_time():
    return _loss(shown=lambda t, alpha_bar: t / (len(alpha_bar) - 1))


@wrong("02.1", "one t for the batch", says="draw one for every row")
def _one_t():
    return _loss(shown=lambda t, alpha_bar: t[0])


@wrong("02.1", "t drawn with a preference", says="t is not uniform")
def _not_uniform():
    def steps(low, high, shape):
        return torch.maximum(torch.randint(low, high, shape), torch.randint(low, high, shape))

    return _loss(steps=steps)


@wrong("02.1", "sum for mean", says="not the sum")
def _sum_for_mean():
    return _loss(reduce=lambda error: error.square().sum(1))


@wrong("02.1", "absolute error", says="square the errors")
def _absolute():
    return _loss(reduce=lambda error: error.abs().mean(1))


@wrong("02.1", "root of the mean square", says="without a root after it")
def _root():
    return _loss(reduce=lambda error: error.square().mean(1).sqrt())


@wrong("02.1", "one number for the batch", says="one value for each of the 4000 rows")
def _one_number_for_the_batch():
    return _loss(reduce=lambda error: error.square().mean())


@wrong("02.1", "no square roots", says="the factor of x0 in x_t is the square root of alpha_bar")
def _no_square_roots():
    return _loss(factor=lambda a: a)


@wrong("02.1", "one noise a row", says="the elements of a row share their noise")
def _one_noise_a_row():
    return _loss(draw=lambda x: torch.randn_like(x[:, :1]).expand_as(x))


@wrong("02.1", "one noise for all rows", says="the same noise in every row")
def _one_noise_for_all_rows():
    return _loss(draw=lambda x: torch.randn_like(x[:1]).expand_as(x))


@wrong("02.1", "uniform noise", says="the noise is not normal")
def _uniform_noise():
    return _loss(draw=lambda x: (torch.rand_like(x) - 0.5) * math.sqrt(12))


@wrong("02.1", "detached", says="its loss carries no gradient")
def _detached():
    return _loss(reduce=lambda error: error.detach().square().mean(1))


@wrong("02.1", "a seed inside", says="two calls draw the same numbers")
def _seed_inside():
    def draw(x):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    return _loss(draw=draw)


@wrong("02.1", "another noise to compare with", says="compare it with the noise")
def _other_noise():
    (right,) = _loss()

    def simple_loss(denoiser, x0, alpha_bar):
        def other(x_t, t, cond):
            return denoiser(x_t, t, cond) + torch.randn_like(x_t)

        return right(other, x0, alpha_bar)

    return (simple_loss,)


@exercise("02.2")
def predict_x0_undoes_the_jump(predict_x0):
    """With the true noise it must return the data. First B = d: a factor along the wrong axis."""
    t = torch.tensor([1, 4, 2, 3])
    for d in (4, 2):
        x0 = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.5, 4.0, -3.0, 1.0]], dtype=torch.float64)
        x0 = torch.cat([x0, x0.flip(1) - 1])[:, :d]
        noise = x0.flip(0) / 2 + 0.25
        root, std = _DATA_FACTOR[t, None], _NOISE_FACTOR[t, None]
        x_t = root * x0 + std * noise
        got = predict_x0(x_t, t, noise, _ALPHA_BAR)
        across = (x_t - std.T[:, :d] * noise) / root.T[:, :d]
        mistakes = [
            ((x_t - std * noise) / root**2, "divide by the square root of alpha_bar"),
            ((x_t + std * noise) / root, "the noise was added: subtract it"),
            ((x_t - noise) / root, "eps needs its factor sqrt(1 - alpha_bar)"),
            ((x_t - std**2 * noise) / root, "the factor of eps is a square root too"),
            (x_t - std * noise, "that is x0 times its factor: divide by sqrt(alpha_bar)"),
            ((x_t - _NOISE_FACTOR[t - 1, None] * noise) / _DATA_FACTOR[t - 1, None],
             "alpha_bar is indexed by t itself: entry 0 is for t = 0"),
            (across, "the factors run along the columns: alpha_bar[t] must become (B, 1)"),
        ]  # fmt: skip
        require_close(got, x0, "with the true noise it must give the data back", mistakes=mistakes)
    got = predict_x0(x_t, t, torch.zeros_like(x_t), _ALPHA_BAR)
    require_close(got, x_t / root, "without noise, x_t is x_0 times its factor")


@also_right("02.2")
def _by_the_odds():
    def predict_x0(x_t, t, eps, alpha_bar):
        a = alpha_bar[t][:, None]
        return x_t * a.rsqrt() - (1 / a - 1).sqrt() * eps

    return (predict_x0,)


@also_right("02.2")
def _in_place():
    def predict_x0(x_t, t, eps, alpha_bar):
        a = np.asarray(alpha_bar)[np.asarray(t), None]
        x_t, eps = x_t.numpy(), eps.numpy()
        eps *= np.sqrt(1 - a)
        x_t -= eps
        x_t /= np.sqrt(a)
        return x_t

    return (predict_x0,)


def _predict(below=torch.sqrt, factor=lambda a: (1 - a).sqrt(), index=lambda t: t):
    def predict_x0(x_t, t, eps, alpha_bar):
        a = alpha_bar[index(t)].unsqueeze(-1)
        return (x_t - factor(a) * eps) / below(a)

    return (predict_x0,)


@wrong("02.2", "divides by alpha_bar", says="divide by the square root of alpha_bar")
def _divides_by_alpha_bar():
    return _predict(below=lambda a: a)


@wrong("02.2", "adds the noise", says="the noise was added")
def _adds_the_noise():
    return _predict(factor=lambda a: -(1 - a).sqrt())


@wrong("02.2", "noise without a factor", says="eps needs its factor")
def _bare_noise():
    return _predict(factor=lambda a: 1)


@wrong("02.2", "variance as a factor", says="the factor of eps is a square root")
def _variance_as_factor():
    return _predict(factor=lambda a: 1 - a)


@wrong("02.2", "no division", says="that is x0 times its factor")
def _no_division():
    return _predict(below=torch.ones_like)


@wrong("02.2", "indexed from zero", says="indexed by t itself")
def _indexed_from_zero():
    return _predict(index=lambda t: t - 1)


@wrong("02.2", "no unsqueeze", says="the factors run along the columns")
def _no_unsqueeze():
    return (lambda x_t, t, eps, ab: (x_t - (1 - ab[t]).sqrt() * eps) / ab[t].sqrt(),)


@exercise("02.3")
def step_is_ddim(reverse_step):
    """DDPM's posterior by its precisions for eta = 1; typed-in factors for eta = 0."""
    x0_hat = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    eps = torch.tensor([[0.5, 1.0, -2.0]], dtype=torch.float64)

    def step(t, s, eta):
        x_t = _DATA_FACTOR[t] * x0_hat + _NOISE_FACTOR[t] * eps
        mean, std = unpack(reverse_step(x_t, t, s, eps, _ALPHA_BAR, eta), "mean", "std")
        std = as_tensor(std, "the std")
        require(std.numel() == 1, f"the std has shape {tuple(std.shape)}: it is one number")
        return mean, std.sum()

    for t, s in ((3, 2), (4, 3), (2, 1), (4, 2), (3, 1)):
        a_t, a_s = _ALPHA_BAR[t], _ALPHA_BAR[s]
        alpha = a_t / a_s
        prior, likelihood = 1 / (1 - a_s), alpha / (1 - alpha)
        variance = 1 / (prior + likelihood)
        x_t = _DATA_FACTOR[t] * x0_hat + _NOISE_FACTOR[t] * eps
        mean = variance * (prior * _DATA_FACTOR[s] * x0_hat + likelihood * x_t / alpha.sqrt())
        got_mean, got_std = step(t, s, 1.0)
        mistakes = [
            ((1 - alpha).sqrt(), "that is sqrt(beta_t), of a step forward: x0_hat is known here"),
            (variance, "that is the variance: return the standard deviation, its square root"),
            (
                ((1 - a_s) * (1 - alpha)).sqrt(),
                "the variance lacks its denominator 1 - alpha_bar_t",
            ),
            (0.0, "eta has no effect: at eta = 1 there is noise"),
        ]
        if s < t - 1:
            one = _ddpm(a_t, _ALPHA_BAR[t - 1])
            mistakes.append((one.sqrt(), "the step goes to s, which need not be t - 1"))
        because = f"for eta = 1 from {t} to {s} it must be the posterior's"
        because_std = f"the standard deviation; {because}"
        require_close(got_std, variance.sqrt(), because_std, mistakes=mistakes)
        all_of_it = _DATA_FACTOR[s] * x0_hat + _NOISE_FACTOR[s] * eps
        mistakes = [
            (all_of_it, "the mean keeps all of the noise: sigma^2 of its variance must go"),
            (_DATA_FACTOR[s] * x0_hat, "the mean lacks its term with eps"),
            (x0_hat + (1 - a_s - variance).sqrt() * eps, "x0_hat needs its factor at time s"),
        ]
        require_close(got_mean, mean, f"the mean; {because}", mistakes=mistakes)
    for t, s in ((4, 3), (4, 1), (3, 2)):
        mean, std = step(t, s, 0.0)
        require_close(std, 0.0, "for eta = 0 there is no noise")
        expected = _DATA_FACTOR[s] * x0_hat + _NOISE_FACTOR[s] * eps
        require_close(mean, expected, f"for eta = 0 from {t} to {s} all of the noise is kept")
    for eta in (0.0, 1.0):
        mean, std = step(4, 0, eta)
        require_close(std, 0.0, "the step to s = 0 has no noise")
        require_close(mean, x0_hat, "the step to s = 0 ends at x0_hat")
    mean, std = step(4, 2, 0.5)
    full = math.sqrt(0.36 / 0.96 * (1 - 0.04 / 0.64))
    mistakes = [
        (full / 2**0.5, "eta multiplies the standard deviation, not the variance"),
        (full / 4, "eta multiplies the standard deviation once"),
    ]
    require_close(std, full / 2, "eta multiplies the standard deviation", mistakes=mistakes)
    expected = 0.8 * x0_hat + math.sqrt(0.36 - full**2 / 4) * eps
    require_close(mean, expected, "the mean at eta = 0.5 keeps 1 - alpha_bar_s - sigma^2")


@also_right("02.3")
def _as_tensors():
    def reverse_step(x_t, t, s, eps, alpha_bar, eta):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        std = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
        keep = (1 - a_s - std**2).clamp(min=0).sqrt() - ((1 - a_t) * a_s / a_t).sqrt()
        return [(a_s / a_t).sqrt() * x_t + keep * eps, std]

    return (reverse_step,)


@also_right("02.3")
def _in_numpy():
    def reverse_step(x_t, t, s, eps, alpha_bar, eta):
        a_t, a_s = (np.asarray(alpha_bar)[i] for i in (t, s))
        x_t, eps = np.asarray(x_t), np.asarray(eps)
        x0_hat = (x_t - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
        variance = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        mean = np.sqrt(a_s) * x0_hat + np.sqrt(np.maximum(1 - a_s - variance, 0)) * eps
        return mean, np.sqrt(variance)

    return (reverse_step,)


def _ddpm(a_t, a_s):
    return (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)


def _step(
    variance=_ddpm,
    keep=lambda a_s, std: max(1 - a_s - std**2, 0),
    noise=lambda eta, variance: eta * math.sqrt(variance),
    data=math.sqrt,
):
    def reverse_step(x_t, t, s, eps, alpha_bar, eta):
        a_t, a_s = float(alpha_bar[t]), float(alpha_bar[s])
        x0_hat = (x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        sigma = noise(eta, variance(a_t, a_s))
        return data(a_s) * x0_hat + math.sqrt(keep(a_s, sigma)) * eps, sigma

    return (reverse_step,)


@wrong("02.3", "beta for beta_tilde", says="that is sqrt(beta_t)")
def _beta_for_beta_tilde():
    return _step(lambda a_t, a_s: 1 - a_t / a_s)


@wrong("02.3", "variance for standard deviation", says="that is the variance")
def _variance_for_standard_deviation():
    return _step(lambda a_t, a_s: _ddpm(a_t, a_s) ** 2)


@wrong("02.3", "no denominator", says="the variance lacks its denominator")
def _no_denominator():
    return _step(lambda a_t, a_s: (1 - a_s) * (1 - a_t / a_s))


@wrong("02.3", "keeps all of the noise", says="the mean keeps all of the noise")
def _keeps_all_of_the_noise():
    return _step(keep=lambda a_s, std: 1 - a_s)


@wrong("02.3", "x0_hat without its factor", says="x0_hat needs its factor")
def _bare_x0():
    return _step(data=lambda a_s: 1.0)


@wrong("02.3", "eta in the variance", says="not the variance")
def _eta_in_the_variance():
    return _step(noise=lambda eta, variance: math.sqrt(eta * variance))


@wrong("02.3", "eta squared", says="the standard deviation once")
def _eta_squared():
    return _step(noise=lambda eta, variance: eta**2 * math.sqrt(variance))


@wrong("02.3", "eta ignored", says="for eta = 0 there is no noise")
def _eta_ignored():
    return _step(noise=lambda eta, variance: math.sqrt(variance))


@wrong("02.3", "always to t - 1", says="the step goes to s")
def _always_one_step():
    (right,) = _step()
    return (lambda x_t, t, s, eps, ab, eta: right(x_t, t, t - 1, eps, ab, eta),)
