"""What a comparison comes to, in words."""

from finetune.comparison.measures import SCORES, Measure
from finetune.comparison.significance import SIGNIFICANCE_LEVEL
from finetune.methods import BASE, METHODS


def verdict(data: dict) -> list[str]:
    """Which to take, each contender's share of the reference's gain, and a sentence on each pair."""
    return [*advice(data), *_shares(data), *(_pair(difference) for difference in data["differences"])]


def advice(data: dict) -> list[str]:
    """One sentence: of the contenders whose test loss can't be told from the lowest, the one with the least memory.

    None where there is only one contender.
    """
    contenders, loss = data["contenders"], SCORES["test_loss"]
    if len(contenders) == 1:
        return []
    best = min(contenders, key=lambda label: contenders[label]["scores"][loss.key]["value"])
    if not _sure(data, best, "base") or contenders[best]["scores"][loss.key]["value"] > _base(data, loss):
        return [f"Take {name('base')}: no method lowers its {in_sentence(loss)} significantly."]
    equals = [label for label in contenders if label == best or not _sure(data, label, best)]
    taken = min(equals, key=lambda label: contenders[label]["costs"]["peak_device_gb"]["median"])
    others = [name(label) for label in equals if label != taken]
    reason = (
        f"the data can't tell its {in_sentence(loss)} from that of {join(others)}, and it takes the least memory"
        if others
        else f"it has the lowest {in_sentence(loss)} ({level(_largest_p(data, best))})"
    )
    return [f"Take {name(taken)} on this model and these data: {reason}."]


def _base(data: dict, measure: Measure) -> float:
    return data["base"]["scores"][measure.key]["value"]


def _sure(data: dict, first: str, second: str) -> bool:
    """Whether the paired test tells the two's test losses apart."""
    pair = next(pair for pair in data["differences"] if {pair["first"], pair["second"]} == {first, second})
    return pair["scores"]["test_loss"]["p"] < SIGNIFICANCE_LEVEL


def _largest_p(data: dict, label: str) -> float:
    """The largest p of the tests of `label`'s test loss against that of each other contender and the base."""
    return max(
        pair["scores"]["test_loss"]["p"] for pair in data["differences"] if label in (pair["first"], pair["second"])
    )


def level(p: float) -> str:
    """'p < 0.001' or 'p = 0.027'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _shares(data: dict) -> list[str]:
    reference = data["reference"]
    sentences = []
    for label, shares in data["share_of_gain"].items():
        parts = join([f"{percent(share)} in {in_sentence(SCORES[score])}" for score, share in shares.items()])
        memory, seconds = (cost_ratio(data, label, key) for key in ("peak_device_gb", "train_seconds"))
        sentences.append(
            f"{name(label, capital=True)} reaches {parts} of {name(reference)}'s gain on the base model, "
            f"at {memory:.2f} of its device memory and {seconds:.2f} of its training time on {join(data['hardware'])}."
        )
    if reference and len(data["contenders"]) > 1 and not data["share_of_gain"]:
        sentences.append(
            f"{name(reference, capital=True)} has no significant gain on the base model, "
            f"so no share of its gain can be given."
        )
    return sentences


def percent(share: dict) -> str:
    """'77% [48, 100]': a share and its interval."""
    return f"{100 * share['value']:.0f}% [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def cost_ratio(data: dict, label: str, key: str) -> float:
    """A contender's cost over the reference's, medians over seeds."""
    own, others = (data["contenders"][one]["costs"][key]["median"] for one in (label, data["reference"]))
    return own / others


def _pair(difference: dict) -> str:
    first, second = name(difference["first"], capital=True), name(difference["second"])
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    for score, estimate in difference["scores"].items():
        measure = SCORES[score]
        if estimate["p"] >= SIGNIFICANCE_LEVEL:
            unclear.append(in_sentence(measure))
        else:
            side = better if measure.better(estimate["value"]) else worse
            side.append(f"{in_sentence(measure)} ({signed(measure, estimate)})")
    parts = [
        f"{word} than {second} in {join(which)}" for word, which in (("better", better), ("worse", worse)) if which
    ]
    if not parts:
        return f"The data can't tell {name(difference['first'])} and {second} apart in {join(unclear, 'or')}."
    rest = f"; in {join(unclear)} the data can't tell them apart" if unclear else ""
    return f"{first} is {join(parts)}{rest}."


def in_sentence(measure: Measure) -> str:
    """A measure's title in mid-sentence: 'test loss', but 'BLEU'."""
    return measure.title if measure.title[1:2].isupper() else measure.title.lower()


def signed(measure: Measure, estimate: dict) -> str:
    """'+1.2 [+0.3, +2.1]': a difference and its interval."""
    return (
        f"{measure.signed(estimate['value'])} [{measure.signed(estimate['low'])}, {measure.signed(estimate['high'])}]"
    )


def join(parts: list[str], word: str = "and") -> str:
    """'a, b and c'."""
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def name(label: str, *, capital: bool = False) -> str:
    """What a sentence calls a contender."""
    if label == "base":
        text = f"the {BASE.label}"
    elif label in METHODS:
        text = METHODS[label].label
    else:
        return label
    return text[0].upper() + text[1:] if capital else text
