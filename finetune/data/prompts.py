"""From turns to token ids, by Alpaca's template or the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, cast

from finetune.data import alpaca
from finetune.data.chat import ChatTemplate
from finetune.data.pieces import Marks, Piece, Refused, Run, token_ids
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

    def stretches(self, conversations: Sequence[Sequence[Turn]]) -> list[list[Stretch] | Refused]:
        """The tokens of each conversation: prompt and response in turn, from the first prompt to the last response.

        Refused, if the template can't render it.
        """
        plans = [self._plan(turns) for turns in conversations]
        runs = [run for plan in plans if isinstance(plan, _Plan) for run in plan.runs]
        ids = iter(token_ids(self._tokenizer, runs, self._marks))
        return [
            plan.stretches(list(islice(ids, len(plan.runs)))) if isinstance(plan, _Plan) else plan for plan in plans
        ]

    def question_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a conversation that ends in a question, up to where its answer starts.

        Raises UserError if the template can't render it.
        """
        try:
            pieces = self._chat.pieces(turns, answer_next=True) if self._chat else self._alpaca(turns)
            (ids,) = token_ids(self._tokenizer, [(pieces, self._chat is None)], self._marks)
            if isinstance(ids, Refused):
                raise ids
            return ids
        except Refused as refused:
            raise UserError(f"the model can't take this prompt: {refused}") from None

    def _plan(self, turns: Sequence[Turn]) -> _Plan | Refused:
        try:
            pieces = self._chat.pieces(turns) if self._chat else self._alpaca(turns)
        except Refused as refused:
            return refused
        cuts = [0, *(i for i in range(1, len(pieces)) if pieces[i].loss != pieces[i - 1].loss), len(pieces)]
        return _Plan(pieces, cuts, whole=self._chat is not None)

    def _alpaca(self, turns: Sequence[Turn]) -> list[Piece]:
        if not alpaca.alternate([*turns, Turn("assistant", "")] if turns[-1].role == "user" else turns):
            raise Refused("question and answer don't take turns; use -S data.template=chat")
        return alpaca.pieces(turns, cast(str, self._tokenizer.eos_token))


class _Plan:
    """A conversation on its way to tokens.

    A chat is tokenised as a whole, as its model knows it, unless a token would lie across the end of a stretch: an
    answer is always written after its question's tokens. Alpaca's stretches are tokenised each for itself.
    """

    def __init__(self, pieces: list[Piece], cuts: list[int], whole: bool) -> None:
        """`cuts` are the indices of `pieces` at which a stretch starts or ends."""
        self._pieces, self._cuts = pieces, cuts
        self.runs: list[Run] = [(pieces[first:last], not whole and first == 0) for first, last in pairwise(cuts)]
        """What is to be tokenised."""
        if whole:
            self.runs += [(pieces[:end], False) for end in cuts[1:]]

    def stretches(self, ids: list[list[int] | Refused]) -> list[Stretch] | Refused:
        """The conversation's stretches, given the token ids of each of its runs."""
        good: list[list[int]] = []
        for run in ids:
            if isinstance(run, Refused):
                return run
            good.append(run)
        count = len(self._cuts) - 1
        apart, upto = good[:count], good[count:]
        if upto and all(upto[-1][: len(run)] == run for run in upto):
            apart = [after[len(before) :] for before, after in pairwise([[], *upto])]
        return [
            Stretch(
                run,
                "".join(piece.text for piece in self._pieces[start:end]),
                "".join(piece.text for piece in self._pieces[start:end] if not piece.own),
                self._pieces[start].loss,
            )
            for (start, end), run in zip(pairwise(self._cuts), apart, strict=True)
        ]
