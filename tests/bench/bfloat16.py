"""What bfloat16 costs or saves on this processor: matrix products, and the molecules' network.

    taskset -c 0 python tests/bench/bfloat16.py

Prints a table for ``README.md``, and what ``hardware.bf16_pays`` says of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from rgdm_lib.hardware import bf16_pays
from rgdm_lib.molecules.data import CHANNELS
from rgdm_lib.molecules.experiments import base_file
from rgdm_lib.molecules.model import load_model


def milliseconds(call: Callable[[], object], seconds: float = 3.0) -> float:
    """The fastest call within some seconds, at least two."""
    call()
    best, begun, calls = float("inf"), time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return 1000 * best


@torch.no_grad()
def main() -> None:
    """Time each in both precisions, on one thread."""
    torch.set_num_threads(1)
    a, b = torch.randn(4096, 128), torch.randn(128, 128)
    network, _ = load_model(base_file("heavy7"))
    x, t = torch.randn(64, 15, CHANNELS), torch.full((64,), 500)
    calls = {
        "product of 4096 x 128 and 128 x 128": lambda: a @ b,
        "EGNN of preset laptop, 64 molecules of 15 atoms, not compiled": lambda: network(x, t),
    }
    print("| | float32, ms | bfloat16, ms | ratio |\n|---|---|---|---|")
    for name, call in calls.items():
        plain = milliseconds(call)
        with torch.autocast("cpu", torch.bfloat16):
            low = milliseconds(call)
        print(f"| {name} | {plain:.2f} | {low:.2f} | {low / plain:.2f} |")
    print(f"bf16_pays(): {bf16_pays()}")


if __name__ == "__main__":
    main()
