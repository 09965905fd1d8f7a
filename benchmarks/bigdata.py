"""Time and memory of fetch, prepare and train's data at 1,000, 52,000 and 520,000 records.

    python benchmarks/bigdata.py

needs models/base and data/raw (`dvc repro fetch`) and Linux. Each stage runs in a process of its own (bigdata_stage.py), in
a temporary workspace, on a synthetic set (synthetic.py) and a random model of 0.4 million parameters with the base model's
tokenizer. Writes benchmarks/results/bigdata.json and the table of benchmarks/README.md. Takes a quarter of an hour on two
cores, and 4 GB of the temporary folder's disk.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import workers

from finetune import cli, files, places, yaml_file
from finetune.comparison import generated
from finetune.models.base import Base

RECORDS = (1_000, 52_000, 520_000)
SAMPLE = 985
FORMS = (".jsonl", ".csv", ".parquet")
FORMS_RECORDS = 52_000
SHAPE = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
SHAPE |= {"num_key_value_heads": 1, "head_dim": 8}
BATCH = 64
"""Sequences per batch: with the default of 4 Trainer's own work at each step would take most of the time."""

LINES = {
    "fetch": "fetch",
    "prepare": "prepare, all records",
    "sample": f"prepare, a sample of {SAMPLE}",
    "train": "train, an epoch without the model's passes",
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _random_model(folder / "model")
        points = [point for count in RECORDS for point in _points(folder, count)]
        points += [_form(folder, suffix) for suffix in FORMS]

    from finetune import device

    results = {"hardware": device.describe(), "versions": device.versions(), "points": points}
    files.write_json(places.RESULTS / "bigdata.json", results)
    generated.put("bigdata", markdown(results))
    print(markdown(results))


def _random_model(folder: Path) -> None:
    """A trivially small model with the base model's vocabulary and tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = Base.named(None)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.folder, **SHAPE)).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def _points(scratch: Path, count: int) -> list[dict]:
    """What each stage costs on `count` records in a JSON list."""
    workspace, source = scratch / "workspace", scratch / "set.json"
    workspace.mkdir()
    _write_set(source, count)
    _write_params(workspace, count)
    model = ("--model_name", scratch / "model")
    costs = [
        _cost(workspace, "fetch", count, "fetch", "data", "--dataset", source),
        _cost(workspace, "sample", count, "prepare", *model, "--size", SAMPLE, "--out_dir", "sample"),
        _cost(workspace, "prepare", count, "prepare", *model),
        _cost(workspace, "train", count, "train", *model, "--method", "full"),
    ]
    shutil.rmtree(workspace)
    source.unlink()
    return costs


def _form(scratch: Path, suffix: str) -> dict:
    """What it costs to read the set in another form."""
    workspace, source = scratch / "workspace", scratch / f"set{suffix}"
    workspace.mkdir()
    _write_set(source, FORMS_RECORDS)
    _write_params(workspace, SAMPLE)
    cost = _cost(workspace, suffix, FORMS_RECORDS, "prepare", "--model_name", scratch / "model", "--dataset", source)
    shutil.rmtree(workspace)
    source.unlink()
    return cost


def _write_set(path: Path, count: int) -> None:
    # In a process of its own, since what is started from a large one may count its memory as theirs.
    workers.run("synthetic.py", path, count)


def _write_params(workspace: Path, size: int) -> None:
    """The shipped params.yaml, with all records and batches of `BATCH`."""
    params = yaml_file.read(Path("params.yaml"))
    params["data"] |= {"size": size}
    params["train"] |= {"batch_size": BATCH}
    yaml_file.write(workspace / "params.yaml", params)


def _cost(workspace: Path, line: str, count: int, stage: str, *arguments: object) -> dict:
    cost = workers.run("bigdata_stage.py", workspace, stage, *arguments)
    print(f"{line}, {count} records: {cost}", file=sys.stderr, flush=True)
    return {"line": line, "records": count, **cost}


def markdown(results: dict) -> str:
    """Time and memory of each stage at each size, and what a record more costs."""
    found = {(point["line"], point["records"]): point for point in results["points"]}
    lines = [
        "| | records | seconds | CPU seconds | CPU µs a record more | peak memory (GB) | of it private (GB) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for line, title in LINES.items():
        for fewer, count in zip((None, *RECORDS), RECORDS, strict=False):
            lines.append(f"| {title} {_cells(found[line, count], found.get((line, fewer)))} |")
    for suffix in FORMS:
        lines.append(
            f"| prepare, a sample of {SAMPLE} out of `{suffix}` {_cells(found[suffix, FORMS_RECORDS], None)} |"
        )
    least, most = found["train", RECORDS[0]], found["train", RECORDS[-1]]
    added, private = (most[key] - least[key] for key in ("peak_gb", "private_gb"))
    said = f"From {RECORDS[0]:,} to {RECORDS[-1]:,} records the data add {added:.2f} GB to train's memory, {private:.2f} GB of it private."
    return "\n".join([*lines, "", f"{said} {results['hardware']}; {results['versions']}."])


def _cells(point: dict, fewer: dict | None) -> str:
    more = ""
    if fewer:
        seconds = point["cpu_seconds"] - fewer["cpu_seconds"]
        more = f"{1e6 * seconds / (point['records'] - fewer['records']):.0f}"
    times = f"{point['seconds']:.1f} | {point['cpu_seconds']:.1f}"
    return f"| {point['records']:,} | {times} | {more} | {point['peak_gb']:.2f} | {point['private_gb']:.2f}"


if __name__ == "__main__":
    cli.run(main)
