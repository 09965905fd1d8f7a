"""Every figure that runs are compared by: its key, title, unit, digits, and which way is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One figure of a run."""

    key: str
    """In metrics/*.json."""
    title: str
    unit: str = ""
    digits: int = 0
    less_is_better: bool = True

    @property
    def heading(self) -> str:
        """'Title (unit)', as tables and axes show it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float) -> str:
        """`value` with this measure's digits: '1,234.5'."""
        return f"{value:,.{self.digits}f}"

    def signed(self, value: float) -> str:
        """A difference: '+1.2'."""
        return f"{value:+,.{self.digits}f}"

    def better(self, difference: float) -> bool:
        """Whether what stands `difference` higher is the better one."""
        return difference < 0 if self.less_is_better else difference > 0


def _by_key(*measures: Measure) -> dict[str, Measure]:
    return {measure.key: measure for measure in measures}


SCORES = _by_key(
    Measure("bleu", "BLEU", "0 to 100", digits=1, less_is_better=False),
    Measure("rouge_l", "ROUGE-L", "0 to 100", digits=1, less_is_better=False),
    Measure("test_loss", "Test loss", "nats per response token", digits=3),
)
"""Of the answers to the test prompts (metrics/eval.json)."""

MEMORY_PARTS = _by_key(
    Measure("weights_gb", "weights", "GB", digits=3),
    Measure("adapters_gb", "adapters", "GB", digits=3),
    Measure("gradients_gb", "gradients", "GB", digits=3),
    Measure("optimizer_gb", "optimizer state", "GB", digits=3),
    Measure("activations_gb", "activations", "GB", digits=3),
    Measure("rest_gb", "the rest", "GB", digits=3),
)
"""What the peak of device memory is made of (metrics/train.facts.json)."""

COSTS = _by_key(
    Measure("peak_device_gb", "Peak device memory", "GB", digits=2),
    *MEMORY_PARTS.values(),
    Measure("peak_process_gb", "Peak process memory", "GB", digits=2),
    Measure("epoch_seconds", "Time per epoch", "s"),
    Measure("train_seconds", "Training time", "s"),
    Measure("tokens_per_second", "Training speed", "tokens/s", less_is_better=False),
    Measure("energy_kj", "Energy", "kJ", digits=1),
    Measure("size_gb", "Size to keep or send", "GB", digits=3),
    Measure("trained_parameters", "Trained parameters"),
)
"""Of training (metrics/train.json and metrics/train.facts.json). GB are 10^9 bytes."""
