"""The line under a displayed equation: its source, and that a test checks it.

Generated from the ledger in ``tests/ledger``, which is read as text: a notebook is built without
importing tests. An installed wheel has no ledger, and makes no marks.
"""

import re
from pathlib import Path

EQUATION = re.compile(r"<!-- eq: ([a-z0-9]+(?:-[a-z0-9]+)*) \| (\S.*?) -->")
LEDGER = Path(__file__).resolve().parents[2] / "tests" / "ledger"
_ENTRY = re.compile(r'^@equation\(\s*"([^"]+)"', re.MULTILINE)


def tested(ledger: Path = LEDGER) -> set[str]:
    """Ids of the equations that have an entry in the ledger."""
    return {
        identifier
        for path in ledger.glob("nb[0-9][0-9].py")
        for identifier in _ENTRY.findall(path.read_text(encoding="utf-8"))
    }


def mark(markdown: str, ids: set[str]) -> str:
    """Put "source · checked by a test" under every displayed equation whose id is in ``ids``."""
    lines, marked = markdown.split("\n"), []
    label, dollars = "", 0
    for i, line in enumerate(lines):
        marked.append(line)
        above = EQUATION.fullmatch(lines[i - 1].strip()) if i else None
        if above and above.group(1) in ids and line.startswith("$$"):
            source = above.group(2).replace("*", r"\*")
            label, dollars = f"*{source} · checked by a test*", 0
        dollars += line.count("$$")
        if label and dollars == 2:
            marked += ["", label]
            if i + 1 < len(lines) and lines[i + 1]:
                marked.append("")
            label = ""
    return "\n".join(marked)
