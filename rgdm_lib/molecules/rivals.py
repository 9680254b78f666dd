"""RGDM and its rivals on molecules, at equal reward evaluations: sets of samples.

``python -m rgdm_lib.course experiment molecules-rivals --preset P``; it can be stopped and resumed.
All learn toward the payoff that RGDM from the model's own samples has at ``SHARE`` (see
``experiments.payoff_draw``, reference "model"), sizes kept, and train as long, from the base in one
go. (The models of ``molecules-qed`` come by way of the warmer ones.) The reference's samples and
their QED are the evaluations; reward-weighted regression spends half of them on a second round,
DDPO all of them on paths of its own. A set's column, ``evaluations``, says how many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rgdm_lib._kept import require_known
from rgdm_lib.baselines import (
    classifier_guidance,
    conditional,
    policy_gradient,
    reward_weighted,
    tilt_matching,
    value_guidance,
)
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.hardware import bf16_pays, device_for
from rgdm_lib.in_parts import InParts
from rgdm_lib.molecules import rewards
from rgdm_lib.molecules.data import CHANNELS, load_qm9, load_set, zero_com_noise_like
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    GUIDED_SAMPLES,
    SEEDS,
    base_file,
    command_line,
    fast,
    output_folder,
    payoff_draw,
    sample_and_score,
    targets,
    temperatures,
    write_scored,
)
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import (
    SPACING,
    draw_sizes,
    indexed_batches,
    load_model,
    molecule_diffusion,
    training_times,
    weighted_batches,
)
from rgdm_lib.molecules.properties import sample_conditional
from rgdm_lib.molecules.regressors import NETWORKS, NoisyRegressor
from rgdm_lib.payoff import Draw, systematic_resample
from rgdm_lib.training import muon

SHARE = 40
ROUNDS = 2  # of reward-weighted regression, and samples in each
ROUND_SAMPLES = {"quick": 40, "laptop": 5000, "full": 5000}
# Of DDPO, with the clip of RLPF (arXiv 2508.16521); there paths have all T steps, a round has 512
# and the rate is 1e-5, at which a hundred steps move nothing. At laptop 10,000 paths of 50 steps.
DDPO = {
    "quick": {"rounds": 2, "n": 40, "steps": 40},
    "laptop": {"rounds": 25, "n": 400, "steps": 50},
    "full": {"rounds": 25, "n": 400, "steps": 1000},
}
DDPO_BATCHES, DDPO_RATE, DDPO_CLIP = 4, 1e-4, 0.2


def rival_name(rival: str, seed: int, dataset: str = "heavy7", ending: str = "_samples.npz") -> str:
    """Name of the file of a rival's samples; ending .safetensors: of its weights."""
    return f"qed_{dataset}_{rival}_seed{seed}{ending}"


@dataclass
class _Start:
    """What all rivals start from: the base, the reference with its rewards, the temperature."""

    preset: str
    out: Path
    lr: float

    def __post_init__(self) -> None:
        self.dataset = DATA[self.preset]
        self.home = output_folder(self.preset, self.out)
        self.draw = payoff_draw("model", self.dataset)
        self.tau = temperatures(self.draw)[SHARE]
        self.target = targets(self.draw)[SHARE]
        self.data = load_qm9(self.dataset).part("train")
        self.steps, self.batch = (GUIDANCE[self.preset][key] for key in ("steps", "batch"))

    def base(self) -> EGNN:
        return load_model(base_file(self.dataset))[0]

    def fit(
        self, rival: str, seed: int, network: nn.Module, loss: Callable[[nn.Module], Tensor]
    ) -> nn.Module:
        """``train_and_save`` as long as RGDM's, from where the network is."""
        weights = self.home / rival_name(rival, seed, self.dataset, ".safetensors")
        return train_and_save(
            fast(network, self.preset),
            loss,
            weights,
            self.out / f"{weights.stem}.checkpoint.safetensors",
            self.steps,
            self.lr,
            {"rival": rival, "seed": seed, "batch": self.batch},
            command_line("molecules-rivals", self.preset),
        )

    def sample(self, denoiser: Denoiser, path: Path, seed: int, evaluations: int) -> None:
        """The set, of sizes and noise that depend on the seed alone."""
        n = GUIDED_SAMPLES[self.preset][SHARE]
        settings = {"evaluations": evaluations}
        sample_and_score(denoiser, path, self.preset, seed, n, self.data, **settings)


def _rgdm(start: _Start, path: Path, seed: int) -> None:
    """Payoff weights on all samples of the reference, one round."""
    diffusion, times = molecule_diffusion(), training_times()
    batches = weighted_batches(start.batch)(start.target)

    def loss(network: nn.Module) -> Tensor:
        return diffusion.loss(network, next(batches), times=times)

    trained = start.fit("rgdm", seed, start.base(), loss)
    start.sample(trained, path, seed, len(start.draw.reward))


def _conditional(start: _Start, path: Path, seed: int) -> None:
    """The QED as a condition; asked for are the payoff's own values, size by size.

    Kumar, Peng & Levine 2019 (arXiv 1912.13465). The base is given one more input and trained on
    the samples with a value; guidance scale 1.
    """
    valued, diffusion = start.draw.reward.isfinite(), molecule_diffusion()
    reward = start.draw.reward[valued]
    mean, spread = float(reward.mean()), float(reward.std())
    cond = ((start.draw.reward.nan_to_num() - mean) / spread)[:, None].float()
    batches, times = indexed_batches(start.draw.x0, start.batch, valued.float()), training_times()

    def loss(network: nn.Module) -> Tensor:
        x, i = next(batches)
        return conditional.loss(diffusion, network, x, cond[i], times=times)

    trained = start.fit("conditional", seed, start.base().conditional(2), loss)
    torch.manual_seed(seed)
    sizes = draw_sizes(start.data, GUIDED_SAMPLES[start.preset][SHARE])
    asked = torch.empty(len(sizes))
    for size in sizes.unique():
        here, of_size = sizes == size, start.draw.strata == size
        log_weight = start.target.log_weight.masked_fill(~of_size, -torch.inf)
        asked[here] = cond[systematic_resample(log_weight, int(here.sum())), 0]
    denoiser = conditional.classifier_free(trained, 1.0)
    samples = sample_conditional(denoiser, sizes, asked[:, None], start.preset)
    count = np.full(len(sizes), len(start.draw.reward))
    write_scored(samples.with_properties(evaluations=count), path, start.preset)


def _value(start: _Start, path: Path, seed: int) -> None:
    """The gradient of a learned soft value; the base is not trained.

    Lu et al. 2023 (arXiv 2304.12824). Samples without a value have weight 0, as in the payoff.
    """
    diffusion, reward = molecule_diffusion(), start.draw.reward
    best = float(reward[reward.isfinite()].max())
    reward = reward.nan_to_num(nan=-torch.inf)
    batches = indexed_batches(start.draw.x0, start.batch)

    def loss(network: nn.Module) -> Tensor:
        x, i = next(batches)
        return value_guidance.loss(diffusion, network, x, reward[i], start.tau, best)

    network = NoisyRegressor(diffusion.schedule.alpha_bar, **NETWORKS[start.preset])
    trained = start.fit("value", seed, network, loss)
    potential, base = value_guidance.log_weight(trained), fast(start.base(), start.preset)
    guided = classifier_guidance.guided(base, potential, diffusion)
    start.sample(guided, path, seed, len(reward))


def _tilt_matching(start: _Start, path: Path, seed: int) -> None:
    """Payoff weights with a control variate, on all samples of the reference.

    Potaptchik, Lee & Albergo 2025 (arXiv 2512.21829). Within each size the weights have mean 1; a
    size without any sample with a value stays as the reference has it.
    """
    diffusion, times = molecule_diffusion(), training_times()
    weight, strata = start.target.log_weight.exp(), start.draw.strata
    for size in strata.unique():
        inside = strata == size
        weight[inside] = weight[inside] / weight[inside].mean() if weight[inside].any() else 1.0
    batches = indexed_batches(start.draw.x0, start.batch)
    reference = fast(start.base(), start.preset)

    def loss(network: nn.Module) -> Tensor:
        x, i = next(batches)
        return tilt_matching.loss(diffusion, network, reference, x, weight[i], times=times)

    trained = start.fit("tilt_matching", seed, start.base(), loss)
    start.sample(trained, path, seed, len(weight))


def _reward_weighted(start: _Start, path: Path, seed: int) -> None:
    """Reward-weighted regression: each round at tau, on samples of the round before.

    Peters & Schaal 2007. The first round has the first of the reference's samples.
    """
    diffusion, network = molecule_diffusion(), fast(start.base(), start.preset)
    n = ROUND_SAMPLES[start.preset]
    pool, reward = start.draw.x0.subset(np.arange(n)), start.draw.reward[:n]
    for k in range(ROUNDS):
        if k:
            file = start.out / rival_name("reward_weighted_pool", seed, start.dataset)
            if not file.exists():
                noise = 1000 * (seed + 1) + 1
                sample_and_score(network, file, start.preset, noise, n, start.data)
            pool = load_set(file)
            reward = torch.from_numpy(pool.property("qed"))
        draw = Draw(pool, reward, torch.from_numpy(pool.n_atoms))
        torch.manual_seed(1000 * (seed + 1) + k)  # whether or not the samples were there already
        state = rival_name(f"reward_weighted_round{k}", seed, start.dataset, ".safetensors")
        (done,) = reward_weighted.fit(
            network,
            diffusion,
            lambda denoiser, draw=draw: draw,
            start.tau,
            rounds=1,
            steps=start.steps // ROUNDS,
            batches=weighted_batches(start.batch),
            loss=functools.partial(diffusion.loss, times=training_times()),
            lr=start.lr,
            optimizer=muon,
            decay_share=0.5,
            bf16=bf16_pays(device_for(start.preset).type),
            checkpoint=start.out / state,
            config={"rival": "reward_weighted", "seed": seed, "round": k, "batch": start.batch},
        )
        print(f"reward_weighted, round {k + 1}: weighted mean {done.reward:.4g}", flush=True)
    start.sample(network, path, seed, ROUNDS * n)


class _PathDiffusion(Diffusion):
    """The molecules' diffusion for what walks whole paths: spaced as the sampler's steps are."""

    def timesteps(self, steps: int | None = None, spacing: float = SPACING) -> list[int]:
        """Times T, ..., 0; ``spacing`` is the sampler's, whatever is asked for."""
        return super().timesteps(steps, SPACING)


def _ddpo(start: _Start, path: Path, seed: int) -> None:
    """DDPO: clipped ratios of normalised rewards, nothing that holds it near the base.

    Black et al. 2023 (arXiv 2305.13301). A round's molecules have one size, so that advantages
    compare like with like; paths without a value are left out. In float32: a ratio multiplies the
    errors of all coordinates.
    """
    setting, network = DDPO[start.preset], fast(start.base(), start.preset)
    state = start.out / rival_name("ddpo", seed, start.dataset, ".checkpoint.safetensors")

    def noise(n: int) -> Tensor:
        size = int(draw_sizes(start.data, 1))
        return zero_com_noise_like(torch.empty(n, size, CHANNELS))

    for done in policy_gradient.fit(
        InParts(network),
        _PathDiffusion(molecule_diffusion().schedule, zero_com_noise_like),
        noise,
        rewards.qed,
        **setting,
        batches=DDPO_BATCHES,
        clip_ratio=DDPO_CLIP,
        normalise=True,
        lr=DDPO_RATE,
        checkpoint=state,
        config={"rival": "ddpo", "seed": seed, **setting},
    ):
        print(f"ddpo, round {done.step // DDPO_BATCHES}: QED {done.reward:.4f}", flush=True)
    start.sample(network, path, seed, setting["rounds"] * setting["n"])


RIVALS = {
    "rgdm": _rgdm,
    "conditional": _conditional,
    "value": _value,
    "reward_weighted": _reward_weighted,
    "tilt_matching": _tilt_matching,
    "ddpo": _ddpo,
}


def compare(
    preset: str,
    out: Path,
    rivals: tuple = tuple(RIVALS),
    seeds: tuple = SEEDS,
    lr: float = 1e-3,
) -> list[Path]:
    """A set of samples of each rival and seed; a set that is there is not made again.

    Raises:
        ValueError: an unknown rival.
    """
    require_known("rival", rivals, RIVALS)
    start, written = _Start(preset, out, lr), []
    for seed in seeds:
        for rival in rivals:
            written.append(start.home / rival_name(rival, seed, start.dataset))
            if not written[-1].exists():
                print(f"{rival}, seed {seed}", flush=True)
                torch.manual_seed(1000 * (seed + 1))
                RIVALS[rival](start, written[-1], seed)
    return written
