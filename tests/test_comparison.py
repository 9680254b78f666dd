"""The comparison's machinery, in preset quick: whole, resumable, and its judge is right."""

import dataclasses
import json
import math

import pytest
import torch

from rgdm_lib import comparison
from rgdm_lib.course import experiments as registry
from rgdm_lib.worlds import known

WORLD = known.mixture8d_world()


@pytest.fixture(scope="module")
def judge():
    return comparison.Judge(WORLD, 2000)


def test_the_judge_knows_the_payoff_from_the_reference_and_from_half_a_mode(judge):
    torch.manual_seed(0)
    exact = WORLD.exact(comparison.SHARE)
    mean, _ = WORLD.frontier(comparison.SHARE)
    found = [judge(exact.sample) for _ in range(5)]
    for one in found:
        assert abs(one["reward"] - mean) < 0.1 and 0.4 < one["over_floor"] < 2.0
        assert abs(one["mode_l1"]) < 0.1
    assert abs(sum(one["mode_l1"] for one in found)) / 5 < 0.03
    far = judge(WORLD.reference.sample)
    assert far["over_floor"] > 5 and far["mode_l1"] > 0.5

    def one_mode_lost(n):
        x = exact.sample(8 * n)
        return x[torch.cdist(x.double(), exact.means).argmin(1) != 0][:n]

    assert judge(one_mode_lost)["mode_l1"] > 2 * float(exact.weights[0]) - 0.1
    broken = judge(lambda n: torch.full((n, 8), math.nan))
    assert broken == {"reward": None, "over_floor": None, "mode_l1": None, "kl": None}


def test_the_judge_averages_draws_and_knows_the_kl_to_the_reference(judge):
    torch.manual_seed(0)
    exact, sizes = WORLD.exact(comparison.SHARE), []

    def model(n):
        sizes.append(n)
        return exact.sample(n) + (len(sizes) - 1) * 0.3  # the second draw is far away

    one, both = judge(model), None
    sizes.clear()
    both = judge(model, 2)
    assert sizes == [2000, 2000]
    assert one["over_floor"] < 2 < 0.5 * both["over_floor"]
    assert abs(both["kl"] - one["kl"]) < 0.1  # the first draw's: the second's is larger by nats
    assert abs(one["kl"] - WORLD.frontier(comparison.SHARE)[1]) < 0.1
    assert abs(judge(WORLD.reference.sample)["kl"]) < 0.1
    twice = judge(lambda n: exact.sample(n // 2).repeat(2, 1))
    assert twice["kl"] is None and twice["over_floor"] < 3


def test_evaluations_to_reach_need_the_reward_and_the_distance():
    points = [(100, 0.5, 4.0), (200, 1.5, 6.0), (300, None, None), (400, 1.4, 2.0), (500, 2.0, 1.0)]
    names = ("evaluations", "reward", "over_floor")
    run = {"curve": [dict(zip(names, point, strict=True)) for point in points]}
    assert comparison.evaluations_to_reach(run, 1.4, 3.0) == 400  # not 200: too far away
    assert comparison.evaluations_to_reach(run, 1.5, 3.0) == 500
    assert comparison.evaluations_to_reach(run, 2.1, 3.0) is None


def test_a_method_has_reached_a_point_by_its_cheapest_run_and_else_gives_a_bound():
    def run(seed, evaluations, *points):
        names = ("evaluations", "reward", "over_floor")
        curve = [dict(zip(names, point, strict=True)) for point in points]
        return {"seed": seed, "evaluations": evaluations, "curve": curve}

    far, near = (1.0, 9.0), (2.0, 1.0)
    method = {
        "runs": [run(0, 20, (20, *near)), run(1, 20, (20, *far)), run(7, 20, (20, *near))],
        "other_sizes": [
            run(0, 5, (2, *far), (5, *near)), run(1, 60, (60, *far)), run(0, 1, (1, *far))
        ],
    }  # fmt: skip
    assert comparison.reached(method, 1.5, 2.0) == [(5, True), (60, False)]
    method["other_sizes"] = []
    assert comparison.reached(method, 1.5, 2.0) == [(20, True), (20, False), (20, True)]


@pytest.mark.filterwarnings("ignore")  # 200 samples at an effective share of 10 % are few
def test_the_whole_comparison_runs_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    path = comparison.compare_rivals("quick", tmp_path)
    table = json.loads(path.read_text())
    assert set(table["methods"]) == set(comparison.METHODS)
    assert (table["exact_reward"], table["exact_kl"]) == pytest.approx(WORLD.frontier(10))
    assert table["exact_denoiser"]["over_floor"] < 2 < table["base"]["over_floor"]
    for name, found in table["methods"].items():
        kind = comparison.METHODS[name].kind
        assert found["kind"] == kind
        assert [run["seed"] for run in found["runs"]] == [0, 1], name
        (tried,), first = found["search"], found["runs"][0]
        assert tried["setting"] == first["setting"] and tried["seed"] == 0
        assert [run["draws"] for run in found["runs"]] == [1 if kind == "sample" else 2] * 2
        assert {run["draws"] for run in [tried, *found["other_sizes"]]} == {1}
        assert len(tried["curve"]) == 1  # judged at its end only: the same end, with fewer draws
        assert tried["curve"][0]["step"] == first["curve"][-1]["step"]
        same = tried["curve"][0]["over_floor"] == first["curve"][-1]["over_floor"]
        assert same == (kind == "sample")
        assert found["runs"][0]["curve"] != found["runs"][1]["curve"]  # seeds differ
        for run in found["runs"]:
            last = run["curve"][-1]
            assert run["failure"] is None and math.isfinite(last["over_floor"]), name
            assert last["evaluations"] == 400 if kind != "sample" else last["evaluations"] < 100
        sizes = [run["curve"][-1]["evaluations"] for run in found["other_sizes"]]
        assert sizes == {"pool": [200, 200], "policy": [800, 800], "sample": []}[kind]
    best = table["methods"]["best_of_n"]["runs"][0]["curve"]
    assert len(best) == 1 and best[0]["evaluations"] == 4
    assert best[0]["reward"] > table["base"]["reward"] + 0.5

    before = path.read_bytes()
    lost = next(tmp_path.glob("tilt_matching_*_400_seed1.json"))
    kept = lost.read_text()
    lost.unlink()
    path.unlink()
    calls, run = [], comparison._run
    monkeypatch.setattr(comparison, "_run", lambda *a: calls.append(a[2:]) or run(*a))
    assert comparison.compare_rivals("quick", tmp_path, method="tilt_matching") == tmp_path
    assert len(calls) == 1 and calls[0][0] == "tilt_matching" and not path.exists()
    assert lost.read_text() == kept  # the same bits, whatever ran before
    comparison.compare_rivals("quick", tmp_path)
    assert len(calls) == 1 and path.read_bytes() == before
    with pytest.raises(ValueError, match="no method 'ppo'; there are rgdm, "):
        comparison.compare_rivals("quick", tmp_path, method="ppo")


def test_the_setting_that_ends_nearest_is_chosen(tmp_path, monkeypatch):
    def moved(bench, evaluations, by, lr):
        yield 1, evaluations, lambda n: WORLD.exact(comparison.SHARE).sample(n) + by * lr

    size = comparison.PRESETS["quick"] | {"values": 3, "fewer": (0.5, 0.25)}
    monkeypatch.setitem(comparison.PRESETS, "quick", size)
    trial = comparison.Method(moved, {"by": (0.5, 0.0, 3.0), "lr": (1.0, 2.0)})
    monkeypatch.setattr(comparison, "METHODS", {"trial": trial})
    table = json.loads(comparison.compare_rivals("quick", tmp_path).read_text())
    found = table["methods"]["trial"]
    assert len(found["search"]) == 6
    assert {run["setting"]["by"] for run in found["runs"] + found["other_sizes"]} == {0.0}
    assert [run["evaluations"] for run in found["other_sizes"]] == [200, 200, 100, 100]


def test_a_conditional_network_starts_as_the_base_and_asks_for_the_payoffs_rewards(monkeypatch):
    torch.manual_seed(0)
    size = comparison.PRESETS["quick"] | {"steps": 0}
    monkeypatch.setitem(comparison.PRESETS, "quick", size)
    diffusion = comparison.Diffusion(comparison.schedules.cosine(20))
    base = comparison.MLPDenoiser(8, diffusion.schedule.alpha_bar, hidden=16)
    torch.nn.init.normal_(base.out.weight)
    bench = comparison._Bench("quick", base, diffusion, WORLD)
    asked, rewards, inner = [], [], comparison.conditional.classifier_free

    def spy(net, scale):
        guided = inner(net, scale)
        return lambda x, t, cond: asked.append(cond) or guided(x, t, cond)

    monkeypatch.setattr(comparison.conditional, "classifier_free", spy)
    for cold in (1, 10):
        asked.clear()
        torch.manual_seed(1)  # the same pool
        ((_, evaluations, sampler),) = comparison._conditional(bench, 2000, cold, 1.5)
        torch.manual_seed(1)
        x = sampler(500)
        torch.manual_seed(1)
        torch.rand(1, dtype=torch.float64)  # what choosing the conditions took
        assert torch.allclose(x, bench.draws(base)(500), atol=1e-4) and evaluations == 2000
        assert all(torch.equal(cond, asked[0]) for cond in asked)  # one reward the whole way down
        rewards.append(asked[0][:, 0])  # less the pool's mean, over its standard deviation
    assert 1 < rewards[0].mean() < rewards[1].mean() and rewards[1].std() < rewards[0].std() / 2


def test_a_condition_on_a_constant_reward_is_zero_not_nan():
    torch.manual_seed(0)
    diffusion = comparison.Diffusion(comparison.schedules.cosine(20))
    base = comparison.MLPDenoiser(8, diffusion.schedule.alpha_bar, hidden=16)
    bench = comparison._Bench("quick", base, diffusion, WORLD)
    bench.world = dataclasses.replace(WORLD, reward=lambda x: torch.full((len(x),), 3.0))
    ((_, _, sampler),) = comparison._conditional(bench, 400, 1, 1.0)
    assert bool(torch.isfinite(sampler(300)).all())


def test_a_setting_that_diverges_is_recorded_and_not_chosen(judge):
    def diverges(bench, evaluations, lr):
        yield 1, 100, WORLD.reference.sample
        raise FloatingPointError("the loss is nan")

    def holds(bench, evaluations, lr):
        drawn.append(float(torch.rand(())))
        for k in range(1, 7):
            yield k, 100 * k, WORLD.reference.sample

    runs, drawn = [], []
    for seed, method in enumerate((diverges, holds, holds)):
        comparison.METHODS["trial"] = comparison.Method(method, {"lr": (0.1,)})
        try:
            runs.append(comparison._run(None, judge, "trial", {"lr": 0.1}, 600, seed, 2))
        finally:
            del comparison.METHODS["trial"]
    assert runs[0]["failure"] == "the loss is nan" and len(runs[0]["curve"]) == 1
    assert comparison._score(runs[0]) == math.inf > comparison._score(runs[1])
    # judged when evaluations have grown by half, and at the end
    assert [point["evaluations"] for point in runs[1]["curve"]] == [100, 200, 300, 500, 600]
    assert drawn[0] != drawn[1]  # a seed is the whole run's
    assert comparison._score({"curve": [], "failure": None}) == math.inf


def test_the_experiment_is_registered():
    assert registry.load("worlds-rivals") is comparison.compare_rivals
