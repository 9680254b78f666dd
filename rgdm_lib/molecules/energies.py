"""Energies of one molecule by physical models: GFN2-xTB and GFN1-xTB (tblite), MMFF94 (RDKit).

A molecule is RDKit's, all its hydrogens atoms, with one conformer (`rgdm_lib.molecules.bonds`). It
is neutral and all its electrons are paired. Sources: Bannwarth, Ehlert & Grimme 2019 (GFN2),
Grimme, Bannwarth & Shushkov 2017 (GFN1), Halgren 1996 (MMFF94).

These functions raise where there is no answer; `rgdm_lib.molecules.judges` makes rewards of them.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

XTB = ("GFN2-xTB", "GFN1-xTB")
METHODS = (*XTB, "MMFF94")
HARTREE = 27.211386246  # eV
BOHR = 0.529177210903  # Angstrom
DEBYE = 2.541746473  # of 1 e Bohr
KCAL_PER_MOL = 0.0433641153  # eV

# Hartree / Bohr: the "normal" of the program xtb. Against a limit ten times lower, energies of
# heavy7's molecules with noise of sd 0.1 Angstrom (drop 0.36 to 0.70 eV per atom) change by less
# than 0.0006 eV per atom, in half the time.
FORCE_LIMIT = 1e-3


def _xtb(molecule: Chem.Mol, method: str):
    from tblite.interface import Calculator  # optional: the extra `physics`

    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    calculator = Calculator(method, numbers, molecule.GetConformer().GetPositions() / BOHR)
    calculator.set("verbosity", 0)
    return calculator


def energy(molecule: Chem.Mol, method: str = "GFN2-xTB") -> float:
    """Energy of the geometry as it is, eV: total by GFN, strain by MMFF94."""
    if method == "MMFF94":
        return _mmff(molecule).CalcEnergy() * KCAL_PER_MOL
    return float(_xtb(molecule, method).singlepoint().get("energy")) * HARTREE


def relaxation_energy(molecule: Chem.Mol, method: str = "GFN2-xTB", steps: int = 300) -> float:
    """By how much the energy falls on the way to the nearest minimum, eV per atom, at least 0.

    Raises RuntimeError if the minimum is not reached in ``steps``.
    """
    relax = _relax_mmff if method == "MMFF94" else _relax_xtb
    return relax(molecule, method, steps) / molecule.GetNumAtoms()


def _relax_xtb(molecule: Chem.Mol, method: str, steps: int) -> float:
    calculator = _xtb(molecule, method)
    state, energies = None, []

    def surface(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state
        calculator.update(positions=x.reshape(-1, 3))
        state = calculator.singlepoint(state)  # starts from the electrons of the last geometry
        energies.append(float(state.get("energy")))
        return energies[-1], state.get("gradient").ravel()

    found = scipy.optimize.minimize(
        surface,
        molecule.GetConformer().GetPositions().ravel() / BOHR,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "gtol": FORCE_LIMIT, "ftol": 0},
    )
    if not found.success:
        raise RuntimeError(f"no minimum in {steps} steps by {method}")
    return (energies[0] - found.fun) * HARTREE


def _mmff(molecule: Chem.Mol):
    parameters = rdForceFieldHelpers.MMFFGetMoleculeProperties(molecule)
    if parameters is None:
        raise RuntimeError("MMFF94 has no parameters for an atom")
    return rdForceFieldHelpers.MMFFGetMoleculeForceField(molecule, parameters)


def _relax_mmff(molecule: Chem.Mol, method: str, steps: int) -> float:
    moving = Chem.Mol(molecule)  # a name of its own: the field points into it
    field = _mmff(moving)
    before = field.CalcEnergy()
    if field.Minimize(maxIts=steps):
        raise RuntimeError(f"no minimum in {steps} steps by {method}")
    return (before - field.CalcEnergy()) * KCAL_PER_MOL


def gap(molecule: Chem.Mol, method: str = "GFN2-xTB") -> float:
    """Energy of the lowest empty minus that of the highest filled orbital, Hartree."""
    state = _xtb(molecule, method).singlepoint()
    filled = state.get("orbital-occupations") > 1
    orbitals = state.get("orbital-energies")
    return float(orbitals[~filled].min() - orbitals[filled].max())


def dipole(molecule: Chem.Mol, method: str = "GFN2-xTB") -> float:
    """Norm of the dipole moment, Debye."""
    return float(np.linalg.norm(_xtb(molecule, method).singlepoint().get("dipole"))) * DEBYE
