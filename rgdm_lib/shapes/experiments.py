"""Long runs on point clouds: the base model, classifiers, models guided by a reward; samples.

Each is ``python -m rgdm_lib.course experiment NAME --preset P`` and can be stopped and resumed.
Preset quick is a test of the machinery and writes into the run's folder only; the others write what
ships into ``data/shapes``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib import rgdm
from rgdm_lib._data import data_path, data_root, read_manifest, write_manifest
from rgdm_lib._kept import require_known
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.hardware import bf16_pays, device_for, place
from rgdm_lib.payoff import Draw, Reward, temperature_for_ess
from rgdm_lib.rewards import threshold
from rgdm_lib.shapes.data import Normalisation, ShapeSet, shapes
from rgdm_lib.shapes.model import (
    CLASS_DECIDED,
    DECIDED,
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
from rgdm_lib.shapes.rewards import (
    class_log_probability,
    class_logit,
    standing_margin,
    stands,
    symmetry,
)
from rgdm_lib.strength import (
    is_binary,
    payoff_level,
    reward_level,
    sample_strengthened,
    strengthen,
)
from rgdm_lib.training import Trainer, load_tensors, muon, save_weights

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
BASE_FILE = "base_samples.npz"
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
# To favour a class by much is learned in a seventh of the base's steps. Weights that differ less
# take ``long``er: after so few, of the chairs due at 80 %, 0.56 of the samples, there were 0.50. At
# 40 %, where 0.86 are due, it is a wash: 0.85, 0.78, 0.82 after so few, 0.90 and 0.81 after as many
# as at 80 %. What steadies it is a noise-to-signal ``ratio`` of the training times where the class
# is decided: 0.88, 0.85, 0.89. The others draw theirs where shapes are. Whether a chair stands
# hangs on where its rear feet are: half of what fell still fell.
# To heed a condition takes longer, too. A model and its rivals have as many steps.
WANTED = "chair"
GUIDED = {
    "control": {"long": True},
    "class_ess80": {"reward": "class", "share": 0.8, "long": True},
    "class_ess40": {"reward": "class", "share": 0.4, "long": True, "ratio": CLASS_DECIDED},
    "class_ess10": {"reward": "class", "share": 0.1},
    # the law of the class
    "class_probability": {"reward": "class_probability", "tau": 1.0, "long": True},
    "stands": {"reward": "stands", "tau": 0.2, "long": True},
    "steady": {"reward": "steady", "tau": 0.2, "long": True},  # stands, with something to spare
    # the same with the base's own samples as the reference, for whom has no shapes
    "steady_model": {"reward": "steady", "tau": 0.2, "long": True, "own_samples": True},
    "symmetric": {"reward": "symmetric", "share": 0.4},
}
# Rivals of one guided model each: the same shapes with the same rewards (or their labels), as many
# steps, the same size of network where a denoiser is trained.
RIVALS = {
    "conditional_class": "class_probability",  # the label as input
    "classifier_class": "class_probability",  # the gradient of a classifier of noisy clouds
    "conditional_steady": "steady",  # the reward as input
    "value_steady": "steady",  # the gradient of a learned value
    "reward_weighted_class": "class_probability",  # the model's own samples, weighted, in rounds
    "reward_weighted_stands": "stands",
    "particles_class": "class_probability",  # a search when samples are drawn, nothing is trained
    "particles_stands": "stands",
    "ddpo_class": "class_probability",  # a policy gradient, without a KL to the base
}
LONGER = 3
LEARNING_RATES = {False: 5e-4, True: 1.5e-3}  # long: the base's own
GUIDANCE = {
    "quick": {"steps": 10, "batch": 8, "samples": 6},
    "laptop": {"steps": 600, "batch": 32, "samples": 500},
    "full": {"steps": 20_000, "batch": 128, "samples": 1000},
}
SEEDS = (0, 1, 2)
STRENGTHENED = "{}_strength"  # name of a guided model's set at another strength
SPARE = 0.1  # of "steady", 5 cm of furniture: a model blurs the edge of a reward by about 0.05
JITTER = 0.03  # samples of a model are not as sharp as shapes


def _home(preset: str, out: Path) -> Path:
    return out if preset == "quick" else data_root() / "shapes"


def _command(name: str, preset: str) -> str:
    return f"python -m rgdm_lib.course experiment {name} --preset {preset}"


def fast(network: nn.Module, preset: str) -> nn.Module:
    """The network on the preset's device, compiled, half as fast again.

    For the seconds of preset quick compiling does not pay.
    """
    place(network, device_for(preset))
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
        place(SetDenoiser(diffusion.schedule.alpha_bar, **network), device_for(preset)),
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
    clouds = _sample(fast(ema, preset), norm, preset, 0, SAMPLES[preset])
    return _score(clouds, _home(preset, out) / BASE_FILE, preset)


def _sample(
    denoiser: Denoiser,
    norm: Normalisation,
    preset: str,
    seed: int,
    n: int,
    cond: Tensor | None = None,
) -> Tensor:
    """Sample n clouds; their noise depends on the seed alone."""
    torch.manual_seed(seed)
    setting = {"points": POINTS[preset], "steps": STEPS[preset], "bf16": preset != "quick"}
    return sample_clouds(denoiser, norm, n, cond=cond, **setting, progress=True)


def _score(clouds: Tensor, path: Path, preset: str, **settings: float) -> Path:
    """Write clouds with their rewards, those of what the file holds, and a column each setting."""
    clouds = rounded(clouds)
    columns = {name: torch.full((len(clouds),), float(x)) for name, x in settings.items()}
    columns |= {"margin": standing_margin(clouds), "symmetry": symmetry(clouds)}
    save_clouds(path, clouds, **columns)
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
    if "reward" not in target:
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


def shipped_sets() -> dict[str, list[int]]:
    """Guided models, those at another strength and rivals that ship, each with its seeds."""
    names = (*GUIDED, *(STRENGTHENED.format(name) for name in GUIDED), *RIVALS)
    return {name: own for name in names if (own := shipped_seeds(name))}


def load_guided(name: str, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Shipped samples of a guided model or a rival: clouds; ``margin``, ``symmetry``, settings."""
    return load_clouds(data_path(f"shapes/{guided_name(name, seed)}"))


class Start(NamedTuple):
    """What guided models and rivals start from: the base, and the shapes that it has seen."""

    preset: str
    out: Path
    network: SetDenoiser
    norm: Normalisation
    seen: ShapeSet

    @classmethod
    def load(cls, preset: str, out: Path) -> Start:
        """The base and its shapes; preset quick trains one in ``out`` if there is none."""
        home = _home(preset, out)
        if preset == "quick" and not (out / "base.safetensors").exists():
            train_base("quick", out)
        network, norm, _ = load_model(home / "base.safetensors")
        seen = shapes("train", SHAPES[preset], POINTS[preset])
        return cls(preset, out, fast(network, preset), norm, seen)

    def sample(self, denoiser: Denoiser, seed: int, cond: Tensor | None = None) -> Tensor:
        """As many clouds as a set of this preset has."""
        n = GUIDANCE[self.preset]["samples"]
        return _sample(denoiser, self.norm, self.preset, seed, n, cond)

    def checkpoint(self, name: str, seed: int) -> Path:
        """Where the training of a guided model or a rival keeps its state."""
        return self.out / f"{name}_seed{seed}.checkpoint.safetensors"

    def draw(self, name: str) -> tuple[Draw, float]:
        """The shapes, or the base's samples, normalised, with a guided model's rewards; its tau."""
        clouds = self.seen.points
        if GUIDED[name].get("own_samples", False):
            clouds, _ = load_clouds(_home(self.preset, self.out) / BASE_FILE)
        draw, tau = payoff_draw(name, clouds)
        return replace(draw, x0=self.norm.apply(draw.x0)), tau

    def ratio(self, name: str) -> float:
        """Noise-to-signal ratio around which a model or a rival draws its training times."""
        return GUIDED.get(name, {}).get("ratio", DECIDED)

    def trainer(self, name: str, seed: int) -> dict[str, Any]:
        """Options of the training, the same for a guided model and its rivals."""
        setting = GUIDANCE[self.preset]
        long = GUIDED.get(RIVALS.get(name, name), {}).get("long", False)
        steps = setting["steps"] * (LONGER if long else 1)
        return {
            "steps": steps,
            "lr": LEARNING_RATES[long],
            "warmup": steps // 20,
            "decay_share": 0.5,
            "bf16": self.preset != "quick" and bf16_pays(device_for(self.preset).type),
            "checkpoint": self.checkpoint(name, seed),
            "config": {"model": name, "seed": seed, "ratio": self.ratio(name), **setting},
        }

    def fit(self, name: str, seed: int, net: nn.Module, loss: Callable, **options: Any) -> Any:
        """Train on batches of indices of the shapes: ``loss(net, index) -> (B,)``."""
        batch = GUIDANCE[self.preset]["batch"]

        def batch_loss(net: nn.Module) -> Tensor:
            return loss(net, torch.randint(len(self.seen), (batch,)))

        return Trainer(net, batch_loss, **self.trainer(name, seed) | options).run()


Made = tuple[Tensor, dict[str, float]]  # clouds, and numbers that become columns of their file


def _rgdm(start: Start, name: str, seed: int) -> Made:
    """RGDM on the shapes under their payoff weights."""
    draw, tau = start.draw(name)
    print(f"{name}, seed {seed}: tau {tau:.4g}", flush=True)
    guided, diffusion = fast(copy.deepcopy(start.network), start.preset), shape_diffusion()
    rounds = rgdm.fit(
        guided,
        diffusion,
        lambda denoiser: draw,
        tau,
        batch_size=GUIDANCE[start.preset]["batch"],
        loss=partial(diffusion.loss, times=training_times(start.ratio(name))),
        progress=True,
        optimizer=muon,
        **start.trainer(name, seed),
    )
    list(rounds)
    return start.sample(guided, seed), {}


def make_sets(
    preset: str, out: Path, names: tuple, seeds: tuple, make: Callable[[Start, str, int], Made]
) -> list[Path]:
    """Sets of samples, one a name and seed; one that is there is not made again."""
    home, start, written = _home(preset, out), Start.load(preset, out), []
    for seed in seeds:
        for name in names:
            path = home / guided_name(name, seed)
            written.append(path)
            if not path.exists():
                torch.manual_seed(1000 * (seed + 1))  # all models of a seed see the same noise
                clouds, settings = make(start, name, seed)
                _score(clouds, path, preset, **settings)
    return written


def guide(
    preset: str,
    out: Path,
    models: tuple = tuple(GUIDED),
    seeds: tuple = SEEDS,
) -> list[Path]:
    """RGDM from the base: one network for each reward, temperature and seed; sets of samples.

    The reference is the law of the parametric shapes, by those that the base was trained on: their
    payoff distribution is known. That of ``own_samples`` is the base's, by those that ship. A
    training that was stopped goes on.

    Raises:
        ValueError: an unknown model.
    """
    require_known("model", models, GUIDED)
    return make_sets(preset, out, models, seeds, _rgdm)


def _average_of(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint of ``Trainer``."""
    prefix, (tensors, _) = "ema.module.", load_tensors(checkpoint)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _guided_network(start: Start, name: str, seed: int) -> SetDenoiser:
    samples = _home(start.preset, start.out) / guided_name(name, seed)
    for path in (checkpoint := start.checkpoint(name, seed), samples):
        if not path.exists():
            raise FileNotFoundError(
                f"{name}, training seed {seed}: {path} is not there; guided weights do not ship."
                f" Run first: {_command('shapes-rgdm', start.preset)}. Then run this with --out and"
                " the folder that it trained in (its own is runs/shapes-rgdm/PRESET)"
            )
    network = copy.deepcopy(start.network)
    network.load_state_dict(_average_of(checkpoint))
    return fast(network.eval(), start.preset)


def strengthen_guided(
    preset: str, out: Path, models: tuple = ("stands",), seeds: tuple = (0,)
) -> list[Path]:
    """Samples of guided models at the strength that brings their mean reward to the payoff's.

    See ``sample_strengthened``; the strength is a column of their file.

    Raises:
        FileNotFoundError: the guided model's weights are not in ``out``, or its set is not there.
        ValueError: an unknown model, one no better than the base, or the reward does not rise.
    """
    require_known("model", models, GUIDED)
    home, start = _home(preset, out), Start.load(preset, out)
    return [_strengthen(start, home, name, seed) for seed, name in itertools.product(seeds, models)]


def _strengthen(start: Start, home: Path, name: str, seed: int) -> Path:
    path = home / guided_name(STRENGTHENED.format(name), seed)
    if path.exists():
        return path
    guided, (draw, tau) = _guided_network(start, name, seed), start.draw(name)
    reward, binary = reward_named(GUIDED[name]["reward"]), is_binary(draw.reward)

    def sample(file: Path, k: int, strength: float) -> None:
        noise = seed + len(SEEDS) * k  # the guided model's own set has the seed's
        clouds = start.sample(strengthen(guided, start.network, strength), noise)
        _score(clouds, file, start.preset, strength=strength)

    def level(clouds: Tensor) -> float:
        return reward_level(reward(clouds), binary)

    def look(file: Path) -> tuple[float, float]:
        clouds, values = load_clouds(file)
        return float(values["strength"][0]), level(clouds)

    levels = (
        payoff_level(draw.weigh(tau), binary),
        level(load_clouds(home / BASE_FILE)[0]),
        level(load_clouds(home / guided_name(name, seed))[0]),
    )
    return sample_strengthened(path, start.out, levels, sample, look)
