"""Read an adapter that peft has saved, without peft: its import takes longer than the first tokens of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from finetune.errors import UserError
from finetune.files import read_json
from finetune.kernels.linear_parts import Adapter
from finetune.models.checkpoint import PEFT_PREFIX
from finetune.sources.contents import ADAPTER, ADAPTER_CONFIG

_PLAIN = {
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
}
"""Settings of peft, with the values under which an adapter is nothing but A, B and alpha / r."""


def is_plain(folder: Path) -> bool:
    """Whether the adapter in `folder` can be swapped over a shared base: plain LoRA, no DoRA and no biases."""
    config = _config(folder)
    return config.get("peft_type") == "LORA" and all(
        not config.get(key) or config[key] == plain for key, plain in _PLAIN.items()
    )


def read_adapter(folder: Path) -> dict[str, Adapter]:
    """(path of a layer in the base model: its part) of the plain adapter in `folder`.

    Raises UserError if the file is cut short, or holds something else.
    """
    config = _config(folder)
    try:
        weights = load_file(folder / ADAPTER)
        paths = sorted(name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight"))
        if not paths or len(weights) != 2 * len(paths):
            raise ValueError("it holds weights other than A and B of each layer")
        divisor = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
        scale = config["lora_alpha"] / divisor
        return {
            path.removeprefix(PEFT_PREFIX): Adapter(
                weights[f"{path}.lora_A.weight"], weights[f"{path}.lora_B.weight"], scale
            )
            for path in paths
        }
    except Exception as error:  # safetensors raises its own classes
        raise UserError(f"{folder}: the adapter can't be loaded: {error}; train it again") from None


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / ADAPTER_CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {ADAPTER_CONFIG} can't be read ({error}); train it again") from None
