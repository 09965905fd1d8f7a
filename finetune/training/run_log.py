"""What a training run has seen: each optimizer step's values, tokens, and time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.costs.meter import Meter
from finetune.errors import UserError
from finetune.kernels.packing import Batch

Log = Callable[[int, dict[str, float]], None]
"""Called with the optimizer step and its values."""

_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "eval_loss": "validation/loss",
}


class RunLog(TrainerCallback):
    """Keeps count of tokens and of training time, and passes each log on with memory and time added."""

    def __init__(self, meter: Meter, log: Log) -> None:
        self.meter, self.log = meter, log
        self.tokens = 0
        self.rows: list[tuple[int, dict[str, float]]] = []
        """What was logged, by optimizer step."""
        self.at_step: dict[str, float] = {}
        """Tokens and seconds at the end of the last step."""
        self._before = 0.0
        self._started: float | None = None
        self._ended: float | None = None
        self._paused = 0.0

    def count(self, batch: Batch) -> None:
        """Add the tokens of `batch`, padding left out."""
        self.tokens += int(batch["lengths"].sum())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the block isn't training time."""
        before = self.meter.seconds()
        yield
        self._paused += self.meter.seconds() - before

    def seconds(self) -> float:
        """Training steps alone, without loading and validation, and with what was spent before an interruption."""
        if self._started is None:
            return self._before
        return self._before + (self._ended or self.meter.seconds()) - self._started - self._paused

    def resume(self, rows: list[tuple[int, dict[str, float]]], tokens: int, seconds: float) -> None:
        """Log the `rows` of an interrupted run again, and continue from its `tokens` and `seconds`."""
        for step, values in rows:
            self._pass_on(step, values)
        self.tokens, self._before = tokens, seconds
        self.at_step = {"tokens": tokens, "seconds": seconds}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = self.meter.seconds()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.at_step = {"tokens": self.tokens, "seconds": self.seconds()}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended = self.meter.seconds()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {_NAMES[name]: float(value) for name, value in (logs or {}).items() if name in _NAMES}
        if not values:
            return
        if not all(math.isfinite(value) for value in values.values()):
            raise UserError(
                f"training diverged at step {state.global_step} (loss or gradient is no finite number); "
                f"lower methods.<method>.learning_rate"
            )
        if "train/loss" in values:
            values |= {
                "train/seconds": self.seconds(),
                "train/tokens": self.tokens,
                "memory/process_gb": self.meter.process_gb(),
                "memory/device_gb": self.meter.device_gb(),
            }
        self._pass_on(state.global_step, values)
        self._print(state, values)

    def _pass_on(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, values))
        self.log(step, values)

    def _print(self, state: TrainerState, values: dict[str, float]) -> None:
        """A line after each twentieth of the run, and one after each validation."""
        if "validation/loss" in values:
            print(f"epoch {state.epoch:g}: validation loss {values['validation/loss']:.3f}", flush=True)
        elif state.global_step * 20 // state.max_steps > (state.global_step - 1) * 20 // state.max_steps:
            print(
                f"step {state.global_step} of {state.max_steps}: loss {values['train/loss']:.3f}, "
                f"{self.tokens / self.seconds():.0f} tokens/s, "
                f"{values['memory/device_gb']:.1f} GB on the device, {self.seconds():.0f} s",
                flush=True,
            )
