"""Differences of denoisers added to a base, and the strength that one trial sets."""

import math

import pytest
import torch

from rgdm_lib.differences import along, sample_by_trial, strength_of_difference

x_t, t = torch.randn(5, 2), torch.tensor([1, 20, 50, 80, 100])


def test_differences_are_added_to_the_base():
    """Networks k x: 1 is the base; those from 2 to 5 twice, from 10 to 7 once."""
    asked = []

    def times(k):
        def network(x_t, t, cond=None):
            asked.append((k, cond))
            return k * x_t

        return network

    one, two, five, seven, ten = map(times, (1.0, 2.0, 5.0, 7.0, 10.0))
    got = along(one, (2.0, five, two), (1.0, seven, ten))(x_t, t, "wanted")
    torch.testing.assert_close(got, (1 + 2 * 3 - 3) * x_t)
    assert sorted(asked) == [(k, "wanted") for k in (1.0, 2.0, 5.0, 7.0, 10.0)]
    asked.clear()
    got = along(one, (-2.0, two, one), (3.0, five, one))(x_t, t)  # each network once a step
    torch.testing.assert_close(got, (1 - 2 * 1 + 3 * 4) * x_t)
    assert sorted(asked) == [(k, None) for k in (1.0, 2.0, 5.0)]
    torch.testing.assert_close(along(ten)(x_t, t), 10 * x_t)


def test_a_difference_is_tried_where_it_would_do():
    """From 10 to 16, with a lead of 2 over the control: three times."""
    assert strength_of_difference(16.0, 10.0, 7.0, 5.0) == 3.0
    for guided in (5.0, 4.0):
        with pytest.raises(ValueError, match="of the guided model, 5 of its control: no strength"):
            strength_of_difference(16.0, 10.0, guided, 5.0)
    with pytest.raises(ValueError, match="the payoff's reward 10 is not above the base's 10"):
        strength_of_difference(10.0, 10.0, 7.0, 5.0)


def test_one_trial_and_the_strength_on_its_line(tmp_path):
    """The level is 1 + 2 s, less 4 of the noise's number: fresh samples are not judged."""
    drawn = []

    def sample(path, k, strength):
        drawn.append((path.name, k, strength))
        path.write_text(f"{strength} {1 + 2 * strength - 4 * k}")

    def look(path):
        strength, level = map(float, path.read_text().split())
        return strength, level

    path, trial = tmp_path / "set", tmp_path / "trial"
    sample_by_trial(path, trial, 9.0, 1.0, 2.5, sample, look)
    assert drawn == [("trial", 0, 2.5), ("set", 1, 4.0)]
    sample_by_trial(path, trial, 5.0, 1.0, 2.5, sample, look)  # the trial is there
    assert drawn[2:] == [("set", 1, 2.0)]
    sample_by_trial(path, trial, 5.0, 1.0, 7.0, sample, look)  # at another strength: not this one
    assert drawn[3:] == [("trial", 0, 7.0), ("set", 1, 2.0)]
    trial.write_text("2.0 1.0")
    with pytest.raises(ValueError, match="it must rise with the strength"):
        sample_by_trial(path, trial, 5.0, 1.0, 2.0, sample, look)


def test_a_strength_is_a_number():
    def network(x_t, t, cond=None):
        return x_t

    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"strength = {bad}: a finite number"):
            along(network, (1.0, network, network), (bad, network, network))
