"""The models that the kit measures: published shapes, with random weights, since cost doesn't depend on what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Shape:
    """A model's family and what its config says; the rest is as the family has it."""

    family: str
    like: str
    """The published model that has this shape."""
    settings: dict[str, Any]

    def config(self) -> PreTrainedConfig:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        kind: Any = CONFIG_MAPPING[self.family]
        made: PreTrainedConfig = kind(**self.settings, bos_token_id=0, eos_token_id=0)
        return made

    @property
    def layers(self) -> int:
        return int(self.config().num_hidden_layers)

    def with_layers(self, layers: int) -> Shape:
        """The same with other `layers`, for a Llama."""
        return replace(self, settings=self.settings | {"num_hidden_layers": layers})


def _llama(like: str, width: int, mlp: int, layers: int, heads: int, key_heads: int, words: int, tied: bool) -> Shape:
    settings = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
    settings |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": words}
    return Shape("llama", like, settings | {"tie_word_embeddings": tied, "max_position_embeddings": 4096})


SHAPES = {
    "distilgpt2": Shape("gpt2", "DistilGPT-2", {"n_layer": 6}),
    "135M": _llama("SmolLM2-135M", 576, 1536, 30, 9, 3, 49152, True),
    "1B": _llama("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 128256, True),
    "7B": _llama("Llama-2-7B", 4096, 11008, 32, 32, 32, 32000, False),
}
"""Of the cost table. Each config.json is on the Hugging Face Hub."""

LADDER = {
    "1B": SHAPES["1B"],
    "3B": _llama("Llama-3.2-3B", 3072, 8192, 28, 24, 8, 128256, True),
    "7B": SHAPES["7B"],
    "8B": _llama("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128256, False),
    "13B": _llama("Llama-2-13B", 5120, 13824, 40, 40, 40, 32000, False),
    "32B": _llama("Qwen2.5-32B", 5120, 27648, 64, 40, 8, 152064, False),
}
"""Of the search for the largest, each larger than the one before."""


_SMALL = _llama("none", 64, 128, 2, 4, 2, 384, True)

TINY = {"gpt2": Shape("gpt2", "none", {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 384}), "llama": _SMALL}
"""To try the kit itself: `--tiny`."""

TINY_LADDER = {"small": _SMALL, "many words": _llama("none", 512, 64, 2, 4, 2, 100_000, True)}
