"""Drive JupyterLab and Notebook 7 in a real Chromium, as a person does and by what a person sees.

Playwright's blocking interface leaves an event loop marked as running in the thread that started
it, so that `asyncio.run` fails in every test that comes later in that thread. All of Playwright
therefore lives in one thread of `Browser`; the methods here run there and return plain data only.
What they don't offer is reached by `FrontEndPage.perform`.

What a cell shows is read from the page. Which cells there are, and the state of the kernel, is
asked from the application object that `--expose-app-in-browser` puts into the page.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import threading
import time
import urllib.parse
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, final

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Locator,
    Page,
    Playwright,
    sync_playwright,
)
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from tests.browser.server import FrontEndName, Server

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
FrontEnd = TypeVar("FrontEnd", bound="FrontEndPage")
Theme = Literal["light", "dark"]

CHROMIUM_VARIABLE = "TORCHENV_MAGIC_CHROMIUM"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
THEME_NAMES: dict[Theme, str] = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
JUPYTER_CONSOLE_ERRORS = (
    # JupyterLab, at every restart of a kernel that has a debugger.
    "Could not restore the debugger state",
    # Notebook 7.0, where a cell goes while its toolbar is placed.
    "_cellToolbarOverlapsContents",
    # Notebook 7.6, at every load of a page.
    "Cannot read properties of undefined (reading 'schema')",
    # Notebook 7.6, at times, where JupyterLab has the same notebook open.
    "Command 'filebrowser:open-path' not registered",
    # JupyterLab 4.0 and Notebook 7.0, while they load a page.
    "Cannot read properties of undefined (reading 'react')",
    "Cannot read properties of undefined (reading 'last_modified')",
)
"""What the front ends write to the console as errors by themselves, with nobody's extension."""
DEFAULT_TIMEOUT = 60.0
"""Nothing takes that long but on a busy machine: what is waited for ends the wait."""
DEFAULT_SIZE = (1280, 900)
POLL_MILLISECONDS = 80

_PANEL = """(() => {
  const widget = window.jupyterapp?.shell?.currentWidget;
  return widget?.content?.widgets && widget.context && widget.sessionContext ? widget : null;
})()"""
_CELL_SELECTOR = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell"

# JupyterLab's splash screen covers the page while it loads and at each change of the theme.
_UNCOVERED = "document.getElementById('jupyterlab-splash') === null"

_OPEN = f"""path => {{
  const panel = {_PANEL};
  return {_UNCOVERED}
    && panel !== null && panel.context.path === path
    && panel.context.isReady && panel.sessionContext.session?.kernel
    && panel.content.widgets.length === panel.content.model.cells.length
    && panel.content.widgets.every(cell => cell.isAttached);
}}"""

_READY = f"""path => ({_OPEN})(path)
  && {_PANEL}.sessionContext.isReady
  && {_PANEL}.sessionContext.session.kernel.status === 'idle'"""

_CELLS = f"""() => {_PANEL}.content.widgets.map(cell => {{
  const model = cell.model;
  return {{
    identity: model.id,
    kind: model.type,
    source: model.sharedModel.getSource(),
    executionCount: model.type === 'code' ? model.executionCount : null,
    tags: model.sharedModel.getMetadata('tags') ?? [],
    outputs: model.type === 'code' ? model.outputs.toJSON() : [],
  }};
}})"""

_RUN = f"""([command, index, key]) => {{
  const panel = {_PANEL};
  if (index !== null) {{
    if (index >= panel.content.widgets.length)
      throw new Error('there is no cell ' + index);
    panel.content.deselectAll();
    panel.content.activeCellIndex = index;
  }}
  const runs = window.torchenvTestRuns ??= {{}};
  runs[key] = null;
  window.jupyterapp.commands.execute(command).then(
    succeeded => {{ runs[key] = succeeded === false ? 'error' : 'ok'; }},
    reason => {{ runs[key] = 'error'; console.warn('run ended: ' + reason); }});
}}"""

# Two frames, or as long as a few of them take where the page is not drawn.
_DRAWN = """() => new Promise(done => {
  setTimeout(done, 100);
  requestAnimationFrame(() => requestAnimationFrame(done));
})"""

# A server whose kernels a gateway runs takes no subprotocol, and keeps the connection that it made
# to the gateway for the page's first attempt beside the second one's, under the same name: which of
# them the kernel hears then is chance (jupyter_server 2.21, "Replacing stale connection").
_NO_SUBPROTOCOL = """
window.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url);
  }
};
"""

_GO_TO = """async path => {
  const { commands, restored, serviceManager } = window.jupyterapp;
  await restored;
  // A kernel that came since the page was loaded.
  await serviceManager.kernelspecs.refreshSpecs();
  await commands.execute('docmanager:open', { path });
}"""

_LEAVE = """async () => {
  // A page that was loaded again just now would open once more what is closed here.
  await window.jupyterapp.restored;
  for (const widget of [...window.jupyterapp.shell.widgets('main')]) {
    // Another page may have ended it.
    await widget.sessionContext?.shutdown().catch(() => {});
    widget.dispose();
  }
  document.activeElement?.blur();
  // What breaks off by that is said in the moment after it, and is no business of the next test.
  await new Promise(done => setTimeout(done, 150));
}"""

_HEARD = """async () => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code: '', silent: true, store_history: false });
  const late = new Promise(done => setTimeout(done, 1000, null));
  return (await Promise.race([future.done.catch(() => null), late])) !== null;
}"""

_FOCUSED = """() => {
  const element = document.activeElement;
  if (element === null || element === document.body) return null;
  const style = getComputedStyle(element);
  const cell = element.closest('.jp-Cell');
  return {
    tag: element.tagName.toLowerCase(),
    role: element.getAttribute('role') ?? '',
    name: element.getAttribute('aria-label') || element.labels?.[0]?.innerText
      || element.innerText || element.getAttribute('title') || '',
    classes: [...element.classList],
    cell: cell === null ? null : [...document.querySelectorAll(CELLS)].indexOf(cell),
    inOutput: element.closest('.jp-OutputArea') !== null,
    ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0
      || style.boxShadow !== 'none',
  };
}""".replace("CELLS", repr(_CELL_SELECTOR))


class FrontEndTimeoutError(AssertionError):
    """Something that a test waited for did not come; the message tells what was there instead."""


class BrowserMissingError(RuntimeError):
    """No Chromium could be started here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the notebook as the front end holds it, saved or not."""

    identity: str
    kind: str
    """`code`, `markdown` or `raw`."""
    source: str
    execution_count: int | None
    tags: tuple[str, ...]
    outputs: tuple[dict[str, Any], ...]
    """The outputs in the form of the notebook file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """What has the keyboard."""

    tag: str
    role: str
    name: str
    """Its label, its text or its title, whichever is there first."""
    classes: tuple[str, ...]
    cell: int | None
    """The index of the cell that it is in."""
    in_output: bool
    ring: bool
    """Whether it is drawn with an outline or a shadow around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A button or field in an output as the browser has it."""

    visible: bool
    enabled: bool
    text: str
    value: str | None
    """The value of a field, the label of the chosen option of a list; None for others."""
    checked: bool | None
    """None for what cannot be checked."""


@dataclass(slots=True, kw_only=True)
class _Tab:
    """A tab of Chromium; one of a shared server outlives the test that opened it."""

    page: Page
    workspace: str
    errors: list[str] = field(default_factory=list)
    was_kept: bool = False
    was_loaded_again: bool = False


def find_chromium() -> str | None:
    """Return the browser that the environment names or the `PATH` has; None means Playwright's."""
    named = os.environ.get(CHROMIUM_VARIABLE)
    return named or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@final
class Browser:
    """One Chromium without a window; use it as a context manager.

    Raises `BrowserMissingError` on entry where none can be started.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="playwright")
        self._identity: int | None = None
        self._playwright: Playwright | None = None
        self._chromium: Chromium | None = None
        self._contexts: dict[tuple[Server, float], BrowserContext] = {}
        self._kept: dict[Server, _Tab] = {}

    def __enter__(self) -> Browser:
        try:
            self.perform(self._launch)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.perform(self._end)
        self._thread.shutdown()

    def perform(self, action: Callable[[], Returned]) -> Returned:
        """Run `action` in the thread of Playwright and return what it returns."""
        if threading.get_ident() == self._identity:
            return action()
        return self._thread.submit(action).result()

    @property
    def version(self) -> str:
        """The version of the browser."""
        assert self._chromium is not None
        chromium = self._chromium
        return self.perform(lambda: chromium.version)

    def open(
        self,
        server: Server,
        notebook: str,
        *,
        front_end: FrontEndName | None = None,
        separate: bool = False,
        kernel_first: bool = True,
        size: tuple[int, int] = DEFAULT_SIZE,
        scale: float = 1,
        timeout: float = 60,
    ) -> FrontEndPage:
        """Open a notebook and wait until its kernel is idle.

        `front_end` is the server's own unless given; each server serves both. All pages of a
        server are tabs of one browser session (same cookies and cache), except a `separate` one.
        `kernel_first` starts the kernel while the page loads, which saves a second or two; without
        it the page starts the kernel. `scale` is the number of pixels of the screen for each of
        the page's, for sharp pictures.
        """
        page = self.make_page(server, notebook, front_end=front_end)
        try:
            page.enter(
                separate=separate,
                kernel_first=kernel_first,
                size=size,
                scale=scale,
                timeout=timeout,
            )
        except BaseException:
            page.close()
            raise
        return page

    def make_page(
        self, server: Server, notebook: str, *, front_end: FrontEndName | None = None
    ) -> FrontEndPage:
        """Return a page that is not open yet, for `FrontEndPage.enter`."""
        kind = front_end or server.front_end
        return (LabPage if kind == "lab" else NotebookPage)(self, server, notebook)

    def context_for(self, server: Server, scale: float) -> BrowserContext:
        """Return the browser session for a server; only for the thread of Playwright."""
        for known in [known for known in self._contexts if not known[0].is_running]:
            self._contexts.pop(known).close()
        key = (server, scale)
        if key not in self._contexts:
            self._contexts[key] = self.new_context(scale)
        return self._contexts[key]

    def take_tab(self, server: Server) -> _Tab | None:
        """Return the tab that was kept of a server; only for the thread of Playwright."""
        return self._kept.pop(server, None)

    def keep_tab(self, server: Server, tab: _Tab) -> bool:
        """Keep a tab of JupyterLab for the next test, unless there is one."""
        tab.was_kept = True
        return self._kept.setdefault(server, tab) is tab

    def new_context(self, scale: float) -> BrowserContext:
        """Return a fresh browser session; only for the thread of Playwright."""
        assert self._chromium is not None
        return self._chromium.new_context(
            device_scale_factor=scale,
            # Animations would be in pictures and make elements move under a click.
            reduced_motion="reduce",
            # A server with TLS has a certificate by nobody.
            ignore_https_errors=True,
        )

    def _launch(self) -> None:
        self._identity = threading.get_ident()
        self._playwright = sync_playwright().start()
        try:
            self._chromium = self._playwright.chromium.launch(
                executable_path=find_chromium(), args=list(CHROMIUM_ARGUMENTS)
            )
        except PlaywrightError as error:
            self._playwright.stop()
            raise BrowserMissingError(str(error).strip().splitlines()[0]) from error

    def _end(self) -> None:
        if self._chromium is not None:
            self._chromium.close()
        if self._playwright is not None:
            self._playwright.stop()


def _in_browser(
    method: Callable[Concatenate[FrontEnd, Parameters], Returned],
) -> Callable[Concatenate[FrontEnd, Parameters], Returned]:
    """Make a method of a page run in the thread of Playwright."""

    @functools.wraps(method)
    def call(
        self: FrontEnd, /, *arguments: Parameters.args, **keywords: Parameters.kwargs
    ) -> Returned:
        return self.browser.perform(lambda: method(self, *arguments, **keywords))

    return call


class FrontEndPage(ABC):
    """One tab with one notebook; cells are named by their index from 0.

    Everything that waits raises `FrontEndTimeoutError`, telling what was there instead.
    """

    name: FrontEndName

    def __init__(self, browser: Browser, server: Server, notebook: str) -> None:
        self.browser = browser
        self.server = server
        self.notebook = notebook
        self._tab: _Tab | None = None
        self._own_context: BrowserContext | None = None
        self._console_errors: list[str] = []
        self._scale = 1.0
        self._run_numbers = itertools.count()
        self._workspace = uuid.uuid4().hex

    @abstractmethod
    def address(self) -> str:
        """Return the URL of the notebook in this front end, without a token."""

    # --- opening and closing ----------------------------------------------------------------------

    @_in_browser
    def enter(
        self,
        *,
        separate: bool = False,
        kernel_first: bool = True,
        size: tuple[int, int] = DEFAULT_SIZE,
        scale: float = 1,
        timeout: float = 60,
    ) -> None:
        """Open the tab, let oneself in, and wait until the kernel is idle.

        Where the test before has left a tab of this JupyterLab, the notebook is opened in it, as
        by a click in the file browser: to load JupyterLab is most of what a test would wait for.
        """
        if kernel_first:
            self.server.start_kernel_for(self.notebook)
        if kernel_first and not separate and scale == 1 and self.name == "lab":
            tab = self.browser.take_tab(self.server)
            if tab is not None:
                self._tab, self._console_errors = tab, tab.errors
                self._workspace = tab.workspace
                tab.page.set_viewport_size({"width": size[0], "height": size[1]})
                tab.page.evaluate(_GO_TO, self.notebook)
                self.wait_until_ready(timeout)
                return
        self._scale = scale
        if separate:
            context = self._own_context = self.browser.new_context(scale)
        else:
            context = self.browser.context_for(self.server, scale)
        page = context.new_page()
        self._tab = _Tab(page=page, workspace=self._workspace, errors=self._console_errors)
        if self.server.has_gateway:
            page.add_init_script(_NO_SUBPROTOCOL)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.set_default_timeout(DEFAULT_TIMEOUT * 1000)
        errors = self._console_errors
        page.on("console", lambda message: _note_console(message, errors))
        page.on("pageerror", lambda error: errors.append(error.stack or str(error)))
        # Leaving a page with unsaved edits asks; nobody is there to answer.
        page.on("dialog", _accept)
        address = self.address()
        authentication = self.server.authentication
        if self.server.token and authentication.kind != "hub":
            address += f"?token={urllib.parse.quote(self.server.token)}"
        page.goto(address)
        password = page.locator("input[name=password]")
        if authentication.kind == "password" and password.is_visible():
            password.fill(authentication.secret)
            password.press("Enter")
        elif authentication.kind == "hub" and password.is_visible():
            page.locator("input[name=username]").fill(authentication.secret)
            password.press("Enter")
        self.wait_until_ready(timeout)

    @_in_browser
    def close(self) -> None:
        """Close the tab; the kernel goes on."""
        if self._tab is not None:
            self._tab.page.close()
            self._tab = None
        if self._own_context is not None:
            self._own_context.close()
            self._own_context = None

    @_in_browser
    def leave(self) -> None:
        """Close the notebook and end its kernel; keep the tab, where another test may want it."""
        tab = self._tab
        if tab is None:
            return
        common = self.name == "lab" and self.server.is_shared and self._own_context is None
        # What a page opens again by itself comes in its own time, over the next test's notebook.
        if common and not self.dialogs() and self._scale == 1 and not tab.was_loaded_again:
            # One that can't be tidied up is closed.
            with contextlib.suppress(PlaywrightError):
                tab.page.unroute_all()
                tab.page.evaluate(_LEAVE)
                tab.errors.clear()
                if self.browser.keep_tab(self.server, tab):
                    self._tab = None
        self.close()

    @_in_browser
    def reload(self, timeout: float = 60, *, idle: bool = True) -> None:
        """Load the page again, as F5 does, and wait until the kernel is idle, or just there."""
        if self._tab is not None:
            self._tab.was_loaded_again = True
        if self._tab is not None and self._tab.was_kept:
            # Its workspace is that of other notebooks too, which a person would find again.
            self._workspace = self._tab.workspace = uuid.uuid4().hex
            self.page.goto(self.address())
        else:
            self.page.reload()
        if idle:
            self.wait_until_ready(timeout)
        else:
            self._wait_for(_OPEN, "the notebook with a kernel", timeout, self.notebook)

    @_in_browser
    def wait_until_ready(self, timeout: float = 60) -> None:
        """Wait until the notebook is shown in full and its kernel is idle."""
        self._wait_for(_READY, "the notebook with an idle kernel", timeout, self.notebook)

    # --- Playwright itself ------------------------------------------------------------------------

    @property
    def page(self) -> Page:
        """Playwright's page; only for use inside `perform`."""
        if self._tab is None:
            raise RuntimeError("the page is closed")
        return self._tab.page

    def perform(self, action: Callable[[Page], Returned]) -> Returned:
        """Run `action` with Playwright's page in the thread of Playwright.

        Return plain data from it: a locator or an element is of no use in another thread.
        """
        return self.browser.perform(lambda: action(self.page))

    def cell(self, index: int) -> Locator:
        """Return Playwright's locator of a cell; only for use inside `perform`."""
        return self.page.locator(_CELL_SELECTOR).nth(index)

    def output(self, index: int) -> Locator:
        """Return Playwright's locator of all outputs of a cell; only for use inside `perform`."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    # --- running ----------------------------------------------------------------------------------

    @_in_browser
    def run_cell(self, index: int, *, wait: bool = True, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Run one cell; return `ok`, `error`, or `running` where it isn't waited for.

        A cell that was cancelled, by a restart for one, counts as `error`.
        """
        return self._run("notebook:run-cell", index, wait=wait, timeout=timeout)

    @_in_browser
    def run_all(self, *, wait: bool = True, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Run all cells by the menu's command; returns as `run_cell` does."""
        return self._run("notebook:run-all-cells", None, wait=wait, timeout=timeout)

    @_in_browser
    def restart(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Restart the kernel by the menu's command and the dialog's button, and wait for idle."""
        key = self._start_run("notebook:restart-kernel", None)
        self.answer_dialog("Restart")
        self._wait_for_run(key, timeout)
        self.wait_for_kernel("idle", timeout)

    @_in_browser
    def restart_and_run_all(self, *, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Restart the kernel and run all cells by the menu's command and the dialog's button."""
        key = self._start_run("notebook:restart-run-all", None)
        self.answer_dialog("Restart")
        return self._wait_for_run(key, timeout)

    @_in_browser
    def interrupt(self) -> None:
        """Interrupt the kernel by the command behind the toolbar's button."""
        self.execute_command("notebook:interrupt-kernel")

    @_in_browser
    def execute_command(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of the application and wait until it is done."""
        self.page.evaluate(
            "async ([command, values]) => {"
            " await window.jupyterapp.commands.execute(command, values); }",
            [command, arguments or {}],
        )

    # --- cells ------------------------------------------------------------------------------------

    @_in_browser
    def cells(self) -> list[Cell]:
        """Return all cells as the front end holds them."""
        return [
            Cell(
                identity=cell["identity"],
                kind=cell["kind"],
                source=cell["source"],
                execution_count=cell["executionCount"],
                tags=tuple(cell["tags"]),
                outputs=tuple(cell["outputs"]),
            )
            for cell in self.page.evaluate(_CELLS)
        ]

    def cell_source(self, index: int) -> str:
        """Return the source of a cell."""
        return self.cells()[index].source

    @_in_browser
    def cell_output_text(self, index: int) -> str:
        """Return the text that a person sees in a cell's outputs, widgets included."""
        output = self.output(index)
        return output.inner_text() if output.count() else ""

    @_in_browser
    def cell_output_html(self, index: int) -> str:
        """Return the HTML of a cell's outputs as it stands in the page."""
        output = self.output(index)
        return output.inner_html() if output.count() else ""

    @_in_browser
    def execution_prompt(self, index: int) -> str:
        """Return the prompt beside a cell: `[ ]:`, `[*]:` or `[1]:`."""
        return self.cell(index).locator(".jp-InputPrompt").inner_text().strip()

    @_in_browser
    def aria_snapshot(self, index: int) -> str:
        """Return what a screen reader is told of a cell's outputs, in Playwright's notation."""
        return self.output(index).aria_snapshot()

    @_in_browser
    def wait_for_output(
        self, index: int, pattern: str, timeout: float = DEFAULT_TIMEOUT
    ) -> re.Match[str]:
        """Wait until a regular expression is found in the text of a cell's outputs."""
        expression = re.compile(pattern, re.MULTILINE)

        def look() -> re.Match[str] | None:
            return expression.search(self.cell_output_text(index))

        return self._poll(look, f"output of cell {index} like {pattern!r}", timeout)

    @_in_browser
    def wait_for_cells(self, count: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the notebook has so many cells: one is placed as a reply comes."""
        self._poll(lambda: len(self.page.evaluate(_CELLS)) == count or None, "cells", timeout)

    @_in_browser
    def wait_for_prompt(
        self, index: int, pattern: str, timeout: float = DEFAULT_TIMEOUT
    ) -> re.Match[str]:
        r"""Wait until the prompt of a cell matches a regular expression, such as `\[\d+\]`."""
        expression = re.compile(pattern)

        def look() -> re.Match[str] | None:
            return expression.search(self.execution_prompt(index))

        return self._poll(look, f"prompt of cell {index} like {pattern!r}", timeout)

    @_in_browser
    def add_cell(self, source: str, *, index: int | None = None, kind: str = "code") -> int:
        """Insert a cell before `index`, or at the end, and return its index."""
        at: int = self.page.evaluate(
            f"([source, index, kind]) => {{ const model = {_PANEL}.content.model;"
            " const at = index ?? model.cells.length;"
            " model.sharedModel.insertCell(at, { cell_type: kind, source });"
            " return at; }",
            [source, index, kind],
        )
        return at

    @_in_browser
    def edit_cell(self, index: int, source: str) -> None:
        """Replace the source of a cell; the notebook is unsaved after it."""
        self.page.evaluate(
            f"([index, source]) => {_PANEL}.content.model.sharedModel.getCell(index)"
            ".setSource(source)",
            [index, source],
        )

    @_in_browser
    def select_cell(self, index: int) -> None:
        """Make a cell the active one and give it the keyboard in command mode."""
        self.page.evaluate(
            f"index => {{ const panel = {_PANEL}; panel.content.deselectAll();"
            " panel.content.activeCellIndex = index; panel.content.mode = 'command';"
            " panel.content.activate(); }",
            index,
        )

    @_in_browser
    def scroll_to(self, index: int) -> None:
        """Bring a cell into view."""
        self.cell(index).scroll_into_view_if_needed()

    # --- document ---------------------------------------------------------------------------------

    @_in_browser
    def save(self) -> None:
        """Save the notebook and wait until it is on disk."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.context.save(); }}")

    @_in_browser
    def is_dirty(self) -> bool:
        """Return whether the notebook has edits that are not saved."""
        dirty: bool = self.page.evaluate(f"() => {_PANEL}.context.model.dirty")
        return dirty

    @_in_browser
    def rename(self, notebook: str) -> None:
        """Give the notebook another name in its folder, as the menu's command does."""
        self.page.evaluate(
            f"async name => {{ await {_PANEL}.context.rename(name); }}", notebook.rsplit("/", 1)[-1]
        )
        self.notebook = notebook

    # --- kernel -----------------------------------------------------------------------------------

    @_in_browser
    def kernel_id(self) -> str:
        """Return the id of the notebook's kernel."""
        kernel_id: str = self.page.evaluate(f"() => {_PANEL}.sessionContext.session.kernel.id")
        return kernel_id

    @_in_browser
    def kernel_status(self) -> str:
        """Return the kernel's status (`idle`, `busy`, `starting`, …) as the front end shows it.

        The front end's own questions (debugger, completion, widgets) make it busy for moments, most
        of all after opening and after a restart: to see it idle, use `wait_for_kernel`.
        """
        status: str = self.page.evaluate(f"() => {_PANEL}.sessionContext.kernelDisplayStatus")
        return status

    @_in_browser
    def wait_for_kernel(self, status: str = "idle", timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the front end shows a status of the kernel."""
        self._poll(
            lambda: self.kernel_status() == status or None, f"kernel status {status!r}", timeout
        )

    @_in_browser
    def wait_until_heard(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until what the kernel says arrives: after a restart that the page has not asked for.

        What a fresh kernel says before the server listens to it is lost, the end of a cell too.
        """
        self._poll(lambda: self.page.evaluate(_HEARD) or None, "the kernel's words", timeout)

    # --- controls and keyboard --------------------------------------------------------------------

    @_in_browser
    def click(
        self,
        index: int,
        name: str,
        *,
        role: str | None = "button",
        exact: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Click what has a role and an accessible name in a cell's outputs.

        With `role=None` click what has `name` as its text.
        """
        self._control(index, name, role, exact=exact).click(timeout=timeout * 1000)

    @_in_browser
    def fill(self, index: int, label: str, text: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Replace the text of a labelled field in a cell's outputs and leave the field."""
        field = self.output(index).get_by_label(label, exact=True)
        field.fill(text, timeout=timeout * 1000)
        # ipywidgets sends the text of a field with `continuous_update=False` only now.
        field.press("Tab")

    @_in_browser
    def choose(
        self, index: int, label: str, option: str, *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Choose an option by its words in a labelled list in a cell's outputs."""
        field = self.output(index).get_by_label(label, exact=True)
        field.select_option(label=option, timeout=timeout * 1000)

    @_in_browser
    def check(
        self, index: int, label: str, *, checked: bool = True, role: str = "checkbox"
    ) -> None:
        """Check a box or choose a radio button by its label in a cell's outputs."""
        self._control(index, label, role, exact=True).set_checked(checked)

    @_in_browser
    def control(
        self, index: int, name: str, *, role: str = "button", exact: bool = True
    ) -> Control | None:
        """Return the state of a button or field in a cell's outputs; None where it isn't there."""
        found = self._control(index, name, role, exact=exact)
        if found.count() == 0:
            return None
        state = found.first.evaluate(
            "element => ({"
            " value: element.selectedOptions ? element.selectedOptions[0]?.label ?? null"
            "   : element.tagName === 'BUTTON' ? null : element.value ?? null,"
            " checked: typeof element.checked === 'boolean' ? element.checked : null })"
        )
        return Control(
            visible=found.first.is_visible(),
            enabled=found.first.is_enabled(),
            text=found.first.inner_text(),
            value=state["value"],
            checked=state["checked"],
        )

    @_in_browser
    def press(self, *keys: str) -> None:
        """Press keys one after the other: `Tab`, `Enter`, `Space`, `Shift+Tab`, `Control+s`."""
        for key in keys:
            self.page.keyboard.press(key)

    @_in_browser
    def type_text(self, text: str) -> None:
        """Type text into what has the keyboard."""
        self.page.keyboard.type(text)

    @_in_browser
    def focused(self) -> Focus | None:
        """Return what has the keyboard; None where it is the page as a whole."""
        found = self.page.evaluate(_FOCUSED)
        if found is None:
            return None
        return Focus(
            tag=found["tag"],
            role=found["role"],
            name=found["name"].strip(),
            classes=tuple(found["classes"]),
            cell=found["cell"],
            in_output=found["inOutput"],
            ring=found["ring"],
        )

    # --- what else is on the screen ---------------------------------------------------------------

    @_in_browser
    def dialogs(self) -> list[str]:
        """Return the text of each dialog that is open, such as "Kernel Restarting"."""
        return self._visible_texts(".jp-Dialog .jp-Dialog-content")

    @_in_browser
    def notifications(self) -> list[str]:
        """Return the text of each notification that pops up in a corner."""
        return self._visible_texts(".Toastify__toast")

    @_in_browser
    def wait_for_dialog(self, pattern: str, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Wait until a dialog with text like a regular expression is open; return its text."""

        def look() -> str | None:
            return next((text for text in self.dialogs() if re.search(pattern, text)), None)

        return self._poll(look, f"a dialog like {pattern!r}", timeout)

    @_in_browser
    def answer_dialog(self, button: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Press the button of the open dialog that has these words on it."""
        # Not by accessible name: "Cancel Kernel Restart" and "Confirm Kernel Restart" are those.
        words = self.page.locator(".jp-Dialog .jp-Dialog-buttonLabel").get_by_text(
            button, exact=True
        )
        words.click(timeout=timeout * 1000)

    @_in_browser
    def console_errors(self) -> list[str]:
        """Return what the page wrote to the console as errors, and exceptions nobody caught.

        `JUPYTER_CONSOLE_ERRORS` are left out.
        """
        return [
            text
            for text in self._console_errors
            if not any(known in text for known in JUPYTER_CONSOLE_ERRORS)
        ]

    @_in_browser
    def screenshot(
        self, path: Path, *, output: int | None = None, selector: str | None = None
    ) -> Path:
        """Write a PNG of the window, of a cell's outputs, or of what a selector finds."""
        if output is not None:
            self.output(output).screenshot(path=path)
        elif selector is not None:
            self.page.locator(selector).first.screenshot(path=path)
        else:
            self.page.screenshot(path=path)
        return path

    @_in_browser
    def set_theme(self, theme: Theme) -> None:
        """Change the application's theme and wait until it is drawn."""
        name = THEME_NAMES[theme]
        self.execute_command("apputils:change-theme", {"theme": name})
        self._wait_for(
            f"() => {_UNCOVERED} && document.body.dataset.jpThemeName === {name!r}"
            f" && document.body.dataset.jpThemeLight === '{str(theme == 'light').lower()}'",
            f"theme {name}",
            DEFAULT_TIMEOUT,
        )

    @_in_browser
    def resize(self, width: int, height: int) -> None:
        """Change the size of the window."""
        self.page.set_viewport_size({"width": width, "height": height})

    # --- inside -----------------------------------------------------------------------------------

    def _control(self, index: int, name: str, role: Any, *, exact: bool) -> Locator:
        output = self.output(index)
        if role is None:
            return output.get_by_text(name, exact=exact)
        return output.get_by_role(role, name=name, exact=exact)

    def _visible_texts(self, selector: str) -> list[str]:
        found = self.page.locator(selector)
        return [item.inner_text().strip() for item in found.all() if item.is_visible()]

    def _run(self, command: str, index: int | None, *, wait: bool, timeout: float) -> str:
        key = self._start_run(command, index)
        return self._wait_for_run(key, timeout) if wait else "running"

    def _start_run(self, command: str, index: int | None) -> str:
        key = f"{command} {next(self._run_numbers)}"
        self.page.evaluate(_RUN, [command, index, key])
        return key

    def _wait_for_run(self, key: str, timeout: float) -> str:
        def look() -> str | None:
            ended: str | None = self.page.evaluate("key => window.torchenvTestRuns[key]", key)
            return ended

        ended = self._poll(look, f"the end of {key}", timeout)
        # What a cell has said is drawn in the frames after it was heard.
        self.page.evaluate(_DRAWN)
        return ended

    def _wait_for(
        self, condition: str, what: str, timeout: float, argument: str | None = None
    ) -> None:
        try:
            self.page.wait_for_function(
                condition, arg=argument, timeout=timeout * 1000, polling=POLL_MILLISECONDS
            )
        except PlaywrightTimeoutError:
            raise FrontEndTimeoutError(self._explain(what, timeout)) from None

    def _poll(self, look: Callable[[], Returned | None], what: str, timeout: float) -> Returned:
        deadline = time.monotonic() + timeout
        while True:
            found = look()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise FrontEndTimeoutError(self._explain(what, timeout))
            # Not a sleep: the page's events are handled meanwhile.
            self.page.wait_for_timeout(POLL_MILLISECONDS)

    def _explain(self, what: str, timeout: float) -> str:
        return "\n".join((f"{what} did not come within {timeout:g} s", *self.describe()))

    @_in_browser
    def describe(self) -> Sequence[str]:
        """Return lines that tell what is on the screen, for the message of a failed test."""
        lines = [f"address: {self.address()}"]
        try:
            lines.append(f"dialogs: {self.dialogs()}")
            lines.append(f"kernel: {self.kernel_status()}")
            for index, cell in enumerate(self.cells()):
                if cell.kind == "code":
                    lines.append(f"cell {index} {self.execution_prompt(index)} {cell.source!r}")
                    lines.append(f"  shows {self.cell_output_text(index)[:2000]!r}")
        except PlaywrightError as error:
            lines.append(f"no notebook to ask: {str(error).splitlines()[0]}")
        lines.append(f"console errors: {self.console_errors()}")
        return lines


class LabPage(FrontEndPage):
    """A notebook in JupyterLab."""

    name: FrontEndName = "lab"

    def address(self) -> str:
        """Return the URL of the notebook in JupyterLab."""
        # A workspace of its own: the default one opens what the page before had open, on top.
        path = urllib.parse.quote(self.notebook)
        return f"{self.server.url}lab/workspaces/{self._workspace}/tree/{path}"


class NotebookPage(FrontEndPage):
    """A notebook in Notebook 7."""

    name: FrontEndName = "notebook"

    def address(self) -> str:
        """Return the URL of the notebook in Notebook 7."""
        return f"{self.server.url}notebooks/{urllib.parse.quote(self.notebook)}"


def _note_console(message: ConsoleMessage, errors: list[str]) -> None:
    if message.type == "error":
        errors.append(message.text)


def _accept(dialog: Dialog) -> None:
    dialog.accept()
