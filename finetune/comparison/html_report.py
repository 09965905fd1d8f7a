"""A comparison as one HTML page that needs no other file."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune.comparison.charts import charts
from finetune.comparison.contenders import Contender
from finetune.comparison.examples import examples
from finetune.comparison.tables import about, legend, tables
from finetune.comparison.verdict import verdict


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
