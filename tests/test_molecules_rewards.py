"""Rewards of molecules: QED, and what has no value."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hand_made_molecules import from_smiles, methyl, two_waters
from rdkit import Chem
from rdkit.Chem import QED, Descriptors

from rgdm_lib.molecules import rewards
from rgdm_lib.molecules.data import MoleculeSet, encode, load_qm9


@pytest.fixture(scope="module")
def heavy7():
    return load_qm9("heavy7")


def test_qed_is_that_of_qm9s_smiles(heavy7):
    some = heavy7.subset(np.arange(0, len(heavy7), 5))
    values = rewards.qed(some)
    assert values.shape == (len(some),) and values.dtype == torch.float32
    expected = [QED.qed(Chem.MolFromSmiles(str(s))) for s in some.smiles]
    np.testing.assert_allclose(values.numpy(), expected, atol=0.003)


def test_a_tensor_and_a_set_get_the_same_values(heavy7):
    some = heavy7.subset(heavy7.n_atoms == 13).subset(np.arange(60))
    torch.testing.assert_close(rewards.qed(encode(some, 13)), rewards.qed(some))


def test_values_stay_in_the_order_of_the_set():
    texts = ["CCO", "O", "c1ccccc1", "CCN", "C", "CC(=O)N"]
    expected = [QED.qed(Chem.MolFromSmiles(text)) for text in texts]
    np.testing.assert_allclose(rewards.qed(from_smiles(*texts)).numpy(), expected, rtol=1e-5)


def test_one_nan_molecule_loses_its_own_value_only(heavy7):
    some = heavy7.subset(heavy7.n_atoms == 14).subset(np.arange(20))
    clean = rewards.qed(some)
    x = encode(some, 14)
    x[7, 3, 1] = math.nan
    values = rewards.qed(x)
    assert values.isnan().nonzero().tolist() == [[7]]
    keep = torch.arange(20) != 7
    torch.testing.assert_close(values[keep], clean[keep])


def test_molecules_in_pieces_and_radicals_have_no_value():
    molecules = MoleculeSet.concatenate([two_waters(), from_smiles("CCO"), methyl()])
    assert rewards.qed(molecules).isnan().tolist() == [True, False, True]


def test_a_function_that_raises_loses_one_value_only():
    def mass(molecule):
        if molecule.HasSubstructMatch(Chem.MolFromSmarts("[N]")):
            raise RuntimeError("out of luck")
        return Descriptors.MolWt(molecule)

    values = rewards.per_molecule(mass)(from_smiles("CCO", "CCN", "O"))
    assert values.isnan().tolist() == [False, True, False]
    assert values[2].item() == pytest.approx(18.015, abs=1e-3)


def test_the_rule_is_the_callers_choice():
    ring = from_smiles("c1ccccc1")
    found = {
        rule: rewards.per_molecule(lambda m: m.GetNumAtoms(onlyExplicit=False), rule)(ring).item()
        for rule in ("edm", "determine")
    }
    assert found == {"edm": 18, "determine": 12}  # EDM's open valences are filled: cyclohexane
    assert rewards.per_molecule(lambda m: m.GetNumAtoms())(ring).item() == 6  # H are implicit
    with pytest.raises(ValueError, match="choose from"):
        rewards.per_molecule(QED.qed, rule="other")(ring)


def test_hopeless_clouds_end_and_keep_the_batch(heavy7):
    rng = np.random.default_rng(0)
    some = heavy7.subset(np.argsort(heavy7.n_atoms)[-100:])
    noise = rng.normal(size=some.positions.shape)
    scale = np.repeat(rng.choice([0.05, 0.3, 1.0, 3.0], size=len(some)), some.n_atoms)[:, None]
    values = rewards.qed(dataclasses.replace(some, positions=some.positions + scale * noise))
    assert len(values) == 100 and 0 < values.isfinite().sum() < 60
