"""Best of N: draw N samples, keep the one with the highest reward. Nothing is trained.

Its law is not the payoff distribution: for a reward without ties its density at x is the
reference's times N F(r(x))^(N - 1), F being the distribution function of the reward (Gui, Garbacea
& Veitch 2024, arXiv 2406.00832; ties: Beirami et al. 2024, arXiv 2401.01879). A sample costs N
evaluations, every time; training pays once.
"""

from __future__ import annotations

import math

import torch

from rgdm_lib.payoff import Draw, has_value


def best_of(draw: Draw, n: int) -> Draw:
    """The best of each n samples in turn; a reward that is not finite loses to any that is.

    Args:
        draw: samples (x0 a tensor) of the reference with their rewards: all evaluations there are.
        n: samples to choose from. What is left over at the end is not used.

    Among equals the first is kept: with a reward of 0 these are samples of the reference. A group
    in which nothing has a value gives its first sample, with its reward as it is.

    Raises:
        ValueError: n below 1, or fewer than n samples.
    """
    if not 1 <= n <= len(draw.reward):
        raise ValueError(f"n = {n}: from 1 to the {len(draw.reward)} samples there are")
    groups = len(draw.reward) // n
    value = torch.where(has_value(draw.reward), draw.reward, -math.inf)[: groups * n]
    rows = value.reshape(groups, n)
    first = (rows == rows.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
    index = torch.arange(groups, device=first.device) * n + first
    return Draw(draw.x0[index], draw.reward[index])
