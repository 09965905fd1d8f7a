"""How long the whole pipeline takes in a fresh clone, after the installs, stage by stage.

    python benchmarks/pipeline.py

clones this repository's last commit into a temporary folder, runs `dvc repro` there with an empty cache, prints the
table, puts it into benchmarks/README.md and writes benchmarks/results/pipeline.json. Takes about ten minutes on 2 cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune import cli, files, places
from finetune.comparison import generated
from finetune.errors import UserError

ROOT = Path(__file__).parents[1]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

    from finetune import device

    with tempfile.TemporaryDirectory() as folder:
        clone = clone_of_last_commit(Path(folder) / "clone")
        seconds = stage_seconds(clone, "repro")
        facts = files.read_json(clone / places.METRICS / "data.json")
    results = {
        "seconds": seconds,
        "records": {split: facts[f"{split}_records"] for split in ("train", "validation", "test")},
        "hardware": device.describe(),
        "versions": device.versions(),
    }
    files.write_json(places.RESULTS / "pipeline.json", results)
    generated.put("pipeline", markdown(results))
    print(markdown(results))


def clone_of_last_commit(folder: Path) -> Path:
    """A clone of this repository in the new folder `folder`."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def stage_seconds(clone: Path, *words: str, **variables: str) -> dict[str, float]:
    """Seconds of each stage that `dvc words` runs in `clone`, with `variables` in its environment. Raises UserError if
    one fails."""
    seconds: dict[str, float] = {}
    running, started = "dvc", time.perf_counter()  # before the first stage DVC reads its files
    # Stages call `python`: this one, with the clone's own code, which comes before an installed package's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    command = [sys.executable, "-m", "dvc", *words]
    with subprocess.Popen(
        command, cwd=clone, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            stage = re.match(r"Running stage '(.+)':", line)
            if stage:
                now = time.perf_counter()
                seconds[running] = now - started
                running, started = stage[1], now
    if process.returncode:
        raise UserError(f"dvc {words[0]} failed in stage {running}; its complaint stands above")
    seconds[running] = time.perf_counter() - started
    return {name: round(value, 1) for name, value in seconds.items()}


def markdown(results: dict) -> str:
    """Seconds of each stage and in all."""
    rows = [*results["seconds"].items(), ("in all", sum(results["seconds"].values()))]
    lines = ["| stage | seconds |", "|---|---:|", *(f"| {name} | {seconds:.0f} |" for name, seconds in rows)]
    records = ", ".join(f"{count} {split}" for split, count in results["records"].items())
    return "\n".join(lines) + f"\n\nRecords: {records}. {results['hardware']}; {results['versions']}."


if __name__ == "__main__":
    cli.run(main)
