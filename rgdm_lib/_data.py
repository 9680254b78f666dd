"""Where the shipped files of ``data/`` are: in the clone, or in the installed wheel."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_root() -> Path:
    """The folder data/ of this installation."""
    for root in (_PACKAGE / "_data_files", _PACKAGE.parent / "data"):
        if (root / "SHA256SUMS").is_file():
            return root
    raise FileNotFoundError(f"no data/ beside {_PACKAGE} or inside it; install rgdm_lib again")


def data_path(name: str) -> Path:
    """Path of a shipped file, e.g. "molecules/qm9_heavy7.npz", its sha256 checked."""
    root = data_root()
    for line in (root / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        sha256, _, listed = line.partition("  ")
        if listed == name:
            break
    else:
        raise FileNotFoundError(f"data/{name} is not listed in data/SHA256SUMS")
    path = root / name
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path}: sha256 is {found}, but data/SHA256SUMS says {sha256}")
    return path
