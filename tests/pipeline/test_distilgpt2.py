"""The seed's own experiment, DistilGPT-2 on 800 Alpaca records, by the commands that docs/results.md gives: half an hour on
two cores, so `make test-slow`. A hub on loopback serves the real files, with random weights."""

import json

import hub
import hub_files
import pytest
from helpers import clone_of_the_working_tree, command, files_in

from finetune import yaml_file

RECORDS = 800
SETTINGS = ("-S", "model.source=distilgpt2", "-S", "data.source=alpaca", "-S", f"data.size={RECORDS}")


def metrics(clone) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (clone / "metrics").glob("*.json")}


@pytest.mark.slow
def test_the_seeds_experiment(tmp_path):
    clone = clone_of_the_working_tree(tmp_path / "clone")
    (model, commit), (data, data_commit) = map(hub_files.repository, ("distilgpt2", "alpaca"))
    source = hub_files.make_model(tmp_path / "distilgpt2")
    shelf = {model: {commit: source}, data: {data_commit: hub_files.make_alpaca(tmp_path / "alpaca")}}
    with hub.serve(shelf) as served:
        away = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": ""}
        done = command("dvc", "exp", "run", *SETTINGS, cwd=clone, **away)
    assert done.returncode == 0, done.stderr
    base = files_in(clone / "models/base")
    assert yaml_file.parse(base.pop("facts.yaml"))["commit"] == commit
    assert base == {name: content for name, content in files_in(source).items() if name != "README.md"}
    told = metrics(clone)
    assert told["data"]["records_read"] == 52_002
    assert sum(told["data"][f"{split}_records"] for split in ("train", "validation", "test")) == RECORDS
    adapter = json.loads((clone / "models/tuned/adapter_config.json").read_text())
    assert set(adapter["target_modules"]) == {"c_attn", "c_proj", "c_fc"}
    assert told["train.facts"]["trained_parameters"] == 1_179_648
    check_it_learns(told)

    # The hub is gone, and nobody asks it again.
    for method, parameters in (("lora", 1_179_648), ("dora", 1_221_120), ("full", 81_912_576)):
        done = command(
            "dvc", "exp", "run", *SETTINGS, "-S", f"method={method}", cwd=clone, HF_ENDPOINT="http://127.0.0.1:9"
        )
        assert done.returncode == 0, done.stderr
        assert metrics(clone)["train.facts"]["trained_parameters"] == parameters
        check_it_learns(metrics(clone))


def check_it_learns(told: dict[str, dict]) -> None:
    """From random weights it learns at least which tokens are frequent."""
    assert told["eval"]["test_loss"] < told["base"]["test_loss"] - 0.5
