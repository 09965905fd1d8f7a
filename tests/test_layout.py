"""The rooms of the library: imports go one way, and dvc.yaml lists what each stage's result depends on."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

from finetune import yaml_file

ORDER = [
    "finetune",
    "sources",
    "distributed",
    "costs",
    "experiments",
    "data",
    "kernels",
    "models",
    "resume",
    "registry",
    "quantization",
    "training",
    "tracking",
    "generation",
    "evaluation",
    "comparison",
    "serving",
    "web",
    "export",
    "remotes",
    "cluster",
    "planner",
    "commands",
]
"""Folders of the library; one may import those before it, and itself."""

NO_RESULT = re.compile(
    r"finetune\.(errors|ending|crash_report|network|files|dvc_files|yaml_file|places|params|cli|costs\.(meter|energy)|tracking\..*|planner\..*|sources\..*)"
)
"""Modules that can't change what a stage makes of its inputs. What sources brings is itself an input."""


BESIDE_THE_PIPELINE = {"fetch": "finetune.data."}
"""What a stage script uses under a flag that dvc.yaml doesn't pass: with `--size` fetch reads records."""


def pipeline() -> dict[str, dict]:
    stages = yaml_file.read(ROOT / "dvc.yaml")["stages"]
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def path_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def modules() -> list[str]:
    files = sorted(ROOT.glob("finetune/**/*.py"))
    return [str(f.relative_to(ROOT).with_suffix("")).replace("/", ".") for f in files if f.name != "__init__.py"]


@cache
def imports(path: Path) -> frozenset[str]:
    """The library's modules that the file imports, anywhere in it."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            named |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
    return frozenset(named & set(modules()))


def reached(start: Path) -> set[str]:
    """Every module that the file leads to, those behind a module without influence left out."""
    found, waiting = set(), set(imports(start))
    while waiting:
        module = waiting.pop()
        if module not in found and not NO_RESULT.fullmatch(module):
            found.add(module)
            waiting |= imports(path_of(module))
    return found


def listed(stage: dict) -> set[str]:
    """The modules that a stage of dvc.yaml depends on, by file or by folder."""
    places = [ROOT / dep for dep in stage["deps"] if dep.startswith("finetune")]
    assert all(place.exists() for place in places)
    return {module for module in modules() for place in places if path_of(module).is_relative_to(place)}


def script(stage: dict) -> Path:
    return path_of(re.search(r"stages\.\w+", stage["cmd"])[0])


def folder(module: str) -> str:
    return module.split(".")[-2]


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module):
    for imported in imports(path_of(module)):
        assert ORDER.index(folder(imported)) <= ORDER.index(folder(module)), f"{module} imports {imported}"


def test_no_module_leads_back_to_itself():
    for module in modules():
        seen, waiting = set(), set(imports(path_of(module)))
        while waiting:
            one = waiting.pop()
            seen.add(one)
            waiting |= imports(path_of(one)) - seen
        assert module not in seen, f"{module} imports itself, through {sorted(seen)}"


@pytest.mark.parametrize("name", pipeline())
def test_every_module_that_shapes_a_stages_result_is_a_dependency(name):
    stage = pipeline()[name]
    assert str(script(stage).relative_to(ROOT)) in stage["deps"]
    beside = BESIDE_THE_PIPELINE.get(name)
    missing = {m for m in reached(script(stage)) - listed(stage) if not (beside and m.startswith(beside))}
    assert not missing, f"dvc.yaml: {name} doesn't list {sorted(missing)}"


@pytest.mark.parametrize("name", pipeline())
def test_no_stage_depends_on_a_file_that_it_never_reads(name):
    """A folder may hold what only another of its stages uses; a file by name may not."""
    stage = pipeline()[name]
    files = {dep for dep in stage["deps"] if dep.startswith("finetune") and dep.endswith(".py")}
    used = {str(path_of(module).relative_to(ROOT)) for module in reached(script(stage))}
    assert files <= used, f"dvc.yaml: {name} lists {sorted(files - used)}"


def test_nothing_that_no_stage_uses_lies_in_a_stages_folder():
    used = set.union(*(reached(script(stage)) for stage in pipeline().values()))
    fetched = {module for module in modules() if module.startswith("finetune.sources.")}
    stowaways = set.union(*(listed(stage) for stage in pipeline().values())) - used - fetched
    assert not stowaways


def test_the_tests_mirror_the_folders():
    rooms = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} - {
        "pipeline",
        "machine",
        "security",
        "cuda",
        "benchmarks",
    }
    assert rooms <= set(ORDER)


def test_no_stage_imports_another_stage():
    for path in (ROOT / "stages").glob("*.py"):
        assert "stages" not in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), flags=re.MULTILINE), path
