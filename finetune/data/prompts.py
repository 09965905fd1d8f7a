"""From turns to token ids, by Alpaca's template or the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from finetune.data import alpaca
from finetune.data.chat import ChatTemplate
from finetune.data.pieces import Marks, Piece, Refused, token_ids
from finetune.data.turns import Turn
from finetune.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stretch:
    """Tokens of a conversation that follow each other, all learnt or none."""

    ids: list[int]
    text: str
    """What they say, in full."""
    said: str
    """What of it a person wrote, not the template."""
    loss: bool


class Template:
    """Renders and tokenises conversations. `name` is 'alpaca' or 'chat'."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if 'chat' is asked of a tokenizer without a chat template that can be used."""
        self._tokenizer = tokenizer
        self._chat = ChatTemplate(tokenizer) if name == "chat" else None
        self._marks = self._chat.marks if self._chat else Marks(tokenizer)

    @property
    def end_tokens(self) -> list[int]:
        """Ids of the tokens that end an answer; the first closes each response."""
        return [self._chat.end_token if self._chat else cast(int, self._tokenizer.eos_token_id)]

    def stretches(self, turns: Sequence[Turn]) -> list[Stretch]:
        """The conversation's tokens: prompt and response in turn, from the first prompt to the last response.

        Raises Refused if the template can't render it.
        """
        pieces = self._chat.pieces(turns) if self._chat else self._alpaca(turns)
        cuts = [0, *(i for i in range(1, len(pieces)) if pieces[i].loss != pieces[i - 1].loss), len(pieces)]
        return [
            Stretch(
                ids,
                "".join(piece.text for piece in pieces[start:end]),
                "".join(piece.text for piece in pieces[start:end] if not piece.own),
                pieces[start].loss,
            )
            for (start, end), ids in zip(pairwise(cuts), self._ids(pieces, cuts[1:]), strict=True)
        ]

    def question_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation that ends in a question, up to where its answer starts.

        Raises UserError if the template can't render it.
        """
        try:
            pieces = self._chat.pieces(turns, answer_next=True) if self._chat else self._alpaca(turns)
            return token_ids(self._tokenizer, pieces, self._marks, start=self._chat is None)
        except Refused as refused:
            raise UserError(f"the model can't take this prompt: {refused}") from None

    def _alpaca(self, turns: Sequence[Turn]) -> list[Piece]:
        if not alpaca.alternate([*turns, Turn("assistant", "")] if turns[-1].role == "user" else turns):
            raise Refused("question and answer don't take turns; use -S data.template=chat")
        return alpaca.pieces(turns, cast(str, self._tokenizer.eos_token))

    def _ids(self, pieces: list[Piece], ends: list[int]) -> list[list[int]]:
        """Token ids of the pieces up to each of `ends`.

        A chat is tokenised as a whole, as its model knows it, unless a token would lie across an end:
        an answer is always written after its question's tokens.
        """
        start = self._chat is None
        apart = [
            token_ids(self._tokenizer, pieces[first:last], self._marks, start=start and first == 0)
            for first, last in pairwise([0, *ends])
        ]
        if self._chat is None:
            return apart
        upto = [token_ids(self._tokenizer, pieces[:end], self._marks) for end in ends]
        if any(upto[-1][: len(ids)] != ids for ids in upto):
            return apart
        return [after[len(before) :] for before, after in pairwise([[], *upto])]
