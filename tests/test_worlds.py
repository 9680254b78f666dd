import math

import numpy as np
import pytest
import torch
from scipy import stats

from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds import metrics, mixtures, nets, rewards, toy
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Ball, HalfSpace, Indicator, Linear, Quadratic

F64 = torch.float64
WORLD = GaussianMixture([[0.0, 1.0], [-1.0, -0.5], [1.5, 0.2]], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3])
REWARDS = {
    "quadratic": Quadratic([0.5, 0.3], 1.5),
    "linear": Linear([0.7, -0.4]),
    "half-space": Indicator(HalfSpace([1.0, 0.5], 0.8), 2.0),
    "ball": Indicator(Ball([1.2, 0.3], 0.5), 2.0),
}
by_reward = pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS.keys())


def grid(width=4.0, n=401):
    """(n^2, 2) points and the area of each."""
    side = torch.linspace(-width, width, n, dtype=F64)
    x, y = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1), float(side[1] - side[0]) ** 2


def autograd_score(log_prob, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


# ---- mixtures -----------------------------------------------------------------------------


def test_density_integrates_to_one_and_samples_have_its_moments():
    x, area = grid()
    p = WORLD.log_prob(x).exp() * area
    assert abs(float(p.sum()) - 1) < 1e-9
    torch.manual_seed(0)
    n = 100_000
    sample = WORLD.sample(n)
    assert sample.dtype == torch.float32
    for power in (1, 2, 3):
        exact = (p[:, None] * x**power).sum(0)
        error = (sample.double() ** power).mean(0) - exact
        assert bool((error.abs() < 4 * sample.double().pow(power).std(0) / math.sqrt(n)).all())


def test_score_is_the_gradient_of_log_prob():
    x = torch.randn(50, 2, dtype=F64)
    torch.testing.assert_close(WORLD.score(x), autograd_score(WORLD.log_prob, x))


@pytest.mark.parametrize("t", [1, 10, 50])
def test_ideal_denoiser_is_the_noised_mixtures_score(t):
    """eps = -sqrt(1 - alpha_bar) grad log p_t, p_t written out as the mixture of x_t."""
    schedule = schedules.cosine(50)
    ab = schedule.alpha_bar[t]
    noised = GaussianMixture(
        WORLD.means * ab.sqrt(), (ab * WORLD.std**2 + 1 - ab).sqrt(), WORLD.weights
    )
    x = torch.randn(40, 2, dtype=F64)
    eps = WORLD.denoiser(schedule)(x, torch.full((40,), t))
    expected = -(1 - ab).sqrt() * autograd_score(noised.log_prob, x)
    torch.testing.assert_close(eps, expected, rtol=1e-9, atol=1e-10)
    single = WORLD.denoiser(schedule)(x.float(), torch.full((40,), t))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), eps, rtol=1e-3, atol=1e-4)


def test_ideal_denoiser_takes_a_time_for_each_sample_and_has_the_least_loss():
    schedule = schedules.cosine(50)
    ideal = WORLD.denoiser(schedule)
    x, t = torch.randn(6, 2, dtype=F64), torch.tensor([1, 5, 20, 30, 49, 50])
    one_by_one = torch.cat([ideal(x[i : i + 1], t[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(ideal(x, t), one_by_one)
    diffusion, x0 = Diffusion(schedule), WORLD.sample(20_000)

    def loss(denoiser):
        torch.manual_seed(0)
        return float(diffusion.loss(denoiser, x0).mean())

    best = loss(ideal)
    assert best < loss(lambda x, t, c: 0.97 * ideal(x, t))
    assert best < loss(lambda x, t, c: ideal(x, t) + 0.05)
    assert best < loss(lambda x, t, c: ideal(x, (t - 1).clamp(min=1)))


@by_reward
@pytest.mark.parametrize("tau", [2.0, 0.5])
def test_log_z_and_payoff_against_the_grid(reward, tau):
    x, area = grid()
    w = WORLD.log_prob(x) + reward(x) / tau
    log_z = torch.logsumexp(w, 0) + math.log(area)
    smooth = isinstance(reward, Quadratic | Linear)
    tolerance = 1e-9 if smooth else 8e-3  # a grid is coarse at the region's edge
    assert abs(float(log_z - WORLD.log_Z(reward, tau))) < tolerance
    payoff = WORLD.tilt(reward, tau)
    torch.testing.assert_close(payoff.log_prob(x[::77]), (w - log_z)[::77],
                               rtol=tolerance, atol=tolerance)  # fmt: skip
    share = torch.softmax(w, 0)
    mean_reward, kl = WORLD.frontier(reward, tau)
    assert abs(float(share @ reward(x)) - mean_reward) < 2 * tolerance
    grid_kl = share @ (torch.log(share) - torch.log_softmax(WORLD.log_prob(x), 0)).nan_to_num()
    assert abs(float(grid_kl) - kl) < 3 * tolerance
    square = torch.exp(2 * torch.logsumexp(w, 0) - torch.logsumexp(
        WORLD.log_prob(x) + 2 * reward(x) / tau, 0)) * area  # fmt: skip
    assert abs(float(square) - WORLD.ess_share(reward, tau)) < tolerance


@by_reward
def test_payoff_samples_against_the_exact_density(reward):
    tau, n = 0.6, 100_000
    payoff = WORLD.tilt(reward, tau)
    x, _ = grid()
    share = torch.softmax(WORLD.log_prob(x) + reward(x) / tau, 0)
    torch.manual_seed(0)
    sample = payoff.sample(n).double()
    for f in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x.prod(1), reward):
        band = 4 * float(f(sample).std()) / math.sqrt(n) + 8e-3
        assert abs(float(f(sample).mean() - share @ f(x))) < band


@pytest.mark.parametrize("name", ["half-space", "ball"])
def test_mass_of_the_region(name):
    reward = REWARDS[name]
    payoff = WORLD.tilt(reward, 0.7)
    torch.manual_seed(0)
    n = 100_000
    inside = float(reward.region.contains(payoff.sample(n)).float().mean())
    assert abs(inside - payoff.mass) < 4 * math.sqrt(0.25 / n)
    weight = (reward(WORLD.sample(n).double()) / 0.7).exp()
    estimate = float((weight * (weight > 1)).mean() / weight.mean())
    assert abs(estimate - payoff.mass) < 0.02


def test_log_z_by_monte_carlo_with_its_confidence_band():
    torch.manual_seed(0)
    n, reward, tau = 200_000, REWARDS["quadratic"], 0.5
    w = (reward(WORLD.sample(n).double()) / tau).exp()
    band = 4 * float(w.std() / w.mean()) / math.sqrt(n)
    assert band < 0.02
    assert abs(float(w.mean().log() - WORLD.log_Z(reward, tau))) < band


@by_reward
def test_soft_value_is_the_log_mean_over_the_posterior(reward):
    """V_t(x_t) from its definition: an average over x_0 weighted by q(x_t | x_0)."""
    schedule, tau, t = schedules.cosine(50), 0.6, 20
    x, _ = grid()
    x_t = torch.tensor([[0.3, 0.8], [-0.5, 0.1], [1.0, 0.0]], dtype=F64)
    ab = schedule.alpha_bar[t]
    value = WORLD.soft_value(x_t, torch.full((3,), t), schedule, reward, tau)
    for i in range(3):
        square = (x_t[i] - ab.sqrt() * x).square().sum(1)
        posterior = torch.softmax(WORLD.log_prob(x) - square / (2 * (1 - ab)), 0)
        expected = tau * float(torch.log(posterior @ (reward(x) / tau).exp()))
        assert abs(float(value[i]) - expected) < 1e-2
    at_zero = WORLD.soft_value(x_t, torch.zeros(3, dtype=torch.long), schedule, reward, tau)
    torch.testing.assert_close(at_zero, reward(x_t))


@by_reward
def test_denoiser_of_the_payoff_is_the_references_with_the_value_added(reward):
    """eps* = eps - sqrt(1 - alpha_bar) grad V / tau, for mixtures from their own formula."""
    schedule, tau = schedules.cosine(50), 0.6
    x, t = torch.randn(20, 2, dtype=F64), torch.full((20,), 25)
    noise = (1 - schedule.alpha_bar[25]).sqrt()

    def value(x):
        return WORLD.soft_value(x, t, schedule, reward, tau)

    step = 1e-5
    gradient = torch.stack(
        [(value(x + step * e) - value(x - step * e)) / (2 * step) for e in torch.eye(2).double()], 1
    )
    expected = WORLD.denoiser(schedule)(x, t) - noise * gradient / tau
    got = WORLD.tilt(reward, tau).denoiser(schedule)(x, t)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.8, 0.4, 0.1])
def test_temperature_fixed_by_ess(share):
    world, reward = mixtures.ring(), Linear([1.0, 0.5])
    assert math.isclose(world.ess_share(reward, world.temperature(reward, share)), share)


def test_what_a_world_refuses():
    indicator = Indicator(HalfSpace([1.0, 0.0], 1.2))
    with pytest.raises(ValueError, match="between 0.1[0-9]* and 1"):
        mixtures.ring().temperature(indicator, 0.1)
    with pytest.raises(ValueError, match="tau"):
        WORLD.log_Z(REWARDS["linear"], 0.0)
    with pytest.raises(ValueError, match="means"):
        GaussianMixture([0.0, 1.0], 1.0)
    with pytest.raises(ValueError, match="std and weights"):
        GaussianMixture([[0.0], [1.0]], -1.0)
    far = Indicator(HalfSpace([1.0, 0.0], 40.0))
    with pytest.raises(RuntimeError, match="rejection"):
        WORLD.tilt(far, 1e-5).sample(10)


# ---- distances ----------------------------------------------------------------------------


def test_sliced_wasserstein_of_a_shift():
    """W1 of a shift by v along direction d is |v . d|; its mean over the plane is 2 |v| / pi."""
    x = torch.randn(500, 2)
    shifted = x + torch.tensor([0.3, -0.4])
    assert math.isclose(metrics.sliced_wasserstein(x, shifted), 2 * 0.5 / math.pi, rel_tol=1e-3)
    assert metrics.sliced_wasserstein(x, x[torch.randperm(500)]) == 0


def test_sliced_wasserstein_against_pot():
    import ot

    torch.manual_seed(0)
    x, y = torch.randn(300, 5), 1.3 * torch.randn(300, 5)
    directions = metrics.unit_directions(5, 64)
    expected = ot.sliced_wasserstein_distance(
        x.numpy(), y.numpy(), projections=directions.T.numpy(), p=1
    )
    assert math.isclose(metrics.sliced_wasserstein(x, y, 64), expected, rel_tol=1e-5)


def test_over_floor_is_one_for_exact_samples_and_sees_errors():
    torch.manual_seed(0)
    ring = toy.ring
    exact = metrics.over_floor(ring(2000), ring, n=2000, pairs=10)
    assert 0.5 < exact < 2
    assert metrics.over_floor(1.33 * ring(2000), ring, n=2000, pairs=10) > 2 * exact
    with pytest.raises(ValueError, match="has 10 points"):
        metrics.over_floor(ring(10), ring, n=2000)
    with pytest.raises(ValueError, match="not finite"):
        metrics.sliced_wasserstein(ring(10), ring(10) * float("nan"))
    with pytest.raises(ValueError, match="one shape"):
        metrics.sliced_wasserstein(ring(10), ring(11))


# ---- toy data and the network -------------------------------------------------------------


def test_toy_data():
    torch.manual_seed(0)
    for sampler in (toy.moons, toy.ring, toy.checkerboard):
        x = sampler(20_000)
        assert x.shape == (20_000, 2) and x.dtype == torch.float32
        assert x.mean(0).abs().max() < 0.05 and 0.3 < x.std() < 1.2
    x = toy.checkerboard(20_000)
    cell = ((x + 1.6) / 0.8).floor().long()
    assert bool((cell.sum(1) % 2 == 0).all()) and x.abs().max() <= 1.6
    assert len(cell.unique(dim=0)) == 8
    radius = toy.ring(1000).norm(dim=1)
    assert abs(float(radius.mean()) - 1.5) < 0.05
    with pytest.raises(ValueError, match="even"):
        toy.checkerboard(10, cells=3)


def test_mlp_denoiser_does_not_magnify_its_errors_at_late_times():
    """At t = T, x0_hat of an untrained network is small although 1 / sqrt(alpha_bar_T) is huge."""
    schedule = schedules.cosine(100)
    torch.manual_seed(0)
    net = nets.MLPDenoiser(3, schedule.alpha_bar, hidden=16, layers=2)
    x = torch.randn(10, 3, dtype=torch.float32)
    t = torch.full((10,), 100)
    x0_hat = Diffusion(schedule).predict_x0(x.double(), 100, net(x, t).double())
    assert 1 / float(schedule.alpha_bar[100].sqrt()) > 1000
    assert x0_hat.abs().max() < 10
    assert not torch.equal(net(x, t), net(x, t - 60))  # it sees the time
    with_cond = nets.MLPDenoiser(3, schedule.alpha_bar, hidden=16, layers=2, cond_dim=4)
    assert with_cond(x, t, torch.randn(10, 4)).shape == x.shape


# ---- both dtypes ---------------------------------------------------------------------------

NARROW = mixtures.ring(std=0.05)
SHARP = {
    "quadratic": Quadratic([1.0, 0.5], 2.0),
    "linear": Linear([1.0, 0.5]),
    "half-space": Indicator(HalfSpace([1.0, 0.5], 0.8)),
    "ball": Indicator(Ball([1.5, 0.0], 0.5)),
}
both_rings = pytest.mark.parametrize("world", [mixtures.ring(), NARROW], ids=["ring", "narrow"])
by_sharp_reward = pytest.mark.parametrize("reward", SHARP.values(), ids=SHARP.keys())


def noised_points(world, schedule, t, n=40):
    """x_t where samples are, and some far out, float64 but exact in float32."""
    torch.manual_seed(t)
    x0 = torch.cat([world.sample(n), 3 * torch.randn(5, 2)])
    x_t = Diffusion(schedule).q_sample(x0, t, torch.randn_like(x0))
    return x_t.double(), torch.full((len(x_t),), t)


def compare(single, double, tolerance):
    """float32 results against float64 ones, on the scale of the largest."""
    assert single.dtype == torch.float32 and double.dtype == F64
    assert bool(torch.isfinite(single).all()) and bool(torch.isfinite(double).all())
    assert float((single - double).abs().max()) <= tolerance * max(1, float(double.abs().max()))


@both_rings
@by_sharp_reward
@pytest.mark.parametrize("make", [schedules.cosine, schedules.polynomial])
@pytest.mark.parametrize("t", [1, 3, 5, 50, 100])
def test_soft_values_and_denoisers_in_both_dtypes(world, reward, make, t):
    """Values, gradients, denoisers: finite in float32 and equal to float64's."""
    schedule = make(100)
    x, times = noised_points(world, schedule, t)

    def value_and_gradient(x):
        x = x.clone().requires_grad_()
        value = world.soft_value(x, times, schedule, reward, 0.3)
        return value.detach(), *torch.autograd.grad(value.sum(), x)

    for single, double in zip(value_and_gradient(x.float()), value_and_gradient(x), strict=True):
        compare(single, double, 1e-3)
    for law in (world, world.tilt(reward, 0.3)):
        denoiser = law.denoiser(schedule)
        compare(denoiser(x.float(), times), denoiser(x, times), 1e-3)


@both_rings
@by_sharp_reward
def test_densities_and_scores_in_both_dtypes(world, reward):
    torch.manual_seed(0)
    x = torch.cat([world.sample(50), 3 * torch.randn(10, 2)]).double()
    for law in (world, world.tilt(reward, 0.3)):
        compare(law.log_prob(x.float()), law.log_prob(x), 1e-5)
        compare(law.score(x.float()), law.score(x), 1e-5)
        compare(autograd_score(law.log_prob, x.float()), autograd_score(law.log_prob, x), 1e-5)


@by_sharp_reward
def test_rewards_and_their_means_in_both_dtypes(reward):
    torch.manual_seed(0)
    x, variance = (3 * torch.randn(200, 2)).double(), torch.logspace(-4, 0, 200).double()

    def means(x, variance):
        tau = torch.tensor(0.3, dtype=x.dtype)
        x = x.clone().requires_grad_()
        value = reward.log_mean_exp(x, variance, tau)
        return reward(x).detach(), value.detach(), *torch.autograd.grad(value.sum(), x)

    for single, double in zip(means(x.float(), variance.float()), means(x, variance), strict=True):
        compare(single, double, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_component_of_no_weight_leaves_soft_values_alone(dtype):
    world, two = mixtures.GaussianMixture([[0.0], [9.0]], 0.05, [1.0, 0.0]), Linear([1.0])
    schedule, t = schedules.cosine(50), torch.full((3,), 2)
    x = torch.tensor([[0.0], [0.1], [9.0]], dtype=dtype, requires_grad=True)
    value = world.soft_value(x, t, schedule, two, 0.5)
    alone = mixtures.GaussianMixture([[0.0]], 0.05).soft_value(x, t, schedule, two, 0.5)
    torch.testing.assert_close(value, alone)
    assert bool(torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all())


# ---- masses of regions ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_log_mass_of_a_ball_far_out(dtype):
    """Gap 3, radius 0.5, variance 0.01: log mass -317.5, by the plane's integral on a fine grid."""
    ball, mean = Ball([0.0, 0.0], 0.5), torch.tensor([[3.0, 0.0]], dtype=dtype)
    inside, outside = ball.log_mass(mean, torch.tensor([0.01], dtype=dtype))
    assert inside.dtype == dtype and float(outside) == 0
    # strips at x: Gaussian in x times the chord's mass, erf(sqrt(r^2 - x^2) / sqrt(2 variance))
    x = torch.linspace(-0.5, 0.5, 2_000_001, dtype=F64)
    chord = torch.erf((0.25 - x**2).clamp(min=0).sqrt() / math.sqrt(0.02))
    terms = -((x - 3) ** 2) / 0.02 + chord.log() - math.log(math.sqrt(0.02 * math.pi))
    expected = float(torch.logsumexp(terms, 0)) + math.log(0.5e-6)
    assert abs(expected + 317.5385) < 1e-3
    assert abs(float(inside) - expected) < 1e-3


def test_log_masses_of_a_ball_on_a_line_are_normal_probabilities():
    """In one dimension both masses are differences of log_ndtr; gradients by autograd."""
    mean = torch.tensor([[0.0], [0.2], [1.0], [3.0], [-12.0], [40.0]], dtype=F64)
    mean.requires_grad_()
    for radius in (0.01, 0.5, 5.0):
        for std in (0.05, 0.3, 2.0):
            masses = Ball([0.0], radius).log_mass(mean, torch.full((6,), std**2, dtype=F64))
            gap = mean[:, 0].abs()  # further out is the smaller of two terms, so no digits are lost
            low, high = (torch.special.log_ndtr((r - gap) / std) for r in (-radius, radius))
            inside = high + torch.log1p(-(low - high).exp().clamp(max=1 - 1e-15))
            outside = torch.logaddexp(low, torch.special.log_ndtr((gap - radius) / std))
            for got, expected in zip(masses, (inside, outside), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
                (slope,) = torch.autograd.grad(got.sum(), mean, retain_graph=True)
                (by_torch,) = torch.autograd.grad(expected.sum(), mean, retain_graph=True)
                torch.testing.assert_close(slope[1:], by_torch[1:], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_the_tails_join_where_the_two_ways_meet(d):
    """scipy's noncentral chi-square and the quadrature, where both have digits."""
    gap = np.linspace(0.0, 9.0, 19)
    for radius in (1.0, 3.0, 6.0):
        low = rewards._log_mass(np.zeros(19), np.full(19, radius), gap, d)
        high = rewards._log_mass(np.full(19, radius), np.full(19, np.inf), gap, d)
        for ours, mass in (
            (low, stats.ncx2.cdf(radius**2, d, gap**2)),
            (high, stats.ncx2.sf(radius**2, d, gap**2)),
        ):
            kept = mass > 1e-12
            np.testing.assert_allclose(ours[kept], np.log(mass[kept]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("d", [1, 3, 5])
@pytest.mark.parametrize("name", ["quadratic", "linear"])
def test_log_mean_exp_in_d_dimensions_is_a_sum_over_coordinates(name, d):
    """These rewards are sums over coordinates and the Gaussian is isotropic: so are log means."""
    mean = torch.linspace(-1, 1.5, 4 * d, dtype=F64).reshape(4, d)
    variance = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=F64)
    parameter = torch.linspace(0.3, 1, d, dtype=F64)
    make = {"quadratic": lambda p: Quadratic(p, 1.5), "linear": Linear}[name]
    got = make(parameter).log_mean_exp(mean, variance, torch.tensor(0.7, dtype=F64))
    grid, total = torch.linspace(-20, 20, 40_001, dtype=F64), torch.zeros(4, dtype=F64)
    for i in range(d):
        one = make(parameter[i : i + 1])(grid[:, None]) / 0.7
        square = (grid - mean[:, i : i + 1]) ** 2 / (2 * variance[:, None])
        normal = -square - torch.log(2 * math.pi * variance[:, None]) / 2
        total += torch.logsumexp(one + normal, 1) + math.log(1e-3)
    torch.testing.assert_close(got, total, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shift", [[0.2, 0.0], [0.0, 0.2], [0.15, -0.15]])
def test_over_floor_looks_in_every_direction(shift):
    torch.manual_seed(0)
    moved = toy.ring(2000) + torch.tensor(shift)
    assert metrics.over_floor(moved, toy.ring, n=2000, pairs=10) > 3


def test_over_floor_takes_distance_and_floor_along_the_same_directions(monkeypatch):
    seen = []
    monkeypatch.setattr(metrics, "sliced_wasserstein", lambda x, y, d: seen.append(d) or 1.0)
    assert metrics.over_floor(toy.ring(10), toy.ring, n=10, pairs=3, directions=64) == 1
    assert seen == [64] * 4


def test_mean_over_floor_is_near_one_for_exact_samples_and_sees_a_wrong_ring():
    torch.manual_seed(0)
    world, n = mixtures.ring(), 4000
    assert metrics.mean_over_floor(world.sample, world.sample, n) == pytest.approx(1, abs=0.3)
    wider = metrics.mean_over_floor(lambda n: 1.1 * world.sample(n), world.sample, n)
    halved = mixtures.GaussianMixture(world.means, 0.15, torch.tensor([0.5] + 7 * [1.0]))
    assert wider > 2 and metrics.mean_over_floor(halved.sample, world.sample, n) > 1.5
    single = [metrics.mean_over_floor(world.sample, world.sample, n, draws=1) for _ in range(5)]
    assert np.std(single) > 0.05  # why ten are averaged
