"""Rewards of molecules: plain callables from a batch to (B,) values, no gradient needed.

A reward takes a `MoleculeSet` or a tensor (B, N, 9) (see `rgdm_lib.molecules.data`) and returns one
value per molecule; NaN means "no value": the payoff gives it weight 0 and counts it. A molecule
that cannot be perceived, that falls into pieces, or on which RDKit raises, has no value; the rest
of the batch keeps theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from rdkit import Chem
from rdkit.Chem import QED

from rgdm_lib.molecules import bonds
from rgdm_lib.molecules.data import MoleculeSet, decode

Reward = Callable[[MoleculeSet | torch.Tensor], torch.Tensor]


def per_molecule(function: Callable[[Chem.Mol], float], rule: str = "edm_or_determine") -> Reward:
    """A reward out of a function of one RDKit molecule (hydrogens implicit, 3-D conformer).

    The returned reward gives (B,) float32, on the batch's device: NaN for molecules that the bond
    ``rule`` of `rgdm_lib.molecules.bonds` cannot perceive or finds in pieces, and for those on
    which ``function`` raises.
    """

    def reward(batch: MoleculeSet | torch.Tensor) -> torch.Tensor:
        molecules = batch if isinstance(batch, MoleculeSet) else decode(batch)
        values = [math.nan] * len(molecules)
        for i, molecule in bonds.perceive(molecules, rule):
            if molecule is None or not bonds.is_connected(molecule):
                continue
            try:
                values[i] = float(function(Chem.RemoveHs(molecule)))
            except Exception:  # noqa: BLE001  whatever goes wrong in one must not lose the batch
                continue
        device = batch.device if isinstance(batch, torch.Tensor) else "cpu"
        return torch.tensor(values, dtype=torch.float32, device=device)

    return reward


def qed(batch: MoleculeSet | torch.Tensor) -> torch.Tensor:
    """Drug-likeness, (B,) in 0..1: QED (Bickerton et al. 2012) by RDKit; NaN for "no value".

    Bond rule ``edm_or_determine``, chosen because it loses the fewest molecules and errs least.
    Against the QED of QM9's own SMILES, on the shipped 3,921 molecules / 4,000 of QM9's test part:

    | rule               | has a value, % | mean abs. error   | largest error | ms a molecule |
    |--------------------|----------------|-------------------|---------------|---------------|
    | `edm`              | 97.3 / 98.0    | 1.5e-3 / 1.6e-3   | 0.281 / 0.190 | 0.58 / 0.77   |
    | `determine`        | 96.8 / 94.8    | 1.1e-6 / 5.0e-5   | 0.002 / 0.088 | 0.52 / 0.70   |
    | `edm_or_determine` | 100.0 / 99.8   | 1.1e-6 / 4.7e-5   | 0.002 / 0.088 | 0.58 / 0.78   |

    With noise of sd 0.06 Angstrom on the coordinates (6 / 2 % stable by EDM's rule) 95 / 91 % still
    have a value, mean error 1e-4 / 4e-4: this QED judges the molecular graph, not the geometry.
    """
    return _qed(batch)


_qed = per_molecule(QED.qed)
