"""A guided denoiser at another strength; the strength that meets the payoff's mean reward."""

import math

import pytest
import torch

from rgdm_lib.diffusion import Diffusion
from rgdm_lib.payoff import Draw
from rgdm_lib.schedules import cosine
from rgdm_lib.strength import (
    is_binary,
    matching_strength,
    payoff_level,
    reward_level,
    sample_strengthened,
    strength_for,
    strengthen,
)
from rgdm_lib.worlds.mixtures import GaussianMixture

TAU = 0.5


def gaussian(mean):
    """Exact denoiser of N(mean, 1) per number: the noised law is N(sqrt(alpha_bar) mean, 1)."""

    def eps(x_t, t, cond=None):
        alpha_bar = DIFFUSION.schedule.alpha_bar[t].float().reshape(-1, *[1] * (x_t.ndim - 1))
        return (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * mean)

    return eps


def last(denoiser, n):
    """n numbers sampled with the denoiser, all steps."""
    torch.manual_seed(0)
    for state in DIFFUSION.sample(denoiser, torch.randn(n, 1)):
        x = state.x
    return x


DIFFUSION = Diffusion(cosine(100))
x_t, t = torch.randn(5, 2), torch.tensor([1, 20, 50, 80, 100])


def test_strength_0_is_the_reference_1_the_model_and_between_them_a_line():
    base, guided = gaussian(0.0), gaussian(1.0)
    for strength in (0.0, 1.0, 0.25, 3.0):
        got = strengthen(guided, base, strength)(x_t, t)
        torch.testing.assert_close(got, gaussian(strength)(x_t, t))


def test_a_part_of_the_tilt_is_completed_exactly():
    """N(0, 1) under exp(r / tau), r = x, is N(1 / tau, 1). A student with 0.4 of it, at 1 / 0.4."""
    student = gaussian(0.4 / TAU)
    x = last(strengthen(student, gaussian(0.0), 1 / 0.4), 20_000)
    assert float(x.mean()) == pytest.approx(1 / TAU, abs=4 / math.sqrt(20_000))
    assert float(x.std()) == pytest.approx(1, abs=0.02)


def test_a_full_tilt_made_stronger_is_not_the_colder_payoff():
    """N(0, 1) tilted by -x^2 to variance 1/2. At tau / 4 the payoff has variance 1/5."""
    base, guided = (
        GaussianMixture(torch.zeros(1, 1), std).denoiser(DIFFUSION.schedule)
        for std in (1.0, 0.5**0.5)
    )
    variance = [float(last(strengthen(guided, base, s), 20_000).var()) for s in (1.0, 4.0)]
    assert variance[0] == pytest.approx(1 / 2, rel=0.05)
    assert 0.5 / 5 < variance[1] < 0.75 / 5  # narrower than any tempering: 0.129 at T = 100


def test_the_condition_reaches_both():
    seen = []

    def network(x_t, t, cond=None):
        seen.append(cond)
        return x_t

    strengthen(network, network, 2.0)(x_t, t, "wanted")
    assert seen == ["wanted", "wanted"]


def test_matching_strength_is_on_the_line():
    assert matching_strength(((1.0, 0.45), (2.0, 0.47)), 0.48) == pytest.approx(2.5)
    assert matching_strength(((3.0, 0.49), (1.0, 0.45)), 0.48) == pytest.approx(2.5)


@pytest.mark.parametrize("second", [(2.0, 0.45), (2.0, 0.44), (1.0, 0.46), (2.0, math.nan)])
def test_a_reward_that_does_not_rise_sets_no_strength(second):
    with pytest.raises(ValueError, match="it must rise with the strength"):
        matching_strength(((1.0, 0.45), second), 0.48)


def test_a_strength_is_a_number():
    with pytest.raises(ValueError, match="strength = nan: a finite number"):
        strengthen(gaussian(0.0), gaussian(0.0), math.nan)


def test_levels_are_means_or_log_odds():
    assert reward_level(torch.tensor([1.0, 2.0, 6.0, math.nan])) == 3
    some = torch.tensor([1.0, 1, 1, 0, math.nan])
    assert reward_level(some, binary=True) == pytest.approx(0.8473, abs=1e-4)
    assert reward_level(torch.ones(9), binary=True) == pytest.approx(2.9444, abs=1e-4)
    assert reward_level(some) == 0.75 and reward_level(torch.ones(9)) == 1
    binary = Draw(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    for tau in (0.5, 0.02, 0.001):  # odds 1/3 exp(1 / tau), however cold
        level = payoff_level(binary.weigh(tau), binary=True)
        assert level == pytest.approx(1 / tau - math.log(3), rel=1e-6)
    mean = Draw(torch.zeros(2), torch.tensor([1.0, 3.0])).weigh(2 / math.log(3))  # odds of 3
    assert payoff_level(mean) == pytest.approx(2.5)


def test_what_has_no_level_is_refused():
    with pytest.raises(ValueError, match="none of 3 rewards is finite"):
        reward_level(torch.full((3,), math.nan))
    with pytest.raises(ValueError, match="rewards from -0.5 to 1 are not 0 and 1"):
        reward_level(torch.tensor([1.0, -0.5]), binary=True)
    for alike in (torch.ones(3), torch.tensor([0.0, 1.0, 0.5])):
        assert not is_binary(alike)
        with pytest.raises(ValueError, match="both of them"):
            payoff_level(Draw(torch.zeros(3), alike).weigh(1.0), binary=True)
    assert is_binary(torch.tensor([0.0, 1.0, math.nan]))


def bent(asked):
    """Reward 0.6 + 0.2 log2(1 + strength): 0.6 at 0, 0.8 at 1, 0.9 at 1.8284."""

    def measure(k, strength):
        asked.append((k, strength))
        return 0.6 + 0.2 * math.log2(1 + strength)

    return measure


def test_a_line_and_what_it_leaves():
    asked = []
    found = strength_for(0.9, 0.6, 0.8, bent(asked))
    (first, further), (second, between) = asked
    assert (first, second) == (0, 1) and further == pytest.approx(1 + 1.5 * 0.1 / 0.2)
    slope = 0.2 * math.log2((1 + further) / 2) / (further - 1)
    assert between == pytest.approx(1 + 0.1 / slope)
    assert abs(found - 1.8284) < abs(between - 1.8284) / 5 < 0.01
    asked.clear()
    found = strength_for(0.7, 0.6, 0.8, bent(asked))  # past the aim: its own line, one trial
    assert asked == [(1, pytest.approx(0.5))] and abs(found - 0.4142) < 0.01
    asked.clear()
    strength_for(0.801, 0.6, 0.8, bent(asked))
    assert asked[0] == (0, 1.2)


def test_a_model_no_better_than_its_reference_has_no_strength():
    with pytest.raises(ValueError, match="0.6 of its reference: no strength helps"):
        strength_for(0.9, 0.6, 0.6, bent([]))


def test_trials_are_kept_and_the_samples_are_fresh(tmp_path):
    drawn = []

    def sample(file, k, strength):
        drawn.append((file.name, k, strength))
        torch.save((strength, bent([])(k, strength)), file)

    def make():
        return sample_strengthened(
            tmp_path / "set.pt", tmp_path, (0.9, 0.6, 0.8), sample, torch.load
        )

    assert make() == tmp_path / "set.pt"
    wanted = strength_for(0.9, 0.6, 0.8, bent([]))
    assert [d[:2] for d in drawn] == [("set_trial0.pt", 0), ("set_trial1.pt", 1), ("set.pt", 2)]
    assert drawn[2][2] == wanted == torch.load(tmp_path / "set.pt")[0]
    make()  # stopped before the last set: the trials stay
    assert [d[0] for d in drawn[3:]] == ["set.pt"]
    torch.save((1.5, 0.9), tmp_path / "set_trial0.pt")  # of another strength
    make()
    assert [d[0] for d in drawn[4:]] == ["set_trial0.pt", "set.pt"]
