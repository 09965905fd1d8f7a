"""A fine-tuned model on disk: how it was made, and the base that its adapter goes over."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import yaml_file
from finetune.errors import UserError
from finetune.methods import METHODS, Method
from finetune.models.base import Base, fingerprint, load_tokenizer
from finetune.places import FACTS
from finetune.sources.catalogue import provenance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PEFT_PREFIX = "base_model.model."
"""The start of the name that a module of the base has within peft's model."""


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a fine-tuned model, and the facts that facts.yaml in it states."""

    folder: Path
    method: Method
    seed: int
    base_folder: Path
    """Where its base lay when it was trained."""
    base_fingerprint: str | None
    """That of its base's weights; None in checkpoints that are older than fingerprints."""
    template: str
    end_tokens: list[int]
    """Ids of the tokens that end an answer by the template, in addition to those that the model names."""
    data: dict[str, Any]
    """Where the instructions came from: source and licence."""
    settings: dict[str, Any]
    """How it was trained: the groups lora (where there are adapters) and train, as params.yaml had them."""
    base_source: dict[str, Any]
    """Where the base came from: source and licence."""

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The checkpoint that `saved.save` wrote to `folder`. Raises UserError if there is none."""
        facts = yaml_file.read(folder / FACTS) if (folder / FACTS).is_file() else {}
        if facts.get("method") not in METHODS:
            raise UserError(
                f"{folder}: no fine-tuned model there; run `dvc repro train` or `python stages/train.py` first"
            )
        return cls(
            folder,
            METHODS[facts["method"]],
            facts["seed"],
            Path(facts["base"]),
            facts.get("base_fingerprint"),
            facts["template"],
            facts.get("end_tokens") or [],
            facts["data"],
            facts.get("settings") or {},
            facts.get("base_source") or provenance(Path(facts["base"])),
        )

    def facts(self) -> dict[str, Any]:
        """What facts.yaml says; `read` reads it again."""
        return {
            "method": self.method.name,
            "seed": self.seed,
            "base": str(self.base_folder),
            "base_fingerprint": self.base_fingerprint,
            "template": self.template,
            "end_tokens": self.end_tokens,
            "data": self.data,
            "settings": self.settings,
            "base_source": self.base_source,
        }

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of its weights (`base.fingerprint`)."""
        return fingerprint(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer (`base.load_tokenizer`)."""
        return load_tokenizer(self.folder)

    def base(self, moved_to: Path | str | None = None) -> Base | None:
        """The base that its adapter goes over, in 4 bits if it was trained so; None if all parameters were trained.

        It is looked for where it was trained, or in the folder `moved_to`. Raises UserError if it isn't there, or if its
        weights have changed. A checkpoint that notes no fingerprint can't be checked; a line on stderr says so.
        """
        if not self.method.adapters:
            return None
        start = Base(Path(moved_to or self.base_folder))
        if not (start.folder / "config.json").exists():
            raise UserError(f"{start}: the adapter's base model isn't there; give its folder as --model_name")
        base = start.in_4_bits() if self.method.quantized else start
        if self.base_fingerprint is None:
            print(
                f"{self.folder}: notes no fingerprint of its base, so nobody can tell whether {base} is it",
                file=sys.stderr,
            )
        elif self.base_fingerprint != base.fingerprint:
            raise UserError(
                f"{self.folder}: this adapter was trained over other weights (fingerprint {self.base_fingerprint}) than "
                f"those in {base} ({base.fingerprint}); give its own base model as --model_name, or train again"
            )
        return base
