"""From source to cells: stubs, solutions, ids, and refusals of sources that break the rules."""

import example_notebook
import nbformat
import pytest

from rgdm_lib.course.build import BuildError, build, to_notebook
from rgdm_lib.course.source import (
    SourceError,
    cell_ids,
    exercise_numbers,
    notebook_cells,
    read_cells,
    solved_cells,
)


def with_tag(cells, tag):
    return [cell for cell in cells if tag in cell.tags]


def test_stub_replaces_solution_and_solution_is_collapsed_after_the_check():
    cells = notebook_cells(example_notebook.SOURCE)
    stub = with_tag(cells, "exercise")[0]
    assert stub.source.splitlines()[-2:] == ["    # Your code here.", "    return None"]
    solution = with_tag(cells, "solution")[0]
    assert solution.kind == "markdown"
    assert solution.source.startswith("<details><summary>Solution of exercise 98.1</summary>")
    assert "    return 2 * x\n```" in solution.source
    assert cells[cells.index(solution) - 1].tags == ("check",)


def test_without_solutions_only_they_are_missing():
    full = notebook_cells(example_notebook.SOURCE)
    bare = notebook_cells(example_notebook.SOURCE, solutions=False)
    assert bare == [cell for cell in full if "solution" not in cell.tags]
    assert len(full) - len(bare) == 2


def test_solved_cells_hold_the_solution_and_no_markers():
    text = "\n".join(cell.source for cell in solved_cells(example_notebook.SOURCE))
    assert "return 2 * x" in text and "answer = 6 * 7" in text
    assert "SOLUTION" not in text and "STUB" not in text


def test_exercise_numbers():
    assert exercise_numbers(example_notebook.SOURCE) == ["98.1", "98.2"]


@pytest.mark.parametrize(
    ("text", "replacement", "message"),
    [
        ("# Exercise 98.1", "# The exercise", "first line"),
        ("    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION\n", "", "needs"),
        ("    ### END SOLUTION\n", "", "needs"),
        ("    # STUB: return None\n", "", "STUB"),
        ('tags=["check"]\nexercises.check("98.1', '\nexercises.check("98.1', "no check cell"),
        ('tags=["check"]\nexercises.check("98.2', '\nexercises.check("98.2', "no check cell"),
        ('tags=["exercise"]\n# Exercise 98.2', "\n# Exercise 98.2", "no exercise before"),
    ],
)
def test_bad_exercises_are_named(text, replacement, message):
    assert text in example_notebook.SOURCE
    broken = example_notebook.SOURCE.replace(text, replacement, 1)
    with pytest.raises(SourceError, match=message):
        notebook_cells(broken)


def test_ids_do_not_depend_on_when_they_are_made():
    cells = read_cells(example_notebook.SOURCE)
    ids = cell_ids("a", cells, [])
    assert ids == cell_ids("a", cells, [])
    assert len(set(ids)) == len(cells)


def test_ids_survive_edits_insertions_and_deletions():
    text = example_notebook.SOURCE
    old = list(zip(cell_ids("a", read_cells(text), []), read_cells(text), strict=True))
    by_source = {cell.source: identity for identity, cell in old}
    edited = text.replace("A promise.", "A better promise.").replace(
        '# %% tags=["nbval-check-output"]\nprint(settings.n)\n', "# %% [markdown]\n# New.\n"
    )
    cells = read_cells(edited)
    ids = cell_ids("a", cells, old)
    assert len(set(ids)) == len(ids)
    assert ids[0] == old[0][0], "an edited cell keeps its id"
    for identity, cell in zip(ids, cells, strict=True):
        if cell.source in by_source:
            assert identity == by_source[cell.source]
    new = next(i for i, c in zip(ids, cells, strict=True) if c.source == "New.")
    assert new not in {identity for identity, _ in old}


def test_rebuilding_keeps_every_byte(example_folder, tmp_path):
    name = example_notebook.NAME
    source = example_folder / "src" / f"{name}.py"
    target = tmp_path / f"{name}.ipynb"
    before = (example_folder / f"{name}.ipynb").read_bytes()
    target.write_bytes(before)
    build(name, source, target)
    assert target.read_bytes() == before


def test_a_failing_build_leaves_the_notebook_alone(tmp_path):
    name = example_notebook.NAME
    source = tmp_path / f"{name}.py"
    source.write_text(example_notebook.SOURCE.replace("print(settings.n)", "1 / 0"))
    target = tmp_path / f"{name}.ipynb"
    before = nbformat.writes(nbformat.v4.new_notebook())
    target.write_text(before)
    with pytest.raises(BuildError, match="ZeroDivisionError"):
        build(name, source, target)
    assert target.read_text() == before


def test_build_refuses_a_source_that_breaks_a_guard(tmp_path):
    name = example_notebook.NAME
    source = tmp_path / f"{name}.py"
    source.write_text(example_notebook.SOURCE.replace("<!-- definition -->", "text"))
    with pytest.raises(BuildError, match="definition"):
        build(name, source, tmp_path / f"{name}.ipynb")


def test_metadata_names_no_version():
    nb = to_notebook("a", read_cells(example_notebook.SOURCE))
    assert nb.metadata.language_info == {"name": "python"}
