"""The console command `finetune`: what people run in addition to the pipeline."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from finetune import cli

COMMANDS = {
    "chat": "talk to a fine-tuned model: a conversation, one prompt, or a file of them",
    "serve": "serve fine-tuned models by OpenAI's API, all adapters over one base in memory",
    "export": "export a fine-tuned model: adapter, merged, or GGUF, read back and scored",
    "compare": "compare DVC experiments, or show the last run: scores with intervals, costs, a verdict",
    "plan": "plan a run: memory by parts for each method, what fits a card, and how long an epoch takes",
    "sweep": "search each method's learning rate and epochs by the validation loss",
    "cluster": "run what DVC has queued on Ray, Slurm or other clusters; finished experiments come back",
    "register": "register a fine-tuned model: a version and a stage, found by name in every clone",
    "push": "push a registered model: its files to the DVC remote, its tags to the Git remote",
    "verify": "read again what DVC keeps, in cache, workspace and remote: name what is damaged, and repair it",
}
"""Name and purpose of each subcommand."""

_FUNCTIONS = {
    "compare": "experiments.compare",
    "sweep": "experiments.sweep",
    "register": "registry.register",
    "push": "registry.push",
}
"""Where in this folder a subcommand is, unless it is `main` of the module of its name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that `arguments` (default: the process's) name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cli.run(lambda: _run(given), stdout_is_the_result=True)


def _run(given: Sequence[str]) -> None:
    name = _parser().parse_args(given[:1]).command
    module, function = _FUNCTIONS.get(name, f"{name}.main").split(".")
    # Only the chosen command's module is imported, so that `finetune --help` stays quick.
    getattr(import_module(f"finetune.commands.{module}"), function)(given[1:])


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    parser = cli.parser(
        f"{__doc__.splitlines()[0]}\n\n{listing}",
        prog="finetune",
        epilog="`finetune COMMAND --help` has a command's flags. The pipeline itself: `dvc repro`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    return parser


if __name__ == "__main__":
    main()
