"""Ask several models the same, and see the answers stream side by side."""

import asyncio
from collections.abc import Callable, Sequence

from nicegui import ui

from finetune.data.forms import Turn
from finetune.errors import UserError
from finetune.generation.request import Sampling
from finetune.serving.worker import Worker
from finetune.web.column import Column
from finetune.web.settings import Settings


class Ask:
    """The instruction's fields, and below a column for each model chosen."""

    def __init__(
        self, worker: Worker, most_tokens: int, chosen: Callable[[], Sequence[str]], differences: Callable[[], bool]
    ) -> None:
        self._worker = worker
        self._chosen = chosen
        self._differences = differences
        self._columns: list[Column] = []
        self._tasks: list[asyncio.Task] = []
        self._instruction = ui.textarea("Instruction").props("outlined autogrow").classes("ft-wide")
        self._input = ui.textarea("Input (optional)").props("outlined autogrow").classes("ft-wide")
        self._instruction.on("keydown.ctrl.enter", self._ask)
        self._settings = Settings(most_tokens)
        with ui.row():
            self._start = ui.button("Ask", icon="send", on_click=self._ask).props("no-caps")
            self._halt = ui.button("Stop", icon="stop", on_click=self.stop).props("outline no-caps")
        self._halt.disable()
        self._place = ui.element("div").classes("ft-columns")
        ui.context.client.on_delete(self.stop)

    def fill_in(self, turn: Turn) -> None:
        """Put a question into the fields."""
        self._instruction.value, self._input.value = turn.text, turn.input

    def stop(self) -> None:
        """Cancel what is still coming."""
        for task in self._tasks:
            task.cancel()

    def compare(self) -> None:
        """Mark or unmark the words that differ from the first column's, in answers that have ended."""
        for column in self._columns[1:]:
            first = self._columns[0]
            if first.done and column.done:
                column.compare(first.text if self._differences() else None)

    async def _ask(self) -> None:
        if any(not task.done() for task in self._tasks):
            return
        try:
            names, turn = self._question()
            sampling, longest = self._settings.read()
        except UserError as error:
            ui.notify(str(error), type="warning")
            return
        self._place.clear()
        with self._place:
            self._columns = [Column(self._worker, name) for name in names]
        self._start.disable()
        self._halt.enable()
        self._tasks = [asyncio.create_task(self._fill(column, turn, sampling, longest)) for column in self._columns]
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._start.enable()
        self._halt.disable()

    async def _fill(self, column: Column, turn: Turn, sampling: Sampling, longest: int) -> None:
        try:
            await column.fill([turn], sampling, longest)
        finally:
            self.compare()

    def _question(self) -> tuple[Sequence[str], Turn]:
        names = self._chosen()
        if not names:
            raise UserError("Models: choose at least one")
        instruction = (self._instruction.value or "").strip()
        if not instruction:
            raise UserError("Instruction: write what the models shall do")
        return names, Turn("user", instruction, (self._input.value or "").strip())
