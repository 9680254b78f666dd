"""Stability as a reward: RGDM toward the molecules that EDM's rule calls stable.

The reward is `judges.stability`: 1 if every atom's bonds fill its valence (EDM's molecule
stability, Hoogeboom et al. 2022), else 0. A stable molecule that lies in pieces has no value, so
that the payoff's mean reward is its share of stable molecules. The reference is the base model,
by its shipped samples; sizes are kept. The temperature is the one at which the payoff distribution
itself has a stated share of stable molecules.
"""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from rgdm_lib._data import data_path
from rgdm_lib._kept import require_known
from rgdm_lib.differences import along, sample_by_trial, strength_of_difference
from rgdm_lib.molecules import judges
from rgdm_lib.molecules.data import MoleculeSet, load_qm9, load_set
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    SEEDS,
    STRENGTHENED,
    base_file,
    guide_set,
    load_fast,
    output_folder,
    sample_and_score,
    strength_and,
)
from rgdm_lib.molecules.guiding import equal_weights
from rgdm_lib.molecules.model import load_model
from rgdm_lib.payoff import Draw, Weighted, _bisect, has_value
from rgdm_lib.strength import payoff_level, reward_level

WANTED = 0.95  # the payoff's own share of stable molecules
KINDS = ("control", "guided")
SAMPLES = {"quick": 40, "laptop": 1000, "full": 10_000}


def odds_temperature(share: float, wanted: float) -> float:
    """The tau at which a reward of 0 or 1 goes from a mean of ``share`` to one of ``wanted``.

    exp(1 / tau) multiplies the odds of a 1: tau = 1 / (logit(wanted) - logit(share)), with
    logit(p) = log(p / (1 - p)).

    Raises:
        ValueError: not 0 < share < wanted < 1.
    """
    if not 0 < share < wanted < 1:
        raise ValueError(
            f"from a share of {share:.4g} to {wanted:.4g}: a temperature only raises a share,"
            " and neither from 0 nor to 1"
        )
    return 1 / (_log_odds(wanted) - _log_odds(share))


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def temperature_for_share(reward: Tensor, wanted: float, strata: Tensor | None = None) -> float:
    """The tau at which the payoff's mean of a reward of 0 or 1 is ``wanted``.

    Strata have odds of their own, each multiplied by exp(1 / tau). That map of a share is concave,
    so the mean moves less than the pooled odds: bisection starts from their `odds_temperature`.

    ``reward`` (n,) is 0, 1 or NaN for "no value"; ``strata`` (n,) integers keep their shares.

    Raises:
        ValueError: another reward, or no temperature gives that mean.
    """
    valued = reward[has_value(reward)]
    if not bool(((valued == 0) | (valued == 1)).all()):
        raise ValueError("these rewards are not all 0 or 1: use payoff.temperature_for_ess")

    def mean(tau: float) -> float:
        return float(Draw(reward, reward, strata).weigh(tau).expectation(reward))

    hot = odds_temperature(mean(1e9), wanted)
    if mean(hot / 100) <= wanted:
        raise ValueError(
            f"no temperature gives a mean of {wanted:.4g}, the coldest one {mean(hot / 100):.4g}:"
            " some strata hold no sample of reward 1"
        )
    return _bisect(lambda tau: mean(tau) <= wanted, hot, hot / 100)


@functools.cache
def stability_draw(dataset: str = "heavy7") -> Draw:
    """The reference: the base model's shipped samples with their stability, by size."""
    pool = load_set(base_file(dataset, "_samples.npz"))
    return Draw(pool, judges.stability(pool), torch.from_numpy(pool.n_atoms))


def stability_targets(draw: Draw) -> dict[str, Weighted]:
    """The reference in equal weights ("control") and under its payoff weights ("guided")."""
    tau = temperature_for_share(draw.reward, WANTED, draw.strata)
    return {"control": equal_weights(draw), "guided": draw.weigh(tau)}


def payoff_share(dataset: str = "heavy7") -> float:
    """Share of stable molecules of the payoff distribution itself: what a perfect fit samples."""
    target = stability_targets(stability_draw(dataset))["guided"]
    return float(target.expectation(target.reward))


def stability_name(
    kind: str, seed: int, dataset: str = "heavy7", ending: str = "_samples.npz"
) -> str:
    """Name of the file of a model's samples; ending .safetensors: of its weights.

    Raises:
        ValueError: another kind than "control" and "guided".
    """
    require_known("kind", (kind,), KINDS)
    middle = "control_" if kind == "control" else ""
    return f"stability_{dataset}_{middle}seed{seed}{ending}"


def load_stability(
    kind: str, seed: int, dataset: str = "heavy7", ending: str = "_samples.npz"
) -> MoleculeSet:
    """Shipped samples of the control or the guided model; `STRENGTHENED`: at its strength."""
    return load_set(data_path(f"molecules/{stability_name(kind, seed, dataset, ending)}"))


def guide_stability(preset: str, out: Path, seeds: tuple = SEEDS, lr: float = 1e-3) -> list[Path]:
    """RGDM with stability as reward: for each seed the control from the base, then RGDM from it.

    Nothing but training on the base model's own samples moves the control. Each network is
    written with a set of its samples; a set that is there is not made again.
    """
    home, dataset = output_folder(preset, out), DATA[preset]
    network = load_fast(base_file(dataset), preset)
    base = copy.deepcopy(network.state_dict())
    wanted = stability_targets(stability_draw(dataset))
    written = []
    for seed in seeds:
        network.load_state_dict(base)
        for kind in KINDS:
            written.append(home / stability_name(kind, seed, dataset))
            print(f"stability, seed {seed}, {kind}", flush=True)
            config = {"seed": seed, "kind": kind, "batch": GUIDANCE[preset]["batch"]}
            n = SAMPLES[preset]
            guide_set(
                preset, out, written[-1], network, wanted[kind], seed, n, lr, "stability", config
            )
    return written


def _level(molecules: MoleculeSet) -> float:
    return reward_level(judges.stability(molecules), binary=True)


def strengthen_stability(preset: str, out: Path, seeds: tuple = SEEDS) -> list[Path]:
    """Samples of the base plus what the reward alone has taught, as stable as the payoff.

    eps_base + strength (eps_guided - eps_control), `differences.along`. Guided model and control
    were trained on the base's own samples and make its mistakes once more; that falls out of their
    difference. If each had learned its target but for the same mistakes, strength 1 would be the
    payoff's denoiser. One trial tells the strength (`differences.sample_by_trial`). A set that is
    there is not made again.

    Raises:
        ValueError: a guided model that is not stable more often than its control.
    """
    home, dataset, n = output_folder(preset, out), DATA[preset], SAMPLES[preset]
    base, guided, control = (load_fast(base_file(dataset), preset) for _ in range(3))
    draw, data = stability_draw(dataset), load_qm9(dataset).part("train")
    aim = payoff_level(stability_targets(draw)["guided"], binary=True)
    start, written = reward_level(draw.reward, binary=True), []
    for seed in seeds:
        written.append(path := home / stability_name("guided", seed, dataset, STRENGTHENED))
        if path.exists():
            continue
        levels = []
        for kind, network in (("guided", guided), ("control", control)):
            weights = home / stability_name(kind, seed, dataset, ".safetensors")
            network.load_state_dict(load_model(weights)[0].state_dict())
            levels.append(_level(load_set(home / stability_name(kind, seed, dataset))))

        def sample(file: Path, k: int, strength: float, seed: int = seed) -> None:
            denoiser, noise = along(base, (strength, guided, control)), seed + len(SEEDS) * (k + 1)
            sample_and_score(denoiser, file, preset, noise, n, data, strength=strength)

        trial = out / f"{path.stem}_trial{path.suffix}"
        tried = strength_of_difference(aim, start, *levels)
        sample_by_trial(path, trial, aim, start, tried, sample, strength_and(_level))
    return written
