"""Which of the passes of a batch, or of a validation, each process makes.

Every process goes through the same data in the same order, so that the number of processes changes who computes, and not
what: not the batch of an optimizer step, nor the steps of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from finetune.distributed.group import Group, dealt, in_order
from finetune.distributed.wrapped import Passes
from finetune.kernels.loss import SequenceLoss, evaluation_passes, losses_of
from finetune.kernels.packing import Batch, filler, grouped, micro_batches, selected


def own_share(batch: Batch, tokens: int, group: Group) -> list[Batch]:
    """The micro-batches, of at most `tokens` tokens, of the sequences of `batch` that this process computes.

    As many as in every other process, because shards of the weights are gathered for each by all together; one that has
    nothing left to do is made of filler.
    """
    if group.size == 1:
        return list(micro_batches(batch, tokens))
    lengths = batch["lengths"].tolist()
    lots = dealt(lengths, group.size)
    most = max(len(grouped([lengths[place] for place in lot], tokens)) for lot in lots)
    own = lots[group.rank]
    parts = list(micro_batches(selected(batch, own), tokens)) if own else []
    return parts + [filler()] * (most - len(parts))


@torch.no_grad()
def shared_losses(passes: Passes, rows: Iterable[dict], tokens: int, group: Group) -> list[SequenceLoss]:
    """The loss of each of `rows` (input_ids, labels), in passes of at most `tokens` tokens, which `group` shares.

    A pass holds the same sequences however many processes there are, so that the losses are the same to the bit.
    """
    parts = evaluation_passes(rows, tokens)
    lots = dealt([part["input_ids"].numel() for _, part in parts], group.size)
    made = [(place, passes(losses_of, parts[place][1], parts[place][0])) for place in lots[group.rank]]
    for _ in range(max(map(len, lots)) - len(made)):
        passes(losses_of, filler(), 0)
    return [loss for losses in in_order(group.gathered(made)) for loss in losses]
