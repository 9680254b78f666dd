"""Rewards of molecules: QED, and what has no value."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hand_made_molecules import from_smiles, methyl, two_waters
from rdkit import Chem
from rdkit.Chem import QED, Descriptors

from rgdm_lib.molecules import bonds, metrics, rewards
from rgdm_lib.molecules.data import MoleculeError, MoleculeSet, encode, load_qm9


@pytest.fixture(scope="module")
def heavy7():
    return load_qm9("heavy7")


@pytest.mark.parametrize("rule", ["stable", "edm_or_determine"])
def test_qed_is_that_of_qm9s_smiles(heavy7, rule):
    some = heavy7.subset(np.arange(0, len(heavy7), 5))
    values = rewards.qed(some, rule).numpy()
    assert values.shape == (len(some),) and values.dtype == np.float32
    valued = metrics.stability_edm(some)[0] if rule == "stable" else np.full(len(some), True)
    assert (np.isfinite(values) == valued).all() and valued.mean() > 0.94
    expected = np.array([QED.qed(Chem.MolFromSmiles(str(s))) for s in some.smiles])
    np.testing.assert_allclose(values[valued], expected[valued], atol=0.003)


def test_a_tensor_and_a_set_get_the_same_values(heavy7):
    some = heavy7.subset(heavy7.n_atoms == 13).subset(np.arange(60))
    both = rewards.qed(encode(some, 13)), rewards.qed(some)
    torch.testing.assert_close(*both, equal_nan=True)


def test_values_stay_in_the_order_of_the_set():
    texts = ["CCO", "O", "c1ccccc1", "CCN", "C", "CC(=O)N"]
    expected = [QED.qed(Chem.MolFromSmiles(text)) for text in texts]
    values = rewards.qed(from_smiles(*texts), "edm_or_determine")
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5)


def test_the_order_of_the_atoms_does_not_matter(heavy7):
    """Poor geometries too, where RDKit's own answer changes with it."""
    rng = np.random.default_rng(0)
    some = heavy7.subset(np.arange(0, len(heavy7), 13))
    shaken = some.positions + 0.15 * rng.normal(size=some.positions.shape)
    some = dataclasses.replace(some, positions=shaken)
    order = np.concatenate(
        [a + rng.permutation(b - a) for a, b in zip(some.starts[:-1], some.starts[1:], strict=True)]
    )
    mixed = dataclasses.replace(
        some, positions=some.positions[order], numbers=some.numbers[order]
    )
    first, second = (rewards.qed(m, "edm_or_determine").numpy() for m in (some, mixed))
    assert 0.3 < np.isfinite(first).mean() < 1
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_one_nan_molecule_loses_its_own_value_only(heavy7):
    some = heavy7.subset(heavy7.n_atoms == 14).subset(np.arange(20))
    clean = rewards.qed(some)
    x = encode(some, 14)
    x[7, 3, 1] = math.nan
    values = rewards.qed(x)
    assert values.isnan().nonzero().tolist() == [[7]]
    keep = torch.arange(20) != 7
    torch.testing.assert_close(values[keep], clean[keep])


def lone(*numbers):
    """A molecule of these atoms on a line, 1.09 Angstrom apart."""
    positions = np.outer(np.arange(len(numbers)), [1.09, 0.0, 0.0])
    return MoleculeSet([len(numbers)], numbers, positions)


@pytest.mark.parametrize("rule", bonds.RULES)
def test_pieces_radicals_and_hydrogens_that_are_not_there_have_no_value(rule):
    bad = [two_waters(), methyl(), lone(6), lone(1, 6, 1), lone(8), lone(1)]
    values = rewards.qed(MoleculeSet.concatenate([from_smiles("CCO"), *bad]), rule)
    assert values.isnan().tolist() == [False] + [True] * len(bad)


def test_an_unknown_element_is_refused():
    with pytest.raises(MoleculeError, match="no bond rule for atomic number 14: known"):
        rewards.qed(lone(6, 14))


def test_a_function_that_raises_loses_one_value_only():
    def mass(molecule):
        if molecule.HasSubstructMatch(Chem.MolFromSmarts("[N]")):
            raise RuntimeError("out of luck")
        return Descriptors.MolWt(molecule)

    values = rewards.per_molecule(mass)(from_smiles("CCO", "CCN", "O"))
    assert values.isnan().tolist() == [False, True, False]
    assert values[2].item() == pytest.approx(18.015, abs=1e-3)


def test_the_rule_is_the_callers_choice():
    ring = from_smiles("c1ccccc1")  # EDM's rule leaves its valences open
    found = {rule: rewards.per_molecule(lambda m: 1.0, rule)(ring).item() for rule in bonds.RULES}
    assert found["determine"] == found["edm_or_determine"] == 1
    assert math.isnan(found["stable"]) and math.isnan(found["edm"])
    with pytest.raises(ValueError, match="choose from"):
        rewards.per_molecule(QED.qed, rule="other")(ring)


def test_hydrogens_are_implicit_for_the_function():
    assert rewards.per_molecule(lambda m: m.GetNumAtoms())(from_smiles("CCO")).item() == 3


def test_hopeless_clouds_end_and_keep_the_batch(heavy7):
    rng = np.random.default_rng(0)
    some = heavy7.subset(np.argsort(heavy7.n_atoms)[-100:])
    noise = rng.normal(size=some.positions.shape)
    scale = np.repeat(rng.choice([0.05, 0.3, 1.0, 3.0], size=len(some)), some.n_atoms)[:, None]
    clouds = dataclasses.replace(some, positions=some.positions + scale * noise)
    values = rewards.qed(clouds, "edm_or_determine")
    assert len(values) == 100 and 0 < values.isfinite().sum() < 60
