"""The thread that owns the models, and what others ask of it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from finetune import crash_report
from finetune.data.forms import Turn
from finetune.device import is_out_of_memory
from finetune.errors import UserError
from finetune.generation.engine import Engine
from finetune.generation.request import Request, Sampling
from finetune.serving.answer_stream import AnswerStream, Piece
from finetune.serving.models import Models, Served


class Full(UserError):
    """So many requests wait already that no further one is taken."""


@dataclass(frozen=True)
class _Asked:
    """A request that is being answered, and who is told of it."""

    request: Request
    engine: Engine
    stream: AnswerStream
    tell: Callable[[Piece | Exception], None]


class Worker:
    """Models that many ask at a time. One thread makes all passes; everything else may be called from any event loop."""

    def __init__(self, models: Models, most_waiting: int) -> None:
        """At most `most_waiting` requests are taken at a time, those being answered included."""
        self._models, self._most = models, most_waiting
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._asked: dict[Request, _Asked] = {}
        self._taken = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def names(self) -> list[str]:
        """Of all models."""
        return self._models.names

    def __getitem__(self, name: str) -> Served:
        """The model called `name`. Raises UserError if there is none."""
        return self._models[name]

    async def add(self, name: str) -> None:
        """Load a further model. Raises UserError as `Models.add` does."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish(error: Exception | None) -> None:
            if not done.cancelled():
                done.set_result(None) if error is None else done.set_exception(error)

        def order() -> None:
            error: Exception | None = None
            try:
                self._models.add(name)
            except UserError as refused:
                error = refused
            except Exception as unforeseen:
                error = UserError(_sentence(unforeseen))
            with suppress(RuntimeError):  # a loop that has closed
                loop.call_soon_threadsafe(finish, error)

        self._orders.put(order)
        await done

    async def stream(
        self,
        model: str,
        prompt: Sequence[Turn] | str,
        sampling: Sampling,
        max_new_tokens: int,
        *,
        fitting: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        """The answer in pieces; `prompt` and `fitting` as `Served.request` has them. Closed early, it drops the request.

        Raises UserError for an unknown model or a prompt that it can't take, and Full.
        """
        served = self._models[model]
        request = served.request(prompt, sampling, max_new_tokens, fitting=fitting)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def tell(piece: Piece | Exception) -> None:
            with suppress(RuntimeError):  # a loop that has closed
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        with self._lock:
            if self._taken >= self._most:
                raise Full(f"{self._taken} requests are being answered or wait already; ask again in a moment")
            self._taken += 1
        try:
            self._orders.put(lambda: self._submit(served, request, tell))
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.reason:
                    return
        finally:
            self._orders.put(lambda: self._drop(request))
            with self._lock:
                self._taken -= 1

    def close(self) -> None:
        """End the thread."""
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            # With nothing to answer, wait for an order; else take what there is.
            wait = not self._asked
            with suppress(queue.Empty):
                while True:
                    order = self._orders.get(block=wait)
                    if order is None:
                        return
                    order()
                    wait = False
            for engine in dict.fromkeys(one.engine for one in self._asked.values()):
                self._step(engine)

    def _step(self, engine: Engine) -> None:
        try:
            for request in engine.step():
                asked = self._asked[request]
                asked.tell(asked.stream.next_piece())
                if request.reason:
                    del self._asked[request]
        except Exception as error:  # whatever befell this pass, the next requests are to be answered
            lost = [one for one in self._asked.values() if one.engine is engine]
            engine.reset()
            sentence = _sentence(error)
            for one in lost:
                del self._asked[one.request]
                one.tell(UserError(sentence))

    def _submit(self, served: Served, request: Request, tell: Callable[[Piece | Exception], None]) -> None:
        self._asked[request] = _Asked(request, served.engine, AnswerStream(served, request), tell)
        served.engine.submit(request)

    def _drop(self, request: Request) -> None:
        asked = self._asked.pop(request, None)
        if asked is not None:
            asked.engine.cancel(request)


def _sentence(error: Exception) -> str:
    if is_out_of_memory(error):
        return "the memory isn't enough for all requests at a time: lower max_tokens, or start the server with less --at_a_time"
    return crash_report.write(error)


def worker_of(names: Sequence[str], at_a_time: int, most_waiting: int) -> Worker:
    """A worker with the checkpoints `names` loaded. Raises UserError as `Models.add` does."""
    models = Models(slots=at_a_time)
    for name in names:
        models.add(name)
    return Worker(models, most_waiting)
