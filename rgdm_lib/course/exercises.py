"""Exercises that answer back: a check says not solved yet, not right yet because ..., or right."""

import importlib
import inspect
import random
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

_CHECKS: dict[str, Callable] = {}
_WRONG: dict[str, list[Callable]] = {}


class _NotRight(Exception):
    """An answer fails a requirement; the message ends the sentence "not right yet, because"."""


class _NotSolved(Exception):
    """An answer is still the stub."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check: ``status`` is "unsolved", "wrong" or "right"."""

    exercise: str
    status: str
    because: str = ""

    def __str__(self) -> str:
        if self.status == "right":
            return f"exercise {self.exercise}: right"
        if self.status == "unsolved":
            return f"exercise {self.exercise}: not solved yet"
        return f"exercise {self.exercise}: not right yet, because {self.because}"


def exercise(number: str) -> Callable:
    """Register a function as the check of exercise ``number``, e.g. "02.1"."""

    def register(function: Callable) -> Callable:
        if number in _CHECKS and _CHECKS[number].__qualname__ != function.__qualname__:
            raise ValueError(f"exercise {number} has two checks")
        _CHECKS[number] = function
        return function

    return register


def wrong(number: str) -> Callable:
    """Register a function that returns a plausible wrong answer: a tuple of check arguments."""

    def register(function: Callable) -> Callable:
        _WRONG.setdefault(number, []).append(function)
        return function

    return register


def wrong_answers(number: str) -> list[Callable]:
    """Return the registered makers of wrong answers to an exercise."""
    _find(number)
    return _WRONG.get(number, [])


def require(condition: object, because: str) -> None:
    """Fail the check unless ``condition``; ``because`` completes "not right yet, because"."""
    if not bool(condition):
        raise _NotRight(because)


def require_close(
    actual: object, expected: object, because: str, *, rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Fail the check unless two numbers or tensors have one shape and are close everywhere."""
    actual = torch.as_tensor(actual, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    require(
        actual.shape == expected.shape,
        f"its shape is {tuple(actual.shape)}, not {tuple(expected.shape)}; {because}",
    )
    gap = (actual - expected).abs()
    if bool((gap <= atol + rtol * expected.abs()).all()):
        return
    worst = int(torch.nan_to_num(gap, nan=float("inf")).argmax())
    got, want = actual.flatten()[worst].item(), expected.flatten()[worst].item()
    raise _NotRight(f"it gives {got:.6g} where {want:.6g} is right; {because}")


def grade(number: str, *answers: object) -> Verdict:
    """Run the check of an exercise on a reader's answers; whatever they do becomes a verdict.

    Raises LookupError for an exercise without a check, TypeError for a wrong number of answers:
    both are mistakes of the notebook's author.
    """
    check_function = _find(number)
    inspect.signature(check_function).bind(*answers)
    if any(answer is None or answer is ... for answer in answers):
        return Verdict(number, "unsolved")
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        check_function(*(_watched(answer) for answer in answers))
    except (_NotSolved, NotImplementedError):
        return Verdict(number, "unsolved")
    except _NotRight as problem:
        return Verdict(number, "wrong", str(problem))
    except Exception as problem:  # a reader's code may raise anything
        first_line = (str(problem).splitlines() or [""])[0]
        return Verdict(number, "wrong", f"it raised {type(problem).__name__}: {first_line}")
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
    return Verdict(number, "right")


def check(number: str, *answers: object) -> None:
    """Print the verdict on a reader's answers."""
    print(grade(number, *answers))


def _watched(answer: object) -> object:
    """Wrap a plain function so that returning None reads as "not solved yet"."""
    if not isinstance(answer, types.FunctionType):
        return answer

    def watched(*args, **kwargs):
        result = answer(*args, **kwargs)
        if result is None:
            raise _NotSolved
        return result

    return watched


def _find(number: str) -> Callable:
    module = f"rgdm_lib.course.checks.nb{number.partition('.')[0]}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name != module:
            raise
    if number not in _CHECKS:
        raise LookupError(f"exercise {number} has no check; write it in {module}")
    return _CHECKS[number]
