"""The payoff distribution p* = p_ref exp(r / tau) / Z: weights, temperatures, resampling, samplers.

Weights are float64 logarithms. A reward may be any function; a value that is not finite means
"no value": that sample gets weight 0 and is counted. Shares of samples are of those with a value.

*Strata* are parts of a sample whose shares are decided before anything else (the size of a
molecule): weights are normalised inside each stratum, so that the reward cannot move the shares.
Sources: Owen, "Monte Carlo theory, methods and examples", chapter 9 (weights, effective sample
size); Douc, Cappe & Moulines 2005 (resampling).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rgdm_lib.diffusion import Denoiser, Diffusion

Reward = Callable[[Any], Tensor]
FEW = 5  # effective samples below which a weighted set is worth a warning


def check_sizes(n: int, **vectors: Tensor | None) -> None:
    """Raise ValueError unless each of these (None aside) has shape (n,): nothing may broadcast."""
    for name, values in vectors.items():
        if values is not None and values.shape != (n,):
            raise ValueError(f"{name} of shape {tuple(values.shape)}, the samples need {(n,)}")


def has_value(reward: Tensor, log_base: Tensor | None = None) -> Tensor:
    """(n,) bool: the samples that can have a weight, reward and log_base being finite."""
    return torch.isfinite(reward) if log_base is None else torch.isfinite(reward + log_base)


def log_weights(
    reward: Tensor, tau: float, log_base: Tensor | None = None, strata: Tensor | None = None
) -> Tensor:
    """Normalised log weights of samples under the payoff distribution.

    Args:
        reward: (n,); where it, or log_base, is not finite, the weight is 0.
        tau: temperature, in the reward's unit, above 0.
        log_base: (n,) log p_ref - log q of samples of another law q, up to a constant.
        strata: (n,) integers. Each stratum keeps its share of the n samples; one without any
            valued sample is dropped, and the others' shares are scaled up.

    Returns (n,) float64 with logsumexp 0; -inf for weight 0.

    Raises:
        ValueError: tau is not above 0, the sample is empty, no reward is finite, shapes differ.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau = {tau}: a temperature is a finite number above 0")
    if reward.ndim != 1 or len(reward) == 0:
        raise ValueError(f"rewards of shape {tuple(reward.shape)}: a vector of one or more needed")
    check_sizes(len(reward), log_base=log_base, strata=strata)
    valued = has_value(reward, log_base)
    if not bool(valued.any()):
        raise ValueError(
            f"none of {len(reward)} rewards is finite: no sample has a value. Draw more samples,"
            " use a better reference model, or check the reward function"
        )
    log_weight = reward.double() / tau + (0 if log_base is None else log_base.double())
    log_weight = torch.where(valued, log_weight, -math.inf)
    for s in [] if strata is None else strata.unique():
        inside = strata == s
        total = torch.logsumexp(log_weight[inside], 0)
        if torch.isfinite(total):
            log_weight[inside] += inside.sum().double().log() - total
    return log_weight - torch.logsumexp(log_weight, 0)


def effective_sample_size(log_weight: Tensor) -> float:
    """(sum w)^2 / sum w^2, a count between 1 and n (Owen, equation 9.13)."""
    log_weight = log_weight.double()
    return float(torch.exp(2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)))


def _bisect(inside: Callable[[float], bool], good: float, bad: float) -> float:
    """The last value from ``good`` toward ``bad`` (both above 0) where ``inside`` holds."""
    for _ in range(60):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if inside(middle) else (good, middle)
    return good


def temperature_for_ess(reward: Tensor, share: float, strata: Tensor | None = None) -> float:
    """The tau at which the effective sample size is ``share`` of the samples that have a value.

    Raises ValueError when none gives it (ties for the best reward, too few samples).
    """
    valued = int(has_value(reward).sum())

    def reaches(tau: float) -> bool:
        log_weight = log_weights(reward, tau, strata=strata)
        return effective_sample_size(log_weight) >= share * valued

    log_weights(reward, 1.0, strata=strata)  # empty, or no finite value: its message
    spread = float(reward[has_value(reward)].double().std(correction=0)) or 1.0
    hot, cold = 1e6 * spread, 1e-6 * spread
    if not reaches(hot) or reaches(cold):
        raise ValueError(
            f"no temperature gives an effective share of {share} on {valued} samples with a value:"
            " it lies between the share of ties for the best reward and 1 (or less, with strata)"
        )
    return _bisect(reaches, hot, cold)


def next_beta(
    reward: Tensor,
    beta: float,
    final: float,
    least_ess: float,
    log_base: Tensor | None = None,
    strata: Tensor | None = None,
) -> float:
    """Adaptive tempering: the largest inverse temperature that keeps the effective sample size.

    The last beta' in (``beta``, ``final``] at which weights exp(beta' r) p_ref/q keep ``least_ess``
    effective samples (Del Moral, Doucet & Jasra 2012), but 1 % of ``final`` further at least.
    """

    def keeps(b: float) -> bool:
        return effective_sample_size(log_weights(reward, 1 / b, log_base, strata)) >= least_ess

    if keeps(final):
        return final
    return min(final, _bisect(keeps, beta + 0.01 * final, final))


def systematic_resample(log_weight: Tensor, n: int) -> Tensor:
    """(n,) indices, sample i n w_i times on average and never off by 1 or more.

    They are where points (u + j) / n fall on the cumulated weights, one u in [0, 1) for all.
    """
    share = torch.softmax(log_weight.double(), 0)
    if not bool(torch.isfinite(share).all()):
        raise ValueError("the weights are all zero, or one is not a number: nothing to resample")
    edges = share.cumsum(0)
    points = (torch.rand(1, dtype=torch.float64) + torch.arange(n)) / n
    index = torch.searchsorted(edges / edges[-1], points.to(share.device), right=True)
    return index.clamp(max=int(torch.nonzero(share).max()))  # should rounding pass the last edge


# ---- samples with rewards, and with weights ----------------------------------------------


@dataclass(frozen=True)
class Draw:
    """Samples with their rewards, before any temperature is chosen.

    ``x0`` is a tensor (n, ...) or any container with ``len`` and ``subset(index)``; ``reward`` and
    ``strata`` are (n,), else ValueError. ``log_prob(denoiser)`` gives the (n,) log-probabilities of
    the samples' paths under a model, the start's left out; None when there are no paths.
    """

    x0: Any
    reward: Tensor
    strata: Tensor | None = None
    log_prob: Callable[[Denoiser], Tensor] | None = None

    def __post_init__(self) -> None:
        check_sizes(len(self.x0), reward=self.reward, strata=self.strata)

    def weigh(self, tau: float, log_base: Tensor | None = None) -> Weighted:
        """These samples under the payoff distribution of temperature tau; see ``log_weights``."""
        log_weight = log_weights(self.reward, tau, log_base, self.strata)
        return Weighted(self.x0, log_weight, self.reward, len(self.reward), self.strata)


@dataclass(frozen=True)
class Weighted:
    """Samples whose weighted law is the payoff distribution.

    ``x0``, ``reward`` and ``strata`` are as in ``Draw``, ``log_weight`` is (n,) float64 and
    normalised, ``evaluations`` says how often the reward was computed to get this.
    """

    x0: Any
    log_weight: Tensor
    reward: Tensor
    evaluations: int
    strata: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ess < min(FEW, len(self.log_weight) / 2):
            warnings.warn(
                f"only {self.ess:.1f} effective samples of {len(self.log_weight)} (one holds"
                f" {float(self.log_weight.max().exp()):.0%} of the weight): raise tau, draw more"
                " samples, or temper in several rounds",
                stacklevel=3,
            )

    @property
    def ess(self) -> float:
        """Effective sample size, a count."""
        return effective_sample_size(self.log_weight)

    @property
    def without_value(self) -> int:
        """How many samples have no finite reward, or no finite log_base."""
        return int((~torch.isfinite(self.log_weight)).sum())

    @property
    def dropped_strata(self) -> list[int]:
        """Strata in which no sample has a value; their share went to the others."""
        if self.strata is None:
            return []
        kept = set(self.strata[torch.isfinite(self.log_weight)].tolist())
        return sorted(set(self.strata.tolist()) - kept)

    def resample(self, n: int) -> Any:
        """n samples of equal weight (systematic resampling), in the container x0 came in."""
        index = systematic_resample(self.log_weight, n)
        if isinstance(self.x0, Tensor):
            return self.x0[index.to(self.x0.device)]
        return self.x0.subset(index.cpu().numpy())

    def expectation(self, f: Callable[[Any], Tensor] | Tensor) -> Tensor:
        """E_{p*}[f(x_0)], self-normalised (bias O(1/n)); f maps x0 to (n, ...) or is its values."""
        values = f if isinstance(f, Tensor) else f(self.x0)
        used = torch.isfinite(self.log_weight)
        weight = self.log_weight[used].exp()
        return torch.tensordot(weight, values[used].to(weight.dtype), dims=1)


Sampler = Callable[[Denoiser], Draw]


def data_sampler(x0: Any, reward_fn: Reward, strata: Tensor | None = None) -> Sampler:
    """One fixed set, whatever the model: data, or samples of the reference."""
    draw = Draw(x0, reward_fn(x0), strata)
    return lambda denoiser: draw


def model_sampler(
    diffusion: Diffusion,
    x_T_fn: Callable[[int], Tensor],  # noqa: N803
    reward_fn: Reward,
    n: int,
    steps: int | None = None,
    batch_size: int = 10_000,
) -> Sampler:
    """Fresh samples of whatever model it is given, with the log-probability of their paths.

    ``x_T_fn`` maps n to the start x_T (n, ...). A call draws n samples, ``batch_size`` at once, in
    ``steps`` steps (default all), the last with noise too (``Diffusion.path_std``).
    """

    def sampler(denoiser: Denoiser) -> Draw:
        starts = (x_T_fn(min(batch_size, n - i)) for i in range(0, n, batch_size))
        paths = [diffusion.trajectory(denoiser, x_T, steps) for x_T in starts]
        x0 = torch.cat([path.x[-1] for path in paths])

        @torch.no_grad()
        def log_prob(model: Denoiser) -> Tensor:
            return torch.cat([diffusion.log_prob(model, path).double().sum(1) for path in paths])

        return Draw(x0, reward_fn(x0), None, log_prob)

    return sampler


def from_data(x0: Any, reward_fn: Reward, tau: float, strata: Tensor | None = None) -> Weighted:
    """The payoff distribution from a data set: every point once, weighted."""
    return Draw(x0, reward_fn(x0), strata).weigh(tau)
