"""QM9 and the tensors that the diffusion model sees.

A *batch* of the diffusion model holds molecules of one size and needs no mask:
``x`` is (B, N, 9), with the scaling of EDM (Hoogeboom et al. 2022, arXiv 2203.17003):

    x[..., 0:3]  positions in Angstrom, zero mean over the atoms
    x[..., 3:8]  one-hot element (H, C, N, O, F) times 1/4
    x[..., 8]    atomic number times 1/10
"""

from __future__ import annotations

import numpy as np
import torch

from rgdm_lib._data import data_path
from rgdm_lib.molecules import qm9pack
from rgdm_lib.molecules.sets import (
    ELEMENTS,
    POSITION_UNIT,
    SYMBOLS,
    MoleculeError,
    MoleculeSet,
    load_set,
    save_set,
)

__all__ = [
    "CHANNELS",
    "CHANNEL_OF_ELEMENT",
    "ELEMENTS",
    "POSITION_UNIT",
    "SYMBOLS",
    "MoleculeError",
    "MoleculeSet",
    "center",
    "decode",
    "encode",
    "load_qm9",
    "load_set",
    "save_set",
    "zero_com_noise_like",
]

CHANNELS = 3 + len(ELEMENTS) + 1
ONE_HOT_SCALE = 1 / 4
NUMBER_SCALE = 1 / 10

_ELEMENT_OF_CHANNEL = np.array(ELEMENTS, dtype=np.uint8)
CHANNEL_OF_ELEMENT = np.full(256, -1, dtype=np.int64)  # by atomic number; -1: not an element
CHANNEL_OF_ELEMENT[list(ELEMENTS)] = np.arange(len(ELEMENTS))


# ------------------------------------------------------------------ tensors


def center(x: torch.Tensor) -> torch.Tensor:
    """x (B, N, C >= 3) with the mean over the atoms taken from its first three channels."""
    return torch.cat([x[..., :3] - x[..., :3].mean(-2, keepdim=True), x[..., 3:]], dim=-1)


def zero_com_noise_like(x: torch.Tensor) -> torch.Tensor:
    """Standard normal noise of x's shape (B, N, C), positions in the zero-centre-of-mass subspace.

    The projection of isotropic noise on a subspace is isotropic noise on it, so this is the
    Gaussian of EDM; ``Diffusion(schedule, noise_like=zero_com_noise_like)``.
    """
    return center(torch.randn_like(x))


def encode(molecules: MoleculeSet, n: int) -> torch.Tensor:
    """(B, n, 9) float32 of the B molecules with n atoms, in the order of ``by_size()[n]``.

    Raises MoleculeError if one of them has an unknown element or a coordinate that is not finite.
    """
    chosen = molecules.subset(molecules.n_atoms == n)
    if len(chosen):
        chosen.check()
    positions, numbers = chosen.of_size(n)
    one_hot = torch.nn.functional.one_hot(
        torch.from_numpy(CHANNEL_OF_ELEMENT[numbers]), len(ELEMENTS)
    ).float()
    number = torch.from_numpy(numbers).float().unsqueeze(-1)
    x = [torch.from_numpy(positions), one_hot * ONE_HOT_SCALE, number * NUMBER_SCALE]
    return center(torch.cat(x, dim=-1))


def decode(x: torch.Tensor) -> MoleculeSet:
    """The molecules of a batch x (B, N, 9): positions as they are, element by the largest one-hot.

    The atomic-number channel is not used (EDM's rule as well). A molecule with a NaN keeps it in
    its positions.
    """
    if x.ndim != 3 or x.shape[-1] != CHANNELS:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, N, {CHANNELS})")
    x = x.detach().to("cpu", torch.float32)
    batch, n = x.shape[:2]
    channel = x[..., 3 : 3 + len(ELEMENTS)].argmax(-1).numpy()
    # a NaN among the one-hots must not turn into a well-formed atom
    broken = ~torch.isfinite(x).all(-1, keepdim=True)
    positions = x[..., :3].masked_fill(broken, float("nan")).numpy()
    return MoleculeSet(
        np.full(batch, n), _ELEMENT_OF_CHANNEL[channel].reshape(-1), positions.reshape(-1, 3)
    )


# ---------------------------------------------------------------------- QM9


def load_qm9(name: str = "heavy7") -> MoleculeSet:
    """QM9 (Ramakrishnan et al. 2014), B3LYP/6-31G(2df,p) geometries and 15 properties.

    ``"heavy7"``: the 3,921 molecules with at most 7 heavy atoms, shipped, with a fixed split of
    3,136 / 392 / 393. Not QM9's distribution: 83 % of QM9 has 9 heavy atoms.

    ``"full"``: all 130,831, EDM's split (100,000 / 17,748 / 13,083), from the package ``qm9pack``
    (``pip install "rgdm-lib[qm9]"``, or its wheel's path in the variable RGDM_QM9_WHEEL), converted
    once into the folder of RGDM_CACHE or the user's cache folder.

    Properties (units): A, B, C (GHz), mu (Debye), alpha (Bohr^3), homo, lumo, gap, zpve, U0, U, H,
    G (Hartree), r2 (Bohr^2), Cv (cal/mol/K).
    """
    if name == "heavy7":
        return load_set(data_path("molecules/qm9_heavy7.npz"))
    if name == "full":
        return qm9pack.load_full()
    raise ValueError(f"no QM9 set {name!r}: choose 'heavy7' or 'full'")
