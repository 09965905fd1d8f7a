"""Fine-tune the base model by `method`: qlora, lora or full."""

from pathlib import Path

from finetune import cli, params


def main() -> None:
    parser = cli.parser(__doc__, "--method", "--model_name", "--dataset", "--out_dir")
    args = parser.parse_args()
    p = params.load({"method": args.method})
    prepared = Path(args.dataset or "data/prepared")
    folder, metrics, plots = cli.places(args.out_dir, "models/tuned")
    cli.check_replaceable(folder, "finetune.json")

    import transformers

    from finetune import (
        checkpoint,
        dataset,
        files,
        hardware,
        live,
        memory,
        meter,
        models,
        sources,
        tokenizers,
        training,
    )

    base = sources.base_folder(args.model_name)
    tokenizer = tokenizers.load(base)
    splits, prepared_facts = dataset.load(prepared, tokenizer)

    gauge = meter.Meter().start()
    transformers.set_seed(p.seed)
    method = getattr(p.methods, p.method)
    model = models.trainable(base, p.method, p.lora, p.quantization)
    trainable, total = models.parameter_counts(model)
    print(f"{p.method}: {trainable:,} of {total:,} parameters trained, on {hardware.describe()}")
    with live.live_log(plots / "live") as log:
        outcome = training.train(
            model, tokenizer, splits, settings=p.train, method=method, seed=p.seed, meter=gauge, log=log
        )
    gauge.stop()

    facts = {
        "method": p.method,
        "seed": p.seed,
        "base": str(base),
        "template": prepared_facts["template"],
        "data": prepared_facts["data"],
        "quantization": vars(p.quantization) if p.method == "qlora" else None,
    }
    checkpoint.save(model, tokenizer, facts, sources.provenance(base), folder)
    gauge.save(plots / "memory.tsv")
    files.write_json(metrics / "train.about.json", {"hardware": hardware.describe(), "versions": hardware.versions()})
    report = {
        "train_loss": round(outcome.train_loss, 4),
        "validation_loss": round(outcome.validation_loss, 4),
        "peak_process_gb": round(meter.peak_process_gb(), 3),
        **memory.split(outcome.memory, gauge.peak_device_gb()),
        "train_seconds": round(outcome.seconds, 1),
        "seconds_per_epoch": round(outcome.seconds / outcome.epochs, 1),
        "tokens_per_second": round(outcome.tokens / outcome.seconds, 1),
        **gauge.energy(),
        "size_on_disk_gb": round(checkpoint.size_gb(folder), 4),
        "trained_parameters": trainable,
    }
    files.write_json(metrics / "train.json", report)


cli.run(main)
