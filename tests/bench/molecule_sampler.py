"""What steps, noise and spacing of the sampler give, on the shipped base model.

    python tests/bench/molecule_sampler.py [--n 400] [STEPS,ETA,SPACING ...]
"""

import argparse
from unittest import mock

import torch

from rgdm_lib.molecules import metrics, model
from rgdm_lib.molecules.data import MoleculeSet, load_qm9

SETTINGS = ("100,1,1", "250,1,1", "100,1,2", "100,2,2", "200,2,2", "100,3,1", "100,3,2",
            "200,3,2", "100,4,2")  # fmt: skip


def row(name: str, molecules: MoleculeSet) -> str:
    """One line of the table: stability, value, shares of C, N, O among all atoms."""
    stable, atoms = metrics.stability_edm(molecules)
    graphs = [text for text in metrics.smiles_perceived(molecules) if text]
    shares = [float((molecules.numbers == z).mean()) for z in (6, 7, 8)]
    numbers = (stable.mean(), atoms.sum() / molecules.n_atoms.sum(), len(graphs) / len(molecules))
    cells = [f"{value:.1%}" for value in (*numbers, *shares)]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Sample with each setting, from the same start, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("settings", nargs="*", default=SETTINGS)
    parser.add_argument("--n", type=int, default=400)
    arguments = parser.parse_args()
    denoiser, _ = model.load_model()
    data = load_qm9()
    print("| steps, eta, spacing | molecules stable | atoms stable | has a value | C | N | O |")
    print("|---|---|---|---|---|---|---|")
    print(row(f"data, {len(data):,}", data), flush=True)
    for setting in arguments.settings:
        steps, eta, spacing = (float(value) for value in setting.split(","))
        torch.manual_seed(0)
        sizes = model.draw_sizes(data.part("train"), arguments.n)
        with mock.patch.object(model, "SPACING", spacing):
            made = model.sample_molecules(denoiser, sizes, int(steps), eta=eta, bf16=True)
        print(row(setting.replace(",", ", "), made), flush=True)


if __name__ == "__main__":
    main()
