"""Equations first shown in notebook 04: a denoising chain as a decision process.

On the chain every expectation is a sum over all paths; ``policy`` is a random one.
"""

import math

import torch

from ledger import close, equation
from rgdm_lib import schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.chain import Chain, denoising_chain
from rgdm_lib.worlds.mixtures import GaussianMixture

REWARD = torch.tensor([0.0, 0.4, -0.3, 1.0], dtype=torch.float64)
SMALL = denoising_chain(torch.tensor([0.4, 0.3, 0.2, 0.1]), stay=0.6, steps=4)
STEPS = torch.arange(SMALL.T)
TIMES = torch.arange(SMALL.T + 1)


def random_policy():
    return SMALL.with_kernel(torch.randn(SMALL.T, 4, 4, dtype=torch.float64))


def enumerated(policy):
    """Paths, their probabilities and their rewards."""
    paths = policy.paths()
    return paths, policy.log_prob(paths).exp(), REWARD[paths[:, 0]]


def gradient_by_autograd(policy):
    logits = policy.log_kernel.clone().requires_grad_()
    mean = policy.with_kernel(logits).marginals()[0] @ REWARD
    return torch.autograd.grad(mean, logits)[0].flatten()


def values(policy):
    """(T + 1, S) mean reward from each state, by the product of the kernels."""
    rows, to_end = [REWARD], torch.eye(4, dtype=torch.float64)
    for kernel in policy.log_kernel.exp():
        to_end = kernel @ to_end
        rows.append(to_end @ REWARD)
    return torch.stack(rows)


def log_path_in_loops(policy, path, start=True, shift=0, combine=sum):
    """log p of one path, term by term."""
    first = [policy.log_start[path[-1]]] if start else []
    steps = (policy.log_kernel[(t - 1 + shift) % policy.T, path[t], path[t - 1]]
             for t in range(1, policy.T + 1))  # fmt: skip
    return combine([*first, *steps])


@equation(
    "mdp-path-probability",
    mutations={
        "start left out": {"formula": lambda p, x: log_path_in_loops(p, x, start=False)},
        "t off by one": {"formula": lambda p, x: log_path_in_loops(p, x, shift=1)},
        "time run forward": {"formula": lambda p, x: log_path_in_loops(p, x.flip(0))},
        "mean for the sum": {
            "formula": lambda p, x: log_path_in_loops(p, x, combine=lambda v: sum(v) / len(v))
        },
    },
)
def mdp_path_probability(formula=log_path_in_loops):
    """The marginal of s_0 and s_1 together, by matrix products, from sums over all paths."""
    policy = random_policy()
    paths = policy.paths()
    p = torch.stack([formula(policy, path) for path in paths]).exp()
    joint = torch.zeros(4, 4, dtype=torch.float64)
    joint.index_put_((paths[:, 1], paths[:, 0]), p, accumulate=True)
    close(joint, policy.marginals()[1][:, None] * policy.log_kernel[0].exp())


def recursion(policy, kernels=None, reward_each_step=0.0, soft=False):
    kernels = policy.log_kernel.exp() if kernels is None else kernels(policy.log_kernel.exp())
    value = [REWARD]
    for kernel in kernels:
        mean = (kernel @ value[-1].exp()).log() if soft else kernel @ value[-1]
        value.append(mean + reward_each_step * REWARD)
    return torch.stack(value)


@equation(
    "value-recursion",
    mutations={
        "kernels in the order of sampling": {
            "formula": lambda p: recursion(p, lambda kernels: kernels.flip(0))
        },
        "kernels transposed": {"formula": lambda p: recursion(p, lambda k: k.transpose(1, 2))},
        "reward at every step": {"formula": lambda p: recursion(p, reward_each_step=1.0)},
        "soft value for the plain one": {"formula": lambda p: recursion(p, soft=True)},
    },
)
def value_recursion(formula=recursion):
    policy = random_policy()
    paths, p, reward = enumerated(policy)
    expected = torch.stack([
        torch.stack([(p * reward)[paths[:, t] == s].sum() / p[paths[:, t] == s].sum()
                     for s in range(4)])
        for t in TIMES
    ])  # fmt: skip
    close(formula(policy), expected)


@equation(
    "score-function-identity",
    mutations={
        "sign": {"term": lambda r, score: -r[:, None] * score},
        "last step left out": {
            "term": lambda r, score: r[:, None] * score * (torch.arange(score.shape[1]) >= 16)
        },
        "mean over the steps": {"term": lambda r, score: r[:, None] * score / SMALL.T},
        "reward left out": {"term": lambda r, score: score},
    },
)
def score_function_identity(term=lambda r, score: r[:, None] * score):
    policy = random_policy()
    paths, p, reward = enumerated(policy)
    close(p @ term(reward, policy.score(paths).flatten(1)), gradient_by_autograd(policy))


def every_row(policy, paths):
    """One-hot minus probability in every row, visited or not."""
    one_hot = torch.eye(4, dtype=torch.float64)[paths[:, :-1]]
    return one_hot[:, :, None, :] - policy.log_kernel.exp()


@equation(
    "softmax-score",
    mutations={
        "probability left out": {
            "formula": lambda policy, paths: (
                policy.score(paths)
                + policy.log_kernel.exp() * (policy.score(paths) != 0).any(-1, keepdim=True)
            )
        },
        "rows that the path does not visit": {"formula": every_row},
        "sign": {"formula": lambda policy, paths: -policy.score(paths)},
        "t off by one": {"formula": lambda policy, paths: policy.score(paths).roll(1, 1)},
    },
)
def softmax_score(formula=Chain.score):
    policy = random_policy()
    paths = policy.paths()[::97]
    logits = policy.log_kernel.clone().requires_grad_()
    log_p = policy.with_kernel(logits).log_prob(paths)
    expected = [torch.autograd.grad(v, logits, retain_graph=True)[0] for v in log_p]
    close(formula(policy, paths), torch.stack(expected))


@equation(
    "score-has-mean-zero",
    mutations={
        "baseline of the end state": {"baseline": lambda r, score: 0.5 * r},
        "baseline that knows the score": {"baseline": lambda r, score: score.abs().sum(1)},
        "baseline divides": {"term": lambda r, b, score: (r / b)[:, None] * score},
    },
)
def score_has_mean_zero(
    baseline=lambda r, score: torch.full_like(r, 3.7),
    term=lambda r, b, score: (r - b)[:, None] * score,
):
    policy = random_policy()
    paths, p, reward = enumerated(policy)
    score = policy.score(paths).flatten(1)
    close(p @ term(reward, baseline(reward, score), score), gradient_by_autograd(policy))


def variance_of_best(r, square, p):
    return (p * r) @ square / (p @ square)


def variance_at(b, r, square, p, gradient):
    return p @ ((r - b).square() * square) - gradient.square().sum()


@equation(
    "best-constant-baseline",
    mutations={
        "mean reward": {"best": lambda r, square, p: p @ r},
        "weighted by the score, not its square": {
            "best": lambda r, square, p: variance_of_best(r, square.sqrt(), p)
        },
        "gradient not subtracted": {
            "variance": lambda b, r, square, p, gradient: p @ ((r - b).square() * square)
        },
        "sign of b": {
            "variance": lambda b, r, square, p, gradient: variance_at(-b, r, square, p, gradient)
        },
    },
)
def best_constant_baseline(best=variance_of_best, variance=variance_at):
    """V(b) as the covariance's trace; its derivative at the best b, by autograd, is 0."""
    policy = random_policy()
    paths, p, reward = enumerated(policy)
    score = policy.score(paths).flatten(1)
    square, gradient = score.square().sum(1), gradient_by_autograd(policy)
    b = best(reward, square, p).clone().requires_grad_()
    terms = (reward - b)[:, None] * score
    trace = p @ (terms - p @ terms).square().sum(1)
    close(variance(b, reward, square, p, gradient), trace)
    close(torch.autograd.grad(trace, b)[0], torch.zeros((), dtype=torch.float64))


def advantage(policy, paths):
    on_path = values(policy)[TIMES, paths]
    return on_path[:, :-1] - on_path[:, 1:]


@equation(
    "policy-gradient-by-advantage",
    mutations={
        "sign": {"formula": lambda policy, paths: -advantage(policy, paths)},
        "t off by one": {"formula": lambda policy, paths: advantage(policy, paths).roll(1, 1)},
        "value after minus the reward": {
            "formula": lambda policy, paths: (
                values(policy)[TIMES, paths][:, 1:] - REWARD[paths[:, :1]]
            )
        },
        "value of the state alone": {
            "formula": lambda policy, paths: values(policy)[TIMES, paths][:, 1:]
        },
    },
)
def policy_gradient_by_advantage(formula=advantage):
    policy = random_policy()
    paths, p, _ = enumerated(policy)
    terms = formula(policy, paths)[:, :, None, None] * policy.score(paths)
    close(p @ terms.flatten(1), gradient_by_autograd(policy))


def step_ratios(new, old, paths):
    """(n, T) of each step."""
    visited = STEPS, paths[:, 1:], paths[:, :-1]
    return (new.log_kernel[visited] - old.log_kernel[visited]).exp()


@equation(
    "path-importance-ratio",
    mutations={
        "upside down": {"ratio": lambda new, old, paths: step_ratios(old, new, paths).prod(1)},
        "sum of the steps' ratios": {
            "ratio": lambda new, old, paths: step_ratios(new, old, paths).mean(1)
        },
        "last step left out": {
            "ratio": lambda new, old, paths: step_ratios(new, old, paths)[:, 1:].prod(1)
        },
        "always 1": {"ratio": lambda new, old, paths: step_ratios(new, new, paths).prod(1)},
    },
)
def path_importance_ratio(ratio=lambda new, old, paths: step_ratios(new, old, paths).prod(1)):
    new, old = random_policy(), random_policy()
    paths, p, _ = enumerated(old)
    f = torch.randn(len(paths), dtype=torch.float64)
    close(p @ (ratio(new, old, paths) * f), new.log_prob(paths).exp() @ f)


def step_log_prob(x, mean, variance):
    square = (x - mean).square().sum(-1)
    return -square / (2 * variance) - x.shape[-1] / 2 * (2 * math.pi * variance).log()


def convention(s):
    """(T,) variances at t = 1..T."""
    return torch.cat([s.beta[1:2], s.posterior_variance[2:]])


@equation(
    "gaussian-step-log-prob",
    mutations={
        "constant once, not d times": {
            "formula": lambda x, mean, v: (
                step_log_prob(x, mean, v) + (x.shape[-1] - 1) / 2 * (2 * math.pi * v).log()
            )
        },
        "mean for the sum over coordinates": {
            "formula": lambda x, mean, v: step_log_prob(x, mean, v) / x.shape[-1]
        },
        "variance as standard deviation": {
            "formula": lambda x, mean, v: step_log_prob(x, mean, v.square())
        },
        "beta for beta_tilde": {"variances": lambda s: s.beta[1:]},
        "beta_tilde at t = 1, cut at 1e-20": {
            "variances": lambda s: s.posterior_variance[1:].clamp(min=1e-20)
        },
    },
)
def gaussian_step_log_prob(formula=step_log_prob, variances=convention):
    """`Diffusion.log_prob`, and the integral of the density over the plane, which is 1."""
    diffusion = Diffusion(schedules.cosine(6))
    data = GaussianMixture(torch.tensor([[0.3, -0.5, 0.1]]), 0.4)
    denoiser = data.denoiser(diffusion.schedule)
    path = diffusion.trajectory(denoiser, torch.randn(5, 3, dtype=torch.float64))
    by_library = diffusion.log_prob(denoiser, path)
    of_t = variances(diffusion.schedule)
    for i, t in enumerate(path.t[:-1]):
        eps = denoiser(path.x[i], torch.full((5,), t))
        mean = diffusion.step(path.x[i], t, t - 1, eps)[0]
        close(formula(path.x[i + 1], mean, of_t[t - 1]), by_library[:, i])
    side = torch.linspace(-6, 6, 401, dtype=torch.float64)
    density = formula(
        torch.cartesian_prod(side, side), torch.zeros(2), torch.tensor(0.3, dtype=torch.float64)
    ).exp()
    close(density.sum() * (side[1] - side[0]) ** 2, torch.ones((), dtype=torch.float64))


TARGET = torch.tensor([1.0, 0.5], dtype=torch.float64)


def quadratic(m, v):
    return -(m - TARGET).square().sum() - 2 * v


@equation(
    "quadratic-reward-of-gaussian",
    mutations={
        "variance once, not d times": {"formula": lambda m, v: quadratic(m, v) + v},
        "deviation for variance": {"formula": lambda m, v: quadratic(m, v**0.5)},
        "reward of the mean": {"formula": lambda m, v: quadratic(m, 0 * v)},
        "sign of the variance": {"formula": lambda m, v: quadratic(m, -v)},
    },
)
def quadratic_reward_of_gaussian(formula=quadratic):
    """Quadrature over the plane."""
    side = torch.linspace(-8, 8, 401, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    m = torch.tensor([0.2, -0.7], dtype=torch.float64)
    v = torch.tensor(0.45, dtype=torch.float64)
    density = torch.softmax(-(x - m).square().sum(1) / (2 * v), 0)
    close(formula(m, v), density @ -(x - TARGET).square().sum(1))


def ddpo(log_new, log_old, advantage, clip, ratio=lambda new, old: (new - old).exp(),
         combine=torch.minimum):  # fmt: skip
    rho, a = ratio(log_new, log_old), advantage[:, None]
    return combine(rho * a, rho.clamp(1 - clip, 1 + clip) * a).sum(1).mean()


@equation(
    "ddpo-clipped-objective",
    mutations={
        "ratio always 1": {
            "formula": lambda *a: ddpo(*a, ratio=lambda new, old: (new - new.detach()).exp())
        },
        "ratio upside down": {
            "formula": lambda *a: ddpo(*a, ratio=lambda new, old: (old - new).exp())
        },
        "maximum": {"formula": lambda *a: ddpo(*a, combine=torch.maximum)},
        "clip on both sides": {"formula": lambda *a: ddpo(*a, combine=lambda plain, cut: cut)},
        "no clip": {"formula": lambda *a: ddpo(*a, combine=lambda plain, cut: plain)},
        "mean over the steps": {"formula": lambda *a: ddpo(*a) / a[0].shape[1]},
    },
)
def ddpo_clipped_objective(formula=ddpo):
    """Its gradient: REINFORCE's, times the ratio, except in steps that gain beyond the clip."""
    n, clip = 200, 0.2
    log_old = torch.randn(n, SMALL.T, dtype=torch.float64)
    log_new = log_old + 0.3 * torch.randn(n, SMALL.T, dtype=torch.float64)
    log_new.requires_grad_()
    a = torch.randn(n, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(formula(log_new, log_old, a, clip), log_new)
    ratio = (log_new - log_old).exp().detach()
    up = a[:, None] > 0
    gains = torch.where(up, ratio > 1 + clip, ratio < 1 - clip)
    close(gradient, torch.where(gains, 0.0, ratio * a[:, None]) / n)
