"""The largest settings whose run fits a device, and which to lower where one doesn't."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune import params
from finetune.kernels.attention import ROUND_ROWS_TO
from finetune.methods import Method
from finetune.planner.devices import Device
from finetune.planner.parts import parts
from finetune.planner.passes import Records, largest, sized
from finetune.planner.sizes import Sizes

MOST_TOKENS = 2**15
"""Of a pass, that are looked at."""


@dataclass(frozen=True)
class Largest:
    """The most that fits, each with everything else as it is; 0: not even the least."""

    tokens: int
    """train.tokens_per_micro_batch."""
    max_length: int
    """data.max_length, a sequence a pass."""


def largest_that_fits(
    sizes: Sizes, train: params.Train, launch: params.Launch, data: Records, device: Device
) -> Largest:
    """Multiples of `ROUND_ROWS_TO`; no length is more than the model has positions."""
    longest = data.lengths[-1]

    def fits(tokens: int, longest: int) -> bool:
        return device.fits(parts(sizes, train, sized(data.cut(longest), train, tokens, longest)).per_rank(launch).total)

    most_length = min(MOST_TOKENS, getattr(sizes.model.config, "max_position_embeddings", None) or MOST_TOKENS)
    return Largest(
        tokens=_largest(lambda tokens: fits(tokens, min(tokens, longest)), MOST_TOKENS),
        max_length=_largest(lambda length: fits(length, length), most_length),
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest multiple of `ROUND_ROWS_TO` up to `most` that fits, if more never needs less."""
    low, high = 0, most // ROUND_ROWS_TO + 1
    step = 1
    while low + step < high:
        if fits((low + step) * ROUND_ROWS_TO):
            low, step = low + step, step * 2
        else:
            high = low + step
            break
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * ROUND_ROWS_TO) else (low, middle)
    return low * ROUND_ROWS_TO


def advice(sizes: Sizes, method: Method, train: params.Train, launch: params.Launch, data: Records, limit: int) -> str:
    """What to set so that a run's peak is `limit` bytes at most, in the words of params.yaml; the least change first."""

    def fits(train: params.Train, data: Records) -> bool:
        return parts(sizes, train, largest(data, train)).per_rank(launch).total <= limit

    def with_tokens(train: params.Train, tokens: int) -> params.Train:
        return replace(train, tokens_per_micro_batch=tokens)

    longest, checkpointed = data.lengths[-1], replace(train, gradient_checkpointing=True)
    tokens = _largest(lambda count: fits(with_tokens(train, count), data), largest(data, train).tokens - 1)
    if tokens >= longest:
        return f"set train.tokens_per_micro_batch to {tokens}"
    words = [] if train.gradient_checkpointing else ["train.gradient_checkpointing to true"]
    if words and fits(checkpointed, data):
        return _set(words)
    tokens = _largest(lambda count: fits(with_tokens(checkpointed, count), data), largest(data, train).tokens - 1)
    if tokens >= longest:
        return _set([*words, f"train.tokens_per_micro_batch to {tokens}"])
    length = _largest(lambda count: fits(with_tokens(checkpointed, count), data.cut(count)), longest - 1)
    if length:
        return _set([*words, f"data.max_length to {length}", f"train.tokens_per_micro_batch to {length}"])
    other = "" if method.quantized else "method to qlora, or "
    return f"set {other}model.source to a smaller model"


def _set(words: list[str]) -> str:
    return f"set {' and '.join(words)}"
