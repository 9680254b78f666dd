"""Every method on the world of eight dimensions, at equal terms: a search, then seeds.

``python -m rgdm_lib.course experiment worlds-rivals --preset P``. One pretrained network, one
sampler, one temperature (effective share 10 %). Each method has two settings with three values
each, tried with seed 0; the pair that ends nearest to the payoff runs with the other seeds too. A
run is one file in ``out``: what is there is not repeated, so that a stopped search goes on. Preset
quick is a test of the machinery; the others write what ships, ``data/worlds/rivals.json``.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib import payoff, rgdm, schedules
from rgdm_lib._data import data_root
from rgdm_lib.baselines import (
    best_of_n,
    bounded,
    classifier_guidance,
    policy_gradient,
    reward_weighted,
    tilt_matching,
    value_guidance,
)
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds.known import World, mixture8d_world
from rgdm_lib.worlds.metrics import Sampler, mode_l1, sliced_wasserstein, sliced_wasserstein_floor
from rgdm_lib.worlds.nets import MLPDenoiser, TimeMLP

SHARE = 10
# evaluations: of the reward, of a whole run; policy gradients get ten times as many, to see whether
# they arrive later. steps: gradient steps of a whole run of the others. judged: points a judgement.
PRESETS = {
    "quick": {"T": 20, "hidden": 16, "base": 60, "evaluations": 400, "more": 1, "steps": 20,
              "judged": 200, "values": 1, "seeds": 2, "rgdm_seeds": 2},
    "laptop": {"T": 100, "hidden": 128, "base": 20_000, "evaluations": 20_000, "more": 10,
               "steps": 6000, "judged": 4000, "values": 3, "seeds": 3,
               "rgdm_seeds": 5},
    "full": {"T": 100, "hidden": 256, "base": 100_000, "evaluations": 20_000, "more": 50,
             "steps": 20_000, "judged": 10_000, "values": 3, "seeds": 5,
             "rgdm_seeds": 5},
}  # fmt: skip
RATES = (1e-3, 3e-4, 3e-3)  # the middle first: quick takes one value of each
Stage = tuple[int, int, Denoiser]  # gradient steps, reward evaluations, what to sample with


class _Bench:
    """What all methods share: the world, the pretrained network and the sampler."""

    def __init__(self, preset: str, base: nn.Module, diffusion: Diffusion, world: World):
        self.size, self.base, self.diffusion, self.world = PRESETS[preset], base, diffusion, world
        self.tau, self.dim = world.tau(SHARE), world.reference.means.shape[1]
        self.evaluations, self.steps = self.size["evaluations"], self.size["steps"]

    def start(self, n: int) -> Tensor:
        return torch.randn(n, self.dim)

    def sampler(self, n: int, reward: payoff.Reward | None = None) -> payoff.Sampler:
        return payoff.model_sampler(self.diffusion, self.start, reward or self.world.reward, n)

    def sample(self, denoiser: Denoiser, n: int) -> Tensor:
        *_, last = self.diffusion.sample(denoiser, self.start(n))
        return last.x

    def best_of(self, n: int) -> Sampler:
        """Best of n samples of the pretrained network: n evaluations for each sample, always."""

        def sample(size: int) -> Tensor:
            x0 = self.sample(self.base, n * size)
            return best_of_n.best_of(payoff.Draw(x0, self.world.reward(x0)), n).x0

        return sample

    def network(self) -> nn.Module:
        return copy.deepcopy(self.base)


def _in_rounds(fit: Callable) -> Callable:
    """A method with RGDM's arguments, searched over the number of rounds."""

    def run(bench: _Bench, rounds: int, lr: float) -> Iterator[Stage]:
        net, n = bench.network(), bench.evaluations // rounds
        options = {"rounds": rounds, "steps": bench.steps // rounds, "lr": lr}
        for done in fit(net, bench.diffusion, bench.sampler(n), bench.tau, **options):
            yield done.step, done.evaluations, net

    return run


def _tilt_matching(bench: _Bench, batch_size: int, lr: float) -> Iterator[Stage]:
    net, rounds = bench.network(), 2
    options = {"rounds": rounds, "steps": bench.steps // rounds, "lr": lr, "batch_size": batch_size}
    sampler = bench.sampler(bench.evaluations // rounds)
    for done in tilt_matching.fit(net, bench.diffusion, sampler, bench.tau, **options):
        yield done.step, done.evaluations, net


def _bounded(bench: _Bench, rounds: int, lr: float) -> Iterator[Stage]:
    """With rewards above those that 1 % of the reference has; below, they count as that."""
    net, n = bench.network(), bench.evaluations // rounds
    torch.manual_seed(0)
    least = bench.world.reward(bench.world.reference.sample(100_000)).quantile(0.01)
    sampler = bench.sampler(n, lambda x: (bench.world.reward(x) - least).clamp(min=0))
    options = {"rounds": rounds, "steps": bench.steps // rounds, "lr": lr}
    for done in bounded.fit(net, bench.diffusion, sampler, bench.tau, **options):
        yield done.step, done.evaluations, net


def _policy_gradient(setting: str, with_kl: bool, **fixed: Any) -> Callable:
    """Policy gradients searched over ``setting``; ``with_kl``: weighted by the payoff's tau."""

    def run(bench: _Bench, value: float, lr: float) -> Iterator[Stage]:
        options = {"n": 200, "tau": bench.tau if with_kl else 0.0} | fixed | {setting: value}
        net, reward = bench.network(), bench.world.reward
        rounds = bench.evaluations * bench.size["more"] // options["n"]
        parts = (net, bench.diffusion, bench.start, reward)
        for done in policy_gradient.fit(*parts, rounds=rounds, lr=lr, **options):
            yield done.step, done.evaluations, net

    return run


def _value_guidance(bench: _Bench, scale: float, lr: float) -> Iterator[Stage]:
    net = TimeMLP(bench.dim, bench.diffusion.T, 1, hidden=bench.size["hidden"])
    draw = bench.sampler(bench.evaluations)(bench.base)
    best = float(draw.reward.max())

    def loss(net: nn.Module) -> Tensor:
        i = torch.randint(len(draw.x0), (256,))
        return value_guidance.loss(
            bench.diffusion, net, draw.x0[i], draw.reward[i], bench.tau, best
        )

    value = Trainer(net, loss, bench.steps, lr=lr).run(progress=False)
    potential = value_guidance.log_weight(value)
    guided = classifier_guidance.guided(bench.base, potential, bench.diffusion, scale)
    yield bench.steps, bench.evaluations, guided


class Method(NamedTuple):
    """How a method runs, ``(bench, first setting, lr)``, and three values of its first setting."""

    run: Callable[[_Bench, Any, float], Iterator[Stage]]
    firsts: tuple[float, ...]


PPO = {"batches": 4, "epochs": 2}
METHODS = {
    "rgdm": Method(_in_rounds(rgdm.fit), (2, 1, 5)),  # rounds
    "reward_weighted": Method(_in_rounds(reward_weighted.fit), (2, 4, 8)),  # rounds
    "tilt_matching": Method(_tilt_matching, (256, 1024, 4096)),  # samples a step
    "bounded": Method(_bounded, (20, 10, 40)),  # rounds
    "reinforce": Method(_policy_gradient("n", True), (200, 50, 1000)),  # paths a round
    "ddpo": Method(_policy_gradient("clip_ratio", False, normalise=True, **PPO), (0.1, 0.01, 0.3)),
    "ddpo_kl": Method(_policy_gradient("clip_ratio", True, **PPO), (0.1, 0.01, 0.3)),
    "value_guidance": Method(_value_guidance, (1.0, 0.8, 1.2)),  # scale
}
BEST_OF = (4, 2, 16)


class Judge:
    """Distance to the exact payoff distribution of one world, on n points at a time."""

    def __init__(self, world: World, n: int):
        self.world, self.n = world, n
        self.exact = world.exact(SHARE)
        torch.manual_seed(1234)
        self.floor = sliced_wasserstein_floor(self.exact.sample, n)
        draws = [mode_l1(self.exact.sample(n), self.exact) for _ in range(20)]
        self.mode_floor = sum(draws) / len(draws)

    def __call__(self, model: Sampler) -> dict[str, float]:
        """Mean reward, over_floor (one draw), and mode L1 less that of exact samples.

        Each is None for a method that gives points that are not finite.
        """
        x = model(self.n)
        if not bool(torch.isfinite(x).all()):
            return {"reward": None, "over_floor": None, "mode_l1": None}
        return {
            "reward": float(self.world.reward(x).mean()),
            "over_floor": sliced_wasserstein(x, self.exact.sample(self.n)) / self.floor,
            "mode_l1": mode_l1(x, self.exact) - self.mode_floor,
        }


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing: a run that is stopped leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")  # not in the manifest
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def _pretrained(preset: str, out: Path, diffusion: Diffusion, world: World) -> nn.Module:
    size = PRESETS[preset]
    torch.manual_seed(0)
    dim = world.reference.means.shape[1]
    net = MLPDenoiser(dim, diffusion.schedule.alpha_bar, hidden=size["hidden"])
    return Trainer(
        net,
        lambda net: diffusion.loss(net, world.reference.sample(512)),
        size["base"],
        checkpoint=out / "base.safetensors",
        config={"world": world.name, "T": diffusion.T, "hidden": size["hidden"]},
    ).run(progress=False)


def _run(bench: _Bench, judge: Judge, method: str, first: float, lr: float, seed: int) -> dict:
    """One run and its curve: judged whenever evaluations have grown by half, and at the end."""
    torch.manual_seed(seed)
    curve: list[dict] = []

    def look(step: int, evaluations: int, denoiser: Denoiser) -> None:
        with torch.random.fork_rng():  # judging must not change the run
            torch.manual_seed(seed)
            found = judge(lambda n: bench.sample(denoiser, n))
        curve.append({"evaluations": evaluations, "step": step, **found})

    failure = None
    try:
        for stage in METHODS[method].run(bench, first, lr):
            if not curve or stage[1] >= 1.5 * curve[-1]["evaluations"]:
                look(*stage)
        if curve[-1]["step"] < stage[0]:
            look(*stage)
    except (FloatingPointError, ValueError) as error:  # a setting that diverges is a finding
        failure = str(error)
    setting = {"method": method, "first": first, "lr": lr, "seed": seed}
    return setting | {"curve": curve, "failure": failure}


def _score(run: dict) -> float:
    """over_floor at the end; infinite for a run that broke."""
    last = run["curve"][-1]["over_floor"] if run["curve"] and not run["failure"] else None
    return math.inf if last is None else last


def evaluations_to_reach(run: dict, reward: float, over_floor: float) -> int | None:
    """Reward evaluations at the first point of the curve that has come as far and as close.

    Args:
        run: one of the table's runs.
        reward: mean reward to reach.
        over_floor: largest distance that counts.

    Returns None for a run that never gets there: its last count is a lower bound.
    """
    for point in run["curve"]:
        if point["over_floor"] is not None and point["over_floor"] <= over_floor:
            if point["reward"] >= reward:
                return point["evaluations"]
    return None


def compare_rivals(preset: str, out: Path, method: str = "") -> Path:
    """Run what ``out`` does not hold yet and write the table.

    Args:
        preset: quick, laptop or full.
        out: one JSON file for each (method, first setting, lr, seed), and the pretrained network.
        method: only this one, and no table (several processes can share the work).

    Returns the table's path, or ``out`` without one.

    Raises:
        ValueError: an unknown method.
    """
    if method and method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    size, world = PRESETS[preset], mixture8d_world()
    diffusion = Diffusion(schedules.cosine(size["T"]))
    bench = _Bench(preset, _pretrained(preset, out, diffusion, world), diffusion, world)
    judge = Judge(world, size["judged"])

    def run(name: str, first: float, lr: float, seed: int) -> dict:
        path = out / f"{name}_{first}_{lr}_seed{seed}.json"
        if not path.exists():
            _write(path, _run(bench, judge, name, first, lr, seed))
        return json.loads(path.read_text())

    methods = {}
    for name in [method] if method else METHODS:
        firsts = METHODS[name].firsts[: size["values"]]
        search = [run(name, *pair, 0) for pair in product(firsts, RATES[: size["values"]])]
        best = min(search, key=_score)
        seeds = range(1, size["rgdm_seeds" if name == "rgdm" else "seeds"])
        others = [run(name, best["first"], best["lr"], seed) for seed in seeds]
        methods[name] = {"search": search, "runs": [best, *others]}
    if method:
        return out

    exact = world.exact(SHARE).denoiser(diffusion.schedule)
    torch.manual_seed(0)
    table = {
        "world": world.name,
        "share": SHARE,
        "tau": bench.tau,
        "exact_reward": world.frontier(SHARE)[0],
        "judged": size["judged"],
        "command": f"python -m rgdm_lib.course experiment worlds-rivals --preset {preset}",
        "exact_denoiser": judge(lambda n: bench.sample(exact, n)),
        "base": judge(lambda n: bench.sample(bench.base, n)),
        "best_of_n": {n: judge(bench.best_of(n)) for n in BEST_OF[: size["values"]]},
        "methods": methods,
    }
    path = (out if preset == "quick" else data_root() / "worlds") / "rivals.json"
    _write(path, table)
    return path
