"""What a process of several holds, and whether its curve is that of one: the default model, whole in each or in shards.

    python benchmarks/processes.py

needs what `dvc repro` has fetched and rounded, and nothing else running. Trains on the default data's first records in a
temporary folder, by stages/train.py. Prints the table, puts it into docs/distributed.md and writes
benchmarks/results/processes.json. Takes about 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import workers

from finetune import cli, files, places, yaml_file
from finetune.comparison import generated

ROOT = Path(__file__).parents[1]
METHODS = ("qlora", "lora", "full")
RECORDS = 160
WAYS = {"one process": (1, False), "two, each whole": (2, False), "two, in shards": (2, True)}
"""launch.processes and launch.shard."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

    from finetune import device

    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        configure(folder, 1, shard=False)
        workers.stage("prepare", folder, "--model_name", ROOT / places.BASE, "--dataset", ROOT / places.RAW)
        for method in METHODS:
            for way in WAYS:
                runs.append(train(folder, method, way))
                print(f"{method}, {way}: {runs[-1]['peaks_gb']} GB", file=sys.stderr, flush=True)
    results = {"hardware": device.describe(), "versions": device.versions(), "runs": runs}
    files.write_json(places.RESULTS / "processes.json", results)
    generated.put("processes", markdown(results))
    print(markdown(results))


def configure(folder: Path, processes: int, *, shard: bool) -> None:
    """Params.yaml of the repository, with fewer records, for so many processes."""
    params = yaml_file.read(ROOT / "params.yaml")
    params["data"]["size"] = RECORDS
    params["launch"] = {"processes": processes, "shard": shard}
    (folder / "params.yaml").write_text(yaml_file.text(params))


def train(folder: Path, method: str, way: str) -> dict:
    """Train in one of `WAYS`, and read what it came to."""
    processes, shard = WAYS[way]
    configure(folder, processes, shard=shard)
    base = places.BASE_4BIT if method == "qlora" else places.BASE
    workers.stage("train", folder, "--method", method, "--model_name", ROOT / base)
    metrics, facts = (json.loads((folder / f"metrics/{name}.json").read_text()) for name in ("train", "train.facts"))
    with (folder / "plots" / places.CURVES / "train/loss.tsv").open() as table:
        losses = [float(row["loss"]) for row in csv.DictReader(table, delimiter="\t")]
    return {
        "method": method,
        "way": way,
        "peaks_gb": facts.get("peak_device_gb_by_process", [metrics["peak_device_gb"]]),
        "held_gb": round(sum(facts[f"{part}_gb"] for part in ("weights", "adapters", "gradients", "optimizer")), 3),
        "tokens_per_second": metrics["tokens_per_second"],
        "losses": [round(loss, 5) for loss in losses],
    }


def markdown(results: dict) -> str:
    """A line a run."""
    lines = [
        "| | | peak of a process (GB) | weights, gradients, optimizer (GB) | tokens/s | loss: furthest from one process (nats) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in results["runs"]:
        alone = next(run for run in results["runs"] if run["method"] == one["method"])
        apart = max(abs(a - b) for a, b in zip(one["losses"], alone["losses"], strict=True))
        peaks = ", ".join(f"{peak:.2f}" for peak in one["peaks_gb"])
        lines.append(
            f"| {one['method']} | {one['way']} | {peaks} | {one['held_gb']:.2f} | {one['tokens_per_second']:.0f} | "
            f"{'-' if one is alone else f'{apart:.4f}'} |"
        )
    return "\n".join([*lines, "", f"{results['hardware']}; {results['versions']}."])


if __name__ == "__main__":
    cli.run(main)
