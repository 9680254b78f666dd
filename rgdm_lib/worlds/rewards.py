"""Rewards under which the payoff distribution of a Gaussian mixture is known exactly.

Each is a plain callable from points (n, d) to rewards (n,), and knows one thing more: the log of
the mean of exp(r / tau) under a Gaussian, from which log Z, soft values and payoff weights follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor


def _vector(values: Tensor | list[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Quadratic:
    """r(x) = -strength |x - centre|^2 / 2."""

    centre: Tensor
    strength: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", _vector(self.centre))

    def __call__(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return -self.strength * (x - self.centre.to(x.dtype)).square().sum(-1) / 2

    def log_mean_exp(self, mean: Tensor, variance: Tensor, tau: Tensor) -> Tensor:
        """Log E[exp(r(x) / tau)], x ~ N(mean (..., d), variance (...) I); derived here."""
        kappa = self.strength / tau * variance
        gap = (mean - self.centre.to(mean.dtype)).square().sum(-1)
        d = mean.shape[-1]
        return -d / 2 * torch.log1p(kappa) - self.strength / tau * gap / (2 * (1 + kappa))

    def tilt(self, mean: Tensor, variance: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the Gaussian N(mean, variance I) exp(r / tau) / Z."""
        kappa = (self.strength / tau * variance)[..., None]
        centre = self.centre.to(mean.dtype)
        return (mean + kappa * centre) / (1 + kappa), variance / (1 + kappa[..., 0])


@dataclass(frozen=True)
class Linear:
    """r(x) = slope . x."""

    slope: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "slope", _vector(self.slope))

    def __call__(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return x @ self.slope.to(x.dtype)

    def log_mean_exp(self, mean: Tensor, variance: Tensor, tau: Tensor) -> Tensor:
        """Log E[exp(r(x) / tau)], x ~ N(mean (..., d), variance (...) I)."""
        slope = self.slope.to(mean.dtype)
        return mean @ slope / tau + variance * slope.square().sum() / (2 * tau**2)

    def tilt(self, mean: Tensor, variance: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the Gaussian N(mean, variance I) exp(r / tau) / Z."""
        return mean + variance[..., None] * self.slope.to(mean.dtype) / tau, variance


@dataclass(frozen=True)
class HalfSpace:
    """The region normal . x >= offset."""

    normal: Tensor
    offset: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", _vector(self.normal))

    def contains(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,) bool."""
        return x @ self.normal.to(x.dtype) >= self.offset

    def log_mass(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of the region and of its complement under N(mean, variance I)."""
        normal = self.normal.to(mean.dtype)
        z = (mean @ normal - self.offset) / (normal.norm() * variance.sqrt())
        return torch.special.log_ndtr(z), torch.special.log_ndtr(-z)


class _LogNoncentralChi2(torch.autograd.Function):
    """Log of the distribution function and of its complement, differentiable in ``nc``.

    dF(x; d, nc)/d nc = (F(x; d + 2, nc) - F(x; d, nc)) / 2 (Johnson, Kotz & Balakrishnan 1995,
    chapter 29).
    """

    @staticmethod
    def forward(ctx, x: Tensor, d: int, nc: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        tiny = np.finfo(np.float64).tiny
        args = x.detach().cpu().double().numpy(), d, nc.detach().cpu().double().numpy()
        inside = np.maximum(stats.ncx2.cdf(*args), tiny)
        outside = np.maximum(stats.ncx2.sf(*args), tiny)
        slope = (stats.ncx2.cdf(args[0], d + 2, args[2]) - inside) / 2
        out = (torch.from_numpy(np.asarray(v)).to(nc) for v in (inside, outside, slope))
        inside, outside, slope = out
        ctx.save_for_backward(inside, outside, slope)
        return inside.log(), outside.log()

    @staticmethod
    def backward(ctx, to_inside: Tensor, to_outside: Tensor):  # noqa: D102
        inside, outside, slope = ctx.saved_tensors
        return None, None, slope * (to_inside / inside - to_outside / outside)


@dataclass(frozen=True)
class Ball:
    """The region |x - centre| <= radius."""

    centre: Tensor
    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", _vector(self.centre))

    def contains(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,) bool."""
        return (x - self.centre.to(x.dtype)).norm(dim=-1) <= self.radius

    def log_mass(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of the region and of its complement under N(mean, variance I).

        |x - centre|^2 / variance has the noncentral chi-square law with d degrees of freedom.
        """
        gap = (mean - self.centre.to(mean.dtype)).square().sum(-1) / variance
        bound = (self.radius**2 / variance).expand_as(gap)
        return _LogNoncentralChi2.apply(bound, mean.shape[-1], gap)


@dataclass(frozen=True)
class Indicator:
    """r(x) = height inside a region (``HalfSpace`` or ``Ball``), 0 outside: it has no gradient."""

    region: HalfSpace | Ball
    height: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return self.height * self.region.contains(x).to(x.dtype)

    def log_mean_exp(self, mean: Tensor, variance: Tensor, tau: Tensor) -> Tensor:
        """Log E[exp(r(x) / tau)], x ~ N(mean (..., d), variance (...) I)."""
        inside, outside = self.region.log_mass(mean, variance)
        return torch.logaddexp(outside, self.height / tau + inside)


Reward = Quadratic | Linear | Indicator
