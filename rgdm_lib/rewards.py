"""Rewards made of rewards, for any kind of sample. A value that is not finite stays "no value"."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rgdm_lib.payoff import Reward


def _values(reward: Reward, batch: Any) -> Tensor:
    """The values (B,) of a batch of B samples, as floats: only these can say "no value".

    ValueError for another number of values: one too few would broadcast.
    """
    values = reward(batch)
    if values.shape != (len(batch),):
        raise ValueError(f"a reward gave {tuple(values.shape)} values for {len(batch)} samples")
    return values if values.is_floating_point() else values.float()


def weighted_sum(*terms: tuple[float, Reward]) -> Reward:
    """sum_k weight_k reward_k; no value where a term has none.

    Raises:
        ValueError: no term, or, when called, a reward that gives another number of values.
    """
    if not terms:
        raise ValueError("a sum of rewards needs at least one (weight, reward)")

    def reward(batch: Any) -> Tensor:
        return torch.stack([weight * _values(term, batch) for weight, term in terms]).sum(0)

    return reward


def product(*factors: Reward) -> Reward:
    """prod_k reward_k; no value where a factor has none, another one being 0 or not.

    For factors of one sign: two negative ones make a good sample of a bad one.

    Raises:
        ValueError: no factor, or, when called, a reward that gives another number of values.
    """
    if not factors:
        raise ValueError("a product of rewards needs at least one reward")

    def reward(batch: Any) -> Tensor:
        return torch.stack([_values(factor, batch) for factor in factors]).prod(0)

    return reward


def threshold(measure: Reward, low: float) -> Reward:
    """1 where measure >= low, else 0; no value where the measure has none.

    Raises:
        ValueError: when called, a measure that gives another number of values.
    """

    def reward(batch: Any) -> Tensor:
        value = _values(measure, batch)
        return (value >= low).to(value.dtype).masked_fill(~value.isfinite(), math.nan)

    return reward


def between(measure: Reward, low: float, high: float) -> Reward:
    """0 where low <= measure <= high, else minus the distance to that range.

    Raises:
        ValueError: low is not below high, or, when called, a measure that gives another number of
            values.
    """
    if not low < high:
        raise ValueError(f"the range {low} to {high} is empty")

    def reward(batch: Any) -> Tensor:
        value = _values(measure, batch)
        return -torch.relu(low - value) - torch.relu(value - high)

    return reward
