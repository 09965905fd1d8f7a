"""When a run is validated, which of its weights are kept, and when it stops before its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Over(Exception):
    """Raised where a resumed run turns out to have no step left."""


class Validations(TrainerCallback):
    """Asks for a validation after each of `points` (optimizer steps), and notes the losses."""

    validate: Callable[[], Any]
    """Validates the weights at hand, and has `note` called."""

    def __init__(self, points: set[int], keep: str, patience: int | None) -> None:
        """Keeps the `best` weights or the `last`; the run ends after `patience` validations without a lower loss."""
        self._points, self._keep, self._patience = points, keep, patience
        self.losses: list[tuple[int, float]] = []
        """Optimizer step, and loss in nats per response token, of each validation so far."""
        self.due = False
        """Whether the weights at hand are to be validated, and weren't yet."""

    def resume(self, losses: list[tuple[int, float]], due: bool) -> None:
        """Continue from what an interrupted run has noted."""
        self.losses, self.due = [(step, loss) for step, loss in losses], due

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.due:  # the interruption came before it
            self.validate()
        if control.should_training_stop or state.global_step >= state.max_steps:
            raise Over

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_evaluate = self.due = state.global_step in self._points

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Trainer looks once more at what the last step has asked for.
        control.should_evaluate = control.should_save = False

    def note(self, step: int, loss: float, control: TrainerControl) -> None:
        """The validation after `step` came to `loss`: end the run if it is time, and have the best weights written."""
        self.losses.append((step, loss))
        self.due = False
        since_best = len(self.losses) - 1 - self.losses.index(self._best())
        if self._patience is not None and since_best >= self._patience:
            control.should_training_stop = True
        if self.best_is(step) and not control.should_training_stop:
            control.should_save = True

    def best_is(self, step: int) -> bool:
        """Whether the weights after `step` are the best so far, and the best are kept."""
        return self._keep == "best" and bool(self.losses) and self._best()[0] == step

    def kept(self) -> tuple[int, float]:
        """Step and loss of the weights that are kept: those of the least loss, the first of equals, or the last."""
        return self._best() if self._keep == "best" else self.losses[-1]

    def _best(self) -> tuple[int, float]:
        return min(self.losses, key=lambda point: point[1])
