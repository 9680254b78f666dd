"""Long runs on molecules: the base model, its samples, and QED-guided models.

Each is ``python -m rgdm_lib.course experiment NAME --preset P`` and can be stopped and resumed.
Preset quick is a test of the machinery and writes into the run's folder only; the others write what
ships into ``data/molecules``.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rgdm_lib import rgdm
from rgdm_lib._data import data_root, write_manifest
from rgdm_lib.molecules import rewards
from rgdm_lib.molecules.data import POSITION_UNIT, MoleculeSet, load_qm9, load_set, save_set
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.model import (
    T,
    draw_sizes,
    load_model,
    molecule_diffusion,
    sample_molecules,
    sized_batches,
    weighted_batches,
)
from rgdm_lib.payoff import data_sampler, temperature_for_ess
from rgdm_lib.training import Trainer, save_weights

NETWORKS = {
    "quick": {"hidden": 32, "edge": 16, "layers": 2},
    "laptop": {"hidden": 128, "edge": 64, "layers": 5},
    "full": {"hidden": 256, "edge": 256, "layers": 9},
}
DATA = {"quick": "heavy7", "laptop": "heavy7", "full": "full"}
TRAINING = {
    "quick": {"steps": 60, "batch": 16, "log_every": 5, "save_every": 0.0},
    "laptop": {"steps": 37_000, "batch": 64, "log_every": 100, "save_every": 120.0},
    "full": {"steps": 400_000, "batch": 256, "log_every": 100, "save_every": 120.0},
}
SAMPLES = {"quick": 40, "laptop": 10_000, "full": 10_000}
SAMPLING_STEPS = {"quick": 10, "laptop": 100, "full": 250}
GUIDANCE = {
    "quick": {"steps": 20, "batch": 16},
    "laptop": {"steps": 800, "batch": 64},
    "full": {"steps": 10_000, "batch": 256},
}
SHARES = (80, 40, 10)  # effective sample size in % of the samples with a value
# a mild tilt moves the mean little, so it takes more samples to measure
GUIDED_SAMPLES = {
    "quick": {80: 40, 40: 40, 10: 40},
    "laptop": {80: 3000, 40: 1500, 10: 1500},
    "full": {80: 10_000, 40: 10_000, 10: 10_000},
}


def _home(preset: str, out: Path) -> Path:
    return out if preset == "quick" else data_root() / "molecules"


def _command(name: str, preset: str) -> str:
    return f"python -m rgdm_lib.course experiment {name} --preset {preset}"


def train_base(preset: str, out: Path, lr: float = 1e-3, until: int = 0) -> Path:
    """Train the base model; write its averaged weights, then 10,000 samples with QED.

    ``until`` > 0 stops at that step, with a checkpoint in ``out``; the same command goes on later.
    """
    torch.manual_seed(0)
    network, setting = NETWORKS[preset], TRAINING[preset]
    batch = setting["batch"]
    diffusion = molecule_diffusion()
    data = load_qm9(DATA[preset]).part("train")
    draw = sized_batches(data, batch)
    model = EGNN(diffusion.schedule.alpha_bar, **network)
    if preset != "quick":
        torch._dynamo.config.recompile_limit = 64  # one compilation for each size of molecule
        model.compile(dynamic=False)
    trainer = Trainer(
        model,
        lambda net: diffusion.loss(net, next(draw)),
        setting["steps"],
        lr=lr,
        bf16=True,
        save_every=setting["save_every"],
        checkpoint=out / "checkpoint.safetensors",
        config={**network, "lr": lr, "batch": batch, "T": T},
    )
    ema = trainer.run(until=until or None, log_every=setting["log_every"])
    name = _home(preset, out) / f"base_{DATA[preset]}.safetensors"
    details = {
        "network": network,
        "command": _command("molecules-base", preset),
        "molecules_seen": trainer.step * batch,
        "history": trainer.history[:: max(1, len(trainer.history) // 200)],
    }
    save_weights(name, ema, details)
    return _sample_and_score(name, preset, 0, SAMPLES[preset], data)


def _sample_and_score(weights: Path, preset: str, seed: int, n: int, data: MoleculeSet) -> Path:
    """Sample n molecules from shipped weights, add QED (NaN: no value), write them beside."""
    model, _ = load_model(weights)
    torch.manual_seed(seed)
    sizes = draw_sizes(data, n)
    molecules = sample_molecules(
        model, sizes, SAMPLING_STEPS[preset], bf16=preset != "quick", progress=True
    )
    # what the file will hold: finite positions in its range, rounded. A diverged sample falls to
    # pieces there and has no value
    inside = np.nan_to_num(molecules.positions, nan=0.0).clip(-16, 16)
    molecules = replace(molecules, positions=np.rint(inside / POSITION_UNIT) * POSITION_UNIT)
    scored = molecules.with_properties(qed=rewards.qed(molecules).numpy())
    path = save_set(weights.with_name(weights.stem + "_samples.npz"), scored)
    if preset != "quick":
        write_manifest(data_root())
    return path


def guide_qed(
    preset: str, out: Path, shares: tuple = SHARES, seeds: tuple = (0, 1, 2), lr: float = 3e-4
) -> list[Path]:
    """RGDM with QED as reward, from the base model's own samples; one model a share and seed.

    The reward evaluations are those of the base samples, shared by all runs; each run writes a set
    of samples with their QED. A set that is there is not made again.
    """
    data = load_qm9(DATA[preset]).part("train")
    home, shipped_base = _home(preset, out), data_root() / "molecules"
    base_path = shipped_base / f"base_{DATA[preset]}.safetensors"
    reference = load_set(shipped_base / f"base_{DATA[preset]}_samples.npz")
    qed = torch.from_numpy(reference.property("qed"))
    strata = torch.from_numpy(reference.n_atoms)
    base, metadata = load_model(base_path)
    written = []
    for seed in seeds:
        for share in shares:
            weights = out / f"qed_{DATA[preset]}_ess{share}_seed{seed}.safetensors"
            shipped = home / f"{weights.stem}_samples.npz"
            written.append(shipped)
            if shipped.exists():
                continue
            torch.manual_seed(1000 * (seed + 1) + share)
            tau = temperature_for_ess(qed, share / 100, strata)
            guided = copy.deepcopy(base)
            sampler = data_sampler(reference, lambda m: torch.from_numpy(m.property("qed")), strata)
            for round_ in rgdm.fit(
                guided,
                molecule_diffusion(),
                sampler,
                tau,
                steps=GUIDANCE[preset]["steps"],
                batches=weighted_batches(GUIDANCE[preset]["batch"]),
                lr=lr,
                bf16=preset != "quick",
                progress=True,
            ):
                print(f"share {share} seed {seed}: tau {tau:.4f}, ESS {round_.ess:.0f}, "
                      f"payoff QED {round_.reward:.4f}")  # fmt: skip
            details = {
                "network": metadata["network"],
                "command": _command("molecules-qed", preset),
                "tau": tau,
            }
            save_weights(weights, guided, details)
            made = _sample_and_score(weights, preset, seed, GUIDED_SAMPLES[preset][share], data)
            save_set(shipped, load_set(made))
    if preset != "quick":
        write_manifest(data_root())
    return written
