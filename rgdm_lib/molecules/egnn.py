"""E(3)-equivariant graph network for molecules: the denoiser of EDM (Hoogeboom et al. 2022).

What differs from EDM, and why:

* Dense: a batch holds one size N and every atom talks to every other, so there are no masks and no
  gather or scatter. The first linear map of a message acts on [h_i, h_j, distance features]; it is
  split into one map on h_i, one on h_j and one on the distances, and only the last is per pair.
* A pair state: EDM forgets a message once the atoms have summed it up. Here each layer adds its
  message to a state e_ij that the next one reads, so that "these two are bonded, and how" is
  decided once and refined. It reaches the same error in half the batches (tests/bench/README.md).
* Distances enter as Gaussians (radial basis) instead of raw squares, and one message serves the
  features and the coordinates: both learn faster for the same time on a CPU.
* The network predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022) and
  returns the eps that follows from it: at t near T an error in eps would be magnified by
  1 / sqrt(alpha_bar_t) in x0_hat, an error in v is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COORDINATE_RANGE = 15.0  # Angstrom, EDM's bound on how far all layers together move an atom


class RadialBasis(nn.Module):
    """Gaussians of the distance, equally spaced on 0..``cutoff`` Angstrom, and the distance.

    The exponent is kept above -20: far Gaussians would underflow to denormal numbers, which are
    many times slower on a CPU.
    """

    def __init__(self, size: int, cutoff: float = 5.0):
        super().__init__()
        self.register_buffer("centre", torch.linspace(0.0, cutoff, size), persistent=False)
        self.cutoff = cutoff
        self.sharpness = 0.5 * ((size - 1) / cutoff) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        """(..., 1) Angstrom -> (..., size + 1)."""
        z = self.sharpness * (distance - self.centre).square()
        return torch.cat([torch.exp(-z.clamp(max=20.0)), distance / self.cutoff], -1)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, 3) -> differences x_i - x_j (B, N, N, 3) and distances (B, N, N, 1)."""
    difference = x[:, :, None] - x[:, None]
    return difference, (difference.square().sum(-1, keepdim=True) + 1e-8).sqrt()


class Block(nn.Module):
    """One message-passing layer on atoms h (B, N, hidden), positions x, pairs e (B, N, N, edge)."""

    def __init__(self, hidden: int, edge: int, features: int, move: float):
        super().__init__()
        self.move = move  # Angstrom, the largest push of one atom on another in this layer
        self.norm = nn.LayerNorm(hidden)
        self.from_i = nn.Linear(hidden, edge)
        self.from_j = nn.Linear(hidden, edge, bias=False)
        self.from_distance = nn.Linear(features, edge, bias=False)
        self.pair_norm = nn.LayerNorm(edge)
        self.from_pair = nn.Linear(edge, edge, bias=False)
        self.message = nn.Linear(edge, edge)
        self.attention = nn.Linear(edge, 1)
        self.node = nn.Sequential(
            nn.Linear(hidden + edge, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.coordinate = nn.Sequential(
            nn.Linear(edge, edge), nn.SiLU(), nn.Linear(edge, 1, bias=False)
        )
        nn.init.xavier_uniform_(self.coordinate[2].weight, gain=1e-3)

    def forward(
        self, h: Tensor, x: Tensor, e: Tensor, start: Tensor, basis: RadialBasis, others: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One round of messages.

        Args:
            h: (B, N, hidden).
            x: (B, N, 3), Angstrom.
            e: (B, N, N, edge).
            start: (B, N, N, features / 2), the basis of the distances in x_t.
            basis: the network's basis, for the distances now.
            others: (N, N, 1), 0 on the diagonal, else 1.

        Returns:
            h, x and e, updated.
        """
        difference, distance = _pairs(x)
        features = torch.cat([start, basis(distance)], -1)
        g = self.norm(h)
        pair = self.from_i(g)[:, :, None] + self.from_j(g)[:, None] + self.from_distance(features)
        pair = pair + self.from_pair(self.pair_norm(e))
        message = F.silu(self.message(F.silu(pair)))
        e = e + message.to(e.dtype)
        weight = torch.sigmoid(self.attention(message)) * others
        gathered = (weight.transpose(-1, -2) @ message).squeeze(-2) / 4
        h = h + self.node(torch.cat([g, gathered.to(g.dtype)], -1))
        push = self.move * torch.tanh(self.coordinate(message).to(x.dtype))
        return h, x + (difference / (distance + 1) * push).sum(2), e


class EGNN(nn.Module):
    """Denoiser ``(x_t, t, cond) -> eps`` for molecules of one size.

    Args:
        alpha_bar: (T + 1,) the schedule's, see ``NoiseSchedule``.
        features: channels after the three coordinates (types and charge: 6).
        hidden: width of the atoms' features.
        edge: width of the messages and of the pair state.
        layers: number of message-passing layers.
        basis: number of Gaussians for a distance.
        conditions: how many numbers tell the network what is wanted; 0: ``cond`` is ignored.

    ``forward`` takes x_t (B, N, 3 + features), positions in Angstrom, t (B,) and, with conditions,
    cond (B, conditions), and returns eps of x_t's shape. Rotating, reflecting or permuting the
    atoms of x_t does the same to eps; moving them all does nothing, and eps's positions have zero
    mean.
    """

    def __init__(
        self,
        alpha_bar: Tensor,
        features: int = 6,
        hidden: int = 128,
        edge: int = 64,
        layers: int = 5,
        basis: int = 20,
        conditions: int = 0,
    ):
        super().__init__()
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)
        self.settings = {"features": features, "hidden": hidden, "edge": edge, "layers": layers}
        self.settings |= {"basis": basis, "conditions": conditions}
        self.edge = edge
        self.basis = RadialBasis(basis)
        self.conditions = conditions
        self.embed = nn.Linear(features + 2 + conditions, hidden)
        self.blocks = nn.ModuleList(
            Block(hidden, edge, 2 * (basis + 1), COORDINATE_RANGE / layers) for _ in range(layers)
        )
        self.out = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features)
        )

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:  # noqa: D102
        x, f = x_t[..., :3] - x_t[..., :3].mean(1, keepdim=True), x_t[..., 3:]
        n = x.shape[1]
        alpha_bar = self.alpha_bar[t].to(x.dtype)[:, None, None]
        level = (t / (len(self.alpha_bar) - 1)).to(x.dtype)[:, None, None]
        known = [level, (1 - alpha_bar).sqrt()]
        if self.conditions:
            known.append(cond[:, None].to(x.dtype))
        known = torch.cat(known, -1).expand(-1, n, -1)
        h = self.embed(torch.cat([f, known], -1)).to(x.dtype)
        others = 1 - torch.eye(n, dtype=x.dtype, device=x.device)[..., None]
        start = self.basis(_pairs(x)[1])
        moved, e = x, x.new_zeros(len(x), n, n, self.edge)
        for block in self.blocks:
            h, moved, e = block(h, moved, e, start, self.basis, others)
        shift = moved - x
        shift = shift - shift.mean(1, keepdim=True)
        v = torch.cat([shift, self.out(h).to(x.dtype)], -1)
        return (1 - alpha_bar).sqrt() * torch.cat([x, f], -1) + alpha_bar.sqrt() * v

    def conditional(self, conditions: int) -> EGNN:
        """A copy with this many conditions, which does not heed them before it is trained."""
        weights = self.state_dict()
        copy = EGNN(self.alpha_bar, **self.settings | {"conditions": conditions})
        copy = copy.to(weights["embed.weight"].dtype)
        new = weights["embed.weight"].new_zeros(len(self.embed.weight), conditions)
        weights["embed.weight"] = torch.cat([weights["embed.weight"], new], 1)
        copy.load_state_dict(weights)
        return copy
