"""Pictures of clouds: the right point in front, the right polygon, errors that help."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import Polygon

from rgdm_lib.shapes import views

matplotlib.use("agg")


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_normals_of_two_level_faces_and_a_wall():
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2) / 5
    floor = np.column_stack([grid, np.zeros(36)])
    wall = np.column_stack([np.full(36, 9.0), grid])
    found = np.abs(views.normals(np.concatenate([floor, wall])))
    np.testing.assert_allclose(found[:36], np.tile([0, 0, 1.0], (36, 1)), atol=1e-9)
    np.testing.assert_allclose(found[36:], np.tile([1.0, 0, 0], (36, 1)), atol=1e-9)


def test_from_the_front_right_is_left_up_is_up_and_the_near_is_drawn_last(ax):
    """Facing a chair from its front, its right (x > 0) is at the viewer's left."""
    corners = torch.tensor(
        [[1.0, 0, 0.5], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    )
    views.draw_cloud(ax, corners, turn=0, lift=0)
    drawn = np.asarray(ax.collections[0].get_offsets())
    expected = [(0, 0), (-1, 0.5), (1, 0), (0, 1), (0, -1), (0, 0)]
    assert {tuple(p) for p in drawn.round(6) + 0.0} == {tuple(map(float, p)) for p in expected}
    colours = ax.collections[0].get_facecolors()[:, :3]
    assert colours[0].sum() > colours[-1].sum()  # behind first and pale, in front last


def test_a_quarter_turn_shows_the_side_and_lifting_shows_the_top(ax):
    cloud = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    views.draw_cloud(ax, cloud, turn=90, lift=0)
    views.draw_cloud(ax, cloud, turn=0, lift=90)
    side, top = (np.asarray(c.get_offsets()) for c in ax.collections)
    assert sorted(abs(side[:, 0]).round(6)) == [1, 1] and abs(side[:, 1]).max() < 1e-9
    assert abs(top[:, 0]).max() < 1e-9 and sorted(abs(top[:, 1]).round(6)) == [1, 1]


def test_support_polygon_and_centre_of_mass(ax):
    feet = [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0.5, 0.5, 0.1]]  # the last inside the triangle
    cloud = torch.tensor([*feet, [5.5, -0.5, 3.0]])
    views.draw_support(ax, cloud)
    (patch,) = [p for p in ax.patches if isinstance(p, Polygon)]
    assert {tuple(p) for p in patch.get_xy()} == {(0, 0), (2, 0), (0, 2)}
    assert ax.lines[0].get_xydata()[0] == pytest.approx([1.6, 0.4])


def test_feet_in_a_line_have_no_polygon(ax):
    cloud = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 1]])
    views.draw_support(ax, cloud)
    assert not ax.patches and len(ax.collections[1].get_offsets()) == 3


@pytest.mark.parametrize("draw", [views.draw_cloud, views.draw_support])
def test_what_cannot_be_drawn_is_refused(ax, draw):
    with pytest.raises(ValueError, match=r"wanted one cloud \(N, 3\)"):
        draw(ax, torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="not finite"):
        draw(ax, torch.full((4, 3), torch.nan))
