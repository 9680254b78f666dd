"""Reward-weighted regression, iterated: weigh the model's own samples, fit, repeat.

Peters & Schaal 2007 ("Reinforcement learning by reward-weighted regression", ICML); for diffusion
models Lee et al. 2023 (arXiv 2302.12192) and the baseline "RWR" of Black et al. 2023 (arXiv
2305.13301, section 4.2). A round draws from the CURRENT model, weighs with exp(r / tau) and fits
the denoising loss.

The first round aims at the payoff distribution p_ref exp(r / tau) / Z. The second multiplies what
the first has made by exp(r / tau) again: after k rounds a perfect fit is at p_ref exp(k r / tau),
whose limit is the best reward alone. With K rounds at temperature K tau the last one is at the
payoff, and every fit's error is carried on to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rgdm_lib import rgdm
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.payoff import Sampler


def fit(
    denoiser: nn.Module,
    diffusion: Diffusion,
    sampler: Sampler,
    tau: float,
    *,
    rounds: int,
    **options: Any,
) -> Iterator[rgdm.Round]:
    """Train ``denoiser``, in place, for so many rounds, each on samples of the round before.

    A round is one of RGDM's from the model as it is: a sample whose reward is not finite has
    weight 0. With a reward of 0 all weights are equal, and a round goes on training on the model's
    own samples: its gradient is 0 only on average, and only where the model is exact.

    Args:
        denoiser, diffusion, sampler, tau, options: as for ``rgdm.fit``.
        rounds: how often.

    Yields a ``rgdm.Round`` for each, step and evaluations so far; ``reward`` is the mean under its
    weights, and ``beta`` the total k / tau that a perfect fit would have reached.

    Raises:
        ValueError: rounds below 1, several with a checkpoint, or what ``rgdm.fit`` refuses.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: one or more")
    if rounds > 1 and "checkpoint" in options:
        raise ValueError("a checkpoint belongs to one round: call fit with rounds = 1")
    step = evaluations = 0
    for k in range(rounds):
        (done,) = rgdm.fit(denoiser, diffusion, sampler, tau, rounds=1, **options)
        step, evaluations = step + done.step, evaluations + done.evaluations
        yield done._replace(step=step, evaluations=evaluations, beta=(k + 1) / tau)
