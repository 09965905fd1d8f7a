"""Run a benchmark's worker in a process of its own, and read the JSON line that it ends with."""

import json
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
