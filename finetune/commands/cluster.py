"""Run the experiments of DVC's queue on a cluster, each in a clone of its own; finished ones come back to this clone."""

import argparse
from collections.abc import Callable, Sequence

from finetune import cli
from finetune.cluster.trial import Needs, Trial
from finetune.errors import UserError, quoted

Engine = Callable[[Sequence[Trial]], dict[str, str]]
"""Runs trials, and returns when all have ended; by name, why those failed that said so."""

_EPILOG = "Queue them as ever, `dvc exp run --queue -n NAME -S …`. docs/cluster.md has each engine's first steps."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the part that `arguments` name."""
    parser = cli.parser(__doc__, prog="finetune cluster", epilog=_EPILOG)
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    _engine(parts, "ray", _ray, "run what is queued on a Ray cluster, and wait for it")
    _engine(parts, "slurm", _slurm, "run what is queued as a job array of Slurm, and wait for it")
    part = parts.add_parser(
        "write", help="write what is queued into a file, for machines that take their trial from it"
    )
    part.add_argument("file", type=cli.folder, metavar="FILE")
    part.set_defaults(main=_write)
    part = parts.add_parser("trial", help="on one of those machines: run one trial of the file")
    part.add_argument("file", type=cli.folder, metavar="FILE")
    part.add_argument("index", type=_from_zero, metavar="INDEX", help="which, from 0")
    _folder(part)
    part.set_defaults(main=_trial)
    part = parts.add_parser("collect", help="bring back which of the queued have finished, wherever they ran")
    part.set_defaults(main=_collect)
    args = parser.parse_args(arguments)
    args.main(args)


def _engine(parts: argparse._SubParsersAction, name: str, run: Callable, text: str) -> None:
    part = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    part.add_argument("--cpus", type=cli.count, default=1, metavar="N", help="for each trial (%(default)s)")
    part.add_argument("--gpus", type=_from_zero, default=0, metavar="N", help="for each trial (%(default)s)")
    _folder(part)
    part.add_argument(
        "--sweep", action="store_true", help="search learning rates and epochs (`finetune sweep`), not what is queued"
    )
    if name == "ray":
        part.add_argument("--address", default="auto", help="of the cluster (%(default)s: that of this machine)")
        part.add_argument(
            "--retries",
            type=_from_zero,
            default=3,
            metavar="N",
            help="new starts of a trial whose node died (%(default)s)",
        )
    part.set_defaults(main=run)


def _folder(part: argparse.ArgumentParser) -> None:
    from finetune.cluster.node import FOLDER

    part.add_argument(
        "--folder",
        type=_everywhere,
        default=FOLDER,
        metavar="DIR",
        help="on each machine, for clones and DVC's cache (%(default)s)",
    )


def _everywhere(text: str) -> str:
    """A folder that is the same wherever a process stands."""
    if not text.startswith(("/", "~")):
        raise argparse.ArgumentTypeError(f"must begin with / or ~, as each machine has it, got {quoted(text)}")
    return text


def _from_zero(text: str) -> int:
    """A number of 0 or more."""
    return 0 if text == "0" else cli.count(text)


def _ray(args: argparse.Namespace) -> None:
    from finetune.cluster import on_ray

    needs = Needs(args.cpus, args.gpus, args.folder)
    _run(args, lambda trials: on_ray.run(trials, needs, args.address, args.retries))


def _slurm(args: argparse.Namespace) -> None:
    from finetune.cluster import on_slurm

    needs = Needs(args.cpus, args.gpus, args.folder)
    _run(args, lambda trials: on_slurm.run(trials, needs))


def _run(args: argparse.Namespace, engine: Engine) -> None:
    if args.sweep:
        _sweep(engine)
        return
    from finetune.cluster import queue

    trials = queue.queued()
    queue.share()
    _tell(trials, _failures(trials, engine))


def _failures(trials: Sequence[Trial], engine: Engine) -> dict[str, str]:
    """Run the `trials` and bring back those that finish; of the others, by name, why they didn't."""
    from finetune.cluster import queue

    reasons = engine(trials)
    done = queue.collect(trials)
    missing = [trial.name for trial in trials if trial not in done]
    return {name: reasons.get(name) or "ended without a word; its log may say more" for name in missing}


def _tell(trials: Sequence[Trial], failures: dict[str, str]) -> None:
    print(f"{len(trials) - len(failures)} of {len(trials)} experiments are here; their files are in the DVC remote")
    for name, reason in failures.items():
        print(f"  {name}: {reason}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(trials)} have failed: {', '.join(failures)}; they are queued still, for the same "
            f"command once that is fixed"
        )


def _sweep(engine: Engine) -> None:
    import math

    from finetune.cluster import node, queue
    from finetune.commands.experiments import publish_sweep
    from finetune.experiments import sweep

    diverged: sweep.Losses = {}

    def run(missing: set[sweep.Trial]) -> None:
        names = {sweep.name(trial): trial for trial in missing}
        sweep.enqueue({names[name] for name in names.keys() - queue.names()})
        trials = [trial for trial in queue.queued() if trial.name in names]
        queue.share()
        failures = _failures(trials, engine)
        # A machine's or a network's failure says nothing of a learning rate.
        if not all(reason.startswith(node.RUN_FAILED) for reason in failures.values()):
            _tell(trials, failures)
        diverged.update({names[name]: math.inf for name in failures})
        queue.remove(failures)

    publish_sweep(sweep.search(run, lambda: sweep.read_experiments() | diverged))


def _write(args: argparse.Namespace) -> None:
    from finetune.cluster import queue, trial

    trials = queue.queued()
    queue.share()
    trial.write(args.file, trials)
    print(f"{args.file}: {len(trials)} trials, {', '.join(f'{n} {one.name}' for n, one in enumerate(trials))}")


def _trial(args: argparse.Namespace) -> None:
    from finetune.cluster import node, trial

    one = trial.at(args.file, args.index)
    print(f"trial {one.name}", flush=True)
    if reason := node.run(one, args.folder):
        raise UserError(reason)


def _collect(args: argparse.Namespace) -> None:
    from finetune.cluster import queue

    trials = queue.queued()
    done = queue.collect(trials)
    print(f"{len(done)} of {len(trials)} experiments are here; their files are in the DVC remote")
    if waiting := [trial.name for trial in trials if trial not in done]:
        print(f"not finished: {', '.join(waiting)}")
