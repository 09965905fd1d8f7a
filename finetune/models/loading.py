"""Models loaded from disk: base models in 16 or 4 bits, and fine-tuned ones, ready to generate."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel

from finetune import params
from finetune.device import compute_dtype, device, is_out_of_memory
from finetune.errors import UserError, first_line
from finetune.kernels.attention import ATTENTION_NAME
from finetune.kernels.lora import fuse
from finetune.models.base import Base
from finetune.models.checkpoint import Checkpoint
from finetune.sources.contents import check_adapter, check_weights


def load_base(
    base: Base,
    dtype: torch.dtype,
    quantization: params.Quantization | None = None,
    place: torch.device | None = None,
) -> PreTrainedModel:
    """The causal language model `base` on the device at hand, or in another `place`.

    Weights have `dtype`; with `quantization` the linear layers hold 4-bit blocks (QLoRA, Dettmers et
    al. 2023, section 3) and multiply in `dtype`. What is stored in 4 bits already stays as it is. Raises
    UserError if there is no model that can be trained here (`Base.config`), or if its weights are no
    safetensors, damaged, or not all there.
    """
    stored_in_4_bits = base.bits
    check_weights(base.folder)
    # Left out, not None: that would say that weights stored in 4 bits are plain.
    bits = {"quantization_config": bits_and_bytes(quantization, dtype)} if quantization and not stored_in_4_bits else {}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            base.folder,
            config=base.config,
            dtype=dtype,
            **bits,
            device_map={"": place or device()},
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # `_check_complete` names them
        )
    except Exception as error:  # safetensors and transformers raise various classes
        if is_out_of_memory(error):
            raise
        raise UserError(f"{base}: no causal language model can be loaded: {first_line(error)}") from None
    model, found = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    _check_complete(base.folder, model, found)
    keep_end_tokens_alone(model)
    if stored_in_4_bits:
        _multiply_in(model, dtype)
    if stored_in_4_bits or quantization:
        _keep_order(model)
    return model


def load_tuned(checkpoint: Checkpoint, base: Base | None) -> PreTrainedModel | PeftModel:
    """The fine-tuned model `checkpoint`, ready to generate, over its `base` (`Checkpoint.base`).

    Adapter weights are cast to the dtype of the matrix products, as autocast did in training. Raises UserError if the
    weights can't be loaded.
    """
    model: PreTrainedModel | PeftModel
    if base is None:
        model = load_base(Base(checkpoint.folder), compute_dtype())
    else:
        model = _with_adapter(checkpoint.folder, load_base(base, compute_dtype()))
    add_end_tokens(model, checkpoint.end_tokens)
    return model


def _with_adapter(folder: Path, model: PreTrainedModel) -> PeftModel:
    check_adapter(folder)
    try:
        # peft would widen the adapters to fp32, and every product of every token would cast them back.
        tuned = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except Exception as error:  # a file that is cut short, or of other shapes
        if is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: the adapter can't be loaded: {first_line(error)}; train it again") from None
    fuse(tuned)
    return tuned


def end_tokens(model: PreTrainedModel | PeftModel) -> list[int]:
    """Ids of the tokens with which `model` ends an answer, sorted."""
    ids = model.generation_config.eos_token_id
    return sorted({ids} if isinstance(ids, int) else set(ids or []))


def add_end_tokens(model: PreTrainedModel | PeftModel, ids: Iterable[int]) -> None:
    """Let `model` end its answers with these tokens as well."""
    every = sorted({*end_tokens(model), *ids})
    model.generation_config.eos_token_id = every[0] if len(every) == 1 else every


def keep_end_tokens_alone(model: PreTrainedModel) -> None:
    """Drop from `model` what its generation_config.json suggests, except the special tokens.

    Penalties, beams, minimal lengths and forced or suppressed tokens would change greedy answers silently, and
    values that contradict each other can't be saved again.
    """
    told = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=told.bos_token_id, eos_token_id=told.eos_token_id, pad_token_id=told.pad_token_id
    )


def bits_and_bytes(quantization: params.Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes holds 4-bit layers by these settings; they multiply in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def _check_complete(folder: Path, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise UserError unless the files fit config.json: transformers draws missing weights at random and drops others."""
    mismatched = sorted(found["mismatched_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise UserError(
            f"{folder}: {name} is {_by(stored)} in the file, and by config.json {_by(wanted)}; fetch both from one place"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of the model's weights aren't in its files ({missing[0]}, …); fetch it again"
        )
    places = {_numberless(name) for name in model.state_dict()}
    left = sorted(name for name in found["unexpected_keys"] if _numberless(name) in places)
    if left:
        raise UserError(
            f"{folder}: the files hold {len(left)} weights more than config.json has ({left[0]}, …); "
            f"fetch both from one place"
        )


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _numberless(name: str) -> str:
    """The name of a weight, the same for each layer."""
    return re.sub(r"\d+", "#", name)


def _keep_order(model: nn.Module) -> None:
    """On a CPU, bitsandbytes puts 4-bit weights into another order at the first validation.

    Its kernel for that order is slower than de-quantising for more than a few rows, and has no gradient.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _multiply_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let 4-bit layers multiply in `dtype`: the dtypes stored with them suited another machine."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            state.dtype = module.compute_dtype = dtype
    for parameter in model.parameters():
        if parameter.is_floating_point():  # those in 4 bits are bytes
            parameter.data = parameter.data.to(dtype)


def copy_from_file(model: nn.Module) -> None:
    """Copy the weights out of the mapped file, all of which stays in memory as long as one of them is a view of it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        state = getattr(parameter, "quant_state", None)
        for one in (state, getattr(state, "state2", None)):
            for name, value in vars(one).items() if one is not None else ():
                if isinstance(value, torch.Tensor):
                    setattr(one, name, value.clone())


def layer_stack(model: nn.Module) -> list[nn.Module]:
    """The model's layers: its longest list of modules."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return list(max(lists, key=len, default=[]))


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit byte counts as two weights."""
    trainable_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_weights_held(p) for p in model.parameters())
    return trainable_count, total


def _weights_held(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
