"""Charts of a comparison, as SVG text. A contender has its method's colour; seeds are thin lines or small points."""

import io
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import pandas
from matplotlib import pyplot
from matplotlib.lines import Line2D

from finetune.comparison import Contender
from finetune.comparison_table import COSTS
from finetune.figures import LOOK
from finetune.verdict import LEVEL, TITLES

STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D")
"""For several contenders of one method."""

PARTS = {
    "weights_gb": "#0072B2",
    "adapters_gb": "#009E73",
    "gradients_gb": "#E69F00",
    "optimizer_gb": "#D55E00",
    "activations_gb": "#CC79A7",
    "rest_gb": "#BBBBBB",
}
"""Colours of the parts of memory."""

AXIS = {
    "bleu": "BLEU (0 to 100)",
    "rouge_l": "ROUGE-L (0 to 100)",
    "test_loss": "test loss (nats per response token)",
}


def charts(found: list[Contender], data: dict) -> dict[str, str]:
    """Title -> SVG."""
    return {
        "Scores with 95% intervals; ticks are seeds": scores(data),
        "Paired differences with 95% intervals; grey where the data can't tell the two apart": differences(data),
        "Peak device memory and its parts": memory_parts(data),
        "Training loss (mean of 10 steps) against steps, time and tokens; bold is the mean over seeds": loss(found),
        "Device memory while training": memory(found),
        "Quality against memory and time; the line joins what nothing beats in both": pareto(data),
    }


def scores(data: dict) -> str:
    """A panel a score, a row a contender."""
    columns = {"base": data["base"]} | data["contenders"]
    figure, panels = pyplot.subplots(1, len(TITLES), figsize=(11, 0.6 + 0.45 * len(columns)), sharey=True)
    for axes, score in zip(panels, TITLES, strict=True):
        for row, (label, column) in enumerate(columns.items()):
            found, color = column["scores"][score], _color(data, label)
            _interval(axes, row, found, color)
            axes.plot(found["seeds"], [row + 0.22] * len(found["seeds"]), "|", color=color, markersize=6)
        axes.set(xlabel=AXIS[score])
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(columns)), [_name(label) for label in columns])
    panels[0].invert_yaxis()
    return _svg(figure)


def differences(data: dict) -> str:
    """A panel a score, a row a pair."""
    pairs = data["differences"]
    figure, panels = pyplot.subplots(1, len(TITLES), figsize=(11, 0.6 + 0.4 * len(pairs)), sharey=True)
    for axes, score in zip(panels, TITLES, strict=True):
        for row, pair in enumerate(pairs):
            found = pair["scores"][score]
            _interval(axes, row, found, _color(data, pair["first"]) if found["p"] < LEVEL else "#AAAAAA")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=f"difference in {TITLES[score]}")
        axes.grid(axis="x", alpha=0.3)
    names = [f"{_name(pair['first'])} - {_name(pair['second'])}" for pair in pairs]
    panels[0].set_yticks(range(len(pairs)), names)
    panels[0].invert_yaxis()
    return _svg(figure)


def _interval(axes, row: int, found: dict, color: str) -> None:
    """An estimate and its interval, lying in `row`."""
    axes.plot([found["low"], found["high"]], [row, row], color=color, linewidth=2)
    axes.plot(found["value"], row, "o", color=color, markersize=7)


def memory_parts(data: dict) -> str:
    """Stacked bars; a dash marks the peak of the whole process."""
    found = data["contenders"]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.5 * len(found)))
    for row, contender in enumerate(found.values()):
        left = 0.0
        for key, color in PARTS.items():
            width = max(0.0, contender["costs"][key]["median"])
            axes.barh(
                row, width, left=left, color=color, label=COSTS[key][0].removeprefix("of which ") if row == 0 else None
            )
            left += width
        process = contender["costs"]["peak_process_gb"]["median"]
        axes.plot([process, process], [row - 0.4, row + 0.4], "k--", label="peak of the process" if row == 0 else None)
    axes.set_yticks(range(len(found)), [_name(label) for label in found])
    axes.invert_yaxis()
    axes.set(xlabel="GB (10⁹ bytes), median over seeds", xlim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return _svg(figure)


def loss(found: list[Contender]) -> str:
    """Three panels that share the loss axis."""
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), sharey=True)
    means = [
        pandas.concat([run.curve for run in contender.runs]).groupby("step", as_index=False).mean()
        for contender in found
    ]
    names = {"step": "optimizer step", "seconds": "training time (s)", "tokens": "training tokens"}
    for axes, (column, title) in zip(panels, names.items(), strict=True):
        _each_run(axes, found, lambda run, c=column: (run.curve[c], _smooth(run.curve["loss"])), alpha=0.25)
        for contender, mean, style in zip(found, means, _styles(found), strict=True):
            color = LOOK[contender.method]["color"]
            axes.plot(mean[column], _smooth(mean["loss"]), style, color=color, linewidth=2)
        axes.set(xlabel=title)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="nats per response token")
    panels[0].legend(handles=_handles(found), frameon=False)
    return _svg(figure)


def _smooth(values: pandas.Series) -> pandas.Series:
    return values.rolling(10, min_periods=5).mean()


def memory(found: list[Contender]) -> str:
    """From before the model is loaded to the end of training, validation included."""
    figure, axes = pyplot.subplots(figsize=(8, 4))
    _each_run(axes, found, lambda run: (run.memory["seconds"], run.memory["device_gb"]))
    axes.set(xlabel="seconds since the start", ylabel="GB (10⁹ bytes)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(handles=_handles(found), frameon=False)
    return _svg(figure)


def pareto(data: dict) -> str:
    """A column a cost, a row a score."""
    costs = {"peak_device_gb": "peak device memory (GB)", "train_seconds": "training time (s)"}
    figure, rows = pyplot.subplots(2, 2, figsize=(11, 8), sharey="row", sharex="col", layout="constrained")
    for panels, score in zip(rows, ("rouge_l", "test_loss"), strict=True):
        for axes, key in zip(panels, costs, strict=True):
            _pareto_panel(axes, data, score, key)
        panels[0].set(ylabel=AXIS[score])
        if score == "test_loss":
            panels[0].invert_yaxis()
    for axes, title in zip(rows[-1], costs.values(), strict=True):
        axes.set(xlabel=title, xlim=(0, None))
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return _svg(figure)


def _pareto_panel(axes, data: dict, score: str, key: str) -> None:
    points = []
    methods = [contender["method"] for contender in data["contenders"].values()]
    for (label, contender), nth in zip(data["contenders"].items(), _nth_of_its_method(methods), strict=True):
        found = contender["scores"][score]
        points.append((contender["costs"][key]["median"], found["value"]))
        reach = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
        look = {"color": _color(data, label), "marker": MARKERS[nth], "label": _name(label)}
        axes.errorbar(*points[-1], yerr=reach, linestyle="", markersize=8, **look)
    sign = -1 if score == "test_loss" else 1
    front = [p for p in sorted(points) if all(sign * p[1] > sign * q[1] or q[0] >= p[0] for q in points if q != p)]
    axes.plot(*zip(*front, strict=True), color="black", linewidth=0.8, linestyle=":", zorder=0)
    base = data["base"]["scores"][score]
    axes.axhspan(base["low"], base["high"], color=LOOK["base"]["color"], alpha=0.12, linewidth=0)
    axes.axhline(base["value"], color=LOOK["base"]["color"], linewidth=1, label=LOOK["base"]["label"])
    axes.grid(alpha=0.3)


def _each_run(axes, found: list[Contender], points: Callable, alpha: float = 0.8) -> None:
    for contender, style in zip(found, _styles(found), strict=True):
        for run in contender.runs:
            axes.plot(*points(run), style, color=LOOK[contender.method]["color"], linewidth=1, alpha=alpha)


def _styles(found: list[Contender]) -> list[str]:
    return [STYLES[nth] for nth in _nth_of_its_method([contender.method for contender in found])]


def _nth_of_its_method(methods: list[str]) -> list[int]:
    return [methods[:place].count(method) % len(STYLES) for place, method in enumerate(methods)]


def _handles(found: list[Contender]) -> list[Line2D]:
    return [
        Line2D([], [], color=LOOK[contender.method]["color"], linestyle=style, label=_name(contender.label))
        for contender, style in zip(found, _styles(found), strict=True)
    ]


def _color(data: dict, label: str) -> str:
    return LOOK["base" if label == "base" else data["contenders"][label]["method"]]["color"]


def _name(label: str) -> str:
    return LOOK[label]["label"] if label in LOOK else label


def _svg(figure) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "comparison"}):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return file.getvalue()
