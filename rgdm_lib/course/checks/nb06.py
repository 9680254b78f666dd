"""Checks of notebook 06: a particle's weight, the radius of a ball, relative variance."""

import numpy as np
import torch

from rgdm_lib.course.exercises import also_right, as_tensor, exercise, require, require_close, wrong

F64 = torch.float64

# ---- 06.1 ------------------------------------------------------------------------------------

_VALUES = torch.tensor([[0.2, -0.4], [0.5, 0.1], [1.1, -0.3], [0.9, 0.6]], dtype=F64)


@exercise("06.1")
def weight_of_a_particle(particle_log_weight):
    """Two particles, three steps, tau = 2; never resampled, then resampled after step 2."""
    tau, last = 2.0, _VALUES[-1]
    never = [
        ((last - _VALUES[0]) / tau, "the initial factor exp(v_T / tau) is forgotten"),
        (_VALUES.sum(0) / tau, "values are added up: a step multiplies by the *gain* of value"),
        (last * tau, "tau is the temperature: divide by it"),
        (-last / tau, "the sign: a higher value is a larger weight"),
        ((last / tau).exp(), "that is the weight: its logarithm is asked for"),
    ]
    because = "what is never resampled keeps all factors; they telescope to reward / tau"
    require_close(
        particle_log_weight(_VALUES.clone(), tau, None), last / tau, because, mistakes=never
    )
    after = [
        (last / tau, "resampling sets weights back to 1: what was gained before it is spent"),
        ((last - _VALUES[1]) / tau, "row k is the state after k steps: one row too early"),
    ]
    because = "after resampling at row 2 only the gain since row 2 counts"
    require_close(
        particle_log_weight(_VALUES.clone(), tau, 2),
        (last - _VALUES[2]) / tau,
        because,
        mistakes=after,
    )
    because = "resampling at row 0 spends the initial factor"
    require_close(particle_log_weight(_VALUES.clone(), tau, 0), (last - _VALUES[0]) / tau, because)


def _log_weight(values, tau, resampled_at):
    base = 0 if resampled_at is None else values[resampled_at]
    return (values[-1] - base) / tau


@also_right("06.1")
def _by_gains():
    def particle_log_weight(values, tau, resampled_at):
        first = 0 if resampled_at is None else resampled_at
        total = values[0] / tau if resampled_at is None else torch.zeros_like(values[0])
        for k in range(first, len(values) - 1):
            total = total + (values[k + 1] - values[k]) / tau
        return total

    return (particle_log_weight,)


@also_right("06.1")
def _by_differences():
    def particle_log_weight(values, tau, resampled_at):
        gains = np.diff(np.asarray(values), axis=0)[resampled_at or 0 :].sum(0)
        return (gains + (np.asarray(values)[0] if resampled_at is None else 0)) / tau

    return (particle_log_weight,)


@wrong("06.1", "no initial factor", says="initial factor exp(v_T / tau) is forgotten")
def _no_start():
    return (lambda v, tau, k: (v[-1] - v[k or 0]) / tau,)


@wrong("06.1", "values added up", says="multiplies by the *gain*")
def _summed():
    return (lambda v, tau, k: v.sum(0) / tau,)


@wrong("06.1", "resampling forgotten", says="what was gained before it is spent")
def _not_reset():
    return (lambda v, tau, k: v[-1] / tau,)


@wrong("06.1", "times tau", says="divide by it")
def _times_tau():
    return (lambda v, tau, k: _log_weight(v, 1 / tau, k),)


@wrong("06.1", "a row early", says="one row too early")
def _early():
    return (lambda v, tau, k: _log_weight(v, tau, k and k - 1),)


# ---- 06.2 ------------------------------------------------------------------------------------


@exercise("06.2")
def radius_of_the_ball(ball_radius):
    """A variance of 0.5 in 6 dimensions: 2; then 0.12 in one: 0.6."""
    mistakes = [
        (4.0, "that is the square of the radius: take the root"),
        (0.5**0.5, "that is the standard deviation: a ball of that radius has less than it"),
        (3.0**0.5, "(d + 2), not d: points of a ball are nearer than its edge"),
        (1.5**0.5, "3 is d + 2 on a line: here d is 6"),
        (2.0**0.5, "4 is d + 2 in the plane: here d is 6"),
        (0.5, "that is the variance itself"),
    ]
    because = "a variance of 0.5 in 6 dimensions needs rho^2 = 8 times 0.5"
    out = as_tensor(ball_radius(0.5, 6), "the radius")
    require(out.numel() == 1, f"it returns {out.numel()} numbers, not one")
    require_close(out.reshape(()), 2.0, because, mistakes=mistakes)
    out = as_tensor(ball_radius(0.12, 1), "the radius")
    require_close(out.reshape(()), 0.6, "a variance of 0.12 on a line needs rho^2 = 0.36")


@also_right("06.2")
def _root_of_a_product():
    return (lambda variance, d: float(np.sqrt(variance) * np.sqrt(d + 2)),)


@also_right("06.2")
def _in_torch():
    return (lambda variance, d: torch.tensor((d + 2) * variance, dtype=F64).sqrt(),)


@wrong("06.2", "no root", says="take the root")
def _no_root():
    return (lambda variance, d: (d + 2) * variance,)


@wrong("06.2", "standard deviation", says="has less than it")
def _std():
    return (lambda variance, d: variance**0.5,)


@wrong("06.2", "d for d + 2", says="nearer than its edge")
def _d():
    return (lambda variance, d: (d * variance) ** 0.5,)


@wrong("06.2", "the line's factor", says="3 is d + 2 on a line")
def _three():
    return (lambda variance, d: (3 * variance) ** 0.5,)


# ---- 06.3 ------------------------------------------------------------------------------------

_DRAWS = torch.tensor([[1.0, 0.0], [3.0, 2.0], [2.0, 4.0]], dtype=F64)  # mean (2, 2)
_TRACE = 2 / 3 + 8 / 3  # over n


@exercise("06.3")
def relative_variance_of_draws(relative_variance):
    """Three draws in two dimensions, mean (2, 2): trace 10/3 over n, |mean|^2 = 8."""
    mean = _DRAWS.mean(0)
    mistakes = []
    for n in (3, 2):
        trace = _TRACE * 3 / n
        mistakes += [
            (trace, "that is the trace alone: divide by |mean|^2"),
            (trace / 8**0.5, "divide by the *square* of the mean's length"),
            ((trace / 8) ** 0.5, "that is its root, the relative standard error"),
            (trace / 4, "sum the squares of the mean over the coordinates, as the trace does"),
        ]
    square = float(_DRAWS.square().sum(1).mean())
    mistakes += [
        (square / 8, "E|g|^2 is not the variance: subtract |mean|^2"),
        (float(_DRAWS.var(0).sum() / mean.norm()), "divide by the *square* of the mean's length"),
    ]
    out = as_tensor(relative_variance(_DRAWS.clone()), "the relative variance")
    require(out.numel() == 1, f"it returns {out.numel()} numbers, not one")
    found = float(out)
    divided = _TRACE / 8 if abs(found - _TRACE / 8) < 1e-4 else _TRACE * 1.5 / 8
    because = "variances (2/3, 8/3) over |(2, 2)|^2 = 8 are 5/12 (5/8 with n - 1)"
    require_close(out.reshape(()), divided, because, mistakes=mistakes)


@also_right("06.3")
def _over_n():
    def relative_variance(g):
        mean = g.mean(0)
        return (g - mean).square().sum(1).mean() / (mean @ mean)

    return (relative_variance,)


@also_right("06.3")
def _in_numpy():
    def relative_variance(g):
        g = np.asarray(g)
        return np.trace(np.cov(g.T)) / np.sum(g.mean(0) ** 2)

    return (relative_variance,)


@wrong("06.3", "trace alone", says="trace alone")
def _trace():
    return (lambda g: g.var(0).sum(),)


@wrong("06.3", "mean not squared", says="*square* of the mean's length")
def _not_squared():
    return (lambda g: g.var(0).sum() / g.mean(0).norm(),)


@wrong("06.3", "second moment", says="E|g|^2 is not the variance")
def _second_moment():
    return (lambda g: g.square().sum(1).mean() / g.mean(0).square().sum(),)


@wrong("06.3", "root", says="relative standard error")
def _root():
    return (lambda g: (g.var(0).sum() / g.mean(0).square().sum()).sqrt(),)
