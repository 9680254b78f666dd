"""Every method on the world of eight dimensions, at equal terms: a search, then seeds.

``python -m rgdm_lib.course experiment worlds-rivals --preset P``. One pretrained network, one
sampler, one temperature (effective share 10 %). Each method's two most important settings have
three values each, tried with seed 0 at one number of reward evaluations; the pair that ends nearest
to the payoff runs with the other seeds and at other numbers too. A run is one file in ``out``: what
is there is not repeated, so that a stopped search goes on; ``out/rivals.json`` has the methods so
far. Preset quick is a test of the machinery; the others write ``data/worlds/rivals.json``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib import payoff, rgdm, schedules, stepwise
from rgdm_lib._data import data_root, write_manifest
from rgdm_lib._kept import kept, write_json
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
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds.known import World, mixture8d_world
from rgdm_lib.worlds.metrics import (
    Sampler,
    kl_to_mixture,
    mode_l1,
    sliced_wasserstein,
    sliced_wasserstein_floor,
)
from rgdm_lib.worlds.nets import PRETRAINING, MLPDenoiser, TimeMLP
from rgdm_lib.worlds.sampling import sampler_of

SHARE = 10
# evaluations: of the reward, of a whole run. more: factors of it that the chosen settings run with
# beside 1: policy gradients may arrive later, the others need fewer. steps: gradient steps of a run
# of those that have a pool. judged: points a judgement; draws: judgements of a run's end, tried: as
# many in the search, at other sizes, and where seeds are nothing but more draws (kind "sample").
PRESETS = {
    "quick": {"T": 20, "hidden": 16, "base": 60, "evaluations": 400, "steps": 20, "judged": 400,
              "draws": 2, "tried": 1, "more": (2,), "fewer": (0.5,), "values": 1, "seeds": 2,
              "rgdm_seeds": 2},
    "laptop": {"T": 100, "hidden": 64, "base": 20_000, "evaluations": 20_000, "steps": 2500,
               "judged": 10_000, "draws": 10, "tried": 3, "more": (3,), "fewer": (1 / 4, 1 / 16),
               "values": 3, "seeds": 3, "rgdm_seeds": 5},
    "full": {"T": 100, "hidden": 256, "base": 100_000, "evaluations": 20_000, "steps": 20_000,
             "judged": 10_000, "draws": 10, "tried": 3, "more": (3, 30), "fewer": (1 / 4, 1 / 16),
             "values": 3, "seeds": 5, "rgdm_seeds": 5},
}  # fmt: skip
RATES = (1e-3, 3e-4, 3e-3)  # the middle first: quick takes one value of each
FREE_RATES = (1e-4, 3e-5, 3e-4)  # without a KL nothing holds a policy: at 1e-3, a reward of 70
Stage = tuple[int, int, Sampler]  # gradient steps and reward evaluations so far, what draws samples


class _Bench:
    """What all methods share: the world, the pretrained network and the sampler."""

    def __init__(self, preset: str, base: nn.Module, diffusion: Diffusion, world: World):
        self.size, self.base, self.diffusion, self.world = PRESETS[preset], base, diffusion, world
        self.tau, self.dim = world.tau(SHARE), world.reference.means.shape[1]
        self.steps = self.size["steps"]

    def start(self, n: int) -> Tensor:
        return torch.randn(n, self.dim)

    def sampler(self, n: int, reward: payoff.Reward | None = None) -> payoff.Sampler:
        return payoff.model_sampler(self.diffusion, self.start, reward or self.world.reward, n)

    def draws(self, denoiser: Denoiser) -> Sampler:
        return sampler_of(self.diffusion, denoiser, self.dim)

    def network(self) -> nn.Module:
        return copy.deepcopy(self.base)


# ---- the methods: (bench, reward evaluations, settings) -> stages --------------------------------


def _in_rounds(fit: Callable) -> Callable:
    """A method with RGDM's arguments, searched over the number of rounds."""

    def run(bench: _Bench, evaluations: int, rounds: int, lr: float) -> Iterator[Stage]:
        net, sampler = bench.network(), bench.sampler(evaluations // rounds)
        options = {"rounds": rounds, "steps": bench.steps // rounds, "lr": lr}
        for done in fit(net, bench.diffusion, sampler, bench.tau, **options):
            yield done.step, done.evaluations, bench.draws(net)

    return run


def _tilt_matching(bench: _Bench, evaluations: int, batch_size: int, lr: float) -> Iterator[Stage]:
    net, rounds = bench.network(), 2
    options = {"rounds": rounds, "steps": bench.steps // rounds, "lr": lr, "batch_size": batch_size}
    sampler = bench.sampler(evaluations // rounds)
    for done in tilt_matching.fit(net, bench.diffusion, sampler, bench.tau, **options):
        yield done.step, done.evaluations, bench.draws(net)


def _bounded(bench: _Bench, evaluations: int, rounds: int, lr: float) -> Iterator[Stage]:
    """With rewards above those that 1 % of the reference has; below, they count as that."""
    net = bench.network()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        least = bench.world.reward(bench.world.reference.sample(100_000)).quantile(0.01)
    sampler = bench.sampler(
        evaluations // rounds, lambda x: (bench.world.reward(x) - least).clamp(min=0)
    )
    options = {"rounds": rounds, "steps": bench.steps // rounds, "lr": lr}
    for done in bounded.fit(net, bench.diffusion, sampler, bench.tau, **options):
        yield done.step, done.evaluations, bench.draws(net)


def _policy_gradient(setting: str, with_kl: bool, **fixed: Any) -> Callable:
    """Policy gradients searched over ``setting``; ``with_kl``: weighted by the payoff's tau."""

    def run(bench: _Bench, evaluations: int, lr: float, **searched: Any) -> Iterator[Stage]:
        options = {"n": 200, "tau": bench.tau if with_kl else 0.0} | fixed
        options |= {setting: searched[setting]}
        net, rounds = bench.network(), evaluations // options["n"]
        parts = (net, bench.diffusion, bench.start, bench.world.reward)
        for done in policy_gradient.fit(*parts, rounds=rounds, lr=lr, **options):
            yield done.step, done.evaluations, bench.draws(net)

    return run


def _value_guidance(bench: _Bench, evaluations: int, scale: float, lr: float) -> Iterator[Stage]:
    net = TimeMLP(bench.dim, bench.diffusion.T, 1, hidden=bench.size["hidden"])
    draw = bench.sampler(evaluations)(bench.base)
    best = float(draw.reward.max())

    def loss(net: nn.Module) -> Tensor:
        i = torch.randint(len(draw.x0), (256,))
        return value_guidance.loss(
            bench.diffusion, net, draw.x0[i], draw.reward[i], bench.tau, best
        )

    value = Trainer(net, loss, bench.steps, lr=lr).run(progress=False)
    potential = value_guidance.log_weight(value)
    guided = classifier_guidance.guided(bench.base, potential, bench.diffusion, scale)
    yield bench.steps, evaluations, bench.draws(guided)


def _conditional(bench: _Bench, evaluations: int, cold: float, scale: float) -> Iterator[Stage]:
    """Conditioned on the reward. Those to ask for are the pool's, drawn by exp(cold r / tau).

    With cold = 1 they are the payoff's own, and a perfect conditional model, unguided, gives the
    payoff; a large one asks for the best reward seen.
    """
    net = MLPDenoiser(
        bench.dim, bench.diffusion.schedule.alpha_bar, hidden=bench.size["hidden"], cond_dim=2
    )
    weights = bench.base.state_dict()  # the condition's weights are 0: it starts as the base
    wide = torch.zeros_like(net.embed.weight)
    wide[:, :-2] = weights["embed.weight"]
    net.load_state_dict(weights | {"embed.weight": wide})
    draw = bench.sampler(evaluations)(bench.base)
    spread = draw.reward.std() or 1.0  # a constant reward tells nothing: the condition is 0
    cond = ((draw.reward - draw.reward.mean()) / spread)[:, None].to(draw.x0)

    def loss(net: nn.Module) -> Tensor:
        i = torch.randint(len(cond), (256,))
        return conditional.loss(bench.diffusion, net, draw.x0[i], cond[i])

    trained = Trainer(net, loss, bench.steps, lr=1e-3).run(progress=False)
    guided = conditional.classifier_free(trained, scale)
    log_weight = payoff.log_weights(draw.reward, bench.tau / cold)

    def sample(n: int) -> Tensor:
        asked = cond[payoff.systematic_resample(log_weight, n)]
        *_, last = bench.diffusion.sample(guided, bench.start(n), cond=asked)
        return last.x

    yield bench.steps, evaluations, sample


# ---- nothing is trained: evaluations of a sample, each time --------------------------------------


def _best_of_n(bench: _Bench, evaluations: int, n: int) -> Iterator[Stage]:  # noqa: ARG001
    def sample(size: int) -> Tensor:
        x0 = bench.draws(bench.base)(n * size)
        return best_of_n.best_of(payoff.Draw(x0, bench.world.reward(x0)), n).x0

    yield 0, n, sample


def _particles(bench: _Bench, evaluations: int, least_ess: float) -> Iterator[Stage]:  # noqa: ARG001
    """As many samples as particles, drawn by their weights: some of them twice."""

    def sample(n: int) -> Tensor:
        parts = (bench.base, bench.diffusion, bench.start(n), bench.world.reward, bench.tau)
        return stepwise.particles(*parts, least_ess=least_ess).resample(n)

    yield 0, bench.diffusion.T + 1, sample


def _best_child(bench: _Bench, evaluations: int, k: int) -> Iterator[Stage]:  # noqa: ARG001
    def sample(n: int) -> Tensor:
        parts = (bench.base, bench.diffusion, bench.start(n), bench.world.reward, bench.tau)
        return stepwise.best_of_k(*parts, k).x0

    yield 0, k * (bench.diffusion.T - 1) + 1, sample


def _reward_gradient(bench: _Bench, evaluations: int, scale: float) -> Iterator[Stage]:  # noqa: ARG001
    """Classifier guidance with r(x0_hat) / tau in place of the log-probability of a class."""

    def potential(x_t: Tensor, t: Tensor) -> Tensor:
        x0_hat = bench.diffusion.predict_x0(x_t, t, bench.base(x_t, t, None))
        return bench.world.reward(x0_hat) / bench.tau

    guided = classifier_guidance.guided(bench.base, potential, bench.diffusion, scale)
    yield 0, bench.diffusion.T, bench.draws(guided)


class Method(NamedTuple):
    """How a method runs and what is searched.

    Attributes:
        run: ``(bench, evaluations, **setting)`` to stages.
        search: three values, or one, of each setting.
        kind: "pool": the evaluations are spent on a pool, and fewer are tried; "policy": on paths
            of the model, and more are tried; "sample": on every sample, nothing is trained (a run
            then has 0 evaluations, and the points of its curve those of one sample).
    """

    run: Callable[..., Iterator[Stage]]
    search: dict[str, tuple[float, ...]]
    kind: str = "pool"


PPO, CLIP_RATIOS = {"batches": 4}, (0.1, 0.01, 0.3)
METHODS = {
    "rgdm": Method(_in_rounds(rgdm.fit), {"rounds": (2, 1, 4), "lr": RATES}),
    "ddpo": Method(
        _policy_gradient("clip_ratio", False, normalise=True, **PPO),
        {"clip_ratio": CLIP_RATIOS, "lr": FREE_RATES},
        "policy",
    ),
    "value_guidance": Method(_value_guidance, {"scale": (1.0, 0.8, 1.2), "lr": RATES}),
    "reward_weighted": Method(_in_rounds(reward_weighted.fit), {"rounds": (2, 4, 8), "lr": RATES}),
    "tilt_matching": Method(_tilt_matching, {"batch_size": (256, 64, 1024), "lr": RATES}),
    "conditional": Method(_conditional, {"cold": (1, 2, 10), "scale": (1.0, 1.5, 3.0)}),
    "best_of_n": Method(_best_of_n, {"n": (4, 2, 16)}, "sample"),
    "reward_gradient": Method(_reward_gradient, {"scale": (1.0, 1.5, 2.0)}, "sample"),
    "particles": Method(_particles, {"least_ess": (0.5, 0.1, 0.9)}, "sample"),
    "best_child": Method(_best_child, {"k": (4, 2, 16)}, "sample"),
    "bounded": Method(_bounded, {"rounds": (20, 10, 40), "lr": RATES}),
    "reinforce": Method(_policy_gradient("n", True), {"n": (50, 20, 200), "lr": RATES}, "policy"),
    "ddpo_kl": Method(
        _policy_gradient("clip_ratio", True, **PPO),
        {"clip_ratio": CLIP_RATIOS, "lr": RATES},
        "policy",
    ),
}


class Judge:
    """Distance to the exact payoff distribution of one world, on n points at a time."""

    def __init__(self, world: World, n: int):
        self.world, self.n = world, n
        self.exact = world.exact(SHARE)
        torch.manual_seed(1234)
        self.floor = sliced_wasserstein_floor(self.exact.sample, n)
        draws = [mode_l1(self.exact.sample(n), self.exact) for _ in range(20)]
        self.mode_floor = sum(draws) / len(draws)

    def __call__(self, model: Sampler, draws: int = 1) -> dict[str, float | None]:
        """Means over ``draws`` samples of n points; the KL, which is slow and steady, of the first.

        ``reward``, ``over_floor``, ``mode_l1`` (less that of exact samples) and ``kl`` to the exact
        reference in nats. Each is None for a method that gives points that are not finite; ``kl``
        where more than 1 % coincide, too.
        """
        found = [self._once(model(self.n), with_kl=i == 0) for i in range(draws)]
        names = ("reward", "over_floor", "mode_l1")
        means = {
            name: None if None in (of := [one[name] for one in found]) else sum(of) / draws
            for name in names
        }
        return means | {"kl": found[0]["kl"]}

    def _once(self, x: Tensor, with_kl: bool) -> dict[str, float | None]:
        found = dict.fromkeys(("reward", "over_floor", "mode_l1", "kl"))
        if not bool(torch.isfinite(x).all()):
            return found
        found |= {
            "reward": float(self.world.reward(x).mean()),
            "over_floor": sliced_wasserstein(x, self.exact.sample(self.n)) / self.floor,
            "mode_l1": mode_l1(x, self.exact) - self.mode_floor,
        }
        if with_kl and len(x.unique(dim=0)) >= 0.99 * len(x):
            found["kl"] = kl_to_mixture(x, self.world.reference)
        return found


def _pretrained(preset: str, out: Path, diffusion: Diffusion, world: World) -> nn.Module:
    size = PRESETS[preset]
    torch.manual_seed(0)
    dim = world.reference.means.shape[1]
    net = MLPDenoiser(dim, diffusion.schedule.alpha_bar, hidden=size["hidden"])
    return Trainer(
        net,
        lambda net: diffusion.loss(net, world.reference.sample(1024)),
        size["base"],
        checkpoint=out / "base.safetensors",
        config={"world": world.name, "T": diffusion.T, "hidden": size["hidden"]},
        **PRETRAINING,
    ).run(progress=False)


def _run(
    bench: _Bench,
    judge: Judge,
    method: str,
    setting: dict,
    evaluations: int,
    seed: int,
    draws: int,
    on_the_way: bool = True,
) -> dict:
    """One run and its curve: judged when evaluations have grown by half, well at the end.

    Not ``on_the_way``: at the end only.
    """
    torch.manual_seed(seed)
    curve: list[dict] = []

    def look(step: int, spent: int, sampler: Sampler, draws: int = 1) -> None:
        with torch.random.fork_rng():  # judging must not change the run
            torch.manual_seed(seed)
            found = judge(sampler, draws)
        curve.append({"evaluations": spent, "step": step, **found})

    failure = None
    try:
        for stage in METHODS[method].run(bench, evaluations, **setting):
            due = not curve or stage[1] >= 1.5 * curve[-1]["evaluations"]
            if on_the_way and due and stage[1] < evaluations:
                look(*stage)
        look(*stage, draws=draws)
    except (FloatingPointError, ValueError) as error:  # a setting that diverges is a finding
        failure = str(error)
    return {
        "method": method, "setting": setting, "evaluations": evaluations, "seed": seed,
        "draws": draws, "curve": curve, "failure": failure,
    }  # fmt: skip


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


def reached(method: dict, reward: float, over_floor: float) -> list[tuple[int, bool]]:
    """Fewest evaluations to come as far and as close, over a seed's runs of all sizes; by seed.

    Args:
        method: one of the table's. Seeds that ran at one size only are left out where others exist.
        reward, over_floor: see ``evaluations_to_reach``.

    Returns (evaluations, True) for each seed, or (evaluations of its longest run, False): a bound.
    """
    seeds = {run["seed"] for run in method["other_sizes"] or method["runs"]}
    found = []
    for seed in sorted(seeds):
        runs = [run for run in method["runs"] + method["other_sizes"] if run["seed"] == seed]
        got = [evaluations_to_reach(run, reward, over_floor) for run in runs]
        longest = max(run["evaluations"] for run in runs)
        fewest = min((n for n in got if n is not None), default=None)
        found.append((longest, False) if fewest is None else (fewest, True))
    return found


def compare_rivals(preset: str, out: Path, method: str = "") -> Path:
    """Run what ``out`` does not hold yet and write the table.

    Args:
        preset: quick, laptop or full.
        out: one JSON file for each run, and the pretrained network.
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

    def run(name: str, setting: dict, seed: int, factor: float = 1, tried: bool = False) -> dict:
        kind = METHODS[name].kind
        evaluations = int(factor * size["evaluations"]) if kind != "sample" else 0
        draws = size["draws" if factor == 1 and not tried else "tried"]
        values = "_".join(f"{key}{value}" for key, value in sorted(setting.items()))
        path = out / f"{name}_{values}_{evaluations}_seed{seed}{'_tried' if tried else ''}.json"
        return kept(
            path,
            lambda: _run(bench, judge, name, setting, evaluations, seed, draws, not tried),
        )

    def compare(name: str) -> dict[str, Any]:
        values = [v[: size["values"]] for v in METHODS[name].search.values()]
        settings = [dict(zip(METHODS[name].search, pair, strict=True)) for pair in product(*values)]
        search = [run(name, setting, 0, tried=True) for setting in settings]
        best = min(search, key=_score)["setting"]
        factors = {"pool": size["fewer"], "policy": size["more"], "sample": ()}[METHODS[name].kind]
        seeds = range(size["rgdm_seeds" if name == "rgdm" else "seeds"])
        drawn_only = METHODS[name].kind == "sample"  # the search has its seed 0 already
        return {
            "kind": METHODS[name].kind,
            "search": search,
            "runs": [run(name, best, seed, tried=drawn_only) for seed in seeds],
            "other_sizes": [
                run(name, best, seed, factor) for factor in factors for seed in range(size["seeds"])
            ],
        }

    if method:
        compare(method)
        return out
    exact = world.exact(SHARE).denoiser(diffusion.schedule)
    torch.manual_seed(0)
    references = {"exact_denoiser": exact, "base": bench.base}
    table = {
        "world": world.name,
        "share": SHARE,
        "tau": bench.tau,
        "exact_reward": world.frontier(SHARE)[0],
        "exact_kl": world.frontier(SHARE)[1],
        "judged": size["judged"],
        "draws": size["draws"],
        "command": f"python -m rgdm_lib.course experiment worlds-rivals --preset {preset}",
        **{name: judge(bench.draws(net), 10) for name, net in references.items()},
        "methods": {},
    }
    for name in METHODS:
        table["methods"][name] = compare(name)
        write_json(out / "rivals.json", table)  # what there is so far
    if preset == "quick":
        return out / "rivals.json"
    write_json(path := data_root() / "worlds" / "rivals.json", table)
    write_manifest(data_root())
    return path
