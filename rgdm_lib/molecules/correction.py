"""Away from the base model's own mistakes: molecules by two networks, without any reward.

A network that is trained once more, on samples of the base instead of data, makes the base's
mistakes again and new ones on top, mostly of the same kind. The line from it through the base goes
on toward the data: eps_own + s (eps_base - eps_own) with s > 1 (Alemohammad et al. 2024, arXiv
2408.16333, whose omega is s - 1; they choose it by a distance to the data, as we do).

Where the base is known to be off on average, in its elements and in QED, its samples are weighed so
that these means are off by more: a payoff distribution whose reward is the mistake.

``python -m rgdm_lib.course experiment molecules-correction --preset P``; it can be stopped and
resumed. ``molecules-corrected-qed`` adds to the correction what the guided models of
``molecules-qed`` have learned.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rgdm_lib._data import data_path
from rgdm_lib._kept import require_known
from rgdm_lib.differences import along, sample_by_trial
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.molecules.data import ELEMENTS, MoleculeSet, load_qm9, load_set
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    SEEDS,
    STRENGTHENED,
    base_file,
    command_line,
    guide_set,
    guided_name,
    load_fast,
    load_if_shipped,
    output_folder,
    payoff_draw,
    qed_level,
    sample_and_score,
    strength_and,
    targets,
    train_toward,
    write_scored,
)
from rgdm_lib.molecules.metrics import element_counts, size_weight
from rgdm_lib.molecules.model import load_model
from rgdm_lib.payoff import Draw, Weighted, check_sizes
from rgdm_lib.strength import payoff_level, strengthen

KINDS = ("own", "corrected")
# Both looked at on 800 samples: strengths 1.7, 3, 5 with MORE = 0; MORE = 0, 1 at strength 3
STRENGTH = 3.0
MORE = 0.6  # of a mean's error that the weights add to it
SAMPLES = {
    "quick": {"own": 40, "corrected": 40},
    "laptop": {"own": 1000, "corrected": 10_000},
    "full": {"own": 10_000, "corrected": 10_000},
}
NOISE = 1  # of the corrected samples; the base's own have 0
PART = 4000  # corrected samples that are written at once; a stopped run goes on after them
PART_NOISE = 100  # between one part's noise and the next one's
# a mild tilt moves the mean little, so it takes more samples to measure
GUIDED_SAMPLES = {
    "quick": {80: 40, 40: 40, 10: 40},
    "laptop": {80: 1500, 40: 1000, 10: 1000},
    "full": {80: 10_000, 40: 10_000, 10: 10_000},
}
CONTROL_AT = 40  # % of effective samples: the control has the strength of that guided model
GUIDED = ("_corrected_samples.npz", "_corrected_strengthened_samples.npz")
# Of a further training seed, from the base: half of the gap is closed after a sixteenth of the
# batches of ``molecules-longer``, and hardly more after all of them. What so few cost is stability:
# at an effective share of 40 % 81 % of the molecules, where the chain of seed 0 has 86 %.
FURTHER_STEPS = {"quick": 10, "laptop": 2000, "full": 25_000}


def correction_name(kind: str, dataset: str = "heavy7", ending: str = "_samples.npz") -> str:
    """Name of the file of samples; ending .safetensors: of the weights of "own".

    Raises:
        ValueError: another kind than "own" and "corrected".
    """
    require_known("kind", (kind,), KINDS)
    return f"base_{dataset}_{kind}{ending}"


def load_correction(kind: str, dataset: str = "heavy7") -> MoleculeSet:
    """Shipped samples of the network that learned from the base's samples, or of the correction."""
    return load_set(data_path(f"molecules/{correction_name(kind, dataset)}"))


def load_toward(share: int, seed: int = 0, dataset: str = "heavy7") -> list[MoleculeSet] | None:
    """Shipped samples from the corrected base: a trial and, at its own strength, the set judged.

    None if none ship.
    """
    sets = [load_if_shipped(guided_name("data", share, seed, dataset, end)) for end in GUIDED]
    return None if None in sets else sets


def load_control(dataset: str = "heavy7") -> MoleculeSet | None:
    """Shipped samples from the corrected base by what training without a reward has learned."""
    return load_if_shipped(guided_name("data", 100, 0, dataset, GUIDED[0]))


def linear_reward(features: Tensor, means: Tensor, strata: Tensor) -> Tensor:
    """The reward, linear in the features, whose payoff at tau = 1 has these means, strata kept.

    Of all laws with these means it is the nearest to the samples' (Csiszar 1975, I-projection).
    Newton's method on its convex dual, each step halved until the dual falls.

    Args:
        features: (n, k).
        means: (k,) wanted.
        strata: (n,) integers; their shares are kept.

    Returns (n,) float64.

    Raises:
        ValueError: no weights give these means, or there is not one for each feature.
    """
    check_sizes(features.shape[1], means=means)
    features, groups = features.double(), [strata == stratum for stratum in strata.unique()]

    def dual(multiplier: Tensor) -> Tensor:
        reward = features @ multiplier
        parts = [here.double().mean() * reward[here].logsumexp(0) for here in groups]
        return torch.stack(parts).sum() - means.double() @ multiplier

    multiplier = torch.zeros(features.shape[1], dtype=torch.float64)
    for _ in range(50):
        reward = features @ multiplier
        weight = Draw(features, reward, strata).weigh(1.0).log_weight.exp()
        miss = means - weight @ features
        if miss.abs().max() < 1e-8:
            return reward
        inside = torch.zeros_like(features)
        for here in groups:
            w = weight[here] / weight[here].sum()
            inside[here] = features[here] - w @ features[here]
        covariance = inside.T @ (weight[:, None] * inside)
        step, before = torch.linalg.lstsq(covariance, miss).solution, dual(multiplier)
        while bool(step.isfinite().all()) and dual(multiplier + step) > before + 1e-12:
            step = step / 2
        multiplier = multiplier + step
        if not multiplier.isfinite().all():
            break
    raise ValueError(
        f"no weights of these {len(features)} samples give the means {means.tolist()}: are they"
        " within the samples' range?"
    )


def _features(draw: Draw) -> Tensor:
    """(n, 5): atoms of C, N and O, whether it has a value, its QED if it has."""
    heavy = [ELEMENTS.index(number) for number in (6, 7, 8)]
    counts = torch.from_numpy(element_counts(draw.x0)[:, heavy]).double()
    return torch.cat(
        [counts, draw.reward.isfinite()[:, None], draw.reward.nan_to_num()[:, None]], 1
    )


def mistaken(dataset: str = "heavy7", more: float = MORE) -> Weighted:
    """The base's shipped samples, weighed so that their elements and QED are off by more.

    By ``more`` times as much as they are off, from the training molecules at the same sizes. The
    share with a value is left as it is.
    """
    pool, train = payoff_draw("model", dataset), payoff_draw("data", dataset)
    own, data = _features(pool), _features(train)
    known = torch.isin(pool.strata, train.strata)
    share = torch.from_numpy(size_weight(train.x0, pool.x0))
    mean, right = own[known].mean(0), share @ data / share.sum()
    right_qed = (share @ data[:, 4]) / (share @ data[:, 3])
    error = mean - right
    # of what has a value: the pair of share and sum, so that their ratio is off by more
    error[3], error[4] = 0.0, mean[4] - mean[3] * right_qed
    reward = linear_reward(own, own.mean(0) + more * error, pool.strata)
    return Draw(pool.x0, reward, pool.strata).weigh(1.0)


def correct_base(
    preset: str, out: Path, strength: float = STRENGTH, lr: float = 1e-3
) -> list[Path]:
    """Train on the base's ``mistaken`` samples, from the base; sample it, then the correction.

    Samples without a value count as well: what falls to pieces is a mistake to get away from. A
    set that is there is not made again. The corrected one has property strength.
    """
    home, dataset, n = output_folder(preset, out), DATA[preset], SAMPLES[preset]
    base, own = (load_fast(base_file(dataset), preset) for _ in range(2))
    made, corrected = (home / correction_name(kind, dataset) for kind in KINDS)
    config = {"kind": "own", "more": MORE, "batch": GUIDANCE[preset]["batch"]}
    target = mistaken(dataset)
    guide_set(preset, out, made, own, target, 0, n["own"], lr, "correction", config)
    if not corrected.exists():
        data, away = load_qm9(dataset).part("train"), strengthen(base, own, strength)
        parts = []
        for k, first in enumerate(range(0, n["corrected"], PART)):
            parts.append(out / f"{corrected.stem}_strength{strength:g}_part{k}.npz")
            if not parts[-1].exists():
                noise, count = NOISE + PART_NOISE * k, min(PART, n["corrected"] - first)
                sample_and_score(away, parts[-1], preset, noise, count, data, strength=strength)
        write_scored(MoleculeSet.concatenate([load_set(part) for part in parts]), corrected, preset)
    return [made, corrected]


def corrected_toward(
    guided: Denoiser, base: Denoiser, own: Denoiser, strength: float, away: float = STRENGTH
) -> Denoiser:
    """The corrected base plus ``strength`` times what a guided model has learned from the base.

    eps_own + away (eps_base - eps_own) + strength (eps_guided - eps_base), see `differences.along`.
    """
    return along(base, (1 - away, own, base), (strength, guided, base))


class _Corrected(NamedTuple):
    """The corrected base, a network guided from the base, and what both are held against."""

    preset: str
    out: Path
    base: nn.Module
    own: nn.Module
    guided: nn.Module
    level: float  # mean QED of the corrected base
    wanted: dict[int, Weighted]
    data: MoleculeSet

    @classmethod
    def load(cls, preset: str, out: Path) -> _Corrected:
        home, dataset = output_folder(preset, out), DATA[preset]
        base, guided = (load_fast(base_file(dataset), preset) for _ in range(2))
        own = load_fast(home / correction_name("own", dataset, ".safetensors"), preset)
        level = qed_level(load_set(home / correction_name("corrected", dataset)))
        wanted, data = targets(payoff_draw("data", dataset)), load_qm9(dataset).part("train")
        return cls(preset, out, base, own, guided, level, wanted, data)

    def file(self, share: int, seed: int, ending: str) -> Path:
        name = guided_name("data", share, seed, DATA[self.preset], ending)
        return output_folder(self.preset, self.out) / name

    def learn(self, share: int, seed: int, lr: float) -> None:
        """Give ``guided`` the weights of a training seed; train it, from the base, if need be."""
        if seed == 0:
            weights = self.file(share, seed, ".safetensors")
            self.guided.load_state_dict(load_model(weights)[0].state_dict())
            return
        self.guided.load_state_dict(self.base.state_dict())
        train_toward(
            self.preset,
            self.out,
            self.out / guided_name("data", share, seed, DATA[self.preset], ".safetensors"),
            self.guided,
            self.wanted[share],
            seed,
            FURTHER_STEPS[self.preset],
            lr,
            "corrected-qed",
            {"share": share, "seed": seed, "from": "base"},
        )

    def sample(self, path: Path, share: int, noise: int, strength: float) -> None:
        """Write samples at this strength, unless they are there."""
        if not path.exists():
            denoiser = corrected_toward(self.guided, self.base, self.own, strength)
            n = GUIDED_SAMPLES[self.preset][share]
            sample_and_score(denoiser, path, self.preset, noise, n, self.data, strength=strength)


def guide_corrected(
    preset: str, out: Path, shares: tuple = (40, 10, 80), seeds: tuple = SEEDS, lr: float = 1e-3
) -> list[Path]:
    """QED from the corrected base, by what guided models of reference data have learned.

    Training seed 0 is that of ``molecules-qed``; the others are trained here, from the base. One
    trial says how far each goes: seed 0 at the strength that it had from the base as it is, the
    others at what seed 0 has here. On the line from the corrected base's mean QED through the
    trial's lies the strength that meets the payoff's; fresh samples are drawn at it.

    With ``CONTROL_AT`` and seed 0 the control follows, the network that the chain of seed 0 starts
    with: no reward, the same strength. A set or trial that is there is not made again.

    Raises:
        FileNotFoundError: there is no strength to try: see the command in the message.
        ValueError: an unknown share.
    """
    require_known("share", shares, GUIDED_SAMPLES[preset])
    start, written = _Corrected.load(preset, out), []
    for seed, share in itertools.product(seeds, shares):
        trial, path = (start.file(share, seed, ending) for ending in GUIDED)
        written += [trial, path]
        if not path.exists():
            like = start.file(share, 0, GUIDED[1] if seed else STRENGTHENED)
            if not like.exists():
                first = "this with seed 0" if seed else command_line("molecules-strength", preset)
                raise FileNotFoundError(
                    f"{like} is not there; training seed {seed} is tried at its strength. Run"
                    f" {first} first"
                )
            start.learn(share, seed, lr)
            noise, look = NOISE + len(SEEDS) * (seed + 1), strength_and(qed_level)

            def sample(
                file: Path, k: int, strength: float, share: int = share, noise: int = noise
            ) -> None:
                start.sample(file, share, noise + len(SEEDS) ** 2 * k, strength)

            aim, tried = payoff_level(start.wanted[share]), look(like)[0]
            sample_by_trial(path, trial, aim, start.level, tried, sample, look)
        if (seed, share) == (0, CONTROL_AT):
            written.append(start.file(100, 0, GUIDED[0]))
            start.learn(100, 0, lr)
            strength = strength_and(qed_level)(path)[0]
            start.sample(written[-1], share, NOISE + len(SEEDS), strength)
    return written
