"""The front page's picture: what each method gains on the base model, against the memory it takes."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from finetune.comparison.measures import COSTS, SCORES
from finetune.comparison.verdict import in_sentence, name
from finetune.methods import METHODS

INK = {"light": "#222222", "dark": "#e6edf3"}
"""Of text and axes, for a page of each colour. The background is the page's own."""

DRAWN = ("test_loss", "rouge_l")


def picture(data: dict, page: str) -> str:
    """An SVG for a `page` that is 'light' or 'dark', the same bytes for the same data.

    Gains are paired differences with their 95% intervals, which are much narrower than a score's own: the test
    examples differ more from each other than the methods do.
    """
    style: dict[Any, Any] = {
        key: INK[page] for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    }
    with matplotlib.rc_context(style | {"svg.hashsalt": "picture", "font.size": 11}):
        figure, panels = pyplot.subplots(1, len(DRAWN), figsize=(10, 4), layout="constrained")
        for axes, score in zip(panels, DRAWN, strict=True):
            _panel(axes, data, score, INK[page])
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return file.getvalue()


def _panel(axes: Axes, data: dict, score: str, ink: str) -> None:
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
    axes.spines[["top", "right"]].set_visible(False)
