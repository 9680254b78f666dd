"""Real furniture: the shipped clouds, and the command that makes them."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from rgdm_lib import _data
from rgdm_lib.shapes import build_furniture as build
from rgdm_lib.shapes import data, mesh
from rgdm_lib.shapes.metrics import chamfer_matrix
from rgdm_lib.shapes.rewards import stands

COUNTS = {"chair": 52, "table": 39}


@pytest.fixture(scope="module")
def columns():
    with np.load(_data.data_path("shapes/furniture.npz"), allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def furniture():
    return data.furniture(2048)


@pytest.fixture(scope="module")
def parametric():
    return data.shapes("train", 1000, 2048)


def extents(clouds):
    return clouds.amax(1) - clouds.amin(1)


def test_counts_and_points(furniture):
    assert furniture.points.shape == (sum(COUNTS.values()), 2048, 3)
    assert {kind: len(furniture.of(kind)) for kind in furniture.classes} == COUNTS
    assert torch.equal(data.furniture(100).points, furniture.points[:, :100])
    for points in (0, 2049):
        with pytest.raises(ValueError, match=f"points = {points}: a cloud of the furniture has"):
            data.furniture(points)


def test_the_file_is_small():
    assert _data.data_path("shapes/furniture.npz").stat().st_size < 2e6


def test_every_model_has_an_author_and_a_licence(columns, root):
    assert {len(columns[name]) for name in ("name", "author", "licence", "source")} == {91}
    assert all(columns["name"]) and all(columns["author"])
    licences = {name: library.licence for name, library in build.LIBRARIES.items()}
    for source, licence in zip(columns["source"], columns["licence"], strict=True):
        assert licence == licences[source.partition("/")[0]]
    assert set(columns["licence"]) == {"CC0 1.0", "CC-BY 3.0", "CC-BY 3.0 US"}
    text = (root / "data" / "shapes" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert text == build.attribution(columns)
    for source, author in zip(columns["source"], columns["author"], strict=True):
        rows = [row for row in text.splitlines() if row.startswith(f"| `{source.split('/')[1]}` ")]
        assert any(row.endswith(f"| {author} |") for row in rows), source


def test_the_file_holds_what_the_lists_keep(columns):
    kept = [
        (label, f"{library}/{model}")
        for label, libraries in enumerate(build.KEPT.values())
        for library, models in libraries.items()
        for model in models.split()
    ]
    assert list(zip(columns["label"].tolist(), columns["source"].tolist(), strict=True)) == kept
    dropped = " ".join(build.DROPPED.values()).split()
    listed = [source for _, source in kept] + dropped
    assert len(set(listed)) == len(listed), "listed twice"
    assert {name.partition("/")[0] for name in listed} == set(build.LIBRARIES)


def test_furniture_stands_on_the_floor_in_the_middle(furniture):
    """The lowest of 2,048 points lies a little above the lowest point of the mesh."""
    low, high = furniture.points.amin(1), furniture.points.amax(1)
    assert low[:, 2].min() >= 0 and low[:, 2].max() < 0.03
    assert (low + high)[:, 0].abs().max() / 2 < 0.03
    lower = furniture.points[..., 2] < high[:, None, 2] / 2
    y = furniture.points[..., 1]
    ends = y.where(lower, torch.inf).amin(1), y.where(lower, -torch.inf).amax(1)
    assert (ends[0] + ends[1]).abs().max() / 2 < 0.05


@pytest.mark.parametrize("kind", COUNTS)
def test_sizes_are_those_of_the_parametric_shapes(furniture, parametric, kind):
    real, drawn = extents(furniture.of(kind)), extents(parametric.of(kind))
    assert (real.amax(0) <= drawn.amax(0) + build.STEP).all()
    assert real.norm(dim=1).min() > 0.95 * drawn.norm(dim=1).min()
    ratio = real.median(0).values / drawn.median(0).values
    assert (ratio > 0.8).all() and (ratio < 1.2).all()


def test_a_chairs_back_is_at_its_back(furniture):
    """What is above 0.6 of the height (backs, few arms) lies behind the middle, in every chair."""
    chairs = furniture.of("chair")
    upper = chairs[..., 2] > 0.6 * chairs[..., 2].amax(1, keepdim=True)
    y = (chairs[..., 1] * upper).sum(1) / upper.sum(1)
    assert (y < 0).all() and y.median() < -0.3


def test_a_tables_mass_is_in_the_top_and_its_long_side_along_x(furniture):
    tables = furniture.of("table")
    size = extents(tables)
    assert (size[:, 0] > size[:, 1] - 0.02).all()
    middle = tables.mean(1)
    assert middle[:, :2].abs().max() < 0.25
    assert (middle[:, 2] > 0.5 * size[:, 2]).double().mean() > 0.85


def test_no_two_clouds_are_of_one_shape(furniture):
    """The halves of a cloud are nearer to each other than to the halves of any other cloud."""
    for kind in COUNTS:
        clouds = furniture.of(kind)
        halves = chamfer_matrix(clouds[:, :512], clouds[:, 512:1024])
        same = halves.diagonal().copy()
        np.fill_diagonal(halves, np.inf)
        assert (halves.min(1) > 1.2 * same).all(), kind


def test_real_chairs_stand(furniture):
    """At 2,048 points; thin feet get few points, so that with 512 some seem to fall."""
    assert stands(furniture.of("chair")).double().mean() >= 0.95
    assert (stands(furniture.of("table")) == 1).all()


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    whole = _data.data_path("shapes/furniture.npz")
    (tmp_path / "shapes").mkdir()
    copy = tmp_path / "shapes" / "furniture.npz"
    copy.write_bytes(whole.read_bytes())
    _data.write_manifest(tmp_path)
    monkeypatch.setattr(_data, "data_root", lambda: tmp_path)
    _data.data_path.cache_clear()
    try:
        assert len(data.furniture()) == 91
        content = bytearray(whole.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
        _data.data_path.cache_clear()
        with pytest.raises(ValueError, match="furniture.npz' is damaged"):
            data.furniture()
    finally:
        _data.data_path.cache_clear()


# the command


def wedge(width, depth, height):
    """A box with a low front half: where its back and its long side are can be seen."""
    half = torch.tensor([width, depth, height], dtype=torch.float64) / 2
    seat = mesh.box(torch.zeros(1, 3, dtype=torch.float64), *torch.diag(half)[:, None])
    back = seat * torch.tensor([1, 0.1, 1.0]) + torch.tensor([0, -0.45 * depth, height])
    return torch.cat([seat, back], 1)[0].double() + 7


BOXES = torch.tensor([[1.0, 1.0, 1.0], [1.5, 2.0, 2.5]], dtype=torch.float64)


def box_of(faces):
    corners = faces.flatten(0, 1)
    return corners.amin(0), corners.amax(0)


def test_placed_gives_the_true_size_in_the_units_of_the_class():
    low, high = box_of(build.placed("chair", wedge(4, 5, 4), 0.8, BOXES))
    assert (high - low).tolist() == pytest.approx([0.8, 1.0, 1.6])  # 8 high: 0.8 m are 1.6
    assert low.tolist() == pytest.approx([-0.4, -0.5, 0.0], abs=1e-3)


def test_placed_enlarges_what_is_too_small_and_shrinks_what_sticks_out():
    low, high = box_of(build.placed("chair", wedge(4, 5, 4), 0.4, BOXES))
    assert float((high - low).norm()) == pytest.approx(3**0.5)
    low, high = box_of(build.placed("chair", wedge(4, 2, 2), 1.0, BOXES))
    assert (high - low).tolist() == pytest.approx([1.5, 0.75, 1.5])


def test_placed_keeps_backs_behind_and_turns_tables():
    chair = build.placed("chair", wedge(2, 4, 4), 0.8, BOXES)
    above = chair.mean(1)[chair.mean(1)[:, 2] > 0.9]
    assert above[:, 1].mean() < -0.3
    low, high = box_of(build.placed("table", wedge(2, 4, 2), 1.0, BOXES))
    assert (high - low).tolist() == pytest.approx([1.25, 0.625, 1.25])
    low, high = box_of(build.placed("table", wedge(2, 4, 2), 2.0, BOXES))  # too wide once turned
    assert (high - low).tolist() == pytest.approx([1.5, 0.75, 1.5])


CATALOGUE = "id#1=Scopia#stool\nname#1=Stool\r\nmodel#1=/a/stool.obj\ncreator#1=A & B\n# id#2=x\n"
# the last face is the first one from behind, in a part of its own
OBJ = """v 0 0 0\nv 1 0 0\nv 0 2 0\nv 0 0 3\nusemtl a\nf 1 2 3\nf 1 3 4
v 0 0 0\nv 1 0 0\nv 0 2 0\nusemtl b\nf 7 6 5\n"""


def archive(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in files.items():
            file.writestr(name.replace("__", "/"), text)
    return content.getvalue()


def test_catalogue():
    content = archive(**{"PluginFurnitureCatalog.properties": CATALOGUE})
    entries = build.catalogue(zipfile.ZipFile(io.BytesIO(content)))
    assert list(entries) == ["stool"]
    assert entries["stool"]["name"] == "Stool" and entries["stool"]["creator"] == "A & B"


def test_triangles_are_turned_and_counted_once():
    pytest.importorskip("trimesh", reason='pip install "rgdm_lib[shapes]"')
    library = zipfile.ZipFile(io.BytesIO(archive(**{"a/stool.obj": OBJ})))
    faces = build.triangles(library, {"model": "/a/stool.obj"})
    assert mesh.areas(faces).tolist() == pytest.approx([1.0, 3.0])
    low, high = box_of(faces)  # y, up in the file, to z; z, to the front, to y; x is mirrored twice
    assert low.tolist() == [-1, 0, 0] and high.tolist() == [0, 3, 2]
    turned = {"model": "/a/stool.obj", "modelRotation": "0 -1 0 1 0 0 0 0 1"}  # x to y, y to -x
    low, high = box_of(build.triangles(library, turned))
    assert low.tolist() == [0, 0, 0] and high.tolist() == [2, 3, 1]


def deb(libraries):
    """A Debian package with some libraries: an ar archive of a compressed tar archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for name, value in libraries.items():
            member = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{name}.sh3f")
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    result = b"!<arch>\n"
    for name, value in (("debian-binary", b"2.0"), ("data.tar.xz", content.getvalue())):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(value):<10}`\n"
        result += header.encode() + value + b"\n" * (len(value) % 2)
    return result


@pytest.fixture
def libraries(monkeypatch):
    """Small libraries in place of the package's."""
    contents = {name: archive(**{"who.txt": name}) for name in build.LIBRARIES}
    for name, content in contents.items():
        old = build.LIBRARIES[name]
        new = build.Library(build.hashlib.sha256(content).hexdigest(), old.licence, "", "")
        monkeypatch.setitem(build.LIBRARIES, name, new)
    return contents


def test_the_package_is_read_as_file_and_as_folder(libraries, tmp_path):
    file = tmp_path / "furniture.deb"
    file.write_bytes(deb({**libraries, "Reallusion": b"not used"}))
    (tmp_path / "deep").mkdir()
    for name, content in libraries.items():
        (tmp_path / "deep" / f"{name}.sh3f").write_bytes(content)
    for package in (file, tmp_path):
        read = build.read_libraries(package)
        assert {name: one.read("who.txt").decode() for name, one in read.items()} == {
            name: name for name in build.LIBRARIES
        }


def test_a_wrong_package_is_refused(libraries, tmp_path):
    file = tmp_path / "furniture.deb"
    with pytest.raises(FileNotFoundError, match="run: apt-get download"):
        build.read_libraries(file)
    file.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no Debian package"):
        build.read_libraries(file)
    file.write_bytes(deb({"Scopia": libraries["Scopia"]}))
    with pytest.raises(FileNotFoundError, match="has no BlendSwap-CC-0.sh3f"):
        build.read_libraries(file)
    file.write_bytes(deb({**libraries, "Scopia": archive(other="1.9")}))
    with pytest.raises(ValueError, match="Scopia.sh3f has the sha256 .*: version 1.8-1"):
        build.read_libraries(file)
