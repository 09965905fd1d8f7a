"""An export written, read back by its usual consumer, and measured beside the checkpoint that it was made of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import params
from finetune.export import gguf_file, merge, reload
from finetune.export.prompt import tokenizer_for_others
from finetune.export.scores import Measured, TestSet
from finetune.generation import greedy
from finetune.models import card, saved
from finetune.models.base import Base
from finetune.models.checkpoint import Checkpoint
from finetune.models.loading import load_tuned

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FORMATS = ("adapter", "merged", "gguf")
FOUR_BITS, ORIGINAL = "four-bits", "original"
"""What `--onto` may name."""


@dataclass(frozen=True)
class Export:
    """What is exported, and as what."""

    format: str
    """One of `FORMATS`."""
    type: str | None
    """Of GGUF: one of `gguf_file.TYPES`."""
    checkpoint: Checkpoint
    own_base: Base | None
    """What an adapter was trained over; None after full fine-tuning."""
    base: Base | None
    """What it is merged onto, or goes over."""

    @property
    def onto(self) -> str | None:
        """Of an adapter trained over four bits: which weights it is merged onto, one of `--onto`."""
        if not self.checkpoint.method.quantized or self.format == "adapter":
            return None
        return FOUR_BITS if self.base == self.own_base else ORIGINAL

    @property
    def other_base(self) -> Base | None:
        """Of an adapter trained over four bits: the base that it isn't merged onto, if it is here."""
        if self.own_base is None or not self.checkpoint.method.quantized:
            return None
        return self.own_base.original if self.base == self.own_base else self.own_base

    @property
    def name(self) -> str:
        """What its folder is called, unless the user says otherwise: 'gguf-four-bits-q8_0'."""
        return "-".join(filter(None, (self.format, self.onto, self.type)))

    @property
    def file(self) -> str:
        """The GGUF file's name."""
        model = re.sub(r"[^\w.-]+", "-", Path(self.checkpoint.base_source["source"]).name)
        return f"{model}-{self.checkpoint.method.name}-{self.type}.gguf"

    @property
    def needed_gb(self) -> float:
        """Room on the disk that it takes at most: a weight of four bits becomes one of sixteen."""
        if self.format == "adapter":
            return saved.size_gb(self.checkpoint.folder)
        folder = (self.base or self.checkpoint).folder
        return saved.size_gb(folder) * (4 if self.onto == FOUR_BITS else 1)

    def merged(self, onto: Base | None) -> PreTrainedModel:
        """The checkpoint as a plain model of 16 bits."""
        return merge.whole(self.checkpoint) if onto is None else merge.merged(self.checkpoint, onto)


def write(export: Export, folder: Path) -> None:
    """Write weights and tokenizer to `folder`. Raises UserError where they can't be made."""
    tokenizer = tokenizer_for_others(export.checkpoint.tokenizer, export.checkpoint.template)
    if export.format == "gguf":
        name = Path(export.file).stem
        gguf_file.write(
            export.merged(export.base),
            tokenizer,
            gguf_file.TYPES[str(export.type)],
            folder / export.file,
            name=name,
            end_tokens=export.checkpoint.end_tokens,
        )
        return
    if export.format == "merged":
        export.merged(export.base).save_pretrained(folder)
    else:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copy(export.checkpoint.folder / name, folder)
        # A folder of this machine says nothing elsewhere: the card says what to do instead.
        source = export.checkpoint.base_source
        saved.name_base(folder, source.get("hub"), source.get("commit"))
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
        answers = by(loaded, export.checkpoint.tokenizer, test.prompts, **limits)
        return Measured(model.name, test.nats(loaded), answers, model.base)

    checkpoint = partial(load_tuned, export.checkpoint, export.own_base)
    yield measured(_Model("the checkpoint", checkpoint), greedy.generate)
    for model in _models(export, folder):
        yield measured(model, reload.answers)
    if export.format == "gguf" and reload.llama_cpp_is_here():
        print("asking llama.cpp", flush=True)
        found, cut_else = reload.by_llama_cpp(
            folder / export.file, export.checkpoint.tokenizer, test.prompts, settings.max_new_tokens
        )
        cut = f" ({cut_else} prompts cut into other tokens)" if cut_else else ""
        yield Measured(f"{export.file}, read by llama.cpp{cut}", None, found)


@dataclass(frozen=True)
class _Model:
    name: str
    load: Callable[[], PreTrainedModel | PeftModel]
    base: Base | None = None
    """As `Measured` has it."""


def _models(export: Export, folder: Path) -> Iterator[_Model]:
    """The export read back, then those that it could be taken for."""
    base, other = export.base, export.other_base
    if base is not None and export.format == "adapter":
        name = f"the adapter over {_name(export, base)}"
        yield _Model(f"{name}, read by peft", partial(reload.by_peft, folder, base.folder), base)
        if other:
            yield _Model(
                f"the adapter over {_name(export, other)}", partial(reload.by_peft, folder, other.folder), other
            )
        return
    name = f"merged onto {_name(export, base)}" if base else "the model"
    if export.format == "gguf":
        yield _Model(f"{export.file}, read by transformers", partial(reload.by_transformers, folder, export.file))
        yield _Model(f"{name}, 16 bits", partial(export.merged, base), base)
    else:
        yield _Model(f"{name}, read by transformers", partial(reload.by_transformers, folder), base)
    if other:
        yield _Model(f"merged onto {_name(export, other)}", partial(export.merged, other), other)


def _name(export: Export, base: Base) -> str:
    """What a base of an adapter is called."""
    if not export.checkpoint.method.quantized:
        return "its base"
    return "four bits" if base == export.own_base else "the original weights"


def facts(export: Export) -> dict:
    """What facts.yaml of the export says: how the checkpoint was made, without this machine's paths."""
    told = {"format": export.format, "type": export.type, "onto": export.onto}
    made = {key: value for key, value in export.checkpoint.facts().items() if key not in ("base", "method")}
    return {
        "export": {key: value for key, value in told.items() if value},
        "of": {"method": export.checkpoint.method.name, **made},
    }


def title(export: Export) -> str:
    """What the card is called."""
    ways = {"adapter": "adapter", "merged": "merged", "gguf": f"GGUF, {str(export.type).upper()}"}
    onto = f" onto {export.onto.replace('-', ' ')}" if export.onto else ""
    return f"{card.title(export.checkpoint)}: {ways[export.format]}{onto}"
