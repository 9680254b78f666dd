"""Relaxation energy as a reward: the energies, the target, and the experiment in preset quick."""

import importlib.util
import math
import shutil

import numpy as np
import pytest
import torch

from rgdm_lib.molecules import energies, judges, relaxation
from rgdm_lib.molecules.data import load_set, save_set
from rgdm_lib.molecules.experiments import base_file, load_guided
from rgdm_lib.molecules.model import load_model

needs_tblite = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason='needs pip install "rgdm_lib[physics]"'
)


def _some(n: int):
    return load_set(base_file("heavy7", "_samples.npz")).subset(range(n))


def _by_size(method: str):
    """In place of an energy: a hundredth of the number of atoms, NaN for every third molecule."""
    factor = 1 + energies.METHODS.index(method)

    def judge(molecules):
        value = torch.from_numpy(molecules.n_atoms).float() * factor / 100
        return value.masked_fill(torch.arange(len(value)) % 3 == 0, math.nan)

    return judge


def test_energies_are_computed_once_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "relaxation_energy", _by_size)
    monkeypatch.setattr(relaxation, "PART", 6)
    path = tmp_path / "set_samples.npz"
    scored = relaxation.write_energies(_some(15), path, tmp_path)
    assert len(scored) == 15 and path.exists()
    no_value = [i for i in range(15) if i % 6 % 3 == 0]  # of each part every third
    for factor, name in enumerate(("relaxation_gfn2", "relaxation_gfn1", "relaxation_mmff94"), 1):
        wanted = scored.n_atoms * factor / 100
        wanted[no_value] = np.nan
        assert load_set(path).property(name) == pytest.approx(wanted, nan_ok=True)

    def never(method):
        raise AssertionError("computed again")

    path.unlink()  # the parts are there
    monkeypatch.setattr(judges, "relaxation_energy", lambda method: never)
    again = relaxation.write_energies(_some(15), path, tmp_path)
    assert np.array_equal(
        again.property("relaxation_gfn1"), scored.property("relaxation_gfn1"), True
    )
    monkeypatch.setattr(judges, "relaxation_energy", never)  # the set is there
    assert len(relaxation.write_energies(_some(15), path, tmp_path)) == 15


def test_energies_are_those_of_the_molecules(tmp_path, monkeypatch):
    """Other molecules under the same name, with the set there and with its parts only."""
    monkeypatch.setattr(judges, "relaxation_energy", _by_size)
    path, some = tmp_path / "set_samples.npz", _some(12)
    other = some.subset(range(11, -1, -1))
    assert other.n_atoms.tolist() != some.n_atoms.tolist()
    for rest in (False, True):
        relaxation.write_energies(some, path, tmp_path)
        if rest:
            path.unlink()
        found = relaxation.write_energies(other, path, tmp_path)
        energy = found.property("relaxation_gfn2")
        there = np.isfinite(energy)
        assert energy[there] == pytest.approx(other.n_atoms[there] / 100) and there.sum() == 8


def test_the_payoff_is_of_lower_energy_and_keeps_the_sizes():
    molecules = _some(300)
    energy = np.random.default_rng(0).exponential(0.02, 300).astype("float32")
    energy[::4] = np.nan
    molecules = molecules.with_properties(relaxation_gfn2=energy)
    draw, weighted = relaxation.relaxation_draw(molecules), relaxation.relaxation_target(molecules)
    assert weighted.ess == pytest.approx(0.4 * np.isfinite(energy).sum(), rel=1e-3)
    weight = weighted.log_weight.exp()
    assert float(weight[::4].sum()) == 0
    assert -float(weighted.expectation(draw.reward)) < 0.8 * np.nanmean(energy)
    for n in (14, 16):
        inside = draw.strata == n
        assert float(weight[inside].sum()) == pytest.approx(float(inside.double().mean()))


def test_names():
    assert relaxation.relaxation_name("base", 0) == "relaxation_heavy7_base_samples.npz"
    control = relaxation.relaxation_name("control", 1)
    assert control == "relaxation_heavy7_control_seed1_samples.npz"
    guided = relaxation.relaxation_name("guided", 2, ending=".safetensors")
    assert guided == "relaxation_heavy7_seed2.safetensors"
    with pytest.raises(ValueError, match="no kind 'data': choose from real, base, control"):
        relaxation.relaxation_name("data", 0)


def test_the_strength_is_where_the_line_meets_the_payoffs_energy(tmp_path, monkeypatch):
    """Energies that fall by 0.001 eV a unit of strength: half of what the levels promise."""
    model = {"guided": "ess40", "control": "ess100", "base": None}
    networks = {
        kind: load_model(
            base_file("heavy7").with_name(f"qed_heavy7_model_{name}_seed0.safetensors")
            if name
            else None
        )[0]
        for kind, name in model.items()
    }
    weights = tmp_path / relaxation.relaxation_name("guided", 0, ending=".safetensors")
    shutil.copy(base_file("heavy7").with_name("qed_heavy7_model_ess40_seed0.safetensors"), weights)
    energy, drawn = np.linspace(0.01, 0.05, 200), []

    def with_mean(mean):
        return _some(200).with_properties(relaxation_gfn2=energy - energy.mean() + mean)

    def write(kind, mean):
        save_set(tmp_path / relaxation.relaxation_name(kind, 0), with_mean(mean))
        return with_mean(mean)

    def sample(denoiser, path, preset, noise, n, data, strength):
        drawn.append((path.name, noise, strength))
        ones = torch.ones(2, 9, 9), torch.tensor([500, 500])
        with torch.no_grad():
            said = {kind: network(*ones) for kind, network in networks.items()}
            expected = said["base"] + strength * (said["guided"] - said["control"])
            torch.testing.assert_close(denoiser(*ones), expected)
        save_set(path, _some(200).with_properties(strength=np.full(200, strength)))

    def judged(made, path, out):
        mean = 0.03 - 0.001 * made.property("strength")[0]
        energies = with_mean(mean).property("relaxation_gfn2")
        save_set(path, made.with_properties(relaxation_gfn2=energies))

    monkeypatch.setattr(relaxation, "sample_and_score", sample)
    monkeypatch.setattr(relaxation, "write_energies", judged)
    target = relaxation.relaxation_target(write("base", 0.03))
    aim = -float(target.expectation(target.reward))
    assert aim < 0.025
    write("control", 0.06)
    write("guided", 0.058)
    (path,) = relaxation.strengthen_relaxation("quick", tmp_path, seeds=(0,))
    assert path.name == "relaxation_heavy7_seed0_strengthened_samples.npz"
    (_, noise, tried), (name, fresh, strength) = drawn
    assert name == path.name and len({noise, fresh} | {0, 1, 2}) == 5
    assert tried == pytest.approx((0.03 - aim) / 0.002, rel=1e-3)
    assert strength == pytest.approx((0.03 - aim) / 0.001, rel=1e-3)
    relaxation.strengthen_relaxation("quick", tmp_path, seeds=(0,))
    assert len(drawn) == 2
    path.unlink()
    (trial,) = tmp_path.glob("*_trial.npz")  # stopped before its energies: they are made up for
    save_set(trial, _some(200).with_properties(strength=np.full(200, tried)))
    relaxation.strengthen_relaxation("quick", tmp_path, seeds=(0,))
    assert [name for name, *_ in drawn[2:]] == [path.name]
    path.unlink()
    write("guided", 0.061)
    with pytest.raises(ValueError, match="of the guided model, -0.06 of its control: no strength"):
        relaxation.strengthen_relaxation("quick", tmp_path, seeds=(0,))


@needs_tblite
def test_experiment_from_the_control_judged_by_all_models(tmp_path):
    paths = relaxation.guide_relaxation("quick", tmp_path, seeds=(0,))
    assert [path.name for path in paths] == [
        f"relaxation_heavy7_{kind}_samples.npz"
        for kind in (
            "base", "real", "control_seed0", "control_of_data_seed0",
            "rewarded_for_stability_seed0", "seed0",
        )
    ]  # fmt: skip
    base, real, control, control_of_data, rewarded, guided = sets = [load_set(p) for p in paths]
    assert [len(s) for s in sets] == [40, 10, 10, 10, 10, 10]
    assert np.isfinite(rewarded.property("relaxation_gfn2")).sum() >= 7
    assert set(real.split) <= {1, 2}  # none that the base was trained on
    for molecules in (base, real, control, control_of_data):
        stable = judges.stability(molecules) == 1
        for name in relaxation.COLUMNS:
            value = torch.from_numpy(molecules.property(name))
            assert bool((value[stable] >= 0).all()) and bool(value[~stable].isnan().all())
    one = int(np.flatnonzero(np.isfinite(base.property("relaxation_gfn2")))[0])
    again = judges.relaxation_energy("GFN2-xTB", workers=1)(base.subset([one]))
    assert base.property("relaxation_gfn2")[one] == pytest.approx(float(again), rel=1e-3)
    for found, reference in ((control, "model"), (control_of_data, "data")):
        positions = load_guided(reference, 100, 0).subset(range(len(found))).positions
        assert np.array_equal(found.positions, positions)
    weights = [
        load_model(path)[0].state_dict()
        for path in (
            tmp_path / "relaxation_heavy7_seed0.safetensors",
            base_file("heavy7").with_name("qed_heavy7_model_ess100_seed0.safetensors"),
            base_file("heavy7"),
        )
    ]
    far = [sum(float((weights[0][k] - w[k]).square().sum()) for k in w) ** 0.5 for w in weights[1:]]
    assert 0 < far[0] < 0.5 * far[1]  # it starts at the control
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert relaxation.guide_relaxation("quick", tmp_path, seeds=(0,)) == paths
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
