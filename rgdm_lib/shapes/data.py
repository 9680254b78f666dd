"""Sets of point clouds: parametric shapes in fixed parts, real furniture, a reader's ShapeNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rgdm_lib._data import data_path
from rgdm_lib.shapes import parametric

# the classifier that rewards, the one that judges and the generator see different shapes
PARTS = ("train", "validation", "test", "classifier", "judge")

SYNSETS = {"plane": "02691156", "chair": "03001627", "table": "04379243", "car": "02958343"}


@dataclass(frozen=True)
class ShapeSet:
    """Point clouds with classes and, where shapes are parametric, their parameters.

    Args:
        points: (n, N, 3) float32.
        label: (n,) index into ``classes``.
        classes: names.
        parameters: by class, the parameters of its shapes in their order here.

    Raises:
        ValueError: shapes that do not fit; a coordinate that is not finite (the cloud is named).
    """

    points: Tensor
    label: Tensor
    classes: tuple[str, ...] = parametric.CLASSES
    parameters: dict[str, parametric.Parameters] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 3 or self.points.shape[2] != 3:
            raise ValueError(f"points of shape {tuple(self.points.shape)}, wanted (n, N, 3)")
        if self.label.shape != (len(self.points),):
            raise ValueError(f"{len(self.points)} clouds, but labels {tuple(self.label.shape)}")
        bad = ~torch.isfinite(self.points).flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(f"cloud {int(bad.nonzero()[0])} has coordinates that are not finite")

    def __len__(self) -> int:
        return len(self.points)

    def of(self, kind: str) -> Tensor:
        """The clouds (n, N, 3) of one class; ValueError for one that there is not."""
        if kind not in self.classes:
            raise ValueError(f"no class {kind!r}; there are {', '.join(self.classes)}")
        return self.points[self.label == self.classes.index(kind)]


def shapes(
    part: str, n: int, points: int = 512, classes: tuple[str, ...] = parametric.CLASSES
) -> ShapeSet:
    """The first n parametric shapes of each class of a part; the same at every call.

    A part has its own stream of random numbers for each class, so that it can be made longer
    without a change to what it had, and no shape is in two parts. The points on a shape depend on
    n and ``points``.

    Raises:
        ValueError: a part or class that does not exist.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r}; there are {', '.join(PARTS)}")
    unknown = [kind for kind in classes if kind not in parametric.CLASSES]
    if unknown:
        raise ValueError(f"no class {unknown[0]!r}; there are {', '.join(parametric.CLASSES)}")
    clouds, label, parameters = [], [], {}
    for k, kind in enumerate(classes):
        stream = 1000 * PARTS.index(part) + parametric.CLASSES.index(kind)
        parameters[kind] = parametric.draw_parameters(kind, n, stream)
        generator = torch.Generator().manual_seed(500 + stream)
        clouds.append(parametric.clouds(kind, parameters[kind], points, generator))
        label.append(torch.full((n,), k))
    return ShapeSet(torch.cat(clouds), torch.cat(label), classes, parameters)


def furniture(points: int = 512) -> ShapeSet:
    """Real chairs and tables (``data/shapes/furniture.md``), placed as the parametric ones are.

    A set to test on, too small to train on alone. The points of a cloud are independent draws, so
    that the first ``points`` of them are a sample too.

    Raises:
        ValueError: more points than the file has; the file is damaged.
        FileNotFoundError: it is missing.
    """
    with np.load(data_path("shapes/furniture.npz"), allow_pickle=False) as file:
        steps, unit, label = file["points"], float(file["unit"]), file["label"]
    if not 0 < points <= steps.shape[1]:
        raise ValueError(f"points = {points}: a cloud of the furniture has 1 to {steps.shape[1]}")
    clouds = torch.from_numpy(steps[:, :points].astype(np.float32) * np.float32(unit))
    return ShapeSet(clouds, torch.from_numpy(label.astype(np.int64)), ("chair", "table"))


def require_disjoint(*sets: ShapeSet) -> None:
    """Refuse sets that share a cloud or a parametric shape.

    Raises:
        ValueError: two sets, or one set twice, hold the same shape.
    """
    seen: dict[bytes, int] = {}
    for number, one in enumerate(sets):
        rows = [cloud.numpy().tobytes() for cloud in one.points]
        for kind, values in (one.parameters or {}).items():
            table = torch.stack(list(values.values()), 1).numpy()
            rows += [kind.encode() + row.tobytes() for row in table]
        for row in rows:
            if seen.get(row, number) != number:
                raise ValueError(f"sets {seen[row]} and {number} share a shape")
            seen[row] = number


@dataclass(frozen=True)
class Normalisation:
    """Mean of each axis and standard deviation, of the training part only.

    Attributes:
        mean, std: (3,); ``std`` holds one number three times if all axes share it.
        source: what they are the statistics of; goes into the metrics.
    """

    mean: Tensor
    std: Tensor
    source: str

    @classmethod
    def of(cls, clouds: Tensor, source: str, per_axis: bool = True) -> Normalisation:
        """Statistics over all points of clouds (n, N, 3).

        Args:
            clouds, source: the training part, and what it is.
            per_axis: a standard deviation for each axis; else one, of all coordinates together,
                which keeps proportions: PointFlow's rule (Yang et al. 2019) as its loader has it
                when nothing is said, means of the axes taken off and test clouds treated alike.

        Raises:
            ValueError: an axis along which nothing varies.
        """
        flat = clouds.reshape(-1, 3).double()
        std = flat.std(0) if per_axis else flat.std().expand(3)
        if not bool((std > 0).all()):
            raise ValueError(f"standard deviations {std.tolist()}: an axis is flat")
        return cls(flat.mean(0).float(), std.float(), source)

    def apply(self, clouds: Tensor) -> Tensor:
        """To mean 0 and standard deviation 1 over the training part."""
        return (clouds - self.mean) / self.std

    def undo(self, clouds: Tensor) -> Tensor:
        """Back to the clouds' own unit."""
        return clouds * self.std + self.mean


def to_bounding_box(clouds: Tensor) -> Tensor:
    """``shape_bbox`` (Luo & Hu 2021): each cloud's bounding box centred, its longest side 2.

    Raises:
        ValueError: a cloud without extent: all its points are one.
    """
    low, high = clouds.amin(1, keepdim=True), clouds.amax(1, keepdim=True)
    side = (high - low).amax(2, keepdim=True)
    if bool((side == 0).any()):
        raise ValueError(f"all points of cloud {int((side == 0).flatten().nonzero()[0])} are one")
    return (clouds - (low + high) / 2) / (side / 2)


def to_global_unit(clouds: Tensor, training: Normalisation) -> Tensor:
    """``global_unit`` (Luo & Hu 2021): each cloud's own mean taken off, one deviation for all.

    So every cloud is centred, and keeps its size beside the others. Their loader takes the
    deviation over training, validation and test parts; here it is the training part's, and
    ``training`` goes into the metrics with its source.

    Args:
        clouds: (n, N, 3).
        training: ``Normalisation.of(training part, source, per_axis=False)``.

    Raises:
        ValueError: the axes have deviations of their own.
    """
    if not bool((training.std == training.std[0]).all()):
        raise ValueError(f"deviations {training.std.tolist()}: global_unit has one, per_axis=False")
    return (clouds - clouds.mean(1, keepdim=True)) / training.std


def load_shapenet(root: str | Path, kind: str, part: str, points: int = 2048) -> Tensor:
    """Clouds of PointFlow's ``ShapeNetCore.v2.PC15k`` layout: ``root/SYNSET/PART/ID.npy``.

    Files hold (15000, 3); the first 10,000 points are for training, the last 5,000 for testing
    (PointFlow's rule), and of these the first ``points`` are taken. y points up there: the axes
    are turned so that z does, as everywhere here.

    Args:
        root: folder with the synsets' folders.
        kind: a class of ``SYNSETS``, or a synset id.
        part: train, val or test.
        points: points a cloud.

    Returns:
        (n, points, 3) float32, in the order of the file names.

    Raises:
        FileNotFoundError: no such folder; what the root does hold is said.
        ValueError: no such part or number of points, or a file that is truncated, no array of
            numbers, has too few points or a NaN (named).
    """
    if part not in ("train", "val", "test"):
        raise ValueError(f"no part {part!r}: PointFlow's are train, val and test")
    root = Path(root)
    folder = root / SYNSETS.get(kind, kind) / part
    files = sorted(file for file in folder.glob("*.npy") if not file.name.startswith("."))
    if not files:
        there = sorted(f.name for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
        raise FileNotFoundError(
            f"no .npy files in {folder}; {root} holds {', '.join(there[:10]) or 'no folders'}:"
            f" give the folder that holds synset ids such as {SYNSETS['chair']} (chair)"
        )
    first, last = (0, 10_000) if part == "train" else (10_000, 15_000)
    if not 0 < points <= last - first:
        raise ValueError(f"points = {points}: this part of a file has 1 to {last - first}")
    clouds = []
    for file in files:
        try:
            cloud = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as reason:
            raise ValueError(
                f"{file} is truncated or no array ({reason}): copy it again"
            ) from reason
        if not isinstance(cloud, np.ndarray) or cloud.dtype.kind not in "fiu":
            kind = getattr(cloud, "dtype", type(cloud).__name__)
            raise ValueError(f"{file} holds {kind}, no array of numbers: save the points alone")
        if cloud.ndim != 2 or cloud.shape[1] != 3 or len(cloud) < first + points:
            raise ValueError(
                f"{file} holds an array {cloud.shape}, wanted (15000, 3): use the files of"
                f" ShapeNetCore.v2.PC15k, or at most {max(0, len(cloud) - first)} points"
            )
        with np.errstate(over="ignore"):  # a number too large for float32 is refused below
            cloud = cloud[first : first + points].astype(np.float32)
        if not np.isfinite(cloud).all():
            raise ValueError(f"{file} has coordinates that are not finite: remove or copy it again")
        clouds.append(torch.from_numpy(cloud))
    turned = torch.stack(clouds)
    return torch.stack([turned[..., 0], -turned[..., 2], turned[..., 1]], -1)
