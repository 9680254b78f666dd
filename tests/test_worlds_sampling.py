"""Networks of the toy worlds: steps of the sampler, and a network that cannot run away."""

import pytest
import torch

from rgdm_lib.diffusion import Diffusion
from rgdm_lib.schedules import cosine
from rgdm_lib.worlds import sampling
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.nets import FAR, MLPDenoiser


def test_short_steps_at_little_noise_narrow_less_and_the_width_is_what_samples_have():
    even, fine = Diffusion(cosine(50)), Diffusion(sampling.fine_schedule(50))
    assert fine.schedule.alpha_bar[1] > even.schedule.alpha_bar[1] and fine.T == 50
    widths = [sampling.sampled_width(diffusion, 0.15) for diffusion in (even, fine)]
    assert widths[0] < 0.86 < 0.91 < widths[1] < 1
    assert sampling.sampled_width(Diffusion(sampling.fine_schedule(400)), 0.15) > 0.985
    law = GaussianMixture(torch.zeros(1, 2), 0.15)
    for diffusion, width in zip((even, fine), widths, strict=True):
        torch.manual_seed(0)
        x = sampling.sampler_of(diffusion, law.denoiser(diffusion.schedule), 2)(10_000)
        assert float(x.std()) / 0.15 == pytest.approx(width, abs=0.02)


def test_a_network_gone_astray_keeps_its_samples_near():
    diffusion = Diffusion(sampling.fine_schedule(50))
    torch.manual_seed(0)
    net = MLPDenoiser(2, diffusion.schedule.alpha_bar, hidden=16)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(30)
        net.out.weight.normal_().mul_(1000)
    t = torch.full((500,), 20)
    x_t = 100 * torch.randn(500, 2)
    eps, alpha_bar = net(x_t, t).detach(), diffusion.schedule.alpha_bar[20]
    v = (eps - (1 - alpha_bar).sqrt() * x_t) / alpha_bar.sqrt()
    assert float(v.abs().max()) == pytest.approx(FAR, rel=1e-3)
    x = sampling.sampler_of(diffusion, net, 2)(500)
    assert float(x.abs().max()) < 3 * FAR


def test_fine_steps_are_those_of_an_even_schedule_and_none_forgets_all():
    T = 30  # noqa: N806
    alpha_bar, even = sampling.fine_schedule(T).alpha_bar, cosine(T * T).alpha_bar
    ratio = alpha_bar[1:] / alpha_bar[:-1]
    assert float(ratio.min()) == pytest.approx(1e-3)  # the last, else 3e-7
    assert int((ratio < 1.001e-3).sum()) == 1
    torch.testing.assert_close(alpha_bar[:-1], even[torch.arange(T) ** 2])
