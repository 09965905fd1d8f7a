"""The rows of the dataset: kept on the disk until their splits are known, with a few figures of each in memory."""

from __future__ import annotations

import json
import unicodedata
from array import array
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from finetune import yaml_file
from finetune.data.dataset import Encoded
from finetune.data.prepared import IGNORE, SPLITS, prompt_length
from finetune.data.records import Records, Spool
from finetune.errors import UserError
from finetune.files import sha256, whole_folder
from finetune.places import FACTS

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Rows that are held and written together, in the dataset as well."""

_TOO_MUCH = 0.5
"""A larger share of unknown tokens, or of texts that don't come back, leaves nothing to learn."""


class Rows:
    """The rows in the order in which they come; which split each belongs to is known only when all are there."""

    def __init__(self, folder: Path, end_token: int) -> None:
        """`folder` is as `Spool` takes it. `end_token` ends a response."""
        self.lengths = array("i")
        """Tokens of prompt and response of each row."""
        self.prompt_lengths = array("i")
        """Tokens before the last response of each row."""
        self.ends_learnt = bytearray()
        """Whether one of the row's responses ends."""
        self.response_tokens = self.truncated = 0
        self._end_token = end_token
        self._spool = Spool[dict](folder)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, row: dict) -> None:
        """Add a row. Raises UserError if the disk is full, or refuses."""
        labels = row["labels"]
        self.lengths.append(len(labels))
        self.prompt_lengths.append(prompt_length(labels))
        self.ends_learnt.append(self._end_token in labels)
        self.response_tokens += len(labels) - labels.count(IGNORE)
        self.truncated += row["truncated"]
        self._spool.append(row)

    def save(self, splits: dict[str, range], facts: dict, folder: Path) -> None:
        """Write the rows as an Arrow `DatasetDict` along with `facts`, the same bytes for the same rows."""
        from datasets import Dataset, DatasetDict

        one = Dataset.from_list([self._spool[0]], features=_features())
        with whole_folder(folder) as draft:
            # datasets writes all but the rows, which it would need in memory.
            DatasetDict(dict.fromkeys(SPLITS, one)).save_to_disk(draft)
            for name in SPLITS:
                (target,) = (draft / name).glob("*.arrow")
                self._write(splits[name], target)
                _steady_fingerprint(draft / name / "state.json", target)
            yaml_file.write(draft / FACTS, facts)

    def _write(self, part: range, target: Path) -> None:
        """Write the rows of `part` as an Arrow stream, `BATCH` at a time."""
        import pyarrow
        from pyarrow import ipc

        schema = _features().arrow_schema
        with target.open("wb") as file, ipc.new_stream(file, schema) as writer:
            for start in range(part.start, part.stop, BATCH):
                batch = [self._spool[index] for index in range(start, min(start + BATCH, part.stop))]
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))


def _features() -> Features:
    from datasets import Features, List, Value

    return Features(
        {
            "input_ids": List(Value("int32")),
            "labels": List(Value("int32")),
            "truncated": Value("bool"),
            "prompt": Value("string"),
            "reference": Value("string"),
            "record": Value("string"),
        }
    )


def _steady_fingerprint(state: Path, rows: Path) -> None:
    """Replace the fingerprint in state.json, which datasets takes from the process, by one of the data."""
    value = json.loads(state.read_text())
    value["_fingerprint"] = sha256(rows)[:16]
    state.write_text(json.dumps(value, indent=2, sort_keys=True))


def statistics(
    rows: Rows, splits: dict[str, range], records: Records, dropped: Counter[str], made_of: Counter[str]
) -> dict[str, Any]:
    """Counts and length percentiles (tokens of prompt and response) for metrics/data.json.

    `dropped` and `made_of` are the counts of `dataset.sample`.
    """
    lengths = numpy.array(rows.lengths)
    facts: dict[str, Any] = {"records_read": len(records.good) + records.dropped.total(), "records_kept": len(rows)}
    facts |= {f"{name}_records": len(splits[name]) for name in SPLITS}
    facts |= dict(sorted(made_of.items()))
    facts |= {f"dropped_{reason}": count for reason, count in sorted((records.dropped + dropped).items())}
    facts |= {"unanswered_turns": records.unanswered} if records.unanswered else {}
    facts |= {f"ignored_column_{name}": count for name, count in sorted(records.ignored.items())}
    facts |= {f"length_p{q}": round(float(numpy.percentile(lengths, q)), 1) for q in (50, 90, 99)}
    facts |= {
        "length_max": int(lengths.max()),
        "tokens": int(lengths.sum()),
        "response_tokens": rows.response_tokens,
        "truncated_share": round(rows.truncated / len(rows), 4),
    }
    return facts


def check_lengths(
    rows: Rows, splits: dict[str, range], max_length: int, max_new_tokens: int, positions: int | None
) -> None:
    """Raise UserError if no response of the training split ends, so that the model would never learn to stop, or if the
    longest test prompt and an answer of `max_new_tokens` are more than the model's `positions`."""
    train, test = splits["train"], splits["test"]
    if not any(rows.ends_learnt[train.start : train.stop]):
        raise UserError(
            f"data.max_length: all {len(train)} training responses are cut at {max_length} tokens, "
            f"so the model would never learn to stop; raise it"
        )
    longest = max(rows.prompt_lengths[test.start : test.stop])
    if positions and longest + max_new_tokens > positions:
        raise UserError(
            f"eval.max_new_tokens: {max_new_tokens} tokens after a prompt of {longest} are more than the model's "
            f"{positions} positions; lower it, or data.max_length"
        )


class TextLosses:
    """Counts what a tokenizer loses of the rows: unknown tokens, and responses that don't come back as they were.

    Case, accents, width and white space, which tokenizers fold, don't count.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._unknown_token = tokenizer.unk_token_id
        # Many tokenizers name their end or padding as the unknown token, since no byte is unknown to them.
        if self._unknown_token in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
            self._unknown_token = None
        self._rows = self._tokens = self._unknown = self._lost = 0

    def add(self, encoded: Encoded) -> None:
        """Count a row."""
        ids, response = encoded.row["input_ids"], encoded.response
        self._rows += 1
        self._tokens += len(ids)
        self._unknown += 0 if self._unknown_token is None else ids.count(self._unknown_token)
        # A response that comes back as it was needn't be tokenised again.
        if self._text(response.ids) != response.text:
            again = self._tokenizer(response.said, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._lost += _folded(response.said) != _folded(self._text(again))

    def found(self) -> dict[str, int]:
        """The counts that aren't 0. Raises UserError if the tokenizer loses most of the text."""
        if max(self._unknown / self._tokens, self._lost / self._rows) > _TOO_MUCH:
            raise UserError(
                f"model.source: its tokenizer can't write these records: {self._unknown} of {self._tokens} tokens are "
                f"unknown to it, and {self._lost} of {self._rows} responses don't come back from it; take a model of the "
                f"records' language"
            )
        counts = {"unknown_tokens": self._unknown, "responses_not_restored": self._lost}
        return {name: count for name, count in counts.items() if count}

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in folded if not (character.isspace() or unicodedata.combining(character)))
