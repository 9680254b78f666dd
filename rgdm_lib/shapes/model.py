"""The diffusion model of point clouds: schedule, times, sampler, files of models and of clouds.

Networks see clouds normalised per axis (``data.Normalisation``); everything else is in the clouds'
own unit.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgdm_lib._data import data_path
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.hardware import bf16_products
from rgdm_lib.payoff import check_sizes
from rgdm_lib.schedules import polynomial
from rgdm_lib.shapes.data import Normalisation
from rgdm_lib.shapes.nets import PointNet, SetDenoiser
from rgdm_lib.training import load_tensors, save_weights

T = 1000
SAMPLING_STEPS = 240
BASE = "shapes/base.safetensors"
CLASSIFIER, JUDGE = "shapes/classifier.safetensors", "shapes/judge.safetensors"
BASE_SAMPLES = "shapes/base_samples.npz"
DECIDED = 2.5  # noise-to-signal ratio where shapes are decided
CLASS_DECIDED = 9.0  # and where their class is
UNIT = 0.002  # of coordinates in files, below a tenth of the spacing of 512 points


def shape_diffusion() -> Diffusion:
    """The diffusion of all cloud models: the molecules' polynomial schedule, T = 1000.

    Many points tell of one shape together, so that little noise on each is none on all: at the last
    step alpha_bar_T = 1e-5 leaves a signal-to-noise ratio of 0.015 over 3 x 512 coordinates, where
    linear betas would leave 0.06.
    """
    return Diffusion(polynomial(T))


class CloudDiffusion(Diffusion):
    """The clouds' diffusion for what walks whole paths: so many steps are ``sampling_times``."""

    @classmethod
    def of_clouds(cls) -> CloudDiffusion:
        """The one there is: ``shape_diffusion`` on these times."""
        return cls(shape_diffusion().schedule)

    def timesteps(self, steps: int | None = None, spacing: float = 1.0) -> list[int]:
        """Times T, ..., 0; by default those of the one sampler. Their spacing is fixed."""
        return sampling_times(SAMPLING_STEPS if steps is None else steps)


def noise_to_signal() -> Tensor:
    """(T,) sqrt((1 - alpha_bar_t) / alpha_bar_t) of t = 1..T: 0.0035 to 316."""
    alpha_bar = shape_diffusion().schedule.alpha_bar[1:]
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def training_times(ratio: float = DECIDED) -> Tensor:
    """(T + 1,) probabilities of t in training: half even, half where shapes are decided.

    That half is log-normal in the noise-to-signal ratio, sd of the log 1.2 (log-normal noise
    levels: Karras et al. 2022, table 1). Measured with 24 shapes of 512 points, whose posterior is
    known as points are independent: half of the bits that tell the shapes apart are gone at a ratio
    of 3.5, the last at 30; half of the class's at 9. Below 1 shapes are known, and surfaces get
    sharp.

    Args:
        ratio: the median, above 0.
    """
    median, ratio = ratio, noise_to_signal()
    z = (ratio / median).log() / 1.2
    bump = torch.exp(-z.square() / 2) / ratio * ratio.diff(prepend=ratio.new_zeros(1))
    even = torch.full_like(bump, 1 / T)
    return torch.cat([bump.new_zeros(1), (even + bump / bump.sum()) / 2])


def sampling_times(steps: int = SAMPLING_STEPS) -> list[int]:
    """Times T, ..., 1, 0 of the one sampler of pools, training and judging: DDPM's noise (eta = 1).

    Even in the log of the noise-to-signal ratio, as far as whole t allow: where steps of less than
    one would be due, each t is taken, and the others share what is left. A cloud has scales from
    the thickness of its surfaces (sd 0.04 normalised) to its mean height, which all points tell
    together (sd 0.8 sqrt(512) = 17), and 240 such steps keep widths from 0.2 to 17 within 2 %.
    Quadratic spacing, best for molecules, has 0.87 of the last at 200 steps.

    Raises:
        ValueError: steps is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps = {steps}: take 1 to T = {T}")
    low, high = 1, 100 * T  # levels; those that fall on one t count once
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_even_times(middle)) >= steps else (middle + 1, high)
    return [*_even_times(low)[:steps], 0]


def _even_times(levels: int) -> list[int]:
    """The times, each once, of levels even in the log of the ratio, from T down."""
    level = noise_to_signal().log()
    wanted = torch.linspace(float(level[-1]), float(level[0]), levels, dtype=level.dtype)
    t = (torch.searchsorted(level, wanted.clamp(level[0], level[-1])) + 1).tolist()
    return sorted(set(t), reverse=True)


@torch.no_grad()
def sample_clouds(
    denoiser: Denoiser,
    norm: Normalisation,
    n: int,
    points: int = 512,
    steps: int = SAMPLING_STEPS,
    batch: int = 64,
    cond: Tensor | None = None,
    bf16: bool = False,
    progress: bool = False,
) -> Tensor:
    """Sample n clouds (n, points, 3) in their own unit.

    Args:
        denoiser: the network.
        norm: of its training part.
        n: clouds.
        points: points a cloud.
        steps: of ``sampling_times``.
        batch: clouds at once.
        cond: (n, c) for a denoiser that reads a condition.
        bf16: matrix products in bfloat16 where the hardware has it.
        progress: show progress.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n = {n}: one cloud or more")
    diffusion, times, clouds = shape_diffusion(), sampling_times(steps), []
    bar = tqdm(total=n, disable=not progress, mininterval=2.0, unit="cloud")
    for first in range(0, n, batch):
        start = torch.randn(min(batch, n - first), points, 3)
        with bf16_products(bf16):
            told = None if cond is None else cond[first : first + batch]
            for state in diffusion.sample(denoiser, start, times, cond=told):
                x = state.x
        clouds.append(norm.undo(x.float()))
        bar.update(len(start))
    bar.close()
    return torch.cat(clouds)


def save_model(
    path: Path, network: SetDenoiser, norm: Normalisation, details: dict[str, Any]
) -> None:
    """Ship a denoiser: weights in float16, with its normalisation among the metadata."""
    stored = {"mean": norm.mean.tolist(), "std": norm.std.tolist(), "source": norm.source}
    save_weights(path, network, details | {"normalisation": stored})


def _load(path: str | Path, *more: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = load_tensors(path)
    for name in ("network", *more):
        if name not in metadata:
            raise ValueError(
                f"{path}: its metadata has no {name}. Is it a checkpoint? Weights to load are those"
                " that the finished training writes"
            )
    return tensors, metadata


def load_model(path: str | Path | None = None) -> tuple[SetDenoiser, Normalisation, dict[str, Any]]:
    """A shipped denoiser in float32, ready to sample from, its normalisation and metadata.

    Args:
        path: a file of ``save_model``; default: the shipped base model.

    Raises:
        ValueError: a file of tensors that holds no denoiser, a checkpoint for one.
    """
    tensors, metadata = _load(data_path(BASE) if path is None else path, "normalisation")
    network = SetDenoiser(shape_diffusion().schedule.alpha_bar, **metadata["network"])
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    stored = metadata["normalisation"]
    norm = Normalisation(*(torch.tensor(stored[k]) for k in ("mean", "std")), stored["source"])
    return network.eval(), norm, metadata


def load_classifier(path: str | Path | None = None) -> PointNet:
    """A classifier of clouds in their own unit.

    Args:
        path: a file of ``training.save_weights``; default: the shipped classifier that gives
            rewards. The judge is at ``data_path(JUDGE)``.

    Raises:
        ValueError: a file of tensors that holds no classifier, a checkpoint for one.
    """
    tensors, metadata = _load(data_path(CLASSIFIER) if path is None else path)
    network = PointNet(**metadata["network"])
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    return network.eval()


def rounded(clouds: Tensor) -> Tensor:
    """What a file will hold of clouds: whole steps of ``UNIT`` in the range of int16.

    A coordinate beyond it, or not finite, of a sample that diverged, goes to the end of the range.
    """
    most = float(np.iinfo(np.int16).max)
    return torch.nan_to_num(torch.round(clouds / UNIT), nan=most).clamp(-most, most) * UNIT


def save_clouds(path: Path, clouds: Tensor, **values: Tensor) -> None:
    """Write clouds (n, N, 3), ``rounded``, and numbers (n,) of each under their names.

    Raises:
        ValueError: values that are not one a cloud.
    """
    check_sizes(len(clouds), **values)
    steps = torch.round(rounded(clouds) / UNIT).numpy().astype(np.int16)
    columns = {name: value.numpy() for name, value in values.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        np.savez_compressed(file, points=steps, unit=np.float32(UNIT), **columns)
    os.replace(temporary, path)


def load_clouds(path: str | Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Clouds (n, N, 3) float32 and the numbers (n,) of each, as ``save_clouds`` wrote them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut, or not one of ``save_clouds``.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        points = columns.pop("points").astype(np.float32) * columns.pop("unit")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no file of save_clouds, or is cut ({error})") from error
    return torch.from_numpy(points), {k: torch.from_numpy(v) for k, v in columns.items()}
