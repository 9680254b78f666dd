"""Rules every notebook keeps. Each guard takes a notebook and returns what is wrong with it."""

import ast
import base64
import io
import re

import matplotlib.image
import nbformat
from nbformat import NotebookNode

from rgdm_lib.course import bootstrap as common
from rgdm_lib.course.marks import EQUATION
from rgdm_lib.course.source import Cell, SourceError, notebook_cells

MAX_BYTES = 1_500_000
PARAMETERS = {"PRESET": "quick", "SEED": 0, "OUT_DIR": "runs"}

# Folders of a machine, and addresses of objects in its memory: neither belongs in a notebook.
_MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|tmp|private|var|opt|mnt|work|workspace|content)/[\w.~-]+"
    r"|\b[A-Za-z]:\\\\?Users\b|site-packages|\bat 0x[0-9a-f]{6,}"
)
_IMAGE = re.compile(r"<img\b[^>]*>")
_ALT = re.compile(r'\balt="\s*[^"\s]')
_PNG = re.compile(r'src="data:image/png;base64,([^"]*)"')
_DEFINITION = "<!-- definition -->"


def agree(nb: NotebookNode, source: str) -> list[str]:
    """Source and notebook hold the same cells: kind, text and tags, one by one."""
    try:
        expected = notebook_cells(source)
    except SourceError as problem:
        return [f"source: {problem}"]
    found = [as_cell(cell) for cell in nb.cells]
    problems = [
        f"cell {i} is not what the source makes ({_head(have.source)!r}, source has "
        f"{_head(want.source)!r}); run: python -m rgdm_lib.course build"
        for i, (have, want) in enumerate(zip(found, expected, strict=False), 1)
        if have != want
    ]
    if len(found) != len(expected):
        problems.append(f"the notebook has {len(found)} cells, the source makes {len(expected)}")
    return problems


def counts(nb: NotebookNode) -> list[str]:
    """Execution counts of the code cells are 1, 2, ..., n."""
    found = [cell.execution_count for cell in _code(nb)]
    if found == list(range(1, len(found) + 1)):
        return []
    return [f"execution counts are {found}, not 1 to {len(found)}"]


def bootstrap(nb: NotebookNode) -> list[str]:
    """Exactly one cell is tagged bootstrap, it is the common one and the first code cell."""
    tagged = [cell for cell in nb.cells if "bootstrap" in _tags(cell)]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged bootstrap, not one"]
    problems = []
    if tagged[0].source != common.CELL:
        problems.append("the bootstrap cell differs from rgdm_lib.course.bootstrap.CELL")
    if _code(nb)[0] is not tagged[0]:
        problems.append("the bootstrap cell is not the first code cell")
    return problems


def parameters(nb: NotebookNode) -> list[str]:
    """One cell tagged parameters right after the bootstrap: assignments of literals only."""
    tagged = [cell for cell in _code(nb) if "parameters" in _tags(cell)]
    if len(tagged) != 1:
        return [f"{len(tagged)} code cells are tagged parameters, not one"]
    problems = []
    if len(_code(nb)) < 2 or _code(nb)[1] is not tagged[0]:
        problems.append("the parameters cell is not the second code cell")
    try:
        values = parameter_values(tagged[0].source)
    except ValueError as problem:
        return [*problems, str(problem)]
    for name, default in PARAMETERS.items():
        if name not in values:
            problems.append(f"the parameters cell does not set {name}")
        elif values[name] != default or type(values[name]) is not type(default):
            problems.append(f"parameter {name} is {values[name]!r}, its default is {default!r}")
    return problems


def parameter_values(source: str) -> dict[str, object]:
    """Names and values of a parameters cell; ValueError unless it holds literals only."""
    values = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"parameters cell: line {error.lineno}: {error.msg}") from None
    for statement in statements:
        simple = (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        )
        try:
            if not simple:
                raise ValueError
            values[statement.targets[0].id] = ast.literal_eval(statement.value)
        except ValueError:
            line = ast.unparse(statement)
            raise ValueError(f"parameters cell: {line!r} does not assign a literal") from None
    return values


def no_errors(nb: NotebookNode) -> list[str]:
    """No output is an error."""
    return [
        f"code cell {i} stores an error: {output.ename}: {output.evalue}"
        for i, cell in enumerate(_code(nb), 1)
        for output in cell.outputs
        if output.output_type == "error"
    ]


def no_machine_paths(nb: NotebookNode) -> list[str]:
    """No path of the author's machine and no memory address in sources, outputs or metadata."""
    problems = []
    for where, text in _texts(nb):
        match = _MACHINE.search(text)
        if match:
            problems.append(f"{where} holds a machine's path or address: {match.group()!r}")
    return problems


def clean_outputs(nb: NotebookNode) -> list[str]:
    """No stderr, widget, execution time; every picture has an alternative text."""
    problems = []
    if "widgets" in nb.metadata:
        problems.append("the notebook stores the state of widgets")
    for i, cell in enumerate(_code(nb), 1):
        if set(cell.metadata) - {"tags"}:
            problems.append(f"code cell {i} has metadata {sorted(set(cell.metadata) - {'tags'})}")
        for output in cell.outputs:
            if output.get("name") == "stderr":
                problems.append(f"code cell {i} stores stderr")
            data = output.get("data", {})
            problems += [f"code cell {i} stores a {kind}" for kind in data if "widget" in kind]
            # only an <img alt> is shown by JupyterLab and by nbconvert's page
            pictures = _IMAGE.findall(str(data.get("text/html", "")))
            silent = any(not _ALT.search(picture) for picture in pictures)
            if silent or any(kind.startswith("image/") for kind in data):
                problems.append(f"code cell {i} shows a picture without alt text: run.figure")
    return problems


def whole_pictures(nb: NotebookNode) -> list[str]:
    """No picture is cut off: its border rows and columns show the background only."""
    problems = []
    for i, cell in enumerate(_code(nb), 1):
        for output in cell.outputs:
            for content in _PNG.findall(str(output.get("data", {}).get("text/html", ""))):
                pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(content)))
                edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
                cut = [
                    side
                    for side, edge in zip(("top", "bottom", "left", "right"), edges, strict=True)
                    if abs(edge - pixels[0, 0]).max() > 0.02
                ]
                if cut:
                    problems.append(
                        f"code cell {i} shows a picture cut off at the {', '.join(cut)}: "
                        "use run.figure, or leave a margin"
                    )
    return problems


def stderr(nb: NotebookNode) -> list[str]:
    """No cell writes to stderr: the learner would meet a warning that the stored output hides."""
    return [
        f"code cell {i} writes to stderr: {' '.join(output.text.split())[:300]}"
        for i, cell in enumerate(_code(nb), 1)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]


def equations(nb: NotebookNode) -> list[str]:
    """Every displayed block has an id with a source, or is marked as a definition."""
    return _scan_equations(nb)[1]


def equation_ids(nb: NotebookNode) -> dict[str, str]:
    """Return ``{id: source}`` of the notebook's displayed equations."""
    return _scan_equations(nb)[0]


def _scan_equations(nb: NotebookNode) -> tuple[dict[str, str], list[str]]:
    ids: dict[str, str] = {}
    problems = []
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "markdown" or "solution" in _tags(cell):
            continue
        lines = cell.source.splitlines()
        inside = False
        fenced = False
        for i, line in enumerate(lines):
            text = line.strip()
            if text.startswith("```"):
                fenced = not fenced
            if fenced or not text.count("$$"):
                continue
            closes_itself = text.count("$$") == 2 and text != "$$$$"
            if inside:
                inside = False
                continue
            inside = not closes_itself
            if not text.startswith("$$"):
                problems.append(f"cell {number}: '$$' must start its line: {text!r}")
                continue
            above = lines[i - 1].strip() if i else ""
            match = EQUATION.fullmatch(above)
            if match is None:
                if above != _DEFINITION:
                    problems.append(
                        f"cell {number}: the block {_head(text + ' ' + _next(lines, i))!r} has "
                        "neither '<!-- eq: id | source -->' nor '<!-- definition -->' above it"
                    )
            elif match.group(1) in ids:
                problems.append(f"cell {number}: equation id {match.group(1)!r} is used twice")
            else:
                ids[match.group(1)] = match.group(2)
        if inside:
            problems.append(f"cell {number}: a '$$' block is not closed")
    return ids, problems


def start_name(nb: NotebookNode, name: str) -> list[str]:
    """``notebook.start`` is called with the notebook's own file name, ``finish`` is called."""
    code = "\n".join(cell.source for cell in _code(nb))
    problems = []
    if f'notebook.start("{name}", PRESET, SEED, OUT_DIR)' not in code:
        problems.append(f'no call notebook.start("{name}", PRESET, SEED, OUT_DIR)')
    if "run.finish()" not in code:
        problems.append("no call run.finish()")
    return problems


def unsolved(nb: NotebookNode) -> list[str]:
    """No code cell of the built notebook holds a solution."""
    return [
        f"code cell {i} holds a solution"
        for i, cell in enumerate(_code(nb), 1)
        if "SOLUTION" in cell.source
    ]


def size(nb: NotebookNode) -> list[str]:
    """The file has at most MAX_BYTES bytes."""
    n = len(nbformat.writes(nb).encode())
    return [] if n <= MAX_BYTES else [f"{n:,} bytes, at most {MAX_BYTES:,}: fewer, smaller figures"]


def check_source(nb: NotebookNode, name: str) -> list[str]:
    """All guards that need no execution."""
    found = bootstrap(nb) + parameters(nb) + equations(nb) + no_machine_paths(nb)
    return found + start_name(nb, name) + unsolved(nb)


def check_built(nb: NotebookNode, name: str, source: str) -> list[str]:
    """All guards of a built notebook."""
    found = agree(nb, source) + counts(nb) + no_errors(nb) + clean_outputs(nb)
    found += whole_pictures(nb) + size(nb)
    return found + check_source(nb, name)


def as_cell(cell: NotebookNode) -> Cell:
    """Return a notebook's cell without outputs."""
    return Cell(cell.cell_type, cell.source, tuple(_tags(cell)))


def _code(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _texts(nb: NotebookNode):
    yield "the metadata", str(dict(nb.metadata))
    for i, cell in enumerate(nb.cells, 1):
        yield f"cell {i}", cell.source
        for output in cell.get("outputs", []):
            yield f"output of cell {i}", str(output.get("text", ""))
            yield f"output of cell {i}", "\n".join(output.get("traceback", []))
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/") or kind == "image/svg+xml":
                    yield f"output of cell {i}", _PNG.sub("", str(data))


def _head(text: str) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= 60 else line[:57] + "..."


def _next(lines: list[str], i: int) -> str:
    return lines[i + 1].strip() if i + 1 < len(lines) else ""
