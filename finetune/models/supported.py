"""Which base models can be trained here, by their config.json, before any weight is read."""

import json
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from finetune.errors import UserError, first_line


def read_config(folder: Path | str) -> PreTrainedConfig:
    """The config of the causal language model in `folder`.

    Raises UserError if there is none, or if it is of a kind that can't be trained here: code of its own, encoders,
    images or sound as well as text, an attention that can't be replaced by `kernels.attention.attend`.
    """
    written = _written(Path(folder))
    kind = written.get("model_type")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in written:
            raise UserError(
                f"{folder}: this model brings Python code of its own, which is never run here; choose another"
            )
        raise UserError(f"{folder}: config.json names the model_type {kind!r}, which transformers doesn't know")
    _check_names_no_kernel(folder, written)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each family checks its config in its own way
        raise UserError(f"{folder}: config.json is no valid config of a {kind} model: {first_line(error)}") from None
    _check_kind(folder, config)
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of transformers that loads a causal language model of this config; None if there is none."""
    return cast("type[PreTrainedModel] | None", AutoModelForCausalLM._model_mapping.get(type(config), None))


def form_in_4_bits(folder: Path | str, config: PreTrainedConfig) -> str | None:
    """'nf4' or 'fp4' if the weights in `folder` are stored so by bitsandbytes, None if they are plain numbers.

    Raises UserError if they are stored in any other form than that and plain numbers.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    if stored.get("quant_method", "bitsandbytes") == "bitsandbytes" and stored.get("load_in_4bit"):
        return str(stored.get("bnb_4bit_quant_type", "fp4"))
    form = "bitsandbytes 8-bit" if stored.get("load_in_8bit") else stored.get("quant_method", "an unknown form")
    raise UserError(
        f"{folder}: the weights are quantised already ({form}), which can't be trained here; choose the model's "
        f"16-bit weights, or those that bitsandbytes holds in 4 bits"
    )


def _written(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists():  # transformers would put it over the base without a word
        raise UserError(f"{folder}: holds an adapter, not a model alone; give the base model that it belongs to")
    if not path.exists():
        if any(folder.glob("*.gguf")):
            raise UserError(f"{folder}: holds a GGUF file and no config.json; give the folder of a Hugging Face model")
        raise UserError(f"{folder}: no causal language model can be loaded: there is no config.json")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({first_line(error)}); fetch the model again") from None
    if not isinstance(written, dict):
        raise UserError(f"{path}: must hold one JSON object; fetch the model again")
    return written


def _check_names_no_kernel(folder: Path | str, written: dict[str, Any]) -> None:
    """Raise UserError if a config asks for an attention by its id on the Hub, whose code transformers would run."""
    for key, value in written.items():
        if isinstance(value, dict):
            _check_names_no_kernel(folder, value)
        elif "attn_implementation" in key and "/" in str(value):
            raise UserError(
                f"{folder}: config.json names code on the Hub ({key}: {value}), which is never run here; take that line out"
            )


def _check_kind(folder: Path | str, config: PreTrainedConfig) -> None:
    kind, found = config.model_type, model_class(config)
    if config.is_encoder_decoder:
        raise UserError(f"{folder}: {kind} models have an encoder and a decoder; choose a causal language model")
    senses = [name for name in ("vision_config", "audio_config", "speech_config") if getattr(config, name, None)]
    if senses:
        raise UserError(f"{folder}: {kind} models read more than text ({senses[0]}); choose one for text alone")
    if found is None:
        raise UserError(f"{folder}: {kind} models aren't causal language models; choose one that is")
    if not found._supports_attention_backend:  # it would ignore ours, and let packed sequences see each other
        raise UserError(
            f"model.source: {kind} models bring an attention of their own, which can't be replaced "
            f"by the packed one; choose another"
        )
