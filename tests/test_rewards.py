"""Rewards made of rewards: their values, what has none, what they refuse."""

import math

import pytest
import torch

from rgdm_lib import rewards
from rgdm_lib.shapes import rewards as of_clouds


def column(k):
    """The k-th number of each sample, as a reward."""
    return lambda batch: batch[:, k]


NO = math.nan
BATCH = torch.tensor([[2.0, -1.0], [0.0, 3.0], [0.5, NO], [NO, 0.0], [math.inf, 0.0]])


def check(reward, expected):
    torch.testing.assert_close(reward(BATCH), torch.tensor(expected), equal_nan=True)


def test_a_weighted_sum():
    both = rewards.weighted_sum((2.0, column(0)), (-1.0, column(1)))
    check(both, [5.0, -3.0, NO, NO, math.inf])


def test_a_product():
    check(rewards.product(column(0), column(1)), [-2.0, 0.0, NO, NO, NO])


def test_a_threshold_pays_at_the_bound_and_keeps_what_has_no_value():
    check(rewards.threshold(column(0), 0.5), [1.0, 0.0, 1.0, NO, NO])


def test_measures_that_count_are_read_as_floats():
    rings = torch.tensor([0, 1, 3])
    assert rewards.threshold(lambda batch: batch, 1)(rings).tolist() == [0.0, 1.0, 1.0]
    assert rewards.between(lambda batch: batch > 0, 0.5, 2)(rings).tolist() == [-0.5, 0.0, 0.0]


@pytest.mark.parametrize(("low", "high", "value"), [(1, 2, 0), (2, 3, -0.5), (0.5, 1, -0.5)])
def test_a_range(low, high, value):
    reward = rewards.between(column(0), low, high)
    assert reward(torch.tensor([[1.5], [NO]])).tolist() == pytest.approx([value, NO], nan_ok=True)


def test_an_empty_range_or_combination_is_refused():
    with pytest.raises(ValueError, match="the range 2 to 1 is empty"):
        rewards.between(column(0), 2, 1)
    with pytest.raises(ValueError, match="the range 1 to 1 is empty"):
        rewards.between(column(0), 1, 1)
    for empty in (rewards.weighted_sum, rewards.product):
        with pytest.raises(ValueError, match="at least one"):
            empty()


def short(batch):
    """A value too few, one only: it would broadcast."""
    return batch[:1, 0]


@pytest.mark.parametrize(
    "reward",
    [
        rewards.weighted_sum((1.0, column(0)), (1.0, short)),
        rewards.product(short, column(0)),
        rewards.threshold(short, 0.0),
        rewards.between(short, 0.0, 1.0),
    ],
)
def test_a_reward_with_another_number_of_values_is_refused(reward):
    with pytest.raises(ValueError, match=r"a reward gave \(1,\) values for 5 samples"):
        reward(BATCH)


def test_rewards_of_clouds_combine_too():
    cloud = torch.randn(4, 20, 3)
    both = of_clouds.weighted_sum((2.0, of_clouds.proportion), (-1.0, of_clouds.symmetry))(cloud)
    assert torch.allclose(both, 2 * of_clouds.proportion(cloud) - of_clouds.symmetry(cloud))
