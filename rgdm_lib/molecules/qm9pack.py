"""QM9 out of the PyPI package qm9pack 1.0.3 (MIT, by QM9's first author), without importing it.

The package itself needs pkg_resources, which current setuptools no longer have; its three CSV
files hold everything and are read where the package is installed, or out of its wheel.

    python -m rgdm_lib.molecules.qm9pack --wheel qm9pack-1.0.3-py3-none-any.whl \\
        --out data/molecules/qm9_heavy7.npz
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rgdm_lib.molecules.sets import SYMBOLS, MoleculeError, MoleculeSet, load_set, save_set

VERSION = "1.0.3"
WHEEL_SHA256 = "1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0"
FOLDER = "qm9pack/data/"
CSV_SHA256 = {
    "qm9_part1.csv": "19f0a5d595462d52cd82eef3370f3e9eb55a1f52cb14985657200349568deff3",
    "qm9_part2.csv": "2bca113fdc0b28a13563c80ed9b240e934f3da6c64c64fe74ddb4f0f36036e61",
    "qm9_part3.csv": "9c5efb5733d2af149db8d95d36ff198b4ffed12d9f7b344220a1e5877d5c6a43",
}
COLUMNS = {  # ours -> the package's
    "A": "RotA_GHz",
    "B": "RotB_GHz",
    "C": "RotC_GHz",
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "gap": "HOMO_LUMO_gap_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "U0": "InternalEnergy_0K_au",
    "U": "InternalEnergy_298K_au",
    "H": "Enthalphy_298K_au",
    "G": "GibbsFreeEnergy_298K_au",
    "Cv": "Heatcapacity_Cv_cal_mol_K",
}
MOLECULES = 130_831
HEAVY7_MOLECULES = 3_921
# atoms of each element in EDM's training part (its public configs/datasets_config.py)
EDM_TRAIN_ATOMS = {1: 923_537, 6: 635_559, 7: 101_476, 8: 140_202, 9: 2_323}

_NUMBER = {symbol: z for z, symbol in SYMBOLS.items()}
_PUNCTUATION = str.maketrans("", "", "[]' ")


def number(text: str) -> float:
    """A float as QM9's files write it: ``1.2*^-3`` is 1.2e-3."""
    return float(text.replace("*^", "e"))


def _numbers(text: str) -> np.ndarray:
    text = text.translate(_PUNCTUATION).replace("*^", "e")
    return np.array(text.split(","), dtype=np.float64)


@contextmanager
def open_csvs(wheel: str | os.PathLike | None = None) -> Iterator[list[BinaryIO]]:
    """The three CSV files, from a wheel or (None) from where qm9pack is installed.

    Raises MoleculeError if the package is missing or a file is not the published one (sha256).
    """
    if wheel is not None:
        if not Path(wheel).is_file():
            raise MoleculeError(f"{wheel}: no such file; it should be the wheel qm9pack {VERSION}")
        _verify(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            yield [archive.open(FOLDER + name) for name in CSV_SHA256]
        return
    files = _installed_files()
    located = {file.as_posix(): file.locate() for file in files}
    paths = []
    for name, sha256 in CSV_SHA256.items():
        path = located.get(FOLDER + name)
        if path is None or not path.is_file():
            raise MoleculeError(f"the installed qm9pack has no file {name}; install {VERSION}")
        _verify(path, sha256)
        paths.append(path)
    handles = [open(path, "rb") for path in paths]
    try:
        yield handles
    finally:
        for handle in handles:
            handle.close()


def _installed_files() -> list[importlib.metadata.PackagePath]:
    try:
        return importlib.metadata.files("qm9pack") or []
    except importlib.metadata.PackageNotFoundError:
        raise MoleculeError(
            f'all of QM9 needs the package qm9pack {VERSION}: pip install "rgdm_lib[qm9]", or '
            "download its wheel (104 MB) and set RGDM_QM9_WHEEL to its path"
        ) from None


def _verify(path: str | os.PathLike, expected: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise MoleculeError(
            f"{path}: sha256 is {found}, but qm9pack {VERSION} has {expected}; "
            "download it again from PyPI"
        )


def read(wheel: str | os.PathLike | None = None, max_heavy: int | None = None) -> MoleculeSet:
    """All molecules (12 s), or those with at most ``max_heavy`` atoms other than H, by QM9 index.

    Positions are centred (mean over atoms zero). No split is set.
    """
    rows = []
    with open_csvs(wheel) as files:
        for file in files:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            rows.extend(_read_csv(text, max_heavy))
    rows.sort(key=lambda row: row[0])
    index, smiles, numbers, positions, values = zip(*rows, strict=True)
    return MoleculeSet(
        np.array([len(z) for z in numbers]),
        np.concatenate(numbers),
        np.concatenate(positions),
        dict(zip(COLUMNS, np.array(values).T, strict=True)),
        np.array(smiles),
        np.array(index),
    ).check(require=tuple(COLUMNS))


def _read_csv(text: io.TextIOBase, max_heavy: int | None) -> Iterator[tuple]:
    csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)
    reader = csv.reader(text)
    header = next(reader)
    at = {name: header.index(name) for name in ("Index", "SMILES", "Elements", "XYZ_Ang")}
    values_at = [header.index(name) for name in COLUMNS.values()]
    for row in reader:
        symbols = row[at["Elements"]].translate(_PUNCTUATION).split(",")
        if max_heavy is not None and len(symbols) - symbols.count("H") > max_heavy:
            continue
        label = f"QM9 molecule {row[at['Index']]} ({row[at['SMILES']]})"
        try:
            z = np.array([_NUMBER[s] for s in symbols], dtype=np.uint8)
        except KeyError as error:
            raise MoleculeError(f"{label}: Elements has an unknown element {error}") from None
        try:
            r = _numbers(row[at["XYZ_Ang"]]).reshape(len(z), 3)
        except ValueError as error:
            raise MoleculeError(f"{label}: XYZ_Ang is not {len(z)} x 3 numbers: {error}") from None
        values = []
        for name, column in zip(COLUMNS.values(), values_at, strict=True):
            try:
                values.append(number(row[column]))
            except ValueError:
                raise MoleculeError(f"{label}: {name} is {row[column]!r}, no number") from None
        yield int(row[at["Index"]]), row[at["SMILES"]], z, r - r.mean(axis=0), values


def random_split(n: int, n_train: int, n_valid: int) -> np.ndarray:
    """(n,) int8 of 0 train, 1 valid, 2 test from numpy's legacy permutation with seed 0."""
    order = np.random.RandomState(0).permutation(n)
    split = np.full(n, 2, dtype=np.int8)
    split[order[:n_train]] = 0
    split[order[n_train : n_train + n_valid]] = 1
    return split


def with_edm_split(molecules: MoleculeSet) -> MoleculeSet:
    """All of QM9 with EDM's split, or MoleculeError if it is not the one EDM published."""
    if len(molecules) != MOLECULES:
        raise MoleculeError(f"{len(molecules)} molecules; all of QM9 has {MOLECULES}")
    n_train, n_test = 100_000, MOLECULES // 10
    split = random_split(MOLECULES, n_train, MOLECULES - n_train - n_test)
    molecules = replace(molecules, split=split)
    counts = np.bincount(molecules.part("train").numbers, minlength=10)
    found = {z: int(counts[z]) for z in EDM_TRAIN_ATOMS}
    if found != EDM_TRAIN_ATOMS:
        raise MoleculeError(
            f"atoms in the training part are {found}; EDM's are {EDM_TRAIN_ATOMS}: the molecules "
            "or their order differ"
        )
    return molecules


def heavy7(wheel: str | os.PathLike | None = None) -> MoleculeSet:
    """The 3,921 molecules with at most 7 heavy atoms; 80 / 10 / 10 % split with seed 0."""
    molecules = read(wheel, max_heavy=7)
    if len(molecules) != HEAVY7_MOLECULES:
        raise MoleculeError(f"found {len(molecules)} molecules, expected {HEAVY7_MOLECULES}")
    n_train, n_valid = int(0.8 * len(molecules)), int(0.1 * len(molecules))
    return replace(molecules, split=random_split(len(molecules), n_train, n_valid))


def cache_folder() -> Path:
    """RGDM_CACHE, or the folder for caches on this platform."""
    if os.environ.get("RGDM_CACHE"):
        return Path(os.environ["RGDM_CACHE"])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rgdm_lib"


def _cached() -> Path:
    return cache_folder() / f"qm9_full_{WHEEL_SHA256[:8]}.npz"


def require_full() -> None:
    """Raise MoleculeError, saying what to install, if `load_full` would find nothing to read."""
    wheel = os.environ.get("RGDM_QM9_WHEEL")
    if wheel and not Path(wheel).is_file():
        raise MoleculeError(f"RGDM_QM9_WHEEL is {wheel}: no such file")
    if not wheel and not _cached().exists():
        _installed_files()


def load_full() -> MoleculeSet:
    """All of QM9 with EDM's split, from the cache, made there on first use (under a minute)."""
    path = _cached()
    if not path.exists():
        save_set(path, with_edm_split(read(os.environ.get("RGDM_QM9_WHEEL") or None)))
    try:
        return load_set(path)
    except MoleculeError as error:
        raise MoleculeError(f"{error}; delete the file, it will be made again") from error


def main(arguments: list[str] | None = None) -> None:
    """Write the shipped file of molecules with at most 7 heavy atoms."""
    parser = argparse.ArgumentParser(
        prog="python -m rgdm_lib.molecules.qm9pack", description=main.__doc__
    )
    parser.add_argument("--wheel", help="wheel of qm9pack 1.0.3; default: the installed package")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    options = parser.parse_args(arguments)
    try:
        molecules = heavy7(options.wheel)
        path = save_set(options.out, molecules)
    except (MoleculeError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"{sha256}  {path}: {len(molecules)} molecules, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
