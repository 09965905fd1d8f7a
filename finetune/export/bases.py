"""Which weights an adapter can be merged onto: those that it was trained over, and for four bits those before rounding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune import places
from finetune.errors import UserError
from finetune.files import read_yaml
from finetune.methods import METHODS
from finetune.models.fingerprint import check_base, fingerprint
from finetune.models.four_bits import in_4_bits
from finetune.sources.provenance import provenance

FOUR_BITS, ORIGINAL = "four-bits", "original"
"""What `--onto` may name."""


@dataclass(frozen=True)
class Bases:
    """Folders of a checkpoint's base model."""

    own: Path | None
    """What an adapter was trained over; None after full fine-tuning."""
    in_4_bits: bool = False
    """Whether that is in four bits."""
    original: Path | None = None
    """Of an adapter trained over four bits: the 16 bits that those are made of, if they are here."""

    def chosen(self, onto: str | None) -> Path | None:
        """The folder that `--onto` names, or by default that which the adapter was trained over.

        Raises UserError if there is none of that name.
        """
        if onto is None:
            return self.own
        if not self.in_4_bits:
            raise UserError(
                f"--onto: {onto} is a choice for an adapter trained over four bits only; leave it out for this one"
            )
        if onto == ORIGINAL and self.original is None:
            raise UserError(
                f"--onto: the 16-bit weights that {self.own} is made of aren't in {places.BASE}; fetch them by "
                f"`python stages/fetch.py model`, or give their folder as --model_name"
            )
        return self.original if onto == ORIGINAL else self.own


def find(checkpoint: Path, facts: dict, given: Path | str | None) -> Bases:
    """The bases of the checkpoint that was made as `facts` say; `given` is the base's folder where it has moved.

    Raises UserError if an adapter's base isn't there, or has other weights by now.
    """
    method = METHODS[facts["method"]]
    if not method.adapters:
        return Bases(None)
    start = Path(given or facts["base"])
    if not (start / "config.json").exists():
        raise UserError(f"{start}: the adapter's base model isn't there; give its folder as --model_name")
    own = in_4_bits(start) if method.quantized else start
    check_base(checkpoint, facts, own)
    made_of = _facts(own).get("made_of") if method.quantized else None
    for folder in (start, places.BASE):
        if made_of and folder != own and folder.exists() and fingerprint(folder) == made_of:
            return Bases(own, True, folder)
    return Bases(own, method.quantized)


def source(facts: dict, bases: Bases) -> dict:
    """Where the base model came from; as it lies there now, of a checkpoint that didn't note it yet."""
    return facts.get("base_source") or provenance(bases.own or Path(facts["base"]))


def _facts(folder: Path) -> dict:
    return read_yaml(folder / places.FACTS) if (folder / places.FACTS).exists() else {}
