"""The trainers that the cost benchmark compares: ours, TRL's, and the ordinary Trainer recipe, on the same work.

Each contender runs in a process of its own: `python benchmarks/contenders.py NAME --records 64` trains over the
records once and prints one JSON line with what it cost and what it learnt.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune import cli, params, places
from finetune.errors import UserError
from finetune.methods import METHODS
from finetune.models.base import Base

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from finetune.costs.meter import Meter


@dataclass(frozen=True)
class Work:
    """What every contender is given: model, batches' raw material, and settings."""

    base: "Base"
    tokenizer: "PreTrainedTokenizerBase"
    train: "Dataset"
    held_out: "Dataset"
    settings: params.Params

    def trainable(self, method: str, tokens: int) -> Any:
        """The model as ours trains it by `method`, in passes of `tokens` tokens."""
        from finetune.models.adapters import trainable

        base = self.base.in_4_bits() if METHODS[method].quantized else self.base
        return trainable(base, METHODS[method], self.settings.lora, tokens)

    def plain(self, method: str, dtype: Any) -> Any:
        """The model as the others are given it, weights in `dtype` or, if `method` wants that, in 4 bits."""
        from finetune.models.loading import load_base

        return load_base(self.base, dtype, self.settings.quantization if METHODS[method].quantized else None)


def prepare(args: argparse.Namespace) -> Work:
    """The first records of the prepared training split and 16 of the validation split, cut to --max_length tokens.

    With --fill each training sequence is exactly that long: records end to end, every token a target.
    """
    from datasets import Dataset, disable_caching

    from finetune.data import prepared

    disable_caching()  # datasets would keep what it maps and filters in data/prepared, which DVC tracks
    base = Base.named(None)
    tokenizer = base.tokenizer
    splits, _ = prepared.load(places.PREPARED, tokenizer)

    def cut(rows, count: int):
        rows = rows.select_columns(["input_ids", "labels"]).map(
            lambda row: {key: row[key][: args.max_length] for key in ("input_ids", "labels")}
        )
        rows = rows.filter(lambda row: any(label != -100 for label in row["labels"]))
        if len(rows) < count:
            raise UserError(
                f"--records: only {len(rows)} prepared records are there; raise data.size and run dvc repro"
            )
        return rows.select(range(count))

    def filled(rows, count: int):
        tokens = [token for row in rows["input_ids"] for token in row]
        parts = [[tokens[(start + n) % len(tokens)] for n in range(args.max_length)] for start in range(count)]
        return Dataset.from_dict({"input_ids": parts, "labels": parts})

    train = (filled if args.fill else cut)(splits["train"], args.records)
    p = params.load()
    settings = replace(
        p,
        lora=replace(p.lora, r=args.rank or p.lora.r),
        train=replace(p.train, batch_size=args.batch_size or p.train.batch_size),
    )
    return Work(Base(args.model) if args.model else base, tokenizer, train, cut(splits["validation"], 16), settings)


@dataclass(frozen=True)
class Result:
    """What a contender's run came to."""

    seconds: float
    """Training steps alone."""
    losses: list[float]
    """Training loss of each optimizer step, nats per response token."""
    held_out_loss: float
    ends: list[float]
    """Seconds from the start of training to the end of each optimizer step."""


def ours(work: Work, method: str, meter: "Meter") -> Result:
    """This repository's trainer."""
    from datasets import DatasetDict

    from finetune.kernels.packing import longest_micro_batch
    from finetune.training.run import train

    p = work.settings.train
    tokens = longest_micro_batch(map(len, work.train["input_ids"]), p.batch_size, p.tokens_per_micro_batch)
    steps = []
    result = train(
        work.trainable(method, tokens),
        work.tokenizer,
        DatasetDict(train=work.train, validation=work.held_out),
        settings=p,
        method=replace(work.settings.methods[method], epochs=1.0),
        seed=0,
        packed=True,
        meter=meter,
        log=lambda step, values: steps.append(values) if "train/loss" in values else None,
    )
    losses, ends = ([step[f"train/{name}"] for step in steps] for name in ("loss", "seconds"))
    return Result(result.seconds, losses, result.validation_loss, ends)


def trl(work: Work, method: str, meter: "Meter", *, dropout: float = 0.05, **config) -> Result:
    """TRL's SFTTrainer, adapters on every linear layer, other settings its own unless `config` says otherwise."""
    import torch
    from trl import SFTConfig, SFTTrainer

    method_settings = work.settings.methods[method]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=work.plain(method, torch.float32 if method == "full" else torch.bfloat16),
            args=SFTConfig(**_common(work, method_settings, folder) | dict(max_length=None) | config),
            train_dataset=work.train,
            processing_class=work.tokenizer,
            peft_config=None if method == "full" else _lora(work, dropout),
        )
        return _run(trainer, work)


def plain(work: Work, method: str, meter: "Meter", *, dropout: float = 0.05, **config) -> Result:
    """The ordinary recipe: peft and bitsandbytes under transformers' Trainer, batches padded, the model's own loss."""
    import torch
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    method_settings = work.settings.methods[method]
    model = get_peft_model(work.plain(method, torch.bfloat16), _lora(work, dropout))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**_common(work, method_settings, folder), bf16=True, **config),
            train_dataset=work.train,
            data_collator=DataCollatorForSeq2Seq(work.tokenizer),
            processing_class=work.tokenizer,
        )
        return _run(trainer, work)


def _lora(work: Work, dropout: float):
    from peft import LoraConfig

    lora = work.settings.lora
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=dropout,
        target_modules="all-linear",
    )


def _common(work: Work, method: params.MethodSettings, folder: str) -> dict:
    """Settings in which all peers are given what ours has."""
    from finetune.device import device

    train = work.settings.train
    return dict(
        output_dir=folder,
        num_train_epochs=1,
        learning_rate=method.learning_rate,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=1,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device().type == "cpu",
    )


def _run(trainer, work: Work) -> Result:
    from transformers import PrinterCallback, TrainerCallback

    from finetune.kernels import loss

    ends = []

    class Clock(TrainerCallback):
        def on_log(self, *args, **kwargs):  # the loss has been read then, so that the device is done
            ends.append(time.perf_counter() - started)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with trainer.accelerator.autocast():
        held_out = loss.mean_loss(loss.sequence_losses(trainer.model, work.held_out))
    return Result(seconds, losses, held_out, ends[: len(losses)])


FAST: dict[str, Any] = dict(gradient_checkpointing=False, optim="adamw_torch_fused")
"""What made TRL faster here, whatever it does about padding: no activation checkpointing."""

BEST: dict[str, Any] = FAST | dict(train_sampling_strategy="group_by_length")
"""Batches of like length."""


@dataclass(frozen=True)
class Contender:
    """One trainer with its settings, and its colour: blue for QLoRA, orange for all parameters, ours as `METHODS` has it."""

    run: Callable[[Work, "Meter"], Result]
    color: str


def _packed(work: Work) -> dict[str, Any]:
    """As many tokens a batch as the others have at most, in one row."""
    most = work.settings.train.batch_size * max(map(len, work.train["input_ids"]))
    return FAST | dict(packing=True, max_length=most, per_device_train_batch_size=1)


CONTENDERS = {
    "ours qlora": Contender(lambda work, meter: ours(work, "qlora", meter), METHODS["qlora"].color),
    "ours full": Contender(lambda work, meter: ours(work, "full", meter), METHODS["full"].color),
    "trl qlora": Contender(lambda work, meter: trl(work, "qlora", meter), "#56B4E9"),
    "trl qlora tuned": Contender(lambda work, meter: trl(work, "qlora", meter, dropout=0.0, **BEST), "#88CCEE"),
    "trl qlora padding free": Contender(
        lambda work, meter: trl(work, "qlora", meter, dropout=0.0, **FAST, padding_free=True), "#332288"
    ),
    "trl qlora packed": Contender(
        lambda work, meter: trl(work, "qlora", meter, dropout=0.0, **_packed(work)), "#44AA99"
    ),
    "trl full": Contender(lambda work, meter: trl(work, "full", meter), "#E69F00"),
    "trl full tuned": Contender(lambda work, meter: trl(work, "full", meter, **BEST), "#F0C75E"),
    "plain qlora": Contender(lambda work, meter: plain(work, "qlora", meter), "#000000"),
}


def parameters(folder: Path) -> int:
    """Of the model in `folder`, from its file's header."""
    from safetensors import safe_open

    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in sorted(file.keys()))


def matrix_rate() -> float:
    """bf16 operations a second that this machine reaches in one of the model's own matrix products, repeated."""
    import torch

    from finetune.device import device

    x, weight = (torch.randn(rows, 576, device=device()).bfloat16() for rows in (1024, 1536))

    def run(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            y = torch.nn.functional.linear(x, weight)
        y.flatten()[0].item()
        return time.perf_counter() - started

    run(20)
    return 2 * 1024 * 576 * 1536 * 300 / run(300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CONTENDERS))
    parser.add_argument("--records", type=int, default=64, help="training records, each seen once (default: 64)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a record at most (default: 256)")
    parser.add_argument("--fill", action="store_true", help="make every sequence exactly --max_length tokens long")
    parser.add_argument("--batch_size", type=int, help="sequences per batch (default: from params.yaml)")
    parser.add_argument("--rank", type=int, help="rank of the adapters (default: from params.yaml)")
    parser.add_argument("--model", type=Path, help="folder of another base model with the same tokenizer")
    args = parser.parse_args()

    import transformers

    from finetune.costs.meter import Meter, peak_process_gb
    from finetune.training import run  # noqa: F401  (imported before the memory baseline is taken)

    if args.name.startswith("trl"):
        import trl  # noqa: F401

    import bitsandbytes  # noqa: F401

    work = prepare(args)
    meter = Meter().start()
    floor = meter.process_gb()
    transformers.set_seed(0)  # or the adapters would start otherwise from run to run
    result = CONTENDERS[args.name].run(work, meter)
    meter.stop()
    tokens = sum(map(len, work.train["input_ids"]))
    print(
        json.dumps(
            {
                "name": args.name,
                "tokens": tokens,
                "parameters": parameters(work.base.folder),
                "trl": version("trl"),
                "matrix_gflops": round(matrix_rate() / 1e9, 1),
                "seconds": round(result.seconds, 2),
                "tokens_per_second": round(tokens / result.seconds, 1),
                "import_gb": round(floor, 3),
                "peak_process_gb": round(peak_process_gb(), 3),
                "peak_device_gb": round(meter.peak_device_gb(), 3),
                "losses": [round(value, 4) for value in result.losses],
                "held_out_loss": round(result.held_out_loss, 4),
            }
        )
    )


if __name__ == "__main__":
    cli.run(main)
