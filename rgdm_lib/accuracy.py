"""How near RGDM comes to payoff distributions that are known exactly, world by world.

``python -m rgdm_lib.course experiment worlds-rgdm --preset P``: a network is pretrained on each
world's reference; RGDM starts from it with samples of its own, at each temperature and seed. A run
is one file in ``out``; what is there is not repeated. Preset quick is a test of the machinery; the
others write ``data/worlds/rgdm.json``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib import payoff, rgdm
from rgdm_lib._data import data_root, write_manifest
from rgdm_lib._kept import kept, write_json
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.training import Trainer
from rgdm_lib.worlds import known
from rgdm_lib.worlds.known import World
from rgdm_lib.worlds.metrics import Sampler, kl_to_mixture, over_floor
from rgdm_lib.worlds.mixtures import GaussianMixture
from rgdm_lib.worlds.nets import PRETRAINING, MLPDenoiser
from rgdm_lib.worlds.sampling import fine_schedule, sampler_of

# n: samples, hence rewards, a round. noise: see ``training_times``. judged: points a draw, draws:
# of a judgement (means over them)
PRESETS = {
    "quick": {"T": 20, "hidden": 16, "base": 60, "rounds": 2, "n": 200, "steps": 20, "batch": 64,
              "noise": 0.1, "judged": 400, "draws": 2, "seeds": 1},
    "laptop": {"T": 400, "hidden": 128, "base": 30_000, "rounds": 4, "n": 5000, "steps": 1000,
               "batch": 1024, "noise": 0.1, "judged": 10_000, "draws": 10, "seeds": 3},
    "full": {"T": 1000, "hidden": 128, "base": 60_000, "rounds": 4, "n": 5000, "steps": 1000,
             "batch": 1024, "noise": 0.1, "judged": 10_000, "draws": 10, "seeds": 5},
}  # fmt: skip


class Target(NamedTuple):
    """A world, the effective shares in % to go to, and samples a round over the preset's n.

    Worlds of one reference share a pretrained network, ``base``. ``seen``: its pretraining takes
    half of its points from the payoff of that share, with weights that undo it. Without, a batch
    has one point of a mode of a thousandth, and the network's share of that mode is off by percents
    that every payoff of the network inherits. ``fit``: factors of the preset's steps, batch, noise.
    """

    make: Callable[[], World]
    shares: tuple[float, ...]
    factor: float = 1
    base: str = "ring"
    seen: float | None = None
    fit: dict[str, float] = {}


# An edge takes more training, at less noise: with 4 for the indicator its mass was 0.014 to 0.023
# short. On the pool of the ring at 10 %, a few thousand points at first, that much learns single
# points: in the end it had 8,000 effective samples, not 13,800. With the preset's own steps one of
# three models of it was 2.0 floors off, with a pool as good as the others'.
TARGETS = {
    "ring": Target(known.ring_world, (10, 40, 80), fit={"steps": 1.5}),
    # at 80 % the mass in its region is 0.19
    "indicator": Target(known.indicator_world, (10, 40), fit={"steps": 8, "noise": 0.5}),
    "rare": Target(known.rare_world, (0.38,), 2.5, "rare", 0.38, {"steps": 4, "noise": 0.5}),
    "mixture8d": Target(known.mixture8d_world, (10,), base="mixture8d"),
}

# Toward a payoff, a learning rate of 2e-3 is too much for four rounds of 1,000 steps: some samples
# of one of two models of the ring ran away (steps of the sampler even), 44 floors off.
FITTING = PRETRAINING | {"lr": 1e-3}


def training_times(diffusion: Diffusion, noise: float = 0.1) -> Tensor:
    """(T + 1,) probabilities of t in RGDM's training: half even, half where edges are made.

    That half is log-normal in the noise-to-signal ratio, median ``noise``, sd of the log 1. A jump
    of the payoff's density is blurred as far as the network is from sharp at little noise. Trained
    on exact draws of the indicator's payoff, a share of 0.820 in the region, for 3,000 steps of
    512: 0.773 of a model's samples are in it with median 0.1, 0.762 with 0.2, 0.782 with 0.05;
    0.789 with 0.1 and batches of 2,048.
    """
    alpha_bar = diffusion.schedule.alpha_bar[1:]
    ratio = ((1 - alpha_bar) / alpha_bar).sqrt()
    bump = torch.exp(-(ratio / noise).log().square() / 2) / ratio
    bump = bump * ratio.diff(prepend=ratio.new_zeros(1))
    even = torch.full_like(bump, 1 / diffusion.T)
    return torch.cat([bump.new_zeros(1), (even + bump / bump.sum()) / 2])


def _judge(world: World, share: float, model: Sampler, size: dict) -> dict[str, float]:
    """Distance over its floor, mean reward, KL to the exact reference in nats; means over draws."""
    n, draws, exact = size["judged"], size["draws"], world.exact(share)
    x = [model(n) for _ in range(draws)]
    again = iter(x)
    return {
        "over_floor": over_floor(lambda _: next(again), exact.sample, n, draws=draws),
        "reward": sum(float(world.reward(one).mean()) for one in x) / draws,
        "kl": sum(kl_to_mixture(one, world.reference) for one in x) / draws,
    }


def weighted_points(world: World, n: int, seen: float | None) -> tuple[Tensor, Tensor]:
    """n points and weights (n,) of mean 1 whose weighted law is the reference.

    Half of the points are the payoff's at share ``seen``: a point has density (p_ref + p*) / 2, so
    its weight is 2 / (1 + p* / p_ref), at most 2. None: points of the reference, of weight 1.
    """
    if seen is None:
        return world.reference.sample(n), torch.ones(n)
    x = torch.cat([world.reference.sample(n - n // 2), world.exact(seen).sample(n // 2)])
    log_tilt = world.reward(x) / world.tau(seen) - world.log_z(seen)
    return x, 2 * torch.sigmoid(-log_tilt)


def _pretrained(
    target: Target, world: World, diffusion: Diffusion, size: dict, out: Path
) -> nn.Module:
    torch.manual_seed(0)
    dim = world.reference.means.shape[1]
    net = MLPDenoiser(dim, diffusion.schedule.alpha_bar, hidden=size["hidden"], layers=3)

    def loss(net: Denoiser) -> Tensor:
        x0, weight = weighted_points(world, 1024, target.seen)
        return weight * diffusion.loss(net, x0)

    return Trainer(
        net,
        loss,
        size["base"],
        checkpoint=out / f"base_{target.base}.safetensors",
        config={"reference": target.base, "T": diffusion.T, "hidden": size["hidden"]},
        **PRETRAINING,
    ).run(progress=False)


def _beside(
    world: World, share: float, base: nn.Module, diffusion: Diffusion, size: dict
) -> dict[str, Any]:
    """What a run is measured against: exact values, the exact denoiser in the sampler, the base.

    The exact denoiser of an indicator's payoff, whose soft value is no sum of Gaussians, would take
    an hour: left out.
    """
    torch.manual_seed(0)
    dim, exact = world.reference.means.shape[1], world.exact(share)
    found = {
        "tau": world.tau(share),
        "exact_reward": world.frontier(share)[0],
        "exact_kl": world.frontier(share)[1],
        "base": _judge(world, share, sampler_of(diffusion, base, dim), size),
    }
    if isinstance(exact, GaussianMixture):
        sampler = sampler_of(diffusion, exact.denoiser(diffusion.schedule), dim)
        found["exact_denoiser"] = _judge(world, share, sampler, size)
    return found


def _run(
    world: World, share: float, n: int, base: nn.Module, diffusion: Diffusion, size: dict, seed: int
) -> dict[str, Any]:
    torch.manual_seed(seed)
    net, dim = copy.deepcopy(base), world.reference.means.shape[1]
    sampler = payoff.model_sampler(diffusion, lambda n: torch.randn(n, dim), world.reward, n)
    options = {"rounds": size["rounds"], "steps": size["steps"], "batch_size": size["batch"]}
    options["loss"] = partial(diffusion.loss, times=training_times(diffusion, size["noise"]))
    *_, last = rgdm.fit(net, diffusion, sampler, world.tau(share), **options, **FITTING)
    share_of = last.weighted.log_weight.exp()

    def pool(n: int) -> Tensor:
        return last.weighted.x0[torch.multinomial(share_of, n, replacement=True)]

    judged = {"n": size["judged"], "draws": size["draws"]}
    return {
        "seed": seed,
        "evaluations": last.evaluations,
        "ess": last.ess,
        "pool_over_floor": over_floor(pool, world.exact(share).sample, **judged),
        **_judge(world, share, sampler_of(diffusion, net, dim), size),
    }


def measure(preset: str, out: Path, world: str = "") -> Path:
    """Run what ``out`` does not hold yet and write the table.

    Args:
        preset: quick, laptop or full.
        out: one JSON file for each run, and the pretrained networks.
        world: only this one, and no table (several processes can share the work).

    Returns the table's path, or ``out`` without one.

    Raises:
        ValueError: an unknown world.
    """
    if world and world not in TARGETS:
        raise ValueError(f"no world {world!r}; there are {', '.join(TARGETS)}")
    size, diffusion = PRESETS[preset], Diffusion(fine_schedule(PRESETS[preset]["T"]))
    command = f"python -m rgdm_lib.course experiment worlds-rgdm --preset {preset}"
    table: dict[str, Any] = {"command": command, **size, "fit": {}, "worlds": {}}
    for name in [world] if world else TARGETS:
        target = TARGETS[name]
        where, n = target.make(), int(target.factor * size["n"])
        fit = {k: type(size[k])(factor * size[k]) for k, factor in target.fit.items()}
        base = _pretrained(target, where, diffusion, size, out)
        table["fit"][name] = {key: (size | fit)[key] for key in ("steps", "batch", "noise")}
        table["worlds"][name] = {}
        for share in target.shares:
            found = kept(
                out / f"{name}_{share}.json",
                partial(_beside, where, share, base, diffusion, size),
            )
            found["runs"] = [
                kept(
                    out / f"{name}_{share}_seed{seed}.json",
                    partial(_run, where, share, n, base, diffusion, size | fit, seed),
                )
                for seed in range(size["seeds"])
            ]
            table["worlds"][name][str(share)] = found
    if world:
        return out
    home = out if preset == "quick" else data_root() / "worlds"
    write_json(home / "rgdm.json", table)
    if preset != "quick":
        write_manifest(data_root())
    return home / "rgdm.json"
