"""Control by a learned value: it has a gradient where the reward has none.

The soft value V_t(x) = tau log E_ref[exp(r(x_0) / tau) | x_t = x] turns the reference's score into
the payoff distribution's: add grad V_t / tau (Uehara et al. 2024, arXiv 2407.13734;
Lu et al. 2023, arXiv 2304.12824, for a learned one). It is smooth for t > 0, whatever r is.

The network is trained on noised samples of the reference with their rewards: regression on
w = exp((r - r_max) / tau), whose mean given x_t is wanted. As w lies in (0, 1], cross-entropy with
w as the target has the same optimum as the squared error, and does not go blind where w is small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rgdm_lib.baselines.classifier_guidance import Potential
from rgdm_lib.diffusion import Diffusion


def loss(
    diffusion: Diffusion, network: nn.Module, x0: Tensor, reward: Tensor, tau: float, best: float
) -> Tensor:
    """Cross-entropy (B,) of sigmoid(network(x_t, t)) and exp((r - best) / tau).

    Args:
        diffusion: the diffusion.
        network: ``(x_t, t) -> (B, 1)`` logits.
        x0: (B, ...) samples of the reference.
        reward: (B,) their rewards, finite.
        tau: temperature, in the reward's unit.
        best: the largest reward there is, or that of the pool.

    Raises:
        ValueError: tau is not above 0, a reward is above ``best``, or their number is wrong.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau = {tau}: a temperature is a finite number above 0")
    if reward.shape != (len(x0),):
        raise ValueError(f"rewards of shape {(*reward.shape,)}, the samples need ({len(x0)},)")
    if not bool((reward <= best).all()):
        raise ValueError(f"best = {best}: rewards reach {float(reward.max())}, or are no numbers")
    t = torch.randint(1, diffusion.T + 1, (len(x0),)).to(x0.device)
    logit = network(diffusion.q_sample(x0, t, diffusion.noise_like(x0)), t)[:, 0]
    target = ((reward - best) / tau).exp().to(logit.dtype)
    return nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")


def log_weight(network: nn.Module) -> Potential:
    """(V_t(x_t) - best) / tau: the potential that ``classifier_guidance.guided`` adds."""
    return lambda x_t, t: nn.functional.logsigmoid(network(x_t, t)[:, 0])
