import math

import pytest
import torch

from rgdm_lib import schedules
from rgdm_lib.schedules import NoiseSchedule

ALL = [schedules.linear(100), schedules.cosine(100), schedules.polynomial(100)]


@pytest.mark.parametrize("s", ALL, ids=["linear", "cosine", "polynomial"])
def test_arrays_are_indexed_by_time_and_end_in_noise(s):
    assert s.T == 100
    for values in (s.alpha_bar, s.alpha, s.beta, s.posterior_variance):
        assert values.shape == (101,) and values.dtype == torch.float64
    assert s.alpha_bar[0] == 1 and s.alpha_bar[-1] <= 1e-3
    assert s.beta[0] == 0 and s.posterior_variance[0] == 0 and s.posterior_variance[1] == 0
    torch.testing.assert_close(s.alpha_bar, torch.cumprod(1 - s.beta, 0), rtol=1e-12, atol=0)
    # beta_tilde_t as the variance of the product of the two Gaussians it comes from
    t = 37
    precision = s.alpha[t] / s.beta[t] + 1 / (1 - s.alpha_bar[t - 1])
    assert math.isclose(s.posterior_variance[t], 1 / precision, rel_tol=1e-12)


def test_linear_is_the_published_schedule_at_1000_steps():
    s = schedules.linear(1000)
    assert math.isclose(s.beta[1], 1e-4, rel_tol=1e-9)
    assert math.isclose(s.beta[1000], 0.02, rel_tol=1e-9)
    assert math.isclose(s.alpha_bar[1000], 4.0358e-05, rel_tol=1e-3)


def test_cosine_by_hand():
    s = schedules.cosine(50)
    t = 20
    f = [math.cos((u / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, t)]
    assert math.isclose(s.alpha_bar[t], f[1] / f[0], rel_tol=1e-12)
    assert s.beta.max() <= 0.999 + 1e-12


def test_polynomial_by_hand():
    s = schedules.polynomial(1000)
    assert math.isclose(s.alpha_bar[400], (1 - 2e-5) * (1 - 0.16) ** 2 + 1e-5, rel_tol=1e-12)
    assert math.isclose(1 - s.alpha_bar[1], 1e-5 + 2e-6, rel_tol=0.01)


@pytest.mark.parametrize(
    "alpha_bar, message",
    [
        ([0.9, 0.5, 1e-4], "starts at exactly 1"),
        ([1.0, 0.5, 0.5, 1e-4], "decrease strictly"),
        ([1.0, 0.5, 0.36], "still remember"),
        ([1.0], "starts at exactly 1"),
    ],
)
def test_bad_schedules_are_refused(alpha_bar, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(torch.tensor(alpha_bar, dtype=torch.float64))


def test_unscaled_and_too_short_linear_betas_are_refused():
    beta = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
    with pytest.raises(ValueError, match="0.36"):
        NoiseSchedule(torch.cat([torch.ones(1), torch.cumprod(1 - beta, 0)]))
    with pytest.raises(ValueError, match="take T > 20"):
        schedules.linear(20)


def test_draw_times_is_even_random_and_refuses_what_is_no_probability():
    p = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    torch.manual_seed(0)
    draws = torch.stack([schedules.draw_times(p, 7) for _ in range(4000)])
    counts = torch.stack([(draws == t).sum(1) for t in range(5)], 1).double()
    assert (counts - 7 * p).abs().max() < 1  # in every single draw
    error = (counts.mean(0) - 7 * p).abs()
    assert (error <= 4 * counts.std(0) / 4000**0.5).all()
    assert all(len(draws[:, k].unique()) == 3 for k in range(7))  # in random order
    for wrong in (p.flip(0), 2 * p, p - torch.tensor([0.0, -1.5, 1.5, 0.0, 0.0])):
        with pytest.raises(ValueError, match="entry 0 is .* must be 0.*must be 1"):
            schedules.draw_times(wrong, 7)
