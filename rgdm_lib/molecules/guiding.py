"""Steps that every guided molecule model takes: the control's target, training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgdm_lib.hardware import bf16_pays
from rgdm_lib.payoff import Draw, Weighted
from rgdm_lib.training import Trainer, muon, save_weights


def equal_weights(draw: Draw) -> Weighted:
    """The control's target: the samples with a value, equal weights in each stratum."""
    flat = replace(draw, reward=torch.where(draw.reward.isfinite(), 0.0, math.nan))
    return replace(flat.weigh(1.0), reward=draw.reward)


def train_and_save(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    weights: Path,
    checkpoint: Path,
    steps: int,
    lr: float,
    config: dict[str, Any],
    command: str,
    bf16: bool = True,
    looks: Sequence[int] = (),
    look: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train a network from where it is; write its averaged weights and leave it with them.

    Args:
        network: with ``blocks`` for Muon and ``settings`` to build it from.
        loss: once a step; draws its own batch from torch's generator.
        weights: file to write, float16.
        checkpoint: file to resume from; ``config`` tells whose it is.
        steps: length of the run.
        lr: peak learning rate.
        config: identifies the run, JSON.
        command: what makes the file, for its metadata.
        bf16: matrix products in bfloat16 where the hardware has it.
        looks: steps, ascending, at which to stop for a ``look``.
        look: (step, average so far); its random draws leave those of the training as they are.

    Returns the averaged network, ready to sample from.
    """
    trainer = Trainer(
        network,
        loss,
        steps,
        lr=lr,
        optimizer=muon,
        decay_share=0.5,
        bf16=bf16 and bf16_pays(next(network.parameters()).device.type),
        checkpoint=checkpoint,
        config=config | {"steps": steps},
    )
    for step in looks:
        if trainer.step <= step:
            average = trainer.run(until=step, log_every=100)
            with torch.random.fork_rng():
                look(step, average)
    average = trainer.run(log_every=100)
    network.load_state_dict(average.state_dict())
    history = trainer.history[:: max(1, len(trainer.history) // 200)]
    details = {"network": average.settings, "command": command, "history": history}
    save_weights(weights, average, details)
    return average
