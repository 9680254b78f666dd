"""Pictures of point clouds on plain matplotlib axes; z points up, lengths in the clouds' unit."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Polygon
from scipy.spatial import ConvexHull, KDTree
from torch import Tensor

NEIGHBOURS = 12  # points that show how a surface lies
LIGHT = np.array([0.45, 0.35, 0.82])  # from above, the front and the right; of length 1


def _array(cloud: np.ndarray | Tensor) -> np.ndarray:
    array = np.asarray(cloud, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array):
        raise ValueError(f"a cloud of shape {array.shape}, wanted one cloud (N, 3)")
    if not np.isfinite(array).all():
        raise ValueError("the cloud has coordinates that are not finite: nothing to draw")
    return array


def normals(cloud: np.ndarray | Tensor) -> np.ndarray:
    """Unit normals (N, 3) of the surface under each point, of either sign.

    The direction in which a point and its nearest neighbours vary least (Hoppe et al. 1992).

    Raises:
        ValueError: not one cloud (N, 3), or not finite.
    """
    points = _array(cloud)
    # not balanced: see metrics._one_way
    tree = KDTree(points, balanced_tree=False)
    near = tree.query(points, min(NEIGHBOURS, len(points)))[1].reshape(len(points), -1)
    patch = points[near] - points[near].mean(1, keepdims=True)
    return np.linalg.eigh(patch.transpose(0, 2, 1) @ patch)[1][:, :, 0]


def draw_cloud(
    ax: Axes,
    cloud: np.ndarray | Tensor,
    turn: float = 35.0,
    lift: float = 20.0,
    span: float = 3.2,
    color: str = "C0",
) -> Axes:
    """A shaded picture of one cloud, by parallel projection; returns the axes.

    Each point is as bright as its surface is turned to a lamp; what is near covers what is far,
    and far points are paler.

    Args:
        ax: plain 2-D axes; their frame is taken off.
        cloud: (N, 3).
        turn: degrees the cloud is turned about the vertical; at 0 it is seen from the front.
        lift: degrees the camera looks down.
        span: width and height of the picture, which is centred on the cloud's bounding box.
        color: of a point in full light.

    Raises:
        ValueError: not one cloud (N, 3), or not finite.
    """
    points = _array(cloud)
    light = np.abs(normals(points) @ LIGHT)
    a, b = np.deg2rad([turn, lift])
    right = np.array([-np.cos(a), np.sin(a), 0.0])
    front = np.array([np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), np.sin(b)])
    seen = (points - (points.min(0) + points.max(0)) / 2) @ np.stack(
        [right, np.cross(front, right), front], 1
    )
    depth = seen[:, 2]
    order = np.argsort(depth, kind="stable")
    far = (depth.max() - depth) / max(np.ptp(depth), 1e-9)
    shade = np.outer(0.3 + 0.7 * light, to_rgb(color))
    shade += 0.55 * far[:, None] * (1 - shade)
    ax.scatter(*seen[order, :2].T, s=7, c=shade[order], linewidths=0, rasterized=True)
    ax.set(xlim=(-span / 2, span / 2), ylim=(-span / 2, span / 2), aspect="equal")
    ax.axis("off")
    return ax


def draw_support(ax: Axes, cloud: np.ndarray | Tensor, sole: float = 0.12) -> Axes:
    """A cloud from above with its support polygon and its centre of mass; returns the axes.

    Args:
        ax: plain 2-D axes.
        cloud: (N, 3).
        sole: height of the layer that touches the ground, as in ``rewards.standing_margin``.

    Raises:
        ValueError: not one cloud (N, 3), or not finite.
    """
    points = _array(cloud)
    ground = points[points[:, 2] <= points[:, 2].min() + sole, :2]
    centre = points[:, :2].mean(0)
    ax.scatter(*points[:, :2].T, s=4, color="0.8", linewidths=0, rasterized=True)
    ax.scatter(*ground.T, s=8, color="0.3", linewidths=0, label="touch the ground")
    if np.linalg.matrix_rank(ground - ground.mean(0)) == 2:  # points in a line have no polygon
        corners = ground[ConvexHull(ground).vertices]
        ax.add_patch(Polygon(corners, facecolor="C2", alpha=0.25, edgecolor="C2", lw=2))
    ax.plot(*centre, "X", color="C3", ms=11, mec="w", label="centre of mass")
    ax.set(xlabel="x, to the right (units)", ylabel="y, to the front (units)", aspect="equal")
    return ax
