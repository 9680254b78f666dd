"""Away from the base model's own mistakes: molecules by two networks, without any reward.

A network that is trained once more, on samples of the base instead of data, makes the base's
mistakes again and new ones on top, mostly of the same kind. The line from it through the base goes
on toward the data: eps_own + s (eps_base - eps_own) with s > 1 (Alemohammad et al. 2024, arXiv
2408.16333, whose omega is s - 1; they choose it by a distance to the data, as we do).

``python -m rgdm_lib.course experiment molecules-correction --preset P``; it can be stopped and
resumed.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rgdm_lib._data import data_path
from rgdm_lib.molecules.data import MoleculeSet, load_qm9, load_set
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    base_file,
    guide_set,
    output_folder,
    sample_and_score,
)
from rgdm_lib.molecules.model import load_model
from rgdm_lib.payoff import Draw
from rgdm_lib.strength import strengthen

KINDS = ("own", "corrected")
STRENGTH = 3.0  # looked at on 800 samples each: 1.7, 3 and 5
SAMPLES = {"quick": 40, "laptop": 2000, "full": 10_000}
NOISE = 1  # of the corrected samples; the base's own have 0


def correction_name(kind: str, dataset: str = "heavy7", ending: str = "_samples.npz") -> str:
    """Name of the file of samples; ending .safetensors: of the weights of "own".

    Raises:
        ValueError: another kind than "own" and "corrected".
    """
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}: choose from {', '.join(KINDS)}")
    return f"base_{dataset}_{kind}{ending}"


def load_correction(kind: str, dataset: str = "heavy7") -> MoleculeSet:
    """Shipped samples of the network that learned from the base's samples, or of the correction."""
    return load_set(data_path(f"molecules/{correction_name(kind, dataset)}"))


def correct_base(
    preset: str, out: Path, strength: float = STRENGTH, lr: float = 1e-3
) -> list[Path]:
    """Train on all samples of the base, from the base; sample that network, then the correction.

    Samples without a value count as well: what falls to pieces is a mistake to get away from. A
    set that is there is not made again. The corrected one has property strength.
    """
    home, dataset, n = output_folder(preset, out), DATA[preset], SAMPLES[preset]
    base, own = (load_model(base_file(dataset))[0] for _ in range(2))
    if preset != "quick":
        base.compile(dynamic=True)
        own.compile(dynamic=True)
    pool = load_set(base_file(dataset, "_samples.npz"))
    everything = Draw(pool, torch.zeros(len(pool)), torch.from_numpy(pool.n_atoms)).weigh(1.0)
    made, corrected = (home / correction_name(kind, dataset) for kind in KINDS)
    config = {"kind": "own", "batch": GUIDANCE[preset]["batch"]}
    guide_set(preset, out, made, own, everything, 0, n, lr, "correction", config)
    if not corrected.exists():
        shipped = load_model(home / correction_name("own", dataset, ".safetensors"))[0]
        own.load_state_dict(shipped.state_dict())  # as a reader has it, in float16
        data = load_qm9(dataset).part("train")
        away = strengthen(base, own, strength)
        sample_and_score(away, corrected, preset, NOISE, n, data, strength=strength)
    return [made, corrected]
