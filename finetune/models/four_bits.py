"""Where the base model lies in four bits, which the quantize stage has made once for all that needs it."""

from pathlib import Path

from finetune import places
from finetune.errors import UserError
from finetune.files import read_yaml
from finetune.models.fingerprint import fingerprint
from finetune.models.supported import form_in_4_bits, read_config
from finetune.sources.fetch import base_folder


def base_in_4_bits(name: str | None) -> Path:
    """The folder of the base model called `name` (none: the pipeline's) in four bits, as `in_4_bits` finds it.

    The pipeline's 16-bit weights needn't be there.
    """
    if name is None and not (places.BASE / "config.json").exists() and (places.BASE_4BIT / places.FACTS).exists():
        return places.BASE_4BIT
    return in_4_bits(base_folder(name))


def in_4_bits(base: Path) -> Path:
    """The folder of the model in `base` in four bits: `base` itself if it is stored so, else models/base-4bit.

    Raises UserError if that isn't there, or is made of other weights.
    """
    if form_in_4_bits(base, read_config(base)):
        return base
    made = places.BASE_4BIT
    if not (made / places.FACTS).exists():
        raise UserError(f"{made}: not there; run `python stages/quantize.py --model_name {base}` first")
    if read_yaml(made / places.FACTS).get("made_of") != fingerprint(base):
        raise UserError(
            f"{made}: is made of other weights than those in {base}; run `python stages/quantize.py --model_name {base}`"
        )
    return made
