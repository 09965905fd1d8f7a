"""The web server: OpenAI's API over a worker, with limits."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from finetune import crash_report
from finetune.errors import UserError
from finetune.serving import openai_api
from finetune.serving.answer_stream import Piece
from finetune.serving.openai_api import Completion, Reply, StopFilter
from finetune.serving.worker import Full, Worker

LARGEST_BODY = 1_000_000
"""Bytes of a request; a prompt that fills a model's positions takes far less."""

Handler = Callable[[Request], Awaitable[Response]]


def app(worker: Worker, key: str | None, most_tokens: int, page: Sequence[Route] = ()) -> Starlette:
    """The app that answers HTTP: the API, and the routes of the `page`.

    With a `key` each request under /v1 must carry it. Without one only requests to this machine's own names are answered,
    which keeps the pages of other sites out. An answer has at most `most_tokens` tokens.
    """

    async def models(request: Request) -> Response:
        return JSONResponse(openai_api.listing(worker.names))

    async def one_model(request: Request) -> Response:
        return JSONResponse(openai_api.model(_known(worker, request.path_params["name"])))

    def completions(kind: str) -> Handler:
        async def answer(request: Request) -> Response:
            asked = openai_api.read(kind, await json_body(request), most_tokens)
            _known(worker, asked.model)
            return await (_stream if asked.stream else _whole)(worker, asked, request)

        return answer

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/v1/models", guarded(models, key)),
        Route("/v1/models/{name:path}", guarded(one_model, key)),
        Route("/v1/chat/completions", guarded(completions("chat.completion"), key), methods=["POST"]),
        Route("/v1/completions", guarded(completions("text_completion"), key), methods=["POST"]),
        Route("/health", health),
        *page,
    ]
    own_names = [] if key else [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])]
    return Starlette(routes=routes, middleware=own_names)


def guarded(answer: Handler, key: str | None) -> Handler:
    """`answer` for clients that send the key, with every error as JSON in the API's form."""

    async def guard(request: Request) -> Response:
        try:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if key and not hmac.compare_digest(given.encode("latin-1"), key.encode()):  # as HTTP's headers are decoded
                raise HTTPException(401, "the key is missing or wrong; send it as 'Authorization: Bearer KEY'")
            return await answer(request)
        except HTTPException as error:
            return _error(error.detail, error.status_code)
        except Full as error:
            return _error(str(error), 429)
        except UserError as error:
            return _error(str(error), 400)
        except Exception as error:
            return _error(crash_report.write(error), 500)

    return guard


def _error(message: str, status: int) -> Response:
    # After a body that is too large the rest isn't read, so that no further request can follow it.
    headers = {429: {"Retry-After": "1"}, 413: {"Connection": "close"}}.get(status, {})
    return JSONResponse(openai_api.error(message, status), status, headers)


def _known(worker: Worker, name: str) -> str:
    if name not in worker.names:
        raise HTTPException(404, f"model: {name!r} isn't served here; there are {', '.join(worker.names)}")
    return name


async def json_body(request: Request) -> bytes:
    """The request's body, which says that it is JSON. Raises HTTPException, before all of it has come, if it is too large.

    A page of another site can't send JSON without asking this server first, which doesn't allow it.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON, with 'Content-Type: application/json'")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"the body is larger than {LARGEST_BODY} bytes")
    return body


async def _answer(worker: Worker, asked: Completion) -> AsyncGenerator[tuple[str, str | None, Piece], None]:
    """(text, why the answer ended or None, piece), up to the first of the request's stop texts."""
    stop = StopFilter(asked.stop)
    pieces = worker.stream(asked.model, asked.prompt, asked.sampling, asked.max_new_tokens, fitting=asked.fitting)
    async with aclosing(pieces):
        async for piece in pieces:
            text = stop.add(piece.text, last=piece.reason is not None)
            reason = "stop" if stop.found else piece.reason
            yield text, reason, piece
            if reason:
                return


async def _whole(worker: Worker, asked: Completion, request: Request) -> Response:
    """The answer in one response; the work on it ends when the client disconnects."""
    answering = asyncio.create_task(_gathered(worker, asked))
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(answering.result()) if answering.done() else Response(status_code=499)
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _gathered(worker: Worker, asked: Completion) -> dict[str, Any]:
    async with aclosing(_answer(worker, asked)) as answer:
        parts = [part async for part in answer]
    *_, (_, reason, last) = parts
    return Reply(asked).whole("".join(text for text, _, _ in parts), reason or "length", last)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(worker: Worker, asked: Completion, request: Request) -> Response:
    """The answer as server-sent events."""
    answer = _answer(worker, asked)
    # Before the response starts, so that a refusal has a status of its own.
    text, reason, last = await anext(answer)
    reply = Reply(asked)

    async def events() -> AsyncIterator[str]:
        nonlocal last
        async with aclosing(answer):
            try:
                yield _event(reply.chunk(text, reason, last, first=True))
                async for more, why, last in answer:
                    if more or why:
                        yield _event(reply.chunk(more, why, last))
                if asked.usage:
                    yield _event(reply.counts(last))
                yield "data: [DONE]\n\n"
            except Exception as error:
                sentence = str(error) if isinstance(error, UserError) else crash_report.write(error)
                yield _event(openai_api.error(sentence, 500))

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(data: dict) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
