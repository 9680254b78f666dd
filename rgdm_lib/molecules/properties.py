"""A property near a target c: conditional model, control and RGDM, judged by EDM's protocol.

The reward is r(x, c) = -|f(x) - c| with f the reward network (`regressors`) and c the normalised
property. The conditional model is the base model, given c and trained on the generators' half: the
base saw molecules of both halves, never a property. Targets are drawn as EDM does, N ~ p(N) and
c ~ p(c | N): those of a random molecule of that half.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rgdm_lib._kept import require_known
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.molecules import judges
from rgdm_lib.molecules.data import MoleculeSet, load_set
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    SEEDS,
    STEPS,
    base_file,
    command_line,
    fast,
    output_folder,
    write_scored,
)
from rgdm_lib.molecules.guiding import equal_weights, train_and_save
from rgdm_lib.molecules.model import (
    load_model,
    molecule_diffusion,
    sample_molecules,
    training_times,
)
from rgdm_lib.molecules.regressors import (
    UNITS,
    Protocol,
    labelled_batches,
    predict,
    train_regressor,
)
from rgdm_lib.payoff import Draw, temperature_for_ess

KINDS = ("control", "guided")
SHARE = 0.4  # effective samples, of those with a value
POOL = {"quick": 200, "laptop": 10_000, "full": 10_000}
SAMPLES = {"quick": 40, "laptop": 2000, "full": 10_000}


def guided_kind(kind: str, seed: int) -> str:
    """What `Protocol.path` calls the "control" or the "guided" model of a training seed."""
    return f"control_seed{seed}" if kind == "control" else f"seed{seed}"


def property_draw(protocol: Protocol, pool: MoleculeSet, network: nn.Module) -> Draw:
    """Samples of the conditional model (with property target) and their reward, by size.

    No value for what is not stable by EDM's rule and in one piece: a regressor's word on a heap of
    atoms means nothing.

    The weights need no normalisation for each c: what is trained is p(x | c), and a factor Z(c)
    only changes how often c comes up.
    """
    reward = -(predict(network, pool) - protocol.normalised(pool.property("target"))).abs()
    reward = reward.masked_fill(judges.stability(pool) != 1, math.nan)
    return Draw(pool, reward, torch.from_numpy(pool.n_atoms))


def sample_conditional(
    denoiser: Denoiser, sizes: Tensor, c: Tensor, preset: str, batch: int = 256
) -> MoleculeSet:
    """A molecule of each size (n,) for each target c (n,), in their order."""
    parts, order = [], []
    for size in sizes.unique():
        for index in torch.nonzero(sizes == size)[:, 0].split(batch):

            def told(x_t: Tensor, t: Tensor, cond: None, c: Tensor = c[index, None]) -> Tensor:
                return denoiser(x_t, t, c)

            bf16 = preset != "quick"
            parts.append(sample_molecules(told, sizes[index], STEPS[preset], batch, bf16))
            order.append(index)
    return MoleculeSet.concatenate(parts).subset(torch.argsort(torch.cat(order)).numpy())


def errors(protocol: Protocol, sets: dict[str, MoleculeSet]) -> dict[str, float]:
    """Mean absolute errors in the property's unit, unstable molecules included, as EDM does.

    "evaluator": its own on the test part; "atoms only": the median of the generators' half at
    that number of atoms, against the targets of the first set; then of each set (with property
    target), what the evaluator says of it. Below the evaluator's own error is an alarm: a warning.
    """
    name, evaluator = protocol.name, protocol.regressor("evaluator")
    test, half = protocol.data.part("test"), protocol.generator_half
    found = {"evaluator": protocol.error(evaluator, test, test.property(name))}
    first = next(iter(sets.values()))
    median = {n: np.median(half.property(name)[i]) for n, i in half.by_size().items()}
    guess = np.array([median[n] for n in first.n_atoms.tolist()])
    found["atoms only"] = float(np.abs(guess - first.property("target")).mean())
    for kind, molecules in sets.items():
        found[kind] = protocol.error(evaluator, molecules, molecules.property("target"))
        if found[kind] < found["evaluator"]:
            warnings.warn(
                f"{kind}: {name} is {found[kind]:.4g} from its targets, less than the evaluator's"
                f" own error of {found['evaluator']:.4g}: it is the evaluator that was met",
                stacklevel=2,
            )
    return found


def load_sets(protocol: Protocol, seed: int) -> dict[str, MoleculeSet]:
    """Samples, with property target, of "conditional", "control" and "guided" of a seed."""
    kinds = {kind: guided_kind(kind, seed) for kind in KINDS}
    return {
        kind: load_set(protocol.path(file), require=["target"])
        for kind, file in ({"conditional": "conditional"} | kinds).items()
    }


@dataclass
class _Trainee:
    """A conditional network on its way through the trainings of one property."""

    network: EGNN
    protocol: Protocol
    preset: str
    out: Path
    lr: float

    def train_and_sample(
        self, kind: str, molecules: MoleculeSet, c: Tensor, weight: Tensor | None, seed: int, n: int
    ) -> Path:
        """From where the network is, on molecules and their c; leaves it with the file's weights.

        Sizes, targets and noise of the n samples depend on the seed alone.
        """
        path, preset = self.protocol.path(kind), self.preset
        weights = self.protocol.path(kind, ".safetensors")
        if not path.exists():
            print(f"{self.protocol.name}: {kind}", flush=True)
            setting = GUIDANCE[preset]
            diffusion, times = molecule_diffusion(), training_times()
            torch.manual_seed(1000 * (seed + 1))
            batches = labelled_batches(molecules, c, setting["batch"], weight)

            def loss(network: nn.Module) -> Tensor:
                x, wanted = next(batches)
                return diffusion.loss(network, x, wanted[:, None], times=times)

            average = train_and_save(
                self.network,
                loss,
                weights,
                self.out / f"{weights.stem}.checkpoint.safetensors",
                setting["steps"],
                self.lr,
                {"property": self.protocol.name, "kind": kind, "batch": setting["batch"]},
                command_line("molecules-property", preset),
            )
            torch.manual_seed(seed)
            half = self.protocol.generator_half
            asked = half.subset(torch.randint(len(half), (n,)).numpy())
            target = asked.property(self.protocol.name)
            sizes = torch.from_numpy(asked.n_atoms)
            samples = sample_conditional(average, sizes, self.protocol.normalised(target), preset)
            write_scored(samples.with_properties(target=target), path, preset)
        self.network.load_state_dict(load_model(weights)[0].state_dict())
        return path


def target_properties(
    preset: str, out: Path, properties: tuple = tuple(UNITS), seeds: tuple = SEEDS, lr: float = 1e-3
) -> list[Path]:
    """Conditional model, control and RGDM, for each property.

    First the evaluator, whose own error is printed before anything is judged by it. The control
    and the guided model both start from the conditional one and train equally long on its samples:
    in equal weights, and at the temperature of 40 % effective samples. Each network is written
    with a set of its samples, and what is there is not made again.

    Raises:
        ValueError: an unknown property.
    """
    require_known("property", properties, UNITS)
    network = fast(load_model(base_file(DATA[preset]))[0].conditional(1), preset)
    untrained = copy.deepcopy(network.state_dict())
    written, command = [], command_line("molecules-property", preset)
    for name in properties:
        protocol = Protocol(name, DATA[preset], output_folder(preset, out))
        evaluator = train_regressor(protocol, "evaluator", preset, out, command)
        test = protocol.data.part("test")
        own = protocol.error(evaluator, test, test.property(name))
        print(f"{name}: error of the evaluator {own:.4g} {UNITS[name]}", flush=True)
        reward = train_regressor(protocol, "reward", preset, out, command)
        trainee, half = _Trainee(network, protocol, preset, out, lr), protocol.generator_half
        network.load_state_dict(untrained)
        c = protocol.normalised(half.property(name))
        written.append(trainee.train_and_sample("conditional", half, c, None, 0, POOL[preset]))
        conditional = copy.deepcopy(network.state_dict())
        draw = property_draw(protocol, load_set(written[-1]), reward)
        tau = temperature_for_ess(draw.reward, SHARE, draw.strata)
        wanted = {"control": equal_weights(draw), "guided": draw.weigh(tau)}
        c = protocol.normalised(draw.x0.property("target"))
        for seed in seeds:
            for kind in KINDS:
                network.load_state_dict(conditional)
                weight, file = wanted[kind].log_weight.exp(), guided_kind(kind, seed)
                n = SAMPLES[preset]
                written.append(trainee.train_and_sample(file, draw.x0, c, weight, seed, n))
            found = errors(protocol, load_sets(protocol, seed))
            row = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{name}, seed {seed}, {UNITS[name]}: {row}", flush=True)
    return written
