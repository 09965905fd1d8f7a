"""A comparison on a front page: which to take, a short table, and one sentence a contender."""

from finetune.comparison.measures import COSTS, SCORES, Measure
from finetune.comparison.tables import Table, bases, inert, markdown
from finetune.comparison.verdict import advice, cost_ratio, in_sentence, name

ROWS = (
    COSTS["peak_device_gb"],
    COSTS["epoch_seconds"],
    *SCORES.values(),
    COSTS["size_gb"],
)


def summary(data: dict) -> str:
    """Markdown without intervals; those are in the full tables."""
    sentences = [f"- {_sentence(data, label)}" for label in data["contenders"]]
    advised = [f"**{sentence}**" for sentence in advice(data)]
    return inert("\n\n".join([*advised, markdown(_table(data)), "\n".join([*_rounding(data), *sentences])]))


def _table(data: dict) -> Table:
    columns = [*bases(data).values(), *data["contenders"].values()]
    rows = [[measure.heading, *(_cell(measure, column) for column in columns)] for measure in ROWS]
    return Table(["", *bases(data), *data["contenders"]], rows)


def _rounding(data: dict) -> list[str]:
    """What rounding costs before any training, apart from what training gains."""
    loss = SCORES["test_loss"]
    whole, *rounded = (loss.text(column["scores"][loss.key]["value"]) for column in bases(data).values())
    return [f"- Four bits take the base model's {in_sentence(loss)} from {whole} to {after}." for after in rounded]


def _cell(measure: Measure, column: dict) -> str:
    if measure.key in SCORES:
        return measure.text(column["scores"][measure.key]["value"])
    spread = column.get("costs", {}).get(measure.key)
    return measure.text(spread["median"]) if spread else "-"


def _sentence(data: dict, label: str) -> str:
    """On the test loss, the one score that tells the methods apart with few examples."""
    loss, subject = SCORES["test_loss"], f"**{name(label, capital=True)}**"
    share = data["share_of_gain"].get(label, {}).get(loss.key)
    if share is None:
        before, after = (
            loss.text(column["scores"][loss.key]["value"]) for column in (data["base"], data["contenders"][label])
        )
        return f"{subject} brings the {in_sentence(loss)} from {before} to {after}."
    memory, seconds = (cost_ratio(data, label, key) for key in ("peak_device_gb", "epoch_seconds"))
    return (
        f"{subject} reaches {100 * share['value']:.0f}% of {name(data['reference'])}'s gain in {in_sentence(loss)}, "
        f"with {memory:.2f} of its memory and {seconds:.2f} of its time."
    )
