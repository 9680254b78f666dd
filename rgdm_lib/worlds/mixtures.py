"""Gaussian mixtures: everything about their payoff distribution is known exactly.

Parameters are float64; densities, scores and denoisers follow the dtype of the points they get.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rgdm_lib.diffusion import Denoiser
from rgdm_lib.schedules import NoiseSchedule
from rgdm_lib.worlds.rewards import Indicator, Reward


def _log_joint(x: Tensor, mean: Tensor, variance: Tensor, log_weight: Tensor) -> Tensor:
    """(n, K) log of weight times density of each component at x (n, d)."""
    square = (x[:, None] - mean).square().sum(-1)
    d = x.shape[-1]
    return log_weight - d / 2 * torch.log(2 * math.pi * variance) - square / (2 * variance)


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights_k N(means_k, std_k^2 I).

    Args:
        means: (K, d).
        std: one number, or (K,).
        weights: (K,), positive, normalised here; default equal.

    Raises:
        ValueError: shapes that do not fit, a std or a weight that is not positive.
    """

    means: Tensor
    std: Tensor | float
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        means = torch.as_tensor(self.means, dtype=torch.float64)
        if means.ndim != 2:
            raise ValueError(f"means must be (K, d), not {tuple(means.shape)}")
        std = torch.as_tensor(self.std, dtype=torch.float64).expand(len(means)).clone()
        weights = torch.ones(len(means)) if self.weights is None else self.weights
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.shape != std.shape or not bool((weights >= 0).all() and (std > 0).all()):
            raise ValueError(f"std and weights must be positive and one or {len(means)} numbers")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "std", std)
        object.__setattr__(self, "weights", weights / weights.sum())

    # ---- the distribution ----------------------------------------------------------------

    def sample(self, n: int) -> Tensor:
        """(n, d) points in torch's default dtype, from torch's global generator."""
        k = torch.multinomial(self.weights, n, replacement=True)
        dtype = torch.get_default_dtype()
        noise = torch.randn(n, self.means.shape[1])
        return self.means[k].to(dtype) + self.std[k, None].to(dtype) * noise

    def _parameters(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(
            v.to(like.device, like.dtype)
            for v in (self.means, self.std.square(), self.weights.log())
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,), nats."""
        return torch.logsumexp(_log_joint(x, *self._parameters(x)), 1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Posterior probability of each component at each point: (n, d) -> (n, K)."""
        return torch.softmax(_log_joint(x, *self._parameters(x)), 1)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of ``log_prob``: (n, d) -> (n, d)."""
        mean, variance, _ = self._parameters(x)
        share = self.responsibilities(x)
        return (share[..., None] * (mean - x[:, None]) / variance[:, None]).sum(1)

    # ---- under diffusion -----------------------------------------------------------------

    def _posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p(x_0 | x_t) is a mixture: log shares (n, K), means (n, K, d), variances (n, K), and eps.

        ``alpha_bar`` is (n,) float64; below 1. Shares are logarithms, as most of them underflow.
        """
        mean, variance, log_weight = self._parameters(x_t)
        ab = alpha_bar[:, None]
        a = ab.sqrt().to(x_t)[..., None]
        marginal = (ab * self.std.square() + (1 - ab)).to(x_t)
        log_share = torch.log_softmax(_log_joint(x_t, a * mean, marginal, log_weight), 1)
        innovation = (x_t[:, None] - a * mean) / marginal[..., None]
        eps = (1 - ab).sqrt().to(x_t) * (log_share.exp()[..., None] * innovation).sum(1)
        posterior_mean = mean + a * variance[:, None] * innovation
        return log_share, posterior_mean, variance * (1 - ab).to(x_t) / marginal, eps

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        """The best possible denoiser: eps(x_t, t) = E[eps | x_t] = -sqrt(1 - alpha_bar_t) score.

        It follows the dtype of x_t; the condition is ignored.
        """

        def eps(x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:  # noqa: ARG001
            return self._posterior(x_t, schedule.alpha_bar[t.cpu()])[3]

        return eps

    def soft_value(
        self, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, reward: Reward, tau: float
    ) -> Tensor:
        """V_t(x_t) = tau log E[exp(r(x_0) / tau) | x_t], (n,); differentiable; V_0 = r.

        t is (n,) with one value in all entries at t = 0, else anything in 1..T.
        """
        if bool((t == 0).all()):
            return reward(x_t)
        log_share, mean, variance, _ = self._posterior(x_t, schedule.alpha_bar[t.cpu()])
        tau = torch.as_tensor(tau, dtype=x_t.dtype)
        value = reward.log_mean_exp(mean, variance, tau)
        return tau * torch.logsumexp(log_share + value, 1)

    # ---- the payoff distribution p exp(r / tau) / Z --------------------------------------

    def _log_terms(self, reward: Reward, tau: Tensor | float) -> Tensor:
        tau = torch.as_tensor(tau, dtype=torch.float64)
        if not bool(tau > 0):
            raise ValueError(f"tau = {float(tau)}: a temperature is above 0")
        return self.weights.log() + reward.log_mean_exp(self.means, self.std.square(), tau)

    def log_Z(self, reward: Reward, tau: Tensor | float) -> Tensor:  # noqa: N802
        """Log of Z = E[exp(r / tau)], float64."""
        return torch.logsumexp(self._log_terms(reward, tau), 0)

    def ess_share(self, reward: Reward, tau: float) -> float:
        """E[w]^2 / E[w^2] for w = exp(r / tau): Z(tau)^2 / Z(tau / 2), in (0, 1]."""
        return float(torch.exp(2 * self.log_Z(reward, tau) - self.log_Z(reward, tau / 2)))

    def temperature(self, reward: Reward, share: float) -> float:
        """The tau at which weights on exact samples have this effective share; by bisection.

        Raises:
            ValueError: no tau in 1e-6..1e6 gives it.
        """
        low, high = 1e-6, 1e6
        least, most = self.ess_share(reward, low), self.ess_share(reward, high)
        if not least < share < most:
            raise ValueError(
                f"no temperature has an effective share of {share}: under this reward it lies"
                f" between {least:.3g} and {most:.3g}"
            )
        for _ in range(100):
            middle = math.sqrt(low * high)
            below = self.ess_share(reward, middle) < share
            low, high = (middle, high) if below else (low, middle)
        return middle

    def frontier(self, reward: Reward, tau: float) -> tuple[float, float]:
        """(E_{p*}[r], KL(p* || p)): the payoff's point in the reward-KL plane.

        E_{p*}[r] is the derivative of log Z in 1 / tau; KL = E_{p*}[r] / tau - log Z.
        """
        beta = torch.tensor(1 / tau, dtype=torch.float64, requires_grad=True)
        log_z = self.log_Z(reward, 1 / beta)
        (mean,) = torch.autograd.grad(log_z, beta)
        return float(mean), float(mean / tau - log_z.detach())

    def tilt(self, reward: Reward, tau: float) -> GaussianMixture | IndicatorPayoff:
        """The payoff distribution: a mixture again, or, for indicators, ``IndicatorPayoff``."""
        if isinstance(reward, Indicator):
            return IndicatorPayoff(self, reward, tau)
        mean, variance = reward.tilt(self.means, self.std.square(), tau)
        weights = torch.softmax(self._log_terms(reward, tau), 0)
        return GaussianMixture(mean, variance.sqrt(), weights)


@dataclass(frozen=True)
class IndicatorPayoff:
    """p exp(r / tau) / Z for an indicator reward: the mixture, reweighted inside the region.

    ``mass`` is the exact probability of the region under it.
    """

    reference: GaussianMixture
    reward: Indicator
    tau: float

    @property
    def mass(self) -> float:
        """P*(region) = P(region) exp(height / tau) / Z."""
        inside, _ = self.reward.region.log_mass(self.reference.means, self.reference.std.square())
        log_mass = torch.logsumexp(self.reference.weights.log() + inside, 0)
        log_z = self.reference.log_Z(self.reward, self.tau)
        return float(torch.exp(log_mass + self.reward.height / self.tau - log_z))

    def sample(self, n: int) -> Tensor:
        """(n, d) points: how many fall inside is drawn first, then both sides by rejection.

        Raises:
            RuntimeError: one side holds less than about 1e-6 of the reference.
        """
        inside = int((torch.rand(n) < self.mass).sum())
        sides = [self._conditioned(True, inside), self._conditioned(False, n - inside)]
        return torch.cat(sides)[torch.randperm(n)]

    def _conditioned(self, side: bool, n: int) -> Tensor:
        found = torch.empty(0, self.reference.means.shape[1])
        for _ in range(1000):
            if len(found) >= n:
                return found[:n]
            x = self.reference.sample(max(2 * n, 10_000))
            found = torch.cat([found, x[self.reward.region.contains(x) == side]])
        raise RuntimeError(f"{self.reward.region} is too rare for rejection sampling")

    def log_prob(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,), nats."""
        log_z = self.reference.log_Z(self.reward, self.tau).to(x.dtype)
        return self.reference.log_prob(x) + self.reward(x) / self.tau - log_z

    def score(self, x: Tensor) -> Tensor:
        """Gradient of ``log_prob`` wherever it has one (off the region's edge): the reference's."""
        return self.reference.score(x)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        """The best possible denoiser: the reference's, with grad V_t / tau added to its score."""
        of_reference = self.reference.denoiser(schedule)

        def eps(x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:  # noqa: ARG001
            with torch.enable_grad():
                x = x_t.detach().requires_grad_()
                value = self.reference.soft_value(x, t, schedule, self.reward, self.tau)
                (gradient,) = torch.autograd.grad(value.sum(), x)
            noise = (1 - schedule.alpha_bar[t.cpu()]).sqrt().to(x_t.device, x_t.dtype)
            return of_reference(x_t, t) - noise[:, None] * gradient / self.tau

        return eps


def ring(modes: int = 8, radius: float = 1.5, std: float = 0.15) -> GaussianMixture:
    """``modes`` equal Gaussians of width ``std``, evenly spaced on a circle of this radius."""
    angle = 2 * math.pi / modes * torch.arange(modes, dtype=torch.float64)
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)
