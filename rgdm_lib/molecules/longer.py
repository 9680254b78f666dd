"""How long guidance takes: one guided model, trained four times as long, looked at on the way.

RGDM with QED toward the payoff distribution over the training molecules, as in ``molecules-qed``,
but from the base in one go. Samples of the averaged weights after some numbers of batches show how
much of the way each has gone.

``python -m rgdm_lib.course experiment molecules-longer --preset P``; it can be stopped and resumed.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rgdm_lib._data import data_path
from rgdm_lib._kept import require_known
from rgdm_lib.molecules.data import MoleculeSet, load_qm9, load_set, save_set
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    SHARES,
    base_file,
    guided_name,
    load_fast,
    output_folder,
    payoff_draw,
    sample_and_score,
    targets,
    train_toward,
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

    Raises:
        ValueError: an unknown share.
    """
    require_known("share", (share,), SHARES)
    home, dataset, n = output_folder(preset, out), DATA[preset], SAMPLES[preset]
    weights, looks, end = (
        home / longer_name(share, dataset, ending)
        for ending in (".safetensors", "_looks.npz", "_samples.npz")
    )
    network = load_fast(base_file(dataset), preset)
    train = load_qm9(dataset).part("train")
    steps = TIMES_LONGER * GUIDANCE[preset]["steps"]
    at = [round(part * steps) for part in LOOKS]

    def look_file(step: int) -> Path:
        return out / f"{looks.stem}_{step}.npz"

    def look(step: int, average: nn.Module) -> None:
        if not look_file(step).exists():
            sample_and_score(average, look_file(step), preset, 0, n["look"], train, batches=step)

    target = targets(payoff_draw("data", dataset))[share]
    config = {"share": share, "seed": 0, "longer": TIMES_LONGER}
    train_toward(
        preset, out, weights, network, target, 0, steps, lr, "longer", config, looks=at, look=look
    )
    if not looks.exists():
        save_set(looks, MoleculeSet.concatenate([load_set(look_file(step)) for step in at]))
    if not end.exists():
        sample_and_score(network, end, preset, 0, n["end"], train, batches=steps)
    return [looks, end]
