"""Equations first shown in notebook 02."""

import math

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ledger import close, equation, within
from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.mixtures import GaussianMixture

SCHEDULE = schedules.cosine(40)
DIFFUSION = Diffusion(SCHEDULE)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# ---- the bound -------------------------------------------------------------------------------

SHORT = schedules.cosine(6)
SLOPE, SHIFT, START = 0.8, 0.1, 0.9  # the model's step: mean SLOPE x_t + SHIFT, whatever t


def short_std():
    """(T + 1,) of the model's steps: beta_tilde, and beta_1 at t = 1."""
    variance = SHORT.posterior_variance.clone()
    variance[1] = SHORT.beta[1]
    return variance.sqrt()


def terms():
    """The three parts of the bound at x_0 = START: q(x_t | x_0) is Gaussian, so in closed form."""
    x0, std = torch.full((1, 1), START, dtype=torch.float64), short_std()
    ab = SHORT.alpha_bar
    prior = kl_divergence(Normal(ab[-1].sqrt() * START, (1 - ab[-1]).sqrt()), Normal(0.0, 1.0))
    steps = []
    for t in range(2, SHORT.T + 1):
        one, zero = torch.ones_like(x0), torch.zeros_like(x0)
        constant = Diffusion(SHORT).posterior(x0, zero, t)[0] - SHIFT
        slope = Diffusion(SHORT).posterior(zero, one, t)[0] - SLOPE
        gap = constant + slope * ab[t].sqrt() * START
        square = gap.square() + slope.square() * (1 - ab[t])  # E_q of the squared distance
        steps.append((square / (2 * std[t] ** 2)).squeeze())
    mean = SLOPE * ab[1].sqrt() * START + SHIFT
    error = (START - mean) ** 2 + SLOPE**2 * (1 - ab[1])
    last = -error / (2 * std[1] ** 2) - std[1].log() - math.log(2 * math.pi) / 2
    return prior, torch.stack(steps), last


def joint_of_model():
    """p_theta(x_0, ..., x_T) as one Gaussian: mean and covariance."""
    n, std = SHORT.T + 1, short_std()
    mean, factor = torch.zeros(n).double(), torch.zeros(n, n).double()
    factor[-1, -1] = 1.0
    for t in range(n - 1, 0, -1):
        mean[t - 1] = SLOPE * mean[t] + SHIFT
        factor[t - 1] = SLOPE * factor[t]
        factor[t - 1, t - 1] = std[t]
    return mean, factor @ factor.T


def posterior_of_data():
    """q(x_1, ..., x_T | x_0 = START) as one Gaussian."""
    n = SHORT.T
    mean, factor = torch.zeros(n).double(), torch.zeros(n, n).double()
    for t in range(1, n + 1):
        root = SHORT.alpha[t].sqrt()
        mean[t - 1] = root * (mean[t - 2] if t > 1 else START)
        if t > 1:
            factor[t - 1] = root * factor[t - 2]
        factor[t - 1, t - 1] = SHORT.beta[t].sqrt()
    return MultivariateNormal(mean, factor @ factor.T)


@equation(
    "variational-bound",
    mutations={
        "prior left out": {"formula": lambda prior, steps, last: steps.sum() - last},
        "sum from t = 3": {"formula": lambda prior, steps, last: prior + steps[1:].sum() - last},
        "mean over t": {"formula": lambda prior, steps, last: prior + steps.mean() - last},
        "sign of the last term": {
            "formula": lambda prior, steps, last: prior + steps.sum() + last
        },
    },
)  # fmt: skip
def variational_bound(formula=lambda prior, steps, last: prior + steps.sum() - last):
    """A linear model, whose likelihood is known; the bound's slack is KL(q || p_theta(. | x_0))."""
    mean, covariance = joint_of_model()
    gain = covariance[1:, 0] / covariance[0, 0]
    rest = covariance[1:, 1:] - torch.outer(gain, covariance[0, 1:])
    given_data = MultivariateNormal(mean[1:] + gain * (START - mean[0]), (rest + rest.T) / 2)
    start = torch.tensor(START, dtype=torch.float64)
    log_p = Normal(mean[0], covariance[0, 0].sqrt()).log_prob(start)
    slack = kl_divergence(posterior_of_data(), given_data)
    assert slack > 0
    close(formula(*terms()), slack - log_p)


@equation(
    "step-kl",
    mutations={
        "mean over dimensions": {"formula": lambda a, b, v: ((a - b) ** 2).mean() / (2 * v)},
        "half left out": {"formula": lambda a, b, v: ((a - b) ** 2).sum() / v},
        "standard deviation for variance": {
            "formula": lambda a, b, v: ((a - b) ** 2).sum() / (2 * v.sqrt())
        },
        "distance not squared": {"formula": lambda a, b, v: (a - b).norm() / (2 * v)},
    },
)
def step_kl(formula=lambda a, b, v: ((a - b) ** 2).sum() / (2 * v)):
    """PyTorch's divergence of two Gaussians."""
    a, b = normal(5), normal(5)
    for v in SCHEDULE.posterior_variance[2:]:
        close(formula(a, b, v), kl_divergence(Normal(a, v.sqrt()), Normal(b, v.sqrt())).sum())


@equation(
    "x0-hat",
    mutations={
        "no square roots": {
            "formula": lambda x, t, eps: (
                (x - (1 - SCHEDULE.alpha_bar[t]) * eps) / SCHEDULE.alpha_bar[t]
            )
        },
        "noise added": {"formula": lambda x, t, eps: DIFFUSION.predict_x0(x, t, -eps)},
        "t off by one": {"formula": lambda x, t, eps: DIFFUSION.predict_x0(x, t - 1, eps)},
        "not divided by the root": {
            "formula": lambda x, t, eps: x - (1 - SCHEDULE.alpha_bar[t]).sqrt() * eps
        },
    },
)
def x0_hat(formula=DIFFUSION.predict_x0):
    """With the true noise it gives back the data that t single steps have noised."""
    x0 = normal(3, 2)
    x, noise, v = x0, torch.zeros_like(x0), 0.0  # noise: the sum of all that was added, shrunk
    for t in range(1, 31):
        root, fresh = SCHEDULE.alpha[t].sqrt(), SCHEDULE.beta[t].sqrt() * normal(3, 2)
        x, noise = root * x + fresh, root * noise + fresh
        v = root**2 * v + SCHEDULE.beta[t]
        close(formula(x, t, noise / v.sqrt()), x0)


def weight_with(variance=None, beta=lambda s: s.beta[2:], alpha=lambda s: s.alpha[2:]):
    """lambda_t, t = 2..T, with parts replaced."""
    variance = variance or (lambda s: s.posterior_variance[2:])
    return lambda s: beta(s) ** 2 / (2 * variance(s) * alpha(s) * (1 - s.alpha_bar[2:]))


def snr(s):
    return s.alpha_bar[1:] / (1 - s.alpha_bar[1:])


@equation(
    "vlb-weight",
    mutations={
        "beta for beta_tilde": {"of_noise": weight_with(variance=lambda s: s.beta[2:])},
        "beta not squared": {"of_noise": weight_with(beta=lambda s: s.beta[2:].sqrt())},
        "alpha left out": {"of_noise": weight_with(alpha=lambda s: 1.0)},
        "SNR the wrong way round": {"of_data": lambda s: (snr(s)[1:] - snr(s)[:-1]) / 2},
        "half left out": {"of_data": lambda s: snr(s)[:-1] - snr(s)[1:]},
    },
)
def vlb_weight(
    of_noise=lambda s: Diffusion(s).loss_weight("vlb")[2:],
    of_data=lambda s: (snr(s)[:-1] - snr(s)[1:]) / 2,
):
    """PyTorch's divergence between the posterior at x_0 and at x0_hat; three dimensions."""
    x0, noise, eps = normal(1, 3), normal(1, 3), normal(1, 3)
    for t in range(2, SCHEDULE.T + 1):
        x_t = DIFFUSION.q_sample(x0, t, noise)
        guess = DIFFUSION.predict_x0(x_t, t, eps)
        std = SCHEDULE.posterior_variance[t].sqrt()
        means = (DIFFUSION.posterior(x, x_t, t)[0] for x in (x0, guess))
        kl = kl_divergence(*(Normal(mean, std) for mean in means)).sum()
        # relative, as the divergences themselves span orders of magnitude
        close(of_noise(SCHEDULE)[t - 2] * (noise - eps).square().sum() / kl, 1)
        close(of_data(SCHEDULE)[t - 2] * (x0 - guess).square().sum() / kl, 1)


def simple(jump=DIFFUSION.q_sample, low=1, reduce=lambda error: error.sum(1)):
    """One draw of the loss for each x_0, with parts replaced."""

    def draws(denoiser, x0):
        t, noise = torch.randint(low, SCHEDULE.T + 1, (len(x0),)), torch.randn_like(x0)
        return reduce((noise - denoiser(jump(x0, t, noise), t)).square())

    return draws


@equation(
    "simple-loss",
    mutations={
        "mean over dimensions": {"formula": simple(reduce=lambda error: error.mean(1))},
        "no square roots": {
            "formula": simple(
                lambda x0, t, noise: SCHEDULE.alpha_bar[t][:, None] * x0
                + (1 - SCHEDULE.alpha_bar[t])[:, None] * noise
            )
        },
        "t from 0": {"formula": simple(low=0)},
        "t off by one": {
            "formula": simple(lambda x0, t, noise: DIFFUSION.q_sample(x0, t - 1, noise))
        },
    },
)  # fmt: skip
def simple_loss(formula=lambda denoiser, x0: DIFFUSION.loss(denoiser, x0) * x0.shape[1]):
    """A linear denoiser c_t x, whose expected loss is a closed form; 200,000 draws.

    The library's loss is the mean over a sample's elements, hence the factor.
    """
    x0 = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    c = torch.linspace(1.5, 0.5, SCHEDULE.T + 1, dtype=torch.float64)

    def denoiser(x, t, cond=None):
        return c[t][:, None] * x

    ab, c_t = SCHEDULE.alpha_bar[1:], c[1:]
    of_t = 3 * (1 - c_t * (1 - ab).sqrt()).square() + c_t.square() * ab * x0.square().sum()
    within(formula(denoiser, x0.expand(200_000, 3)), of_t.mean())


# ---- score, noise, data ----------------------------------------------------------------------

MEANS = torch.tensor([[-1.0, 0.3], [1.5, -0.5]], dtype=torch.float64)
MIXTURE = GaussianMixture(MEANS, torch.tensor([0.4, 0.7]).double(), torch.tensor([1.0, 3.0]))
POINTS = torch.tensor([[0.1, 0.2], [-1.0, 0.4], [1.3, -0.9]], dtype=torch.float64)


def noised(t):
    """q_t: the mixture's exact law at time t."""
    ab = SCHEDULE.alpha_bar[t]
    std = (ab * MIXTURE.std.square() + 1 - ab).sqrt()
    return GaussianMixture(ab.sqrt() * MEANS, std, MIXTURE.weights)


def slope(t, x):
    """Gradient of log q_t by automatic differentiation."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(noised(t).log_prob(x).sum(), x)[0]


def mean_given(t, x):
    """E[x_0 | x_t] by Bayes' rule on a grid of the plane."""
    axis = torch.linspace(-5, 6, 221, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    ab = SCHEDULE.alpha_bar[t]
    square = (x[:, None] - ab.sqrt() * grid).square().sum(-1)
    weight = torch.softmax(MIXTURE.log_prob(grid) - square / (2 * (1 - ab)), 1)
    return weight @ grid


def best_noise(t, x):
    return MIXTURE.denoiser(SCHEDULE)(x, torch.full((len(x),), t))


@equation(
    "score-and-noise",
    mutations={
        "sign": {"of_noise": lambda ab, eps: eps / (1 - ab).sqrt()},
        "no square root": {"of_noise": lambda ab, eps: -eps / (1 - ab)},
        "data not shrunk": {"of_data": lambda ab, x, x0: -(x - x0) / (1 - ab)},
        "standard deviation for variance": {
            "of_data": lambda ab, x, x0: -(x - ab.sqrt() * x0) / (1 - ab).sqrt()
        },
    },
)
def score_and_noise(
    of_data=lambda ab, x, x0: -(x - ab.sqrt() * x0) / (1 - ab),
    of_noise=lambda ab, eps: -eps / (1 - ab).sqrt(),
):
    for t in (15, 25):
        ab = SCHEDULE.alpha_bar[t]
        close(of_data(ab, POINTS, mean_given(t, POINTS)), slope(t, POINTS))
        close(of_noise(ab, best_noise(t, POINTS)), slope(t, POINTS))


@equation(
    "tweedie",
    mutations={
        "sign": {"formula": lambda ab, x, score: (x - (1 - ab) * score) / ab.sqrt()},
        "standard deviation for variance": {
            "formula": lambda ab, x, score: (x + (1 - ab).sqrt() * score) / ab.sqrt()
        },
        "not divided by the root": {"formula": lambda ab, x, score: x + (1 - ab) * score},
    },
)
def tweedie(formula=lambda ab, x, score: (x + (1 - ab) * score) / ab.sqrt()):
    for t in (15, 25):
        ab = SCHEDULE.alpha_bar[t]
        close(formula(ab, POINTS, slope(t, POINTS)), mean_given(t, POINTS))


# ---- samplers --------------------------------------------------------------------------------


def step_with(kept, of_data=lambda ab_t, ab_s: ab_s.sqrt()):
    """The mean of a step with other factors of x0_hat and of the noise that is kept."""

    def mean(x, t, s, eps, eta):
        ab_t, ab_s = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[s]
        factor = kept(ab_t, ab_s, DIFFUSION.step_std(t, s, eta))
        return of_data(ab_t, ab_s) * DIFFUSION.predict_x0(x, t, eps) + factor * eps

    return mean


STEP_MUTATIONS = {
    "sigma not taken off": step_with(lambda ab_t, ab_s, sigma: (1 - ab_s).sqrt()),
    "alpha_bar of t": step_with(lambda ab_t, ab_s, sigma: (1 - ab_t - sigma**2).clamp(0).sqrt()),
    "noise subtracted": step_with(lambda ab_t, ab_s, sigma: -(1 - ab_s - sigma**2).sqrt()),
    "x0_hat not shrunk": step_with(
        lambda ab_t, ab_s, sigma: (1 - ab_s - sigma**2).sqrt(), lambda ab_t, ab_s: 1.0
    ),
}


def check_step(mean, std):
    """If the guess is right, x_s has the law q(x_s | x_0), whatever eta is.

    With eta = 1 and s = t - 1 the step is also DDPM's posterior at x0_hat.
    """
    zero, one = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
    for t, s in ((30, 29), (30, 12), (7, 3)):
        for eta in (0.0, 0.4, 1.0):
            ab = SCHEDULE.alpha_bar
            of_data = mean(ab[t].sqrt() * one, t, s, zero, eta)
            of_noise = mean((1 - ab[t]).sqrt() * one, t, s, one, eta)
            close(of_data, [[ab[s].sqrt()]])
            close(of_noise.square() + std(t, s, eta) ** 2, [[1 - ab[s]]])
    for t in (2, 15, 30):
        x, eps = normal(4, 2), normal(4, 2)
        posterior, v = DIFFUSION.posterior(DIFFUSION.predict_x0(x, t, eps), x, t)
        close(mean(x, t, t - 1, eps, 1.0), posterior)
        close(std(t, t - 1, 1.0) ** 2, v.squeeze())


@equation("ddim-step", mutations={name: {"formula": step} for name, step in STEP_MUTATIONS.items()})
def ddim_step(formula=lambda *arguments: DIFFUSION.step(*arguments)[0]):
    check_step(formula, DIFFUSION.step_std)


def sigma_with(rule):
    return lambda t, s, eta: rule(SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[s], eta)


SIGMA_MUTATIONS = {
    "t and s swapped": sigma_with(
        lambda a_t, a_s, eta: eta * ((1 - a_t) / (1 - a_s) * (1 - a_t / a_s)).sqrt()
    ),
    "the forward step's": sigma_with(lambda a_t, a_s, eta: eta * (1 - a_t / a_s).sqrt()),
    "no square roots": sigma_with(
        lambda a_t, a_s, eta: eta * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
    ),
    "eta scales the variance": sigma_with(
        lambda a_t, a_s, eta: (eta * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
    ),
}


def check_sigma(sigma):
    """eta times the spread of x_s given x_t and x_0, by conditioning the Gaussian pair."""
    for t, s in ((30, 29), (30, 12), (7, 3), (7, 0)):
        v, shrink, added = 0.0, 1.0, 0.0  # Var(x_s); then x_t = shrink x_s + noise of this variance
        for i in range(1, t + 1):
            a, b = SCHEDULE.alpha[i], SCHEDULE.beta[i]
            if i <= s:
                v = a * v + b
            else:
                shrink, added = a.sqrt() * shrink, a * added + b
        spread = (v - (shrink * v) ** 2 / (shrink**2 * v + added)) ** 0.5
        for eta in (0.0, 0.4, 1.0):
            close(sigma(t, s, eta), eta * spread)


@equation(
    "ddim-sigma", mutations={name: {"formula": sigma} for name, sigma in SIGMA_MUTATIONS.items()}
)
def ddim_sigma(formula=DIFFUSION.step_std):
    check_sigma(formula)


# ---- the way to the bound --------------------------------------------------------------------


def path_terms(n=7):
    """n random paths x_1, ..., x_T (n, T): log p(x_T), and q's and the model's steps, t = 1..T."""
    x, std = 0.8 * normal(n, SHORT.T), short_std()
    full = torch.cat([torch.full((n, 1), START, dtype=torch.float64), x], 1)
    forward, backward = [], []
    for t in range(1, SHORT.T + 1):
        shrunk = SHORT.alpha[t].sqrt() * full[:, t - 1]
        forward.append(Normal(shrunk, SHORT.beta[t].sqrt()).log_prob(full[:, t]))
        backward.append(Normal(SLOPE * full[:, t] + SHIFT, std[t]).log_prob(full[:, t - 1]))
    start = Normal(0.0, 1.0).log_prob(full[:, -1])
    return x, start, torch.stack(forward), torch.stack(backward)


@equation(
    "bound-by-jensen",
    mutations={
        "ratio inverted": {"formula": lambda start, q, p: -start + (p - q).sum(0)},
        "start left out": {"formula": lambda start, q, p: (q - p).sum(0)},
        "sum from t = 2": {"formula": lambda start, q, p: -start + (q - p)[1:].sum(0)},
        "mean over t": {"formula": lambda start, q, p: -start + (q - p).mean(0)},
    },
)
def bound_by_jensen(formula=lambda start, q, p: -start + (q - p).sum(0)):
    """On every path the bracket is log q - log p_theta, both as one Gaussian of the whole path."""
    x, *steps = path_terms()
    full = torch.cat([torch.full((len(x), 1), START, dtype=torch.float64), x], 1)
    mean, covariance = joint_of_model()
    log_q = posterior_of_data().log_prob(x)
    close(formula(*steps), log_q - MultivariateNormal(mean, covariance).log_prob(full), 1e-9)


def marginal(t, x):
    """log q(x_t | x_0 = START)."""
    ab = SHORT.alpha_bar[t]
    return Normal(ab.sqrt() * START, (1 - ab).sqrt()).log_prob(x)


@equation(
    "forward-step-turned",
    mutations={
        "ratio inverted": {"formula": lambda back, now, before: back - now + before},
        "ratio left out": {"formula": lambda back, now, before: back},
        "denominator left out": {"formula": lambda back, now, before: back + now},
    },
)
def forward_step_turned(formula=lambda back, now, before: back + now - before):
    x, _, forward, _ = path_terms()
    start = torch.full((len(x),), START, dtype=torch.float64)
    for t in range(2, SHORT.T + 1):
        before, now = x[:, t - 2], x[:, t - 1]
        mean, variance = Diffusion(SHORT).posterior(start, now, t)
        back = Normal(mean, variance.sqrt()).log_prob(before)
        close(formula(back, marginal(t, now), marginal(t - 1, before)), forward[t - 1])


@equation(
    "telescoping-marginals",
    mutations={
        "down to x_0": {"formula": lambda m: m[-1]},
        "one step short": {"formula": lambda m: m[-2] - m[0]},
        "wrong way round": {"formula": lambda m: m[0] - m[-1]},
    },
)
def telescoping_marginals(formula=lambda m: m[-1] - m[0]):
    """And with it the bracket of Jensen's bound is the sum of log-ratios of the bound's terms."""
    x, start, forward, backward = path_terms()
    m = torch.stack([marginal(t, x[:, t - 1]) for t in range(1, SHORT.T + 1)])
    close(formula(m), sum(m[i] - m[i - 1] for i in range(1, SHORT.T)))
    given = torch.full((len(x),), START, dtype=torch.float64)
    ratios = []
    for t in range(2, SHORT.T + 1):
        mean, variance = Diffusion(SHORT).posterior(given, x[:, t - 1], t)
        ratios.append(Normal(mean, variance.sqrt()).log_prob(x[:, t - 2]) - backward[t - 1])
    in_three = m[-1] - start + sum(ratios) - backward[0]
    close(in_three, -start + (forward - backward).sum(0), 1e-9)


def last(weight, constant):
    """-log p_theta(x_0 | x_1) from the error of the noise."""
    return lambda error: weight(SCHEDULE) * error.square().sum() + constant(len(error), SCHEDULE)


def half_log(d, s):
    return d / 2 * torch.log(2 * math.pi * s.beta[1])


@equation(
    "last-term",
    mutations={
        "alpha_1 forgotten": {"formula": last(lambda s: 0.5, half_log)},
        "half left out": {"formula": last(lambda s: 1 / s.alpha[1], half_log)},
        "one dimension": {
            "formula": last(lambda s: 1 / (2 * s.alpha[1]), lambda d, s: half_log(1, s))
        },
        "no constant": {"formula": last(lambda s: 1 / (2 * s.alpha[1]), lambda d, s: 0.0)},
        "standard deviation beta_1": {
            "formula": last(lambda s: 1 / (2 * s.alpha[1]), lambda d, s: 2 * half_log(d, s))
        },
    },
)
def last_term(formula=last(lambda s: DIFFUSION.loss_weight("vlb")[1], half_log)):  # noqa: B008
    """The density of the model's last step, its mean being the posterior's at x0_hat."""
    x0, noise, guess = normal(3), normal(3), normal(3)
    x_1 = DIFFUSION.q_sample(x0, 1, noise)
    mean, _ = DIFFUSION.posterior(DIFFUSION.predict_x0(x_1, 1, guess), x_1, 1)
    density = Normal(mean, SCHEDULE.beta[1].sqrt()).log_prob(x0).sum()
    close(formula(noise - guess), -density, 1e-9)
    close(1 / (2 * SCHEDULE.alpha[1]), DIFFUSION.loss_weight("vlb")[1])


# ---- other laws of the times -----------------------------------------------------------------

TIMES = torch.cat([torch.zeros(1), torch.linspace(3, 1, SCHEDULE.T)]).double()
TIMES = TIMES / TIMES.sum()


@equation(
    "loss-under-times",
    mutations={
        "uniform times": {"formula": lambda p, error: error.mean()},
        "p twice": {"formula": lambda p, error: (p**2 * error).sum() / (p**2).sum()},
        "t off by one": {"formula": lambda p, error: (p[1:] * error[:-1]).sum()},
    },
)
def loss_under_times(formula=lambda p, error: (p * error).sum()):
    """The library's loss of a guess whose error is known: x_t itself, for x_0 ~ N(0, 1)."""
    ab = SCHEDULE.alpha_bar[1:]
    losses = DIFFUSION.loss(lambda x_t, t, cond: x_t, normal(100_000, 1), times=TIMES)
    within(losses, formula(TIMES[1:], ab + (1 - (1 - ab).sqrt()) ** 2))


def fit(inputs, p, target):
    """Values that minimise sum_i p_i (target_i - inputs_i @ values)^2."""
    root = p.sqrt()[:, None]
    return torch.linalg.lstsq(root * inputs, root * target[:, None]).solution[:, 0]


@equation(
    "any-times-same-optimum",
    mutations={
        "the network does not see the time": {
            "minimiser": lambda cell, place, p, noise: fit(one_hot(place), p, noise)[
                place[first_of(cell)]
            ]
        },
        "p on the guess": {
            "minimiser": lambda cell, place, p, noise: fit(
                p[:, None] * one_hot(cell), torch.ones_like(p), noise
            )
        },
        "p on the noise": {
            "minimiser": lambda cell, place, p, noise: fit(
                one_hot(cell), torch.ones_like(p), p * noise
            )
        },
    },
)
def any_times_same_optimum(minimiser=lambda cell, place, p, noise: fit(one_hot(cell), p, noise)):
    """A finite case: x_t is seen as one of 3 places; a free value for each (t, place)."""
    t = torch.arange(4).repeat_interleave(50)
    noise = normal(200)
    place = torch.bucketize(noise + normal(200) * (1 + t) / 2, torch.tensor([-0.5, 0.5]).double())
    cell = 3 * t + place
    p = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()[t]
    means = torch.stack([noise[cell == c].mean() for c in range(12)])
    close(minimiser(cell, place, p, noise), means)


def one_hot(index):
    return torch.nn.functional.one_hot(index).double()


def first_of(cell):
    """Index of the first draw in each cell."""
    return torch.stack([torch.nonzero(cell == c)[0, 0] for c in range(12)])


# ---- eta = 1 ---------------------------------------------------------------------------------


@equation(
    "ddim-eta-one-is-ddpm",
    mutations={
        "beta for beta_tilde": {
            "factor": lambda s, t: (1 - s.alpha_bar[t - 1] - s.beta[t]).clamp(min=0).sqrt()
        },
        "no alpha": {"factor": lambda s, t: (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t]).sqrt()},
        "no root below": {
            "factor": lambda s, t: (
                s.alpha[t].sqrt() * (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t])
            )
        },
    },
)
def ddim_eta_one_is_ddpm(
    factor=lambda s, t: s.alpha[t].sqrt() * (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t]).sqrt(),
):
    """The posterior's mean at x0_hat is sqrt(alpha_bar_s) x0_hat and this factor of the noise."""
    s = SCHEDULE
    for t in range(2, s.T + 1):
        x_t, eps = torch.zeros(1).double(), torch.ones(1).double()
        x0_hat = DIFFUSION.predict_x0(x_t, t, eps)
        mean, _ = DIFFUSION.posterior(x0_hat, x_t, t)
        close(s.alpha_bar[t - 1].sqrt() * x0_hat + factor(s, t) * eps, mean)
        close(factor(s, t) ** 2, 1 - s.alpha_bar[t - 1] - s.posterior_variance[t])
