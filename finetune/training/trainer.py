"""The Hugging Face Trainer, wired for a response-only loss, exact averages and metered runs."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from finetune import params
from finetune.costs.memory_parts import Activations, MemoryParts, memory_parts
from finetune.costs.meter import Meter
from finetune.device import compute_dtype, device
from finetune.errors import UserError
from finetune.kernels.adamw import SplitAdamW
from finetune.kernels.loss import mean_loss, response_loss, sequence_losses
from finetune.kernels.packing import Batch, longest_pass, micro_batches, pack
from finetune.models import probe

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer
    from datasets import Dataset, DatasetDict

Log = Callable[[int, dict[str, float]], None]
"""Called with the optimizer step and its values."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training run came to."""

    train_loss: float
    """Mean over the last epoch's optimizer steps, nats per response token."""
    validation_loss: float
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
) -> TrainingResult:
    """Train `model` in place on `splits['train']`, validating after each epoch on `splits['validation']`.

    Sequences go through the model several at a time only if it can be `packed`. Raises UserError if the loss stops
    being a finite number, or if training changed no weight.
    """
    shortest = min(splits["train"]["input_ids"], key=len)
    before = probe.outcome(model, shortest)
    columns = ["input_ids", "labels"]
    log_callback = _LogCallback(meter, log)
    with tempfile.TemporaryDirectory() as scratch, _without_input_casts(model):
        trainer = _ResponseTrainer(
            model=model,
            args=_arguments(settings, method, seed, scratch),
            train_dataset=splits["train"].select_columns(columns),
            eval_dataset=splits["validation"].select_columns(columns),
            data_collator=pack,
            processing_class=tokenizer,
            callbacks=[log_callback],
            optimizer_cls_and_kwargs=(SplitAdamW, {"lr": method.learning_rate, "weight_decay": settings.weight_decay}),
        )
        trainer.log_callback = log_callback
        trainer.tokens_per_micro_batch = settings.tokens_per_micro_batch if packed else 1
        # No validation pass is longer than training's longest, for which there is memory.
        lengths = map(len, splits["train"]["input_ids"])
        trainer.validation_tokens = (
            longest_pass(lengths, settings.batch_size, settings.tokens_per_micro_batch) if packed else 1
        )
        trainer.activations = activations = Activations(model)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        held = memory_parts(model, trainer.optimizer.optimizer, activations)
    if torch.equal(probe.outcome(model, shortest), before):
        raise UserError(
            f"training changed nothing that the model answers: raise methods.<method>.learning_rate, which is {method.learning_rate:g}, "
            f"or methods.<method>.epochs"
        )
    return log_callback.result(trainer.state, held)


def _arguments(settings: params.Train, method: params.MethodSettings, seed: int, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=method.epochs,
        learning_rate=method.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=compute_dtype() == torch.bfloat16,
        fp16=compute_dtype() == torch.float16,
        use_cpu=device().type == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device().type == "cuda",
    )


def _without_input_casts(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Under autocast, peft's casts of every adapter input to fp32 and back only cost memory and time."""
    if isinstance(model, PeftModel) and compute_dtype() != torch.float32:
        return disable_input_dtype_casting(model)
    return contextlib.nullcontext()


class _ResponseTrainer(Trainer):
    """Trainer whose losses are means over response tokens: over the accumulated batch, and over the whole split."""

    model: PreTrainedModel | PeftModel
    optimizer: AcceleratedOptimizer
    eval_dataset: Dataset
    log_callback: _LogCallback
    tokens_per_micro_batch: int
    validation_tokens: int
    activations: Activations

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Makes Trainer count the labels of the accumulated batch, though it is we who divide by them, not the model.
        self.model_accepts_loss_kwargs = True

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        assert num_items_in_batch is not None  # `model_accepts_loss_kwargs` sees to that
        model.train()
        self.log_callback.count(inputs)
        total = torch.zeros((), device=self.args.device)
        # Trainer's own step passes a batch through the model whole; a part at a time holds less memory.
        for part in micro_batches(inputs, self.tokens_per_micro_batch):
            part = self._prepare_inputs(part)
            with self.compute_loss_context_manager(), self.activations.watch(part["input_ids"].numel()):
                # By the whole accumulated batch's targets: means of parts would favour the tokens of short parts.
                loss = response_loss(cast("PreTrainedModel | PeftModel", model), part) / num_items_in_batch
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # Not training time, or the speed of training would depend on how much is held out.
        with self.log_callback.paused():
            with self.accelerator.autocast():
                losses = sequence_losses(self.model, self.eval_dataset, self.validation_tokens)
                loss = mean_loss(losses)
            self.model.train()
        self.log({f"{metric_key_prefix}_loss": loss})
        return {f"{metric_key_prefix}_loss": loss}


_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "eval_loss": "validation/loss",
}


class _LogCallback(TrainerCallback):
    """Keeps count of tokens and of training time, and passes each log on with memory and time added."""

    started: float
    seconds: float

    def __init__(self, meter: Meter, log: Log) -> None:
        self.meter, self.log = meter, log
        self.tokens = 0
        self.validating = 0.0

    def count(self, batch: Batch) -> None:
        self.tokens += int(batch["lengths"].sum())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the block isn't training time."""
        before = self.meter.seconds()
        yield
        self.validating += self.meter.seconds() - before

    def training_seconds(self) -> float:
        return self.meter.seconds() - self.started - self.validating

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = self.meter.seconds()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds = self.training_seconds()

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
                "train/seconds": self.training_seconds(),
                "train/tokens": self.tokens,
                "memory/process_gb": self.meter.process_gb(),
                "memory/device_gb": self.meter.device_gb(),
            }
        self.log(state.global_step, values)
        self._print(state, values)

    def _print(self, state: TrainerState, values: dict[str, float]) -> None:
        """A line after each twentieth of the run, and one after each validation."""
        if "validation/loss" in values:
            print(f"epoch {state.epoch:g}: validation loss {values['validation/loss']:.3f}", flush=True)
        elif state.global_step * 20 // state.max_steps > (state.global_step - 1) * 20 // state.max_steps:
            print(
                f"step {state.global_step} of {state.max_steps}: loss {values['train/loss']:.3f}, "
                f"{self.tokens / self.training_seconds():.0f} tokens/s, "
                f"{values['memory/device_gb']:.1f} GB on the device, {self.training_seconds():.0f} s",
                flush=True,
            )

    def result(self, state: TrainerState, held: MemoryParts) -> TrainingResult:
        losses = [(entry["epoch"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        last = [loss for epoch, loss in losses if epoch > losses[-1][0] - 1]
        validation = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        return TrainingResult(
            train_loss=sum(last) / len(last),
            validation_loss=validation[-1],
            seconds=self.seconds,
            epochs=state.epoch,
            tokens=self.tokens,
            memory=held,
        )
