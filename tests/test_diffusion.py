import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion, Trajectory
from rgdm_lib.worlds.mixtures import GaussianMixture

T = 60
F64 = torch.float64
SCHEDULES = {"linear": schedules.linear(T), "cosine": schedules.cosine(T)}
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def oracle(cls, schedule, **options):
    """diffusers' scheduler with its float32 tables replaced by ours in float64."""
    scheduler = cls(num_train_timesteps=schedule.T, clip_sample=False, **options)
    scheduler.betas = schedule.beta[1:].clone()
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=F64)
    scheduler.one = torch.tensor(1.0, dtype=F64)
    return scheduler


@by_schedule
def test_ddpm_steps_are_diffusers_ddpm_steps(schedule):
    from diffusers import DDPMScheduler

    diffusion, theirs = Diffusion(schedule), oracle(DDPMScheduler, schedule)
    theirs.set_timesteps(T)
    torch.manual_seed(0)
    for t in range(T, 0, -1):
        x, eps = torch.randn(2, 5, 3, dtype=F64)
        mean, std, x0_hat = diffusion.step(x, t, t - 1, eps)
        torch.manual_seed(t)
        expected = theirs.step(eps, t - 1, x)  # their times are 0..T-1
        torch.manual_seed(t)
        noise = torch.randn(eps.shape, dtype=F64) if t > 1 else 0
        torch.testing.assert_close(x0_hat, expected.pred_original_sample, rtol=1e-6, atol=1e-6)
        # diffusers keeps beta_tilde at 1e-20 or more: nothing that 1e-6 can see
        torch.testing.assert_close(mean + std * noise, expected.prev_sample, rtol=1e-6, atol=1e-6)
        posterior_mean, posterior_variance = diffusion.posterior(x0_hat, x, t)
        torch.testing.assert_close(mean, posterior_mean, rtol=1e-9, atol=1e-9)
        assert math.isclose(std**2, posterior_variance, rel_tol=1e-9, abs_tol=1e-15)


@by_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_are_diffusers_ddim_steps(schedule, eta):
    from diffusers import DDIMScheduler

    diffusion = Diffusion(schedule)
    torch.manual_seed(1)
    for steps in (T, 12):
        theirs = oracle(DDIMScheduler, schedule, set_alpha_to_one=True)
        theirs.set_timesteps(steps)
        jump = T // steps
        for t in range(jump, T + 1, jump):
            x, eps, noise = torch.randn(3, 5, 3, dtype=F64)
            mean, std, _ = diffusion.step(x, t, t - jump, eps, eta)
            if t == jump:  # diffusers takes the time before 0 for its first, ours is the data
                assert std == 0
                continue
            expected = theirs.step(eps, t - 1, x, eta=eta, variance_noise=noise).prev_sample
            torch.testing.assert_close(mean + std * noise, expected, rtol=1e-6, atol=1e-6)


@by_schedule
@pytest.mark.parametrize("t", [1, 2, 17, T])
def test_posterior_is_bayes_rule_on_a_grid(schedule, t):
    """q(x_{t-1} | x_t, x_0) from prior times likelihood, integrated numerically."""
    x0, x_t = 0.7, -0.4
    mean, variance = Diffusion(schedule).posterior(
        torch.tensor([x0], dtype=F64), torch.tensor([x_t], dtype=F64), t
    )
    if t == 1:
        assert variance == 0 and math.isclose(mean, x0, rel_tol=1e-12)
        return
    before, alpha = schedule.alpha_bar[t - 1], schedule.alpha[t]
    centre, width = float(mean), float(variance.sqrt())
    grid = torch.linspace(centre - 10 * width, centre + 10 * width, 20_001, dtype=F64)
    prior = Normal(before.sqrt() * x0, (1 - before).sqrt()).log_prob(grid)
    likelihood = Normal(alpha.sqrt() * grid, (1 - alpha).sqrt()).log_prob(torch.tensor(x_t))
    weight = torch.softmax(prior + likelihood, 0)
    grid_mean = (weight * grid).sum()
    assert abs(float(grid_mean - mean)) < 1e-6
    assert abs(float((weight * (grid - grid_mean) ** 2).sum() - variance)) < 1e-6
    # relative too: a wrong variance of 1e-7 must not pass
    assert math.isclose((weight * (grid - grid_mean) ** 2).sum(), variance, rel_tol=1e-4)


@by_schedule
def test_q_sample_has_the_moments_of_steps_of_beta(schedule):
    """One jump against t single steps x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise."""
    t, n, x0 = 23, 200_000, 1.3
    torch.manual_seed(0)
    jumped = Diffusion(schedule).q_sample(
        torch.full((n, 1), x0), torch.full((n,), t), torch.randn(n, 1)
    )
    mean, variance = x0, 0.0
    for s in range(1, t + 1):
        beta = float(schedule.beta[s])
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
    assert abs(float(jumped.mean()) - mean) < 4 * math.sqrt(variance / n)
    assert abs(float(jumped.var()) / variance - 1) < 4 * math.sqrt(2 / n)


def test_predict_x0_inverts_q_sample_at_mixed_times():
    diffusion = Diffusion(SCHEDULES["cosine"])
    x0, noise = torch.randn(2, 6, 4, 3, dtype=F64)
    t = torch.tensor([1, 5, 20, 40, 50, 55])
    x_t = diffusion.q_sample(x0, t, noise)
    torch.testing.assert_close(diffusion.predict_x0(x_t, t, noise), x0, rtol=1e-7, atol=1e-7)


@by_schedule
def test_vlb_weights_are_kls_of_gaussians(schedule):
    """Each t > 1: KL(q(x_{t-1}|x_t,x_0) || p_theta(x_{t-1}|x_t)) = weight |eps - eps_hat|^2."""
    diffusion = Diffusion(schedule)
    weight = diffusion.loss_weight("vlb")
    torch.manual_seed(0)
    for t in range(2, T + 1):
        x0, noise, eps_hat = torch.randn(3, 1, 4, dtype=F64)
        x_t = diffusion.q_sample(x0, t, noise)
        true_mean, variance = diffusion.posterior(x0, x_t, t)
        model_mean, _ = diffusion.posterior(diffusion.predict_x0(x_t, t, eps_hat), x_t, t)
        kl = kl_divergence(Normal(true_mean, variance.sqrt()), Normal(model_mean, variance.sqrt()))
        expected = weight[t] * (noise - eps_hat).square().sum()
        assert math.isclose(kl.sum(), expected, rel_tol=1e-6)
    # t = 1: -log p_theta(x_0 | x_1) with variance beta_1, up to its constant
    x0, noise, eps_hat = torch.randn(3, 1, 4, dtype=F64)
    x_1 = diffusion.q_sample(x0, 1, noise)
    gap = (x0 - diffusion.predict_x0(x_1, 1, eps_hat)).square().sum() / (2 * schedule.beta[1])
    assert math.isclose(gap, weight[1] * (noise - eps_hat).square().sum(), rel_tol=1e-6)


def test_loss_draws_every_time_and_averages_as_it_says():
    diffusion = Diffusion(SCHEDULES["cosine"])
    seen = []

    def half_right(x_t, t, cond):
        seen.append(t)
        assert cond == "condition"
        return torch.zeros_like(x_t)

    x0 = torch.zeros(20_000, 2, 3)
    torch.manual_seed(0)
    simple = diffusion.loss(half_right, x0, "condition")
    assert simple.shape == (20_000,)
    assert abs(float(simple.mean()) - 1) < 0.02  # eps_hat = 0: the mean square of noise
    t = torch.cat(seen)
    assert t.min() == 1 and t.max() == T and len(t.unique()) == T
    vlb = diffusion.loss(half_right, x0[:, :, :1].double(), "condition", weighting="vlb")
    bound = diffusion.loss_weight("vlb")[1:].sum() * 2
    assert abs(float(vlb.mean() / bound) - 1) < 5 * float(vlb.std() / bound) / math.sqrt(20_000)
    with pytest.raises(ValueError, match="weighting"):
        diffusion.loss(half_right, x0, "condition", weighting="snr")


@by_schedule
def test_times_weigh_the_simple_loss_and_leave_the_bound(schedule):
    """E over t ~ p of the simple loss is sum_t p_t error_t; "vlb" stays an unbiased draw."""
    p = torch.zeros(T + 1, dtype=F64)
    p[1:] = torch.linspace(1, 4, T, dtype=F64)
    p /= p.sum()

    def off_by_t(x_t, t, cond):  # wrong by t in each of the 3 elements, whatever the noise
        seen.append(t)
        return noise_drawn[0] + t[:, None].to(F64)

    seen, noise_drawn, n = [], [], 200_000

    def noise_like(x):
        noise_drawn[:] = [torch.randn_like(x)]
        return noise_drawn[0]

    torch.manual_seed(0)
    diffusion = Diffusion(schedule, noise_like)
    x0 = torch.zeros(n, 3, dtype=F64)
    square = torch.arange(T + 1, dtype=F64).square()
    simple = diffusion.loss(off_by_t, x0, times=p).mean()
    counts = torch.bincount(seen[0], minlength=T + 1)
    assert (counts - n * p).abs().max() < 1
    torch.testing.assert_close(simple, (p * square).sum(), rtol=1e-3, atol=0)
    bound = 3 * (diffusion.loss_weight("vlb") * square).sum()
    vlb = diffusion.loss(off_by_t, x0, weighting="vlb", times=p).mean()
    torch.testing.assert_close(vlb, bound, rtol=1e-3, atol=0)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [T, 7])
def test_log_prob_against_the_formula(eta, steps):
    schedule = SCHEDULES["cosine"]
    diffusion = Diffusion(schedule)

    def denoiser(x, t, cond=None):
        return torch.tanh(x) * (t[:, None] / T)

    torch.manual_seed(0)
    path = diffusion.trajectory(denoiser, torch.randn(4, 2, dtype=F64), steps, eta)
    assert path.t[0] == T and path.t[-1] == 0 and len(path.t) == steps + 1
    got = diffusion.log_prob(denoiser, path, eta)
    assert got.shape == (4, steps)
    for i, (t, s) in enumerate(zip(path.t[:-1], path.t[1:], strict=True)):
        a_t, a_s = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
        x = path.x[i]
        eps = torch.tanh(x) * t / T
        x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        if s == 0:
            mean, variance = x0, 1 - a_t
        else:
            variance = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
            mean = math.sqrt(a_s) * x0 + math.sqrt(1 - a_s - variance) * eps
        square = (path.x[i + 1] - mean).square().sum(1)
        expected = -square / (2 * variance) - math.log(2 * math.pi * variance)  # d = 2
        torch.testing.assert_close(got[:, i], expected, rtol=1e-5, atol=1e-5)


def test_paths_have_the_law_that_log_prob_says():
    """E_p[p'/p] = 1 for a second model p', within the Monte Carlo error."""
    diffusion = Diffusion(schedules.cosine(20))
    first = GaussianMixture([[0.0], [1.0]], 0.5).denoiser(diffusion.schedule)
    second = GaussianMixture([[0.1], [1.0]], 0.55).denoiser(diffusion.schedule)
    torch.manual_seed(0)
    path = diffusion.trajectory(first, torch.randn(40_000, 1, dtype=F64))
    log_ratio = (diffusion.log_prob(second, path) - diffusion.log_prob(first, path)).sum(1)
    ratio = log_ratio.exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(40_000)
    assert float(ratio.std()) > 0.05  # the two models do differ


def test_log_prob_passes_gradients_and_refuses_paths_without_noise():
    diffusion = Diffusion(schedules.cosine(20))
    scale = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def denoiser(x, t, cond=None):
        return scale * x

    path = diffusion.trajectory(denoiser, torch.randn(3, 2, dtype=F64))
    diffusion.log_prob(denoiser, path).sum().backward()
    assert scale.grad is not None and torch.isfinite(scale.grad)
    with pytest.raises(ValueError, match="eta"):
        diffusion.log_prob(denoiser, Trajectory(path.t, path.x), eta=0.0)


def test_sampling_with_the_ideal_denoiser_gives_the_mixture():
    """A chain of exact denoisers ends in the data's law up to the discretisation, O(1/T)."""
    world = GaussianMixture([[-1.0], [1.0]], 0.4, [0.3, 0.7])
    schedule = schedules.cosine(200)
    torch.manual_seed(0)
    *_, last = Diffusion(schedule).sample(world.denoiser(schedule), torch.randn(20_000, 1))
    assert last.t == 0 and last.x.dtype == torch.float32
    share = float((last.x > 0).float().mean())
    exact = 0.3 * (1 - Normal(0.0, 1.0).cdf(torch.tensor(2.5))) + 0.7 * Normal(0.0, 1.0).cdf(
        torch.tensor(2.5)
    )
    assert abs(share - float(exact)) < 0.02
    assert abs(float(last.x[last.x > 0].std()) - 0.4) < 0.02


def test_sample_yields_every_state_and_its_prediction():
    diffusion = Diffusion(SCHEDULES["linear"])
    x_T = torch.randn(3, 2)
    states = list(diffusion.sample(lambda x, t, cond: 0.1 * x, x_T, steps=5))
    assert [state.t for state in states] == [60, 48, 36, 24, 12, 0]
    assert states[0].x is x_T and states[0].x0_hat is None
    torch.testing.assert_close(states[-1].x, states[-1].x0_hat)  # the last step has no noise
    for steps in (0, T + 1):
        with pytest.raises(ValueError, match="steps"):
            diffusion.timesteps(steps)


@pytest.mark.parametrize("spacing", [1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_timesteps_go_down_from_T_to_0(steps, spacing):
    times = Diffusion(schedules.polynomial(1000)).timesteps(steps, spacing)
    assert len(times) == steps + 1 and times[0] == 1000 and times[-1] == 0
    assert all(a > b for a, b in zip(times[:-1], times[1:], strict=True))


def test_quadratic_spacing_is_quadratic():
    times = Diffusion(schedules.polynomial(1000)).timesteps(10, 2.0)
    assert times == [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0]


def test_more_noise_than_ddpm_needs_short_steps():
    """An exact Gaussian denoiser, eta = 3: right with short steps, narrowed by long ones."""
    diffusion = Diffusion(schedules.cosine(4000))
    ab = diffusion.schedule.alpha_bar

    def ideal(x, t, cond):
        a = ab[t][:, None]
        gain = a.sqrt() * 0.25 / (a * 0.25 + 1 - a)
        x0 = 2 + gain * (x - a.sqrt() * 2)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    def sampled(steps, eta):
        torch.manual_seed(0)
        start = torch.randn(5000, 1, dtype=torch.float64)
        *_, last = diffusion.sample(ideal, start, steps, eta)
        return float(last.x.mean()), float(last.x.std()) / 0.5

    mean, width = sampled(4000, 3.0)
    assert abs(mean - 2) < 0.03 and 0.95 < width < 1.02
    assert sampled(100, 1.0)[1] > 0.93
    assert sampled(100, 3.0)[1] < 0.8


def test_noise_never_exceeds_the_marginal():
    diffusion = Diffusion(schedules.polynomial(1000))
    for t, s in ((1000, 500), (40, 10), (4, 3), (2, 1)):
        limit = float(1 - diffusion.schedule.alpha_bar[s]) ** 0.5
        assert diffusion.step_std(t, s, 50.0) == pytest.approx(limit)
        assert diffusion.step_std(t, s, 1.0) < limit


# ---- widths of samples ---------------------------------------------------------------------


def sampler_width(diffusion, sd, steps, spacing=1.0, eta=1.0):
    """Sampled over true width for the exact denoiser of N(0, sd^2), which is linear: no noise."""
    times, variance = diffusion.timesteps(steps, spacing), 1.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        ab = diffusion.schedule.alpha_bar[t]
        one = torch.ones(1, 1, dtype=F64)
        eps = (1 - ab).sqrt() * one / (ab * sd**2 + 1 - ab)
        gain, std, _ = diffusion.step(one, t, s, eps, eta)
        variance = float(gain) ** 2 * variance + std**2
    return math.sqrt(variance) / sd


@pytest.mark.parametrize("sd", [0.5, 1.4])
def test_sampler_width_error(sd):
    """150 quadratic steps keep a Gaussian's width within 2 %; 100 do not (2.6 and 2.7 %)."""
    diffusion = Diffusion(schedules.polynomial(1000))
    assert abs(sampler_width(diffusion, sd, 150, 2.0) - 1) < 0.02
    assert 0.97 < sampler_width(diffusion, sd, 100, 2.0) < 0.98


def test_sampler_width_error_of_narrow_laws():
    """Modes far narrower than the data need more: sd 0.25 and 0.15 take 200 steps, 150 miss."""
    diffusion = Diffusion(schedules.polynomial(1000))
    for sd in (0.25, 0.15):
        assert sampler_width(diffusion, sd, 150, 2.0) < 0.98
        assert abs(sampler_width(diffusion, sd, 200, 2.0) - 1) < 0.02


def test_sampler_width_error_of_a_mixture():
    """Both modes' widths and the whole's with 200 quadratic steps, within 2 %.

    The error of either mode is 1.3 %, by 400,000 samples. Of 100,000 the smaller mode's width has
    a standard error of 0.4 %.
    """
    diffusion = Diffusion(schedules.polynomial(1000))
    world = GaussianMixture([[-1.0], [1.0]], 0.25, [0.3, 0.7])
    torch.manual_seed(0)
    start = torch.randn(100_000, 1)
    *_, last = diffusion.sample(world.denoiser(diffusion.schedule), start, 200, spacing=2.0)
    whole = math.sqrt(0.25**2 + 0.3 * 0.7 * 2**2)
    for x, width in ((last.x, whole), (last.x[last.x > 0], 0.25), (last.x[last.x < 0], 0.25)):
        assert abs(float(x.std()) / width - 1) < 0.02


@pytest.mark.parametrize("sd", [0.5, 1.4])
@pytest.mark.parametrize("T", [200, 1000, 4000])
def test_a_fixed_eta_becomes_right_and_the_cut_does_not(T, sd):  # noqa: N803
    """``step_std``: eta = 3 with shrinking steps; and the largest noise, at whatever T."""
    diffusion = Diffusion(schedules.cosine(T))
    assert abs(sampler_width(diffusion, sd, T, eta=3.0) - 1) < 60 / T
    assert abs(sampler_width(diffusion, sd, T, eta=1e9) - 0.70) < 0.01


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noise_of_paths_has_the_width_that_log_prob_uses(eta):
    """(x_s - mean) / path_std is standard normal at every step, for every eta."""
    diffusion = Diffusion(schedules.cosine(8))

    def denoiser(x, t, cond=None):
        return 0.5 * x

    torch.manual_seed(0)
    n = 20_000
    path = diffusion.trajectory(denoiser, torch.randn(n, 1, dtype=F64), eta=eta)
    for i, (t, s) in enumerate(zip(path.t[:-1], path.t[1:], strict=True)):
        mean, _, _ = diffusion.step(path.x[i], t, s, 0.5 * path.x[i], eta)
        std = float((path.x[i + 1] - mean).std())
        ab_t, ab_s = (float(diffusion.schedule.alpha_bar[j]) for j in (t, s))
        ddpm = math.sqrt((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s))
        assert abs(std / (eta * ddpm if s else math.sqrt(1 - ab_t)) - 1) < 4 / math.sqrt(2 * n)


# ---- networks in training mode -------------------------------------------------------------


class Noisy(torch.nn.Module):
    """Dropout, and batch statistics that move whenever the network runs in training mode."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.frozen = torch.nn.BatchNorm1d(2, affine=False).eval()
        self.norm = torch.nn.BatchNorm1d(2, affine=False)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, t, cond=None):
        self.modes = [m.training for m in self.modules()]
        return self.drop(self.norm(self.frozen(self.scale * x)))


def test_networks_are_sampled_and_judged_in_eval_and_get_their_mode_back():
    diffusion, net = Diffusion(schedules.cosine(10)), Noisy()
    before = [m.training for m in net.modules()]
    assert before == [True, False, True, True]  # as a user may have left it
    torch.manual_seed(0)
    x_T = torch.randn(50, 2)
    for state in diffusion.sample(net, x_T):  # training between the steps is nobody's business
        assert [m.training for m in net.modules()] == before, state.t
    assert net.modes == [False] * 4
    net.modes = None
    path = diffusion.trajectory(net, x_T)
    assert net.modes == [False] * 4 and [m.training for m in net.modules()] == before
    first = diffusion.log_prob(net, path)
    assert torch.equal(first, diffusion.log_prob(net, path))
    first.sum().backward()
    assert float(net.scale.grad.abs()) > 0
    assert float(net.norm.num_batches_tracked) == 0
    assert [m.training for m in net.modules()] == before
    # a network that was in eval stays there; one that raises gets its mode back
    net.eval()
    diffusion.log_prob(net, path)
    assert not any(m.training for m in net.modules())
    net.train()
    with pytest.raises(RuntimeError):
        diffusion.trajectory(net, torch.randn(4, 3))
    assert all(m.training for m in net.modules())


def test_a_plain_callable_is_left_alone():
    diffusion, net = Diffusion(schedules.cosine(10)), Noisy()
    list(diffusion.sample(lambda x, t, cond: net(x, t), torch.randn(5, 2)))
    assert net.modes == [True, False, True, True]
