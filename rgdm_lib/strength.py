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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgdm_lib.diffusion import Denoiser
from rgdm_lib.payoff import Weighted, has_value

STRETCH = 1.5  # the reward rises less than in proportion: half as far again as a line would go
LEAST_TRIAL = 1.2  # any closer and the noise of two means decides their slope


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


def is_binary(reward: Tensor) -> bool:
    """Whether the rewards (n,) that are a value are zeros and ones, both of them."""
    return set(reward[has_value(reward)].unique().tolist()) == {0.0, 1.0}


def reward_level(reward: Tensor, binary: bool = False) -> float:
    """Mean of the rewards (n,) that are a value. ``binary``: the log-odds of a 1 among 0 and 1.

    1 / tau moves a mean about in a line, and the log-odds of a share exactly. Half a sample is
    added on either side, so that a share of 0 or 1 has log-odds too. All levels that are compared
    must be of one kind: ask ``is_binary`` of the reference, for samples may all be alike.

    Raises:
        ValueError: no reward is a value, or a binary one is neither 0 nor 1.
    """
    valued = reward[has_value(reward)].double()
    n, total = len(valued), float(valued.sum())
    if n == 0:
        raise ValueError(f"none of {len(reward)} rewards is finite: samples without a level")
    if not binary:
        return total / n
    if not bool(((valued == 0) | (valued == 1)).all()):
        raise ValueError(f"rewards from {valued.min():.4g} to {valued.max():.4g} are not 0 and 1")
    return math.log((total + 0.5) / (n - total + 0.5))


def payoff_level(target: Weighted, binary: bool = False) -> float:
    """The ``reward_level`` of a payoff distribution.

    Raises:
        ValueError: binary, and the rewards are not zeros and ones, both of them.
    """
    if not binary:
        return float(torch.as_tensor(target.expectation(target.reward)).double())
    if not is_binary(target.reward):
        raise ValueError("these rewards are not zeros and ones, both of them: no odds to compare")
    weight, one = target.log_weight.double(), target.reward == 1
    return float(torch.logsumexp(weight[one], 0) - torch.logsumexp(weight[target.reward == 0], 0))


def strength_for(
    wanted: float, start: float, at_one: float, measure: Callable[[int, float], float]
) -> float:
    """The strength of a guided model whose samples have the ``wanted`` level of reward.

    A line first: through the reference and the guided model where the guided model is past the
    aim, else through the guided model and a trial past it. Rewards bend away from that line, so a
    second trial at the strength that it gives says what is left, and the line's slope what that
    takes.

    Args:
        wanted: ``payoff_level``.
        start: ``reward_level`` of the reference's samples, strength 0.
        at_one: of the guided model's samples, strength 1.
        measure: number of the trial (0, 1) and strength -> ``reward_level`` of samples.

    Raises:
        ValueError: the guided model is no better than its reference, or the reward does not rise.
    """
    if at_one <= start:
        raise ValueError(
            f"reward {at_one:.4g} of the guided model, {start:.4g} of its reference: no strength"
            " helps. Train it longer, or look for a mistake in the reward"
        )
    if at_one >= wanted:
        line = (0.0, start), (1.0, at_one)
    else:
        further = max(LEAST_TRIAL, 1 + STRETCH * (wanted - at_one) / (at_one - start))
        line = (1.0, at_one), (further, measure(0, further))
    strength = matching_strength(line, wanted)
    (low, at_low), (high, at_high) = line
    slope = (at_high - at_low) / (high - low)
    return strength + (wanted - measure(1, strength)) / slope


def sample_strengthened(
    path: Path,
    out: Path,
    levels: tuple[float, float, float],
    sample: Callable[[Path, int, float], Any],
    look: Callable[[Path], tuple[float, float]],
) -> Path:
    """Write samples of a guided model at the strength that meets the payoff's level of reward.

    The strength is set on trials; what is written are fresh samples. A trial that is there is not
    made again.

    Args:
        path: file to write.
        out: folder of the trials.
        levels: wanted, of the reference and of the guided model, see ``strength_for``.
        sample: (file, k, strength) writes samples; k = 0, 1 (trials), 2: noise of its own for each.
        look: file -> the strength that it was sampled at, its ``reward_level``.

    Raises:
        ValueError: as ``strength_for``.
    """

    def measure(k: int, strength: float) -> float:
        trial = out / f"{path.stem}_trial{k}{path.suffix}"
        if not (trial.exists() and math.isclose(look(trial)[0], strength, rel_tol=1e-4)):
            sample(trial, k, strength)
        return look(trial)[1]

    strength = strength_for(*levels, measure)
    print(f"{path.stem}: strength {strength:.3f}", flush=True)
    sample(path, 2, strength)
    return path
