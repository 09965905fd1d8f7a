"""The test set in portions, each kept as soon as it is done, so that a killed run resumes after the last of them.

What else a forward holds can change an answer's rounding, and so, in near-ties, the answer. So each portion goes through
the model by itself, whether the run was interrupted or not, and is kept whole or not at all. Several processes share them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import ending, files
from finetune.distributed.group import Group, dealt
from finetune.generation import greedy
from finetune.kernels.loss import SequenceLoss, sequence_losses

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEQUENCES = 32
"""Sequences of a portion of losses, at least. Micro-batches are independent, so the end of a portion costs nothing."""

BATCHES = 2
"""Batches of a portion of answers, at least: at its end most slots are free while the last ones are made."""


def losses(
    model: PreTrainedModel | PeftModel, rows: Dataset, tokens: int, kept: Path, group: Group
) -> list[SequenceLoss]:
    """`sequence_losses` of each portion of `rows`; those that the folder `kept` holds are read instead."""

    def make(part: slice) -> list[dict]:
        return [asdict(loss) for loss in sequence_losses(model, rows.select(range(part.start, part.stop)), tokens)]

    return [SequenceLoss(**row) for row in _each_kept("losses", _portions(len(rows), SEQUENCES), make, kept, group)]


def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    kept: Path,
    group: Group,
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """The greedy answers to each portion of `prompts`; those that the folder `kept` holds are read instead.

    Prints how many are done. Raises UserError if a prompt and its answer don't fit the model's positions.
    """
    count = len(prompts)
    # In a large test set as many portions as each has batches: this lowers the costs of an end and of a kill alike.
    batches = max(BATCHES, isqrt(count // batch_size))
    portions = _portions(count, batches * batch_size, at_least=min(group.size, count))
    with greedy.greedy_answers(
        model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens
    ) as answering:

        def make(part: slice) -> list[dict]:
            def told(done: int) -> None:
                print(f"answered {part.start + done} of {count} test prompts", flush=True)

            return [{"answer": text} for text in answering.to(prompts[part], told)]

        return [row["answer"] for row in _each_kept("answers", portions, make, kept, group)]


def _portions(count: int, size: int, at_least: int = 1) -> list[slice]:
    """Divide `count` into nearly equal portions, in order, of `size` or a little more; of less if there must be
    `at_least` so many."""
    number = max(at_least, count // size)
    bounds = [count * part // number for part in range(number + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def _each_kept(
    what: str, portions: list[slice], make: Callable[[slice], list[dict]], kept: Path, group: Group
) -> list[dict]:
    """The rows of all portions: those of its file in `kept`, or else what `make` makes of it, which is written there.

    Each process of `group` makes the portions that are dealt to it, and gets all. Raises `ending.Ended`, which says how
    many are kept, after a signal.
    """
    paths = {part.start: kept / f"{what}-{part.start}.jsonl" for part in portions}
    done = {part.start: rows for part in portions if (rows := _read(paths[part.start], part)) is not None}
    total = portions[-1].stop
    if done:
        print(f"{_count(done)} of {total} {what} are done already", flush=True)
    missing = [part for part in portions if part.start not in done]
    # By the first, in case another sees a portion that was finished in the meantime.
    own = group.from_first(dealt([part.stop - part.start for part in missing], group.size))[group.rank]
    starts = group.from_first([part.start for part in missing])
    by_start = {part.start: part for part in portions}
    made: dict[int, list[dict]] = {}
    try:
        for part in (by_start[starts[place]] for place in own):
            made[part.start] = make(part)
            files.write_jsonl(paths[part.start], made[part.start])
    except (KeyboardInterrupt, ending.Ended) as ended:
        number = getattr(ended, "number", signal.SIGINT)
        written = {part.start: rows for part in portions if (rows := _read(paths[part.start], part)) is not None}
        there = f"{_count(written)} of {total} {what} are kept; rerun the same command to resume"
        raise ending.Ended(number, there) from None
    for one in group.gathered(made):
        done |= one
    return [row for part in portions for row in done[part.start]]


def _count(done: dict[int, list[dict]]) -> int:
    return sum(map(len, done.values()))


def _read(path: Path, part: slice) -> list[dict] | None:
    """The rows in `path`; None unless all are there: after a failure of the machine anything may be missing."""
    try:
        rows = files.read_jsonl(path)
    except (OSError, ValueError):
        return None
    return rows if len(rows) == part.stop - part.start else None
