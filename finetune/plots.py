"""The plots of one run. Each title says what is shown, each axis its unit; colours are the method's."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune.files import whole_file
from finetune.methods import BASE, BLUE, Method


def lengths(values: Sequence[int], max_length: int, target: Path) -> None:
    """Histogram of sequence lengths, prompt and response together."""
    figure, axes = _figure(
        f"Lengths of the {len(values)} prepared sequences", "tokens (prompt and response)", "sequences"
    )
    axes.hist(values, bins=40, color=BLUE)
    axes.axvline(max_length, color="black", linestyle=":")
    place = (max_length, 0.95)
    axes.annotate("data.max_length", place, xycoords=("data", "axes fraction"), ha="right", rotation=90, va="top")
    save_png(figure, target)


def loss(train: Path, validation: Path, kept_step: int, method: Method, target: Path) -> None:
    """Training loss of each optimizer step, its moving average, each validation loss, and the step whose weights are kept."""
    figure, axes = _figure(f"Loss, {method.label}", "optimizer step", "nats per response token")
    steps, validations = _table(train), _table(validation)
    color = method.color
    axes.plot(steps["step"], steps["loss"], color=color, alpha=0.3, label="train, each step")
    average = steps["loss"].rolling(10, min_periods=1).mean()
    axes.plot(steps["step"], average, color=color, label="train, mean of 10 steps")
    axes.plot(validations["step"], validations["loss"], "ko", label="validation")
    axes.axvline(kept_step, color="black", linestyle=":", linewidth=1, label=f"weights kept: step {kept_step}")
    axes.legend()
    save_png(figure, target)


def learning_rate(table: Path, method: Method, target: Path) -> None:
    """Learning rate of each optimizer step."""
    figure, axes = _figure(f"Learning rate, {method.label}", "optimizer step", "learning rate")
    rates = _table(table)
    axes.plot(rates["step"], rates["learning_rate"], color=method.color)
    save_png(figure, target)


def memory(table: Path, method: Method, target: Path) -> None:
    """Process and device memory against time, from before the model is loaded to the end of training."""
    figure, axes = _figure(f"Memory while training, {method.label}", "seconds since the start", "GB (10⁹ bytes)")
    samples = _table(table)
    color = method.color
    axes.plot(samples["seconds"], samples["process_gb"], color=color, label="process")
    axes.plot(samples["seconds"], samples["device_gb"], color=color, linestyle="--", label="device")
    axes.set_ylim(bottom=0)
    axes.legend()
    save_png(figure, target)


def quality(base: dict[str, float], tuned: dict[str, float], method: Method, target: Path) -> None:
    """BLEU and ROUGE of the base model and of the fine-tuned one; each argument maps score names to scores."""
    names = {"bleu": "BLEU", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"}
    figure, axes = _figure(f"Test scores, base and {method.label}", "", "score (0 to 100)")
    for offset, (look, scores) in enumerate(((BASE, base), (method, tuned))):
        places = [index + 0.4 * offset for index in range(len(names))]
        bars = axes.bar(places, [scores[name] for name in names], 0.38, color=look.color, label=look.label)
        axes.bar_label(bars, fmt="%.1f")
    axes.set_xticks([index + 0.2 for index in range(len(names))], names.values())
    axes.legend()
    save_png(figure, target)


def gain(base: list[dict], tuned: list[dict], method: Method, target: Path) -> None:
    """ROUGE-L of each test example, fine-tuned against base: points above the line gained."""
    before, after = ([row["rouge_l"] for row in rows] for rows in (base, tuned))
    better = sum(b < a for b, a in zip(before, after, strict=True))
    figure, axes = _figure(
        f"{better} of {len(before)} test answers score higher than the base model's",
        "ROUGE-L, base model",
        f"ROUGE-L, {method.label}",
    )
    axes.scatter(before, after, s=14, color=method.color)
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle=":")
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal")
    save_png(figure, target)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _table(path: Path) -> pandas.DataFrame:
    return pandas.read_csv(path, sep="\t")


def save_png(figure: Figure, target: Path) -> None:
    """Write `figure` to `target`, the same bytes for the same data, and close it."""
    try:
        _open_frame(figure)
        with whole_file(target) as draft:
            figure.savefig(draft, format="png", dpi=110, metadata={"Software": None})
    finally:
        pyplot.close(figure)


def svg(figure: Figure, salt: str, **options: object) -> str:
    """`figure` as SVG text, the same bytes for the same data and `salt`; closes it. `options` are `savefig`'s."""
    file = io.StringIO()
    try:
        _open_frame(figure)
        with matplotlib.rc_context({"svg.hashsalt": salt}):
            figure.savefig(file, format="svg", metadata={"Date": None}, **options)  # type: ignore[arg-type]
    finally:
        pyplot.close(figure)
    return file.getvalue()


def _open_frame(figure: Figure) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
