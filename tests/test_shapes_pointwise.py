"""The rival that denoises each point alone: its networks, its loss, the experiment."""

import math
import shutil

import pytest
import torch

from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.shapes import pointwise
from rgdm_lib.shapes.experiments import Start
from rgdm_lib.shapes.model import load_clouds
from rgdm_lib.shapes.pointwise import PointwiseDenoiser
from rgdm_lib.training import Trainer

SCHEDULE = schedules.cosine(100)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return PointwiseDenoiser(SCHEDULE.alpha_bar, latent=6, couplings=3).double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(3, 20, 3).double(), torch.tensor([1, 50, 100]), torch.randn(3, 6).double()


def test_each_point_is_denoised_alone(net, batch):
    """So the order does not matter, and a point that moves changes its own noise only."""
    x, t, z = batch
    order, eps = torch.randperm(20), net(x, t, z)
    assert eps.shape == x.shape
    assert torch.allclose(net(x[:, order], t, z), eps[:, order], atol=1e-12)
    moved = x.clone()
    moved[1, 4] += 1
    changed = (net(moved, t, z) - eps).abs().amax(2) > 1e-9
    assert changed.nonzero().tolist() == [[1, 4]]


def test_the_latent_and_the_time_matter_and_clouds_do_not_mix(net, batch):
    x, t, z = batch
    eps, other = net(x, t, z), z.clone()
    other[1] += 1
    change = (net(x, t, other) - eps).abs().amax((1, 2))
    assert change[1] > 1e-3 and not change[[0, 2]].any()
    x, z = x[:1].expand(2, -1, -1), z[:1].expand(2, -1)
    v = [  # the network's own answer: eps is made of it and x_t with factors of t
        (net(x, t, z) - (1 - a).sqrt() * x) / a.sqrt()
        for t in (torch.tensor([20, 20]), torch.tensor([60, 60]))
        for a in [SCHEDULE.alpha_bar[t][:, None, None]]
    ]
    assert (v[0] - v[1]).abs().max() > 1e-3


def test_the_encoder_does_not_mind_the_order(net, batch):
    x, _, _ = batch
    assert torch.equal(net.encoder(x), net.encoder(x[:, torch.randperm(20)]))


def test_the_prior_is_a_density_and_its_draws_follow_it(net, batch):
    _, _, z = batch
    jacobian = torch.autograd.functional.jacobian

    def flow(z):
        for coupling in net.prior:
            z = coupling(z[None])[0][0]
        return z

    for one in z:
        w, change = flow(one), jacobian(flow, one).slogdet().logabsdet
        normal = -(w.square() + math.log(2 * math.pi)).sum() / 2
        assert net.log_prior(one[None]).item() == pytest.approx((normal + change).item())
        assert (jacobian(flow, one).abs() > 1e-9).any(1).all()
    net.float()
    torch.manual_seed(2)
    drawn = net.draw_latents(5)
    torch.manual_seed(2)
    noise = torch.randn(5, 6)
    assert torch.allclose(torch.stack([flow(one) for one in drawn]), noise, atol=1e-4)


def test_the_kl_is_its_mean_over_draws(net, batch):
    """A prior without couplings is normal: the KL to it is known."""
    x, _, _ = batch
    net.prior = torch.nn.ModuleList()
    mean, log_std = net.encoder(x[:1]).chunk(2, 1)
    exact = ((2 * log_std).exp() + mean.square() - 1 - 2 * log_std).sum() / 2
    z, kl = net.encode(x[:1].expand(4000, -1, -1))
    kl, exact = kl.detach(), exact.detach()
    assert float(kl.mean()) == pytest.approx(float(exact), abs=4 * float(kl.std()) / 4000**0.5)
    assert torch.allclose(z.std(0), log_std.exp()[0], rtol=0.06)


def test_it_learns_two_shapes_by_the_latent():
    """All points at (1, 1, 1) or at (-1, -1, -1): samples are one or the other, not a mixture."""
    torch.manual_seed(0)
    diffusion, times = Diffusion(SCHEDULE), torch.ones(101) / 100
    times[0] = 0
    net = PointwiseDenoiser(SCHEDULE.alpha_bar, 4, 2)

    def loss(net):
        sign = torch.randint(2, (32, 1, 1)) * 2.0 - 1
        return pointwise.loss(
            diffusion, net, sign.expand(-1, 8, 3) + 0.1 * torch.randn(32, 8, 3), times
        )

    Trainer(net, loss, 150, lr=2e-3, warmup=15).run(progress=False)
    with torch.no_grad():
        mean = net.encode(torch.tensor([1.0, -1.0])[:, None, None].expand(-1, 8, 3))[0]
        z = mean.repeat_interleave(50, 0)
        t, noise = torch.full((100,), 80), torch.randn(100, 8, 3)
        a = net.alpha_bar[80].float()
        x0 = (noise - (1 - a).sqrt() * net(noise, t, z)) / a.sqrt()
    assert (x0.reshape(2, -1).mean(1) - torch.tensor([1.0, -1.0])).abs().max() < 0.4


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with a whole quick run."""
    out = tmp_path_factory.mktemp("pointwise")
    pointwise.compare("quick", out)
    return out


SET = "pointwise_seed0_samples.npz"


def test_the_experiment_writes_samples_and_says_how_close_they_are(ran, capsys):
    clouds, values = load_clouds(ran / SET)
    assert clouds.shape == (6, 64, 3) and values["steps"].unique().numel() == 1
    before = (ran / SET).stat().st_mtime_ns
    pointwise.compare("quick", ran)  # what is there is not made again
    assert (ran / SET).stat().st_mtime_ns == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["base_samples.npz", SET, "validation part"]
    assert all("1-NNA-CD" in line and "n = 6" in line for line in lines)


class _Stop(Exception):
    pass


def test_a_stopped_run_goes_on(ran, tmp_path, monkeypatch):
    """Stopped in its training, or before its samples; the same bits at the end."""
    for name in ("base.safetensors", "base_samples.npz", "pointwise_speed.json"):
        shutil.copy(ran / name, tmp_path)
    run = Trainer.run

    def stops(self, until=None, **options):
        run(self, until=5, **options)
        raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stops)
        with pytest.raises(_Stop):
            pointwise.compare("quick", tmp_path)
    assert not (tmp_path / SET).exists()
    pointwise.compare("quick", tmp_path)
    assert torch.equal(load_clouds(tmp_path / SET)[0], load_clouds(ran / SET)[0])
    (tmp_path / SET).unlink()
    pointwise.compare("quick", tmp_path)
    assert torch.equal(load_clouds(tmp_path / SET)[0], load_clouds(ran / SET)[0])


def test_steps_follow_from_the_speed_and_the_compute(ran, tmp_path):
    shutil.copy(ran / "base.safetensors", tmp_path)
    shutil.copy(ran / "base_samples.npz", tmp_path)
    (tmp_path / "pointwise_speed.json").write_text("[[9.0, 1.0], [3.0, 4.0], [3.0, 4.0]]")
    start = Start.load("quick", tmp_path)
    assert pointwise.speed_to_base(start) == 0.75
    pointwise.compare("quick", tmp_path, compute=0.5)
    assert load_clouds(tmp_path / SET)[1]["steps"].tolist() == [15.0] * 6  # of the base's 40
