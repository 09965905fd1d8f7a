"""Test prompts worth reading: where answers differ most in score."""

from dataclasses import dataclass

from finetune.comparison.contenders import Contender

EXAMPLES_PER_TITLE = 3


@dataclass(frozen=True)
class Example:
    """A test prompt with all its answers."""

    prompt: str
    reference: str
    answers: dict[str, tuple[str, float]]
    """Contender (or 'base') -> answer and its ROUGE-L."""


def examples(contenders: list[Contender]) -> dict[str, list[Example]]:
    """Title -> the prompts where ROUGE-L differs most, as each contender's first seed answered them."""
    rows = {"base": contenders[0].runs[0].base_answers} | {c.label: c.runs[0].answers for c in contenders}
    first, last = contenders[0].label, contenders[-1].label
    if len(contenders) == 1:
        return {f"{first} best against base": _most(rows, first, "base"), f"{first} worst": _most(rows, "base", first)}
    return {
        f"{first} best against {last}": _most(rows, first, last),
        f"{last} best against {first}": _most(rows, last, first),
        f"{first} best against the base model": _most(rows, first, "base"),
        f"{first} worst against the base model": _most(rows, "base", first),
    }


def _most(rows: dict[str, list[dict]], better: str, worse: str) -> list[Example]:
    """The prompts where `better` is most above `worse`."""
    gaps = [a["rouge_l"] - b["rouge_l"] for a, b in zip(rows[better], rows[worse], strict=True)]
    places = sorted(range(len(gaps)), key=gaps.__getitem__, reverse=True)[:EXAMPLES_PER_TITLE]
    return [
        Example(
            prompt=rows[better][place]["prompt"],
            reference=rows[better][place]["reference"],
            answers={label: (these[place]["prediction"], these[place]["rouge_l"]) for label, these in rows.items()},
        )
        for place in places
        if gaps[place] > 0
    ]
