import math

import numpy as np
import pytest
import torch
from scipy import stats

from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds import known, metrics, mixtures, nets, rewards, toy
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


def test_what_a_distance_refuses():
    with pytest.raises(ValueError, match="not finite"):
        metrics.sliced_wasserstein(toy.ring(10), toy.ring(10) * float("nan"))
    with pytest.raises(ValueError, match="one shape"):
        metrics.over_floor(lambda n: toy.ring(10), toy.ring, n=11)


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


def test_far_points_are_pulled_back_by_any_mlp_denoiser():
    """Whatever its weights, the noise it predicts far out is the point's own: no sample runs away.

    (On raw coordinates the guided networks of a wider kind sent one sample in 10,000 to infinity.)
    """
    schedule = schedules.cosine(100)
    torch.manual_seed(0)
    net = nets.MLPDenoiser(3, schedule.alpha_bar, hidden=16, layers=2)
    for weights in net.parameters():
        weights.data.normal_()
    diffusion, x = Diffusion(schedule), 1e6 * torch.randn(50, 3).sign()
    for t in (99, 50, 10, 2):
        eps = net(x, torch.full((50,), t))
        mean, _, x0_hat = diffusion.step(x, t, t - 1, eps)
        assert (mean.norm(dim=1) < x.norm(dim=1)).all(), t
        assert (x0_hat.norm(dim=1) < x.norm(dim=1)).all(), t


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


# ---- the measure -----------------------------------------------------------------------------

RING = mixtures.ring()
HALVED = GaussianMixture(RING.means, 0.15, torch.tensor([0.5] + 7 * [1.0]))
SHIFTS = ([0.1, 0.0], [0.0, 0.1], [0.08, -0.08])


@pytest.fixture(scope="module")
def ring_floor():
    torch.manual_seed(0)
    return metrics.sliced_wasserstein_floor(RING.sample)


def test_over_floor_is_one_for_exact_samples(ring_floor):
    """Measured: mean 0.95, standard deviation 0.1 over repetitions of ten draws."""
    torch.manual_seed(1)
    scores = [metrics.over_floor(RING.sample, RING.sample, floor=ring_floor) for _ in range(3)]
    assert max(scores) < 1.4 and min(scores) > 0.6
    single = [
        metrics.over_floor(RING.sample, RING.sample, draws=1, floor=ring_floor) for _ in range(8)
    ]
    assert np.std(single) > 0.15  # why ten are averaged


@pytest.mark.parametrize(
    "model, least",
    [
        (lambda n: 1.33 * RING.sample(n), 15),  # measured 19.3 to 20.3
        (lambda n: 1.03 * RING.sample(n), 1.7),  # 2.1 to 2.3
        (HALVED.sample, 4),  # 4.7 to 5.8
        *((lambda n, v=v: RING.sample(n) + torch.tensor(v), 4) for v in SHIFTS),
    ],
    ids=["scale 1.33", "scale 1.03", "a mode halved", "right", "up", "aslant"],
)
def test_over_floor_rejects_a_wrong_ring(model, least, ring_floor):
    torch.manual_seed(1)
    assert metrics.over_floor(model, RING.sample, floor=ring_floor) > least


def test_over_floor_is_the_mean_of_draws_over_the_mean_of_twenty_exact_pairs(monkeypatch):
    """The same n and directions everywhere, fresh samples in every pair, none used twice."""
    seen = []

    def distance(x, y, directions):
        seen.append((float(x[0]), float(y[0]), directions))
        return 3.0 if x[0] < 0 else 2.0

    monkeypatch.setattr(metrics, "sliced_wasserstein", distance)
    model = iter(range(-100, 0))
    exact = iter(range(1, 100))
    score = metrics.over_floor(
        lambda n: torch.full((n,), float(next(model))),
        lambda n: torch.full((n,), float(next(exact))), n=3, draws=4, directions=64,
    )  # fmt: skip
    assert score == 1.5 and len(seen) == 24
    assert {directions for *_, directions in seen} == {64}
    drawn = [v for x, y, _ in seen for v in (x, y)]
    assert len(set(drawn)) == len(drawn) == 48


# ---- modes, and the reward-KL plane ---------------------------------------------------------

OVERLAPPING = GaussianMixture([[0.0], [0.5], [2.0]], [0.5, 0.4, 0.6], [0.2, 0.5, 0.3])


def test_mode_weights_are_unbiased_where_components_overlap():
    torch.manual_seed(0)
    n = 400_000
    share = metrics.mode_weights(OVERLAPPING.sample(n), OVERLAPPING)
    assert share.dtype == F64 and math.isclose(share.sum(), 1)
    torch.testing.assert_close(share, OVERLAPPING.weights, atol=4.5 / (2 * n**0.5), rtol=0)
    most_likely = OVERLAPPING.responsibilities(OVERLAPPING.sample(n)).argmax(1)
    hard = torch.bincount(most_likely, minlength=3) / n
    assert float((hard - OVERLAPPING.weights).abs().max()) > 0.05  # why not by the most likely


def test_responsibilities_are_shares_of_the_density():
    x = torch.linspace(-2, 4, 30, dtype=F64)[:, None]
    for k in range(3):
        one = GaussianMixture(OVERLAPPING.means[k : k + 1], OVERLAPPING.std[k])
        share = (one.log_prob(x) - OVERLAPPING.log_prob(x)).exp() * OVERLAPPING.weights[k]
        torch.testing.assert_close(OVERLAPPING.responsibilities(x)[:, k], share)


def test_mode_l1_of_known_laws():
    """8-D, ESS 10 %: an exact sample 0.02, the reference's modes 1.24, a weight 20 % off 0.10."""
    torch.manual_seed(0)
    world, n = known.mixture8d_world(), 10_000
    payoff = world.exact(10)
    w = payoff.weights
    floor = float((2 * w * (1 - w) / (math.pi * n)).sqrt().sum())
    exact = [metrics.mode_l1(payoff.sample(n), payoff) for _ in range(10)]
    assert np.mean(exact) == pytest.approx(floor, rel=0.25) and max(exact) < 0.03
    of_reference = float((world.reference.weights - w).abs().sum())
    measured = metrics.mode_l1(world.reference.sample(n), payoff)
    assert measured == pytest.approx(of_reference, abs=0.03) and of_reference > 1.2
    less = w.clone()
    less[0] *= 0.8
    less = GaussianMixture(payoff.means, payoff.std, less)
    apart = float((less.weights - w).abs().sum())
    assert metrics.mode_l1(less.sample(n), payoff) == pytest.approx(apart, abs=0.03)
    assert apart > 0.03 + max(exact)


@pytest.mark.parametrize("make", [known.ring_world, known.mixture8d_world, known.rare_world,
                                  known.indicator_world])  # fmt: skip
def test_kl_of_a_sample_against_the_closed_form(make):
    """n = 10,000, the reference and every payoff: measured deviations are below 0.02."""
    torch.manual_seed(0)
    world = make()
    zero = metrics.kl_to_mixture(world.reference.sample(10_000), world.reference)
    assert abs(zero) < 0.04
    for share in world.temperatures:
        estimate = metrics.kl_to_mixture(world.exact(share).sample(10_000), world.reference)
        assert abs(estimate - world.frontier(share)[1]) < 0.06


@pytest.mark.parametrize("d", [1, 2, 8])
def test_kl_of_a_wider_and_a_moved_gaussian(d):
    """Laws that are no tilt of the mixture: sum of ((v + m^2) / s^2 - 1 + log(s^2 / v)) / 2."""
    torch.manual_seed(0)
    one = GaussianMixture(torch.zeros(1, d), 0.5)
    for std, shift in ((0.6, 0.0), (0.4, 0.0), (0.5, 0.6)):
        x = torch.randn(10_000, d) * std
        x[:, 0] += shift
        ratio = (std / 0.5) ** 2
        exact = d * (ratio - 1 - math.log(ratio)) / 2 + (shift / 0.5) ** 2 / 2
        assert metrics.kl_to_mixture(x, one) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("d, bias, tolerance", [(1, 0, 0.02), (2, -0.02, 0.03), (8, -1.0, 0.1)])
def test_kl_of_a_law_that_the_fit_cannot_have(d, bias, tolerance):
    """Uniform on a cube of side 2 against N(0, 0.5^2 I); in 8 dimensions its documented limit."""
    torch.manual_seed(0)
    x = 2 * torch.rand(10_000, d) - 1
    exact = d * (-math.log(2) + math.log(2 * math.pi * 0.25) / 2 + (1 / 3) / 0.5)
    estimate = metrics.kl_to_mixture(x, GaussianMixture(torch.zeros(1, d), 0.5))
    assert estimate - exact == pytest.approx(bias, abs=tolerance)


def test_what_the_kl_refuses():
    x = RING.sample(180)
    with pytest.raises(ValueError, match="20% of the points coincide"):
        metrics.kl_to_mixture(torch.cat([x[:180], x[:20]]), RING)
    with pytest.raises(ValueError, match="159 points: 160"):
        metrics.kl_to_mixture(x[:159], RING)
    with pytest.raises(ValueError, match="not finite"):
        metrics.kl_to_mixture(x / 0 * 0, RING)


def test_frontier_gap_is_the_largest_share_of_the_reward_range():
    world = known.ring_world()
    exact = [world.frontier(share)[::-1] for share in (80, 40, 10)]
    between = [world.reference.frontier(world.reward, tau)[::-1] for tau in (0.9, 5.0)]
    span = exact[-1][1]  # the reference's mean reward is 0
    assert abs(metrics.frontier_gap([*exact, *between], world)) < 1e-6
    lowered = [
        (kl, reward - drop) for (kl, reward), drop in zip(exact, (0.1, 0.3, 0.2), strict=True)
    ]
    assert metrics.frontier_gap(lowered, world) == pytest.approx(0.3 / span, rel=1e-4)
    above = [(kl, reward + 0.1) for kl, reward in exact]
    assert metrics.frontier_gap(above, world) == pytest.approx(-0.1 / span, rel=1e-3)
    # the reference pays nothing for a reward of 0; an estimate of its KL may fall below 0
    assert abs(metrics.frontier_gap([(0.0, 0.0), (-0.01, 0.0)], world)) < 1e-4
    for points in ([], [(0.1, math.nan)]):
        with pytest.raises(ValueError, match="pairs"):
            metrics.frontier_gap(points, world)


def test_frontier_gap_where_no_law_has_more_reward():
    """Inside the disc alone, KL = -log mass, the reward is 1: more KL buys nothing."""
    world = known.indicator_world()
    span = world.frontier(10)[0] - 0.06642
    for kl in (-math.log(0.06642), 9.0):
        assert metrics.frontier_gap([(kl, 0.9)], world) == pytest.approx(0.1 / span, abs=1e-3)


def test_frontier_gap_of_exact_samples_at_n():
    """The noise of both estimates, on the curve of 80, 40, 10 %: what a claim of 0.05 stands on."""
    torch.manual_seed(0)
    world = known.ring_world()
    samples = [world.exact(share).sample(10_000) for share in (80, 40, 10)]
    points = [
        (metrics.kl_to_mixture(x, world.reference), float(world.reward(x).mean())) for x in samples
    ]
    assert abs(metrics.frontier_gap(points, world)) < 0.03
