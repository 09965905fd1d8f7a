"""Kernels made for CUDA and ours, on the same tensors: the loss, attention, norms, gates, and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from finetune.device import device

from . import optimizers, rivals
from .results import Outcome, Skipped
from .timing import exact, measured

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

WHOLE = rivals.Sizes(width=2048, mlp=8192, heads=32, key_heads=8, words=128256, lengths=(700, 512, 391, 245, 143, 57))
"""Llama-3.2-1B's, over 2048 packed tokens, so that fp32's logits fit 8 GB as well."""

SMALL = rivals.Sizes(width=64, mlp=128, heads=4, key_heads=2, words=384, lengths=(20, 12))


def next_key(done: Mapping[str, Outcome], tiny: bool) -> str | None:
    """What is to be measured next: 'kernel/variant/dtype'; None if all is done."""
    keys = [
        f"{kernel}/{name}/{dtype}"
        for dtype in DTYPES
        for kernel in rivals.KERNELS
        for name in rivals.KERNELS[kernel].ways
    ]
    keys += [f"optimizer/{name}/bf16" for name in optimizers.WAYS]
    return next((key for key in keys if key not in done), None)


def measure(key: str, tiny: bool) -> Outcome:
    """One way to compute one kernel, and fp32's result."""
    kernel, name, dtype = key.split("/")
    if dtype == "bf16" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        raise Skipped("this device has no bf16")
    sizes = SMALL if tiny else WHOLE
    if kernel == "optimizer":
        return optimizers.measure(name, sizes.width, sizes.mlp)
    task = rivals.KERNELS[kernel]
    like = rivals.Like(DTYPES[dtype], device())
    step, plain = task.ways[name](sizes, like), task.plain(sizes, like)
    torch.manual_seed(0)
    given = task.given(sizes, like)
    return measured(step, given, exact(plain, given))
