"""Our network's speed against EDM's public code, on the same molecules.

    git clone https://github.com/ehoogeboom/e3_diffusion_for_molecules
    python tests/bench/egnn_peer.py e3_diffusion_for_molecules [--hidden 256 --layers 9]

Training molecules of heavy7 in their natural sizes. EDM's code gets them in batches of 64, padded
to the largest molecule of a batch and masked, ours the same molecules in batches of one size,
without padding, of 64 or of what there is of a size: the more molecules, the fuller. Forward is
one call of the network for every molecule, as in a step of sampling; training is all that a step
does in either code: noise, loss, backward, clipping, optimiser, moving average. EDM runs with its
published settings for QM9 at our width and depth.

Repeats alternate between the codes; a ratio is taken within a repeat. A first pass over all batches
(compilation, EDM's tables of neighbours) is not counted.
"""

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rgdm_lib.hardware import bf16_pays
from rgdm_lib.molecules.data import CHANNELS, ELEMENTS, MoleculeSet, encode, load_qm9
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.model import molecule_diffusion, training_times
from rgdm_lib.training import Trainer, muon

BATCH = 64
EDM = {  # the command of EDM's README and the defaults of its main_qm9.py
    "model": "egnn_dynamics",
    "probabilistic_model": "diffusion",
    "conditioning": (),
    "context_node_nf": 0,
    "condition_time": True,
    "include_charges": True,
    "attention": True,
    "tanh": True,
    "norm_constant": 1,
    "inv_sublayers": 1,
    "sin_embedding": False,
    "normalization_factor": 1,
    "aggregation_method": "sum",
    "diffusion_steps": 1000,
    "diffusion_noise_schedule": "polynomial_2",
    "diffusion_noise_precision": 1e-5,
    "diffusion_loss_type": "l2",
    "normalize_factors": [1, 4, 10],
    "lr": 1e-4,
}
EDM_AVERAGE = 0.9999


def drawn(data: MoleculeSet, batches: int) -> MoleculeSet:
    """64 molecules for each batch, drawn evenly from all: the sizes are those of the data."""
    order = np.random.default_rng(0).permutation(len(data))
    return data.subset(order[: BATCH * batches])


def one_size(molecules: MoleculeSet) -> list[Tensor]:
    """Our batches (B <= 64, N, 9): each of one size N, without padding."""
    encoded = (encode(molecules, n) for n in molecules.by_size())
    return [batch for x in encoded for batch in x.tensor_split(-(-len(x) // BATCH))]


@dataclass
class Padded:
    """EDM's batch: positions x (B, M, 3), one_hot (B, M, 5), charges (B, M, 1) and masks."""

    x: Tensor
    one_hot: Tensor
    charges: Tensor
    node_mask: Tensor  # (B, M, 1), 1 where there is an atom
    edge_mask: Tensor  # (B M M, 1), 1 for two different atoms


def padded(molecules: MoleculeSet) -> list[Padded]:
    """EDM's batches: 64 molecules in the order they come, padded to the largest of them."""
    batches = []
    for start in range(0, len(molecules), BATCH):
        chosen = range(start, min(start + BATCH, len(molecules)))
        atoms = [molecules.atoms(i) for i in chosen]
        most = max(len(numbers) for _, numbers in atoms)
        x, charges = torch.zeros(len(atoms), most, 3), torch.zeros(len(atoms), most, 1)
        for i, (positions, numbers) in enumerate(atoms):
            x[i, : len(numbers)] = torch.from_numpy(positions - positions.mean(0))
            charges[i, : len(numbers), 0] = torch.from_numpy(numbers).float()
        node_mask = (charges > 0).float()
        edge_mask = node_mask * node_mask.transpose(1, 2) * (1 - torch.eye(most))
        one_hot = (charges == torch.tensor(ELEMENTS)).float()
        batches.append(Padded(x, one_hot, charges, node_mask, edge_mask.reshape(-1, 1)))
    return batches


class Ours:
    """Our code: one pass over the batches of ``one_size``.

    ``shipped``: as the experiments run it, compiled and in bfloat16 where the processor has it;
    else eager in float32.
    """

    def __init__(self, molecules: MoleculeSet, network: dict[str, int], shipped: bool):
        diffusion, times = molecule_diffusion(), training_times()
        self.batches = one_size(molecules)
        self.net = EGNN(diffusion.schedule.alpha_bar, **network)
        if shipped:
            self.net.compile(dynamic=True)
        self.bf16 = shipped and bf16_pays()
        draw = itertools.cycle(self.batches)
        self.trainer = Trainer(
            self.net,
            lambda net: diffusion.loss(net, next(draw), times=times),
            1_000_000,
            lr=1.5e-3,
            optimizer=muon,
            ema_decay=0.9995,
            bf16=self.bf16,
        )

    @torch.no_grad()
    def forward(self) -> None:
        """One call of the network for every molecule."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            for x in self.batches:
                self.net(x, torch.full((len(x),), 500))

    def train(self) -> None:
        """One step of training for every batch."""
        self.trainer.run(until=self.trainer.step + len(self.batches), progress=False)


class Theirs:
    """EDM's code, imported from its checkout: one pass over the batches of ``padded``."""

    def __init__(self, molecules: MoleculeSet, hidden: int, layers: int, checkout: str):
        sys.path.insert(0, checkout)
        from equivariant_diffusion.utils import EMA, remove_mean_with_mask
        from qm9.losses import compute_loss_and_nll
        from qm9.models import get_model, get_optim
        from utils import Queue, gradient_clipping

        self.batches = padded(molecules)
        self.args = argparse.Namespace(**EDM, nf=hidden, n_layers=layers)
        sizes = {n: len(i) for n, i in molecules.by_size().items()}
        info = {"n_nodes": sizes, "atom_decoder": ELEMENTS}
        self.model, self.sizes, _ = get_model(self.args, torch.device("cpu"), info, None)
        self.average, self.average_model = EMA(EDM_AVERAGE), copy.deepcopy(self.model)
        self.optimizer = get_optim(self.args, self.model)
        self.norms = Queue()
        self.norms.add(3000)
        self.loss, self.clip, self.centre = (
            compute_loss_and_nll,
            gradient_clipping,
            remove_mean_with_mask,
        )

    @torch.no_grad()
    def forward(self) -> None:
        """One call of the network for every molecule."""
        for b in self.batches:
            z = torch.cat([b.x, b.one_hot / 4, b.charges / 10], 2)
            t = torch.full((len(z), 1), 0.5)
            self.model.phi(z, t, b.node_mask, b.edge_mask, None)

    def train(self) -> None:
        """One step of training for every batch: the loop of EDM's train_epoch."""
        self.model.train()
        for b in self.batches:
            x = self.centre(b.x, b.node_mask)
            h = {"categorical": b.one_hot, "integer": b.charges}
            self.optimizer.zero_grad()
            loss, _, _ = self.loss(
                self.args, self.model, self.sizes, x, h, b.node_mask, b.edge_mask, None
            )
            loss.backward()
            self.clip(self.model, self.norms)
            self.optimizer.step()
            self.average.update_model_average(self.average_model, self.model)


def interleaved(
    runs: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each run in each repeat, one run after the other; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begun = clock()
            run()
            if repeat:
                seconds[name].append(clock() - begun)
    return seconds


def spread(values: list[float]) -> str:
    """Median (smallest - largest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", help="folder of e3_diffusion_for_molecules")
    parser.add_argument("--hidden", type=int, default=128, help="width of both networks")
    parser.add_argument("--edge", type=int, help="width of our messages; default: --hidden")
    parser.add_argument("--layers", type=int, default=5, help="depth of both networks")
    parser.add_argument("--batches", type=int, default=16, help="of 64 molecules")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="leave out the compiled row")
    parser.add_argument(
        "--processor", action="store_true", help="processor's seconds: for a core that is shared"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    molecules = drawn(load_qm9().part("train"), arguments.batches)
    hidden, layers = arguments.hidden, arguments.layers
    network = {"hidden": hidden, "edge": arguments.edge or hidden, "layers": layers}
    network["features"] = CHANNELS - 3
    codes = {
        "EDM": Theirs(molecules, hidden, layers, arguments.checkout),
        "ours": Ours(molecules, network, shipped=False),
    }
    if not arguments.eager:
        codes["ours, compiled"] = Ours(molecules, network, shipped=True)
    clock = time.process_time if arguments.processor else time.perf_counter
    print(f"{len(molecules)} molecules, {network}, threads: {arguments.threads}")
    print("| | forward, s | ratio | training, s | ratio |\n|---|---|---|---|---|", flush=True)
    columns = []
    for what in ("forward", "train"):
        runs = {name: getattr(code, what) for name, code in codes.items()}
        columns.append(interleaved(runs, arguments.repeats, clock))
    for name in codes:
        cells = []
        for seconds in columns:
            ratio = [a / b for a, b in zip(seconds["EDM"], seconds[name], strict=True)]
            cells += [spread(seconds[name]), spread(ratio)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
