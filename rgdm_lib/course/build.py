"""Make a notebook from its source: stub, execute, clean, keep its cell ids."""

import re
import subprocess
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from rgdm_lib._files import write_whole
from rgdm_lib.course import guards
from rgdm_lib.course.source import Cell, cell_ids, notebook_cells, solved_cells

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What the kernel itself logs (its transport, an interruption) is not the notebook's.
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=50"]
_VIEWER = re.compile(r"3dmolviewer_(\d+)|viewer_(\d{6,})")


class BuildError(RuntimeError):
    """A notebook cannot be built; the message says why."""


def build(name: str, source: Path, target: Path, *, solutions: bool = True) -> int:
    """Build ``target`` from ``source``, executed in `quick`; return its size in bytes.

    Raises BuildError when a cell fails or a guard objects; ``target`` is then left as it was.
    """
    text = source.read_text(encoding="utf-8")
    nb = to_notebook(name, notebook_cells(text, solutions=solutions), target)
    problems = guards.check_source(nb, name)
    if problems:
        raise BuildError(f"{source.name}: " + "; ".join(problems))
    execute(nb)
    problems = guards.stderr(nb)
    clean(nb)
    problems += guards.check_built(nb, name, text) if solutions else guards.no_errors(nb)
    if problems:
        raise BuildError(f"{source.name}: " + "; ".join(problems))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, nbformat.writes(nb) + "\n")
    return target.stat().st_size


def to_notebook(name: str, cells: list[Cell], existing: Path | None = None) -> NotebookNode:
    """Make a notebook of ``cells`` without outputs, with the ids of the ``existing`` one."""
    old = []
    if existing is not None and existing.is_file():
        before = nbformat.read(existing, as_version=4)
        old = [(cell.id, guards.as_cell(cell)) for cell in before.cells]
    nb = nbformat.v4.new_notebook(metadata=nbformat.from_dict(_METADATA))
    for identity, cell in zip(cell_ids(name, cells, old), cells, strict=True):
        make = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
        metadata = {"tags": list(cell.tags)} if cell.tags else {}
        nb.cells.append(make(cell.source, id=identity, metadata=metadata))
    return nb


def solved_notebook(name: str, source: Path) -> NotebookNode:
    """Make the notebook with the exercises solved, not executed: for the tests."""
    return to_notebook(name, solved_cells(source.read_text(encoding="utf-8")))


def execute(nb: NotebookNode, timeout: int = 900) -> None:
    """Run all cells in a fresh kernel and an empty folder.

    Raises BuildError at the first cell that fails, or for a kernel that dies or does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            nb,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=KERNEL_ARGUMENTS,
            resources={"metadata": {"path": folder}},
        )
        try:
            # cell by cell: `client.execute` would take Ctrl-C for itself and call the kernel dead
            client.reset_execution_trackers()
            # its process' own stderr is dropped: a kernel that Ctrl-C stops while it starts, in a
            # folder that is gone by then, would print a traceback. Cells write by messages
            with client.setup_kernel(stderr=subprocess.DEVNULL):
                for index, cell in enumerate(nb.cells):
                    client.execute_cell(cell, index)
        except CellExecutionError as problem:
            raise BuildError(f"a cell failed: {problem.ename}: {problem.evalue}") from problem
        except (RuntimeError, OSError) as problem:
            raise BuildError(reason(problem)) from problem


def reason(problem: Exception) -> str:
    """Say in one line why a notebook could not be executed."""
    line = (str(problem).strip().splitlines() or [""])[0]
    if isinstance(problem, DeadKernelError) or line.startswith("Kernel died"):
        return "its kernel died: out of memory, or a crash in compiled code"
    if isinstance(problem, CellTimeoutError):
        return "a cell took too long"
    if isinstance(problem, nbformat.reader.NotJSONError):
        return "the file is not a notebook: it is not JSON"
    return f"{type(problem).__name__}: {line}"


def clean(nb: NotebookNode) -> None:
    """Remove what differs from run to run: stderr, widgets, times, viewers' random ids."""
    nb.metadata = nbformat.from_dict(_METADATA)
    seen: dict[str, str] = {}

    def stable(match: re.Match) -> str:
        number = match.group(1) or match.group(2)
        return match.group().replace(number, seen.setdefault(number, str(len(seen) + 1)))

    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            data = output.get("data", {})
            if output.get("name") == "stderr" or any("widget" in kind for kind in data):
                continue
            if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
                continue
            for kind, content in data.items():
                if isinstance(content, str) and not kind.startswith("image/"):
                    data[kind] = _VIEWER.sub(stable, content)
            kept.append(output)
        cell.outputs = kept
