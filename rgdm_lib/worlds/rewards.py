"""Rewards under which the payoff distribution of a Gaussian mixture is known exactly.

Each is a plain callable from points (n, d) to rewards (n,), and knows one thing more: the log of
the mean of exp(r / tau) under a Gaussian, from which log Z, soft values and payoff weights follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats
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
        return -self.strength * (x - self.centre.to(x)).square().sum(-1) / 2

    def log_mean_exp(self, mean: Tensor, variance: Tensor, tau: Tensor) -> Tensor:
        """Log E[exp(r(x) / tau)], x ~ N(mean (..., d), variance (...) I); derived here."""
        kappa = self.strength / tau * variance
        gap = (mean - self.centre.to(mean)).square().sum(-1)
        d = mean.shape[-1]
        return -d / 2 * torch.log1p(kappa) - self.strength / tau * gap / (2 * (1 + kappa))

    def tilt(self, mean: Tensor, variance: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the Gaussian N(mean, variance I) exp(r / tau) / Z."""
        kappa = (self.strength / tau * variance)[..., None]
        centre = self.centre.to(mean)
        return (mean + kappa * centre) / (1 + kappa), variance / (1 + kappa[..., 0])


@dataclass(frozen=True)
class Linear:
    """r(x) = slope . x."""

    slope: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "slope", _vector(self.slope))

    def __call__(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return x @ self.slope.to(x)

    def log_mean_exp(self, mean: Tensor, variance: Tensor, tau: Tensor) -> Tensor:
        """Log E[exp(r(x) / tau)], x ~ N(mean (..., d), variance (...) I)."""
        slope = self.slope.to(mean)
        return mean @ slope / tau + variance * slope.square().sum() / (2 * tau**2)

    def tilt(self, mean: Tensor, variance: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the Gaussian N(mean, variance I) exp(r / tau) / Z."""
        return mean + variance[..., None] * self.slope.to(mean) / tau, variance


@dataclass(frozen=True)
class HalfSpace:
    """The region normal . x >= offset."""

    normal: Tensor
    offset: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", _vector(self.normal))

    def contains(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,) bool."""
        return x @ self.normal.to(x) >= self.offset

    def log_mass(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of the region and of its complement under N(mean, variance I)."""
        normal = self.normal.to(mean)
        z = (mean @ normal - self.offset) / (normal.norm() * variance.sqrt())
        return torch.special.log_ndtr(z), torch.special.log_ndtr(-z)


def _log_radial_density(r: np.ndarray, gap: np.ndarray, d: int) -> np.ndarray:
    """Log density of |x| at r for x ~ N(mean, I) in d dimensions, |mean| = gap.

    r (r / gap)^v exp(-(r^2 + gap^2) / 2) I_v(r gap) with v = d / 2 - 1 (Johnson, Kotz &
    Balakrishnan 1995, chapter 29), by the scaled Bessel function: nothing overflows.
    """
    order, z = d / 2 - 1, np.maximum(r * gap, 1e-12)
    bessel = np.log(special.ive(order, np.minimum(z, 1e8)))
    bessel -= np.log(np.maximum(z / 1e8, 1)) / 2  # beyond, 1 / sqrt(2 pi z)
    return (d - 1) * np.log(r) - order * np.log(z) + bessel - (r - gap) ** 2 / 2


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


def _log_mass(low: np.ndarray, high: np.ndarray, gap: np.ndarray, d: int) -> np.ndarray:
    """Log probability of low <= |x| <= high, as above, by quadrature where the density is."""
    near = np.clip(gap, low, high)
    reach = np.hypot(near - gap, 8 + d**0.5) - np.abs(near - gap)
    a, b = np.maximum(low, near - reach), np.minimum(high, near + reach)
    r = (a + b)[:, None] / 2 + (b - a)[:, None] / 2 * _NODES
    density = _log_radial_density(r, gap[:, None], d)
    return special.logsumexp(density, b=_WEIGHTS, axis=1) + np.log((b - a) / 2)


class _LogBallMass(torch.autograd.Function):
    """Log probability of |x| <= radius and of its complement, x ~ N(mean, I), |mean| = gap.

    |x|^2 has the noncentral chi-square law. scipy's distribution function serves where it has
    digits, quadrature in the tails. Differentiable in ``gap``: with g_d the density of |x| in d
    dimensions, dP/d gap = -g_{d + 2}(radius) gap / radius (Johnson, Kotz & Balakrishnan 1995).
    """

    @staticmethod
    def forward(ctx, radius: Tensor, d: int, gap: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        bound, of_mean = (v.detach().cpu().double().numpy().ravel() for v in (radius, gap))
        law, logs = (bound**2, d, of_mean**2), []
        zero, infinite = np.zeros_like(bound), np.full_like(bound, np.inf)
        for mass, low, high in (
            (stats.ncx2.cdf(*law), zero, bound),
            (stats.ncx2.sf(*law), bound, infinite),
        ):
            tail = ~(mass > 1e-20)
            log = np.log(np.where(tail, 1.0, mass))
            log[tail] = _log_mass(low[tail], high[tail], of_mean[tail], d)
            logs.append(log)
        edge, factor = _log_radial_density(bound, of_mean, d + 2), of_mean / bound
        inside, outside = (torch.from_numpy(v).to(gap).reshape(gap.shape) for v in logs)
        slopes = (
            torch.from_numpy(factor * np.exp(edge - v)).to(gap).reshape(gap.shape) for v in logs
        )
        ctx.save_for_backward(*slopes)
        return inside, outside

    @staticmethod
    def backward(ctx, to_inside: Tensor, to_outside: Tensor):  # noqa: D102
        of_inside, of_outside = ctx.saved_tensors
        return None, None, to_outside * of_outside - to_inside * of_inside


@dataclass(frozen=True)
class Ball:
    """The region |x - centre| <= radius."""

    centre: Tensor
    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", _vector(self.centre))

    def contains(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,) bool."""
        return (x - self.centre.to(x)).norm(dim=-1) <= self.radius

    def log_mass(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of the region and of its complement under N(mean, variance I).

        Differentiable in the mean.
        """
        std = variance.sqrt()
        gap = (mean - self.centre.to(mean)).norm(dim=-1) / std
        return _LogBallMass.apply((self.radius / std).expand_as(gap), mean.shape[-1], gap)


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
