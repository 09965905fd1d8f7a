"""Real training runs, killed at random moments with all their processes, and started again by the same command.

    python benchmarks/interruptions.py [--kills 20]

clones this repository's last commit into a temporary folder, with a model of the default's form, two layers and random
weights, over the default data. Runs `dvc repro train` there for each method, first without and then with kills, and compares
all bytes of what comes out. What a snapshot costs, and how long SIGTERM takes, is measured on the default model, which
`dvc repro` has fetched. Prints the table, puts it into benchmarks/README.md and writes benchmarks/results/interruptions.json.
Takes about 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune import cli, files, places, yaml_file
from finetune.comparison import generated
from finetune.errors import UserError

ROOT = Path(__file__).parents[1]
METHODS = ("qlora", "lora", "full")
SNAPSHOT_SECONDS = 2
"""Between two snapshots: a run of this benchmark lasts half a minute."""

_TRAINS = "parameters trained, on"
"""In what a run prints before its first step."""

TIMED = re.compile(r"seconds|per_second|_gb$|energy")
"""Metrics that measure time and memory."""


@dataclass
class Outcome:
    """What the kills of one method's runs came to."""

    method: str
    steps: int
    """Optimizer steps of a run."""
    snapshot_seconds: float
    """Of the default model, as `snapshot_gb` and `sigterm_seconds`."""
    snapshot_gb: float
    sigterm_seconds: float
    """From SIGTERM, in the midst of training, to the end of the process."""
    kills: int = 0
    runs: int = 0
    """That were killed once or more, and ended."""
    not_come_back: int = 0
    files_different: int = 0
    steps_again: list[int] = field(default_factory=list)
    """Of each kill while the model was trained: steps done after the snapshot that the next start resumed from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=cli.count, default=20, help="of each method's runs (default: %(default)s)")
    args = parser.parse_args()

    from finetune import device

    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        _clone(clone)
        outcomes = [asdict(_kill_runs(clone, method, args.kills)) for method in METHODS]
    results = {
        "outcomes": outcomes,
        "snapshot_every_seconds": SNAPSHOT_SECONDS,
        "hardware": device.describe(),
        "versions": device.versions(),
    }
    files.write_json(places.RESULTS / "interruptions.json", results)
    generated.put("interruptions", markdown(results))
    print(markdown(results))


def _clone(clone: Path) -> None:
    """A clone in which train comes next, with a small model."""
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    _save_small_model(clone / "small")
    settings = yaml_file.read(clone / "params.yaml")
    settings["model"]["source"] = "small"
    # Several, so that kills meet validations and the best weights as well.
    settings["train"]["validations"] = 4
    yaml_file.write(clone / "params.yaml", settings)
    if subprocess.run(["dvc", "repro", "prepare", "quantize"], cwd=clone, env=_environment()).returncode:
        raise UserError("`dvc repro prepare quantize` failed in the clone; what it says stands above")
    who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    subprocess.run(["git", *who, "commit", "--quiet", "--all", "--message", "ready to train"], cwd=clone, check=True)


def _save_small_model(folder: Path) -> None:
    """The default model's form and vocabulary, with two layers and random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(places.BASE)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config.update(small | {"num_key_value_heads": 2, "head_dim": 16, "layer_types": None})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(places.BASE).save_pretrained(folder)


def _environment() -> dict[str, str]:
    """Stages call `python`: this one, with the clone's own code, which comes before an installed package's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "FINETUNE_SNAPSHOT_SECONDS": str(SNAPSHOT_SECONDS)}


def _kill_runs(clone: Path, method: str, kills: int) -> Outcome:
    """Kill runs of `method` until there are so many `kills`, and let each come to its end."""
    settings = yaml_file.read(clone / "params.yaml")
    yaml_file.write(clone / "params.yaml", settings | {"method": method})
    _forget(clone)
    started = time.monotonic()
    _start(clone).communicate()
    whole = time.monotonic() - started
    expected = _bytes(clone)
    steps = files.read_json(clone / "metrics/train.facts.json")["steps"]
    outcome = Outcome(method, steps, *_costs(method))
    draw = random.Random(method)
    while outcome.kills < kills:
        _forget(clone)
        reached: int | None = None
        while True:
            running = _start(clone)
            left = kills - outcome.kills
            try:
                said = running.communicate(timeout=draw.uniform(0, whole) if left else None)[0]
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                said = running.communicate()[0]
                outcome.kills += 1
            if _TRAINS in said:
                if reached is not None:
                    outcome.steps_again.append(reached - _went_on_after(said))
                reached = _steps_made(clone)
            if running.returncode != -signal.SIGKILL:
                break
        outcome.runs += 1
        if running.returncode:
            outcome.not_come_back += 1
            print(said, file=sys.stderr)
        else:
            found = _bytes(clone)
            outcome.files_different += sum(found.get(name) != content for name, content in expected.items())
        print(
            f"{method}: {outcome.kills} kills, {outcome.files_different} files different", file=sys.stderr, flush=True
        )
    return outcome


def _costs(method: str) -> tuple[float, float, float]:
    """Of the default model's training: seconds and GB of a snapshot, and seconds from SIGTERM to the end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stages.train", "--method", method, "--out_dir", f"{folder}/out"]
        asked = {"FINETUNE_SNAPSHOT_SECONDS": "15"}
        with subprocess.Popen(
            command, cwd=ROOT, env=_environment() | asked, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as running:
            assert running.stdout is not None
            lines = (
                re.match(r"a snapshot takes ([\d.]+) s and ([\d.]+) GB; it is in (.+)", line) for line in running.stdout
            )
            seconds, size, kept = next(filter(None, lines)).groups()
            time.sleep(5)
            asked_at = time.monotonic()
            running.send_signal(signal.SIGTERM)
            running.stdout.read()
            ended = time.monotonic() - asked_at
        shutil.rmtree(ROOT / kept)
    return float(seconds), float(size), round(ended, 2)


def _start(clone: Path) -> subprocess.Popen[str]:
    """The train stage in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", "train"],
        cwd=clone,
        env=_environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _forget(clone: Path) -> None:
    """Let DVC know nothing of a run, so that the next one trains."""
    subprocess.run(["git", "checkout", "--quiet", "dvc.lock"], cwd=clone, check=True)
    shutil.rmtree(clone / ".dvc/cache/runs", ignore_errors=True)
    shutil.rmtree(clone / "models/.snapshots", ignore_errors=True)


def _went_on_after(said: str) -> int:
    found = re.search(r"resuming after step (\d+) of", said)
    return int(found[1]) if found else 0


def _steps_made(clone: Path) -> int:
    """Optimizer steps that the killed run has logged."""
    table = clone / "plots/live/plots/metrics/train/loss.tsv"
    rows = table.read_text().splitlines()[1:] if table.exists() else []
    return int(rows[-1].split("\t")[0]) if rows else 0


def _bytes(clone: Path) -> dict[str, object]:
    """Model, curves and metrics, without what measures time and memory."""
    found: dict[str, object] = {}
    for folder in ("models/tuned", "plots/live/plots/metrics/train", "plots/live/plots/metrics/validation"):
        for path in sorted((clone / folder).rglob("*")):
            if path.is_file() and not TIMED.search(path.stem):
                found[str(path.relative_to(clone))] = path.read_bytes()
    for name in ("train", "train.facts"):
        metrics = files.read_json(clone / f"metrics/{name}.json")
        found[name] = {key: value for key, value in metrics.items() if not TIMED.search(key)}
    return found


def markdown(results: dict) -> str:
    """A column for each method."""
    outcomes = results["outcomes"]
    rows = {
        "kills survived": lambda one: one["kills"],
        "runs that they were spread over": lambda one: one["runs"],
        "runs that didn't come back": lambda one: one["not_come_back"],
        "files different": lambda one: one["files_different"],
        "steps of a run": lambda one: one["steps"],
        "steps done again after a kill, median": lambda one: sorted(one["steps_again"])[len(one["steps_again"]) // 2],
        "steps done again after a kill, most": lambda one: max(one["steps_again"]),
        "seconds that a snapshot takes": lambda one: f"{one['snapshot_seconds']:.2f}",
        "seconds from SIGTERM to the end": lambda one: f"{one['sigterm_seconds']:.1f}",
        "GB that a snapshot takes": lambda one: f"{one['snapshot_gb']:.3f}",
    }
    head = ["| |" + "|".join(f" {one['method']} " for one in outcomes) + "|", "|---|" + "---:|" * len(outcomes)]
    body = [f"| {name} |" + "|".join(f" {value(one)} " for one in outcomes) + "|" for name, value in rows.items()]
    made = f"One snapshot in {results['snapshot_every_seconds']} seconds. {results['hardware']}; {results['versions']}."
    return "\n".join([*head, *body, "", made])


if __name__ == "__main__":
    cli.run(main)
