"""Judges of molecules: order, no value, cache; energies by physical models."""

import dataclasses
import importlib.util
import math

import molecule_functions
import numpy as np
import pytest
import torch
from hand_made_molecules import from_smiles, methyl, two_waters

from rgdm_lib import parallel
from rgdm_lib.molecules import bonds, energies, judges, metrics
from rgdm_lib.molecules.data import MoleculeSet, encode, load_qm9

needs_tblite = pytest.mark.skipif(
    importlib.util.find_spec("tblite") is None, reason='needs pip install "rgdm_lib[physics]"'
)


@pytest.fixture(scope="module")
def heavy7():
    return load_qm9("heavy7")


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """How many molecules were computed until now."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("CALLS", str(path))
    return lambda: len(path.read_text().splitlines())


def test_values_in_order_and_reasons_counted(calls):
    molecules = MoleculeSet.concatenate(
        [from_smiles("CCC", "CN", "C", "CO", "CF", "CC"), two_waters(), methyl()]
    )
    judge = judges.Judge(molecule_functions.weight, workers=1)
    values = judge(molecules)
    assert values.dtype == torch.float32
    no = math.nan
    assert values.tolist() == pytest.approx([11, no, 5, no, no, 8, no, no], nan_ok=True)
    assert judge.without_value == {
        "RuntimeError: out of luck": 1,
        parallel.DIED: 1,
        "not finite": 1,
        judges.NO_MOLECULE: 2,
    }
    assert calls() == 6


def test_a_molecule_known_to_the_bit_is_not_computed_again(calls):
    judge = judges.Judge(molecule_functions.weight, workers=1)
    some = from_smiles("CCC", "CN", "CC")
    assert judge(some.subset([0, 0, 1])).tolist()[:2] == [11, 11] and calls() == 2
    moved = dataclasses.replace(some, positions=some.positions + np.float32(1e-4))
    assert judge(MoleculeSet.concatenate([some, moved])).tolist()[::2][:2] == [11, 8]
    assert calls() == 2 + 1 + 3
    assert judge.without_value == {"RuntimeError: out of luck": 2}
    # a process that died may have died of something else: once more
    for count in (7, 8):
        judge(from_smiles("CO"))
        assert calls() == count


def test_a_tensor_and_a_set_are_the_same_to_a_judge_and_the_geometry_is_the_samples(heavy7):
    some = heavy7.subset(heavy7.n_atoms == 13).subset(np.arange(12))
    judge = judges.Judge(molecule_functions.height, "edm_or_determine", workers=1)
    expected = [some.atoms(i)[0][:, 2].max() for i in range(12)]
    np.testing.assert_allclose(judge(some), expected, atol=1e-5)
    np.testing.assert_allclose(judge(encode(some, 13)), expected, atol=1e-3)


def test_an_empty_batch():
    assert judges.Judge(molecule_functions.height)(from_smiles("C").subset([])).shape == (0,)


def test_stability_is_edms_and_two_molecules_are_not_one(heavy7):
    some = heavy7.subset(np.arange(0, len(heavy7), 9))
    values = judges.stability(some).numpy()
    np.testing.assert_array_equal(values, metrics.stability_edm(some)[0])
    assert 0.9 < values.mean() < 1
    odd = MoleculeSet.concatenate([methyl(), two_waters(), from_smiles("O")])
    assert judges.stability(odd).tolist() == pytest.approx([0, math.nan, 1], nan_ok=True)
    broken = encode(from_smiles("O"), 3)
    broken[0, 1, 2] = math.nan
    assert judges.stability(broken).tolist() == [0]


# ------------------------------------------------------------------ physics


def shaken(molecules, sd):
    """The molecules with normal noise of this sd on the coordinates, Angstrom."""
    noise = np.random.default_rng(0).normal(size=molecules.positions.shape)
    return dataclasses.replace(molecules, positions=molecules.positions + sd * noise)


def rdkit(molecules):
    """Their RDKit molecules, all hydrogens explicit, in the order of the set."""
    return [m for _, m in sorted(bonds.perceive(molecules), key=lambda pair: pair[0])]


@needs_tblite
def test_water_by_gfn2():
    water = rdkit(load_qm9("heavy7").subset([2]))[0]
    # the minimum has -5.0705 Hartree (documentation of xtb); a dipole of 1.855 D is measured
    assert energies.energy(water) / 27.211386 == pytest.approx(-5.0705, abs=5e-4)
    assert energies.dipole(water) == pytest.approx(1.855, rel=0.25)
    assert energies.energy(water, "GFN1-xTB") < energies.energy(water) - 10  # another model


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=needs_tblite) for m in energies.XTB] + ["MMFF94"]
)
def test_relaxation_energy_is_the_drop_to_a_minimum(heavy7, method):
    first, second = rdkit(heavy7.subset([30, 200])), rdkit(shaken(heavy7.subset([30, 200]), 0.05))
    for good, bad in zip(first, second, strict=True):
        at_rest = energies.relaxation_energy(good, method)
        drop = energies.relaxation_energy(bad, method)
        assert 0 <= at_rest < 0.02 < drop
        # both end in one minimum: the drops differ by the energies of the two starts
        apart = energies.energy(bad, method) - energies.energy(good, method)
        assert drop - at_rest == pytest.approx(apart / good.GetNumAtoms(), abs=2e-3)
        with pytest.raises(RuntimeError, match=f"no minimum in 2 steps by {method}"):
            energies.relaxation_energy(bad, method, steps=2)


def test_the_geometry_that_is_judged_stays_as_it_was(heavy7):
    molecule = rdkit(shaken(heavy7.subset([30]), 0.05))[0]
    before = molecule.GetConformer().GetPositions()
    energies.relaxation_energy(molecule, "MMFF94")
    np.testing.assert_array_equal(molecule.GetConformer().GetPositions(), before)


@needs_tblite
def test_gfn2_agrees_with_b3lyp_on_dipoles_and_gaps(heavy7):
    some = heavy7.subset(np.arange(3, len(heavy7), 80))
    for judge, name, least in ((judges.dipole, "mu", 0.97), (judges.gap, "gap", 0.85)):
        values = judge(workers=1)(some).numpy()
        known = np.isfinite(values)
        assert known.sum() >= 45
        published = some.property(name)[known]
        assert np.corrcoef(values[known], published)[0, 1] > least
        if name == "mu":  # Debye
            assert np.abs(values[known] - published).mean() < 0.5


@needs_tblite
def test_three_models_agree_on_which_geometries_are_poor(heavy7):
    some = heavy7.subset([30, 200, 1000, 2000])
    molecules = MoleculeSet.concatenate([some, shaken(some, 0.02)])
    for method in energies.METHODS:
        judge = judges.relaxation_energy(method, rule="determine", workers=1)
        values = judge(molecules).numpy()
        assert (values[:4] < values[4:]).all(), judge.without_value


def test_what_is_missing_or_unknown_is_named(monkeypatch):
    with pytest.raises(ValueError, match="no method 'PM7' for this: choose from GFN2-xTB, GFN1"):
        judges.relaxation_energy("PM7")
    with pytest.raises(ValueError, match="no method 'MMFF94' for this: choose from GFN2"):
        judges.gap("MMFF94")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'tblite: pip install "rgdm_lib\[physics\]"'):
        judges.relaxation_energy()
    judges.relaxation_energy("MMFF94")
