"""Relaxation energy as a reward: RGDM toward geometries that a physical model finds relaxed.

The reward is minus the energy that a molecule loses on its way to the nearest minimum of GFN2-xTB,
eV per atom; a molecule that is not stable by EDM's rule, or lies in pieces, has no value. The
reference is the base model, by the first of its shipped samples; sizes are kept. The judges are
two models that the reward does not know: GFN1-xTB and MMFF94.

``python -m rgdm_lib.course experiment molecules-relaxation --preset P``; it can be stopped and
resumed. It needs the package tblite (extra ``physics``).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch

from rgdm_lib._data import data_path, data_root, write_manifest
from rgdm_lib._kept import kept, require_known
from rgdm_lib.differences import along, sample_by_trial, strength_of_difference
from rgdm_lib.molecules import judges
from rgdm_lib.molecules.data import POSITION_UNIT, MoleculeSet, load_qm9, load_set, save_set
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    SEEDS,
    STRENGTHENED,
    base_file,
    guide_set,
    guided_name,
    load_fast,
    load_guided,
    load_if_shipped,
    output_folder,
    sample_and_score,
    strength_and,
)
from rgdm_lib.molecules.model import load_model
from rgdm_lib.molecules.stability import stability_name
from rgdm_lib.payoff import Draw, Weighted, temperature_for_ess
from rgdm_lib.strength import payoff_level, reward_level

COLUMNS = {
    "relaxation_gfn2": "GFN2-xTB",  # the reward
    "relaxation_gfn1": "GFN1-xTB",
    "relaxation_mmff94": "MMFF94",
}
SHARE = 40  # effective sample size in % of the samples with a value
POOL = {"quick": 40, "laptop": 4000, "full": 10_000}  # of the reference: the reward evaluations
SAMPLES = {"quick": 10, "laptop": 1000, "full": 10_000}
PART = 250  # molecules between two files of energies
KINDS = (
    "real", "base", "control", "control_of_data", "guided", "strengthened", "rewarded_for_stability"
)  # fmt: skip


def relaxation_name(
    kind: str, seed: int, dataset: str = "heavy7", ending: str = "_samples.npz"
) -> str:
    """Name of the file of a set with its energies; ending .safetensors: of a model's weights.

    Raises:
        ValueError: a kind that is not in ``KINDS``.
    """
    require_known("kind", (kind,), KINDS)
    middle = {
        "real": "real",
        "base": "base",
        "control": f"control_seed{seed}",
        "control_of_data": f"control_of_data_seed{seed}",
        "guided": f"seed{seed}",
        "strengthened": f"seed{seed}_strengthened",
        "rewarded_for_stability": f"rewarded_for_stability_seed{seed}",
    }[kind]
    return f"relaxation_{dataset}_{middle}{ending}"


def load_relaxation(kind: str, seed: int = 0, dataset: str = "heavy7") -> MoleculeSet:
    """Shipped samples with their relaxation energies, eV per atom; NaN: no value."""
    return load_set(data_path(f"molecules/{relaxation_name(kind, seed, dataset)}"))


def relaxation_draw(molecules: MoleculeSet) -> Draw:
    """Molecules with the reward, minus the energy by GFN2-xTB, by size."""
    energy = torch.from_numpy(molecules.property("relaxation_gfn2"))
    return Draw(molecules, -energy, torch.from_numpy(molecules.n_atoms))


def relaxation_target(base: MoleculeSet) -> Weighted:
    """Base samples under their payoff weights, at an effective share of ``SHARE`` %."""
    draw = relaxation_draw(base)
    return draw.weigh(temperature_for_ess(draw.reward, SHARE / 100, draw.strata))


def _content(molecules: MoleculeSet) -> str:
    """A digest of which atoms are where, as a file will have them."""
    steps = np.rint(molecules.positions / POSITION_UNIT).astype(np.int32)
    columns = molecules.n_atoms, molecules.numbers, steps
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()


def write_energies(molecules: MoleculeSet, path: Path, out: Path) -> MoleculeSet:
    """Compute the relaxation energies by all models and write the set with them.

    Energies lie in ``out``, ``PART`` molecules a file: what is there of the same molecules is not
    computed again.
    """
    if path.exists() and COLUMNS.keys() <= (there := load_set(path)).properties.keys():
        if _content(there) == _content(molecules):
            return there
    by_column = {name: judges.relaxation_energy(method) for name, method in COLUMNS.items()}

    def values(part: MoleculeSet) -> dict[str, list[float]]:
        return {name: judge(part).tolist() for name, judge in by_column.items()}

    found = {name: [] for name in COLUMNS}
    for first in range(0, len(molecules), PART):
        part = molecules.subset(range(first, min(first + PART, len(molecules))))
        print(f"energies of {path.stem}: {first} of {len(molecules)}", flush=True)
        name = f"{path.stem}_energies_{first}_{_content(part)[:8]}.json"
        of_part = kept(out / name, functools.partial(values, part))
        for name in COLUMNS:
            found[name] += of_part[name]
    scored = molecules.with_properties(**{n: np.array(v, "float32") for n, v in found.items()})
    save_set(path, scored)
    if path.is_relative_to(data_root()):
        write_manifest(data_root())
    return scored


def guide_relaxation(preset: str, out: Path, seeds: tuple = SEEDS, lr: float = 1e-3) -> list[Path]:
    """RGDM with relaxation energy as reward, and all energies of base, control and guided model.

    The control, from which RGDM starts, is that of the QED experiment: trained the same way on
    the base's samples that have a value, which are the same here. Two rows say what its own samples
    cost: the control of real molecules, trained as long on those, and held-out molecules
    themselves. Samples of the model rewarded for stability are judged as well, where they ship. A
    set that is there is not made again.
    """
    home, dataset = output_folder(preset, out), DATA[preset]

    def energies_of(kind: str, seed: int, molecules: MoleculeSet) -> MoleculeSet:
        written.append(home / relaxation_name(kind, seed, dataset))
        return write_energies(molecules, written[-1], out)

    written: list[Path] = []
    base = load_set(base_file(dataset, "_samples.npz")).subset(range(POOL[preset]))
    target, n = relaxation_target(energies_of("base", 0, base)), SAMPLES[preset]
    data = load_qm9(dataset)
    held_out = data.subset(data.split > 0)
    energies_of("real", 0, held_out.subset(range(min(n, len(held_out)))))
    for seed in seeds:
        path = home / relaxation_name("guided", seed, dataset)
        for kind, reference in (("control", "model"), ("control_of_data", "data")):
            energies_of(kind, seed, load_guided(reference, 100, seed, dataset).subset(range(n)))
        rewarded = load_if_shipped(stability_name("guided", seed, dataset, STRENGTHENED))
        if rewarded is not None:
            energies_of("rewarded_for_stability", seed, rewarded.subset(range(n)))
        weights = guided_name("model", 100, seed, dataset, ".safetensors")
        network = load_fast(data_path(f"molecules/{weights}"), preset)
        config = {"seed": seed, "share": SHARE, "batch": GUIDANCE[preset]["batch"]}
        guide_set(preset, out, path, network, target, seed, n, lr, "relaxation", config)
        energies_of("guided", seed, load_set(path))
    return written


def strengthen_relaxation(preset: str, out: Path, seeds: tuple = SEEDS) -> list[Path]:
    """Samples of the base plus what the reward alone has taught, and their energies.

    eps_base + s (eps_guided - eps_control), `differences.along`, at the s at which the mean energy
    would be the payoff's; one trial tells it (`differences.sample_by_trial`). A set that is there
    is not made again.

    Raises:
        ValueError: a guided model whose mean energy is not below the control's.
    """
    home, dataset, n, written = output_folder(preset, out), DATA[preset], SAMPLES[preset], []

    def level(molecules: MoleculeSet) -> float:
        return reward_level(relaxation_draw(molecules).reward)

    pool = load_set(home / relaxation_name("base", 0, dataset))
    aim, start = payoff_level(relaxation_target(pool)), level(pool)
    base, guided, control = (load_fast(base_file(dataset), preset) for _ in range(3))
    for seed in seeds:
        written.append(path := home / relaxation_name("strengthened", seed, dataset))
        if not path.exists():
            weights = guided_name("model", 100, seed, dataset, ".safetensors")
            control.load_state_dict(load_model(data_path(f"molecules/{weights}"))[0].state_dict())
            weights = home / relaxation_name("guided", seed, dataset, ".safetensors")
            guided.load_state_dict(load_model(weights)[0].state_dict())

            def sample(file: Path, k: int, strength: float, seed: int = seed) -> None:
                denoiser = along(base, (strength, guided, control))
                data, noise = load_qm9(dataset).part("train"), seed + len(SEEDS) * (k + 1)
                sample_and_score(denoiser, file, preset, noise, n, data, strength=strength)

            def look(file: Path) -> tuple[float, float]:
                write_energies(load_set(file), file, out)
                return strength_and(level)(file)

            levels = (
                level(load_set(home / relaxation_name(kind, seed, dataset)))
                for kind in ("guided", "control")
            )
            trial = out / f"{path.stem}_trial{path.suffix}"
            tried = strength_of_difference(aim, start, *levels)
            sample_by_trial(path, trial, aim, start, tried, sample, look)
        write_energies(load_set(path), path, out)
    return written
