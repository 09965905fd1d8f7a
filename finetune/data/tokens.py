"""Text to token ids, so that only a template's own special tokens become special.

A token such as `<|im_end|>` that a person wrote would end an answer or forge a turn. What people write is therefore
tokenised as plain text, and what a template writes as the tokenizer reads it.
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


class TemplateError(Exception):
    """A template or tokenizer can't render a conversation in full; the argument says why."""


@dataclass(frozen=True)
class Span:
    """A span of a conversation's text."""

    text: str
    markup: bool
    """Whether the template wrote it, so that special tokens in it count; else a person did."""
    loss: bool = False
    """Whether it is learnt."""


class SpecialTokens:
    """A tokenizer's special tokens, and the other added tokens with which a template opens or closes a turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_text: str = "") -> None:
        added = {str(token): (id_, token.special) for id_, token in tokenizer.added_tokens_decoder.items()}
        special = {name: id_ for name, (id_, is_special) in added.items() if is_special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        # Some tokenizers hold their chat tokens as added tokens that aren't called special.
        special |= {name: id_ for name, (id_, _) in added.items() if name.strip() and name in template_text}
        self.ids: dict[str, int] = special
        names = sorted(special, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, names))) if names else re.compile(r"(?!)")
        self._folded = {_fold(name) for name in names}

    def first(self, text: str) -> re.Match[str] | None:
        """The first special token in `text`."""
        return self._any.search(text)

    def split(self, text: str) -> list[str | int]:
        """`text` cut at its special tokens, which become their ids."""
        parts: list[str | int] = []
        end = 0
        for match in self._any.finditer(text):
            parts += [text[end : match.start()], self.ids[match[0]]]
            end = match.end()
        return [part for part in [*parts, text[end:]] if part != ""]

    def broken(self, text: str, ids: set[int]) -> list[str]:
        """`text` cut within each special token with one of `ids`, so that no part holds one whole."""
        found = (match for match in self._any.finditer(text) if self.ids[match[0]] in ids)
        cuts = [0, *(match.start() + 1 for match in found), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def may_be_in(self, text: str) -> bool:
        """Whether a tokenizer, which may fold case or width, could see a special token in `text`."""
        folded = _fold(text)
        return any(name in folded for name in self._folded)


Text = tuple[Sequence[Span], bool]
"""Spans that are tokenised as one text, and whether with the token that the model's sequences start with, if any."""


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], special: SpecialTokens
) -> list[list[int] | TemplateError]:
    """Token ids of each of `texts`, or a TemplateError if the tokenizer can't read a special token in it as plain text.

    Texts without any are tokenised together, on all cores if the tokenizer can.
    """
    found: list[list[int] | TemplateError] = [[]] * len(texts)
    plain: dict[bool, list[int]] = {True: [], False: []}
    for index, (spans, start) in enumerate(texts):
        if any(special.may_be_in(span.text) for span in spans if not span.markup):
            found[index] = _around_special(tokenizer, spans, special, start)
        else:
            plain[start].append(index)
    for start, indices in plain.items():
        joined = ["".join(span.text for span in texts[index][0]) for index in indices]
        rows = tokenizer(joined, add_special_tokens=start, return_attention_mask=False)["input_ids"] if joined else []
        for index, ids in zip(indices, rows, strict=True):
            found[index] = ids[:-1] if start and ids and ids[-1] == tokenizer.eos_token_id else ids
    return found


def _around_special(
    tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span], special: SpecialTokens, start: bool
) -> list[int] | TemplateError:
    """Token ids of spans, one of which was written by a person and may hold a special token."""
    parts = [part for span in spans for part in (special.split(span.text) if span.markup else [span.text])]
    ids = _start(tokenizer) if start else []
    try:
        for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
            run = list(group)
            ids += _plain(tokenizer, "".join(map(str, run)), special) if is_text else [int(part) for part in run]
    except TemplateError as error:
        return error
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, special: SpecialTokens) -> list[int]:
    """Token ids of `text`, none of them special."""
    forbidden = set(special.ids.values())
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        forbidden.discard(tokenizer.unk_token_id)
    ids = _without_special(tokenizer, text)
    if not forbidden.isdisjoint(ids):
        # Those that the tokenizer doesn't call special.
        parts = special.broken(text, forbidden.intersection(ids))
        ids = [id_ for part in parts for id_ in _without_special(tokenizer, part)]
    if forbidden.isdisjoint(ids):
        return ids
    raise TemplateError("the tokenizer reads a special token in it, whatever is done")


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before a text, such as that of the token that sequences start with."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    return whole[: next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)]


def _without_special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()
