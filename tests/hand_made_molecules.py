"""Molecules for the tests, with geometries by RDKit: nothing of the library is in them."""

import importlib.metadata
import os

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from rgdm_lib.molecules.data import MoleculeSet, load_qm9


def pack(*parts):
    """A set of (positions, numbers), ..."""
    return MoleculeSet(
        np.array([len(z) for _, z in parts]),
        np.concatenate([z for _, z in parts]),
        np.concatenate([r for r, _ in parts]),
    )


def from_smiles(*smiles):
    parts = []
    for text in smiles:
        molecule = Chem.AddHs(Chem.MolFromSmiles(text))
        AllChem.EmbedMolecule(molecule, randomSeed=1)
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
        numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        parts.append((molecule.GetConformer().GetPositions(), numbers))
    return pack(*parts)


def two_waters():
    positions, numbers = from_smiles("O").atoms(0)
    return pack((np.concatenate([positions, positions + 5]), np.tile(numbers, 2)))


def methyl():
    positions, numbers = from_smiles("C").atoms(0)
    return pack((positions[:4], numbers[:4]))


@pytest.fixture(scope="session")
def full():
    """All of QM9, or a skipped test."""
    try:
        importlib.metadata.version("qm9pack")
    except importlib.metadata.PackageNotFoundError:
        if not os.environ.get("RGDM_QM9_WHEEL"):
            pytest.skip("needs qm9pack: pip install '.[qm9]', or RGDM_QM9_WHEEL=its wheel's path")
    return load_qm9("full")
