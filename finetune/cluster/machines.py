"""What a trial asks of a machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """Of one machine, for one trial."""

    cpus: int
    gpus: int
    folder: str
    """Where its clones and its cache lie; ~ is the home of whoever runs there."""

    def __str__(self) -> str:
        return f"{self.cpus} CPU{'s' * (self.cpus != 1)} and {self.gpus} GPU{'s' * (self.gpus != 1)}"
