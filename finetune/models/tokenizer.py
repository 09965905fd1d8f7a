"""The tokenizer of a model folder, checked for what fine-tuning needs, and how much text the model takes."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.errors import UserError
from finetune.models.supported import first_line, read_config


def load(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, with a padding token.

    Raises UserError if the folder holds none, or one without an end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and sentencepiece each say it in a class of their own
        if "custom code" in str(error):
            raise UserError(
                f"{folder}: the tokenizer brings Python code of its own, which is never run here; choose another model"
            ) from None
        raise UserError(f"{folder}: no tokenizer there ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-sequence token, so no answer could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_fits(folder: Path, max_length: int) -> None:
    """Raise UserError if `max_length` tokens are more than the model in `folder` has positions for.

    Nor can a model be trained that `supported.read_config` refuses.
    """
    there_are = positions(folder)
    if there_are and max_length > there_are:
        raise UserError(
            f"data.max_length: {max_length} tokens are more than the model's {there_are} positions; lower it"
        )


def positions(folder: Path) -> int | None:
    """How many tokens the model in `folder` takes at most, if it has such a limit."""
    return getattr(read_config(folder), "max_position_embeddings", None)
