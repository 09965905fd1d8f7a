"""What the repository says of itself is true: dvc.yaml, dvc.lock, the README's table."""

import ast
import hashlib
import importlib
import json
import re
import sys

import pytest
import yaml
from helpers import ROOT, command

from finetune.experiments import sweep

PLUMBING = {"cli", "errors", "files", "params", "report", "meter", "live"}
"""Modules that can't change what a stage computes."""

LOADERS = {"sources", "dataset", "checkpoint"}
"""Modules that read another stage's output, where that output is the dependency."""


def pipeline() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def script(stage: dict) -> str:
    return re.search(r"stages/\w+\.py", stage.get("do", stage)["cmd"])[0]


def reads(source: str) -> set[str]:
    """The params that a stage script reads, as 'group.key' or 'key'."""
    keys = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            path, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                path.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id == "p":
                keys.add(".".join(reversed(path)))
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


@pytest.mark.parametrize("name", [name for name in pipeline() if name != "fetch"])
def test_a_stage_reads_only_params_that_dvc_yaml_declares(name):
    declared = {key.replace(".${method}", "") for key in pipeline()[name]["params"]}
    for key in reads((ROOT / script(pipeline()[name])).read_text()):
        assert key in declared or key.split(".")[0] in declared, f"{name} reads {key}"


@pytest.mark.parametrize("name", [name for name in pipeline() if name != "fetch"])
def test_every_module_that_shapes_a_stages_result_is_a_dependency(name):
    stage = pipeline()[name]
    for module in imports(ROOT / script(stage)) - PLUMBING:
        assert (
            f"finetune/{module}.py" in stage["deps"]
            or (module in LOADERS and name != "prepare")
            or (module == "sources")
        ), f"{name} uses finetune/{module}.py"


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "finetune":
            found |= {alias.name for alias in node.names}
    return found


def test_the_lock_was_made_by_the_committed_code_and_params():
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(lock) == (set(pipeline()) - {"fetch"}) | {"fetch@model", "fetch@data"}
    for name, stage in lock.items():
        for dep in stage["deps"]:
            if dep["path"].endswith(".py"):
                now = hashlib.md5((ROOT / dep["path"]).read_bytes()).hexdigest()
                assert now == dep["md5"], f"{name}: {dep['path']} changed since dvc.lock; run `dvc repro`"
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            now = params
            for part in key.split("."):
                now = now[part]
            assert now == value, f"{name}: {key} changed since dvc.lock; run `dvc repro`"


def test_the_readmes_table_is_the_committed_comparison():
    data = json.loads((ROOT / "benchmarks/results/comparison.json").read_text())
    assert report.in_readme("comparison", ROOT / "README.md") == comparison_table.markdown(data), "run `make compare`"


def test_the_readmes_sweep_is_the_committed_one():
    data = json.loads((ROOT / "benchmarks/results/sweep.json").read_text())
    assert report.in_readme("sweep", ROOT / "README.md") == sweep.markdown(data), "run `make sweep`"


@pytest.mark.parametrize("name", ["cost", "scale"])
def test_the_readmes_benchmark_tables_come_from_the_committed_runs(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    data = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    assert report.in_readme(name, ROOT / "README.md") == importlib.import_module(name).markdown(data), (
        "run `make benchmark`"
    )


def test_what_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["fetch", "prepare", "train", "eval", "infer", "compare", "plot", "sweep"])
def test_help_comes_without_loading_torch(name, tmp_path):
    done = command(sys.executable, "-X", "importtime", ROOT / f"stages/{name}.py", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage:" in done.stdout
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "finetune.cli" in modules and not modules & {"torch", "transformers", "datasets"}
