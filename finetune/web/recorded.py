"""Each model's recorded answers to the test prompts, with the question behind each prompt."""

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune import params, places
from finetune.data.forms import Turn
from finetune.data.records import Record, Spool, read_records
from finetune.errors import UserError
from finetune.experiments import revisions, runs
from finetune.registry.checkpoints import WORKSPACE, commit_of

_DVC = threading.Lock()
"""DVC's repository objects are not made for several threads."""


def rows(name: str, file: str) -> list[dict[str, Any]]:
    """The answers of the model `name`, which the predictions `file` holds (`Served.answers_file`), as the page shows them.

    Each has its record's position ('alpaca.json[17]'), the prompt, the reference, the prediction, its ROUGE-L (0 to 100),
    the loss of the reference (nats per token), and the question that the prompt was made from, or the error why it isn't
    known. They are read once in the life of the process. Raises UserError if the model has none.
    """
    with _DVC:
        return _rows(name, file)


@lru_cache(maxsize=32)
def _rows(name: str, file: str) -> list[dict[str, Any]]:
    kept = ("record", "prompt", "reference", "prediction", "rouge_l")
    return [
        {key: row[key] for key in kept}
        | {"loss": row["nats"] / row["tokens"], "question": _question_or_error(row["record"], row["reference"])}
        for row in _answers(name, file)
    ]


def _answers(name: str, file: str) -> list[dict]:
    if name == WORKSPACE or file != "tuned":
        return runs.answers(WORKSPACE, None, file)
    if Path(name).is_dir():
        raise UserError(f"{name}: a folder has no recorded answers; the workspace and experiments have")
    with revisions.repository(name) as repo:
        commit = commit_of(repo, name)
    return runs.answers(name, commit)


def _question_or_error(position: str, reference: str) -> dict[str, str]:
    try:
        turn = _question(position, reference)
    except UserError as error:
        return {"error": str(error)}
    return {"text": turn.text, "input": turn.input}


def _question(position: str, reference: str) -> Turn:
    """The user's turn of the record at `position` in data/raw, whose answer starts as `reference` does.

    Raises UserError if data/raw holds other data now, or the record is a longer conversation.
    """
    records, indices = _records()
    record = records[indices[position]] if position in indices else None
    if record is None or not record.turns[-1].text.strip().startswith(reference.strip()):
        raise UserError(f"{position}: {places.RAW} holds other data than this run had; copy the prompt by hand")
    asked = [turn for turn in record.turns[:-1] if turn.role != "system"]
    if len(asked) > 1 or len(record.turns) > 2:
        raise UserError(f"{position}: a conversation of several turns; the page asks single instructions")
    return asked[0]


@lru_cache(maxsize=1)
def _records() -> tuple[Spool[Record], dict[str, int]]:
    """The records of data/raw, and the index of the one at each position. Raises UserError if they can't be read."""
    found = read_records(places.RAW, "drop", params.load().data.columns).good
    return found, {record.position: index for index, record in enumerate(found)}
