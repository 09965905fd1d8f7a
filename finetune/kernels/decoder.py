"""Replace a model's decoder layers by steps in shared memory, where these compute the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from finetune.kernels.attention import check_window, is_packed
from finetune.kernels.calls import TOLERANCE, Call, recorded_calls
from finetune.kernels.decoder_layer import DecoderLayer, Kept, PackedInput
from finetune.kernels.joint_linear import lay_out
from finetune.kernels.linear_parts import linear_parts
from finetune.kernels.loss import packed_head_inputs
from finetune.kernels.packing import micro_batches, pack
from finetune.kernels.workspace import Workspace

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def replace_decoder_layers(model: PreTrainedModel | PeftModel, layers: list[nn.Module], tokens: int) -> bool:
    """Replace all `layers` of `model` by steps, if each has a Llama's form and computes the same; returns whether it did.

    The memory is laid out for micro-batches of `tokens` tokens. On CUDA the layers stay as they are. On the meta device,
    where there are no numbers to compare, the form alone decides.
    """
    device = model.device
    if device.type not in ("cpu", "meta") or not layers or not all(has_form(layer) for layer in layers):
        return False
    shared = _Shared(device)
    steps = [DecoderLayer(layer, number, shared.workspace) for number, layer in enumerate(layers)]
    shared.steps = steps
    # The blocks' constants in 8 bits until they are used: in fp32 they are a fourteenth of what QLoRA holds.
    lay_out([linear for step in steps for linear in step.linears], shared.workspace, constants_held=False)
    if device.type == "cpu" and not _compute_the_same(shared, model, layers):
        return False
    shared.workspace.reserve(tokens)
    for number, layer in enumerate(layers):
        layer.forward = partial(_forward, layer, layer.forward, shared, number)
    return True


_FORM = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


def has_form(layer: Any) -> bool:
    """Whether `layer` has a Llama's modules, of one dtype, and no dropout, which no comparison would show."""
    if any({name for name, _ in layer.get_submodule(path).named_children()} != names for path, names in _FORM.items()):
        return False
    linears = [linear_parts(module) for path in ("self_attn", "mlp") for module in _linear_modules(layer, path)]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    return (
        all(parts is not None and (parts.state or type(parts.base) is nn.Linear) for parts in linears)
        and all(hasattr(norm, "variance_epsilon") for norm in norms)
        and len({parts.dtype for parts in linears if parts} | {norm.weight.dtype for norm in norms}) == 1
        and len({(parts.state is None, parts.weight.requires_grad) for parts in linears if parts}) == 1
        and not getattr(layer.self_attn, "attention_dropout", 0)
    )


def _window(attention: Any) -> int | None:
    """Tokens that it attends to at most; some families have it in the layer, others only in the config."""
    config = getattr(attention, "config", None)
    return getattr(attention, "sliding_window", getattr(config, "sliding_window", None))


def _linear_modules(layer: nn.Module, path: str) -> list[nn.Module]:
    return [module for name, module in layer.get_submodule(path).named_children() if name.endswith("_proj")]


class _Shared:
    """What a model's layers share: memory, and the number of forwards so far."""

    steps: list[DecoderLayer]

    def __init__(self, device: torch.device) -> None:
        self.workspace, self.forwards = Workspace(device), 0

    def begin(self, tokens: int) -> None:
        """A forward of `tokens` tokens begins; the blocks of the one before are free."""
        self.workspace.reserve(tokens)
        self.forwards += 1
        for step in self.steps:
            for linear in step.linears:
                linear.cast_adapters()


def _forward(
    layer: Any,
    own: Callable[..., Any],
    shared: _Shared,
    number: int,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    if not is_packed(attention_mask) or not all(linear.is_current for linear in shared.steps[number].linears):
        return own(hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **kwargs)
    if number == 0:
        shared.begin(hidden_states.shape[1])
    given = _given(cast(torch.Tensor, attention_mask), position_embeddings)
    check_window(_window(layer.self_attn), max(given.lengths))
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        # transformers wraps the layer's own forward; made again just before its backward pass, all share one set.
        return layer._gradient_checkpointing_func(partial(_step, shared, number, given, "any layer's"), hidden_states)
    # Nothing is kept without a backward pass, so that one set is enough: a set a layer would stay, even where each
    # layer is made again.
    return _step(shared, number, given, number if torch.is_grad_enabled() else "any layer's", hidden_states)


def _step(shared: _Shared, number: int, given: PackedInput, kept_as: object, x: torch.Tensor) -> torch.Tensor:
    step = shared.steps[number]
    return _Step.apply(x, step, given, shared, kept_as, *step.parameters)


def _given(mask: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]) -> PackedInput:
    return PackedInput(positions[0][0], positions[1][0], mask.flatten().tolist())


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        step: DecoderLayer,
        given: PackedInput,
        shared: _Shared,
        kept_as: object,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        out, kept = step.forward(x[0], given, kept=kept_as)
        # Not on `ctx`, though it is no output: checkpointing and the count of activations see what is saved here alone.
        ctx.save_for_backward(*kept[:-1], *kept.squeezed)
        ctx.step, ctx.given, ctx.shared = step, given, shared
        ctx.forwards = shared.forwards
        return out[None]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.forwards != ctx.shared.forwards:
            raise RuntimeError("another forward has gone through the model before this one's backward pass")
        saved = ctx.saved_tensors
        last = len(Kept._fields) - 1
        kept = Kept._make([*saved[:last], saved[last:]])
        rows = gradient[0]
        d_x = None
        if ctx.needs_input_grad[0]:
            # Two in turn, since the layer before reads this one's while it writes its own.
            d_x = ctx.shared.workspace.rows(("d out", ctx.step.number % 2), *rows.shape, dtype=rows.dtype)
        grads = ctx.step.backward(rows, kept, ctx.given, d_x)
        return None if d_x is None else d_x[None], None, None, None, None, *grads


def _compute_the_same(shared: _Shared, model: PreTrainedModel | PeftModel, layers: list[nn.Module]) -> bool:
    calls = _calls_of(model, layers)
    if len(calls) != len(layers):
        return False
    shared.begin(calls[0].args[0].shape[1])
    return all(map(_is_near, shared.steps, calls))


@torch.no_grad()
def _calls_of(model: PreTrainedModel | PeftModel, layers: list[nn.Module]) -> list[Call]:
    """The calls of `layers`, in their order, in a forward of two short sequences."""
    known = len(cast(torch.Tensor, cast(nn.Module, model.get_input_embeddings()).weight))
    rows = [[number % known for number in numbers] for numbers in (range(40), range(7, 30))]
    (batch,) = micro_batches(pack([{"input_ids": ids, "labels": ids} for ids in rows]), 1000)
    with recorded_calls(layers) as calls:
        packed_head_inputs(model, batch)
    return sorted(calls, key=lambda call: layers.index(call.module))


@torch.no_grad()
def _is_near(step: DecoderLayer, call: Call) -> bool:
    x, expected = call.args[0][0], call.result[0]
    given = _given(call.kwargs["attention_mask"], call.kwargs["position_embeddings"])
    out, _ = step.forward(x, given, kept="any layer's")
    difference, added = (out - expected).float(), (expected - x).float()
    return bool(difference.norm() < TOLERANCE[x.dtype].layer * added.norm())
