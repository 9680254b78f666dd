"""A denoiser whose batches are too large for memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rgdm_lib.hardware import bf16_products

SIZE = 64  # samples that go through the network at once


class InParts(nn.Module):
    """A denoiser that takes ``SIZE`` samples at once; what a gradient needs is computed again.

    So a population, or all steps of many paths, needs the memory of ``SIZE`` samples. ``bf16``:
    matrix products in bfloat16 where the hardware has it.
    """

    def __init__(self, net: nn.Module, bf16: bool = False):
        super().__init__()
        self.net, self.bf16 = net, bf16

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """x_t (B, ...), t (B,) -> eps of x_t's shape; ``cond`` is the same for all parts."""
        parts = []
        with bf16_products(self.bf16):
            for x, when in zip(x_t.split(SIZE), t.split(SIZE), strict=True):
                if torch.is_grad_enabled():
                    parts.append(checkpoint(self.net, x, when, cond, use_reentrant=False))
                else:
                    parts.append(self.net(x, when, cond))
        return torch.cat(parts)
