"""Where bfloat16 pays."""

import torch

# names of ``torch.cpu.get_capabilities``: Intel and AMD, then ARM
IN_HARDWARE = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def bf16_pays() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself.

    Elsewhere torch does it in software: with AVX2 alone the molecules' network took 8 times as long
    as in float32 (``tests/bench/README.md``).
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in IN_HARDWARE)
