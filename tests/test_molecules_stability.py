"""Stability as a reward: the temperature, the targets, and the experiment in preset quick."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from rgdm_lib import differences
from rgdm_lib.molecules import metrics, stability
from rgdm_lib.molecules.data import load_set
from rgdm_lib.molecules.experiments import STRENGTHENED
from rgdm_lib.molecules.model import load_model
from rgdm_lib.payoff import Draw


def _coins(*shares: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and strata: of each stratum (how many 1, how many 0)."""
    reward = [torch.tensor([1.0] * one + [0.0] * none) for one, none in shares]
    strata = [torch.full((len(r),), k) for k, r in enumerate(reward)]
    return torch.cat(reward), torch.cat(strata)


def test_temperature_of_the_odds():
    """exp(1 / tau) multiplies the odds: 3 : 1 to 9 : 1 is a factor of 3."""
    assert stability.odds_temperature(0.75, 0.9) == pytest.approx(1 / math.log(3))
    for share, wanted in ((0.9, 0.75), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="a temperature only raises a share"):
            stability.odds_temperature(share, wanted)


def test_temperature_for_a_share_without_strata_is_that_of_the_odds():
    reward, _ = _coins((70, 30))
    reward = torch.cat([reward, torch.tensor([math.nan])])
    tau = stability.temperature_for_share(reward, 0.95)
    assert tau == pytest.approx(stability.odds_temperature(0.7, 0.95), rel=1e-9)
    assert float(Draw(reward, reward).weigh(tau).expectation(reward)) == pytest.approx(0.95)


def test_temperature_for_a_share_with_strata_is_colder():
    """Two strata of 10 and 90 %: their mean at exp(1 / tau) = 9 is (0.5 + 81 / 82) / 2."""
    reward, strata = _coins((10, 90), (90, 10))
    wanted = (0.5 + 81 / 82) / 2
    tau = stability.temperature_for_share(reward, wanted, strata)
    assert tau == pytest.approx(1 / math.log(9), rel=1e-9)
    assert tau < 0.9 * stability.odds_temperature(0.5, wanted)


def test_a_share_that_cannot_be_reached_is_refused():
    reward, strata = _coins((0, 50), (40, 10))
    with pytest.raises(ValueError, match="some strata hold no sample of reward 1"):
        stability.temperature_for_share(reward, 0.6, strata)
    with pytest.raises(ValueError, match="not all 0 or 1"):
        stability.temperature_for_share(reward / 2, 0.6)


def test_the_payoff_has_the_stated_share_and_the_sizes_of_the_base():
    """By EDM's rule on the positions, not by a column of the file."""
    draw = stability.stability_draw()
    stable = torch.from_numpy(metrics.stability_edm(draw.x0)[0])
    valued = draw.reward.isfinite()
    assert bool((draw.reward[valued] == stable[valued]).all())
    assert 0 < int((~valued).sum()) < 50 and bool(stable[~valued].all())  # the ones in pieces
    targets = stability.stability_targets(draw)
    for weighted in targets.values():
        weight = weighted.log_weight.exp()
        assert float(weight[~valued].sum()) == 0
        for n in (9, 14, 17):
            inside = draw.strata == n
            assert float(weight[inside].sum()) == pytest.approx(float(inside.double().mean()))
    control = targets["control"].expectation(stable)
    assert float(control) == pytest.approx(float(stable.double().mean()), abs=0.002)
    assert float(targets["guided"].expectation(stable)) == pytest.approx(stability.WANTED)
    assert stability.payoff_share() == pytest.approx(stability.WANTED)


def test_names():
    assert stability.stability_name("control", 0) == "stability_heavy7_control_seed0_samples.npz"
    guided = stability.stability_name("guided", 2, ending=".safetensors")
    assert guided == "stability_heavy7_seed2.safetensors"
    with pytest.raises(ValueError, match="no kind 'base': choose from control, guided"):
        stability.stability_name("base", 0)


def _distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    with torch.no_grad():
        return sum(float((p - q).square().sum()) for p, q in pairs) ** 0.5


def test_experiment_control_from_the_base_and_guided_from_the_control(tmp_path, monkeypatch):
    paths = stability.guide_stability("quick", tmp_path, seeds=(0, 1))
    assert [len(load_set(path)) for path in paths] == 4 * [40]
    assert all(path.parent == tmp_path for path in paths)

    def network(kind: str, seed: int) -> torch.nn.Module:
        return load_model(tmp_path / stability.stability_name(kind, seed, ending=".safetensors"))[0]

    base, control, guided = load_model()[0], network("control", 0), network("guided", 0)
    steps = [_distance(a, b) for a, b in pairwise((base, control, guided))]
    assert 0 < max(steps) < 1.3 * min(steps)
    assert _distance(base, guided) > 1.2 * steps[0]
    assert _distance(base, network("control", 1)) < 1.3 * steps[0]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    content = paths[-1].read_bytes()
    paths[-1].unlink()
    stability.guide_stability("quick", tmp_path, seeds=(0, 1))
    assert paths[-1].read_bytes() == content  # made again, to the bit
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert all(name.startswith("stability_heavy7_seed1") for name in changed)  # the rest stays
    # 40 samples in 10 steps hold hardly a stable one: their levels are made up here
    monkeypatch.setattr(stability, "reward_level", lambda reward, binary: next(levels))

    def along_and_look(start, difference):
        strength, *pair = difference
        roles = zip((start, *pair), (base, guided, control), strict=True)
        assert max(_distance(*pair) for pair in roles) == 0  # each network where it belongs
        return differences.along(start, difference)

    monkeypatch.setattr(stability, "along", along_and_look)
    aim = math.log(0.95 / 0.05)
    levels = iter([aim - 2, 0.5, 0.0])  # base, guided, control
    with pytest.raises(StopIteration):  # no level of the trial: stopped after it
        stability.strengthen_stability("quick", tmp_path, seeds=(0,))
    (trial,) = tmp_path.glob("*_trial.npz")
    assert load_set(trial).property("strength") == pytest.approx(np.full(40, 4.0), rel=1e-3)
    made = trial.stat().st_mtime_ns
    # the trial, looked at for its strength and for its level, went half as far as it should
    levels = iter([aim - 2, 0.5, 0.0, aim - 1, aim - 1])
    (path,) = stability.strengthen_stability("quick", tmp_path, seeds=(0,))
    assert trial.stat().st_mtime_ns == made
    assert path == tmp_path / stability.stability_name("guided", 0, ending=STRENGTHENED)
    assert load_set(path).property("strength") == pytest.approx(np.full(40, 8.0), rel=1e-3)
    sizes = [sorted(load_set(file).n_atoms.tolist()) for file in (paths[1], trial, path)]
    assert len(set(map(tuple, sizes))) == 3  # noise of its own for each
    levels = iter([aim - 2, -0.1, 0.0])
    path.unlink()
    with pytest.raises(ValueError, match="reward -0.1 of the guided model, 0 of its control"):
        stability.strengthen_stability("quick", tmp_path, seeds=(0,))
