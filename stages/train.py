"""Fine-tune the base model by `method`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, params, places
from finetune.distributed import launcher

if TYPE_CHECKING:
    from datasets import DatasetDict
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune.costs.meter import Meter
    from finetune.distributed.group import Group
    from finetune.models.base import Base
    from finetune.models.checkpoint import Checkpoint
    from finetune.training.run import TrainingResult

    Model = PreTrainedModel | PeftModel


def main() -> None:
    """Make models/tuned out of models/base and data/prepared, in one process or several."""
    args = cli.parser(__doc__, ["--method", "--model_name", "--dataset", "--out_dir"]).parse_args()
    p = params.load({"method": args.method})
    out = places.places(args.out_dir, places.TUNED)
    cli.check_replaceable(out.folder)
    if launcher.launched(p.launch.processes, over_machines=True):
        return

    from finetune.distributed.group import joined

    with joined() as group:
        _train(args, p, out, group)


def _train(args: Namespace, p: params.Params, out: places.Places, group: Group) -> None:
    """The share of this process, which writes if it is the first of `group`."""
    from finetune import device
    from finetune.costs.meter import Meter
    from finetune.planner.report import announce
    from finetune.resume.identity import identity
    from finetune.resume.store import run_folder

    data = Path(args.dataset or places.PREPARED)
    work = _work(args, p, out, data, group)
    advice = announce(work.base, p, work.splits["train"])
    # Where the base lies doesn't matter: its fingerprint is among the facts. Nor does the number of processes.
    run = identity("train", work.checkpoint.facts() | {"base": None, "base_source": None}, [data])
    group.agree(run, "settings, data, base model, code or versions")
    with run_folder("train", run, out.metrics / "train.json") if group.is_first else nullcontext() as kept:
        meter = Meter().start()
        model = _model(work)
        packed = _checked(work, model)
        with device.enough_memory(advice):
            result = _trained(work, model, packed, meter, kept)
        meter.stop()
        _write(work, model, result, meter)


@dataclass(frozen=True)
class _Work:
    """What is trained, on what, by which settings."""

    p: params.Params
    out: places.Places
    base: Base
    splits: DatasetDict
    checkpoint: Checkpoint
    """What will be saved."""
    group: Group

    @property
    def shard(self) -> bool:
        """Whether each process holds a part of the model."""
        return self.p.launch.shard and self.group.size > 1


def _work(args: Namespace, p: params.Params, out: places.Places, data: Path, group: Group) -> _Work:
    """The base and the prepared data. Raises UserError if they don't fit each other or the settings."""
    from finetune.data import prepared
    from finetune.methods import METHODS
    from finetune.models.base import Base
    from finetune.models.checkpoint import Checkpoint
    from finetune.training import schedule

    method, settings = METHODS[p.method], p.methods[p.method]
    base = Base.named(args.model_name, in_4_bits=method.quantized)
    splits, facts = prepared.load(data, base.tokenizer)
    schedule.check(p.train, settings, len(splits["train"]))
    groups = {"lora": vars(p.lora)} if method.adapters else {}
    checkpoint = Checkpoint(
        out.folder,
        method,
        p.seed,
        base_folder=base.folder,
        base_fingerprint=base.fingerprint,
        template=facts["template"],
        end_tokens=facts.get("end_tokens") or [],
        data=facts["data"],
        settings=groups | {"train": vars(p.train) | vars(settings)},
        base_source=base.source,
    )
    return _Work(p, out, base, splits, checkpoint, group)


def _model(work: _Work) -> Model:
    """The base model as the method trains it."""
    import transformers

    from finetune import device
    from finetune.data import prepared
    from finetune.kernels.packing import longest_micro_batch
    from finetune.models.adapters import trainable
    from finetune.models.loading import add_end_tokens

    p = work.p
    transformers.set_seed(p.seed)
    tokens = longest_micro_batch(
        prepared.lengths(work.splits["train"]), p.train.batch_size, p.train.tokens_per_micro_batch
    )
    with device.enough_memory("choose a smaller model.source, or method qlora"):
        model = trainable(work.base, work.checkpoint.method, p.lora, tokens, shard=work.shard)
    add_end_tokens(model, work.checkpoint.end_tokens)
    return model


def _checked(work: _Work, model: Model) -> bool:
    """Whether sequences can share a micro-batch. Raises UserError if the result wouldn't be worth the hours."""
    from finetune import device
    from finetune.models import saved
    from finetune.models.check_model import check_model
    from finetune.models.loading import parameter_counts

    tokenizer, processes = work.base.tokenizer, work.group.size
    if work.group.is_first:
        saved.check_can_be_saved(model, tokenizer, work.checkpoint)
        files.check_writable(work.out.metrics, work.out.plots)
    with device.enough_memory("lower data.max_length, or choose a smaller model.source"):
        packed = check_model(model, work.splits["train"], tokenizer.pad_token_id, adapters=True)
    trained, total = parameter_counts(model)
    where = f"{device.describe()}{f', in {processes} processes' * (processes > 1)}"
    print(f"{work.checkpoint.method.name}: {trained:,} of {total:,} parameters trained, on {where}")
    if not packed:
        print("this model carries state across packed sequences; packing is off")
    return packed


def _trained(work: _Work, model: Model, packed: bool, meter: Meter, kept: Path | None) -> TrainingResult:
    """Train `model` in place, from the last snapshot in `kept` if there is one."""
    from finetune.tracking.dvclive import live_log
    from finetune.training.run import train

    p, group = work.p, work.group
    with live_log(work.out.plots / "live") if group.is_first else nullcontext() as log:
        return train(
            model,
            work.base.tokenizer,
            work.splits,
            settings=p.train,
            method=p.methods[p.method],
            seed=p.seed,
            packed=packed,
            meter=meter,
            log=log,
            unfinished=kept,
            group=group,
            shard=work.shard,
        )


def _write(work: _Work, model: Model, result: TrainingResult, meter: Meter) -> None:
    """Write the model, and what it cost; the first of the group does."""
    from finetune.models import saved
    from finetune.models.loading import parameter_counts

    group = work.group
    peaks = [round(peak, 3) for peak in group.gathered(meter.peak_device_gb())]
    energy = meter.energy(group)
    if not group.is_first:
        return
    out, trained = work.out, parameter_counts(model)[0]
    saved.save(model, work.base.tokenizer, work.checkpoint, result.weights)
    meter.save(out.plots / places.MEMORY_TABLE)
    figures = {
        "validation_loss": round(result.validation_loss, 4),
        "kept_step": result.kept_step,
        "peak_device_gb": max(peaks),
        "epoch_seconds": round(result.seconds / result.epochs, 1),
        "tokens_per_second": round(result.tokens / result.seconds, 1),
        "size_gb": round(saved.size_gb(out.folder), 4),
    }
    files.write_json(out.metrics / "train.json", figures | energy)
    files.write_json(out.metrics / "train.facts.json", _facts(work, result, meter, peaks, trained))


def _facts(work: _Work, result: TrainingResult, meter: Meter, peaks: list[float], trained: int) -> dict:
    """What else is known of the run: its steps, its memory in parts, and what it ran on."""
    from finetune import device
    from finetune.costs.memory_parts import split_peak

    return {
        "train_loss": round(result.train_loss, 4),
        "steps": result.steps,
        "train_seconds": round(result.seconds, 1),
        "trained_parameters": trained,
        "peak_process_gb": round(meter.peak_process_gb(), 3),
        **split_peak(result.memory, peaks[0]),
        "hardware": device.describe(),
        "versions": device.versions(),
        "weights": work.checkpoint.fingerprint,
        **({"peak_device_gb_by_process": peaks} if len(peaks) > 1 else {}),
    }


if __name__ == "__main__":
    cli.run(main)
