"""Compare DVC experiments, and search for settings by a queue of them; what is committed of the results is written here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, places
from finetune.comparison import generated

if TYPE_CHECKING:
    from finetune.experiments.sweep import Losses

PICTURES = Path("docs/images")


def compare(arguments: Sequence[str] | None = None) -> None:
    """Compare DVC experiments, or show the last run: scores with intervals, costs, and a verdict in words."""
    parser = cli.parser(compare.__doc__, prog="finetune compare")
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help="experiments (* and ? as in a shell), branches, tags or commits; none: the last run",
    )
    parser.add_argument("--out_dir", type=cli.folder, default=places.PLOTS, metavar="DIR", help="where the report goes")
    parser.add_argument(
        "--publish", action="store_true", help="also write the committed results, the documents' tables and the picture"
    )
    args = parser.parse_args(arguments)

    from finetune.comparison import contenders, html_report, tables
    from finetune.comparison.compare import compare as compare_groups
    from finetune.comparison.tables import summary
    from finetune.experiments import runs

    compared = contenders.group(runs.find(args.experiments) if args.experiments else [runs.workspace()])
    data = compare_groups(compared)
    report, html = tables.report(data), html_report.html(compared, data)

    files.write_text(args.out_dir / "comparison.md", f"{report}\n")
    files.write_text(args.out_dir / "comparison.html", html)
    if args.publish:
        _publish_comparison(data)
    print(f"{summary(data)}\n\nReport: {args.out_dir / 'comparison.html'} (as text: comparison.md)")


def _publish_comparison(data: dict) -> None:
    """Write the committed figures of a comparison, the documents' tables, and the front page's picture."""
    from finetune.comparison.charts import picture
    from finetune.comparison.tables import report, summary

    files.write_json(places.RESULTS / "comparison.json", data)
    generated.put("comparison", report(data))
    generated.put("summary", summary(data))
    for page in ("light", "dark"):
        files.write_text(PICTURES / f"gain-{page}.svg", picture(data, page))


def sweep(arguments: Sequence[str] | None = None) -> None:
    """Search each method's learning rate and epochs by the validation loss, as a queue of DVC experiments."""
    parser = cli.parser(sweep.__doc__, prog="finetune sweep")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials to run at a time (default: 1)")
    args = parser.parse_args(arguments)

    from finetune.experiments.sweep import read_experiments, run_experiments, search

    publish_sweep(search(lambda trials: run_experiments(trials, args.jobs), read_experiments))


def publish_sweep(losses: Losses) -> None:
    """Write and print the results of the search."""
    from finetune.experiments.sweep import as_data, markdown

    results = as_data(losses)
    files.write_json(places.RESULTS / "sweep.json", results)
    generated.put("sweep", markdown(results))
    print(markdown(results))
