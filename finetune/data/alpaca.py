"""Stanford Alpaca's templates (https://github.com/tatsu-lab/stanford_alpaca#data-release), and typed prompts in them.

A line break follows the last heading, so that response and heading never share a token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.forms import Turn
from finetune.data.tokens import Span

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)

# A heading counts only at the start of a line and in its order, so that a prompt may mention headings.
_TYPED = re.compile(
    rf"\A\s*(?:{re.escape(_WITH_INPUT.strip())}|{re.escape(_WITHOUT_INPUT.strip())})?\s*"
    r"### Instruction:(?P<instruction>.*?)"
    r"(?:^### Input:(?P<input>.*?))?"
    r"(?:^### Response:\s*)?\Z",
    re.DOTALL | re.MULTILINE,
)


def spans(turns: Sequence[Turn], end: str) -> list[Span]:
    """The rendered conversation; `end` is the text of the token that closes a response.

    The system's text comes before the preamble. Later turns repeat the headings, as LLaMA-Factory's template does.
    """
    preamble = _WITH_INPUT if any(turn.input for turn in turns) else _WITHOUT_INPUT
    result = []
    for index, turn in enumerate(turns):
        asked_first = index == 0 or turns[index - 1].role == "system"
        if turn.role == "system":
            result += [Span(turn.text, markup=False), Span("\n\n", markup=True)]
        elif turn.role == "user":
            opening = preamble if asked_first else "\n\n"
            result += [Span(f"{opening}### Instruction:\n", markup=True), Span(turn.text, markup=False)]
            if turn.input:
                result += [Span("\n\n### Input:\n", markup=True), Span(turn.input, markup=False)]
            result.append(Span("\n\n### Response:\n", markup=True))
        else:
            result += [Span(turn.text, markup=False, loss=turn.learn), Span(end, markup=True, loss=turn.learn)]
    return result


def alternate(turns: Sequence[Turn]) -> bool:
    """Whether questions and answers alternate: the headings have no form for anything else."""
    roles = [turn.role for turn in turns if turn.role != "system"]
    return roles == ["user", "assistant"] * (len(roles) // 2)


def parse(text: str) -> tuple[str, str]:
    """Instruction and input of a typed prompt: bare text, or text with Alpaca's headings, with or without preamble."""
    sections = _TYPED.match(text)
    if not sections:
        return text.strip(), ""
    return sections["instruction"].strip(), (sections["input"] or "").strip()
