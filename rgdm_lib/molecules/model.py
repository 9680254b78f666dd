"""The diffusion model of molecules: schedule, training batches, samples, the shipped base."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rgdm_lib._data import data_path
from rgdm_lib.diffusion import Denoiser, Diffusion
from rgdm_lib.hardware import bf16_products
from rgdm_lib.molecules.data import (
    CHANNELS,
    MoleculeSet,
    decode,
    encode,
    zero_com_noise_like,
)
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.payoff import Draw, Weighted, check_sizes
from rgdm_lib.schedules import polynomial
from rgdm_lib.training import load_tensors

T = 1000
# The one sampler of pools, training and judging: DDPM's noise, most steps at small t. Its widths
# are right within 2 % on exact Gaussians and mixtures (tests/test_diffusion.py).
SAMPLING_STEPS, SPACING = 200, 2.0
BASE = "molecules/base_heavy7.safetensors"
BASE_SAMPLES = "molecules/base_heavy7_samples.npz"


def molecule_diffusion() -> Diffusion:
    """The diffusion of all molecule models: EDM's polynomial schedule, T = 1000."""
    return Diffusion(polynomial(T), zero_com_noise_like)


def training_times() -> Tensor:
    """(T + 1,) probabilities of t in training: half even, half where small molecules are decided.

    That half is log-normal in sigma_t = sqrt(1 - alpha_bar_t), median 0.27, sd of the log 0.5
    (log-normal noise levels: Karras et al. 2022, table 1): a molecule noised to sigma 0.1 comes
    back as itself, one noised to 0.4 as another.
    """
    sigma = (1 - molecule_diffusion().schedule.alpha_bar).sqrt()[1:]
    z = (sigma / 0.27).log() / 0.5
    bump = torch.exp(-z.square() / 2) / sigma * sigma.diff(prepend=sigma.new_zeros(1))
    even = torch.full_like(bump, 1 / T)
    return torch.cat([bump.new_zeros(1), (even + bump / bump.sum()) / 2])


def load_model(path: str | Path | None = None) -> tuple[EGNN, dict]:
    """A shipped denoiser in float32, ready to sample from, and its metadata.

    Args:
        path: a file of ``training.save_weights``; default: the shipped base model.

    Raises:
        ValueError: a file of tensors that holds no molecule model, a checkpoint for one.
    """
    path = data_path(BASE) if path is None else path
    tensors, metadata = load_tensors(path)
    if "network" not in metadata:
        raise ValueError(
            f"{path}: its metadata names no network. Is it a checkpoint? Weights to load are those"
            " that the finished training writes"
        )
    model = EGNN(molecule_diffusion().schedule.alpha_bar, **metadata["network"])
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return model.eval(), metadata


def indexed_batches(
    molecules: MoleculeSet, batch: int, weight: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training batches (batch, N, 9) of one size N each, and which molecules (batch,).

    First the size is drawn, in proportion to the weight of its molecules, then molecules of it, in
    proportion to theirs, with replacement.

    Args:
        molecules: n molecules.
        batch: molecules a batch.
        weight: (n,), not negative, any scale; default: equal weights.

    Raises:
        ValueError: another number of weights, one that is negative or not finite, or all are 0.
    """
    weight = torch.ones(len(molecules)) if weight is None else weight
    check_sizes(len(molecules), weight=weight)
    if not (bool((weight >= 0).all()) and 0 < float(weight.sum()) < math.inf):
        raise ValueError(
            f"weights from {float(weight.min()):.3g} to {float(weight.max()):.3g}: they must be"
            " finite and not negative, and one of them above 0"
        )
    groups = {n: torch.from_numpy(i) for n, i in molecules.by_size().items()}
    groups = {n: i for n, i in groups.items() if weight[i].sum() > 0}
    encoded = [encode(molecules.subset(i.numpy()), n) for n, i in groups.items()]
    index, inside = list(groups.values()), [weight[i].double() for i in groups.values()]
    share = torch.stack([w.sum() for w in inside])
    while True:
        k = int(torch.multinomial(share, 1))
        chosen = torch.multinomial(inside[k], batch, replacement=True)
        yield encoded[k][chosen], index[k][chosen]


def sized_batches(
    molecules: MoleculeSet, batch: int, weight: Tensor | None = None
) -> Iterator[Tensor]:
    """The batches of ``indexed_batches`` alone."""
    return (x for x, _ in indexed_batches(molecules, batch, weight))


def weighted_batches(batch: int) -> Callable[[Weighted], Iterator[Tensor]]:
    """What ``rgdm.fit`` takes as ``batches``: batches of one size from weighted molecules."""
    return lambda weighted: sized_batches(weighted.x0, batch, weighted.log_weight.exp())


def weigh(molecules: MoleculeSet, reward: Tensor, tau: float, keep_sizes: bool = True) -> Weighted:
    """Molecules under the payoff distribution exp(reward / tau).

    Args:
        molecules: n samples of the reference.
        reward: (n,), NaN for "no value".
        tau: temperature.
        keep_sizes: keep the share of each number of atoms, p(N); else the reward may change it.
    """
    strata = torch.from_numpy(molecules.n_atoms) if keep_sizes else None
    return Draw(molecules, reward, strata).weigh(tau)


def draw_sizes(molecules: MoleculeSet, n: int) -> Tensor:
    """(n,) numbers of atoms, drawn from those of ``molecules``."""
    return torch.from_numpy(molecules.n_atoms)[torch.randint(len(molecules), (n,))]


def sample_molecules(
    denoiser: Denoiser,
    n_atoms: Tensor | np.ndarray,
    steps: int = SAMPLING_STEPS,
    batch: int = 256,
    bf16: bool = False,
    progress: bool = False,
) -> MoleculeSet:
    """Sample a molecule of each given size.

    Args:
        denoiser: the network.
        n_atoms: (n,) sizes, drawn before anything else.
        steps: sampling steps of T = 1000, spaced quadratically.
        batch: molecules of one size that go through the network at once.
        bf16: matrix products in bfloat16 where the hardware has it.
        progress: show progress.

    Returns:
        n molecules in the order of ``n_atoms``.

    Raises:
        ValueError: no sizes.
    """
    n_atoms = np.asarray(n_atoms)
    if len(n_atoms) == 0:
        raise ValueError("n_atoms is empty: there is no molecule to sample")

    def start(part: np.ndarray) -> Tensor:
        return zero_com_noise_like(torch.empty(len(part), int(n_atoms[part[0]]), CHANNELS))

    return _by_size(denoiser, n_atoms, start, T, steps, batch, bf16, progress)


def redraw(
    denoiser: Denoiser,
    molecules: MoleculeSet,
    t: int,
    steps: int = SAMPLING_STEPS,
    batch: int = 256,
    bf16: bool = False,
    progress: bool = False,
) -> MoleculeSet:
    """Noise each molecule to time ``t`` and sample back from there, by the sampler's own steps.

    What comes back like it went was decided later than t, what does not, earlier. Arguments as in
    ``sample_molecules``, of whose steps those below t are taken.
    """

    def start(part: np.ndarray) -> Tensor:
        x0 = encode(molecules.subset(part), int(molecules.n_atoms[part[0]]))
        return molecule_diffusion().q_sample(x0, t, zero_com_noise_like(x0))

    return _by_size(denoiser, molecules.n_atoms, start, t, steps, batch, bf16, progress)


@torch.no_grad()
def _by_size(
    denoiser: Denoiser,
    n_atoms: np.ndarray,
    start: Callable[[np.ndarray], Tensor],
    first: int,
    steps: int,
    batch: int,
    bf16: bool,
    progress: bool,
) -> MoleculeSet:
    """Walk from ``start(indices)`` at time ``first`` to 0, in batches of one size."""
    diffusion = molecule_diffusion()
    times = [first, *(s for s in diffusion.timesteps(steps, SPACING) if s < first)]
    parts, order = [], []
    bar = tqdm(total=len(n_atoms), disable=not progress, mininterval=2.0, unit="molecule")
    for n in np.unique(n_atoms):
        chosen = np.flatnonzero(n_atoms == n)
        for part in np.array_split(chosen, -(-len(chosen) // batch)):
            with bf16_products(bf16):
                for state in diffusion.sample(denoiser, start(part), times):
                    x = state.x
            parts.append(decode(x))
            order.append(part)
            bar.update(len(part))
    bar.close()
    return MoleculeSet.concatenate(parts).subset(np.argsort(np.concatenate(order)))
