"""The files for Kubernetes and SkyPilot: whole by those engines' own rules, and their commands run a trial."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.conftest import Repository, git, ok
from helpers import ROOT, commit

from finetune import yaml_file

FILES = ROOT / "docs/cluster"
MAKEFILE = """\
setup:
\tmkdir -p .venv/bin
\tprintf '#!/bin/sh\\nexec "%s" -m finetune.commands.main "$$@"\\n' "$(PYTHON)" > .venv/bin/finetune
\tchmod +x .venv/bin/finetune
"""
"""In place of the setup that installs everything: this Python has it."""


def kubernetes_job() -> dict:
    return yaml_file.read(FILES / "kubernetes.yaml")


def test_kubernetes_accepts_the_job():
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    job = kubernetes_job()
    validator.validate(job, validator.latest_version(), strict=True)
    job["spec"]["backoffLimitPerIndexes"] = job["spec"].pop("backoffLimitPerIndex")
    with pytest.raises(validator.ValidationError, match="backoffLimitPerIndexes"):
        validator.validate(job, validator.latest_version(), strict=True)


def skypilot(file: Path) -> subprocess.CompletedProcess:
    """Have SkyPilot, which wants other versions of packages and so lives in an environment of its own, read a task."""
    script = shutil.which("sky")
    if script is None:
        pytest.skip("no `sky` on the PATH; pipx install skypilot")
    python = Path(script).read_text().splitlines()[0].removeprefix("#!")
    read = f"import sky; print(sky.Task.from_yaml({file.name!r}))"
    return subprocess.run([python, "-c", read], cwd=file.parent, capture_output=True, text=True)


@pytest.mark.slow
def test_skypilot_accepts_the_task(tmp_path):
    (tmp_path / "trials.json").write_text('{"trials": []}')
    shutil.copy(FILES / "skypilot.yaml", tmp_path)
    assert "Task<name=finetune>" in ok(skypilot(tmp_path / "skypilot.yaml"))
    task = yaml_file.read(FILES / "skypilot.yaml")
    (tmp_path / "spoiled.yaml").write_text(yaml_file.text(task | {"resorces": task.pop("resources")}))
    refused = skypilot(tmp_path / "spoiled.yaml")
    assert refused.returncode != 0 and "resorces" in refused.stderr


def run_by(commands: str, repository: Repository, tmp_path: Path, **names: str) -> str:
    """Run an engine's `commands` as it does, in a folder and a home of their own, with its variables `names`."""
    (repository.folder / "Makefile").write_text(MAKEFILE)
    commit(repository.folder, "setup")
    git(repository.folder, "push", "--quiet", "origin", "HEAD")
    repository.queue("lora", "seed=1,2")
    ok(repository.cluster("write", tmp_path / "trials.json"))
    variables = {
        "HOME": str(tmp_path),
        "REPOSITORY": git(repository.folder, "remote", "get-url", "origin").strip(),
        "TRIALS": str(tmp_path / "trials.json"),
        "FOLDER": str(tmp_path / "trials"),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "GIT_TOKEN": "secret",
    }
    environment = os.environ | variables | names
    return ok(subprocess.run(["bash", "-euc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True))


@pytest.mark.slow
def test_what_a_pod_runs_is_a_trial(repository, tmp_path):
    (container,) = kubernetes_job()["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-euc"]
    (commands,) = container["args"]
    names = {one["name"] for one in container["env"]} | {"GIT_TOKEN", "JOB_COMPLETION_INDEX"}
    assert set(re.findall(r"\$([A-Z_]+)", commands)) == names
    assert "trial lora-2" in run_by(commands, repository, tmp_path, JOB_COMPLETION_INDEX="1")
    assert "not finished: lora-1" in ok(repository.cluster("collect"))


@pytest.mark.slow
def test_what_a_skypilot_job_runs_is_a_trial(repository, tmp_path):
    task = yaml_file.read(FILES / "skypilot.yaml")
    commands = f"{task['setup']}\n{task['run']}"
    assert set(re.findall(r"\$([A-Z_]+)", commands)) <= {*task["envs"], *task["secrets"]}
    assert "trial lora-2" in run_by(commands, repository, tmp_path, INDEX="1")
