"""RGDM: train a diffusion model toward the payoff distribution, by the denoising loss.

The target is fixed: p* = p_ref exp(r / tau) / Z, where p_ref is the model that ``fit`` is given.
Minimising KL(p* || p_theta) is the denoising loss on x_0 ~ p*, and p* is reached by weights on
samples: nothing is differentiated through sampling or through the reward, and one batch of rewards
serves any number of gradient steps.

One round weights samples of p_ref. More rounds (*tempering*) draw from the model as it improves,
at inverse temperatures beta_1 < beta_2 < ... <= 1 / tau chosen by the effective sample size. All
samples are kept, with weights back to the fixed target: p_ref over the mixture of all models drawn
from (the balance heuristic, Veach & Guibas 1995), as densities of whole paths.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib import payoff
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.payoff import Draw, Sampler, Weighted
from rgdm_lib.training import Trainer

LEAST_PATH_ESS = 0.05


class Round(NamedTuple):
    """What one round did.

    Attributes:
        step, evaluations: gradient steps and reward evaluations so far.
        beta: inverse temperature trained toward; 1 / tau in the last round.
        ess: effective sample size, a count, of ``weighted`` at that beta.
        reward: mean reward under the payoff distribution at that beta, as ``weighted`` has it.
        path_ess: effective share of the newest samples as draws of the payoff distribution that
            their model was trained toward (no value: weight 0). A perfect fit reaches 1 only as T
            grows: exact denoisers of a ring: 0.77 at T = 20, 0.98 at 200. None in the first round.
        weighted: the samples trained on.
    """

    step: int
    beta: float
    ess: float
    reward: float
    evaluations: int
    path_ess: float | None
    weighted: Weighted


class _Pool:
    """All samples so far, and the log-probability of each one's path under each model."""

    def __init__(self) -> None:
        self.models: list[Denoiser] = []
        self.draws: list[Draw] = []
        self.log_prob: list[list[Tensor]] = []  # [model][draw]

    def add(self, model: Denoiser, draw: Draw) -> None:
        self.models.append(model)
        self.draws.append(draw)
        self.log_prob.append([])
        for m, row in zip(self.models, self.log_prob, strict=True):
            for d in self.draws[len(row) :]:
                row.append(d.log_prob(m))
                payoff.check_sizes(len(d.reward), log_prob=row[-1])

    def drop_last(self) -> None:
        for row in (self.models, self.draws, *self.log_prob, self.log_prob):
            row.pop()

    def path_ess(self, beta: float) -> float:
        """See ``Round.path_ess``; 0 when no sample has a value."""
        reward = self.draws[-1].reward.double()
        log_weight = self.log_prob[0][-1] + beta * reward - self.log_prob[-1][-1]
        valued = log_weight[torch.isfinite(log_weight)]
        return payoff.effective_sample_size(valued) / len(reward) if len(valued) else 0.0

    def merged(self) -> tuple[Draw, Tensor]:
        """All samples as one draw, and log p_ref / mixture of each."""
        size = torch.tensor([float(len(d.reward)) for d in self.draws], dtype=torch.float64)
        rows = torch.stack([torch.cat(row) for row in self.log_prob])
        share = (size / size.sum()).log().to(rows.device)
        log_mixture = torch.logsumexp(share[:, None] + rows, 0)
        reward = torch.cat([d.reward for d in self.draws])
        strata = [d.strata for d in self.draws if d.strata is not None]
        x0 = torch.cat([d.x0 for d in self.draws])
        return Draw(x0, reward, torch.cat(strata) if strata else None), rows[0] - log_mixture


def fit(
    denoiser: nn.Module,
    diffusion: Diffusion,
    sampler: Sampler,
    tau: float,
    *,
    rounds: int = 1,
    least_ess: float = 0.3,
    steps: int = 1000,
    batch_size: int = 256,
    batches: Callable[[Weighted], Iterator[Tensor]] | None = None,
    loss: Callable[[Denoiser, Tensor], Tensor] | None = None,
    progress: bool = False,
    **trainer: Any,
) -> Iterator[Round]:
    """Train ``denoiser``, in place, from p_ref (what it is now) to p_ref exp(r / tau) / Z.

    Args:
        denoiser: the pretrained network. When a Round is yielded it holds the averaged weights.
        diffusion: its diffusion.
        sampler: ``denoiser -> Draw``: samples with rewards (``payoff.model_sampler``,
            ``payoff.data_sampler``), called once a round with the network as it is then.
        tau: temperature, in the reward's unit.
        rounds: 1: weights on samples of p_ref; more: tempering, which needs paths.
        least_ess: beta goes as far each round as it keeps this share of the effective samples
            with a value that one round draws; in the last round it is 1 / tau whatever it keeps.
        steps, batch_size, progress: gradient steps a round, samples a step, whether to show a bar.
        batches: ``weighted -> iterator of x0`` (B, ...), one a step, when systematic resampling of
            the whole set will not do (molecules: batches of one size).
        loss: ``(denoiser, x0) -> (B,)``, default ``diffusion.loss``; another weighting of the times
            is ``functools.partial(diffusion.loss, weighting="vlb", times=p)``.
        trainer: further options of ``training.Trainer`` (lr, ema_decay, ...).

    Raises ValueError: an option out of range; several rounds without paths or with a checkpoint.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau = {tau}: a temperature is a finite number above 0")
    if rounds < 1 or not 0 < least_ess <= 1:
        raise ValueError(f"rounds = {rounds} must be 1 or more, least_ess = {least_ess} in (0, 1]")
    if rounds > 1 and "checkpoint" in trainer:
        raise ValueError("a checkpoint belongs to one round: call fit with rounds = 1")

    pool, beta, evaluations = _Pool(), 0.0, 0
    for k in range(rounds):
        draw, log_base, path_ess = sampler(denoiser), None, None
        evaluations += len(draw.reward)
        last = k == rounds - 1
        if rounds > 1:
            if draw.log_prob is None:
                raise ValueError("tempering needs samples with paths: use payoff.model_sampler")
            pool.add(copy.deepcopy(denoiser).eval(), draw)
            if k > 0:
                path_ess = pool.path_ess(beta)
                if path_ess < LEAST_PATH_ESS:
                    warnings.warn(
                        f"round {k + 1}: path ESS {path_ess:.1%}, the model is too far from the"
                        f" payoff at beta = {beta:.3g}; its samples are dropped, training goes to"
                        " 1 / tau on the earlier ones. Train longer a round, or take more samples",
                        stacklevel=2,
                    )
                    pool.drop_last()
                    last = True
            fresh = len(draw.reward)
            draw, log_base = pool.merged()
            kept = least_ess * float(payoff.has_value(draw.reward, log_base)[-fresh:].sum())
        if last:
            beta = 1 / tau
        else:
            beta = payoff.next_beta(draw.reward, beta, 1 / tau, kept, log_base, draw.strata)
        weighted = draw.weigh(1 / beta, log_base)
        resampled = (weighted.resample(batch_size) for _ in itertools.count())
        batch = batches(weighted) if batches else resampled

        def batch_loss(net: nn.Module, batch: Iterator[Tensor] = batch) -> Tensor:
            return (loss or diffusion.loss)(net, next(batch))

        average = Trainer(denoiser, batch_loss, steps, **trainer).run(progress=progress)
        denoiser.load_state_dict(average.state_dict())
        denoiser.eval()
        mean = float(weighted.expectation(weighted.reward))
        yield Round((k + 1) * steps, beta, weighted.ess, mean, evaluations, path_ess, weighted)
        if last:
            return
