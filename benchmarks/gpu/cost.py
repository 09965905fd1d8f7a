"""What training costs: ours and TRL at several sizes. Sequences are as long as Alpaca's, four a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contenders import CONTENDERS

from .results import Outcome
from .shapes import SHAPES, TINY

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("ours qlora", "trl qlora", "trl qlora tuned", "ours full", "trl full", "trl full tuned")

TINY_KEYS = ["llama/ours qlora", "llama/trl qlora", "gpt2/ours full"]

STEPS = 40
WARM_UP = 5
"""Steps that aren't timed: libraries are loaded and kernels chosen in them."""

EPOCH = 800
"""Records of the seed's experiment."""


def next_key(done: Mapping[str, Outcome], tiny: bool) -> str | None:
    """What is to be measured next: 'shape/contender'; None if all is done."""
    keys = TINY_KEYS if tiny else [f"{shape}/{name}" for shape in SHAPES for name in NAMES]
    return next((key for key in keys if key not in done), None)


def measure(key: str, tiny: bool) -> Outcome:
    """One contender's run over one shape."""
    from finetune.costs.meter import Meter

    from .work import over

    name, contender = key.split("/")
    steps = WARM_UP + 1 if tiny else STEPS
    shape = (TINY if tiny else SHAPES)[name]
    work = over(shape, 4 * steps, batch_size=4)
    meter = Meter().start()
    result = CONTENDERS[contender].run(work, meter)
    meter.stop()
    tokens = sum(map(len, work.train["input_ids"]))
    timed = len(result.ends) - WARM_UP
    seconds = (result.ends[-1] - result.ends[WARM_UP - 1]) / timed
    rate = tokens / len(result.ends) / seconds
    return {
        "tokens_per_second": round(rate, 1),
        "epoch_minutes": round(EPOCH * tokens / len(work.train) / rate / 60, 3),
        "peak_device_gb": round(meter.peak_device_gb(), 3),
        "first_steps_seconds": round(result.ends[WARM_UP - 1], 2),
        "last_loss": round(result.losses[-1], 3),
    }
