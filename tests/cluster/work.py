"""The stages of a small pipeline: `python work.py data`, `python work.py train`. Its loss is least at a rate of 0.001.

With `pause` it writes what it has begun into the file of that name, and goes on when that file is gone; but only once.
Rates above 0.0018 diverge.
"""

import json
import math
import sys
import time
from pathlib import Path

from finetune import yaml_file

params = yaml_file.read(Path("params.yaml"))
settings = params["methods"][params["method"]]


def data() -> None:
    Path("data").mkdir(exist_ok=True)
    Path("data/raw").write_text("words\n")


def train() -> None:
    if params["pause"] and not Path(f"{params['pause']}.seen").exists():
        Path(f"{params['pause']}.seen").touch()
        Path(params["pause"]).touch()
        while Path(params["pause"]).exists():
            time.sleep(0.05)
    if float(settings["learning_rate"]) > 0.0018:
        print(f"error: the loss is no number at a rate of {settings['learning_rate']}", file=sys.stderr)
        sys.exit(1)
    loss = abs(math.log(float(settings["learning_rate"]) / 0.001)) + settings["epochs"]
    for folder in ("models", "metrics"):
        Path(folder).mkdir(exist_ok=True)
    Path("models/tuned").write_text(f"{Path('data/raw').read_text()}{params['method']} {params['seed']}\n")
    Path("metrics/train.json").write_text(json.dumps({"validation_loss": loss}))


{"data": data, "train": train}[sys.argv[1]]()
