"""What a record is to the pipeline: a conversation of turns, whatever form the file had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One contribution to a conversation."""

    role: str
    """'system', 'user' or 'assistant'."""
    text: str
    input: str = ""
    """The context that Alpaca's form keeps apart from the instruction; '' elsewhere."""
    learn: bool = True
    """Of an assistant's turn: whether it carries loss."""

    @property
    def content(self) -> str:
        """The text with its input below, as a chat template takes it."""
        return f"{self.text}\n\n{self.input}" if self.input else self.text


@dataclass(frozen=True)
class Record:
    """One conversation that ends in an answer. The system's turn, if there is one, is the first."""

    turns: tuple[Turn, ...]
    position: str
    """File and index, as in 'alpaca.json[17]', counted from 0."""
    form: str
    """Which of the known forms it had in its file."""
    source: str = ""
    """Folder of the source that it came from where several are mixed; '' else."""

    @property
    def question(self) -> tuple[str, ...]:
        """All that comes before the last answer, white space aside: what makes two records the same."""
        return tuple(" ".join(part.split()) for turn in self.turns[:-1] for part in (turn.role, turn.text, turn.input))
