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

from finetune import ending, params
from finetune.costs.memory_parts import MemoryParts, memory_parts
from finetune.costs.meter import Meter
from finetune.data import prepared
from finetune.device import compute_dtype
from finetune.distributed.folders import seen_by_all
from finetune.distributed.group import Group
from finetune.distributed.shards import local, whole
from finetune.distributed.wrapped import Passes, wrapped
from finetune.errors import UserError
from finetune.files import read_json
from finetune.models import check_model
from finetune.models.loading import layer_stack
from finetune.models.saved import trained
from finetune.resume import signals as stop_signals
from finetune.resume import state, store
from finetune.resume.signals import Signals
from finetune.training import schedule, snapshots
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
    weights: dict[str, torch.Tensor] | None
    """What was trained, by name, whole, of a model in shards: in the first process, on the CPU. Else the model has it."""


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
    log: Log | None,
    unfinished: Path | None = None,
    group: Group = Group(),  # noqa: B008  # frozen
    shard: bool = False,
) -> TrainingResult:
    """Train `model` in place on `splits['train']`, validating now and then on `splits['validation']`.

    Each process of `group` computes a share, of all the weights or, if the model is to `shard`, of a part of them.
    Snapshots go to the folder `unfinished`, and a run that has left one there resumes from it. Sequences go through the
    model several at a time only if it can be `packed`. Raises UserError if the loss stops being a finite number, if
    training changed no weight, or if another process ends; `ending.Ended` after a signal.
    """
    shard = shard and group.size > 1
    shortest, _ = prepared.extremes(splits["train"])
    with tempfile.TemporaryDirectory() as scratch, _without_input_casts(model):
        folder = unfinished or Path(scratch)
        resumed = seen_by_all(store.newest_snapshot(folder) if group.is_first else None, group, Path(scratch))
        passes, signals = wrapped(model, layer_stack(model), group, shard=shard), Signals(alone=group.size == 1)
        before = _effect(model, shortest, passes)
        points = schedule.validation_steps(settings, method, len(splits["train"]))
        trainer = ResponseTrainer(
            model,
            tokenizer,
            splits,
            args=arguments(settings, method, seed, scratch),
            tokens_per_micro_batch=settings.tokens_per_micro_batch if packed else 1,
            passes=passes,
            group=group,
            run_log=RunLog(meter, log or (lambda step, values: None)),
            validations=Validations(points, settings.keep, settings.patience),
            snapshots=Snapshots(folder, resumed, group.from_first(_seconds(unfinished)), group, signals, shard=shard),
        )
        memory = _restore(trainer, resumed) if resumed else None
        _make_steps(trainer, resumed, signals)
        if not group.any(not torch.equal(_effect(model, shortest, passes), before))[0]:
            raise UserError(
                f"training changed nothing that the model answers: raise methods.<method>.learning_rate, which is "
                f"{method.learning_rate:g}, or methods.<method>.epochs"
            )
        weights = _kept_weights(trainer, ended_before=memory is not None)
        if memory is None:
            memory = memory_parts(trainer.model, trainer.optimizer.optimizer, trainer.activations)
            if unfinished:
                trainer.snapshots.write_result(trainer, weights, memory)
    return _result(trainer, memory, weights if shard else None)


def _effect(model: PreTrainedModel | PeftModel, ids: list[int], passes: Passes) -> torch.Tensor:
    """What training has to change for the checkpoint to differ from its base: for adapters the model's output for `ids`;
    for full fine-tuning the weights in bf16, as they are saved, by a hash of those in this process."""
    if isinstance(model, PeftModel):
        return check_model.outcome(model, ids, passes)
    hashes = [torch.hash_tensor(local(weight).to(torch.bfloat16)) for weight in trained(model).values()]
    return torch.stack(hashes).view(torch.int64)


def _seconds(unfinished: Path | None) -> float | None:
    """Seconds between two snapshots."""
    return snapshots.asked_seconds() if unfinished else math.inf


def _kept_weights(trainer: ResponseTrainer, *, ended_before: bool) -> dict[str, torch.Tensor]:
    """The trained weights that are kept, in the first process; a model that isn't in shards then holds them."""
    best = not ended_before and trainer.validations.kept()[0] != trainer.state.global_step
    weights = trained(trainer.model)
    sharded = any(local(weight) is not weight for weight in weights.values())
    if not trainer.group.is_first:
        if sharded and not best:
            state.send_tensors(weights)
        return {}
    if not sharded:
        if best:
            state.load_weights(trainer.model, trainer.snapshots.best())
        return weights
    if best:
        return dict(state.read_tensors(trainer.snapshots.best()))
    return {name: whole(weight).cpu() for name, weight in weights.items()}


def _restore(trainer: ResponseTrainer, resumed: Path) -> MemoryParts | None:
    """Take over what the run had seen until `resumed`; if that was its end, return its memory."""
    facts = read_json(resumed / snapshots.RUN)
    state = TrainerState.load_from_json(str(resumed / TRAINER_STATE_NAME))
    print(f"resuming after step {state.global_step} of {state.max_steps}, where this run was interrupted")
    if trainer.group.is_first:  # whose memory and energy it was
        trainer.run_log.meter.resume(facts["meter"])
    trainer.run_log.resume(facts["rows"], facts["tokens"], facts["seconds"])
    trainer.validations.resume(facts["validations"], facts["validation_due"])
    trainer.activations.tokens, trainer.activations.bytes = facts["activations"]
    return MemoryParts(**facts["memory"]) if "memory" in facts else None


def _make_steps(trainer: ResponseTrainer, resumed: Path | None, signals: Signals) -> None:
    """All steps of the run, or those after `resumed`."""
    with stop_signals.raised_before_forward(trainer.model, signals):
        try:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except Over:
            pass
        except stop_signals.StopRequested as signal:
            raise ending.Ended(signal.args[0], trainer.snapshots.write_before_end(trainer)) from None
        except RuntimeError as error:
            if not trainer.group.is_loss(error):
                raise
            kept = trainer.snapshots.write_after_loss(trainer)
            raise UserError(f"{ending.LOST}{kept and f'; {kept}'}") from error


def _without_input_casts(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Under autocast, peft's casts of every adapter input to fp32 and back only cost memory and time."""
    if isinstance(model, PeftModel) and compute_dtype() != torch.float32:
        return disable_input_dtype_casting(model)
    return contextlib.nullcontext()


def _result(trainer: ResponseTrainer, memory: MemoryParts, weights: dict[str, torch.Tensor] | None) -> TrainingResult:
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
        weights=weights,
    )
