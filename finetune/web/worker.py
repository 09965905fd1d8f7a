"""What the page asks of the models: the part of the server's worker that it uses."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune.data.turns import Turn


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; as it stands greedily."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: every token may be drawn."""
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """What has been added to an answer."""

    text: str
    tokens: int
    """Made so far."""
    seconds: float
    """Since the answer was asked for."""
    reason: str | None
    """Of the last piece: 'stop' (the model ended) or 'length' (as many tokens as were allowed)."""


class Worker(Protocol):
    """Holds the models and makes the answers."""

    @property
    def names(self) -> Sequence[str]:
        """The models loaded, as the user named them: 'workspace', 'base', an experiment, a folder."""

    def method(self, name: str) -> str | None:
        """Key of `METHODS`; None for a model that wasn't fine-tuned here."""

    def memory_gb(self, name: str) -> float:
        """Held for this model alone: its adapter, or the whole model."""

    def stream(
        self, model: str, turns: Sequence[Turn], sampling: Sampling, max_new_tokens: int
    ) -> AsyncGenerator[Piece, None]:
        """The answer as it comes; closing the generator cancels it. Raises UserError for a prompt that can't be
        answered, and where the server is full."""

    async def add(self, name: str) -> None:
        """Load one more model. Raises UserError if there is none of this name, or it doesn't fit."""
