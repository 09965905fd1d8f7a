"""The parts of a run's memory at its peak. docs/plan.md has the formulas and their sources."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from finetune import params
from finetune.kernels.adamw import state_bytes
from finetune.kernels.attention import ROUND_ROWS_TO
from finetune.kernels.decoder import has_form
from finetune.kernels.decoder_layer import DecoderLayer
from finetune.kernels.layers import replace_layers
from finetune.kernels.linear_parts import is_lora, plain_adapter
from finetune.kernels.lora import fuse
from finetune.kernels.loss import CHUNK_BYTES, WIDE_BYTES
from finetune.kernels.workspace import Workspace
from finetune.methods import Method
from finetune.models.adapters import with_new_adapters
from finetune.models.loading import layer_stack
from finetune.planner.activations import ATTENTION, count
from finetune.planner.devices import Device
from finetune.planner.records import MicroBatch

CONSTANTS_PER_CONSTANT = 256
"""Constants of 4-bit blocks that share a constant where they are quantised too (QLoRA, Dettmers et al. 2023, section 3)."""
MAPPED = 32 * 2**20
"""glibc gives back at once what is at least this large (mallopt(3), M_MMAP_THRESHOLD)."""

# What a process on a CPU holds in addition to tensors follows from no shape. Fitted to runs of the train stage (docs/plan.md).
LIBRARIES = 100 * 10**6
"""The model's code, Trainer, DVCLive, Arrow."""
LIBRARIES_AT_LOADING = 40 * 10**6
"""The part of `LIBRARIES` that is there while the weights are loaded."""
KERNELS = 1024
"""oneDNN keeps so many compiled kernels at most (ONEDNN_PRIMITIVE_CACHE_CAPACITY)."""
KERNELS_PER_LENGTH = 6
"""Products of attention, forward and backward, whose shapes are a sequence's length."""
KERNEL_BYTES = 175 * 10**3
HOLES = 0.055
"""Share of the tensors that a model's own layers make which glibc's heap keeps in pieces that fit nothing later."""
MOST_HOLES = 2.1
"""Such pieces are at most this many times what exists at the peak."""


@dataclass(frozen=True)
class ModelSizes:
    """What a method trains, whatever the micro-batch; in bytes unless stated."""

    model: Any
    """The model on the meta device, 4-bit weights in 16 bits."""
    device: str
    """torch's device type."""
    item: int
    """Size of a number in the matrix products."""
    weights: int
    """All weights but the adapters, 4-bit blocks with their constants."""
    adapters: int
    gradients: int
    freed_gradients: int
    """Gradients of the last step that a CPU's allocator keeps, as they are smaller than `MAPPED`."""
    optimizer: int
    head: torch.Tensor
    """The head's weight, (words, width)."""
    embedding_gradient: int
    """Dense, and made before it is added to the head's, where both are one trained weight."""
    quantized: int
    """All 4-bit layers' weights in 16 bits; 0 if there are none."""
    matrix: int
    """The largest 4-bit matrix that is de-quantised at a time, in 16 bits."""
    joint: bool
    """The decoder layers run as `kernels.decoder` makes them."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run's peak, in bytes."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    """What waits for the backward pass when all gradients exist, or before any does if that is more."""
    logits: int
    workspace: int
    process: int
    """On a CPU, what libraries load and compile; 0 on CUDA, as torch's allocator doesn't count it."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, one.name) for one in fields(self))

    def gb(self) -> dict[str, float]:
        """Each part in GB of 10^9 bytes, by its name."""
        return {name: value / 1e9 for name, value in asdict(self).items()}

    def per_rank(self, launch: params.Launch) -> Parts:
        """The parts in each of several processes.

        FSDP shards weights, adapters, gradients and optimizer (ZeRO stage 3, Rajbhandari et al. 2020, section 5), DDP
        nothing. Either way the activations are those of a process's own sequences.
        """
        if not is_sharded(launch):
            return self
        names = ("weights", "adapters", "gradients", "optimizer")
        return replace(self, **{name: -(-getattr(self, name) // launch.processes) for name in names})


def is_sharded(launch: params.Launch) -> bool:
    """Whether each process holds a part of the weights."""
    return launch.shard and launch.processes > 1


def model_sizes(config: PreTrainedConfig, method: Method, p: params.Params, device: Device) -> ModelSizes:
    """The sizes of the model of `config` as `method` trains it on `device`.

    fp16 weights are trained as fp32. Raises UserError if `p.lora` doesn't fit the model.
    """
    trained_as_fp32 = not method.adapters and device.dtype == torch.float16
    model = _meta_model(config, method, p.lora, torch.float32 if trained_as_fp32 else device.dtype, device.kind)
    joint = device.kind == "cpu" and not is_sharded(p.launch) and _runs_jointly(model)
    found = _sizes(model, method, p.quantization, device.kind, joint=joint)
    _cast_as_autocast_does(model, device.dtype)
    return found


def _meta_model(config: PreTrainedConfig, method: Method, lora: params.Lora, dtype: torch.dtype, kind: str) -> Any:
    """The model as `models.adapters.trainable` makes it, in `dtype`, without its weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION[kind])
        if method.adapters:
            model = with_new_adapters(model, method, lora)
            fuse(model)
    replace_layers(model)
    return model.train()


def _runs_jointly(model: Any) -> bool:
    layers = layer_stack(model)
    by_silu = getattr(model.config, "hidden_act", None) in ("silu", "swish")
    return bool(layers) and by_silu and all(has_form(layer) for layer in layers)


def _cast_as_autocast_does(model: Any, dtype: torch.dtype) -> None:
    """Cast the adapters that run peft's own code (DoRA, dropout) to `dtype`, as autocast knows no meta device."""
    for layer in model.modules():
        if is_lora(layer) and plain_adapter(layer) is None:
            for parameter in layer.parameters():
                parameter.data = parameter.data.to(dtype)


def _sizes(model: Any, method: Method, settings: params.Quantization, device: str, *, joint: bool) -> ModelSizes:
    trained = [one for one in model.parameters() if one.requires_grad]
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    rounded = _linear_weights(model) if method.quantized else []
    return ModelSizes(
        model=model,
        device=device,
        item=head.element_size(),
        weights=_weights(model, {id(one) for one in rounded}, settings),
        adapters=sum(one.nbytes for one in trained) if method.adapters else 0,
        gradients=sum(one.nbytes for one in trained),
        freed_gradients=sum(one.nbytes for one in trained if one.nbytes < MAPPED) if device == "cpu" else 0,
        optimizer=sum(one.numel() * state_bytes(one.dtype) for one in trained),
        head=head,
        embedding_gradient=embedding.nbytes if embedding.requires_grad and embedding is head else 0,
        quantized=sum(one.nbytes for one in rounded),
        matrix=max(_joint_matrices(model) if joint and rounded else (one.nbytes for one in rounded), default=0),
        joint=joint,
    )


def _linear_weights(model: Any) -> list[torch.Tensor]:
    """The weights that are rounded to 4 bits: those of linear layers other than the head and the adapters."""
    head = model.get_output_embeddings()
    modules = (one for one in model.modules() if type(one) in (nn.Linear, Conv1D) and one is not head)
    return [one.weight for one in modules if not one.weight.requires_grad]


def _joint_matrices(model: Any) -> list[int]:
    """Bytes of the matrices that layers with one input are de-quantised into."""
    workspace = Workspace(torch.device("meta"))
    steps = [DecoderLayer(layer, number, workspace) for number, layer in enumerate(layer_stack(model))]
    return [one.shape[0] * one.shape[1] * one.dtype.itemsize for step in steps for one in step.linears]


def _weights(model: Any, rounded: set[int], settings: params.Quantization) -> int:
    adapted = isinstance(model, PeftModel)
    held = [one for one in model.parameters() if not (adapted and one.requires_grad)]
    return sum(_in_4_bits(one.numel(), settings) if id(one) in rounded else one.nbytes for one in held)


def _in_4_bits(weights: int, settings: params.Quantization) -> int:
    blocks = -(-weights // settings.block_size)
    constants = blocks + 4 * -(-blocks // CONSTANTS_PER_CONSTANT) if settings.double_quant else 4 * blocks
    return weights // 2 + constants


def parts_at_peak(sizes: ModelSizes, train: params.Train, at: MicroBatch) -> Parts:
    """The peak of a run by `train` whose largest micro-batch is `at`.

    Raises UserError if the model's activations can't be counted.
    """
    loss = _loss_bytes(sizes.head, at.targets, sizes.item)
    counted = count(sizes.model, at, checkpointing=train.gradient_checkpointing, joint=sizes.joint)
    before = sizes.gradients if at.accumulated else sizes.freed_gradients
    holes = 0
    if sizes.device == "cpu" and not sizes.joint:
        written = sizes.quantized * (3 if train.gradient_checkpointing else 2)
        holes = round(min(HOLES * (counted.made + written), MOST_HOLES * counted.most))
    # Layers that are made again leave holes in the forward pass already.
    computing_loss = counted.forward + before + loss.most + (holes if train.gradient_checkpointing else 0)
    backward = counted.most + before + loss.between + holes
    backward_done = counted.after + sizes.gradients + loss.between + sizes.embedding_gradient + holes
    most = max(computing_loss, backward, backward_done) - sizes.gradients
    activations = min(counted.saved, most)
    training = Parts(
        weights=sizes.weights,
        adapters=sizes.adapters,
        gradients=sizes.gradients,
        optimizer=sizes.optimizer,
        activations=activations,
        logits=loss.logits,
        workspace=sizes.matrix + most - activations,
        process=LIBRARIES + min(KERNELS, KERNELS_PER_LENGTH * at.shapes) * KERNEL_BYTES if sizes.device == "cpu" else 0,
    )
    # A large model with short micro-batches has its peak while it is loaded: its file, mapped into memory, stays until
    # the last weight is copied out of it.
    loading = 2 * sizes.weights + LIBRARIES_AT_LOADING if sizes.device == "cpu" else 0
    return replace(training, workspace=training.workspace + max(0, loading - training.total))


@dataclass(frozen=True)
class _LossBytes:
    """What the loss (`kernels.loss`) takes in addition to the head's weight, in bytes."""

    logits: int
    """A chunk, and some of its rows in fp32; kept between micro-batches."""
    between: int
    """What waits for the backward pass: the gradients of the head's inputs, and of its weight if that is trained."""
    most: int
    """The peak while the loss is computed, without the logits."""


def _loss_bytes(weight: torch.Tensor, targets: int, item: int) -> _LossBytes:
    """The loss of `targets` labelled tokens under a head's `weight` (words, width), products in numbers of `item` bytes."""
    words, width = weight.shape
    trained = weight.requires_grad
    rows = targets + -targets % ROUND_ROWS_TO
    chunk = max(1, CHUNK_BYTES * (1 + trained) // (item * words * ROUND_ROWS_TO)) * ROUND_ROWS_TO
    hidden, head = rows * width * item, words * width
    # Over several chunks: the sum in fp32, the product that is added, in its own dtype and widened for it, and at the
    # second chunk what the sum is made of.
    sums = head * (item if rows <= chunk else 4 + item + 4 + item) * trained
    wide_rows = max(1, WIDE_BYTES // (4 * words))
    return _LossBytes(
        logits=min(rows, chunk) * words * item + wide_rows * words * 4,
        between=hidden + head * weight.itemsize * trained,
        most=3 * hidden + sums,
    )
