"""Base models and what each method makes of them: 4-bit weights, adapters, or every parameter trained."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from finetune import attention, params
from finetune.errors import UserError
from finetune.fused_lora import fuse
from finetune.hardware import compute_dtype, device
from finetune.lean_layers import slim


def load_base(folder, dtype: torch.dtype, quantization: params.Quantization | None = None) -> PreTrainedModel:
    """The causal language model in `folder` on the device at hand.

    Weights have `dtype`; with `quantization` the linear layers hold 4-bit blocks (QLoRA, Dettmers et
    al. 2023, section 3) and multiply in `dtype`. Raises UserError if there is no causal model, or one
    whose attention can't be replaced by `attention.attend`.
    """
    bits = quantization and BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=bits,
            device_map={"": device()},
            attn_implementation=attention.NAME,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no causal language model can be loaded: {str(error).splitlines()[0]}") from None
    if not model._supports_attention_backend:  # it would ignore ours, and let packed sequences see each other
        raise UserError(
            f"model.source: {model.config.model_type} models bring an attention of their own, which can't be replaced "
            f"by the packed one; choose another"
        )
    return model


def trainable(folder, method: str, lora: params.Lora, quantization: params.Quantization) -> PreTrainedModel | PeftModel:
    """The model that `method` trains: 'full' (all weights), 'lora' or 'qlora' (frozen base, fp32 adapters).

    AdamW's small steps are lost in the 8 bits of a bf16 mantissa: adapters are fp32, and for bf16
    weights `SplitAdamW` keeps the rest. fp16 weights can't be kept so; they are trained as fp32.
    """
    if method == "full":
        model = load_base(folder, torch.bfloat16 if compute_dtype() == torch.bfloat16 else torch.float32)
        _copy_from_file(model)
        slim(model)
        return model
    base = load_base(folder, compute_dtype(), quantization if method == "qlora" else None)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    base.requires_grad_(False)
    if method == "qlora":
        _keep_differentiable(base)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise UserError(f"lora.target_modules: {str(error).splitlines()[0]}") from None
    _copy_from_file(base)
    fuse(model, keep_dequantized=quantization.keep_dequantized)
    slim(model)
    return model


def _copy_from_file(model) -> None:
    """Weights that aren't quantised are views of the mapped file, which stays in memory as a whole while one of them lives."""
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is None:
            parameter.data = parameter.data.clone()


def _keep_differentiable(model) -> None:
    """On a CPU, bitsandbytes packs 4-bit weights at the first validation, for a kernel that passes no gradient on."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_tuned(folder, facts: dict, base=None) -> PreTrainedModel | PeftModel:
    """The fine-tuned model that `checkpoint.save` wrote to `folder`, ready to generate.

    An adapter gets its base from where it was trained, or from the folder `base`; a QLoRA adapter
    gets it in the 4 bits that it was trained on. Adapter weights are cast to the dtype of the
    matrix products, as autocast did in training.
    """
    if facts["method"] == "full":
        return load_base(folder, compute_dtype())
    quantization = params.Quantization(**facts["quantization"]) if facts["method"] == "qlora" else None
    model = load_base(base or facts["base"], compute_dtype(), quantization)
    tuned = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    fuse(tuned, keep_dequantized=quantization is not None and quantization.keep_dequantized)
    return tuned


def parameter_counts(model) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit weight counts as the weights it holds."""
    trainable_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_weights_held(p) for p in model.parameters())
    return trainable_count, total


def _weights_held(parameter: torch.nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
