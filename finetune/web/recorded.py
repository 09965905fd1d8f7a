"""The recorded answers to the test prompts, side by side."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from finetune.errors import UserError
from finetune.experiments import revisions, runs
from finetune.registry.checkpoints import WORKSPACE, commit_of


@dataclass(frozen=True)
class Answer:
    """One model's answer to a test prompt."""

    text: str
    rouge_l: float
    """0 to 100."""
    loss: float
    """Of the reference, in nats a token."""


@dataclass
class Example:
    """A test prompt, its reference, and each model's answer by the model's name."""

    record: str
    """File and index in the data source."""
    prompt: str
    reference: str
    answers: dict[str, Answer] = field(default_factory=dict)

    def holds(self, words: str) -> bool:
        """Whether `words` stand in it somewhere, in small letters or large."""
        texts = [self.record, self.prompt, self.reference, *(answer.text for answer in self.answers.values())]
        return any(words.casefold() in text.casefold() for text in texts)


class Recorded:
    """Reads each model's recorded answers once."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def rows(self, name: str, file: str) -> list[dict]:
        """The rows of a model's predictions, which `file` holds (`Served.answers_file`). Raises UserError if it has none."""
        async with self._one_at_a_time:
            if name not in self._rows:
                self._rows[name] = await asyncio.to_thread(_read, name, file)
            return self._rows[name]


def _read(name: str, file: str) -> list[dict]:
    if name == WORKSPACE or file != "tuned":
        return runs.answers(WORKSPACE, None, file)
    if Path(name).is_dir():
        raise UserError(f"{name}: a folder has no recorded answers; the workspace and experiments have")
    with revisions.repository(name) as repo:
        commit = commit_of(repo, name)
    return runs.answers(name, commit)


def examples(rows: dict[str, list[dict]]) -> list[Example]:
    """The test prompts of all models in the records' order. Models with unlike test sets share the records of both."""
    found: dict[tuple[str, str], Example] = {}
    for name, answered in rows.items():
        for row in answered:
            key = (row["record"], row["reference"])
            example = found.setdefault(key, Example(row["record"], row["prompt"], row["reference"]))
            example.answers[name] = Answer(row["prediction"], row["rouge_l"], row["nats"] / row["tokens"])
    return sorted(found.values(), key=lambda example: _natural(example.record))


def matching(all_of_them: Iterable[Example], words: str) -> list[Example]:
    """Those that hold `words`."""
    return [example for example in all_of_them if example.holds(words.strip())]


def _natural(record: str) -> list[tuple[str, int]]:
    """Sorts 'alpaca.json[9]' before 'alpaca.json[10]'."""
    return [(words, int(number or 0)) for words, number in re.findall(r"(\D+)(\d*)|$", record)]
