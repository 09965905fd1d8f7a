"""Push a registered model: its files to the DVC remote, its tags to the Git remote `origin`."""

from collections.abc import Sequence

from finetune import cli


def main(arguments: Sequence[str] | None = None) -> None:
    """Push, and say how others ask the model."""
    parser = cli.parser(__doc__, prog="finetune push")
    parser.add_argument("name", metavar="NAME", help="registered version or stage, as in haiku@v1 or haiku#production")
    args = parser.parse_args(arguments)

    from finetune.registry.push import push

    new = push(args.name)
    print(f"{args.name} is pushed; files new in the DVC remote: {new}")
    print(f"\nIn another clone:  git fetch --tags && finetune chat --ckpt {args.name}")
