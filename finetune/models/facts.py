"""What is noted beside a fine-tuned model: method, base, data, template."""

from pathlib import Path

from finetune.errors import UserError
from finetune.files import read_yaml
from finetune.methods import METHODS
from finetune.places import FACTS


def read_facts(folder: Path) -> dict:
    """What `saved.save` noted. Raises UserError if `folder` is no checkpoint of ours."""
    facts = read_yaml(folder / FACTS) if (folder / FACTS).is_file() else {}
    if facts.get("method") not in METHODS:
        raise UserError(f"{folder}: no fine-tuned model there; run `dvc repro train` or `python stages/train.py` first")
    return facts
