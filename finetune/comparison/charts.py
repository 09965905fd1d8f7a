"""Charts of a comparison, as SVG text. A contender has its method's colour; seeds are thin lines or small points."""

from collections.abc import Callable
from typing import Any

import matplotlib
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType

from finetune.comparison.contenders import Contender
from finetune.comparison.measures import COSTS, MEMORY_PARTS, SCORES, Measure
from finetune.comparison.significance import SIGNIFICANCE_LEVEL
from finetune.comparison.verdict import in_sentence, name
from finetune.methods import BASE, LIGHT_GREY, METHODS, PART_COLORS, Look
from finetune.plots import pyplot, svg

STYLES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D")
"""For several contenders of one method."""


INK = {"light": "#222222", "dark": "#e6edf3"}
"""Of text and axes, for a page of each colour. The background is the page's own."""

DRAWN = ("test_loss", "rouge_l")


def charts(contenders: list[Contender], data: dict) -> dict[str, str]:
    """Title -> SVG."""
    return {
        "Scores with 95% intervals; ticks are seeds": scores(data),
        "Paired differences with 95% intervals; grey where the data can't tell the two apart": differences(data),
        "Peak device memory and its parts": memory_parts(data),
        "Training loss (mean of 10 steps) against steps, time and tokens; bold is the mean over seeds": loss(
            contenders
        ),
        "Device memory while training": memory(contenders),
        "Quality against memory and time; the line joins what nothing beats in both": pareto(data),
    }


def scores(data: dict) -> str:
    """A panel a score, a row a contender."""
    columns = {"base": data["base"]} | data["contenders"]
    figure, panels = pyplot.subplots(1, len(SCORES), figsize=(11, 0.6 + 0.45 * len(columns)), sharey=True)
    for axes, measure in zip(panels, SCORES.values(), strict=True):
        for row, (label, column) in enumerate(columns.items()):
            estimate, color = column["scores"][measure.key], _look(data, label).color
            _interval(axes, row, estimate, color)
            axes.plot(estimate["seeds"], [row + 0.22] * len(estimate["seeds"]), "|", color=color, markersize=6)
        axes.set(xlabel=measure.heading)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(columns)), [_name(label) for label in columns])
    panels[0].invert_yaxis()
    return _svg(figure)


def differences(data: dict) -> str:
    """A panel a score, a row a pair."""
    pairs = data["differences"]
    figure, panels = pyplot.subplots(1, len(SCORES), figsize=(11, 0.6 + 0.4 * len(pairs)), sharey=True)
    for axes, measure in zip(panels, SCORES.values(), strict=True):
        for row, pair in enumerate(pairs):
            estimate = pair["scores"][measure.key]
            sure = estimate["p"] < SIGNIFICANCE_LEVEL
            _interval(axes, row, estimate, _look(data, pair["first"]).color if sure else LIGHT_GREY)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=f"difference in {measure.title}")
        axes.grid(axis="x", alpha=0.3)
    names = [f"{_name(pair['first'])} - {_name(pair['second'])}" for pair in pairs]
    panels[0].set_yticks(range(len(pairs)), names)
    panels[0].invert_yaxis()
    return _svg(figure)


def _interval(axes: Axes, row: int, estimate: dict, color: str) -> None:
    """An estimate and its interval, lying in `row`."""
    axes.plot([estimate["low"], estimate["high"]], [row, row], color=color, linewidth=2)
    axes.plot(estimate["value"], row, "o", color=color, markersize=7)


def memory_parts(data: dict) -> str:
    """Stacked bars; a dash marks the peak of the whole process."""
    contenders = data["contenders"]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.5 * len(contenders)))
    for row, contender in enumerate(contenders.values()):
        left = 0.0
        for measure, color in [(one, PART_COLORS[one.key.removesuffix("_gb")]) for one in MEMORY_PARTS.values()]:
            width = max(0.0, contender["costs"][measure.key]["median"])
            axes.barh(row, width, left=left, color=color, label=measure.title if row == 0 else None)
            left += width
        process = contender["costs"]["peak_process_gb"]["median"]
        axes.plot([process, process], [row - 0.4, row + 0.4], "k--", label="peak of the process" if row == 0 else None)
    axes.set_yticks(range(len(contenders)), [_name(label) for label in contenders])
    axes.invert_yaxis()
    axes.set(xlabel="GB (10⁹ bytes), median over seeds", xlim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return _svg(figure)


def loss(contenders: list[Contender]) -> str:
    """Three panels that share the loss axis."""
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), sharey=True)
    means = [
        pandas.concat([run.curve for run in contender.runs]).groupby("step", as_index=False).mean()
        for contender in contenders
    ]
    names = {"step": "optimizer step", "seconds": "training time (s)", "tokens": "training tokens"}
    for axes, (column, title) in zip(panels, names.items(), strict=True):
        _each_run(axes, contenders, lambda run, c=column: (run.curve[c], _smooth(run.curve["loss"])), alpha=0.25)
        for contender, mean, style in zip(contenders, means, _styles(contenders), strict=True):
            color = METHODS[contender.method].color
            axes.plot(mean[column], _smooth(mean["loss"]), style, color=color, linewidth=2)
        axes.set(xlabel=title)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="nats per response token")
    panels[0].legend(handles=_handles(contenders), frameon=False)
    return _svg(figure)


def _smooth(values: pandas.Series) -> pandas.Series:
    return values.rolling(10, min_periods=5).mean()


def memory(contenders: list[Contender]) -> str:
    """From before the model is loaded to the end of training, validation included."""
    figure, axes = pyplot.subplots(figsize=(8, 4))
    _each_run(axes, contenders, lambda run: (run.memory["seconds"], run.memory["device_gb"]))
    axes.set(xlabel="seconds since the start", ylabel="GB (10⁹ bytes)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(handles=_handles(contenders), frameon=False)
    return _svg(figure)


def pareto(data: dict) -> str:
    """A column a cost, a row a score."""
    costs = (COSTS["peak_device_gb"], COSTS["train_seconds"])
    chosen = (SCORES["rouge_l"], SCORES["test_loss"])
    figure, rows = pyplot.subplots(2, 2, figsize=(11, 8), sharey="row", sharex="col", layout="constrained")
    for panels, score in zip(rows, chosen, strict=True):
        for axes, cost in zip(panels, costs, strict=True):
            _pareto_panel(axes, data, score, cost)
        panels[0].set(ylabel=score.heading)
        if score.less_is_better:
            panels[0].invert_yaxis()
    for axes, cost in zip(rows[-1], costs, strict=True):
        axes.set(xlabel=cost.heading, xlim=(0, None))
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return _svg(figure)


def _pareto_panel(axes: Axes, data: dict, score: Measure, cost: Measure) -> None:
    points = []
    methods = [contender["method"] for contender in data["contenders"].values()]
    for (label, contender), nth in zip(data["contenders"].items(), _nth_of_its_method(methods), strict=True):
        estimate = contender["scores"][score.key]
        points.append((contender["costs"][cost.key]["median"], estimate["value"]))
        reach = [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
        axes.errorbar(
            *points[-1],
            yerr=reach,
            linestyle="",
            markersize=8,
            color=_look(data, label).color,
            marker=MARKERS[nth],
            label=_name(label),
        )
    # A point is on the front if whatever is at least as good costs at least as much.
    front = [p for p in sorted(points) if all(score.better(p[1] - q[1]) or q[0] >= p[0] for q in points if q != p)]
    axes.plot(*zip(*front, strict=True), color="black", linewidth=0.8, linestyle=":", zorder=0)
    base = data["base"]["scores"][score.key]
    axes.axhspan(base["low"], base["high"], color=BASE.color, alpha=0.12, linewidth=0)
    axes.axhline(base["value"], color=BASE.color, linewidth=1, label=BASE.label)
    axes.grid(alpha=0.3)


def _each_run(
    axes: Axes,
    contenders: list[Contender],
    points: Callable[..., tuple[pandas.Series, pandas.Series]],
    alpha: float = 0.8,
) -> None:
    for contender, style in zip(contenders, _styles(contenders), strict=True):
        for run in contender.runs:
            axes.plot(*points(run), style, color=METHODS[contender.method].color, linewidth=1, alpha=alpha)


def _styles(contenders: list[Contender]) -> list[LineStyleType]:
    return [STYLES[nth] for nth in _nth_of_its_method([contender.method for contender in contenders])]


def _nth_of_its_method(methods: list[str]) -> list[int]:
    return [methods[:place].count(method) % len(STYLES) for place, method in enumerate(methods)]


def _handles(contenders: list[Contender]) -> list[Line2D]:
    return [
        Line2D([], [], color=METHODS[contender.method].color, linestyle=style, label=_name(contender.label))
        for contender, style in zip(contenders, _styles(contenders), strict=True)
    ]


def _look(data: dict, label: str) -> Look:
    return BASE if label == "base" else METHODS[data["contenders"][label]["method"]]


def _name(label: str) -> str:
    look = BASE if label == "base" else METHODS.get(label)
    return look.label if look else label


def _svg(figure: Figure) -> str:
    return svg(figure, "comparison", bbox_inches="tight")


def picture(data: dict, page: str) -> str:
    """An SVG for a `page` that is 'light' or 'dark', the same bytes for the same data.

    Gains are paired differences with their 95% intervals, which are much narrower than a score's own: the test
    examples differ more from each other than the methods do.
    """
    style: dict[Any, Any] = {
        key: INK[page] for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    }
    with matplotlib.rc_context(style | {"font.size": 11}):
        figure, panels = pyplot.subplots(1, len(DRAWN), figsize=(10, 4), layout="constrained")
        for axes, score in zip(panels, DRAWN, strict=True):
            _gain_panel(axes, data, score, INK[page])
        return svg(figure, "picture", transparent=True)


def _gain_panel(axes: Axes, data: dict, score: str, ink: str) -> None:
    measure, cost = SCORES[score], COSTS["peak_device_gb"]
    sign = -1 if measure.less_is_better else 1
    for pair in data["differences"]:
        if pair["second"] != "base":
            continue
        column, gain = data["contenders"][pair["first"]], pair["scores"][score]
        x, y = column["costs"][cost.key], sign * gain["value"]
        low, high = sorted(sign * gain[end] for end in ("low", "high"))
        across = [[x["median"] - x["least"]], [x["most"] - x["median"]]]
        color = METHODS[column["method"]].color
        axes.errorbar(
            x["median"], y, xerr=across, yerr=[[y - low], [high - y]], fmt="o", color=color, markersize=9, capsize=3
        )
        axes.annotate(name(pair["first"]), (x["median"], y), (9, 7), textcoords="offset points", color=ink)
    axes.axhline(0, color=ink, linewidth=0.8, linestyle=":")
    axes.annotate(
        "the base model", (1, 0), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
    )
    axes.set(xlim=(0, None), xlabel=cost.heading, ylabel=f"gain in {in_sentence(measure)} ({measure.unit})")
