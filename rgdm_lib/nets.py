"""What the networks of several fields share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeFeatures(nn.Module):
    """Sines and cosines of t / T at ``size / 2`` frequencies from 1/2 to 32 turns, and t / T.

    ``size`` is even. An idea of Vaswani et al. 2017, section 3.5, for times in place of positions.
    """

    def __init__(self, size: int, T: int):  # noqa: N803
        super().__init__()
        frequency = 2 * math.pi * torch.logspace(-1, 5, size // 2, base=2.0)
        self.register_buffer("frequency", frequency, persistent=False)
        self.T = T

    def forward(self, t: Tensor) -> Tensor:
        """(B,) integers -> (B, size + 1)."""
        u = (t / self.T).to(self.frequency.dtype)[:, None]
        return torch.cat([u, torch.sin(u * self.frequency), torch.cos(u * self.frequency)], 1)
