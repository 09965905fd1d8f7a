"""YAML, read as DVC reads it (ruamel, YAML 1.2), and written so that readers of YAML 1.1 understand the same.

Plain values are what they look like: `no`, 1:30, 2026-01-01, 010, 0x1F and 1_000 are text, 5e-05 is a number. A key appears
once in a mapping, and no tag builds an object.
"""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import implicit_resolvers

from finetune.errors import UserError, quoted
from finetune.files import write_text

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?[0-9]{1,12}e[-+]?[0-9]{1,3}|[-+]?\.inf|\.nan", re.IGNORECASE
)
"""Without a point no number is that long: 16 digits of a hash, one of which is an e, are text."""

_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Line breaks to YAML that are characters of a line to everybody else: only double quotes keep them."""


def read(path: Path) -> Any:
    """What the file at `path` holds. Raises UserError if it isn't UTF-8, or isn't YAML; OSError if it can't be read."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"), path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8; save it as UTF-8 text") from None


def parse(content: str, name: object = "the text") -> Any:
    """The value that the text `content` of file `name` holds; None if it is empty. Raises UserError if it isn't YAML."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        return reader.load(content)
    except YAMLError as error:
        raise UserError(f"{name}: not valid YAML{_where(error)}; correct it there") from None
    except RecursionError:
        raise UserError(f"{name}: not valid YAML: nested too deeply; write fewer brackets") from None


def write(path: Path, value: dict) -> None:
    """Write `value` to `path`, whole or not at all, keys in their order."""
    write_text(path, text(value))


def text(value: Any) -> str:
    """`value`, of plain types, as YAML: a line for each item, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.width = sys.maxsize  # no line is folded
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its None is the default
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue()


class _Constructor(SafeConstructor):
    """Builds plain values; text wherever DVC's YAML 1.2 finds a number or a date that doesn't look like one."""

    yaml_constructors: dict[str | None, Callable[..., Any]] = {}  # noqa: RUF012  # filled by `add_constructor`

    def check_mapping_key(self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:
        """Raise ConstructorError if `key` appears twice; one that `<<` brings may appear again."""
        if key in mapping:
            raise ConstructorError(None, None, f"the key {quoted(key)} appears twice", key_node.start_mark)
        return True

    def boolean(self, node: ScalarNode) -> bool | str:
        return {"true": True, "false": False}.get(node.value.lower(), node.value)

    def integer(self, node: ScalarNode) -> int | str:
        """Raises ConstructorError for more digits than Python converts."""
        if not _INTEGER.fullmatch(node.value):
            return node.value
        try:
            return int(node.value)
        except ValueError:
            found = f"{quoted(node.value)} ({len(node.value)} characters) is too long for a whole number"
            raise ConstructorError(None, None, found, node.start_mark) from None

    def number(self, node: ScalarNode) -> float | str:
        if not _FLOAT.fullmatch(node.value):
            return node.value
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def unknown(self, node: Node) -> None:
        """Raise ConstructorError: no tag (`!!set`, `!!python/…`) is needed."""
        found = f"the tag {quoted(str(node.tag))} is not known here; write the plain value"
        raise ConstructorError(None, None, found, node.start_mark)


for _kind, _construct in {
    "null": _Constructor.construct_yaml_null,
    "bool": _Constructor.boolean,
    "int": _Constructor.integer,
    "float": _Constructor.number,
    "timestamp": _Constructor.construct_yaml_str,
    "value": _Constructor.construct_yaml_str,
    "str": _Constructor.construct_yaml_str,
    "seq": _Constructor.construct_yaml_seq,
    "map": _Constructor.construct_yaml_map,
}.items():
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _construct)
_Constructor.add_constructor(None, _Constructor.unknown)


class _Representer(SafeRepresenter):
    """Quotes the text that YAML 1.1 or 1.2 takes for something else, and writes floats as both read them: 5.0e-05."""

    def text(self, value: str) -> ScalarNode:
        ambiguous = any(pattern.match(value) for _, _, pattern, _ in implicit_resolvers)
        style = '"' if _LINE_BREAKS.search(value) else "'" if ambiguous else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    def number(self, value: float) -> ScalarNode:
        node = self.represent_float(value)
        node.value = node.value if "." in node.value else node.value.replace("e", ".0e")
        return node


_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(float, _Representer.number)


def _where(error: YAMLError) -> str:
    """': the problem, line 3, column 5', as far as it is known."""
    if isinstance(error, ReaderError):
        return f": {error.reason} (character {error.position})"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = " ".join(filter(None, (getattr(error, part, None) for part in ("context", "problem"))))
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f": {' '.join(problem.split())}{place}"
