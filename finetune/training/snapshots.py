"""Snapshots of a training run: when one is written, and what it holds, so that the run resumes from it to the byte."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune.costs.memory_parts import MemoryParts
from finetune.errors import UserError, quoted
from finetune.files import read_json, write_json
from finetune.models.saved import trained
from finetune.resume import state as run_state
from finetune.resume import store
from finetune.resume.signals import Signals

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from peft import PeftModel
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PreTrainedModel

    from finetune.costs.memory_parts import Activations
    from finetune.distributed.group import Group
    from finetune.training.run_log import RunLog
    from finetune.training.validations import Validations

WEIGHTS, OPTIMIZER, BEST, RUN = "weights.safetensors", "optimizer.safetensors", "best.safetensors", "run.json"

SECONDS = 30.0
"""The minimum between two snapshots."""
SHARE = 0.02
"""The largest share of the time that snapshots may take: the longer one takes, the rarer they are."""
_VARIABLE = "FINETUNE_SNAPSHOT_SECONDS"
"""In the environment, and no parameter, because it changes no result: the seconds between two, whatever they cost."""

_RESUMES = "rerun the same command to resume"


def asked_seconds() -> float | None:
    """What the environment sets, if anything. Raises UserError if it is no duration."""
    text = os.environ.get(_VARIABLE)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # nor is "nan"
        raise UserError(f"{_VARIABLE}: must be a number of seconds, 0 or more, got {quoted(text)}")
    return seconds


class TrainingRun(Protocol):
    """The trainer whose snapshots are written."""

    accelerator: Accelerator
    activations: Activations
    lr_scheduler: LambdaLR
    model: PreTrainedModel | PeftModel
    optimizer: AcceleratedOptimizer
    group: Group
    run_log: RunLog
    state: TrainerState
    validations: Validations


class Snapshots(TrainerCallback):
    """Writes snapshots of a run into a folder, periodically and where the trainer's control asks for one."""

    def __init__(
        self, folder: Path, last: Path | None, seconds: float | None, group: Group, signals: Signals, *, shard: bool
    ) -> None:
        """One in `seconds`, None: as `SECONDS` and `SHARE` say; `last` is the snapshot that the run resumes from.

        The first process of `group` writes; if the model is in shards, the others send it theirs.
        """
        self._folder, self._last, self._seconds = folder, last, seconds
        self._group, self._signals, self._shard = group, signals, shard
        self._due = time.monotonic() + (SECONDS if seconds is None else seconds)
        self._first = True
        self._random: dict[str, Any] = read_json(last / RUN).get("random", {}) if last else {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Now, because a snapshot may be asked for after the next step was abandoned halfway.
        self._random = run_state.random_states()
        due = time.monotonic() >= self._due and not control.should_training_stop
        ends, due = self._group.any(self._signals.received is not None, due)
        if ends:
            self._signals.obey()
        if due:
            control.should_save = True

    def write(self, run: TrainingRun) -> None:
        """Write the state at the end of the last step.

        If the disk fails, prints so and lets training continue; but raises UserError if the best weights so far would
        be lost.
        """
        started = time.monotonic()
        try:
            self._write(run)
        except UserError as error:
            # The other processes have sent some of their shards, and wait until the rest is received.
            if run.validations.best_is(run.state.global_step) or self._shard:
                raise
            print(f"no snapshot after step {run.state.global_step}: {error}", file=sys.stderr)
        else:
            self._print_cost(time.monotonic() - started)
        now = time.monotonic()
        self._due = now + (max(SECONDS, (now - started) / SHARE) if self._seconds is None else self._seconds)

    def write_before_end(self, run: TrainingRun) -> str:
        """Write the state at the end of the last step, unless there is none; returns in words what is kept."""
        step, steps = run.state.global_step, run.state.max_steps
        if step == 0:
            return "no step was finished; the next run starts from scratch"
        self._write(run)
        return f"step {step} of {steps} is kept; {_RESUMES}"

    def write_after_loss(self, run: TrainingRun) -> str:
        """As `write_before_end`, after another process has ended. Of a model in shards only the last snapshot is left."""
        logged = run.run_log.rows[-1][0] if run.run_log.rows else 0
        if not self._shard and self._group.is_first and logged == run.state.global_step:
            return self.write_before_end(run)
        return f"the last snapshot is kept; {_RESUMES}" if self._last else ""

    def write_result(self, run: TrainingRun, weights: dict[str, torch.Tensor], memory: MemoryParts) -> None:
        """Write the `weights` that are kept, and everything else that the result of the run is made of."""
        log = run.run_log
        facts = {"tokens": log.tokens, "seconds": log.seconds(), "memory": asdict(memory)}
        try:
            with store.new_snapshot(self._folder, run.state.global_step) as draft:
                run_state.write_tensors(draft / WEIGHTS, weights)
                _write_facts(run, draft, facts)
        except UserError as error:  # the model itself is saved next
            print(f"no snapshot of the result: {error}", file=sys.stderr)

    def best(self) -> Path:
        """The file of the best weights, which the last snapshot has."""
        assert self._last is not None
        return self._last / BEST

    def _print_cost(self, seconds: float) -> None:
        if self._first and self._last is not None:
            size = sum(path.stat().st_size for path in self._last.iterdir()) / 1e9
            print(f"a snapshot takes {seconds:.2f} s and {size:.3f} GB; it is in {self._folder}", flush=True)
        self._first = False

    def _write(self, run: TrainingRun) -> None:
        step = run.state.global_step
        optimizer = run.optimizer.optimizer.state_dict()
        weights, states = trained(run.model), run_state.optimizer_tensors(run.optimizer.optimizer)
        if not self._group.is_first:
            if self._shard:
                run_state.send_tensors(weights)
                run_state.send_tensors(states)
            return
        scaler = run.accelerator.scaler
        facts = {
            **run.run_log.at_step,
            "random": self._random,
            "param_groups": optimizer["param_groups"],
            "scheduler": run.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        with store.new_snapshot(self._folder, step) as draft:
            run_state.write_tensors(draft / WEIGHTS, weights)
            run_state.write_tensors(draft / OPTIMIZER, states)
            if run.validations.best_is(step):
                store.link_or_copy(draft / WEIGHTS, draft / BEST)
            elif self._last is not None and (self._last / BEST).exists():
                store.link_or_copy(self._last / BEST, draft / BEST)
            _write_facts(run, draft, facts)
        self._last = self._folder / f"step-{step}"


def _write_facts(run: TrainingRun, draft: Path, facts: dict[str, Any]) -> None:
    run.state.save_to_json(str(draft / TRAINER_STATE_NAME))
    seen = {
        "rows": run.run_log.rows,
        "validations": run.validations.losses,
        "validation_due": run.validations.due,
        "activations": [run.activations.tokens, run.activations.bytes],
        "meter": run.run_log.meter.record(),
    }
    write_json(draft / RUN, seen | facts)
