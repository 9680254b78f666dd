"""A property near a target c: conditional model, rows beside it and RGDM, judged by EDM's protocol.

The reward is r(x, c) = -|f(x) - c| with f the reward network (`regressors`) and c the normalised
property. The conditional model is the base model, told which property is asked for and its value c,
and trained on the generators' half: the base saw molecules of both halves, never a property. EDM
trains a model for each property; here one answers for all, so that three take the time of one.
Targets are drawn as EDM does, N ~ p(N) and c ~ p(c | N): those of a random molecule of that half.

Three models go on from it for equally long: on real molecules ("longer"), on its own stable samples
in equal weights ("control"), on these at the temperature of the payoff ("guided").

A network that hears c faintly answers as if it had been asked for less. So each is asked for more:
the question lies ``gain`` times as far from the mean of its size as what is wanted, and a trial
says which of ``GAINS`` brings the answers nearest to that, for each network and each property.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgdm_lib._kept import require_known
from rgdm_lib.differences import along, strength_of_difference
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.in_parts import SIZE
from rgdm_lib.molecules import judges
from rgdm_lib.molecules.data import MoleculeSet, load_set
from rgdm_lib.molecules.egnn import EGNN
from rgdm_lib.molecules.experiments import (
    DATA,
    GUIDANCE,
    SEEDS,
    STEPS,
    STRENGTHENED,
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
    REGRESSORS,
    UNITS,
    Protocol,
    labelled_batches,
    predict,
    train_regressor,
)
from rgdm_lib.payoff import Draw, Weighted, temperature_for_ess
from rgdm_lib.strength import payoff_level, reward_level

KINDS = ("longer", "control", "guided")
CLASSIFIER = "classifier"  # the conditional model, steered: `property_guidance`
SHARE = 0.4  # effective samples, of those with a value, for each property
FURTHER_STEPS = {"quick": 20, "laptop": 4000, "full": 50_000}  # from the conditional model
POOL = {"quick": 80, "laptop": 3000, "full": 10_000}  # samples for each property
SAMPLES = {"quick": 40, "laptop": 700, "full": 10_000}  # for each property
STRENGTHENED_SAMPLES = {"quick": 40, "laptop": 300, "full": 4000}  # for each property
POOL_NOISE = 1000  # that of no other set of samples
# The first layer of the base gets inputs for the condition, of weight 0: the larger the input, the
# sooner it is heard. After 8,000 batches alpha asked and got correlate by 0.19 within a size; at a
# scale of 1 by 0.06.
CONDITION_SCALE = 10.0
GAINS = (1.0, 2.0, 4.0, 8.0)
TRIAL = {"quick": 5, "laptop": 100, "full": 1000}  # samples for each property and gain
TRIAL_NOISE = 2000
BINS, LEAST_IN_BIN = 4, 50  # of the targets of a size, and samples in each
PHYSICS = {"mu": judges.dipole, "gap": judges.gap}  # GFN2-xTB; its polarizability is far too low


def condition_vector(asked: Tensor, c: Tensor) -> Tensor:
    """What the network is told, (n, 6): the number of the property (n,), one-hot, and c (n,).

    In units of ``CONDITION_SCALE``.
    """
    which = CONDITION_SCALE * nn.functional.one_hot(asked, len(UNITS)).float()
    return torch.cat([which, which * c[:, None]], 1)


def all_questions(molecules: MoleculeSet) -> MoleculeSet:
    """Each molecule once for each property, with properties asked (its number) and target."""
    return MoleculeSet.concatenate(
        [
            molecules.with_properties(asked=np.full(len(molecules), k), target=values)
            for k, values in enumerate(molecules.property(name) for name in UNITS)
        ]
    )


def conditions(protocol: Protocol, molecules: MoleculeSet) -> Tensor:
    """`condition_vector`, (n, 6), of molecules with the properties asked and target.

    With a property "gain", what is told lies so many times as far from the mean of its size as the
    target does; without, it is the target.
    """
    asked, target = molecules.property("asked").astype(int), molecules.property("target")
    gain, c = molecules.properties.get("gain", np.ones(len(asked))), torch.empty(len(asked))
    for k, name in enumerate(UNITS):
        here = asked == k
        mean = protocol.mean_of_size(name, molecules.n_atoms[here])
        c[here] = protocol.normalised(name, mean + gain[here] * (target[here] - mean))
    return condition_vector(torch.from_numpy(asked), c)


def asked_for(name: str, molecules: MoleculeSet) -> MoleculeSet:
    """Those of which a property was asked.

    Raises:
        ValueError: an unknown property.
    """
    require_known("property", (name,), UNITS)
    return molecules.subset(np.flatnonzero(molecules.property("asked") == list(UNITS).index(name)))


def target_strata(molecules: MoleculeSet) -> Tensor:
    """(n,) strata: the number of atoms, and within it bins of equally many targets.

    The weights are those of the joint law p(c) Z(c) p*(x | c). Kept shares of the bins take Z(c)
    out again, up to what it changes inside a bin: the questions stay those that are asked.
    """
    strata = torch.empty(len(molecules), dtype=torch.long)
    target = molecules.property("target")
    for n, index in molecules.by_size().items():
        rank = np.argsort(np.argsort(target[index], kind="stable"), kind="stable")
        bins = min(BINS, max(1, len(index) // LEAST_IN_BIN))
        strata[torch.from_numpy(index)] = torch.from_numpy(n * BINS + rank * bins // len(index))
    return strata


def property_draw(protocol: Protocol, name: str, pool: MoleculeSet) -> Draw:
    """Samples that were asked for a property, and their reward, by `target_strata`.

    What the reward network says is the property "reward" of the pool, see ``with_predictions``. No
    value for what is not stable by EDM's rule and in one piece: a regressor's word on a heap of
    atoms means nothing.
    """
    asked = asked_for(name, pool)
    missed = np.abs(asked.property("reward") - asked.property("target")) / protocol.scale[name]
    reward = -torch.from_numpy(missed).float()
    reward = reward.masked_fill(judges.stability(asked) != 1, math.nan)
    return Draw(asked, reward, target_strata(asked))


def property_targets(draw: Draw) -> dict[str, Weighted]:
    """The samples in equal weights ("control") and under their payoff weights ("guided")."""
    tau = temperature_for_ess(draw.reward, SHARE, draw.strata)
    return {"control": equal_weights(draw), "guided": draw.weigh(tau)}


def sample_conditional(
    denoiser: Denoiser, sizes: Tensor, c: Tensor, preset: str, batch: int = 256
) -> MoleculeSet:
    """A molecule of each size (n,) for each row of conditions c (n, k), in their order."""
    parts, order = [], []
    for size in sizes.unique():
        for index in torch.nonzero(sizes == size)[:, 0].split(batch):

            def knows(x_t: Tensor, t: Tensor, cond: None, c: Tensor = c[index]) -> Tensor:
                return denoiser(x_t, t, c)

            bf16 = preset != "quick"
            parts.append(sample_molecules(knows, sizes[index], STEPS[preset], batch, bf16))
            order.append(index)
    return MoleculeSet.concatenate(parts).subset(torch.argsort(torch.cat(order)).numpy())


def sample_questions(
    protocol: Protocol,
    denoiser: Denoiser,
    path: Path,
    out: Path,
    preset: str,
    n: int,
    noise: int,
    gains: dict[str, float],
    **settings: float,
) -> Path:
    """n samples for each property, with asked, target, gain; sizes, targets, noise by ``noise``.

    Those of each property are kept in ``out`` until all are there: a stopped run goes on there.

    Args:
        protocol: parts and units.
        denoiser: told as `condition_vector` says.
        path: file to write.
        out: folder of the parts.
        preset: quick, laptop or full.
        n: samples for each property.
        noise: seed.
        gains: property -> gain of its questions, see ``conditions``.
        settings: further columns of one value.
    """
    ending = "_".join(f"{x:.6g}" for x in (n, noise, *gains.values(), *settings.values()))
    parts = {name: out / f"{path.stem}_{name}_{ending}.npz" for name in UNITS}
    for k, name in enumerate(UNITS):
        if parts[name].exists():
            continue
        half = protocol.generator_half
        print(f"{path.stem}: {n} samples for {name}", flush=True)
        torch.manual_seed(len(UNITS) * noise + k)
        asked = half.subset(torch.randint(len(half), (n,)).numpy())
        columns = {key: np.full(n, value) for key, value in settings.items()}
        columns |= {"asked": np.full(n, k), "target": asked.property(name)}
        columns |= {"gain": np.full(n, gains[name])}
        questions = asked.with_properties(**columns)
        sizes, c = torch.from_numpy(asked.n_atoms), conditions(protocol, questions)
        made = sample_conditional(denoiser, sizes, c, preset, SIZE)
        write_scored(made.with_properties(**columns), parts[name], preset)
    made = MoleculeSet.concatenate([load_set(part) for part in parts.values()])
    write_scored(made, path, preset)
    for part in parts.values():  # another run may have another network
        part.unlink()
    return path


def nearest_by_trial(
    protocol: Protocol,
    stem: str,
    out: Path,
    values: tuple[float, ...],
    sample: Callable[[Path, float], Any],
) -> dict[str, float]:
    """For each property, which of the values brings a trial's answers nearest to what was asked.

    By the reward network: the evaluator tunes nothing.

    Args:
        protocol: parts and networks.
        stem: of the trials' names.
        out: their folder; a trial that is there is not made again.
        values: what is tried, of all properties at once.
        sample: (file, value) writes answers with asked and target.
    """
    off = {name: {} for name in UNITS}
    for value in values:
        trial = out / f"{stem}_trial{value:g}.npz"
        if not trial.exists():
            sample(trial, value)
        made = with_predictions(protocol, load_set(trial), ("reward",))
        for name, error in off.items():
            asked = asked_for(name, made)
            missed = np.abs(asked.property("reward") - asked.property("target"))
            error[value] = float(missed.mean())
    for name, error in off.items():
        found = ", ".join(f"{value:g}: {x:.4g}" for value, x in error.items())
        print(f"{stem}: {name}, {UNITS[name]} off at {found}", flush=True)
    return {name: min(error, key=error.get) for name, error in off.items()}


def drop_parts(path: Path, out: Path) -> None:
    """Remove trials and parts of a set from ``out``: the next network of its name has its own."""
    for part in out.glob(f"{path.stem}_*.npz"):
        part.unlink()


def tuned_gains(
    protocol: Protocol, denoiser: Denoiser, path: Path, out: Path, preset: str
) -> dict[str, float]:
    """`nearest_by_trial` of ``GAINS``; arguments as of ``sample_questions``."""

    def sample(trial: Path, gain: float) -> None:
        n, gains = TRIAL[preset], dict.fromkeys(UNITS, gain)
        sample_questions(protocol, denoiser, trial, out, preset, n, TRIAL_NOISE, gains)

    return nearest_by_trial(protocol, path.stem, out, GAINS, sample)


def with_predictions(
    protocol: Protocol, molecules: MoleculeSet, kinds: tuple = REGRESSORS
) -> MoleculeSet:
    """With properties "evaluator" and "reward": what they say of what was asked, in its unit."""
    asked = molecules.property("asked").astype(int)
    mean, scale = (np.array([of[name] for name in UNITS]) for of in (protocol.mean, protocol.scale))
    words = {}
    for kind in kinds:
        said = predict(protocol.regressor(kind), molecules).numpy()
        words[kind] = mean[asked] + scale[asked] * said[np.arange(len(asked)), asked]
    return molecules.with_properties(**words)


def atoms_only(protocol: Protocol, name: str, molecules: MoleculeSet) -> float:
    """EDM's row "#Atoms": mean absolute error of the median at that number of atoms, in its unit.

    Args:
        protocol: whose generators' half has the medians.
        name: the property.
        molecules: with properties asked and target.
    """
    half, asked = protocol.generator_half, asked_for(name, molecules)
    median = {n: np.median(half.property(name)[i]) for n, i in half.by_size().items()}
    guess = np.array([median[n] for n in asked.n_atoms.tolist()])
    return float(np.abs(guess - asked.property("target")).mean())


def heard(protocol: Protocol, name: str, molecules: MoleculeSet) -> float:
    """Correlation of the target and what the evaluator says, each less the mean of its size.

    Every model is given the size, and the property goes with it: that part proves nothing.

    Args:
        protocol: whose generators' half has the means.
        name: the property.
        molecules: with properties asked, target and evaluator.
    """
    asked = asked_for(name, molecules)
    mean = protocol.mean_of_size(name, asked.n_atoms)
    both = [asked.property(key) - mean for key in ("target", "evaluator")]
    return float(np.corrcoef(both)[0, 1])


def errors(
    name: str, sets: dict[str, MoleculeSet], real: MoleculeSet, by: str = "evaluator"
) -> dict[str, tuple[float, float]]:
    """Mean absolute error and its standard error, in the property's unit, by one judge's word.

    "judge" is the judge's own, on ``real`` molecules that it does not know. A set with a smaller
    one fits the judge's mistakes: that gives a warning. GFN2 has a scale of its own, so that a line
    from it to QM9's values is fitted on the real ones.

    Args:
        name: the property.
        sets: with properties asked, target and that of the judge.
        real: the same, of molecules as they are.
        by: "evaluator" or "reward" (networks: unstable molecules count, as for EDM) or "gfn2" (of
            what has a value).

    Raises:
        ValueError: an unknown property, or one that GFN2 is no judge of.
    """
    if by == "gfn2" and name not in PHYSICS:
        raise ValueError(f"GFN2-xTB is no judge of {name}: choose from {', '.join(PHYSICS)}")
    known, slope, start = asked_for(name, real), 1.0, 0.0
    if by == "gfn2":
        x, y = known.property(by), known.property("target")
        there = np.isfinite(x)
        slope, start = np.polyfit(x[there], y[there], 1)
    found = {}
    for kind, molecules in {"judge": known, **sets}.items():
        asked = asked_for(name, molecules)
        missed = np.abs(start + slope * asked.property(by) - asked.property("target"))
        missed = missed[np.isfinite(missed)]
        found[kind] = float(missed.mean()), float(missed.std() / len(missed) ** 0.5)
        if found[kind][0] < found["judge"][0]:
            warnings.warn(
                f"{kind}: {name} is {found[kind][0]:.4g} from its targets by {by}, less than its"
                f" own error of {found['judge'][0]:.4g}: it is the judge that was met",
                stacklevel=2,
            )
    return found


def set_gains(molecules: MoleculeSet) -> dict[str, float]:
    """Property -> gain that its questions were asked at."""
    return {name: float(asked_for(name, molecules).property("gain")[0]) for name in UNITS}


def model_kind(kind: str, seed: int) -> str:
    """What `Protocol.path` calls a model: "conditional", or another one, of a training seed.

    Raises:
        ValueError: another kind.
    """
    require_known("kind", (kind,), ("conditional", CLASSIFIER, *KINDS))
    return kind if kind == "conditional" else f"{kind}_seed{seed}"


def set_paths(protocol: Protocol, seed: int = 0) -> dict[str, Path]:
    """The files of samples of a seed that are there, by kind; "strengthened" comes last."""
    kinds = ("conditional", CLASSIFIER, *KINDS)
    paths = {kind: protocol.path(model_kind(kind, seed)) for kind in kinds}
    paths["strengthened"] = protocol.path(model_kind("guided", seed), STRENGTHENED)
    return {kind: path for kind, path in paths.items() if path.exists()}


def load_sets(protocol: Protocol, seed: int = 0) -> dict[str, MoleculeSet]:
    """What ``set_paths`` names, with properties asked and target."""
    require = ["asked", "target"]
    return {kind: load_set(path, require) for kind, path in set_paths(protocol, seed).items()}


@dataclass
class _Trainee:
    """A conditional network on its way through the trainings."""

    network: EGNN
    protocol: Protocol
    preset: str
    out: Path
    lr: float

    def train(self, kind: str, molecules: MoleculeSet, weight: Tensor | None, seed: int) -> None:
        """From where the network is, on molecules with asked and target; leaves it trained.

        Weights that are there are not made again.
        """
        weights, preset = self.protocol.path(kind, ".safetensors"), self.preset
        if not weights.exists():
            print(f"properties: {kind}", flush=True)
            drop_parts(self.protocol.path(kind), self.out)
            batch, steps = GUIDANCE[preset]["batch"], FURTHER_STEPS[preset]
            gains = set_gains(molecules) if "gain" in molecules.properties else {}
            if kind == "conditional":
                steps = GUIDANCE[preset]["steps"]
            diffusion, times = molecule_diffusion(), training_times()
            # what goes on from the conditional model must not see its batches once more
            torch.manual_seed(1000 * (seed + 1) + (kind != "conditional"))
            batches = labelled_batches(
                molecules, conditions(self.protocol, molecules), batch, weight
            )

            def loss(network: nn.Module) -> Tensor:
                x, wanted = next(batches)
                return diffusion.loss(network, x, wanted, times=times)

            train_and_save(
                self.network,
                loss,
                weights,
                self.out / f"{weights.stem}.checkpoint.safetensors",
                steps,
                self.lr,
                {"properties": list(UNITS), "kind": kind, "batch": batch, "gains": gains},
                command_line("molecules-property", preset),
            )
        self.network.load_state_dict(load_model(weights)[0].state_dict())

    def sample(self, kind: str, n: int, noise: int) -> Path:
        """`sample_questions` of the network as it is, at the gains of its trials.

        A set that is there is not made again.
        """
        path = self.protocol.path(kind)
        if not path.exists():
            given = self.protocol, self.network, path, self.out, self.preset
            sample_questions(*given, n, noise, tuned_gains(*given))
        drop_parts(path, self.out)
        return path


def target_properties(
    preset: str, out: Path, kinds: tuple = KINDS, seeds: tuple = SEEDS, lr: float = 1e-3
) -> list[Path]:
    """Evaluator, reward network, conditional model and its samples, then the models from there.

    The evaluator's own error is printed before anything is judged by it. Each network is written
    with a set of its samples, and what is there is not made again.

    Raises:
        ValueError: an unknown kind.
    """
    require_known("kind", kinds, KINDS)
    protocol, command = protocol_of(preset, out), command_line("molecules-property", preset)
    evaluator = train_regressor(protocol, "evaluator", preset, out, command)
    test = protocol.data.part("test")
    said = predict(evaluator, test)
    for k, (name, unit) in enumerate(UNITS.items()):
        own = protocol.error(name, said[:, k], test.property(name))
        print(f"{name}: error of the evaluator {own:.4g} {unit}", flush=True)
    train_regressor(protocol, "reward", preset, out, command)
    network = fast(load_model(base_file(DATA[preset]))[0].conditional(2 * len(UNITS)), preset)
    trainee = _Trainee(network, protocol, preset, out, lr)
    half = all_questions(protocol.generator_half)
    trainee.train("conditional", half, None, 0)
    conditional = copy.deepcopy(network.state_dict())
    written = [trainee.sample("conditional", POOL[preset], POOL_NOISE)]
    pool = with_predictions(protocol, load_set(written[0]), ("reward",))
    wanted = [property_targets(property_draw(protocol, name, pool)) for name in UNITS]
    for seed in seeds:
        for kind in kinds:
            network.load_state_dict(conditional)
            molecules, weight = half, None
            if kind != "longer":
                molecules = MoleculeSet.concatenate([target[kind].x0 for target in wanted])
                weight = torch.cat([target[kind].log_weight.exp() for target in wanted])
            trainee.train(model_kind(kind, seed), molecules, weight, seed)
            written.append(trainee.sample(model_kind(kind, seed), SAMPLES[preset], seed))
    return written


def protocol_of(preset: str, out: Path) -> Protocol:
    """The protocol of a preset's data and folder of results."""
    return Protocol(DATA[preset], output_folder(preset, out))


def _level(protocol: Protocol, molecules: MoleculeSet) -> float:
    """Mean over the properties of the mean reward of what has a value."""
    molecules = with_predictions(protocol, molecules, ("reward",))
    draws = (property_draw(protocol, name, molecules) for name in UNITS)
    return sum(reward_level(draw.reward) for draw in draws) / len(UNITS)


def strengthen_properties(preset: str, out: Path, seeds: tuple = SEEDS) -> list[Path]:
    """Samples of the conditional model plus what the reward alone has taught.

    eps_conditional + strength (eps_guided - eps_control), at the strength that would bring the mean
    reward to the payoff's if it did as much from the conditional model as from the control. A set
    that is there is not made again.

    Raises:
        ValueError: a guided model whose mean reward is not above its control's.
    """
    protocol = protocol_of(preset, out)
    pool = with_predictions(protocol, load_set(protocol.path("conditional")), ("reward",))
    targets = [property_targets(property_draw(protocol, name, pool)) for name in UNITS]
    aim = sum(payoff_level(target["guided"]) for target in targets) / len(UNITS)
    network = load_model(protocol.path("conditional", ".safetensors"))[0]
    guided, control, conditional = (fast(copy.deepcopy(network), preset) for _ in range(3))
    start, written = _level(protocol, pool), []
    for seed in seeds:
        written.append(path := protocol.path(model_kind("guided", seed), STRENGTHENED))
        if path.exists():
            continue
        levels = []
        for network, kind in ((guided, "guided"), (control, "control")):
            weights = protocol.path(model_kind(kind, seed), ".safetensors")
            network.load_state_dict(load_model(weights)[0].state_dict())
            levels.append(_level(protocol, load_set(protocol.path(model_kind(kind, seed)))))
        strength = strength_of_difference(aim, start, *levels)
        denoiser = along(conditional, (strength, guided, control))
        n, noise, gains = STRENGTHENED_SAMPLES[preset], seed + len(SEEDS), set_gains(pool)
        sample_questions(protocol, denoiser, path, out, preset, n, noise, gains, strength=strength)
    return written


def judge_properties(preset: str, out: Path, seeds: tuple = SEEDS) -> list[Path]:
    """Every set gets the word of three judges on what was asked, in its unit.

    Properties "evaluator" and "reward" by the networks, "gfn2" by GFN2-xTB (NaN: asked for alpha,
    or no molecule). Beside them held-out molecules, "real", each asked for what it has. A set that
    has them is not judged again.
    """
    protocol, written = protocol_of(preset, out), []
    paths = {path: None for seed in seeds for path in set_paths(protocol, seed).values()}
    test = protocol.data.part("test")
    test = test.subset(range(min(len(test), SAMPLES[preset])))
    real = all_questions(replace(test, smiles=None, index=None, split=None))
    real = replace(real, properties={k: real.property(k) for k in ("asked", "target")})
    for path in (protocol.path("real"), *paths):
        written.append(path)
        molecules = load_set(path) if path.exists() else real
        if "gfn2" in molecules.properties:
            continue
        print(f"{path.stem}: judged", flush=True)
        said = np.full(len(molecules), np.nan)
        for name, judge in PHYSICS.items():
            here = molecules.property("asked") == list(UNITS).index(name)
            said[here] = judge()(asked_for(name, molecules)).numpy()
        judged = with_predictions(protocol, molecules).with_properties(gfn2=said)
        write_scored(judged, path, preset)
    return written
