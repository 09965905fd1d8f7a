"""Search each method's learning rate and epochs by the validation loss, as a queue of DVC experiments."""

from pathlib import Path

from finetune import cli, files, report, sweep

RESULTS = Path("benchmarks/results/sweep.json")


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials to run at a time (default: 1)")
    args = parser.parse_args()

    losses = sweep.search(lambda trials: sweep.run_experiments(trials, args.jobs), sweep.read_experiments)

    found = sweep.as_data(losses)
    files.write_json(RESULTS, found)
    report.put_in_readme("sweep", sweep.markdown(found), Path("README.md"))
    print(sweep.markdown(found))


cli.run(main)
