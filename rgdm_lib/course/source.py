"""Read a notebook's source (py:percent) and derive its cells: stubs, solutions, ids.

The conventions are those of ``notebooks/src/AUTHORING.md``.
"""

import difflib
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import jupytext

from rgdm_lib.course import bootstrap, marks

BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
STUB = "# STUB: "
_EXERCISE = re.compile(r"# Exercise (\d\d\.\d+)")


class SourceError(ValueError):
    """A source does not follow the conventions; the message names the cell and what to do."""


@dataclass(frozen=True)
class Cell:
    """A cell before it is executed."""

    kind: str
    source: str
    tags: tuple[str, ...] = field(default=())


def read_cells(text: str) -> list[Cell]:
    """Parse a source into cells, solutions still in place, the bootstrap cell filled in."""
    cells = []
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        tags = tuple(cell.metadata.get("tags", ()))
        filled = "bootstrap" in tags and cell.source == bootstrap.PLACEHOLDER
        cells.append(Cell(cell.cell_type, bootstrap.CELL if filled else cell.source, tags))
    return cells


def solved_cells(text: str) -> list[Cell]:
    """Cells with the solutions in place of the stubs: what pytest runs against the checks."""
    return [
        Cell(cell.kind, _split_exercise(cell)[1], cell.tags) if "exercise" in cell.tags else cell
        for cell in read_cells(text)
    ]


def notebook_cells(text: str, *, solutions: bool = True) -> list[Cell]:
    """Cells of the built notebook: stubs, each solution in a collapsed cell after its check.

    Equations with a test get their mark (``marks.mark``).
    """
    tested = marks.tested()
    cells: list[Cell] = []
    pending: Cell | None = None
    for cell in read_cells(text):
        if "exercise" in cell.tags:
            if pending is not None:
                raise SourceError(f"{_name(cell)}: the exercise before it has no check cell")
            stub, solution = _split_exercise(cell)
            cells.append(Cell(cell.kind, stub, cell.tags))
            pending = Cell("markdown", _details(_number(cell), solution), ("solution",))
            continue
        if cell.kind == "markdown":
            cell = Cell(cell.kind, marks.mark(cell.source, tested), cell.tags)
        cells.append(cell)
        if "check" in cell.tags:
            if pending is None:
                raise SourceError(f"{_name(cell)}: no exercise before this check")
            if solutions:
                cells.append(pending)
            pending = None
    if pending is not None:
        raise SourceError('the last exercise has no check cell (tags=["check"]) after it')
    return cells


def exercise_numbers(text: str) -> list[str]:
    """Numbers of a source's exercises, in order."""
    return [_number(cell) for cell in read_cells(text) if "exercise" in cell.tags]


def cell_ids(name: str, cells: list[Cell], old: list[tuple[str, Cell]]) -> list[str]:
    """Ids for ``cells``: those of the old notebook where a cell is kept or edited, else new ones.

    ``old`` is the existing notebook as (id, cell) pairs. Equal cells keep their id; between two
    equal ones, edited cells of one kind pair up in order. New ids depend on the content only.
    """
    ids: list[str | None] = [None] * len(cells)
    matcher = difflib.SequenceMatcher(
        None, [(c.kind, c.source) for _, c in old], [(c.kind, c.source) for c in cells], False
    )
    for operation, i0, i1, j0, j1 in matcher.get_opcodes():
        if operation not in ("equal", "replace"):
            continue
        left = old[i0:i1]
        for j in range(j0, j1):
            at = next((k for k, (_, c) in enumerate(left) if c.kind == cells[j].kind), None)
            if at is not None:
                ids[j] = left[at][0]
                left = left[at + 1 :]
    taken = {i for i in ids if i is not None}
    for j, cell in enumerate(cells):
        count = 0
        while ids[j] is None:
            seed = f"{name}\0{cell.kind}\0{cell.source}\0{count}"
            candidate = hashlib.sha256(seed.encode()).hexdigest()[:8]
            if candidate not in taken:
                ids[j] = candidate
                taken.add(candidate)
            count += 1
    return ids


def sources(folder: Path) -> dict[str, Path]:
    """``{NN_name: path}`` of the sources in ``folder``, sorted."""
    return {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}


def _split_exercise(cell: Cell) -> tuple[str, str]:
    """Return an exercise cell as (stub, solution)."""
    stub: list[str] = []
    solution: list[str] = []
    stub_lines = 0
    inside = False
    solutions = 0
    for line in cell.source.splitlines():
        text = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if text == BEGIN:
            if inside:
                raise SourceError(f"{_name(cell)}: BEGIN SOLUTION twice without an END")
            if stub_lines == 0:
                raise SourceError(f"{_name(cell)}: no '{STUB}...' line above BEGIN SOLUTION")
            inside, stub_lines, solutions = True, 0, solutions + 1
        elif text == END:
            if not inside:
                raise SourceError(f"{_name(cell)}: END SOLUTION without a BEGIN")
            inside = False
        elif inside:
            solution.append(line)
        elif text.startswith(STUB):
            if stub_lines == 0:
                stub.append(f"{indent}# Your code here.")
            stub.append(indent + text.removeprefix(STUB))
            stub_lines += 1
        else:
            stub.append(line)
            solution.append(line)
    if inside or solutions == 0:
        raise SourceError(f"{_name(cell)}: needs '{BEGIN}' and '{END}', each on its own line")
    _number(cell)
    return "\n".join(stub), "\n".join(solution)


def _number(cell: Cell) -> str:
    match = _EXERCISE.fullmatch((cell.source.splitlines() or [""])[0])
    if match is None:
        raise SourceError(f"{_name(cell)}: its first line must be '# Exercise NN.k'")
    return match.group(1)


def _name(cell: Cell) -> str:
    return f"cell starting {(cell.source.splitlines() or [''])[0]!r}"


def _details(number: str, solution: str) -> str:
    return (
        f"<details><summary>Solution of exercise {number}</summary>\n\n"
        f"```python\n{solution}\n```\n\n</details>"
    )
