"""What a process holds on a CPU beside tensors: libraries that load while they run, oneDNN's compiled kernels, and blocks
that are freed and kept.

None of it follows from a shape. The numbers are fitted to runs of the train stage (docs/plan.md).
"""

from __future__ import annotations

from finetune.planner.counted import Counted
from finetune.planner.passes import Pass

LOADED = 100 * 10**6
"""The model's code, Trainer, DVCLive, Arrow."""
KERNELS = 1024
"""oneDNN keeps so many at most (ONEDNN_PRIMITIVE_CACHE_CAPACITY)."""
KERNELS_A_LENGTH = 6
"""Products of attention forward and backward, whose shapes are a sequence's length."""
KERNEL_BYTES = 175 * 10**3
AT_LOADING = 40 * 10**6
"""Of `LOADED`, what is there when the weights are."""
HOLES = 0.055
"""Share of what a model's own layers make that glibc's heap keeps in pieces that fit nothing later; and so many times what
lives at a time at most."""
MOST_HOLES = 2.1


def process_bytes(at: Pass) -> int:
    """Beside all tensors."""
    return LOADED + min(KERNELS, KERNELS_A_LENGTH * at.shapes) * KERNEL_BYTES


def loading_bytes(weights: int) -> int:
    """While a model is loaded: its file, mapped into memory, stays until the last weight is copied out of it."""
    return 2 * weights + AT_LOADING


def holes(counted: Counted, dequantised: int) -> int:
    """Between the tensors of a pass that is `counted`, in which so many bytes of 4-bit weights are written out as well."""
    return round(min(HOLES * (counted.made + dequantised), MOST_HOLES * counted.most))
