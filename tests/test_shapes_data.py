"""Parametric shapes, their points, and files in ShapeNet's layout."""

import numpy as np
import pytest
import torch

from rgdm_lib.shapes import data, mesh, parametric
from rgdm_lib.shapes.rewards import standing_margin


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_box():
    centre = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    axes = torch.diag(torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    return mesh.box(centre, *axes[:, None])


def test_a_box_has_its_area_and_its_centre():
    triangles = one_box()
    assert float(mesh.areas(triangles).sum()) == pytest.approx(2 * (2 * 1 + 2 * 0.5 + 1 * 0.5))
    assert mesh.centre_of_mass(triangles)[0].tolist() == pytest.approx([1, 2, 3])


def test_every_side_of_a_box_is_closed():
    """Each edge belongs to two triangles, so no side is missing or double."""
    edges = {}
    for triangle in one_box()[0]:
        corners = [tuple(c.tolist()) for c in triangle]
        for a, b in ((0, 1), (1, 2), (2, 0)):
            key = frozenset((corners[a], corners[b]))
            edges[key] = edges.get(key, 0) + 1
    assert set(edges.values()) == {2} and len(edges) == 18


def test_a_tube_is_a_prism_of_twelve_sides():
    """Area: 12 sides of length 2 sin(pi / 12), and two ends of 3 r^2."""
    axes = torch.eye(3, dtype=torch.float64)[:2]
    centres = [torch.tensor([[0.0, 0, z]], dtype=torch.float64) for z in (0.0, 1.0, 3.0)]
    one = torch.ones(1, dtype=torch.float64)
    triangles = mesh.tube(centres, [(one, one)] * 3, axes)
    side = 2 * np.sin(np.pi / 12)
    assert float(mesh.areas(triangles).sum()) == pytest.approx(12 * side * 3 + 2 * 3)
    assert triangles.shape[1] == 24 * 2 + 24


def test_points_lie_on_the_surface_and_are_spread_by_area():
    points = mesh.surface_points(one_box(), 200_000, generator())[0].double()
    inside = (points - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([1.0, 0.5, 0.25])
    assert inside.abs().amax(1).sub(1).abs().max() < 1e-5
    share = [float((inside[:, k].abs() > 1 - 1e-5).double().mean()) for k in range(3)]
    assert share == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=4e-3)  # 4 standard errors
    on_top = inside[inside[:, 2] > 1 - 1e-5][:, :2]  # uniform on a side: variance 1/3
    assert on_top.square().mean(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=4e-3)


def test_a_mesh_without_area_is_refused():
    with pytest.raises(ValueError, match="mesh 1 has the area 0"):
        mesh.surface_points(torch.cat([one_box(), 0 * one_box()]), 5, generator())


@pytest.mark.parametrize("kind", parametric.CLASSES)
def test_parameters_follow_their_laws(kind):
    drawn = parametric.draw_parameters(kind, 20_000, 3)
    for name, law in parametric.LAWS[kind].items():
        value = drawn[name]
        if len(law) == 2:
            u = (value - law[0]) / (law[1] - law[0])
            assert 0 <= u.min() and u.max() <= 1 and u.mean() == pytest.approx(0.5, abs=0.01), name
        else:
            share = torch.bincount(value.long(), minlength=3) / len(value)
            assert share.tolist() == pytest.approx(law, abs=0.015), name
    table = torch.stack(list(drawn.values()))
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 0.03  # independent


@pytest.mark.parametrize("kind", parametric.CLASSES)
def test_shapes_are_where_they_should_be(kind):
    drawn = parametric.draw_parameters(kind, 200, 0)
    triangles = parametric.mesh(kind, drawn)
    corner = triangles.flatten(1, 2)
    assert torch.isfinite(triangles).all()
    assert mesh.centre_of_mass(triangles)[:, 0].abs().max() < 1e-12  # left and right are alike
    if kind != "plane":
        assert corner[..., 2].amin(1).abs().max() < 1e-9  # on the floor
    wide = corner[..., 0].amax(1) - corner[..., 0].amin(1)
    expected = {"chair": "width", "plane": "span", "table": "width"}[kind]
    over = wide - drawn[expected]
    if kind == "chair":  # feet are splayed; a star may be wider than the seat
        over = (over - 2 * drawn["splay"])[drawn["base"] == 0]
        assert over.amin() > -0.25
    else:
        assert over.amin() > -1e-9
    assert over.amax() < 0.02 + 1e-9


def test_a_third_to_half_of_the_chairs_fall():
    drawn = parametric.draw_parameters("chair", 400, 1)
    clouds = parametric.clouds("chair", drawn, 4096, generator())
    falls = float((standing_margin(clouds, sole=0.02) < 0).double().mean())
    assert 0.3 < falls < 0.5
    # what decides: how far the feet reach back, and how far the back leans
    reach = (drawn["inset"] > 0.45) & (drawn["tilt"] > 0.4)
    firm = (drawn["inset"] < 0.15) & (drawn["tilt"] < 0.2)
    margin = standing_margin(clouds, sole=0.02)
    assert (margin[reach] < 0).double().mean() > 0.8 and (margin[firm] >= 0).all()


def test_parts_are_fixed_grow_and_share_nothing():
    parts = [data.shapes(part, 30, 32) for part in data.PARTS]
    data.require_disjoint(*parts)
    again = data.shapes("test", 30, 32)
    assert torch.equal(again.points, parts[2].points)
    more = data.shapes("test", 40, 32)
    for kind in parametric.CLASSES:
        for name, value in again.parameters[kind].items():
            assert torch.equal(more.parameters[kind][name][:30], value)
    with pytest.raises(ValueError, match="sets 1 and 2 share a shape"):
        data.require_disjoint(parts[0], parts[2], more)  # other points on the same shapes
    with pytest.raises(ValueError, match="no part 'tset'; there are train"):
        data.shapes("tset", 3)
    assert parts[0].of("plane").shape == (30, 32, 3)


def test_what_a_set_refuses():
    points, label = torch.zeros(4, 5, 3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="wanted"):
        data.ShapeSet(points[..., :2], label)
    with pytest.raises(ValueError, match="4 clouds, but labels"):
        data.ShapeSet(points, label[:3])
    points[2, 1, 0] = torch.nan
    with pytest.raises(ValueError, match="cloud 2 has coordinates"):
        data.ShapeSet(points, label)


def test_normalisation_is_of_the_training_part():
    training = data.shapes("train", 20, 64).points
    norm = data.Normalisation.of(training, "train, 20 a class")
    flat = norm.apply(training).reshape(-1, 3)
    assert flat.mean(0).abs().max() < 1e-5 and (flat.std(0) - 1).abs().max() < 1e-5
    other = data.shapes("test", 5, 64).points
    assert torch.allclose(norm.undo(norm.apply(other)), other, atol=1e-5)
    with pytest.raises(ValueError, match="an axis is flat"):
        data.Normalisation.of(training * torch.tensor([1.0, 0.0, 1.0]), "flat")


def test_bounding_box():
    cloud = torch.tensor([[[0.0, 0, 0], [4.0, 1, 2]], [[1.0, 1, 1], [2.0, 3, 1]]])
    boxed = data.to_bounding_box(cloud)
    assert boxed[0].tolist() == [[-1, -0.25, -0.5], [1, 0.25, 0.5]]
    assert boxed[1].tolist() == [[-0.5, -1, 0], [0.5, 1, 0]]


def test_one_deviation_for_all_axes_is_by_hand_and_recorded():
    """Points (0, 0, 0) and (2, 4, 6): means 1, 2, 3; coordinates 0, 0, 0, 2, 4, 6 vary by 6.4."""
    training = torch.tensor([[[0.0, 0, 0]], [[2.0, 4, 6]]])
    norm = data.Normalisation.of(training, "train, 2 clouds", per_axis=False)
    assert norm.mean.tolist() == [1, 2, 3] and norm.source == "train, 2 clouds"
    assert norm.std.tolist() == pytest.approx([6.4**0.5] * 3)
    # another part: by the training part's statistics, proportions kept
    other = torch.tensor([[[1.0, 2, 3], [2.0, 3, 4]]])
    assert norm.apply(other)[0].tolist() == [[0] * 3, pytest.approx([6.4**-0.5] * 3)]
    assert torch.allclose(norm.undo(norm.apply(other)), other)


def test_global_unit_centres_each_cloud_and_keeps_its_size():
    torch.manual_seed(0)
    training = torch.randn(50, 40, 3) * torch.tensor([1.0, 2.0, 3.0]) + torch.randn(50, 1, 3)
    norm = data.Normalisation.of(training, "train", per_axis=False)
    for size, clouds in ((1, training), (2, 2 * training + 5)):  # a test part, twice as large
        unit = data.to_global_unit(clouds, norm)
        assert unit.mean(1).abs().max() < 1e-5  # not only on average, as PointFlow's rule
        own = training - training.mean(1, keepdim=True)
        assert torch.allclose(unit, size * own / training.std(), atol=1e-5)
    assert norm.apply(training).mean(1).abs().max() > 0.3
    with pytest.raises(ValueError, match="global_unit has one, per_axis=False"):
        data.to_global_unit(training, data.Normalisation.of(training, "train"))


@pytest.fixture
def shapenet(tmp_path):
    folder = tmp_path / data.SYNSETS["chair"] / "test"
    folder.mkdir(parents=True)
    rows = np.arange(45_000, dtype=np.float32).reshape(15_000, 3)
    np.save(folder / "a.npy", rows)
    np.save(folder / "b.npy", -rows)
    return folder


def test_shapenet_files_are_read_and_turned(shapenet):
    root = shapenet.parents[1]
    clouds = data.load_shapenet(root, "chair", "test", 7)
    assert clouds.shape == (2, 7, 3)
    x, y, z = 30_000.0, 30_001.0, 30_002.0  # row 10,000: test points are the last 5,000
    assert clouds[0, 0].tolist() == [x, -z, y]
    (root / data.SYNSETS["chair"] / "train").mkdir()
    np.save(root / data.SYNSETS["chair"] / "train" / "c.npy", np.load(shapenet / "a.npy"))
    assert data.load_shapenet(root, "03001627", "train", 7)[0, 0].tolist() == [0, -2, 1]


def test_what_is_wrong_with_a_shapenet_folder_is_said(shapenet):
    root = shapenet.parents[1]
    with pytest.raises(FileNotFoundError, match="holds 03001627: give the folder"):
        data.load_shapenet(root, "plane", "test")
    with pytest.raises(FileNotFoundError, match="holds no folders"):
        data.load_shapenet(root / "none", "plane", "test")
    with pytest.raises(ValueError, match="no part 'validation'"):
        data.load_shapenet(root, "chair", "validation")
    for points in (6000, 0, -5):  # the last would reach into the other part
        with pytest.raises(ValueError, match=f"points = {points}: this part of a file has 1 to"):
            data.load_shapenet(root, "chair", "test", points)
    good = (shapenet / "b.npy").read_bytes()
    for content, told in ((good[:1000], "b.npy is truncated"), (b"x", "b.npy is truncated")):
        (shapenet / "b.npy").write_bytes(content)
        with pytest.raises(ValueError, match=told):
            data.load_shapenet(root, "chair", "test", 7)
    for cloud, told in (
        (np.zeros((10_005, 3)), r"b.npy holds an array \(10005, 3\).*or at most 5 points"),
        (np.zeros((15_000, 2)), r"b.npy holds an array \(15000, 2\)"),
        (np.full((15_000, 3), np.nan), "b.npy has coordinates that are not finite"),
        (np.full((15_000, 3), 1e39), "b.npy has coordinates that are not finite"),
        (np.full((15_000, 3), "x"), "b.npy holds <U1, no array of numbers"),
        (np.full((15_000, 3), 1j), "b.npy holds complex128, no array of numbers"),
    ):
        np.save(shapenet / "b.npy", cloud)
        with pytest.raises(ValueError, match=told):
            data.load_shapenet(root, "chair", "test", 7)


def test_a_collection_of_arrays_is_refused_and_what_macos_leaves_is_not_read(shapenet):
    root = shapenet.parents[1]
    (shapenet / "._a.npy").write_bytes(b"no array")
    assert len(data.load_shapenet(root, "chair", "test", 7)) == 2
    np.savez(shapenet / "b.npz", np.zeros((15_000, 3)))
    (shapenet / "b.npz").rename(shapenet / "b.npy")
    with pytest.raises(ValueError, match="b.npy holds NpzFile, no array of numbers"):
        data.load_shapenet(root, "chair", "test", 7)


def test_unknown_classes_and_clouds_without_extent_are_refused():
    with pytest.raises(ValueError, match="no class 'sofa'; there are chair, plane, table"):
        data.shapes("train", 1, 8, ("chair", "sofa"))
    with pytest.raises(ValueError, match="no class 'plane'; there are chair$"):
        data.shapes("train", 1, 8, ("chair",)).of("plane")
    with pytest.raises(ValueError, match="all points of cloud 1 are one"):
        data.to_bounding_box(torch.stack([torch.randn(4, 3), torch.ones(4, 3)]))
