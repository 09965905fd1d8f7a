"""A base model on disk: what is known of it before its weights are loaded, each fact found once."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import places, yaml_file
from finetune.errors import UserError, first_line
from finetune.sources.catalogue import provenance
from finetune.sources.contents import ADAPTER
from finetune.sources.fetch import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SAMPLE = 2**12
READ_AT_MOST = 2**30
"""Bytes. Of more weights than that the fingerprint takes samples, evenly apart, so that it takes seconds, not minutes."""


@dataclass(frozen=True)
class Base:
    """The folder of a Hugging Face model, its weights in 16 bits or more, or in 4 bits as bitsandbytes stores them."""

    folder: Path
    rounded_from: Base | None = field(default=None, compare=False, repr=False)
    """The base that was asked for, where this is its 4-bit base."""

    @classmethod
    def named(cls, name: str | None, *, in_4_bits: bool = False) -> Base:
        """The base called `name`: the pipeline's (none, or its source), the user's folder, or a fetched one next to it.

        `in_4_bits` asks for its 4-bit base, as `in_4_bits` finds it; the pipeline's is found without its 16-bit weights.
        Raises UserError if there is none, or if it can't be fetched.
        """
        pipeline_has_it = (places.BASE / "config.json").exists()
        if in_4_bits and name is None and not pipeline_has_it and (places.BASE_4BIT / places.FACTS).exists():
            return cls(places.BASE_4BIT)
        base = cls(_folder_of(name, fetched=pipeline_has_it))
        return base.in_4_bits() if in_4_bits else base

    def __str__(self) -> str:
        """The folder, as messages name it."""
        return str(self.folder)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its config. Raises UserError if it can't be trained here (`supported.read_config`)."""
        from finetune.models.supported import read_config

        return read_config(self.folder)

    @cached_property
    def bits(self) -> str | None:
        """'nf4' or 'fp4' if its weights are stored in 4 bits, None if they are plain numbers.

        Raises UserError as `config` does, or if they are quantised in any other form.
        """
        from finetune.models.supported import form_in_4_bits

        return form_in_4_bits(self.folder, self.config)

    @property
    def positions(self) -> int | None:
        """How many tokens it takes at most; None if it has no such limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def check_length(self, max_length: int) -> None:
        """Raise UserError if `max_length` tokens are more than it has positions for, or as `config` does."""
        if self.positions and max_length > self.positions:
            raise UserError(
                f"data.max_length: {max_length} tokens are more than the model's {self.positions} positions; lower it"
            )

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of its weights (`fingerprint`)."""
        return fingerprint(self.folder)

    @cached_property
    def source(self) -> dict:
        """Where it came from: source, licence, and the place on the Hub or in a package."""
        return provenance(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer (`load_tokenizer`)."""
        return load_tokenizer(self.folder)

    def in_4_bits(self) -> Base:
        """This base if it is stored in 4 bits, else models/base-4bit, which the quantize stage has made of it.

        Raises UserError if that isn't there, or was made of other weights.
        """
        if self.bits:
            return self
        rounded = Base(places.BASE_4BIT, rounded_from=self)
        command = f"run `python stages/quantize.py --model_name {self}`"
        if not (rounded.folder / places.FACTS).exists():
            raise UserError(f"{rounded}: not there; {command} first")
        if rounded.made_of != self.fingerprint:
            raise UserError(f"{rounded}: is made of other weights than those in {self}; {command}")
        return rounded

    @cached_property
    def made_of(self) -> str | None:
        """The fingerprint of the weights that the quantize stage rounded to make this base; None if another program did."""
        facts = self.folder / places.FACTS
        return yaml_file.read(facts).get("made_of") if facts.exists() else None

    @cached_property
    def original(self) -> Base | None:
        """The 16-bit base that this one was rounded from, if it is here."""
        candidates = [base for base in (self.rounded_from, Base(places.BASE)) if base and base != self]
        found = (base for base in candidates if self.made_of and base.folder.exists())
        return next((base for base in found if base.fingerprint == self.made_of), None)


def fingerprint(folder: Path) -> str:
    """A short hash of the weights in `folder`, a model's or an adapter's, the same wherever they lie.

    An adapter fits no other weights than it was trained over, even where all shapes are the same.
    """
    digest = hashlib.sha256()
    kinds = ("model*.safetensors", ADAPTER)
    files = next((files for kind in kinds if (files := sorted(folder.glob(kind)))), [])
    stride = SAMPLE * max(1, math.ceil(sum(path.stat().st_size for path in files) / READ_AT_MOST))
    for path in files:
        digest.update(str(path.stat().st_size).encode())
        with path.open("rb") as file:
            for start in range(0, path.stat().st_size, stride):
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16]


def files_without_weights(folder: Path) -> list[Path]:
    """The other files of a model's folder: configuration, tokenizer, facts."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".safetensors", ".bin"))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, with a padding token.

    Raises UserError if the folder holds none, or one without an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and sentencepiece raise various classes
        if "custom code" in str(error):
            raise UserError(
                f"{folder}: the tokenizer brings Python code of its own, which is never run here; choose another model"
            ) from None
        raise UserError(f"{folder}: no tokenizer there ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-sequence token, so no answer could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _folder_of(name: str | None, *, fetched: bool) -> Path:
    """Where the base called `name` lies; a name that isn't here is fetched. `fetched`: the pipeline has its base."""
    default = places.BASE
    if name is None and not fetched:
        raise UserError(f"{default}: no base model there; run `dvc repro fetch@model` or `python stages/fetch.py`")
    if name is None or (fetched and provenance(default)["source"] == name):
        return default
    if (Path(name) / "config.json").exists():
        return Path(name)
    label = re.sub(r"[^\w.-]+", "--", name)
    target = default.parent / label
    if label in (".", "..") or target in (default, places.BASE_4BIT, places.TUNED):
        raise UserError(
            f"--model_name: {name} would be kept in {target}, which isn't free; give owner/name, or the model's folder"
        )
    if not (target / "config.json").exists():
        fetch("model", name, target)
    return target
