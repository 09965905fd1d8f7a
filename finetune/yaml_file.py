"""A YAML file that a person writes, read so that every value is what it looks like.

YAML 1.1, which PyYAML reads, has surprises: 010 is 8, 1:30 is 90, `no` is false, 2026-01-01 is a date, 5e-4 is text, and
of two keys of one name the last wins without a word. DVC reads the same file by YAML 1.2. Here only what both take for
the same thing is a number, true or false; all else is text, and a key may stand once.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import UserError, quoted


def read(path: Path) -> Any:
    """What the file at `path` holds. Raises UserError if it can't be read, isn't UTF-8, or isn't YAML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8; save it as UTF-8 text") from None
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader, with fewer tags
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML{_where(error)}; mend it there") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply; write fewer brackets") from None


class _Loader(yaml.SafeLoader):
    """Plain values as YAML 1.2's core schema and 1.1 agree on them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A dict; raises ConstructorError if a key stands twice. Keys that `<<` brings may stand again."""
        seen: set[Any] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {quoted(key.value)} stands twice", key.start_mark
                )
            if name:
                seen.add(name)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """An int; raises ConstructorError for one with more digits than Python converts."""
        return self._converted(node, int, "whole number")

    def number(self, node: yaml.ScalarNode) -> float:
        """A float, .inf and .nan too."""
        return self._converted(node, lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")), "number")

    def unknown(self, node: yaml.Node) -> None:
        """Raise ConstructorError: of tags (`!!set`, `!!python/…`) none is needed."""
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {quoted(node.tag)} is not known here; write the plain value", node.start_mark
        )

    def _converted(self, node: yaml.ScalarNode, convert: Any, name: str) -> Any:
        text = self.construct_scalar(node)
        try:
            return convert(text.lower())
        except ValueError:
            raise yaml.constructor.ConstructorError(
                None, None, f"{quoted(text)} ({len(text)} characters) is no {name} that can be read", node.start_mark
            ) from None


def _where(error: yaml.YAMLError) -> str:
    """': the problem, line 3, column 5', as far as it is known."""
    if isinstance(error, yaml.reader.ReaderError):
        return f": {error.reason} (character {error.position})"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = " ".join(filter(None, (getattr(error, part, None) for part in ("context", "problem"))))
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f": {' '.join(problem.split())}{place}"


# Its own tables: those of SafeLoader are everyone's.
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {}

for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), [c if c != "\0" else "" for c in _first]
    )

for _tag, _method in (
    ("null", _Loader.construct_yaml_null),
    ("bool", _Loader.construct_yaml_bool),
    ("int", _Loader.whole_number),
    ("float", _Loader.number),
    ("str", _Loader.construct_yaml_str),
    ("seq", _Loader.construct_yaml_seq),
    ("map", _Loader.construct_yaml_map),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _method)
_Loader.add_constructor(None, _Loader.unknown)
