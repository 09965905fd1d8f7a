"""A comparison on a front page: a short table, and one sentence a contender."""

from finetune.comparison.tables import Table, markdown
from finetune.comparison.verdict import cost_ratio, join, name
from finetune.measures import COSTS, SCORES, Measure

ROWS = (
    COSTS["peak_device_gb"],
    COSTS["epoch_seconds"],
    *SCORES.values(),
    COSTS["size_gb"],
)


def summary(data: dict) -> str:
    """Markdown without intervals; those are in the full tables."""
    sentences = [f"- {_sentence(data, label)}" for label in data["contenders"]]
    return "\n\n".join([markdown(_table(data)), "\n".join(sentences)])


def _table(data: dict) -> Table:
    columns = [data["base"], *data["contenders"].values()]
    rows = [[measure.heading, *(_cell(measure, column) for column in columns)] for measure in ROWS]
    return Table(["", "base", *data["contenders"]], rows)


def _cell(measure: Measure, column: dict) -> str:
    if measure.key in SCORES:
        return measure.text(column["scores"][measure.key]["value"])
    spread = column.get("costs", {}).get(measure.key)
    return measure.text(spread["median"]) if spread else "-"


def _sentence(data: dict, label: str) -> str:
    shares = data["share_of_gain"].get(label)
    if not shares:
        return f"**{name(label, capital=True)}** {_change(data, label)}."
    reached = join([f"{100 * share['value']:.0f}% in {SCORES[score].title}" for score, share in shares.items()])
    memory, seconds = (cost_ratio(data, label, key) for key in ("peak_device_gb", "epoch_seconds"))
    return (
        f"**{name(label, capital=True)}** takes {memory:.2f} of {name(data['reference'])}'s memory and {seconds:.2f} of "
        f"its time, and reaches of its gain on the base model: {reached}."
    )


def _change(data: dict, label: str) -> str:
    loss, column = SCORES["test_loss"], data["contenders"][label]
    before, after = (loss.text(one["scores"]["test_loss"]["value"]) for one in (data["base"], column))
    return f"brings the test loss from {before} to {after}"
