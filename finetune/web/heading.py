"""A model's name with its method, in the method's look."""

from nicegui import ui

from finetune.methods import BASE, METHODS


def heading(name: str, method: str | None) -> None:
    """The name, and the method's label beside a stroke of its colour."""
    look = METHODS[method] if method else BASE
    with ui.element("h2").classes("ft-model").style(f"--method: {look.color}"):
        ui.label(name)
        if look.label != name:
            ui.label(look.label).classes("ft-method")
