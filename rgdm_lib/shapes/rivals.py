"""Rivals of the guided models of ``experiments`` on point clouds: sets of samples, see ``RIVALS``.

``python -m rgdm_lib.course experiment shapes-rivals --preset P``; it can be stopped and resumed.
Some learn from the shapes that the base has seen, with their rewards or labels: 12,000 rewards at
preset laptop. The others call the reward on samples of their own. The search does as often; what
trains on its own samples gets fewer there, as they take the time: sets were to take about half an
hour on a core. A column of their file, ``evaluations``, says how often.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from rgdm_lib import stepwise
from rgdm_lib._kept import require_known
from rgdm_lib.baselines import (
    classifier_guidance,
    conditional,
    policy_gradient,
    reward_weighted,
    value_guidance,
)
from rgdm_lib.diffusion import Denoiser
from rgdm_lib.hardware import device_for, place
from rgdm_lib.in_parts import InParts
from rgdm_lib.payoff import Draw, systematic_resample
from rgdm_lib.shapes.experiments import (
    GUIDANCE,
    GUIDED,
    POINTS,
    RIVALS,
    SEEDS,
    STEPS,
    WANTED,
    Made,
    Start,
    fast,
    make_sets,
    reward_named,
)
from rgdm_lib.shapes.model import (
    CloudDiffusion,
    load_clouds,
    sampling_times,
    save_clouds,
    shape_diffusion,
    training_times,
)
from rgdm_lib.shapes.nets import NoisyPointNet
from rgdm_lib.shapes.parametric import CLASSES
from rgdm_lib.training import muon

# Of reward-weighted regression: rounds, and samples in each. At preset laptop 1.7 clouds a second
# are drawn: 20 minutes for 2,000, two hours for 12,000. A third of them are of the wanted class.
ROUNDS = 2
ROUND_SAMPLES = {"quick": 30, "laptop": 1000, "full": 30_000}
# Policy gradients keep all steps of a path: a path is a tenth as long as the sampler's. At preset
# laptop a quarter of the points: 32 paths in less time than 16 with all, and a ratio has the errors
# of fewer coordinates. The base's 128 points in 24 steps: 34 % chairs (n = 64), but half fall.
DDPO = {
    "quick": {"rounds": 4, "n": 15, "steps": 5, "points": 64},
    "laptop": {"rounds": 100, "n": 32, "steps": 24, "points": 128},
    "full": {"rounds": 100, "n": 600, "steps": 24, "points": 2048},
}
DDPO_BATCHES = 4


def _conditional(start: Start, name: str, seed: int) -> Made:
    """The label, or the reward, as a condition of the denoiser.

    Asked for is the wanted class, or the rewards of the payoff distribution.
    """
    n, draw, tau = GUIDANCE[start.preset]["samples"], *start.draw(RIVALS[name])
    if GUIDED[RIVALS[name]]["reward"] == "class_probability":
        cond = nn.functional.one_hot(start.seen.label, len(CLASSES)).float()
        asked = cond[start.seen.label == CLASSES.index(WANTED)][:1].expand(n, -1)
    else:
        cond = draw.reward[:, None]
        torch.manual_seed(seed)
        asked = cond[systematic_resample(draw.weigh(tau).log_weight, n)]
    diffusion, times = shape_diffusion(), training_times()

    def loss(net: nn.Module, index: Tensor) -> Tensor:
        return conditional.loss(diffusion, net, draw.x0[index], cond[index], times=times)

    wide = fast(start.network.conditional(cond.shape[1] + 1), start.preset)
    trained = start.fit(name, seed, wide, loss, optimizer=muon)
    trained = conditional.classifier_free(fast(trained, start.preset), 1.0)
    return start.sample(trained, seed, asked), {}


def _gradient(start: Start, name: str, seed: int) -> Made:
    """The gradient of log p(class | x_t), or of a learned value: the base itself is not trained."""
    draw, tau = start.draw(RIVALS[name])
    diffusion, best = shape_diffusion(), float(draw.reward.max())
    if name.startswith("classifier"):
        net = NoisyPointNet(diffusion.T, len(CLASSES))
        label = CLASSES.index(WANTED)

        def loss(net: nn.Module, index: Tensor) -> Tensor:
            x0, labels = draw.x0[index], start.seen.label[index]
            return classifier_guidance.loss(diffusion, net, x0, labels)

        def potential(net: nn.Module) -> classifier_guidance.Potential:
            return classifier_guidance.log_probability(net, label)

    else:
        net, potential = NoisyPointNet(diffusion.T, 1), value_guidance.log_weight

        def loss(net: nn.Module, index: Tensor) -> Tensor:
            x0, reward = draw.x0[index], draw.reward[index]
            return value_guidance.loss(diffusion, net, x0, reward, tau, best)

    place(net, device_for(start.preset))
    trained = start.fit(name, seed, net, loss, lr=2e-3)  # from scratch
    guided = classifier_guidance.guided(start.network, potential(trained), diffusion)
    return start.sample(guided, seed), {}


class _Counted:
    """A reward of normalised clouds that counts its evaluations."""

    def __init__(self, start: Start, name: str):
        self.reward, self.norm = reward_named(GUIDED[RIVALS[name]]["reward"]), start.norm
        self.evaluations = 0

    def __call__(self, x0: Tensor) -> Tensor:
        self.evaluations += len(x0)
        return self.reward(self.norm.undo(x0))


def _noise(seed: int, k: int) -> int:
    """Seed of round k, with room for its parts; those of sets are small, of trainings 1000 n."""
    return 1000 * (seed + 1) + 100 * k


def _pool(start: Start, name: str, seed: int, k: int, denoiser: Denoiser, n: int) -> Tensor:
    """n normalised samples of round k; parts of them are kept in files, to go on after a stop."""
    size, parts = GUIDANCE[start.preset]["samples"], []
    for j in range(-(-n // size)):
        path = start.out / f"{name}_seed{seed}_round{k}_part{j}.npz"
        if not path.exists():
            save_clouds(path, start.sample(denoiser, _noise(seed, k) + j + 1))
        parts.append(load_clouds(path)[0])
    return start.norm.apply(torch.cat(parts)[:n])


def _reward_weighted(start: Start, name: str, seed: int) -> Made:
    """Reward-weighted regression: each round at tau, on samples of the round before."""
    _, tau = start.draw(RIVALS[name])
    net, reward, diffusion = copy.deepcopy(start.network), _Counted(start, name), shape_diffusion()
    net, n = fast(net, start.preset), ROUND_SAMPLES[start.preset]
    options = start.trainer(name, seed)
    options["steps"] //= ROUNDS
    for k in range(ROUNDS):
        x0 = _pool(start, name, seed, k, net, n)
        draw = Draw(x0, reward(x0))
        torch.manual_seed(_noise(seed, k))  # whether or not the samples were there already
        rounds = reward_weighted.fit(
            net,
            diffusion,
            lambda denoiser, draw=draw: draw,
            tau,
            rounds=1,
            batch_size=GUIDANCE[start.preset]["batch"],
            loss=lambda net, x0: diffusion.loss(net, x0, times=training_times()),
            optimizer=muon,
            **options | {"checkpoint": start.checkpoint(f"{name}_round{k}", seed)},
        )
        for done in rounds:
            mean = float(draw.reward.mean())
            print(f"{name}, round {k + 1}: mean reward {mean:.4g}, weighted {done.reward:.4g}")
    return start.sample(net, seed), {"evaluations": reward.evaluations}


def _particles(start: Start, name: str, seed: int) -> Made:
    """Particles with carried weights; as many rewards a particle as the evaluations allow.

    The reward of the guess is asked for at steps evenly spread and at the end; between them a
    particle keeps the value that it had, which its weight undoes as any other.
    """
    _, tau = start.draw(RIVALS[name])
    n, reward = GUIDANCE[start.preset]["samples"], _Counted(start, name)
    diffusion, net = CloudDiffusion.of_clouds(), InParts(start.network, start.preset != "quick")
    steps, looks = STEPS[start.preset], len(start.seen) // n
    looked_at = {sampling_times(steps)[steps * i // looks] for i in range(1, looks)}

    def value(x_t: Tensor, t: Tensor) -> Tensor:
        if int(t[0]) not in looked_at:
            return torch.full((len(x_t),), torch.nan)  # no new value
        return reward(diffusion.predict_x0(x_t, t, net(x_t, t)))

    torch.manual_seed(seed)
    x_T = torch.randn(n, POINTS[start.preset], 3)  # noqa: N806
    found = stepwise.particles(net, diffusion, x_T, reward, tau, value=value, steps=steps)
    clouds = start.norm.undo(found.resample(n))
    print(f"{name}, seed {seed}: {found.ess:.1f} effective of {n}, the rest are copies")
    return clouds, {"evaluations": reward.evaluations}


def _ddpo(start: Start, name: str, seed: int) -> Made:
    """DDPO: clipped ratios of normalised rewards, nothing that holds it near the base.

    In float32: a ratio multiplies the errors of all coordinates.
    """
    setting, reward = DDPO[start.preset], _Counted(start, name)
    net = fast(copy.deepcopy(start.network), start.preset)
    options = dict(setting)
    points = options.pop("points")
    for done in policy_gradient.fit(
        InParts(net),
        CloudDiffusion.of_clouds(),
        lambda n: torch.randn(n, points, 3),
        reward,
        **options,
        batches=DDPO_BATCHES,
        clip_ratio=0.1,
        normalise=True,
        lr=1e-4,
        checkpoint=start.checkpoint(name, seed),
        config={"model": name, "seed": seed, **setting},
    ):
        print(f"{name}, round {done.step // DDPO_BATCHES}: reward {done.reward:.4g}", flush=True)
    return start.sample(net.eval(), seed), {"evaluations": setting["rounds"] * setting["n"]}


KINDS = {
    "conditional": _conditional,
    "classifier": _gradient,
    "value": _gradient,
    "reward_weighted": _reward_weighted,
    "particles": _particles,
    "ddpo": _ddpo,
}


def compare(
    preset: str,
    out: Path,
    rivals: tuple = tuple(RIVALS),
    seeds: tuple = SEEDS,
) -> list[Path]:
    """The rivals' sets of samples, see ``RIVALS``; a training that was stopped goes on.

    Raises:
        ValueError: an unknown rival.
    """
    require_known("rival", rivals, RIVALS)

    def make(start: Start, name: str, seed: int) -> Made:
        return KINDS[name.rpartition("_")[0]](start, name, seed)

    return make_sets(preset, out, rivals, seeds, make)
