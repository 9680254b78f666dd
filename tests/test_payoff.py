import math
import re
import warnings

import numpy as np
import pytest
import torch

from rgdm_lib import payoff, schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.payoff import (
    Draw,
    effective_sample_size,
    log_weights,
    next_beta,
    systematic_resample,
    temperature_for_ess,
)
from rgdm_lib.worlds import mixtures
from rgdm_lib.worlds.rewards import Linear, Quadratic

F64 = torch.float64
NAN, INF = float("nan"), float("inf")


def vector(*values):
    return torch.tensor(values, dtype=F64)


# ---- weights -----------------------------------------------------------------------------


def test_weights_are_softmax_of_reward_over_tau():
    weight = log_weights(vector(0.0, 1.0, 3.0), 2.0).exp()
    raw = np.exp([0.0, 0.5, 1.5])
    torch.testing.assert_close(weight, torch.tensor(raw / raw.sum()), rtol=1e-12, atol=0)


def test_float32_rewards_far_apart_give_float64_weights_without_overflow():
    weight = log_weights(torch.tensor([1e4, 1e4 - 1, -1e4]), 0.5)
    assert weight.dtype == F64
    assert math.isclose(weight[1] - weight[0], -2, rel_tol=1e-12)
    assert weight[2] < -3e4 and abs(float(torch.logsumexp(weight, 0))) < 1e-12


def test_log_base_corrects_another_law():
    """Samples of N(1, 1) weighted by p_ref / q have the payoff's mean of N(0, 1)."""
    torch.manual_seed(0)
    x = 1 + torch.randn(200_000, dtype=F64)
    log_base = -(x**2) / 2 + (x - 1) ** 2 / 2
    weight = log_weights(0.5 * x, 1.0, log_base).exp()  # N(0, 1) tilted by exp(x / 2): N(1/2, 1)
    assert abs(float((weight * x).sum()) - 0.5) < 4 * math.sqrt(math.exp(0.25) / 200_000)


@pytest.mark.parametrize("tau", [0.0, -1.0, NAN, INF])
def test_temperatures_that_are_none(tau):
    with pytest.raises(ValueError, match="tau"):
        log_weights(vector(1.0, 2.0), tau)


def test_rewards_without_value_have_weight_zero_and_are_counted():
    draw = Draw(torch.arange(5.0), vector(1.0, NAN, INF, -INF, 1.0))
    with pytest.warns(UserWarning, match="only 2.0 effective samples of 5"):
        weighted = draw.weigh(0.1)
    torch.testing.assert_close(weighted.log_weight.exp(), vector(0.5, 0, 0, 0, 0.5))
    assert weighted.without_value == 3 and weighted.evaluations == 5
    assert set(weighted.resample(100).tolist()) == {0.0, 4.0}
    # what a worthless sample looks like must not leak into a mean
    assert math.isclose(weighted.expectation(vector(1.0, NAN, NAN, INF, 2.0)), 1.5)


def test_nothing_to_weigh():
    with pytest.raises(ValueError, match="vector of one or more"):
        log_weights(torch.empty(0), 1.0)
    with pytest.raises(ValueError, match="none of 2 rewards is finite.*Draw more"):
        log_weights(vector(NAN, INF), 1.0)
    with pytest.raises(ValueError, match="nothing to resample"):
        systematic_resample(vector(-INF, -INF), 3)


def test_one_sample_and_equal_rewards():
    assert log_weights(vector(-7.0), 1e-3) == 0
    weighted = Draw(torch.zeros(1, 2), vector(3.0)).weigh(1.0)
    assert weighted.ess == 1 and weighted.resample(4).shape == (4, 2)
    assert math.isclose(Draw(torch.zeros(8), torch.zeros(8)).weigh(0.01).ess, 8)


def test_strata_keep_their_shares():
    reward = vector(0.0, 0.0, 5.0, 9.0, 9.0, 8.0)
    strata = torch.tensor([3, 3, 3, 3, 7, 7])
    weight = log_weights(reward, 1.0, strata=strata).exp()
    torch.testing.assert_close(weight[:4].sum(), torch.tensor(4 / 6, dtype=F64))
    inside = torch.softmax(reward[4:], 0) * 2 / 6
    torch.testing.assert_close(weight[4:], inside)
    # a sample without value keeps counting for its stratum's share
    reward[0] = NAN
    weight = log_weights(reward, 1.0, strata=strata).exp()
    torch.testing.assert_close(weight[:4].sum(), torch.tensor(4 / 6, dtype=F64))
    assert weight[0] == 0


def test_a_stratum_without_any_value_is_dropped_and_named():
    draw = Draw(
        torch.arange(6.0),
        vector(1.0, 2.0, NAN, NAN, 3.0, 3.0),
        torch.tensor([1, 1, 2, 2, 9, 9]),
    )
    weighted = draw.weigh(1.0)
    assert weighted.dropped_strata == [2]
    weight = weighted.log_weight.exp()
    torch.testing.assert_close(weight[:2].sum(), torch.tensor(0.5, dtype=F64))
    torch.testing.assert_close(weight[4:].sum(), torch.tensor(0.5, dtype=F64))
    with pytest.raises(ValueError, match=r"strata of shape \(1,\), the samples need \(2,\)"):
        log_weights(vector(1.0, 2.0), 1.0, strata=torch.tensor([1]))


def test_all_weight_on_one_sample_warns_with_the_number_and_the_remedy():
    reward = torch.arange(100.0)
    with pytest.warns(UserWarning, match=r"only 1\.0 effective samples of 100.*raise tau"):
        Draw(reward, reward).weigh(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Draw(reward, reward).weigh(50.0)


# ---- effective sample size, temperatures --------------------------------------------------


def test_effective_sample_size_by_hand():
    assert math.isclose(effective_sample_size(torch.full((7,), -3.0)), 7)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    assert math.isclose(effective_sample_size(weight.log() + 800), 36 / 14)
    assert math.isclose(effective_sample_size(vector(0.0, -INF)), 1)


@pytest.mark.parametrize("share", [0.8, 0.4, 0.1])
def test_temperature_for_ess_on_samples_and_exactly(share):
    world, reward = mixtures.ring(), Linear([1.0, 0.5])
    torch.manual_seed(0)
    r = reward(world.sample(100_000).double())
    tau = temperature_for_ess(r, share)
    assert math.isclose(effective_sample_size(r / tau), share * 100_000, rel_tol=1e-6)
    assert math.isclose(tau, world.temperature(reward, share), rel_tol=0.05)
    # samples without a value are left out of the share
    with_nan = torch.cat([r, torch.full((50_000,), NAN)])
    assert math.isclose(temperature_for_ess(with_nan, share), tau, rel_tol=1e-9)


def test_temperature_for_ess_with_strata():
    torch.manual_seed(0)
    reward, strata = torch.randn(3000), torch.randint(0, 3, (3000,))
    reward = reward + 100 * strata  # shares are kept, so these 100s must not matter
    tau = temperature_for_ess(reward, 0.4, strata)
    assert 0.5 < tau < 2
    ess = effective_sample_size(log_weights(reward, tau, strata=strata))
    assert math.isclose(ess, 1200, rel_tol=1e-6)


@pytest.mark.parametrize("reward", [torch.ones(10), torch.tensor([1.0, 1.0, 0.0, 0.0])])
def test_temperature_for_ess_that_no_temperature_gives(reward):
    with pytest.raises(ValueError, match="ties"):
        temperature_for_ess(reward, 0.4)


def test_next_beta_keeps_the_effective_samples_and_ends():
    torch.manual_seed(0)
    reward = torch.randn(2000, dtype=F64)
    beta = next_beta(reward, 0.0, 5.0, 800)
    assert 0 < beta < 5
    assert math.isclose(effective_sample_size(beta * reward), 800, rel_tol=1e-6)
    assert next_beta(reward, 0.0, 0.01, 800) == 0.01  # the end is within reach
    assert math.isclose(next_beta(reward, 4.0, 5.0, 1999), 4.05)  # out of reach: 1 % further
    assert next_beta(reward, 4.99, 5.0, 1999) == 5.0


# ---- resampling ---------------------------------------------------------------------------


def test_resampling_is_unbiased():
    weight = torch.tensor([0.05, 0.0, 0.5, 0.31, 0.14], dtype=F64)
    torch.manual_seed(0)
    n, repeats = 7, 3000
    counts = torch.stack(
        [torch.bincount(systematic_resample(weight.log(), n), minlength=5) for _ in range(repeats)]
    ).double()
    error = counts.mean(0) - n * weight
    assert bool((error.abs() <= 4 * counts.std(0) / math.sqrt(repeats) + 1e-12).all())
    assert counts[:, 1].max() == 0
    multinomial = n * weight * (1 - weight)
    assert bool((counts.var(0) <= multinomial).all())
    assert bool(((counts - n * weight).abs() < 1).all())
    assert counts.var(0).sum() < 0.5 * multinomial.sum()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_find_samples_of_weight_above_zero(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, dtype: torch.full((n,), u, dtype=dtype))
    log_weight = vector(0.0, 0.3, 0.3, 0.1, 0.0).log()
    assert set(systematic_resample(log_weight, 10).tolist()) == {1, 2, 3}


def test_it_varies_far_less_than_multinomial_resampling():
    torch.manual_seed(0)
    x = torch.rand(50, dtype=F64)  # in no order
    log_weight = 2 * x
    n, repeats = 200, 300

    def variance(draw):
        return float(torch.stack([x[draw()].mean() for _ in range(repeats)]).var())

    multinomial = variance(lambda: torch.multinomial(log_weight.exp(), n, replacement=True))
    assert variance(lambda: systematic_resample(log_weight, n)) < 0.5 * multinomial


def test_resampling_takes_any_container_with_subset():
    class Words:
        def __init__(self, words):
            self.words = words

        def __len__(self):
            return len(self.words)

        def subset(self, which):
            return Words([self.words[i] for i in np.asarray(which)])

    words = Words(["a", "bb", "ccc", "ddd"])
    weighted = payoff.from_data(
        words, lambda w: torch.tensor([float(len(x)) for x in w.words]), 1e-2
    )
    assert weighted.resample(4).words == ["ccc", "ccc", "ddd", "ddd"]


# ---- against the exact payoff -------------------------------------------------------------


@pytest.mark.parametrize(
    "reward", [Quadratic([1.0, 0.5], 2.0), Linear([1.0, -0.5])], ids=["quadratic", "linear"]
)
def test_weighted_data_have_the_moments_of_the_exact_payoff(reward):
    world = mixtures.ring()
    tau = world.temperature(reward, 0.4)
    exact = world.tilt(reward, tau)
    torch.manual_seed(0)
    n = 100_000
    weighted = payoff.from_data(world.sample(n).double(), reward, tau)
    assert abs(weighted.ess / n - 0.4) < 0.02
    mean = weighted.expectation(lambda x: x)
    exact_mean = exact.weights @ exact.means
    second = (exact.weights[:, None] * (exact.means**2 + exact.std[:, None] ** 2)).sum(0)
    band = 4 * (second - exact_mean**2).sqrt() / math.sqrt(weighted.ess)
    assert bool(((mean - exact_mean).abs() < band).all())
    assert abs(float(weighted.expectation(reward)) - world.frontier(reward, tau)[0]) < 0.02
    # log Z of the world, from the same samples, with its Monte Carlo error
    w = (weighted.reward / tau).exp()
    band = 4 * float(w.std() / w.mean()) / math.sqrt(n)
    assert abs(float(w.mean().log() - world.log_Z(reward, tau))) < band


def test_samples_of_the_model_tilt_as_the_world_does():
    world, reward = mixtures.ring(), Linear([1.0, 0.5])
    schedule = schedules.cosine(100)
    tau = world.temperature(reward, 0.4)
    torch.manual_seed(0)
    sampler = payoff.model_sampler(Diffusion(schedule), lambda n: torch.randn(n, 2), reward, 10_001)
    weighted = sampler(world.denoiser(schedule)).weigh(tau)
    assert len(weighted.x0) == weighted.evaluations == 10_001
    assert abs(weighted.ess / 10_001 - 0.4) < 0.03
    assert abs(float(weighted.expectation(reward)) - world.frontier(reward, tau)[0]) < 0.05


# ---- sizes, and samples without a value ----------------------------------------------------


@pytest.mark.parametrize("name", ["log_base", "strata"])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), ()])
def test_nothing_broadcasts_against_the_rewards(name, shape):
    reward, other = vector(0.0, 1.0, 2.0), torch.zeros(shape, dtype=torch.long)
    message = re.escape(f"{name} of shape {shape}, the samples need (3,)")
    with pytest.raises(ValueError, match=message):
        log_weights(reward, 1.0, **{name: other})
    with pytest.raises(ValueError, match=message):
        next_beta(reward, 0.0, 1.0, 2, **{name: other})
    if name == "log_base":
        with pytest.raises(ValueError, match=message):
            Draw(torch.zeros(3, 2), reward).weigh(1.0, other)
    else:
        with pytest.raises(ValueError, match=message):
            temperature_for_ess(reward, 0.5, other)
        with pytest.raises(ValueError, match=message):
            payoff.data_sampler(torch.zeros(3, 2), lambda x: reward, other)


@pytest.mark.parametrize("shape", [(1,), (4, 1), (5,), ()])
def test_a_reward_of_another_size_than_the_samples_is_refused_by_every_sampler(shape):
    message = re.escape(f"reward of shape {shape}, the samples need (4,)")
    diffusion = Diffusion(schedules.cosine(5))
    sampler = payoff.model_sampler(diffusion, lambda n: torch.randn(n, 2), wrong_reward(shape), 4)
    for draw in (
        lambda: Draw(torch.zeros(4, 2), torch.zeros(shape)),
        lambda: payoff.data_sampler(torch.zeros(4, 2), wrong_reward(shape)),
        lambda: payoff.from_data(torch.zeros(4, 2), wrong_reward(shape), 1.0),
        lambda: sampler(lambda x, t, cond: x),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


def wrong_reward(shape):
    return lambda x: torch.zeros(shape)


@pytest.mark.parametrize("nothing", [NAN, -INF, INF])
def test_a_sample_whose_base_is_no_number_leaves_the_others_alone(nothing):
    expected = vector(1 / (1 + math.e), 0, math.e / (1 + math.e))
    for middle in (NAN, 0.5):  # without a reward, and with one
        reward, log_base = vector(0.0, middle, 1.0), vector(0.0, nothing, 0.0)
        torch.testing.assert_close(log_weights(reward, 1.0, log_base).exp(), expected)
        # in strata too: the sample keeps counting for its stratum's share
        weight = log_weights(reward, 1.0, log_base, torch.tensor([0, 0, 1])).exp()
        torch.testing.assert_close(weight, vector(2 / 3, 0, 1 / 3))
        weighted = Draw(torch.arange(3), reward).weigh(1.0, log_base)
        assert weighted.without_value == 1 and weighted.resample(8).tolist().count(1) == 0
    with pytest.raises(ValueError, match="none of 2 rewards is finite"):
        log_weights(vector(1.0, NAN), 1.0, vector(nothing, 0.0))


def test_next_beta_goes_as_far_with_log_base_and_strata_as_they_say():
    """Gaussians: weights exp(beta x) p / q on x ~ q = N(1, 1), p = N(0, 1), tilt to N(beta, 1)."""
    torch.manual_seed(0)
    n = 40_000
    x = 1 + torch.randn(n, dtype=F64)
    # the share of N(beta, 1) on samples of N(1, 1) is exp(-(beta - 1)^2): 0.5 at 1 + sqrt(log 2)
    beta = next_beta(x, 1.0, 5.0, 0.5 * n, log_base=0.5 - x)
    assert abs(beta - 1 - math.sqrt(math.log(2))) < 0.05
    # without it the tilt of N(1, 1) itself reaches 0.5 at sqrt(log 2)
    assert abs(next_beta(x, 0.0, 5.0, 0.5 * n) - math.sqrt(math.log(2))) < 0.05
    # strata take out what differs between them: the same beta although rewards are 100 apart
    strata = torch.arange(n) % 2
    beta = next_beta(x + 100 * strata, 0.0, 5.0, 0.5 * n, strata=strata)
    assert abs(beta - math.sqrt(math.log(2))) < 0.05


def test_model_sampler_takes_as_many_steps_as_it_is_told():
    times = []

    def denoiser(x, t, cond=None):
        times.append(int(t[0]))
        return x

    diffusion = Diffusion(schedules.cosine(40))
    sampler = payoff.model_sampler(diffusion, lambda n: torch.randn(n, 1), lambda x: x[:, 0], 3, 4)
    draw = sampler(denoiser)
    assert times == [40, 30, 20, 10]
    draw.log_prob(denoiser)
    assert times == 2 * [40, 30, 20, 10]
