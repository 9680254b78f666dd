"""Control by a condition that the network reads: a class, a property, or a reward.

Ho & Salimans 2022, "Classifier-free diffusion guidance" (arXiv 2207.12598). With a reward as the
condition: Kumar, Peng & Levine 2019, "Reward-conditioned policies" (arXiv 1912.13465).

A condition is a vector (B, c). The network gets (B, c + 1): the vector and a 1, or zeros where the
condition is dropped, so that it learns the conditional and the unconditional law together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rgdm_lib.diffusion import Denoiser, Diffusion


def present(cond: Tensor) -> Tensor:
    """(B, c) -> (B, c + 1): the condition, marked as given."""
    return torch.cat([cond, torch.ones_like(cond[:, :1])], 1)


def loss(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x0: Tensor,
    cond: Tensor,
    drop: float = 0.1,
    times: Tensor | None = None,
) -> Tensor:
    """The denoising loss (B,) with the condition dropped at random (algorithm 1).

    Args:
        diffusion: the diffusion.
        denoiser: the network; its ``cond`` is (B, c + 1).
        x0: (B, ...) data.
        cond: (B, c), one condition for each of them.
        drop: how often the network must do without.
        times: see ``Diffusion.loss``.

    Raises:
        ValueError: the condition is not (B, c) for these B samples, or ``drop`` not in [0, 1].
    """
    if cond.ndim != 2 or len(cond) != len(x0):
        raise ValueError(f"{len(x0)} samples need conditions ({len(x0)}, c), not {(*cond.shape,)}")
    if not 0 <= drop <= 1:
        raise ValueError(f"drop = {drop}: a probability, between 0 and 1")
    keep = torch.rand(len(x0), 1, device=x0.device) >= drop
    return diffusion.loss(denoiser, x0, present(cond) * keep, times=times)


def classifier_free(denoiser: Denoiser, scale: float) -> Denoiser:
    """The guided denoiser eps(x_t) + scale (eps(x_t, cond) - eps(x_t)); cond is (B, c).

    Equation 6, with scale = 1 + w there. 0 ignores the condition; 1 is the conditional model, and
    needs one evaluation. Above 1 it samples no law that can be written down: not the conditional
    law tempered by that power (Bradley & Nakkiran 2024, arXiv 2408.09000).

    Raises:
        ValueError: the scale is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale = {scale}: a guidance scale is a finite number")

    def eps(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        given = present(cond)
        if scale == 1:
            return denoiser(x_t, t, given)
        without = denoiser(x_t, t, torch.zeros_like(given))
        return without + scale * (denoiser(x_t, t, given) - without)

    return eps
