"""Stanford Alpaca's templates (https://github.com/tatsu-lab/stanford_alpaca#data-release), and typed prompts in them.

A line break stands after the last heading, so that response and heading never share a token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.pieces import Piece
from finetune.data.turns import Turn

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)

# A heading counts at the start of a line only, and in its order, so that a prompt may speak of headings.
_TYPED = re.compile(
    rf"\A\s*(?:{re.escape(_WITH_INPUT.strip())}|{re.escape(_WITHOUT_INPUT.strip())})?\s*"
    r"### Instruction:(?P<instruction>.*?)"
    r"(?:^### Input:(?P<input>.*?))?"
    r"(?:^### Response:\s*)?\Z",
    re.DOTALL | re.MULTILINE,
)


def pieces(turns: Sequence[Turn], end: str) -> list[Piece]:
    """The conversation in pieces; `end` is the text of the token that closes a response.

    The system's text stands before the preamble. Later turns repeat the headings, as LLaMA-Factory's template does.
    """
    preamble = _WITH_INPUT if any(turn.input for turn in turns) else _WITHOUT_INPUT
    result = []
    for index, turn in enumerate(turns):
        asked_first = index == 0 or turns[index - 1].role == "system"
        if turn.role == "system":
            result += [Piece(turn.text, own=False), Piece("\n\n", own=True)]
        elif turn.role == "user":
            opening = preamble if asked_first else "\n\n"
            result += [Piece(f"{opening}### Instruction:\n", own=True), Piece(turn.text, own=False)]
            if turn.input:
                result += [Piece("\n\n### Input:\n", own=True), Piece(turn.input, own=False)]
            result.append(Piece("\n\n### Response:\n", own=True))
        else:
            result += [Piece(turn.text, own=False, loss=turn.learn), Piece(end, own=True, loss=turn.learn)]
    return result


def alternate(turns: Sequence[Turn]) -> bool:
    """Whether question and answer take turns, which is all that the headings can say."""
    roles = [turn.role for turn in turns if turn.role != "system"]
    return roles == ["user", "assistant"] * (len(roles) // 2)


def parse(text: str) -> tuple[str, str]:
    """Instruction and input of a prompt typed by a person: bare text, or with Alpaca's headings, preamble or none."""
    sections = _TYPED.match(text)
    if not sections:
        return text.strip(), ""
    return sections["instruction"].strip(), (sections["input"] or "").strip()
