"""Each check takes right answers of any form, and tells each misconception what is wrong with it.

Everything is derived from the checks' own lists: a new exercise is tested when it is registered.
"""

import re
import signal
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from rgdm_lib.course import exercises
from rgdm_lib.course.build import execute, solved_notebook
from rgdm_lib.course.source import exercise_numbers, sources

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
NUMBERS = {
    name: exercise_numbers(path.read_text(encoding="utf-8"))
    for name, path in sources(NOTEBOOKS / "src").items()
}
WITH_EXERCISES = [name for name, numbers in NUMBERS.items() if numbers]
EXERCISES = [number for numbers in NUMBERS.values() for number in numbers]
# Answers whose gradient is part of the question: numpy and lists are wrong there.
DIFFERENTIABLE = {"02.1"}

each_exercise = pytest.mark.parametrize("number", EXERCISES)


def verdicts(nb):
    """``{exercise: verdict}`` of all lines that checks printed."""
    text = "".join(
        output.text
        for cell in nb.cells
        if "check" in cell.metadata.get("tags", [])
        for output in cell.outputs
        if output.get("name") == "stdout"
    )
    return dict(re.findall(r"^exercise (\d\d\.\d+): (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_solutions_are_right(name):
    nb = solved_notebook(name, NOTEBOOKS / "src" / f"{name}.py")
    last = max(i for i, cell in enumerate(nb.cells) if "check" in cell.metadata.get("tags", []))
    nb.cells = nb.cells[: last + 1]
    execute(nb)
    assert verdicts(nb) == dict.fromkeys(NUMBERS[name], "right")


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_stubs_are_not_solved(name):
    """The built notebook ran with the stubs; that it is current is another test's business."""
    nb = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert verdicts(nb) == dict.fromkeys(NUMBERS[name], "not solved yet")


@pytest.mark.parametrize("name", ["00_start_here", "01_adding_noise", "02_ddpm_from_scratch"])
def test_at_least_two_exercises(name):
    assert len(NUMBERS.get(name, [])) >= 2


# ---- right and wrong answers that the checks list ----


@each_exercise
def test_other_right_answers_are_right(number):
    makers = exercises.right_answers(number)
    assert len(makers) >= 2
    for make in makers:
        verdict = exercises.grade(number, *make())
        assert verdict.status == "right", f"{make.__name__}: {verdict}"


@each_exercise
def test_misconceptions_are_told_apart(number):
    answers = exercises.wrong_answers(number)
    assert len({answer.name for answer in answers}) == len(answers) >= 3
    for answer in answers:
        verdict = exercises.grade(number, *answer.make())
        assert verdict.status == "wrong", f"{answer.name} is told {verdict}"
        others = [other.says for other in answers if other is not answer]
        assert answer.says and answer.says in verdict.because, f"{answer.name} is told {verdict}"
        assert not any(says in verdict.because for says in others), f"{answer.name}: {verdict}"


# ---- what any answer may do ----


def altered(number, change):
    """The first right answer, each of its functions f replaced by ``change(f)``."""
    answers = exercises.right_answers(number)[0]()
    assert any(callable(answer) for answer in answers)
    return [change(answer) if callable(answer) else answer for answer in answers]


def then(alter):
    """A change for `altered`: the right result goes through ``alter``."""
    return lambda f: lambda *args, **kwargs: alter(f(*args, **kwargs))


def mapped(value, function, container=None):
    """Apply a function to the leaves of a pair or a single value."""
    if isinstance(value, list | tuple):
        return (container or type(value))(mapped(part, function) for part in value)
    return function(value)


@each_exercise
def test_stub(number):
    answers = exercises.right_answers(number)[0]()
    stub = [(lambda *args, **kwargs: None) if callable(a) else None for a in answers]
    assert str(exercises.grade(number, *stub)) == f"exercise {number}: not solved yet"


FORMS = {
    "lists for tuples": lambda result: mapped(result, lambda leaf: leaf, list),
    "tuples for lists": lambda result: mapped(result, lambda leaf: leaf, tuple),
    "numpy": lambda result: mapped(result, np.asarray),
    "lists of numbers": lambda result: mapped(result, lambda leaf: np.asarray(leaf).tolist()),
    "torch": lambda result: mapped(result, torch.as_tensor),
    "float32": lambda result: mapped(result, lambda leaf: torch.as_tensor(leaf).float()),
}


@pytest.mark.parametrize("form", FORMS)
@each_exercise
def test_right_whatever_the_type(number, form):
    if number in DIFFERENTIABLE and form in ("numpy", "lists of numbers"):
        answers = altered(number, then(lambda loss: FORMS[form](loss.detach())))
        assert "gradient" in exercises.grade(number, *answers).because
        return
    verdict = exercises.grade(number, *altered(number, then(FORMS[form])))
    assert verdict.status == "right", verdict


@each_exercise
def test_editing_the_arguments_is_right(number):
    def vandal(f):
        def function(*args, **kwargs):
            result = mapped(f(*args, **kwargs), lambda leaf: leaf)
            result = mapped(result, lambda x: x.clone() if isinstance(x, torch.Tensor) else x)
            for arg in args:
                if isinstance(arg, torch.Tensor | np.ndarray):
                    arg[...] = 0
            return result

        return function

    verdict = exercises.grade(number, *altered(number, vandal))
    assert verdict.status == "right", verdict


JUNK = {
    "text": lambda result: "text",
    "a dict": lambda result: {},
    "an object": lambda result: object(),
    "nothing in a tuple": lambda result: (),
    "a stub's pair": lambda result: (None, None),
    "a pair of objects": lambda result: (object(), object()),
    "a shape of its own": lambda result: mapped(result, lambda leaf: torch.zeros(7, 5, 3)),
    "a pair of shapes": lambda result: (torch.zeros(7, 5), torch.zeros(3)),
    "no elements": lambda result: mapped(result, lambda leaf: torch.zeros(0)),
    "ragged": lambda result: [[1.0], [1.0, 2.0]],
    "NaN": lambda result: mapped(result, lambda leaf: torch.as_tensor(leaf) * float("nan")),
    "infinity": lambda result: mapped(result, lambda leaf: torch.as_tensor(leaf) + float("inf")),
    "complex": lambda result: mapped(result, lambda leaf: torch.as_tensor(leaf) + 0j),
}


@pytest.mark.parametrize("kind", JUNK)
@each_exercise
def test_junk_is_wrong_and_not_the_checks_fault(number, kind):
    verdict = exercises.grade(number, *altered(number, then(JUNK[kind])))
    assert verdict.status == "wrong"
    assert "the check cannot use" not in verdict.because and "raised" not in verdict.because


class OwnError(Exception):
    pass


@pytest.mark.parametrize("problem", [OwnError("boom"), SystemExit("boom")])
@each_exercise
def test_exceptions_are_told_with_their_line(number, problem):
    def function(*args, **kwargs):
        raise problem

    verdict = exercises.grade(number, *altered(number, lambda f: function))
    said = rf"^it raised {type(problem).__name__}: boom \(line \d+: raise problem\)$"
    assert verdict.status == "wrong" and re.match(said, verdict.because), verdict


@each_exercise
def test_a_loop_without_end_is_stopped(number):
    def function(*args, **kwargs):
        while True:
            try:
                sum(range(100))
            except Exception:
                pass

    start = time.monotonic()
    verdict = exercises.grade(number, *altered(number, lambda f: function), seconds=0.2)
    assert time.monotonic() - start < 5
    assert verdict.because == "it did not finish in 0.2 seconds: does a loop never end?"


@each_exercise
def test_20000_prints_are_cut(number, capsys):
    def chatty(f):
        done = []

        def function(*args, **kwargs):
            if not done:
                for i in range(20_000):
                    print("line", i)
                done.append(True)
            return f(*args, **kwargs)

        return function

    exercises.check(number, *altered(number, chatty))
    out = capsys.readouterr().out
    assert out.startswith("line 0\nline 1\n")
    assert out.endswith(
        f"\n... (what your code prints after this is not shown)\nexercise {number}: right\n"
    )
    assert len(out) < exercises.OUTPUT_LIMIT + 200


# ---- the machinery ----


@exercises.exercise("99.2")
def check_pair(function):
    mean, std = exercises.unpack(function(torch.arange(3.0)), "mean", "std")
    exercises.require_close(mean, 1.0, "the mean of 0, 1, 2", mistakes=[(3.0, "that is the sum")])
    exercises.require_close(std, 1.0, "the deviation of 0, 1, 2")
    function(torch.arange(2.0))


@pytest.mark.parametrize(
    ("function", "because"),
    [
        (lambda x: (x.sum(), 1), "it gives 3 where 1 is right; that is the sum"),
        (lambda x: (x.mean(), 2), "it gives 2 where 1 is right; the deviation of 0, 1, 2"),
        (lambda x: x.mean(), "it must return 2 values, (mean, std), not a Tensor"),
        (lambda x: (1, 1, 1), "it must return 2 values, (mean, std), not 3"),
        (lambda x: (1, "a"), "it is a str, where a number or a tensor of real numbers is expected"),
        (lambda x: (1, 1) if len(x) == 3 else None,
         "it returns None for some arguments: does a branch lack its return?"),
    ],
)  # fmt: skip
def test_messages(function, because):
    assert exercises.grade("99.2", function).because == because


@exercises.exercise("99.3")
def check_broken(function):
    function(1)
    raise KeyError("x")


def test_a_broken_check_does_not_blame_the_answer():
    verdict = exercises.grade("99.3", lambda x: x)
    assert "the check cannot use what it got (KeyError: 'x')" in verdict.because
    assert "it raised" not in verdict.because


def test_what_was_armed_before_is_armed_after():
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 60)
        assert exercises.grade("99.2", lambda x: time.sleep(60), seconds=0.1).status == "wrong"
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
        signal.raise_signal(signal.SIGALRM)
        assert calls == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_works_where_no_timer_does(monkeypatch):
    """Off the main thread, and on Windows: without a limit, else the same."""
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.append(exercises.grade("99.2", lambda x: (1.0, 1.0)))
    )
    thread.start()
    thread.join()
    monkeypatch.delattr(signal, "setitimer")
    verdicts.append(exercises.grade("99.2", lambda x: (1.0, 1.0)))
    assert [verdict.status for verdict in verdicts] == ["right", "right"]


def test_a_loop_without_end_is_stopped_in_a_kernel():
    code = (
        "from rgdm_lib.course import exercises\n"
        "def weights(reward, tau):\n"
        "    while True: pass\n"
        "print(exercises.grade('00.1', weights, seconds=0.5))"
    )
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    execute(nb, timeout=60)
    assert "it did not finish in 0.5 seconds" in nb.cells[0].outputs[0].text
