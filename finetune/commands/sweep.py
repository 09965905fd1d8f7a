"""Search each method's learning rate and epochs by the validation loss, as a queue of DVC experiments."""

from collections.abc import Sequence

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.experiments import sweep


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, and write the results and their table."""
    parser = cli.parser(__doc__, prog="finetune sweep")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials to run at a time (default: 1)")
    args = parser.parse_args(arguments)

    publish(sweep.search(lambda trials: sweep.run_experiments(trials, args.jobs), sweep.read_experiments))


def publish(losses: sweep.Losses) -> None:
    """Write and print what the search has found."""
    results = sweep.as_data(losses)
    files.write_json(places.RESULTS / "sweep.json", results)
    generated.put("sweep", sweep.markdown(results))
    print(sweep.markdown(results))
