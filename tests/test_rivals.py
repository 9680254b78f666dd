"""The rivals that train on rewards: their identities, exactly; short runs, against known laws."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from rgdm_lib import baselines, payoff, schedules, stepwise
from rgdm_lib.baselines import (
    best_of_n,
    bounded,
    classifier_guidance,
    conditional,
    policy_gradient,
    reward_weighted,
    tilt_matching,
    value_guidance,
)
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.shapes.exact import ks_distance
from rgdm_lib.worlds.chain import ChainPayoff, forward_kernel, small_chain
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.nets import MLPDenoiser, TimeMLP
from rgdm_lib.worlds.rewards import Linear

F64 = torch.float64
SCHEDULE = schedules.cosine(20)
DIFFUSION = Diffusion(SCHEDULE)
WORLD = GaussianMixture([[-1.0], [1.0]], 0.3)
REWARD = Linear([1.0])


class Steered(nn.Module):
    """The world's exact denoiser with a gain, a shift and a bend of x_t at each time."""

    def __init__(self, diffusion=DIFFUSION, world=WORLD):
        super().__init__()
        self.exact = world.denoiser(diffusion.schedule)
        self.weight = nn.Parameter(torch.zeros(diffusion.T + 1, 3))

    def forward(self, x, t, cond=None):
        features = torch.cat([torch.ones_like(x), x, torch.tanh(3 * x)], 1)
        return self.exact(x, t) + (features * self.weight[t].to(x)).sum(1, keepdim=True)


def x_T(n):
    return torch.randn(n, 1)


def nothing(x):
    return torch.zeros(len(x))


def sampler(n, reward=REWARD):
    return payoff.model_sampler(DIFFUSION, x_T, reward, n)


def reward_of(net, n=4000):
    *_, last = DIFFUSION.sample(net, x_T(n))
    return float(REWARD(last.x).mean())


def step_of(net, rounds, before):
    """What plain gradient descent at rate 1 moved, once round 1 is over: minus the gradient."""
    next(rounds)
    return before - net.weight.detach()


def descent(net):
    return [torch.optim.SGD(net.parameters())]


PLAIN = {"optimizer": descent, "lr": 1.0, "clip": math.inf}
FAST = {"lr": 0.02, "warmup": 0, "ema_decay": 0.98}


# ---- with a reward of 0 nothing changes --------------------------------------------------

ZERO = {
    "reinforce": lambda net: policy_gradient.fit(net, DIFFUSION, x_T, nothing, rounds=3, n=64),
    "ddpo": lambda net: policy_gradient.fit(
        net, DIFFUSION, x_T, nothing, rounds=2, n=64, batches=3, epochs=2, clip_ratio=0.1
    ),
    "ddpo with KL": lambda net: policy_gradient.fit(
        net, DIFFUSION, x_T, nothing, rounds=2, n=64, batches=3, epochs=2, tau=0.5
    ),
    "tilt matching": lambda net: tilt_matching.fit(
        net, DIFFUSION, sampler(60, nothing), 0.5, rounds=2, steps=5
    ),
    "bounded": lambda net: bounded.fit(
        net, DIFFUSION, sampler(60, nothing), 0.5, rounds=2, steps=5
    ),
}


@pytest.mark.parametrize("name", ZERO)
def test_a_reward_of_0_leaves_every_bit(name):
    torch.manual_seed(0)
    net = MLPDenoiser(1, SCHEDULE.alpha_bar, hidden=16, layers=2)
    nn.init.normal_(net.out.weight, std=0.3)
    before = copy.deepcopy(net.state_dict())
    for done in ZERO[name](net):
        assert done.step > 0 and done.reward == 0
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_reward_of_0_moves_reward_weighted_regression_by_noise_alone():
    """All weights are equal, and at an exact model the gradient is 0 on average."""
    torch.manual_seed(0)
    net = Steered()
    draw = payoff.Draw(WORLD.sample(20_000), torch.zeros(20_000))
    options = {"steps": 1, "batch_size": 20_000, "warmup": 0, "ema_decay": 0.0} | PLAIN
    (done,) = reward_weighted.fit(net, DIFFUSION, lambda _: draw, 0.5, rounds=1, **options)
    assert float(done.weighted.log_weight.std()) < 1e-12 and abs(done.ess - 20_000) < 1e-6
    moved = net.weight.detach()[1:]
    # at each t about 1000 of the 20,000 samples, noise of variance 1 at most, gradients 2 / 20,000
    assert float(moved.abs().max()) < 2 / 20_000 * 4.5 * math.sqrt(1000)
    assert float(moved.abs().max()) > 0


def reference_ignoring(cond_dim):
    """A denoiser of random weights, the reference, that does not read its condition."""
    net = MLPDenoiser(1, SCHEDULE.alpha_bar, hidden=16, layers=2, cond_dim=cond_dim)
    nn.init.normal_(net.out.weight, std=0.3)
    with torch.no_grad():
        net.embed.weight[:, 18:] = 0
    return net.requires_grad_(False)


def constant(out):
    """A network of noisy states that says the same of all: what training finds at a reward of 0."""
    net = TimeMLP(1, DIFFUSION.T, out, hidden=16)
    nn.init.zeros_(net.out.weight)
    return net


def steered_by(potential):
    net = reference_ignoring(0)
    return net, classifier_guidance.guided(net, potential(net), DIFFUSION, scale=2.0), None


def zero_reward_of_the_guess(net):
    def potential(x_t, t):
        return Linear([0.0])(DIFFUSION.predict_x0(x_t, t, net(x_t, t))) / 0.5

    return potential


def conditioned_on_0():
    """The reference by itself gets no condition: its share of the weights is 0."""
    net = reference_ignoring(2)
    reference = lambda x_t, t, cond: net(x_t, t, torch.zeros(len(x_t), 2))  # noqa: E731, ARG005
    return reference, conditional.classifier_free(net, 3.0), torch.zeros(200, 1)


UNMOVED = {
    "value guidance": lambda: steered_by(lambda _: value_guidance.log_weight(constant(1))),
    "classifier guidance": lambda: steered_by(
        lambda _: classifier_guidance.log_probability(constant(4), 2)
    ),
    "reward gradient": lambda: steered_by(zero_reward_of_the_guess),
    "reward-conditioned": conditioned_on_0,
}


@pytest.mark.parametrize("name", UNMOVED)
def test_a_reward_of_0_steers_no_sample(name):
    torch.manual_seed(0)
    reference, guided, cond = UNMOVED[name]()
    start, noise = x_T(200), torch.get_rng_state()
    *_, mine = DIFFUSION.sample(guided, start, cond=cond)
    torch.set_rng_state(noise)
    *_, exact = DIFFUSION.sample(reference, start)
    assert torch.equal(mine.x, exact.x) and float(exact.x.std()) > 0.1


@pytest.mark.parametrize("best", [0.0, 1.0])
def test_a_reward_of_0_makes_every_learned_value_0(best):
    """Every sample's loss, not only their mean, is least where V = 0: tau log_weight = -best."""
    tau, x0 = 0.5, WORLD.sample(300)
    share = torch.tensor(math.exp(-best / tau)).clamp(max=1 - 1e-6)  # the logit of 1 is infinite
    logit = torch.logit(share).expand(300, 1).clone().requires_grad_()
    network = lambda x_t, t: logit  # noqa: E731, ARG005
    loss = value_guidance.loss(DIFFUSION, network, x0, torch.zeros(300), tau, best)
    (gradient,) = torch.autograd.grad(loss.sum(), logit)
    assert float(gradient.abs().max()) < 2e-6
    value = tau * value_guidance.log_weight(network)(x0, None) + best
    torch.testing.assert_close(value, torch.zeros(300), rtol=0, atol=1e-6)


class Reading(Steered):
    """``Steered``, and a weight for each number of the condition."""

    def __init__(self):
        super().__init__()
        self.read = nn.Parameter(torch.zeros(2))

    def forward(self, x, t, cond=None):
        return super().forward(x, t) + (cond @ self.read)[:, None]


def test_a_reward_of_0_teaches_a_conditioned_network_nothing():
    """Nothing reaches the reward's weight; the mark's moves by noise alone, at an exact model."""
    torch.manual_seed(0)
    n = 20_000
    net = Reading()
    loss = conditional.loss(DIFFUSION, net, WORLD.sample(n), torch.zeros(n, 1), drop=0.1)
    of_reward, of_mark = torch.autograd.grad(loss.mean(), net.read)[0]
    assert float(of_reward) == 0
    # a residual's variance is 1 at most, the gradient of a sample twice the residual
    assert 0 < abs(float(of_mark)) < 4 * 2 / n**0.5


def test_a_reward_of_0_leaves_particles_alone():
    """Equal weights, never resampled: the plain sampler's samples, bit for bit."""
    torch.manual_seed(0)
    net = reference_ignoring(0)
    start, noise = x_T(200), torch.get_rng_state()
    mine = stepwise.particles(net, DIFFUSION, start, nothing, 0.5, least_ess=0.99)
    torch.set_rng_state(noise)
    *_, exact = DIFFUSION.sample(net, start)
    assert torch.equal(mine.x0, exact.x) and not mine.reward.any()
    assert float(mine.log_weight.exp().sub(1 / 200).abs().max()) < 1e-12


def test_a_reward_of_0_leaves_the_law_of_the_best_child():
    """Of equal children any is the chain's own: the samples' law, not their bits, is unchanged."""
    torch.manual_seed(0)
    n, net = 4000, WORLD.denoiser(SCHEDULE)
    mine = stepwise.best_of_k(net, DIFFUSION, x_T(n), nothing, 0.5, 4)
    *_, exact = DIFFUSION.sample(net, x_T(n))
    assert not mine.reward.any()
    # two samples of one law: above 1.95 sqrt(2 / n) once in a thousand (Smirnov)
    law = torch.full((n,), -math.log(n)).double()
    assert ks_distance(mine.x0[:, 0], exact.x[:, 0], law) < 1.95 * (2 / n) ** 0.5


# ---- each of them is short ---------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(Path(baselines.__file__).parent.glob("*.py")), ids=str)
def test_a_rival_is_under_150_lines(file):
    assert len(file.read_text().splitlines()) < 150


# ---- policy gradient ---------------------------------------------------------------------


def test_reinforce_is_the_gradient_of_the_paths_log_probability():
    torch.manual_seed(0)
    net = Steered()
    before = net.weight.detach().clone()
    torch.manual_seed(1)
    fit = policy_gradient.fit(net, DIFFUSION, x_T, REWARD, rounds=1, n=300, **PLAIN)
    mine = step_of(net, fit, before)
    torch.manual_seed(1)
    other = Steered()
    path = DIFFUSION.trajectory(other, x_T(300))
    reward = REWARD(path.x[-1])
    log_prob = DIFFUSION.log_prob(other, path).sum(1)
    (-(reward - reward.mean()) * log_prob).mean().backward()
    torch.testing.assert_close(mine, other.weight.grad, rtol=1e-3, atol=1e-5)
    assert float(mine.abs().max()) > 0.01


SHORT = Diffusion(schedules.cosine(5))
GAUSSIAN = GaussianMixture([[0.4]], 0.8)


def moved_policy():
    net = Steered(SHORT, GAUSSIAN)
    with torch.no_grad():
        net.weight[:, 0], net.weight[:, 1] = -0.3, 0.4
    return net


def pathwise_gradient(net, reference, reward, tau, n):
    """Of E[r] - tau KL, through the noise: the steps are differentiable here."""
    x, kl = torch.randn(n, 1), 0.0
    times = SHORT.timesteps()
    for t, s in zip(times[:-1], times[1:], strict=True):
        at = torch.full((n,), t)
        std = SHORT.path_std(t, s)
        mean, _, _ = SHORT.step(x, t, s, net(x, at))
        of_reference, _, _ = SHORT.step(x, t, s, reference(x, at))
        kl = kl + torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, std), torch.distributions.Normal(of_reference, std)
        )
        x = mean + std * torch.randn_like(x)
    objective = (reward(x) - tau * kl[:, 0]).mean()
    (gradient,) = torch.autograd.grad(objective, net.weight)
    return gradient, float(kl.detach().mean())


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_gradient_is_that_of_the_objective(tau):
    """Away from the reference too, where later steps' KL depends on what a step did."""
    reward = lambda x: -(x[:, 0] - 1).square()  # noqa: E731
    net, start = Steered(SHORT, GAUSSIAN), moved_policy().weight.detach()

    def leave_the_reference(n):
        net.weight.data.copy_(start)
        return torch.randn(n, 1)

    torch.manual_seed(0)
    fit = policy_gradient.fit(
        net, SHORT, leave_the_reference, reward, rounds=1, n=100_000, tau=tau, **PLAIN
    )
    done = next(fit)
    mine = (net.weight.detach() - start)[1:]
    reference = Steered(SHORT, GAUSSIAN)
    exact, kl = pathwise_gradient(moved_policy(), reference, reward, tau, 100_000)
    assert abs(done.kl - kl) < 0.02 * kl and kl > 0.1
    assert float((mine - exact[1:]).norm()) < 0.05 * float(exact.norm())


def test_surrogate_is_clipped_only_where_a_step_gains():
    old = torch.zeros(4)
    new = torch.tensor([1.3, 1.3, 0.6, 0.6]).log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    value = policy_gradient.surrogate(new, old, advantage, 0.2)
    torch.testing.assert_close(value, torch.tensor([1.2, -1.3, 0.6, -0.8]))
    (gradient,) = torch.autograd.grad(value.sum(), new)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -1.3, 0.6, 0.0]))
    free = policy_gradient.surrogate(new, old, advantage)
    torch.testing.assert_close(free, torch.tensor([1.3, -1.3, 0.6, -0.6]))


def test_normalised_advantages_do_not_see_the_rewards_scale():
    torch.manual_seed(0)
    reward, kl = torch.randn(50), torch.rand(6, 50)
    one = policy_gradient.advantages(reward, 0 * kl, 0.0, normalise=True)
    ten = policy_gradient.advantages(10 * reward + 3, 0 * kl, 0.0, normalise=True)
    torch.testing.assert_close(one, ten, rtol=1e-4, atol=1e-4)
    raw = policy_gradient.advantages(reward, kl, 0.7)
    assert raw.shape == (6, 50)
    torch.testing.assert_close(raw.mean(1), torch.zeros(6), rtol=0, atol=1e-6)
    expected = reward - 0.7 * kl[4:].sum(0)  # after step 3 of 6
    torch.testing.assert_close(raw[3], expected - expected.mean())


def test_reinforce_and_ddpo_raise_the_reward_and_the_kl_weight_holds_it():
    means = {}
    for name, options in {
        "reinforce": {},
        "ddpo": {"batches": 2, "epochs": 2, "clip_ratio": 0.2, "normalise": True},
        "kl": {"tau": 0.5, "batches": 2},
    }.items():
        torch.manual_seed(0)
        net = Steered()
        fit = policy_gradient.fit(net, DIFFUSION, x_T, REWARD, rounds=25, n=200, lr=0.04, **options)
        done = list(fit)
        assert done[-1].evaluations == 25 * 200
        assert done[-1].step == 25 * options.get("batches", 1) * options.get("epochs", 1)
        assert abs(done[0].kl) < 1e-6 < done[-1].kl
        means[name] = reward_of(net)
    exact, _ = WORLD.frontier(REWARD, 0.5)
    assert 0.8 < exact < 1.3
    assert means["reinforce"] > exact + 0.3 and means["ddpo"] > exact + 0.3
    assert abs(means["kl"] - exact) < 0.15


def test_a_stopped_policy_gradient_goes_on_with_the_next_round(tmp_path):
    options = {"rounds": 5, "n": 40, "batches": 2, "epochs": 2, "clip_ratio": 0.2, "lr": 0.04}
    whole, stopped = Steered(), Steered()

    def fit(net, name):
        file = tmp_path / f"{name}.safetensors"
        return policy_gradient.fit(net, DIFFUSION, x_T, REWARD, checkpoint=file, **options)

    torch.manual_seed(0)
    rounds = list(fit(whole, "whole"))
    torch.manual_seed(0)
    began = fit(stopped, "stopped")
    first = [next(began), next(began)]
    torch.manual_seed(1)
    rest = list(fit(stopped := Steered(), "stopped"))
    assert [*first, *rest] == rounds and [done.evaluations for done in rest] == [120, 160, 200]
    for mine, theirs in zip(stopped.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert list(fit(Steered(), "whole")) == []


def test_policy_gradient_leaves_out_paths_without_a_value():
    seen = []

    def reward(x):
        seen.append(x)
        return torch.where(x[:, 0] < 0, math.nan, x[:, 0])

    torch.manual_seed(0)
    fit = policy_gradient.fit(Steered(), DIFFUSION, x_T, reward, rounds=2, n=200)
    for done, x in zip(fit, seen, strict=False):
        assert abs(done.reward - float(x[x > 0].mean())) < 1e-5
    assert done.evaluations == 400
    with pytest.raises(ValueError, match="only 0 of 8 rewards are finite"):
        next(policy_gradient.fit(Steered(), DIFFUSION, x_T, lambda x: x[:, 0] / 0, rounds=1, n=8))
    for bad in ({"rounds": 0}, {"tau": -1.0}, {"clip_ratio": 0.0}, {"batches": 0}):
        with pytest.raises(ValueError, match="1 or more; tau = "):
            next(policy_gradient.fit(Steered(), DIFFUSION, x_T, REWARD, **{"rounds": 1} | bad))


# ---- reward-weighted regression ----------------------------------------------------------


class Categorical(nn.Module):
    """A law over four states whose fit is exact: the logits themselves."""

    def __init__(self, data):
        super().__init__()
        self.logits = nn.Parameter(data.log().clone())

    def all_states(self, n=20_000):
        """Every state as often as its probability says: samples without sampling noise."""
        counts = (self.logits.detach().softmax(0) * n).round().long()
        return torch.arange(4).repeat_interleave(counts)


def test_iterated_reward_weighting_drifts():
    """After k rounds the law is p_ref exp(k r / tau), where RGDM's stays p_ref exp(r / tau)."""
    world = small_chain(tau=1.0)
    data = world.reference.marginals()[0]
    torch.manual_seed(0)
    net = Categorical(data)
    fit = reward_weighted.fit(
        net,
        DIFFUSION,
        lambda net: payoff.Draw(x := net.all_states(), world.reward[x]),
        world.tau,
        rounds=3,
        steps=150,
        batch_size=20_000,
        loss=lambda net, x: -net.logits.log_softmax(0)[x],
        **{"lr": 0.1, "warmup": 0, "ema_decay": 0.9},
    )
    for k, done in enumerate(fit, 1):
        expected = torch.softmax(data.log() + k * world.reward / world.tau, 0)
        torch.testing.assert_close(net.logits.detach().softmax(0), expected, rtol=0, atol=5e-3)
        assert done.step == 150 * k and done.beta == k / world.tau
        assert abs(done.evaluations - 20_000 * k) <= 3 * k


def test_the_drift_is_exact_on_the_chain():
    """A perfect fit of a round is the payoff of the chain so far: exponents add up."""
    world = small_chain()
    chain = world.reference
    for k in range(1, 6):
        chain = ChainPayoff(chain, world.reward, world.tau).exact()
        expected = torch.softmax(
            world.reference.marginals()[0].log() + k * world.reward / world.tau, 0
        )
        torch.testing.assert_close(chain.marginals()[0], expected, rtol=0, atol=1e-10)


def test_reward_weighted_regression_raises_the_reward_past_the_payoffs():
    tau = 1.0
    torch.manual_seed(0)
    net = Steered()
    fit = reward_weighted.fit(
        net, DIFFUSION, sampler(2000), tau, rounds=3, steps=150, batch_size=512, **FAST
    )
    means = [reward_of(net) for _ in fit]
    exact = [WORLD.frontier(REWARD, tau / k)[0] for k in (1, 2, 3)]
    assert abs(means[0] - exact[0]) < 0.2  # few parameters: not its last digit
    assert means[2] > exact[0] + 0.2 and means[0] < means[1] < means[2]
    with pytest.raises(ValueError, match="rounds = 0"):
        next(reward_weighted.fit(net, DIFFUSION, sampler(10), tau, rounds=0))


# ---- tilt matching and bounded weights, exactly ------------------------------------------


def posteriors(law, world):
    """(T, S, S): p(s_0 | s_t) of s_0 ~ law, noised by q; row t - 1, then s_t."""
    q, found = forward_kernel(world.reference.states, 0.6), []
    cumulated = torch.eye(world.reference.states, dtype=F64)
    for _ in range(world.reference.T):
        cumulated = cumulated @ q
        joint = law[:, None] * cumulated
        found.append((joint / joint.sum(0)).T)
    return torch.stack(found)


def over_clean_states(values, posterior):
    """E[values(s_0, s_t) | s_t]: values are (S_0, T * S_t, S), their mean (T, S_t, S)."""
    flat = posterior.reshape(-1, posterior.shape[-1])  # (T * S_t, S_0)
    return torch.einsum("tz,zts->ts", flat, values).reshape(posterior.shape)


def exact_chain():
    """A chain with rewards of 0 or more; p(s_0 | s_t) under reference and payoff."""
    world = small_chain()
    world = ChainPayoff(world.reference, world.reward - world.reward.min(), world.tau)
    data, best = world.reference.marginals()[0], world.exact().marginals()[0]
    return world, data, best


def clean_states(posterior):
    """The 'noise' of a discrete chain, whose conditional mean is the posterior: one-hot s_0."""
    s, rows = posterior.shape[-1], posterior.shape[0] * posterior.shape[1]
    return torch.eye(s, dtype=F64)[:, None, :].expand(s, rows, s)


def test_tilt_matching_descends_the_weighted_residual_everywhere_and_stops_at_the_payoff():
    world, data, best = exact_chain()
    ref, exact = posteriors(data, world), posteriors(best, world)
    weight = (world.reward / world.tau).exp()
    weight = weight / (data @ weight)
    u, flat = clean_states(ref), lambda p: p.reshape(1, -1, p.shape[-1])  # noqa: E731

    def mean_target(current):
        rows = [
            tilt_matching.target(flat(ref)[0], flat(current)[0], u[z], w.expand(len(u[z])))
            for z, w in enumerate(weight)
        ]
        return over_clean_states(torch.stack(rows), ref)

    torch.testing.assert_close(mean_target(exact), exact, rtol=0, atol=1e-10)
    torch.manual_seed(0)
    anywhere = torch.rand_like(exact)
    residual = over_clean_states(weight[:, None, None] * (u - flat(anywhere)), ref)
    torch.testing.assert_close(mean_target(anywhere) - anywhere, residual, rtol=0, atol=1e-10)
    assert float(residual.abs().max()) > 0.1 and float((exact - ref).abs().max()) > 0.1


def bounded_map(law, world, ref):
    """One exact round: p(s_0 | s_t) that regression finds on s_0 ~ law."""
    u = clean_states(ref)
    rows = [
        bounded.target(ref.reshape(-1, ref.shape[-1]), u[z], r.expand(u.shape[1]), world.tau)
        for z, r in enumerate(world.reward)
    ]
    return over_clean_states(torch.stack(rows), posteriors(law, world))


def test_the_payoff_is_a_fixed_point_of_bounded_weights():
    world, data, best = exact_chain()
    ref, exact = posteriors(data, world), posteriors(best, world)
    torch.testing.assert_close(bounded_map(best, world, ref), exact, rtol=0, atol=1e-10)
    assert float((bounded_map(data, world, ref) - posteriors(data, world)).abs().max()) > 0.1


def sampled(posterior, start):
    """The law of s_0 of a sampler that asks ``posterior`` at each step (Austin et al., eq. 4)."""
    q, law = forward_kernel(len(start), 0.6), start
    powers = [torch.linalg.matrix_power(q, t) for t in range(len(posterior) + 1)]
    for t in range(len(posterior), 0, -1):
        # q(s_{t-1} | s_t, s_0), (s_0, s_t, s_{t-1})
        joint = powers[t - 1][:, None, :] * q.T[None]
        kernel = torch.einsum("tz,zts->ts", posterior[t - 1], joint / joint.sum(-1, keepdim=True))
        law = law @ kernel
    return law


def test_bounded_weights_get_to_the_payoff_from_the_reference_on_the_chain():
    world, data, best = exact_chain()
    ref = posteriors(data, world)
    start = world.exact().marginals()[-1]
    law, distance = data, []
    for _ in range(200):
        law = sampled(bounded_map(law, world, ref), start)
        distance.append(float((law - best).abs().sum()))
    assert float((data - best).abs().sum()) > 0.5
    assert distance[-1] < 1e-8 and distance[0] > distance[20] > distance[-1]


# ---- tilt matching and bounded weights, on a mixture -------------------------------------

TAU = 0.5


def mean_is_zero(values):
    """Within four standard errors."""
    error = values.std() / len(values) ** 0.5
    return bool(values.mean().abs() < 4 * error)


class Probe(nn.Module):
    """A denoiser that remembers what it saw and said."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t, t, cond=None):
        self.x_t = x_t
        self.eps = self.denoiser(x_t, t).requires_grad_()
        return self.eps


def gradients(loss, probe, x0):
    """Of a loss in the denoiser's answers, against two functions of x_t; one number a sample."""
    (gradient,) = torch.autograd.grad(loss(probe, x0).sum(), probe.eps)
    return [gradient[:, 0], gradient[:, 0] * probe.x_t[:, 0]]


def test_tilt_matching_is_at_rest_at_the_payoffs_denoiser_alone():
    torch.manual_seed(0)
    x0 = WORLD.sample(100_000).double()
    weight = (REWARD(x0) / TAU - WORLD.log_Z(REWARD, TAU)).exp()
    reference = WORLD.denoiser(SCHEDULE)
    of = {tau: Probe(WORLD.tilt(REWARD, tau).denoiser(SCHEDULE)) for tau in (TAU, 1.3 * TAU, 1e6)}

    def loss(probe, x0):
        return tilt_matching.loss(DIFFUSION, probe, reference, x0, weight)

    assert all(mean_is_zero(g) for g in gradients(loss, of[TAU], x0))
    assert not any(mean_is_zero(g) for g in gradients(loss, of[1.3 * TAU], x0))
    assert not any(mean_is_zero(g) for g in gradients(loss, of[1e6], x0))


@pytest.mark.parametrize(("tilt", "less"), [(0.1, 20.0), (0.3, 3.0)])
def test_the_control_variate_takes_variance_where_the_tilt_is_weak(tilt, less):
    """Against the weighted denoising loss at the reference, whose gradient has the same mean."""
    torch.manual_seed(0)
    x0 = WORLD.sample(100_000).double()
    weight = (REWARD(x0) * tilt - WORLD.log_Z(REWARD, 1 / tilt)).exp()
    probe = Probe(WORLD.denoiser(SCHEDULE))

    def plain(probe, x0):
        return weight * DIFFUSION.loss(probe, x0)

    def matched(probe, x0):
        return tilt_matching.loss(DIFFUSION, probe, WORLD.denoiser(SCHEDULE), x0, weight)

    with_it, without = (gradients(f, probe, x0)[0] for f in (matched, plain))
    assert mean_is_zero(with_it - without)
    assert float(without.var() / with_it.var()) > less


def test_bounded_weights_are_at_rest_at_the_payoff():
    """E_{p*}[exp(-r / tau)(noise - eps_ref) | x_t] = 0, and the loss there has gradient 0."""
    lowest = 2.5
    reward = lambda x: (REWARD(x) + lowest).clamp(min=0)  # noqa: E731
    torch.manual_seed(0)
    x0 = WORLD.tilt(REWARD, TAU).sample(100_000).double()
    reference = WORLD.denoiser(SCHEDULE)
    exact = Probe(WORLD.tilt(REWARD, TAU).denoiser(SCHEDULE))

    t = torch.randint(1, SCHEDULE.T + 1, (len(x0),))
    noise = torch.randn_like(x0)
    x_t = DIFFUSION.q_sample(x0, t, noise)
    residual = ((-reward(x0) / TAU).exp()[:, None] * (noise - reference(x_t, t)))[:, 0]
    assert mean_is_zero(residual) and mean_is_zero(residual * x_t[:, 0])
    assert not mean_is_zero((noise - reference(x_t, t))[:, 0])

    def loss(tau):
        return lambda probe, x0: bounded.loss(DIFFUSION, probe, reference, x0, reward(x0), tau)

    assert all(mean_is_zero(g) for g in gradients(loss(TAU), exact, x0))
    assert not any(mean_is_zero(g) for g in gradients(loss(4 * TAU), exact, x0))


def test_bounded_targets_lie_between_the_reference_and_the_noise():
    noise, reference = torch.tensor([[3.0], [3.0], [3.0]]), torch.ones(3, 1)
    target = bounded.target(reference, noise, torch.tensor([0.0, 0.5 * math.log(2), 1e9]), 0.5)
    torch.testing.assert_close(target, torch.tensor([[1.0], [2.0], [3.0]]))


def test_tilt_matching_reaches_the_payoffs_mean():
    exact, _ = WORLD.frontier(REWARD, 1.0)
    torch.manual_seed(0)
    net = Steered()
    done = list(
        tilt_matching.fit(
            net, DIFFUSION, sampler(2000), 1.0, rounds=2, steps=150, batch_size=512, **FAST
        )
    )
    assert [d.evaluations for d in done] == [2000, 4000] and [d.step for d in done] == [150, 300]
    assert abs(reward_of(net) - exact) < 0.2 and abs(done[-1].reward - exact) < 0.1 and exact > 0.8


class Bumps(Steered):
    """The same with 25 bumps at each time: enough to fit any change in one dimension."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SCHEDULE.T + 1, 25))

    def forward(self, x, t, cond=None):
        features = (-(((x - torch.linspace(-3, 3, 25)) / 0.25) ** 2) / 2).exp()
        return self.exact(x, t) + (features * self.weight[t]).sum(1, keepdim=True)


def test_bounded_weights_near_the_payoffs_mean_if_the_network_can():
    """With three numbers a time the same run stalls halfway: each round adds its fit's error."""
    exact, _ = WORLD.frontier(REWARD, 1.0)
    above = lambda x: (REWARD(x) + 1.6).clamp(min=0)  # noqa: E731
    found = []
    for kind in (Bumps, Steered):
        torch.manual_seed(0)
        net = kind()
        fit = bounded.fit(
            net,
            DIFFUSION,
            sampler(1000, above),
            1.0,
            rounds=15,
            steps=40,
            batch_size=1024,
            **FAST | {"lr": 0.05, "ema_decay": 0.9},
        )
        done = list(fit)
        assert done[-1].evaluations == 15_000 and done[-1].step == 600
        found.append(reward_of(net))
    assert abs(found[0] - exact) < 0.15 and found[0] < exact
    assert 0.2 < found[1] < exact - 0.3


def with_gaps(x):
    return torch.where(x[:, 0] < -1, math.nan, x[:, 0])


def test_tilt_matching_keeps_samples_without_a_value_at_weight_0(monkeypatch):
    seen = []
    kept = tilt_matching.loss
    monkeypatch.setattr(tilt_matching, "loss", lambda *a: seen.append(a[-2:]) or kept(*a))
    torch.manual_seed(0)
    fit = tilt_matching.fit(Steered(), DIFFUSION, sampler(400, with_gaps), 0.5, steps=4)
    done = next(fit)
    x0, weight = (torch.cat(parts) for parts in zip(*seen, strict=True))
    gap = with_gaps(x0).isnan()
    assert 0.1 < float(gap.float().mean()) < 0.5  # drawn as often as others
    assert bool((weight[gap] == 0).all() and (weight[~gap] > 0).all())
    assert done.weighted.without_value > 0 and abs(float(weight.mean()) - 1) < 0.2
    with pytest.raises(ValueError, match="none of 9 rewards is finite"):
        next(tilt_matching.fit(Steered(), DIFFUSION, sampler(9, lambda x: x[:, 0] / 0), 0.5))


def test_bounded_takes_samples_without_a_value_for_reward_0_and_refuses_less(monkeypatch):
    above = lambda x: with_gaps(x) + 1.5  # noqa: E731
    seen = []
    kept = bounded.loss
    monkeypatch.setattr(bounded, "loss", lambda *a: seen.append(a[3:5]) or kept(*a))
    torch.manual_seed(0)
    done = next(bounded.fit(Steered(), DIFFUSION, sampler(400, above), 0.5, rounds=1, steps=4))
    x0, reward = (torch.cat(parts) for parts in zip(*seen, strict=True))
    gap = above(x0).isnan()
    assert bool((reward[gap] == 0).all() and (reward[~gap] > 0.4).all()) and bool(gap.any())
    assert math.isfinite(done.reward) and done.reward > 0.5
    with pytest.raises(ValueError, match=r"must be 0 or more, and here one is -\d"):
        next(bounded.fit(Steered(), DIFFUSION, sampler(400, with_gaps), 0.5, rounds=1))
    with pytest.raises(ValueError, match="none of 9 rewards is finite"):
        none = sampler(9, lambda x: x[:, 0] / 0)
        next(bounded.fit(Steered(), DIFFUSION, none, 0.5, rounds=1))
    with pytest.raises(ValueError, match="tau = 0"):
        next(bounded.fit(Steered(), DIFFUSION, sampler(9), 0.0, rounds=1))


def test_a_checkpoint_that_a_round_could_not_resume_from_is_refused(tmp_path):
    """Round 2 would find round 1's finished run and train nothing."""
    state = {"steps": 2, "checkpoint": tmp_path / "state.safetensors"}
    for method, rounds in ((reward_weighted, 2), (tilt_matching, 2), (bounded, 1)):
        with pytest.raises(ValueError, match="checkpoint"):
            next(method.fit(Steered(), DIFFUSION, sampler(9), 1.0, rounds=rounds, **state))
    (done,) = tilt_matching.fit(Steered(), DIFFUSION, sampler(9), 1.0, rounds=1, **state)
    assert done.step == 2 and state["checkpoint"].exists()


# ---- best of N ---------------------------------------------------------------------------


def test_best_of_n_picks_the_best_of_each_group_and_the_first_of_equals():
    x0 = torch.arange(11.0)[:, None]
    reward = torch.tensor([0.0, 2, 1, 5, 5, 4, math.nan, -3, math.inf, 9, 9])
    chosen = best_of_n.best_of(payoff.Draw(x0, reward), 3)
    assert chosen.x0[:, 0].tolist() == [1, 3, 7] and chosen.reward.tolist() == [2, 5, -3]
    nothing_valued = payoff.Draw(x0[:2], torch.tensor([math.nan, -math.inf]))
    assert best_of_n.best_of(nothing_valued, 2).x0.tolist() == [[0.0]]
    for n in (0, 12):
        with pytest.raises(ValueError, match=f"n = {n}: from 1 to the 11 samples"):
            best_of_n.best_of(payoff.Draw(x0, reward), n)


def test_best_of_n_with_a_reward_of_0_is_the_reference():
    x0 = torch.randn(12, 2)
    assert torch.equal(best_of_n.best_of(payoff.Draw(x0, torch.zeros(12)), 4).x0, x0[::4])


@pytest.mark.parametrize("n", [1, 2, 4, 10])
def test_the_law_of_the_best_of_n(n):
    """F^n - (F-)^n on a discrete law whose rewards are in order."""
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    best = torch.cat([torch.zeros(1, dtype=F64), p.cumsum(0)]).pow(n).diff()
    torch.manual_seed(0)
    x = torch.multinomial(p, 20_000 * n, replacement=True)
    chosen = best_of_n.best_of(payoff.Draw(x, x.double()), n).x0
    share = torch.bincount(chosen, minlength=4) / 20_000
    torch.testing.assert_close(share.double(), best, rtol=0, atol=4 * 0.5 / 20_000**0.5)


def test_best_of_n_raises_the_mean_reward():
    torch.manual_seed(0)
    draw = sampler(2000)(WORLD.denoiser(SCHEDULE))
    best = best_of_n.best_of(draw, 4)
    assert len(best.x0) == 500 and torch.equal(REWARD(best.x0), best.reward)
    assert float(best.reward.mean()) > float(draw.reward.mean()) + 0.5
