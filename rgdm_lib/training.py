"""One training loop for everything: optimiser, weight averaging, checkpoints, resume, progress.

All randomness comes from torch's global generator, whose state is part of a checkpoint: a run
that was killed and resumed ends with the same bits as one that was not (same machine, CPU).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file to a temporary name, then rename: a crash never leaves half a file.

    ``metadata`` is stored as JSON, with a digest of the tensors. The same input gives the same
    bytes.

    Raises:
        TypeError: ``metadata`` is not JSON.
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry: safetensors writes several in an order that changes from run to run
    text = json.dumps(metadata | {"digest": _digest(packed)}, sort_keys=True)
    save_file(packed, temporary, {"json": text})
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())  # on disk before it takes the name of the last good one
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(temporary, path)


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        ValueError: the file is not a whole safetensors file, or its numbers have changed.
    """
    try:
        data = Path(path).read_bytes()  # at once: a run may replace the file at any moment
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header.get("__metadata__", {}).get("json", "{}"))
        if metadata.pop("digest", None) not in (None, _digest(tensors)):
            raise ValueError("its tensors are not those that were written")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): delete it and start again, or"
            " restore it from a copy"
        ) from error
    return tensors, metadata


def save_weights(path: str | Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Ship a model: its weights in float16 with metadata (how to build it, what made it)."""
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_tensors(path, tensors, metadata)


def adam(model: nn.Module) -> list[Optimizer]:
    """Adam on all weights."""
    return [torch.optim.Adam(model.parameters(), foreach=True)]


def muon(model: nn.Module) -> list[Optimizer]:
    """Muon on the matrices of ``model.blocks``, Adam on the rest.

    Muon orthogonalises the momentum of a matrix (Jordan et al. 2024; Liu et al. 2025, arXiv
    2502.16982, eq. 4, for the scale that lets both share one learning rate). It is made for the
    inside of a network: first and last layers, biases and norms stay with Adam.
    """
    inside = {id(p) for p in model.blocks.parameters() if p.ndim == 2 and min(p.shape) > 1}
    matrices = [p for p in model.parameters() if id(p) in inside]
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(rest, foreach=True),
    ]


@dataclass
class Trainer:
    """Minimise ``loss(model)`` and keep an exponential moving average of the weights.

    Args:
        model: the network; trained in place.
        loss: called once a step with the network to use; draws its own batch and returns a
            scalar, or a vector (B,) that is averaged.
        steps: length of the whole run; the learning rate is warmed up over ``warmup`` steps, held,
            and brought to 0 linearly over the last ``decay_share`` of the run.
        lr: peak learning rate.
        optimizer: ``model -> list of optimisers`` that share its weights between them.
        ema_decay: the average's decay at the end. It is warmed up as (1 + n) / (10 + n): an average
            that still holds the initial weights ruins early samples.
        clip: largest norm of the gradient.
        bf16: run matrix products in bfloat16 (autocast); ``hardware.bf16_pays`` says where to.
        checkpoint: file to write every ``save_every`` seconds and at the end, and to resume from
            when it exists.
        config: what identifies the run (JSON). A checkpoint of another config or other settings is
            refused; ``steps`` and ``decay_share`` may change as long as the learning rate has not
            begun to fall, before or after the change.

    Raises:
        ValueError: the checkpoint is not this run's, or not a checkpoint.
        TypeError, OSError: ``config`` is not JSON, the checkpoint's folder cannot be written.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    steps: int
    lr: float = 1e-3
    optimizer: Callable[[nn.Module], list[Optimizer]] = adam
    warmup: int = 200
    decay_share: float = 0.3
    ema_decay: float = 0.999
    clip: float = 1.0
    bf16: bool = False
    checkpoint: str | Path | None = None
    save_every: float = 120.0
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step = 0
        self.history: list[tuple[int, float]] = []
        self.optimizers = self.optimizer(self.model)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            self._resume()
        elif self.checkpoint is not None:
            self.save()  # what cannot be written is known before the first step

    @property
    def ema(self) -> nn.Module:
        """The averaged network: the one to sample from."""
        return self.average.module

    def _average(self, averages: list[Tensor], current: list[Tensor], n: Tensor | int) -> None:
        decay = min(self.ema_decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_(averages, current, 1 - decay)

    def learning_rate(self, step: int) -> float:
        """Warm-up, plateau, linear decay to 0 at ``steps``."""
        decay_steps = max(1, int(self.decay_share * self.steps))
        rising = (step + 1) / self.warmup if self.warmup else 1.0
        return self.lr * min(1.0, rising, (self.steps - step) / decay_steps)

    def run(
        self, until: int | None = None, log_every: int = 50, progress: bool = True
    ) -> nn.Module:
        """Train to step ``until`` (default: the end) and return the averaged network.

        Raises:
            FloatingPointError: the loss or the gradient is not finite. Weights and average are
                those of the step before, and in the checkpoint.
        """
        until = self.steps if until is None else until
        device_type = next(self.model.parameters()).device.type
        total, since, saved = 0.0, 0, time.monotonic()
        self.model.train()
        bar = tqdm(total=until, initial=self.step, disable=not progress, mininterval=2.0)
        while self.step < until:
            with torch.autocast(device_type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.model).mean()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            for name, value in (("loss", float(loss.detach())), ("gradient's norm", float(norm))):
                if not math.isfinite(value):
                    self._stop(f"the {name} is {value} at step {self.step + 1}")
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate(self.step)
                optimizer.step()
            self.average.update_parameters(self.model)
            self.step += 1
            total, since = total + float(loss.detach()), since + 1
            bar.update(1)
            if since == log_every or self.step == until:
                self.history.append((self.step, total / since))
                bar.set_postfix(loss=f"{total / since:.4f}")
                total, since = 0.0, 0
                if self.checkpoint and time.monotonic() - saved > self.save_every:
                    self.save()
                    saved = time.monotonic()
        bar.close()
        if self.checkpoint:
            self.save()
        return self.ema.eval()

    def _stop(self, what: str) -> None:
        where = ""
        if self.checkpoint:
            self.save()
            where = f"; {self.checkpoint} holds the state before that step"
        raise FloatingPointError(
            f"{what}: lower lr = {self.lr}, or look for bad values in the data{where}"
        )

    def _settings(self) -> dict[str, Any]:
        """What may not change within a run."""
        names = ("lr", "warmup", "ema_decay", "clip", "bf16")
        kinds = [type(o).__name__ for o in self.optimizers]
        return {name: getattr(self, name) for name in names} | {"optimizers": kinds}

    def save(self) -> None:
        """Write weights, average, optimiser states and the random stream, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        for o, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{o}.{i}.{k}": v for k, v in state.items()}
        tensors["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng_cuda"] = torch.cuda.get_rng_state()
        meta = {"step": self.step, "history": self.history, "config": self.config}
        meta |= {"settings": self._settings(), "decay_from": self._decay_from()}
        save_tensors(self.checkpoint, tensors, meta)

    def _decay_from(self) -> int:
        """The last step of the plateau."""
        return self.steps - max(1, int(self.decay_share * self.steps))

    def _resume(self) -> None:
        tensors, meta = load_tensors(self.checkpoint)
        if "settings" not in meta or "rng" not in tensors:
            raise ValueError(
                f"{self.checkpoint} is not a checkpoint of a training run (weights alone cannot be"
                " resumed): name another file"
            )
        for name, mine in (("config", self.config), ("settings", self._settings())):
            mine = json.loads(json.dumps(mine))
            if meta[name] != mine:
                raise ValueError(
                    f"{self.checkpoint} belongs to another run: it has {name} {meta[name]}, this"
                    f" run has {mine}. Use another file, or delete it."
                )
        decay_from = self._decay_from()
        if meta["decay_from"] != decay_from and meta["step"] > min(meta["decay_from"], decay_from):
            raise ValueError(
                f"{self.checkpoint} is at step {meta['step']}; its learning rate falls from step"
                f" {meta['decay_from']} on, with steps = {self.steps} and decay_share ="
                f" {self.decay_share} it would from {decay_from} on: too late to change either"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("ema."))
        for o, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            for name, value in part(f"optimizer.{o}.").items():
                i, key = name.split(".", 1)
                state["state"].setdefault(int(i), {})[key] = value
            optimizer.load_state_dict(state)
        self.step, self.history = meta["step"], [tuple(item) for item in meta["history"]]
        torch.set_rng_state(tensors["rng"])
        if "rng_cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng_cuda"])
