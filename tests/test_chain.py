"""The finite chain against a plain enumeration of its paths.

Nothing here uses the library's recursions: a path's probability is a product of table entries, and
every expectation is a sum over all paths.
"""

import itertools
import math

import pytest
import torch

from rgdm_lib.worlds.chain import Chain, ChainPayoff, denoising_chain, forward_kernel, small_chain


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        atol=1e-10,
        rtol=0,
    )


def random_chain(states, steps, seed):
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(states, generator=g, dtype=torch.float64)
    kernel = torch.randn(steps, states, states, generator=g, dtype=torch.float64)
    return Chain(torch.log_softmax(start, -1), torch.log_softmax(kernel, -1))


def random_world():
    reward = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    return ChainPayoff(random_chain(3, 4, seed=1), reward, tau=0.7)


@pytest.fixture(params=[small_chain, random_world])
def world(request):
    return request.param()


@pytest.fixture
def logits(world):
    shape = world.reference.log_kernel.shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def policy(world, logits):
    return world.reference.with_kernel(logits)


def enumerate_paths(chain):
    """Every path (s_0, ..., s_T) as a row, by nested loops."""
    return torch.tensor(list(itertools.product(range(chain.states), repeat=chain.T + 1)))


def log_probabilities(chain, paths):
    """Start, then one table entry a step; differentiable."""
    total = chain.log_start[paths[:, chain.T]]
    for t in range(chain.T, 0, -1):
        total = total + chain.log_kernel[t - 1][paths[:, t], paths[:, t - 1]]
    return total


def sum_by(weights, *columns, states):
    """Sums of path weights for every value of some columns of states."""
    index = torch.zeros_like(columns[0])
    for column in columns:
        index = index * states + column
    return torch.bincount(index, weights, states ** len(columns)).reshape([states] * len(columns))


class Enumerated:
    """The world's paths, and the payoff's probability of each."""

    def __init__(self, world):
        self.paths = enumerate_paths(world.reference)
        self.states = world.reference.states
        self.log_reference = log_probabilities(world.reference, self.paths)
        self.gain = (world.reward / world.tau)[self.paths[:, 0]]
        self.Z = sum((self.log_reference + self.gain).exp().tolist())
        self.log_payoff = self.log_reference + self.gain - math.log(self.Z)

    def marginal(self, log_p, t):
        return sum_by(log_p.exp(), self.paths[:, t], states=self.states)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


# ---- the chain -------------------------------------------------------------------------------


def test_size_of_the_small_world():
    reference = small_chain().reference
    assert (reference.states, reference.T) == (4, 6)
    assert len(reference.paths()) == len(reference.paths().unique(dim=0)) == 4**7


def test_paths_and_their_probability(world):
    reference = world.reference
    paths = enumerate_paths(reference)
    assert torch.equal(reference.paths(), paths)
    close(reference.log_prob(paths), log_probabilities(reference, paths))
    close(reference.log_prob(paths).exp().sum(), 1)


def test_marginals(world, policy):
    exact = Enumerated(world)
    log_p = log_probabilities(policy, exact.paths)
    for t, row in enumerate(policy.marginals()):
        close(row, exact.marginal(log_p, t))


def test_denoising_chain_is_the_time_reversal():
    data, stay, steps = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), 0.6, 3
    chain = denoising_chain(data, stay, steps)
    q = forward_kernel(4, stay)
    paths = enumerate_paths(chain)
    forward = data[paths[:, 0]].log()
    for t in range(1, steps + 1):
        forward = forward + q[paths[:, t - 1], paths[:, t]].log()
    close(log_probabilities(chain, paths), forward)
    close(torch.linalg.matrix_power(q, steps), forward_kernel(4, stay**steps))


def test_score_is_the_gradient_of_log_prob(world, logits):
    paths = enumerate_paths(world.reference)
    logits.requires_grad_()
    policy = world.reference.with_kernel(logits)
    weights = torch.linspace(-1, 1, len(paths), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(weights @ log_probabilities(policy, paths), logits)
    close(torch.tensordot(weights, policy.score(paths).detach(), 1), gradient)


# ---- the payoff distribution -----------------------------------------------------------------


def test_partition_function(world):
    close(world.log_Z(), math.log(Enumerated(world).Z))


def test_payoff_is_the_tilted_reference(world):
    exact = Enumerated(world)
    close(log_probabilities(world.exact(), exact.paths), exact.log_payoff)


def test_soft_values(world):
    exact = Enumerated(world)
    values = world.soft_values()
    close(values[0], world.reward)
    for t in range(world.reference.T + 1):
        tilted = exact.marginal(exact.log_reference + exact.gain, t)
        close(values[t], world.tau * (tilted / exact.marginal(exact.log_reference, t)).log())


def test_start_and_kernels_of_the_payoff(world):
    exact, chain = Enumerated(world), world.exact()
    close(chain.log_start.exp(), exact.marginal(exact.log_payoff, chain.T))
    for t in range(1, chain.T + 1):
        columns = exact.paths[:, t], exact.paths[:, t - 1]
        joint = sum_by(exact.log_payoff.exp(), *columns, states=chain.states)
        close(chain.log_kernel[t - 1].exp(), joint / joint.sum(1, keepdim=True))


def test_marginals_are_tilted_by_soft_values(world):
    exact = Enumerated(world)
    for t, value in enumerate(world.soft_values()):
        tilted = exact.marginal(exact.log_reference, t) * (value / world.tau).exp() / exact.Z
        close(exact.marginal(exact.log_payoff, t), tilted)


def test_kept_start_keeps_the_start_and_the_payoffs_kernels(world):
    close(world.kept_start().log_start, world.reference.log_start)
    close(world.kept_start().log_kernel, world.exact().log_kernel)
    # the right kernels, the wrong end: sum over s_T of p_ref(s_T) p*(s_0 | s_T)
    exact = Enumerated(world)
    columns = exact.paths[:, -1], exact.paths[:, 0]
    joint = sum_by(exact.log_payoff.exp(), *columns, states=exact.states)
    end = world.reference.log_start.exp() @ (joint / joint.sum(1, keepdim=True))
    close(world.kept_start().marginals()[0], end)
    assert float((end - joint.sum(0)).abs().max()) > 1e-6


def test_temperature_to_infinity_is_the_reference(world):
    hot = ChainPayoff(world.reference, world.reward, 1e12)
    close(hot.exact().log_kernel, world.reference.log_kernel)
    close(hot.log_Z(), 0)


# ---- the objective and both divergences ------------------------------------------------------


def test_divergences(world, policy):
    exact = Enumerated(world)
    log_p = log_probabilities(policy, exact.paths)
    close(policy.kl(world.reference), kl(log_p, exact.log_reference))
    close(policy.kl(world.exact()), kl(log_p, exact.log_payoff))
    close(world.exact().kl(policy), kl(exact.log_payoff, log_p))


def test_objective_and_its_link_to_the_payoff(world, policy):
    exact = Enumerated(world)
    log_p = log_probabilities(policy, exact.paths)
    reward = log_p.exp() @ world.reward[exact.paths[:, 0]]
    close(world.objective(policy), reward - world.tau * kl(log_p, exact.log_reference))
    link = world.tau * math.log(exact.Z) - world.tau * kl(log_p, exact.log_payoff)
    close(world.objective(policy), link)


def test_best_objective_with_and_without_the_start(world, policy):
    exact = Enumerated(world)
    start = world.reference.log_start.exp()
    value = world.soft_values()[-1]
    best = start @ value
    close(world.objective(world.kept_start()), best)
    close(world.objective(world.exact()), world.tau * math.log(exact.Z))
    # below tau log Z by what the start cannot follow
    of_start = kl(world.reference.log_start, world.exact().log_start)
    close(best, world.tau * math.log(exact.Z) - world.tau * of_start)
    # every other policy is below by its own divergence
    log_p = log_probabilities(policy, exact.paths)
    log_best = log_probabilities(world.kept_start(), exact.paths)
    close(world.objective(policy), best - world.tau * kl(log_p, log_best))
    assert world.objective(policy) < best


def test_forward_kl_is_a_weighted_likelihood(world, policy):
    exact = Enumerated(world)
    log_p = log_probabilities(policy, exact.paths)
    weight = exact.gain.exp() / exact.Z
    likelihood = (exact.log_reference.exp() * weight) @ log_p
    entropy = -(exact.log_payoff.exp() @ exact.log_payoff)
    close(world.exact().kl(policy), -likelihood - entropy)


def test_forward_kl_keeps_the_starts_divergence(world):
    start = kl(world.exact().log_start, world.reference.log_start)
    close(world.exact().kl(world.kept_start()), start)
    assert start > 1e-6


def test_data_reference_the_payoff_keeps_the_forward_process():
    data = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    reward, tau = torch.tensor([0.0, 0.4, -0.3, 1.0], dtype=torch.float64), 0.5
    payoff = ChainPayoff(denoising_chain(data, 0.6, 6), reward, tau).exact()
    noised_payoff = denoising_chain(data * (reward / tau).exp(), 0.6, 6)
    close(payoff.log_start, noised_payoff.log_start)
    close(payoff.log_kernel, noised_payoff.log_kernel)


def test_flat_reference_makes_the_divergence_an_entropy():
    data = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    flat = denoising_chain(torch.ones(4), 0.6, 6)
    close(denoising_chain(data, 0.6, 6).kl(flat), math.log(4) + (data * data.log()).sum())


def test_mean_reward_in_place_of_the_soft_value_is_too_low(world):
    exact = Enumerated(world)
    hot = ChainPayoff(world.reference, world.reward, 1e3)
    reward = world.reward[exact.paths[:, 0]]
    for t in range(1, world.reference.T + 1):
        state = exact.paths[:, t]
        p, first, second = (
            sum_by(exact.log_reference.exp() * r, state, states=exact.states)
            for r in (torch.ones_like(reward), reward, reward**2)
        )
        mean, variance = first / p, second / p - (first / p) ** 2
        assert (world.soft_values()[t] > mean).all()
        # V = mean + variance / (2 tau) + O(1 / tau^2)
        gap = (hot.soft_values()[t] - mean) * 2 * hot.tau
        torch.testing.assert_close(gap, variance, atol=0, rtol=5e-3)


def test_carried_weights_with_the_first_factor_telescope(world):
    """Any guess of the value gives Z, if the first guess is carried too; without it, not."""
    exact, tau = Enumerated(world), world.tau
    g = torch.Generator().manual_seed(3)
    shape = world.reference.T + 1, exact.states
    guess = torch.randn(shape, generator=g, dtype=torch.float64)
    guess[0] = world.reward
    first = (guess[-1] / tau)[exact.paths[:, -1]]
    steps = sum(
        (guess[t - 1][exact.paths[:, t - 1]] - guess[t][exact.paths[:, t]]) / tau
        for t in range(1, len(guess))
    )
    close((exact.log_reference + first + steps).exp().sum(), exact.Z)
    assert abs(float((exact.log_reference + steps).exp().sum()) - exact.Z) > 1e-2


# ---- gradients -------------------------------------------------------------------------------


def test_gradient_of_the_objective(world, logits):
    exact = Enumerated(world)
    logits.requires_grad_()
    policy = world.reference.with_kernel(logits)
    log_p = log_probabilities(policy, exact.paths)
    reward = world.reward[exact.paths[:, 0]]
    objective = log_p.exp() @ reward - world.tau * kl(log_p, exact.log_reference)
    (gradient,) = torch.autograd.grad(objective, logits, retain_graph=True)
    close(world.objective_gradient(policy).detach(), gradient)
    (of_library,) = torch.autograd.grad(world.objective(policy), logits)
    close(of_library, gradient)


def test_gradient_of_the_forward_kl(world, logits):
    exact = Enumerated(world)
    logits.requires_grad_()
    policy = world.reference.with_kernel(logits)
    forward = kl(exact.log_payoff, log_probabilities(policy, exact.paths))
    (gradient,) = torch.autograd.grad(forward, logits)
    close(world.forward_kl_gradient(policy).detach(), gradient)


@pytest.mark.parametrize("baseline", [0.0, 0.9])
def test_reinforce_is_unbiased(world, policy, baseline):
    """E[(r - tau log p / p_ref - b) grad log p] by enumeration, whatever the baseline b."""
    exact = Enumerated(world)
    log_p = log_probabilities(policy, exact.paths)
    reward = world.reward[exact.paths[:, 0]] - world.tau * (log_p - exact.log_reference)
    weight = log_p.exp() * (reward - baseline)
    expected = torch.tensordot(weight, policy.score(exact.paths), 1)
    close(expected, world.objective_gradient(policy))


def test_gradients_vanish_at_the_optimum(world):
    close(world.objective_gradient(world.kept_start()), 0 * world.reference.log_kernel)
    close(world.forward_kl_gradient(world.kept_start()), 0 * world.reference.log_kernel)


def test_both_gradients_agree_to_first_order_at_the_reference(world):
    hot = ChainPayoff(world.reference, world.reward, 1e5)
    ascent = -hot.tau * hot.forward_kl_gradient(world.reference)
    torch.testing.assert_close(ascent, hot.objective_gradient(world.reference), atol=1e-5, rtol=0)
    cold = ChainPayoff(world.reference, world.reward, 0.1)
    ascent = -cold.tau * cold.forward_kl_gradient(world.reference)
    assert float((ascent - cold.objective_gradient(world.reference)).abs().max()) > 1e-2


# ---- refusals --------------------------------------------------------------------------------

LOG_HALF = torch.full((2,), 0.5, dtype=torch.float64).log()
FAIR = Chain(LOG_HALF, LOG_HALF.expand(3, 2, 2))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_temperature(tau):
    with pytest.raises(ValueError, match="a temperature is a finite number above 0"):
        ChainPayoff(FAIR, torch.zeros(2, dtype=torch.float64), tau)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 2), ()])
def test_refuses_a_reward_of_the_wrong_length(shape):
    with pytest.raises(ValueError, match="one number for each of 2 states"):
        ChainPayoff(FAIR, torch.zeros(shape, dtype=torch.float64), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_a_reward_that_is_not_finite(bad):
    with pytest.raises(ValueError, match="finite"):
        ChainPayoff(FAIR, torch.tensor([0.0, bad], dtype=torch.float64), 1.0)


@pytest.mark.parametrize(("excess", "told"), [(0.1, "1.1"), (-0.1, "0.9"), (math.nan, "nan")])
def test_refuses_rows_that_do_not_sum_to_1(excess, told):
    kernel = LOG_HALF.expand(3, 2, 2).exp().clone()
    kernel[1, 0, 1] += excess
    with pytest.raises(ValueError, match=f"log_kernel: .* {told}, not to 1"):
        Chain(LOG_HALF, kernel.log())
    start = torch.tensor([0.5, 0.5 + excess], dtype=torch.float64).log()
    with pytest.raises(ValueError, match=f"log_start: .* {told}, not to 1"):
        Chain(start, LOG_HALF.expand(3, 2, 2))


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 3, 3), (2, 2), (2,)])
def test_refuses_kernels_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"needs kernels \(T, S, S\), not"):
        Chain(LOG_HALF, torch.zeros(shape, dtype=torch.float64))


def test_refuses_to_compare_chains_of_other_lengths():
    short = Chain(LOG_HALF, LOG_HALF.expand(1, 2, 2))
    with pytest.raises(ValueError, match="3 steps of 2 states, the other 1 of 2"):
        FAIR.kl(short)


@pytest.mark.parametrize(
    ("data", "stay", "steps"),
    [([0.5, 0.0], 0.5, 2), ([0.5, -1.0], 0.5, 2), ([0.5, 0.5], 1.0, 2), ([0.5, 0.5], 0.0, 2),
     ([0.5, math.nan], 0.5, 2), ([0.5, 0.5], 0.5, 0)],
)  # fmt: skip
def test_refuses_data_to_noise(data, stay, steps):
    with pytest.raises(ValueError, match="must be positive"):
        denoising_chain(torch.tensor(data), stay, steps)
