"""What each choice in the molecule network gives, at equal molecules seen.

    python tests/bench/egnn_choices.py [--steps 1000] [--only NAME ...]

Each row trains the network of preset laptop on heavy7's training part with one choice undone, and
prints the denoising loss on the validation part with the same times and noise for all rows, over
all times and over the last tenth (t <= 100), where bond lengths are decided.
"""

import argparse

import torch
from torch import nn

from rgdm_lib.molecules.data import encode, load_qm9
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.experiments import NETWORKS
from rgdm_lib.molecules.model import molecule_diffusion, sized_batches
from rgdm_lib.training import Trainer


class SquaredDistance(nn.Module):
    """EDM's feature: the squared distance, nothing else."""

    def forward(self, distance):  # noqa: D102
        return distance.square()


def squared_distances(network: EGNN) -> None:
    """Replace the radial basis by one raw feature."""
    network.basis = SquaredDistance()
    for block in network.blocks:
        edge = block.from_distance.out_features
        block.from_distance = nn.Linear(2, edge, bias=False)


class PlainEps(EGNN):
    """Predicts eps itself instead of v."""

    def forward(self, x_t, t, cond=None):  # noqa: D102
        alpha_bar = self.alpha_bar[t].to(x_t.dtype)[:, None, None]
        eps = super().forward(x_t, t, cond)
        return (eps - (1 - alpha_bar).sqrt() * x_t) / alpha_bar.sqrt()


CHOICES = {
    "as shipped": {},
    "raw squared distances": {"change": squared_distances},
    "eps predicted directly": {"kind": PlainEps},
    "learning rate 1e-4 (EDM's)": {"lr": 1e-4},
    "learning rate 3e-3": {"lr": 3e-3},
    "messages of width 32": {"edge": 32},
}


@torch.no_grad()
def validation_loss(network, diffusion, molecules) -> tuple[float, float]:
    """Mean simple loss over all times, and over t <= 100; the same draws at every call."""
    torch.manual_seed(1)
    means = []
    for times in ((1, diffusion.T), (1, 100)):
        total, count = 0.0, 0
        for n in molecules.by_size():
            x0 = encode(molecules, n).repeat(4, 1, 1)
            t = torch.randint(times[0], times[1] + 1, (len(x0),))
            noise = diffusion.noise_like(x0)
            eps = network(diffusion.q_sample(x0, t, noise), t)
            total += float((eps - noise).square().flatten(1).mean(1).sum())
            count += len(x0)
        means.append(total / count)
    return tuple(means)


def main() -> None:
    """Train every choice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000, help="batches of 64 molecules")
    parser.add_argument("--only", nargs="*", default=list(CHOICES))
    arguments = parser.parse_args()
    diffusion, data = molecule_diffusion(), load_qm9()
    print(f"| {64 * arguments.steps} molecules seen | loss, all t | loss, t <= 100 |")
    print("|---|---|---|", flush=True)
    for name in arguments.only:
        choice = CHOICES[name]
        torch.manual_seed(0)
        size = NETWORKS["laptop"] | {k: v for k, v in choice.items() if k == "edge"}
        network = choice.get("kind", EGNN)(diffusion.schedule.alpha_bar, **size)
        choice.get("change", lambda net: None)(network)
        draw = sized_batches(data.part("train"), 64)
        trainer = Trainer(
            network,
            lambda net, draw=draw: diffusion.loss(net, next(draw)),
            arguments.steps,
            lr=choice.get("lr", 1e-3),
            bf16=True,
        )
        ema = trainer.run(progress=False)
        losses = validation_loss(ema, diffusion, data.part("valid"))
        print(f"| {name} | {losses[0]:.4f} | {losses[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
