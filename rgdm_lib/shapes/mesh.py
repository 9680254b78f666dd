"""Triangle meshes of many shapes at once, and points spread evenly over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# the faces of a box, corners numbered by the signs of its three half axes: 4 a + 2 b + c
_QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))


def hexahedron(corners: Tensor) -> Tensor:
    """(n, 8, 3) corners of boxes, however bent -> (n, 12, 3, 3) triangles.

    Corner 4 a + 2 b + c lies at side a, b, c (each 0 or 1) of the first, second and third axis.
    """
    split = [[(a, b, c), (a, c, d)] for a, b, c, d in _QUADS]
    return corners[:, torch.tensor(split).flatten(0, 1)]


def box(centre: Tensor, *half_axes: Tensor) -> Tensor:
    """Boxes from their centres and three half axes, (n, 3) each: (n, 12, 3, 3) triangles."""
    sign = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=centre.dtype)] * 3)
    corners = centre[:, None] + torch.einsum("ka,nad->nkd", sign, torch.stack(half_axes, 1))
    return hexahedron(corners)


def tube(centres: Sequence[Tensor], radii: Sequence[tuple[Tensor, Tensor]], axes: Tensor) -> Tensor:
    """Closed tubes of elliptic section through some stations.

    Args:
        centres: (n, 3) of each station.
        radii: two half axes (n,) of each station.
        axes: (2, 3), the directions of the half axes.

    Returns:
        (n, 24 (stations - 1) + 24, 3, 3) triangles.
    """
    angle = 2 * math.pi / 12 * torch.arange(12, dtype=axes.dtype)
    rings = torch.stack(
        [
            c[:, None]
            + (a[:, None] * angle.cos())[..., None] * axes[0]
            + (b[:, None] * angle.sin())[..., None] * axes[1]
            for c, (a, b) in zip(centres, radii, strict=True)
        ],
        1,
    )  # (n, stations, 12, 3)
    after = rings.roll(-1, 2)
    low, low_next, high, high_next = rings[:, :-1], after[:, :-1], rings[:, 1:], after[:, 1:]
    sides = torch.cat(
        [torch.stack([low, low_next, high], 3), torch.stack([low_next, high_next, high], 3)], 2
    )
    ends = rings[:, [0, -1]]
    middle = ends.mean(2, keepdim=True).expand_as(ends)
    caps = torch.stack([ends, after[:, [0, -1]], middle], 3)
    return torch.cat([sides.flatten(1, 2), caps.flatten(1, 2)], 1)


def areas(triangles: Tensor) -> Tensor:
    """(..., 3, 3) triangles -> (...) areas."""
    a, b, c = triangles.unbind(-2)
    return torch.linalg.cross(b - a, c - a).norm(dim=-1) / 2


def centre_of_mass(triangles: Tensor) -> Tensor:
    """Of the surface: (n, F, 3, 3) -> (n, 3)."""
    share = areas(triangles)[..., None]
    return (share * triangles.mean(2)).sum(1) / share.sum(1)


def surface_points(triangles: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """Points spread evenly over the area of each mesh.

    Args:
        triangles: (n, F, 3, 3); triangles without area get no point.
        points: points a mesh.
        generator: where the randomness comes from.

    Returns:
        (n, points, 3) float32.

    Raises:
        ValueError: a mesh has no area, or it is not finite.
    """
    area = areas(triangles)
    total = area.sum(1)
    bad = ~(torch.isfinite(total) & (total > 0))
    if bool(bad.any()):
        raise ValueError(f"mesh {int(bad.nonzero()[0])} has the area {float(total[bad][0])}")
    face = torch.multinomial(area, points, replacement=True, generator=generator)
    chosen = torch.gather(triangles, 1, face[..., None, None].expand(-1, -1, 3, 3))
    u, v = torch.rand(2, *face.shape, 1, generator=generator, dtype=triangles.dtype)
    root = u.sqrt()  # Osada et al. 2002, equation 1
    a, b, c = chosen.unbind(2)
    return ((1 - root) * a + root * (1 - v) * b + root * v * c).float()
