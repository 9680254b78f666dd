"""Sets of molecules: a packed container and its files.

A molecule is its atoms' elements and positions; sizes differ, so a set stores all atoms one after
the other.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

ELEMENTS = (1, 6, 7, 8, 9)
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
PARTS = {"train": 0, "valid": 1, "test": 2}
POSITION_UNIT = 0.0005  # Angstrom per integer step in files


class MoleculeError(ValueError):
    """A molecule or a file of molecules cannot be used; the message names molecule and field."""


def _whole(name: str, values: np.ndarray, most: int) -> np.ndarray:
    """The values, if they are whole numbers of 0 to ``most``: a cast would wrap or cut others."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise MoleculeError(f"{name} holds {values.dtype} values, not numbers")
    wrong = ~((values >= 0) & (values <= most) & (values == np.floor(values)))
    if wrong.any():
        raise MoleculeError(f"{name} holds {values[wrong].flat[0]}, no whole number of 0 to {most}")
    return values


@dataclass(frozen=True)
class MoleculeSet:
    """n molecules, packed: the atoms of molecule i are rows ``starts[i]`` to ``starts[i+1]``.

    Attributes:
        n_atoms: (n,) int64, atoms per molecule.
        numbers: (sum n_atoms,) uint8, atomic numbers.
        positions: (sum n_atoms, 3) float32, Angstrom. May hold NaN in sets that a model made;
            files may not (see `check`).
        properties: name -> (n,) float array; NaN means "no value".
        smiles: (n,) array of str, or None.
        index: (n,) int64, QM9's own numbers (1 to 133,885), or None.
        split: (n,) int8, 0 train, 1 valid, 2 test, or None.
    """

    n_atoms: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    smiles: np.ndarray | None = None
    index: np.ndarray | None = None
    split: np.ndarray | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: np.ndarray) -> None:
            object.__setattr__(self, name, value)

        put("n_atoms", _whole("n_atoms", self.n_atoms, np.iinfo(np.int16).max).astype(np.int64))
        put("numbers", _whole("numbers", self.numbers, 255).astype(np.uint8))
        put("positions", np.asarray(self.positions, dtype=np.float32))
        put("properties", {k: np.asarray(v) for k, v in self.properties.items()})
        for name, kind in (("smiles", np.str_), ("index", np.int64), ("split", np.int8)):
            if getattr(self, name) is not None:
                put(name, np.asarray(getattr(self, name), dtype=kind))
        total = int(self.n_atoms.sum())
        if self.numbers.shape != (total,) or self.positions.shape != (total, 3):
            raise MoleculeError(
                f"n_atoms adds up to {total} atoms, but numbers has shape {self.numbers.shape} "
                f"and positions {self.positions.shape}"
            )
        per_molecule = {**self.properties, "smiles": self.smiles, "index": self.index}
        for name, value in {**per_molecule, "split": self.split}.items():
            if value is not None and value.shape != (len(self),):
                raise MoleculeError(
                    f"{name} has shape {value.shape}; there are {len(self)} molecules, "
                    f"so it must be ({len(self)},)"
                )
        put("starts", np.concatenate([[0], np.cumsum(self.n_atoms)]))

    def __len__(self) -> int:
        return len(self.n_atoms)

    def atoms(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (N, 3) and atomic numbers (N,) of molecule i; -1 is the last, as in a list.

        Raises IndexError outside -n..n-1.
        """
        i = int(self._indices(i))
        rows = slice(self.starts[i], self.starts[i + 1])
        return self.positions[rows], self.numbers[rows]

    def label(self, i: int) -> str:
        """What error messages call molecule i; IndexError outside -n..n-1."""
        i = int(self._indices(i))
        known = []
        if self.index is not None:
            known.append(f"index {self.index[i]}")
        if self.smiles is not None and self.smiles[i]:
            known.append(str(self.smiles[i]))
        return f"molecule {i}" + (f" ({', '.join(known)})" if known else "")

    def subset(self, which: np.ndarray | Sequence[int]) -> MoleculeSet:
        """The molecules at these indices (in this order, repeats allowed) or under this mask.

        Raises IndexError for an index outside -n..n-1, ValueError for a mask of another length.
        """
        which = np.asarray(which)
        if which.dtype == bool:
            if which.shape != (len(self),):
                raise ValueError(f"mask of shape {which.shape} for {len(self)} molecules")
            which = np.flatnonzero(which)
        which = self._indices(which)
        n_atoms = self.n_atoms[which]
        ends = np.cumsum(n_atoms)
        rows = np.repeat(self.starts[which] - (ends - n_atoms), n_atoms) + np.arange(n_atoms.sum())
        return MoleculeSet(
            n_atoms,
            self.numbers[rows],
            self.positions[rows],
            {name: value[which] for name, value in self.properties.items()},
            *(None if v is None else v[which] for v in (self.smiles, self.index, self.split)),
        )

    def part(self, name: str) -> MoleculeSet:
        """The ``"train"``, ``"valid"`` or ``"test"`` part."""
        if name not in PARTS:
            raise ValueError(f"no part {name!r}: choose from {', '.join(PARTS)}")
        if self.split is None:
            raise ValueError("this set has no split")
        return self.subset(self.split == PARTS[name])

    def by_size(self) -> dict[int, np.ndarray]:
        """N -> indices of the molecules with N atoms, ascending in both."""
        sizes = np.unique(self.n_atoms)
        return {int(n): np.flatnonzero(self.n_atoms == n) for n in sizes}

    def of_size(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (B, n, 3) and atomic numbers (B, n) of the B molecules with n atoms."""
        chosen = np.flatnonzero(self.n_atoms == n)
        rows = self.starts[chosen][:, None] + np.arange(n)
        return self.positions[rows], self.numbers[rows]

    def property(self, name: str) -> np.ndarray:
        """(n,) values of a property, or an error that names the ones there are."""
        if name not in self.properties:
            there = ", ".join(sorted(self.properties)) or "none"
            raise MoleculeError(f"these molecules have no property {name!r}; they have: {there}")
        return self.properties[name]

    def with_properties(self, **values: np.ndarray) -> MoleculeSet:
        """The same molecules with these properties added or replaced."""
        values = {k: np.asarray(v) for k, v in values.items()}
        return replace(self, properties={**self.properties, **values})

    @classmethod
    def concatenate(cls, sets: Iterable[MoleculeSet]) -> MoleculeSet:
        """One set after the other; a column that not all of them have is dropped."""
        sets = list(sets)
        if not sets:
            raise ValueError("nothing to concatenate")

        def column(name: str) -> np.ndarray | None:
            values = [getattr(s, name) for s in sets]
            return None if any(v is None for v in values) else np.concatenate(values)

        shared = set.intersection(*(set(s.properties) for s in sets))
        return cls(
            np.concatenate([s.n_atoms for s in sets]),
            np.concatenate([s.numbers for s in sets]),
            np.concatenate([s.positions for s in sets]),
            {
                name: np.concatenate([s.properties[name] for s in sets])
                for name in sets[0].properties
                if name in shared
            },
            column("smiles"),
            column("index"),
            column("split"),
        )

    def check(self, require: Sequence[str] = ()) -> MoleculeSet:
        """Return self, or raise MoleculeError naming the first molecule and field that is wrong.

        Wrong is: no atoms, an element other than H, C, N, O, F, a coordinate that is not finite,
        and, for the properties in ``require``, one that is missing or not finite.
        """
        if len(self) == 0:
            raise MoleculeError("n_atoms: there are no molecules in this set")
        if (self.n_atoms < 1).any():
            i = int(np.flatnonzero(self.n_atoms < 1)[0])
            raise MoleculeError(f"{self.label(i)}: n_atoms is {self.n_atoms[i]}; no atoms")
        unknown = ~np.isin(self.numbers, ELEMENTS)
        if unknown.any():
            i, atom = self._locate(unknown)
            raise MoleculeError(
                f"{self.label(i)}: numbers of atom {atom} is {self.atoms(i)[1][atom]}, an unknown "
                f"element; known are {', '.join(f'{SYMBOLS[z]} ({z})' for z in ELEMENTS)}"
            )
        broken = ~np.isfinite(self.positions).all(axis=1)
        if broken.any():
            i, atom = self._locate(broken)
            raise MoleculeError(
                f"{self.label(i)}: positions of atom {atom} is {self.atoms(i)[0][atom].tolist()}; "
                "coordinates must be finite"
            )
        for name in require:
            missing = ~np.isfinite(self.property(name))
            if missing.any():
                i = int(np.flatnonzero(missing)[0])
                raise MoleculeError(f"{self.label(i)}: property {name!r} has no value")
        return self

    def _indices(self, which: np.ndarray | Sequence[int] | int) -> np.ndarray:
        """These indices as int64 in 0..n-1: -1 is the last molecule; IndexError outside -n..n-1."""
        which, n = np.asarray(which), len(self)
        if which.size == 0:
            which = which.astype(np.int64)  # numpy takes [] for floats
        if not np.issubdtype(which.dtype, np.integer):
            raise IndexError(f"molecules are chosen by integers, not by {which.dtype} values")
        which = which.astype(np.int64)
        outside = which[(which < -n) | (which >= n)]
        if outside.size:
            raise IndexError(f"no molecule {outside[0]} among {n}: use {-n} to {n - 1}")
        return np.where(which < 0, which + n, which)

    def _locate(self, wrong_atom: np.ndarray) -> tuple[int, int]:
        row = int(np.flatnonzero(wrong_atom)[0])
        i = int(np.searchsorted(self.starts, row, side="right")) - 1
        return i, row - int(self.starts[i])


# -------------------------------------------------------------------- files


def save_set(path: str | os.PathLike, molecules: MoleculeSet) -> Path:
    """Write a set as a compressed .npz, positions as int16 in steps of 0.0005 Angstrom.

    The file appears whole or not at all. Positions change by at most 0.00025 Angstrom. Raises
    MoleculeError for what `check` finds and for atoms more than 16.38 Angstrom from the origin.
    """
    path = Path(path)
    molecules.check()
    steps = np.rint(molecules.positions.astype(np.float64) / POSITION_UNIT)
    far = (np.abs(steps) > np.iinfo(np.int16).max).any(axis=1)
    if far.any():
        i, atom = molecules._locate(far)
        raise MoleculeError(
            f"{molecules.label(i)}: positions of atom {atom} is "
            f"{molecules.atoms(i)[0][atom].tolist()}, too far from the origin for the file "
            "(16.38 Angstrom); centre the molecule"
        )
    columns = {
        "n_atoms": molecules.n_atoms.astype(np.int16),
        "numbers": molecules.numbers,
        "positions": steps.astype(np.int16),
        "position_unit": np.float64(POSITION_UNIT),
        **{f"property:{name}": value for name, value in molecules.properties.items()},
    }
    for name in ("smiles", "index", "split"):
        value = getattr(molecules, name)
        if value is not None:
            columns[name] = value.astype(np.int32) if name == "index" else value
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            _write_npz(file, columns)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _write_npz(file, columns: dict[str, np.ndarray]) -> None:
    # np.savez stamps nothing but zipfile's default date; written here so that the same set gives
    # the same bytes (the file's sha256 is recorded)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, value in columns.items():
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w") as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)


# what numpy and zipfile raise for files that are no .npz, or broken inside
_UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def load_set(path: str | os.PathLike, require: Sequence[str] = ()) -> MoleculeSet:
    """Read a set written by `save_set`, or an .npz of your own with the same columns.

    Needed are ``n_atoms`` (n,), ``numbers`` (atoms,), ``positions`` (atoms, 3): floats in Angstrom,
    or int16 with a scalar ``position_unit``. Optional: ``property:<name>``, ``smiles``, ``index``,
    ``split``, each (n,). Raises MoleculeError, naming the file, the molecule and the field, for
    anything missing or wrong (`check`), properties in ``require`` included.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise MoleculeError(f"{path}: not a readable .npz file ({error})") from error
    for name in ("n_atoms", "numbers", "positions"):
        if name not in columns:
            raise MoleculeError(
                f"{path}: no field {name!r}; the file has: {', '.join(sorted(columns)) or 'none'}"
            )
    positions = columns["positions"]
    try:
        if np.issubdtype(positions.dtype, np.integer):
            if "position_unit" not in columns:
                raise MoleculeError("integer positions need the field 'position_unit'")
            positions = positions * float(columns["position_unit"])
        return MoleculeSet(
            columns["n_atoms"],
            columns["numbers"],
            positions,
            {k.removeprefix("property:"): v for k, v in columns.items() if ":" in k},
            *(columns.get(name) for name in ("smiles", "index", "split")),
        ).check(require)
    except (TypeError, ValueError) as error:  # numpy's words for a column of another kind
        raise MoleculeError(f"{path}: {error}") from error
