import ast
import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rgdm_lib import payoff, rgdm, schedules
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import nets
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
    (function,) = (
        node for node in tree.body if getattr(node, "name", "") == "rgdm_on_one_screen"
    )
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
