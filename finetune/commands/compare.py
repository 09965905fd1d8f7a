"""Compare DVC experiments, or show the last run: scores with intervals, costs, and a verdict in words."""

from collections.abc import Sequence
from pathlib import Path

from finetune import cli, files, places
from finetune.comparison import generated

PICTURES = Path("docs/images")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report, print its short form."""
    parser = cli.parser(__doc__, prog="finetune compare")
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
    from finetune.comparison.compare import compare
    from finetune.comparison.tables import summary
    from finetune.experiments import runs

    compared = contenders.group(runs.find(args.experiments) if args.experiments else [runs.workspace()])
    data = compare(compared)
    report, html = tables.report(data), html_report.html(compared, data)

    files.write_text(args.out_dir / "comparison.md", f"{report}\n")
    files.write_text(args.out_dir / "comparison.html", html)
    if args.publish:
        publish(data)
    print(f"{summary(data)}\n\nReport: {args.out_dir / 'comparison.html'} (as text: comparison.md)")


def publish(data: dict) -> None:
    """Write what the repository says of a comparison: its figures, the documents' tables, the front page's picture."""
    from finetune.comparison.charts import picture
    from finetune.comparison.tables import report, summary

    files.write_json(places.RESULTS / "comparison.json", data)
    generated.put("comparison", report(data))
    generated.put("summary", summary(data))
    for page in ("light", "dark"):
        files.write_text(PICTURES / f"gain-{page}.svg", picture(data, page))
