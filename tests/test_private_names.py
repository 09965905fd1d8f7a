"""Private names of libraries are used only where CONTRIBUTING.md lists them: they may change with any release."""

import ast
import re

from helpers import ROOT

NAMEDTUPLES = {"_fields", "_make"}
"""Private by their names alone: Python documents them."""

UNDOCUMENTED = {"celery_queue", "oid_to_path"}
"""Public by their names alone: DVC documents them nowhere."""

SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for folder in ("finetune", "stages")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> set[str]:
    """The private names that a file defines: functions, classes, variables, attributes of self."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            names.add(node.attr)
    return set(filter(private, names))


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def accessed(tree: ast.AST) -> set[str]:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in attributes if private(name) or name in UNDOCUMENTED}


def imported(tree: ast.AST) -> set[str]:
    """Private names, and names of private modules, that a file imports from a library."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.split(".")[0] not in ("finetune", "__future__")
        for alias in node.names
        if private(alias.name) or any(map(private, node.module.split(".")))
    }


def overridden(tree: ast.AST, called: set[str]) -> set[str]:
    """Private methods of a class with a base that are not among the names `called` by our code: the library calls them."""
    return {
        method.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases
        for method in node.body
        if isinstance(method, ast.FunctionDef) and private(method.name) and method.name not in called
    }


def used() -> set[tuple[str, str]]:
    ours = set.union(*map(defined, SOURCES.values())) | NAMEDTUPLES
    called = set.union(*map(accessed, SOURCES.values()))
    return {
        (name, file)
        for file, tree in SOURCES.items()
        for name in (accessed(tree) - ours) | imported(tree) | overridden(tree, called)
    }


def listed() -> set[tuple[str, str]]:
    """The rows of the table: `name` | library | `file`."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Private names of libraries")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| .+? \| `(.+?)` \|$", text, flags=re.MULTILINE)
    return {(name, file) for names, file in rows for name in re.findall(r"`(\w+)`", names)}


def test_private_names_of_libraries_are_used_only_where_they_are_listed():
    assert listed()
    new, gone = used() - listed(), listed() - used()
    assert not new, f"use a public name, or add to CONTRIBUTING.md with a reason: {sorted(new)}"
    assert not gone, f"no longer used, take out of CONTRIBUTING.md: {sorted(gone)}"


def test_libraries_whose_private_names_are_used_have_upper_bounds():
    text = (ROOT / "pyproject.toml").read_text()
    for library in ("accelerate", "bitsandbytes", "dvc", "peft", "torch", "transformers"):
        assert re.search(rf'^    "{library}>=[\d.]+,<[\d.]+",$', text, flags=re.MULTILINE), library
