"""The tokenizer of a model folder, checked for what fine-tuning needs, and how much text the model takes."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from finetune.errors import UserError


def load(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, with a padding token.

    Raises UserError if the folder holds none, or one without an end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer there ({str(error).splitlines()[0]})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-sequence token, so no answer could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_fits(folder: Path, max_length: int) -> None:
    """Raise UserError if `max_length` tokens are more than the model in `folder` has positions for."""
    positions = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "max_position_embeddings", None)
    if positions and max_length > positions:
        raise UserError(
            f"data.max_length: {max_length} tokens are more than the model's {positions} positions; lower it"
        )
