"""Padded batches of a prepared split."""

from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq


def collator(tokenizer) -> DataCollatorForSeq2Seq:
    """Pads input_ids, attention_mask and labels of a batch on the right, to its longest sequence."""
    tokenizer.padding_side = "right"
    return DataCollatorForSeq2Seq(tokenizer, padding=True)


def in_length_order(rows, tokenizer, batch_size: int) -> DataLoader:
    """Padded batches of `rows` for `mean_loss`, sequences of like length together."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    return DataLoader(
        rows.select(order).select_columns(["input_ids", "labels"]), batch_size, collate_fn=collator(tokenizer)
    )
