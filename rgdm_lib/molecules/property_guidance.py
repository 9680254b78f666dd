"""The conditional model with classifier guidance: the other row of EDM's protocol for properties.

A network that reads noisy molecules says what properties they will have, p(c | x_t) as a normal
law, and its gradient steers the sampler (Dhariwal & Nichol 2021; of properties: Bao et al. 2022,
arXiv 2209.15408). Its labels are exact and it learns from all noise levels at once. It needs what
RGDM does without: a property that a network of noisy molecules can learn, and its gradient in
every step.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from rgdm_lib.baselines import classifier_guidance
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.molecules.experiments import GUIDANCE, SEEDS, command_line, fast, load_fast
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import molecule_diffusion, training_times
from rgdm_lib.molecules.properties import (
    CLASSIFIER,
    CONDITION_SCALE,
    FURTHER_STEPS,
    STRENGTHENED_SAMPLES,
    TRIAL,
    TRIAL_NOISE,
    drop_trials,
    model_kind,
    nearest_by_trial,
    protocol_of,
    sample_questions,
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


def steered(denoiser: Denoiser, reader: NoisyRegressor, scales: Tensor) -> Denoiser:
    """The denoiser with scale * grad log p(c | x_t) added to its score.

    Args:
        denoiser: of conditions as `properties.condition_vector` makes them.
        reader: says mean and log spread of all properties, see ``log_likelihood``.
        scales: (k,) of each property.
    """
    diffusion = molecule_diffusion()

    def eps(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        asked, c = (cond / CONDITION_SCALE).chunk(2, 1)  # one-hot, and c in the same place

        def potential(x_t: Tensor, t: Tensor) -> Tensor:
            return (asked * scales * log_likelihood(reader(x_t, t), c)).sum(1)

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
    network = NoisyRegressor(
        diffusion.schedule.alpha_bar, **NETWORKS[preset], values=2 * len(UNITS)
    )
    if weights.exists():
        tensors, _ = load_tensors(weights)
        network.load_state_dict({key: value.float() for key, value in tensors.items()})
        return network.eval()
    batch = GUIDANCE[preset]["batch"]
    batches = labelled_batches(half, protocol.labels(half), batch)

    def loss(network: nn.Module) -> Tensor:
        x, c = next(batches)
        t = torch.multinomial(times, len(x), replacement=True)
        said = network(diffusion.q_sample(x, t, diffusion.noise_like(x)), t)
        return -log_likelihood(said, c).mean(1)

    return train_and_save(
        fast(network, preset),
        loss,
        weights,
        out / f"{weights.stem}.checkpoint.safetensors",
        FURTHER_STEPS[preset],
        lr,
        {"kind": "reader", "seed": seed, "batch": batch},
        command_line("molecules-property-classifier", preset),
    ).eval()


def steer_properties(preset: str, out: Path, seeds: tuple = SEEDS) -> list[Path]:
    """Answers of the conditional model with classifier guidance, at the scales of its trials.

    A set that is there is not made again.

    Raises:
        FileNotFoundError: there is no conditional model: run ``molecules-property`` first.
    """
    protocol, written = protocol_of(preset, out), []
    denoiser = load_fast(protocol.path("conditional", ".safetensors"), preset)
    for seed in seeds:
        written.append(path := protocol.path(model_kind(CLASSIFIER, seed)))
        if path.exists():
            continue
        reader = fast(train_reader(protocol, seed, preset, out), preset)

        def sample(
            file: Path, n: int, noise: int, scales: Tensor, reader: NoisyRegressor = reader
        ) -> None:
            gains, guided = dict.fromkeys(UNITS, 1.0), steered(denoiser, reader, scales)
            settings = {f"scale_{k}": float(x) for k, x in zip(UNITS, scales, strict=True)}
            sample_questions(protocol, guided, file, out, preset, n, noise, gains, **settings)

        def trial(file: Path, scale: float) -> None:
            sample(file, TRIAL[preset], TRIAL_NOISE, torch.full((len(UNITS),), scale))

        best = nearest_by_trial(protocol, path.stem, out, SCALES, trial)
        scales = torch.tensor([best[name] for name in UNITS])
        sample(path, STRENGTHENED_SAMPLES[preset], seed + 2 * len(SEEDS), scales)
        drop_trials(path, out)
    return written
