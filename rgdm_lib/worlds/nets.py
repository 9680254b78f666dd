"""A small network for points: the denoiser of the toy worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgdm_lib.nets import TimeFeatures

FAR = 5.0

# Options of ``Trainer`` for a network of a reference: the learning rate falls to 0 over all of a
# training. Excess error over the exact denoiser, as KL of paths in nats, after 5,000 steps on the
# ring: 0.025, and 0.031 with lr 2e-3, decay_share 0.3 and ema_decay 0.995.
PRETRAINING = {"lr": 4e-3, "decay_share": 1.0, "ema_decay": 0.999}


class MLPDenoiser(nn.Module):
    """Denoiser ``(x_t, t, cond) -> eps`` for vectors (B, dim): residual layers that see the time.

    The network predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022,
    appendix D) and returns the eps that follows from it: at t near T an error in eps would be
    magnified by 1 / sqrt(alpha_bar_t) in x0_hat, an error in v is not.

    It sees FAR tanh(x_t / FAR), and v is FAR tanh(. / FAR) of its last layer: where it was not
    trained, a step of the reverse process pulls back. With the input alone bounded, some samples of
    a model trained at a high learning rate still ran away.

    Args:
        dim: length of a vector, each of its coordinates of order 1.
        alpha_bar: (T + 1,) the schedule's, see ``NoiseSchedule``; it also says what T is.
        hidden: width.
        layers: number of residual layers.
        cond_dim: length of a condition vector (B, cond_dim), given as ``cond``; 0 for none.
    """

    def __init__(
        self, dim: int, alpha_bar: Tensor, hidden: int = 128, layers: int = 4, cond_dim: int = 0
    ):
        super().__init__()
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)
        self.time = TimeFeatures(16, len(alpha_bar) - 1)
        self.embed = nn.Linear(dim + 17 + cond_dim, hidden)
        self.time_to_layer = nn.ModuleList(nn.Linear(17, hidden) for _ in range(layers))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """x_t (B, dim), t (B,) integers in 1..T, cond (B, cond_dim) or None -> eps (B, dim)."""
        time = self.time(t)
        seen = FAR * (x_t / FAR).tanh()
        h = self.embed(torch.cat([seen, time] + ([] if cond is None else [cond]), 1))
        for layer, of_time in zip(self.layers, self.time_to_layer, strict=True):
            h = h + layer(F.silu(h + of_time(time)))
        v = FAR * (self.out(F.silu(h)) / FAR).tanh()
        alpha_bar = self.alpha_bar[t].to(x_t.dtype)[:, None]
        return (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * v


class TimeMLP(nn.Module):
    """A function ``(x_t, t) -> (B, out)`` of noisy vectors (B, dim): a classifier, or a value.

    Args:
        dim: length of a vector.
        T: number of steps of the diffusion.
        out: numbers to return for each vector.
        hidden: width.
        layers: number of residual layers.
    """

    def __init__(self, dim: int, T: int, out: int, hidden: int = 128, layers: int = 3):  # noqa: N803
        super().__init__()
        self.time = TimeFeatures(16, T)
        self.embed = nn.Linear(dim + 17, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.out = nn.Linear(hidden, out)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        h = self.embed(torch.cat([x_t, self.time(t)], 1))
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return self.out(F.silu(h))
