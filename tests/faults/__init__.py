"""Faults that users meet, each with the one sentence that it gets. docs/errors.md is generated from this list.

A fault is tried for real by tests/test_faults.py. `python -m tests.write_errors` renews the document.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import refusal, write_params

from finetune.commands.main import main

KINDS = ("parameters", "data", "models", "adapters", "export", "disk", "devices", "registry", "remotes", "cluster")


@dataclass(frozen=True)
class Bench:
    """What a fault is made with: an empty workspace with small params and data/raw filled, and tiny models."""

    folder: Path
    models: dict[str, Path]
    """Family -> folder of a tiny random model: 'llama', 'gpt2'."""
    words: list[dict]
    """48 good Alpaca records."""

    def params(self, **changes: object) -> None:
        """Write params.yaml, made small, with `changes` (group={key: value}, or key=value)."""
        write_params(self.folder, **changes)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the workspace."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def refused(self, stage: str, *arguments: object) -> str:
        """Run stages/<stage>.py, which must refuse; its sentence, without 'error: '."""
        return refusal(stage, *arguments).removeprefix("error: ")

    def refused_by(self, *arguments: str) -> str:
        """Run `finetune` with `arguments`, which must refuse; its sentence, without 'error: '."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return str(ended.value.code).removeprefix("error: ")


@dataclass(frozen=True)
class Fault:
    """One mistake and its sentence."""

    kind: str
    what: str
    """What was wrong, as the document's reader sees it."""
    sentence: str
    """What is printed, whole; … stands for what differs from machine to machine."""
    cause: Callable[[Bench], str]
    """Makes the mistake; returns what was printed."""


def fits(sentence: str, printed: str) -> bool:
    """Whether `printed` is `sentence`, its … filled."""
    return re.fullmatch(".+?".join(map(re.escape, sentence.split("…"))), printed, flags=re.DOTALL) is not None


def every_fault() -> list[Fault]:
    """All faults, by kind."""
    from faults import adapters, cluster, data, devices, disk, export, models, parameters, registry, remotes

    modules = (parameters, data, models, adapters, export, disk, devices, registry, remotes, cluster)
    return [fault for module in modules for fault in module.FAULTS]


def table(faults: list[Fault]) -> str:
    """Markdown, a table a kind."""
    parts = []
    for kind in KINDS:
        rows = [f"| {_cell(fault.what)} | {_cell(fault.sentence)} |" for fault in faults if fault.kind == kind]
        parts.append(
            "\n".join([f"## {kind.capitalize()} ({len(rows)})", "", "| what | sentence |", "|---|---|", *rows])
        )
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
