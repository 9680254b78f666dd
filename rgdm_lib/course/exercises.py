"""Exercises that answer back: a check says not solved yet, not right yet because ..., or right.

A check calls a reader's code and judges what comes back. The code may do anything: raise, run
without end, print, edit its arguments in place, return another type. `grade` turns all of it into
a `Verdict`, and never takes a failure of the check itself for one of the reader's code.
"""

import contextlib
import importlib
import inspect
import io
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LIMIT_S = 10.0  # seconds a check may take
OUTPUT_LIMIT = 2000  # characters that a reader's code may print during a check

_CHECKS: dict[str, Callable] = {}
_WRONG: dict[str, list["Wrong"]] = {}
_ALSO_RIGHT: dict[str, list[Callable]] = {}


# The three ends of a check. Not Exceptions: a reader's `except Exception` must not swallow them.
class _NotRight(BaseException):
    """An answer fails a requirement; the message ends the sentence "not right yet, because"."""


class _NotSolved(BaseException):
    """An answer is still the stub."""


class _TooLong(BaseException):
    """The time is up."""


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


@dataclass(frozen=True)
class Wrong:
    """A misconception: its name, what the verdict on it must say, and how to make the answer."""

    name: str
    says: str
    make: Callable[[], tuple]


def exercise(number: str) -> Callable:
    """Register a function as the check of exercise ``number``, e.g. "02.1"."""

    def register(function: Callable) -> Callable:
        if number in _CHECKS and _CHECKS[number].__qualname__ != function.__qualname__:
            raise ValueError(f"exercise {number} has two checks")
        _CHECKS[number] = function
        return function

    return register


def wrong(number: str, name: str, says: str) -> Callable:
    """Register a function that makes a wrong answer, a tuple of the check's arguments.

    ``name`` is the misconception, ``says`` a part of the message that it must get.
    """

    def register(function: Callable) -> Callable:
        _WRONG.setdefault(number, []).append(Wrong(name, says, function))
        return function

    return register


def also_right(number: str) -> Callable:
    """Register a function that makes another right answer, a tuple of the check's arguments."""

    def register(function: Callable) -> Callable:
        _ALSO_RIGHT.setdefault(number, []).append(function)
        return function

    return register


def wrong_answers(number: str) -> list[Wrong]:
    """Return the registered wrong answers to an exercise."""
    _find(number)
    return _WRONG.get(number, [])


def right_answers(number: str) -> list[Callable]:
    """Return the makers of the registered right answers to an exercise."""
    _find(number)
    return _ALSO_RIGHT.get(number, [])


def require(condition: object, because: str) -> None:
    """Fail the check unless ``condition``; ``because`` completes "not right yet, because"."""
    if not bool(condition):
        raise _NotRight(because)


def as_tensor(value: object, what: str = "it") -> Tensor:
    """Return a reader's value as a detached float64 tensor on the CPU.

    Numbers, torch tensors, numpy arrays, lists and tuples of them will do; anything else fails
    the check with "``what`` is a str, where ...".
    """
    if isinstance(value, Tensor) and not value.is_complex():
        return value.detach().to("cpu", torch.float64)
    if isinstance(value, list | tuple) and value:
        parts = [as_tensor(part, what) for part in value]
        require(len({part.shape for part in parts}) == 1, f"{what} has rows of different shapes")
        return torch.stack(parts)
    if not isinstance(value, Tensor | str | bytes | dict | set):
        with contextlib.suppress(TypeError, ValueError):
            array = np.asarray(value)
            if array.dtype.kind in "biuf":
                return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    kind = "complex tensor" if isinstance(value, Tensor) else type(value).__name__
    raise _NotRight(f"{what} is a {kind}, where a number or a tensor of real numbers is expected")


def unpack(value: object, *names: str) -> Sequence:
    """Return a reader's tuple (or list, or array) of ``len(names)`` parts; else fail the check."""
    wanted = f"it must return {len(names)} values, ({', '.join(names)})"
    is_sequence = isinstance(value, list | tuple) or np.ndim(value) > 0
    require(is_sequence, f"{wanted}, not a {type(value).__name__}")
    require(len(value) == len(names), f"{wanted}, not {len(value)}")
    return value


def require_close(
    actual: object,
    expected: object,
    because: str,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    mistakes: Sequence[tuple[object, str]] = (),
) -> None:
    """Fail the check unless two numbers or tensors have one shape and are close everywhere.

    Where a single number is expected, any array of one element will do. ``mistakes`` are pairs
    (value, message): what a misconception gives (NaN equals NaN), and the message that replaces
    ``because`` then.
    """
    actual, expected = as_tensor(actual), as_tensor(expected)
    if expected.ndim == 0 and actual.numel() == 1:
        actual = actual.reshape(())
    same_shape = actual.shape == expected.shape
    if same_shape and bool(((actual - expected).abs() <= atol + rtol * expected.abs()).all()):
        return
    for value, message in mistakes:
        value = as_tensor(value)
        if actual.shape == value.shape and torch.allclose(actual, value, rtol, atol, True):
            because = message
            break
    require(
        same_shape, f"its shape is {tuple(actual.shape)}, not {tuple(expected.shape)}; {because}"
    )
    excess = (actual - expected).abs() - rtol * expected.abs()
    worst = int(torch.nan_to_num(excess, nan=float("inf")).argmax())
    got, want = actual.flatten()[worst].item(), expected.flatten()[worst].item()
    raise _NotRight(f"it gives {got:.6g} where {want:.6g} is right; {because}")


class Watched:
    """A reader's function as a check sees it.

    It gets copies of tensors and arrays, so that it may edit them in place. What it raises is
    told as its own; returning None reads as "not solved yet". `grade` wraps every answer that is
    a function; a check wraps what it gets from elsewhere, such as a method of a reader's class.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.has_returned = False

    def __call__(self, *args, **kwargs):
        """Call the function on copies of the arguments."""
        args, kwargs = _copy(args), {key: _copy(value) for key, value in kwargs.items()}
        try:
            result = self.function(*args, **kwargs)
        except NotImplementedError:
            raise _NotSolved from None
        except (Exception, SystemExit) as problem:
            raise _NotRight(f"it raised {self._told(problem)}") from problem
        if result is None:
            if not self.has_returned:
                raise _NotSolved
            raise _NotRight("it returns None for some arguments: does a branch lack its return?")
        self.has_returned = True
        return result

    def _told(self, problem: BaseException) -> str:
        """Type and message of an exception, and the reader's line that led to it."""
        file = getattr(getattr(self.function, "__code__", None), "co_filename", None)
        frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename == file]
        where = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
        return f"{_name(problem)}{where}"


def grade(number: str, *answers: object, seconds: float = LIMIT_S) -> Verdict:
    """Run the check of an exercise on a reader's answers; whatever they do becomes a verdict.

    Answers get copies of tensors and arrays, and may edit them. Random numbers start at seed 0 in
    the check, and their state is restored after it. What the answers print is cut after
    `OUTPUT_LIMIT` characters. After ``seconds`` the check is stopped,
    where the system can do so (not on Windows, and in the main thread only).

    Raises LookupError for an exercise without a check, TypeError for a wrong number of answers:
    both are mistakes of the notebook's author.
    """
    check_function = _find(number)
    inspect.signature(check_function).bind(*answers)
    if any(answer is None or answer is ... for answer in answers):
        return Verdict(number, "unsolved")
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # the CPU's alone: a GPU's state is not kept
    try:
        with _output_limit(), _time_limit(seconds):
            check_function(*(_watched(answer) for answer in answers))
    except _NotSolved:
        return Verdict(number, "unsolved")
    except _NotRight as problem:
        return Verdict(number, "wrong", str(problem))
    except _TooLong:
        because = f"it did not finish in {seconds:g} seconds: does a loop never end?"
        return Verdict(number, "wrong", because)
    except (Exception, SystemExit) as problem:
        because = (
            f"the check cannot use what it got ({_name(problem)}): compare the types and shapes "
            "of your answer with the text; if they fit, the check is at fault"
        )
        return Verdict(number, "wrong", because)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
    return Verdict(number, "right")


def check(number: str, *answers: object) -> None:
    """Print the verdict on a reader's answers; see `grade` for what they may do."""
    print(grade(number, *answers))


def _watched(answer: object) -> object:
    is_function = callable(answer) and not isinstance(answer, type | torch.nn.Module)
    return Watched(answer) if is_function else answer


def _copy(value: object) -> object:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(_copy(part) for part in value)
    return value


def _name(problem: BaseException) -> str:
    first_line = (str(problem).splitlines() or [""])[0]
    return f"{type(problem).__name__}: {first_line}" if first_line else type(problem).__name__


class _Capped(io.TextIOBase):
    """A stream that passes on a number of characters and drops the rest."""

    def __init__(self, stream: io.TextIOBase, room: int):
        self.stream, self.room = stream, room

    def write(self, text: str) -> int:
        if self.room > 0:
            self.stream.write(text[: self.room])
            self.room -= len(text)
            if self.room <= 0:
                self.stream.write("\n... (what your code prints after this is not shown)\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def _output_limit() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(_Capped(sys.stdout, OUTPUT_LIMIT)),
        contextlib.redirect_stderr(_Capped(sys.stderr, OUTPUT_LIMIT)),
    ):
        yield


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooLong in the block after ``seconds``, and again until something lets it through."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (in_main_thread and hasattr(signal, "setitimer")):
        yield
        return

    def stop(signum, frame):
        raise _TooLong

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


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
