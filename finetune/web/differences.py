"""The words in which two answers differ, as HTML."""

from difflib import SequenceMatcher
from html import escape

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that set no spaces between words: there each character is compared."""
_WORD = regex.compile(rf"(?:[{_UNSPACED}]\p{{M}}*|[^\s{_UNSPACED}]+)\s*|\s+")


def plain(text: str) -> str:
    """`text` as HTML."""
    return escape(text)


def marked(first: str, text: str) -> str:
    """`text` as HTML: what `first` lacks in <ins>, what only `first` has in <del>. White space alone is no difference."""
    before, after = _WORD.findall(first), _WORD.findall(text)
    # Without autojunk: difflib would ignore the commonest words of a long answer.
    matcher = SequenceMatcher(None, [word.strip() for word in before], [word.strip() for word in after], autojunk=False)
    parts = []
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            parts.append(escape("".join(after[new_start:new_end])))
        else:
            parts += [_in("del", before[start:end]), _in("ins", after[new_start:new_end])]
    return "".join(parts)


def _in(tag: str, words: list[str]) -> str:
    """The words in the tag, and the white space behind them outside, where a line isn't drawn."""
    text = "".join(words)
    said = text.rstrip()
    return f"<{tag}>{escape(said)}</{tag}>{text[len(said) :] or ' '}" if said else ""
