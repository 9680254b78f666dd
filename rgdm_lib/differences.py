"""A base denoiser plus multiples of what other networks have learned from each other.

A guided model and its control, trained as long on the same samples without the reward, make the
same mistakes; what is left of their difference was taught by the reward. It can be added to another
base than the one that both came from. `rgdm_lib.strength` is the case of one difference from the
reference itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rgdm_lib.diffusion import Denoiser
from rgdm_lib.strength import matching_strength


def along(base: Denoiser, *differences: tuple[float, Denoiser, Denoiser]) -> Denoiser:
    """The denoiser eps_base + the sum of s (eps_to - eps_from) over differences (s, to, from).

    Each network that comes in it is evaluated once a step. Directions are added as Liu et al. 2022
    (arXiv 2206.01714) add conditions.

    Raises:
        ValueError: a strength s is not finite.
    """
    for strength, *_ in differences:
        if not math.isfinite(strength):
            raise ValueError(f"strength = {strength}: a finite number, 0 for the base as it is")
    networks = dict.fromkeys([base, *(net for _, *pair in differences for net in pair)])

    def eps(x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        said = {network: network(x_t, t, cond) for network in networks}
        total = said[base]
        for strength, to, start in differences:
            total = total + strength * (said[to] - said[start])
        return total

    return eps


def strength_of_difference(wanted: float, start: float, guided: float, control: float) -> float:
    """The strength to try: a guided model's lead over its control, counted from another base.

    All are ``reward_level``: of the payoff, of the base that the difference is added to, of the
    guided model and of its control. If a strength of 1 does as much from the base as from the
    control, this one meets the payoff's.

    Raises:
        ValueError: the guided model has no lead, or the payoff no more reward than the base.
    """
    if wanted <= start:
        raise ValueError(f"the payoff's reward {wanted:.4g} is not above the base's {start:.4g}")
    if guided <= control:
        raise ValueError(
            f"reward {guided:.4g} of the guided model, {control:.4g} of its control: no strength"
            " of their difference helps. Train longer, or look for a mistake in the reward"
        )
    return (wanted - start) / (guided - control)


def sample_by_trial(
    path: Path,
    trial: Path,
    wanted: float,
    start: float,
    tried: float,
    sample: Callable[[Path, int, float], Any],
    look: Callable[[Path], tuple[float, float]],
) -> None:
    """Write samples at the strength where the line through one trial meets the payoff's level.

    The line starts at strength 0, the reference. What is written are fresh samples. A trial that
    is there at this strength is not made again.

    Args:
        path: file to write.
        trial: file of the trial.
        wanted: ``payoff_level``.
        start: ``reward_level`` of the reference.
        tried: strength of the trial.
        sample: (file, k, strength) writes samples; k = 0 (trial), 1: noise of its own for each.
        look: file -> the strength that it was sampled at, its ``reward_level``.

    Raises:
        ValueError: the reward does not rise from the reference to the trial.
    """
    if not (trial.exists() and math.isclose(look(trial)[0], tried, rel_tol=1e-4)):
        sample(trial, 0, tried)
    strength = matching_strength(((0.0, start), look(trial)), wanted)
    print(f"{path.stem}: strength {strength:.3f}", flush=True)
    sample(path, 1, strength)
