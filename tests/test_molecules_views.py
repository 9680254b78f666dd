"""Pictures of molecules: made, of the right molecules, and saved under the right name."""

import base64
import dataclasses
import io
import sys

import matplotlib
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
from hand_made_molecules import from_smiles

from rgdm_lib.molecules import views
from rgdm_lib.molecules.data import MoleculeSet

matplotlib.use("agg")


def test_grid_draws_every_molecule_with_its_legend(tmp_path):
    molecules = from_smiles("CCO", "O", "c1ccccc1")
    picture = views.grid(molecules, ["ethanol", "water", "benzene"], columns=2, panel=(100, 80))
    svg = picture._repr_svg_()
    assert "width='200px' height='160px'" in svg and picture._repr_png_() is None
    alone = [views.grid(from_smiles(s), panel=(100, 80)).data for s in ("CCO", "c1ccccc1")]
    lines = [text.count("class='bond") for text in alone]
    assert lines[0] == 3 and lines[1] > 6
    assert svg.count("class='bond") == sum(lines)  # none left out, water has none
    assert picture.save(tmp_path / "grid.svg").read_text() == svg
    with pytest.raises(ValueError, match="this picture is .svg"):
        picture.save(tmp_path / "grid.png")


def test_grid_as_png():
    picture = views.grid(from_smiles("CCO"), file_format="png")
    assert picture._repr_png_().startswith(b"\x89PNG") and picture._repr_svg_() is None
    figure = picture.figure()
    assert tuple(figure.get_size_inches() * 100) == (180, 150)
    matplotlib.pyplot.close(figure)
    with pytest.raises(ValueError, match="png"):
        views.grid(from_smiles("CCO")).figure()


def pixels_of(picture):
    return matplotlib.image.imread(io.BytesIO(picture.data))


def test_grid_says_which_molecule_is_not_valid():
    molecules = from_smiles("CCO", "O")
    positions = molecules.positions.copy()
    positions[molecules.starts[1] :] = 0
    broken = dataclasses.replace(molecules, positions=positions)
    panels = pixels_of(views.grid(broken, ["", "x"], file_format="png"))
    whole = pixels_of(views.grid(molecules, ["", "x"], file_format="png"))
    words = (panels[:120, 180:] < 0.5).any(-1)  # above the legend
    assert words.any(), "an empty panel"
    rows, columns = np.nonzero(words)
    assert abs(columns.mean() - 90) < 10 and abs(rows.mean() - 67) < 10  # in its middle
    assert (panels[125:, 180:] < 0.5).sum() > 2 * (whole[125:, 180:] < 0.5).sum()  # H2O, not valid
    assert views.formula(broken, 1) == "H2O"
    with pytest.raises(ValueError, match="1 legends for 2 molecules"):
        views.grid(broken, ["one"])
    with pytest.raises(ValueError, match="no molecules"):
        views.grid(broken.subset([]))
    with pytest.raises(ValueError, match="'svg' or 'png'"):
        views.grid(broken, file_format="gif")


def test_formula():
    molecules = from_smiles("CC(=O)N", "FC(F)F")
    assert [views.formula(molecules, i) for i in (0, 1)] == ["C2H5NO", "CHF3"]


def test_draw_3d_has_an_atom_a_disc_and_a_bond_a_line():
    import matplotlib.pyplot as plt

    for text, lines in (("O", 2), ("C#N", 3 + 1), ("C=O", 2 + 2)):
        fig, ax = plt.subplots()
        molecules = from_smiles(text)
        assert views.draw_3d(ax, *molecules.atoms(0)) is ax
        assert len(ax.patches) == molecules.n_atoms[0] and len(ax.lines) == lines
        low, high = ax.get_xlim()
        assert all(low < disc.center[0] < high for disc in ax.patches)
        fig.canvas.draw()
        plt.close(fig)


def test_draw_3d_keeps_distances_and_looks_the_same_from_any_pose():
    import matplotlib.pyplot as plt

    positions, numbers = from_smiles("CC(=O)N").atoms(0)
    camera = views._camera(positions.astype(np.float64))
    inner = np.linalg.norm(positions[0] - positions[3])
    assert np.linalg.norm(camera[:, 0] - camera[:, 3]) == pytest.approx(inner, rel=1e-5)
    moved = positions[:4] + 1.0
    frame = views._camera(moved, like=positions)
    shift = camera[:, :4].mean(1, keepdims=True)  # centred by its own mean, seen from one side
    assert np.allclose(frame, camera[:, :4] - shift, atol=1e-5)
    fig, ax = plt.subplots()
    views.draw_3d(ax, positions[:1], numbers[:1])
    views.draw_3d(ax, positions[:2], numbers[:2], span=10)
    assert ax.get_xlim() == (-5, 5)
    with pytest.raises(ValueError, match="not finite"):
        views.draw_3d(ax, positions * np.nan, numbers)
    plt.close(fig)


def test_view_3d_loads_py3dmol_only_when_asked():
    pytest.importorskip("py3Dmol")
    sys.modules.pop("py3Dmol")
    view = views.view_3d(from_smiles("CCO", "O"), 1)
    assert "py3Dmol" in sys.modules
    html = view._make_html()
    assert "O 0.0" in html or "O -0.0" in html
    assert "C " not in html.split("xyz")[0].split("addModel")[-1]


def test_view_3d_shows_a_still_picture_until_its_script_is_there():
    pytest.importorskip("py3Dmol")
    html = views.view_3d(from_smiles("CCO"), size=(200, 150))._make_html()
    container, script = html.split("<script>")
    assert 'alt="C2H6O"' in container and "data:image/png;base64," in container
    assert "warning" not in container  # which the page would remove before the script has come
    number = container.split('id="3dmolstill_')[1].split('"')[0]
    shown = script.split("$3Dmolpromise.then")[1]
    assert f'getElementById("3dmolstill_{number}")?.remove()' in shown
    png = base64.b64decode(container.split("base64,")[1].split('"')[0])
    pixels = matplotlib.image.imread(io.BytesIO(png))
    assert pixels.shape[:2] == (150, 200) and pixels[..., :3].std() > 0.05


def test_a_lone_hydrogen_is_drawn_without_a_warning(capfd):
    water = from_smiles("O")
    far = np.concatenate([water.positions, [[50.0, 0.0, 0.0]]])
    views.grid(MoleculeSet([4], [*water.numbers, 1], far), rule="edm")
    assert capfd.readouterr().err == ""
