"""What fine-tuning costs: ours, TRL and the ordinary recipe in turn, each run in a process of its own.

    python benchmarks/cost.py

needs the extra `benchmark` (`pip install --constraint constraints.txt --editable '.[benchmark]'`) and a finished
`dvc repro`. Prints the table and puts it into benchmarks/README.md; writes every run to benchmarks/results/cost.json and draws
cost.png. Takes about 25 minutes on 2 cores.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import workers
from contenders import CONTENDERS

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs (default: 3)")
    parser.add_argument("--records", type=int, default=32, help="training records, each seen once (default: 32)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a record at most (default: 256)")
    args = parser.parse_args()
    for name in ("rounds", "records", "max_length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: must be at least 1, got {getattr(args, name)}")

    rounds = [one_round(turn, args) for turn in range(args.rounds)]

    from finetune import device

    results = {
        "records": args.records,
        "max_length": args.max_length,
        "hardware": device.describe(),
        "versions": device.versions(),
        "rounds": rounds,
    }
    files.write_json(places.RESULTS / "cost.json", results)
    draw(rounds, places.RESULTS / "cost.png")
    generated.put("cost", markdown(results))
    print(markdown(results))


def markdown(results: dict) -> str:
    """The whole outcome."""
    rounds = results["rounds"]
    return "\n\n".join([runs(rounds), footnote(results)])


def one_round(turn: int, args) -> dict[str, dict]:
    """Every contender once."""
    done = {}
    for name in CONTENDERS:
        done[name] = workers.run("contenders.py", name, "--records", args.records, "--max_length", args.max_length)
        print(f"round {turn + 1}, {name}: {done[name]['tokens_per_second']} tokens/s", file=sys.stderr, flush=True)
    return done


SPEED, MEMORY = "tokens_per_second", "peak_device_gb"


def runs(rounds: list[dict]) -> str:
    """Each contender's own figures, as Markdown."""
    lines = ["| | tokens/s | peak above imports (GB) | held-out loss |", "|---|---:|---:|---:|"]
    for name in rounds[0]:
        speed, memory, loss = ([one[name][key] for one in rounds] for key in (SPEED, MEMORY, "held_out_loss"))
        lines.append(f"| {name} | {spread(speed, '.0f')} | {spread(memory, '.2f')} | {median(loss):.3f} |")
    return "\n".join(lines)


def footnote(results: dict) -> str:
    one = results["rounds"][0]["ours qlora"]
    rate = median(one["ours qlora"]["matrix_gflops"] for one in results["rounds"])
    return (
        f"{results['records']} records of at most {results['max_length']} tokens ({one['tokens']} tokens, padding not "
        f"counted), {len(results['rounds'])} rounds in which the contenders took turns; matrix products at {rate:.0f} "
        f"GFLOP/s. {results['hardware']}; "
        f"{results['versions']}, trl {one['trl']}."
    )


def spread(values: list[float], form: str) -> str:
    """'median (least to most)'."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def draw(rounds: list[dict], target: Path) -> None:
    """Speed and memory as bars over the rounds, and the training losses of the first round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(rounds[0])
    figure, (speed, memory, losses) = pyplot.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    for axes, key, title, unit in (
        (speed, SPEED, "Training speed", "tokens per second (padding not counted)"),
        (memory, MEMORY, "Peak memory above imports", "GB (10⁹ bytes)"),
    ):
        values = [[one[name][key] for one in rounds] for name in names]
        middle = [median(each) for each in values]
        errors = [[median(v) - min(v) for v in values], [max(v) - median(v) for v in values]]
        axes.barh(names, middle, xerr=errors, color=[CONTENDERS[name].color for name in names], capsize=3)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=unit)
    for place, name in enumerate(names):
        curve = rounds[0][name]["losses"]
        losses.plot(
            range(1, len(curve) + 1),
            curve,
            color=CONTENDERS[name].color,
            label=name,
            linewidth=1.2 * (len(names) - place),
        )
    losses.set(
        title="Training loss (equal where lines lie on each other)",
        xlabel="optimizer step",
        ylabel="nats per response token",
    )
    losses.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    cli.run(main)
