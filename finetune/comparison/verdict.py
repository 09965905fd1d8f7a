"""What a comparison comes to, in words. A difference counts where its paired test has p < 0.05."""

TITLES = {"bleu": "BLEU", "rouge_l": "ROUGE-L", "test_loss": "test loss"}
DIGITS = {"bleu": 1, "rouge_l": 1, "test_loss": 3}
NAMES = {"base": "the base model", "qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning"}
LEVEL = 0.05


def verdict(data: dict) -> list[str]:
    """A sentence or two on each contender's share of the full gain, and on each pair."""
    return [*_shares(data), *(_pair(difference) for difference in data["differences"])]


def _shares(data: dict) -> list[str]:
    sentences, reference = [], data["reference"]
    for label, shares in data["kept"].items():
        kept = join(
            [
                f"{100 * share['value']:.0f}% [{100 * share['low']:.0f}, {100 * share['high']:.0f}] of it in {TITLES[score]}"
                for score, share in shares.items()
            ]
        )
        cost = data["contenders"][label]["costs"], data["contenders"][reference]["costs"]
        memory, seconds = (_ratio(*cost, key) for key in ("peak_device_gb", "train_seconds"))
        sentences.append(
            f"{_name(reference, capital=True)} gains on the base model; {_name(label)} keeps {kept}, "
            f"at {memory:.2f} of the device memory and {seconds:.2f} of the training time on {join(data['hardware'])}."
        )
    if reference and len(data["contenders"]) > 1 and not data["kept"]:
        sentences.append(
            f"{_name(reference, capital=True)} doesn't gain on the base model for certain, "
            f"so no share of its gain can be given."
        )
    return sentences


def _ratio(costs: dict, others: dict, key: str) -> float:
    return costs[key]["median"] / others[key]["median"]


def _pair(difference: dict) -> str:
    a, b = _name(difference["first"], capital=True), _name(difference["second"])
    better, worse, unclear = [], [], []
    for score, found in difference["scores"].items():
        if found["p"] >= LEVEL:
            unclear.append(TITLES[score])
        else:
            gained = (found["value"] < 0) == (score == "test_loss")
            (better if gained else worse).append(f"{TITLES[score]} ({signed(score, found)})")
    parts = [f"{word} than {b} in {join(which)}" for word, which in (("better", better), ("worse", worse)) if which]
    if not parts:
        return f"The data can't tell {_name(difference['first'])} and {b} apart in {join(unclear, 'or')}."
    rest = f"; in {join(unclear)} the data can't tell them apart" if unclear else ""
    return f"{a} is {join(parts)}{rest}."


def signed(score: str, estimate: dict) -> str:
    """'+1.2 [0.3, 2.1]': a difference and its interval."""
    digits = DIGITS[score]
    return f"{estimate['value']:+.{digits}f} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}]"


def join(parts: list[str], word: str = "and") -> str:
    """'a, b and c'."""
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _name(label: str, *, capital: bool = False) -> str:
    name = NAMES.get(label, label)
    return name[0].upper() + name[1:] if capital and label in NAMES else name
