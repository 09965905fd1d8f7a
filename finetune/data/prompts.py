"""From turns to token ids, by Alpaca's template or the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, cast

from finetune.data import alpaca
from finetune.data.chat import ChatTemplate
from finetune.data.forms import Turn
from finetune.data.tokens import Span, SpecialTokens, TemplateError, Text, token_ids
from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a conversation, all learnt or none."""

    ids: list[int]
    text: str
    """Their text."""
    said: str
    """The part of the text that a person wrote, not the template."""
    loss: bool


class Template:
    """Renders and tokenises conversations. `name` is 'alpaca' or 'chat'."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if `name` is 'chat' and the tokenizer has no chat template that can be used."""
        self._tokenizer = tokenizer
        self._chat = ChatTemplate(tokenizer) if name == "chat" else None
        self._special = self._chat.special if self._chat else SpecialTokens(tokenizer)

    @property
    def end_tokens(self) -> list[int]:
        """Ids of the tokens that end an answer; the first closes each response."""
        return [self._chat.end_token if self._chat else cast(int, self._tokenizer.eos_token_id)]

    def segments(self, conversations: Sequence[Sequence[Turn]]) -> list[list[Segment] | TemplateError]:
        """The tokens of each conversation: prompt and response in turn, from the first prompt to the last response.

        A TemplateError, if the template can't render it.
        """
        plans = [self._plan(turns) for turns in conversations]
        texts = [text for plan in plans if isinstance(plan, _Plan) for text in plan.texts]
        ids = iter(token_ids(self._tokenizer, texts, self._special))
        return [
            plan.segments(list(islice(ids, len(plan.texts)))) if isinstance(plan, _Plan) else plan for plan in plans
        ]

    def question_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation that ends in a question, up to where its answer starts.

        Raises UserError if the template can't render it.
        """
        try:
            spans = self._chat.spans(turns, answer_next=True) if self._chat else self._alpaca(turns)
            (ids,) = token_ids(self._tokenizer, [(spans, self._chat is None)], self._special)
            if isinstance(ids, TemplateError):
                raise ids
            return ids
        except TemplateError as error:
            raise UserError(f"the model can't take this prompt: {error}") from None

    def _plan(self, turns: Sequence[Turn]) -> _Plan | TemplateError:
        try:
            spans = self._chat.spans(turns) if self._chat else self._alpaca(turns)
        except TemplateError as error:
            return error
        return _Plan(spans, whole=self._chat is not None)

    def _alpaca(self, turns: Sequence[Turn]) -> list[Span]:
        if not alpaca.alternate([*turns, Turn("assistant", "")] if turns[-1].role == "user" else turns):
            raise TemplateError("question and answer don't take turns; use -S data.template=chat")
        return alpaca.spans(turns, cast(str, self._tokenizer.eos_token))


class _Plan:
    """The texts that are tokenised for a conversation, and its segments made from their token ids.

    A chat is tokenised as a whole, as its model knows it, unless a token would cross the end of a segment: an answer is
    always generated after the tokens of its question. The segments of Alpaca's template are tokenised one by one.
    """

    def __init__(self, spans: list[Span], whole: bool) -> None:
        """`whole` also tokenises the conversation up to the end of each segment."""
        cuts = [0, *(i for i in range(1, len(spans)) if spans[i].loss != spans[i - 1].loss), len(spans)]
        self._parts = [spans[first:last] for first, last in pairwise(cuts)]
        self.texts: list[Text] = [(part, not whole and index == 0) for index, part in enumerate(self._parts)]
        if whole:
            self.texts += [(spans[:end], False) for end in cuts[1:]]

    def segments(self, found: list[list[int] | TemplateError]) -> list[Segment] | TemplateError:
        """The conversation's segments, given the token ids of each of its texts."""
        for error in found:
            if isinstance(error, TemplateError):
                return error
        ids = cast(list[list[int]], found)
        apart, upto = ids[: len(self._parts)], ids[len(self._parts) :]
        if upto and all(upto[-1][: len(some)] == some for some in upto):
            apart = [after[len(before) :] for before, after in pairwise([[], *upto])]
        return [
            Segment(
                own,
                "".join(span.text for span in part),
                "".join(span.text for span in part if not span.markup),
                part[0].loss,
            )
            for part, own in zip(self._parts, apart, strict=True)
        ]
