"""Plan a run before it starts: memory by parts for each method, whether it fits, the largest settings that do, and time."""

from collections.abc import Sequence

from finetune import cli, files, params, places


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and draw the picture if one is asked for."""
    parser = cli.parser(__doc__, prog="finetune plan")
    parser.add_argument(
        "--model", type=cli.source, metavar="NAME", help="catalogue name, folder or config.json (default: model.source)"
    )
    parser.add_argument(
        "--device", metavar="NAME", help='a card ("RTX 3060") or its memory (8GB), in place of this machine'
    )
    parser.add_argument("--plot", type=cli.folder, metavar="FILE.png", help="draw the plan into this file")
    parser.add_argument("--no-time", action="store_true", help="don't time layers on this machine")
    args = parser.parse_args(arguments)
    p = params.load()
    if args.plot:
        files.check_writable(args.plot.parent)

    from finetune.planner import devices, passes
    from finetune.planner.frame import config_of
    from finetune.planner.plan import plan
    from finetune.planner.table import table

    device = devices.named(args.device) if args.device else devices.here()
    name, config = config_of(p.model.source, args.model)
    data = passes.records(p, places.PREPARED)
    plans = plan(config, p, data, device, timed=not args.no_time)
    at = passes.largest(data, p.train)
    print(table(name, plans, data, at, device, checkpointing=p.train.gradient_checkpointing))
    if args.plot:
        from finetune.planner.picture import draw

        draw(name, plans, device, args.plot)
