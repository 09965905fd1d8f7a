"""Tiny random models of every family that transformers has a causal language model for."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

EVERY = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Model types, as config.json names them."""

PACKED = [
    "llama",
    "gpt2",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "olmo2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "ctrl",
]
"""Families whose packed sequences stay independent."""

STATEFUL = ["lfm2", "granitemoehybrid", "minimax"]
"""Families that carry a state along the sequence."""

LIVELY = 0.3
"""Standard deviation of random weights: at the usual 0.02 attention is flat, and no test sees positions or masks."""

LARGEST = 3_000_000
"""Parameters of a tiny model at most."""

_SMALL = {
    "vocab_size": 384,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "dim": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "ffn_dim": 96,
    "n_inner": 96,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_seq_len": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "state_size": 16,
    "lru_width": 64,
    "expand": 2,
    "attention_window_size": 512,
    "sliding_window": 512,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "word_embed_proj_dim": 64,
    "embedding_size": 64,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "hidden_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
"""What keys of a config are set to, where a family has them."""

_OWN: dict[str, dict] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "bamba": {"attn_layer_indices": [1]},
    "bert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
}
"""What single families need in addition."""


def config(family: str, **settings: object) -> PreTrainedConfig:
    """A small config of the family; may raise whatever the family raises."""
    kind = CONFIG_MAPPING[family]
    known = set(kind().to_dict())
    small = {key: value for key, value in _SMALL.items() if key in known}
    if "qk_rope_head_dim" in known and "head_dim" in known:  # what the rotation turns is called the head there
        small["head_dim"] = small["qk_rope_head_dim"]
    return kind(**small | _OWN.get(family, {}) | settings)


def model(family: str, **settings: object) -> PreTrainedModel:
    """A tiny random model of the family with lively weights, in fp32."""
    small = config(family, **settings)
    with torch.device("meta"):  # a config within the config may have kept its full size
        count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(small).parameters())
    if count > LARGEST:
        raise ValueError(f"{family}: {count} parameters aren't tiny")
    set_seed(0)
    made = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=LIVELY)
    return made.eval()


def save(family: str, folder: Path, **settings: object) -> Path:
    """The tiny model in a folder, without a tokenizer."""
    model(family, **settings).save_pretrained(folder)
    return folder


def with_tokenizer(family: str, folder: Path, like: Path, **settings: object) -> Path:
    """The tiny model in a folder, with the tokenizer of the model in `like`."""
    from transformers import AutoTokenizer

    save(family, folder, **settings)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: list[int], new_tokens: int, ends: list[int]) -> list[int]:
    """What transformers makes of one prompt, greedily."""
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()
