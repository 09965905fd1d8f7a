"""Prompt templates, and what a prompt and its response become in tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stanford Alpaca's two templates (https://github.com/tatsu-lab/stanford_alpaca#data-release),
# with a line break after the last heading so that response and heading never share a token.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

_SECTIONS = re.compile(
    r"\A.*?### Instruction:\s*(?P<instruction>.*?)(\s*### Input:\s*(?P<input>.*?))?(\s*### Response:\s*)?\Z", re.S
)
_ESCAPES = re.compile(r"\\(n|t|r|\\|\"|'|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})")


def render(template: str, tokenizer: PreTrainedTokenizerBase, instruction: str, input: str = "") -> str:
    """The prompt text up to where the response starts. `template` is 'alpaca' or 'chat'.

    Raises UserError if 'chat' is asked of a tokenizer without a chat template.
    """
    if template == "alpaca":
        text = ALPACA_WITH_INPUT if input else ALPACA_WITHOUT_INPUT
        return text.format(instruction=instruction, input=input)
    if not tokenizer.chat_template:
        raise UserError("data.template: this model has no chat template; use -S data.template=alpaca")
    message = {"role": "user", "content": f"{instruction}\n\n{input}" if input else instruction}
    return cast(str, tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def prompt_tokens(template: str, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, with the model's own start token if it uses one, without an end token."""
    ids = tokenizer(prompt, add_special_tokens=template == "alpaca")["input_ids"]
    return ids[:-1] if ids and template == "alpaca" and ids[-1] == tokenizer.eos_token_id else ids


def response_tokens(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """Token ids of a response, closed by the end-of-sequence token."""
    return tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


def parse(text: str) -> tuple[str, str]:
    """Instruction and input of a prompt typed by a person: bare text, or with Alpaca's '### ' headings."""
    sections = _SECTIONS.match(text)
    if not sections:
        return text.strip(), ""
    return sections["instruction"].strip(), (sections["input"] or "").strip()


def unescape(text: str) -> str:
    r"""Turn the escape sequences \n \t \r \\ \" \' \uXXXX \xXX that a shell passes on into characters."""
    return _ESCAPES.sub(lambda match: match[0].encode().decode("unicode_escape"), text)
