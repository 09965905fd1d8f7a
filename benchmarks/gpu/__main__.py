"""What only a GPU can show, part by part: the CUDA tests, what training costs, the largest model in 8 GB, the kernels.

    python -m benchmarks.gpu --minutes 10

Each measurement is written when it is done, and the next call continues after the last. Needs no network, and no package
but torch, transformers, peft, accelerate and pytest; qlora wants bitsandbytes, and what else isn't installed is skipped,
which is said. docs/distributed.md has the whole.
"""

import argparse
import importlib
from pathlib import Path

from finetune import cli
from finetune.comparison import generated
from finetune.errors import UserError

from . import checks, tables
from .pack import pack
from .results import Budget, Outcome, Results
from .worker import PARTS, Worker

DEFAULT = Path("benchmarks/results/gpu")
ALL = ("tests", *PARTS)


def main() -> None:
    parser = cli.parser(__doc__, prog="python -m benchmarks.gpu", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=ALL, action="append", help="one part (default: all in turn)")
    parser.add_argument("--minutes", type=_minutes, default=60.0, help="time to spend (default: 60)")
    parser.add_argument("--out", type=cli.folder, metavar="DIR", help=f"the results' folder (default: {DEFAULT})")
    parser.add_argument("--tiny", action="store_true", help="try the kit itself on tiny models, on any machine")
    parser.add_argument(
        "--pack",
        type=cli.folder,
        metavar="DIR",
        help="measure nothing: gather the wheels that a machine without a network lacks",
    )
    parser.add_argument(
        "--python", default="3.12", metavar="X.Y", help="with --pack: that machine's Python (default: 3.12)"
    )
    args = parser.parse_args()
    if args.pack:
        pack(args.pack, args.python)
        return
    if args.tiny and (args.out or DEFAULT) == DEFAULT:
        raise UserError(f"--tiny: measures nothing that belongs in {DEFAULT}; give another folder as --out")
    measure(args.part or ALL, args.out or DEFAULT, Budget(args.minutes), args.tiny)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 10**4:
        raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, got {text!r}")
    return minutes


def measure(parts: list[str] | tuple[str, ...], out: Path, budget: Budget, tiny: bool) -> None:
    """Measure what isn't measured yet. Raises UserError if there is no GPU, or if a measurement fails."""
    worker = Worker(tiny)
    try:
        machine = worker.machine()
        if "capability" not in machine and not tiny:
            raise UserError("no CUDA device is found here; `--tiny --out DIR` tries the kit itself on a CPU")
        failures = []
        for part in parts:
            results = Results(out, part, machine)
            finished = (
                checks.run(results, budget, tiny) if part == "tests" else _part(part, results, worker, budget, tiny)
            )
            failures += results.failures
            print(
                f"{part}: {'all done' if finished else 'time is over; rerun the same command to continue'}", flush=True
            )
    finally:
        worker.close()
    if out == DEFAULT:
        generated.put("gpu", tables.markdown(out))
    if failures:
        raise UserError(f"{len(failures)} of the measurements failed, first {failures[0]}")


def _part(part: str, results: Results, worker: Worker, budget: Budget, tiny: bool) -> bool:
    """Measure a part's next keys while there is time; whether all are done."""
    module = importlib.import_module(f".{part}", __package__)
    while key := module.next_key(results.done, tiny):
        outcome = worker.ask(part, key, budget.left()) if budget.left() > 0 else None
        if outcome is None:
            return False
        results.put(key, outcome)
        print(f"{part}: {key}: {_shown(outcome)}", flush=True)
    return True


def _shown(outcome: Outcome) -> str:
    return ", ".join(f"{name} {value}" for name, value in outcome.items())


if __name__ == "__main__":
    cli.run(main)
