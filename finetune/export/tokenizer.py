"""The tokenizer of an exported model: its prompts as a chat template, and its vocabulary as GGUF has it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gguf import GGUFWriter, TokenType

from finetune.data import alpaca
from finetune.data.forms import Turn
from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INPUT = "\n\n### Input:\n"


def tokenizer_for_others(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` whose chat template writes the prompts that the checkpoint was trained on by `template`."""
    result = copy.deepcopy(tokenizer)
    if template == "alpaca":
        result.chat_template = alpaca_in_jinja(tokenizer)
    return result


def alpaca_in_jinja(tokenizer: PreTrainedTokenizerBase) -> str:
    """Alpaca's template (`data.alpaca`) as a chat template.

    A message that holds the heading of an input is given the preamble that mentions one.
    """
    with_input, without_input = (_opening(given) for given in ("i", ""))
    heading, closing = _around_a_question()
    return (
        "{%- set ns = namespace(preamble=" + _quoted(without_input) + ") -%}"
        "{%- for m in messages -%}{%- if m['role'] == 'user' and " + _quoted(_INPUT) + " in m['content'] -%}"
        "{%- set ns.preamble = "
        + _quoted(with_input)
        + " -%}{%- endif -%}{%- endfor -%}"
        + ("{{- bos_token -}}" if _starts_with_bos(tokenizer) else "")
        + "{%- for m in messages -%}"
        "{%- if m['role'] == 'system' -%}{{- m['content'] + " + _quoted("\n\n") + " -}}"
        "{%- elif m['role'] == 'user' -%}"
        "{%- if loop.first or messages[loop.index0 - 1]['role'] == 'system' -%}{{- ns.preamble -}}"
        "{%- else -%}{{- " + _quoted("\n\n") + " -}}{%- endif -%}"
        "{{- " + _quoted(heading) + " + m['content'] + " + _quoted(closing) + " -}}"
        "{%- else -%}{{- m['content'] + " + _quoted(cast(str, tokenizer.eos_token)) + " -}}{%- endif -%}"
        "{%- endfor -%}"
    )


def _opening(given: str) -> str:
    """The text before the first heading of a question, with an input or without."""
    first = alpaca.spans([Turn("user", "q", given)], "")[0].text
    return first[: first.index("###")]


def _around_a_question() -> tuple[str, str]:
    """The heading before an instruction, and the text after it."""
    first, _, last = (span.text for span in alpaca.spans([Turn("user", "q")], ""))
    return first[first.index("###") :], last


def _quoted(text: str) -> str:
    r"""`text` as a Jinja string: line breaks as \n, so that white-space control doesn't reach them."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return cast(list[int], tokenizer("a")["input_ids"])[0] == tokenizer.bos_token_id


_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
"""Regular expression that splits text into words -> llama.cpp's name for it (llama-vocab.cpp)."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary as GGUF has it, for llama.cpp and programs that build on it."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    words: str
    """`tokenizer.ggml.pre`: how text is split into words."""

    def write(self, writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, end_tokens: list[int]) -> None:
        """Add it, the special tokens and the chat template. The first of `end_tokens` closes a turn."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.words)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_add_bos_token(_starts_with_bos(tokenizer))
        for kind in ("bos", "eos", "unk", "pad"):
            if (token := getattr(tokenizer, f"{kind}_token_id")) is not None:
                getattr(writer, f"add_{kind}_token_id")(token)
        if end_tokens and end_tokens[0] != tokenizer.eos_token_id:
            writer.add_eot_token_id(end_tokens[0])
        if tokenizer.chat_template:
            writer.add_chat_template(tokenizer.chat_template)


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary:
    """The vocabulary of `tokenizer`, padded to the `size` tokens for which the model has embeddings.

    Raises UserError unless it is a byte-level BPE that splits text in a way for which llama.cpp has a name.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)  # None for tokenizers in pure Python
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
    """llama.cpp's name for how the tokenizer.json `written` splits text into words, None if it has none."""
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
