"""A training run, from its start or from the last snapshot of it, to what it came to."""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from finetune import endings, params
from finetune.costs.memory_parts import MemoryParts, memory_parts
from finetune.costs.meter import Meter
from finetune.device import compute_dtype
from finetune.errors import UserError
from finetune.files import read_json
from finetune.models import probe
from finetune.snapshots import snapshot
from finetune.training import schedule, snapshots, stopping
from finetune.training.run_log import Log, RunLog
from finetune.training.snapshots import Snapshots
from finetune.training.trainer import ResponseTrainer, arguments
from finetune.training.validations import Over, Validations

if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True)
class TrainingResult:
    """What a training run came to."""

    train_loss: float
    """Mean over the last epoch's optimizer steps, nats per response token."""
    validation_loss: float
    """Of the weights that are kept."""
    kept_step: int
    """The optimizer step after which the model had them."""
    steps: int
    """Optimizer steps made."""
    seconds: float
    """Training steps alone, without loading and validation."""
    epochs: float
    tokens: int
    """Tokens seen, padding left out."""
    memory: MemoryParts


def train(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: DatasetDict,
    *,
    settings: params.Train,
    method: params.MethodSettings,
    seed: int,
    packed: bool,
    meter: Meter,
    log: Log,
    unfinished: Path | None = None,
) -> TrainingResult:
    """Train `model` in place on `splits['train']`, validating now and then on `splits['validation']`.

    Snapshots go to the folder `unfinished`, and a run that has left one there goes on from it. Sequences go through the
    model several at a time only if it can be `packed`. Raises UserError if the loss stops being a finite number, or if
    training changed no weight; `endings.Ended` after a signal.
    """
    shortest = min(splits["train"]["input_ids"], key=len)
    before = probe.outcome(model, shortest)
    with tempfile.TemporaryDirectory() as scratch, _without_input_casts(model):
        folder = unfinished or Path(scratch)
        resumed = snapshot.newest(folder)
        points = schedule.validation_steps(settings, method, len(splits["train"]))
        trainer = ResponseTrainer(
            model,
            tokenizer,
            splits,
            args=arguments(settings, method, seed, scratch),
            tokens_per_micro_batch=settings.tokens_per_micro_batch if packed else 1,
            run_log=RunLog(meter, log),
            validations=Validations(points, settings.keep, settings.patience),
            snapshots=Snapshots(folder, resumed, snapshots.asked_seconds() if unfinished else math.inf),
        )
        memory = _restore(trainer, resumed) if resumed else None
        _make_steps(trainer, resumed)
        if memory is None:
            memory = memory_parts(trainer.model, trainer.optimizer.optimizer, trainer.activations)
            if trainer.validations.kept()[0] != trainer.state.global_step:
                trainer.snapshots.load_best(trainer.model)
            if unfinished:
                trainer.snapshots.write_result(trainer, memory)
    if torch.equal(probe.outcome(model, shortest), before):
        raise UserError(
            f"training changed nothing that the model answers: raise methods.<method>.learning_rate, which is {method.learning_rate:g}, "
            f"or methods.<method>.epochs"
        )
    return _result(trainer, memory)


def _restore(trainer: ResponseTrainer, resumed: Path) -> MemoryParts | None:
    """Take over what the run had seen until `resumed`; if that was its end, return its memory."""
    facts = read_json(resumed / snapshots.RUN)
    state = TrainerState.load_from_json(str(resumed / TRAINER_STATE_NAME))
    print(f"going on after step {state.global_step} of {state.max_steps}, where this run was interrupted")
    trainer.run_log.meter.resume(facts["meter"])
    trainer.run_log.resume(facts["rows"], facts["tokens"], facts["seconds"])
    trainer.validations.resume(facts["validations"], facts["validation_due"])
    trainer.activations.tokens, trainer.activations.bytes = facts["activations"]
    return MemoryParts(**facts["memory"]) if "memory" in facts else None


def _make_steps(trainer: ResponseTrainer, resumed: Path | None) -> None:
    """All steps of the run, or those after `resumed`."""
    with stopping.at_next_pass(trainer.model):
        try:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except Over:
            pass
        except stopping.Stopped as signal:
            raise endings.Ended(signal.args[0], trainer.snapshots.write_before_end(trainer)) from None


def _without_input_casts(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Under autocast, peft's casts of every adapter input to fp32 and back only cost memory and time."""
    if isinstance(model, PeftModel) and compute_dtype() != torch.float32:
        return disable_input_dtype_casting(model)
    return contextlib.nullcontext()


def _result(trainer: ResponseTrainer, memory: MemoryParts) -> TrainingResult:
    state: Any = trainer.state
    losses = [(entry["epoch"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    last = [loss for epoch, loss in losses if epoch > losses[-1][0] - 1]
    kept_step, validation_loss = trainer.validations.kept()
    return TrainingResult(
        train_loss=sum(last) / len(last),
        validation_loss=validation_loss,
        kept_step=kept_step,
        steps=state.global_step,
        seconds=trainer.run_log.seconds(),
        epochs=state.epoch,
        tokens=trainer.run_log.tokens,
        memory=memory,
    )
