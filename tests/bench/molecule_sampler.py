"""What steps, noise and spacing of the sampler give, on the shipped base model.

python tests/bench/molecule_sampler.py [--n 400] [STEPS,ETA,SPACING ...]
"""

import argparse

import numpy as np
import torch

from rgdm_lib.molecules import metrics, model
from rgdm_lib.molecules.data import CHANNELS, MoleculeSet, decode, load_qm9, zero_com_noise_like
from rgdm_lib.molecules.rewards import qed

SETTINGS = ("50,1,2", "100,1,1", "100,1,2", "200,1,2", "400,1,2", "100,1.5,2", "100,3,2")


def row(name: str, molecules: MoleculeSet) -> str:
    """One line of the table: stability, mean QED of the stable, shares of C, N, O of all atoms."""
    stable, atoms = metrics.stability_edm(molecules)
    shares = [float((molecules.numbers == z).mean()) for z in (6, 7, 8)]
    value = float(np.nanmean(qed(molecules).numpy()))
    cells = [f"{v:.1%}" for v in (stable.mean(), atoms.sum() / molecules.n_atoms.sum(), *shares)]
    return (
        f"| {name} | {len(molecules):,} | "
        + " | ".join([*cells[:2], f"{value:.3f}", *cells[2:]])
        + " |"
    )


@torch.no_grad()
def sample(denoiser, sizes: torch.Tensor, steps: int, eta: float, spacing: float) -> MoleculeSet:
    """Molecules of these sizes by any sampler of DDIM's family."""
    diffusion, parts = model.molecule_diffusion(), []
    for n in sizes.unique().tolist():
        x_T = zero_com_noise_like(torch.empty(int((sizes == n).sum()), n, CHANNELS))  # noqa: N806
        with torch.autocast("cpu", torch.bfloat16):
            *_, last = diffusion.sample(denoiser, x_T, steps, eta, spacing=spacing)
        parts.append(decode(last.x))
    return MoleculeSet.concatenate(parts)


def main() -> None:
    """Sample with each setting, from the same start, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("settings", nargs="*", default=SETTINGS)
    parser.add_argument("--n", type=int, default=400)
    arguments = parser.parse_args()
    denoiser, _ = model.load_model()
    data = load_qm9()
    print("| steps, eta, spacing | n | molecules stable | atoms stable | QED | C | N | O |")
    print("|---|---|---|---|---|---|---|---|")
    print(row("data", data), flush=True)
    for setting in arguments.settings:
        steps, eta, spacing = (float(value) for value in setting.split(","))
        torch.manual_seed(0)
        sizes = model.draw_sizes(data.part("train"), arguments.n)
        made = sample(denoiser, sizes, int(steps), eta, spacing)
        print(row(setting.replace(",", ", "), made), flush=True)


if __name__ == "__main__":
    main()
