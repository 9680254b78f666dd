"""Checks of notebook 00: payoff weights, effective sample size."""

import math

import torch

from rgdm_lib.course.exercises import exercise, require, require_close, wrong

_NAN = math.nan


@exercise("00.1")
def weights_are_the_payoff(payoff_weights):
    """Ratios of weights are typed in: exp of the difference of rewards over tau."""
    reward = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    weight = payoff_weights(reward, 2.0)
    require_close(weight.sum(), 1.0, "weights must add up to 1")
    require_close(weight[1] / weight[0], 1.6487212707, "a reward higher by tau / 2 weighs e^0.5")
    require_close(weight[2] / weight[1], 2.7182818285, "a reward higher by tau weighs e")
    weight = payoff_weights(torch.tensor([1.0, _NAN, 1.0], dtype=torch.float64), 0.5)
    require_close(weight, [0.5, 0.0, 0.5], "a sample without a value has weight 0")
    weight = payoff_weights(torch.tensor([5000.0, 5000.0], dtype=torch.float64), 1.0)
    require_close(weight, [0.5, 0.5], "exp of a large reward must not overflow")


@exercise("00.2")
def ess_counts(effective_sample_size):
    """Known cases: equal weights, one weight, half of them, and 3 to 1."""
    cases = (
        ([0.25] * 4, 4.0, "four equal weights are worth four samples"),
        ([0.0, 1.0, 0.0], 1.0, "a single weight is worth one sample"),
        ([2.0, 0.0, 2.0, 0.0], 2.0, "half of four equal weights are worth two, whatever their sum"),
        ([3.0, 1.0], 1.6, "weights 3 and 1: 16 over 10"),
    )
    for weight, expected, because in cases:
        value = effective_sample_size(torch.tensor(weight, dtype=torch.float64))
        require(torch.as_tensor(value).numel() == 1, "it must return one number")
        require_close(float(value), expected, because)


@wrong("00.1", "", "")
def _multiplies_by_tau():
    return (lambda reward, tau: torch.softmax(reward.nan_to_num(-math.inf) * tau, 0),)


@wrong("00.1", "", "")
def _nan_counts_as_zero():
    return (lambda reward, tau: torch.softmax(reward.nan_to_num(0.0) / tau, 0),)


@wrong("00.1", "", "")
def _overflows():
    def payoff_weights(reward, tau):
        weight = torch.where(torch.isnan(reward), 0.0, torch.exp(reward / tau))
        return weight / weight.sum()

    return (payoff_weights,)


@wrong("00.1", "", "")
def _not_normalised():
    return (lambda reward, tau: torch.exp(reward.nan_to_num(-math.inf) / tau),)


@wrong("00.2", "", "")
def _assumes_they_sum_to_one():
    return (lambda weight: float(1 / (weight**2).sum()),)


@wrong("00.2", "", "")
def _counts_what_is_not_zero():
    return (lambda weight: float((weight > 0).sum()),)


@wrong("00.2", "", "")
def _no_square():
    return (lambda weight: float(weight.sum() / (weight**2).sum()),)
