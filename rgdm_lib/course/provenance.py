"""Which code and data a notebook's numbers come from, as one hash."""

import ast
import hashlib
import io
import itertools
import json
import tokenize
from pathlib import Path

from rgdm_lib import _data

_PACKAGE = Path(__file__).resolve().parent.parent
_CAPTIONS = ("alt", "see")  # arguments that a figure's reader reads, and nothing else


def code_hash(notebook: Path) -> str:
    """Return a sha256 over a notebook's code cells and what they import from the package.

    Imports are followed through the package's files. Of shipped data the checksums count of all
    folders that the code names (``"molecules/..."``). What does not run does not count: comments,
    docstrings, captions, the bootstrap cell, which only installs. Raises ValueError for a file that
    is not a notebook.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    digest = hashlib.sha256()
    texts = []
    todo: set[Path] = set()
    for cell in cells:
        if cell["cell_type"] == "code" and "bootstrap" not in cell["metadata"].get("tags", []):
            text = "".join(cell["source"])
            texts.append(what_runs(text))
            digest.update(texts[-1].encode() + b"\0")
            todo |= imported_files(text)
    files: dict[Path, str] = {}
    while todo:
        path = todo.pop()
        text = path.read_text(encoding="utf-8")
        files[path] = what_runs(text)
        todo |= imported_files(text) - set(files)
    for path, text in sorted(files.items()):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0")
        digest.update(text.encode() + b"\0")
    texts += files.values()
    if _PACKAGE / "_data.py" in files:
        for name, checksum in sorted(_data.read_manifest(_data.data_root()).items()):
            folder = name.partition("/")[0]
            if any(f'"{folder}/' in text or f'"{folder}"' in text for text in texts):
                digest.update(f"{checksum}  {name}\n".encode())
    return digest.hexdigest()


def what_runs(text: str) -> str:
    """Python code without comments, docstrings, captions and the lines that only these stand on.

    Cut by position, not printed anew: the same text on every version of Python. Raises SyntaxError
    or ``tokenize.TokenError`` for code that Python cannot read.
    """
    text = _without_captions(text)
    lines, busy = text.split("\n"), set()
    starts_line = True  # of a statement
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        (first, column), (last, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[first - 1] = lines[first - 1][:column]
        elif token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            starts_line = True
        elif token.type not in (tokenize.NL, tokenize.ENDMARKER):
            alone = starts_line and after.type == tokenize.NEWLINE
            if not (alone and token.type == tokenize.STRING):
                busy.update(range(first, last + 1))
            starts_line = False
    return "\n".join(line.rstrip() for i, line in enumerate(lines, 1) if i in busy)


def _without_captions(text: str) -> str:
    """Python code whose captions are cut, up to the first f-string: that one may run."""
    starts = [0, *itertools.accumulate(len(line) + 1 for line in text.split("\n"))]
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.NL, tokenize.COMMENT)
    ]
    kept, done = [], 0
    for i, (name, sign) in enumerate(itertools.pairwise(tokens)):
        if name.string in _CAPTIONS and sign.string == "=":
            words = list(itertools.takewhile(_is_plain_string, tokens[i + 2 :]))
            if words:
                kept.append(text[done : starts[sign.end[0] - 1] + sign.end[1]])
                done = starts[words[-1].end[0] - 1] + words[-1].end[1]
    return "".join(kept) + text[done:]


def _is_plain_string(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.STRING and token.string[0] in "'\""


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
