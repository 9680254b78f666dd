"""Results of long experiments: one JSON file each, made once."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rgdm_lib._files import write_whole


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a table, sorted, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; made and written first if it is not there.

    Raises ValueError, naming the file, for one that holds no JSON.
    """
    if not path.exists():
        write_json(path, make())
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no table ({error}): delete it to make it again") from error


def require_known(what: str, names: Iterable, known: Iterable) -> None:
    """ValueError for a name that there is not: before anything is trained, not after."""
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} {name!r}: choose from {', '.join(map(str, known))}")
