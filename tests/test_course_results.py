"""Metrics, results files, exercises' verdicts, claims."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from rgdm_lib.course import claims, exercises, notebook, results


@pytest.fixture
def run(tmp_path):
    return notebook.start("98_example", "quick", 3, str(tmp_path))


# ---- a run ----


def test_start_seeds_torch(tmp_path):
    notebook.start("98_example", "quick", 3, str(tmp_path))
    first = torch.randn(4)
    notebook.start("98_example", "quick", 3, str(tmp_path))
    assert torch.equal(first, torch.randn(4))


@pytest.mark.parametrize(
    ("preset", "seed"),
    [("slow", 0), ("quick", 1.0), ("quick", True), ("quick", -1), ("quick", 2**63)],
)
def test_start_refuses(tmp_path, preset, seed):
    with pytest.raises((ValueError, TypeError), match="PRESET|SEED"):
        notebook.start("98_example", preset, seed, str(tmp_path))


def test_another_seed_has_another_folder(tmp_path):
    folders = {notebook.start("98_example", "quick", s, str(tmp_path)).folder for s in (0, 1, 10)}
    assert {f.name for f in folders} == {
        "98_example", "98_example-seed-1", "98_example-seed-10"
    }  # fmt: skip


def test_a_full_disk_leaves_the_old_results(run, monkeypatch):
    run.metric("x", 1.0, "1", 10, "a definition")
    run.finish()
    before = (run.folder / "results.json").read_text()

    def full_disk(path, text, **options):
        path.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    run.metric("x", 2.0, "1", 10, "a definition")
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        run.finish()
    assert (run.folder / "results.json").read_text() == before
    assert not list(run.folder.glob("*.part"))


def test_settings_of_the_preset(run):
    assert run.settings(quick={"n": 1}, laptop={"n": 2}, full={"n": 3}).n == 1
    with pytest.raises(ValueError, match=r"\['m'\]"):
        run.settings(quick={"n": 1}, laptop={"n": 2, "m": 1}, full={"n": 3})


@pytest.mark.parametrize(("name", "value"), [("Bad name", 1.0), ("x", math.nan), ("x", math.inf)])
def test_metric_refuses(run, name, value):
    with pytest.raises(ValueError):
        run.metric(name, value, "1", 10, "a definition")


def test_metric_again_replaces_but_not_under_another_definition(run):
    run.metric("x", 1.0, "1", 10, "a definition")
    run.metric("x", 2.0, "1", 10, "a definition")
    with pytest.raises(ValueError, match="another definition"):
        run.metric("x", 2.0, "1", 10, "another definition")


def test_results_hold_metrics_and_neither_time_nor_path(run, tmp_path, capsys):
    run.metric("x", torch.tensor(0.5), "eV", 10, "a definition", floor=0.1, ceiling=0.9)
    assert capsys.readouterr().out == "x = 0.5 eV, floor 0.1, ceiling 0.9 (n = 10)\n"
    run.finish()
    folder = tmp_path / "quick" / "98_example-seed-3"
    text = (folder / "results.json").read_text()
    record = json.loads(text)
    assert sorted(record) == ["metrics", "notebook", "preset", "schema", "seed"]
    assert record["metrics"]["x"] == {
        "value": 0.5, "unit": "eV", "n": 10, "definition": "a definition"
    }  # fmt: skip
    assert sorted(record["metrics"]) == ["x", "x_ceiling", "x_floor"]
    assert str(tmp_path) not in text
    assert list(record["metrics"]["x"]) == sorted(record["metrics"]["x"])
    assert json.loads((folder / "run.json").read_text())["versions"]["torch"]


def test_figure_is_saved_and_closed(run, tmp_path):
    fig, _ = plt.subplots()
    run.figure(fig, "empty", alt="Nothing.", see="Nothing.")
    assert (tmp_path / "quick/98_example-seed-3/figures/empty.png").read_bytes()[1:4] == b"PNG"
    assert not plt.fignum_exists(fig.number)


def test_figure_grows_around_what_would_be_cut_off(run, capsys):
    fig, ax = plt.subplots()
    fig.text(0.95, 0.99, "a long text over the edge")
    run.figure(fig, "wide", alt="A text.", see="A text.")
    pixels = plt.imread(run.folder / "figures" / "wide.png")
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == pixels[0, 0]).all()


# ---- comparing and aggregating ----


def text_of(seed=0, **values):
    metrics = {k: results.Metric(v, "1", 5, "a definition") for k, v in values.items()}
    return results.results_text("98_example", "quick", seed, metrics)


def test_difference_names_the_metric():
    a = text_of(x=1.0, y=2.0).encode()
    assert results.difference(a, a) == []
    assert results.difference(a, text_of(x=1.0, y=2.0 + 1e-15).encode())[0].startswith("metric y")
    assert "only in one" in results.difference(a, text_of(x=1.0).encode())[0]
    assert results.difference(a, text_of(seed=1, x=1.0, y=2.0).encode()) == ["seed: 0 and 1"]
    assert results.difference(a, a + b" ") != []


def test_aggregate():
    records = [json.loads(text_of(seed=s, x=v)) for s, v in enumerate([1.0, 2.0, 6.0])]
    x = results.aggregate(records)["x"]
    assert x["values"] == [1.0, 2.0, 6.0]
    assert x["mean"] == 3.0 and x["seeds"] == 3 and x["n"] == 5
    assert x["std"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert x["tolerance"] == 4 * x["std"]
    assert results.aggregate(records[:1])["x"]["tolerance"] is None
    with pytest.raises(ValueError, match="'y'"):
        results.aggregate([*records, json.loads(text_of(x=1.0, y=1.0))])


def test_read_results_refuses_another_schema(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"schema": "other"}')
    with pytest.raises(ValueError, match="other"):
        results.read_results(path)


# ---- exercises ----


@exercises.exercise("99.1")
def check_double(double):
    torch.manual_seed(0)
    x = torch.randn(3)
    exercises.require_close(double(x), 2 * x, "twice x")
    exercises.require(double(1) == 2, "integers too")


@pytest.mark.parametrize(
    ("answer", "status", "because"),
    [
        (lambda x: 2 * x, "right", ""),
        (lambda x: None, "unsolved", ""),
        (None, "unsolved", ""),
        (..., "unsolved", ""),
        (lambda x: x, "wrong", "is right; twice x"),
        (lambda x: x[:1], "wrong", "its shape is (1,), not (3,)"),
        (lambda x: x * math.nan, "wrong", "nan"),
        (lambda x: 1 / 0, "wrong", "it raised ZeroDivisionError: division by zero"),
        (3, "wrong", "the check cannot use what it got (TypeError: 'int' object"),
    ],
)
def test_verdicts(answer, status, because, capsys):
    verdict = exercises.grade("99.1", answer)
    assert verdict.status == status
    assert because in verdict.because
    exercises.check("99.1", answer)
    assert capsys.readouterr().out.startswith("exercise 99.1: ")


def test_a_stub_that_raises_is_unsolved():
    def stub(x):
        raise NotImplementedError

    assert exercises.grade("99.1", stub).status == "unsolved"


def test_a_check_does_not_move_the_random_state():
    torch.manual_seed(5)
    expected = torch.randn(2)
    torch.manual_seed(5)
    exercises.grade("99.1", lambda x: 2 * x)
    assert torch.equal(torch.randn(2), expected)


def test_mistakes_of_the_author_are_raised():
    with pytest.raises(LookupError, match="nb97"):
        exercises.grade("97.1", 1)
    with pytest.raises(TypeError):
        exercises.grade("99.1", 1, 2)


# ---- claims ----

CLAIM = claims.Claim("c", "it holds", "98_example", "x", "quick", ((">=", 0.8), ("<=", 1.2)))


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([0.8, 1.2], "pass"),
        ([1.0, 1.3], "fail"),
        ([0.7], "fail"),
        ([], "not run"),
        (None, "not run"),
    ],
)
def test_every_seed_has_to_meet_the_bound(values, outcome):
    assert claims.judge(CLAIM, values).outcome == outcome


def test_claims_of_a_run(monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", (CLAIM,))
    assert [s.outcome for s in claims.from_run(json.loads(text_of(x=1.0)))] == ["pass"]
    assert [s.outcome for s in claims.from_run(json.loads(text_of(y=1.0)))] == ["not run"]
    assert claims.from_run({**json.loads(text_of(x=1.0)), "preset": "full"}) == []


def test_claims_are_well_formed():
    assert len({claim.id for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    for claim in claims.CLAIMS:
        assert claim.preset in results.PRESETS
        assert claim.bounds


def test_readme_holds_the_current_claims(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    current = claims.readme_table(claims.from_reference(root / "data" / "reference"))
    assert current in readme, "run: python -m rgdm_lib.course claims --readme"


def test_readme_block_is_replaced():
    text = f"a\n{claims.README_BEGIN}\nformer\n{claims.README_END}\nb\n"
    new = claims.update_readme(text, [claims.judge(CLAIM, [1.0])])
    assert new.startswith("a\n") and new.endswith("\nb\n") and "former" not in new
    assert "0.8 to 1.2" in new and "| pass |" in new
    with pytest.raises(ValueError, match="claims:begin"):
        claims.update_readme("no block", [])
