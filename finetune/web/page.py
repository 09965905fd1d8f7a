"""The page at /: one static file, and two JSON routes for what OpenAI's API has no words for."""

import asyncio
import hashlib
import json
import re
from base64 import b64encode
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from finetune.methods import BASE, METHODS
from finetune.serving.server import guarded, json_body
from finetune.serving.worker import Worker
from finetune.web import recorded

_FILE = Path(__file__).with_name("page.html")


def routes(worker: Worker, key: str | None, most_tokens: int) -> list[Route]:
    """The routes to add to the API's app. The page holds no secret; with a `key` it asks for that, and sends it along."""
    html = _FILE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _policy(html),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    async def models(request: Request) -> Response:
        if request.method == "POST":
            await worker.add(await _name(request))
        return JSONResponse({"models": [_shown(worker, name) for name in worker.names], "most_tokens": most_tokens})

    async def answers(request: Request) -> Response:
        served = worker[request.query_params.get("model", "")]
        return JSONResponse({"rows": await asyncio.to_thread(recorded.rows, served.name, served.answers_file)})

    return [
        Route("/", page),
        Route("/page/models", guarded(models, key), methods=["GET", "POST"]),
        Route("/page/answers", guarded(answers, key)),
    ]


def _policy(html: str) -> str:
    """Nothing runs or looks but the file's own script and style, and the script asks this server alone."""
    own = {
        kind: f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in re.findall(r"<(script|style)>(.*?)</\1>", html, re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src {own['script']}; style-src {own['style']}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


async def _name(request: Request) -> str:
    try:
        name = json.loads(await json_body(request))["name"]
    except (ValueError, RecursionError, LookupError, TypeError):
        name = None
    if not isinstance(name, str) or not name.strip():
        raise HTTPException(400, "name: must be the name of a checkpoint")
    return name


def _shown(worker: Worker, name: str) -> dict[str, str | float]:
    served = worker[name]
    look = METHODS[served.method] if served.method else BASE
    return {"name": name, "label": look.label, "color": look.color, "memory_gb": served.gigabytes}
