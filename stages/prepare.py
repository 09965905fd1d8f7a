"""Check the records, sample and split them, apply the prompt template, tokenise, and mask the prompts."""

from pathlib import Path

from finetune import cli, disk, params, places


def main() -> None:
    """Make data/prepared out of data/raw."""
    args = cli.parser(__doc__, ["--size", "--model_name", "--dataset", "--out_dir"]).parse_args()
    p = params.load({"data.size": args.size})
    raw = Path(args.dataset or places.RAW)
    out = places.places(args.out_dir, places.PREPARED)
    cli.check_replaceable(out.folder)
    disk.check_writable(out.folder, out.metrics, out.plots)

    from finetune import files
    from finetune.data import checks, dataset, prepared, records
    from finetune.data.prompts import Template
    from finetune.figures import run as figures
    from finetune.models import tokenizer as tokenizers
    from finetune.sources.fetch import base_folder
    from finetune.sources.provenance import provenance

    base = base_folder(args.model_name)
    tokenizers.check_fits(base, p.data.max_length)
    tokenizer = tokenizers.load(base)
    template = Template(p.data.template, tokenizer)
    read = records.read_records(raw, p.data.on_bad_record, p.data.columns)
    rows, dropped, made_of = dataset.sample(
        read.good,
        template,
        size=p.data.size,
        seed=p.data.seed,
        max_length=p.data.max_length,
        weights=records.weights(raw),
        on_bad_record=p.data.on_bad_record,
    )
    splits = dataset.split(rows, validation=p.data.validation, test=p.data.test, dropped=read.dropped + dropped)
    checks.check_an_end_is_learnt(splits["train"], template.end_tokens[0], p.data.max_length)
    checks.check_answers_fit(splits["test"], p.eval.max_new_tokens, tokenizers.positions(base))
    statistics = dataset.statistics(splits, read, dropped, made_of) | checks.losses_of_text(rows, tokenizer)

    facts = {
        "template": p.data.template,
        "end_tokens": template.end_tokens,
        "tokenizer": prepared.tokenizer_id(tokenizer),
        "data": provenance(raw),
    }
    dataset.save(splits, facts, out.folder)
    files.write_json(out.metrics / "data.json", statistics)
    figures.lengths(splits, p.data.max_length, out.plots / "lengths.png")
    for name, value in statistics.items():
        print(f"{name:>24}  {value}")


if __name__ == "__main__":
    cli.run(main)
