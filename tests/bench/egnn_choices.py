"""What each choice in the molecule model's training gives, at equal minutes of one core.

    taskset -c 0 python tests/bench/egnn_choices.py [--minutes 5] [--only NAME ...]

Each row trains on heavy7's training part with one choice changed, on the plateau of the learning
rate, and prints the denoising error of the average on the molecules held out, with the same times
and noise for all rows, in three bands of t: where bond lengths are decided (t < 80) and where atoms
take their places. Minutes are those of the processor, without compilation.
"""

import argparse
import time

import torch
from torch import nn

from rgdm_lib.hardware import bf16_pays
from rgdm_lib.molecules.data import encode, load_qm9
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.experiments import NETWORKS
from rgdm_lib.molecules.model import molecule_diffusion, sized_batches, training_times
from rgdm_lib.training import Trainer, adam, muon

BANDS = ((1, 80), (80, 160), (160, 320))


def forget_pairs(network: EGNN) -> None:
    """A layer does not read what earlier ones found out about a pair."""
    for block in network.blocks:
        block.from_pair = nn.Identity()
        block.pair_norm = nn.Identity()
        block.from_pair.forward = torch.zeros_like


CHOICES = {
    "as shipped": {},
    "no pair state": {"change": forget_pairs},
    "Adam": {"optimizer": adam},
    "times drawn evenly": {"times": None},
    "8 layers": {"network": {"layers": 8}},
    "32 Gaussians": {"network": {"basis": 32}},
    "hidden 192": {"network": {"hidden": 192}},
    "messages of width 96": {"network": {"edge": 96}},
    "batches of 32": {"batch": 32},
    "learning rate 3e-3": {"lr": 3e-3},
}


@torch.no_grad()
def errors(network, diffusion, molecules) -> list[float]:
    """Mean squared error of the noise in each band; the same draws at every call."""
    found = []
    for low, high in BANDS:
        torch.manual_seed(1)
        total, count = 0.0, 0
        for n in molecules.by_size():
            x0 = encode(molecules, n)
            t = torch.randint(low, high + 1, (len(x0),))
            noise = diffusion.noise_like(x0)
            with torch.autocast("cpu", torch.bfloat16):
                eps = network(diffusion.q_sample(x0, t, noise), t)
            total += float((eps - noise).square().flatten(1).mean(1).sum())
            count += len(x0)
        found.append(total / count)
    return found


def row(name: str, choice: dict, minutes: float) -> str:
    """Train one choice and return its line of the table."""
    diffusion, data = molecule_diffusion(), load_qm9()
    torch.manual_seed(0)
    network = EGNN(diffusion.schedule.alpha_bar, **NETWORKS["laptop"] | choice.get("network", {}))
    choice.get("change", lambda net: None)(network)
    network.compile(dynamic=True)
    draw = sized_batches(data.part("train"), choice.get("batch", 64))
    times = choice.get("times", training_times())
    trainer = Trainer(
        network,
        lambda net: diffusion.loss(net, next(draw), times=times),
        1_000_000,
        lr=choice.get("lr", 1.5e-3),
        optimizer=choice.get("optimizer", muon),
        bf16=bf16_pays(),
    )
    trainer.run(until=100, progress=False)  # compiles for the sizes there are
    first, begun = trainer.step, time.process_time()
    while time.process_time() - begun < 60 * minutes:
        trainer.run(until=trainer.step + 50, progress=False)
    rate = (trainer.step - first) / (time.process_time() - begun)
    cells = [f"{e:.4f}" for e in errors(trainer.ema, diffusion, data.subset(data.split > 0))]
    return f"| {name} | {trainer.step:,} | {rate:.1f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Train every choice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", nargs="*", default=list(CHOICES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"| {arguments.minutes:g} minutes | batches | a second |", end="")
    print("".join(f" error, t {low}-{high} |" for low, high in BANDS))
    print("|---|---|---|" + len(BANDS) * "---|", flush=True)
    for name in arguments.only:
        print(row(name, CHOICES[name], arguments.minutes), flush=True)


if __name__ == "__main__":
    main()
