"""The command line refuses clearly before anything runs, and reports what failed."""

import json

import example_notebook
import nbformat
import pytest

from rgdm_lib.course import claims, experiments
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
        (["-p", "SCAEL", "1"], "no parameter 'SCAEL'; it has PRESET, SEED, OUT_DIR, SCALE"),
        (["-p", "SCALE", "big"], "is of type float, got 'big'"),
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
    folder = tmp_path / "quick" / NAME
    assert json.loads((folder / "results.json").read_text())["seed"] == 7
    executed = (folder / f"{NAME}.ipynb").read_text()
    assert "SCALE = 2.0" in executed


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


def test_reference_refuses_a_repeated_seed(course, capsys):
    assert course("reference", "--seeds", "1", "1") == 2
    assert "twice" in capsys.readouterr().err


def test_check_names_problems(course, tmp_path, capsys):
    assert course("check") == 0
    source = tmp_path / "src" / f"{NAME}.py"
    source.parent.mkdir()
    source.write_text(example_notebook.SOURCE.replace("<!-- definition -->", "text"))
    assert course("check", folder=tmp_path) == 1
    assert "definition" in capsys.readouterr().out


def test_build_for_a_class(course, tmp_path, capsys):
    assert course("build", "--no-solutions") == 2
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


def fake_experiment(preset, out, epochs=1):
    CALLS.append((preset, out, epochs))


def test_experiment(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"fake": f"{__name__}:fake_experiment"})
    out = ["--out", str(tmp_path)]
    assert main(["experiment", "nothing", *out]) == 2
    assert "no experiment 'nothing'; there are fake" in capsys.readouterr().err
    assert main(["experiment", "fake", "--preset", "slow", *out]) == 2
    assert main(["experiment", "fake", "-p", "epoch", "3", *out]) == 2
    assert "no option 'epoch'; it has epochs" in capsys.readouterr().err
    assert not CALLS
    assert main(["experiment", "fake", "--preset", "laptop", "-p", "epochs", "3", *out]) == 0
    assert CALLS == [("laptop", tmp_path, 3)]


def test_registered_experiments_exist():
    for name in experiments.EXPERIMENTS:
        assert {"preset", "out"} <= set(experiments.load(name).__code__.co_varnames)
