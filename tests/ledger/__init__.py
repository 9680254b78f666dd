"""The ledger of equations: a numerical test for every displayed equation of the notebooks.

How to add an entry: ``README.md`` beside this file.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """A test of one equation, and wrong versions of the formula that must make it fail."""

    test: Callable[..., None]
    mutations: dict[str, dict[str, Any]]
    module: str


ENTRIES: dict[str, Entry] = {}


def equation(identifier: str, mutations: dict[str, dict[str, Any]]) -> Callable:
    """Register a test: plain it must pass, with each mutation's keyword arguments it must fail.

    Raises ValueError: the id has an entry already, or no mutation.
    """

    def register(test: Callable[..., None]) -> Callable[..., None]:
        if identifier in ENTRIES:
            raise ValueError(f"{identifier!r} has an entry in {ENTRIES[identifier].module} already")
        if not mutations:
            raise ValueError(f"{identifier!r}: give a mutation that the test must catch")
        ENTRIES[identifier] = Entry(test, mutations, test.__module__)
        return test

    return register


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Assert that two values are equal up to an absolute tolerance, in float64.

    Raises ValueError for different shapes: a mutation is caught by its numbers, not by its shape.
    """
    actual, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (actual, expected))
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {tuple(actual.shape)} and {tuple(expected.shape)} differ")
    error = (actual - expected).abs()
    assert bool(((error <= tolerance) | (actual == expected)).all()), f"off by {error.max():.3g}"


def within(draws: Tensor, expected: Any) -> None:
    """Assert that the mean of ``draws`` (n, ...) is within four standard errors of its value.

    Raises ValueError for different shapes.
    """
    expected = torch.as_tensor(expected, dtype=draws.dtype)
    if draws.shape[1:] != expected.shape:
        raise ValueError(f"draws of {tuple(draws.shape[1:])}, expected {tuple(expected.shape)}")
    error = (draws.mean(0) - expected).abs()
    assert bool((error <= 4 * draws.std(0) / len(draws) ** 0.5).all()), f"off by {error}"


def load() -> dict[str, Entry]:
    """Import every ``nbNN.py`` of this folder and return all entries by id."""
    for path in sorted(Path(__file__).parent.glob("nb[0-9][0-9].py")):
        importlib.import_module(f"{__name__}.{path.stem}")
    return ENTRIES
