"""A comparison as one HTML page that needs no other file."""

import base64
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune.comparison.charts import charts
from finetune.comparison.contenders import Contender
from finetune.comparison.tables import about, legend, tables
from finetune.comparison.verdict import verdict

EXAMPLES_PER_TITLE = 3


@dataclass(frozen=True)
class ExamplePrompt:
    """A test prompt with all its answers."""

    prompt: str
    reference: str
    answers: dict[str, tuple[str, float]]
    """Contender (or 'base') -> answer and its ROUGE-L."""


def html(contenders: list[Contender], data: dict) -> str:
    """The page. Holds answers and references of the test set, whose licence binds it."""
    environment = Environment(loader=PackageLoader("finetune.comparison"), autoescape=True, undefined=StrictUndefined)
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("comparison.html").render(
        verdict=verdict(data),
        flags=data["flags"],
        tables=tables(data),
        legend=legend(data),
        about=about(data).replace("`", ""),
        charts=charts(contenders, data),
        examples=examples(contenders),
        labels=["base", *(contender.label for contender in contenders)],
        settings=_unlike_settings(contenders),
        contenders=contenders,
    )


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _unlike_settings(contenders: list[Contender]) -> dict[str, list[str]]:
    """Each setting that isn't the same for all contenders, with each one's value."""
    settings = [contender.runs[0].settings for contender in contenders]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    rows = {key: [str(one.get(key, "-")) for one in settings] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def examples(contenders: list[Contender]) -> dict[str, list[ExamplePrompt]]:
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


def _most(rows: dict[str, list[dict]], better: str, worse: str) -> list[ExamplePrompt]:
    """The prompts where `better` is most above `worse`."""
    gaps = [a["rouge_l"] - b["rouge_l"] for a, b in zip(rows[better], rows[worse], strict=True)]
    places = sorted(range(len(gaps)), key=gaps.__getitem__, reverse=True)[:EXAMPLES_PER_TITLE]
    return [
        ExamplePrompt(
            prompt=rows[better][place]["prompt"],
            reference=rows[better][place]["reference"],
            answers={label: (these[place]["prediction"], these[place]["rouge_l"]) for label, these in rows.items()},
        )
        for place in places
        if gaps[place] > 0
    ]
