"""A comparison as tables: in full (`report`) and for a front page (`summary`), in Markdown."""

import re
from dataclasses import dataclass
from statistics import stdev

from finetune.comparison.measures import COSTS, MEMORY_PARTS, SCORES, Measure
from finetune.comparison.verdict import advice, cost_ratio, in_sentence, level, name, signed, verdict


@dataclass(frozen=True)
class TextTable:
    """Cells of text."""

    header: list[str]
    rows: list[list[str]]


def tables(data: dict) -> list[TextTable]:
    """Scores and costs of each contender; then the differences between them."""
    return [_contenders(data), _differences(data)]


def bases(data: dict) -> dict[str, dict]:
    """Heading -> the untrained models: as it was fetched, and in four bits if a method was trained on that."""
    return {"base": data["base"]} | ({"base, 4-bit": data["base_4bit"]} if "base_4bit" in data else {})


def _contenders(data: dict) -> TextTable:
    contenders = data["contenders"]
    columns = [*bases(data).values(), *contenders.values()]
    none = ["-"] * len(bases(data))
    rows = [[m.heading, *(_score(m, column["scores"][m.key]) for column in columns)] for m in SCORES.values()]
    for measure in COSTS.values():
        spreads = [contender["costs"].get(measure.key) for contender in contenders.values()]
        if any(spreads):
            rows.append([_cost_heading(measure), *none, *(_cost(measure, spread) for spread in spreads)])
    rows.append(["Learning rate", *none, *(f"{contender['learning_rate']:g}" for contender in contenders.values())])
    rows.append(["Epochs", *none, *(f"{contender['epochs']:g}" for contender in contenders.values())])
    rows.append(["Seeds", *none, *(", ".join(map(str, contender["seeds"])) for contender in contenders.values())])
    return TextTable(["", *bases(data), *contenders], rows)


def _cost_heading(measure: Measure) -> str:
    return f"of which {measure.heading}" if measure.key in MEMORY_PARTS else measure.heading


def _score(measure: Measure, estimate: dict) -> str:
    value, low, high = (measure.text(estimate[key]) for key in ("value", "low", "high"))
    spread = f" ± {measure.text(stdev(estimate['seeds']))}" if len(estimate["seeds"]) > 1 else ""
    return f"{value} [{low}, {high}]{spread}"


def _cost(measure: Measure, spread: dict | None) -> str:
    if spread is None:
        return "-"
    middle, least, most = (measure.text(spread[key]) for key in ("median", "least", "most"))
    return middle if least == most else f"{middle} ({least} to {most})"


def _differences(data: dict) -> TextTable:
    rows = []
    for difference in data["differences"]:
        cells = [f"{signed(SCORES[score], e)}, {level(e['p'])}" for score, e in difference["scores"].items()]
        rows.append([f"{difference['first']} against {difference['second']}", *cells])
    return TextTable(["", *(measure.heading for measure in SCORES.values())], rows)


def legend(data: dict) -> str:
    """How to read the tables."""
    return (
        f"Scores: mean over seeds [95% interval over {data['test_examples']} test examples, {data['resamples']} bootstrap "
        f"resamples] ± standard deviation over seeds. Costs: median over seeds (least to most). Differences: [95% interval] "
        f"and p of the two-sided paired bootstrap test, not corrected for the number of tests. Parts of the peak: each at its "
        f"own largest; the rest is what they leave: passing results, and on a CPU freed memory that the allocator keeps."
    )


def about(data: dict) -> str:
    """What the runs ran on."""
    commits, hashes = ", ".join(data["commits"]), ", ".join(one[:8] for one in data["data"])
    return (
        f"{data['training_examples']} training examples; prepared data {hashes}; commit {commits}; "
        f"{'; '.join(data['hardware'])}; {'; '.join(data['versions'])}. BLEU: `{data['bleu_signature']}`; "
        f"ROUGE: `{data['rouge_signature']}`."
    )


def report(data: dict) -> str:
    """Verdict, flags, tables and how to read them, as Markdown."""
    parts = ["\n".join(f"- {sentence}" for sentence in verdict(data))]
    parts += [f"**Note.** {flag}" for flag in data["flags"]]
    parts += [markdown(table) for table in tables(data)]
    return inert("\n\n".join([*parts, legend(data), about(data)]))


SUMMARY_ROWS = (
    COSTS["peak_device_gb"],
    COSTS["epoch_seconds"],
    *SCORES.values(),
    COSTS["size_gb"],
)


def summary(data: dict) -> str:
    """Markdown without intervals; those are in the full tables."""
    sentences = [f"- {_sentence(data, label)}" for label in data["contenders"]]
    advised = [f"**{sentence}**" for sentence in advice(data)]
    return inert(
        "\n\n".join([*advised, markdown(_short_table(data)), "\n".join([*_cost_of_rounding(data), *sentences])])
    )


def _short_table(data: dict) -> TextTable:
    columns = [*bases(data).values(), *data["contenders"].values()]
    rows = [[measure.heading, *(_cell(measure, column) for column in columns)] for measure in SUMMARY_ROWS]
    return TextTable(["", *bases(data), *data["contenders"]], rows)


def _cost_of_rounding(data: dict) -> list[str]:
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


def markdown(table: TextTable) -> str:
    """The table in Markdown, figures to the right."""
    rows = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (table.header, *table.rows)]
    lines = [rows[0], ["---", *["---:"] * (len(table.header) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inert(markdown: str) -> str:
    """`markdown` in which names of runs, machines and versions, which others may have chosen, make no tag and no link."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", markdown).replace("](", "]\\(")
