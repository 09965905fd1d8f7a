"""The memory and time that `finetune plan` estimates, and those that training takes, over families, methods and settings.

    python benchmarks/plan.py            # memory
    python benchmarks/plan.py --time     # the time of an epoch, with nothing else running

needs a finished `dvc repro`. Each configuration is trained for three steps by the train stage, in a process of its own.
Prints the tables and puts them into docs/plan.md; writes benchmarks/results/plan.json after each configuration, and takes
from it what is measured already unless --again is given. Memory takes about 20 minutes on 2 cores, time 10.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from plan_run import PROMPT, SHAPES, Configuration, config_of, measure, settings

from finetune import cli, files, params, places, yaml_file
from finetune.comparison import generated
from finetune.methods import METHODS

SMALL, LARGER = "SmolLM2-135M", "SmolLM2-360M"
GPT, GPT_2, QWEN_2, QWEN_3 = "DistilGPT-2", "GPT-2", "Qwen2.5-0.5B", "Qwen3-0.6B"
LONG: dict[str, Any] = {"length": 512, "tokens": 2048}
AGAIN: dict[str, Any] = {"checkpointing": True}

CONFIGURATIONS = [
    *(Configuration(SMALL, method) for method in METHODS),
    # Those of benchmarks/scale.py.
    *(Configuration(SMALL, "qlora", length=length, batch_size=1) for length in (256, 512, 1024, 2048, 4096)),
    Configuration(SMALL, "qlora", batch_size=16),
    *(Configuration(SMALL, "qlora", rank=rank) for rank in (4, 64)),
    Configuration(SMALL, "lora", rank=64),
    Configuration(SMALL, "lora", **LONG),
    Configuration(SMALL, "full", length=2048, batch_size=1),
    *(Configuration(SMALL, method, **LONG, **AGAIN) for method in ("qlora", "lora", "full")),
    *(Configuration(LARGER, method) for method in ("qlora", "lora")),
    *(Configuration(GPT, method) for method in ("qlora", "lora", "full")),
    Configuration(GPT, "lora", rank=64),
    Configuration(GPT, "qlora", length=1024, batch_size=1),
    *(Configuration(GPT, method, **LONG, **AGAIN) for method in ("qlora", "full")),
    Configuration(GPT_2, "qlora"),
    Configuration(GPT_2, "lora", **LONG, **AGAIN),
    *(Configuration(QWEN_2, method) for method in ("qlora", "lora")),
    Configuration(QWEN_2, "qlora", length=2048, batch_size=1, **AGAIN),
    Configuration(QWEN_2, "full", layers=2),
    *(Configuration(QWEN_3, method, layers=14) for method in ("qlora", "lora")),
    Configuration(QWEN_3, "qlora", length=1024, batch_size=1, layers=14, **AGAIN),
    Configuration(QWEN_3, "full", layers=2),
]


TIMED = [Configuration(model, method) for model in (SMALL, GPT) for method in ("qlora", "lora", "full")]
RECORDS = 96
"""Of the prepared data, over which time is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="measure time instead of memory")
    parser.add_argument("--again", action="store_true", help="measure also what is measured already")
    parser.add_argument("--model", choices=list(SHAPES), help="only the configurations of this model")
    args = parser.parse_args()

    from finetune import device

    path = places.RESULTS / "plan.json"
    results: dict[str, Any] = files.read_json(path) if path.exists() else {"memory": {}, "time": {}}
    kind, take = ("time", time_of) if args.time else ("memory", memory_of)
    wanted = [one for one in (TIMED if args.time else CONFIGURATIONS) if args.model in (None, one.model)]
    if not args.again:
        wanted = [one for one in wanted if one.name not in results[kind]]
    for _, group in groupby(wanted, key=lambda one: (one.model, one.layers)):
        with tempfile.TemporaryDirectory() as scratch:
            for one in group:
                results[kind][one.name] = take(one, Path(scratch))
                results[kind] = ordered(results[kind])
                results |= {f"{kind}_hardware": device.describe(), "versions": device.versions()}
                files.write_json(path, results)
                print(f"{one.name}: {results[kind][one.name]}", file=sys.stderr, flush=True)
    for one in CONFIGURATIONS if not args.time else ():  # what is measured stays, what is planned is renewed
        if one.name in results["memory"]:
            results["memory"][one.name] |= planned(one)
    results["default"] = of_default_runs()
    files.write_json(path, results)
    generated.put("plan", markdown(results))
    print(markdown(results))


def ordered(rows: dict[str, Any]) -> dict[str, Any]:
    """As they stand above, without what is no longer there."""
    names = [one.name for one in (*CONFIGURATIONS, *TIMED)]
    return {name: rows[name] for name in names if name in rows}


def memory_of(one: Configuration, folder: Path) -> dict[str, float]:
    """The peak that the train stage measures."""
    return {"measured_gb": measure(one, folder)["peak_device_gb"]} | planned(one)


def planned(one: Configuration) -> dict[str, float]:
    """The planner's estimate of the peak, from the configuration's params and its records' lengths."""
    from finetune.planner.records import TrainingRecords

    records = TrainingRecords(tuple(one.lengths), 1 - PROMPT, known=True)
    return {"planned_gb": planned_peak(config_of(one), params_of(one), records)}


def params_of(one: Configuration) -> params.Params:
    """Its params.yaml, read as a stage reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml_file.text(settings(one)))
        file.flush()
        return params.load(path=Path(file.name))


def planned_peak(config: Any, p: params.Params, records: Any) -> float:
    """The planned peak in GB."""
    from finetune.planner.devices import here
    from finetune.planner.memory import model_sizes, parts_at_peak
    from finetune.planner.records import largest_micro_batch

    sizes = model_sizes(config, METHODS[p.method], p, here())
    return round(parts_at_peak(sizes, p.train, largest_micro_batch(records, p.train)).total / 1e9, 3)


def of_default_runs() -> dict[str, dict[str, float]]:
    """What the committed runs of the race took, planned from the prepared data: the shipped model whole, by params.yaml."""
    from finetune.models.base import Base
    from finetune.planner.records import planned_records

    p, race = params.load(), files.read_json(places.RESULTS / "comparison.json")
    records, config = planned_records(p, places.PREPARED), Base(places.BASE).config
    return {
        name: {
            "measured_gb": one["costs"]["peak_device_gb"]["median"],
            "planned_gb": planned_peak(config, replace(p, method=one["method"]), records),
        }
        for name, one in race["contenders"].items()
    }


def time_of(one: Configuration, folder: Path) -> dict[str, float]:
    """Seconds of an epoch over records of the prepared data: as the train stage measures them, and as planned."""
    from finetune import device
    from finetune.planner.epoch_time import epoch_seconds
    from finetune.planner.records import planned_records

    found = measure(one, folder, records=RECORDS)
    p = params_of(one)
    records = planned_records(p, folder / places.PREPARED)
    seconds = epoch_seconds(config_of(one), METHODS[one.method], p, records, device.compute_dtype())
    return {"measured_seconds": found["epoch_seconds"], "planned_seconds": round(seconds, 1)}


def markdown(results: dict) -> str:
    """Planned and measured, and by how much the plan was off."""
    default = {f"default run: {name}": row for name, row in results["default"].items()}
    memory = rows(results["memory"] | default, "gb", ".3f")
    errors = [abs(error(row, "gb")) for row in (results["memory"] | default).values()]
    text = (
        f"{len(errors)} configurations: off by {median(errors):.1%} at the median, by {max(errors):.1%} at most. "
        f"{results['memory_hardware']}; {results['versions']}. The default runs are those of the race "
        f"(docs/results.md), made apart from this."
    )
    parts = ["Peak above imports, GB:", memory, text]
    if results["time"]:
        parts += ["Seconds of an epoch:", rows(results["time"], "seconds", ".1f"), f"{results['time_hardware']}."]
    return "\n\n".join(parts)


def rows(table: dict[str, dict[str, float]], unit: str, form: str) -> str:
    lines = ["| configuration | planned | measured | error |", "|---|---:|---:|---:|"]
    for name, row in table.items():
        planned_, measured = row[f"planned_{unit}"], row[f"measured_{unit}"]
        lines.append(f"| {name} | {planned_:{form}} | {measured:{form}} | {error(row, unit):+.1%} |")
    return "\n".join(lines)


def error(row: dict[str, float], unit: str) -> float:
    """Of the plan, as a share of what was measured."""
    return row[f"planned_{unit}"] / row[f"measured_{unit}"] - 1


if __name__ == "__main__":
    cli.run(main)
