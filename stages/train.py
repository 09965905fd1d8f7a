"""Fine-tune the base model by `method`."""

from pathlib import Path

from finetune import cli, params, places


def main() -> None:
    """Make models/tuned out of models/base and data/prepared."""
    args = cli.parser(__doc__, ["--method", "--model_name", "--dataset", "--out_dir"]).parse_args()
    p = params.load({"method": args.method})
    out = places.places(args.out_dir, places.TUNED)
    cli.check_replaceable(out.folder)

    import transformers

    from finetune import device, files
    from finetune.costs.memory_parts import split_peak
    from finetune.costs.meter import Meter, peak_process_gb
    from finetune.data import prepared
    from finetune.methods import METHODS
    from finetune.models import saved
    from finetune.models import tokenizer as tokenizers
    from finetune.models.adapters import trainable
    from finetune.models.base import parameter_counts
    from finetune.sources.fetch import base_folder
    from finetune.sources.provenance import provenance
    from finetune.tracking.dvclive import live_log
    from finetune.training.trainer import train

    method = METHODS[p.method]
    base = base_folder(args.model_name)
    tokenizer = tokenizers.load(base)
    splits, prepared_facts = prepared.load(Path(args.dataset or places.PREPARED), tokenizer)

    meter = Meter().start()
    transformers.set_seed(p.seed)
    model = trainable(base, method, p.lora, p.quantization)
    trained, total = parameter_counts(model)
    print(f"{method.name}: {trained:,} of {total:,} parameters trained, on {device.describe()}")
    with live_log(out.plots / "live") as log:
        result = train(
            model, tokenizer, splits, settings=p.train, method=p.methods[p.method], seed=p.seed, meter=meter, log=log
        )
    meter.stop()

    facts = {
        "method": method.name,
        "seed": p.seed,
        "base": str(base),
        "template": prepared_facts["template"],
        "data": prepared_facts["data"],
        "quantization": vars(p.quantization) if method.quantized else None,
    }
    saved.save(model, tokenizer, facts, provenance(base), out.folder)
    meter.save(out.plots / places.MEMORY_TABLE)
    peak = round(meter.peak_device_gb(), 3)
    files.write_json(
        out.metrics / "train.json",
        {
            "validation_loss": round(result.validation_loss, 4),
            "peak_device_gb": peak,
            "epoch_seconds": round(result.seconds / result.epochs, 1),
            "tokens_per_second": round(result.tokens / result.seconds, 1),
            "size_gb": round(saved.size_gb(out.folder), 4),
            **meter.energy(),
        },
    )
    files.write_json(
        out.metrics / "train.facts.json",
        {
            "train_loss": round(result.train_loss, 4),
            "train_seconds": round(result.seconds, 1),
            "trained_parameters": trained,
            "peak_process_gb": round(peak_process_gb(), 3),
            **split_peak(result.memory, peak),
            "hardware": device.describe(),
            "versions": device.versions(),
        },
    )


if __name__ == "__main__":
    cli.run(main)
