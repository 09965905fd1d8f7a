"""The tokenizer of a model folder, checked for what fine-tuning needs."""

from transformers import AutoTokenizer

from finetune.errors import UserError


def load(folder):
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
