"""The pipeline under DVC for real, in a temporary clone, on a tiny random model."""

import json
import subprocess

import pytest
from helpers import command, dvc, files_in, output_hashes

from finetune import yaml_file
from finetune.comparison.measures import COSTS, SCORES
from finetune.comparison.tables import SUMMARY_ROWS

PREDICTIONS = "data/predictions/tuned.jsonl"
BASELINES = ("baseline@base", "baseline@base-4bit")
STAGES = ["fetch@model", "fetch@data", "prepare", "quantize", "train", *BASELINES, "eval", "plot"]


def touched(folder) -> set[str]:
    """The stages whose own code, params or inputs have changed, so that `dvc repro` would run them first."""
    done = dvc(folder, "repro", "--dry")
    assert done.returncode == 0, done.stderr
    return {name for name in STAGES if f"Running stage '{name}'" in done.stdout + done.stderr}


def test_it_makes_everything_that_it_promises(clone):
    assert (clone / "models/tuned/adapter_model.safetensors").exists()
    for name in ("data", "base", "base-4bit", "train", "eval"):
        assert json.loads((clone / f"metrics/{name}.json").read_text())
    for name in ("lengths", "loss", "learning_rate", "memory", "quality", "gain"):
        assert (clone / f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
    shown = command("python", "-m", "finetune.commands.main", "compare", cwd=clone).stdout
    for measure in SUMMARY_ROWS:
        assert f"| {measure.heading} | " in shown
    report = (clone / "plots/comparison.md").read_text()
    for measure in (*SCORES.values(), *COSTS.values()):
        assert measure.heading in report or measure.key == "energy_kj"


def test_a_second_run_does_nothing(clone):
    done = dvc(clone, "repro")
    assert "Data and pipelines are up to date" in done.stdout + done.stderr
    assert "Running stage" not in done.stdout + done.stderr


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_learning_rate_reruns_train_and_eval_only(editable):
    params = yaml_file.read(editable / "params.yaml")
    params["methods"]["qlora"]["learning_rate"] = 0.002
    (editable / "params.yaml").write_text(yaml_file.text(params))
    done = dvc(editable, "repro")
    ran = {name for name in STAGES if f"Running stage '{name}'" in done.stdout + done.stderr}
    assert done.returncode == 0 and ran == {"train", "eval", "plot"}


@pytest.mark.parametrize(
    ("group", "key", "value", "stages"),
    [
        ("full", "learning_rate", 0.001, set()),
        ("eval", "max_new_tokens", 4, {"prepare", *BASELINES, "eval"}),
        ("quantization", "examples", 3, {"quantize"}),
        ("data", "max_length", 128, {"prepare"}),
        ("lora", "r", 2, {"train"}),
    ],
)
def test_a_changed_param_touches_only_the_stages_that_read_it(editable, group, key, value, stages):
    params = yaml_file.read(editable / "params.yaml")
    (params["methods"] if group == "full" else params)[group][key] = value
    (editable / "params.yaml").write_text(yaml_file.text(params))
    assert touched(editable) == stages


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("finetune/comparison/verdict.py", set()),
        ("finetune/cli.py", set()),
        ("stages/infer.py", set()),
        ("finetune/commands/chat.py", set()),
        ("stages/plot.py", {"plot"}),
        ("finetune/evaluation/scoring.py", {*BASELINES, "eval"}),
        ("finetune/quantization/rounding.py", {"quantize"}),
        ("finetune/training/trainer.py", {"train"}),
        ("finetune/plots.py", {"prepare", "plot"}),
    ],
)
def test_a_changed_comment_touches_only_stages_that_use_the_module(editable, module, stages):
    (editable / module).write_text((editable / module).read_text() + "# a remark\n")
    assert touched(editable) == stages


def test_forced_again_it_makes_the_same_bytes(clone):
    first, quality = output_hashes(clone), (clone / "metrics/eval.json").read_bytes()
    done = dvc(clone, "repro", "--force")
    assert done.returncode == 0, done.stderr
    second = output_hashes(clone)
    for path in (
        "models/base",
        "data/prepared",
        "models/base-4bit",
        "models/tuned",
        "data/predictions/base.jsonl",
        PREDICTIONS,
    ):
        assert second[path] == first[path], path
    assert (clone / "metrics/eval.json").read_bytes() == quality
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=clone, check=True)
    assert dvc(clone, "checkout", "--force").returncode == 0


def test_a_failed_stage_leaves_the_last_good_results(editable):
    before = files_in(editable / "models/tuned")
    edit(editable / "params.yaml", "r: 4", "r: 0")
    done = dvc(editable, "repro")
    assert done.returncode != 0 and "lora.r: must be at least 1, got 0" in done.stdout + done.stderr
    assert dvc(editable, "checkout", "--force").returncode == 0
    assert files_in(editable / "models/tuned") == before
