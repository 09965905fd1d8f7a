"""Faults that users meet, each with what its one sentence names: key, value, file, remedy. The words between are free.

A fault is tried for real by tests/test_faults.py. `python -m tests.write_errors` tries them all and writes what they
printed into docs/errors.md.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT, command, files_in, refusal, write_params

from finetune.commands.main import main
from finetune.device import describe

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
        """Run stages/<stage>.py, which must refuse and harm no file; its sentence, without 'error: '."""
        with self.unharmed():
            return refusal(stage, *arguments).removeprefix("error: ")

    def refused_by(self, *arguments: str) -> str:
        """Run `finetune` with `arguments`, which must refuse and harm no file; its sentence, without 'error: '."""
        with self.unharmed(), pytest.raises(SystemExit) as ended:
            main(arguments)
        assert str(ended.value.code).startswith("error: "), ended.value.code
        return str(ended.value.code).removeprefix("error: ")

    def refused_by_program(self, line: str) -> str:
        """Run a command line, which must refuse and harm no file; its sentence, without 'error: '."""
        with self.unharmed():
            done = command(*shlex.split(line), cwd=self.folder, PYTHONPATH=str(ROOT))
        assert done.returncode != 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        return next(line for line in done.stderr.splitlines() if line.startswith("error: ")).removeprefix("error: ")

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """What is in the workspace before the block is there after it, every byte."""
        before = self._files()
        yield
        assert before.items() <= self._files().items()

    def _files(self) -> dict[str, bytes]:
        return {
            name: content for name, content in files_in(self.folder).items() if not name.startswith((".git/", ".dvc/"))
        }


@dataclass(frozen=True)
class Fault:
    """One mistake and what its sentence names."""

    kind: str
    what: str
    """What was wrong, as the document's reader sees it."""
    names: str
    """What the sentence must name, in any order, with … between."""
    cause: Callable[[Bench], str]
    """Makes the mistake; returns what was printed."""

    @property
    def id(self) -> str:
        """Says which fault it is."""
        return f"{self.kind}: {self.what}"


def asked(kind: str, what: str, words: str, names: str, prepare: Callable[[Path], object]) -> Fault:
    """A folder that `prepare` changed, and a `finetune` command that must refuse there."""

    def cause(bench: Bench) -> str:
        prepare(bench.folder)
        return bench.refused_by_program(f"python -m finetune.commands.main {words}")

    return Fault(kind, what, names, cause)


def every_fault() -> list[Fault]:
    """All faults, by kind."""
    from faults import adapters, cluster, data, devices, disk, export, models, parameters, registry, remotes

    modules = (parameters, data, models, adapters, export, disk, devices, registry, remotes, cluster)
    return [fault for module in modules for fault in module.FAULTS]


def table(printed: dict[str, str]) -> str:
    """Markdown, a table for each kind: every fault and what was `printed` for its id."""
    parts = []
    for kind in KINDS:
        rows = [f"| {_cell(f.what)} | {_cell(printed[f.id])} |" for f in every_fault() if f.kind == kind]
        parts.append(
            "\n".join([f"## {kind.capitalize()} ({len(rows)})", "", "| what | sentence |", "|---|---|", *rows])
        )
    return "\n\n".join(parts)


def listed(document: str) -> dict[str, str]:
    """Id -> sentence, as `table` wrote them."""
    found, kind = {}, ""
    for line in document.splitlines():
        if line.startswith("## "):
            kind = line.split()[1].lower()
        elif line.startswith("| ") and line != "| what | sentence |":
            what, sentence = (part.replace("\\|", "|").replace("&lt;", "<") for part in line[2:-2].split(" | "))
            found[f"{kind}: {what}"] = sentence
    return found


def portable(printed: str, folder: Path) -> str:
    """`printed` with … for what differs from machine to machine and from run to run."""
    for own in (str(folder), str(folder.parent), describe()):
        printed = printed.replace(own, "…")
    printed = re.sub(r"/tmp/faults-\w+", "…", printed)
    printed = re.sub(r"(\w)\1{50,}", r"\1\1\1…", printed)
    return re.sub(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7,64}\b", "…", printed)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
