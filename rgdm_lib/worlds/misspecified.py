"""World (g): a policy that cannot be the payoff distribution, where the two KLs part.

The payoff distribution is a mixture on the line, the policy a single Gaussian N(mean, std^2).
KL(p* || policy) covers: its minimiser has the mixture's mean and variance (Bishop 2006, section
10.7.1). KL(policy || p*) seeks a mode: it has a minimum near every mode that is well separated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Linear

HALF_LOG_2PI = math.log(2 * math.pi) / 2
# The trapezoidal rule on +-10 standard deviations is exact to rounding for smooth integrands.
_Z = torch.linspace(-10, 10, 2001, dtype=torch.float64)
_WEIGHT = torch.softmax(-_Z.square() / 2, 0)


class Fit(NamedTuple):
    """A Gaussian policy: its mean, its standard deviation, and the KL it reaches, nats."""

    mean: float
    std: float
    kl: float


def _average(values: Tensor) -> Tensor:
    return (_WEIGHT * values).sum(-1)


@dataclass(frozen=True)
class OneGaussian:
    """Fits of one Gaussian to ``target``, a mixture on the line (d = 1), by either KL.

    Raises:
        ValueError: the target is not one-dimensional.
    """

    target: GaussianMixture

    def __post_init__(self) -> None:
        if self.target.means.shape[1] != 1:
            raise ValueError(f"the target has dimension {self.target.means.shape[1]}, not 1")

    def moments(self) -> tuple[float, float]:
        """Mean and variance of the target."""
        weights, means = self.target.weights, self.target.means[:, 0]
        mean = weights @ means
        return float(mean), float(weights @ (self.target.std.square() + (means - mean).square()))

    def entropy(self) -> float:
        """-E[log p*], nats, by quadrature about each component."""
        x = self.target.means + self.target.std[:, None] * _Z
        log_p = self.target.log_prob(x.reshape(-1, 1)).reshape(x.shape)
        return -float(self.target.weights @ _average(log_p))

    def forward_kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(p* || N(mean, std^2)), nats: closed form, but for the target's entropy."""
        m, v = self.moments()
        square = (v + (mean - m) ** 2) / (2 * std**2)
        return HALF_LOG_2PI + torch.log(std) + square - self.entropy()

    def reverse_kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(N(mean, std^2) || p*), nats, by quadrature; mean and std are scalars."""
        log_p = self.target.log_prob((mean + std * _Z)[:, None])
        return -HALF_LOG_2PI - 0.5 - torch.log(std) - _average(log_p)

    def reverse_kl_gradient(self, mean: Tensor, std: Tensor) -> Tensor:
        """(2,) gradient of ``reverse_kl`` in mean and log std, by the score of the target.

        With x = mean + std z, z ~ N(0, 1): -E[score(x)] and -1 - std E[z score(x)].
        """
        score = self.target.score((mean + std * _Z)[:, None])[:, 0]
        return torch.stack([-_average(score), -1 - std * _average(_Z * score)])

    def forward_fit(self) -> Fit:
        """The minimiser of ``forward_kl``: moment matching."""
        m, v = self.moments()
        return Fit(m, math.sqrt(v), HALF_LOG_2PI + math.log(v) / 2 + 0.5 - self.entropy())

    def reverse_fits(self) -> list[Fit]:
        """The distinct local minima of ``reverse_kl`` found from each mode and from the moments.

        Best first. By BFGS in (mean, log std).
        """

        def value_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            mean, log_std = torch.as_tensor(parameters)
            kl = self.reverse_kl(mean, log_std.exp())
            return float(kl), self.reverse_kl_gradient(mean, log_std.exp()).numpy()

        m, v = self.moments()
        starts = [
            *zip(self.target.means[:, 0].tolist(), self.target.std.log().tolist(), strict=True),
            (m, math.log(v) / 2),
        ]
        fits: list[Fit] = []
        for start in starts:
            found = optimize.minimize(
                value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-10}
            )
            fit = Fit(float(found.x[0]), math.exp(found.x[1]), float(found.fun))
            if all(abs(fit.mean - other.mean) > 1e-4 for other in fits):
                fits.append(fit)
        return sorted(fits, key=lambda fit: fit.kl)


def two_modes(separation: float = 4.0, std: float = 0.6) -> tuple[GaussianMixture, Linear]:
    """The reference of world (g), equal modes this far apart, and the reward that prefers one."""
    means = torch.tensor([[-separation / 2], [separation / 2]], dtype=torch.float64)
    return GaussianMixture(means, std), Linear([0.25])
