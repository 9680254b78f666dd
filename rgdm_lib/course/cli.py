"""Command line of the course: check, build, run, verify, reference, claims, experiment, sums.

Exit codes: 0 done, 1 something ran and failed, 2 the request was refused before anything ran.
"""

import argparse
import ast
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rgdm_lib import _data
from rgdm_lib.course import claims
from rgdm_lib.course.results import PRESETS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
_OWN_OPTIONS = {"PRESET": "--preset", "SEED": "--seed", "OUT_DIR": "--out"}


class Refused(Exception):
    """The request cannot be met; each argument is one line for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line instead of the usage."""
        raise Refused(f"{message}; see python -m rgdm_lib.course --help")


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        return arguments.command(arguments)
    except Refused as refusal:
        for line in refusal.args:
            print(f"refused: {line}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rgdm_lib.course", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: Callable, text: str, *, notebooks: bool = True):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        if notebooks:
            command.add_argument("which", nargs="*", metavar="NN", help="numbers; default: all")
            command.add_argument("--notebooks", type=Path, default=REPOSITORY / "notebooks",
                                 metavar="DIR", help="folder of the notebooks")  # fmt: skip
        return command

    def preset_and_seed(command, *, seeds: bool = False):
        command.add_argument("--preset", default="quick", help=", ".join(PRESETS))
        if seeds:
            command.add_argument("--seeds", nargs="+", default=["0"], metavar="INT")
        else:
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
    preset_and_seed(reference, seeds=True)
    reference.add_argument("--out", type=Path, default=Path("runs/reference"), metavar="DIR")
    reference.add_argument("--to", type=Path, default=REPOSITORY / "data" / "reference",
                           metavar="DIR", help="folder of the reference results")  # fmt: skip

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
    from rgdm_lib.course import build, guards, source

    bad = 0
    for name, path in _sources(arguments).items():
        try:
            cells = source.notebook_cells(path.read_text(encoding="utf-8"))
            problems = guards.check_source(build.to_notebook(name, cells), name)
        except source.SourceError as problem:
            problems = [str(problem)]
        for problem in problems:
            print(f"{name}: {problem}")
        bad += bool(problems)
        if not problems:
            print(f"{name}: ok")
    return 1 if bad else 0


def _build(arguments: argparse.Namespace) -> int:
    from rgdm_lib.course import build, source

    if arguments.no_solutions and arguments.to is None:
        raise Refused("--no-solutions needs --to DIR: the notebooks of the course keep theirs")
    chosen = _sources(arguments)
    target = arguments.to or arguments.notebooks
    _require_writable(target)
    failed = []
    for name, path in chosen.items():
        try:
            size = build.build(
                name, path, target / f"{name}.ipynb", solutions=not arguments.no_solutions
            )
            print(f"{name}: built, {size / 1000:.0f} kB", flush=True)
        except (build.BuildError, source.SourceError) as problem:
            print(f"{name}: FAILED: {problem}", flush=True)
            failed.append(name)
    return _verdict(failed)


def _run(arguments: argparse.Namespace) -> int:
    lines: list[str] = []
    notebooks = _collect(lines, _notebooks, arguments)
    _collect(lines, _require_preset, arguments.preset)
    seed = _collect(lines, _integer, arguments.seed, "--seed")
    extra = _collect(lines, _parameters, arguments.parameter, notebooks or [])
    _collect(lines, _require_writable, arguments.out)
    if lines:
        raise Refused(*lines)
    from rgdm_lib.course import runner

    outcomes = runner.run_all(notebooks, arguments.preset, seed, arguments.out, extra)
    print("\n" + runner.table(outcomes))
    failed = [o for o in outcomes if o.problem]
    for outcome in failed:
        print(f"{outcome.name}: {outcome.problem}")
    return _verdict([o.name for o in failed])


def _verify(arguments: argparse.Namespace) -> int:
    lines: list[str] = []
    notebooks = _collect(lines, _notebooks, arguments)
    _collect(lines, _require_preset, arguments.preset)
    seed = _collect(lines, _integer, arguments.seed, "--seed")
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
    lines: list[str] = []
    notebooks = _collect(lines, _notebooks, arguments)
    _collect(lines, _require_preset, arguments.preset)
    seeds = [_collect(lines, _integer, text, "--seeds") for text in arguments.seeds]
    _collect(lines, _require_writable, arguments.out)
    _collect(lines, _require_writable, arguments.to)
    if len(set(arguments.seeds)) < len(arguments.seeds):
        lines.append(f"--seeds names a seed twice: {' '.join(arguments.seeds)}")
    if lines:
        raise Refused(*lines)
    from rgdm_lib.course import runner

    failed = []
    for notebook in notebooks:
        try:
            path = runner.reference(
                notebook, arguments.preset, seeds, arguments.out, arguments.to,
                runner.code_hash(notebook),
            )  # fmt: skip
            print(f"{notebook.stem}: wrote {path.name}", flush=True)
        except (runner.RunError, ValueError) as problem:
            print(f"{notebook.stem}: FAILED: {problem}", flush=True)
            failed.append(notebook.stem)
    if arguments.to.resolve() == REPOSITORY / "data" / "reference":
        _write_readme(claims.from_reference(arguments.to))
    return _verdict(failed)


def _claims(arguments: argparse.Namespace) -> int:
    folder = arguments.reference or _data.data_root() / "reference"
    statuses = claims.from_reference(folder)
    for status in statuses:
        claim = status.claim
        print(
            f"{status.outcome:<8} {claim.id:<18} {claim.notebook[:2]} {claim.preset:<7} "
            f"{claim.metric} {claim.bound_text}: {status.measured}"
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
        if name not in known:
            there = ", ".join(known) or "none"
            lines.append(f"experiment {arguments.name} has no option {name!r}; it has {there}")
        options[name] = _literal(text)
    out = arguments.out or Path("runs") / arguments.name / arguments.preset
    _collect(lines, _require_writable, out)
    if lines:
        raise Refused(*lines)
    out.mkdir(parents=True, exist_ok=True)
    function(preset=arguments.preset, out=out, **options)
    return 0


def _sums(arguments: argparse.Namespace) -> int:
    root = REPOSITORY / "data"
    if not root.is_dir():
        raise Refused("there is no data/ beside rgdm_lib: run this in a clone")
    print(f"data/{_data.MANIFEST}: {_data.write_manifest(root)} files")
    return 0


def _collect(lines: list[str], function: Callable, *arguments):
    """Call; keep a refusal's lines so that all of them are shown together."""
    try:
        return function(*arguments)
    except Refused as refusal:
        lines.extend(refusal.args)
        return None


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

    return _choose(sources(arguments.notebooks / "src"), arguments.which, "sources")


def _notebooks(arguments: argparse.Namespace) -> list[Path]:
    found = {path.stem: path for path in sorted(arguments.notebooks.glob("[0-9][0-9]_*.ipynb"))}
    return list(_choose(found, arguments.which, "notebooks").values())


def _require_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise Refused(f"no preset {preset!r}; there are {', '.join(PRESETS)}")


def _integer(text: str, option: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise Refused(f"{option} must be an integer, got {text!r}")
    return int(text)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parameters(pairs: list[list[str]], notebooks: list[Path]) -> dict[str, object]:
    """Check each -p against every chosen notebook's parameters: name and kind of value."""
    if not pairs:
        return {}
    from rgdm_lib.course import runner

    values: dict[str, object] = {}
    lines = []
    for name, text in pairs:
        if name in _OWN_OPTIONS:
            lines.append(f"parameter {name} has its own option: use {_OWN_OPTIONS[name]}")
            continue
        value = _literal(text)
        for notebook in notebooks:
            known = runner.parameters_of(notebook)
            if name not in known:
                own = ", ".join(known)
                lines.append(f"notebook {notebook.stem} has no parameter {name!r}; it has {own}")
                continue
            default = known[name]
            if isinstance(default, str):
                value = text
            elif isinstance(default, float) and type(value) is int:
                value = float(value)
            elif type(value) is not type(default):
                kind = type(default).__name__
                lines.append(f"parameter {name} of {notebook.stem} is of type {kind}, got {text!r}")
        values[name] = value
    if lines:
        raise Refused(*lines)
    return values


def _require_writable(folder: Path) -> None:
    """Try to write into the folder, or into the nearest one above it that exists."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as problem:
        raise Refused(f"cannot write into {folder}: {problem.strerror or problem}") from None


def _write_readme(statuses: list[claims.Status]) -> None:
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(claims.update_readme(text, statuses), encoding="utf-8")
    print("README.md: claims written")


def _verdict(failed: list[str]) -> int:
    if failed:
        print(f"FAILED: {', '.join(failed)}", flush=True)
    return 1 if failed else 0
