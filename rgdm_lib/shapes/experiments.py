"""Long runs on point clouds: the base model, classifiers, models guided by a reward; samples.

Each is ``python -m rgdm_lib.course experiment NAME --preset P`` and can be stopped and resumed.
Preset quick is a test of the machinery and writes into the run's folder only; the others write what
ships into ``data/shapes``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib import rgdm
from rgdm_lib._data import data_path, data_root, read_manifest, write_manifest
from rgdm_lib.baselines import classifier_guidance, conditional, value_guidance
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.payoff import Draw, Reward, systematic_resample, temperature_for_ess
from rgdm_lib.rewards import threshold
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
from rgdm_lib.shapes.nets import NoisyPointNet, PointNet, SetDenoiser
from rgdm_lib.shapes.parametric import CLASSES
from rgdm_lib.shapes.rewards import (
    class_log_probability,
    class_logit,
    standing_margin,
    stands,
    symmetry,
)
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
    "class_probability": {"reward": "class_probability", "tau": 1.0},  # the law of the class
    "stands": {"reward": "stands", "tau": 0.2},
    "steady": {"reward": "steady", "tau": 0.2},  # stands, with something to spare
    "symmetric": {"reward": "symmetric", "share": 0.4},
}
# Rivals of one guided model each: the same shapes with the same rewards (or their labels), as many
# steps, the same size of network where a denoiser is trained.
RIVALS = {
    "conditional_class": "class_probability",  # the label as input
    "classifier_class": "class_probability",  # the gradient of a classifier of noisy clouds
    "conditional_steady": "steady",  # the reward as input
    "value_steady": "steady",  # the gradient of a learned value
}
# A class is learned in a seventh of the base's steps. Whether a chair stands hangs on where its
# rear feet are: after 600 steps half of what fell still fell. It and its rivals take longer, and so
# does a network that has to learn to heed a condition: after 600 steps it did not.
LONG = ("control", "stands", "steady")
LONGER = 3
LEARNING_RATES = {False: 5e-4, True: 1.5e-3}  # long: the base's own
GUIDANCE = {
    "quick": {"steps": 10, "batch": 8, "samples": 6},
    "laptop": {"steps": 600, "batch": 32, "samples": 500},
    "full": {"steps": 20_000, "batch": 128, "samples": 1000},
}
SEEDS = (0, 1, 2)
SPARE = 0.1  # of "steady", 5 cm of furniture: a model blurs the edge of a reward by about 0.05
JITTER = 0.03  # samples of a model are not as sharp as shapes


def _home(preset: str, out: Path) -> Path:
    return out if preset == "quick" else data_root() / "shapes"


def _command(name: str, preset: str) -> str:
    return f"python -m rgdm_lib.course experiment {name} --preset {preset}"


def _fast(network: nn.Module, preset: str) -> nn.Module:
    """Compile, half as fast again; for the seconds of preset quick it does not pay."""
    if preset != "quick":
        network.compile()
    return network


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
    return _sample_and_score(_fast(ema, preset), norm, path, preset, 0, SAMPLES[preset])


def _sample_and_score(
    denoiser: Denoiser,
    norm: Normalisation,
    path: Path,
    preset: str,
    seed: int,
    n: int,
    cond: Tensor | None = None,
) -> Path:
    """Sample clouds and write them with their rewards, those of what the file holds."""
    torch.manual_seed(seed)
    setting = {"points": POINTS[preset], "steps": STEPS[preset], "bf16": preset != "quick"}
    clouds = sample_clouds(denoiser, norm, n, cond=cond, **setting, progress=True)
    clouds = rounded(clouds)
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
    """A reward of ``GUIDED``: of ``WANTED``, the logit or the log-probability, or of a shape."""
    if name.startswith("class"):
        of_class = class_logit if name == "class" else class_log_probability
        return of_class(load_classifier(), CLASSES.index(WANTED))
    steady = threshold(standing_margin, SPARE)
    return {"stands": stands, "steady": steady, "symmetric": symmetry}[name]


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
    """Name of the file of samples of a guided model or a rival."""
    return f"{name}_seed{seed}_samples.npz"


def shipped_seeds(name: str) -> list[int]:
    """Training seeds of a guided model or a rival whose samples ship."""
    there = set(read_manifest(data_root()))
    return [seed for seed in SEEDS if f"shapes/{guided_name(name, seed)}" in there]


def load_guided(name: str, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Shipped samples of a guided model or a rival: clouds, and ``margin`` and ``symmetry``."""
    return load_clouds(data_path(f"shapes/{guided_name(name, seed)}"))


class _Start(NamedTuple):
    """What guided models and rivals start from: the base, and the shapes that it has seen."""

    preset: str
    out: Path
    network: SetDenoiser
    norm: Normalisation
    seen: ShapeSet

    def draw(self, name: str) -> tuple[Draw, float]:
        """The shapes, normalised, with the rewards of a guided model, and its tau."""
        draw, tau = payoff_draw(name, self.seen.points)
        return replace(draw, x0=self.norm.apply(draw.x0)), tau

    def trainer(self, name: str, seed: int) -> dict[str, Any]:
        """Options of the training, the same for a guided model and its rivals."""
        setting = GUIDANCE[self.preset]
        long = RIVALS.get(name, name) in LONG or name.startswith("conditional")
        steps = setting["steps"] * (LONGER if long else 1)
        return {
            "steps": steps,
            "lr": LEARNING_RATES[long],
            "warmup": steps // 20,
            "decay_share": 0.5,
            "bf16": self.preset != "quick",
            "checkpoint": self.out / f"{name}_seed{seed}.checkpoint.safetensors",
            "config": {"model": name, "seed": seed, **setting},
        }

    def fit(self, name: str, seed: int, net: nn.Module, loss: Callable, **options: Any) -> Any:
        """Train on batches of indices of the shapes: ``loss(net, index) -> (B,)``."""
        batch = GUIDANCE[self.preset]["batch"]

        def batch_loss(net: nn.Module) -> Tensor:
            return loss(net, torch.randint(len(self.seen), (batch,)))

        return Trainer(net, batch_loss, **self.trainer(name, seed) | options).run()


Sampled = tuple[Denoiser, Tensor | None]  # a denoiser, and the conditions to sample with


def _rgdm(start: _Start, name: str, seed: int) -> Sampled:
    """RGDM on the shapes under their payoff weights."""
    draw, tau = start.draw(name)
    print(f"{name}, seed {seed}: tau {tau:.4g}", flush=True)
    guided, diffusion = _fast(copy.deepcopy(start.network), start.preset), shape_diffusion()
    rounds = rgdm.fit(
        guided,
        diffusion,
        lambda denoiser: draw,
        tau,
        batch_size=GUIDANCE[start.preset]["batch"],
        loss=partial(diffusion.loss, times=training_times()),
        progress=True,
        optimizer=muon,
        **start.trainer(name, seed),
    )
    list(rounds)
    return guided, None


def _conditional(start: _Start, name: str, seed: int) -> Sampled:
    """The label, or the reward, as a condition of the denoiser.

    Asked for is the wanted class, or the rewards of the payoff distribution.
    """
    n, draw, tau = GUIDANCE[start.preset]["samples"], *start.draw(RIVALS[name])
    if GUIDED[RIVALS[name]]["reward"] == "class_probability":
        cond = nn.functional.one_hot(start.seen.label, len(CLASSES)).float()
        asked = cond[start.seen.label == CLASSES.index(WANTED)][:1].expand(n, -1)
    else:
        cond = draw.reward[:, None]
        torch.manual_seed(seed)
        asked = cond[systematic_resample(draw.weigh(tau).log_weight, n)]
    diffusion, times = shape_diffusion(), training_times()

    def loss(net: nn.Module, index: Tensor) -> Tensor:
        return conditional.loss(diffusion, net, draw.x0[index], cond[index], times=times)

    wide = _fast(start.network.conditional(cond.shape[1] + 1), start.preset)
    trained = start.fit(name, seed, wide, loss, optimizer=muon)
    return conditional.classifier_free(_fast(trained, start.preset), 1.0), asked


def _gradient(start: _Start, name: str, seed: int) -> Sampled:
    """The gradient of log p(class | x_t), or of a learned value: the base itself is not trained."""
    draw, tau = start.draw(RIVALS[name])
    diffusion, best = shape_diffusion(), float(draw.reward.max())
    if name.startswith("classifier"):
        net = NoisyPointNet(diffusion.T, len(CLASSES))
        label = CLASSES.index(WANTED)

        def loss(net: nn.Module, index: Tensor) -> Tensor:
            x0, labels = draw.x0[index], start.seen.label[index]
            return classifier_guidance.loss(diffusion, net, x0, labels)

        def potential(net: nn.Module) -> classifier_guidance.Potential:
            return classifier_guidance.log_probability(net, label)

    else:
        net, potential = NoisyPointNet(diffusion.T, 1), value_guidance.log_weight

        def loss(net: nn.Module, index: Tensor) -> Tensor:
            x0, reward = draw.x0[index], draw.reward[index]
            return value_guidance.loss(diffusion, net, x0, reward, tau, best)

    trained = start.fit(name, seed, net, loss, lr=2e-3)  # from scratch
    return classifier_guidance.guided(start.network, potential(trained), diffusion), None


def _make(preset: str, out: Path, names: tuple, seeds: tuple, make: Callable) -> list[Path]:
    """Sets of samples, one a name and seed; one that is there is not made again."""
    home, n = _home(preset, out), GUIDANCE[preset]["samples"]
    if preset == "quick" and not (out / "base.safetensors").exists():
        train_base("quick", out)
    network, norm, _ = load_model(home / "base.safetensors")
    network = _fast(network, preset)
    start = _Start(preset, out, network, norm, shapes("train", SHAPES[preset], POINTS[preset]))
    written = []
    for seed in seeds:
        for name in names:
            path = home / guided_name(name, seed)
            written.append(path)
            if not path.exists():
                torch.manual_seed(1000 * (seed + 1))  # all models of a seed see the same noise
                denoiser, cond = make(start, name, seed)
                _sample_and_score(denoiser, norm, path, preset, seed, n, cond)
    return written


def guide(
    preset: str,
    out: Path,
    models: tuple = tuple(GUIDED),
    seeds: tuple = SEEDS,
) -> list[Path]:
    """RGDM from the base: one network for each reward, temperature and seed; sets of samples.

    The reference is the law of the parametric shapes, by those that the base was trained on: their
    payoff distribution is known. A training that was stopped goes on.
    """
    return _make(preset, out, models, seeds, _rgdm)


def compare(
    preset: str,
    out: Path,
    rivals: tuple = tuple(RIVALS),
    seeds: tuple = SEEDS,
) -> list[Path]:
    """The rivals' sets of samples, see ``RIVALS``; a training that was stopped goes on."""

    def make(start: _Start, name: str, seed: int) -> Sampled:
        kind = _conditional if name.startswith("conditional") else _gradient
        return kind(start, name, seed)

    return _make(preset, out, rivals, seeds, make)
