"""Run notebooks with papermill; compare two runs; write reference results."""

import contextlib
import logging
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from rgdm_lib._files import write_whole
from rgdm_lib.course import claims, guards
from rgdm_lib.course.build import KERNEL_ARGUMENTS, reason
from rgdm_lib.course.provenance import code_hash
from rgdm_lib.course.results import (
    aggregate,
    difference,
    dumps,
    read_results,
    run_folder,
)

REFERENCE_SCHEMA = "rgdm-reference/1"


class RunError(RuntimeError):
    """A notebook failed or two runs disagree; the message is one line."""


@dataclass(frozen=True)
class Outcome:
    """One notebook's run: seconds, claims judged by it, and what went wrong ("" if nothing)."""

    name: str
    seconds: float
    statuses: list[claims.Status] = field(default_factory=list)
    problem: str = ""

    @property
    def claims_text(self) -> str:
        """Claims passed of those this notebook and preset has."""
        if not self.statuses:
            return "-"
        return f"{sum(s.outcome == 'pass' for s in self.statuses)}/{len(self.statuses)}"


def parameters_of(notebook: Path) -> dict[str, object]:
    """Parameters a notebook declares, with their defaults; ValueError if there are none."""
    nb = nbformat.read(notebook, as_version=4)
    cells = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    if not cells:
        raise ValueError(f"{notebook.name} has no cell tagged parameters")
    return guards.parameter_values(cells[0].source)


def run_one(
    notebook: Path, preset: str, seed: int, out: Path, extra: dict[str, object] | None = None
) -> Path:
    """Execute a notebook in a fresh kernel; return its folder, `run_folder`.

    The folder gets the executed notebook and whatever the notebook writes. The kernel works in
    that folder. Raises RunError, whatever goes wrong: a cell that fails, a kernel that dies or
    does not start, a file that is not a notebook, a full disk, no results.json.
    """
    folder = run_folder(out, preset, notebook.stem, seed).resolve()
    parameters = {**(extra or {}), "PRESET": preset, "SEED": seed, "OUT_DIR": str(out.resolve())}
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("results.json", "run.json"):
            (folder / old).unlink(missing_ok=True)
        papermill.execute_notebook(
            str(notebook),
            str(folder / notebook.name),
            parameters=parameters,
            kernel_name="python3",
            cwd=str(folder),
            progress_bar=False,
            extra_arguments=KERNEL_ARGUMENTS,
        )
    except PapermillExecutionError as problem:
        raise RunError(
            f"cell [{problem.exec_count}] raised {problem.ename}: {_line(problem.evalue)}"
        ) from None
    except Exception as problem:  # one notebook's fault must not stop the others
        raise RunError(reason(problem)) from problem
    if not (folder / "results.json").is_file():
        raise RunError("it wrote no results.json; its last code cell must call run.finish()")
    try:
        read_results(folder / "results.json")
    except ValueError as problem:
        raise RunError(f"its results.json cannot be read: {_line(problem)}") from None
    return folder


@contextlib.contextmanager
def lock(folder: Path):
    """Hold a run's folder; RunError if another process holds it. Freed when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(folder / ".lock")
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        raise RunError(
            f"another run is writing into {folder}: wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        held.release()


def run_all(
    notebooks: list[Path], preset: str, seed: int, out: Path, extra: dict[str, object]
) -> list[Outcome]:
    """Run notebooks one after the other, printing a line for each; failures are collected."""
    outcomes = []
    for notebook in notebooks:
        started = time.perf_counter()
        statuses: list[claims.Status] = []
        problem = ""
        try:
            folder = run_one(notebook, preset, seed, out, extra)
            statuses = claims.from_run(read_results(folder / "results.json"))
            problem = "; ".join(
                f"claim {s.claim.id}: {s.claim.metric} is {s.measured}, bound {s.claim.bound_text}"
                for s in statuses
                if s.outcome != "pass"
            )
        except RunError as error:
            problem = str(error)
        outcome = Outcome(notebook.stem, time.perf_counter() - started, statuses, problem)
        state = "FAILED" if problem else "ok"
        print(f"{outcome.name:<26} {outcome.seconds:7.1f} s  {state}", flush=True)
        outcomes.append(outcome)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Notebook, seconds, claims passed."""
    lines = [f"{'notebook':<26} {'seconds':>8}  claims passed"]
    lines += [f"{o.name:<26} {o.seconds:8.1f}  {o.claims_text}" for o in outcomes]
    total = sum(o.seconds for o in outcomes)
    return "\n".join([*lines, f"{'total':<26} {total:8.1f}"])


def verify(notebook: Path, preset: str, seed: int) -> None:
    """Run twice, in fresh kernels and other folders; RunError naming what differs."""
    texts = []
    for hash_seed in ("1", "2"):
        with tempfile.TemporaryDirectory() as out, _environment(PYTHONHASHSEED=hash_seed):
            folder = run_one(notebook, preset, seed, Path(out))
            texts.append((folder / "results.json").read_bytes())
    differences = difference(*texts)
    if differences:
        raise RunError("two runs differ: " + "; ".join(differences))


def reference(notebook: Path, preset: str, seeds: list[int], out: Path, folder: Path) -> Path:
    """Run a notebook once a seed and write ``folder/NN_name.<preset>.json``; return its path.

    Runs stay under ``out``. The only writer of reference results. Raises RunError when a run
    fails, ValueError when its seeds measure different things.
    """
    code = code_hash(notebook)  # of what runs now: it may be edited before the last seed is done
    records = []
    for seed in seeds:
        results = run_one(notebook, preset, seed, out) / "results.json"
        records.append(read_results(results))
        print(f"{notebook.stem} {preset} seed {seed}: done", flush=True)
    command = f"python -m rgdm_lib.course reference {notebook.stem[:2]} --preset {preset} --seeds "
    record = {
        "schema": REFERENCE_SCHEMA,
        "notebook": notebook.stem,
        "preset": preset,
        "seeds": seeds,
        "metrics": aggregate(records),
        "command": command + " ".join(map(str, seeds)),
        "code": code,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{notebook.stem}.{preset}.json"
    write_whole(path, dumps(record))
    return path


@contextlib.contextmanager
def _environment(**values: str):
    """Environment variables for the kernels started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _line(text: object) -> str:
    return (str(text).strip().splitlines() or [""])[0]
