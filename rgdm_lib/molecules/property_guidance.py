"""The conditional model with classifier guidance: the other row of EDM's protocol for properties.

A network that reads noisy molecules says what properties they will have, p(c | x_t) as a normal
law, and its gradient steers the sampler (Dhariwal & Nichol 2021; of properties: Bao et al. 2022,
arXiv 2209.15408). Its labels are exact and it learns from all noise levels at once. It needs what
RGDM does without: a property that a network of noisy molecules can learn, and its gradient in
every step.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rgdm_lib.baselines import classifier_guidance
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.molecules.data import load_set
from rgdm_lib.molecules.experiments import GUIDANCE, SEEDS, command_line, fast, load_fast
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import molecule_diffusion, training_times
from rgdm_lib.molecules.properties import (
    CLASSIFIER,
    CONDITION_SCALE,
    FURTHER_STEPS,
    TRIAL,
    TRIAL_NOISE,
    drop_parts,
    model_kind,
    nearest_by_trial,
    protocol_of,
    sample_questions,
    set_gains,
)
from rgdm_lib.molecules.regressors import (
    NETWORKS,
    UNITS,
    NoisyRegressor,
    Protocol,
    labelled_batches,
)
from rgdm_lib.training import load_tensors

SCALES = (0.5, 1.0, 2.0, 4.0)  # of the gradient, tried for each property
ANSWERS = {"quick": 40, "laptop": 300, "full": 4000}  # for each property: a gradient takes time
LEAST_SPREAD = 1e-2  # of p(c | x_t), in mean absolute deviations of the property


def log_likelihood(said: Tensor, c: Tensor) -> Tensor:
    """(B, k) log of the normal density of properties c (B, k), up to a constant.

    Args:
        said: (B, 2 k) the means, then the logs of the standard deviations, which stay above
            ``LEAST_SPREAD``: at the last steps nothing else would bound the gradient.
        c: normalised properties.
    """
    mean, log_spread = said.chunk(2, 1)
    log_spread = log_spread.clamp(min=math.log(LEAST_SPREAD))
    return -((c - mean) / log_spread.exp()).square() / 2 - log_spread


def steered(
    protocol: Protocol,
    denoiser: Denoiser,
    reader: NoisyRegressor,
    scales: dict[str, float],
    gains: dict[str, float],
) -> Denoiser:
    """The denoiser with scale * grad log p(c | x_t) added to its score.

    Args:
        protocol: units, and means of the sizes.
        denoiser: of conditions as `properties.condition_vector` makes them.
        reader: says mean and log spread of all properties, see ``log_likelihood``.
        scales: property -> scale of the gradient.
        gains: property -> gain that the denoiser is asked at; the reader is told the target.
    """
    diffusion = molecule_diffusion()
    scale, gain = (torch.tensor([of[name] for name in UNITS]) for of in (scales, gains))

    @functools.cache
    def mean_of(n: int) -> Tensor:
        size = np.array([n])
        means = [protocol.normalised(k, protocol.mean_of_size(k, size)) for k in UNITS]
        return torch.cat(means)

    def eps(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        asked, told = (cond / CONDITION_SCALE).chunk(2, 1)  # one-hot, and c in the same place
        mean = mean_of(x_t.shape[1])
        c = mean + (told - mean) / gain

        def potential(x_t: Tensor, t: Tensor) -> Tensor:
            return (asked * scale * log_likelihood(reader(x_t, t), c)).sum(1)

        return classifier_guidance.guided(denoiser, potential, diffusion)(x_t, t, cond)

    return eps


def train_reader(
    protocol: Protocol, seed: int, preset: str, out: Path, lr: float = 1e-3
) -> NoisyRegressor:
    """The network of noisy molecules, by its likelihood on the generators' half; made once.

    As many batches as the models that go on from the conditional one.
    """
    weights = protocol.path(f"reader_seed{seed}", ".safetensors")
    diffusion, times, half = molecule_diffusion(), training_times(), protocol.generator_half
    torch.manual_seed(1000 * (seed + 1))
    settings = NETWORKS[preset] | {"values": 2 * len(UNITS)}
    network = NoisyRegressor(diffusion.schedule.alpha_bar, **settings)
    batch = GUIDANCE[preset]["batch"]
    batches = labelled_batches(half, protocol.labels(half), batch)

    def loss(network: nn.Module) -> Tensor:
        x, c = next(batches)
        t = torch.multinomial(times, len(x), replacement=True)
        said = network(diffusion.q_sample(x, t, diffusion.noise_like(x)), t)
        return -log_likelihood(said, c).mean(1)

    if not weights.exists():
        drop_parts(protocol.path(model_kind(CLASSIFIER, seed)), out)
        train_and_save(
            fast(network, preset),
            loss,
            weights,
            out / f"{weights.stem}.checkpoint.safetensors",
            FURTHER_STEPS[preset],
            lr,
            {"kind": "reader", "seed": seed, "batch": batch},
            command_line("molecules-property-classifier", preset),
        )
    tensors, _ = load_tensors(weights)
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    return fast(network.eval(), preset)


def steer_properties(preset: str, out: Path, seeds: tuple = SEEDS) -> list[Path]:
    """Answers of the conditional model with classifier guidance.

    Asked at the conditional model's gains, steered at the scales of trials. A set that is there is
    not made again.

    Raises:
        FileNotFoundError: there is no conditional model: run ``molecules-property`` first.
    """
    protocol, written = protocol_of(preset, out), []
    denoiser = load_fast(protocol.path("conditional", ".safetensors"), preset)
    gains = set_gains(load_set(protocol.path("conditional")))
    for seed in seeds:
        written.append(path := protocol.path(model_kind(CLASSIFIER, seed)))
        if path.exists():
            continue
        reader = train_reader(protocol, seed, preset, out)

        def sample(
            file: Path,
            n: int,
            noise: int,
            scales: dict[str, float],
            reader: NoisyRegressor = reader,
        ) -> None:
            guided = steered(protocol, denoiser, reader, scales, gains)
            settings = {f"scale_{name}": scale for name, scale in scales.items()}
            sample_questions(protocol, guided, file, out, preset, n, noise, gains, **settings)

        def trial(file: Path, scale: float) -> None:
            sample(file, TRIAL[preset], TRIAL_NOISE, dict.fromkeys(UNITS, scale))

        scales = nearest_by_trial(protocol, path.stem, out, SCALES, trial)
        sample(path, ANSWERS[preset], seed + 2 * len(SEEDS), scales)
        drop_parts(path, out)
    return written
