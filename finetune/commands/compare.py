"""Compare DVC experiments (or the last run): scores with intervals, costs, and a verdict in words."""

from pathlib import Path

from finetune import cli, files

RESULTS = Path("benchmarks/results/comparison.json")


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help="experiments (* and ? as in a shell), branches, tags or commits; none: the last run",
    )
    parser.add_argument("--out_dir", type=Path, default=Path("plots"), metavar="DIR", help="where the report goes")
    parser.add_argument("--readme", action="store_true", help=f"also write {RESULTS} and the README's table")
    args = parser.parse_args()

    from finetune import comparison, comparison_table, page, report, runs

    found = comparison.contenders(runs.find(args.experiments) if args.experiments else [runs.workspace()])
    data = comparison.compare(found)
    table, html = comparison_table.markdown(data), page.html(found, data)

    files.write_text(args.out_dir / "comparison.md", f"{table}\n")
    files.write_text(args.out_dir / "comparison.html", html)
    if args.readme:
        files.write_json(RESULTS, data)
        report.put_in_readme("comparison", table, Path("README.md"))
    print(table)
    print(f"\nReport: {args.out_dir / 'comparison.html'}")


cli.run(main)
