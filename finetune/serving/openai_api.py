"""OpenAI's API in JSON: what a request asks, and what is answered (platform.openai.com/docs/api-reference)."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data import alpaca
from finetune.data.forms import Turn
from finetune.errors import UserError
from finetune.generation.request import Sampling
from finetune.serving.answer_stream import Piece

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_OTHER_ANSWERS = (
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_p",
    "echo",
    "suffix",
    "audio",
    "prediction",
)
"""Settings that would change the answer and aren't known here: refused where they are set, not passed over."""


@dataclass(frozen=True)
class Completion:
    """What a request asks for."""

    kind: str
    """'chat.completion' or 'text_completion'."""
    model: str
    prompt: Sequence[Turn] | str
    sampling: Sampling
    max_new_tokens: int
    fitting: bool
    """Nobody said how long the answer may be: then no longer than the model has positions."""
    stop: tuple[str, ...]
    stream: bool
    usage: bool
    """Whether a stream ends in its counts of tokens."""
    running_usage: bool
    """Whether each chunk of a stream has the counts up to it (vLLM's `continuous_usage_stats`)."""


def read(kind: str, body: bytes, most_tokens: int) -> Completion:
    """The request in `body`. Raises UserError for what isn't JSON, isn't known, or is out of range."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the body isn't JSON") from None
    if not isinstance(fields, dict):
        raise UserError("the body must be a JSON object")
    for name in _OTHER_ANSWERS:
        if fields.get(name):
            raise UserError(f"{name}: isn't supported here; leave it out")
    if _field(fields, "n", int, 1) != 1:
        raise UserError("n: must be 1; ask again for a further answer")
    form = _field(fields, "response_format", dict, {}).get("type", "text")
    if form != "text":
        raise UserError(f"response_format: must be of type text, got {form!r}")
    options = _field(fields, "stream_options", dict, {})
    asked = fields.get("max_completion_tokens") or fields.get("max_tokens")
    tokens = _field({"max_tokens": asked}, "max_tokens", int, most_tokens)
    if not 1 <= tokens <= most_tokens:
        raise UserError(f"max_tokens: must be from 1 to {most_tokens}, got {tokens}")
    return Completion(
        kind=kind,
        model=_field(fields, "model", str, ""),
        prompt=_messages(fields) if kind == "chat.completion" else _prompt(fields),
        sampling=Sampling(
            temperature=float(_field(fields, "temperature", (int, float), 1.0)),
            top_p=float(_field(fields, "top_p", (int, float), 1.0)),
            top_k=max(0, _field(fields, "top_k", int, 0)),  # -1 stands for all in vLLM
            seed=_field(fields, "seed", int, None),
        ),
        max_new_tokens=tokens,
        fitting=asked is None,
        stop=_stop(fields),
        stream=_field(fields, "stream", bool, False),
        usage=bool(options.get("include_usage")),
        running_usage=bool(options.get("continuous_usage_stats")),
    )


def _field(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = {int: "whole number", float: "number", str: "string", bool: "true or false", dict: "object"}
        raise UserError(f"{name}: must be a {names[kinds[-1]]}, got {json.dumps(value)[:80]}")
    return value


def _messages(fields: Mapping[str, Any]) -> list[Turn]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError("messages: must be a list of at least one message")
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise UserError(f"messages[{number}]: role must be one of {', '.join(ROLES)}, got {role!r}")
        content = _content(message.get("content"), number)
        turns.append(Turn("user", *alpaca.parse(content)) if ROLES[role] == "user" else Turn(ROLES[role], content))
    if turns[-1].role != "user":
        raise UserError("messages: the last one must be the user's")
    return turns


def _content(content: object, number: int) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not texts or len(texts) != len(parts):
        raise UserError(f"messages[{number}]: content must be text; pictures and sound can't be read here")
    return "".join(texts)


def _prompt(fields: Mapping[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise UserError("prompt: must be one string")
    return prompt


def _stop(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop") or []
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(text, str) and text for text in texts):
        raise UserError("stop: must be a string, or a list of at most 4")
    return tuple(texts)


class StopFilter:
    """An answer's text up to the first of the `stop` texts, as pieces of it come."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self._held = stop, ""
        self.found = False

    def add(self, text: str, last: bool) -> str:
        """What of the text so far, this piece included, can be told; all of it with the `last`."""
        text = self._held + text
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        # What may be the beginning of such a text waits for the rest.
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


class Reply:
    """The JSON of one answer: all at once, or in chunks."""

    def __init__(self, asked: Completion) -> None:
        self._chat = asked.kind == "chat.completion"
        self._running_usage = asked.running_usage
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{asked.kind}.chunk" if self._chat and asked.stream else asked.kind,
            "created": int(time.time()),
            "model": asked.model,
        }

    def whole(self, text: str, reason: str, last: Piece) -> dict[str, Any]:
        """The answer in full."""
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._choice(said, reason) | {"usage": usage(last)}

    def chunk(self, text: str, reason: str | None, piece: Piece, *, first: bool = False) -> dict[str, Any]:
        """The `text` that `piece` added to the answer."""
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        chunk = self._choice({"delta": delta} if self._chat else {"text": text}, reason)
        return chunk | {"usage": usage(piece)} if self._running_usage else chunk

    def counts(self, last: Piece) -> dict[str, Any]:
        """The last chunk of a stream that was asked for its counts."""
        return self._head | {"choices": [], "usage": usage(last)}

    def _choice(self, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return self._head | {"choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}]}


def usage(last: Piece) -> dict[str, int]:
    """Counts of tokens, given an answer's last piece."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.tokens,
        "total_tokens": last.prompt_tokens + last.tokens,
    }


def error(message: str, status: int) -> dict[str, Any]:
    """The body of an error."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}
    return {
        "error": {"message": message, "type": kinds.get(status, "invalid_request_error"), "param": None, "code": None}
    }


def listing(names: Sequence[str]) -> dict[str, Any]:
    """The models, as /v1/models lists them."""
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> dict[str, Any]:
    """One model, as /v1/models/NAME shows it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "finetune"}
