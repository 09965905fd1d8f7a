"""A byte-level BPE tokenizer as GGUF has it, for llama.cpp and what is built on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
"""llama.cpp's name of a way to cut text into words, by its regular expression (llama-vocab.cpp)."""


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF keeps of a tokenizer."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    words: str
    """`tokenizer.ggml.pre`: how text is cut into words."""

    def write(self, writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, end_tokens: list[int]) -> None:
        """Add it, the special tokens and the chat template. The first of `end_tokens` closes a turn."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.words)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        writer.add_add_bos_token(starts)
        for kind in ("bos", "eos", "unk", "pad"):
            if (token := getattr(tokenizer, f"{kind}_token_id")) is not None:
                getattr(writer, f"add_{kind}_token_id")(token)
        if end_tokens and end_tokens[0] != tokenizer.eos_token_id:
            writer.add_eot_token_id(end_tokens[0])
        if tokenizer.chat_template:
            writer.add_chat_template(tokenizer.chat_template)


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The vocabulary of `tokenizer`, filled up to the `size` tokens that the model has embeddings of.

    Raises UserError unless it is a byte-level BPE that cuts words in a way that llama.cpp has a name for.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # none: in Python alone
    written = json.loads(backend.to_str()) if backend else {"model": {}, "pre_tokenizer": None}
    bpe, words = written["model"], _words(written)
    if bpe.get("type") != "BPE" or bpe.get("byte_fallback") or words is None:
        raise UserError(
            "this tokenizer has no form in GGUF that is known here; export merged, and convert that folder by llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for token, index in bpe["vocab"].items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
    for added in written["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    return Vocabulary(tokens, types, merges, words)


def _words(written: dict[str, Any]) -> str | None:
    """llama.cpp's name of how the tokenizer of a tokenizer.json cuts text into words, None if it has none."""
    steps = written["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2" if steps[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm" if steps[0]["individual_digits"] and steps[1].get("use_regex", True) else None
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return _SPLITS.get(steps[0]["pattern"].get("Regex"))
    return None
