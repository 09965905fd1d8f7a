"""The forms of training records, recognised record by record and read into turns.

Alpaca's (instruction, input, output, and LLaMA-Factory's system and history), OpenAI's `messages`, ShareGPT's
`conversations`, and TRL's `prompt` with `completion`. docs/data.md has an example of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from finetune import params

_MESSAGE_KEYS = {"role", "from", "content", "value", "weight", "tools", "tool_calls", "function_call"}

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "chatbot", "ai"),
}
_ROLE = {spelling: role for role, spellings in _ROLES.items() for spelling in spellings}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation, whatever form the file had."""

    role: str
    """'system', 'user' or 'assistant'."""
    text: str
    input: str = ""
    """The context that Alpaca's form keeps apart from the instruction; '' elsewhere."""
    learn: bool = True
    """For an assistant's turn, whether it carries loss."""

    @property
    def content(self) -> str:
        """The text with its input below, as a chat template takes it."""
        return f"{self.text}\n\n{self.input}" if self.input else self.text


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a record that the file's reader couldn't read."""

    reason: str
    """Its key in `EXPLAIN`."""


class BadRecord(Exception):
    """A record that can't be read; the argument is the reason's key in `EXPLAIN`."""


EXPLAIN = {
    "not_an_object": "is no object with the keys 'instruction', 'input', 'output'",
    "broken_line": "is not valid JSON",
    "duplicate_key": "holds a key twice, so that one of the values would be lost",
    "too_deep": "is nested too deeply to be read",
    "ragged_row": "has more or fewer cells than the first line has columns; put quotes around a cell that holds "
    "the delimiter",
    "repeated_header": "repeats the names of the columns, as if files had been joined",
    "missing_instruction": "has no 'instruction', nor 'messages', 'conversations' or 'prompt'; name your own columns "
    "with -S 'data.columns={instruction: …, output: …}'",
    "missing_output": "has no 'output'",
    "missing_completion": "has a 'prompt', but no 'completion'",
    "wrong_type": "has an 'instruction', 'input', 'output' or turn that is no text",
    "not_unicode": "holds half of a surrogate pair (such as \\ud83d alone), which is no text",
    "empty_instruction": "has an empty 'instruction' or user's turn",
    "empty_output": "has an empty 'output' or assistant's turn",
    "unknown_role": "has a turn whose role is none of system, user, assistant (or human, gpt)",
    "misplaced_system": "has a system turn that isn't the first",
    "no_question": "has no user's turn before its first answer",
    "no_answer": "has no assistant's turn to learn",
    "tools": "calls tools, which aren't supported",
}
"""Why a record can't be used: the predicate of a sentence that starts with its position."""


@dataclass(frozen=True)
class Form:
    """One form of a record."""

    needs: tuple[str, ...]
    """Required columns."""
    may_have: tuple[str, ...]
    """Optional columns."""
    turns: Callable[[dict[str, Any]], Iterable[Turn]]
    """Reads the turns from the columns."""


@dataclass(frozen=True)
class Reading:
    """A record as `read` understood it."""

    form: str
    turns: tuple[Turn, ...]
    """The last is the assistant's and carries loss."""
    unanswered: int
    """Turns left out because no answer to learn follows them."""
    ignored: tuple[str, ...]
    """Columns with a value that the form doesn't read."""


def read(raw: object, columns: dict[str, str] | None) -> Reading:
    """Recognise a record's form, and read it. `columns` maps names of `COLUMNS` to the file's own. Raises BadRecord."""
    if isinstance(raw, Unreadable):
        raise BadRecord(raw.reason)
    if not isinstance(raw, dict):
        raise BadRecord("not_an_object")
    values = _known_names(raw, columns or {})
    for name, form in FORMS.items():
        if all(key in values for key in form.needs):
            turns = [turn for turn in form.turns(values) if turn.role != "system" or turn.text]
            answered = _answered(turns)
            unread = [str(key) for key in values if key not in (*form.needs, *form.may_have)]
            unread += [f"{column}.{key}" for column in form.needs for key in _unread_keys(values[column])]
            ignored = tuple(_printable(key) for key in unread)
            return Reading(name, tuple(turns[:answered]), len(turns) - answered, ignored)
    raise BadRecord(_what_is_missing(values))


def _known_names(raw: dict, columns: dict[str, str]) -> dict[str, Any]:
    """The columns that hold a value, renamed by `columns`; null, and the NaN that pandas writes for it, mean absent."""
    renamed = {
        key if _folded(key) in (raw.keys() | columns.keys()) else _folded(key): value
        for key, value in raw.items()
        if key not in columns.values()
    }
    renamed |= {known: raw[own] for known, own in columns.items() if own in raw}
    return {key: value for key, value in renamed.items() if value is not None and value == value}


def is_known(name: str, known: Collection[str]) -> bool:
    """Whether a column of this name is read, given the names that are."""
    return name in known or _folded(name) in known


def _folded(name: Any) -> Any:
    """The column that a name such as 'Instruction' means; the name itself if no column is called so."""
    folded = name.strip().lower() if isinstance(name, str) else name
    return folded if folded in COLUMNS else name


def _unread_keys(messages: Any) -> set[str]:
    """Keys of messages, such as 'reasoning_content', that hold a value and aren't read."""
    dicts = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
    return {str(key) for message in dicts for key, value in message.items() if value is not None} - _MESSAGE_KEYS


def _printable(name: str) -> str:
    """A column's name as a text file can hold it."""
    return name.encode(errors="backslashreplace").decode() or "(no name)"


def _what_is_missing(values: dict[str, Any]) -> str:
    if "instruction" in values:
        return "missing_output"
    return "missing_completion" if "prompt" in values else "missing_instruction"


def _alpaca(values: dict[str, Any]) -> Iterable[Turn]:
    yield from _system(values)
    for pair in _list(values.get("history", [])):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRecord("wrong_type")
        yield Turn("user", _text(pair[0]))
        yield Turn("assistant", _text(pair[1]))
    yield Turn("user", _text(values["instruction"]), _text(values.get("input", "")))
    yield Turn("assistant", _text(values["output"]))


def _messages(values: dict[str, Any]) -> Iterable[Turn]:
    yield from _conversation(values, values["messages"])


def _sharegpt(values: dict[str, Any]) -> Iterable[Turn]:
    yield from _conversation(values, values["conversations"])


def _prompt_completion(values: dict[str, Any]) -> Iterable[Turn]:
    _refuse_tools(values)
    yield from _system(values)
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = values[key]
        if isinstance(value, str) and not _looks_like_a_list(value):
            yield Turn(role, _text(value))
        else:
            yield from _turns(value)


def _conversation(values: dict[str, Any], listed: Any) -> Iterable[Turn]:
    _refuse_tools(values)
    yield from _system(values)
    yield from _turns(listed)


FORMS = {
    "alpaca": Form(("instruction", "output"), ("input", "system", "history"), _alpaca),
    "messages": Form(("messages",), ("system", "tools"), _messages),
    "sharegpt": Form(("conversations",), ("system", "tools"), _sharegpt),
    "prompt_completion": Form(("prompt", "completion"), ("system", "tools"), _prompt_completion),
}
"""By name. A record has the first form whose required columns it has."""

COLUMNS = (*params.COLUMNS, "tools")
"""Every column that a form reads, and LLaMA-Factory's tools, which are recognised to be refused."""

MARKERS = frozenset(form.needs[0] for form in FORMS.values())
"""Columns of which every record has one."""


def _system(values: dict[str, Any]) -> Iterable[Turn]:
    text = _text(values.get("system", ""))
    if text:
        yield Turn("system", text)


def _turns(value: Any) -> Iterable[Turn]:
    """The turns in a list of {role, content} or {from, value}."""
    for message in _list(value):
        if not isinstance(message, dict):
            raise BadRecord("wrong_type")
        _refuse_tools(message)
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role.strip().lower() not in _ROLE:
            raise BadRecord("unknown_role")
        content = message.get("content") if message.get("content") is not None else message.get("value")
        # OpenAI's files mark an answer that carries no loss by a weight of 0.
        weight = message.get("weight")
        if weight not in (None, 0, 1):
            raise BadRecord("wrong_type")
        yield Turn(_ROLE[role.strip().lower()], _text(_joined(content)), learn=weight != 0)


def _joined(content: Any) -> Any:
    """The text of a content in parts, as multimodal models take it. Raises BadRecord if a part isn't text."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise BadRecord("wrong_type")
    return "".join(_text(part.get("text")) for part in content)


def _refuse_tools(values: dict[str, Any]) -> None:
    """Raise BadRecord if tools are called. LLaMA-Factory's files have a column of tools that is mostly the text '[]'."""
    if any(values.get(key) not in (None, "", "[]", [], {}) for key in ("tools", "tool_calls", "function_call")):
        raise BadRecord("tools")


def _list(value: Any) -> list:
    """A list, or one written as JSON, as in a cell of CSV. Raises BadRecord."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise BadRecord("wrong_type") from None
    if not isinstance(value, list | tuple):
        raise BadRecord("wrong_type")
    return list(value)


def _looks_like_a_list(text: str) -> bool:
    """Whether a cell of CSV holds a list of messages in JSON rather than plain text."""
    if not text.lstrip().startswith("[{"):
        return False
    try:
        return all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in json.loads(text))
    except (ValueError, RecursionError):
        return False


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord("wrong_type")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord("not_unicode") from None
    return value.strip()


def _answered(turns: list[Turn]) -> int:
    """How many of the turns there are up to the last answer that is learnt. Raises BadRecord."""
    for turn in turns:
        if not turn.text and turn.role != "system":
            raise BadRecord("empty_output" if turn.role == "assistant" else "empty_instruction")
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise BadRecord("misplaced_system")
    learnt = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.learn]
    if not learnt:
        raise BadRecord("no_answer")
    if "user" not in roles[: roles.index("assistant")]:
        raise BadRecord("no_question")
    return learnt[-1] + 1
