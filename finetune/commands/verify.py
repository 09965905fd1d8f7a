"""Read again every file that DVC keeps and compare it with its hash: cache, workspace and, if asked for, remote.

What is damaged is named, and replaced where there is a whole copy.
"""

from collections.abc import Sequence

from finetune import cli
from finetune.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Say what was read and what is damaged; ends with an error if something is, and no whole copy was there."""
    parser = cli.parser(__doc__, prog="finetune verify")
    parser.add_argument(
        "--remote",
        nargs="?",
        const="",
        metavar="NAME",
        help="also read what the remote has of these files, all of it over the network (default: DVC's default remote)",
    )
    args = parser.parse_args(arguments)

    from finetune.remotes.verify import verify

    places = verify(args.remote or None, with_remote=args.remote is not None)
    for place in places:
        print(f"{place.name}: {place.read} read, {len(place.restored) + len(place.damaged)} damaged")
        for name in place.restored:
            print(f"  {name}: replaced by a whole copy")
        for name in place.damaged:
            print(f"  {name}: damaged, or edited since" if place.name == "workspace" else f"  {name}: damaged")
    here = [name for place in places if not place.remote for name in place.damaged]
    there = [name for place in places if place.remote for name in place.damaged]
    if here:
        raise UserError(
            f"not whole here: {_listed(here)}; `dvc pull --force` brings back what the remote has, `dvc repro` makes it again"
        )
    if there:
        raise UserError(
            f"not whole in the remote: {_listed(there)}; run `finetune verify --remote` in a clone that has it whole, or make "
            f"it again (`dvc repro`) and rerun the command"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
