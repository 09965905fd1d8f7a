"""What BLEU and ROUGE count as a word, chosen by the scripts of the references.

The answers don't count in that choice: else a model could change the measure by which it is judged.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

NOTICED = 0.05
"""Share of the references' words from which a script decides. Accents in English stay far below, French and German
are far above."""

_SYLLABIC = r"[\p{scx=Hiragana}\p{scx=Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Viet}\p{Javanese}\p{Balinese}\p{Yi}]"
_UNSPACED = rf"[[{_SYLLABIC}\p{{Han}}\p{{Bopomofo}}]&&\p{{L}}]"
_WORD = regex.compile(rf"{_UNSPACED}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]+", regex.V1)
_KINDS = {
    "syllabic": regex.compile(rf"[{_SYLLABIC}&&\p{{L}}]", regex.V1),
    "han": regex.compile(r"[\p{Han}\p{Bopomofo}]"),
    "spaced": regex.compile(r"[\p{L}--[\p{Latin}\p{Common}\p{Inherited}]]", regex.V1),
}
"""Kinds of scripts for which sacreBLEU's 13a isn't made, by a letter that tells; a word is of the first that fits."""

_BLEU = {"syllabic": "char", "han": "zh", "spaced": "intl"}
"""sacreBLEU's tokenizer for each kind, the one that cuts finest first: it reads the others' text as well."""

_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_OTHER_WIDTH = regex.compile(r"[\uFF10-\uFF19\uFF21-\uFF3A\uFF41-\uFF5A\uFF66-\uFF9F\uFFA1-\uFFDC]+")
"""Full-width digits and Latin letters, half-width kana and Hangul."""


@dataclass(frozen=True)
class Tokenisation:
    """How one test set is cut into words."""

    bleu: str
    """Name of sacreBLEU's tokenizer."""
    any_script: bool
    """ROUGE takes letters, marks and digits of any script (`words`); else ASCII alone, as rouge-score does by itself."""


def choose(tokenize: str, references: Iterable[str]) -> Tokenisation:
    """The tokenisation that `eval.tokenize` selects for these references.

    `auto` is 13a and rouge-score's own unless the references hold enough of what those can't read. `13a` is those two
    whatever the references are; any other name is sacreBLEU's tokenizer of that name, and `words` for ROUGE.
    """
    if tokenize != "auto":
        return Tokenisation(tokenize, any_script=tokenize != "13a")
    found = [word for reference in references for word in _WORD.findall(normalised(reference))]
    kinds = Counter(map(_kind, found))
    noticed = [name for kind, name in _BLEU.items() if kinds[kind] >= NOTICED * len(found) > 0]
    beyond_ascii = sum(not word.isascii() for word in found)
    # Without a single word (emoji alone) rouge-score's own tokenizer would see nothing at all.
    return Tokenisation((*noticed, "13a")[0], any_script=beyond_ascii >= NOTICED * len(found))


def _kind(word: str) -> str:
    return next((kind for kind, letter in _KINDS.items() if letter.search(word)), "latin")


def normalised(text: str) -> str:
    """`text` with one encoding for what looks the same, as both scores read it. ASCII stays as it is.

    Letters and their marks are composed (NFC), letters and digits have their usual width, and invisible
    characters (zero-width, soft hyphens, variation selectors) are removed.
    """
    if text.isascii():
        return text
    usual = _OTHER_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", usual))


def words(text: str) -> list[str]:
    """The words of `text` in small letters, whatever its script; each character where a script sets no spaces.

    On ASCII text these are rouge-score's own. A text without words is taken by its visible characters: emoji,
    punctuation.
    """
    return _WORD.findall(text.lower()) or [character for character in text if not character.isspace()]
