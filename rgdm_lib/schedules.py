"""Noise schedules: how fast a diffusion forgets its data.

Every array is float64, has length T + 1 and is indexed by the time step t = 0..T itself, so that
``alpha_bar[t]`` in code is the alpha_bar_t of the page. Time 0 is the data: ``alpha_bar[0] = 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_FINAL_ALPHA_BAR = 1e-3


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule (Ho et al. 2020, section 2), fixed by its ``alpha_bar``.

    Args:
        alpha_bar: (T + 1,) float64, decreasing, from exactly 1 to at most 1e-3.

    Raises:
        ValueError: ``alpha_bar`` does not start at 1, does not decrease, or ends above 1e-3, so
            that x_T still remembers x_0 and sampling from N(0, I) would be biased.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        alpha_bar = torch.as_tensor(self.alpha_bar, dtype=torch.float64)
        object.__setattr__(self, "alpha_bar", alpha_bar)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar[0] != 1:
            raise ValueError("alpha_bar must be a vector (T + 1,) that starts at exactly 1")
        if not bool((alpha_bar.diff() < 0).all()) or alpha_bar[-1] <= 0:
            raise ValueError("alpha_bar must decrease strictly and stay above 0")
        if alpha_bar[-1] > MAX_FINAL_ALPHA_BAR:
            raise ValueError(
                f"alpha_bar_T = {float(alpha_bar[-1]):.3g} is above {MAX_FINAL_ALPHA_BAR}: x_T"
                " would still remember x_0. Use more noise (linear betas scale with 1000/T)."
            )

    @property
    def T(self) -> int:  # noqa: N802, D102 - the field's name for the number of steps
        return len(self.alpha_bar) - 1

    @property
    def alpha(self) -> Tensor:
        """(T + 1,) alpha_t = alpha_bar_t / alpha_bar_{t-1}; alpha_0 = 1."""
        ratio = self.alpha_bar[1:] / self.alpha_bar[:-1]
        return torch.cat([ratio.new_ones(1), ratio])

    @property
    def beta(self) -> Tensor:
        """(T + 1,) beta_t = 1 - alpha_t, the variance added at step t; beta_0 = 0."""
        return 1 - self.alpha

    @property
    def posterior_variance(self) -> Tensor:
        """(T + 1,) beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t.

        Ho et al. 2020, equation 7. It is 0 at t = 1 (and set to 0 at t = 0).
        """
        previous, current = self.alpha_bar[:-1], self.alpha_bar[1:]
        variance = (1 - previous) / (1 - current) * self.beta[1:]
        return torch.cat([variance.new_zeros(1), variance])


def linear(T: int, beta_1: float = 1e-4, beta_T: float = 0.02) -> NoiseSchedule:  # noqa: N803
    """Betas linear in t (Ho et al. 2020, section 4), rescaled by 1000 / T.

    The published betas are meant for T = 1000. Unscaled they leave alpha_bar_T = 0.36 at T = 100.

    Raises:
        ValueError: T is so small that a rescaled beta would reach 1.
    """
    beta = torch.linspace(beta_1, beta_T, T, dtype=torch.float64) * 1000 / T
    if beta[-1] >= 1:
        raise ValueError(f"linear betas reach {float(beta[-1]):.3g} >= 1 at T = {T}: take T > 20")
    return NoiseSchedule(torch.cat([beta.new_ones(1), torch.cumprod(1 - beta, 0)]))


def cosine(T: int, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:  # noqa: N803
    """alpha_bar_t proportional to cos^2, with betas clipped (Nichol & Dhariwal 2021, eq. 17)."""
    angle = (torch.arange(T + 1, dtype=torch.float64) / T + offset) / (1 + offset) * math.pi / 2
    f = torch.cos(angle) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=max_beta)
    return NoiseSchedule(torch.cat([beta.new_ones(1), torch.cumprod(1 - beta, 0)]))


def polynomial(T: int, power: float = 2.0, precision: float = 1e-5) -> NoiseSchedule:  # noqa: N803
    """EDM's schedule for molecules (Hoogeboom et al. 2022, appendix B).

    alpha_bar_t = (1 - 2 s) (1 - (t/T)^power)^2 + s with s = ``precision``, each step's ratio kept
    at 0.001 or more. EDM's own array starts at 1 - s; here time 0 is the data itself, so
    alpha_bar_0 = 1 and the precision shows from t = 1 on.
    """
    u = torch.arange(T + 1, dtype=torch.float64) / T
    alpha_bar = (1 - u**power) ** 2
    ratio = (alpha_bar[1:] / alpha_bar[:-1]).clamp(min=1e-3)
    clipped = torch.cat([ratio.new_ones(1), torch.cumprod(ratio, 0)])
    alpha_bar = (1 - 2 * precision) * clipped + precision
    alpha_bar[0] = 1.0
    return NoiseSchedule(alpha_bar)


def draw_times(probability: Tensor, n: int) -> Tensor:
    """(n,) times that follow ``probability`` evenly: low-discrepancy draws, in random order.

    One uniform number shifts a regular grid of n points, which the cumulated probabilities map to
    times (Kingma et al. 2021, arXiv 2107.00630, appendix I.1): each t is drawn n p_t times on
    average and never off by 1 or more, so that a batch's loss has less noise.

    Args:
        probability: (T + 1,) of t = 0..T, entry 0 is 0; they sum to 1.
        n: number of draws.

    Raises:
        ValueError: these are not probabilities of 1..T.
    """
    p = probability.double().cpu()
    if p[0] != 0 or not bool((p >= 0).all()) or not math.isclose(float(p.sum()), 1, abs_tol=1e-6):
        raise ValueError(
            f"probabilities of times: entry 0 is {float(p[0]):.3g} and must be 0, none may be"
            f" negative, and their sum, {float(p.sum()):.6g}, must be 1"
        )
    edges = p.cumsum(0) / p.sum()
    points = (torch.rand(1, dtype=torch.float64) + torch.arange(n)) / n
    t = torch.searchsorted(edges, points, right=True).clamp(max=int(torch.nonzero(p).max()))
    return t[torch.randperm(n)]
