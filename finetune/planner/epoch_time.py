"""How long an epoch takes on this machine: a few real layers are timed for some seconds."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from finetune import params
from finetune.device import device
from finetune.kernels.adamw import SplitAdamW
from finetune.kernels.loss import response_loss
from finetune.kernels.packing import ROUND_ROWS_TO, grouped, micro_batches, pack
from finetune.methods import Method
from finetune.models.adapters import as_trained, weights_dtype
from finetune.models.base import Base
from finetune.models.check_model import in_training_precision
from finetune.models.loading import load_base
from finetune.planner.records import TrainingRecords

FEW, MORE = 1, 3
"""Layers of the two models that are timed; each further layer is assumed to take as long as those that one has more."""
TURNS = 3
"""How often each is timed; the quickest counts, as other work on the machine only adds time."""
WITHIN = 0.4
"""Share by which an epoch may take more or less than estimated."""


def epoch_seconds(
    config: PreTrainedConfig, method: Method, p: params.Params, records: TrainingRecords, dtype: torch.dtype
) -> float:
    """Seconds of an epoch's training steps, without loading and validation.

    A model of the shape of `config`, cut to a few layers of random weights, runs three typical micro-batches and
    optimizer steps.
    """
    micro, steps = _epoch(records, p.train)
    by_size = sorted(micro, key=sum)
    typical = [by_size[len(by_size) * part // 4] for part in (1, 2, 3)]
    few, more = (_timed(_cut(config, layers), method, p, typical, records.targets, dtype) for layers in (FEW, MORE))
    further = (cast(int, config.num_hidden_layers) - FEW) / (MORE - FEW)
    forward_backward, step = (max(a, a + further * (b - a)) for a, b in zip(few, more, strict=True))
    return forward_backward * sum(records.lengths) / sum(map(sum, typical)) + step * steps


def _epoch(records: TrainingRecords, train: params.Train) -> tuple[list[list[int]], int]:
    """The sequence lengths of each micro-batch of an epoch in some random order, and the number of optimizer steps."""
    lengths = list(records.lengths)
    random.Random(0).shuffle(lengths)  # noqa: S311
    batches = [lengths[start : start + train.batch_size] for start in range(0, len(lengths), train.batch_size)]
    micro = [one for batch in batches for one in grouped(batch, int, train.tokens_per_micro_batch)]
    return micro, -(-len(batches) // train.gradient_accumulation)


def _cut(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """`config` with so many layers."""
    told = config.to_dict() | {"num_hidden_layers": layers, "n_layer": layers}
    if told.get("layer_types"):
        told["layer_types"] = told["layer_types"][:layers]
    return type(config).from_dict({key: value for key, value in told.items() if key in config.to_dict()})


def _timed(
    config: PreTrainedConfig,
    method: Method,
    p: params.Params,
    micro: list[list[int]],
    targets: float,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Seconds of all `micro`-batches, each once, and of an optimizer step."""
    model = _made(config, method, p, dtype, max(map(sum, micro)) + ROUND_ROWS_TO)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = SplitAdamW(trained, lr=1e-6)
    seconds = 0.0
    for lengths in micro:
        (batch,) = micro_batches(pack([_row(length, targets, config.vocab_size) for length in lengths]), sum(lengths))
        batch = {key: value.to(model.device) for key, value in batch.items()}
        seconds += min(_clocked(lambda batch=batch: _forward_backward(model, batch)) for _ in range(TURNS + 1))
    return seconds, min(_clocked(lambda: _step(optimizer, trained, p)) for _ in range(TURNS))


def _made(config: PreTrainedConfig, method: Method, p: params.Params, dtype: torch.dtype, tokens: int) -> Any:
    """What `method` trains over a base of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        base = load_base(Base(Path(folder)), weights_dtype(method), p.quantization if method.quantized else None)
        return as_trained(base, method, p.lora, tokens).train()


def _row(length: int, targets: float, words: int) -> dict[str, list[int]]:
    ids = [number % words for number in range(length)]
    masked = min(length - 1, round(length * (1 - targets)))
    return {"input_ids": ids, "labels": [-100] * masked + ids[masked:]}


def _forward_backward(model: Any, batch: dict[str, torch.Tensor]) -> None:
    with in_training_precision(model):
        loss = response_loss(model, batch)
    loss.backward()


def _step(optimizer: SplitAdamW, trained: list[torch.Tensor], p: params.Params) -> None:
    torch.nn.utils.clip_grad_norm_(trained, p.train.max_grad_norm)
    optimizer.step()


def _clocked(work: Any) -> float:
    started = time.perf_counter()
    work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
