"""How strongly a guided model's training is heeded: one number, set when samples are drawn.

A student stops between its reference and its target: training is finite, and the part of a tilt
that needs a precise network comes last. What it has learned is the difference of two denoisers.
Multiplying that difference is classifier-free guidance with the reference in the place of the
unconditional model (Jin et al. 2025, "reinforcement learning guidance", arXiv 2508.21016; on the
weights themselves: Zheng et al. 2024, arXiv 2404.16792).

If the student has learned the fraction f of the target's tilt, at all x_t and t, strength 1 / f is
the target exactly. If it has learned all of it at temperature tau, strength s only resembles the
payoff distribution at tau / s: noising does not commute with taking powers (Bradley & Nakkiran
2024, arXiv 2408.09000). So a strength is judged by the law it samples, not by its mean alone.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from rgdm_lib.diffusion import Denoiser


def strengthen(denoiser: Denoiser, reference: Denoiser, strength: float) -> Denoiser:
    """The denoiser eps_ref + strength (eps - eps_ref); two evaluations a step.

    Args:
        denoiser: the guided model.
        reference: the model that it was trained from.
        strength: 0 is the reference, 1 the guided model, above 1 goes on past it.

    Raises:
        ValueError: the strength is not finite.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength = {strength}: a finite number, 1 for the guided model itself")

    def eps(x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        start = reference(x_t, t, cond)
        return start + strength * (denoiser(x_t, t, cond) - start)

    return eps


def matching_strength(
    measured: tuple[tuple[float, float], tuple[float, float]], wanted: float
) -> float:
    """The strength whose mean reward is ``wanted``, on the line through two measurements.

    Of all laws with that mean reward the payoff distribution is nearest to the reference, and its
    1 / tau is the multiplier that sets the mean. The strength is that multiplier once more.

    Args:
        measured: two pairs of strength and mean reward of samples.
        wanted: mean reward of the payoff distribution.

    Raises:
        ValueError: the reward does not rise with the strength.
    """
    (low, at_low), (high, at_high) = sorted(measured)
    if not (high > low and at_high > at_low):
        raise ValueError(
            f"mean reward {at_low:.4g} at strength {low:.3g}, {at_high:.4g} at {high:.3g}: it must"
            " rise with the strength. Take more samples, or train the guided model longer"
        )
    return low + (wanted - at_low) / (at_high - at_low) * (high - low)
