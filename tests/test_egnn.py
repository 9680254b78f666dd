"""The molecule network: its symmetries, its split first layer, its parameterisation."""

import pytest
import torch

from rgdm_lib.diffusion import Diffusion
from rgdm_lib.molecules.data import center, zero_com_noise_like
from rgdm_lib.molecules.egnn import EGNN, RadialBasis
from rgdm_lib.schedules import polynomial

SCHEDULE = polynomial(1000)


@pytest.fixture
def network() -> EGNN:
    torch.manual_seed(0)
    model = EGNN(SCHEDULE.alpha_bar, hidden=24, edge=16, layers=3, basis=8).double()
    for block in model.blocks:  # the initial push is tiny: make it matter
        torch.nn.init.normal_(block.coordinate[2].weight)
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = center(torch.randn(5, 7, 9, dtype=torch.float64))
    return x, torch.tensor([1, 40, 300, 700, 1000])


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("determinant", [1, -1], ids=["rotation", "reflection"])
def test_rotation_and_reflection(network, batch, determinant):
    x, t = batch
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    q = q * determinant * torch.linalg.det(q).sign()
    assert torch.linalg.det(q) == pytest.approx(determinant)
    turned = torch.cat([x[..., :3] @ q, x[..., 3:]], -1)
    eps = network(x, t)
    expected = torch.cat([eps[..., :3] @ q, eps[..., 3:]], -1)
    assert relative_error(network(turned, t), expected) < 1e-9
    assert relative_error(eps[..., :3] @ q, eps[..., :3]) > 0.1  # the test sees a rotation


def test_permutation(network, batch):
    x, t = batch
    order = torch.randperm(x.shape[1])
    assert relative_error(network(x[:, order], t), network(x, t)[:, order]) < 1e-9


def test_translation(network, batch):
    """Moving the molecule changes nothing; eps stays in the zero-centre-of-mass subspace."""
    x, t = batch
    moved = x.clone()
    moved[..., :3] += torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    assert relative_error(network(moved, t), network(x, t)) < 1e-9
    assert network(moved, t)[..., :3].mean(1).abs().max() < 1e-12


def test_split_first_layer_is_the_joint_one(network, batch):
    """from_i h_i + from_j h_j + from_distance d equals one linear map on [h_i, h_j, d]."""
    block = network.blocks[0]
    h = torch.randn(2, 6, 24, dtype=torch.float64)
    d = torch.randn(2, 6, 6, 18, dtype=torch.float64)
    joint = torch.cat(
        [h[:, :, None].expand(-1, -1, 6, -1), h[:, None].expand(-1, 6, -1, -1), d], -1
    )
    weight = torch.cat([m.weight for m in (block.from_i, block.from_j, block.from_distance)], 1)
    split = block.from_i(h)[:, :, None] + block.from_j(h)[:, None] + block.from_distance(d)
    torch.testing.assert_close(split, joint @ weight.T + block.from_i.bias, rtol=0, atol=1e-12)


def test_a_pair_remembers(network, batch):
    """What a layer says to a pair reaches the next layer by the pair state alone."""
    x, t = batch
    block = network.blocks[1]
    with torch.no_grad():
        before = network(x, t)
        block.from_pair.weight.zero_()
        assert relative_error(network(x, t), before) > 1e-3


def test_a_copy_with_conditions_heeds_them_only_when_trained(network, batch):
    x, t = batch
    copy = network.conditional(2)
    cond = torch.randn(len(x), 2, dtype=torch.float64)
    torch.testing.assert_close(copy(x, t, cond), network(x, t), rtol=0, atol=1e-12)
    copy.embed.weight.data[:, -1].normal_()
    assert relative_error(copy(x, t, cond), network(x, t)) > 1e-3
    assert EGNN(SCHEDULE.alpha_bar, **copy.settings).state_dict().keys() == copy.state_dict().keys()


def test_eps_follows_from_v(network, batch):
    """An error in the network's output reaches x0_hat with factor sqrt(1 - alpha_bar), not 1/."""
    x, t = batch
    diffusion = Diffusion(SCHEDULE, zero_com_noise_like)
    for block in network.blocks:
        torch.nn.init.zeros_(block.coordinate[2].weight)
    torch.nn.init.zeros_(network.out[3].weight)
    torch.nn.init.zeros_(network.out[3].bias)
    x0_hat = diffusion.predict_x0(x, t, network(x, t))  # v = 0 means x0_hat = sqrt(alpha_bar) x_t
    expected = SCHEDULE.alpha_bar[t].sqrt()[:, None, None] * x
    torch.testing.assert_close(x0_hat, expected, rtol=0, atol=1e-9)


def test_time_and_neighbours_matter(network, batch):
    x, t = batch
    assert relative_error(network(x, t.flip(0)), network(x, t)) > 1e-3
    shaken = x.clone()
    shaken[:, -1, 3:] += 1  # another element at the last atom
    assert relative_error(network(shaken, t)[:, 0], network(x, t)[:, 0]) > 1e-3


def test_basis_has_no_denormal_numbers():
    values = RadialBasis(20)(torch.linspace(0, 50, 400).unsqueeze(-1))
    assert values[values > 0].min() > 1e-10
