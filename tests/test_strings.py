"""Strings with Hamming distance: closed forms against enumeration, samplers against both."""

import itertools
import math

import pytest
import torch
from scipy import stats

from rgdm_lib import payoff
from rgdm_lib.worlds.strings import Strings

TAUS = [0.3, 1.0, 4.0]
SMALL = [([1, 0, 2, 2, 1], 3), ([0, 1, 1, 0, 1, 0, 0], 2), ([4, 2], 6), ([1], 2)]


def everything(world):
    """All V^m strings and the exact unnormalised weights of the payoff at tau = 1."""
    letters = itertools.product(range(world.alphabet), repeat=len(world.target))
    x = torch.tensor(list(letters))
    return x, -(x != world.target).sum(1).double()


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("target, alphabet", SMALL)
def test_closed_forms_against_enumeration(target, alphabet, tau):
    world = Strings(target, alphabet)
    x, reward = everything(world)
    torch.testing.assert_close(world.reward(x).double(), reward)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    count = torch.bincount((-reward).long(), minlength=len(target) + 1)
    torch.testing.assert_close(world.log_sizes().exp(), count.double(), **exact)
    log_p = torch.log_softmax(reward / tau, 0)
    torch.testing.assert_close(world.log_prob(x, tau), log_p, **exact)
    strata = torch.bincount((-reward).long(), log_p.exp())
    torch.testing.assert_close(world.log_strata(tau).exp(), strata, **exact)
    log_z = float(torch.logsumexp(reward / tau, 0)) - math.log(len(x))
    assert math.isclose(world.log_Z(tau), log_z, abs_tol=1e-12)
    by_place = (1 + (alphabet - 1) * math.exp(-1 / tau)) / alphabet
    assert math.isclose(log_z, len(target) * math.log(by_place), abs_tol=1e-12)
    mean, kl = world.frontier(tau)
    assert math.isclose(mean, float(log_p.exp() @ reward), abs_tol=1e-12)
    assert math.isclose(kl, float(log_p.exp() @ log_p) + math.log(len(x)), abs_tol=1e-12)
    w = (reward / tau).exp()
    share = float(w.sum() ** 2 / w.square().sum()) / len(w)
    assert math.isclose(world.ess_share(tau), share, rel_tol=1e-12)


def test_long_strings_neither_overflow_nor_lose_mass():
    world = Strings([3] * 500, 1000)
    for tau in (0.05, 0.2, 10.0):
        assert math.isclose(float(world.log_strata(tau).exp().sum()), 1)
        q = 999 * math.exp(-1 / tau) / (1 + 999 * math.exp(-1 / tau))  # binomial, place by place
        assert math.isclose(world.frontier(tau)[0], -500 * q, rel_tol=1e-9)


@pytest.mark.parametrize("target, alphabet", SMALL[:3])
def test_exact_sampler_by_chi_square_over_all_strings(target, alphabet):
    """Frequencies of whole strings, not of strata alone; a wrong temperature is seen."""
    world, tau, n = Strings(target, alphabet), 1.0, 200_000
    torch.manual_seed(0)
    x, _ = everything(world)
    powers = alphabet ** torch.arange(len(target)).flip(0)
    counts = torch.bincount(world.sample(n, tau) @ powers, minlength=len(x)).double()
    expected = n * world.log_prob(x, tau).exp()
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    warmer = n * world.log_prob(x, 1.05 * tau).exp()
    assert stats.chisquare(counts, warmer).pvalue < 1e-6


def test_self_normalised_weights_on_uniform_strings_agree_while_they_last():
    """Same strata within a band of 4.5 sigma of the weighted mean; the share predicts their ESS."""
    world, n = Strings([1, 0, 2, 2, 1], 4), 100_000
    torch.manual_seed(0)
    draw = world.draw(n)
    for share in (0.8, 0.4, 0.1):
        tau = world.temperature(share)
        assert math.isclose(world.ess_share(tau), share, rel_tol=1e-9)
        weighted = draw.weigh(tau)
        assert abs(weighted.ess / n / share - 1) < 0.06
        strata = torch.nn.functional.one_hot((-draw.reward).long(), 6).double()
        exact = world.log_strata(tau).exp()
        w = weighted.log_weight.exp()[:, None]
        band = 4.5 * (w * (strata - exact)).square().sum(0).sqrt()
        assert bool(((weighted.expectation(strata) - exact).abs() < band).all())
    world = Strings([1, 0, 2, 2, 1, 0, 3, 3], 4)  # 65,536 strings: the target is drawn once or so
    draw = world.draw(n)
    with pytest.warns(UserWarning, match="effective samples"):
        weighted = draw.weigh(0.05)
    assert weighted.ess < payoff.FEW
    assert abs(float(world.reward(world.sample(1000, 0.05)).mean())) < 1e-3


def test_what_strings_refuse():
    for target, match in (([], "one or"), ([[0, 1]], "one or"), ([0.5], "float"), ([0, 3], "to 3")):
        with pytest.raises(ValueError, match=match):
            Strings(target, 3)
    with pytest.raises(ValueError, match="alphabet = 1"):
        Strings([0], 1)
    world = Strings([0, 1, 2], 3)
    with pytest.raises(ValueError, match=r"needs \(n, 3\)"):
        world.reward(torch.zeros(4, 2))
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tau"):
            world.sample(5, tau)
    with pytest.raises(ValueError, match="between 0.037 and 1"):
        world.temperature(0.01)
