"""How long guidance takes: one guided model, trained four times as long, looked at on the way.

RGDM with QED toward the payoff distribution over the training molecules, as in ``molecules-qed``,
but from the base in one go. Samples of the averaged weights after some numbers of batches show how
much of the way each has gone.

``python -m rgdm_lib.course experiment molecules-longer --preset P``; it can be stopped and resumed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rgdm_lib._data import data_path
from rgdm_lib.molecules.data import MoleculeSet, load_qm9, load_set, save_set
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    base_file,
    command_line,
    guided_name,
    output_folder,
    payoff_draw,
    sample_and_score,
    targets,
)
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import (
    load_model,
    molecule_diffusion,
    training_times,
    weighted_batches,
)

TIMES_LONGER = 4  # than the guided models of ``molecules-qed``
LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the run
SAMPLES = {
    "quick": {"look": 8, "end": 8},
    "laptop": {"look": 1000, "end": 2000},
    "full": {"look": 1000, "end": 10_000},
}


def longer_name(share: int = 40, dataset: str = "heavy7", ending: str = "_samples.npz") -> str:
    """Name of a file of the longer run: ``_samples.npz``, ``_looks.npz`` or ``.safetensors``."""
    return guided_name("data", share, 0, dataset, f"_longer{ending}")


def load_longer(ending: str) -> MoleculeSet:
    """Shipped samples of the longer run, with QED and property batches, after how many."""
    return load_set(data_path(f"molecules/{longer_name(ending=ending)}"))


def guide_longer(preset: str, out: Path, share: int = 40, lr: float = 1e-3) -> list[Path]:
    """Train from the base toward the payoff at this effective share in %; write what was seen.

    Samples on the way have one noise, so that the looks differ by the network alone.
    """
    home, dataset, n = output_folder(preset, out), DATA[preset], SAMPLES[preset]
    weights, looks, end = (
        home / longer_name(share, dataset, ending)
        for ending in (".safetensors", "_looks.npz", "_samples.npz")
    )
    network, _ = load_model(base_file(dataset))
    if preset != "quick":
        network.compile(dynamic=True)
    diffusion, times, train = (
        molecule_diffusion(),
        training_times(),
        load_qm9(dataset).part("train"),
    )
    batches = weighted_batches(GUIDANCE[preset]["batch"])(
        targets(payoff_draw("data", dataset))[share]
    )
    steps = TIMES_LONGER * GUIDANCE[preset]["steps"]
    at = [round(part * steps) for part in LOOKS]

    def look(step: int, average: nn.Module) -> None:
        path = out / f"{looks.stem}_{step}.npz"
        if not path.exists():
            sample_and_score(average, path, preset, 0, n["look"], train, batches=step)

    torch.manual_seed(1000)
    average = train_and_save(
        network,
        lambda net: diffusion.loss(net, next(batches), times=times),
        weights,
        out / f"{weights.stem}.checkpoint.safetensors",
        steps,
        lr,
        {"share": share, "seed": 0, "longer": TIMES_LONGER},
        command_line("molecules-longer", preset),
        looks=at,
        look=look,
    )
    seen = [load_set(out / f"{looks.stem}_{step}.npz") for step in at]
    save_set(looks, MoleculeSet.concatenate(seen))
    return [looks, sample_and_score(average, end, preset, 0, n["end"], train, batches=steps)]
