"""The rivals against mixtures whose conditional laws and soft values are exact."""

import math

import pytest
import torch

from rgdm_lib import schedules
from rgdm_lib.baselines import classifier_guidance, conditional, value_guidance
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds.mixtures import GaussianMixture, ring
from rgdm_lib.worlds.nets import MLPDenoiser, TimeMLP
from rgdm_lib.worlds.rewards import HalfSpace, Indicator, Linear

F64 = torch.float64
T = 50
DIFFUSION = Diffusion(schedules.cosine(T))
WORLD = ring(std=0.4)
LABEL = torch.arange(8) // 2  # four classes of two neighbouring modes


def of_class(y):
    chosen = y == LABEL
    return GaussianMixture(WORLD.means[chosen], 0.4)


def log_posterior(y):
    """log p(y | x_t), exact."""

    def potential(x_t, t):
        log_share = WORLD._posterior(x_t, DIFFUSION.schedule.alpha_bar[t])[0]
        return torch.logsumexp(log_share[:, y == LABEL], 1)

    return potential


@pytest.fixture
def points():
    torch.manual_seed(0)
    t = torch.randint(1, T + 1, (200,))
    x0 = WORLD.sample(200).double()
    return DIFFUSION.q_sample(x0, t, torch.randn_like(x0)), t


def test_exact_classifier_guidance_is_the_conditional_denoiser(points):
    x_t, t = points
    base, y = WORLD.denoiser(DIFFUSION.schedule), 2
    mine = classifier_guidance.guided(base, log_posterior(y), DIFFUSION)(x_t, t)
    exact = of_class(y).denoiser(DIFFUSION.schedule)(x_t, t)
    torch.testing.assert_close(mine, exact, rtol=0, atol=1e-10)
    twice = classifier_guidance.guided(base, log_posterior(y), DIFFUSION, scale=2.0)(x_t, t)
    torch.testing.assert_close(twice - exact, exact - base(x_t, t), rtol=0, atol=1e-10)


REWARDS = [Linear([0.6, -0.3]), Indicator(HalfSpace([1.0, 0.5], 0.7), 2.0)]


@pytest.mark.parametrize("reward", REWARDS)
def test_exact_value_guidance_is_the_payoffs_denoiser(points, reward):
    x_t, t = points
    tau = 0.5

    def potential(x, t):
        return WORLD.soft_value(x, t, DIFFUSION.schedule, reward, tau) / tau

    base = WORLD.denoiser(DIFFUSION.schedule)
    mine = classifier_guidance.guided(base, potential, DIFFUSION)(x_t, t)
    exact = WORLD.tilt(reward, tau).denoiser(DIFFUSION.schedule)(x_t, t)
    torch.testing.assert_close(mine, exact, rtol=0, atol=1e-9)


def test_guidance_follows_dtype_and_shape_and_is_no_graph():
    base = lambda x_t, t, cond: torch.zeros_like(x_t)  # noqa: E731
    x_t, t = torch.randn(5, 3, 2), torch.randint(1, T + 1, (5,))
    eps = classifier_guidance.guided(base, lambda x, t: x.sum((1, 2)), DIFFUSION)(x_t, t)
    noise = (1 - DIFFUSION.schedule.alpha_bar[t]).sqrt().float()[:, None, None]
    torch.testing.assert_close(eps, -noise.expand(5, 3, 2))
    assert not eps.requires_grad


def mean_is_zero(gradient):
    """Within four standard errors."""
    error = gradient.std() / len(gradient) ** 0.5
    return bool(gradient.mean().abs() < 4 * error)


class Shifted(torch.nn.Module):
    """An exact logit plus a number that training would move."""

    def __init__(self, exact):
        super().__init__()
        self.exact, self.calls = exact, 0

    def forward(self, x_t, t):
        self.shift = torch.zeros(len(x_t), 1, dtype=x_t.dtype, requires_grad=True)
        self.features = (x_t, t)
        return self.exact(x_t, t) + self.shift


def logit_of_value(reward, tau, best):
    def exact(x_t, t):
        log_f = WORLD.soft_value(x_t, t, DIFFUSION.schedule, reward, tau) / tau - best / tau
        return (log_f - torch.log1p(-log_f.exp().clamp(max=1 - 1e-12)))[:, None]

    return exact


def test_the_value_that_training_finds_is_the_soft_value():
    """At the exact value the loss's gradient has mean zero, at that of another tau it has not."""
    reward, tau = Indicator(HalfSpace([1.0, 0.5], 0.7), 2.0), 1.5
    torch.manual_seed(0)
    x0 = WORLD.sample(40_000).double()
    for assumed, right in ((tau, True), (1 / tau, False)):
        network = Shifted(logit_of_value(reward, assumed, 2.0))
        loss = value_guidance.loss(DIFFUSION, network, x0, reward(x0), tau, best=2.0)
        (gradient,) = torch.autograd.grad(loss.sum(), network.shift)
        assert mean_is_zero(gradient[:, 0]) == right
        assert mean_is_zero(gradient[:, 0] * network.features[0][:, 0]) == right


def test_the_learned_log_weight_is_the_soft_value_over_tau_less_the_best(points):
    x_t, t = points
    reward, tau = Indicator(HalfSpace([1.0, 0.5], 0.7), 2.0), 1.5
    network = Shifted(logit_of_value(reward, tau, 2.0))
    found = tau * value_guidance.log_weight(network)(x_t, t).detach() + 2.0
    exact = WORLD.soft_value(x_t, t, DIFFUSION.schedule, reward, tau)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_the_classifier_that_training_finds_is_exact():
    torch.manual_seed(0)
    k = torch.randint(8, (40_000,))
    x0 = WORLD.means[k] + 0.4 * torch.randn(40_000, 2, dtype=F64)
    exact = Shifted(lambda x, t: torch.stack([log_posterior(y)(x, t) for y in range(4)], 1))
    for label, right in ((LABEL[k], True), (LABEL[k].flip(0), False)):
        logits = []
        wrapped = lambda x, t: logits.append(exact(x, t)) or logits[-1]  # noqa: E731, B023
        loss = classifier_guidance.loss(DIFFUSION, wrapped, x0, label)
        (gradient,) = torch.autograd.grad(loss.sum(), logits[0])
        x_t = exact.features[0]
        assert all(mean_is_zero(gradient[:, y] * x_t[:, 0]) for y in range(4)) == right


def test_log_probability_is_normalised(points):
    x_t, t = points
    torch.manual_seed(0)
    classifier = TimeMLP(2, T, 4).double()
    parts = [classifier_guidance.log_probability(classifier, y)(x_t, t).exp() for y in range(4)]
    torch.testing.assert_close(sum(parts), torch.ones(len(x_t), dtype=F64))


def test_classifier_free_mixes_two_answers_of_one_network(points):
    x_t, t = points
    torch.manual_seed(0)
    network = MLPDenoiser(2, DIFFUSION.schedule.alpha_bar, cond_dim=3).double()
    torch.nn.init.normal_(network.out.weight, std=0.1)
    cond = torch.randn(len(x_t), 2, dtype=F64)
    with_it = network(x_t, t, torch.cat([cond, torch.ones(len(x_t), 1)], 1))
    without = network(x_t, t, torch.zeros(len(x_t), 3, dtype=F64))
    for scale in (0.0, 1.0, 2.5):
        mine = conditional.classifier_free(network, scale)(x_t, t, cond)
        expected = (1 - scale) * without + scale * with_it
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


def test_conditions_are_dropped_as_often_as_asked():
    seen = []

    def denoiser(x_t, t, cond):
        seen.append(cond)
        return x_t

    torch.manual_seed(0)
    x0, cond = torch.randn(20_000, 2), torch.randn(20_000, 3)
    assert conditional.loss(DIFFUSION, denoiser, x0, cond, drop=0.2).shape == (20_000,)
    given = seen[0][:, 3]
    assert set(given.tolist()) == {0.0, 1.0}
    assert abs(float(given.mean()) - 0.8) < 4 * math.sqrt(0.16 / 20_000)
    torch.testing.assert_close(seen[0][:, :3], cond * given[:, None])


def test_what_cannot_be_is_refused():
    x0 = torch.randn(4, 2)
    net = TimeMLP(2, T, 1)
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="guidance scale is a finite number"):
            conditional.classifier_free(net, scale)
        with pytest.raises(ValueError, match="guidance scale is a finite number"):
            classifier_guidance.guided(net, net, DIFFUSION, scale)
    with pytest.raises(ValueError, match=r"4 samples need conditions \(4, c\), not \(3, 2\)"):
        conditional.loss(DIFFUSION, net, x0, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="drop = 1.5"):
        conditional.loss(DIFFUSION, net, x0, torch.zeros(4, 2), drop=1.5)
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature is a finite number above 0"):
            value_guidance.loss(DIFFUSION, net, x0, torch.zeros(4), tau, 0.0)
    with pytest.raises(ValueError, match=r"rewards of shape \(3,\), the samples need \(4,\)"):
        value_guidance.loss(DIFFUSION, net, x0, torch.zeros(3), 1.0, 0.0)
    with pytest.raises(ValueError, match="best = 0.0: rewards reach 1.0"):
        value_guidance.loss(DIFFUSION, net, x0, torch.ones(4), 1.0, 0.0)
