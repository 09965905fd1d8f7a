"""Print the comparison table: of the last run, or of the named Git revisions or DVC experiments."""

from pathlib import Path

from finetune import cli, files, params, report

RESULTS = Path("benchmarks/results/comparison.json")


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="experiment, branch, tag or commit")
    parser.add_argument("--readme", action="store_true", help=f"also write {RESULTS} and the README's table")
    args = parser.parse_args()

    runs = {revision: report.revision_metrics(revision) for revision in args.revisions}
    data = report.comparison(runs or {params.load().method: report.workspace_metrics()})
    if args.readme:
        files.write_json(RESULTS, data)
        report.put_in_readme("comparison", report.markdown(data), Path("README.md"))
    print(report.markdown(data))


cli.run(main)
