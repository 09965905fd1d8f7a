"""Cross-entropy over the response tokens only, without ever making logits for the prompt or the padding."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

from finetune.prompts import IGNORE


def response_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed cross-entropy (nats, fp32 scalar) of the labelled tokens.

    `batch` holds input_ids, attention_mask and labels, each of shape (sequences, length). Equal to
    the model's own loss, summed instead of averaged; the language-model head sees only the
    positions before a labelled token.
    """
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE
    with _head_sees(model, functional.pad(labelled, (0, 1))):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, -2), targets[labelled], reduction="sum")


@contextmanager
def _head_sees(model, positions: torch.Tensor) -> Iterator[None]:
    """Narrow the head's input from (sequences, length, width) to (positions, width) while the block runs.

    A hook on the head keeps whatever the model does to logits afterwards (scaling, soft-capping).
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, inputs: (inputs[0][positions],))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def mean_loss(model, batches) -> float:
    """Mean cross-entropy per response token (nats) over all `batches`, each token counting the same."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        batch = {key: value.to(model.device) for key, value in batch.items()}
        total += response_loss(model, batch).item()
        tokens += int((batch["labels"][:, 1:] != IGNORE).sum())
    return total / tokens
