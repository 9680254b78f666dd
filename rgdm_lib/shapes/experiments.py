"""Long runs on point clouds: the base model, classifiers, models guided by a reward; samples.

Each is ``python -m rgdm_lib.course experiment NAME --preset P`` and can be stopped and resumed.
Preset quick is a test of the machinery and writes into the run's folder only; the others write what
ships into ``data/shapes``.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rgdm_lib import rgdm
from rgdm_lib._data import data_root, write_manifest
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.payoff import Draw, Reward, temperature_for_ess
from rgdm_lib.shapes.data import Normalisation, ShapeSet, shapes
from rgdm_lib.shapes.model import (
    SAMPLING_STEPS,
    load_classifier,
    load_clouds,
    load_model,
    rounded,
    sample_clouds,
    save_clouds,
    save_model,
    shape_diffusion,
    training_times,
)
from rgdm_lib.shapes.nets import PointNet, SetDenoiser
from rgdm_lib.shapes.parametric import CLASSES
from rgdm_lib.shapes.rewards import class_logit, standing_margin, stands, symmetry
from rgdm_lib.training import Trainer, muon, save_weights

POINTS = {"quick": 64, "laptop": 512, "full": 2048}
SHAPES = {"quick": 20, "laptop": 4000, "full": 20_000}  # of each class, to train on
NETWORKS = {
    "quick": {"width": 16, "layers": 1, "latents": 4, "heads": 2},
    "laptop": {"width": 64, "layers": 4, "latents": 32, "heads": 2},
    "full": {"width": 256, "layers": 6, "latents": 64, "heads": 8},
}
TRAINING = {
    "quick": {"steps": 40, "batch": 8, "log_every": 5, "save_every": 0.0},
    "laptop": {"steps": 4500, "batch": 32, "log_every": 50, "save_every": 120.0},
    "full": {"steps": 200_000, "batch": 128, "log_every": 100, "save_every": 120.0},
}
SAMPLES = {"quick": 12, "laptop": 1500, "full": 1500}
STEPS = {"quick": 10, "laptop": SAMPLING_STEPS, "full": SAMPLING_STEPS}

# two networks of other widths and starts, each on a part of its own, which the base never sees
CLASSIFIERS = {"classifier": {"width": 128}, "judge": {"width": 96}}
CLASSIFIER_TRAINING = {
    "quick": {"shapes": 20, "steps": 100},
    "laptop": {"shapes": 1000, "steps": 600},
    "full": {"shapes": 4000, "steps": 4000},
}
# What guides a model: a reward, and what sets tau. A share of the samples that is to be effective;
# for a reward of two values, whose ties bound that share, tau itself: at 0.2 the odds of falling
# go down by exp(5) = 148. The control has no reward, which is tau to infinity, and is all rewards'.
WANTED = "chair"
GUIDED = {
    "control": {},
    "class_ess80": {"reward": "class", "share": 0.8},
    "class_ess40": {"reward": "class", "share": 0.4},
    "class_ess10": {"reward": "class", "share": 0.1},
    "stands": {"reward": "stands", "tau": 0.2},
    "symmetric": {"reward": "symmetric", "share": 0.4},
}
GUIDANCE = {
    "quick": {"steps": 10, "batch": 8, "samples": 6},
    "laptop": {"steps": 600, "batch": 32, "samples": 500},
    "full": {"steps": 20_000, "batch": 128, "samples": 1000},
}
SEEDS = (0, 1, 2)
JITTER = 0.03  # samples of a model are not as sharp as shapes


def _home(preset: str, out: Path) -> Path:
    return out if preset == "quick" else data_root() / "shapes"


def _command(name: str, preset: str) -> str:
    return f"python -m rgdm_lib.course experiment {name} --preset {preset}"


def train_base(preset: str, out: Path, lr: float = 1.5e-3, until: int = 0) -> Path:
    """Train the base model on all classes; write its averaged weights, then samples with rewards.

    The class is never told. ``until`` > 0 stops at that step, with a checkpoint in ``out`` and
    nothing shipped; the same command goes on later.
    """
    torch.manual_seed(0)
    network, setting, n = NETWORKS[preset], TRAINING[preset], SHAPES[preset]
    training = shapes("train", n, POINTS[preset]).points
    norm = Normalisation.of(training, f"part train, {n} of each class, {POINTS[preset]} points")
    training, diffusion, times = norm.apply(training), shape_diffusion(), training_times()

    def loss(net: Denoiser) -> Tensor:
        x0 = training[torch.randint(len(training), (setting["batch"],))]
        return diffusion.loss(net, x0, times=times)

    trainer = Trainer(
        SetDenoiser(diffusion.schedule.alpha_bar, **network),
        loss,
        setting["steps"],
        lr=lr,
        optimizer=muon,
        warmup=setting["steps"] // 20,
        decay_share=0.4,
        save_every=setting["save_every"],
        checkpoint=out / "checkpoint.safetensors",
        config={**network, "batch": setting["batch"], "shapes": n, "points": POINTS[preset]},
    )
    ema = trainer.run(until=until or None, log_every=setting["log_every"])
    if until:
        return trainer.checkpoint
    details = {
        "network": network,
        "command": _command("shapes-base", preset),
        "clouds_seen": trainer.step * setting["batch"],
        "history": trainer.history[:: max(1, len(trainer.history) // 200)],
    }
    save_model(_home(preset, out) / "base.safetensors", ema, norm, details)
    path = _home(preset, out) / "base_samples.npz"
    return _sample_and_score(ema, norm, path, preset, 0, SAMPLES[preset])


def _sample_and_score(
    denoiser: Denoiser, norm: Normalisation, path: Path, preset: str, seed: int, n: int
) -> Path:
    """Sample clouds and write them with their rewards, those of what the file holds."""
    torch.manual_seed(seed)
    setting = {"points": POINTS[preset], "steps": STEPS[preset], "bf16": preset != "quick"}
    clouds = rounded(sample_clouds(denoiser, norm, n, **setting, progress=True))
    save_clouds(path, clouds, margin=standing_margin(clouds), symmetry=symmetry(clouds))
    if preset != "quick":
        write_manifest(data_root())
    return path


def train_classifiers(preset: str, out: Path) -> list[Path]:
    """Train the classifier that gives rewards and the one that judges; seconds to minutes.

    Each sees 64 to all points of a shape, jittered and resized by up to a tenth, so that it does
    not rest on details that samples of a model lack. The metadata hold the accuracy on the
    validation part.
    """
    setting, held_out = CLASSIFIER_TRAINING[preset], shapes("validation", 200, POINTS[preset])
    written = []
    for seed, (name, network) in enumerate(CLASSIFIERS.items()):
        torch.manual_seed(seed)
        seen = shapes(name, setting["shapes"], POINTS[preset])

        def loss(net: nn.Module, seen: ShapeSet = seen) -> Tensor:
            index = torch.randint(len(seen), (32,))
            some = torch.randperm(POINTS[preset])[: int(torch.randint(64, POINTS[preset] + 1, ()))]
            size = 1 + 0.2 * (torch.rand(32, 1, 1) - 0.5)
            clouds = seen.points[index][:, some] * size
            clouds += JITTER * torch.rand(32, 1, 1) * torch.randn_like(clouds)
            return nn.functional.cross_entropy(net(clouds), seen.label[index], reduction="none")

        trainer = Trainer(
            PointNet(**network),
            loss,
            setting["steps"],
            warmup=setting["steps"] // 20,
            ema_decay=0.99,
            checkpoint=out / f"{name}.checkpoint.safetensors",
            config={**network, **setting, "points": POINTS[preset]},
        )
        ema = trainer.run()
        with torch.no_grad():
            right = (ema(held_out.points).argmax(1) == held_out.label).double().mean()
        print(f"{name}: {float(right):.4f} of {len(held_out)} held-out shapes right")
        details = {"network": network, "command": _command("shapes-classifiers", preset)}
        written.append(_home(preset, out) / f"{name}.safetensors")
        save_weights(written[-1], ema, details | {"accuracy": float(right)})
    if preset != "quick":
        write_manifest(data_root())
    return written


def reward_named(name: str) -> Reward:
    """A reward of ``GUIDED``: "class" (the logit of ``WANTED``), "stands" or "symmetric"."""
    if name == "class":
        return class_logit(load_classifier(), CLASSES.index(WANTED))
    return {"stands": stands, "symmetric": symmetry}[name]


def payoff_draw(name: str, clouds: Tensor) -> tuple[Draw, float]:
    """Clouds with the reward that guides a model of ``GUIDED``, and tau, in the reward's unit.

    The control's rewards are all 0: at any tau its payoff distribution is the reference.

    Raises:
        KeyError: no such model.
        ValueError: no tau gives that share of effective samples.
    """
    target = GUIDED[name]
    if not target:
        return Draw(clouds, torch.zeros(len(clouds))), 1.0
    draw = Draw(clouds, reward_named(target["reward"])(clouds))
    return draw, target.get("tau") or temperature_for_ess(draw.reward, target["share"])


def guided_name(name: str, seed: int) -> str:
    """Name of the file of samples of a guided model."""
    return f"{name}_seed{seed}_samples.npz"


def guide(
    preset: str,
    out: Path,
    models: tuple = tuple(GUIDED),
    seeds: tuple = SEEDS,
    lr: float = 5e-4,
) -> list[Path]:
    """RGDM from the base on its own samples: one network a reward, temperature and seed.

    Each writes a set of samples. A set that is
    there is not made again, a training that was stopped goes on.
    """
    setting, home = GUIDANCE[preset], _home(preset, out)
    if preset == "quick" and not (out / "base.safetensors").exists():
        train_base("quick", out)
    network, norm, _ = load_model(home / "base.safetensors")
    clouds, _ = load_clouds(home / "base_samples.npz")
    diffusion, times = shape_diffusion(), training_times()
    written = []
    for seed in seeds:
        for name in models:
            path = home / guided_name(name, seed)
            written.append(path)
            if path.exists():
                continue
            draw, tau = payoff_draw(name, clouds)
            pool = replace(draw, x0=norm.apply(draw.x0))
            print(f"{name}, seed {seed}: tau {tau:.4g}, {setting['steps']} steps")
            torch.manual_seed(1000 * (seed + 1))  # all models of a seed see the same noise
            guided = copy.deepcopy(network)
            rounds = rgdm.fit(
                guided,
                diffusion,
                lambda denoiser, pool=pool: pool,
                tau,
                steps=setting["steps"],
                batch_size=setting["batch"],
                loss=partial(diffusion.loss, times=times),
                progress=True,
                lr=lr,
                optimizer=muon,
                warmup=setting["steps"] // 20,
                decay_share=0.5,
                checkpoint=out / f"{name}_seed{seed}.checkpoint.safetensors",
                config={"model": name, "seed": seed, **setting},
            )
            list(rounds)
            _sample_and_score(guided, norm, path, preset, seed, setting["samples"])
    return written
