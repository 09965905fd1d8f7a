"""A model's own chat template: the text that it writes around the turns, and where the answers are in it.

The template is rendered with placeholders for what people wrote. That shows which text is the template's without a
search for special tokens, and needs no `{% generation %}` in it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from finetune.data.forms import Turn
from finetune.data.tokens import Span, SpecialTokens, TemplateError
from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = datetime.date(2024, 7, 26)
"""The date that a template writes as today's, in training and after, so that the data stay the same. It is the day that
Llama 3's templates write if they can't ask for one."""

_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class _Part:
    """A part of a rendered conversation: text of the template, or the content of a turn."""

    text: str = ""
    content: int | None = None
    """Index of the turn whose content this is."""
    answer: int | None = None
    """Index of the assistant's turn that this belongs to."""


class ChatTemplate:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if the tokenizer has no chat template, or one that fails on a question and an answer."""
        if not tokenizer.chat_template:
            raise UserError("data.template: this model has no chat template; use -S data.template=alpaca")
        self._tokenizer = tokenizer
        self._parts = lru_cache(maxsize=1024)(self._parts_of_roles)
        try:
            self._template = _dated(_source(tokenizer))
            *asked, closing = _texts(self._render(_placeholders(("user", "assistant")), False), 2)
            self.special = SpecialTokens(tokenizer, "".join([*asked, closing]))
            end = self.special.first(closing)
            self._closing = closing[: end.end()] if end else ""
            self.end_token = self.special.ids[end[0]] if end else cast(int, tokenizer.eos_token_id)
            self._parts(("user", "assistant"), False)
        except TemplateError as error:
            raise UserError(
                f"data.template: this model's chat template can't be used: {error}; use -S data.template=alpaca"
            ) from None

    def spans(self, turns: Sequence[Turn], *, answer_next: bool = False) -> list[Span]:
        """The conversation up to where its last answer is closed or, with `answer_next`, where the next one starts.

        Raises TemplateError if the template fails on it, leaves out a turn, or rewrites what a turn says.
        """
        parts, rest = self._parts(tuple(turn.role for turn in turns), answer_next)
        spans, text = [], ""
        for part in parts:
            written = part.text if part.content is None else turns[part.content].content
            loss = part.answer is not None and turns[part.answer].learn
            spans.append(Span(written, markup=part.content is None, loss=loss))
            text += written
            if part.content is not None and part.content == part.answer and not self._closing:
                # The template has no token that closes an answer, so nothing else would teach an end.
                spans.append(Span(cast(str, self._tokenizer.eos_token), markup=True, loss=loss))
        if text + rest != self._render([{"role": turn.role, "content": turn.content} for turn in turns], answer_next):
            raise TemplateError("it rewrites what a turn says")
        return spans

    def _parts_of_roles(self, roles: tuple[str, ...], answer_next: bool) -> tuple[list[_Part], str]:
        """The parts of every conversation with these roles, and the template's text after its last answer."""
        messages = _placeholders(roles)
        full = self._render(messages, answer_next)
        texts = _texts(full, len(roles))
        parts: list[_Part] = []
        for turn, role in enumerate(roles):
            opening = texts[turn]
            if role != "assistant":
                parts += [_Part(opening), _Part(content=turn)]
                continue
            prompt = self._render(messages[:turn], True)
            if not full.startswith(prompt):
                raise TemplateError("it opens an answer in another way than it asks for one")
            asked = len(_texts(prompt, turn)[-1]) - (len(self._closing) if _closed(parts) else 0)
            parts += [_Part(opening[:asked]), _Part(opening[asked:], answer=turn), _Part(content=turn, answer=turn)]
            if self._closing and texts[turn + 1].startswith(self._closing):
                parts.append(_Part(self._closing, answer=turn))
                texts[turn + 1] = texts[turn + 1][len(self._closing) :]
        if roles[-1] == "assistant" and not answer_next:
            return parts, texts[-1]
        return [*parts, _Part(texts[-1])], ""

    def _render(self, messages: list[dict[str, str]], answer_next: bool) -> str:
        try:
            return cast(
                str,
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, add_generation_prompt=answer_next
                ),
            )
        except Exception as error:  # a template is a program by the model's author, and may fail in any way
            raise TemplateError(
                f"it says {str(error).splitlines()[0] if str(error) else type(error).__name__!r}"
            ) from None


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's template for chats; some have several, of which one is named 'default'."""
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        raise TemplateError("it has several templates, and none named default") from None


def _dated(template: str) -> str:
    """The template, with `TODAY` for the date that it asks for."""
    if "strftime_now" not in template:
        return template
    # As a macro in the template, because transformers passes no function of ours on. The macro has a separate line, so
    # that Jinja sees the template's first line as it was.
    codes = "aAbBcdfGHIjmMpSuUVwWxXyYzZ"
    known = {"%%": "\0"} | {f"%{code}": TODAY.strftime(f"%{code}") for code in codes} | {"%-d": str(TODAY.day)}
    known |= {"%-m": str(TODAY.month), "%F": TODAY.isoformat(), "\0": "%"}
    filters = "".join(f"|replace({code!r}, {value!r})" for code, value in known.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"


def _closed(parts: list[_Part]) -> bool:
    """Whether the parts end with what closes an answer."""
    return bool(parts) and parts[-1].content is None and parts[-1].answer is not None


def _placeholders(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"\ue000{index}\ue001"} for index, role in enumerate(roles)]


def _texts(rendered: str, turns: int) -> list[str]:
    """The template's text before, between and after the turns' contents. Raises TemplateError unless each is there once."""
    parts = _PLACEHOLDER.split(rendered)
    if parts[1::2] != [str(index) for index in range(turns)]:
        raise TemplateError("it leaves out a turn, repeats one, or changes their order")
    return parts[::2]
