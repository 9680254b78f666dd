"""Stepwise payoff samplers: particles are exact, best of K and the local ball are not."""

import math
from functools import cache

import pytest
import torch

from rgdm_lib import payoff, schedules, stepwise
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.worlds import mixtures
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Linear, Quadratic

F64 = torch.float64
DIFFUSION = Diffusion(schedules.cosine(50))
# A bowl of which the guess r(x0_hat) is far from the soft value: its particles need their weights.
LAW = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.4, [0.7, 0.3])
BOWL, TAU = Quadratic([0.4, 0.8]), 0.25


def starts(n, d=2):
    return torch.randn(n, d, dtype=F64)


def seeds(estimate, n=20):
    """Mean and standard error of an estimate over seeds."""
    found = []
    for seed in range(n):
        torch.manual_seed(seed)
        found.append(float(estimate()))
    found = torch.tensor(found, dtype=F64)
    return float(found.mean()), float(found.std() / n**0.5)


@cache
def tilted_sampler_mean(eta=1.0):
    """E[r] of the sampler's own law, tilted: weights on 200,000 finished samples."""
    torch.manual_seed(100)
    *_, last = DIFFUSION.sample(LAW.denoiser(DIFFUSION.schedule), starts(200_000), eta=eta)
    return float(payoff.from_data(last.x, BOWL, TAU).expectation(BOWL))


def particle_mean(n=2000, runs=16, diffusion=DIFFUSION, **options):
    denoiser = LAW.denoiser(diffusion.schedule)

    def estimate():
        w = stepwise.particles(denoiser, diffusion, starts(n), BOWL, TAU, **options)
        return w.expectation(w.reward)

    return seeds(estimate, runs)


def soft_value(x, t):
    return LAW.soft_value(x, t, DIFFUSION.schedule, BOWL, TAU)


def downward(x, t):  # noqa: ARG001
    """A value that says nothing about the reward; at t = T it still tilts the start."""
    return -0.15 * x[:, 1]


@pytest.mark.parametrize(
    ("value", "eta"), [(None, 1.0), (soft_value, 1.0), (downward, 1.0), (downward, 0.2)]
)
def test_particles_follow_the_samplers_law_tilted_for_any_value(value, eta):
    mean, error = particle_mean(value=value, eta=eta)
    assert abs(mean - tilted_sampler_mean(eta)) < 4 * error + 0.002
    assert error < 0.006


def test_without_the_initial_factor_the_same_test_fails(monkeypatch):
    """Little noise: x_T decides x_0, so a start weighted by exp(-v_T / tau) too much shows."""
    real, seen = stepwise.log_weights, []

    def forgetful(v, tau, log_base=None):
        if log_base is None:  # the check of the arguments: a run begins
            seen.clear()
        elif not seen:
            seen.append(log_base.sub_(v / tau))  # in place: minus the first values, from now on
        return real(v, tau, log_base)

    monkeypatch.setattr(stepwise, "log_weights", forgetful)
    mean, error = particle_mean(value=downward, eta=0.2)
    assert abs(mean - tilted_sampler_mean(0.2)) > 4 * error + 0.002


def test_particles_of_short_steps_follow_the_payoff():
    """The exact mean reward; the sampler's own error falls with T (0.009 at T = 50)."""
    mean, error = particle_mean(1000, 8, Diffusion(schedules.cosine(400)))
    assert abs(mean - LAW.frontier(BOWL, TAU)[0]) < 4 * error + 0.005
    assert error < 0.005


def test_weights_without_resampling_are_those_of_finished_samples():
    """Telescoping, to the last digit: whatever the values were, exp(r / tau) is left."""
    torch.manual_seed(0)
    w = stepwise.particles(
        LAW.denoiser(DIFFUSION.schedule), DIFFUSION, starts(500), BOWL, TAU, least_ess=0
    )
    torch.testing.assert_close(w.log_weight, payoff.log_weights(BOWL(w.x0), TAU))
    assert w.evaluations == 500 * 51


def test_the_soft_value_leaves_more_effective_samples_than_finished_ones_have():
    torch.manual_seed(0)
    w = stepwise.particles(
        LAW.denoiser(DIFFUSION.schedule), DIFFUSION, starts(4000), BOWL, TAU, value=soft_value
    )
    assert w.evaluations == 4000
    assert w.ess / 4000 > 0.5 > 2 * LAW.ess_share(BOWL, TAU)


# ---- the biased ones ---------------------------------------------------------------------


def test_best_of_one_is_the_reference_bit_for_bit():
    denoiser = LAW.denoiser(DIFFUSION.schedule)
    torch.manual_seed(0)
    x_T = starts(50)  # noqa: N806
    noise = torch.get_rng_state()
    short = DIFFUSION.timesteps(2)
    mine = stepwise.best_of_k(denoiser, DIFFUSION, x_T, BOWL, TAU, 1, steps=2)
    torch.set_rng_state(noise)
    *_, last = DIFFUSION.sample(denoiser, x_T, short)
    torch.testing.assert_close(mine.x0, last.x)


def test_best_of_many_with_the_soft_value_is_nearly_right_and_best_of_two_is_not():
    def mean(k):
        def estimate():
            draw = stepwise.best_of_k(
                LAW.denoiser(DIFFUSION.schedule), DIFFUSION, starts(500), BOWL, TAU, k,
                value=soft_value,
            )  # fmt: skip
            return draw.reward.mean()

        return seeds(estimate, 4)

    exact = tilted_sampler_mean()
    many, error = mean(64)
    assert abs(many - exact) < 0.06 and error < 0.02
    few, error = mean(2)
    assert few < exact - 0.1


def test_the_ball_has_covariance_radius_squared_over_d_plus_2():
    torch.manual_seed(0)
    for d, radius in ((1, 0.7), (2, 1.3), (5, 0.4)):
        centre = torch.arange(d, dtype=F64).expand(200_000, d)
        offset = (stepwise.in_ball(centre, radius) - centre) / radius
        assert float(offset.norm(dim=1).max()) <= 1
        covariance = offset.T @ offset / len(offset)
        torch.testing.assert_close(covariance * (d + 2), torch.eye(d, dtype=F64), atol=0.02, rtol=0)


def width(T, **options):  # noqa: N803
    """Width of N(0, 1/4) data in two dimensions under a reward of 0: nothing but the proposals."""
    torch.manual_seed(0)
    diffusion, law = Diffusion(schedules.cosine(T)), GaussianMixture([[0.0, 0.0]], 0.5)
    draw = stepwise.local_ball(
        law.denoiser(diffusion.schedule),
        diffusion,
        starts(4000),
        lambda x: 0 * x[:, 0],
        1.0,
        1,
        **options,
    )
    return float(draw.x0.std() / 0.5)


def test_the_rule_keeps_the_width_and_a_fixed_radius_does_not():
    assert abs(width(200) - 1) < 0.03
    fixed = [width(T, radius=0.2, centre="sample") for T in (25, 100, 400)]
    assert 1 < fixed[0] < fixed[1] < fixed[2] and fixed[2] > 1.5 * fixed[0]
    twice = width(200, centre="sample")  # the step's noise, and a ball of the same variance
    assert twice > 1.2


def test_the_rule_with_the_soft_value_moves_the_mean_as_the_payoff_does():
    law, slope, tau = GaussianMixture([[0.0, 0.0]], 0.5), Linear([1.0, 0.0]), 0.5
    diffusion = Diffusion(schedules.cosine(100))
    torch.manual_seed(0)
    draw = stepwise.local_ball(
        law.denoiser(diffusion.schedule), diffusion, starts(4000), slope, tau, 32,
        value=lambda x, t: law.soft_value(x, t, diffusion.schedule, slope, tau),
    )  # fmt: skip
    exact = float(law.tilt(slope, tau).means[0, 0])  # 0.5
    assert abs(float(draw.x0[:, 0].mean()) / exact - 1) < 0.1


# ---- what can go wrong -------------------------------------------------------------------

SAMPLERS = {
    "particles": stepwise.particles,
    "best_of_k": lambda *a: stepwise.best_of_k(*a, 4),
    "local_ball": lambda *a: stepwise.local_ball(*a, 4),
}
RING = mixtures.ring().denoiser(DIFFUSION.schedule)


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    torch.manual_seed(0)
    return SAMPLERS[request.param]


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_no_temperature(sampler, tau):
    with pytest.raises(ValueError, match="a temperature is a finite number above 0"):
        sampler(RING, DIFFUSION, starts(8), BOWL, tau)


def test_empty_batch(sampler):
    with pytest.raises(ValueError, match="one or more needed"):
        sampler(RING, DIFFUSION, starts(0), BOWL, 1.0)


@pytest.mark.parametrize(
    "wrong", [lambda x: BOWL(x)[:-1], lambda x: BOWL(x)[:, None], lambda x: BOWL(x).mean()]
)
def test_wrong_number_of_rewards(sampler, wrong):
    with pytest.raises(ValueError, match="reward of shape .*, the samples need"):
        sampler(RING, DIFFUSION, starts(8), wrong, 1.0)


def test_no_reward_is_finite():
    with pytest.raises(ValueError, match="none of 8 rewards is finite"):
        stepwise.particles(RING, DIFFUSION, starts(8), lambda x: x[:, 0] * math.nan, 1.0)
    for biased in (stepwise.best_of_k, stepwise.local_ball):
        draw = biased(RING, DIFFUSION, starts(8), lambda x: x[:, 0] * math.nan, 1.0, 4)
        assert bool(draw.reward.isnan().all()) and bool(draw.x0.isfinite().all())


def test_a_state_without_value_keeps_its_last_one_and_a_sample_without_has_weight_0():
    def left_half(x):
        return torch.where(x[:, 0] < 0, x[:, 1], math.nan)

    torch.manual_seed(0)
    w = stepwise.particles(RING, DIFFUSION, starts(4000), left_half, 1.0)
    right = w.x0[:, 0] >= 0
    assert bool(right.any()) and w.without_value == int(right.sum())
    assert bool((w.log_weight[right] == -math.inf).all())
    exact = payoff.from_data(mixtures.ring().sample(200_000), left_half, 1.0)
    mean = float(exact.expectation(exact.reward))
    assert abs(float(w.expectation(w.reward)) - mean) < 0.1


def test_all_weight_on_one_particle():
    with pytest.warns(UserWarning, match="only 1.0 effective samples of 64"):
        w = stepwise.particles(RING, DIFFUSION, starts(64), BOWL, 1e-7, least_ess=0)
    assert w.ess < 1.01


@pytest.mark.parametrize("k", [0, -1])
def test_no_proposals(k):
    for biased in (stepwise.best_of_k, stepwise.local_ball):
        with pytest.raises(ValueError, match=f"k = {k}: take one proposal or more"):
            biased(RING, DIFFUSION, starts(8), BOWL, 1.0, k)


@pytest.mark.parametrize("wrong", [{"radius": 0.0}, {"radius": math.nan}, {"centre": "x_t"}])
def test_balls_that_are_none(wrong):
    with pytest.raises(ValueError, match="radius = .*centre = "):
        stepwise.local_ball(RING, DIFFUSION, starts(8), BOWL, 1.0, 4, **wrong)


def test_a_network_is_in_eval_only_while_it_is_called():
    net = torch.nn.Dropout(0.5)

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, t, cond):  # noqa: ARG002
            assert not self.training
            return self.inner(x)

    spy = Spy().train()
    draw = stepwise.particles(spy, DIFFUSION, starts(100), Linear([0.1, 0.0]), 1.0)
    assert spy.training and draw.x0.shape == (100, 2)
