"""The pipeline under DVC for real, in a temporary clone, on a tiny random model."""

import json
import subprocess

import pytest
import yaml
from helpers import ROOT, command, files_in, write_params

STAGES = ["fetch@model", "fetch@data", "prepare", "train", "baseline", "eval", "plot"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory, tiny_models, words):
    """A clone of this repository, sources and params made small, reproduced and committed."""
    folder = tmp_path_factory.mktemp("pipeline") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    carry_over_uncommitted(folder)
    (folder / "words.json").write_text(json.dumps(words))
    write_params(folder, model={"source": str(tiny_models["llama"])}, data={"source": "words.json", "size": 40})
    (folder / "dvc.lock").unlink(missing_ok=True)
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stderr
    commit(folder, "tiny")
    return folder


def carry_over_uncommitted(folder) -> None:
    """Test what stands in the working tree, committed or not."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())


def dvc(folder, *arguments) -> subprocess.CompletedProcess:
    return command("dvc", *arguments, cwd=folder, PYTHONPATH=str(folder))


def commit(folder, message: str) -> None:
    for step in (["add", "-A"], ["commit", "--quiet", "--message", message]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *step], cwd=folder, check=True, capture_output=True
        )


def would_run(folder) -> set[str]:
    """The stages that `dvc repro` would run now, with the stages after them."""
    done = dvc(folder, "repro", "--dry")
    assert done.returncode == 0, done.stderr
    return {name for name in STAGES if f"Running stage '{name}'" in done.stdout + done.stderr}


def locked(folder) -> dict[str, dict[str, str]]:
    """stage -> output -> md5, as dvc.lock has it."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()}


def test_it_makes_everything_that_it_promises(clone):
    assert (clone / "models/tuned/adapter_model.safetensors").exists()
    for name in ("data", "base", "train", "eval"):
        assert json.loads((clone / f"metrics/{name}.json").read_text())
    for name in ("lengths", "loss", "learning_rate", "memory", "quality", "gain"):
        assert (clone / f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
    summary = command("python", "stages/compare.py", cwd=clone, PYTHONPATH=str(clone)).stdout
    for figure in ("BLEU", "ROUGE-L", "Test loss", "Peak process memory", "Time per epoch", "tokens/s"):
        assert figure in summary


def test_a_second_run_does_nothing(clone):
    done = dvc(clone, "repro")
    assert "Data and pipelines are up to date" in done.stdout + done.stderr
    assert "Running stage" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("methods.qlora.learning_rate", 0.001, {"train", "eval", "plot"}),
        ("methods.full.learning_rate", 0.001, set()),
        ("eval.max_new_tokens", 4, {"baseline", "eval", "plot"}),
        ("data.max_length", 128, {"prepare", "train", "baseline", "eval", "plot"}),
        ("seed", 1, {"train", "eval", "plot"}),
    ],
)
def test_a_changed_param_reruns_what_depends_on_it(clone, key, value, stages):
    before = (clone / "params.yaml").read_text()
    tree = yaml.safe_load(before)
    *groups, last = key.split(".")
    group = tree
    for name in groups:
        group = group[name]
    group[last] = value
    try:
        (clone / "params.yaml").write_text(yaml.safe_dump(tree))
        assert would_run(clone) == stages
    finally:
        (clone / "params.yaml").write_text(before)


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("finetune/report.py", set()),
        ("finetune/cli.py", set()),
        ("stages/infer.py", set()),
        ("stages/plot.py", {"plot"}),
        ("finetune/scoring.py", {"baseline", "eval", "plot"}),
        ("finetune/training.py", {"train", "eval", "plot"}),
    ],
)
def test_a_changed_comment_reruns_only_stages_that_use_the_module(clone, module, stages):
    before = (clone / module).read_text()
    try:
        (clone / module).write_text(before + "# a remark\n")
        assert would_run(clone) == stages
    finally:
        (clone / module).write_text(before)


def test_forced_again_it_makes_the_same_bytes(clone):
    first = locked(clone)
    quality = (clone / "metrics/eval.json").read_bytes()
    done = dvc(clone, "repro", "--force", "prepare", "train", "eval")
    assert done.returncode == 0, done.stderr
    second = locked(clone)
    for stage, outs in first.items():
        for path, md5 in outs.items():
            if path in ("models/base", "data/prepared", "models/tuned") or path.startswith("data/predictions"):
                assert second[stage][path] == md5, path
    assert (clone / "metrics/eval.json").read_bytes() == quality
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=clone, check=True)
    assert dvc(clone, "checkout", "--force").returncode == 0


def test_push_and_pull_restore_data_and_models_byte_for_byte(clone):
    assert dvc(clone, "push").returncode == 0
    second = clone.parent / "second"
    subprocess.run(["git", "clone", "--quiet", clone, second], check=True)
    done = dvc(second, "pull")
    assert done.returncode == 0, done.stderr
    for folder in ("data/raw", "data/prepared", "data/predictions", "models/base", "models/tuned"):
        assert files_in(second / folder) == files_in(clone / folder) != {}
    assert would_run(second) == set()


def test_experiments_compare_methods(clone):
    for arguments in (["-n", "qlora"], ["-n", "full", "-S", "method=full"]):
        done = dvc(clone, "exp", "run", *arguments)
        assert done.returncode == 0, done.stderr
    changed = json.loads(dvc(clone, "metrics", "diff", "qlora", "full", "--json").stdout)
    assert {"metrics/train.json", "metrics/eval.json"} <= set(changed)
    assert "trainable_parameters" in changed["metrics/train.json"]
    assert not set(changed) & {"metrics/data.json", "metrics/base.json"}

    table = command("python", "stages/compare.py", "qlora", "full", cwd=clone, PYTHONPATH=str(clone))
    assert table.returncode == 0 and "| | base | qlora | full |" in table.stdout
    unknown = command("python", "stages/compare.py", "qlora", "nobody", cwd=clone, PYTHONPATH=str(clone))
    assert unknown.returncode == 1 and "nobody: no such revision or experiment" in unknown.stderr


def test_a_failed_stage_leaves_the_last_good_results(clone):
    before = (clone / "params.yaml").read_text()
    models = files_in(clone / "models/tuned")
    try:
        (clone / "params.yaml").write_text(before.replace("method: full", "method: nonsense"))
        (clone / "params.yaml").write_text(
            (clone / "params.yaml").read_text().replace("method: qlora", "method: nonsense")
        )
        done = dvc(clone, "repro")
        assert done.returncode != 0 and "nonsense" in done.stdout + done.stderr
    finally:
        (clone / "params.yaml").write_text(before)
    assert dvc(clone, "checkout", "--force").returncode == 0
    assert files_in(clone / "models/tuned") == models
