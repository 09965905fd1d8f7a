"""What training costs: ours beside TRL and the ordinary recipe, alternating, each run in a process of its own.

    python benchmarks/train_cost.py --rounds 3

needs the extra `benchmark` (`pip install --constraint constraints.txt --editable '.[benchmark]'`) and a finished
`dvc repro prepare`. Writes benchmarks/results/train_cost.json and prints the table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from contenders import CONTENDERS

from finetune import cli, files
from finetune.errors import UserError

RESULTS = Path("benchmarks/results/train_cost.json")
WORKER = Path(__file__).with_name("contenders.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs (default: 3)")
    parser.add_argument("--records", default="64", help="training records, each seen once (default: 64)")
    parser.add_argument("--max_length", default="256", help="tokens of a record at most (default: 256)")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    args = parser.parse_args()
    if args.rounds < 1:
        raise UserError(f"--rounds: must be at least 1, got {args.rounds}")

    runs = []
    for turn in range(args.rounds):
        for name in args.only:
            runs.append(run(name, args.records, args.max_length))
            print(f"round {turn + 1}, {name}: {runs[-1]['tokens_per_second']} tokens/s", file=sys.stderr, flush=True)

    from finetune import hardware

    work = {"records": int(args.records), "max_length": int(args.max_length), "rounds": args.rounds}
    files.write_json(RESULTS, work | {"hardware": hardware.describe(), "versions": hardware.versions(), "runs": runs})
    print(table(runs))


def run(name: str, records: str, max_length: str) -> dict:
    """One contender's JSON line."""
    command = [sys.executable, str(WORKER), name, "--records", records, "--max_length", max_length]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(runs: list[dict]) -> str:
    """Medians over the rounds, with the least and the most, as Markdown."""
    lines = [
        "| | tokens/s | peak above imports (GB) | held-out loss |",
        "|---|---:|---:|---:|",
    ]
    for name in dict.fromkeys(one["name"] for one in runs):
        mine = [one for one in runs if one["name"] == name]
        speed = spread([one["tokens_per_second"] for one in mine], ".0f")
        memory = spread([one["peak_device_gb"] for one in mine], ".2f")
        lines.append(f"| {name} | {speed} | {memory} | {median(one['held_out_loss'] for one in mine):.3f} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """'median (least to most)'."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    cli.run(main)
