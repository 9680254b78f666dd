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


def rank_correlation(a, b):
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def jittered(clouds, std):
    return clouds + std * torch.randn(clouds.shape, generator=torch.Generator().manual_seed(1))


# least rank correlation with the parameter, of exact points and of points jittered by 0.03 and
# 0.05 (as a model's are), and the largest mean error of any of them
FOLLOWED = {"inset": (0.93, 0.92, 0.9, 0.03), "tilt": (0.96, 0.96, 0.95, 0.03)}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_makes_a_chair_stand_is_seen(name):
    true, clouds = SEEN.parameters["chair"][name], SEEN.of("chair")
    *least, bias = FOLLOWED[name]
    for std, wanted in zip((0.0, 0.03, 0.05), least, strict=True):
        found = estimate_parameters("chair", jittered(clouds, std))[name]
        followed = rank_correlation(found, true)
        print(f"{name}, jitter {std}: rank correlation {followed:.3f}")
        assert followed > wanted
        assert abs(float((found - true).mean())) < bias


@pytest.mark.parametrize("base", [0, 1, 2])
def test_rear_feet_are_seen_for_every_base(base):
    chosen = SEEN.parameters["chair"]["base"] == base
    found = estimate_parameters("chair", SEEN.of("chair"))["inset"][chosen]
    assert rank_correlation(found, SEEN.parameters["chair"]["inset"][chosen]) > 0.93


def test_a_few_stray_points_do_not_hide_feet_and_back():
    """Five of 512, anywhere in the bounding box."""
    clouds, drawn = SEEN.of("chair").clone(), SEEN.parameters["chair"]
    low, high = clouds.amin(1, keepdim=True), clouds.amax(1, keepdim=True)
    anywhere = torch.rand(len(clouds), 5, 3, generator=torch.Generator().manual_seed(1))
    clouds[:, :5] = low + (high - low) * anywhere
    found = estimate_parameters("chair", clouds)
    assert rank_correlation(found["inset"], drawn["inset"]) > 0.9
    assert rank_correlation(found["tilt"], drawn["tilt"]) > 0.95


def test_estimates_are_finite_for_what_is_no_chair():
    """A stool has no back: its tilt is 0. A ball, a point and other classes have numbers too."""
    chair = SEEN.of("chair")[:1]
    stool = chair.clone()
    stool[..., 2] = stool[..., 2].clamp(max=float(SEEN.parameters["chair"]["height"][0]))
    assert estimate_parameters("chair", stool)["tilt"].tolist() == [0.0]
    ball = torch.randn(3, 512, 3, generator=torch.Generator().manual_seed(0))
    for clouds in (stool, ball, 0 * ball, SEEN.of("table"), SEEN.of("plane")):
        for name, values in estimate_parameters("chair", clouds).items():
            assert values.shape == (len(clouds),) and torch.isfinite(values).all(), name


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
