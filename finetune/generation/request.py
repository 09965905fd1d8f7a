"""What an engine is asked for: a prompt, how its tokens are chosen, and the answer so far."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from finetune.errors import UserError

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, under the field's names. Raises UserError for a value out of range."""

    temperature: float = 0.0
    """0 is greedy: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together hold this much probability (Holtzman et al. 2020, section 3.1)."""
    top_k: int = 0
    """Only so many of the likeliest tokens (Fan et al. 2018, section 5.1); 0: all."""
    seed: int | None = None
    """The same seed gives the same draws; None: others each time."""

    def __post_init__(self) -> None:
        for name, value, fits, rule in (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "from 0 (greedy) to 100"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or more"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed <= LARGEST_SEED, f"from 0 to {LARGEST_SEED}"),
        ):
            if not fits or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"{name}: must be {rule}, got {value}")

    def generator(self) -> torch.Generator | None:
        """The source of one answer's draws; None where nothing is drawn."""
        if self.temperature == 0:
            return None
        return torch.Generator().manual_seed(secrets.randbits(63) if self.seed is None else self.seed)


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token by its probability under `logits` (vocabulary), as `sampling` bounds it; in transformers' order:
    temperature, top_k, top_p."""
    scores = logits.float().cpu() / sampling.temperature
    ranked = scores.sort(descending=True, stable=True)
    kept = ranked.values[: sampling.top_k or None].softmax(-1)
    # A token stays if those before it hold less than top_p: the first always does.
    kept = kept[: int((kept.cumsum(-1) - kept < sampling.top_p).sum())]
    return int(ranked.indices[torch.multinomial(kept, 1, generator=generator)])


@dataclass(eq=False)
class Request:
    """A prompt, how it is to be answered, and the answer so far."""

    prompt: list[int]
    max_new_tokens: int
    ends: Collection[int]
    """The tokens that end an answer."""
    adapter: str | None = None
    """The name of one that the joint layers have; None: the base alone."""
    sampling: Sampling = field(default_factory=Sampling)
    made: list[int] = field(default_factory=list)
    """The answer's tokens, the one that ends it included."""

    def __post_init__(self) -> None:
        self._generator = self.sampling.generator()

    @property
    def reason(self) -> str | None:
        """Why the answer has ended: 'stop' (by an end token) or 'length' (as long as was allowed); None before it has."""
        if self.made and self.made[-1] in self.ends:
            return "stop"
        return "length" if len(self.made) >= self.max_new_tokens else None

    def choose(self, likeliest: int, logits: torch.Tensor) -> None:
        """Add the next token, given the likeliest one and all logits (vocabulary)."""
        self.made.append(likeliest if self._generator is None else draw(logits, self.sampling, self._generator))
