"""Tilt matching: payoff weights with a control variate, on samples of the reference.

Potaptchik, Lee & Albergo 2025 (arXiv 2512.21829), whose velocity is the noise here: at every t one
is a linear function of the other and x_t. For x_0 ~ p_ref, weights w = exp(r / tau) / E_ref[w] and
the noise in x_t, the payoff's denoiser eps* is where

    E[w (noise - eps*) | x_t] = 0.

The weighted denoising loss descends the left side as it is. Its part with w = 1 is known without
sampling: E[noise - eps | x_t] = eps_ref - eps. So regress on

    eps_ref + (w - 1)(noise - sg eps),    sg: no gradient,

whose residual's mean eps - eps_ref - E[(w - 1)(noise - eps) | x_t] = -E[w (noise - eps) | x_t] is
the same at EVERY eps, and 0 at eps* alone (derived here). The noise enters with w - 1 in place of
w: less variance where the tilt is weak, none without one, nothing gained where few samples hold all
the weight. Exact only for an eps_ref that is the law's whose samples these are.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.payoff import Draw, Sampler
from rgdm_lib.rgdm import Round
from rgdm_lib.schedules import draw_times
from rgdm_lib.training import Trainer


def target(reference: Tensor, current: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """What to regress on: (B, ...) with weights (B,) whose mean under the reference is 1."""
    weight = weight.to(noise).reshape(-1, *[1] * (noise.ndim - 1))
    return reference + (weight - 1) * (noise - current.detach())


def loss(
    diffusion: Diffusion,
    denoiser: Denoiser,
    reference: Denoiser,
    x0: Tensor,
    weight: Tensor,
    times: Tensor | None = None,
) -> Tensor:
    """Squared error (B,) of the noise against ``target``, at one draw of (t, noise) a sample.

    Args:
        diffusion: the diffusion.
        denoiser: the network.
        reference: the denoiser of the law of x0.
        x0: (B, ...) samples of the reference, valued or not.
        weight: (B,) exp(r / tau) over its mean; 0 without a value.
        times: see ``Diffusion.loss``.
    """
    n, even = len(x0), times is None
    t = (torch.randint(1, diffusion.T + 1, (n,)) if even else draw_times(times, n)).to(x0.device)
    noise = diffusion.noise_like(x0)
    x_t = diffusion.q_sample(x0, t, noise)
    eps = denoiser(x_t, t, None)
    with torch.no_grad():
        wanted = target(reference(x_t, t, None), eps, noise, weight)
    return (eps - wanted).square().flatten(1).mean(1)


def fit(
    denoiser: nn.Module,
    diffusion: Diffusion,
    sampler: Sampler,
    tau: float,
    *,
    rounds: int = 1,
    steps: int = 1000,
    batch_size: int = 256,
    **trainer: Any,
) -> Iterator[Round]:
    """Train ``denoiser``, in place, from p_ref (what it is now) to p_ref exp(r / tau) / Z.

    A sample whose reward is not finite has weight 0 and stays in the pool: it belongs to the
    reference, whose part the control variate knows. With a reward of 0 the gradient is 0 and the
    weights stay as they are, bit for bit.

    Args:
        denoiser, diffusion, sampler, tau: as for ``rgdm.fit``; x0 is a tensor.
        rounds: draws of the REFERENCE. Each adds to the pool, and training goes on with all of it.
        steps, batch_size: gradient steps a round, samples a step (drawn evenly from the pool).
        trainer: options of ``training.Trainer``.

    Yields a ``rgdm.Round`` for each; ess and reward are those of the weighted pool.

    Raises:
        ValueError: tau is not above 0, rounds below 1, several with a checkpoint, or no reward is
            finite.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}: one or more")
    if rounds > 1 and "checkpoint" in trainer:
        raise ValueError("a checkpoint belongs to one round: call fit with rounds = 1")
    reference, draws = copy.deepcopy(denoiser).eval(), []
    for k in range(rounds):
        draws.append(sampler(reference))
        pool = Draw(torch.cat([d.x0 for d in draws]), torch.cat([d.reward for d in draws]))
        weighted = pool.weigh(tau)
        weight = (weighted.log_weight - weighted.log_weight.max()).exp()
        weight = weight / weight.mean()  # exactly 1 each where all are equal
        even = (torch.randint(len(weight), (batch_size,)) for _ in itertools.count())

        def batch_loss(
            net: nn.Module, x0: Tensor = pool.x0, weight: Tensor = weight, even: Iterator = even
        ) -> Tensor:
            index = next(even)
            return loss(diffusion, net, reference, x0[index], weight[index])

        average = Trainer(denoiser, batch_loss, steps, **trainer).run(progress=False)
        denoiser.load_state_dict(average.state_dict())
        denoiser.eval()
        mean = float(weighted.expectation(weighted.reward))
        counts = {"step": (k + 1) * steps, "evaluations": len(weight)}
        yield Round(
            **counts, beta=1 / tau, ess=weighted.ess, reward=mean, path_ess=None, weighted=weighted
        )
