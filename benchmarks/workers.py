"""Run a benchmark's worker in a process of its own, and read the JSON line that it ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

from finetune.errors import UserError


def run(script: str, *arguments: object) -> dict:
    """The last line that `benchmarks/<script>` prints. Raises UserError with its last complaint if it fails."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        name = " ".join(map(str, arguments))
        raise UserError(f"{script} {name}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def stage(name: str, folder: Path, *flags: object) -> None:
    """Run stages/<name>.py in `folder`, in a process of its own. Raises UserError with its last words if it fails."""
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "stages" / f"{name}.py"), *map(str, flags)]
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
