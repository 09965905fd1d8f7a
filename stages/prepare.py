"""Check the records, sample and split them, apply the prompt template, tokenise, and mask the prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, params, places

if TYPE_CHECKING:
    from finetune.data.prompts import Template
    from finetune.data.rows import Rows
    from finetune.models.base import Base


def main() -> None:
    """Make data/prepared out of data/raw."""
    args = cli.parser(__doc__, ["--size", "--model_name", "--dataset", "--out_dir"]).parse_args()
    p = params.load({"data.size": args.size})
    raw = Path(args.dataset or places.RAW)
    out = places.places(args.out_dir, places.PREPARED)
    cli.check_replaceable(out.folder)
    files.check_writable(out.folder, out.metrics, out.plots)

    from finetune import plots
    from finetune.data.prompts import Template
    from finetune.models.base import Base

    base = Base.named(args.model_name)
    base.check_length(p.data.max_length)
    template = Template(p.data.template, base.tokenizer)
    rows, splits, figures = _sample(raw, template, base, p, out.folder)
    rows.save(splits, _facts(raw, template, base, p.data), out.folder)
    files.write_json(out.metrics / "data.json", figures)
    plots.lengths(rows.lengths, p.data.max_length, out.plots / "lengths.png")
    for name, value in figures.items():
        print(f"{name:>24}  {value}")


def _sample(
    raw: Path, template: Template, base: Base, p: params.Params, folder: Path
) -> tuple[Rows, dict[str, range], dict]:
    """The encoded rows of a sample of `raw`, where each split lies among them, and the figures of the data.

    Rows are spooled to the disk of `folder`. Raises UserError if the records or their lengths don't suit the settings.
    """
    from finetune.data import dataset, records
    from finetune.data.rows import Rows, TextLosses, check_lengths, statistics

    settings = p.data
    read = records.read_records(raw, settings.on_bad_record, settings.columns, folder)
    tally, losses, rows = dataset.Tally(), TextLosses(base.tokenizer), Rows(folder, template.end_tokens[0])
    for encoded in dataset.sample(
        read,
        template,
        tally,
        size=settings.size,
        seed=settings.seed,
        max_length=settings.max_length,
        weights=records.weights(raw),
        on_bad_record=settings.on_bad_record,
    ):
        losses.add(encoded)
        rows.add(encoded.row)
    dropped = read.dropped + tally.dropped
    splits = dataset.split(len(rows), validation=settings.validation, test=settings.test, dropped=dropped)
    check_lengths(rows, splits, settings.max_length, p.eval.max_new_tokens, base.positions)
    return rows, splits, statistics(rows, splits, read, tally.dropped, tally.made_of) | losses.found()


def _facts(raw: Path, template: Template, base: Base, settings: params.Data) -> dict:
    """What facts.yaml says of the prepared data."""
    from finetune.data.prepared import tokenizer_id
    from finetune.sources.catalogue import provenance

    return {
        "template": settings.template,
        "end_tokens": template.end_tokens,
        "tokenizer": tokenizer_id(base.tokenizer),
        "data": provenance(raw),
    }


if __name__ == "__main__":
    cli.run(main)
