"""The methods that can be compared: one entry each. A new variant is an entry here and its row in params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Okabe and Ito's palette, safe for colour-blind readers, and two greys.
BLUE, SKY_BLUE, GREEN, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#CC79A7"
VERMILLION, ORANGE, YELLOW, GREY, LIGHT_GREY = "#D55E00", "#E69F00", "#F0E442", "#7f7f7f", "#BBBBBB"

PART_COLORS = {
    "weights": BLUE,
    "adapters": SKY_BLUE,
    "gradients": GREEN,
    "optimizer": ORANGE,
    "activations": VERMILLION,
    "logits": PURPLE,
    "workspace": YELLOW,
    "rest": LIGHT_GREY,
}
"""The parts of a run's memory."""


@dataclass(frozen=True)
class Look:
    """How plots and sentences show a contender."""

    label: str
    color: str


@dataclass(frozen=True)
class Method(Look):
    """One way to fine-tune."""

    name: str
    """As in params.yaml and `-S method=…`."""
    first_learning_rate: float
    """Where the search starts: adapters take about ten times what all parameters take."""
    adapters: bool = False
    """Low-rank adapters are trained over a frozen base; else every parameter is."""
    quantized: bool = False
    """The frozen base is held in 4 bits."""
    lora_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of peft's `LoraConfig` that make the variant."""


BASE = Look(label="base model", color=GREY)
"""The untouched model, which every method is compared with."""

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # QLoRA: Dettmers et al. 2023. LoRA: Hu et al. 2021. DoRA: Liu et al. 2024.
        Method("QLoRA", BLUE, "qlora", first_learning_rate=1e-3, adapters=True, quantized=True),
        Method("LoRA", GREEN, "lora", first_learning_rate=1e-3, adapters=True),
        Method("DoRA", PURPLE, "dora", 1e-3, adapters=True, lora_options={"use_dora": True}),
        Method("full fine-tuning", VERMILLION, "full", first_learning_rate=1e-4),
    )
}
"""By name, in the order in which tables show them."""

REFERENCE = METHODS["full"]
"""The method by whose gain over the base model the others are measured."""
