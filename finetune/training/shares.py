"""Which of the passes of a batch, or of a validation, each process makes.

Every process goes through the same data in the same order, so that the number of processes changes who computes, and not
what: not the batch of an optimizer step, nor the steps of an epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finetune.data.prepared import lengths
from finetune.distributed.group import Group, dealt, in_order
from finetune.distributed.wrapped import Passes
from finetune.kernels.loss import SequenceLoss, losses_of, packed_rows
from finetune.kernels.packing import Batch, filler, micro_batch_sizes, micro_batches, selected

if TYPE_CHECKING:
    from datasets import Dataset


def own_share(batch: Batch, tokens: int, group: Group) -> list[Batch]:
    """The micro-batches, of at most `tokens` tokens, of the sequences of `batch` that this process computes.

    As many as in every other process, because shards of the weights are gathered for each by all together; one that has
    nothing left to do is made of filler.
    """
    if group.size == 1:
        return list(micro_batches(batch, tokens))
    each = batch["lengths"].tolist()
    lots = dealt(each, group.size)
    most = max(len(micro_batch_sizes([each[place] for place in lot], tokens)) for lot in lots)
    own = lots[group.rank]
    parts = list(micro_batches(selected(batch, own), tokens)) if own else []
    return parts + [filler()] * (most - len(parts))


@torch.no_grad()
def shared_losses(passes: Passes, rows: Dataset, tokens: int, group: Group) -> list[SequenceLoss]:
    """The loss of each of `rows` (input_ids, labels), in passes of at most `tokens` tokens, which `group` shares.

    A pass holds the same sequences however many processes there are, so that the losses are the same to the bit.
    """
    lots = dealt(micro_batch_sizes(lengths(rows), tokens), group.size)
    own = set(lots[group.rank])
    parts = enumerate(packed_rows(rows, tokens))
    made = [(place, passes(losses_of, part, count)) for place, (count, part) in parts if place in own]
    for _ in range(max(map(len, lots)) - len(made)):
        passes(losses_of, filler(), 0)
    return [loss for losses in in_order(group.gathered(made)) for loss in losses]
