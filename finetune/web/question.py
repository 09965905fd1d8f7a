"""A recorded test prompt as the question that it was, before a template was put around it."""

from functools import lru_cache

from finetune import params, places
from finetune.data.forms import Turn
from finetune.data.records import Record, Spool, read_records
from finetune.errors import UserError


def question(position: str, reference: str) -> Turn:
    """The user's turn of the record at `position` ('alpaca.json[17]') in data/raw, whose answer starts as `reference`.

    Raises UserError if data/raw holds other data now, or the record is a longer conversation.
    """
    records, indices = _records()
    record = records[indices[position]] if position in indices else None
    if record is None or not record.turns[-1].text.strip().startswith(reference.strip()):
        raise UserError(f"{position}: {places.RAW} holds other data than this run had; copy the prompt by hand")
    asked = [turn for turn in record.turns[:-1] if turn.role != "system"]
    if len(asked) > 1 or len(record.turns) > 2:
        raise UserError(f"{position}: a conversation of several turns, and the page asks single instructions")
    return asked[0]


@lru_cache(maxsize=1)
def _records() -> tuple[Spool[Record], dict[str, int]]:
    """The records of data/raw, and the index of the one at each position."""
    found = read_records(places.RAW, "drop", params.load().data.columns).good
    return found, {record.position: index for index, record in enumerate(found)}
