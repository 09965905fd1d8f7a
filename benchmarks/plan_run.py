"""What benchmarks/plan.py trains: models of real shapes with random weights, for memory doesn't depend on what they are."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import workers

from finetune import files, places, yaml_file
from finetune.models.base import Base

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SHAPES: dict[str, dict[str, Any]] = {
    # Each as its config.json on the Hub has it, but for positions, which are enough for every length here.
    "SmolLM2-135M": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    | {"max_position_embeddings": 8192},
    "SmolLM2-360M": {"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
    | {"num_attention_heads": 15, "num_key_value_heads": 5, "vocab_size": 49152, "tie_word_embeddings": True}
    | {"max_position_embeddings": 8192},
    "DistilGPT-2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "vocab_size": 50257}
    | {"n_positions": 1024},
    "GPT-2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    | {"n_positions": 1024},
    "Qwen2.5-0.5B": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
    | {"max_position_embeddings": 32768},
    "Qwen3-0.6B": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    | {"tie_word_embeddings": True, "max_position_embeddings": 32768},
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

STEPS = 2
"""Optimizer steps with full batches: the second one has the optimizer's state."""
SHORT = 16
"""Tokens of one record; all others have the configuration's length: real data has short ones as well."""
PROMPT = 0.25
"""Share of a record that is prompt."""


@dataclass(frozen=True)
class Configuration:
    """What is trained, and how."""

    model: str
    method: str
    length: int = 256
    batch_size: int = 4
    tokens: int = 1024
    rank: int = 16
    checkpointing: bool = False
    layers: int | None = None
    """Fewer than the model has, where training it whole is too much for a small machine."""

    @property
    def name(self) -> str:
        """Its row in the table."""
        model = f"{self.model}, {self.layers} layers" if self.layers else self.model
        rank = "" if self.method == "full" else f" r {self.rank}"
        again = ", checkpointing" if self.checkpointing else ""
        return f"{model}: {self.method}{rank}, {self.batch_size} x {self.length}, by {self.tokens}{again}"

    @property
    def lengths(self) -> list[int]:
        """Of the training records."""
        return [SHORT] + [self.length] * (self.batch_size * STEPS)


def settings(one: Configuration) -> dict[str, Any]:
    """The params.yaml of the configuration: the shipped one with its settings."""
    params = yaml_file.read(ROOT / "params.yaml")
    params["method"] = one.method
    params["lora"]["r"] = one.rank
    params["quantization"]["calibration"] = "nearest"
    params["train"] |= {"batch_size": one.batch_size, "tokens_per_micro_batch": one.tokens}
    params["train"] |= {"gradient_checkpointing": one.checkpointing}
    params["data"]["max_length"] = one.length
    params["methods"][one.method]["epochs"] = 1
    return params


def config_of(one: Configuration) -> PreTrainedConfig:
    """That of its model."""
    from transformers import AutoConfig

    fewer = {"num_hidden_layers": one.layers} if one.layers else {}
    return AutoConfig.for_model(**SHAPES[one.model] | _ENDS | fewer)


def make_base(one: Configuration, folder: Path) -> None:
    """The model with random weights, and the repository's own tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True)
    for path in (ROOT / places.BASE).iterdir():
        if path.name != "config.json" and path.suffix != ".safetensors":
            shutil.copy(path, folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(one), dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    model.tie_weights()
    model.save_pretrained(folder)


def make_data(one: Configuration, base: Path, folder: Path) -> None:
    """Prepared data of the configuration's lengths."""
    train = [_row(length) for length in one.lengths]
    _save({"train": train, "validation": [_row(one.length)], "test": [_row(one.length)]}, base, folder)


def take_data(base: Path, folder: Path, records: int) -> None:
    """The first records of the repository's prepared data."""
    from datasets import load_from_disk

    splits = load_from_disk(str(ROOT / places.PREPARED))
    _save(
        {name: split.select(range(min(records, len(split)))).to_list() for name, split in splits.items()}, base, folder
    )


def _save(splits: dict[str, list[dict[str, Any]]], base: Path, folder: Path) -> None:
    from finetune.data.prepared import tokenizer_id
    from finetune.data.rows import Rows

    rows, parts = Rows(folder, end_token=_ENDS["eos_token_id"]), {}
    for name, some in splits.items():
        parts[name] = range(len(rows), len(rows) + len(some))
        for row in some:
            rows.add(row)
    facts = {"template": "alpaca", "tokenizer": tokenizer_id(Base(base).tokenizer), "end_tokens": []}
    rows.save(parts, facts | {"data": {"source": "made", "licence": "none"}}, folder)


def _row(length: int) -> dict[str, Any]:
    ids, prompt = [3 + (7 * n) % 40000 for n in range(length)], round(length * PROMPT)
    row = {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "truncated": False}
    return row | {"prompt": "", "reference": "", "record": ""}


def measure(one: Configuration, folder: Path, records: int | None = None) -> dict[str, Any]:
    """What the train stage says of its peak and its time, run in `folder`, which keeps the model for the next.

    On data of the configuration's lengths, or on so many `records` of the prepared data.
    """
    (folder / "params.yaml").write_text(yaml_file.text(settings(one)))
    base = folder / "models/base"
    if not base.exists():
        make_base(one, base)
    shutil.rmtree(folder / "data", ignore_errors=True)
    if records is None:
        make_data(one, base, folder / places.PREPARED)
    else:
        take_data(base, folder / places.PREPARED, records)
    if one.method == "qlora" and not (folder / places.BASE_4BIT).exists():
        workers.stage("quantize", folder)
    workers.stage("train", folder, "--out_dir", "out")
    found = files.read_json(folder / "out/metrics/train.json") | files.read_json(
        folder / "out/metrics/train.facts.json"
    )
    shutil.rmtree(folder / "out")
    return found
