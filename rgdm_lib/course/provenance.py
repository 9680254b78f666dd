"""Which code and data a notebook's numbers come from, as one hash."""

import ast
import hashlib
import json
from pathlib import Path

from rgdm_lib import _data

_PACKAGE = Path(__file__).resolve().parent.parent


def code_hash(notebook: Path) -> str:
    """Return a sha256 over a notebook's code cells and what they import from the package.

    Imports are followed through the package's files. Of shipped data the checksums count of all
    folders that the code names (``"molecules/..."``). The bootstrap cell, which only installs, does
    not count. Raises ValueError for a file that is not a notebook.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    digest = hashlib.sha256()
    texts = []
    todo: set[Path] = set()
    for cell in cells:
        if cell["cell_type"] == "code" and "bootstrap" not in cell["metadata"].get("tags", []):
            text = "".join(cell["source"])
            digest.update(text.encode() + b"\0")
            texts.append(text)
            todo |= imported_files(text)
    files: set[Path] = set()
    while todo:
        files.add(path := todo.pop())
        text = path.read_text(encoding="utf-8")
        todo |= imported_files(text) - files
        if path.name != "_data.py":  # its example of a name reads no data
            texts.append(text)
    for path in sorted(files):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    if _PACKAGE / "_data.py" in files:
        for name, checksum in sorted(_data.read_manifest(_data.data_root()).items()):
            folder = name.partition("/")[0]
            if any(f'"{folder}/' in text or f'"{folder}"' in text for text in texts):
                digest.update(f"{checksum}  {name}\n".encode())
    return digest.hexdigest()


def imported_files(text: str) -> set[Path]:
    """Files of the package that Python code imports directly, anywhere in it.

    Raises SyntaxError (a ValueError it is not) for code that Python cannot parse.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in names:
        path = _PACKAGE.parent.joinpath(*name.split("."))
        found |= {path.with_suffix(".py"), path / "__init__.py"}
    return {path for path in found if path.is_relative_to(_PACKAGE) and path.is_file()}
