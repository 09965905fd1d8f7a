"""A comparison as tables of text, and as Markdown."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import stdev

from finetune.verdict import DIGITS, TITLES, signed, verdict

Format = Callable[[float], str]

COSTS: dict[str, tuple[str, Format]] = {
    "peak_device_gb": ("Peak device memory (GB)", "{:.2f}".format),
    "weights_gb": ("of which weights", "{:.3f}".format),
    "adapters_gb": ("of which adapters", "{:.3f}".format),
    "gradients_gb": ("of which gradients", "{:.3f}".format),
    "optimizer_gb": ("of which optimizer state", "{:.3f}".format),
    "activations_gb": ("of which activations", "{:.3f}".format),
    "rest_gb": ("of which the rest", "{:.3f}".format),
    "peak_process_gb": ("Peak process memory (GB)", "{:.2f}".format),
    "seconds_per_epoch": ("Time per epoch (s)", "{:.0f}".format),
    "train_seconds": ("Training time (s)", "{:.0f}".format),
    "tokens_per_second": ("Training speed (tokens/s)", "{:.0f}".format),
    "energy_kj": ("Energy (kJ)", "{:.1f}".format),
    "size_on_disk_gb": ("Size on disk to keep or send (GB)", "{:.3f}".format),
    "trained_parameters": ("Trained parameters", "{:,.0f}".format),
}


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]


def tables(data: dict) -> list[Table]:
    """Scores and costs of each contender; then the differences between them."""
    return [_contenders(data), _differences(data)]


def _contenders(data: dict) -> Table:
    found = data["contenders"]
    columns = [data["base"], *found.values()]
    rows = [[_title(score), *(_score(score, c["scores"][score]) for c in columns)] for score in TITLES]
    for key, (title, form) in COSTS.items():
        if any(key in contender["costs"] for contender in found.values()):
            rows.append([title, "-", *(_cost(contender["costs"].get(key), form) for contender in found.values())])
    rows.append(["Learning rate", "-", *(f"{contender['learning_rate']:g}" for contender in found.values())])
    rows.append(["Epochs", "-", *(f"{contender['epochs']:g}" for contender in found.values())])
    rows.append(["Seeds", "-", *(", ".join(map(str, contender["seeds"])) for contender in found.values())])
    return Table(["", "base", *found], rows)


def _title(score: str) -> str:
    return {"test_loss": "Test loss (nats per token)"}.get(score, TITLES[score])


def _score(score: str, found: dict) -> str:
    digits = DIGITS[score]
    spread = f" ± {stdev(found['seeds']):.{digits}f}" if len(found["seeds"]) > 1 else ""
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]{spread}"


def _cost(found: dict | None, form: Format) -> str:
    if found is None:
        return "-"
    middle, least, most = (form(found[key]) for key in ("median", "least", "most"))
    return middle if least == most else f"{middle} ({least} to {most})"


def _differences(data: dict) -> Table:
    rows = []
    for difference in data["differences"]:
        cells = [f"{signed(score, found)}, {_p(found['p'])}" for score, found in difference["scores"].items()]
        rows.append([f"{difference['first']} against {difference['second']}", *cells])
    return Table(["", *map(_title, TITLES)], rows)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


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


def markdown(data: dict) -> str:
    """Verdict, flags, tables and how to read them."""
    parts = ["\n".join(f"- {sentence}" for sentence in verdict(data))]
    parts += [f"**Note.** {flag}" for flag in data["flags"]]
    parts += [_markdown(table) for table in tables(data)]
    return "\n\n".join([*parts, legend(data), about(data)])


def _markdown(table: Table) -> str:
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
