"""World (e): a finite Markov chain, small enough to enumerate every path.

A state is an integer 0..S-1, and a path s_T, ..., s_0 is drawn from a start p(s_T) and kernels
p(s_{t-1} | s_t), as a diffusion's reverse chain draws its own. Whatever is an expectation over
paths in the theory is a finite sum here. Everything is float64 and differentiable in the logits.

Sources: Austin et al. 2021 (arXiv 2107.03006), section 3 (diffusion over finite states); Levine
2018 (arXiv 1805.00909), section 2 (soft values by backward messages); Uehara et al. 2024 (arXiv
2407.13734) (soft-optimal denoising policy). The gradients are derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chain:
    """The law p(s_T) prod_t p(s_{t-1} | s_t) over paths.

    Args:
        log_start: (S,) log p(s_T), nats.
        log_kernel: (T, S, S); ``log_kernel[t - 1, s, z]`` is log p(s_{t-1} = z | s_t = s).

    Raises:
        ValueError: shapes that do not fit, probabilities that do not sum to 1.
    """

    log_start: Tensor
    log_kernel: Tensor

    def __post_init__(self) -> None:
        if self.log_kernel.ndim != 3 or self.log_kernel.shape[1:] != 2 * self.log_start.shape:
            raise ValueError(
                f"a start of shape {tuple(self.log_start.shape)} needs kernels (T, S, S), not"
                f" {tuple(self.log_kernel.shape)}"
            )
        for name, rows in (("start", self.log_start), ("kernel", self.log_kernel)):
            sums = torch.logsumexp(rows.detach(), -1).exp().flatten()
            worst = float(sums[(sums - 1).abs().argmax()])  # argmax finds a nan first
            if not abs(worst - 1) < 1e-9:
                raise ValueError(
                    f"log_{name}: probabilities sum to {worst:.6g}, not to 1; log_softmax(-1)"
                    " normalises"
                )

    @property
    def states(self) -> int:
        """S."""
        return len(self.log_start)

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        return len(self.log_kernel)

    def with_kernel(self, logits: Tensor) -> Chain:
        """The tabular policy with this start and softmax kernels of ``logits`` (T, S, S)."""
        return Chain(self.log_start, torch.log_softmax(logits, -1))

    def marginals(self) -> Tensor:
        """(T + 1, S): row t is the law of s_t; row 0 is what the chain produces."""
        rows = [self.log_start.exp()]
        for kernel in self.log_kernel.flip(0).exp():
            rows.append(rows[-1] @ kernel)
        return torch.stack(rows[::-1])

    # ---- paths ---------------------------------------------------------------------------

    def paths(self) -> Tensor:
        """All of them, (S^(T+1), T + 1) integers; column t is s_t."""
        return torch.cartesian_prod(*[torch.arange(self.states)] * (self.T + 1))

    def log_prob(self, paths: Tensor) -> Tensor:
        """(n, T + 1) -> (n,), nats."""
        steps = self.log_kernel[torch.arange(self.T), paths[:, 1:], paths[:, :-1]]
        return self.log_start[paths[:, -1]] + steps.sum(1)

    def score(self, paths: Tensor) -> Tensor:
        """Gradient of ``log_prob`` in the kernels' logits: (n, T + 1) -> (n, T, S, S).

        Of a softmax it is, in the row that the path visits, one-hot minus probability.
        """
        one_hot = torch.eye(self.states, dtype=self.log_kernel.dtype)
        visited, action = one_hot[paths[:, 1:]], one_hot[paths[:, :-1]]
        return visited[..., None] * (action[:, :, None, :] - self.log_kernel.exp())

    # ---- divergence ----------------------------------------------------------------------

    def kl(self, other: Chain) -> Tensor:
        """KL(self || other) over paths, nats: the start's plus that of each step (chain rule).

        Raises:
            ValueError: the chains differ in their number of steps or states.
        """
        if other.log_kernel.shape != self.log_kernel.shape:
            raise ValueError(
                f"one chain has {self.T} steps of {self.states} states, the other {other.T} of"
                f" {other.states}"
            )
        of_start = (self.log_start.exp() * (self.log_start - other.log_start)).sum()
        of_steps = (self.log_kernel.exp() * (self.log_kernel - other.log_kernel)).sum(-1)
        return of_start + (self.marginals()[1:] * of_steps).sum()


@dataclass(frozen=True)
class ChainPayoff:
    """The payoff distribution p* = p_ref exp(r(s_0) / tau) / Z of a chain, and all about it.

    Args:
        reference: p_ref.
        reward: (S,) r(s_0).
        tau: temperature, in the reward's unit.

    Raises:
        ValueError: tau is not above 0, or the reward does not have S finite entries.
    """

    reference: Chain
    reward: Tensor
    tau: float

    def __post_init__(self) -> None:
        if not (self.tau > 0 and math.isfinite(self.tau)):
            raise ValueError(f"tau = {self.tau}: a temperature is a finite number above 0")
        if self.reward.shape != self.reference.log_start.shape:
            raise ValueError(
                f"reward has shape {tuple(self.reward.shape)}: one number for each of"
                f" {self.reference.states} states needed"
            )
        if not bool(torch.isfinite(self.reward).all()):
            raise ValueError(f"every state needs a finite reward, not {self.reward.tolist()}")

    def soft_values(self) -> Tensor:
        """(T + 1, S): V_t(s) = tau log E_ref[exp(r(s_0) / tau) | s_t = s]; V_0 = r.

        By the backward recursion (Levine 2018, section 2), p_ref being the prior on actions.
        """
        values = [self.reward]
        for log_kernel in self.reference.log_kernel:
            values.append(self.tau * torch.logsumexp(log_kernel + values[-1] / self.tau, -1))
        return torch.stack(values)

    def log_Z(self) -> Tensor:  # noqa: N802
        """Log E_ref[exp(r / tau)]."""
        return torch.logsumexp(self.reference.log_start + self.soft_values()[-1] / self.tau, 0)

    def kept_start(self) -> Chain:
        """The optimal policy from the reference's own start: the best that J can reach.

        p*(s_{t-1} | s_t) = p_ref(s_{t-1} | s_t) exp((V_{t-1}(s_{t-1}) - V_t(s_t)) / tau). Its end
        is sum over s_T of p_ref(s_T) p*(s_0 | s_T), which is not the payoff's.
        """
        value = self.soft_values()
        gain = value[:-1, None, :] - value[1:, :, None]
        return Chain(self.reference.log_start, self.reference.log_kernel + gain / self.tau)

    def exact(self) -> Chain:
        """P* itself: the same kernels from the tilted start p_ref(s_T) exp(V_T / tau) / Z."""
        tilt = self.soft_values()[-1] / self.tau - self.log_Z()
        return Chain(self.reference.log_start + tilt, self.kept_start().log_kernel)

    def objective(self, policy: Chain) -> Tensor:
        """J = E_policy[r(s_0)] - tau KL(policy || p_ref), in the reward's unit."""
        return policy.marginals()[0] @ self.reward - self.tau * policy.kl(self.reference)

    def objective_gradient(self, policy: Chain) -> Tensor:
        """Gradient of ``objective`` in the policy's logits, (T, S, S), by formula.

        p_t(s) pi(z | s) (Q_t(s, z) - U_t(s)), where Q_t(s, z) = U_{t-1}(z) - tau log pi / p_ref
        and U_t(s) = sum_z pi(z | s) Q_t(s, z), U_0 = r: the policy gradient theorem with the
        entropy-regularised value of the policy. Derived here.
        """
        value, gradient = self.reward, []
        steps = zip(
            policy.log_kernel, self.reference.log_kernel, policy.marginals()[1:], strict=True
        )
        for log_pi, log_ref, visits in steps:
            action_value = value - self.tau * (log_pi - log_ref)
            value = (log_pi.exp() * action_value).sum(-1)
            gradient.append(visits[:, None] * log_pi.exp() * (action_value - value[:, None]))
        return torch.stack(gradient)

    def forward_kl_gradient(self, policy: Chain) -> Tensor:
        """Gradient of KL(p* || policy) in the policy's logits, (T, S, S), by formula.

        p*_t(s) (pi(z | s) - p*(z | s)): cross-entropy, under a law that does not move.
        """
        exact = self.exact()
        return exact.marginals()[1:, :, None] * (policy.log_kernel.exp() - exact.log_kernel.exp())


def forward_kernel(states: int, stay: float) -> Tensor:
    """(S, S) q(s_t | s_{t-1}): stay with this probability, else draw any state uniformly.

    Austin et al. 2021, section 3.1 (uniform transitions). ``stay`` plays the part of a diffusion's
    alpha_t: after t steps stay^t of the data is left.
    """
    eye = torch.eye(states, dtype=torch.float64)
    return stay * eye + (1 - stay) / states


def denoising_chain(data: Tensor, stay: float, steps: int) -> Chain:
    """The exact time reversal of data noised ``steps`` times by ``forward_kernel``.

    Args:
        data: (S,) positive probabilities of the clean states.
        stay: between 0 and 1.
        steps: T, 1 or more.

    Raises:
        ValueError: a probability or ``steps`` that is not positive, or ``stay`` outside (0, 1).
    """
    data = torch.as_tensor(data, dtype=torch.float64)
    if not bool((data > 0).all()) or not 0 < stay < 1 or steps < 1:
        raise ValueError(
            f"data and steps must be positive and stay in (0, 1), not {data.tolist()}, {steps},"
            f" {stay}"
        )
    q = forward_kernel(len(data), stay)
    before, log_kernel = data / data.sum(), []
    for _ in range(steps):
        joint = before[:, None] * q  # rows s_{t-1}, columns s_t
        before = joint.sum(0)
        log_kernel.append((joint / before).T.log())
    return Chain(before.log(), torch.stack(log_kernel))


def small_chain(tau: float = 0.5) -> ChainPayoff:
    """World (e) as the notebooks use it: 4 states, 6 steps, 16,384 paths.

    0.6^6 = 4.7 % of the data is left in s_T, so that the start's tilt does not vanish. The reward
    likes the rarest state most.
    """
    reference = denoising_chain(torch.tensor([0.4, 0.3, 0.2, 0.1]), stay=0.6, steps=6)
    return ChainPayoff(reference, torch.tensor([0.0, 0.4, -0.3, 1.0], dtype=torch.float64), tau)
