"""Long runs on point clouds: the base model and its samples with their rewards.

Each is ``python -m rgdm_lib.course experiment NAME --preset P`` and can be stopped and resumed.
Preset quick is a test of the machinery and writes into the run's folder only; the others write what
ships into ``data/shapes``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rgdm_lib._data import data_root, write_manifest
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.shapes.data import Normalisation, shapes
from rgdm_lib.shapes.model import (
    SAMPLING_STEPS,
    rounded,
    sample_clouds,
    save_clouds,
    save_model,
    shape_diffusion,
    training_times,
)
from rgdm_lib.shapes.nets import SetDenoiser
from rgdm_lib.shapes.rewards import standing_margin, symmetry
from rgdm_lib.training import Trainer, muon

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
    return _sample_and_score(ema, norm, _home(preset, out) / "base_samples.npz", preset, 0)


def _sample_and_score(
    denoiser: Denoiser, norm: Normalisation, path: Path, preset: str, seed: int
) -> Path:
    """Sample clouds and write them with their rewards, those of what the file holds."""
    torch.manual_seed(seed)
    setting = {"points": POINTS[preset], "steps": STEPS[preset], "bf16": preset != "quick"}
    clouds = rounded(sample_clouds(denoiser, norm, SAMPLES[preset], **setting, progress=True))
    save_clouds(path, clouds, margin=standing_margin(clouds), symmetry=symmetry(clouds))
    if preset != "quick":
        write_manifest(data_root())
    return path
