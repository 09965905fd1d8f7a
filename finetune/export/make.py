"""A checkpoint written for other programs: as an adapter, a merged model, or a GGUF file."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.export import gguf_file, merge
from finetune.export.tokenizer import tokenizer_for_others
from finetune.models import card, saved
from finetune.models.base import Base
from finetune.models.checkpoint import Checkpoint
from finetune.sources.contents import ADAPTER, ADAPTER_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMATS = ("adapter", "merged", "gguf")
FOUR_BITS, ORIGINAL = "four-bits", "original"
"""What `--onto` may name."""


@dataclass(frozen=True)
class Export:
    """A checkpoint and the format that it is exported in."""

    format: str
    """One of `FORMATS`."""
    type: str | None
    """For GGUF, one of `gguf_file.TYPES`."""
    checkpoint: Checkpoint
    own_base: Base | None
    """The base that an adapter was trained over; None after full fine-tuning."""
    base: Base | None
    """The base that it is merged onto, or used with."""

    @property
    def onto(self) -> str | None:
        """For an adapter trained over four bits, the weights that it is merged onto, as `--onto` names them."""
        if not self.checkpoint.method.quantized or self.format == "adapter":
            return None
        return FOUR_BITS if self.base == self.own_base else ORIGINAL

    @property
    def other_base(self) -> Base | None:
        """For an adapter trained over four bits, the base that it isn't merged onto, if it is here."""
        if self.own_base is None or not self.checkpoint.method.quantized:
            return None
        return self.own_base.original if self.base == self.own_base else self.own_base

    @property
    def name(self) -> str:
        """The default name of its folder, as in 'gguf-four-bits-q8_0'."""
        return "-".join(filter(None, (self.format, self.onto, self.type)))

    @property
    def file(self) -> str:
        """The GGUF file's name."""
        model = re.sub(r"[^\w.-]+", "-", Path(self.checkpoint.base_source["source"]).name)
        return f"{model}-{self.checkpoint.method.name}-{self.type}.gguf"

    @property
    def needed_gb(self) -> float:
        """Upper limit of its size on the disk: a weight of four bits becomes one of sixteen."""
        if self.format == "adapter":
            return saved.size_gb(self.checkpoint.folder)
        folder = (self.base or self.checkpoint).folder
        return saved.size_gb(folder) * (4 if self.onto == FOUR_BITS else 1)

    def merged(self, onto: Base | None) -> PreTrainedModel:
        """The checkpoint as a plain model in 16 bits, merged onto `onto` if it is an adapter."""
        return merge.whole(self.checkpoint) if onto is None else merge.merged(self.checkpoint, onto)


def write(export: Export, folder: Path) -> None:
    """Write weights and tokenizer to `folder`. Raises UserError if they can't be exported."""
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
        for name in (ADAPTER, ADAPTER_CONFIG):
            shutil.copy(export.checkpoint.folder / name, folder)
        # A folder of this machine means nothing elsewhere; the card says where the base comes from.
        source = export.checkpoint.base_source
        saved.name_base(folder, source.get("hub"), source.get("commit"))
    tokenizer.save_pretrained(folder)


def facts(export: Export) -> dict:
    """The export's facts.yaml: how the checkpoint was made, without the paths of this machine."""
    told = {"format": export.format, "type": export.type, "onto": export.onto}
    made = {key: value for key, value in export.checkpoint.facts().items() if key not in ("base", "method")}
    return {
        "export": {key: value for key, value in told.items() if value},
        "of": {"method": export.checkpoint.method.name, **made},
    }


def title(export: Export) -> str:
    """The card's title."""
    ways = {"adapter": "adapter", "merged": "merged", "gguf": f"GGUF, {str(export.type).upper()}"}
    onto = f" onto {export.onto.replace('-', ' ')}" if export.onto else ""
    return f"{card.title(export.checkpoint)}: {ways[export.format]}{onto}"
