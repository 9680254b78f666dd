import ast
import copy
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rgdm_lib import payoff, rgdm, schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import mixtures, nets
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.rewards import Linear

SCHEDULE = schedules.cosine(40)
DIFFUSION = Diffusion(SCHEDULE)
WORLD = GaussianMixture([[-1.0], [1.0]], 0.3)
REWARD = Linear([1.0])


class Steered(nn.Module):
    """The world's ideal denoiser and a correction from few parameters: a model that starts exact.

    The payoff of a linear reward shifts mode weights and means: at each time a gain, a shift and a
    bend of x_t are enough to come close.
    """

    def __init__(self, world=WORLD):
        super().__init__()
        self.ideal = world.denoiser(SCHEDULE)
        self.weight = nn.Parameter(torch.zeros(SCHEDULE.T + 1, 3))

    def forward(self, x, t, cond=None):
        features = torch.cat([torch.ones_like(x), x, torch.tanh(3 * x)], 1)
        return self.ideal(x, t) + (features * self.weight[t]).sum(1, keepdim=True)


def x_T(n):
    return torch.randn(n, 1)


def sampler(n):
    return payoff.model_sampler(DIFFUSION, x_T, REWARD, n)


OPTIONS = {"steps": 300, "batch_size": 512, "lr": 0.02, "warmup": 20, "ema_decay": 0.98}


def test_one_round_reaches_the_exact_payoff():
    tau = WORLD.temperature(REWARD, 0.6)
    mean, _ = WORLD.frontier(REWARD, tau)
    torch.manual_seed(0)
    net = Steered()
    (only,) = rgdm.fit(net, DIFFUSION, sampler(4000), tau, **OPTIONS)
    assert only.step == 300 and only.beta == 1 / tau and only.path_ess is None
    assert only.evaluations == 4000 and abs(only.ess / 4000 - 0.6) < 0.04
    assert abs(only.reward - mean) < 4 / math.sqrt(only.ess)
    *_, last = DIFFUSION.sample(net, x_T(4000))
    assert abs(float(REWARD(last.x).mean()) - mean) < 0.2  # few parameters: not its last digit
    assert mean > 0.5  # the reference's mean is 0


def test_tempering_keeps_the_target_and_its_weights_are_right():
    tau = WORLD.temperature(REWARD, 0.2)
    mean, _ = WORLD.frontier(REWARD, tau)
    torch.manual_seed(0)
    net = Steered()
    rounds = list(rgdm.fit(net, DIFFUSION, sampler(2000), tau, rounds=3, least_ess=0.5, **OPTIONS))
    assert [r.evaluations for r in rounds] == [2000, 4000, 6000]
    assert [r.step for r in rounds] == [300, 600, 900]
    assert 0 < rounds[0].beta < rounds[1].beta <= rounds[2].beta == 1 / tau
    assert abs(rounds[0].ess - 1000) < 1  # as far as half of the samples' worth
    assert min(r.path_ess for r in rounds[1:]) > 0.3
    # whatever model they came from, the weights give the FIXED payoff's mean at each beta
    for r in rounds:
        exact, _ = WORLD.frontier(REWARD, 1 / r.beta)
        assert abs(r.reward - exact) < 4 / math.sqrt(r.ess)
    assert rounds[-1].ess > 2 * 0.2 * 6000  # more than one-shot weights on as many samples
    *_, last = DIFFUSION.sample(net, x_T(4000))
    assert abs(float(REWARD(last.x).mean()) - mean) < 0.1


def test_balance_weights_have_mean_one_under_the_mixture():
    """E_mixture[p_ref / mixture] = 1, and no weight is above N / n_0."""
    torch.manual_seed(0)
    reference, other = Steered(), Steered(GaussianMixture([[-0.8], [1.0]], 0.35, [0.3, 0.7]))
    pool = rgdm._Pool()
    pool.add(reference, sampler(4000)(reference))
    pool.add(other, sampler(12_000)(other))
    merged, log_base = pool.merged()
    assert len(merged.x0) == len(merged.reward) == len(log_base) == 16_000
    ratio = log_base.exp()
    assert float(ratio.max()) <= 4 + 1e-6
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(16_000)
    # the reference's mean of any function, from a pool that is mostly not the reference's
    value = merged.x0[:, 0].double()
    error = float((ratio * value).mean())
    assert abs(error) < 4 * float((ratio * value).std()) / math.sqrt(16_000)
    assert abs(float(value.mean())) > 0.1


def test_a_model_that_is_far_off_is_noticed_and_its_samples_dropped():
    class Lost(Steered):
        """Its average weights are nonsense after training: every round leads it astray."""

        def load_state_dict(self, state, *args, **kwargs):
            result = super().load_state_dict(state, *args, **kwargs)
            with torch.no_grad():
                self.weight[:, 0] += 2.0
            return result

    torch.manual_seed(0)
    tau = WORLD.temperature(REWARD, 0.2)
    options = OPTIONS | {"steps": 5}
    with pytest.warns(UserWarning, match="path ESS.*samples are dropped"):
        rounds = list(rgdm.fit(Lost(), DIFFUSION, sampler(1000), tau, rounds=4, **options))
    assert len(rounds) == 2 and rounds[-1].beta == 1 / tau
    assert rounds[-1].path_ess < rgdm.LEAST_PATH_ESS
    assert len(rounds[-1].weighted.x0) == 1000 and rounds[-1].evaluations == 2000


def test_a_fixed_set_with_its_own_batches():
    """What molecules need: a container without tensors, strata, and batches drawn by the caller."""

    class Boxed:
        def __init__(self, values):
            self.values = np.asarray(values)

        def __len__(self):
            return len(self.values)

        def subset(self, which):
            return Boxed(self.values[which])

    torch.manual_seed(0)
    boxed = Boxed(WORLD.sample(2000)[:, 0].double())
    reward = torch.from_numpy(boxed.values).clone()
    reward[:100] = float("nan")
    asked = []

    def batches(weighted):
        assert weighted.without_value == 100
        while True:
            drawn = weighted.resample(64)
            assert isinstance(drawn, Boxed)
            asked.append(len(drawn))
            yield torch.from_numpy(drawn.values).float()[:, None]

    strata = torch.arange(2000) % 3
    fixed = payoff.data_sampler(boxed, lambda box: reward, strata)
    (only,) = rgdm.fit(
        Steered(), DIFFUSION, fixed, 0.5, batches=batches, steps=7, lr=0.01, warmup=2
    )
    assert asked == [64] * 7
    shares = [float(only.weighted.log_weight[strata == s].exp().sum()) for s in range(3)]
    np.testing.assert_allclose(shares, np.bincount(strata) / 2000, rtol=1e-9)


def test_the_network_ends_with_the_averaged_weights_and_the_same_seed_gives_the_same():
    def run():
        torch.manual_seed(3)
        net = Steered()
        list(rgdm.fit(net, DIFFUSION, sampler(200), 0.5, steps=20, rounds=2, warmup=5))
        return copy.deepcopy(net.state_dict())

    first, second = run(), run()
    assert torch.equal(first["weight"], second["weight"])
    assert first["weight"].abs().max() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tau": 0.0}, "tau = 0.0"),
        ({"rounds": 0}, "rounds = 0"),
        ({"least_ess": 1.5}, "least_ess = 1.5"),
        ({"rounds": 2, "checkpoint": "state"}, "rounds = 1"),
    ],
)
def test_what_fit_refuses(change, message):
    options = {"tau": 0.5, "steps": 1} | change
    with pytest.raises(ValueError, match=message):
        next(rgdm.fit(Steered(), DIFFUSION, sampler(10), **options))


def test_tempering_needs_paths():
    x0 = WORLD.sample(50)
    with pytest.raises(ValueError, match="model_sampler"):
        next(rgdm.fit(Steered(), DIFFUSION, payoff.data_sampler(x0, REWARD), 0.5, rounds=2))


def test_one_screen_of_notebook_07_is_the_library():
    """The function as the notebook has it, on another world, tempering included."""
    source = (Path(__file__).parents[1] / "notebooks/src/07_rgdm.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    (function,) = (node for node in tree.body if getattr(node, "name", "") == "rgdm_on_one_screen")
    namespace = {
        "copy": copy, "math": math, "torch": torch, "Trainer": Trainer,
        "next_beta": payoff.next_beta,
        "log_weights": payoff.log_weights, "systematic_resample": payoff.systematic_resample,
    }  # fmt: skip
    exec(ast.unparse(function), namespace)
    schedule = schedules.cosine(20)
    diffusion, reward, tau = Diffusion(schedule), Linear([2.0, 1.0]), 0.5
    torch.manual_seed(0)
    start = nets.MLPDenoiser(2, schedule.alpha_bar, hidden=16, layers=1)
    torch.manual_seed(1)
    screen = namespace["rgdm_on_one_screen"](
        copy.deepcopy(start), diffusion, reward, tau, n=300, rounds=3, steps=15
    )
    torch.manual_seed(1)
    library = copy.deepcopy(start)
    draws = payoff.model_sampler(diffusion, lambda n: torch.randn(n, 2), reward, 300)
    options = {"steps": 15, "batch_size": 512, "lr": 1e-3, "ema_decay": 0.995}
    rounds = list(rgdm.fit(library, diffusion, draws, tau, rounds=3, **options))
    assert rounds[0].beta < 1 / tau  # it did temper
    for name, value in library.state_dict().items():
        torch.testing.assert_close(screen.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    moved = (library.out.weight - start.out.weight).abs().max()
    assert moved > 1e-3


# ---- samples without a value, sizes, the loss ----------------------------------------------


def pool_of(reference, second, reward, diffusion=DIFFUSION, n=1000, dim=1):
    """A pool with n samples of the reference and n of a second model."""
    draws = payoff.model_sampler(diffusion, lambda n: torch.randn(n, dim), reward, n)
    pool = rgdm._Pool()
    for model in (reference, second):
        pool.add(model, draws(model))
    return pool


@pytest.mark.parametrize("T, runs, share, band", [(20, 12, 0.77, 0.09), (200, 1, 0.98, 0.008)])
def test_path_ess_of_a_perfect_fit_is_one_only_as_T_grows(T, runs, share, band):  # noqa: N803
    """Exact denoisers of the ring and of its payoff, at an effective share of 40 %.

    One run of 1,000 has mean 0.76 and standard deviation 0.08 at T = 20 (24 seeds), 0.984 and
    0.001 at T = 200: the bands are four standard errors of the mean of the runs.
    """
    diffusion, world, reward = Diffusion(schedules.cosine(T)), mixtures.ring(), Linear([1.0, 0.5])
    tau = world.temperature(reward, 0.4)
    exact = [w.denoiser(diffusion.schedule) for w in (world, world.tilt(reward, tau))]
    torch.manual_seed(0)
    pools = [pool_of(*exact, reward, diffusion, dim=2) for _ in range(runs)]
    ess = np.mean([pool.path_ess(1 / tau) for pool in pools])
    assert abs(ess - share) < band


@pytest.mark.parametrize("without", [0.5, 0.95, 1.0])
def test_samples_without_a_value_are_misses_of_the_newest_model(without):
    """The payoff distribution has none of them, so a model that makes them fits it badly."""
    same = WORLD.denoiser(SCHEDULE)
    torch.manual_seed(0)
    pool = pool_of(same, same, lambda x: torch.zeros(len(x)))
    pool.draws[-1].reward[: int(without * 1000)] = float("nan")
    assert pool.path_ess(1.0) == pytest.approx(1 - without, abs=1e-9)


def sometimes_valued(valued_share):
    """A sampler whose rewards are NaN but for this share of the samples, one share a round."""
    shares = iter(valued_share)

    def sample(denoiser):
        share = next(shares)

        def reward(x):
            value = REWARD(x)
            value[int(share * len(x)) :] = float("nan")
            return value

        return payoff.model_sampler(DIFFUSION, x_T, reward, 1000)(denoiser)

    return sample


def test_least_ess_is_a_share_of_the_samples_with_a_value():
    torch.manual_seed(0)
    options = OPTIONS | {"steps": 2}
    fit = rgdm.fit(Steered(), DIFFUSION, sometimes_valued([0.5, 0.5]), 0.05, rounds=2, **options)
    first = next(fit)
    assert first.weighted.without_value == 500
    assert first.ess == pytest.approx(0.3 * 500, rel=1e-3)


@pytest.mark.filterwarnings("ignore:only:UserWarning")
def test_a_round_without_any_value_is_dropped():
    torch.manual_seed(0)
    options = OPTIONS | {"steps": 2}
    with pytest.warns(UserWarning, match=r"path ESS 0\.0%"):
        rounds = list(
            rgdm.fit(Steered(), DIFFUSION, sometimes_valued([1, 0]), 0.5, rounds=3, **options)
        )
    assert [r.path_ess for r in rounds] == [None, 0.0]
    assert len(rounds[-1].weighted.x0) == 1000 and rounds[-1].beta == 2


def test_tempering_goes_on_when_some_paths_have_no_log_probability():
    def lossy(denoiser):
        draw = sampler(1000)(denoiser)

        def log_prob(model):
            values = draw.log_prob(model)
            values[:7] = float("nan")
            values[7:10] = -float("inf")
            return values

        return payoff.Draw(draw.x0, draw.reward, None, log_prob)

    torch.manual_seed(0)
    tau, options = WORLD.temperature(REWARD, 0.2), OPTIONS | {"steps": 100}
    rounds = list(rgdm.fit(Steered(), DIFFUSION, lossy, tau, rounds=2, least_ess=0.5, **options))
    assert [r.weighted.without_value for r in rounds] == [10, 20]
    assert rounds[0].ess == pytest.approx(0.5 * 990, rel=1e-3) and rounds[1].path_ess > 0.3
    for r in rounds:
        exact, _ = WORLD.frontier(REWARD, 1 / r.beta)
        assert abs(r.reward - exact) < 4 / math.sqrt(r.ess)


def test_rewards_and_log_probabilities_of_the_wrong_size_stop_fit():
    def of_shape(reward_shape, log_prob_shape):
        def sample(denoiser):
            return payoff.Draw(
                torch.zeros(6, 1), torch.zeros(reward_shape), None,
                lambda model: torch.zeros(log_prob_shape),
            )  # fmt: skip

        return sample

    for shapes, message in (
        (((6, 1), (6,)), r"reward of shape \(6, 1\), the samples need \(6,\)"),
        (((6,), (6, 1)), r"log_prob of shape \(6, 1\), the samples need \(6,\)"),
        (((6,), (1,)), r"log_prob of shape \(1,\), the samples need \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            next(rgdm.fit(Steered(), DIFFUSION, of_shape(*shapes), 0.5, rounds=2))


def test_fit_trains_by_the_loss_it_is_given():
    """Default: the denoising loss; else the caller's, on the resampled x0."""
    p = torch.zeros(SCHEDULE.T + 1)
    p[7] = 1.0
    at_7 = partial(DIFFUSION.loss, weighting="vlb", times=p)
    moved = []
    for options in ({}, {"loss": at_7}):
        torch.manual_seed(0)
        net = Steered()
        list(rgdm.fit(net, DIFFUSION, sampler(100), 0.5, steps=5, lr=0.01, warmup=1, **options))
        moved.append(set(torch.nonzero(net.weight.detach().abs().sum(1))[:, 0].tolist()))
    assert moved[1] == {7} and len(moved[0]) > 30


class Dropout(nn.Module):
    """Noise in its output in training, none in eval; it notes the modes it was called in."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t, cond=None):
        return self.drop(self.scale * torch.ones_like(x))


def test_samples_of_a_network_in_training_mode_are_judged_without_dropout():
    torch.manual_seed(0)
    net = Dropout().train()
    draw = sampler(50)(net)
    first = draw.log_prob(net)
    assert torch.equal(first, draw.log_prob(net)) and torch.equal(first, draw.log_prob(net.eval()))
