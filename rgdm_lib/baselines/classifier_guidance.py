"""Control by a gradient: a classifier of noisy states steers the sampler.

Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4, after Song et al. 2021 (arXiv 2011.13456),
section 5: the score of x_t given y is the score of x_t plus grad log p(y | x_t). The same step
serves every function of the noisy state that has a gradient (``value_guidance``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rgdm_lib.diffusion import Denoiser, Diffusion

Potential = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> (B,), differentiable


def loss(diffusion: Diffusion, classifier: nn.Module, x0: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy (B,) in nats of the classes of noised data: it must know every noise level.

    Args:
        diffusion: the diffusion.
        classifier: ``(x_t, t) -> (B, classes)`` logits.
        x0: (B, ...) data.
        label: (B,) integers.
    """
    t = torch.randint(1, diffusion.T + 1, (len(x0),)).to(x0.device)
    logits = classifier(diffusion.q_sample(x0, t, diffusion.noise_like(x0)), t)
    return nn.functional.cross_entropy(logits, label, reduction="none")


def log_probability(classifier: nn.Module, label: int) -> Potential:
    """Log p(y = label | x_t) by a classifier."""
    return lambda x_t, t: classifier(x_t, t).log_softmax(1)[:, label]


def guided(
    denoiser: Denoiser, potential: Potential, diffusion: Diffusion, scale: float = 1.0
) -> Denoiser:
    """The denoiser of the law whose score is that of x_t plus scale grad potential(x_t, t).

    eps - scale sqrt(1 - alpha_bar_t) grad potential (Dhariwal & Nichol 2021, equation 14). With
    the potential log p(y | x_t) and scale 1 it samples p(x_0 | y), as steps shrink.

    Raises:
        ValueError: the scale is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale = {scale}: a guidance scale is a finite number")

    def eps(x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(potential(x, t).sum(), x)
        noise = (1 - diffusion.schedule.alpha_bar[t.cpu()]).sqrt().to(x_t.device, x_t.dtype)
        noise = noise.reshape(-1, *[1] * (x_t.ndim - 1))
        return denoiser(x_t, t, cond) - scale * noise * gradient

    return eps
