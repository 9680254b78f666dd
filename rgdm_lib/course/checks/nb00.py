"""Checks of notebook 00: payoff weights, effective sample size."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import also_right, as_tensor, exercise, require, require_close, wrong


def _softmax(*values):
    weight = torch.tensor(values, dtype=torch.float64).exp()
    return weight / weight.sum()


@exercise("00.1")
def weights_are_the_payoff(payoff_weights):
    """Odds are typed in: rewards 0, 1, 3 at tau = 2 weigh 1 : e^0.5 : e^1.5."""
    reward = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    odds = torch.tensor([1.0, 1.6487212707, 4.4816890703], dtype=torch.float64)
    mistakes = [
        (odds, "weights must sum to 1: divide by their sum"),
        (odds / odds.max(), "weights must sum to 1: divide by their sum, not by the largest"),
        (_softmax(0, 2, 6), "rewards are divided by tau, not multiplied"),
        (_softmax(0, 1, 3), "tau is not used: the exponent is reward / tau"),
        (_softmax(0, -0.5, -1.5), "a higher reward must weigh more: check the sign"),
    ]
    because = "rewards 0, 1, 3 at tau = 2 have odds 1 : e^0.5 : e^1.5"
    require_close(payoff_weights(reward, 2.0), odds / odds.sum(), because, mistakes=mistakes)

    mistakes = [
        (torch.full((3,), math.nan), "NaN spreads to all samples: a NaN reward needs weight 0"),
        (_softmax(2, 0, 2), "a missing reward is not the reward 0: its weight is 0"),
        (torch.ones(3) / 3, "a sample without a value must have weight 0"),
    ]
    reward = torch.tensor([1.0, math.nan, 1.0], dtype=torch.float64)
    because = "a sample without a value has weight 0, and the others share all of it"
    require_close(payoff_weights(reward, 0.5), [0.5, 0.0, 0.5], because, mistakes=mistakes)

    for rewards, spoils in (
        ([4900.0, 5000.0, 4999.0], "exp of 5,000 overflows: subtract the largest reward first"),
        ([-5100.0, -5000.0, -5001.0], "exp of -5,000 is 0: subtract the largest reward first"),
        ([0.0, 9000.0, 8999.0], "subtract the largest reward, not another one"),
    ):
        reward = torch.tensor([*rewards, math.nan], dtype=torch.float64)
        got = as_tensor(payoff_weights(reward, 2.0))
        where = f"for rewards of {rewards[1]:,.0f} and {rewards[2]:,.0f}"
        finite = got.shape == (4,) and torch.isfinite(got).all()
        require(finite, f"its weights are not finite {where}: {spoils}")
        because = f"{where} at tau = 2 the odds must be e^0.5"
        cut = f"an exponent is cut off; {because}"
        mistakes = [([0.0, 0.5, 0.5, 0.0], cut), ([1 / 3, 1 / 3, 1 / 3, 0.0], cut)]
        require_close(got, [0.0, 0.6224593312, 0.3775406688, 0.0], because, mistakes=mistakes)


@also_right("00.1")
def _subtracts_the_largest():
    def payoff_weights(reward, tau):
        valued = ~reward.isnan()
        weight = torch.zeros_like(reward)
        weight[valued] = ((reward[valued] - reward[valued].max()) / tau).exp()
        return weight / weight.sum()

    return (payoff_weights,)


@also_right("00.1")
def _in_numpy():
    def payoff_weights(reward, tau):
        reward = np.asarray(reward)
        exponent = (reward - np.nanmax(reward)) / tau
        weight = np.nan_to_num(np.exp(exponent))
        return weight / weight.sum()

    return (payoff_weights,)


@wrong("00.1", "multiplies by tau", says="divided by tau, not multiplied")
def _multiplies_by_tau():
    return (lambda reward, tau: torch.softmax(reward.nan_to_num(-math.inf) * tau, 0),)


@wrong("00.1", "forgets tau", says="tau is not used")
def _forgets_tau():
    return (lambda reward, tau: torch.softmax(reward.nan_to_num(-math.inf), 0),)


@wrong("00.1", "rewards as energies", says="check the sign")
def _wrong_sign():
    return (lambda reward, tau: torch.softmax(-reward.nan_to_num(math.inf) / tau, 0),)


@wrong("00.1", "NaN as 0", says="a missing reward is not the reward 0")
def _nan_counts_as_zero():
    return (lambda reward, tau: torch.softmax(reward.nan_to_num(0.0) / tau, 0),)


@wrong("00.1", "NaN ignored", says="NaN spreads to all samples")
def _nan_spreads():
    return (lambda reward, tau: torch.softmax(reward / tau, 0),)


@wrong("00.1", "plain exp", says="exp of 5,000 overflows")
def _overflows():
    return (lambda reward, tau: _divided(torch.exp(reward / tau).nan_to_num(0.0, math.inf)),)


@wrong("00.1", "subtracts the first", says="subtract the largest reward, not another one")
def _subtracts_the_first():
    def payoff_weights(reward, tau):
        weight = ((reward - reward[0]) / tau).exp()
        return _divided(torch.where(reward.isnan(), 0.0, weight))

    return (payoff_weights,)


@wrong("00.1", "clamped exponent", says="an exponent is cut off")
def _clamped():
    return (lambda reward, tau: _divided((reward / tau).clamp(max=500).exp().nan_to_num(0.0)),)


@wrong("00.1", "not normalised", says="divide by their sum")
def _not_normalised():
    return (lambda reward, tau: torch.exp(reward.nan_to_num(-math.inf) / tau),)


def _divided(weight):
    return weight / weight.sum()


@exercise("00.2")
def ess_counts(effective_sample_size):
    """Known cases: equal weights, one weight, half of them, 3 to 1 to 0."""
    cases = (
        ([0.25] * 4, 4.0, "four equal weights are worth four samples",
         [(1.0, "it gives the share ESS / n: return the number of samples, n for equal weights")]),
        ([0.0, 1.0, 0.0], 1.0, "a single weight is worth one sample", []),
        ([2.0, 0.0, 2.0, 0.0], 2.0, "two equal weights are worth two, whatever their sum",
         [(0.125, "weights need not sum to 1: square their sum for the numerator"),
          (0.5, "the numerator is the square of the sum")]),
        ([3.0, 1.0, 0.0], 1.6, "weights 3 and 1 are worth 16/10",
         [(2.0, "it counts the weights that are not 0, however small"),
          (1.7547653506, "that is exp of the entropy, another count: this one has squares"),
          (4 / 3, "that is the sum over the largest weight: the formula has squares")]),
    )  # fmt: skip
    for weight, expected, because, mistakes in cases:
        value = as_tensor(effective_sample_size(torch.tensor(weight, dtype=torch.float64)))
        require(value.numel() == 1, f"its shape is {tuple(value.shape)}: return one number")
        require_close(value.sum(), expected, because, mistakes=mistakes)


@also_right("00.2")
def _from_shares():
    def effective_sample_size(weight):
        share = weight / weight.sum()
        return 1 / (share @ share)

    return (effective_sample_size,)


@also_right("00.2")
def _by_moments():
    def effective_sample_size(weight):
        weight = np.asarray(weight)
        return len(weight) * weight.mean() ** 2 / np.mean(weight**2)

    return (effective_sample_size,)


@wrong("00.2", "assumes a sum of 1", says="weights need not sum to 1")
def _assumes_they_sum_to_one():
    return (lambda weight: float(1 / (weight**2).sum()),)


@wrong("00.2", "counts what is not 0", says="counts the weights that are not 0")
def _counts_what_is_not_zero():
    return (lambda weight: float((weight > 0).sum()),)


@wrong("00.2", "no square above", says="the numerator is the square of the sum")
def _no_square():
    return (lambda weight: float(weight.sum() / (weight**2).sum()),)


@wrong("00.2", "a share of n", says="it gives the share ESS / n")
def _share():
    return (lambda weight: float(weight.sum() ** 2 / (weight**2).sum() / len(weight)),)


@wrong("00.2", "perplexity", says="exp of the entropy")
def _perplexity():
    def effective_sample_size(weight):
        share = weight / weight.sum()
        return torch.special.entr(share).sum().exp()

    return (effective_sample_size,)


@wrong("00.2", "sum over the largest", says="the sum over the largest weight")
def _sum_over_max():
    return (lambda weight: weight.sum() / weight.max(),)
