"""Export a fine-tuned model for other programs: the adapter, a merged 16-bit model, or a GGUF file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune import cli, files, params, places, yaml_file
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.export.make import Export
    from finetune.export.measure import TestSet
    from finetune.models.base import Base
    from finetune.models.checkpoint import Checkpoint

EXPORTED = Path("models/exported")
_ADVICE = "lower eval.decode_batch_size or eval.max_new_tokens, or --examples"
"""What helps when scoring takes more memory than there is."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the export with its card, read it back, score it, and push it if asked."""
    args = _parser().parse_args(arguments)
    p = params.load()
    _check_flags(args)

    from finetune import device
    from finetune.export import card, make, measure
    from finetune.export import hub as hub_

    if args.push:
        hub_.check_access(args.push)
    export = _what(args)
    out = args.out_dir or EXPORTED / export.name
    places.check_apart(out, out)
    cli.check_replaceable(out)
    files.check_writable(out, free_gb=export.needed_gb)
    test, data = _test_set(export, args.examples)

    with files.whole_folder(out) as draft, device.enough_memory(_ADVICE):
        make.write(export, draft)
        measured = list(measure.measure(export, draft, test, p.eval)) if test else []
        yaml_file.write(draft / places.FACTS, make.facts(export))
        files.write_text(draft / "README.md", card.text(export, args.push, test, measured, data))
    if test:
        _print(card.table(test, measured))
    print(f"{out}: {make.title(export)}")
    if args.push:
        print(f"pushed to {hub_.push(out, args.push)}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__, ["--model_name"], prog="finetune export")
    parser.add_argument(
        "--ckpt", type=cli.source, default="workspace", metavar="NAME", help=f"the model: {cli.CHECKPOINTS}"
    )
    parser.add_argument("format", choices=("adapter", "merged", "gguf"), metavar="FORMAT", help="adapter, merged, gguf")
    parser.add_argument(
        "--onto",
        choices=("four-bits", "original"),
        help="weights that a qlora adapter is merged onto: four-bits, which it was trained over (default), or original",
    )
    parser.add_argument(
        "--type", choices=("f16", "q8_0", "q4_0"), help="of gguf: bits of the weights, 16, 8.5 (default) or 4.5"
    )
    parser.add_argument(
        "--examples", type=int, default=64, metavar="N", help="test prompts whose answers are compared (default: 64)"
    )
    parser.add_argument(
        "--out_dir", type=cli.folder, metavar="DIR", help=f"where it goes (default: in {EXPORTED}, by its form)"
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="upload it to this model of the Hugging Face Hub as well")
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    if args.examples < 1:
        raise UserError(f"--examples: must be at least 1, got {args.examples}")
    if args.type and args.format != "gguf":
        raise UserError(f"--type: is for gguf, and {args.format} has none; leave it out")
    if args.onto and args.format == "adapter":
        raise UserError("--onto: an adapter is exported as it is, merged onto nothing; leave it out, or choose merged")


def _what(args: argparse.Namespace) -> Export:
    """The export that the flags name. Raises UserError for all that can be refused before any work."""
    from finetune.export import gguf_file
    from finetune.export.make import Export
    from finetune.models.base import Base
    from finetune.registry.checkpoints import find

    found = find(args.ckpt)
    checkpoint = found.checkpoint
    if args.format == "adapter" and not checkpoint.method.adapters:
        raise UserError(
            f"{checkpoint.folder}: all parameters were trained, so there is no adapter; export merged or gguf"
        )
    tokenizer = checkpoint.tokenizer
    own = checkpoint.base(args.model_name or found.base_folder)
    base = _merged_onto(args.onto, checkpoint, own) if args.onto else own
    kind = (args.type or "q8_0") if args.format == "gguf" else None
    if kind:
        gguf_file.check((base or Base(checkpoint.folder)).config, tokenizer)
    return Export(args.format, kind, checkpoint, own, base)


def _merged_onto(onto: str, checkpoint: Checkpoint, own: Base | None) -> Base:
    """The base that `--onto` names. Raises UserError if it doesn't apply, or isn't here."""
    from finetune.export.make import ORIGINAL

    if own is None or not checkpoint.method.quantized:
        raise UserError(
            f"--onto: {onto} is a choice for an adapter trained over four bits only; leave it out for this one"
        )
    if onto != ORIGINAL:
        return own
    if own.original is None:
        raise UserError(
            f"--onto: the 16-bit weights that {own} is made of aren't in {places.BASE}; fetch them by "
            f"`python stages/fetch.py model`, or give their folder as --model_name"
        )
    return own.original


def _test_set(export: Export, examples: int) -> tuple[TestSet | None, dict]:
    """The prepared test examples and their facts; prints why if there are none for this model."""
    from finetune.data import prepared
    from finetune.export.measure import TestSet

    try:
        splits, facts = prepared.load(places.PREPARED, export.checkpoint.tokenizer)
    except UserError as error:
        print(f"not scored: {error}", flush=True)
        return None, {}
    if (facts["data"], facts["template"]) != (export.checkpoint.data, export.checkpoint.template):
        print(f"{places.PREPARED}: other data, or another template, than it was trained on; scored on it all the same")
    else:
        facts["records"] = {name: len(split) for name, split in splits.items()}
    return TestSet(splits["test"], examples), facts


def _print(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
