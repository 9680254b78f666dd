"""Checks of notebook 07: payoff weights, the balance heuristic, where naive iteration ends."""

import math

import torch

from rgdm_lib.course.exercises import exercise, require, require_close, wrong


@exercise("07.1")
def weights_are_a_softmax(weigh):
    """Weights typed in: odds of 1, 2, 4 at tau = 2, one sample without a value, large rewards."""
    odds = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    reward = 2 * odds.log()
    answer = weigh(reward, 2.0)
    require(isinstance(answer, tuple) and len(answer) == 2, "it must return (weights, ESS)")
    weight, ess = answer
    require_close(weight, odds / 7, "rewards 0, 2 log 2, 2 log 4 at tau = 2 have odds 1 : 2 : 4")
    require_close(ess, 49 / 21, "weights 1/7, 2/7, 4/7 are worth 49/21 samples")
    weight, ess = weigh(torch.cat([reward, torch.tensor([math.nan]).double()]), 2.0)
    require_close(weight[3], 0.0, "a sample without a value has weight 0")
    require_close(weight[:3], odds / 7, "a sample without a value must not change the others")
    require_close(ess, 49 / 21, "a sample without a value must not change the ESS")
    weight, _ = weigh(torch.tensor([1e4, 1e4 - 1.0], dtype=torch.float64), 1.0)
    because = "with rewards of 10,000 subtract the largest first: exp overflows"
    require_close(weight[0] / weight[1], math.e, because)


@wrong("07.1", "", "")
def tau_inverted():
    """Reward times tau."""

    def weigh(reward, tau):
        log_weight = torch.where(torch.isfinite(reward), reward * tau, -math.inf)
        weight = torch.softmax(log_weight, 0)
        return weight, 1 / weight.square().sum()

    return (weigh,)


@wrong("07.1", "", "")
def overflowing():
    """Plain exp, which is inf / inf for large rewards."""

    def weigh(reward, tau):
        weight = torch.where(torch.isfinite(reward), (reward / tau).exp(), 0.0)
        weight = weight / weight.sum()
        return weight, 1 / weight.square().sum()

    return (weigh,)


@wrong("07.1", "", "")
def no_value_as_zero():
    """A missing reward taken for the reward 0."""

    def weigh(reward, tau):
        weight = torch.softmax(torch.nan_to_num(reward) / tau, 0)
        return weight, 1 / weight.square().sum()

    return (weigh,)


@exercise("07.2")
def log_base_is_reference_over_mixture(log_base):
    """Densities small enough to type in, shifted by -500 as those of paths are."""
    p = torch.tensor([[0.2, 0.4, 0.1], [0.6, 0.1, 0.1]], dtype=torch.float64)
    counts = torch.tensor([1.0, 3.0], dtype=torch.float64)
    got = log_base(p.log(), counts)
    expected = torch.tensor([0.2 / 0.5, 0.4 / 0.175, 0.1 / 0.1], dtype=torch.float64).log()
    because = "the mixture is a quarter of row 0 and three quarters of row 1, the reference row 0"
    require_close(got, expected, because)
    because = "log-probabilities of -500 underflow in exp: stay in logarithms"
    require_close(log_base(p.log() - 500, counts), expected, because)


@wrong("07.2", "", "")
def equal_shares():
    """Counts forgotten."""
    return (lambda log_p, counts: log_p[0] - torch.logsumexp(log_p - math.log(len(log_p)), 0),)


@wrong("07.2", "", "")
def newest_model_only():
    """The plain ratio to the newest model: right for its own samples only."""
    return (lambda log_p, counts: log_p[0] - log_p[-1],)


@exercise("07.3")
def k_rounds_add_their_exponents(effective_temperature):
    """Two tilts of three points, one after the other, against one tilt at the answer."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reward = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    for k in (1, 2, 5):
        tilted = p
        for _ in range(k):
            tilted = tilted * (reward / 0.7).exp()
            tilted = tilted / tilted.sum()
        at_once = p * (reward / effective_temperature(0.7, k)).exp()
        because = f"{k} tilts of three points do not give the payoff of that temperature"
        require_close(at_once / at_once.sum(), tilted, because)


@wrong("07.3", "", "")
def hotter():
    """The wrong way round."""
    return (lambda tau, k: tau * k,)
