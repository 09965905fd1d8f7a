"""Check the records, sample and split them, apply the prompt template, tokenise, and mask the prompts."""

from pathlib import Path

from finetune import cli, files, params, places


def main() -> None:
    """Make data/prepared out of data/raw."""
    args = cli.parser(__doc__, ["--size", "--model_name", "--dataset", "--out_dir"]).parse_args()
    p = params.load({"data.size": args.size})
    raw = Path(args.dataset or places.RAW)
    out = places.places(args.out_dir, places.PREPARED)
    cli.check_replaceable(out.folder)
    files.check_writable(out.folder, out.metrics, out.plots)

    from finetune import plots
    from finetune.data import dataset, prepared, records
    from finetune.data.prompts import Template
    from finetune.data.rows import Rows, TextLosses, check_lengths, statistics
    from finetune.models.base import Base
    from finetune.sources.catalogue import provenance

    base = Base.named(args.model_name)
    base.check_length(p.data.max_length)
    tokenizer = base.tokenizer
    template = Template(p.data.template, tokenizer)
    read = records.read_records(raw, p.data.on_bad_record, p.data.columns, out.folder)
    tally, losses, rows = dataset.Tally(), TextLosses(tokenizer), Rows(out.folder, template.end_tokens[0])
    for encoded in dataset.sample(
        read,
        template,
        tally,
        size=p.data.size,
        seed=p.data.seed,
        max_length=p.data.max_length,
        weights=records.weights(raw),
        on_bad_record=p.data.on_bad_record,
    ):
        losses.add(encoded)
        rows.add(encoded.row)
    splits = dataset.split(
        len(rows), validation=p.data.validation, test=p.data.test, dropped=read.dropped + tally.dropped
    )
    check_lengths(rows, splits, p.data.max_length, p.eval.max_new_tokens, base.positions)
    figures_of_data = statistics(rows, splits, read, tally.dropped, tally.made_of) | losses.found()

    facts = {
        "template": p.data.template,
        "end_tokens": template.end_tokens,
        "tokenizer": prepared.tokenizer_id(tokenizer),
        "data": provenance(raw),
    }
    rows.save(splits, facts, out.folder)
    files.write_json(out.metrics / "data.json", figures_of_data)
    plots.lengths(rows.lengths, p.data.max_length, out.plots / "lengths.png")
    for name, value in figures_of_data.items():
        print(f"{name:>24}  {value}")


if __name__ == "__main__":
    cli.run(main)
