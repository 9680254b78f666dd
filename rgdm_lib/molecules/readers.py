"""Molecules of one's own, from .npz, .xyz and .sdf files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from rgdm_lib.molecules.sets import MoleculeError, MoleculeSet, load_set

# numbers, positions, properties of one molecule
_Molecule = tuple[list[int], np.ndarray, dict[str, float]]


def read_molecules(
    path: str | os.PathLike, require: Sequence[str] = (), largest: int | None = None
) -> MoleculeSet:
    """The molecules of a file, in its order.

    Args:
        path: ``.npz`` as `load_set` takes it; ``.xyz``, one molecule after the other, positions in
            Angstrom, properties as ``name=value`` in the second line of each; ``.sdf``, hydrogens
            as atoms, properties as its data fields. Text fields are left out.
        require: names of properties that every molecule must have.
        largest: the most atoms that the model allows.

    Raises:
        MoleculeError: names the file, the molecule (from 0) and the field for an unknown element, a
            missing property, a coordinate that is no finite number, no atoms or too many.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".npz":
        molecules = load_set(path, require)
    elif kind in _READERS:
        molecules = _read(path, _READERS[kind], require)
    else:
        raise MoleculeError(f"{path}: not an .npz, .xyz or .sdf file")
    large = np.flatnonzero(molecules.n_atoms > (largest or math.inf))
    if len(large):
        i = int(large[0])
        raise MoleculeError(
            f"{path}: {molecules.label(i)}: n_atoms is {molecules.n_atoms[i]}; the model allows at"
            f" most {largest}"
        )
    return molecules


def _read(path: Path, reader: Callable, require: Sequence[str]) -> MoleculeSet:
    try:
        found: list[_Molecule] = reader(path.read_text(encoding="utf-8"))
        if not found:
            raise MoleculeError("there are no molecules")
        numbers, positions, properties = zip(*found, strict=True)
        names = dict.fromkeys(name for each in properties for name in each)
        return MoleculeSet(
            [len(z) for z in numbers],
            np.concatenate([np.array(z, dtype=np.uint8) for z in numbers]),
            np.concatenate(positions),
            {name: [each.get(name, math.nan) for each in properties] for name in names},
        ).check(require)
    except (MoleculeError, UnicodeDecodeError) as error:
        raise MoleculeError(f"{path}: {error}") from error


def _atomic_number(symbol: str, where: str) -> int:
    with rdBase.BlockLogs():
        try:
            return Chem.GetPeriodicTable().GetAtomicNumber(symbol)
        except RuntimeError:
            raise MoleculeError(f"{where} is {symbol!r}, an unknown element") from None


def _numbers(fields: dict[str, str]) -> dict[str, float]:
    """The fields that hold a number."""
    found = {}
    for name, text in fields.items():
        try:
            found[name] = float(text)
        except ValueError:
            continue
    return found


def _read_xyz(text: str) -> list[_Molecule]:
    lines, found, at = text.rstrip().splitlines(), [], 0
    while at < len(lines):
        label = f"molecule {len(found)}"
        try:
            n = int(lines[at])
        except ValueError:
            raise MoleculeError(
                f"{label}: n_atoms is {lines[at]!r} in line {at + 1}, no whole number"
            ) from None
        if n < 1:
            raise MoleculeError(f"{label}: n_atoms is {n}; no atoms")
        atoms = [line.split() for line in lines[at + 2 : at + 2 + n]]
        if len(atoms) < n:
            raise MoleculeError(f"{label}: n_atoms is {n}, but the file ends after {len(atoms)}")
        numbers, positions = [], []
        for k, atom in enumerate(atoms):
            try:
                symbol, x, y, z = atom[:4]
                positions.append([float(x), float(y), float(z)])
            except ValueError:
                raise MoleculeError(
                    f"{label}: positions of atom {k} is {' '.join(atom)!r}; a line is an element"
                    " and three numbers"
                ) from None
            numbers.append(_atomic_number(symbol, f"{label}: numbers of atom {k}"))
        comment = lines[at + 1]
        pairs = re.findall(r'([^\s="]+)=(?:"([^"]*)"|([^\s"]+))', comment)
        fields = {name: quoted or plain for name, quoted, plain in pairs}
        found.append((numbers, np.array(positions), _numbers(fields)))
        at += 2 + n
    return found


def _read_sdf(text: str) -> list[_Molecule]:
    found = []
    with rdBase.BlockLogs():
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text, sanitize=False, removeHs=False)
        molecules = list(supplier) if text.strip() else []
    for i, molecule in enumerate(molecules):
        label = f"molecule {i}"
        if molecule is None:
            raise _sdf_fault(supplier.GetItemText(i), label)
        molecule.UpdatePropertyCache(strict=False)
        missing = sum(atom.GetTotalNumHs() for atom in molecule.GetAtoms())
        if missing and molecule.GetNumBonds():  # without bonds nothing says what is missing
            raise MoleculeError(
                f"{label}: numbers lacks {missing} hydrogens that its bonds leave open: add them"
                " with Chem.AddHs(molecule, addCoords=True)"
            )
        numbers = [
            _atomic_number(atom.GetSymbol(), f"{label}: numbers of atom {atom.GetIdx()}")
            for atom in molecule.GetAtoms()
        ]
        fields = molecule.GetPropsAsDict(autoConvertStrings=False)
        positions = molecule.GetConformer().GetPositions()
        found.append((numbers, positions, _numbers({k: str(v) for k, v in fields.items()})))
    return found


def _sdf_fault(text: str, label: str) -> MoleculeError:
    """What is wrong in a V2000 record that RDKit rejects, without saying what."""
    lines = text.splitlines()
    count = lines[3][:3].strip() if len(lines) > 3 else ""
    atoms = lines[4 : 4 + int(count)] if count.isdigit() else []
    for k, line in enumerate(atoms):
        try:
            good = all(math.isfinite(float(line[at : at + 10])) for at in (0, 10, 20))
        except ValueError:
            good = False
        if not good:
            return MoleculeError(
                f"{label}: positions of atom {k} is {line[:30].split()}; coordinates must be finite"
            )
        try:
            _atomic_number(line[31:34].strip(), f"{label}: numbers of atom {k}")
        except MoleculeError as error:
            return error
    return MoleculeError(f"{label}: its block of atoms and bonds cannot be read")


_READERS = {".xyz": _read_xyz, ".sdf": _read_sdf}
