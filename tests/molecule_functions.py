"""Functions of an RDKit molecule that other processes can import (tests/test_molecules_judges)."""

import os


def weight(molecule):
    """Number of atoms, hydrogens too; nitrogen raises, oxygen kills the process, fluorine is nan.

    Each call adds a line to the file that the variable CALLS names.
    """
    with open(os.environ["CALLS"], "a") as file:
        file.write("called\n")
    symbols = {atom.GetSymbol() for atom in molecule.GetAtoms()}
    if "N" in symbols:
        raise RuntimeError("out of luck")
    if "O" in symbols:
        os._exit(1)
    return float("nan") if "F" in symbols else molecule.GetNumAtoms()


def height(molecule):
    """Largest z of an atom."""
    return molecule.GetConformer().GetPositions()[:, 2].max()
