"""Solutions are told "right", stubs "not solved yet", plausible mistakes "not right yet"."""

import re
from pathlib import Path

import nbformat
import pytest

from rgdm_lib.course import exercises
from rgdm_lib.course.build import execute, solved_notebook
from rgdm_lib.course.source import exercise_numbers, sources

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
NUMBERS = {
    name: exercise_numbers(path.read_text(encoding="utf-8"))
    for name, path in sources(NOTEBOOKS / "src").items()
}
WITH_EXERCISES = [name for name, numbers in NUMBERS.items() if numbers]


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


@pytest.mark.parametrize("number", [n for numbers in NUMBERS.values() for n in numbers])
def test_plausible_mistakes_are_wrong(number):
    for answer in exercises.wrong_answers(number):
        verdict = exercises.grade(number, *answer.make())
        assert verdict.status == "wrong", f"{answer.name} is told {verdict.status}"
        assert answer.says in verdict.because


@pytest.mark.parametrize("name", ["00_start_here", "01_adding_noise", "02_ddpm_from_scratch"])
def test_at_least_two_exercises(name):
    assert len(NUMBERS.get(name, [])) >= 2
