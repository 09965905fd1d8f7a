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
        "--device", metavar="NAME", help='a card ("RTX 3060") or its memory (8GB), instead of this machine'
    )
    parser.add_argument("--plot", type=cli.folder, metavar="FILE.png", help="draw the plan into this file")
    parser.add_argument("--no-time", action="store_true", help="don't time layers on this machine")
    args = parser.parse_args(arguments)
    p = params.load()
    if args.plot:
        files.check_writable(args.plot.parent)

    from finetune.planner import devices, report
    from finetune.planner.plan import config_of, plan
    from finetune.planner.records import largest_micro_batch, planned_records

    device = devices.named(args.device) if args.device else devices.here()
    name, config = config_of(p.model.source, args.model)
    records = planned_records(p, places.PREPARED)
    plans = plan(config, p, records, device, timed=not args.no_time)
    at = largest_micro_batch(records, p.train)
    print(report.table(name, plans, records, at, device, checkpointing=p.train.gradient_checkpointing))
    if args.plot:
        report.draw(name, plans, device, args.plot)
