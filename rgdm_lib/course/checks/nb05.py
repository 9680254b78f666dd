"""Checks of notebook 05: the height of the optimum, a soft backup, the gradient of imitation."""

import math

import numpy as np
import torch

from rgdm_lib.course.exercises import also_right, as_tensor, exercise, require, require_close, wrong

F64 = torch.float64

# ---- 05.1 ------------------------------------------------------------------------------------

_P = torch.tensor([0.5, 0.25, 0.25], dtype=F64)
_ODDS = torch.tensor([1.0, 2.0, 4.0], dtype=F64)  # Z = 0.5 + 0.5 + 1 = 2


@exercise("05.1")
def height_of_the_optimum(best_objective):
    """Rewards 0, 2 log 2, 2 log 4 at tau = 2 under (1/2, 1/4, 1/4): Z = 2, so 2 log 2."""
    reward, tau = 2 * _ODDS.log(), 2.0
    payoff = _P * _ODDS / 2
    mistakes = [
        (
            float(_P @ reward),
            "that is the mean reward of the reference: averages of exp come first",
        ),
        (
            float(payoff @ reward),
            "that is the payoff's mean reward: the price of moving is missing",
        ),
        (float(reward.max()), "that is the best reward: reaching it costs KL"),
        (math.log(2), "that is log Z: J is in the reward's unit, tau log Z"),
        (2.0, "that is Z itself: take tau log Z"),
        (2 * math.log(7), "p_ref is not used: Z is a mean under the reference, not a sum"),
        (2 * math.log(7 / 3), "p_ref is not used: Z weighs the outcomes by p_ref"),
        (float((_P * _ODDS**4).sum().log() / 2), "tau is the temperature: r / tau, not r tau"),
        (-2 * math.log(2), "the sign: the optimum is plus tau log Z"),
    ]
    because = "rewards with e^(r/tau) = 1, 2, 4 under (1/2, 1/4, 1/4) have Z = 2"
    out = as_tensor(best_objective(_P.clone(), reward.clone(), tau), "the objective")
    require(out.numel() == 1, f"it returns {out.numel()} numbers, not one")
    require_close(out.reshape(()), 2 * math.log(2), because, mistakes=mistakes)
    out = as_tensor(best_objective(_P.clone(), reward + 5000, tau), "the objective")
    require(
        bool(torch.isfinite(out).all()),
        "rewards of 5,000 overflow: use logsumexp, which subtracts the largest exponent",
    )
    because = "5,000 more on every outcome is 5,000 more at the optimum"
    require_close(out.reshape(()), 5000 + 2 * math.log(2), because)


@also_right("05.1")
def _shifted():
    def best_objective(p_ref, reward, tau):
        top = reward.max()
        return float(top + tau * (p_ref * ((reward - top) / tau).exp()).sum().log())

    return (best_objective,)


@also_right("05.1")
def _in_numpy():
    def best_objective(p_ref, reward, tau):
        p, r = np.asarray(p_ref), np.asarray(reward) / tau
        return tau * (r.max() + np.log(p @ np.exp(r - r.max())))

    return (best_objective,)


@wrong("05.1", "mean reward", says="mean reward of the reference")
def _mean():
    return (lambda p, r, tau: p @ r,)


@wrong("05.1", "no price", says="price of moving is missing")
def _no_price():
    return (lambda p, r, tau: torch.softmax(p.log() + r / tau, 0) @ r,)


@wrong("05.1", "best reward", says="reaching it costs KL")
def _best():
    return (lambda p, r, tau: r.max(),)


@wrong("05.1", "without tau", says="in the reward's unit")
def _no_tau():
    return (lambda p, r, tau: torch.logsumexp(p.log() + r / tau, 0),)


@wrong("05.1", "sum for mean", says="not a sum")
def _sum():
    return (lambda p, r, tau: tau * torch.logsumexp(r / tau, 0),)


@wrong("05.1", "tau inverted", says="r / tau, not r tau")
def _inverted():
    return (lambda p, r, tau: torch.logsumexp(p.log() + r * tau, 0) / tau,)


@wrong("05.1", "overflow", says="use logsumexp")
def _overflow():
    return (lambda p, r, tau: tau * (p * (r / tau).exp()).sum().log(),)


# ---- 05.2 ------------------------------------------------------------------------------------

_KERNEL = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.0, 0.75]], dtype=F64)
# with e^(v / tau) = 1, 2, 4: the rows' means are 2, 2.1, 3.25
_MEANS = torch.tensor([2.0, 2.1, 3.25], dtype=F64)


@exercise("05.2")
def soft_backup(backup):
    """A kernel with a zero, values 0, 2 log 2, 2 log 4 at tau = 2; then large values."""
    value, tau = 2 * _ODDS.log(), 2.0
    log_kernel = _KERNEL.log()
    column = (_KERNEL.T @ _ODDS).log() * 2
    mistakes = [
        (
            _KERNEL @ value,
            "that is the mean of the values: average exp(V / tau), then take the log",
        ),
        (value.max().expand(3), "that is the largest value: only tau to 0 gives it"),
        (column, "the sum runs over z, the columns: you summed over the rows"),
        (_MEANS.log(), "tau is missing in front of the log: V is in the reward's unit"),
        (_MEANS, "the log is missing: V = tau log of the mean"),
        ((_KERNEL @ _ODDS**4).log() / 2, "values are divided by tau in the exponent"),
        (2 * math.log(7) + torch.zeros(3), "the kernel is not used"),
        (-2 * _MEANS.log(), "the sign: V = plus tau log of the mean"),
    ]
    because = "with e^(V/tau) = 1, 2, 4 the rows' means are 2, 2.1 and 3.25"
    out = backup(log_kernel.clone(), value.clone(), tau)
    require_close(out, 2 * _MEANS.log(), because, mistakes=mistakes)
    out = as_tensor(backup(log_kernel.clone(), value + 5000, tau), "the value")
    finite = out.shape == (3,) and bool(torch.isfinite(out).all())
    require(finite, "values of 5,000 overflow: use logsumexp on log_kernel + value / tau")
    because = "5,000 more on every next state is 5,000 more now"
    require_close(out, 5000 + 2 * _MEANS.log(), because)


@also_right("05.2")
def _by_rows():
    def backup(log_kernel, value, tau):
        rows = [torch.logsumexp(row + value / tau, 0) for row in log_kernel]
        return tau * torch.stack(rows)

    return (backup,)


@also_right("05.2")
def _max_first():
    def backup(log_kernel, value, tau):
        k, v = np.exp(np.asarray(log_kernel)), np.asarray(value)
        return v.max() + tau * np.log(k @ np.exp((v - v.max()) / tau))

    return (backup,)


def _backup(function):
    return (lambda log_kernel, value, tau: function(log_kernel, value, tau),)


@wrong("05.2", "mean of values", says="that is the mean of the values")
def _mean_value():
    return _backup(lambda k, v, tau: k.exp() @ v)


@wrong("05.2", "best value", says="only tau to 0")
def _best_value():
    return _backup(lambda k, v, tau: v.max().expand(len(v)))


@wrong("05.2", "rows for columns", says="you summed over the rows")
def _rows():
    return _backup(lambda k, v, tau: tau * (k.exp().T @ (v / tau).exp()).log())


@wrong("05.2", "tau missing", says="tau is missing in front")
def _tau_missing():
    return _backup(lambda k, v, tau: torch.logsumexp(k + v / tau, 1))


@wrong("05.2", "tau inverted", says="divided by tau in the exponent")
def _tau_inverted():
    return _backup(lambda k, v, tau: torch.logsumexp(k + v * tau, 1) / tau)


@wrong("05.2", "no kernel", says="the kernel is not used")
def _no_kernel():
    return _backup(lambda k, v, tau: tau * torch.logsumexp(v / tau, 0).expand(len(v)))


@wrong("05.2", "overflow", says="use logsumexp on")
def _backup_overflows():
    return _backup(lambda k, v, tau: tau * (k.exp() @ (v / tau).exp()).log())


# ---- 05.3 ------------------------------------------------------------------------------------

_LOGITS = torch.tensor([1.0, 2.0, 5.0], dtype=F64).log() + 3
_SOFTMAX = torch.tensor([0.125, 0.25, 0.625], dtype=F64)  # of these logits


@exercise("05.3")
def gradient_of_imitation(imitation_gradient):
    """P* is (1/4, 1/4, 1/2) here; p is the softmax of the logits."""
    reward, tau = 2 * _ODDS.log(), 2.0
    payoff = torch.tensor([0.25, 0.25, 0.5], dtype=F64)
    p = torch.softmax(_LOGITS, 0)
    log_ratio = p.log() - payoff.log()
    reverse = p * (log_ratio - p @ log_ratio)
    mistakes = [
        (payoff - p, "the sign: the KL falls where p is below p*, so p - p*"),
        (reverse, "that is the gradient of KL(p || p*): play, not imitation"),
        (-tau * reverse, "that is the gradient of J: play, not imitation"),
        (p - _P, "the reward is not used"),
        (p - _P * _ODDS, "the weights must be divided by Z = 2"),
        (p - _ODDS / 7, "p_ref is not used in p*"),
        (p - _P * _ODDS**4 / (_P * _ODDS**4).sum(), "p* has r / tau in the exponent, not r tau"),
        (-payoff, "the softmax's own gradient is missing: d log p_i / d logit_j = [i = j] - p_j"),
    ]
    because = "with p* = (1/4, 1/4, 1/2) it must be p - p*"
    out = imitation_gradient(_LOGITS.clone(), _P.clone(), reward.clone(), tau)
    require_close(out, _SOFTMAX - payoff, because, mistakes=mistakes)
    out = imitation_gradient(payoff.log(), _P.clone(), reward + 5000, tau)
    out = as_tensor(out, "the gradient")
    finite = out.shape == (3,) and bool(torch.isfinite(out).all())
    require(finite, "rewards of 5,000 overflow: softmax of p_ref.log() + reward / tau does not")
    require_close(out, torch.zeros(3), "at p = p* the gradient is 0, whatever is added to r")


@also_right("05.3")
def _by_autograd():
    def imitation_gradient(logits, p_ref, reward, tau):
        payoff = torch.softmax(p_ref.log() + reward / tau, 0)
        x = logits.clone().requires_grad_()
        cross_entropy = -(payoff * torch.log_softmax(x, 0)).sum()
        return torch.autograd.grad(cross_entropy, x)[0]

    return (imitation_gradient,)


@also_right("05.3")
def _numpy_gradient():
    def imitation_gradient(logits, p_ref, reward, tau):
        def softmax(x):
            e = np.exp(x - x.max())
            return e / e.sum()

        logits, p, r = (np.asarray(v) for v in (logits, p_ref, reward))
        return softmax(logits) - softmax(np.log(p) + r / tau)

    return (imitation_gradient,)


def _gradient(payoff, sign=1.0):
    def imitation_gradient(logits, p_ref, reward, tau):
        return sign * (torch.softmax(logits, 0) - payoff(p_ref, reward, tau))

    return (imitation_gradient,)


@wrong("05.3", "sign", says="so p - p*")
def _descent():
    return _gradient(lambda p, r, tau: torch.softmax(p.log() + r / tau, 0), sign=-1.0)


@wrong("05.3", "the other KL", says="gradient of KL(p || p*)")
def _other_kl():
    def imitation_gradient(logits, p_ref, reward, tau):
        p, payoff = torch.softmax(logits, 0), torch.softmax(p_ref.log() + reward / tau, 0)
        ratio = p.log() - payoff.log()
        return p * (ratio - p @ ratio)

    return (imitation_gradient,)


@wrong("05.3", "not normalised", says="divided by Z")
def _unnormalised():
    return _gradient(lambda p, r, tau: p * (r / tau).exp())


@wrong("05.3", "no reference", says="p_ref is not used in p*")
def _no_reference():
    return _gradient(lambda p, r, tau: torch.softmax(r / tau, 0))


@wrong("05.3", "no reward", says="the reward is not used")
def _no_reward():
    return _gradient(lambda p, r, tau: p)


@wrong("05.3", "tau inverted", says="not r tau")
def _payoff_inverted():
    return _gradient(lambda p, r, tau: torch.softmax(p.log() + r * tau, 0))


@wrong("05.3", "overflow", says="rewards of 5,000 overflow")
def _payoff_overflows():
    return _gradient(lambda p, r, tau: p * (r / tau).exp() / (p * (r / tau).exp()).sum())
