from dataclasses import dataclass
from pathlib import Path

from finetune import places


@dataclass(frozen=True)
class Checkpoint:
    name: str
    folder: Path
    base: Path | None


def find(name: str) -> Checkpoint:
    return Checkpoint(name, places.TUNED if name == "workspace" else Path(name), None)
