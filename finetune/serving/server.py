"""The web server: OpenAI's API over a worker, with limits."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from finetune import crash_report
from finetune.errors import UserError
from finetune.serving import openai_api
from finetune.serving.answer_stream import Piece
from finetune.serving.openai_api import Ask, Reply, Stopped
from finetune.serving.worker import Full, Worker

LARGEST_BODY = 1_000_000
"""Bytes of a request; a prompt that fills a model's positions takes far less."""


@dataclass(frozen=True)
class Refused(Exception):
    """A request that is answered by an error of this status."""

    message: str
    status: int


def app(worker: Worker, key: str | None, most_tokens: int) -> Starlette:
    """What answers HTTP. With a `key` each request under /v1 must bear it; without one only those to this machine's own
    names are answered, which keeps the pages of other sites out. Answers have at most `most_tokens` tokens."""

    async def models(request: Request) -> Response:
        return JSONResponse(openai_api.listing(worker.names))

    async def one_model(request: Request) -> Response:
        return JSONResponse(openai_api.model(_known(worker, request.path_params["name"])))

    async def completions(request: Request, kind: str) -> Response:
        ask = openai_api.read(kind, await _body(request), most_tokens)
        _known(worker, ask.model)
        return await (_stream if ask.stream else _whole)(worker, ask, request)

    async def chat(request: Request) -> Response:
        return await completions(request, "chat.completion")

    async def text(request: Request) -> Response:
        return await completions(request, "text_completion")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/v1/models", _guarded(models, key)),
        Route("/v1/models/{name:path}", _guarded(one_model, key)),
        Route("/v1/chat/completions", _guarded(chat, key), methods=["POST"]),
        Route("/v1/completions", _guarded(text, key), methods=["POST"]),
        Route("/health", health),
    ]
    own_names = [] if key else [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])]
    return Starlette(routes=routes, middleware=own_names)


def _guarded(
    answer: Callable[[Request], Awaitable[Response]], key: str | None
) -> Callable[[Request], Awaitable[Response]]:
    """`answer`, for those who have the key, its errors as the API has them."""

    async def guarded(request: Request) -> Response:
        try:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if key and not hmac.compare_digest(given.encode(), key.encode()):
                raise Refused("the key is missing or wrong; send it as 'Authorization: Bearer KEY'", 401)
            return await answer(request)
        except Refused as refused:
            return _error(refused.message, refused.status)
        except Full as full:
            return _error(str(full), 429)
        except UserError as error:
            return _error(str(error), 400)
        except Exception as error:
            return _error(crash_report.write(error), 500)

    return guarded


def _error(message: str, status: int) -> Response:
    # After a body that is too large the rest isn't read, so that no further request can follow it.
    headers = {429: {"Retry-After": "1"}, 413: {"Connection": "close"}}.get(status, {})
    return JSONResponse(openai_api.refusal(message, status), status, headers)


def _known(worker: Worker, name: str) -> str:
    if name not in worker.names:
        raise Refused(f"model: {name!r} isn't served here; there are {', '.join(worker.names)}", 404)
    return name


async def _body(request: Request) -> bytes:
    """The request's body. Refuses what is too large before all of it has come, and what a page of another site could send
    without asking first."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Refused("send JSON, with 'Content-Type: application/json'", 415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refused(f"the body is larger than {LARGEST_BODY} bytes", 413)
    return body


async def _told(worker: Worker, ask: Ask) -> AsyncGenerator[tuple[str, str | None, Piece], None]:
    """(text, why the answer ended or None, piece), up to one of the texts that shall end it."""
    stopped = Stopped(ask.stop)
    pieces = worker.stream(ask.model, ask.prompt, ask.sampling, ask.max_new_tokens, fitting=ask.fitting)
    async with aclosing(pieces):
        async for piece in pieces:
            text = stopped.add(piece.text, last=piece.reason is not None)
            reason = "stop" if stopped.found else piece.reason
            yield text, reason, piece
            if reason:
                return


async def _whole(worker: Worker, ask: Ask, request: Request) -> Response:
    """The answer in full; the work on it ends when the client hangs up."""
    answering = asyncio.create_task(_gathered(worker, ask))
    leaving = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(answering.result()) if answering.done() else Response(status_code=499)
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _gathered(worker: Worker, ask: Ask) -> dict[str, Any]:
    async with aclosing(_told(worker, ask)) as told:
        parts = [part async for part in told]
    *_, (_, reason, last) = parts
    return Reply(ask).whole("".join(text for text, _, _ in parts), reason or "length", last)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(worker: Worker, ask: Ask, request: Request) -> Response:
    told = _told(worker, ask)
    # Before the response starts, so that a refusal has a status of its own.
    first = await anext(told)

    async def events() -> AsyncIterator[str]:
        reply = Reply(ask)
        async with aclosing(told):
            try:
                text, reason, last = first
                yield _event(reply.chunk(text, reason, first=True))
                async for text, reason, piece in told:
                    last = piece
                    if text or reason:
                        yield _event(reply.chunk(text, reason, first=False))
                if ask.usage:
                    yield _event(reply.counts(last))
                yield "data: [DONE]\n\n"
            except UserError as error:
                yield _event(openai_api.refusal(str(error), 500))

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(data: dict) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
