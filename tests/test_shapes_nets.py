"""The set denoiser: order, time, start, and that it learns."""

import pytest
import torch

from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.shapes.nets import RESIDUAL_AT_START, NoisyPointNet, PointNet, SetDenoiser
from rgdm_lib.training import Trainer

SCHEDULE = schedules.cosine(100)


def net(**options):
    torch.manual_seed(0)
    made = SetDenoiser(SCHEDULE.alpha_bar, width=32, layers=2, latents=8, heads=2, **options)
    for p in made.parameters():  # what starts at 0 would hide what depends on it
        p.data += 0.05 * torch.randn_like(p)
    return made.double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 20, 3).double(), torch.tensor([1, 50, 100])


def test_the_order_of_points_does_not_matter(batch):
    x, t = batch
    order = torch.randperm(20)
    assert torch.allclose(net()(x[:, order], t), net()(x, t)[:, order], atol=1e-12)


def test_clouds_time_and_condition_matter_and_do_not_mix(batch):
    x, t = batch
    model = net(cond_dim=2)
    cond = torch.eye(3, 2).double()
    eps = model(x, t, cond)
    assert torch.allclose(model(x[1:2], t[1:2], cond[1:2]), eps[1:2], atol=1e-12)
    moved = x.clone()
    moved[1, 0, 2] += 1
    change = (model(moved, t, cond) - eps).abs().amax(2)
    assert (change[1] > 1e-6).all() and not change[[0, 2]].any()  # all points of that cloud
    assert not torch.allclose(model(x, t - t // 50, cond)[1:], eps[1:])
    assert not torch.allclose(model(x, t, 1 - cond), eps)


def test_it_starts_as_a_guess_without_network(batch):
    """Output layer 0: v = 0, so eps = sqrt(1 - alpha_bar) x; residuals at a tenth."""
    x, t = batch
    model = SetDenoiser(SCHEDULE.alpha_bar, width=32, layers=1, latents=4, heads=2).double()
    noise = (1 - SCHEDULE.alpha_bar[t]).sqrt()[:, None, None]
    assert torch.allclose(model(x, t), noise * x)
    assert (model.blocks[0].gate - RESIDUAL_AT_START).abs().max() < 1e-7


def test_it_learns_a_set_that_a_pointwise_law_cannot_give():
    """Clouds on the x axis or on the y axis: given one far point, the others are known."""
    torch.manual_seed(0)
    diffusion = Diffusion(SCHEDULE)

    def clouds(n):
        side = torch.randint(2, (n, 1)).float()
        axis = torch.cat([side, 1 - side, torch.zeros(n, 1)], 1)
        return torch.randn(n, 12, 1) * axis[:, None]

    model = SetDenoiser(SCHEDULE.alpha_bar, width=32, layers=2, latents=8, heads=2)
    trained = Trainer(model, lambda m: diffusion.loss(m, clouds(64)), 250, lr=5e-3, warmup=50).run(
        progress=False
    )
    t = torch.full((256,), 40)
    x0, noise = clouds(256), torch.randn(256, 12, 3)
    with torch.no_grad():
        eps = trained(diffusion.q_sample(x0, t, noise), t)
    error = float((eps - noise).square().mean())
    a = float(SCHEDULE.alpha_bar[40])
    # knowing the axis, one coordinate in three keeps its error a, the others have none
    assert error > a / 3 - 0.02
    assert error < 0.93 * _best_error_of_a_single_point(a)


def _best_error_of_a_single_point(a):
    """The least error of a guess from each point alone: a mixture of the two axes."""
    torch.manual_seed(2)
    n = 100_000
    axis = torch.eye(2)[torch.randint(2, (n,))]
    x0 = torch.cat([torch.randn(n, 1) * axis, torch.zeros(n, 1)], 1)
    noise = torch.randn(n, 3)
    x = a**0.5 * x0 + (1 - a) ** 0.5 * noise
    variance = torch.tensor([[1.0, 1 - a], [1 - a, 1.0]])
    log = -(x[:, None, :2].square() / variance).sum(2) / 2
    share = log.softmax(1)
    along = a**0.5 * x[:, :2]  # E[x0 | x] on the axis that is the cloud's
    x0_hat = torch.cat([share * along, torch.zeros(n, 1)], 1)
    eps = (x - a**0.5 * x0_hat) / (1 - a) ** 0.5
    return float((eps - noise).square().mean())


def test_pointnet_takes_the_points_as_a_set():
    torch.manual_seed(0)
    net, clouds = PointNet(16, 5), torch.randn(2, 30, 3)
    logits = net(clouds)
    assert logits.shape == (2, 5)
    assert torch.allclose(net(clouds[:, torch.randperm(30)]), logits)
    assert torch.allclose(net(torch.cat([clouds, clouds[:, :7]], 1)), logits)  # twice is once
    assert not torch.allclose(net(clouds + 0.1), logits)


def test_a_conditional_copy_does_not_heed_its_condition_yet(batch):
    x, t = batch
    plain = net()
    wide = plain.conditional(2)
    cond = torch.randn(3, 2).double()
    assert torch.allclose(wide(x, t, cond), plain(x, t), atol=1e-12)
    wide.time[0].weight.data[:, -1] += 0.1
    cond = torch.tensor([[0.0, 1.0]]).double().expand(3, -1)
    assert not torch.allclose(wide(x, t, cond), plain(x, t))
    assert torch.equal(plain(x, t), net()(x, t))  # the first one's weights are its own


def test_noisy_pointnet_knows_the_time_and_not_the_order(batch):
    x, t = batch
    torch.manual_seed(0)
    model = NoisyPointNet(100, 4, width=16).double()
    out = model(x, t)
    assert out.shape == (3, 4)
    assert torch.allclose(model(x[:, torch.randperm(20)], t), out, atol=1e-12)
    assert not torch.allclose(model(x, t - t // 50), out)
    assert torch.allclose(model(x[1:2], t[1:2]), out[1:2], atol=1e-12)
