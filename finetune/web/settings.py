"""How an answer is drawn: the fields of the page."""

from nicegui import ui

from finetune.errors import UserError
from finetune.generation.request import Sampling


class Settings:
    """Fields for temperature, top-p, top-k, seed and length, which is at most `most_tokens`."""

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        with ui.expansion("Settings", icon="tune").classes("ft-settings"), ui.element("div").classes("ft-fields"):
            self._temperature = _field("Temperature", "0: always the likeliest token", 0, step=0.1)
            self._top_p = _field("Top-p", "share of probability to draw from, 1: all", 1, step=0.05)
            self._top_k = _field("Top-k", "tokens to draw from, 0: all", 0)
            self._seed = _field("Seed", "empty: another draw each time", None)
            self._longest = _field(
                "Max new tokens", f"an answer is cut there, at most {most_tokens}", min(256, most_tokens)
            )

    def read(self) -> tuple[Sampling, int]:
        """What is set, and how many tokens an answer may have. Raises UserError for a value out of its range."""
        sampling = Sampling(
            temperature=_value(self._temperature, 0, 5),
            top_p=_value(self._top_p, 0.01, 1),
            top_k=_whole(self._top_k, 0),
            seed=None if self._seed.value is None else _whole(self._seed, 0),
        )
        longest = _whole(self._longest, 1)
        if longest > self._most:
            raise UserError(f"Max new tokens: the server allows {self._most}, not {longest}")
        return sampling, longest


def _field(name: str, hint: str, value: float | None, step: float = 1) -> ui.number:
    return ui.number(name, value=value, step=step).props(f'outlined dense hint="{hint}"')


def _value(field: ui.number, least: float, most: float) -> float:
    if field.value is None or not least <= field.value <= most:
        raise UserError(f"{field.props['label']}: give a number from {least} to {most}")
    return float(field.value)


def _whole(field: ui.number, least: int) -> int:
    if field.value is None or field.value < least or field.value != int(field.value):
        raise UserError(f"{field.props['label']}: give a whole number, at least {least}")
    return int(field.value)
