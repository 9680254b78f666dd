"""Point clouds of real chairs and tables out of Debian's package sweethome3d-furniture 1.8.

    apt-get download sweethome3d-furniture
    python -m rgdm_lib.shapes.build_furniture --package sweethome3d-furniture_1.8-1_all.deb \\
        --out data/shapes

Needs trimesh (``pip install "rgdm_lib[shapes]"``). The package's libraries (.sh3f, zip archives of
meshes with a catalogue) may be used under CC-BY 3.0 or CC0, by library, as its copyright file says.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rgdm_lib.shapes import data
from rgdm_lib.shapes.mesh import surface_points

POINTS = 2048
STEP = 0.0005  # of the stored positions
METRES = {"chair": 0.5, "table": 0.8}  # one unit of the parametric shapes, for ordinary furniture


@dataclass(frozen=True)
class Library:
    """A .sh3f file: its sha256 in version 1.8, licence, where its models come from."""

    sha256: str
    licence: str
    address: str
    credit: str


LIBRARIES = {
    "BlendSwap-CC-0": Library(
        "7ef093fe70cedbb160bdb532d86a84580459635e34130c16777f549eba1993dc",
        "CC0 1.0",
        "https://creativecommons.org/publicdomain/zero/1.0/",
        "Models by various authors of http://www.blendswap.com, cleaned and converted to OBJ by"
        " Emmanuel Puybaret / eTeks.",
    ),
    "BlendSwap-CC-BY": Library(
        "29ae78937b4d5dbe93db74067817a984fa411f017b007fd666bc40368bdb0c83",
        "CC-BY 3.0",
        "https://creativecommons.org/licenses/by/3.0/",
        "Models by various authors of http://www.blendswap.com, cleaned and converted to OBJ by"
        " Emmanuel Puybaret / eTeks.",
    ),
    "KatorLegaz": Library(
        "f512443b5d3a6903497573095f971f44334b3165ab32182133051fa9487764a6",
        "CC-BY 3.0 US",
        "https://creativecommons.org/licenses/by/3.0/us/",
        "Copyright 2003-2008 Andrew Kator & Jennifer Legaz.",
    ),
    "Scopia": Library(
        "b4505451b1e8ab339c101c0afddfef4e1a07b95aa8c821c61ec41487afd43850",
        "CC-BY 3.0",
        "https://creativecommons.org/licenses/by/3.0/",
        "Copyright 2006-2020 Scopia Visual Interfaces Systems, s.l. (http://www.scopia.es) and"
        " 2014-2020 Emmanuel Puybaret / eTeks.",
    ),
}

# a chair is a seat for one, with a back, on legs or a base of its own
KEPT = {
    "chair": {
        "BlendSwap-CC-0": """armchair oakChair plasticChair silla2 stool sillaBlanca armchair2 chair
            modernArmchair antiqueChair chairWithCushion chair2 osakaChair designChair thonet""",
        "BlendSwap-CC-BY": """cafe_set_mota_chair cafe_set_tonon_chair chairWithCushion childChair
            ella_chair_f leaf_chair armchair1 fotel foldingChair plaidChair armChair2 kitchenChair
            chair3 chair4""",
        "KatorLegaz": "cafe-chair mid-century-chair bar-stool dining-chair office-chair",
        "Scopia": """silla_teca armchair3 armchair armchair1 chair3 chair4 chair office_chair
            tubular_chair armchair2 bar_chair kids_desk_chair kitchen_stool modern_armchair
            plastic_chair white_kitchen_chair children_chair rattanArmchair""",
    },
    "table": {
        "BlendSwap-CC-0": "oakTable technicalTable1 technicalTable2 table lbDesk",
        "BlendSwap-CC-BY": """biurko3 cafe_set_mota_table cafe_set_tonon_table coffeeTable
            simpleDesk table officeTable""",
        "KatorLegaz": "cafe-table folding-table glass-dining-table",
        "Scopia": """ext_table black_table saloon_table coffee_table table3 table4
            wooden_table_office metal_glass_table glass_table_office desk_table bar_table
            kids_desk_table kids_wooden_desk living_room_table table_wood_and_iron
            wooden_office_alder_table wooden_office_pear_table_rect wooden_office_pear_table
            white_kitchen_table coffee-table2 table-on-trestles table-with-leaning-feet round-table
            children_table""",
    },
}

# what the catalogue calls a chair, stool, bench, table or desk, and is left out, by the reason
DROPPED = {
    "for lying": """BlendSwap-CC-0/relaxChair BlendSwap-CC-0/deckChair BlendSwap-CC-BY/chair_deck
        BlendSwap-CC-BY/poolLounge KatorLegaz/chair-ottoman Scopia/beach_chair""",
    "a bench, for more than one": """BlendSwap-CC-0/bench KatorLegaz/concrete-bench
        KatorLegaz/painted-bench KatorLegaz/bench""",
    "a stool without a back, as a cloud a small table": """BlendSwap-CC-0/foldingChair
        BlendSwap-CC-0/pianoBench BlendSwap-CC-0/stool2 BlendSwap-CC-BY/green_stool""",
    "the corner of a sofa": "Scopia/ext_chair",
    "a wheelchair": "BlendSwap-CC-BY/wheelchair",
    "a chair with a table in front": "BlendSwap-CC-BY/classSeat Scopia/baby_high_chair",
    "no legs and no base": "Scopia/puff Scopia/ryokanChair",
    "a training device": "BlendSwap-CC-BY/abdominalBench",
    "CC0 by its library, CC-BY by its own file": "BlendSwap-CC-0/winchesterArmchair",
    "a cupboard or chest": """BlendSwap-CC-0/bedsideTable2 BlendSwap-CC-BY/bedsideTable
        BlendSwap-CC-BY/tvStand Scopia/changing-table Scopia/rattanTable""",
    "a game": """BlendSwap-CC-0/poolTable BlendSwap-CC-0/table_football
        BlendSwap-CC-BY/table_tennis""",
    "shelves, a panel or a mirror above the top": """BlendSwap-CC-0/desk BlendSwap-CC-BY/workbench
        KatorLegaz/custom-desk Scopia/dressing-table""",
    "a cloth down to the floor": "BlendSwap-CC-0/tableWithTablecloth",
    "the same shape as wooden_office_pear_table": "Scopia/wooden_office_teak_table",
}


def _members_of_deb(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the .sh3f files in a Debian package (an ar archive of tar archives)."""
    content = path.read_bytes()
    at = 8
    while at < len(content):
        name = content[at : at + 16].decode("ascii").strip(" /")
        size = int(content[at + 48 : at + 58])
        if name == "data.tar.xz":
            raw = lzma.decompress(content[at + 60 : at + 60 + size])
            with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
                for member in archive:
                    if member.name.endswith(".sh3f"):
                        yield Path(member.name).stem, archive.extractfile(member).read()
        at += 60 + size + size % 2


def read_libraries(package: str | Path) -> dict[str, zipfile.ZipFile]:
    """The libraries that are used, from the .deb or a folder into which it was unpacked.

    Raises:
        FileNotFoundError: no package there, or a library is missing from it.
        ValueError: no Debian package, or a library is not the one of version 1.8 (sha256).
    """
    package = Path(package)
    if package.is_dir():
        found = {file.stem: file.read_bytes() for file in package.rglob("*.sh3f")}
    elif package.is_file():
        with package.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise ValueError(f"{package} is no Debian package: give the .deb or a folder")
        found = dict(_members_of_deb(package))
    else:
        raise FileNotFoundError(
            f"{package}: no such file; run: apt-get download sweethome3d-furniture"
        )
    for name, library in LIBRARIES.items():
        if name not in found:
            raise FileNotFoundError(f"{package} has no {name}.sh3f: is it sweethome3d-furniture?")
        digest = hashlib.sha256(found[name]).hexdigest()
        if digest != library.sha256:
            raise ValueError(f"{name}.sh3f has the sha256 {digest}: version 1.8-1 is wanted")
    return {name: zipfile.ZipFile(io.BytesIO(found[name])) for name in LIBRARIES}


def catalogue(library: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """Entries of a library's catalogue by the model's name (what follows ``#`` in its id)."""
    text = library.read("PluginFurnitureCatalog.properties").decode("latin-1")
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, re.MULTILINE):
        entries.setdefault(number, {})[key] = value
    return {entry["id"].split("#")[-1]: entry for entry in entries.values()}


def triangles(library: zipfile.ZipFile, entry: dict[str, str]) -> Tensor:
    """A model's faces (F, 3, 3), z up and y to the front, in the file's own unit.

    Models have y up and z to the front, once turned by the catalogue's matrix. A face that is
    there twice (a sheet drawn from both sides) counts once.
    """
    import trimesh

    content = io.BytesIO(library.read(entry["model"].lstrip("/")))
    mesh = trimesh.load_scene(content, file_type="obj", skip_materials=True).to_mesh()
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    mesh.update_faces(mesh.unique_faces())
    faces = torch.from_numpy(np.array(mesh.triangles, dtype=np.float64))
    if "modelRotation" in entry:
        turn = torch.tensor([float(v) for v in entry["modelRotation"].split()])
        faces = faces @ turn.to(faces).reshape(3, 3).T
    return torch.stack([-faces[..., 0], faces[..., 2], faces[..., 1]], -1)


def placed(kind: str, faces: Tensor, height: float, boxes: Tensor) -> Tensor:
    """Faces at the size and place of the parametric shapes.

    Size: one unit is 0.5 m for a chair and 0.8 m for a table, the catalogue's height being right.
    What is then smaller than the smallest parametric shape of the class (diagonal of the bounding
    box) is enlarged to its size, what sticks out of the box of the largest is shrunk into it.
    Place: on z = 0; the middle of the box at x = 0, the middle of its lower half (legs and seat,
    without a leaning back) at y = 0. Tables have their longer side along x.

    Args:
        kind: chair or table.
        faces: (F, 3, 3), z up.
        height: in metres.
        boxes: (n, 3) extents of parametric shapes.
    """
    corners = faces.flatten(0, 1)
    extent = corners.amax(0) - corners.amin(0)
    if kind == "table" and extent[1] > extent[0]:
        faces = torch.stack([-faces[..., 1], faces[..., 0], faces[..., 2]], -1)
        extent = extent[[1, 0, 2]]
    factor = height / METRES[kind] / extent[2]
    factor = torch.maximum(factor, boxes.norm(dim=1).amin() / extent.norm())
    factor = torch.minimum(factor, (boxes.amax(0) / extent).amin())
    faces = faces * factor
    corners = faces.flatten(0, 1)
    low, high = corners.amin(0), corners.amax(0)
    lower = surface_points(faces[None], 20_000, torch.Generator().manual_seed(0))[0].double()
    y = lower[lower[:, 2] < (low[2] + high[2]) / 2][:, 1]
    shift = torch.stack([(low[0] + high[0]) / 2, (y.amin() + y.amax()) / 2, low[2]])
    return faces - shift


def build(package: str | Path) -> dict[str, np.ndarray]:
    """The columns of furniture.npz (its card names them)."""
    libraries = read_libraries(package)
    catalogues = {name: catalogue(library) for name, library in libraries.items()}
    parametric = data.shapes("train", 1000, POINTS)
    rows: dict[str, list] = {k: [] for k in ("label", "name", "author", "licence", "source")}
    points = []
    for label, (kind, names) in enumerate(KEPT.items()):
        boxes = (parametric.of(kind).amax(1) - parametric.of(kind).amin(1)).double()
        for library, models in names.items():
            for model in models.split():
                entry = catalogues[library][model]
                faces = triangles(libraries[library], entry)
                faces = placed(kind, faces, float(entry["height"]) / 100, boxes)
                source = f"{library}/{model}"
                # a seed of its own: a cloud does not depend on which others are kept
                generator = torch.Generator().manual_seed(zlib.crc32(source.encode()))
                points.append(surface_points(faces[None], POINTS, generator)[0])
                values = (label, entry["name"], entry["creator"], LIBRARIES[library].licence)
                for column, value in zip(rows, (*values, source), strict=True):
                    rows[column].append(value)
    columns = {name: np.array(values) for name, values in rows.items()}
    columns["label"] = columns["label"].astype(np.int8)
    steps = (torch.stack(points).double() / STEP).round()
    return {"points": steps.numpy().astype(np.int16), "unit": np.float64(STEP), **columns}


def attribution(columns: dict[str, np.ndarray]) -> str:
    """The text of ATTRIBUTION.md: each model's name, author and licence, by library."""
    lines = [
        "# Who made the models behind furniture.npz",
        "",
        "The point clouds in `furniture.npz` are made from 3-D models of the libraries below, as",
        "Debian ships them in `sweethome3d-furniture` 1.8-1 (https://www.sweethome3d.com). The",
        "models were changed: turned, scaled, moved, and replaced by 2,048 points sampled on their",
        "surface; materials and textures are not used. Names and authors are the catalogue's. None",
        "of the authors endorses this course.",
    ]
    for name, library in LIBRARIES.items():
        lines += ["", f"## {name}: {library.licence}", "", f"{library.credit} Licence:"]
        lines += [library.address, "", "| model | name | class | author |", "|---|---|---|---|"]
        for i, source in enumerate(columns["source"]):
            if source.startswith(f"{name}/"):
                kind = tuple(KEPT)[columns["label"][i]]
                model = source.partition("/")[2]
                lines.append(
                    f"| `{model}` | {columns['name'][i]} | {kind} | {columns['author'][i]} |"
                )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write furniture.npz and ATTRIBUTION.md."""
    parser = argparse.ArgumentParser(
        prog="python -m rgdm_lib.shapes.build_furniture", description=main.__doc__
    )
    parser.add_argument("--package", required=True, help="the .deb, or a folder with .sh3f files")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write to")
    options = parser.parse_args(arguments)
    try:
        columns = build(options.package)
    except ModuleNotFoundError as error:
        parser.exit(1, f'error: {error}; run: pip install "rgdm_lib[shapes]"\n')
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "furniture.npz"
    np.savez_compressed(path, **columns)
    (options.out / "ATTRIBUTION.md").write_text(attribution(columns), encoding="utf-8")
    count = np.bincount(columns["label"])
    print(f"{path}: {count[0]} chairs, {count[1]} tables, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
