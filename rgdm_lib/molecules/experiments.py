"""Long runs on molecules: the base model, its samples, and QED-guided models.

Each is ``python -m rgdm_lib.course experiment NAME --preset P`` and can be stopped and resumed.
Preset quick is a test of the machinery and writes into the run's folder only; the others write what
ships into ``data/molecules``.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rgdm_lib._data import data_path, data_root, read_manifest, write_manifest
from rgdm_lib._kept import require_known
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.hardware import bf16_pays, device_for, place
from rgdm_lib.in_parts import InParts
from rgdm_lib.molecules import rewards
from rgdm_lib.molecules.data import POSITION_UNIT, MoleculeSet, load_qm9, load_set, save_set
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.guiding import equal_weights, train_and_save
from rgdm_lib.molecules.model import (
    SAMPLING_STEPS,
    draw_sizes,
    load_model,
    molecule_diffusion,
    redraw,
    sample_molecules,
    sized_batches,
    training_times,
    weighted_batches,
)
from rgdm_lib.payoff import Draw, Weighted, temperature_for_ess
from rgdm_lib.strength import payoff_level, reward_level, sample_strengthened, strengthen
from rgdm_lib.training import Trainer, muon, save_weights

NETWORKS = {
    "quick": {"hidden": 32, "edge": 16, "layers": 2},
    "laptop": {"hidden": 128, "edge": 64, "layers": 5},
    "full": {"hidden": 256, "edge": 256, "layers": 9},
}
DATA = {"quick": "heavy7", "laptop": "heavy7", "full": "full"}
TRAINING = {
    "quick": {"steps": 60, "batch": 16, "log_every": 5, "save_every": 0.0},
    "laptop": {"steps": 84_000, "batch": 64, "log_every": 100, "save_every": 120.0},
    "full": {"steps": 400_000, "batch": 256, "log_every": 100, "save_every": 120.0},
}
SAMPLES = {"quick": 40, "laptop": 10_000, "full": 10_000}
STEPS = {"quick": 10, "laptop": SAMPLING_STEPS, "full": SAMPLING_STEPS}
GUIDANCE = {
    "quick": {"steps": 20, "batch": 16},  # for each temperature
    "laptop": {"steps": 8_000, "batch": 64},
    "full": {"steps": 100_000, "batch": 256},
}
# effective sample size in % of the samples with a value; 100 is the control: equal weights
SHARES = (100, 80, 40, 10)
REFERENCES = ("data", "model")
SEEDS = (0, 1, 2)
STRENGTHENED = "_strengthened_samples.npz"
REDRAW_TIMES = (100, 200, 300, 400, 500, 700, 1000)
# a mild tilt moves the mean little, so it takes more samples to measure
GUIDED_SAMPLES = {
    "quick": dict.fromkeys(SHARES, 40),
    "laptop": {100: 2000, 80: 4000, 40: 2000, 10: 2000},
    "full": dict.fromkeys(SHARES, 10_000),
}


def output_folder(preset: str, out: Path) -> Path:
    """Where files go: of preset quick into the run's folder, of the others into ``data``."""
    return out if preset == "quick" else data_root() / "molecules"


def base_file(dataset: str, ending: str = ".safetensors") -> Path:
    """What ships of the base model."""
    return data_path(f"molecules/base_{dataset}{ending}")


def command_line(name: str, preset: str) -> str:
    """The command of an experiment, for the metadata of what it makes."""
    return f"python -m rgdm_lib.course experiment {name} --preset {preset}"


def fast(network: nn.Module, preset: str) -> nn.Module:
    """The network on the preset's device, compiled once for all sizes of molecules.

    For the seconds of preset quick compiling does not pay.
    """
    place(network, device_for(preset))
    if preset != "quick":
        network.compile(dynamic=True)
    return network


def load_fast(path: Path, preset: str) -> EGNN:
    """``load_model``'s network, ``fast``."""
    return fast(load_model(path)[0], preset)


def train_base(preset: str, out: Path, lr: float = 1.5e-3, until: int = 0) -> Path:
    """Train the base model; write its averaged weights, then 10,000 samples with QED.

    ``until`` > 0 stops at that step, with a checkpoint in ``out`` and nothing shipped; the same
    command goes on later.
    """
    torch.manual_seed(0)
    network, setting = NETWORKS[preset], TRAINING[preset]
    batch = setting["batch"]
    diffusion, times = molecule_diffusion(), training_times()
    data = load_qm9(DATA[preset]).part("train")
    draw = sized_batches(data, batch)
    model = fast(EGNN(diffusion.schedule.alpha_bar, **network), preset)
    trainer = Trainer(
        model,
        lambda net: diffusion.loss(net, next(draw), times=times),
        setting["steps"],
        lr=lr,
        optimizer=muon,
        decay_share=0.4,
        ema_decay=0.9995,
        bf16=bf16_pays(device_for(preset).type),
        save_every=setting["save_every"],
        checkpoint=out / "checkpoint.safetensors",
        config={**network, "batch": batch, "data": DATA[preset]},
    )
    ema = trainer.run(until=until or None, log_every=setting["log_every"])
    if until:
        return trainer.checkpoint
    name = output_folder(preset, out) / f"base_{DATA[preset]}.safetensors"
    details = {
        "network": network,
        "command": command_line("molecules-base", preset),
        "molecules_seen": trainer.step * batch,
        "history": trainer.history[:: max(1, len(trainer.history) // 200)],
    }
    save_weights(name, ema, details)
    path = name.with_name(name.stem + "_samples.npz")
    return sample_and_score(ema, path, preset, 0, SAMPLES[preset], data)


def sample_and_score(
    denoiser: Denoiser,
    path: Path,
    preset: str,
    seed: int,
    n: int,
    data: MoleculeSet,
    **settings: float,
) -> Path:
    """Sample n molecules and write them with their QED; ``settings``: further columns of one value.

    Sizes and noise depend on the seed alone: models are compared on the same draws.
    """
    torch.manual_seed(seed)
    sizes = draw_sizes(data, n)
    cached = InParts(denoiser)  # pairs of 64 molecules stay in the cache: a fifth faster
    molecules = sample_molecules(
        cached, sizes, STEPS[preset], bf16=preset != "quick", progress=True
    )
    columns = {name: np.full(n, value) for name, value in settings.items()}
    return write_scored(molecules.with_properties(**columns), path, preset)


def write_scored(molecules: MoleculeSet, path: Path, preset: str) -> Path:
    """Write samples with their QED (NaN: no value)."""
    # what the file will hold: finite positions in its range, rounded. A diverged sample falls to
    # pieces there and has no value
    inside = np.nan_to_num(molecules.positions, nan=0.0).clip(-16, 16)
    molecules = replace(molecules, positions=np.rint(inside / POSITION_UNIT) * POSITION_UNIT)
    save_set(path, molecules.with_properties(qed=rewards.qed(molecules).numpy()))
    if preset != "quick":
        write_manifest(data_root())
    return path


def sample_base(preset: str, out: Path) -> Path:
    """10,000 samples of the shipped base model, with QED."""
    model = load_fast(base_file(DATA[preset]), preset)
    path = output_folder(preset, out) / f"base_{DATA[preset]}_samples.npz"
    data = load_qm9(DATA[preset]).part("train")
    return sample_and_score(model, path, preset, 0, SAMPLES[preset], data)


@functools.cache  # QED of all training molecules takes seconds
def payoff_draw(reference: str, dataset: str = "heavy7") -> Draw:
    """What the payoff distribution is made of: molecules of the reference with their QED, by size.

    Args:
        reference: "data": the training molecules; "model": the base model's shipped samples.
        dataset: of the base model.

    Raises:
        ValueError: another reference.
    """
    require_known("reference", (reference,), REFERENCES)
    if reference == "data":
        pool = load_qm9(dataset).part("train")
        qed = rewards.qed(pool)
    else:
        pool = load_set(base_file(dataset, "_samples.npz"))
        qed = torch.from_numpy(pool.property("qed"))
    return Draw(pool, qed, torch.from_numpy(pool.n_atoms))


def temperatures(draw: Draw) -> dict[int, float]:
    """Share in % -> tau; infinite for the control."""
    return {
        share: math.inf
        if share == 100
        else temperature_for_ess(draw.reward, share / 100, draw.strata)
        for share in SHARES
    }


def targets(draw: Draw) -> dict[int, Weighted]:
    """Share in % -> the reference under its payoff weights; equal weights for the control."""
    return {
        share: equal_weights(draw) if math.isinf(tau) else draw.weigh(tau)
        for share, tau in temperatures(draw).items()
    }


def shipped_seeds(reference: str, dataset: str = "heavy7") -> list[int]:
    """Training seeds of which all sets of samples ship."""
    there = set(read_manifest(data_root()))
    return [
        seed
        for seed in SEEDS
        if all(f"molecules/{guided_name(reference, s, seed, dataset)}" in there for s in SHARES)
    ]


def load_guided(reference: str, share: int, seed: int, dataset: str = "heavy7") -> MoleculeSet:
    """Shipped samples of a guided model, with their QED."""
    return load_set(data_path(f"molecules/{guided_name(reference, share, seed, dataset)}"))


def load_if_shipped(name: str) -> MoleculeSet | None:
    """A set of samples in ``data/molecules``; None if it does not ship."""
    name = f"molecules/{name}"
    return load_set(data_path(name)) if name in read_manifest(data_root()) else None


def load_strengthened(
    reference: str, share: int, seed: int, dataset: str = "heavy7"
) -> MoleculeSet | None:
    """Shipped samples at the strength that meets the payoff's mean QED; None if they do not ship.

    Besides their QED they have the property strength, the same for all of them.
    """
    return load_if_shipped(guided_name(reference, share, seed, dataset, STRENGTHENED))


def guided_name(
    reference: str, share: int, seed: int, dataset: str = "heavy7", ending: str = "_samples.npz"
) -> str:
    """Name of the file of a guided model's samples; ending .safetensors: of its weights."""
    return f"qed_{dataset}_{reference}_ess{share}_seed{seed}{ending}"


def train_toward(
    preset: str,
    out: Path,
    weights: Path,
    network: nn.Module,
    target: Weighted,
    seed: int,
    steps: int,
    lr: float,
    reward: str,
    config: dict[str, Any],
    **looks: Any,
) -> None:
    """Train a network on the target from where it is; write its weights and leave it with them.

    Weights that are there are not made again.

    Args:
        preset: quick, laptop or full.
        out: folder of the checkpoint.
        weights: file to write.
        network: see above.
        target: molecules under their weights.
        seed: training seed.
        steps: batches.
        lr: peak learning rate.
        reward: names the experiment, for the metadata.
        config: what identifies the run, JSON.
        looks: ``looks`` and ``look`` of ``train_and_save``.
    """
    if not weights.exists():
        diffusion, times = molecule_diffusion(), training_times()
        torch.manual_seed(1000 * (seed + 1))
        batches = weighted_batches(GUIDANCE[preset]["batch"])(target)
        train_and_save(
            network,
            lambda net: diffusion.loss(net, next(batches), times=times),
            weights,
            out / f"{weights.stem}.checkpoint.safetensors",
            steps,
            lr,
            config,
            command_line(f"molecules-{reward}", preset),
            **looks,
        )
    network.load_state_dict(load_model(weights)[0].state_dict())  # in float16, resumed or not


def guide_set(
    preset: str,
    out: Path,
    path: Path,
    network: nn.Module,
    target: Weighted,
    seed: int,
    n: int,
    lr: float,
    reward: str,
    config: dict[str, Any],
) -> None:
    """``train_toward``, then n samples in the file ``path``; the weights lie beside it."""
    weights = path.with_name(path.name.removesuffix("_samples.npz") + ".safetensors")
    steps = GUIDANCE[preset]["steps"]
    train_toward(preset, out, weights, network, target, seed, steps, lr, reward, config)
    if not path.exists():
        sample_and_score(network, path, preset, seed, n, load_qm9(DATA[preset]).part("train"))


def guide_qed(
    preset: str,
    out: Path,
    references: tuple = REFERENCES,
    seeds: tuple = SEEDS,
    lr: float = 1e-3,
) -> list[Path]:
    """RGDM with QED as reward; for each reference and seed one network after the other.

    First the control (share 100), from the base: nothing but re-training moves it. Then each
    temperature from where the warmer one ended; the target is fixed by the weights, so that the
    start only saves steps. Training batches are molecules of the reference under their payoff
    weights; the reward evaluations are those of the reference.

    Each network is written with a set of its samples. A set that is there is not made again.

    Raises:
        ValueError: an unknown reference.
    """
    require_known("reference", references, REFERENCES)
    setting, home, dataset = GUIDANCE[preset], output_folder(preset, out), DATA[preset]
    network = load_fast(base_file(dataset), preset)
    base = copy.deepcopy(network.state_dict())
    written = []
    for reference in references:
        wanted = targets(payoff_draw(reference, dataset))
        for seed in seeds:
            network.load_state_dict(base)
            for share in SHARES:
                written.append(home / guided_name(reference, share, seed, dataset))
                print(f"reference {reference}, seed {seed}, ESS {share} %", flush=True)
                config = {"reference": reference, "seed": seed, "share": share, **setting}
                n = GUIDED_SAMPLES[preset][share]
                guide_set(
                    preset, out, written[-1], network, wanted[share], seed, n, lr, "qed", config
                )
    return written


def strengthen_set(
    preset: str,
    out: Path,
    path: Path,
    sampler: Callable[[float], Denoiser],
    seed: int,
    n: int,
    levels: tuple[float, float, float],
    level: Callable[[MoleculeSet], float],
) -> Path:
    """``sample_strengthened`` for molecules.

    Args:
        preset: quick, laptop or full.
        out: folder of the trials.
        path: file of the samples, with property strength.
        sampler: strength -> denoiser.
        seed: training seed; the guided model's own set has its noise, others have other noise.
        n: samples of each set.
        levels: of the payoff, the reference and the guided model.
        level: of samples, as ``reward_level`` says it.
    """
    data = load_qm9(DATA[preset]).part("train")

    def sample(file: Path, k: int, strength: float) -> None:
        noise = seed + len(SEEDS) * k
        sample_and_score(sampler(strength), file, preset, noise, n, data, strength=strength)

    return sample_strengthened(path, out, levels, sample, strength_and(level))


def strength_and(
    level: Callable[[MoleculeSet], float],
) -> Callable[[Path], tuple[float, float]]:
    """Of a file of samples: the strength that it was sampled at, and the level of its molecules."""

    def look(file: Path) -> tuple[float, float]:
        molecules = load_set(file)
        return float(molecules.property("strength")[0]), level(molecules)

    return look


def qed_level(molecules: MoleculeSet) -> float:
    """``reward_level`` of the QED that a set was written with."""
    return reward_level(torch.from_numpy(molecules.property("qed")))


def strengthen_qed(
    preset: str,
    out: Path,
    references: tuple = REFERENCES,
    seeds: tuple = SEEDS,
    shares: tuple = (40, 10, 80),
) -> list[Path]:
    """Samples of the guided models at the strength that brings their mean QED to the payoff's.

    A set that is there is not made again, see ``strengthen_set``.

    Raises:
        ValueError: a guided model whose mean QED is not above the base's, or does not rise; an
            unknown reference or share.
    """
    require_known("reference", references, REFERENCES)
    require_known("share", shares, SHARES[1:])
    home, dataset = output_folder(preset, out), DATA[preset]
    base, guided = (load_fast(base_file(dataset), preset) for _ in range(2))
    start = qed_level(load_set(base_file(dataset, "_samples.npz")))
    written = []
    for reference in references:
        wanted = targets(payoff_draw(reference, dataset))
        for seed, share in itertools.product(seeds, shares):
            weights, at_one, path = (
                home / guided_name(reference, share, seed, dataset, ending)
                for ending in (".safetensors", "_samples.npz", STRENGTHENED)
            )
            written.append(path)
            if path.exists():
                continue
            guided.load_state_dict(load_model(weights)[0].state_dict())
            levels = payoff_level(wanted[share]), start, qed_level(load_set(at_one))
            n = GUIDED_SAMPLES[preset][share]
            sampler = functools.partial(strengthen, guided, base)
            strengthen_set(preset, out, path, sampler, seed, n, levels, qed_level)
    return written


def redraw_qed(preset: str, out: Path, share: int = 40, n: int = 300) -> list[Path]:
    """Where a reward is learned: molecules of the payoff noised to t and sampled back, for some t.

    Once by the base and once by the guided model of the data reference, seed 0; n for each of
    ``REDRAW_TIMES``, with property t.

    Raises:
        ValueError: an unknown share.
    """
    require_known("share", (share,), SHARES)
    n, dataset = (8 if preset == "quick" else n), DATA[preset]
    wanted = targets(payoff_draw("data", dataset))[share]
    weights = guided_name("data", share, 0, dataset, ".safetensors")
    base, guided = (
        load_fast(path, preset)
        for path in (base_file(dataset), output_folder(preset, out) / weights)
    )
    written = []
    for name, denoiser in (("base", base), ("guided", guided)):
        torch.manual_seed(0)
        chosen = wanted.resample(n)
        parts = [
            redraw(denoiser, chosen, t, STEPS[preset], bf16=preset != "quick", progress=True)
            for t in REDRAW_TIMES
        ]
        molecules = MoleculeSet.concatenate(parts)
        molecules = molecules.with_properties(t=np.repeat(REDRAW_TIMES, n))
        written.append(
            write_scored(
                molecules, output_folder(preset, out) / f"redrawn_{dataset}_{name}.npz", preset
            )
        )
    return written
