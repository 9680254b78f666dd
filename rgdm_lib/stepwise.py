"""Payoff samplers inside the chain: search at every step, nothing is trained.

The kernel of the payoff distribution is p_ref(x_s | x_t) exp((V_s(x_s) - V_t(x_t)) / tau), V being
the soft value. The value used here is r(x0_hat), the reward of the denoised guess, unless another
is given: a guess that is biased for any number of steps. ``particles`` carry weights that undo the
bias. ``best_of_k`` and ``local_ball`` carry none: their samples are *not* the payoff's.
A reward or value that is not finite means "no value": at t = 0 the sample gets weight 0 (or stays
as it is, its reward not finite); before, the particle keeps the last value that it had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rgdm_lib import payoff
from rgdm_lib.diffusion import Denoiser, Diffusion, _eps
from rgdm_lib.payoff import Draw, Reward, Weighted, check_sizes, has_value, log_weights

Value = Callable[[Tensor, Tensor], Tensor]  # x_t (n, ...), t (n,) in 1..T -> (n,)


@dataclass
class _Scout:
    """Looks at states: their noise and their value; counts the rewards that this took."""

    denoiser: Denoiser
    diffusion: Diffusion
    reward_fn: Reward
    value: Value | None
    evaluations: int = 0

    def look(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Noise (n, ...) as the denoiser sees it (x itself at t = 0), and values (n,) float64."""
        eps = x if t == 0 else _eps(self.denoiser, x, t, None)
        if t > 0 and self.value is not None:
            values = self.value(x, torch.full((len(x),), t, device=x.device))
        else:
            values = self.reward_fn(x if t == 0 else self.diffusion.predict_x0(x, t, eps))
            self.evaluations += len(x)
        check_sizes(len(x), reward=values)
        return eps, values.double()


@torch.no_grad()
def particles(
    denoiser: Denoiser,
    diffusion: Diffusion,
    x_T: Tensor,  # noqa: N803
    reward_fn: Reward,
    tau: float,
    *,
    value: Value | None = None,
    steps: int | None = None,
    eta: float = 1.0,
    least_ess: float = 0.5,
) -> Weighted:
    """Sequential Monte Carlo: a population that walks down the chain and is resampled on the way.

    The weight of a particle is exp(v_T / tau) at the start and gains exp((v_s - v_t) / tau) a step.
    The product telescopes to exp(r(x_0) / tau), so that the weighted law tends to that of
    ``diffusion.sample`` tilted by exp(r / tau) as n grows, for *any* value v; a better one leaves
    more effective samples. Without the initial factor the target would be the payoff over
    exp(v_T(x_T) / tau). Del Moral, Doucet & Jasra 2006; Wu et al. 2023 (arXiv 2306.17775).

    Args:
        denoiser, diffusion, steps, eta: the reference's sampler, see ``Diffusion.sample``.
        x_T: (n, ...) starts, one a particle.
        reward_fn: x_0 (n, ...) to rewards (n,); called on denoised guesses too when there is no
            ``value``, n evaluations a state.
        tau: temperature, in the reward's unit.
        value: ``(x_t, t) -> (n,)`` in place of r(x0_hat), in the reward's unit.
        least_ess: resample (systematically) where the effective share falls below it; 0: never.

    Raises ValueError: tau is not above 0, no particles, no finite reward at the end, a wrong number
    of rewards. Warns when fewer than 5 effective samples are left.
    """
    scout = _Scout(denoiser, diffusion, reward_fn, value)
    log_weights(torch.zeros(len(x_T)), tau)  # its messages, before anything is computed
    times, x = diffusion.timesteps(steps), x_T
    eps, v = scout.look(x, times[0])
    v = torch.where(has_value(v), v, v[has_value(v)].mean().nan_to_num())
    log_base = torch.zeros_like(v)  # minus the value at the last resampling, over tau
    for t, s in zip(times[:-1], times[1:], strict=True):
        log_weight = log_weights(v, tau, log_base)
        if payoff.effective_sample_size(log_weight) < least_ess * len(x):
            index = payoff.systematic_resample(log_weight, len(x))
            x, eps, v = x[index], eps[index], v[index]
            log_base = -v / tau
        mean, std, _ = diffusion.step(x, t, s, eps, eta)
        x = mean + std * diffusion.noise_like(x) if std > 0 else mean
        eps, new = scout.look(x, s)
        v = torch.where(has_value(new), new, v) if s > 0 else new
    return Weighted(x, log_weights(v, tau, log_base), v, scout.evaluations)


def _search(
    scout: _Scout,
    x_T: Tensor,  # noqa: N803
    tau: float,
    k: int,
    steps: int | None,
    propose: Callable[[Tensor, float], Tensor],
) -> Draw:
    """Walk down the chain; each step takes one of k proposals by softmax(value / tau).

    ``propose(mean, std)``: means (n, ...) to proposals (n k, ...). All alike if none has a value.
    """
    log_weights(torch.zeros(len(x_T)), tau)  # its messages
    if k < 1:
        raise ValueError(f"k = {k}: take one proposal or more a step")
    times, x = scout.diffusion.timesteps(steps), x_T
    eps = _eps(scout.denoiser, x, times[0], None)
    for t, s in zip(times[:-1], times[1:], strict=True):
        mean, std, _ = scout.diffusion.step(x, t, s, eps)
        children = propose(mean, std) if std > 0 else mean
        eps, v = scout.look(children, s)
        v = v.reshape(len(x), -1)
        logits = torch.where(has_value(v), v / tau, -torch.inf)
        logits = torch.where(has_value(v).any(1, keepdim=True), logits, 0.0)
        chosen = torch.multinomial(torch.softmax(logits, 1), 1)[:, 0]
        index = torch.arange(len(x), device=x.device) * v.shape[1] + chosen
        x, eps, reward = children[index], eps[index], v.flatten()[index]
    return Draw(x, reward)


@torch.no_grad()
def best_of_k(
    denoiser: Denoiser,
    diffusion: Diffusion,
    x_T: Tensor,  # noqa: N803
    reward_fn: Reward,
    tau: float,
    k: int,
    *,
    value: Value | None = None,
    steps: int | None = None,
) -> Draw:
    """Each step draws k children of the reference and keeps one, by softmax(value / tau). BIASED.

    Right only as k grows *and* the value is the soft value. k = 1 is the reference itself. The
    last step has no noise: one child. Li et al. 2024 (arXiv 2408.08252). Arguments as in
    ``particles`` (DDPM's noise); raises ValueError for tau, no samples, k below 1.
    """

    def propose(mean: Tensor, std: float) -> Tensor:
        return diffusion.noise_like(mean := mean.repeat_interleave(k, 0)) * std + mean

    return _search(_Scout(denoiser, diffusion, reward_fn, value), x_T, tau, k, steps, propose)


def in_ball(centre: Tensor, radius: float) -> Tensor:
    """Uniform points in balls about ``centre`` (n, ...), one each: covariance radius^2 / (d + 2) I.

    d is the number of a sample's elements.
    """
    noise = torch.randn_like(centre).flatten(1)
    length = radius * torch.rand_like(noise[:, :1]) ** (1 / noise.shape[1])
    return centre + (length * noise / noise.norm(dim=1, keepdim=True)).reshape(centre.shape)


@torch.no_grad()
def local_ball(
    denoiser: Denoiser,
    diffusion: Diffusion,
    x_T: Tensor,  # noqa: N803
    reward_fn: Reward,
    tau: float,
    k: int,
    *,
    radius: float | None = None,
    centre: str = "mean",
    value: Value | None = None,
    steps: int | None = None,
) -> Draw:
    """The local payoff of Zhang & Xu 2023: exp(value / tau) on a ball about the next state. BIASED.

    k uniform proposals in the ball, one is kept by softmax. The published form is centred on the
    reverse *sample*, of a constant radius. It drops p_ref inside the ball, counts noise twice,
    takes r(x0_hat) for the soft value, normalises each ball by itself; and has no limit as steps
    get shorter. Centred on the *mean*, with rho_t^2 = (d + 2) Var(x_s | x_t), the ball has the
    step's covariance, and scoring the soft value it is right to first order (derived here).

    Arguments as in ``best_of_k``, and ``radius``: one for all steps, or None: the rule above;
    ``centre``: "sample" or "mean". The last step has no noise, and no ball. Raises ValueError as
    ``best_of_k`` does, and for a radius or a centre out of range.
    """
    if centre not in ("sample", "mean") or (radius is not None and not radius > 0):
        raise ValueError(f"radius = {radius}: above 0, or None; centre = {centre!r}: sample, mean")

    def propose(mean: Tensor, std: float) -> Tensor:
        middle = mean + std * diffusion.noise_like(mean) if centre == "sample" else mean
        rho = (mean[0].numel() + 2) ** 0.5 * std if radius is None else radius
        return in_ball(middle.repeat_interleave(k, 0), rho)

    return _search(_Scout(denoiser, diffusion, reward_fn, value), x_T, tau, k, steps, propose)
