"""Run a stage in this process, as `python -m stages.<name>` would, and say what it cost (for bigdata.py).

    python benchmarks/bigdata_stage.py FOLDER NAME ARGUMENTS

FOLDER is the workspace. The last line is JSON: seconds, cpu_seconds, peak_gb (the resident set at its largest) and
private_gb (the part of it that isn't a mapped file, at its largest; the system takes back pages of files when memory is
short). Needs Linux. `train` goes through all its data, but not through the model: its passes are left out, because they
would take days and no data would be held by them.
"""

import json
import os
import runpy
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

GB = 1e9
INTERVAL = 0.1


def main() -> None:
    folder, name, *arguments = sys.argv[1:]
    os.chdir(folder)
    if name == "train":
        _without_the_models_passes()
    sys.argv = [name, *arguments]
    private, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            private[0] = max(private[0], _status_gb("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    try:
        runpy.run_module(f"stages.{name}", run_name="__main__")
    finally:
        done.set()
        watcher.join()
    cost = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": _status_gb("VmHWM"),
        "private_gb": private[0],
    }
    print(json.dumps({key: round(value, 3) for key, value in cost.items()}))


def _status_gb(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024 / GB


def _without_the_models_passes() -> None:
    """Give the trainer losses that cost nothing: every batch is still made, logged, and followed by a step."""
    import torch

    from finetune.kernels.loss import SequenceLoss
    from finetune.training import shares, trainer

    def some_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return next(p for p in model.parameters() if p.requires_grad).float().mean()

    def some_losses(model: torch.nn.Module, batch: dict[str, torch.Tensor], count: int) -> list[SequenceLoss]:
        return [SequenceLoss(1.0, 1)] * count

    trainer.response_loss = some_loss
    shares.losses_of = some_losses


if __name__ == "__main__":
    main()
