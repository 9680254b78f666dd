"""Networks on sets of points: a denoiser that passes through a few latents, and a classifier.

The denoiser costs N, and the order of the points does not matter. After Set Transformers (Lee et
al. 2019, arXiv 1810.00825, section 3.2: inducing points) and GECCO (Tyszkiewicz et al. 2023, arXiv
2303.05916), whose pattern this is in small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgdm_lib.nets import TimeFeatures

RESIDUAL_AT_START = 0.1


class _Attention(nn.Module):
    """Multi-head attention of x (B, N, width) to y (B, M, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def split(z: Tensor) -> Tensor:
            return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        key, value = self.key_value(y).chunk(2, -1)
        seen = F.scaled_dot_product_attention(split(self.query(x)), split(key), split(value))
        return self.out(seen.transpose(1, 2).flatten(2))


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class _Norm(nn.Module):
    """Layer norm whose scale and shift follow from the time (adaptive normalisation)."""

    def __init__(self, width: int, time: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale_shift = nn.Linear(time, 2 * width)
        nn.init.zeros_(self.scale_shift.weight)
        nn.init.zeros_(self.scale_shift.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.scale_shift(time)[:, None].chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


class _Block(nn.Module):
    """Points -> latents -> points: pool, mix, hand back, then each point by itself."""

    def __init__(self, width: int, latents: int, heads: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width) / width**0.5)
        self.pool, self.mix, self.back = (_Attention(width, heads) for _ in range(3))
        self.latent_mlp, self.point_mlp = _mlp(width), _mlp(width)
        self.norms = nn.ModuleList(_Norm(width, width) for _ in range(5))
        self.gate = nn.Parameter(torch.full((4, width), RESIDUAL_AT_START))

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        read, mixing, thinking, asking, alone = self.norms
        z = self.pool(self.latents.expand(len(h), -1, -1), read(h, time))
        normal = mixing(z, time)
        z = z + self.gate[0] * self.mix(normal, normal)
        z = z + self.gate[1] * self.latent_mlp(thinking(z, time))
        h = h + self.gate[2] * self.back(asking(h, time), z)
        return h + self.gate[3] * self.point_mlp(alone(h, time))


class SetDenoiser(nn.Module):
    """Denoiser ``(x_t, t, cond) -> eps`` of point sets (B, N, 3), equivariant to their order.

    Like ``worlds.nets.MLPDenoiser`` it predicts v and returns the eps that follows.

    Args:
        alpha_bar: (T + 1,) the schedule's, see ``NoiseSchedule``.
        width, layers: of the blocks.
        latents: learned latents a block.
        heads: of attention.
        cond_dim: length of a condition (B, cond_dim), given as ``cond``; 0 for none.
    """

    def __init__(
        self,
        alpha_bar: Tensor,
        width: int = 128,
        layers: int = 4,
        latents: int = 32,
        heads: int = 4,
        cond_dim: int = 0,
    ):
        super().__init__()
        self.settings = {"width": width, "layers": layers, "latents": latents, "heads": heads}
        self.settings |= {"cond_dim": cond_dim}
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)
        self.features = TimeFeatures(32, len(alpha_bar) - 1)
        self.time = nn.Sequential(
            nn.Linear(33 + cond_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(_Block(width, latents, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """x_t (B, N, 3), t (B,) integers in 1..T, cond (B, cond_dim) or None -> eps (B, N, 3)."""
        told = self.features(t)
        if cond is not None:
            told = torch.cat([told, cond], 1)
        time = F.silu(self.time(told))
        h = self.embed(x_t)
        for block in self.blocks:
            h = block(h, time)
        v = self.out(self.norm(h))
        alpha_bar = self.alpha_bar[t].to(x_t.dtype)[:, None, None]
        return alpha_bar.sqrt() * v + (1 - alpha_bar).sqrt() * x_t

    def conditional(self, cond_dim: int) -> SetDenoiser:
        """A copy that also reads a condition, and does not heed it before it is trained."""
        weights = self.state_dict()
        wide = SetDenoiser(self.alpha_bar, **self.settings | {"cond_dim": cond_dim})
        wide = wide.to(weights["time.0.weight"].dtype)
        new = weights["time.0.weight"].new_zeros(len(self.time[0].weight), cond_dim)
        weights["time.0.weight"] = torch.cat([weights["time.0.weight"], new], 1)
        wide.load_state_dict(weights)
        return wide


class PointNet(nn.Module):
    """Classifier of point sets (B, N, 3): each point by itself, the largest of each feature.

    Qi et al. 2017 (arXiv 1612.00593, figure 2), without its transform networks: shapes here are
    upright. The order and the number of the points do not matter.

    Args:
        width: features of a point; half as many before, and as many after the maximum.
        classes: logits.
    """

    def __init__(self, width: int = 128, classes: int = 3):
        super().__init__()
        self.points = nn.Sequential(
            nn.Linear(3, width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, width),
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
        )

    def forward(self, clouds: Tensor) -> Tensor:
        """(B, N, 3) -> (B, classes) logits."""
        return self.head(self.points(clouds).amax(1))


class NoisyPointNet(nn.Module):
    """``(x_t, t) -> (B, outputs)`` for noised point sets (B, N, 3): a classifier, or a value.

    A ``PointNet`` whose points know the time. Of noisy points the mean tells more than the largest:
    each feature has both.

    Args:
        T: of the diffusion.
        outputs: logits.
        width: features of a point.
    """

    def __init__(self, T: int, outputs: int, width: int = 128):  # noqa: N803
        super().__init__()
        self.features = TimeFeatures(32, T)
        self.embed = nn.Linear(3, width)
        self.time = nn.Linear(33, width)
        self.points = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.head = nn.Sequential(
            nn.Linear(2 * width + 33, width), nn.SiLU(), nn.Linear(width, outputs)
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t (B, N, 3), t (B,) integers in 1..T -> (B, outputs)."""
        told = self.features(t)
        h = self.points(self.embed(x_t) + self.time(told)[:, None])
        return self.head(torch.cat([h.mean(1), h.amax(1), told], 1))
