"""The chat template of an exported model: the prompts that it was trained on, in the form that others' programs read."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

from finetune.data import alpaca
from finetune.data.forms import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INPUT = "\n\n### Input:\n"


def tokenizer_for_others(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` whose chat template writes what the checkpoint was trained on by `template`."""
    result = copy.deepcopy(tokenizer)
    if template == "alpaca":
        result.chat_template = alpaca_in_jinja(tokenizer)
    return result


def alpaca_in_jinja(tokenizer: PreTrainedTokenizerBase) -> str:
    """Alpaca's template for messages, as `data.alpaca` writes it.

    A message that holds the heading of an input gets the preamble that speaks of one.
    """
    with_input, without_input = (_opening(given) for given in ("i", ""))
    heading, closing = _around_a_question()
    starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return (
        "{%- set ns = namespace(preamble=" + _quoted(without_input) + ") -%}"
        "{%- for m in messages -%}{%- if m['role'] == 'user' and " + _quoted(_INPUT) + " in m['content'] -%}"
        "{%- set ns.preamble = "
        + _quoted(with_input)
        + " -%}{%- endif -%}{%- endfor -%}"
        + ("{{- bos_token -}}" if starts else "")
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
    """What stands before the first heading of a question, with an input or without."""
    first = alpaca.spans([Turn("user", "q", given)], "")[0].text
    return first[: first.index("###")]


def _around_a_question() -> tuple[str, str]:
    """The heading before an instruction, and what stands behind it."""
    first, _, last = (span.text for span in alpaca.spans([Turn("user", "q")], ""))
    return first[first.index("###") :], last


def _quoted(text: str) -> str:
    r"""`text` as a Jinja string: line breaks as \n, so that white-space control doesn't reach them."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
