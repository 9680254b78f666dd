"""The known worlds: every quantity against a grid or Monte Carlo, with its band."""

import math

import pytest
import torch

from rgdm_lib import schedules
from rgdm_lib.worlds import known
from rgdm_lib.worlds.rewards import Linear

F64 = torch.float64
WORLDS = {
    "ring": known.ring_world(),
    "mixture8d": known.mixture8d_world(),
    "rare": known.rare_world(),
    "indicator": known.indicator_world(),
}
CASES = [(name, share) for name, world in WORLDS.items() for share in world.temperatures]
by_case = pytest.mark.parametrize("name, share", CASES)
PLANE = [(name, share) for name, share in CASES if name != "mixture8d"]
N = 200_000


def tilted_grid(world, tau, n=1201):
    """Points of the plane, log of p_ref exp(r / tau) times their area."""
    side = torch.linspace(-2.6, 2.6, n, dtype=F64)
    x = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    area = 2 * math.log(float(side[1] - side[0]))
    return x, world.reference.log_prob(x) + world.reward(x) / tau + area


@pytest.mark.parametrize("name", WORLDS)
def test_data_have_a_size_of_about_one_and_temperatures_fall_with_the_share(name):
    world = WORLDS[name]
    torch.manual_seed(0)
    assert 0.9 < float(world.reference.sample(20_000).std()) < 1.2
    assert list(world.temperatures) == ([0.38] if name == "rare" else [80, 40, 10])
    taus = list(world.temperatures.values())
    assert taus == sorted(taus, reverse=True)
    with pytest.raises(ValueError, match="not 41"):
        world.exact(41)


@pytest.mark.parametrize("name, share", PLANE)
def test_planar_worlds_against_the_grid(name, share):
    """log Z, mean reward, KL, density and effective share by quadrature."""
    world = WORLDS[name]
    tau = world.tau(share)
    x, log_mass = tilted_grid(world, tau)
    tolerance = 3e-3 if name == "indicator" else 1e-9  # a grid is coarse at the disc's edge
    log_z = torch.logsumexp(log_mass, 0)
    assert abs(float(log_z) - world.log_z(share)) < tolerance
    p = (log_mass - log_z).exp()
    mean, kl = world.frontier(share)
    assert abs(float(p @ world.reward(x)) - mean) < tolerance
    assert abs(float(p @ (world.reward(x) / tau - log_z)) - kl) < 3 * tolerance
    some = slice(0, None, 997)
    density = world.exact(share).log_prob(x[some])
    assert float((density - world.reference.log_prob(x[some])
                  - world.reward(x[some]) / tau + log_z).abs().max()) < 2 * tolerance  # fmt: skip
    square = torch.logsumexp(log_mass + world.reward(x) / tau, 0)
    coarse = 0.3 if name == "indicator" else 0.01
    assert abs(100 * float((2 * log_z - square).exp()) - share) < coarse


@by_case
def test_worlds_against_monte_carlo(name, share):
    """log Z and effective share from weighted samples; mean reward from exact ones; 4.5 sigma."""
    world = WORLDS[name]
    tau, root = world.tau(share), math.sqrt(N)
    torch.manual_seed(0)
    w = (world.reward(world.reference.sample(N).double()) / tau - world.log_z(share)).exp()
    assert abs(float(w.mean()) - 1) < 4.5 * float(w.std()) / root
    square = w.square()  # its mean is 1 / share, Z being exact
    exact = 1 / world.reference.ess_share(world.reward, tau)
    assert abs(float(square.mean()) - exact) < 4.5 * float(square.std()) / root
    r = world.reward(world.exact(share).sample(N).double())
    assert abs(float(r.mean()) - world.frontier(share)[0]) < 4.5 * float(r.std()) / root


@by_case
def test_score_denoiser_and_soft_value_agree(name, share):
    """Each from its definition: gradients of log p* and of V by autograd, V by Monte Carlo."""
    world, schedule = WORLDS[name], schedules.cosine(50)
    payoff, tau = world.exact(share), world.tau(share)
    torch.manual_seed(0)
    x = payoff.sample(30).double().requires_grad_()
    (gradient,) = torch.autograd.grad(payoff.log_prob(x).sum(), x)
    torch.testing.assert_close(payoff.score(x), gradient)
    t = torch.full((30,), 30)
    ab = schedule.alpha_bar[30]
    x_t = (ab.sqrt() * x + (1 - ab).sqrt() * torch.randn_like(x)).detach().requires_grad_()
    value = world.soft_value(x_t, t, schedule, share)
    (gradient,) = torch.autograd.grad(value.sum(), x_t)
    expected = world.reference.denoiser(schedule)(x_t, t) - (1 - ab).sqrt() * gradient / tau
    torch.testing.assert_close(payoff.denoiser(schedule)(x_t, t), expected.detach())
    # E_ref[w(x_0) q(x_t | x_0)] / E_ref[q(x_t | x_0)], written with exact samples of p*
    x0, star = (law.sample(N).double() for law in (world.reference, payoff))
    for i in range(3):
        kernel = [
            (-(x_t[i] - ab.sqrt() * s).square().sum(1) / (2 * (1 - ab))).exp().detach()
            for s in (star, x0)
        ]
        error = 4.5 * sum(float(k.var() / k.mean() ** 2) / N for k in kernel) ** 0.5
        assert error < 0.3
        estimate = world.log_z(share) + (kernel[0].mean() / kernel[1].mean()).log()
        assert abs(float(estimate) - value[i].item() / tau) < error


# ---- what each is for ----------------------------------------------------------------------


def test_ring_is_the_one_of_the_notebook():
    world = WORLDS["ring"]
    assert isinstance(world.reward, Linear) and len(world.reference.means) == 8
    torch.testing.assert_close(world.reference.means.norm(dim=1), torch.full((8,), 1.5, dtype=F64))
    angle = math.atan2(*world.reward.slope.flip(0).tolist())
    assert math.isclose(angle, math.pi / 8) and math.isclose(world.reward.slope.norm(), 1)


def test_mixture_in_8d_singles_out_a_component_and_shifts_it():
    world = WORLDS["mixture8d"]
    reference = world.reference
    assert reference.means.shape == (16, 8)
    torch.testing.assert_close(reference.weights, torch.full((16,), 1 / 16, dtype=F64))
    assert float(torch.pdist(reference.means).min()) > 8.9 * float(reference.std[0])
    shares = [float(world.exact(s).weights[0]) for s in (80, 40, 10)]
    assert shares == pytest.approx([0.169, 0.333, 0.680], abs=1e-3)
    moved = world.exact(10).means - reference.means
    assert 0.5 < float(moved[0].norm() / reference.std[0]) < 0.6


def test_rare_mode_holds_a_thousandth_of_the_reference_and_half_of_the_payoff():
    world = WORLDS["rare"]
    assert math.isclose(world.reference.weights[0], 1e-3)
    assert math.isclose(world.exact(0.38).weights[0], 0.5, abs_tol=1e-9)
    torch.manual_seed(0)
    for law, mass in ((world.reference, 1e-3), (world.exact(0.38), 0.5)):
        near = (law.sample(N) - world.reference.means[0].float()).norm(dim=1) < 0.57
        assert abs(float(near.float().mean()) - mass) < 4.5 * math.sqrt(mass / N)


def test_indicator_world_has_the_payoff_mass_it_says():
    world = WORLDS["indicator"]
    torch.manual_seed(0)
    inside = world.reward(world.reference.sample(N)).mean()
    assert abs(float(inside) - 0.0664) < 4.5 * math.sqrt(0.07 / N)
    mass = {share: world.exact(share).mass for share in (80, 40, 10)}
    assert list(mass.values()) == pytest.approx([0.191, 0.371, 0.813], abs=1e-3)
    assert 0.3 < mass[40] < mass[10] < 0.9
