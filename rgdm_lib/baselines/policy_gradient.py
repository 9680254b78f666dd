"""Policy gradients through the reverse chain: REINFORCE, DDPO, DPOK.

The chain is a policy whose steps have exact log-probabilities: the gradient of E[r(x_0)] is
E[sum_t A_t grad log p_theta(x_s | x_t)] (Williams 1992; Black et al. 2023, arXiv 2305.13301,
section 4.3, "DDPO_SF"). Several gradient steps on one round of paths need the ratio to the policy
that drew them, clipped step by step ("DDPO_IS" there). ``tau`` adds the divergence to the reference
(Fan et al. 2023, arXiv 2305.16381, "DPOK"): E[r] - tau KL(p_theta || p_ref) over paths, highest at
the payoff distribution. DPOK leaves out that a step also decides which KL comes after it; here A_t
counts that, so that the gradient is the objective's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib.diffusion import Denoiser, Diffusion, Trajectory
from rgdm_lib.payoff import Reward, check_sizes, has_value
from rgdm_lib.training import Trainer


class Round(NamedTuple):
    """Gradient steps and reward evaluations so far; of the paths that the round began with, the
    mean reward and the mean of sum_t KL(p_theta(x_s | x_t) || p_ref(x_s | x_t)) in nats.
    """

    step: int
    evaluations: int
    reward: float
    kl: float


def _noise(diffusion: Diffusion, denoiser: Denoiser, path: Trajectory) -> Tensor:
    """(S, B, ...) (x_s - mean) / std of each step: the noise that makes a model take this path.

    All steps at once. The step's mean is linear in x_t and eps: their factors are its values where
    one of them is 1, the other 0.
    """
    x, pairs = path.x[:-1], list(zip(path.t[:-1], path.t[1:], strict=True))
    t = torch.tensor(path.t[:-1], device=x.device).repeat_interleave(x.shape[1])
    eps = denoiser(x.flatten(0, 1), t, None).reshape(x.shape)
    u, v = torch.eye(2, dtype=torch.float64)
    factors = [(*diffusion.step(u, t, s, v)[0], diffusion.path_std(t, s)) for t, s in pairs]
    of_x, of_eps, std = torch.tensor(factors).to(x).T.reshape(3, -1, *[1] * (x.ndim - 1))
    return (path.x[1:] - of_x * x - of_eps * eps) / std


def _half_square(noise: Tensor) -> Tensor:
    """(S, B): of a model's noise -log p of each step, up to a constant; of a difference, the KL."""
    return noise.square().flatten(2).sum(2) / 2


def surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float = math.inf) -> Tensor:
    """What to maximise: min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), per step.

    Schulman et al. 2017 (arXiv 1707.06347), equation 7. At new = old the gradient is REINFORCE's.
    """
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def advantages(reward: Tensor, kl: Tensor, tau: float, normalise: bool = False) -> Tensor:
    """(S, n) r - tau (KL of the steps after this one), less its mean over the paths.

    ``reward`` is (n,), ``kl`` (S, n), first step first. ``normalise`` divides by the standard
    deviation, as published: the step no longer depends on the reward's scale, but with tau > 0 the
    target does. It is that of tau times the deviation, which falls as the policy narrows.
    """
    later = kl.flip(0).cumsum(0).flip(0) - kl
    gain = reward - tau * later
    gain = gain - gain.mean(1, keepdim=True)
    return gain / (gain.std(correction=0) + 1e-8) if normalise else gain


def fit(
    denoiser: nn.Module,
    diffusion: Diffusion,
    x_T_fn: Callable[[int], Tensor],  # noqa: N803
    reward_fn: Reward,
    *,
    rounds: int,
    n: int = 256,
    steps: int | None = None,
    batches: int = 1,
    epochs: int = 1,
    clip_ratio: float = math.inf,
    tau: float = 0.0,
    normalise: bool = False,
    **trainer: Any,
) -> Iterator[Round]:
    """Train ``denoiser``, in place, to raise E[r] - tau KL(p_theta || p_ref).

    REINFORCE as it stands; DDPO with ``clip_ratio``, ``normalise`` and more batches or epochs.
    Paths whose reward is not finite are evaluations, and left out. A reward of 0 leaves the weights
    as they are, bit for bit.

    Args:
        denoiser, diffusion: the network, which is now the reference, and its diffusion.
        x_T_fn, reward_fn: n to the start x_T (n, ...); x_0 to rewards (n,).
        rounds, n, steps: rounds, paths drawn in each, steps of a path (None: all T).
        batches, epochs: a round's paths are split into this many random batches, a gradient step
            each, and this is done so often.
        clip_ratio: largest distance of a ratio from 1, above 0.
        tau, normalise: see ``advantages``; with tau = 0 nothing holds the policy back.
        trainer: options of ``training.Trainer``, which spans all rounds: with a ``checkpoint`` a
            stopped run goes on with its next one. Its average is not used: who drew must be moved.

    Raises ValueError: an option out of range, a round with fewer finite rewards than batches.
    """
    if min(rounds, n, batches, epochs) < 1 or not (tau >= 0 and clip_ratio > 0):
        counts = f"rounds, n, batches, epochs = {rounds}, {n}, {batches}, {epochs}"
        raise ValueError(f"{counts}: 1 or more; tau = {tau}: >= 0; clip_ratio = {clip_ratio}: > 0")
    reference = copy.deepcopy(denoiser).eval()
    queue: list[tuple[Trajectory, Tensor, Tensor]] = []
    still = torch.no_grad()(_noise)  # no gradient to this network

    def kl_to_reference(noise: Tensor, path: Trajectory) -> Tensor:
        return _half_square(noise - still(diffusion, reference, path))

    def loss(net: nn.Module) -> Tensor:
        path, old, gain = queue.pop()
        noise = _noise(diffusion, net, path)
        kl = kl_to_reference(noise, path) if tau > 0 else 0.0
        return (tau * kl - surrogate(-_half_square(noise), old, gain, clip_ratio)).sum(0)

    run = Trainer(denoiser, loss, rounds * batches * epochs, **{"warmup": 0} | trainer)
    for k in range(run.step // (batches * epochs), rounds):
        denoiser.eval()
        path = diffusion.trajectory(denoiser, x_T_fn(n), steps)
        reward = reward_fn(path.x[-1])
        check_sizes(n, reward=reward)
        valued = has_value(reward)
        if int(valued.sum()) < batches:
            raise ValueError(f"only {int(valued.sum())} of {n} rewards are finite: draw more paths")
        path, reward = Trajectory(path.t, path.x[:, valued]), reward[valued].to(path.x)
        noise = still(diffusion, denoiser, path)
        old, kl = -_half_square(noise), kl_to_reference(noise, path)
        gain = advantages(reward, kl, tau, normalise)
        for _ in range(epochs):
            for i in torch.randperm(len(reward), device=reward.device).tensor_split(batches):
                queue.append((Trajectory(path.t, path.x[:, i]), old[:, i], gain[:, i]))
        run.run(until=(k + 1) * batches * epochs, progress=False)
        denoiser.eval()
        yield Round(run.step, (k + 1) * n, float(reward.mean()), float(kl.sum(0).mean()))
