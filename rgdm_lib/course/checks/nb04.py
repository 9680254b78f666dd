"""Checks of notebook 04: REINFORCE with its error, log-probabilities of paths, DDPO's objective."""

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

_SCORE = [[1.0, -2.0, 0.5], [0.3, 0.7, -1.0], [-1.5, 0.2, 2.0], [0.4, 1.1, -0.6], [2.0, -0.3, 0.9]]
_REWARD = [3.0, -1.0, 0.5, 4.0, 2.5]


@exercise("04.1")
def reinforce_with_leave_one_out(reinforce):
    """Five paths in three parameters, against loops over paths in plain Python."""
    n, k = 5, 3
    rows, plain, own, divided = [], [], [], []
    for i in range(n):
        others = sum(_REWARD[j] for j in range(n) if j != i) / (n - 1)
        rows.append([(_REWARD[i] - others) * _SCORE[i][p] for p in range(k)])
        plain.append([_REWARD[i] * _SCORE[i][p] for p in range(k)])
        own.append([(_REWARD[i] - sum(_REWARD) / n) * _SCORE[i][p] for p in range(k)])
        divided.append([v / torch.tensor(_REWARD, dtype=torch.float64).std() for v in own[-1]])
    estimate = torch.tensor([sum(row[p] for row in rows) / n for p in range(k)])
    spread = [sum((row[p] - float(estimate[p])) ** 2 for row in rows) / (n - 1) for p in range(k)]
    error = torch.tensor([math.sqrt(v / n) for v in spread])

    score = torch.tensor(_SCORE, dtype=torch.float64)
    reward = torch.tensor(_REWARD, dtype=torch.float64)
    got, got_error = unpack(reinforce(score, reward), "gradient", "standard error")
    mistakes = [
        (n * estimate, "the estimate is the mean over paths, not the sum"),
        (-estimate, "the sign: it is the gradient of the mean reward, which is to grow"),
        (torch.tensor(plain).mean(0), "the baseline is missing: subtract it from the reward"),
        (torch.tensor(own).mean(0), "the baseline contains the path's own reward, which shrinks "
         "the estimate by (n - 1) / n: leave it out"),
        (torch.tensor(divided).mean(0), "do not divide by the spread of the rewards: that is no "
         "longer the gradient"),
    ]  # fmt: skip
    because = "the estimate is the mean over paths of (reward - mean of the others) times score"
    require_close(got, estimate, because, mistakes=mistakes)
    mistakes = [
        (error * math.sqrt(n), "that is the spread of one term: divide it by the root of n"),
        (error * math.sqrt(n) / n, "the spread of a mean falls with the root of n, not with n"),
        (error.square(), "that is a variance: take its root"),
        (error * math.sqrt((n - 1) / n), "the standard deviation has n - 1 in its denominator"),
        (torch.tensor(plain).std(0) / math.sqrt(n), "it is the spread of the terms that you "
         "average, baseline included"),
    ]  # fmt: skip
    because = "the standard error is the terms' standard deviation over the root of n"
    require_close(got_error, error, because, mistakes=mistakes)

    got, _ = unpack(reinforce(score, reward + 100), "gradient", "standard error")
    require_close(got, estimate, "100 more on every reward must not change the estimate")


@also_right("04.1")
def _by_the_factor():
    def reinforce(score, reward):
        n = len(reward)
        terms = n / (n - 1) * (reward - reward.mean())[:, None] * score
        return terms.mean(0), (terms.var(0) / n).sqrt()

    return (reinforce,)


@also_right("04.1")
def _in_loops():
    def reinforce(score, reward):
        score, reward = np.asarray(score), np.asarray(reward)
        n = len(reward)
        terms = [(reward[i] - np.delete(reward, i).mean()) * score[i] for i in range(n)]
        return [np.mean(terms, 0), np.std(terms, 0, ddof=1) / np.sqrt(n)]

    return (reinforce,)


def _reinforce(
    weigh=lambda r: len(r) / (len(r) - 1) * (r - r.mean()),
    average=lambda terms: terms.mean(0),
    error=lambda terms: terms.std(0) / len(terms) ** 0.5,
):
    def reinforce(score, reward):
        terms = weigh(reward)[:, None] * score
        return average(terms), error(terms)

    return (reinforce,)


@wrong("04.1", "sum over paths", says="the mean over paths, not the sum")
def _sum_over_paths():
    return _reinforce(average=lambda terms: terms.sum(0))


@wrong("04.1", "descent", says="the sign: it is the gradient of the mean reward")
def _descent():
    return _reinforce(average=lambda terms: -terms.mean(0))


@wrong("04.1", "no baseline", says="the baseline is missing")
def _no_baseline():
    return _reinforce(weigh=lambda reward: reward)


@wrong("04.1", "own reward in the baseline", says="contains the path's own reward")
def _own_reward():
    return _reinforce(weigh=lambda reward: reward - reward.mean())


@wrong("04.1", "divided by the spread", says="do not divide by the spread")
def _divided():
    return _reinforce(weigh=lambda reward: (reward - reward.mean()) / reward.std())


@wrong("04.1", "spread of one term", says="divide it by the root of n")
def _spread():
    return _reinforce(error=lambda terms: terms.std(0))


@wrong("04.1", "spread over n", says="with the root of n, not with n")
def _over_n():
    return _reinforce(error=lambda terms: terms.std(0) / len(terms))


@wrong("04.1", "variance", says="that is a variance")
def _variance():
    return _reinforce(error=lambda terms: terms.var(0) / len(terms))


@wrong("04.1", "n for n - 1", says="has n - 1 in its denominator")
def _biased():
    return _reinforce(error=lambda terms: terms.std(0, correction=0) / len(terms) ** 0.5)


_BETA = [0.0, 0.02, 0.1, 0.3]
_BETA_TILDE = [0.0, 0.0, 0.05, 0.2]


def _paths():
    """x and mean, (T + 1, B, d) = (4, 2, 3); fixed numbers without a pattern."""
    grid = torch.arange(24, dtype=torch.float64).reshape(4, 2, 3)
    x = torch.sin(2.3 * grid + 0.4)
    mean = x.roll(1, 0) + 0.3 * torch.cos(1.7 * grid)  # x.roll: mean[t] is near x[t - 1]
    return x, mean


def _log_normal(x, mean, variance):
    square = (x - mean).square().sum(-1)
    return -square / (2 * variance) - x.shape[-1] / 2 * math.log(2 * math.pi * variance)


@exercise("04.2")
def path_log_prob_is_a_sum_of_gaussians(path_log_prob):
    """Three steps of two paths in three dimensions, each Gaussian by hand."""
    x, mean = _paths()
    variances = [_BETA[1], *_BETA_TILDE[2:]]

    def total(step, variances=variances, shift=0):
        steps = range(1, 4)
        return sum(
            step(x[t - 1 + shift], mean[t], v) for t, v in zip(steps, variances, strict=True)
        )

    expected = total(_log_normal)
    as_std = [v**2 for v in variances]
    no_root = torch.tensor(variances).log().sum() / 2 + 1.5 * math.log(2 * math.pi)
    mistakes = [
        (torch.full((2,), math.inf), "beta_tilde_1 is 0: the step at t = 1 takes beta_1"),
        (torch.full((2,), -math.inf), "beta_tilde_1 is 0: the step at t = 1 takes beta_1"),
        (torch.full((2,), math.nan), "beta_tilde_1 is 0: the step at t = 1 takes beta_1"),
        (expected / 3, "sum over the d coordinates, do not average: log-probabilities add up"),
        (expected.sum().expand(2), "one number for each path: do not sum over the batch"),
        (total(_log_normal, _BETA[1:]), "beta only at t = 1: all other steps have beta_tilde"),
        (total(_log_normal, as_std), "beta is a variance: the standard deviation is its root"),
        (total(lambda a, b, v: -(a - b).square().sum(-1) / (2 * v)),
         "the constants are part of it: -1/2 log(2 pi variance) for each coordinate"),
        (total(lambda a, b, v: -(a - b).square().sum(-1) / (2 * v)) - no_root,
         "the constant counts once for each of the d coordinates"),
        (-expected, "the sign: larger distances are less likely"),
        (expected - _log_normal(x[0], mean[1], _BETA[1]), "the step at t = 1 is missing"),
        (total(_log_normal, shift=1), "mean[t] is where the step from t ends: compare it with "
         "x[t - 1]"),
    ]  # fmt: skip
    arguments = (x, mean, *(torch.tensor(v, dtype=torch.float64) for v in (_BETA, _BETA_TILDE)))
    got = path_log_prob(*arguments)
    because = "it is the sum over t and coordinates of log N(x[t-1]; mean[t], variance)"
    require_close(got, expected, because, mistakes=mistakes)
    changed = mean.clone()
    changed[0] += 1
    got = path_log_prob(x, changed, *arguments[2:])
    require_close(got, expected, "mean[0] must not be used: no step starts at t = 0")


@also_right("04.2")
def _by_hand():
    def path_log_prob(x, mean, beta, beta_tilde):
        total = torch.zeros(x.shape[1], dtype=x.dtype)
        for t in range(1, len(x)):
            variance = beta[1] if t == 1 else beta_tilde[t]
            square = (x[t - 1] - mean[t]).square()
            total += (-square / (2 * variance) - (2 * math.pi * variance).log() / 2).sum(1)
        return total

    return (path_log_prob,)


@also_right("04.2")
def _as_one_large_normal():
    def path_log_prob(x, mean, beta, beta_tilde):
        variance = np.concatenate([np.asarray(beta)[1:2], np.asarray(beta_tilde)[2:]])
        error = np.asarray(x)[:-1] - np.asarray(mean)[1:]
        d = error.shape[-1]
        square = (error**2 / variance[:, None, None]).sum((0, 2))
        return -(square + d * np.log(2 * np.pi * variance).sum()) / 2

    return (path_log_prob,)


def _path_log_prob(variance=None, step=None, total=lambda terms: terms.sum((0, 2)), ends=None):
    def path_log_prob(x, mean, beta, beta_tilde):
        v = (
            torch.cat([beta[1:2], beta_tilde[2:]])
            if variance is None
            else variance(beta, beta_tilde)
        )
        v = v[:, None, None]
        reached = x[:-1] if ends is None else ends(x)
        square = (reached - mean[1:]).square()
        if step is None:
            return total(-square / (2 * v) - (2 * math.pi * v).log() / 2)
        return total(step(square, v))

    return (path_log_prob,)


@wrong("04.2", "beta_tilde at t = 1", says="the step at t = 1 takes beta_1")
def _spike():
    return _path_log_prob(variance=lambda beta, beta_tilde: beta_tilde[1:])


@wrong("04.2", "beta everywhere", says="all other steps have beta_tilde")
def _beta_everywhere():
    return _path_log_prob(variance=lambda beta, beta_tilde: beta[1:])


@wrong("04.2", "mean over coordinates", says="sum over the d coordinates, do not average")
def _mean_over_coordinates():
    return _path_log_prob(total=lambda terms: terms.mean(2).sum(0))


@wrong("04.2", "sum over the batch", says="do not sum over the batch")
def _sum_over_batch():
    return _path_log_prob(total=lambda terms: terms.sum().expand(2))


@wrong("04.2", "variance as deviation", says="beta is a variance")
def _variance_as_deviation():
    return _path_log_prob(
        variance=lambda beta, beta_tilde: torch.cat([beta[1:2], beta_tilde[2:]]).square()
    )


@wrong("04.2", "no constants", says="the constants are part of it")
def _no_constants():
    return _path_log_prob(step=lambda square, v: -square / (2 * v))


@wrong("04.2", "constant once", says="once for each of the d coordinates")
def _constant_once():
    return _path_log_prob(
        step=lambda square, v: -square / (2 * v) - (2 * math.pi * v).log() / (2 * square.shape[2])
    )


@wrong("04.2", "last step left out", says="the step at t = 1 is missing")
def _last_step_left_out():
    return _path_log_prob(total=lambda terms: terms[1:].sum((0, 2)))


@wrong("04.2", "off by one", says="compare it with x[t - 1]")
def _off_by_one():
    return _path_log_prob(ends=lambda x: x[1:])


@wrong("04.2", "sign", says="larger distances are less likely")
def _sign():
    return _path_log_prob(total=lambda terms: -terms.sum((0, 2)))


_RATIO = [[1.5, 0.9, 0.6, 1.05], [1.4, 1.1, 0.5, 0.95], [1.0, 0.75, 1.3, 1.25]]
_ADVANTAGE = [2.0, -1.0, 0.7]
_CLIP = 0.2


def _objective(one, clip=_CLIP):
    """Mean over paths of the sum over steps of one(ratio, ratio cut, advantage), in plain loops."""
    return sum(
        one(ratio, min(max(ratio, 1 - clip), 1 + clip), a)
        for row, a in zip(_RATIO, _ADVANTAGE, strict=True)
        for ratio in row
    ) / len(_RATIO)


@exercise("04.3")
def clipped_objective_takes_the_smaller(clipped_objective):
    """Ratios on both sides of both edges, with advantages of both signs, in plain loops."""
    log_old = torch.tensor(
        [[-1.0, -2.5, 0.3, -0.7], [0.2, -1.1, -3.0, 0.9], [-0.4, 1.2, -2.2, 0.1]]
    )
    log_old = log_old.double()
    log_new = log_old + torch.tensor(_RATIO, dtype=torch.float64).log()
    advantage = torch.tensor(_ADVANTAGE, dtype=torch.float64)
    expected = _objective(lambda ratio, cut, a: min(ratio * a, cut * a))
    whole = [math.prod(row) for row in _RATIO]
    cut = [min(max(w, 1 - _CLIP), 1 + _CLIP) for w in whole]
    paths = zip(whole, cut, _ADVANTAGE, strict=True)
    of_paths = sum(min(w * a, c * a) for w, c, a in paths) / 3
    inverted = sum(
        min(a / r, min(max(1 / r, 1 - _CLIP), 1 + _CLIP) * a)
        for row, a in zip(_RATIO, _ADVANTAGE, strict=True) for r in row
    ) / 3  # fmt: skip
    logarithms = sum(
        min(math.log(r) * a, min(max(math.log(r), 1 - _CLIP), 1 + _CLIP) * a)
        for row, a in zip(_RATIO, _ADVANTAGE, strict=True) for r in row
    ) / 3  # fmt: skip
    mistakes = [
        (_objective(lambda ratio, cut, a: a), "its ratio is always 1: compare the new policy with "
         "the old one, not with itself"),
        (_objective(lambda ratio, cut, a: max(ratio * a, cut * a)), "take the smaller of the two, "
         "not the larger"),
        (_objective(lambda ratio, cut, a: cut * a), "the clip alone is two-sided: take the minimum "
         "with the plain ratio"),
        (_objective(lambda ratio, cut, a: ratio * a), "nothing is clipped"),
        (_objective(lambda ratio, cut, a: min(ratio, cut) * a), "multiply by the advantage first, "
         "then take the minimum: its sign decides which is smaller"),
        (of_paths, "each step has a ratio of its own: do not multiply them to one of the path"),
        (inverted, "the ratio is upside down: new over old"),
        (logarithms, "that is the logarithm of the ratio: take exp"),
        (-expected, "the sign: the objective is to be maximised"),
        (expected / 4, "sum over the steps, and average over paths only"),
        (expected * 3, "average over the paths"),
    ]  # fmt: skip
    because = "each step gives the smaller of ratio times A and clipped ratio times A"
    require_close(clipped_objective(log_new, log_old, advantage, _CLIP), expected, because,
                  mistakes=mistakes)  # fmt: skip
    wide = _objective(lambda ratio, cut, a: min(ratio * a, cut * a), clip=0.35)
    got = clipped_objective(log_new, log_old, advantage, 0.35)
    require_close(got, wide, "with a clip of 0.35 the edges are 0.65 and 1.35")
    same = as_tensor(clipped_objective(log_old, log_old, advantage, _CLIP))
    require(same.numel() == 1, "it must be one number")
    require_close(same, 4 * sum(_ADVANTAGE) / 3, "where new is old all ratios are 1")


@also_right("04.3")
def _by_cases():
    def clipped_objective(log_new, log_old, advantage, clip):
        A = advantage[:, None].expand_as(log_new)
        ratio = torch.exp(log_new) / torch.exp(log_old)
        bounded = torch.where(A > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
        return (bounded * A).sum() / len(A)

    return (clipped_objective,)


@also_right("04.3")
def _in_numpy():
    def clipped_objective(log_new, log_old, advantage, clip):
        ratio = np.exp(np.asarray(log_new) - np.asarray(log_old))
        A = np.asarray(advantage)[:, None]
        return np.minimum(ratio * A, np.clip(ratio, 1 - clip, 1 + clip) * A).sum(1).mean()

    return (clipped_objective,)


def _clipped(
    ratio=lambda new, old: (new - old).exp(),
    combine=lambda ratio, cut, A: torch.minimum(ratio * A, cut * A),
    total=lambda terms: terms.sum(1).mean(),
):
    def clipped_objective(log_new, log_old, advantage, clip):
        rho = ratio(log_new, log_old)
        return total(combine(rho, rho.clamp(1 - clip, 1 + clip), advantage[:, None]))

    return (clipped_objective,)


@wrong("04.3", "ratio always 1", says="its ratio is always 1")
def _always_one():
    return _clipped(ratio=lambda new, old: (new - new.detach()).exp())


@wrong("04.3", "maximum", says="take the smaller of the two")
def _maximum():
    return _clipped(combine=lambda ratio, cut, A: torch.maximum(ratio * A, cut * A))


@wrong("04.3", "clip alone", says="the clip alone is two-sided")
def _clip_alone():
    return _clipped(combine=lambda ratio, cut, A: cut * A)


@wrong("04.3", "no clip", says="nothing is clipped")
def _no_clip():
    return _clipped(combine=lambda ratio, cut, A: ratio * A)


@wrong("04.3", "minimum of the ratios", says="multiply by the advantage first")
def _minimum_of_ratios():
    return _clipped(combine=lambda ratio, cut, A: torch.minimum(ratio, cut) * A)


@wrong("04.3", "ratio of paths", says="each step has a ratio of its own")
def _ratio_of_paths():
    return _clipped(ratio=lambda new, old: (new - old).sum(1, keepdim=True).exp())


@wrong("04.3", "upside down", says="the ratio is upside down")
def _upside_down():
    return _clipped(ratio=lambda new, old: (old - new).exp())


@wrong("04.3", "logarithm", says="that is the logarithm of the ratio")
def _logarithm():
    return _clipped(ratio=lambda new, old: new - old)


@wrong("04.3", "loss", says="to be maximised")
def _loss():
    return _clipped(total=lambda terms: -terms.sum(1).mean())


@wrong("04.3", "mean over steps", says="sum over the steps")
def _mean_over_steps():
    return _clipped(total=lambda terms: terms.mean())
