"""Fine-tune the base model by `method`."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, params, places
from finetune.distributed import launcher

if TYPE_CHECKING:
    from finetune.distributed.group import Group


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
    """The part of this process, which writes if it is the first of `group`."""
    import transformers

    from finetune import device
    from finetune.costs.memory_parts import split_peak
    from finetune.costs.meter import Meter
    from finetune.data import prepared
    from finetune.kernels.packing import longest_micro_batch
    from finetune.methods import METHODS
    from finetune.models import probe, saved
    from finetune.models.adapters import trainable
    from finetune.models.base import Base
    from finetune.models.checkpoint import Checkpoint
    from finetune.models.loading import add_end_tokens, parameter_counts
    from finetune.models.targets import check_reached
    from finetune.planner.announce import announce
    from finetune.snapshots.identity import identity
    from finetune.snapshots.unfinished import unfinished
    from finetune.tracking.dvclive import live_log
    from finetune.training import schedule
    from finetune.training.run import train

    method = METHODS[p.method]
    base = Base.named(args.model_name, in_4_bits=method.quantized)
    tokenizer = base.tokenizer
    data = Path(args.dataset or places.PREPARED)
    splits, prepared_facts = prepared.load(data, tokenizer)

    settings = p.methods[p.method]
    schedule.check(p.train, settings, len(splits["train"]))
    advice = announce(base, p, splits["train"])
    checkpoint = Checkpoint(
        out.folder,
        method,
        p.seed,
        base.folder,
        base.fingerprint,
        prepared_facts["template"],
        prepared_facts.get("end_tokens") or [],
        prepared_facts["data"],
        settings=({"lora": vars(p.lora)} if method.adapters else {}) | {"train": vars(p.train) | vars(settings)},
        base_source=base.source,
    )

    # Where the base lies is no matter: its fingerprint is among the facts. Nor is the number of processes.
    run = identity("train", checkpoint.facts() | {"base": None, "base_source": None}, [data])
    group.agree(run, "settings, data, base model, code or versions")
    with unfinished("train", run, out.metrics / "train.json") if group.is_first else nullcontext() as kept:
        meter = Meter().start()
        transformers.set_seed(p.seed)
        extremes = prepared.extremes(splits["train"])
        shard = p.launch.shard and group.size > 1
        with device.enough_memory("choose a smaller model.source, or method qlora"):
            tokens = longest_micro_batch(
                prepared.lengths(splits["train"]), p.train.batch_size, p.train.tokens_per_micro_batch
            )
            model = trainable(base, method, p.lora, tokens, shard=shard)
        add_end_tokens(model, checkpoint.end_tokens)
        if group.is_first:
            saved.check_can_be_saved(model, tokenizer, checkpoint)
            files.check_writable(out.metrics, out.plots)
        with device.enough_memory("lower data.max_length, or choose a smaller model.source"):
            probe.check_vocabulary(model, max(prepared.highest_token(splits["train"]), tokenizer.pad_token_id))
            packed = probe.can_be_packed(model, extremes)
            check_reached(model, extremes[0])
        trained, total = parameter_counts(model)
        where = f"{device.describe()}{f', in {group.size} processes' * (group.size > 1)}"
        print(f"{method.name}: {trained:,} of {total:,} parameters trained, on {where}")
        if not packed:
            print("sequences of this model would hear of each other in one pass: each goes through it alone")
        with live_log(out.plots / "live") if group.is_first else nullcontext() as log, device.enough_memory(advice):
            result = train(
                model,
                tokenizer,
                splits,
                settings=p.train,
                method=settings,
                seed=p.seed,
                packed=packed,
                meter=meter,
                log=log,
                unfinished=kept,
                group=group,
                shard=shard,
            )
        meter.stop()
        peaks = [round(peak, 3) for peak in group.gathered(meter.peak_device_gb())]
        energy = meter.energy(group)
        if not group.is_first:
            return
        saved.save(model, tokenizer, checkpoint, result.weights)
        meter.save(out.plots / places.MEMORY_TABLE)
        files.write_json(
            out.metrics / "train.json",
            {
                "validation_loss": round(result.validation_loss, 4),
                "kept_step": result.kept_step,
                "peak_device_gb": max(peaks),
                "epoch_seconds": round(result.seconds / result.epochs, 1),
                "tokens_per_second": round(result.tokens / result.seconds, 1),
                "size_gb": round(saved.size_gb(out.folder), 4),
                **energy,
            },
        )
        files.write_json(
            out.metrics / "train.facts.json",
            {
                "train_loss": round(result.train_loss, 4),
                "steps": result.steps,
                "train_seconds": round(result.seconds, 1),
                "trained_parameters": trained,
                "peak_process_gb": round(meter.peak_process_gb(), 3),
                **split_peak(result.memory, peaks[0]),
                "hardware": device.describe(),
                "versions": device.versions(),
                "weights": checkpoint.fingerprint,
                **({"peak_device_gb_by_process": peaks} if group.size > 1 else {}),
            },
        )


if __name__ == "__main__":
    cli.run(main)
