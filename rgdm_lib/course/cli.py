"""Command line of the course: check, build, run, verify, reference, claims, experiment, sums.

Exit codes: 0 done, 1 something ran and failed, 2 the request was refused before anything ran,
130 interrupted.
"""

import argparse
import ast
import contextlib
import importlib.util
import logging
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from rgdm_lib import _data
from rgdm_lib._files import write_whole
from rgdm_lib.course import claims
from rgdm_lib.course.provenance import code_hash
from rgdm_lib.course.results import PRESETS, SEEDS, run_folder

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_EXTRA = ("filelock", "ipykernel", "jupytext", "nbclient", "nbformat", "papermill")
_OWN_OPTIONS = {"PRESET": "--preset", "SEED": "--seed", "OUT_DIR": "--out"}


class Refused(Exception):
    """The request cannot be met; each argument is one line for the user."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        # argparse takes -1e-3 for an option: its own pattern knows no exponents before 3.14
        self._negative_number_matcher = re.compile(r"-(\d|\.\d)[\d._]*([eE][+-]?\d+)?")

    def error(self, message: str):
        """One line instead of the usage."""
        raise Refused(f"{message}; see python -m rgdm_lib.course --help")


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        with _no_log_after_ctrl_c():
            return arguments.command(arguments)
    except Refused as refusal:
        for line in refusal.args:
            print(f"refused: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _no_log_after_ctrl_c():
    """While nbclient stops the kernel, tasks that wait for it may see it die, and log that."""
    python = signal.default_int_handler
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not python:
        yield
        return

    def interrupt(number: int, frame) -> None:
        logging.disable()
        python(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, python)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rgdm_lib.course", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: Callable, text: str, *, notebooks: bool = True):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        if notebooks:
            command.add_argument("which", nargs="*", metavar="NN", help="numbers; default: all")
            command.add_argument("--notebooks", type=Path, metavar="DIR",
                                 help="folder of the notebooks; default: the clone's")  # fmt: skip
        return command

    def preset_and_seed(command):
        command.add_argument("--preset", default="quick", help=", ".join(PRESETS))
        command.add_argument("--seed", default="0", metavar="INT")

    def named_values(command):
        command.add_argument("-p", "--parameter", nargs=2, action="append", default=[],
                             metavar=("NAME", "VALUE"), help="set a parameter")  # fmt: skip

    add("check", _check, "check the sources without executing anything")

    build = add("build", _build, "make the notebooks from their sources, executed in quick")
    build.add_argument("--to", type=Path, metavar="DIR", help="another folder for the notebooks")
    build.add_argument("--no-solutions", action="store_true", help="for a class; needs --to")

    run = add("run", _run, "run notebooks and judge the claims on them")
    preset_and_seed(run)
    run.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR")
    named_values(run)

    verify = add("verify", _verify, "run twice: results.json must be identical byte by byte")
    preset_and_seed(verify)

    reference = add("reference", _reference, "write the reference results of some seeds")
    reference.add_argument("--preset", help=f"{', '.join(PRESETS)}; default: quick")
    reference.add_argument("--seeds", nargs="+", metavar="INT", help="default: 0")
    reference.add_argument("--stale", action="store_true",
                           help="again those that other code gave, with their seeds")  # fmt: skip
    reference.add_argument("--out", type=Path, default=Path("runs/reference"), metavar="DIR")
    reference.add_argument("--to", type=Path, metavar="DIR",
                           help="folder of the results; default: the clone's")  # fmt: skip

    judge = add("claims", _claims, "print every claim: pass, fail or not run", notebooks=False)
    judge.add_argument("--reference", type=Path, metavar="DIR", help="default: data/reference")
    judge.add_argument("--readme", action="store_true", help="write them into the README")

    experiment = add("experiment", _experiment, "run a long experiment", notebooks=False)
    experiment.add_argument("name", metavar="NAME")
    experiment.add_argument("--preset", default="quick", help=", ".join(PRESETS))
    experiment.add_argument("--out", type=Path, metavar="DIR", help="default: runs/NAME/PRESET")
    named_values(experiment)

    add("sums", _sums, "write data/SHA256SUMS", notebooks=False)
    return parser


def _check(arguments: argparse.Namespace) -> int:
    _require_extra()
    from rgdm_lib.course import build, guards, source

    bad = 0
    for name, path in _sources(arguments).items():
        try:
            cells = source.notebook_cells(path.read_text(encoding="utf-8"))
            problems = guards.check_source(build.to_notebook(name, cells), name)
        except ValueError as problem:
            problems = [str(problem)]
        for problem in problems:
            print(f"{name}: {problem}")
        bad += bool(problems)
        if not problems:
            print(f"{name}: ok")
    return 1 if bad else 0


def _build(arguments: argparse.Namespace) -> int:
    _require_extra()
    from rgdm_lib.course import build

    if arguments.no_solutions and arguments.to is None:
        raise Refused("--no-solutions needs --to DIR: the notebooks of the course keep theirs")
    chosen = _sources(arguments)
    target = arguments.to or _notebook_folder(arguments)
    if arguments.no_solutions and target.resolve() == _notebook_folder(arguments).resolve():
        raise Refused(f"--no-solutions --to {target}: these are the course's own, give another DIR")
    _require_writable(target)
    failed = []
    for name, path in chosen.items():
        try:
            size = build.build(
                name, path, target / f"{name}.ipynb", solutions=not arguments.no_solutions
            )
            print(f"{name}: built, {size / 1000:.0f} kB", flush=True)
        except (build.BuildError, ValueError, OSError) as problem:
            print(f"{name}: FAILED: {problem}", flush=True)
            failed.append(name)
    return _verdict(failed)


def _run(arguments: argparse.Namespace) -> int:
    _require_extra()
    lines: list[str] = []
    notebooks = _collect(lines, _notebooks, arguments)
    _collect(lines, _require_preset, arguments.preset)
    seed = _collect(lines, _seed, arguments.seed, "--seed")
    extra = _collect(lines, _parameters, arguments.parameter, notebooks or [])
    _collect(lines, _require_run_folder, arguments.out)
    if lines:
        raise Refused(*lines)
    from rgdm_lib.course import runner

    with _held(notebooks, arguments.preset, [seed], arguments.out):
        outcomes = runner.run_all(notebooks, arguments.preset, seed, arguments.out, extra)
    print("\n" + runner.table(outcomes))
    failed = [o for o in outcomes if o.problem]
    for outcome in failed:
        print(f"{outcome.name}: {outcome.problem}")
    return _verdict([o.name for o in failed])


def _verify(arguments: argparse.Namespace) -> int:
    _require_extra()
    lines: list[str] = []
    notebooks = _collect(lines, _notebooks, arguments)
    _collect(lines, _require_preset, arguments.preset)
    seed = _collect(lines, _seed, arguments.seed, "--seed")
    if lines:
        raise Refused(*lines)
    from rgdm_lib.course import runner

    failed = []
    for notebook in notebooks:
        try:
            runner.verify(notebook, arguments.preset, seed)
            print(f"{notebook.stem}: two runs, identical results.json", flush=True)
        except runner.RunError as problem:
            print(f"{notebook.stem}: FAILED: {problem}", flush=True)
            failed.append(notebook.stem)
    return _verdict(failed)


def _reference(arguments: argparse.Namespace) -> int:
    _require_extra()
    to = arguments.to or _in_clone("data/reference")
    lines: list[str] = []
    notebooks = _collect(lines, _notebooks, arguments)
    preset = arguments.preset or "quick"
    _collect(lines, _require_preset, preset)
    seeds = [_collect(lines, _seed, text, "--seeds") for text in arguments.seeds or ["0"]]
    if len(set(seeds)) < len(seeds):
        lines.append(f"--seeds names a seed twice: {' '.join(arguments.seeds)}")
    if arguments.stale and (arguments.preset or arguments.seeds):
        lines.append("--stale takes presets and seeds from the results themselves: leave them out")
    _collect(lines, _require_run_folder, arguments.out)
    _collect(lines, _require_writable, to)
    if lines:
        raise Refused(*lines)
    from rgdm_lib.course import runner

    jobs = [(notebook, preset, seeds) for notebook in notebooks]
    if arguments.stale:
        jobs = _stale(notebooks, to)
    failed = []
    for notebook, preset, seeds in jobs:
        with _held([notebook], preset, seeds, arguments.out):
            try:
                path = runner.reference(notebook, preset, seeds, arguments.out, to)
                print(f"{notebook.stem}: wrote {path.name}", flush=True)
            except (runner.RunError, ValueError, OSError) as problem:
                print(f"{notebook.stem}: FAILED: {problem}", flush=True)
                failed.append(notebook.stem)
    if to.resolve() == REPOSITORY / "data" / "reference":
        _write_readme(claims.from_reference(to))
    return _verdict(failed)


def _stale(notebooks: list[Path], folder: Path) -> list[tuple[Path, str, list[int]]]:
    """Notebook, preset and seeds of every result in the folder that other code gave."""
    found = []
    for notebook in notebooks:
        for path in sorted(folder.glob(f"{notebook.stem}.*.json")):
            record = _or_refused(claims.read_reference, path)
            if record.get("code") != _or_refused(code_hash, notebook):
                found.append((notebook, record["preset"], record["seeds"]))
    return found


def _claims(arguments: argparse.Namespace) -> int:
    folder = arguments.reference or _or_refused(_data.data_root) / "reference"
    if not folder.is_dir():
        raise Refused(f"there is no folder {folder}: --reference names one of reference results")
    if arguments.readme:
        _in_clone("README.md")
    statuses = _or_refused(claims.from_reference, folder, _clone_notebooks())
    for status in statuses:
        claim = status.claim
        outcome = status.outcome + (", stale" if status.stale else "")
        print(
            f"{outcome:<11} {claim.id:<18} {claim.notebook[:2]} {claim.preset:<7} "
            f"{claim.metric} {claim.bound_text}: {status.measured}"
        )
    if any(status.stale for status in statuses):
        print(
            "stale: measured by other code or data than the present; measure again: "
            "python -m rgdm_lib.course reference --stale"
        )
    if arguments.readme:
        _write_readme(statuses)
    return _verdict([s.claim.id for s in statuses if s.outcome == "fail"])


def _experiment(arguments: argparse.Namespace) -> int:
    from rgdm_lib.course import experiments

    if arguments.name not in experiments.EXPERIMENTS:
        known = ", ".join(experiments.EXPERIMENTS)
        raise Refused(f"no experiment {arguments.name!r}; there are {known}")
    lines: list[str] = []
    _collect(lines, _require_preset, arguments.preset)
    function = experiments.load(arguments.name)
    known = experiments.options_of(function)
    options = {}
    for name, text in arguments.parameter:
        if name in known:
            what = f"option {name} of {arguments.name}"
            options[name] = _collect(lines, _typed, text, known[name], what)
        else:
            there = ", ".join(known) or "none"
            lines.append(f"experiment {arguments.name} has no option {name!r}; it has {there}")
    if arguments.preset != "quick":
        _collect(lines, _in_clone, "data")
    _collect(lines, _or_refused, experiments.require, arguments.name, arguments.preset)
    out = arguments.out or Path("runs") / arguments.name / arguments.preset
    _collect(lines, _require_writable, out)
    if lines:
        raise Refused(*lines)
    out.mkdir(parents=True, exist_ok=True)
    function(preset=arguments.preset, out=out, **options)
    return 0


def _sums(arguments: argparse.Namespace) -> int:
    root = _in_clone("data")
    print(f"data/{_data.MANIFEST}: {_data.write_manifest(root)} files")
    return 0


def _collect(lines: list[str], function: Callable, *arguments):
    """Call; keep a refusal's lines so that all of them are shown together."""
    try:
        return function(*arguments)
    except Refused as refusal:
        lines.extend(refusal.args)
        return None


def _or_refused(function: Callable, *arguments):
    """Call; a ValueError or OSError of the library becomes a refusal of one line."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as problem:
        raise Refused(" ".join(str(problem).split())) from None


def _require_extra() -> None:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f'no {", ".join(missing)} here: pip install "rgdm_lib[course]"')


def _in_clone(name: str) -> Path:
    """Path of a part of the clone; refused for an installed package, which nothing changes."""
    if not (REPOSITORY / "notebooks" / "src").is_dir():
        raise Refused(f"this needs {name} of a clone of the repository, not an installed package")
    return REPOSITORY / name


def _clone_notebooks() -> Path | None:
    try:
        return _in_clone("notebooks")
    except Refused:
        return None


def _notebook_folder(arguments: argparse.Namespace) -> Path:
    return arguments.notebooks or _in_clone("notebooks")


@contextlib.contextmanager
def _held(notebooks: list[Path], preset: str, seeds: list[int], out: Path):
    """Hold the folders of these runs; refused if another process runs in one of them."""
    from rgdm_lib.course import runner

    with contextlib.ExitStack() as held:
        for notebook in notebooks:
            for seed in seeds:
                folder = run_folder(out, preset, notebook.stem, seed)
                try:
                    held.enter_context(runner.lock(folder))
                except (runner.RunError, OSError) as problem:
                    raise Refused(str(problem)) from None
        yield


def _choose(found: dict[str, Path], which: list[str], what: str) -> dict[str, Path]:
    if not found:
        raise Refused(f"no {what} found; run this in a clone, or name a folder with --notebooks")
    chosen: dict[str, Path] = {}
    unknown = []
    for word in which:
        names = [name for name in found if name == word or name[:2] == word]
        if not names:
            unknown.append(f"no notebook {word!r}; there are {', '.join(found)}")
        chosen.update({name: found[name] for name in names})
    if unknown:
        raise Refused(*unknown)
    return chosen or found


def _sources(arguments: argparse.Namespace) -> dict[str, Path]:
    from rgdm_lib.course.source import sources

    return _choose(sources(_notebook_folder(arguments) / "src"), arguments.which, "sources")


def _notebooks(arguments: argparse.Namespace) -> list[Path]:
    folder = _notebook_folder(arguments)
    if _braces(folder):
        raise Refused(f"the folder of the notebooks must have no braces in its path: {folder}")
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    return list(_choose(found, arguments.which, "notebooks").values())


def _require_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise Refused(f"no preset {preset!r}; there are {', '.join(PRESETS)}")


def _seed(text: str, option: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise Refused(f"{option} must be an integer, got {text!r}")
    if len(text) > 20 or int(text) not in SEEDS:
        raise Refused(f"{option} must be from 0 to 2^63 - 1, got {text}")
    return int(text)


def _typed(text: str, default: object, what: str) -> object:
    """A value for a parameter, of the kind of its default."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = text
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise Refused(f"{what} is of type {type(default).__name__}, got {text!r}")
    return value


def _parameters(pairs: list[list[str]], notebooks: list[Path]) -> dict[str, object]:
    """Check each -p against every chosen notebook's parameters: name and kind of value."""
    from rgdm_lib.course import runner

    values: dict[str, object] = {}
    lines: list[str] = []
    for name, text in pairs:
        if name in _OWN_OPTIONS:
            lines.append(f"parameter {name} has its own option: use {_OWN_OPTIONS[name]}")
            continue
        for notebook in notebooks:
            try:
                known = runner.parameters_of(notebook)
            except Exception:
                continue  # whatever is wrong with the file, its run will fail and say so
            if name in known:
                what = f"parameter {name} of {notebook.stem}"
                values[name] = _collect(lines, _typed, text, known[name], what)
            else:
                own = ", ".join(known)
                lines.append(f"notebook {notebook.stem} has no parameter {name!r}; it has {own}")
    if lines:
        raise Refused(*lines)
    return values


def _braces(path: Path) -> bool:
    """Whether papermill, which formats paths with the parameters, would change this one."""
    return bool(set("{}") & set(str(path.absolute())))


def _require_run_folder(folder: Path) -> None:
    if _braces(folder):
        raise Refused(f"--out must have no braces in its path: {folder.absolute()}")
    _require_writable(folder)


def _require_writable(folder: Path) -> None:
    """Try to write into the folder, or into the nearest one above it that exists."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as problem:
        raise Refused(f"cannot write into {folder}: {problem.strerror or problem}") from None


def _write_readme(statuses: list[claims.Status]) -> None:
    readme = _in_clone("README.md")
    text = readme.read_text(encoding="utf-8")
    write_whole(readme, claims.update_readme(text, statuses))
    print("README.md: claims written")


def _verdict(failed: list[str]) -> int:
    if failed:
        print(f"FAILED: {', '.join(failed)}", flush=True)
    return 1 if failed else 0
