"""The generated line that says that an equation is tested."""

import example_notebook
import ledger

from rgdm_lib.course import guards, marks
from rgdm_lib.course.build import to_notebook
from rgdm_lib.course.source import notebook_cells

BLOCK = "Before\n\n<!-- eq: a-b | Ho 2020, eq. 4 -->\n$$\nx = y\n$$\n\nafter"
MARKED = BLOCK.replace("$$\n\n", "$$\n\n*Ho 2020, eq. 4 · checked by a test*\n\n")


def test_marks_below_the_formula():
    assert marks.mark(BLOCK, {"a-b"}) == MARKED
    assert marks.mark(BLOCK.removesuffix("\n\nafter"), {"a-b"}) == MARKED.removesuffix("\n\nafter")


def test_the_text_that_follows_at_once_stays_a_paragraph():
    assert marks.mark(BLOCK.replace("\n\nafter", "\nafter"), {"a-b"}) == MARKED


def test_a_formula_on_one_line():
    def short(text):
        return text.replace("$$\nx = y\n$$", "$$x = y$$")

    assert marks.mark(short(BLOCK), {"a-b"}) == short(MARKED)


def test_a_star_in_the_source_is_not_markup():
    assert r"*p\* of 05 · " in marks.mark(BLOCK.replace("Ho 2020, eq. 4", "p* of 05"), {"a-b"})


def test_no_mark_without_an_entry_nor_for_a_definition():
    assert marks.mark(BLOCK, {"c"}) == BLOCK
    definition = BLOCK.replace("eq: a-b | Ho 2020, eq. 4", "definition")
    assert marks.mark(definition, {"a-b", "definition"}) == definition


def test_two_formulas_only_the_tested_one():
    other = BLOCK.replace("a-b", "c-d")
    assert marks.mark(f"{other}\n\n{BLOCK}", {"a-b"}) == f"{other}\n\n{MARKED}"


def test_the_ids_read_are_those_of_the_ledger():
    assert marks.tested() == set(ledger.load())


def test_no_ledger_no_marks(tmp_path):
    assert marks.tested(tmp_path / "nowhere") == set()


def test_source_and_notebook_agree_on_marks(monkeypatch):
    """A mark that the ledger does not back, or one that is missing, is a disagreement."""
    bare = to_notebook("00_x", notebook_cells(example_notebook.SOURCE))
    monkeypatch.setattr(marks, "tested", lambda: {"unit-gaussian"})
    marked = to_notebook("00_x", notebook_cells(example_notebook.SOURCE))
    assert "checked by a test" in str(marked) and "checked by a test" not in str(bare)
    assert guards.equations(marked) == []
    assert guards.agree(marked, example_notebook.SOURCE) == []
    assert guards.agree(bare, example_notebook.SOURCE) != []
