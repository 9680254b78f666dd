"""Rivals of the QED-guided models: each learns from the reference's rewards, resumed, refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rgdm_lib.course import experiments as registry
from rgdm_lib.molecules import regressors, rivals
from rgdm_lib.molecules.data import encode, load_qm9, load_set
from rgdm_lib.molecules.model import molecule_diffusion
from rgdm_lib.training import load_tensors

NAMES = tuple(rivals.RIVALS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("rivals")
    return out, dict(zip(NAMES, rivals.compare("quick", out, seeds=(0,)), strict=True))


def test_a_set_of_each_at_equal_evaluations(made):
    _, paths = made
    sets = {name: load_set(path) for name, path in paths.items()}
    sizes = sets["value"].n_atoms.tolist()
    for name, molecules in sets.items():
        assert len(molecules) == 40 and molecules.n_atoms.tolist() == sizes, name  # same draws
        evaluations = 80 if name in ("reward_weighted", "ddpo") else 10_000
        assert set(molecules.property("evaluations")) == {evaluations}, name
    positions = [molecules.positions for molecules in sets.values()]
    assert all(not np.array_equal(positions[0], other) for other in positions[1:])


def test_rgdm_trains_on_the_payoffs_weights_of_all_samples(tmp_path, monkeypatch):
    seen, right = [], rivals.weighted_batches

    def batches(size):
        def of(target):
            seen.append(target)
            return right(size)(target)

        return of

    monkeypatch.setattr(rivals, "weighted_batches", batches)
    rivals.compare("quick", tmp_path, ("rgdm",), (0,))
    (target,) = seen
    draw = rivals.payoff_draw("model", rivals.DATA["quick"])
    wanted = rivals.targets(draw)[rivals.SHARE]
    assert torch.equal(target.log_weight, wanted.log_weight) and len(target.x0) == len(draw.x0)
    assert float(target.expectation(target.reward)) > float(draw.reward.nanmean()) + 0.03


def test_ddpo_walks_paths_of_one_size_spaced_as_the_samplers_steps(tmp_path, monkeypatch):
    calls = []

    def fit(network, diffusion, noise, reward, **options):
        x = [noise(7) for _ in range(20)]
        for one in x:
            assert one.shape[0] == 7 and one.shape[2] == 9
            assert float(one[..., :3].mean(1).abs().max()) < 1e-6  # no drift of the centre
        assert len({one.shape[1] for one in x}) > 3  # a size a round, drawn from the data's
        assert diffusion.timesteps(4) == molecule_diffusion().timesteps(4, 2.0)
        calls.append(options)
        return iter(())

    monkeypatch.setattr(rivals.policy_gradient, "fit", fit)
    rivals.compare("quick", tmp_path, ("ddpo",), (0,))
    (options,) = calls
    assert options["clip_ratio"] == 0.2 and options["normalise"] and "tau" not in options


def test_what_is_there_is_not_made_again_and_what_is_lost_is_the_same_again(made, monkeypatch):
    out, paths = made
    content = paths["reward_weighted"].read_bytes()
    paths["reward_weighted"].unlink()
    rivals.compare("quick", out, seeds=(0,))
    assert paths["reward_weighted"].read_bytes() == content

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(rivals, "RIVALS", dict.fromkeys(NAMES, never))
    assert rivals.compare("quick", out, seeds=(0,)) == list(paths.values())
    with pytest.raises(ValueError, match="no rival 'ppo': choose from rgdm, conditional, value, "):
        rivals.compare("quick", out, rivals=("ppo",))


def test_the_condition_is_the_payoffs_reward_of_that_size(tmp_path, monkeypatch):
    seen = {}

    def sample(denoiser, sizes, asked, preset):
        seen.update(sizes=sizes, asked=asked)
        return load_qm9().subset(np.zeros(len(sizes), int))

    monkeypatch.setattr(rivals, "sample_conditional", sample)
    monkeypatch.setattr(rivals, "write_scored", lambda *_: None)
    monkeypatch.setitem(rivals.GUIDANCE, "quick", {"steps": 1, "batch": 2})
    n = dict.fromkeys(rivals.GUIDED_SAMPLES["quick"], 4000)
    monkeypatch.setitem(rivals.GUIDED_SAMPLES, "quick", n)
    monkeypatch.setattr(rivals, "draw_sizes", lambda data, n: torch.tensor([12, 18]).repeat(n // 2))
    rivals.compare("quick", tmp_path, ("conditional",), (0,))
    start = rivals._Start("quick", tmp_path, 1e-3)
    reward, target = start.draw.reward, start.target
    valued = reward[reward.isfinite()]
    for size in (12, 18):
        here = start.draw.strata == size
        weight = target.log_weight.exp() * here
        wanted = float((weight * reward.nan_to_num()).sum() / weight.sum())
        asked = seen["asked"][seen["sizes"] == size] * valued.std() + valued.mean()
        assert float(asked.mean()) == pytest.approx(wanted, abs=1e-3)
        assert wanted > float(reward[here].nanmean()) + 0.01


def test_weights_of_tilt_matching_have_mean_1_in_each_size_and_none_where_there_is_no_value(
    tmp_path, monkeypatch
):
    seen = []

    def loss(diffusion, network, reference, x0, weight, times):
        seen.append((x0.shape[1], weight, times))
        return 0 * sum(p.sum() for p in network.parameters())

    monkeypatch.setattr(rivals.tilt_matching, "loss", loss)
    monkeypatch.setitem(rivals.GUIDANCE, "quick", {"steps": 12, "batch": 4000})
    rivals.compare("quick", tmp_path, ("tilt_matching",), (0,))
    start = rivals._Start("quick", tmp_path, 1e-3)
    valued = float(start.draw.reward.isfinite().double().mean())
    assert len({size for size, *_ in seen}) > 2
    for _, weight, times in seen:
        assert float(weight.mean()) == pytest.approx(1, abs=0.1) and times is not None
        assert 0.05 < float((weight == 0).double().mean()) < 1 - valued + 0.4


def test_tilt_matching_leaves_a_size_without_any_value_as_it_is(tmp_path, monkeypatch):
    draw = rivals.payoff_draw("model", rivals.DATA["quick"])
    lost = int(draw.strata.mode().values)
    reward = torch.where(draw.strata == lost, torch.nan, draw.reward)
    seen = []

    def loss(diffusion, network, reference, x0, weight, times):
        seen.append((x0.shape[1], weight))
        return 0 * sum(p.sum() for p in network.parameters())

    monkeypatch.setattr(rivals, "payoff_draw", lambda *_: replace(draw, reward=reward))
    monkeypatch.setattr(rivals.tilt_matching, "loss", loss)
    monkeypatch.setitem(rivals.GUIDANCE, "quick", {"steps": 12, "batch": 64})
    rivals.compare("quick", tmp_path, ("tilt_matching",), (0,))
    assert {float(w) for size, weight in seen if size == lost for w in weight} == {1.0}
    assert any(float(weight.std()) > 0 for size, weight in seen if size != lost)


def test_the_value_network_heeds_the_time_but_neither_place_nor_direction_nor_order():
    torch.manual_seed(0)
    alpha_bar = molecule_diffusion().schedule.alpha_bar
    network = regressors.NoisyRegressor(alpha_bar, hidden=16, edge=8, layers=2)
    x, t = encode(load_qm9(), 12)[:5], torch.full((5,), 300)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    order = torch.randperm(12)
    moved = torch.cat([x[..., :3] @ rotation + 2.0, x[..., 3:]], -1)[:, order]
    value = network(x, t).detach()
    assert value.shape == (5, 1)
    torch.testing.assert_close(network(moved, t).detach(), value, atol=1e-5, rtol=0)
    assert float((network(x, t + 200).detach() - value).abs().min()) > 1e-4
    weights = network.state_dict()
    assert "alpha_bar" not in weights  # the schedule is not what was learned


def test_networks_moved_from_where_they_began(made):
    out, _ = made
    base = rivals._Start("quick", out, 1e-3).base().state_dict()
    path = out / rivals.rival_name("tilt_matching", 0, ending=".safetensors")
    moved = load_tensors(path)[0]
    assert any((moved[key].float() - value).abs().max() > 1e-4 for key, value in base.items())


def test_the_experiment_is_registered():
    assert registry.load("molecules-rivals") is rivals.compare
