"""Trials as tasks of a Ray cluster: each on the node that has room, again elsewhere if its node dies."""

import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from finetune.cluster import node
from finetune.cluster.trial import Needs, Trial
from finetune.errors import UserError


def run(trials: Sequence[Trial], needs: Needs, address: str, retries: int) -> dict[str, str]:
    """Run the `trials` on the cluster at `address`; returns, by name, why those failed that did.

    A trial whose node dies is started again, `retries` times at most; one that fails by itself isn't. Raises UserError
    if there is no cluster.
    """
    ray = _connected(address)
    try:
        _warn_of_waiting(ray.nodes(), needs)
        task = ray.remote(node.run)
        asked = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": retries, "retry_exceptions": False}
        waiting = {task.options(name=trial.name, **asked).remote(trial, needs.folder): trial for trial in trials}
        failed: dict[str, str] = {}
        while waiting:
            (ended,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(ended).name
            reason = _reason(ray, ended)
            print(f"{name}: {reason or 'done'} ({len(waiting)} to go)", file=sys.stderr)
            failed |= {name: reason} if reason else {}
        return failed
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("Ray isn't installed: pip install 'finetune[ray]'") from None
    try:
        _knock(address)
        ray.init(address=address, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"no Ray cluster at --address {address} ({said}); start one (`ray start --head`, docs/cluster.md)"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raises OSError if nobody listens there: Ray would try for minutes. What names no host is left to Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _warn_of_waiting(nodes: Sequence[dict], needs: Needs) -> None:
    """A cluster that grows may get such a node; one that doesn't waits for ever."""
    rooms = [one["Resources"] for one in nodes if one["Alive"]]
    if not any(room.get("CPU", 0) >= needs.cpus and room.get("GPU", 0) >= needs.gpus for room in rooms):
        print(f"no node has {needs} now: the trials wait until one joins the cluster", file=sys.stderr)


def _reason(ray: Any, ended: Any) -> str:
    try:
        return ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        return f"unexpected {type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        return f"Ray gave it up: {str(error).strip().splitlines()[0]}"
