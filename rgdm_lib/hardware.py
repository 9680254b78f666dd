"""What networks run on: a GPU for preset full, and bfloat16 where the hardware has it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# names of ``torch.cpu.get_capabilities``: Intel and AMD, then ARM
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def device_for(preset: str) -> torch.device:
    """Where the networks of a preset run: those of full on a GPU if torch finds one.

    The others stay on the processor on any machine: their numbers are from there.
    """
    gpu = preset == "full" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device. It takes its inputs from the processor and answers there.

    So molecules, points, noise and losses stay on the processor: they are small beside what a
    network computes. One that is there already, and so a copy of it, is left as it is.
    """
    if next(network.parameters()).device.type == device.type:
        return network

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def bring(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}

    def take_back(network: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output.cpu()

    network.to(device)
    network.register_forward_pre_hook(bring, with_kwargs=True)
    network.register_forward_hook(take_back)
    return network


def bf16_pays(kind: str = "cpu") -> bool:
    """Whether a device of this kind ("cpu", "cuda") multiplies bfloat16 numbers itself.

    A processor that does not does it in software: with AVX2 alone the molecules' network took 8
    times as long as in float32 (``tests/bench/README.md``). On a Mac torch leaves the instruction
    unused, and multiplies float32 numbers with Apple's own library.
    """
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return sys.platform != "darwin" and any(has.get(name, False) for name in BF16_INSTRUCTIONS)


@contextlib.contextmanager
def bf16_products(wanted: bool) -> Iterator[None]:
    """Matrix products in bfloat16, if ``wanted``, on each kind of device where that pays."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if wanted and bf16_pays(kind):
                stack.enter_context(torch.autocast(kind, torch.bfloat16))
        yield
