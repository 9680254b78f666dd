"""Toy data sets in the plane: samplers ``(n) -> (n, 2)``, scaled to a size of about 1.

Randomness: torch's global generator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rgdm_lib.worlds import mixtures


def moons(n: int, noise: float = 0.1) -> Tensor:
    """Two interleaved half circles of radius 1 with Gaussian noise, centred on the origin.

    With an angle a, uniform on (0, pi), and a fair sign: sign (cos a - 1/2, sin a - 1/4), plus
    noise. A mixture of Gaussians with a centre at every a (scikit-learn's ``make_moons``, moved).

    Args:
        n: number of points.
        noise: standard deviation of the noise in each coordinate.

    Returns:
        (n, 2) float32.
    """
    angle = math.pi * torch.rand(n)
    upper = torch.rand(n) < 0.5
    sign = torch.where(upper, 1.0, -1.0)
    x = sign * (torch.cos(angle) - 0.5)
    y = sign * (torch.sin(angle) - 0.25)
    return torch.stack([x, y], 1) + noise * torch.randn(n, 2)


def ring(n: int) -> Tensor:
    """Eight Gaussians on a circle of radius 1.5, the mixture ``mixtures.ring()``.

    Returns:
        (n, 2) float32.
    """
    return mixtures.ring().sample(n)


def checkerboard(n: int, cells: int = 4, half_width: float = 1.6) -> Tensor:
    """Uniform on the dark squares of a board of ``cells`` x ``cells`` squares about the origin.

    Args:
        n: number of points.
        cells: squares along a side, even.
        half_width: half the length of a side.

    Returns:
        (n, 2) float32.

    Raises:
        ValueError: ``cells`` is odd, so that rows would hold different numbers of dark squares.
    """
    if cells % 2:
        raise ValueError(f"cells = {cells}: take an even number")
    row = torch.randint(cells, (n,))
    column = 2 * torch.randint(cells // 2, (n,)) + row % 2
    corner = torch.stack([column, row], 1)
    return (corner + torch.rand(n, 2)) * (2 * half_width / cells) - half_width
