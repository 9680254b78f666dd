"""Rewards and judges of molecules that take time or can fail: parallel, cached, counted.

A reward that comes from one physical model is judged by another: relaxation energy by GFN2-xTB,
say, by GFN1-xTB and by MMFF94. GFN needs the package tblite: ``pip install "rgdm_lib[physics]"``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from collections import Counter
from collections.abc import Callable

import torch
from rdkit import Chem

from rgdm_lib import parallel
from rgdm_lib.molecules import bonds, energies, metrics, rewards
from rgdm_lib.molecules.data import MoleculeSet, decode

NO_MOLECULE = "no molecule: in pieces, an open valence, or no bonds by the rule"


def stability(batch: MoleculeSet | torch.Tensor) -> torch.Tensor:
    """EDM's molecule stability, (B,): 1 if every atom's bonds fill its valence, else 0.

    Molecules in pieces, each of which is stable, are stable by that rule: here they have no value
    (NaN), or two waters would be paid for as one molecule.
    """
    molecules = batch if isinstance(batch, MoleculeSet) else decode(batch)
    stable = torch.from_numpy(metrics.stability_edm(molecules)[0])
    in_pieces = stable & rewards.per_molecule(_one)(molecules).isnan()
    device = batch.device if isinstance(batch, torch.Tensor) else "cpu"
    return stable.float().masked_fill(in_pieces, math.nan).to(device)


def _one(molecule: Chem.Mol) -> float:
    return 1.0


class Judge:
    """A reward out of a function of one RDKit molecule, hydrogens explicit, 3-D conformer.

    Called with B molecules, as a `MoleculeSet` or a tensor (B, N, 9), it gives (B,) float32 on the
    batch's device. NaN, "no value": for molecules without a value under
    `rgdm_lib.molecules.rewards.per_molecule` (in pieces, a radical, a hydrogen that is no atom of
    the sample), and those on which the function raises, takes too long, kills its process or gives
    a number that is not finite. The rest of the batch keep theirs.

    A molecule that comes again, to the bit, is not computed again (one that took too long or killed
    its process is: the machine may have been at fault).

    Attributes:
        without_value: reason -> how many molecules of the last batch had no value for it.
    """

    def __init__(
        self,
        function: Callable[[Chem.Mol], float],
        rule: str = "stable",
        seconds: float = 20.0,
        workers: int | None = None,
    ) -> None:
        """``function`` as `rgdm_lib.parallel.evaluate` takes it, and its time limit and workers.

        ``rule`` of `rgdm_lib.molecules.bonds` makes the molecules.
        """
        self.function, self.rule, self.seconds, self.workers = function, rule, seconds, workers
        self.without_value: Counter[str] = Counter()
        self._known: dict[bytes, parallel.Outcome] = {}

    def __call__(self, batch: MoleculeSet | torch.Tensor) -> torch.Tensor:
        """(B,) values; see the class."""
        molecules = batch if isinstance(batch, MoleculeSet) else decode(batch)
        keys = [_content(molecules, i) for i in range(len(molecules))]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        found = self._known | self._compute(molecules.subset(list(new.values())), list(new))
        outcomes = [found[key] for key in keys]
        self.without_value = Counter(why for _, why in outcomes if why is not None)
        device = batch.device if isinstance(batch, torch.Tensor) else "cpu"
        return torch.tensor([v for v, _ in outcomes], dtype=torch.float32, device=device)

    def _compute(self, molecules: MoleculeSet, keys: list[bytes]) -> dict[bytes, parallel.Outcome]:
        found = dict.fromkeys(keys, (math.nan, NO_MOLECULE))
        is_one = rewards.per_molecule(_one, self.rule)(molecules).isfinite().tolist()
        ready = [(keys[i], m) for i, m in bonds.perceive(molecules, self.rule) if is_one[i]]
        values = parallel.evaluate(self.function, [m for _, m in ready], self.seconds, self.workers)
        found |= {key: outcome for (key, _), outcome in zip(ready, values, strict=True)}
        passing = (parallel.DIED, parallel.late(self.seconds))
        self._known |= {key: outcome for key, outcome in found.items() if outcome[1] not in passing}
        return found


def _content(molecules: MoleculeSet, i: int) -> bytes:
    positions, numbers = molecules.atoms(i)
    return hashlib.sha256(numbers.tobytes() + positions.tobytes()).digest()


def relaxation_energy(method: str = "GFN2-xTB", steps: int = 300, **options) -> Judge:
    """Energy that a molecule loses on its way to the nearest minimum, eV per atom; 0 is best.

    As a reward: ``rgdm_lib.rewards.weighted_sum((-1.0, relaxation_energy()))``.

    Args:
        method: "GFN2-xTB", "GFN1-xTB" or "MMFF94".
        steps: of L-BFGS (GFN) or BFGS (MMFF94); a molecule that needs more has no value.
        options: ``rule``, ``seconds``, ``workers`` of `Judge`.

    Raises:
        ValueError: another method.
        ImportError: GFN without the package tblite.
    """
    return _judge(energies.relaxation_energy, energies.METHODS, options, method, steps=steps)


def energy(method: str = "GFN2-xTB", **options) -> Judge:
    """Energy of the geometry as it is, eV: total by GFN, strain by MMFF94. See above."""
    return _judge(energies.energy, energies.METHODS, options, method)


def gap(method: str = "GFN2-xTB", **options) -> Judge:
    """Gap between highest filled and lowest empty orbital, Hartree, by GFN2-xTB or GFN1-xTB.

    Not QM9's: on the same molecules it correlates with that of B3LYP, at another level.
    """
    return _judge(energies.gap, energies.XTB, options, method)


def dipole(method: str = "GFN2-xTB", **options) -> Judge:
    """Norm of the dipole moment, Debye, by GFN2-xTB or GFN1-xTB."""
    return _judge(energies.dipole, energies.XTB, options, method)


def _judge(function: Callable, methods: tuple[str, ...], options: dict, method: str, **more):
    if method not in methods:
        raise ValueError(f"no method {method!r} for this: choose from {', '.join(methods)}")
    if method in energies.XTB and importlib.util.find_spec("tblite") is None:
        raise ImportError(
            f'{method} needs the package tblite: pip install "rgdm_lib[physics]" (MMFF94 does not)'
        )
    return Judge(functools.partial(function, method=method, **more), **options)
