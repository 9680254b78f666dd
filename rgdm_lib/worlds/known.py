"""The worlds that methods are compared on: a reference, a reward, temperatures, an exact answer.

Data have a size of about 1 in every coordinate, so one network and one schedule serve them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.linalg import hadamard
from scipy.optimize import brentq
from torch import Tensor

from rgdm_lib.schedules import NoiseSchedule
from rgdm_lib.worlds import mixtures
from rgdm_lib.worlds.mixtures import GaussianMixture, IndicatorPayoff
from rgdm_lib.worlds.rewards import Ball, Indicator, Linear, Quadratic, Reward

SHARES = (80, 40, 10)  # effective shares in % that fix temperatures


@dataclass(frozen=True)
class World:
    """A reference whose payoff distribution is known at every temperature.

    Args:
        name: what tables call it.
        reference: the law p_ref of the data; ``reference.denoiser(schedule)`` is its best denoiser.
        reward: points (n, d) -> (n,).
        temperatures: tau (in the reward's unit) by the effective share in %, which is what weights
            exp(r / tau) on exact samples of the reference are worth.
    """

    name: str
    reference: GaussianMixture
    reward: Reward
    temperatures: dict[float, float]

    def tau(self, share: float) -> float:
        """The temperature of this effective share in %.

        Raises:
            ValueError: the world has none for it.
        """
        if share not in self.temperatures:
            raise ValueError(
                f"the {self.name} world has temperatures at effective shares of"
                f" {list(self.temperatures)} %, not {share}"
            )
        return self.temperatures[share]

    def exact(self, share: float) -> GaussianMixture | IndicatorPayoff:
        """The payoff distribution: ``sample``, ``log_prob``, ``score``, ``denoiser``."""
        return self.reference.tilt(self.reward, self.tau(share))

    def log_z(self, share: float) -> float:
        """Log of Z = E[exp(r / tau)]."""
        return float(self.reference.log_Z(self.reward, self.tau(share)))

    def frontier(self, share: float) -> tuple[float, float]:
        """(mean reward, KL to the reference in nats) of the payoff distribution."""
        return self.reference.frontier(self.reward, self.tau(share))

    def soft_value(self, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, share: float) -> Tensor:
        """V_t(x_t) = tau log E[exp(r(x_0) / tau) | x_t]: points (n, d), times (n,) -> (n,)."""
        return self.reference.soft_value(x_t, t, schedule, self.reward, self.tau(share))


def _by_share(name: str, reference: GaussianMixture, reward: Reward) -> World:
    temperatures = {share: reference.temperature(reward, share / 100) for share in SHARES}
    return World(name, reference, reward, temperatures)


def ring_world() -> World:
    """Eight modes in the plane; the reward grows along a direction between two of them."""
    slope = [math.cos(math.pi / 8), math.sin(math.pi / 8)]
    return _by_share("ring", mixtures.ring(), Linear(slope))


def mixture8d_world() -> World:
    """Sixteen equal components in 8 dimensions; the reward singles out component 0 and shifts it.

    The means are 0.9 times the rows of a Hadamard matrix and their negatives (the first-order
    Reed-Muller code): every pair is 9 standard deviations apart or more. The reward grows along
    the mean of component 0; 14 others tie, so selecting modes is not enough to be right.
    """
    rows = torch.as_tensor(hadamard(8), dtype=torch.float64)
    reference = GaussianMixture(0.9 * torch.cat([rows, -rows]), 0.4)
    return _by_share("8-D mixture", reference, Linear(rows[0] / 8**0.5))


def rare_world() -> World:
    """The ring with mode 0 of prior mass 1e-3, and a reward for being near it.

    Its one temperature is that at which mode 0 holds half of the payoff; the effective share is
    then 0.38 %.
    """
    ring = mixtures.ring()
    weights = torch.full((8,), 0.999 / 7, dtype=torch.float64)
    weights[0] = 1e-3
    reference = GaussianMixture(ring.means, ring.std, weights)
    reward = Quadratic(ring.means[0])
    tau = brentq(lambda tau: float(reference.tilt(reward, tau).weights[0]) - 0.5, 1e-2, 1)
    share = round(100 * reference.ess_share(reward, tau), 2)
    return World("rare mode", reference, reward, {share: tau})


def indicator_world() -> World:
    """The ring, and a reward of 1 inside a disc that cuts two modes: it has no gradient.

    The disc holds 6.6 % of the reference, and 19, 37, 81 % of the payoff at effective shares of
    80, 40, 10 %.
    """
    return _by_share("indicator", mixtures.ring(), Indicator(Ball([1.25, 0.55], 0.5)))
