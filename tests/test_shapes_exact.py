"""Estimators of parameters against the parameters; distances to an exact payoff by hand."""

import math

import pytest
import torch

from rgdm_lib.payoff import Draw
from rgdm_lib.shapes.data import shapes
from rgdm_lib.shapes.exact import (
    class_share_l1,
    class_shares,
    estimate_parameters,
    ks_distance,
    ks_floor,
)

SEEN = shapes("validation", 300, 512)
# largest mean error and largest spread, twice what was measured, in the shapes' unit
ERRORS = {
    ("chair", "width"): (0.003, 0.006),
    ("chair", "height"): (0.003, 0.014),
    ("table", "width"): (0.026, 0.046),
    ("table", "depth"): (0.014, 0.023),
    ("table", "height"): (0.002, 0.007),
    ("plane", "span"): (0.024, 0.034),
}


@pytest.mark.parametrize(("kind", "name"), ERRORS)
def test_parameters_are_recovered(kind, name):
    error = estimate_parameters(kind, SEEN.of(kind))[name] - SEEN.parameters[kind][name]
    bias, spread = ERRORS[kind, name]
    assert abs(float(error.mean())) < bias and float(error.std()) < spread


def test_leg_length_is_what_is_below_the_seat():
    drawn = SEEN.parameters["chair"]
    error = estimate_parameters("chair", SEEN.of("chair"))["leg_length"]
    error = error - (drawn["height"] - drawn["thickness"])
    assert abs(float(error.mean())) < 0.003 and float(error.std()) < 0.014


def test_estimates_do_not_depend_on_where_a_cloud_floats():
    clouds = SEEN.of("chair")[:20]
    lifted = estimate_parameters("chair", clouds + torch.tensor([0.5, 0.1, 0.25]))
    for name, values in estimate_parameters("chair", clouds).items():
        assert torch.allclose(lifted[name], values, atol=1e-5)
    with pytest.raises(ValueError, match="no estimators for class 'car'"):
        estimate_parameters("car", clouds)


def test_ks_distance_by_hand():
    exact = torch.tensor([1.0, 2.0, 3.0])
    log_weight = torch.tensor([0.5, 0.25, 0.25]).double().log()
    assert ks_distance(torch.tensor([1.0, 1.0, 2.0, 3.0]), exact, log_weight) == pytest.approx(0)
    assert ks_distance(torch.tensor([2.0, 3.0]), exact, log_weight) == pytest.approx(0.5)
    assert ks_distance(torch.tensor([0.0]), exact, log_weight) == pytest.approx(1)


def test_the_floor_is_that_of_exact_draws():
    """For equal weights and many exact values: E[KS] = 0.8687 / sqrt(n) (Kolmogorov)."""
    torch.manual_seed(0)
    exact = torch.randn(20_000)
    log_weight = torch.full((20_000,), -math.log(20_000)).double()
    assert ks_floor(exact, log_weight, 400) == pytest.approx(0.8687 / 20, rel=0.1)


def test_class_shares():
    label = torch.tensor([0, 2, 2, 1])
    assert class_shares(label, 4).tolist() == [0.25, 0.25, 0.5, 0]
    # exp(reward): odds 3 to 1 for class 1
    payoff = Draw(torch.zeros(2, 1), torch.tensor([0.0, math.log(3)])).weigh(1.0)
    exact_label = torch.tensor([0, 1])
    assert class_share_l1(torch.tensor([0, 1, 1, 1]), payoff, exact_label, 2) < 1e-6
    assert class_share_l1(torch.tensor([0, 0, 0, 0]), payoff, exact_label, 2) == pytest.approx(1.5)
