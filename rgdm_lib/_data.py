"""Find the files that ship with the course: in the clone, or in the installed wheel."""

import functools
import hashlib
from pathlib import Path

from rgdm_lib._files import write_whole

_PACKAGE = Path(__file__).resolve().parent
MANIFEST = "SHA256SUMS"


def data_root() -> Path:
    """Folder of shipped data: ``data/`` of the clone, else the copy inside the wheel.

    Raises FileNotFoundError when neither exists.
    """
    candidates = (_PACKAGE.parent / "data", _PACKAGE / "_data_files")
    for folder in candidates:
        if (folder / MANIFEST).is_file():
            return folder
    raise FileNotFoundError(
        f"the course's data is missing: no {MANIFEST} in data/ beside rgdm_lib or in the installed "
        "package; reinstall rgdm_lib from a complete clone or a wheel"
    )


def read_manifest(root: Path) -> dict[str, str]:
    """``{relative path: sha256}`` from ``root/SHA256SUMS`` (the format of ``sha256sum``)."""
    lines = (root / MANIFEST).read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {name.strip(): digest for digest, name in pairs}


@functools.cache
def data_path(name: str) -> Path:
    """Path of a shipped file, e.g. ``"molecules/qm9_heavy7.npz"``, once its sha256 is checked.

    Raises FileNotFoundError for a name that does not ship, ValueError for a damaged file.
    """
    root = data_root()
    manifest = read_manifest(root)
    if name not in manifest:
        known = ", ".join(sorted(manifest)) or "nothing"
        raise FileNotFoundError(
            f"{name!r} is not among the shipped data (known: {known}); after adding a file under "
            "data/, run: python -m rgdm_lib.course sums"
        )
    path = root / name
    if not path.is_file():
        raise FileNotFoundError(f"data file {name!r} is listed in {MANIFEST} but is not there")
    if sha256(path) != manifest[name]:
        raise ValueError(
            f"data file {name!r} is damaged or changed: its sha256 is not the one in {MANIFEST}; "
            "restore it, or, if the change is meant, run: python -m rgdm_lib.course sums"
        )
    return path


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(root: Path) -> int:
    """Write ``root/SHA256SUMS`` over all files but cards and reference results; count them."""
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file()
        and path.name != MANIFEST
        and path.suffix not in (".md", ".part", ".tmp")
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.relative_to(root).parts[0] != "reference"
    )
    text = "".join(f"{sha256(root / name)}  {name}\n" for name in names)
    write_whole(root / MANIFEST, text)
    return len(names)
