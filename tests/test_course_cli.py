"""The command line refuses clearly before anything runs, and reports what failed."""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import example_notebook
import nbformat
import papermill
import pytest

from rgdm_lib.course import claims, cli, experiments, provenance, runner
from rgdm_lib.course.cli import main

NAME = example_notebook.NAME


@pytest.fixture
def course(example_folder, tmp_path):
    """Call the command line on the example; results go into tmp_path / "out"."""

    def call(command, *words, folder=example_folder):
        return main([command, *words, "--notebooks", str(folder)])

    return call


def broken_copy(folder, tmp_path, text, replacement):
    """A folder with the built example in which one piece of code is replaced."""
    nb = nbformat.read(folder / f"{NAME}.ipynb", as_version=4)
    cell = next(cell for cell in nb.cells if text in cell.source)
    cell.source = cell.source.replace(text, replacement)
    nbformat.write(nb, tmp_path / f"{NAME}.ipynb")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["77"], "no notebook '77'; there are 98_example"),
        (["--preset", "slow"], "no preset 'slow'; there are quick, laptop, full"),
        (["--seed", "1.5"], "--seed must be an integer, got '1.5'"),
        (["--seed", "one"], "--seed must be an integer, got 'one'"),
        (["--seed", "-1"], "--seed must be from 0 to 2^63 - 1, got -1"),
        (["--seed", str(2**63)], "--seed must be from 0 to 2^63 - 1"),
        (["--seed", "9" * 5000], "--seed must be from 0 to 2^63 - 1"),
        (["-p", "SCAEL", "1"], "no parameter 'SCAEL'; it has PRESET, SEED, OUT_DIR, SCALE"),
        (["-p", "SCALE", "big"], "is of type float, got 'big'"),
        (["-p", "SCALE", "{[]: 1}"], "is of type float, got '{[]: 1}'"),
        (["-p", "SCALE", "-big"], "expected 2 arguments"),
        (["-p", "SEED", "1"], "use --seed"),
        (["--colour", "red"], "unrecognized arguments: --colour"),
    ],
)
def test_run_refuses_in_one_line(course, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert course("run", *words, "--out", str(out)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("refused: ") and message in lines[0]
    assert not out.exists()


def test_run_refuses_a_folder_that_cannot_be_written(course, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert course("run", "--out", str(tmp_path / "file" / "out")) == 2
    assert capsys.readouterr().err.startswith("refused: cannot write into")


def test_run_refuses_a_path_that_papermill_would_format(course, example_folder, tmp_path, capsys):
    for out in ("a{SEED}b", "a{b", "{}"):
        assert course("run", "--out", str(tmp_path / out)) == 2
        assert "--out must have no braces in its path" in capsys.readouterr().err
    shutil.copytree(example_folder, tmp_path / "{x}")
    assert course("run", "--out", str(tmp_path), folder=tmp_path / "{x}") == 2
    assert "must have no braces" in capsys.readouterr().err


def test_run_names_everything_that_is_wrong_at_once(course, tmp_path, capsys):
    words = ["--preset", "slow", "--seed", "x", "--out", str(tmp_path)]
    assert course("run", *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_run_without_notebooks(tmp_path, capsys):
    assert main(["run", "--notebooks", str(tmp_path)]) == 2
    assert "no notebooks found" in capsys.readouterr().err


def test_run(course, tmp_path, capsys, monkeypatch):
    claim = claims.Claim("c", "it is small", NAME, "mean", "quick", (("<=", 100),))
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    words = ["98", "--seed", "7", "-p", "SCALE", "2", "--out", str(tmp_path)]
    assert course("run", *words) == 0
    assert "1/1" in capsys.readouterr().out
    folder = tmp_path / "quick" / f"{NAME}-seed-7"
    assert json.loads((folder / "results.json").read_text())["seed"] == 7
    executed = (folder / f"{NAME}.ipynb").read_text()
    assert "SCALE = 2.0" in executed
    # another seed leaves the first one's results
    assert course("run", "-p", "SCALE", "-1e-3", "--out", str(tmp_path)) == 0
    assert "SCALE = -0.001" in (tmp_path / "quick" / NAME / f"{NAME}.ipynb").read_text()
    assert json.loads((folder / "results.json").read_text())["seed"] == 7


def test_a_claim_that_fails_fails_the_run(course, tmp_path, capsys, monkeypatch):
    claim = claims.Claim("tiny", "it is tiny", NAME, "mean", "quick", (("<=", -100),))
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    assert course("run", "--out", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "0/1" in out and "claim tiny: mean is" in out and f"FAILED: {NAME}" in out


def test_a_notebook_that_raises_fails_the_run(course, example_folder, tmp_path, capsys):
    folder = broken_copy(example_folder, tmp_path, "run.finish()", "1 / 0")
    assert course("run", "--out", str(tmp_path / "out"), folder=folder) == 1
    assert "raised ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_a_notebook_without_results_fails_the_run(course, example_folder, tmp_path, capsys):
    folder = broken_copy(example_folder, tmp_path, "run.finish()", "pass")
    assert course("run", "--out", str(tmp_path / "out"), folder=folder) == 1
    assert "wrote no results.json" in capsys.readouterr().out


def test_what_breaks_one_notebook_does_not_stop_the_others(
    course, example_folder, tmp_path, capfd
):
    """A kernel that dies and a file that is not JSON: one line each, and the table."""
    folder = broken_copy(example_folder, tmp_path, "run.finish()", "__import__('os')._exit(1)")
    (folder / "96_text.ipynb").write_text("no JSON")
    (folder / "97_other.ipynb").write_text("[1]")
    shutil.copy(example_folder / f"{NAME}.ipynb", folder / "99_whole.ipynb")
    assert course("run", "-p", "SCALE", "1", "--out", str(tmp_path / "out"), folder=folder) == 1
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert "96_text: the file is not a notebook: it is not JSON" in lines
    assert sum(line.startswith("97_other: ") for line in lines) == 1
    assert f"{NAME}: its kernel died: out of memory, or a crash in compiled code" in lines
    # 99 ran to its end, under a name that is not its own
    assert "99_whole: it wrote no results.json; its last code cell must call run.finish()" in lines
    assert lines.index(next(x for x in lines if x.startswith("notebook "))) == 5
    assert err == ""


def test_a_kernel_that_does_not_start_fails_the_run(course, tmp_path, capfd, monkeypatch):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-c", "raise SystemExit(3)", "{connection_file}"]
    record = {"argv": command, "display_name": "dead", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(record))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert course("run", "--out", str(tmp_path / "out")) == 1
    out, err = capfd.readouterr()
    assert f"{NAME}: its kernel died" in out and f"FAILED: {NAME}" in out and err == ""


def test_a_full_disk_fails_the_run(course, tmp_path, capsys, monkeypatch):
    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", full_disk)
    assert course("run", "--out", str(tmp_path / "out")) == 1
    assert f"{NAME}: OSError: [Errno 28] No space left on device" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "build"])
@pytest.mark.parametrize(("early", "slow"), [(True, 0), (False, 0), (False, 2)])
def test_ctrl_c_is_one_line_and_leaves_no_orphan(
    example_folder, tmp_path, command, early, slow, monkeypatch
):
    """Also on a slow machine, where nbclient's waiting tasks see the kernel die: once a second."""
    note = tmp_path / "pid"
    wait = f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n"
    source = example_notebook.SOURCE.replace("print(settings.n)", wait + "time.sleep(60)")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / f"{NAME}.py").write_text(source)
    broken_copy(example_folder, tmp_path, "print(settings.n)", wait + "time.sleep(60)")
    folders = ["--notebooks", str(tmp_path)]
    if command == "run":
        folders += ["--out", str(tmp_path / "out")]
    # where nbclient puts the connection file of a kernel that is starting
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "runtime"))
    process = subprocess.Popen(
        [sys.executable, "-c", ALLOWING_PATHS.format(slow=slow), command, *folders],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # a test run in the background of a shell ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    awaited = tmp_path / "runtime" / "*.json" if early else note
    deadline = time.monotonic() + 60
    while not list(awaited.parent.glob(awaited.name)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    alive = kernels(tmp_path / "runtime")
    assert early or alive
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err.splitlines()) == (130, ["interrupted"]), out + err
    assert "FAILED" not in out
    deadline = time.monotonic() + 10
    while kernels(tmp_path / "runtime") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert kernels(tmp_path / "runtime") == []


ALLOWING_PATHS = """
import asyncio, sys
from jupyter_client import AsyncKernelManager
from rgdm_lib.course import cli, guards
guards.no_machine_paths = lambda nb: []
cleanup = AsyncKernelManager.cleanup_resources
async def slowly(*arguments, **options):
    await asyncio.sleep({slow})
    await cleanup(*arguments, **options)
AsyncKernelManager.cleanup_resources = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


def kernels(runtime):
    """Ids of the processes whose command line names a connection file in the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(runtime).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_two_runs_into_one_folder(course, tmp_path, capsys):
    out = tmp_path / "out"
    with runner.lock(out / "quick" / NAME):
        assert course("run", "--out", str(out)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "another run is writing into" in lines[0] and NAME in lines[0]
        words = ["reference", "--out", str(out), "--to", str(tmp_path)]
        assert course(*words) == 2
        assert course("run", "--seed", "1", "--out", str(out)) == 0
    assert course("run", "--out", str(out)) == 0


def test_verify(course):
    assert course("verify") == 0


@pytest.mark.parametrize("value", ["hash('a')", "sum(map(ord, __import__('os').getcwd()))"])
def test_verify_names_the_metric_that_moves(course, example_folder, tmp_path, capsys, value):
    folder = broken_copy(example_folder, tmp_path, 'run.metric("mean", x.mean()',
                         f'run.metric("mean", {value}')  # fmt: skip
    assert course("verify", folder=folder) == 1
    assert "two runs differ: metric mean: value" in capsys.readouterr().out


def test_reference(course, tmp_path, capsys):
    words = ["--seeds", "0", "1", "--out", str(tmp_path / "runs"), "--to", str(tmp_path / "ref")]
    assert course("reference", "98", *words) == 0
    record = json.loads((tmp_path / "ref" / f"{NAME}.quick.json").read_text())
    assert record["seeds"] == [0, 1]
    assert len(set(record["metrics"]["mean"]["values"])) == 2
    assert record["command"].endswith("reference 98 --preset quick --seeds 0 1")
    assert len(record["code"]) == 64
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize("seeds", [["1", "1"], ["0", "00"], ["1", "+1"]])
def test_reference_refuses_a_repeated_seed(course, capsys, seeds):
    assert course("reference", "--seeds", *seeds) == 2
    assert "twice" in capsys.readouterr().err


def test_stale_results_are_named_and_measured_again(
    course, example_folder, tmp_path, capsys, monkeypatch
):
    claim = claims.Claim("c", "it is small", NAME, "mean", "quick", (("<=", 100),))
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    monkeypatch.setattr(cli, "_clone_notebooks", lambda: example_folder)
    reference = tmp_path / "ref" / f"{NAME}.quick.json"
    folders = ["--out", str(tmp_path / "runs"), "--to", str(reference.parent)]
    judge = ["claims", "--reference", str(reference.parent)]
    assert course("reference", "--seeds", "3", "5", *folders) == 0
    capsys.readouterr()
    assert main(judge) == 0
    assert "stale" not in capsys.readouterr().out
    record = json.loads(reference.read_text())
    reference.write_text(json.dumps({**record, "code": "of another time"}))
    assert main(judge) == 0
    out = capsys.readouterr().out
    assert out.startswith("pass, stale c ") and "reference --stale" in out
    assert course("reference", "--stale", "--seeds", "1", *folders) == 2
    assert course("reference", "--stale", *folders) == 0
    assert json.loads(reference.read_text()) == record
    capsys.readouterr()
    assert course("reference", "--stale", *folders) == 0
    assert capsys.readouterr().out == ""


def test_the_code_of_a_result_is_what_the_notebook_runs(example_folder, tmp_path, monkeypatch):
    package = tmp_path / "rgdm_lib"
    shutil.copytree(Path(provenance._PACKAGE), package, ignore=shutil.ignore_patterns("__pyc*"))
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    notebook = example_folder / f"{NAME}.ipynb"
    before = provenance.code_hash(notebook)

    def after(name, added="more = 1\n"):
        """The hash with something added to a file of the package."""
        text = (package / name).read_text()
        (package / name).write_text(text + added)
        found = provenance.code_hash(notebook)
        (package / name).write_text(text)
        return found

    assert after("course/notebook.py") != before  # imported by the notebook
    assert after("course/results.py") != before  # imported by what it imports
    assert after("course/notebook.py", "# more\n") == before  # does not run
    assert after("molecules/egnn.py") == before  # nothing of the notebook's
    for text, replacement, same in (
        ("mean of the draws", "mean of draws", False),
        ("In Colab this", "In Colab it", True),
        ("A promise.", "No promise.", True),
    ):
        folder = tmp_path / replacement.replace(" ", "_")
        folder.mkdir()
        broken_copy(example_folder, folder, text, replacement)
        assert (provenance.code_hash(folder / notebook.name) == before) is same


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ('"""What."""\n\nx = 1  # why\n', "x = 1"),
        ("# alone\nx = (1,\n     # inside\n\n     2)\n", "x = (1,\n     2)"),
        ('def f():\n    """What.\n\n    More.\n    """\n    return 1\n', "def f():\n    return 1"),
        ('class A(Exception):\n    """What."""\n\n\nx = 1\n', "class A(Exception):\nx = 1"),
        ('x = """a # b\n\nc"""\n', 'x = """a # b\n\nc"""'),
        ('f(\n    "a # b"\n)\n', 'f(\n    "a # b"\n)'),
        ('x = f"{y} # z"  # why', 'x = f"{y} # z"'),
        ('f(alt="a, "\n  "b",\n  see="c", n=1)\n', "f(alt=,\n  see=, n=1)"),
        ('f(see="a "\n  f"{b}")\n', 'f(see=\n  f"{b}")'),
        ('see = 1\nf("alt", "see")\n', 'see = 1\nf("alt", "see")'),
    ],
)
def test_comments_and_docstrings_do_not_run(text, runs):
    assert provenance.what_runs(text) == runs


def test_the_data_of_a_result_is_what_its_code_names(tmp_path, monkeypatch):
    cell = {"cell_type": "code", "metadata": {}, "source": []}
    cell["source"] = 'from rgdm_lib._data import data_path\ndata_path("molecules/a.npz")'
    notebook = tmp_path / "01_example.ipynb"
    notebook.write_text(json.dumps({"cells": [cell]}))
    manifest = {"molecules/a.npz": "1", "worlds/b.json": "2"}
    monkeypatch.setattr(provenance._data, "read_manifest", lambda root: manifest)
    before = provenance.code_hash(notebook)
    manifest["worlds/b.json"] = "3"
    assert provenance.code_hash(notebook) == before
    manifest["molecules/a.npz"] = "4"
    assert provenance.code_hash(notebook) != before
    cell["source"] = cell["source"].replace("molecules/a.npz", "worlds/b.json")
    notebook.write_text(json.dumps({"cells": [cell]}))
    of_worlds = provenance.code_hash(notebook)
    manifest["molecules/a.npz"] = "5"  # the example in data_path's docstring names it, too
    assert provenance.code_hash(notebook) == of_worlds


def test_claims_needs_reference_results(tmp_path, capsys):
    assert main(["claims", "--reference", str(tmp_path / "nothing")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "there is no folder" in lines[0] and "nothing" in lines[0]
    for text in ("no JSON", "[]", '{"metrics": 1}'):
        (tmp_path / "07_rgdm.quick.json").write_text(text)
        assert main(["claims", "--reference", str(tmp_path)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "07_rgdm.quick.json holds no reference results" in lines[0]


@pytest.mark.parametrize(
    "words",
    [["check"], ["build"], ["run"], ["verify"], ["reference"], ["claims", "--readme"], ["sums"],
     ["experiment", "molecules-base", "--preset", "laptop"]],
)  # fmt: skip
def test_an_installed_package_is_not_written_into(root, tmp_path, words):
    """From a wheel, what needs a clone is refused in a line, and no file changes."""
    site = tmp_path / "site-packages"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "rgdm_lib", site / "rgdm_lib", ignore=ignore)
    shutil.copytree(root / "data", site / "rgdm_lib" / "_data_files")
    before = sorted(site.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "rgdm_lib.course", *words], cwd=tmp_path, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("refused: this needs ") and "clone" in lines[0]
    assert sorted(site.rglob("*")) == before


@pytest.mark.parametrize("command", ["check", "build", "run", "verify", "reference"])
def test_a_missing_extra_is_named(course, capsys, monkeypatch, command):
    found = importlib.util.find_spec

    def without(name):
        return None if name in ("papermill", "jupytext") else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert course(command) == 2
    line = 'refused: no jupytext, papermill here: pip install "rgdm_lib[course]"\n'
    assert capsys.readouterr().err == line


def test_full_without_qm9_is_refused_at_once(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setenv("RGDM_CACHE", str(tmp_path))
    monkeypatch.delenv("RGDM_QM9_WHEEL", raising=False)
    out = tmp_path / "out"
    words = ["experiment", "molecules-base", "--preset", "full", "--out", str(out)]
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and 'pip install "rgdm_lib[qm9]"' in lines[0]
    monkeypatch.setenv("RGDM_QM9_WHEEL", str(tmp_path / "none.whl"))
    assert main(words) == 2
    assert "none.whl: no such file" in capsys.readouterr().err
    assert not out.exists()


def test_check_names_problems(course, tmp_path, capsys):
    assert course("check") == 0
    source = tmp_path / "src" / f"{NAME}.py"
    source.parent.mkdir()
    source.write_text(example_notebook.SOURCE.replace("<!-- definition -->", "text"))
    assert course("check", folder=tmp_path) == 1
    assert "definition" in capsys.readouterr().out


def test_build_for_a_class(course, example_folder, tmp_path, capsys):
    assert course("build", "--no-solutions") == 2
    assert course("build", "--no-solutions", "--to", str(example_folder)) == 2
    assert "these are the course's own" in capsys.readouterr().err
    assert course("build", "--no-solutions", "--to", str(tmp_path)) == 0
    text = (tmp_path / f"{NAME}.ipynb").read_text()
    assert "Solution of exercise" not in text and "return 2 * x" not in text


def test_claims(tmp_path, capsys, monkeypatch):
    claim = claims.Claim("c", "it is small", NAME, "mean", "quick", (("<=", 1),))
    monkeypatch.setattr(claims, "CLAIMS", (claim,))
    assert main(["claims", "--reference", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("not run")
    reference = tmp_path / f"{NAME}.quick.json"
    for values, code, word in (([0.5], 0, "pass"), ([0.5, 2.0], 1, "fail")):
        reference.write_text(json.dumps({"metrics": {"mean": {"values": values}}}))
        assert main(["claims", "--reference", str(tmp_path)]) == code
        assert capsys.readouterr().out.startswith(word)


CALLS = []


def fake_experiment(preset, out, epochs=1, lr=1e-3):
    CALLS.append((preset, out, epochs, lr))


def test_experiment(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"fake": f"{__name__}:fake_experiment"})
    out = ["--out", str(tmp_path)]
    assert main(["experiment", "nothing", *out]) == 2
    assert "no experiment 'nothing'; there are fake" in capsys.readouterr().err
    assert main(["experiment", "fake", "--preset", "slow", *out]) == 2
    assert main(["experiment", "fake", "-p", "epoch", "3", *out]) == 2
    assert "no option 'epoch'; it has epochs, lr" in capsys.readouterr().err
    assert main(["experiment", "fake", "-p", "lr", "abc", *out]) == 2
    assert "option lr of fake is of type float, got 'abc'" in capsys.readouterr().err
    assert not CALLS
    words = ["--preset", "laptop", "-p", "epochs", "3", "-p", "lr", "-1e-3"]
    assert main(["experiment", "fake", *words, *out]) == 0
    assert CALLS == [("laptop", tmp_path, 3, -1e-3)]


def test_registered_experiments_exist():
    for name in experiments.EXPERIMENTS:
        assert {"preset", "out"} <= set(inspect.signature(experiments.load(name)).parameters)
