"""What an engine is asked for, and what is made of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from finetune.serving.sampling import Sampling, draw


@dataclass(eq=False)
class Request:
    """A prompt, how it is to be answered, and what is made of it so far."""

    prompt: list[int]
    max_new_tokens: int
    ends: Collection[int]
    """The tokens that end an answer."""
    adapter: str | None = None
    """Of those that the layers hold; None: the base alone."""
    sampling: Sampling = field(default_factory=Sampling)
    made: list[int] = field(default_factory=list)
    """The answer's tokens, the one that ends it included."""

    def __post_init__(self) -> None:
        self._generator = self.sampling.generator()

    @property
    def reason(self) -> str | None:
        """Why the answer has ended: 'stop' (it was closed) or 'length' (it is as long as was allowed); else None."""
        if self.made and self.made[-1] in self.ends:
            return "stop"
        return "length" if len(self.made) >= self.max_new_tokens else None

    def choose(self, likeliest: int, logits: torch.Tensor) -> None:
        """Take the next token, given the likeliest one and all logits (vocabulary)."""
        self.made.append(likeliest if self._generator is None else draw(logits, self.sampling, self._generator))
