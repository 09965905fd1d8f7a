"""An export written, read back by its usual consumer, and measured beside the checkpoint that it was made of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import params
from finetune.evaluation import generation
from finetune.export import bases, gguf_file, merge, reload
from finetune.export.prompt import tokenizer_for_others
from finetune.export.scores import Measured, TestSet
from finetune.methods import METHODS, Method
from finetune.models import card, saved
from finetune.models.adapters import load_tuned

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMATS = ("adapter", "merged", "gguf")


@dataclass(frozen=True)
class Export:
    """What is exported, and as what."""

    format: str
    """One of `FORMATS`."""
    type: str | None
    """Of GGUF: one of `gguf_file.TYPES`."""
    checkpoint: Path
    facts: dict
    bases: bases.Bases
    base: Path | None
    """What an adapter is merged onto, or goes over; None after full fine-tuning."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def method(self) -> Method:
        """How the checkpoint was trained."""
        return METHODS[self.facts["method"]]

    @property
    def end_tokens(self) -> list[int]:
        """What ends an answer by the template that the checkpoint was trained on."""
        return self.facts.get("end_tokens") or []

    @property
    def onto(self) -> str | None:
        """Of an adapter trained over four bits: which weights it is merged onto, one of `--onto`."""
        if not self.bases.in_4_bits or self.format == "adapter":
            return None
        return bases.ORIGINAL if self.base == self.bases.original else bases.FOUR_BITS

    @property
    def other_base(self) -> Path | None:
        """Of an adapter trained over four bits: the base that it isn't merged onto, if it is here."""
        return self.bases.own if self.base == self.bases.original else self.bases.original

    @cached_property
    def base_source(self) -> dict:
        """Where the base model came from."""
        return bases.source(self.facts, self.bases)

    @property
    def name(self) -> str:
        """What its folder is called, unless the user says otherwise: 'gguf-four-bits-q8_0'."""
        return "-".join(filter(None, (self.format, self.onto, self.type)))

    @property
    def file(self) -> str:
        """The GGUF file's name."""
        model = re.sub(r"[^\w.-]+", "-", Path(self.base_source["source"]).name)
        return f"{model}-{self.method.name}-{self.type}.gguf"

    @property
    def needed_gb(self) -> float:
        """Room on the disk that it takes at most: a weight of four bits becomes one of sixteen."""
        if self.format == "adapter":
            return saved.size_gb(self.checkpoint)
        return saved.size_gb(self.base or self.checkpoint) * (4 if self.onto == bases.FOUR_BITS else 1)

    def merged(self, onto: Path | None) -> PreTrainedModel:
        """The checkpoint as a plain model of 16 bits."""
        if onto is None:
            return merge.whole(self.checkpoint, self.end_tokens)
        return merge.merged(self.checkpoint, onto, self.end_tokens)


def write(export: Export, folder: Path) -> None:
    """Write weights and tokenizer to `folder`. Raises UserError where they can't be made."""
    tokenizer = tokenizer_for_others(export.tokenizer, export.facts["template"])
    if export.format == "gguf":
        name = Path(export.file).stem
        gguf_file.write(
            export.merged(export.base),
            tokenizer,
            gguf_file.TYPES[str(export.type)],
            folder / export.file,
            name=name,
            end_tokens=export.end_tokens,
        )
        return
    if export.format == "merged":
        export.merged(export.base).save_pretrained(folder)
    else:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copy(export.checkpoint / name, folder)
        # A folder of this machine says nothing elsewhere: the card says what to do instead.
        saved.name_base(folder, export.base_source.get("hub"), export.base_source.get("commit"))
    tokenizer.save_pretrained(folder)


def measure(export: Export, folder: Path, test: TestSet, settings: params.Eval) -> Iterator[Measured]:
    """The checkpoint, then what was written to `folder`, read back; then what could be taken for it.

    One model is in memory at a time. The first of what is yielded is what the others are compared with, and the second
    the export itself.
    """
    limits = {"batch_size": settings.decode_batch_size, "max_new_tokens": settings.max_new_tokens}

    def measured(model: _Model, by: Callable[..., list[str]]) -> Measured:
        print(f"scoring {model.name}", flush=True)
        loaded = model.load()
        # First the answers: for the losses the model takes another attention.
        answers = by(loaded, export.tokenizer, test.prompts, **limits)
        return Measured(model.name, test.nats(loaded), answers, model.base)

    checkpoint = partial(load_tuned, export.checkpoint, export.facts, export.bases.own)
    yield measured(_Model("the checkpoint", checkpoint), generation.generate)
    for model in _models(export, folder):
        yield measured(model, reload.answers)
    if export.format == "gguf" and reload.llama_cpp_is_here():
        print("asking llama.cpp", flush=True)
        found, cut_else = reload.by_llama_cpp(
            folder / export.file, export.tokenizer, test.prompts, settings.max_new_tokens
        )
        cut = f" ({cut_else} prompts cut into other tokens)" if cut_else else ""
        yield Measured(f"{export.file}, read by llama.cpp{cut}", None, found)


@dataclass(frozen=True)
class _Model:
    name: str
    load: Callable[[], PreTrainedModel | PeftModel]
    base: Path | None = None
    """As `Measured` has it."""


def _models(export: Export, folder: Path) -> Iterator[_Model]:
    """The export read back, then those that it could be taken for."""
    base, other = export.base, export.other_base
    if base is not None and export.format == "adapter":
        name = f"the adapter over {_name(export, base)}"
        yield _Model(f"{name}, read by peft", partial(reload.by_peft, folder, base), base)
        if other:
            yield _Model(f"the adapter over {_name(export, other)}", partial(reload.by_peft, folder, other), other)
        return
    name = f"merged onto {_name(export, base)}" if base else "the model"
    if export.format == "gguf":
        yield _Model(f"{export.file}, read by transformers", partial(reload.by_transformers, folder, export.file))
        yield _Model(f"{name}, 16 bits", partial(export.merged, base), base)
    else:
        yield _Model(f"{name}, read by transformers", partial(reload.by_transformers, folder), base)
    if other:
        yield _Model(f"merged onto {_name(export, other)}", partial(export.merged, other), other)


def _name(export: Export, base: Path) -> str:
    """What a base of an adapter is called."""
    if not export.bases.in_4_bits:
        return "its base"
    return "four bits" if base == export.bases.own else "the original weights"


def facts(export: Export) -> dict:
    """What facts.yaml of the export says: how the checkpoint was made, without this machine's paths."""
    told = {"format": export.format, "type": export.type, "onto": export.onto}
    made = {key: value for key, value in export.facts.items() if key not in ("base", "method")}
    return {
        "export": {key: value for key, value in told.items() if value},
        "of": {"method": export.method.name, **made},
    }


def title(export: Export) -> str:
    """What the card is called."""
    ways = {"adapter": "adapter", "merged": "merged", "gguf": f"GGUF, {str(export.type).upper()}"}
    onto = f" onto {export.onto.replace('-', ' ')}" if export.onto else ""
    return f"{card.title(export.facts, export.base_source)}: {ways[export.format]}{onto}"
