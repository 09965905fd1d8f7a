"""The Hugging Face Trainer, wired for a response-only loss, exact averages, metered runs, and snapshots of our own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from finetune import params
from finetune.costs.memory_parts import Activations
from finetune.data import prepared
from finetune.device import compute_dtype, device
from finetune.distributed.group import Group
from finetune.distributed.wrapped import Passes
from finetune.files import read_json
from finetune.kernels.adamw import SplitAdamW
from finetune.kernels.loss import mean_loss, response_loss
from finetune.kernels.packing import Batch, longest_micro_batch, pack
from finetune.resume import state as run_state
from finetune.training import snapshots
from finetune.training.run_log import RunLog
from finetune.training.shares import own_share, shared_losses
from finetune.training.snapshots import Snapshots
from finetune.training.validations import Validations

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer
    from datasets import Dataset, DatasetDict
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PreTrainedTokenizerBase


def arguments(settings: params.Train, method: params.MethodSettings, seed: int, folder: str) -> TrainingArguments:
    """What Trainer is to do; logs, validations and snapshots are callbacks' matter."""
    made = TrainingArguments(
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
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device().type == "cuda",
    )
    # With several GPUs in sight Trainer would copy the model to each at every pass; here a process has one.
    made._n_gpu = min(1, made.n_gpu)
    return made


class ResponseTrainer(Trainer):
    """Trainer whose losses are means over response tokens: over the accumulated batch, and over the whole split."""

    model: PreTrainedModel | PeftModel
    optimizer: AcceleratedOptimizer
    lr_scheduler: LambdaLR
    eval_dataset: Dataset

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        splits: DatasetDict,
        *,
        args: TrainingArguments,
        tokens_per_micro_batch: int,
        passes: Passes,
        group: Group,
        run_log: RunLog,
        validations: Validations,
        snapshots: Snapshots,
    ) -> None:
        """Of `splits` (input_ids, labels); at most `tokens_per_micro_batch` tokens go through the model at a time, by
        `passes`, in each process of `group`."""
        super().__init__(
            model=model,
            args=args,
            train_dataset=splits["train"].select_columns(["input_ids", "labels"]),
            eval_dataset=splits["validation"].select_columns(["input_ids", "labels"]),
            data_collator=pack,
            processing_class=tokenizer,
            # In this order: the clock starts before a validation that is due.
            callbacks=[run_log, validations, snapshots],
            optimizer_cls_and_kwargs=(SplitAdamW, {"lr": args.learning_rate, "weight_decay": args.weight_decay}),
        )
        self.remove_callback(PrinterCallback)
        # Makes Trainer count the labels of the accumulated batch, though it is we who divide by them, not the model.
        self.model_accepts_loss_kwargs = True
        self.run_log, self.validations, self.snapshots = run_log, validations, snapshots
        self.passes, self.group = passes, group
        run_state.offset_random(group.rank)
        validations.validate = self.evaluate
        self.activations = Activations(model)
        self._tokens_per_micro_batch = tokens_per_micro_batch
        # No validation pass is longer than training's longest, for which there is memory.
        self._tokens_per_validation = (
            longest_micro_batch(
                prepared.lengths(splits["train"]), args.per_device_train_batch_size, tokens_per_micro_batch
            )
            if tokens_per_micro_batch > 1
            else 1
        )

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        assert num_items_in_batch is not None  # `model_accepts_loss_kwargs` sees to that
        model.train()
        self.run_log.count(inputs)
        total = torch.zeros((), device=self.args.device)
        # Trainer's own step passes a batch through the model whole; a part at a time holds less memory.
        parts = own_share(inputs, self._tokens_per_micro_batch, self.group)
        for number, part in enumerate(parts, start=1):
            is_steps_last = number == len(parts) and self.accelerator.sync_gradients
            with nullcontext() if is_steps_last else self.passes.gradients_kept():
                part = self._prepare_inputs(part)
                with self.compute_loss_context_manager(), self.activations.watch(part["input_ids"].numel()):
                    # By the whole accumulated batch's targets: means of parts would favour the tokens of short parts.
                    loss = self.passes(response_loss, part) / num_items_in_batch
                self.accelerator.backward(loss)
            total += loss.detach()
        return self.group.total(total)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # Not training time, or the speed of training would depend on how much is held out.
        with self.run_log.paused():
            with self.accelerator.autocast():
                self.model.eval()
                losses = shared_losses(self.passes, self.eval_dataset, self._tokens_per_validation, self.group)
                loss = mean_loss(losses)
            self.model.train()
        self.log({f"{metric_key_prefix}_loss": loss})
        self.validations.note(self.state.global_step, loss, self.control)
        return {f"{metric_key_prefix}_loss": loss}

    # Trainer's own checkpoints are pickled, aren't whole or not there, and copy the weights in memory to be written.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.snapshots.write(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        run_state.load_weights(self.model, Path(resume_from_checkpoint) / snapshots.WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / snapshots.OPTIMIZER).exists():  # a run at its end has none
            facts = read_json(Path(checkpoint) / snapshots.RUN)
            optimizer = cast(SplitAdamW, self.optimizer.optimizer)
            optimizer.load_state_dict({"state": {}, "param_groups": facts["param_groups"]})
            for name, value in run_state.read_tensors(Path(checkpoint) / snapshots.OPTIMIZER):
                index, key = name.split(".")
                optimizer.take(int(index), key, value)
            self.lr_scheduler.load_state_dict(facts["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        facts = read_json(Path(checkpoint) / snapshots.RUN) if checkpoint is not None else {}
        if self.accelerator.scaler and "scaler" in facts:
            self.accelerator.scaler.load_state_dict(facts["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            run_state.restore_random(read_json(Path(checkpoint) / snapshots.RUN)["random"])
            run_state.offset_random(self.group.rank)
