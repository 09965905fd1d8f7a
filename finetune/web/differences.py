"""The words in which two answers differ, as HTML."""

from difflib import SequenceMatcher
from html import escape

import regex

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Scripts that set no spaces between words: there each character is compared."""
_LETTERS = rf"[\w--{_UNSPACED}]+"
_WORD = regex.compile(rf"(?:{_UNSPACED}\p{{M}}*|{_LETTERS}(?:['\u2019-]{_LETTERS})*|[^\w\s])\s*|\s+", regex.V1)
"""A word or a mark, with the white space behind it; nothing of a text is left out."""


def plain(text: str) -> str:
    """`text` as HTML, for a place between tags."""
    return escape(text, quote=False)


def marked(first: str, text: str) -> str:
    """`text` as HTML: what `first` lacks in <ins>, what only `first` has in <del>. White space alone is no difference."""
    before, after = _WORD.findall(first), _WORD.findall(text)
    # Without autojunk: difflib would ignore the commonest words of a long answer.
    matcher = SequenceMatcher(None, [word.strip() for word in before], [word.strip() for word in after], autojunk=False)
    parts = []
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            parts.append(plain("".join(after[new_start:new_end])))
        else:
            gone = _in("del", before[start:end])
            # A gap, so that what is gone doesn't touch what came in its place.
            parts += [f"{gone} " if gone.endswith(">") else gone, _in("ins", after[new_start:new_end])]
    return "".join(parts)


def _in(tag: str, words: list[str]) -> str:
    """The words in the tag; the white space behind them outside, where no line is drawn."""
    text = "".join(words)
    said = text.rstrip()
    return f"<{tag}>{plain(said)}</{tag}>{text[len(said) :]}" if said else text
