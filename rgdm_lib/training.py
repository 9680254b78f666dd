"""One training loop for everything: Adam, weight averaging, checkpoints, resume, progress.

All randomness comes from torch's global generator, whose state is part of a checkpoint: a run
that was killed and resumed ends with the same bits as one that was not (same machine, CPU).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file to a temporary name, then rename: a crash never leaves half a file.

    ``metadata`` is stored as JSON. The same input gives the same bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry: safetensors writes several in an order that changes from run to run
    save_file(packed, temporary, {"json": json.dumps(metadata, sort_keys=True)})
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(temporary, path)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        ValueError: the file is not a whole safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
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


@dataclass
class Trainer:
    """Minimise ``loss(model)`` with Adam and keep an exponential moving average of the weights.

    Args:
        model: the network; trained in place.
        loss: called once a step with the network to use; draws its own batch and returns a
            scalar, or a vector (B,) that is averaged.
        steps: length of the whole run; the learning rate is warmed up over ``warmup`` steps, held,
            and brought to 0 linearly over the last ``decay_share`` of the run.
        lr: peak learning rate of Adam.
        ema_decay: the average's decay at the end. It is warmed up as (1 + n) / (10 + n): an average
            that still holds the initial weights ruins early samples.
        clip: largest norm of the gradient.
        bf16: run matrix products in bfloat16 (autocast).
        checkpoint: file to write every ``save_every`` seconds and at the end, and to resume from
            when it exists.
        config: what identifies the run; a checkpoint of another config is refused.
    """

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    steps: int
    lr: float = 1e-3
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
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr, foreach=True)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            self._resume()

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
        return self.lr * min(1.0, (step + 1) / self.warmup, (self.steps - step) / decay_steps)

    def run(
        self, until: int | None = None, log_every: int = 50, progress: bool = True
    ) -> nn.Module:
        """Train to step ``until`` (default: the end) and return the averaged network.

        Raises:
            FloatingPointError: the loss is not finite; the last checkpoint is kept.
        """
        until = self.steps if until is None else until
        device_type = next(self.model.parameters()).device.type
        total, since, saved = 0.0, 0, time.monotonic()
        self.model.train()
        bar = tqdm(total=until, initial=self.step, disable=not progress, mininterval=2.0)
        while self.step < until:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(self.step)
            with torch.autocast(device_type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.model).mean()
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.average.update_parameters(self.model)
            self.step += 1
            total, since = total + loss.detach(), since + 1
            bar.update(1)
            if since == log_every or self.step == until:
                mean = float(total) / since
                if not torch.isfinite(torch.tensor(mean)):
                    raise FloatingPointError(
                        f"the loss is {mean} near step {self.step}: lower lr = {self.lr}, or look"
                        f" for bad values in the data; the last checkpoint is {self.checkpoint}"
                    )
                self.history.append((self.step, mean))
                bar.set_postfix(loss=f"{mean:.4f}")
                total, since = 0.0, 0
                if self.checkpoint and time.monotonic() - saved > self.save_every:
                    self.save()
                    saved = time.monotonic()
        bar.close()
        if self.checkpoint:
            self.save()
        return self.ema.eval()

    def save(self) -> None:
        """Write weights, average, optimizer state and the random stream, atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        tensors["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng_cuda"] = torch.cuda.get_rng_state()
        meta = {"step": self.step, "history": self.history, "config": self.config}
        save_tensors(self.checkpoint, tensors, meta)

    def _resume(self) -> None:
        tensors, meta = load_tensors(self.checkpoint)
        if meta["config"] != json.loads(json.dumps(self.config)):
            raise ValueError(
                f"{self.checkpoint} belongs to another run: it has config {meta['config']}, this"
                f" run has {self.config}. Use another file, or delete it."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("ema."))
        state = self.optimizer.state_dict()
        for name, value in part("adam.").items():
            i, key = name.split(".", 1)
            state["state"].setdefault(int(i), {})[key] = value
        self.optimizer.load_state_dict(state)
        self.step, self.history = meta["step"], [tuple(item) for item in meta["history"]]
        torch.set_rng_state(tensors["rng"])
        if "rng_cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng_cuda"])
