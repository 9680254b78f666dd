"""The diffusion itself: noising, the denoising loss, sampling, log-probabilities of paths.

A *denoiser* is any callable ``(x_t, t, cond) -> eps`` that predicts the noise in ``x_t``; ``eps``
has the shape of ``x_t``, and ``t`` is an integer tensor (B,) with values 1..T. Random numbers come
from torch's global generator: ``torch.manual_seed`` fixes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib.schedules import NoiseSchedule, draw_times

Denoiser = Callable[[Tensor, Tensor, Any], Tensor]
NoiseLike = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """Time ``t``, sample ``x`` (B, ...), and the ``x0_hat`` it was drawn from (None at t = T)."""

    t: int
    x: Tensor
    x0_hat: Tensor | None


class Trajectory(NamedTuple):
    """A path of the reverse chain: ``t`` (S + 1,) from T down to 0 and ``x`` (S + 1, B, ...)."""

    t: list[int]
    x: Tensor


def _at(values: Tensor, t: Tensor | int, like: Tensor) -> Tensor:
    """values[t] with the dtype of ``like``, shaped to multiply it."""
    v = values[torch.as_tensor(t).cpu()].to(like.device, like.dtype)
    return v.reshape(v.shape + (1,) * (like.ndim - v.ndim))


def _eps(denoiser: Denoiser, x: Tensor, t: int, cond: Any) -> Tensor:
    """The noise at one time for all samples; a network is in ``eval`` for that long."""
    modules = denoiser.modules() if isinstance(denoiser, nn.Module) else ()
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        return denoiser(x, torch.full((len(x),), t, device=x.device), cond)
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Diffusion:
    """A Gaussian diffusion with a fixed schedule.

    ``noise_like`` draws standard noise in the shape of its argument. The default suits vectors;
    molecules use noise whose positions have zero centre of mass.
    """

    schedule: NoiseSchedule
    noise_like: NoiseLike = torch.randn_like

    @property
    def T(self) -> int:  # noqa: N802, D102
        return self.schedule.T

    # ---- the forward process -------------------------------------------------------------

    def q_sample(self, x0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al. 2020, eq. 4)."""
        alpha_bar = self.schedule.alpha_bar
        return _at(alpha_bar.sqrt(), t, x0) * x0 + _at((1 - alpha_bar).sqrt(), t, x0) * noise

    def predict_x0(self, x_t: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """x0_hat = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t): eq. 4 solved for x_0.

        With the optimal eps this is E[x_0 | x_t] (Tweedie's formula).
        """
        alpha_bar = self.schedule.alpha_bar
        return (x_t - _at((1 - alpha_bar).sqrt(), t, x_t) * eps) / _at(alpha_bar.sqrt(), t, x_t)

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7)."""
        s = self.schedule
        previous = torch.cat([s.alpha_bar[:1], s.alpha_bar[:-1]])
        scale = torch.where(s.alpha_bar < 1, 1 - s.alpha_bar, torch.ones_like(s.alpha_bar))
        of_x0 = previous.sqrt() * s.beta / scale
        of_xt = s.alpha.sqrt() * (1 - previous) / scale
        mean = _at(of_x0, t, x_t) * x0 + _at(of_xt, t, x_t) * x_t
        return mean, _at(s.posterior_variance, t, x_t)

    # ---- the loss ------------------------------------------------------------------------

    def loss_weight(self, weighting: Literal["simple", "vlb"]) -> Tensor:
        """(T + 1,) weight of the squared error of the noise at each t; entry 0 is unused.

        "vlb" is beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) (Ho et al. 2020, eq. 12) with
        sigma_t^2 = beta_tilde_t, and beta_1 at t = 1; "simple" is 1.

        Raises:
            ValueError: an unknown weighting.
        """
        s = self.schedule
        if weighting == "simple":
            return torch.ones_like(s.alpha_bar)
        if weighting != "vlb":
            raise ValueError(f"weighting must be 'simple' or 'vlb', not {weighting!r}")
        variance = s.posterior_variance.clone()
        variance[1] = s.beta[1]
        weight = torch.zeros_like(variance)
        b, a, ab, v = (values[1:] for values in (s.beta, s.alpha, s.alpha_bar, variance))
        weight[1:] = b**2 / (2 * v * a * (1 - ab))
        return weight

    def loss(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Any = None,
        weighting: Literal["simple", "vlb"] = "simple",
        times: Tensor | None = None,
    ) -> Tensor:
        """One draw of (t, noise) for each sample: the denoising loss, shape (B,).

        "simple" is the mean squared error of the noise over a sample's elements (Ho et al. 2020,
        eq. 14, per element); "vlb" is T times the bound's term at t, in nats, an unbiased draw of
        the variational bound on -log p(x_0) up to a constant (eq. 12). Given ``times``, (T + 1,)
        probabilities, t follows them (``schedules.draw_times``): they weigh the terms of "simple".
        """
        n, even = len(x0), times is None
        t = (torch.randint(1, self.T + 1, (n,)) if even else draw_times(times, n)).to(x0.device)
        noise = self.noise_like(x0)
        error = (denoiser(self.q_sample(x0, t, noise), t, cond) - noise).square().flatten(1)
        if weighting == "simple":
            return error.mean(1)
        weight = self.loss_weight(weighting) / (1 / self.T if even else times)
        return _at(weight, t, error[:, 0]) * error.sum(1)

    # ---- the reverse process -------------------------------------------------------------

    def timesteps(self, steps: int | None = None, spacing: float = 1.0) -> list[int]:
        """T, ..., 0: all, or about T (i / steps)^spacing (1 even, 2 quadratic: DDIM, app. D.2).

        Raises:
            ValueError: ``steps`` is not in 1..T, or ``spacing`` is below 1.
        """
        steps = self.T if steps is None else steps
        if not 1 <= steps <= self.T or spacing < 1:
            raise ValueError(f"steps = {steps}: take 1 to T = {self.T}; spacing = {spacing}: >= 1")
        return [max(i, round(self.T * (i / steps) ** spacing)) for i in range(steps, -1, -1)]

    def step_std(self, t: int, s: int, eta: float = 1.0) -> float:
        """The sampler's standard deviation from t to s (Song et al. 2021, eq. 16); 0 at s = 0.

        Cut at sqrt(1 - alpha_bar_s). For a fixed eta the marginals of an exact denoiser become
        right as steps shrink; long ones with eta > 1 narrow them, like a temperature below 1. At
        the cut they stay too narrow however short the steps (a Gaussian's width 0.70 of the truth).
        """
        ab_t, ab_s = (float(self.schedule.alpha_bar[i]) for i in (t, s))
        ddpm = ((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)) ** 0.5
        return min(eta * ddpm, (1 - ab_s) ** 0.5)

    def step(
        self, x_t: Tensor, t: int, s: int, eps: Tensor, eta: float = 1.0
    ) -> tuple[Tensor, float, Tensor]:
        """Mean, standard deviation and x0_hat of the step from time t to an earlier time s.

        DDIM's family (Song et al. 2021, eq. 12 and 16): eta = 1 with s = t - 1 is DDPM's posterior,
        eta = 0 is deterministic. The step to s = 0 has no noise: its mean is x0_hat.
        """
        ab_s, std = float(self.schedule.alpha_bar[s]), self.step_std(t, s, eta)
        x0_hat = self.predict_x0(x_t, t, eps)
        mean = ab_s**0.5 * x0_hat + max(1 - ab_s - std**2, 0.0) ** 0.5 * eps
        return mean, std, x0_hat

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        x_T: Tensor,  # noqa: N803
        steps: int | list[int] | None = None,
        eta: float = 1.0,
        cond: Any = None,
        spacing: float = 1.0,
    ) -> Iterator[State]:
        """Walk from x_T (B, ...) to x_0, yielding every state; the last one has t = 0.

        Ho et al. 2020, algorithm 2 (eta = 1, all steps), or DDIM (eta = 0, or fewer). ``steps``:
        how many, or the times from x_T's own to 0. Networks are in ``eval`` while they are called.
        """
        times, x = steps if isinstance(steps, list) else self.timesteps(steps, spacing), x_T
        yield State(times[0], x, None)
        for t, s in zip(times[:-1], times[1:], strict=True):
            x, std, x0_hat = self.step(x, t, s, _eps(denoiser, x, t, cond), eta)
            if std > 0:
                x = x + std * self.noise_like(x)
            yield State(s, x, x0_hat)

    # ---- log-probabilities of paths ------------------------------------------------------

    def path_std(self, t: int, s: int, eta: float = 1.0) -> float:
        """Standard deviation of the step t -> s wherever log-probabilities are used.

        The sampler's own for s > 0. The step to s = 0 would have a spike for a density, so it takes
        the forward variance 1 - alpha_bar_t, which is beta_1 at t = 1.
        """
        return self.step_std(t, s, eta) if s > 0 else float(1 - self.schedule.alpha_bar[t]) ** 0.5

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: Denoiser,
        x_T: Tensor,  # noqa: N803
        steps: int | None = None,
        eta: float = 1.0,
        cond: Any = None,
    ) -> Trajectory:
        """Draw a path whose every step, the last one too, has noise (see ``path_std``)."""
        times, path = self.timesteps(steps), [x_T]
        for t, s in zip(times[:-1], times[1:], strict=True):
            x = path[-1]
            mean, _, _ = self.step(x, t, s, _eps(denoiser, x, t, cond), eta)
            path.append(mean + self.path_std(t, s, eta) * self.noise_like(x))
        return Trajectory(times, torch.stack(path))

    def log_prob(
        self, denoiser: Denoiser, trajectory: Trajectory, eta: float = 1.0, cond: Any = None
    ) -> Tensor:
        """(B, S) log p_theta(x_s | x_t) of each step of a path; gradients flow to the denoiser.

        In nats. For noise in a subspace the constant counts all coordinates; it cancels in ratios.

        Raises:
            ValueError: eta = 0, a path without noise, has no density.
        """
        if eta <= 0:
            raise ValueError(f"eta = {eta}: a path without noise has no density, take eta > 0")
        terms = []
        for i, (t, s) in enumerate(zip(trajectory.t[:-1], trajectory.t[1:], strict=True)):
            x = trajectory.x[i]
            mean, _, _ = self.step(x, t, s, _eps(denoiser, x, t, cond), eta)
            normal = torch.distributions.Normal(mean, self.path_std(t, s, eta))
            terms.append(normal.log_prob(trajectory.x[i + 1]).flatten(1).sum(1))
        return torch.stack(terms, 1)
