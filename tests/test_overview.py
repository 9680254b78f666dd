"""How tight claims are, and numbers read off reference results."""

import json

import pytest

from rgdm_lib.course.claims import CLAIMS, Claim
from rgdm_lib.course.overview import in_words, measured, strain


def claim(*bounds):
    return Claim("c", "a sentence", "02_x", "m", "quick", bounds)


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.id)
def test_a_claim_holds_exactly_where_its_strain_is_at_most_1(one):
    edges = [bound for _, bound in one.bounds]
    near = [e + sign * size for e in edges for sign in (-1, 1) for size in (1e-6, 0.01, 0.3, 5)]
    signed = one.bounds == ((">=", 0),) or min(edges) < 0
    for value in (value for value in near if value >= 0 or signed):
        assert (strain(one, value) <= 1) == one.holds(value), value


@pytest.mark.parametrize(
    "bounds, value, expected",
    [
        ([("<=", 1.5)], 3.0, 2.0),
        ([(">=", 10)], 5.0, 2.0),
        ([(">=", 10)], 0.0, float("inf")),
        ([(">=", -0.03)], -0.015, 0.5),
        ([(">=", -0.03)], 0.03, -1.0),
        ([(">=", 0.9), ("<=", 1.1)], 0.8, 2.0),
        ([(">=", 0), ("<=", 3)], 0.75, 0.25),
        ([(">=", 0)], 0.3, 0.0),
        ([(">=", 0)], -0.3, float("inf")),
    ],
)
def test_strain(bounds, value, expected):
    assert strain(claim(*bounds), value) == pytest.approx(expected)


@pytest.mark.parametrize("bounds", [[("<=", 0)], [("<=", -1)], []])
def test_bounds_without_a_scale_are_refused(bounds):
    with pytest.raises(ValueError, match="claim c: no scale for the bounds"):
        strain(claim(*bounds), 1.0)


def test_measured(tmp_path):
    record = {"metrics": {"m": {"values": [1.0, 2.0]}}}
    (tmp_path / "02_x.quick.json").write_text(json.dumps(record))
    assert measured(tmp_path, "02_x", "quick", "m") == (1.0, 2.0)
    assert measured(tmp_path, "02_x", "quick", "other") == ()
    assert measured(tmp_path, "02_x", "laptop", "m") == ()
    (tmp_path / "02_x.quick.json").write_text("{")
    with pytest.raises(ValueError, match="02_x.quick.json holds no reference results"):
        measured(tmp_path, "02_x", "quick", "m")


def test_in_words():
    assert in_words((1.0, 2.0), ".2f") == "1.50"
    assert in_words(()) == "not measured"
