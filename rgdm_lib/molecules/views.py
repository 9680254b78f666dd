"""Pictures of molecules: 2-D drawings in a grid, a static 3-D picture, a 3-D view that turns."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from rgdm_lib.molecules import bonds
from rgdm_lib.molecules.data import SYMBOLS, MoleculeSet

COLOURS = {1: "#e8e8e8", 6: "#505050", 7: "#3d5cd6", 8: "#d63d3d", 9: "#5bb85b"}
RADII = {1: 0.28, 6: 0.42, 7: 0.40, 8: 0.38, 9: 0.36}  # Angstrom, for the eye only


class Picture:
    """A drawing that notebooks show and `save` writes: SVG text or PNG bytes in ``data``."""

    def __init__(self, data: str | bytes):
        self.data = data

    def _repr_svg_(self) -> str | None:
        return self.data if isinstance(self.data, str) else None

    def _repr_png_(self) -> bytes | None:
        return self.data if isinstance(self.data, bytes) else None

    def save(self, path: str | Path) -> Path:
        """Write the picture; the name must end as the format does (.svg or .png)."""
        path = Path(path)
        suffix = ".svg" if isinstance(self.data, str) else ".png"
        if path.suffix.lower() != suffix:
            raise ValueError(f"{path}: this picture is {suffix}, name the file so")
        path.write_bytes(self.data.encode() if isinstance(self.data, str) else self.data)
        return path

    def figure(self) -> Figure:
        """A matplotlib figure of the same pixels, at 100 dots an inch; PNG pictures only."""
        if isinstance(self.data, str):
            raise ValueError("this picture is SVG: make it with file_format='png'")
        pixels = plt.imread(io.BytesIO(self.data))
        figure = plt.figure(figsize=(pixels.shape[1] / 100, pixels.shape[0] / 100), layout="none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.imshow(pixels, interpolation="none")
        ax.axis("off")
        return figure


def grid(
    molecules: MoleculeSet,
    legends: Sequence[str] | None = None,
    columns: int = 5,
    panel: tuple[int, int] = (180, 150),
    file_format: str = "svg",
    rule: str = "edm_or_determine",
) -> Picture:
    """2-D drawings of a few molecules, in set order, as bonds are perceived by ``rule``.

    ``panel`` is width and height in pixels, ``file_format`` ``"svg"`` or ``"png"``. A molecule that
    cannot be perceived has the words "no molecule" in its panel, its formula and "not valid" below.
    """
    if file_format not in ("svg", "png"):
        raise ValueError(f"file_format is {file_format!r}; choose 'svg' or 'png'")
    if len(molecules) == 0:
        raise ValueError("no molecules to draw")
    legends = [""] * len(molecules) if legends is None else [str(text) for text in legends]
    if len(legends) != len(molecules):
        raise ValueError(f"{len(legends)} legends for {len(molecules)} molecules")
    drawn = [_no_molecule()] * len(molecules)
    for i, molecule in bonds.perceive(molecules, rule):
        if molecule is None:
            legends[i] = f"{formula(molecules, i)}, not valid {legends[i]}".strip()
            continue
        flat = bonds.implicit_hydrogens(molecule)
        rdDepictor.Compute2DCoords(flat)
        drawn[i] = flat
    columns = min(columns, len(molecules))
    width, height = panel[0] * columns, panel[1] * -(-len(molecules) // columns)
    canvas = rdMolDraw2D.MolDraw2DSVG if file_format == "svg" else rdMolDraw2D.MolDraw2DCairo
    picture = canvas(width, height, *panel)
    picture.drawOptions().legendFontSize = 14
    picture.DrawMolecules(drawn, legends=legends)
    picture.FinishDrawing()
    return Picture(picture.GetDrawingText())


def _no_molecule() -> Chem.Mol:
    """The words in place of a molecule; RDKit draws no legend below an empty one."""
    words = Chem.MolFromSmiles("*")
    words.GetAtomWithIdx(0).SetProp("atomLabel", "no molecule")
    return words


def formula(molecules: MoleculeSet, i: int) -> str:
    """Molecular formula of molecule i, C first: ``C3H7NO``."""
    numbers = molecules.atoms(i)[1]
    counts = {z: int((numbers == z).sum()) for z in (6, 1, 7, 8, 9)}
    return "".join(SYMBOLS[z] + (str(n) if n > 1 else "") for z, n in counts.items() if n)


def draw_3d(
    ax: Axes,
    positions: np.ndarray,
    numbers: np.ndarray,
    span: float | None = None,
    like: np.ndarray | None = None,
) -> Axes:
    """A ball-and-stick picture of one molecule on a plain 2-D axes; returns the axes.

    Parallel projection, seen 25 degrees off the direction of least extent; what is near covers what
    is far, far atoms are paler. Sticks are EDM's bonds (one, two or three lines). ``positions``
    (N, 3) in Angstrom, ``numbers`` (N,); ``span`` is the picture's width in Angstrom (default: all
    atoms fit); ``like`` (M, 3) are the positions that decide the point of view (default: these
    ones), so that several pictures can be seen from one side. Raises ValueError for coordinates
    that are not finite.
    """
    positions, numbers = np.asarray(positions, dtype=np.float64), np.asarray(numbers)
    if not np.isfinite(positions).all():
        raise ValueError("positions hold values that are not finite: nothing to draw")
    orders = bonds.bond_orders(positions[None], numbers[None])[0]
    x, y, depth = _camera(positions, like)
    far = (depth.max() - depth) / max(np.ptp(depth), 3.0)
    rank = np.argsort(np.argsort(depth, kind="stable"))
    for i, j in np.argwhere(np.triu(orders)).tolist():
        across = np.array([y[i] - y[j], x[j] - x[i]])
        across *= 0.2 / max(float(np.linalg.norm(across)), 1e-9)
        for k in range(orders[i, j]):
            dx, dy = across * (k - (orders[i, j] - 1) / 2)
            ax.plot(
                [x[i] + dx, x[j] + dx],
                [y[i] + dy, y[j] + dy],
                color=_fade("#606060", (far[i] + far[j]) / 2),
                linewidth=2.4 if orders[i, j] == 1 else 1.4,
                solid_capstyle="round",
                zorder=2 * min(rank[i], rank[j]) + 1,
            )
    for i, number in enumerate(numbers.tolist()):
        ax.add_patch(
            Circle(
                (x[i], y[i]),
                RADII[number],
                facecolor=_fade(COLOURS[number], far[i]),
                edgecolor=_fade("#000000", far[i]),
                linewidth=0.7,
                zorder=2 * rank[i] + 2,
            )
        )
    half = span / 2 if span else max(np.abs(x).max(), np.abs(y).max()) + 0.6
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    ax.axis("off")
    return ax


def _camera(positions: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """(3, N): right, up and towards the eye, from the principal axes turned by 25 degrees."""
    centred = positions - positions.mean(axis=0)
    seen = centred if like is None else like - like.mean(axis=0)
    axes = np.linalg.svd(np.vstack([seen, np.zeros((3, 3))]), full_matrices=False)[2]
    # a principal axis has no sign of its own: take the same one on every machine
    axes = axes * np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    nod = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return nod @ turn @ axes @ centred.T


def _fade(colour: str, far: float) -> tuple[float, ...]:
    return tuple(1 - (1 - channel) * (1 - 0.55 * far) for channel in to_rgb(colour))


def view_3d(molecules: MoleculeSet, i: int = 0, size: tuple[int, int] = (320, 260)):
    """A py3Dmol view of molecule i that turns under the mouse, in a live notebook page.

    Its script comes from the network. Until it is there, and for ever without one, a still picture
    (`draw_3d`) stands in its place. The output is not for storing. ``size`` is width and height in
    pixels. Raises ImportError where py3Dmol is not installed.
    """
    import py3Dmol

    positions, numbers = molecules.atoms(i)
    lines = [str(len(numbers)), molecules.label(i)]
    lines += [
        f"{SYMBOLS[int(z)]} {x:.4f} {y:.4f} {w:.4f}"
        for z, (x, y, w) in zip(numbers, positions, strict=True)
    ]
    view = py3Dmol.view(width=size[0], height=size[1])
    # py3Dmol's own text for a script that is missing is removed before the script is asked for
    source = _still(*size, positions, numbers)
    still = f'<img id="3dmolstill_UNIQUEID" alt="{formula(molecules, i)}" src="{source}">'
    view.startjs = re.sub(r'<p id="3dmolwarning_UNIQUEID".*?</p>', still, view.startjs, flags=re.S)
    view.startjs += '\ndocument.getElementById("3dmolstill_UNIQUEID")?.remove();\n'
    view.addModel("\n".join(lines), "xyz")
    view.setStyle({"stick": {"radius": 0.12}, "sphere": {"scale": 0.25}})
    view.zoomTo()
    return view


def _still(width: int, height: int, positions: np.ndarray, numbers: np.ndarray) -> str:
    """``draw_3d`` as the address of a picture of that many pixels, which holds the picture."""
    figure = plt.figure(figsize=(width / 100, height / 100), layout="none")
    draw_3d(figure.add_axes((0, 0, 1, 1)), positions, numbers)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
