"""The adapters next to the layers of one product, and which of them each row of a forward takes.

All that are loaded lie end to end in two matrices, as in `kernels.joint_linear`. Rows of one adapter take a part of both
as it lies; where a batch mixes adapters, one product serves all its rows, and a mask puts zeros where x Aᵀ is another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from finetune.kernels.joint_linear import JointAdapters
from finetune.kernels.linear_parts import Adapter, LinearParts

OWN = "own"
"""The adapter that peft has put into the model itself."""


class Selected(NamedTuple):
    """The part of the loaded adapters that a forward takes."""

    down: torch.Tensor
    """A, (ranks, in)."""
    up: torch.Tensor
    """B, scaled, (out, ranks)."""
    mask: torch.Tensor | None
    """(rows, ranks); None where every row takes all."""


class AdapterRows:
    """The adapter of each row of a forward, by name; None is the base alone."""

    def __init__(self, rows: Sequence[str | None]) -> None:
        self.used = {name for name in rows if name is not None}
        self.mixed = len(set(rows)) > 1
        self._rows = rows
        self._masks: dict[tuple[object, ...], torch.Tensor] = {}

    def mask(self, owners: Sequence[str], like: torch.Tensor) -> torch.Tensor:
        """(rows, columns): 1 where the row's adapter owns the column, else 0."""
        key = (*owners, like.dtype, like.device)
        if key not in self._masks:
            numbers = {name: number for number, name in enumerate(dict.fromkeys([*owners, *self._rows]))}
            rows, columns = (torch.tensor([numbers[name] for name in names]) for names in (self._rows, owners))
            self._masks[key] = (rows[:, None] == columns).to(like)
        return self._masks[key]


class LoadedAdapters:
    """The adapters of layers that are given the same rows."""

    def __init__(self, members: Sequence[LinearParts]) -> None:
        """Load the layers' own, if they have some, as `OWN`."""
        self._members = members
        none = JointAdapters(members, [None] * len(members))
        self._down, self._up = none.down, none.up
        self._owners: list[str] = []
        self._last: tuple[AdapterRows, Selected | None] | None = None
        if any(one.adapter is not None for one in members):
            self.load(OWN, [one.adapter for one in members])

    def load(self, name: str, adapters: Sequence[Adapter | None]) -> int:
        """Add an adapter: its part for each of the layers. Returns the bytes that it takes."""
        joint = JointAdapters(self._members, adapters)
        joint.cast()
        self._down = torch.cat([self._down, joint.down])
        self._up = torch.cat([self._up, joint.up], dim=1)
        self._owners += [name] * joint.rank
        self._last = None
        return joint.down.nbytes + joint.up.nbytes

    def select(self, rows: AdapterRows) -> Selected | None:
        """The part that `rows` take; None where no row takes any."""
        if self._last is None or self._last[0] is not rows:
            self._last = rows, self._selected(rows)
        return self._last[1]

    def _selected(self, rows: AdapterRows) -> Selected | None:
        places = [index for index, owner in enumerate(self._owners) if owner in rows.used]
        if not places:
            return None
        part = slice(places[0], places[-1] + 1)
        mask = rows.mask(self._owners[part], self._down) if rows.mixed else None
        return Selected(self._down[part], self._up[:, part], mask)
