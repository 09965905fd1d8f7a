"""The seed's experiment, DistilGPT-2 on 800 Alpaca records: what each method costs here, and what the seed claims.

    python benchmarks/distilgpt2.py [--records 800]

clones this repository's last commit into a temporary folder and runs `dvc exp run -S model.source=distilgpt2
-S data.source=alpaca -S data.size=800 -S method=... train` there for each method, with an empty cache. A hub on loopback
stands in for the Hugging Face Hub: DistilGPT-2's files with random weights, GPT-2's tokenizer, and as many records as Alpaca
has, made from the demonstration set's. Cost does not depend on the weight values; scores would mean
nothing. Prints the table, puts it into docs/results.md and writes benchmarks/results/distilgpt2.json. Takes about 20 minutes
on 2 cores and 4 GB of the temporary folder's disk.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import hub
import hub_files
from pipeline import clone_of_last_commit, stage_seconds

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.comparison.measures import COSTS, MEMORY_PARTS
from finetune.methods import METHODS

RACE = ("qlora", "lora", "full")
CLAIMS = {"qlora": {"peak_device_gb": 2, "epoch_seconds": 600}, "full": {"peak_device_gb": 6, "epoch_seconds": 1620}}
"""The seed's README: of 800 Alpaca records, on an RTX 3060 with 8 GB, full fine-tuning in FP16."""
_PARTS = {key: f"of which {part.heading}" for key, part in MEMORY_PARTS.items()}
SHOWN = (
    "peak_device_gb",
    *MEMORY_PARTS,
    "peak_process_gb",
    "epoch_seconds",
    "tokens_per_second",
    "size_gb",
    "trained_parameters",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=cli.count, default=800, help="data.size (default: %(default)s)")
    args = parser.parse_args()

    from finetune import device

    with tempfile.TemporaryDirectory() as scratch:
        results = {
            "records": args.records,
            **_runs(Path(scratch), args.records),
            "hardware": device.describe(),
            "versions": device.versions(),
        }
    files.write_json(places.RESULTS / "distilgpt2.json", results)
    generated.put("distilgpt2", markdown(results))
    print(markdown(results))


def _runs(scratch: Path, records: int) -> dict:
    """Every method once, in the clone `scratch`/clone."""
    clone = clone_of_last_commit(scratch / "clone")
    (model, commit), (data, data_commit) = map(hub_files.repository, ("distilgpt2", "alpaca"))
    shelf = {
        model: {commit: hub_files.make_model(scratch / "distilgpt2")},
        data: {data_commit: hub_files.make_alpaca(scratch / "alpaca")},
    }
    settings = {"model.source": "distilgpt2", "data.source": "alpaca", "data.size": records}
    costs: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    with hub.serve(shelf) as served:
        for method in RACE:
            words = [
                word for key, value in (settings | {"method": method}).items() for word in ("-S", f"{key}={value}")
            ]
            took = stage_seconds(
                clone,
                *("exp", "run", *words, "train"),
                HF_ENDPOINT=served.endpoint,
                HF_HOME=str(scratch / "hf"),
                HF_HUB_OFFLINE="",
            )
            seconds |= {name: took[name] for name in took if name not in ("dvc", "train")}
            costs[method] = costs_of(clone / places.METRICS)
    facts = files.read_json(clone / places.METRICS / "data.json")
    return {
        "costs": costs,
        "seconds": seconds,
        "train_records": facts["train_records"],
        "longest": facts["length_max"],
    }


def costs_of(metrics: Path) -> dict[str, float]:
    """What training cost, out of its metrics."""
    told = files.read_json(metrics / "train.json") | files.read_json(metrics / "train.facts.json")
    return {key: told[key] for key in SHOWN}


def markdown(results: dict) -> str:
    """What was measured, and what the seed claims."""
    titles = [METHODS[name].label for name in RACE]
    head = ["", *titles, *(f"{METHODS[name].label}, claimed by the seed" for name in CLAIMS)]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for key in SHOWN:
        measured = [COSTS[key].text(results["costs"][name][key]) for name in RACE]
        claimed = [f"≈ {CLAIMS[name][key]:,g}" if key in CLAIMS[name] else "-" for name in CLAIMS]
        lines.append(f"| {' | '.join([_PARTS.get(key, COSTS[key].heading), *measured, *claimed])} |")
    held = [f"{results['train_records']:,}"] * len(RACE) + ["800 or fewer"] * len(CLAIMS)
    lines.append(f"| Records in an epoch | {' | '.join(held)} |")
    lines.append(f"| On | {' | '.join([results['hardware']] * len(RACE) + ['RTX 3060, 8 GB'] * len(CLAIMS))} |")
    before = ", ".join(f"{name} {seconds:.0f}" for name, seconds in results["seconds"].items())
    return (
        "\n".join(lines)
        + "\n\n"
        + (
            f"Measured: {results['train_records']} training records of {results['records']}, at most "
            f"{results['longest']:.0f} tokens each; one run a method. Seconds of the stages before train: {before}. "
            f"{results['versions']}."
        )
    )


if __name__ == "__main__":
    cli.run(main)
