"""How memory and speed of QLoRA change with sequence length, batch, rank and model size: ours, and TRL's defaults.

    python benchmarks/scale.py

needs what benchmarks/cost.py needs. Sequences are full: every token is real and a target. Prints the table and puts it
into benchmarks/README.md; writes benchmarks/results/scale.json and scale.png. Takes about 20 minutes on 2 cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import workers
from contenders import CONTENDERS

from finetune import cli, files, places
from finetune.comparison import generated

NAMES = {name: CONTENDERS[name].color for name in ("ours qlora", "trl qlora")}
STEPS = 2

SWEEPS = {
    "sequence length (tokens), batch 1": ("max_length", [256, 512, 1024, 2048, 4096], {"batch_size": 1}),
    "batch (sequences of 256 tokens)": ("batch_size", [1, 4, 16], {"max_length": 256}),
    "rank of the adapters, batch 4 x 256": ("rank", [4, 16, 64], {"max_length": 256, "batch_size": 4}),
    "parameters (millions), batch 4 x 256": ("model", [135, 362], {"max_length": 256, "batch_size": 4}),
}
SHAPES = {
    362: {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5}
    | {"num_hidden_layers": 32, "head_dim": 64},
}
"""SmolLM2-360M's shape, with random weights: cost doesn't depend on what they are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folders = {size: random_model(Path(scratch) / str(size), shape) for size, shape in SHAPES.items()}
        points = [
            measure(name, sweep, value, folders) for sweep in SWEEPS for value in SWEEPS[sweep][1] for name in NAMES
        ]

    from finetune import device

    results = {"hardware": device.describe(), "versions": device.versions(), "points": points}
    files.write_json(places.RESULTS / "scale.json", results)
    draw(points, places.RESULTS / "scale.png")
    generated.put("scale", markdown(results))
    print(markdown(results))


def random_model(folder: Path, shape: dict[str, int]) -> Path:
    """A model of the default's family and of `shape`, written to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from finetune.models.base import Base

    config = AutoConfig.from_pretrained(Base.named(None).folder, **shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def measure(name: str, sweep: str, value: int, folders: dict[int, Path]) -> dict:
    """One contender at one point of a sweep, over STEPS optimizer steps."""
    key, _, common = SWEEPS[sweep]
    settings = common if key == "model" else common | {key: value}
    model = {"model": folders[value]} if key == "model" and value in folders else {}
    flags = [text for option, setting in (settings | model).items() for text in (f"--{option}", setting)]
    done = workers.run("contenders.py", name, "--fill", "--records", STEPS * settings["batch_size"], *flags)
    print(f"{name}, {sweep}, {value}: {done['tokens_per_second']} tokens/s", file=sys.stderr, flush=True)
    return {"name": name, "sweep": sweep, "value": value} | {
        key: done[key] for key in ("tokens_per_second", "peak_device_gb", "import_gb")
    }


def markdown(results: dict) -> str:
    """Speed and memory of both at each point."""
    points = results["points"]
    lines = ["| | | tokens/s: ours | TRL | GB above imports: ours | TRL |", "|---|---:|---:|---:|---:|---:|"]
    for sweep in SWEEPS:
        for value in SWEEPS[sweep][1]:
            ours, theirs = (
                next(p for p in points if (p["name"], p["sweep"], p["value"]) == (name, sweep, value)) for name in NAMES
            )
            speed = f"{ours['tokens_per_second']:.0f} | {theirs['tokens_per_second']:.0f}"
            memory = f"{ours['peak_device_gb']:.2f} | {theirs['peak_device_gb']:.2f}"
            lines.append(f"| {sweep} | {value} | {speed} | {memory} |")
    return "\n".join([*lines, "", f"{results['hardware']}; {results['versions']}."])


def draw(points: list[dict], target: Path) -> None:
    """A column a sweep; memory above, speed below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(SWEEPS), figsize=(16, 7), layout="constrained", sharey="row")
    for column, (sweep, (_, values, _)) in enumerate(SWEEPS.items()):
        for axes, key in zip(rows[:, column], ("peak_device_gb", "tokens_per_second"), strict=True):
            for name, color in NAMES.items():
                mine = [p[key] for p in points if (p["name"], p["sweep"]) == (name, sweep)]
                axes.plot(values, mine, "o-", color=color, label=name)
            axes.set(xscale="log", xlabel=sweep)
            axes.set_xticks(values, [str(value) for value in values])
            axes.minorticks_off()
    rows[0, 0].set(ylabel="peak above imports, GB (10⁹ bytes)", ylim=(0, None))
    rows[1, 0].set(ylabel="tokens per second", ylim=(0, None))
    rows[0, 0].legend()
    figure.suptitle("QLoRA: memory and speed against length, batch, rank and model size")
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    cli.run(main)
