"""Checks of notebook 07: payoff weights, the balance heuristic, where naive iteration ends."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import (
    also_right,
    as_tensor,
    exercise,
    require,
    require_close,
    unpack,
    wrong,
)

_NAN = math.nan


@exercise("07.1")
def weights_are_a_softmax(weigh):
    """Weights typed in: odds of 1, 2, 4 at tau = 2; samples without a value; large rewards."""
    odds = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    reward = 2 * odds.log()
    weight, ess = unpack(weigh(reward, 2.0), "weights", "ESS")
    mistakes = [
        (odds, "the weights must sum to 1: divide by their sum"),
        (odds**4 / (odds**4).sum(), "rewards are divided by tau, not multiplied"),
        (odds**2 / (odds**2).sum(), "tau is not used: the exponent is reward / tau"),
        (odds.flip(0) / 7, "a higher reward must weigh more: check the sign"),
    ]
    because = "rewards 0, 2 log 2, 2 log 4 at tau = 2 have odds 1 : 2 : 4"
    require_close(weight, odds / 7, because, mistakes=mistakes)
    mistakes = [
        (49 / 63, "that is the share ESS / n: return the number of samples"),
        (1 / 21, "that is 1 over the sum of squares of weights that do not sum to 1"),
        (21 / 49, "that is the sum of squares: the ESS is 1 over it"),
        (1.0, "that is the sum of the weights: it is their squares that count"),
        (math.exp(0.9556998911), "that is exp of the entropy: the ESS has squares"),
    ]
    require_close(ess, 49 / 21, "weights 1/7, 2/7, 4/7 are worth 49/21 samples", mistakes=mistakes)

    reward = torch.tensor([_NAN, *reward.tolist(), _NAN], dtype=torch.float64)
    weight, ess = unpack(weigh(reward, 2.0), "weights", "ESS")
    zero = torch.tensor([1.0, 1.0, 2.0, 4.0, 1.0])
    mistakes = [
        (torch.full((5,), _NAN), "NaN spreads to all samples: a NaN reward needs weight 0"),
        (zero / 9, "a missing reward is not the reward 0: its weight is 0"),
    ]
    expected = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.0]) / 7
    because = "a sample without a value has weight 0 and does not change the others"
    require_close(weight, expected, because, mistakes=mistakes)
    require_close(ess, 49 / 21, "a sample without a value does not change the ESS")

    for rewards, tau, hint in (
        ([1e4 - 100, 1e4, 1e4 - 1], 1.0, "exp of 10,000 overflows: subtract the largest first"),
        ([-1e4 - 100, -1e4, -1e4 - 1], 1.0, "exp of -10,000 is 0: subtract the largest first"),
        ([0.0, 1e4, 1e4 - 1], 1.0, "subtract the largest reward, not another one"),
        ([0.0, 1e4, 1e4 - 2], 2.0, "the largest reward that you subtract is divided by tau too"),
        ([0.0, 1e4, 1e4 - 0.5], 0.5, "the largest reward that you subtract is divided by tau too"),
    ):
        reward = torch.tensor([*rewards, _NAN], dtype=torch.float64)
        weight, ess = unpack(weigh(reward, tau), "weights", "ESS")
        where = f"for rewards of {rewards[1]:,g} and {rewards[2]:,g} at tau = {tau:g}"
        weight = as_tensor(weight, "the weights")
        finite = weight.shape == (4,) and torch.isfinite(weight).all()
        require(finite, f"its weights are not finite {where}: {hint}")
        expected = torch.tensor([0.0, math.e, 1.0, 0.0]) / (1 + math.e)
        because = f"{where} the odds must be e"
        cut = f"an exponent is cut off; {because}"
        equal = torch.tensor([0.0, 1.0, 1.0, 0.0])
        mistakes = [(equal / 2, cut), (torch.tensor([1.0, 1.0, 1.0, 0.0]) / 3, cut)]
        require_close(weight, expected, because, mistakes=mistakes)
        ess = as_tensor(ess, "the ESS")
        expected = (1 + math.e) ** 2 / (1 + math.e**2)
        require_close(ess, expected, f"the ESS {where}: take it of the normalised weights")


@also_right("07.1")
def _subtracts_the_largest():
    def weigh(reward, tau):
        valued = torch.isfinite(reward)
        weight = torch.zeros_like(reward)
        weight[valued] = torch.exp((reward[valued] - reward[valued].max()) / tau)
        weight /= weight.sum()
        return weight, 1 / (weight @ weight)

    return (weigh,)


@also_right("07.1")
def _in_logarithms():
    def weigh(reward, tau):
        log_weight = np.nan_to_num(np.asarray(reward) / tau, nan=-np.inf)
        log_weight = log_weight - np.logaddexp.reduce(log_weight)
        return [np.exp(log_weight), float(np.exp(-np.logaddexp.reduce(2 * log_weight)))]

    return (weigh,)


def _weigh(exponent=lambda r, tau: r / tau, no_value=-math.inf, ess=lambda w: 1 / w.square().sum()):
    def weigh(reward, tau):
        missing = reward.isnan()
        log_weight = torch.where(missing, no_value, exponent(reward, tau))
        weight = torch.softmax(log_weight, 0)
        return weight, ess(weight)

    return (weigh,)


def _plain(exponent):
    def weigh(reward, tau):
        weight = torch.where(reward.isnan(), 0.0, exponent(reward, tau).exp())
        weight = weight / weight.sum()
        return weight, 1 / weight.square().sum()

    return (weigh,)


@wrong("07.1", "tau inverted", says="divided by tau, not multiplied")
def _tau_inverted():
    return _weigh(lambda reward, tau: reward * tau)


@wrong("07.1", "tau forgotten", says="tau is not used")
def _tau_forgotten():
    return _weigh(lambda reward, tau: reward)


@wrong("07.1", "plain exp", says="exp of 10,000 overflows")
def _overflowing():
    return _plain(lambda reward, tau: reward / tau)


@wrong("07.1", "subtracts the first", says="subtract the largest reward, not another one")
def _subtracts_the_first():
    return _plain(lambda reward, tau: (reward - reward[reward.isfinite()][0]) / tau)


@wrong("07.1", "largest not over tau", says="that you subtract is divided by tau too")
def _largest_not_over_tau():
    return _plain(lambda reward, tau: reward / tau - reward[reward.isfinite()].max())


@wrong("07.1", "clamped exponent", says="an exponent is cut off")
def _clamped():
    return _plain(lambda reward, tau: (reward / tau).clamp(max=500))


@wrong("07.1", "no value as 0", says="a missing reward is not the reward 0")
def _no_value_as_zero():
    return _weigh(no_value=0.0)


@wrong("07.1", "no value ignored", says="NaN spreads to all samples")
def _no_value_ignored():
    return _weigh(no_value=_NAN)


@wrong("07.1", "the share", says="that is the share ESS / n")
def _share():
    return _weigh(ess=lambda weight: 1 / weight.square().sum() / len(weight))


@wrong("07.1", "ESS upside down", says="that is the sum of squares")
def _upside_down():
    return _weigh(ess=lambda weight: weight.square().sum())


@wrong("07.1", "ESS of plain weights", says="take it of the normalised weights")
def _ess_of_plain_weights():
    def weigh(reward, tau):
        log_weight = torch.nan_to_num(reward / tau, nan=-math.inf)
        plain = log_weight.exp()
        return torch.softmax(log_weight, 0), plain.sum() ** 2 / plain.square().sum()

    return (weigh,)


@exercise("07.2")
def log_base_is_reference_over_mixture(log_base):
    """Densities small enough to type in; then shifted as those of paths are, each on its own."""
    p = torch.tensor([[0.2, 0.4, 0.1], [0.6, 0.1, 0.1]], dtype=torch.float64)
    counts = torch.tensor([1.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([0.2 / 0.5, 0.4 / 0.175, 0.1 / 0.1], dtype=torch.float64).log()
    share = counts / 4
    mistakes = [
        (expected.exp(), "that is the fraction itself: return its logarithm"),
        (-expected, "the fraction is upside down: the reference is above"),
        ((p[0] / p.mean(0)).log(), "the mixture weighs its models by counts / n, not equally"),
        ((p[0] / p.sum(0)).log(), "the mixture weighs its models by counts / n, not equally"),
        (expected - math.log(4), "counts must be divided by n, the sum of the counts"),
        ((p[0] / p[1]).log(), "below stands the mixture of all models, not the newest alone"),
        (p[0].log() - (share[:, None] * p.log()).sum(0),
         "the mixture averages densities; its logarithm is not the average of logarithms"),
        (p[0].log() - torch.logsumexp(share[:, None] * p.log(), 0),
         "the share multiplies the density: add its logarithm to log_p"),
        (p.log() - (share[:, None] * p).sum(0).log(), "only row 0, the reference, stands above"),
    ]  # fmt: skip
    because = "the mixture is a quarter of row 0 and three quarters of row 1, the reference row 0"
    require_close(log_base(p.log(), counts), expected, because, mistakes=mistakes)
    for shift, hint in (
        (torch.tensor([-2000.0, -2000.0, -2000.0]), "log-probabilities of -2000 underflow in exp"),
        (torch.tensor([1000.0, 1000.0, 1000.0]), "log-densities of +1000 overflow in exp"),
        (torch.tensor([-2000.0, -3.0, -900.0]), "each path has a largest entry of its own"),
    ):
        got = as_tensor(log_base(p.log() + shift, counts))
        finite = got.shape == (3,) and torch.isfinite(got).all()
        require(finite, f"it is not finite: {hint}; stay in logarithms (logsumexp over models)")
        require_close(got, expected, f"a factor common to all models cancels; {hint}")
    more = torch.cat([p, torch.tensor([[0.3, 0.3, 0.2]], dtype=torch.float64)]).log()
    got = log_base(more, torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64))
    expected = torch.tensor([0.2 / 0.37, 0.4 / 0.26, 0.1 / 0.15], dtype=torch.float64).log()
    require_close(got, expected, "with three models of 2, 3 and 5 samples")


@also_right("07.2")
def _as_a_softmax():
    def log_base(log_p, counts):
        posterior = torch.log_softmax(log_p + counts.log()[:, None], 0)[0]
        return posterior - (counts[0] / counts.sum()).log()

    return (log_base,)


@also_right("07.2")
def _in_numpy():
    def log_base(log_p, counts):
        log_p, counts = np.asarray(log_p), np.asarray(counts)
        ratio = log_p - log_p[0]
        largest = ratio.max(0)
        mixture = (counts[:, None] / counts.sum() * np.exp(ratio - largest)).sum(0)
        return -largest - np.log(mixture)

    return (log_base,)


@wrong("07.2", "equal shares", says="weighs its models by counts / n, not equally")
def _equal_shares():
    return (lambda log_p, counts: log_p[0] - torch.logsumexp(log_p - math.log(len(log_p)), 0),)


@wrong("07.2", "newest model only", says="not the newest alone")
def _newest_model_only():
    return (lambda log_p, counts: log_p[0] - log_p[-1],)


@wrong("07.2", "upside down", says="the fraction is upside down")
def _upside_down_fraction():
    return (lambda log_p, counts: torch.logsumexp(_shares(log_p, counts), 0) - log_p[0],)


@wrong("07.2", "counts not divided", says="counts must be divided by n")
def _counts_not_divided():
    return (lambda log_p, counts: log_p[0] - torch.logsumexp(log_p + counts.log()[:, None], 0),)


@wrong("07.2", "average of logarithms", says="the mixture averages densities")
def _average_of_logarithms():
    return (lambda log_p, counts: log_p[0] - (counts[:, None] * log_p).sum(0) / counts.sum(),)


@wrong("07.2", "no logarithm", says="that is the fraction itself")
def _no_logarithm():
    return (lambda log_p, counts: (log_p[0] - torch.logsumexp(_shares(log_p, counts), 0)).exp(),)


@wrong("07.2", "plain exp", says="log-probabilities of -2000 underflow")
def _underflowing():
    return (lambda log_p, counts: log_p[0] - _shares(log_p, counts).exp().sum(0).log(),)


@wrong("07.2", "one largest for all paths", says="each path has a largest entry of its own")
def _one_largest():
    def log_base(log_p, counts):
        largest = log_p.max()
        return log_p[0] - largest - (_shares(log_p, counts) - largest).exp().sum(0).log()

    return (log_base,)


def _shares(log_p, counts):
    return log_p + (counts / counts.sum()).log()[:, None]


@exercise("07.3")
def k_rounds_add_their_exponents(effective_temperature):
    """Tilt three points k times, and read the temperature off the log odds of two of them."""
    for tau in (0.7, 2.0):
        for k in (1, 2, 3, 5):
            p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
            reward = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
            tilted = p
            for _ in range(k):
                tilted = tilted * (reward / tau).exp()
                tilted = tilted / tilted.sum()
            gain = (tilted / p).log()
            expected = (reward[2] - reward[0]) / (gain[2] - gain[0])
            because = f"{k} tilts of three points at tau = {tau} are one tilt at that temperature"
            mistakes = [
                (tau * k, "each round makes it colder, not hotter"),
                (tau, "the rounds add up: each starts from the last round's model"),
                (tau / 2 ** (k - 1), "a round adds an exponent, it does not double the last one"),
                (tau / math.factorial(k), "every round adds the same exponent r / tau"),
                (tau**k, "exponents add up, temperatures do not multiply"),
                (tau / (k + 1), "after one round the temperature is tau itself"),
                (k / tau, "that is the inverse temperature"),
                (tau / k**2, "exponents add up once"),
                (tau / k**0.5, "exponents add up, not their squares"),
            ]
            require_close(effective_temperature(tau, k), expected, because, mistakes=mistakes)


@also_right("07.3")
def _adds_exponents():
    return (lambda tau, k: 1 / sum(1 / tau for _ in range(k)),)


@also_right("07.3")
def _as_a_tensor():
    return (lambda tau, k: torch.full((k,), 1 / tau, dtype=torch.float64).sum().reciprocal(),)


@wrong("07.3", "hotter", says="colder, not hotter")
def _hotter():
    return (lambda tau, k: tau * k,)


@wrong("07.3", "rounds do not add up", says="the rounds add up")
def _no_effect():
    return (lambda tau, k: tau,)


@wrong("07.3", "halved each round", says="it does not double the last one")
def _halved():
    return (lambda tau, k: tau / 2 ** (k - 1),)


@wrong("07.3", "factorial", says="every round adds the same exponent")
def _factorial():
    return (lambda tau, k: tau / math.factorial(k),)


@wrong("07.3", "power", says="temperatures do not multiply")
def _power():
    return (lambda tau, k: tau**k,)


@wrong("07.3", "off by one", says="after one round the temperature is tau itself")
def _off_by_one():
    return (lambda tau, k: tau / (k + 1),)


@wrong("07.3", "inverse", says="that is the inverse temperature")
def _inverse():
    return (lambda tau, k: k / tau,)
