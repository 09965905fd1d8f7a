"""Register fine-tuned models under names, and push them: others then find them in their clones."""

from collections.abc import Sequence

from finetune import cli


def register(arguments: Sequence[str] | None = None) -> None:
    """Register a fine-tuned model under a name: a version, and a stage, that others find in their clones."""
    from finetune.registry.versions import STAGES

    parser = cli.parser(register.__doc__, prog="finetune register")
    parser.add_argument(
        "model", metavar="NAME", help="the model's name, as in haiku; its versions are haiku@v1, haiku@v2 …"
    )
    parser.add_argument(
        "--from",
        dest="source",
        default="HEAD",
        metavar="NAME",
        help="experiment, revision or registered version whose models/tuned it is (default: HEAD)",
    )
    parser.add_argument("--stage", choices=STAGES, help="found as NAME#production, NAME#staging until another takes it")
    parser.add_argument("--version", metavar="vN", help="version (default: the next)")
    args = parser.parse_args(arguments)

    from finetune.registry.register import register as register_model

    done = register_model(args.model, args.source, args.version, args.stage)
    if done.new:
        print(f"{done.version.name} is models/tuned of {args.source}: Git tag {done.version.tag}")
    if args.stage:
        instead = f", instead of {done.replaced.name}" if done.replaced else ""
        print(f"{args.model}#{args.stage} is {done.version.name}{instead}")
    print(f"\nShare it:  finetune push {done.version.name}\nAsk it:    finetune chat --ckpt {done.version.name}")


def push(arguments: Sequence[str] | None = None) -> None:
    """Push a registered model: its files to the DVC remote, its tags to the Git remote `origin`."""
    parser = cli.parser(push.__doc__, prog="finetune push")
    parser.add_argument("name", metavar="NAME", help="registered version or stage, as in haiku@v1 or haiku#production")
    args = parser.parse_args(arguments)

    from finetune.registry.push import push as push_model

    new = push_model(args.name)
    print(f"{args.name} is pushed; files new in the DVC remote: {new}")
    print(f"\nIn another clone:  git fetch --tags && finetune chat --ckpt {args.name}")
