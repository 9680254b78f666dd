"""The experiment worlds-rgdm, in preset quick: what it measures, resumed, refused."""

import json
import math

import pytest
import torch

from rgdm_lib import accuracy
from rgdm_lib._kept import kept
from rgdm_lib.diffusion import Diffusion
from rgdm_lib.schedules import cosine
from rgdm_lib.worlds.sampling import sampler_of


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return accuracy.measure("quick", tmp_path_factory.mktemp("worlds"))


def test_a_table_of_all_worlds(table):
    content = json.loads(table.read_text())
    assert list(content["worlds"]) == sorted(accuracy.TARGETS)
    assert content["fit"]["ring"] == {"steps": 30, "batch": 64, "noise": 0.1}
    assert content["fit"]["mixture8d"]["steps"] == content["steps"] == 20
    for name, target in accuracy.TARGETS.items():
        by_share = content["worlds"][name]
        assert sorted(by_share) == sorted(str(share) for share in target.shares)
        for share, found in by_share.items():
            if name == "indicator":
                assert "exact_denoiser" not in found
            else:
                assert found["exact_denoiser"]["over_floor"] < found["base"]["over_floor"]
            assert found["exact_reward"] == target.make().frontier(float(share))[0]
            (run,) = found["runs"]
            assert run["evaluations"] == 2 * int(200 * target.factor) and run["ess"] > 1
            assert run["over_floor"] > 0 and run["pool_over_floor"] > 0


def test_what_is_there_is_not_made_again(table, monkeypatch):
    def never(*_):
        raise AssertionError("made again")

    before = table.read_bytes()
    monkeypatch.setattr(accuracy, "_run", never)
    monkeypatch.setattr(accuracy, "_beside", never)
    assert accuracy.measure("quick", table.parent).read_bytes() == before


def test_the_judge_tells_exact_samples_from_the_reference():
    world = accuracy.TARGETS["indicator"].make()
    size = {"judged": 2000, "draws": 3}
    torch.manual_seed(0)
    right = accuracy._judge(world, 10, world.exact(10).sample, size)
    wrong = accuracy._judge(world, 10, world.reference.sample, size)
    reward, kl = world.frontier(10)
    assert 0.5 < right["over_floor"] < 1.6 and wrong["over_floor"] > 5
    assert right["reward"] == pytest.approx(reward, abs=0.03)
    assert right["kl"] == pytest.approx(kl, abs=0.2) and abs(wrong["kl"]) < 0.1
    diffusion = Diffusion(cosine(50))
    steps = sampler_of(diffusion, world.exact(10).denoiser(diffusion.schedule), 2)
    assert accuracy._judge(world, 10, steps, size)["reward"] == pytest.approx(reward, abs=0.05)


def test_worlds_of_one_reference_share_a_network(table):
    made = sorted(path.name for path in table.parent.glob("base_*"))
    assert made == [f"base_{name}.safetensors" for name in ("mixture8d", "rare", "ring")]
    ring, indicator = (accuracy.TARGETS[name].make().reference for name in ("ring", "indicator"))
    assert torch.equal(ring.means, indicator.means) and torch.equal(ring.weights, indicator.weights)


@pytest.mark.parametrize("seen", [None, 0.38])
def test_points_to_pretrain_on_have_the_reference_as_their_weighted_law(seen):
    world = accuracy.TARGETS["rare"].make()
    torch.manual_seed(0)
    x, weight = accuracy.weighted_points(world, 100_000, seen)
    rare = world.reference.responsibilities(x)[:, 0].double()
    assert 0 <= float(weight.min()) and float(weight.max()) <= 2
    assert float(weight.mean()) == pytest.approx(1, abs=0.01)
    assert float((rare > 0.5).double().mean()) == pytest.approx(0.25 if seen else 0.001, rel=0.4)
    mass, error = float((weight * rare).mean()), float((weight * rare).std()) / len(x) ** 0.5
    assert mass == pytest.approx(1e-3, abs=4 * error) and error < (1e-5 if seen else 2e-4)
    mean = (weight[:, None] * x).double().mean(0)
    assert mean.tolist() == pytest.approx(
        (world.reference.weights @ world.reference.means).tolist(), abs=0.02
    )


def test_points_of_weight_0_teach_nothing(tmp_path, monkeypatch):
    target, size = accuracy.TARGETS["rare"], accuracy.PRESETS["quick"]
    points = accuracy.weighted_points
    monkeypatch.setattr(accuracy, "weighted_points", lambda *_: (points(*_)[0], torch.zeros(1024)))
    net = accuracy._pretrained(target, target.make(), Diffusion(cosine(20)), size, tmp_path)
    assert bool((net.out.weight == 0).all())  # as it started


def test_an_unknown_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no world 'cube'; there are ring, indicator, rare"):
        accuracy.measure("quick", tmp_path, world="cube")


@pytest.mark.parametrize(("T", "noise"), [(400, 0.1), (4000, 0.05)])  # less noise, a finer grid
def test_half_of_the_times_are_where_edges_are_made(T, noise):  # noqa: N803
    p = accuracy.training_times(Diffusion(cosine(T)), noise)
    alpha_bar = cosine(T).alpha_bar[1:]
    ratio = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert p[0] == 0 and float(p.sum()) == pytest.approx(1)
    assert float(p[1:].min()) > 0.49 / T
    bump = (p[1:] - 0.5 / T).cumsum(0)
    low, middle, high = (float(ratio[int((bump < q / 2).sum())]) for q in (0.1587, 0.5, 0.8413))
    assert middle == pytest.approx(noise, rel=0.1)
    assert low == pytest.approx(noise / math.e, rel=0.1)
    assert high == pytest.approx(noise * math.e, rel=0.1)


def test_an_edge_is_trained_longer_at_less_noise(tmp_path, monkeypatch):
    seen = {}

    def fit(world, share, n, base, diffusion, size, seed):
        seen[world.name] = {k: size[k] for k in ("steps", "batch", "noise")}
        return {}

    monkeypatch.setattr(accuracy, "_run", fit)
    monkeypatch.setattr(accuracy, "_beside", lambda *_: {})
    accuracy.measure("quick", tmp_path)
    names = {
        "8-D mixture": (20, 0.1),
        "ring": (30, 0.1),
        "rare mode": (80, 0.05),
        "indicator": (160, 0.05),
    }
    for name, (steps, noise) in names.items():
        assert seen[name] == {"steps": steps, "batch": 64, "noise": noise}


def test_a_table_that_was_cut_names_its_file(tmp_path):
    path = tmp_path / "rgdm.json"
    assert kept(path, lambda: {"a": 1}) == kept(path, lambda: {"a": 2}) == {"a": 1}
    path.write_text("")
    with pytest.raises(ValueError, match=r"rgdm.json is no table .*delete it"):
        kept(path, lambda: {"a": 2})
