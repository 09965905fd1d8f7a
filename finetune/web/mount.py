"""The page as a part of the server's app."""

import hmac
from collections.abc import Callable
from pathlib import Path

from fastapi import Request
from nicegui import app as pages
from nicegui import ui
from starlette.applications import Starlette

from finetune.serving.worker import Worker
from finetune.web.page import Page
from finetune.web.recorded import Recorded

TITLE = "finetune: models side by side"
_STYLE = Path(__file__).with_name("style.css")
_ACCENT = "#1f6feb"
"""Of buttons; white stands out on it, and it on light ground and dark."""


def mount(app: Starlette, worker: Worker, key: str | None, most_tokens: int) -> None:
    """Serve the page at `/` of `app`; call it once a process, after the app's own routes.

    Answers have at most `most_tokens` tokens. With a `key` the page opens at `/?key=…`, and else asks for it.
    The server has to run the app's lifespan, in which NiceGUI starts.
    """
    recorded = Recorded()

    def show() -> None:
        Page(worker, most_tokens, recorded)

    @ui.page("/", title=TITLE)
    async def page(request: Request) -> None:
        ui.add_css(_STYLE)
        ui.colors(primary=_ACCENT)
        if key is None:
            show()
            return
        offered = request.query_params.get("key", "")
        await ui.context.client.connected()
        # Kept in the server's memory for the tab, so that the key needn't stay in the address.
        tab = pages.storage.tab
        if _same(offered, key):
            tab["let_in"] = True
            ui.run_javascript("history.replaceState(null, '', location.pathname)")
        if tab.get("let_in"):
            show()
        else:
            _ask_for(key, show)

    # NiceGUI brings its scripts, styles and fonts along and loads nothing from elsewhere, so the page works offline.
    # Gradio (6.31) tells its makers of each start unless GRADIO_ANALYTICS_ENABLED says otherwise.
    ui.run_with(
        app,  # type: ignore[arg-type]  # it uses what Starlette's apps have
        title=TITLE,
        favicon="⚖️",
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )


def _ask_for(key: str, show: Callable[[], None]) -> None:
    """A field for the key, in whose place the page comes."""

    def enter() -> None:
        if not _same(field.value or "", key):
            ui.notify("This is not the key that the server was started with.", type="warning")
            return
        pages.storage.tab["let_in"] = True
        card.delete()
        with root:
            show()

    root = ui.element("div").classes("ft-whole")
    with root, ui.element("div").classes("ft-sheet") as card:
        ui.label("This server asks for its key.").props("role=heading aria-level=1").classes("ft-title")
        field = ui.input("Key", password=True).props("outlined").on("keydown.enter", enter)
        ui.button("Open", on_click=enter)


def _same(offered: str, key: str) -> bool:
    return hmac.compare_digest(offered.encode(), key.encode())
