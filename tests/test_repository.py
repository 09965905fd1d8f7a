"""What the repository says of itself is true: dvc.yaml, dvc.lock, the documents' tables, the picture."""

import ast
import hashlib
import importlib
import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT, command

from finetune import places, yaml_file
from finetune.commands.experiments import PICTURES
from finetune.commands.main import COMMANDS
from finetune.comparison import generated
from finetune.comparison.charts import picture
from finetune.comparison.tables import report, summary
from finetune.experiments import sweep


def pipeline() -> dict:
    """The stages by name; those of a `foreach` each by its own."""
    stages = yaml_file.read(ROOT / "dvc.yaml")["stages"]
    return {
        each: stage.get("do", stage)
        for name, stage in stages.items()
        for each in ([f"{name}@{key}" for key in stage["foreach"]] if "foreach" in stage else [name])
    }


def results(name: str) -> dict:
    return json.loads((ROOT / places.RESULTS / f"{name}.json").read_text())


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


@pytest.mark.parametrize("name", [name for name in pipeline() if not name.startswith("fetch")])
def test_a_stage_reads_only_params_that_dvc_yaml_declares(name):
    stage = pipeline()[name]
    declared = {key.replace(".${method}", "") for key in stage["params"]}
    module = re.search(r"stages\.(\w+)", stage["cmd"])[1]
    for key in reads((ROOT / f"stages/{module}.py").read_text()):
        assert key in declared or key.split(".")[0] in declared, f"{name} reads {key}"


def test_the_lock_was_made_by_the_committed_code_and_params():
    lock = yaml_file.read(ROOT / "dvc.lock")["stages"]
    params = yaml_file.read(ROOT / "params.yaml")
    assert set(lock) == set(pipeline())
    for name, stage in lock.items():
        for dep in stage["deps"]:
            if dep["path"].startswith(("finetune", "stages")):
                assert md5(ROOT / dep["path"]) == dep["md5"], f"{name}: {dep['path']} changed since; run `dvc repro`"
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            now = params
            for part in key.split("."):
                now = now[part]
            assert now == value, f"{name}: {key} changed since dvc.lock; run `dvc repro`"


def md5(path) -> str:
    """As DVC has it: of a folder, the hash of its sorted listing of files and hashes."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    rows = sorted((file.relative_to(path).as_posix(), md5(file)) for file in files)
    listing = json.dumps([{"md5": one, "relpath": name} for name, one in rows])
    return f"{hashlib.md5(listing.encode()).hexdigest()}.dir"


def test_the_documents_tables_are_the_committed_comparison():
    data = results("comparison")
    assert generated.read("comparison", ROOT) == report(data), "run `make compare`"
    assert generated.read("summary", ROOT) == summary(data), "run `make compare`"


@pytest.mark.parametrize("page", ["light", "dark"])
def test_the_front_pages_picture_is_drawn_from_the_committed_comparison(page):
    assert (ROOT / PICTURES / f"gain-{page}.svg").read_text() == picture(results("comparison"), page)


def test_the_documented_sweep_is_the_committed_one():
    assert generated.read("sweep", ROOT) == sweep.markdown(results("sweep")), "run `make sweep`"


@pytest.mark.parametrize(
    "name",
    ["cost", "decoding", "serving", "pipeline", "interruptions", "bigdata", "scale", "storage", "distilgpt2", "plan"],
)
def test_the_benchmarks_tables_come_from_the_committed_runs(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(name)
    assert generated.read(name, ROOT) == module.markdown(results(name)), "run `make benchmark`"


def test_the_table_of_targets_comes_from_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("targets")
    found = module.markdown({name: results(name) for name in module.SOURCES})
    assert generated.read("targets", ROOT) == found, "run `python benchmarks/targets.py`"


def documents() -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"))
    ]


@pytest.mark.parametrize("document", documents())
def test_what_a_document_links_to_exists(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"(?:\]\(|(?:src|srcset)=\")(?!https?:|#)([^)\"#]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_front_pages_tree_names_every_folder_and_module():
    text = (ROOT / "README.md").read_text()
    for path in [*ROOT.glob("finetune/*/"), *ROOT.glob("finetune/*.py")]:
        if not path.name.startswith("_"):
            assert path.stem in text, f"README's tree lacks {path.name}"


SCRIPTS = [f"stages.{name}" for name in ("fetch", "prepare", "train", "eval", "plot")]


@pytest.mark.parametrize(
    "words", [*SCRIPTS, "finetune.commands.main", *(f"finetune.commands.main {c}" for c in COMMANDS)]
)
def test_help_comes_without_loading_torch(words):
    done = command(sys.executable, "-X", "importtime", "-m", *words.split(), "--help", cwd=ROOT)
    assert done.returncode == 0 and "usage:" in done.stdout
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "finetune.cli" in modules and not modules & {"torch", "transformers", "datasets"}


def test_every_module_imports():
    done = command(sys.executable, "-m", "tests.import_all", cwd=ROOT)
    assert done.returncode == 0, done.stderr


POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("finetune/**/*.py")), ids=lambda path: path.stem)
def test_no_module_needs_posix_to_be_imported(path):
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not POSIX_ONLY & set(names), f"{path}: import it where it is used"


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"\.PHONY: (.+)", makefile)[1].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == set(re.findall(r"^  make (\w[\w-]*)", shown, flags=re.MULTILINE))
