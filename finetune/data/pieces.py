"""Text to token ids, so that only a template's own marks become special tokens.

A mark is a token such as `<|im_end|>` that stands for itself: written in a record, it would end an answer or forge a
turn. What people write is therefore tokenised as plain text, and what a template writes as the tokenizer reads it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Refused(Exception):
    """A conversation that a template or tokenizer can't take whole; the argument says why."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a conversation's text."""

    text: str
    own: bool
    """Whether the template wrote it, so that its marks count; else a person did."""
    loss: bool = False
    """Whether it is learnt."""


class Marks:
    """A tokenizer's marks: its special tokens, and what else a template closes or opens a turn with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_text: str = "") -> None:
        added = {str(token): (id_, token.special) for id_, token in tokenizer.added_tokens_decoder.items()}
        special = {name: id_ for name, (id_, is_special) in added.items() if is_special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        # Some tokenizers hold their chat marks as added tokens that aren't called special.
        special |= {name: id_ for name, (id_, _) in added.items() if name.strip() and name in template_text}
        self.ids: dict[str, int] = special
        names = sorted(special, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, names))) if names else re.compile(r"(?!)")
        self._folded = {_fold(name) for name in names}

    def first(self, text: str) -> re.Match[str] | None:
        """The first mark in `text`."""
        return self._any.search(text)

    def split(self, text: str) -> list[str | int]:
        """`text` cut at its marks, which become their ids."""
        parts: list[str | int] = []
        end = 0
        for match in self._any.finditer(text):
            parts += [text[end : match.start()], self.ids[match[0]]]
            end = match.end()
        return [part for part in [*parts, text[end:]] if part != ""]

    def broken(self, text: str, ids: set[int]) -> list[str]:
        """`text` cut within each of its marks with one of `ids`, so that no part holds one of them whole."""
        found = (match for match in self._any.finditer(text) if self.ids[match[0]] in ids)
        cuts = [0, *(match.start() + 1 for match in found), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def may_be_in(self, text: str) -> bool:
        """Whether a tokenizer, which may fold case or width, could see a mark in `text`."""
        folded = _fold(text)
        return any(name in folded for name in self._folded)


Run = tuple[Sequence[Piece], bool]
"""Pieces that are tokenised as one text, and whether with the token that the model's sequences start with, if it has one."""


def token_ids(tokenizer: PreTrainedTokenizerBase, runs: Sequence[Run], marks: Marks) -> list[list[int] | Refused]:
    """Token ids of each of `runs`; Refused in its place if the tokenizer can't read a mark in it as plain text.

    Plain runs are tokenised together, on all cores where the tokenizer knows how to.
    """
    found: list[list[int] | Refused] = [[]] * len(runs)
    plain: dict[bool, list[int]] = {True: [], False: []}
    for index, (pieces, start) in enumerate(runs):
        if any(marks.may_be_in(piece.text) for piece in pieces if not piece.own):
            found[index] = _beside_marks(tokenizer, pieces, marks, start)
        else:
            plain[start].append(index)
    for start, indices in plain.items():
        texts = ["".join(piece.text for piece in runs[index][0]) for index in indices]
        rows = tokenizer(texts, add_special_tokens=start, return_attention_mask=False)["input_ids"] if texts else []
        for index, ids in zip(indices, rows, strict=True):
            found[index] = ids[:-1] if start and ids and ids[-1] == tokenizer.eos_token_id else ids
    return found


def _beside_marks(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], marks: Marks, start: bool
) -> list[int] | Refused:
    """Token ids of pieces of which one that a person wrote may hold a mark."""
    parts = [part for piece in pieces for part in (marks.split(piece.text) if piece.own else [piece.text])]
    ids = _start(tokenizer) if start else []
    try:
        for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
            run = list(group)
            ids += _plain(tokenizer, "".join(map(str, run)), marks) if is_text else [int(part) for part in run]
    except Refused as refused:
        return refused
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, marks: Marks) -> list[int]:
    """Token ids of `text`, in which nothing is a mark."""
    forbidden = set(marks.ids.values())
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        forbidden.discard(tokenizer.unk_token_id)
    ids = _without_special(tokenizer, text)
    if not forbidden.isdisjoint(ids):
        # Those that the tokenizer doesn't call special.
        parts = marks.broken(text, forbidden.intersection(ids))
        ids = [id_ for part in parts for id_ in _without_special(tokenizer, part)]
    if forbidden.isdisjoint(ids):
        return ids
    raise Refused("the tokenizer reads a special token in it, whatever is done")


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text, such as the token that sequences start with."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    return whole[: next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)]


def _without_special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()
