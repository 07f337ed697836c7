"""The picker's widgets: made when they are needed, and drawn from a `Look`.

They are few, and they share what ipywidgets would make for each of them (its layout, its style):
every one of those is a message to the front end, and the picker's time is theirs. What is not there
in a state is hidden and not taken out, so that the others stay the same elements of the page, with
the keyboard's focus where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import ipywidgets as widgets

from torchenv_magic.notebook.picker_look import Choices, Look
from torchenv_magic.notebook.picker_style import PICKER_STYLE
from torchenv_magic.notebook.rendering import STYLE, summary_html

__all__ = ["PickerView"]

_ABSENT = "torchenv-absent"
_BUTTONS = ("primary", "secondary", "restart", "undo")


class PickerView:
    """All widgets of one picker; `root` is what is displayed."""

    def __init__(
        self,
        *,
        on_primary: Callable[[], None],
        on_secondary: Callable[[], None],
        on_restart: Callable[[], None],
        on_choice: Callable[[], None],
        on_fields: Callable[[], None],
        on_name: Callable[[], None],
        on_undo: Callable[[], None],
    ) -> None:
        self._on_primary = on_primary
        self._on_secondary = on_secondary
        self._on_restart = on_restart
        self._on_choice = on_choice
        self._on_fields = on_fields
        self._on_name = on_name
        self._on_undo = on_undo
        self._layout = widgets.Layout(width="auto")
        self._sheet = widgets.HTML(f"{STYLE}{PICKER_STYLE}", layout=self._layout)
        self._html_style = self._sheet.style
        self._sheet.add_class(_ABSENT)
        self.facts = self._html()
        self.root = widgets.VBox([self._sheet, self.facts])
        self.root.add_class("torchenv-picker")

    # ---------------------------------------------------------------------------- what there is

    @cached_property
    def choice(self) -> widgets.RadioButtons:
        choice = widgets.RadioButtons(
            options=[], description="Builds that fit here", layout=self._layout
        )
        choice.style.description_width = "auto"
        choice.observe(lambda _: self._on_choice(), names="value")
        return choice

    @cached_property
    def others(self) -> widgets.HTML:
        return self._html()

    @cached_property
    def vision(self) -> widgets.Checkbox:
        return self._checkbox("torchvision")

    @cached_property
    def audio(self) -> widgets.Checkbox:
        return self._checkbox("torchaudio", style=self.vision.style)

    @cached_property
    def version(self) -> widgets.Text:
        return self._text(
            "torch version", placeholder="newest", tooltip="for example 2.13.0 or >=2.12,<2.14"
        )

    @cached_property
    def more(self) -> widgets.Text:
        return self._text(
            "more packages",
            placeholder="for example lightning transformers>=5",
            tooltip="more packages, as pip writes them",
            style=self.version.style,
        )

    @cached_property
    def name(self) -> widgets.Text:
        name = widgets.Text(
            description="kernel's name",
            tooltip="letters, digits, dots, dashes and underscores",
            layout=self._layout,
            style=self.version.style,
        )
        name.observe(lambda _: self._on_name(), names="value")
        return name

    @cached_property
    def said(self) -> widgets.HTML:
        return self._html()

    @cached_property
    def restart(self) -> widgets.Button:
        button = self._button(self._on_restart, style=self.primary.style)
        button.button_style = "primary"
        return button

    @cached_property
    def primary(self) -> widgets.Button:
        return self._button(self._on_primary)

    @cached_property
    def secondary(self) -> widgets.Button:
        return self._button(self._on_secondary, style=self.primary.style)

    @cached_property
    def undo(self) -> widgets.Button:
        return self._button(self._on_undo, style=self.primary.style)

    @cached_property
    def progress(self) -> widgets.HTML:
        return self._html()

    @cached_property
    def log(self) -> widgets.HTML:
        log = self._html()
        log.add_class("torchenv-log")
        return log

    @cached_property
    def _log_switch(self) -> widgets.HTML:
        switch = self._html(f"<div class='torchenv'><details>{summary_html('Log')}</details></div>")
        switch.add_class("torchenv-log-switch")
        return switch

    @cached_property
    def _packages(self) -> widgets.Box:
        return self._row(self.vision, self.audio)

    @cached_property
    def _fields(self) -> tuple[widgets.Widget, ...]:
        """Everything below the facts, in the order in which it is read."""
        self._buttons = self._row(self.primary, self.secondary)
        return (
            self.choice,
            self.others,
            self._packages,
            self.version,
            self.more,
            self.said,
            self._buttons,
            self.progress,
        )

    # -------------------------------------------------------------------------------- drawing

    def offer(self, choices: Choices) -> None:
        """Fill the list of builds."""
        self.choice.options = choices.options
        _hide(self.choice, hidden=not choices.options)
        if choices.chosen is not None:
            self.choice.value = choices.chosen
        self.others.value = choices.others

    def values(self) -> tuple[Any, ...]:
        """Return what stands in the fields."""
        fields = (self.choice, self.vision, self.audio, self.version, self.more)
        return tuple(field.value for field in fields)

    def draw(self, look: Look) -> None:
        """Bring the screen to that look; what is as it should be is left alone."""
        self.facts.value = look.facts
        if look.fields == "hidden":
            return
        absent = look.fields == "absent"
        _hide(self.choice, hidden=absent or not self.choice.options)
        for part in (self.others, self._packages, self.version, self.more):
            _hide(part, hidden=absent)
        for field in (self.choice, self.vision, self.audio, self.version, self.more):
            field.disabled = look.fields != "open"
        _show(self.primary, words=look.primary)
        _show(self.secondary, words=look.secondary)
        self.primary.button_style = "primary" if look.works and not look.asks else ""
        children = [self._sheet, self.facts, *self._fields]
        if look.names or "name" in self.__dict__:
            self.name.disabled = look.fields == "closed"
            _hide(self.name, hidden=not look.names)
            children.insert(children.index(self.said), self.name)
        if look.asks or "restart" in self.__dict__:
            _show(self.restart, words=look.asks)
        if look.undo or "undo" in self.__dict__:
            _show(self.undo, words=look.undo)
        # One that was never needed is not made.
        buttons = [self.__dict__[name] for name in _BUTTONS if name in self.__dict__]
        self._buttons.children = buttons
        if look.log or "log" in self.__dict__:
            self.log.value = look.log
            _hide(self._log_switch, hidden=not look.log)
            children += [self._log_switch, self.log]
        self.root.children = children
        # Last: who hears of them finds the buttons there that they speak of.
        self.said.value = look.said
        self.progress.value = look.progress

    def end(self, result: str) -> None:
        """Leave the result alone: a page that is loaded later still gets it from this widget."""
        children = self.root.children
        self.root.children = (self._html(result),)
        for child in children:
            _close(child)

    # ------------------------------------------------------------------------------- making

    def _html(self, value: str = "") -> widgets.HTML:
        return widgets.HTML(value, layout=self._layout, style=self._html_style)

    def _row(self, *children: widgets.Widget) -> widgets.Box:
        row = widgets.Box(children, layout=self._layout)
        row.add_class("torchenv-row")
        return row

    def _checkbox(self, name: str, **shared: Any) -> widgets.Checkbox:  # noqa: ANN401  (ipywidgets')
        box = widgets.Checkbox(description=name, indent=False, layout=self._layout, **shared)
        box.observe(lambda _: self._on_fields(), names="value")
        return box

    def _text(self, name: str, **settings: Any) -> widgets.Text:  # noqa: ANN401  (ipywidgets')
        text = widgets.Text(description=name, layout=self._layout, **settings)
        text.observe(lambda _: self._on_fields(), names="value")
        return text

    def _button(
        self,
        on_click: Callable[[], None],
        **shared: Any,  # noqa: ANN401  (ipywidgets')
    ) -> widgets.Button:
        button = widgets.Button(layout=self._layout, **shared)
        button.on_click(lambda _: on_click())
        return button


def _show(button: widgets.Button, *, words: str) -> None:
    if words:
        button.description = words
    _hide(button, hidden=not words)


def _hide(widget: widgets.DOMWidget, *, hidden: bool) -> None:
    if hidden and _ABSENT not in widget._dom_classes:  # noqa: SLF001  (there is no public way to ask)
        widget.add_class(_ABSENT)
    elif not hidden:
        widget.remove_class(_ABSENT)


def _close(widget: widgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()
