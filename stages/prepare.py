"""Check the records, sample and split them, apply the prompt template, tokenise, and mask the prompts."""

from pathlib import Path

from finetune import cli, params


def main() -> None:
    parser = cli.parser(__doc__, "--size", "--model_name", "--dataset", "--out_dir")
    args = parser.parse_args()
    p = params.load({"data.size": args.size})
    raw = Path(args.dataset or "data/raw")
    folder, metrics, plots = cli.places(args.out_dir, "data/prepared")
    cli.check_replaceable(folder, "facts.json")

    from finetune import dataset, figures, files, records, sources, tokenizers

    base = sources.base_folder(args.model_name)
    tokenizer = tokenizers.load(base)
    tokenizers.check_fits(base, p.data.max_length)
    good, dropped = records.read_records(raw, p.data.on_bad_record)
    rows, too_long = dataset.sample(
        good,
        tokenizer,
        size=p.data.size,
        seed=p.data.seed,
        template=p.data.template,
        max_length=p.data.max_length,
    )
    splits = dataset.split(rows, validation=p.data.validation, test=p.data.test)
    statistics = dataset.statistics(splits, len(good) + dropped.total(), dropped + too_long)

    facts = {"template": p.data.template, "tokenizer": dataset.tokenizer_id(tokenizer), "data": sources.provenance(raw)}
    dataset.save(splits, facts, folder)
    files.write_json(metrics / "data.json", statistics)
    figures.lengths(splits, p.data.max_length, plots / "lengths.png")
    for name, value in statistics.items():
        print(f"{name:>24}  {value}")


cli.run(main)
