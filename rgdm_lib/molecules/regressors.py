"""Properties of molecules by a network, and EDM's protocol for judging by one.

Three disjoint parts of QM9 (Hoogeboom et al. 2022, section 5.2): one half of the training part for
the evaluator, the other for the conditional model and the reward network, and the test part, on
which the evaluator's own error is measured. One network tells all properties: EDM trains one for
each, on thirty times as many molecules.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rgdm_lib._data import data_root
from rgdm_lib._kept import require_known
from rgdm_lib.molecules.data import CHANNELS, MoleculeSet, encode, load_qm9
from rgdm_lib.molecules.egnn import Block, RadialBasis, _pairs
from rgdm_lib.molecules.guiding import train_and_save
from rgdm_lib.molecules.model import indexed_batches
from rgdm_lib.training import load_tensors

UNITS = {"alpha": "Bohr^3", "mu": "Debye", "gap": "Hartree"}
REGRESSORS = ("evaluator", "reward")
NETWORKS = {
    "quick": {"hidden": 16, "edge": 8, "layers": 1},
    "laptop": {"hidden": 96, "edge": 48, "layers": 4},
    "full": {"hidden": 128, "edge": 128, "layers": 7},
}
TRAINING = {
    "quick": {"steps": 20, "batch": 16},
    "laptop": {"steps": 12_000, "batch": 64},
    "full": {"steps": 200_000, "batch": 96},
}


class Regressor(nn.Module):
    """Numbers of a clean molecule, whatever its place, direction and order of atoms.

    The layers of `egnn.EGNN` with the atoms where they are, and the mean over the atoms of what
    each says. ``forward`` takes x (B, N, 9) and returns (B, values), normalised.
    """

    def __init__(self, hidden: int, edge: int, layers: int, basis: int = 20, values: int = 1):
        super().__init__()
        self.settings = {"hidden": hidden, "edge": edge, "layers": layers, "basis": basis}
        self.settings["values"] = values
        self.edge = edge
        self.basis = RadialBasis(basis)
        self.embed = nn.Linear(CHANNELS - 3, hidden)
        self.blocks = nn.ModuleList(Block(hidden, edge, 2 * (basis + 1), 0) for _ in range(layers))
        self.out = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, values)
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._read(x[..., :3], self.embed(x[..., 3:]))

    def _read(self, positions: Tensor, h: Tensor) -> Tensor:
        """(B, values) from positions and embedded features (B, N, hidden)."""
        n = positions.shape[1]
        others = 1 - torch.eye(n, dtype=positions.dtype, device=positions.device)[..., None]
        start = self.basis(_pairs(positions)[1])
        e = positions.new_zeros(len(h), n, n, self.edge)
        for block in self.blocks:
            h, _, e = block(h, positions, e, start, self.basis, others)
        return self.out(h).mean(1)


class NoisyRegressor(Regressor):
    """The same of a noisy molecule: ``(x_t, t) -> (B, values)``, for guidance by its gradient.

    It sees t / T and sqrt(1 - alpha_bar_t), as the denoiser does (`egnn.EGNN`).
    """

    def __init__(
        self,
        alpha_bar: Tensor,
        hidden: int,
        edge: int,
        layers: int,
        basis: int = 20,
        values: int = 1,
    ):
        super().__init__(hidden, edge, layers, basis, values)
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)
        self.embed = nn.Linear(CHANNELS - 3 + 2, hidden)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        level = torch.stack([t / (len(self.alpha_bar) - 1), (1 - self.alpha_bar[t]).sqrt()], -1)
        known = level.to(x_t.dtype)[:, None].expand(-1, x_t.shape[1], -1)
        h = self.embed(torch.cat([x_t[..., 3:], known], -1)).to(x_t.dtype)
        return self._read(x_t[..., :3], h)


class Protocol:
    """Parts, units and files of the experiment on properties.

    Attributes:
        data: QM9 with its split.
        evaluator_half, generator_half: of the training part, by EDM's permutation (seed 42).
        mean, scale: property -> mean and mean absolute deviation on the valid part.
    """

    def __init__(self, dataset: str = "heavy7", home: Path | None = None) -> None:
        """``home``: folder of the files, default: of the shipped ones."""
        self.dataset = dataset
        self.home = data_root() / "molecules" if home is None else home
        self.data = load_qm9(dataset)
        self.data.check(require=list(UNITS))
        train, valid = self.data.part("train"), self.data.part("valid")
        order = np.random.RandomState(42).permutation(len(train))
        self.evaluator_half = train.subset(order[: len(train) // 2])
        self.generator_half = train.subset(order[len(train) // 2 :])
        self.mean = {name: float(valid.property(name).mean()) for name in UNITS}
        self.scale = {
            name: float(np.abs(valid.property(name) - mean).mean())
            for name, mean in self.mean.items()
        }

    def normalised(self, name: str, values: np.ndarray) -> Tensor:
        """(n,) float32, from the property's unit: what networks predict and are told."""
        return torch.from_numpy((values - self.mean[name]) / self.scale[name]).float()

    def mean_of_size(self, name: str, n_atoms: np.ndarray) -> np.ndarray:
        """(n,) mean of the property at each number of atoms (n,) in the generators' half."""
        half = self.generator_half
        mean = {n: half.property(name)[i].mean() for n, i in half.by_size().items()}
        return np.array([mean[n] for n in n_atoms.tolist()])

    def labels(self, molecules: MoleculeSet) -> Tensor:
        """(n, 3) normalised properties that the molecules come with, in the order of ``UNITS``."""
        return torch.stack([self.normalised(k, molecules.property(k)) for k in UNITS], 1)

    def path(self, kind: str, ending: str = "_samples.npz") -> Path:
        """File of a network (ending ".safetensors") or of its samples."""
        return self.home / f"property_{self.dataset}_{kind}{ending}"

    def regressor(self, kind: str) -> Regressor:
        """The "evaluator" or the "reward" network, once `train_regressor` has written it."""
        tensors, metadata = load_tensors(self.path(kind, ".safetensors"))
        network = Regressor(**metadata["network"])
        network.load_state_dict({key: value.float() for key, value in tensors.items()})
        return network.eval()

    def error(self, name: str, said: Tensor, wanted: np.ndarray) -> float:
        """Mean absolute error of normalised values (n,) to wanted ones, in the property's unit."""
        return self.scale[name] * float((said - self.normalised(name, wanted)).abs().mean())


def labelled_batches(
    molecules: MoleculeSet, label: Tensor, batch: int, weight: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """`model.indexed_batches` with labels (n, ...) of the molecules: endless (x, labels of x)."""
    return ((x, label[i]) for x, i in indexed_batches(molecules, batch, weight))


@torch.no_grad()
def predict(network: nn.Module, molecules: MoleculeSet, batch: int = 500) -> Tensor:
    """(n, values) of n molecules, normalised."""
    parts, order = [], []
    for n, indices in molecules.by_size().items():
        for part in np.array_split(indices, -(-len(indices) // batch)):
            parts.append(network(encode(molecules.subset(part), n)))
            order.append(torch.from_numpy(part))
    return torch.cat(parts)[torch.argsort(torch.cat(order))]


def train_regressor(
    protocol: Protocol, kind: str, preset: str, out: Path, command: str, lr: float = 1e-3
) -> Regressor:
    """The "evaluator" or the "reward" network, on its half by mean absolute error; made once.

    Its checkpoint is in ``out``; ``command`` is for the file's metadata.

    Raises:
        ValueError: another kind.
    """
    require_known("network", (kind,), REGRESSORS)
    weights = protocol.path(kind, ".safetensors")
    if not weights.exists():
        half = protocol.evaluator_half if kind == "evaluator" else protocol.generator_half
        torch.manual_seed(REGRESSORS.index(kind))
        batches = labelled_batches(half, protocol.labels(half), TRAINING[preset]["batch"])

        def loss(network: nn.Module) -> Tensor:
            x, wanted = next(batches)
            return (network(x) - wanted).abs().mean(1)

        train_and_save(
            Regressor(**NETWORKS[preset], values=len(UNITS)),
            loss,
            weights,
            out / f"{weights.stem}.checkpoint.safetensors",
            TRAINING[preset]["steps"],
            lr,
            {"property": kind, "batch": TRAINING[preset]["batch"]},
            command,
            bf16=False,  # its error is judged to a few thousandths
        )
    return protocol.regressor(kind)
