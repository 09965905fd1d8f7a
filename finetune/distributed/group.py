"""The processes that work on one stage together: who each is, and what they tell each other."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import distributed

from finetune.device import device
from finetune.distributed.launcher import is_worker
from finetune.errors import UserError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""For what all do together. A process that dies is noticed at once; this is for a machine that falls silent."""

_SEEN_BY_ACCELERATE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Group:
    """This process among those of a stage; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def total(self, number: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' `number`, in place."""
        if self.size > 1:
            distributed.all_reduce(number)
        return number

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        return [bool(flag) for flag in self.total(torch.tensor(flags, dtype=torch.int32, device=device())).tolist()]

    def gathered(self, value: T) -> list[T]:
        """Every process's `value`, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """The first process's `value`."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0, device=device())
        return values[0]

    def is_loss(self, error: RuntimeError) -> bool:
        """Whether `error` says that another process has gone, as gloo and NCCL do."""
        return self.size > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error).lower())

    def agree(self, value: object, what: str) -> None:
        """Raise UserError, in every process, unless all have the same `value`."""
        values = self.gathered(value)
        odd = next((rank for rank, one in enumerate(values) if one != values[0]), None)
        if odd is not None:
            raise UserError(
                f"process {odd} has other {what} than process 0; give every machine the same commit, params and data"
            )


def dealt(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """The places of `sizes` in as many lots as `hands`, each in order, of sums as like as can be.

    The largest first, each to the lot that has the least (Graham 1969: at most a third more than the best).
    """
    lots: list[list[int]] = [[] for _ in range(hands)]
    sums = [0] * hands
    for place in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        least = sums.index(min(sums))
        lots[least].append(place)
        sums[least] += sizes[place]
    return [sorted(lot) for lot in lots]


def in_order(lots: Iterable[Iterable[tuple[int, T]]]) -> list[T]:
    """What each process has made, with its place, as one list."""
    return [made for _, made in sorted((pair for lot in lots for pair in lot), key=lambda pair: pair[0])]


@contextmanager
def joined() -> Iterator[Group]:
    """The group that this process was started in, by `launcher` or torchrun; by itself if it wasn't.

    The training library is kept from seeing it: it would deal out data and average in ways of its own, and every process
    here goes through the whole data, of which it computes a share.
    """
    if not is_worker():
        yield Group()
        return
    _end_with_launcher()
    _take_gpu(int(os.environ.get("LOCAL_RANK", 0)))
    _take_interface(os.environ.get("MASTER_ADDR", "127.0.0.1"))
    distributed.init_process_group("cuda:nccl,cpu:gloo" if device().type == "cuda" else "gloo", timeout=TIMEOUT)
    for name in _SEEN_BY_ACCELERATE:
        os.environ.pop(name, None)
    group = Group(distributed.get_rank(), distributed.get_world_size())
    if not group.is_first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    yield group
    # Not after an error: the others may be gone, or wait for what won't come.
    distributed.destroy_process_group()


def _end_with_launcher() -> None:
    """A launcher that is killed leaves no process behind, where the system knows how (Linux)."""
    if sys.platform == "linux" and "FINETUNE_LAUNCHER" in os.environ:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _take_interface(address: str) -> None:
    """Talk to the others by the way that leads to the first of them; a machine's own name often leads to itself alone."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((address, 1))
            own = probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"MASTER_ADDR: {address} can't be reached from here ({error.strerror})") from None
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == own for one in addresses):
            for library in ("GLOO", "NCCL"):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", name)


def _take_gpu(number: int) -> None:
    """Let this process see one GPU alone, that of its number on this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(one) for one in range(torch.cuda.device_count())]
    if not names:
        return
    if number >= len(names):
        raise UserError(
            f"launch.processes: process {number} has no GPU of its own, for this machine has {len(names)}; lower "
            f"launch.processes to {len(names)}"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = names[number]
