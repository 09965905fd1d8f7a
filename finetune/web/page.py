"""The page: which models, and under it the tabs to ask them and to read their test answers."""

import asyncio

from nicegui import ui

from finetune.errors import UserError
from finetune.serving.worker import Worker
from finetune.web.answers import Answers
from finetune.web.ask import Ask
from finetune.web.question import question
from finetune.web.recorded import Example, Recorded

MOST = 4
"""Models side by side."""


class Page:
    """One visitor's page. Nothing of it is shared but the worker and the recorded answers."""

    def __init__(self, worker: Worker, most_tokens: int, recorded: Recorded) -> None:
        self._worker = worker
        names = list(worker.names)
        with ui.element("div").classes("ft-sheet"):
            ui.label("Fine-tuned models side by side").props("role=heading aria-level=1").classes("ft-title")
            with ui.element("div").classes("ft-choice"):
                self._models = ui.select(
                    names, value=names[:2], multiple=True, label=f"Models (1 to {MOST})", on_change=self._choose
                )
                self._models.props(f"outlined use-chips max-values={MOST}").classes("ft-models")
                self._name = ui.input("Add an experiment").props("outlined").on("keydown.enter", self._add)
                self._add_button = ui.button("Add", icon="add", on_click=self._add).props("outline no-caps")
                self._differences = ui.switch("Show differences", on_change=self._compare)
            self._legend = ui.html(
                "Against the first model: <ins>only here</ins>, <del>only in the first</del>.", tag="p"
            ).classes("ft-figures")
            self._legend.bind_visibility_from(self._differences, "value")
            with ui.tabs().props("align=left no-caps") as self._tabs:
                live, tests = ui.tab("Ask"), ui.tab("Test answers")
            with ui.tab_panels(self._tabs, value=live, animated=False, keep_alive=True).classes("ft-panels"):
                with ui.tab_panel(live):
                    self._ask = Ask(worker, most_tokens, self._chosen, self._marking)
                with ui.tab_panel(tests):
                    self._answers = Answers(worker, recorded, self._chosen, self._marking, self._ask_live)
        self._tabs.on_value_change(self._choose)

    def _chosen(self) -> list[str]:
        """In the order in which they were chosen: the first is what the others are compared with."""
        return list(self._models.value)

    def _marking(self) -> bool:
        return bool(self._differences.value)

    def _compare(self) -> None:
        self._ask.compare()
        self._answers.show()

    async def _choose(self) -> None:
        if self._tabs.value == "Test answers":
            await self._answers.load()

    async def _add(self) -> None:
        name = (self._name.value or "").strip()
        if not name:
            ui.notify("Give the name of an experiment; `dvc exp list --all-commits` lists them.", type="warning")
            return
        self._add_button.props("loading")
        try:
            await self._worker.add(name)
        except UserError as error:
            ui.notify(str(error), type="warning")
        else:
            self._name.value = ""
            self._models.set_options(list(self._worker.names), value=[*self._chosen(), name][-MOST:])
        finally:
            self._add_button.props(remove="loading")

    async def _ask_live(self, example: Example) -> None:
        try:
            turn = await asyncio.to_thread(question, example.record, example.reference)
        except UserError as error:
            ui.notify(str(error), type="warning")
            return
        self._ask.fill_in(turn)
        self._tabs.value = "Ask"
