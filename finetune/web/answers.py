"""The recorded test answers of the models chosen, page by page."""

from collections.abc import Awaitable, Callable, Sequence

from nicegui import ui

from finetune.errors import UserError
from finetune.serving.worker import Worker
from finetune.web.differences import marked, plain
from finetune.web.heading import heading
from finetune.web.recorded import Example, Recorded, examples, matching

_A_PAGE = 10
"""Test prompts shown at a time."""


class Answers:
    """Search, pages, and each test prompt with its reference and the models' answers."""

    def __init__(
        self,
        worker: Worker,
        recorded: Recorded,
        chosen: Callable[[], Sequence[str]],
        differences: Callable[[], bool],
        ask_live: Callable[[Example], Awaitable[None]],
    ) -> None:
        self._worker = worker
        self._recorded = recorded
        self._chosen = chosen
        self._differences = differences
        self._ask_live = ask_live
        self._examples: list[Example] = []
        self._names: list[str] = []
        self._search = ui.input("Search prompts and answers", on_change=self._from_the_start).props(
            "outlined dense clearable debounce=300"
        )
        self._search.classes("ft-wide")
        self._notes = ui.element("div")
        self._count = ui.label().classes("ft-figures").props("role=status")
        self._list = ui.element("div").classes("ft-examples")
        self._page = ui.pagination(1, 1, direction_links=True, on_change=self.show).props(
            "max-pages=7 boundary-numbers"
        )

    async def load(self) -> None:
        """Read the answers of the models that are chosen now."""
        rows: dict[str, list[dict]] = {}
        self._notes.clear()
        self._count.text = "reading the recorded answers"
        for name in self._chosen():
            try:
                rows[name] = await self._recorded.rows(name, self._worker.answers_file(name))
            except UserError as error:
                with self._notes:
                    ui.label(str(error)).classes("ft-error")
        self._names = list(rows)
        self._examples = examples(rows)
        self._from_the_start()

    def show(self) -> None:
        """Draw the page."""
        found = matching(self._examples, self._search.value or "")
        self._page.max = max(1, -(-len(found) // _A_PAGE))
        start = (self._page.value - 1) * _A_PAGE
        shown = found[start : start + _A_PAGE]
        self._count.text = (
            f"{start + 1} to {start + len(shown)} of {len(found)} test prompts" if shown else "no test prompt to show"
        )
        self._list.clear()
        with self._list:
            for example in shown:
                self._draw(example)

    def _from_the_start(self) -> None:
        self._page.value = 1
        self.show()

    def _draw(self, example: Example) -> None:
        with ui.element("article").classes("ft-example") as article:
            article.props["aria-label"] = example.record
            with ui.row().classes("ft-record"):
                ui.label(example.record)
                ui.button("Ask it live", icon="send", on_click=lambda: self._ask_live(example)).props(
                    "flat dense no-caps"
                )
            with ui.element("div").classes("ft-columns"):
                for title, text in (("Prompt", example.prompt), ("Reference", example.reference)):
                    with ui.element("section").classes("ft-column"):
                        ui.label(title).classes("ft-model")
                        ui.html(plain(text)).classes("ft-text")
                for name in self._names:
                    self._draw_answer(example, name)

    def _draw_answer(self, example: Example, name: str) -> None:
        answer, first = (example.answers.get(one) for one in (name, self._names[0]))
        with ui.element("section").classes("ft-column"):
            heading(name, self._worker.method(name))
            if answer is None:
                ui.label("This prompt is not in its test set.").classes("ft-figures")
                return
            compared = self._differences() and first and first is not answer
            ui.html(marked(first.text, answer.text) if compared and first else plain(answer.text)).classes("ft-text")
            figures = f"ROUGE-L {answer.rouge_l:.1f} · loss {answer.loss:.3f} nats per token"
            ui.label(figures if answer.text else f"empty answer · {figures}").classes("ft-figures")
