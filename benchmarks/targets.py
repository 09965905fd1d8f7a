"""The targets and the results: out of the committed results of the race and of the benchmarks.

    python benchmarks/targets.py

measures nothing itself. It prints the table and puts it into benchmarks/README.md. The results are those of `make compare`,
cost.py, decoding.py, serving.py and pipeline.py.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from cost import MEMORY, SPEED, spread
from decoding import over_base, over_one_by_one
from serving import over_file, over_one_adapter

from finetune import cli, files, places
from finetune.comparison import generated

OPERATIONS = 4
"""Per parameter and token: forward pass and the gradient of the activations. A frozen base has no gradient of its own."""

SOURCES = ("comparison", "cost", "decoding", "serving", "pipeline")


@dataclass(frozen=True)
class Target:
    """A figure to reach, and what was reached."""

    text: str
    sign: str
    bound: float
    middle: float
    shown: str

    def row(self) -> str:
        met = self.middle >= self.bound if self.sign == "≥" else self.middle <= self.bound
        return f"| {self.text} | {self.sign} {self.bound:g} | {self.shown} | {'yes' if met else 'no'} |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = markdown({name: files.read_json(places.RESULTS / f"{name}.json") for name in SOURCES})
    generated.put("targets", text)
    print(text)


def markdown(results: dict[str, dict]) -> str:
    """The table; `results` by the names of `SOURCES`."""
    race = results["comparison"]
    lines = ["| | target | reached | met |", "|---|---:|---:|---|"]
    found = [
        *of_the_race(race),
        *of_the_rounds(results["cost"]["rounds"]),
        *of_the_answers(results["decoding"]["rounds"]),
        *of_the_adapters(results["serving"]),
        of_the_pipeline(results["pipeline"]),
    ]
    hardware = {"race": ", ".join(race["hardware"])} | {
        name: results[name]["hardware"] for name in ("cost", "decoding", "serving", "pipeline")
    }
    return (
        "\n".join([*lines, *(target.row() for target in found)])
        + "\n\n"
        + (
            f"Medians (least to most): of the race over {len(race['contenders']['qlora']['seeds'])} seeds, of cost over "
            f"{len(results['cost']['rounds'])} rounds, of answers over {len(results['decoding']['rounds'])}. In square brackets "
            f"the 95% interval over {race['test_examples']} test examples. "
            + "; ".join(f"{name}: {what}" for name, what in hardware.items())
            + "."
        )
    )


def of_the_race(race: dict) -> Iterator[Target]:
    """Of whole default runs."""
    costs = {method: one["costs"] for method, one in race["contenders"].items()}

    def held(text: str, bound: float, cost: dict[str, float]) -> Target:
        return Target(text, "≤", bound, cost["median"], spread(list(cost.values()), ".3f"))

    yield held("race: weights held by QLoRA (GB)", 0.115, costs["qlora"]["weights_gb"])
    yield held("race: QLoRA's peak above imports (GB)", 0.80, costs["qlora"]["peak_device_gb"])
    yield held("race: full fine-tuning's peak above imports (GB)", 2.7, costs["full"]["peak_device_gb"])
    for method, cost in costs.items():
        share = cost["rest_gb"]["median"] / cost["peak_device_gb"]["median"]
        yield Target(f"race: the rest over the peak, {method}", "≤", 0.15, share, f"{share:.2f}")
    gain = race["share_of_gain"]["qlora"]["test_loss"]
    shown = f"{gain['value']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]"
    yield Target("race: QLoRA's share of full fine-tuning's gain in test loss", "≥", 0.85, gain["value"], shown)


def of_the_rounds(rounds: list[dict]) -> Iterator[Target]:
    """Of the cost benchmark: each figure is computed in each round apart."""

    def figure(text: str, sign: str, bound: float, value: Callable[[dict], float]) -> Target:
        values = [value(one) for one in rounds]
        return Target(f"cost: {text}", sign, bound, median(values), spread(values, ".2f"))

    def ratio(key: str, name: str, other: str) -> Callable[[dict], float]:
        return lambda one: one[name][key] / one[other][key]

    # TRL's QLoRA at settings of which each was best on some machine.
    tuned = [name for name in rounds[0] if name.startswith("trl qlora ")]
    yield figure("our QLoRA's memory over our full fine-tuning's", "≤", 0.33, ratio(MEMORY, "ours qlora", "ours full"))
    yield figure(
        "our QLoRA's time per epoch over our full fine-tuning's", "≤", 0.65, ratio(SPEED, "ours full", "ours qlora")
    )
    yield figure("memory over TRL's QLoRA at its defaults", "≤", 0.45, ratio(MEMORY, "ours qlora", "trl qlora"))
    yield figure("tokens/s over TRL's QLoRA at its defaults", "≥", 4, ratio(SPEED, "ours qlora", "trl qlora"))
    yield figure(
        "tokens/s over TRL's QLoRA at its best settings",
        "≥",
        3.3,
        lambda one: one["ours qlora"][SPEED] / max(one[name][SPEED] for name in tuned),
    )
    yield figure("our QLoRA's share of the arithmetic floor", "≥", 0.62, floor_share)
    yield figure("our full fine-tuning's tokens/s over TRL's", "≥", 4, ratio(SPEED, "ours full", "trl full"))
    yield figure("our full fine-tuning's memory over TRL's", "≤", 0.6, ratio(MEMORY, "ours full", "trl full"))


def floor_share(one: dict[str, dict]) -> float:
    """Tokens/s over what the arithmetic alone would allow at the rate measured in the same process."""
    mine = one["ours qlora"]
    return mine[SPEED] * OPERATIONS * mine["parameters"] / (mine["matrix_gflops"] * 1e9)


def of_the_answers(rounds: list[dict]) -> Iterator[Target]:
    """Of our tuned model."""
    for text, bound, values in (
        ("over the base model's", 0.9, over_base(rounds)),
        ("over the seed recipe's, one by one", 12, over_one_by_one(rounds)),
    ):
        yield Target(f"decoding: answers/s {text}", "≥", bound, median(values), spread(values, ".2f"))


def of_the_adapters(results: dict) -> Iterator[Target]:
    """Of several adapters over one base, and of the first token."""
    rounds = [one["ours"] for one in results["rounds"]]
    for text, sign, bound, form, values in (
        ("first token after the command (s)", "≤", 3, ".1f", [one["first_seconds"] for one in rounds]),
        ("switch to another adapter (ms)", "≤", 5, ".2f", [one["switch_ms"] for one in rounds]),
        ("memory of a further adapter, over its file", "≤", 1.1, ".2f", over_file(results, "ours")),
        ("speed over 4 adapters, over that of one", "≥", 0.7, ".2f", over_one_adapter(results, "ours")),
    ):
        yield Target(f"serving: {text}", sign, bound, median(values), spread(values, form))


def of_the_pipeline(results: dict) -> Target:
    minutes = sum(results["seconds"].values()) / 60
    return Target("pipeline: all stages of `make repro` (minutes)", "≤", 10, minutes, f"{minutes:.1f}")


if __name__ == "__main__":
    cli.run(main)
