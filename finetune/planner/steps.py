"""The memory of passes through a Llama's layers as steps in shared memory (`kernels.decoder_layer`), in closed form.

With T tokens a pass, h the model's width, q that of all queries, n that of queries, keys and values, m the MLP's, in
numbers of the products' dtype: kept a layer T (n + q + 2h + ranks), and once for all layers T (2n + 7m + q + 5h), three
norms' rows in fp32, and a block's probabilities. Attention lays out n with some rows more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.kernels.attention import QUERY_BLOCK, ROUND_ROWS_TO
from finetune.planner.attention import BLOCKS
from finetune.planner.passes import Pass
from finetune.planner.sizes import Widths

LAST_NORM = 4
"""Rows in fp32 that the norm behind the last layer takes, which is no step (`kernels.layers`)."""
ENDS = 2
"""Rows behind the last layer: what the head is given, and its gradient."""


@dataclass(frozen=True)
class StepBytes:
    """Bytes of all layers."""

    kept: int
    shared: int
    """Blocks that all layers use in turn."""


def step_bytes(widths: Sequence[Widths], at: Pass, item: int, *, checkpointing: bool) -> StepBytes:
    """Of passes as large as `at`, in numbers of `item` bytes."""
    results = at.room * item * (widths[0].h + sum(one.h for one in widths))  # and what the first one is given
    sets = 0 if checkpointing else sum(_set(one, at.room, item) for one in widths)
    # One more, which all layers share where nothing is kept: in validation, and where each is made again.
    shared = max(_shared(one, at, item) + _set(one, at.room, item) for one in widths)
    return StepBytes(results + sets, shared)


def _set(one: Widths, tokens: int, item: int) -> int:
    """Queries, keys and values, attention's result, the residual in the middle, x Aᵀ, and 1 / rms(x) twice."""
    rows = tokens * (one.q + one.h + one.ranks) + (tokens + ROUND_ROWS_TO) * one.qkv
    return rows * item + 2 * tokens * 4


def _shared(one: Widths, at: Pass, item: int) -> int:
    tokens = at.room
    heads = (2 * tokens + ROUND_ROWS_TO) * one.qkv  # as products have them, and their gradients as attention has them
    rows = tokens * (7 * one.m + one.q + 5 * one.h)
    probabilities = BLOCKS * one.heads * min(at.longest, QUERY_BLOCK) * at.longest
    norms = 3 + LAST_NORM
    return (heads + rows + probabilities + ENDS * tokens * one.h) * item + norms * tokens * one.h * 4
