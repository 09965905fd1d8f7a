"""How long an epoch takes: measured here on real layers for a few seconds, or by a card's data sheet."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
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
from finetune.models.loading import layer_stack, load_base
from finetune.planner.devices import Speed
from finetune.planner.passes import Records
from finetune.planner.sizes import Sizes

FEW, MORE = 1, 3
"""Layers of the two models that are timed: what the one has more, each further layer of the whole one has as well."""
TURNS = 3
"""Of each pass; the quickest counts, for what else the machine does only adds."""

MEASURED_WITHIN = 0.4
"""Share by which an epoch may take more or less than what was measured on a few layers."""
EFFICIENCY = 0.3
"""Share of the data sheet's operations that training reaches. Llama 3 reached 0.38 to 0.43 (Grattafiori et al. 2024, section
3.3.2); small models and 4-bit weights reach less."""
ROOFLINE_WITHIN = 2.0
"""Factor by which that may be wrong, either way."""


@dataclass(frozen=True)
class Seconds:
    """Of an epoch's training steps, without loading and validation."""

    likely: float
    least: float
    most: float
    measured: bool


@dataclass(frozen=True)
class Epoch:
    """The passes of an epoch."""

    passes: list[list[int]]
    """The lengths of the sequences of each."""
    steps: int
    tokens: int


def epoch_of(data: Records, train: params.Train) -> Epoch:
    """Batches in some random order, cut into passes as training cuts them."""
    lengths = list(data.lengths)
    random.Random(0).shuffle(lengths)  # noqa: S311
    batches = [lengths[start : start + train.batch_size] for start in range(0, len(lengths), train.batch_size)]
    passes = [one for batch in batches for one in grouped(batch, int, train.tokens_per_micro_batch)]
    return Epoch(passes, -(-len(batches) // train.gradient_accumulation), sum(lengths))


def measured(config: PreTrainedConfig, method: Method, p: params.Params, data: Records, dtype: torch.dtype) -> Seconds:
    """On this machine: a model of the shape of `config`, cut to a few layers of random weights, makes three passes of an
    epoch, and optimizer steps."""
    epoch = epoch_of(data, p.train)
    some = sorted(epoch.passes, key=sum)
    typical = [some[len(some) * part // 4] for part in (1, 2, 3)]
    few, more = (_timed(_cut(config, layers), method, p, typical, data.targets, dtype) for layers in (FEW, MORE))
    further = (_layers(config) - FEW) / (MORE - FEW)
    a_pass, a_step = (max(a, a + further * (b - a)) for a, b in zip(few, more, strict=True))
    tokens = sum(map(sum, typical))
    likely = a_pass * epoch.tokens / tokens + a_step * epoch.steps
    return Seconds(likely, likely * (1 - MEASURED_WITHIN), likely * (1 + MEASURED_WITHIN), measured=True)


def _layers(config: PreTrainedConfig) -> int:
    return cast(int, config.num_hidden_layers)


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
    passes: list[list[int]],
    targets: float,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Seconds of all `passes`, each once, and of an optimizer step."""
    model = _made(config, method, p, dtype, max(map(sum, passes)) + ROUND_ROWS_TO)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = SplitAdamW(trained, lr=1e-6)
    seconds = 0.0
    for lengths in passes:
        (batch,) = micro_batches(pack([_row(length, targets, config.vocab_size) for length in lengths]), sum(lengths))
        batch = {key: value.to(model.device) for key, value in batch.items()}
        seconds += min(_clocked(lambda batch=batch: _pass(model, batch)) for _ in range(TURNS + 1))
    return seconds, min(_clocked(lambda: _step(optimizer, trained, p)) for _ in range(TURNS))


def _made(config: PreTrainedConfig, method: Method, p: params.Params, dtype: torch.dtype, tokens: int) -> Any:
    """What is trained, over a base of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        base = load_base(Base(Path(folder)), weights_dtype(method), p.quantization if method.quantized else None)
        return as_trained(base, method, p.lora, tokens).train()


def _row(length: int, targets: float, words: int) -> dict[str, list[int]]:
    ids = [number % words for number in range(length)]
    masked = min(length - 1, round(length * (1 - targets)))
    return {"input_ids": ids, "labels": [-100] * masked + ids[masked:]}


def _pass(model: Any, batch: dict[str, torch.Tensor]) -> None:
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


def by_data_sheet(sizes: Sizes, method: Method, p: params.Params, data: Records, speed: Speed) -> Seconds:
    """Of a card of that `speed`, by the roofline (Williams et al. 2009): a pass takes as long as its operations, or as
    reading the weights, whichever is longer.

    Operations a token: 2 a weight forward, 2 for the gradient of what went in, 2 for that of the weight if it is trained
    (Kaplan et al. 2020, section 2.1), and again 2 if the layers are made again; with attention's 2 x 2 layers x width x
    length forward, twice that backward, half of it beyond the causal mask.
    """
    epoch, model, head = epoch_of(data, p.train), sizes.model, sizes.head
    matrices = sum(one.numel() for one in _matrices(model)) - head.numel()
    again = 2 * p.train.gradient_checkpointing
    a_weight = 4 + 2 * (not method.adapters) + again
    attended = sum(length * length for lengths in epoch.passes for length in lengths)
    layers = layer_stack(model)
    width = getattr(model.config, "hidden_size", 0)
    operations = epoch.tokens * (a_weight * matrices + (4 + 2 * (not method.adapters)) * head.numel() * data.targets)
    operations += (6 + again) * len(layers) * width * attended
    reads = len(epoch.passes) * sizes.weights * (2 + (not method.adapters) + p.train.gradient_checkpointing)
    likely = max(operations / (EFFICIENCY * speed.flops), reads / speed.bandwidth)
    return Seconds(likely, likely / ROOFLINE_WITHIN, likely * ROOFLINE_WITHIN, measured=False)


def _matrices(model: Any) -> list[torch.Tensor]:
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    return [one for one in model.parameters() if one.ndim > 1 and (one is not embedding or one is head)]
