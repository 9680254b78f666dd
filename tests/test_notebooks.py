"""Every notebook keeps every rule. Nothing is executed here: see nbval and `course verify`."""

from pathlib import Path

import nbformat
import pytest

from rgdm_lib.course import guards
from rgdm_lib.course.source import sources

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = sources(NOTEBOOKS / "src")
GUARDS = [
    guards.bootstrap,
    guards.counts,
    guards.parameters,
    guards.no_errors,
    guards.no_machine_paths,
    guards.clean_outputs,
    guards.whole_pictures,
    guards.equations,
    guards.unsolved,
    guards.size,
]


@pytest.fixture(params=SOURCES, scope="module")
def notebook(request):
    path = NOTEBOOKS / f"{request.param}.ipynb"
    assert path.is_file(), f"{path.name} is not built: python -m rgdm_lib.course build"
    return path, nbformat.read(path, as_version=4)


def test_there_are_notebooks_and_each_has_a_source():
    assert SOURCES
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SOURCES)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_guard(notebook, guard):
    assert guard(notebook[1]) == []


def test_source_and_notebook_agree(notebook):
    path, nb = notebook
    assert guards.agree(nb, SOURCES[path.stem].read_text(encoding="utf-8")) == []


def test_runs_under_its_own_name(notebook):
    assert guards.start_name(notebook[1], notebook[0].stem) == []


def test_notebook_is_valid(notebook):
    nbformat.validate(notebook[1])
