"""Strings of a finite alphabet, rewarded for being close to a given one: all of it is known.

The world of RAML (Norouzi et al. 2016, "Reward augmented maximum likelihood", section 2.3): the
reward is minus the Hamming distance to a target of length m, the reference is uniform over the
V^m strings. Strings at one distance e form a stratum of C(m, e) (V - 1)^e members with one reward,
so the payoff distribution is drawn by first drawing the distance, then a string at that distance.
These strata are what the reward moves. They are not ``payoff.Draw.strata``, whose shares are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from rgdm_lib.payoff import Draw


@dataclass(frozen=True)
class Strings:
    """Uniform strings with reward r(x) = -(number of places where x differs from ``target``).

    Randomness: torch's global generator.

    Args:
        target: (m,) integers in 0..alphabet - 1.
        alphabet: V, the number of letters, at least 2.

    Raises:
        ValueError: a target that is no string of this alphabet.
    """

    target: Tensor | list[int]
    alphabet: int

    def __post_init__(self) -> None:
        target = torch.as_tensor(self.target)
        if target.ndim != 1 or len(target) == 0 or target.is_floating_point():
            raise ValueError(
                f"target of shape {tuple(target.shape)}, {target.dtype}: give a vector of one or"
                " more integers, the letters"
            )
        if self.alphabet < 2:
            raise ValueError(f"alphabet = {self.alphabet}: two letters or more are needed")
        if int(target.min()) < 0 or int(target.max()) >= self.alphabet:
            raise ValueError(
                f"target has letters from {int(target.min())} to {int(target.max())}, an alphabet"
                f" of {self.alphabet} has 0 to {self.alphabet - 1}"
            )
        object.__setattr__(self, "target", target.long())

    def reward(self, x: Tensor) -> Tensor:
        """(n, m) letters -> (n,), minus the Hamming distance."""
        if x.ndim != 2 or x.shape[1] != len(self.target):
            raise ValueError(
                f"strings of shape {tuple(x.shape)}, the target needs (n, {len(self.target)})"
            )
        return -(x != self.target).sum(1).to(torch.get_default_dtype())

    def draw(self, n: int) -> Draw:
        """n strings (n, m) of the reference with their rewards, ready to be weighed."""
        x = torch.randint(self.alphabet, (n, len(self.target)))
        return Draw(x, self.reward(x))

    # ---- the payoff distribution, exactly -------------------------------------------------

    def log_sizes(self) -> Tensor:
        """(m + 1,) float64: log of C(m, e) (V - 1)^e, the number of strings at distance e."""
        m = len(self.target)
        e = torch.arange(m + 1, dtype=torch.float64)
        log_choose = math.lgamma(m + 1) - torch.lgamma(e + 1) - torch.lgamma(m - e + 1)
        return log_choose + e * math.log(self.alphabet - 1)

    def log_strata(self, tau: float) -> Tensor:
        """(m + 1,) float64: log probability of each distance under the payoff distribution."""
        if not (tau > 0 and math.isfinite(tau)):
            raise ValueError(f"tau = {tau}: a temperature is a finite number above 0")
        e = torch.arange(len(self.target) + 1, dtype=torch.float64)
        return torch.log_softmax(self.log_sizes() - e / tau, 0)

    def log_Z(self, tau: float) -> float:  # noqa: N802
        """Log of Z = E[exp(r / tau)] under uniform strings.

        The distance is a sum over places: Z = ((1 + (V - 1) exp(-1 / tau)) / V)^m.
        """
        # log Z = -log p*(target) - log V^m: the target is all of stratum 0 and has reward 0
        return float(-self.log_strata(tau)[0]) - len(self.target) * math.log(self.alphabet)

    def log_prob(self, x: Tensor, tau: float) -> Tensor:
        """Log probability of strings (n, m) under the payoff distribution: (n,) float64."""
        return self.reward(x).double() / tau + self.log_strata(tau)[0]

    def sample(self, n: int, tau: float) -> Tensor:
        """n exact samples (n, m) of the payoff: first the distance, then places and letters."""
        m = len(self.target)
        distance = torch.multinomial(self.log_strata(tau).exp(), n, replacement=True)
        order = torch.rand(n, m).argsort(1)  # the places in random order: the first few change
        other = torch.randint(1, self.alphabet, (n, m))
        return (self.target + torch.where(order < distance[:, None], other, 0)) % self.alphabet

    def frontier(self, tau: float) -> tuple[float, float]:
        """(mean reward, KL to the reference in nats) of the payoff distribution."""
        share = self.log_strata(tau).exp()
        mean = -float(share @ torch.arange(len(share), dtype=torch.float64))
        return mean, mean / tau - self.log_Z(tau)

    def ess_share(self, tau: float) -> float:
        """What weights on uniform strings are worth: Z(tau)^2 / Z(tau / 2), in (V^-m, 1)."""
        return math.exp(2 * self.log_Z(tau) - self.log_Z(tau / 2))

    def temperature(self, share: float) -> float:
        """The tau of this effective share.

        Raises:
            ValueError: no tau in 0.02..1e6 gives it.
        """
        low, high = math.log(0.02), math.log(1e6)
        least, most = self.ess_share(math.exp(low)), self.ess_share(math.exp(high))
        if not least < share < most:
            raise ValueError(
                f"no temperature has an effective share of {share}: for strings of length"
                f" {len(self.target)} it lies between {least:.3g} and {most:.3g}"
            )
        log_tau = brentq(lambda v: self.ess_share(math.exp(v)) - share, low, high, xtol=1e-13)
        return math.exp(log_tau)
