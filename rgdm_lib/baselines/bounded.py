"""On-policy with bounded weights: the model's own samples, and no weight above 1.

For x_0 ~ p* = p_ref exp(r / tau) / Z, re-noised by q, E[exp(-r / tau)(noise - eps_ref) | x_t] = 0:
the weight cancels the tilt, and eps_ref = E_ref[noise | x_t]. So E_{p*}[noise | x_t], the payoff's
denoiser, is also the mean of

    eps_ref + (1 - exp(-r / tau))(noise - eps_ref)

over x_0 ~ p*. A round draws x_0 from the current model and regresses on that: p* is a fixed point,
and with r >= 0 the factor lies in [0, 1). Derived here; the negative half of DiffusionNFT (Zheng et
al. 2025, arXiv 2509.16117) and tilt matching (``tilt_matching``) stand near it.

A fixed point is no theorem of convergence. On a finite chain exact rounds get to p* (by test), but
near a sample of reward r one of them closes only the share exp(-r / tau) of the gap: the large
factor that no weight shows is in the number of rounds, and what each fit gets wrong is amplified as
much. It needs eps_ref to be the denoiser of the reference's samples, and finite rewards: where
p_ref has mass and p* has none, the identity above fails.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.payoff import Sampler, has_value
from rgdm_lib.training import Trainer


class Round(NamedTuple):
    """Gradient steps and reward evaluations so far, and the mean reward of what a round drew."""

    step: int
    evaluations: int
    reward: float


def target(reference: Tensor, noise: Tensor, reward: Tensor, tau: float) -> Tensor:
    """What to regress on, (B, ...), for rewards (B,) of 0 or more."""
    factor = -torch.expm1(-reward / tau).to(noise).reshape(-1, *[1] * (noise.ndim - 1))
    return reference + factor * (noise - reference)


def loss(
    diffusion: Diffusion,
    denoiser: Denoiser,
    reference: Denoiser,
    x0: Tensor,
    reward: Tensor,
    tau: float,
) -> Tensor:
    """Squared error (B,) of the noise against ``target``, at one draw of (t, noise) a sample.

    Args:
        diffusion: the diffusion.
        denoiser: the network.
        reference: the denoiser of p_ref.
        x0: (B, ...) samples of the current model.
        reward: (B,) their rewards, 0 or more.
        tau: temperature, in the reward's unit.
    """
    t = torch.randint(1, diffusion.T + 1, (len(x0),)).to(x0.device)
    noise = diffusion.noise_like(x0)
    x_t = diffusion.q_sample(x0, t, noise)
    with torch.no_grad():
        wanted = target(reference(x_t, t, None), noise, reward, tau)
    return (denoiser(x_t, t, None) - wanted).square().flatten(1).mean(1)


def fit(
    denoiser: nn.Module,
    diffusion: Diffusion,
    sampler: Sampler,
    tau: float,
    *,
    rounds: int,
    steps: int = 200,
    batch_size: int = 256,
    **trainer: Any,
) -> Iterator[Round]:
    """Train ``denoiser``, in place, from p_ref (what it is now) toward p_ref exp(r / tau) / Z.

    A reward that is not finite counts as 0, the least there is: such a sample pulls to the
    reference. (No weight here can be 0, as elsewhere for a sample without a value.) With a reward
    of 0 the target is eps_ref, and the weights stay as they are, bit for bit.

    Args:
        denoiser, diffusion, sampler, tau: as for ``rgdm.fit``; x0 is a tensor. The sampler is
            called once a round with the network as it is then.
        rounds: draws of the model.
        steps, batch_size: gradient steps a round, samples a step (drawn evenly from the round's).
        trainer: options of ``training.Trainer``; one run over all rounds. Samples are drawn from
            the averaged network, and it is what is left in the end.

    Raises:
        ValueError: tau is not above 0, rounds below 1, a reward is negative, or none is finite; or
            a checkpoint, which would not know the samples of the round that it stopped in.
    """
    if not (tau > 0 and math.isfinite(tau)) or rounds < 1:
        raise ValueError(f"tau = {tau} must be finite and above 0, rounds = {rounds} 1 or more")
    if "checkpoint" in trainer:
        raise ValueError("no checkpoint here: a stopped run would go on with samples of p_ref")
    reference, learner = copy.deepcopy(denoiser).eval(), copy.deepcopy(denoiser)
    batches: Iterator[tuple[Tensor, Tensor]]

    def batch_loss(net: nn.Module) -> Tensor:
        return loss(diffusion, net, reference, *next(batches), tau)

    run = Trainer(learner, batch_loss, rounds * steps, **{"ema_decay": 0.99} | trainer)
    evaluations = 0
    for _ in range(rounds):
        x0, reward = (draw := sampler(denoiser)).x0, draw.reward
        valued = has_value(reward)
        if not bool(valued.any()):
            raise ValueError(f"none of {len(reward)} rewards is finite: nothing to learn from")
        if bool((reward[valued] < 0).any()):
            raise ValueError(
                f"rewards must be 0 or more, and here one is {float(reward[valued].min()):.4g}: add"
                " a constant, which does not change the payoff distribution"
            )
        filled = torch.where(valued, reward, 0)
        even = (torch.randint(len(x0), (batch_size,)) for _ in itertools.count())
        batches = ((x0[i], filled[i]) for i in even)
        evaluations += len(x0)
        average = run.run(until=run.step + steps, progress=False)
        denoiser.load_state_dict(average.state_dict())
        denoiser.eval()
        yield Round(run.step, evaluations, float(reward[valued].mean()))
