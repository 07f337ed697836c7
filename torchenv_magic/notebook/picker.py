"""The picker: what is here, what is chosen and why, what else there is, what it costs, one button.

Plain ipywidgets, so that it works wherever these do. The widgets are a view: what can be done is
in `Job`, what is known in `Status`. Nothing is fetched or changed before a click.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING
from uuid import uuid4

import ipywidgets as widgets
from IPython.display import display

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.current import is_stale
from torchenv_magic.environment import read_environment
from torchenv_magic.errors import TorchEnvError
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.notebook.after_restart import fresh_kernel_code
from torchenv_magic.notebook.front_end import FrontEnd
from torchenv_magic.notebook.interrupt import Interruptible
from torchenv_magic.notebook.job import Job, expected
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.rendering import (
    STYLE,
    alternatives_html,
    changes_html,
    facts_html,
    log_html,
    message_html,
    progress_words,
    status_html,
    status_rows,
    words_html,
)
from torchenv_magic.notebook.restart import Restart, RungChoice
from torchenv_magic.notebook.session import describe_session
from torchenv_magic.notebook.verification_table import verification_html
from torchenv_magic.selection import Alternative, Request
from torchenv_magic.status import Status, read_status
from torchenv_magic.verification import verify
from torchenv_magic.words import parse_request

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Picker"]

logger = logging.getLogger(__name__)

# A probe of a sick driver may take its whole bound: the picker does not wait for it that long.
_WAIT_FOR_STATUS_SECONDS = 0.12
_REDRAW_SECONDS = 0.15

_INSTALL = "Install and restart kernel"

_PICKER_STYLE = """<style>
.torchenv-picker {
  border: 1px solid var(--jp-border-color2, #ccc); border-radius: 4px; box-sizing: border-box;
  padding: 0.9rem 1.2rem 1.1rem; max-width: 46rem; gap: 0.8rem; container-type: inline-size;
}
.torchenv-picker .widget-html, .torchenv-picker .widget-html-content,
.torchenv-picker .jupyter-widget-html {
  height: auto; margin: 0; line-height: 1.5; width: 100%; white-space: normal;
}
.torchenv-picker .widget-box { overflow: visible; margin: 0; }
.torchenv-picker .widget-radio, .torchenv-picker .widget-radio-box {
  width: 100%; height: auto; margin: 0; padding: 0;
}
.torchenv-picker .widget-radio-box { display: flex; flex-direction: column; gap: 0.35rem; }
.torchenv-picker .widget-radio-box label {
  display: flex; flex-direction: row-reverse; justify-content: flex-end; align-items: flex-start;
  gap: 0.6em; width: 100%; height: auto; margin: 0; padding: 0; line-height: 1.5;
  white-space: normal; color: var(--jp-ui-font-color1, inherit);
  font-size: var(--jp-ui-font-size1, 13px);
}
.torchenv-picker .widget-radio-box input {
  position: relative; top: 0; flex: none; float: none; margin: 0;
}
.torchenv-picker .jupyter-button {
  height: auto; min-height: 2.2em; margin: 0; padding: 0.3em 0.9em; line-height: 1.4;
  white-space: normal;
}
.torchenv-picker
  :is(.jupyter-button, input, summary, .jupyter-widget-Collapse-header):focus-visible {
  /* ipywidgets takes the outline of text fields away, with !important. */
  outline: 2px solid var(--jp-brand-color1, currentColor) !important; outline-offset: 2px;
}
.torchenv-picker :is(.widget-checkbox, .widget-text) { margin: 0; }
.torchenv-picker :is(.widget-checkbox, .widget-text, .widget-radio-box) :is(label, span, input) {
  font-family: inherit; font-size: var(--jp-ui-font-size1, 13px);
  color: var(--jp-ui-font-color1, inherit);
}
.torchenv-picker .widget-checkbox label { display: flex; align-items: center; gap: 0.2em; }
.torchenv-picker .widget-checkbox input { position: static; margin-top: 0; margin-bottom: 0; }
.torchenv-picker .widget-text .widget-label { min-width: 8.2em; text-align: left; }
.torchenv-row { display: flex; flex-flow: row wrap; gap: 0.6rem 1.2rem; align-items: center; }
.torchenv-picker .widget-hprogress { width: 100%; height: 0.75em; margin: 0; }
.torchenv-picker .widget-hprogress .progress {
  position: static; width: 100%; height: 0.75em; margin: 0; border: 0;
}
.torchenv-picker .jupyter-widget-Collapse, .torchenv-picker .jupyter-widget-Collapse-contents {
  border: 0; padding: 0; background: none; width: 100%;
}
.torchenv-picker .jupyter-widget-Collapse-header {
  border: 0; padding: 0; background: none; font-weight: normal;
  color: var(--jp-ui-font-color2, inherit);
}
</style>"""


class Picker:
    """One picker in one output. Make it and `show` it in the magic, while its cell runs."""

    def __init__(self, shell: InteractiveShell, front_end: FrontEnd) -> None:
        self.display_id = f"torchenv-{uuid4().hex}"
        self.status: Status | None = None
        self.job: Job | None = None
        self._shell = shell
        self._front_end = front_end
        self._restart = Restart(shell, front_end)
        self._interrupt = Interruptible(shell)
        self._redrawn = 0.0
        self._filled: tuple[object, ...] = ()
        self._by_hand = False
        self._offer: Plan | None = None
        self._built = threading.Event()
        self._looked = threading.Event()
        self._drawing = threading.RLock()
        # First of all: it looks while the widgets are built.
        threading.Thread(target=self._look, name="torchenv-detect", daemon=True).start()
        self._build()

    # ------------------------------------------------------------------------------------ drawing

    def _build(self) -> None:
        self._facts = widgets.HTML()
        self._choice = widgets.RadioButtons(options=[], layout={"width": "100%"})
        self._others = widgets.HTML()
        self._vision = self._checkbox("torchvision")
        self._audio = self._checkbox("torchaudio")
        self._packages = _row(self._vision, self._audio)
        self._version = widgets.Text(
            placeholder="newest",
            description="torch version",
            tooltip="for example 2.13.0 or >=2.12,<2.14",
            style={"description_width": "initial"},
            layout={"width": "100%"},
        )
        self._more = widgets.Text(
            placeholder="for example lightning transformers>=5",
            description="more packages",
            tooltip="more packages, as pip writes them",
            style={"description_width": "initial"},
            layout={"width": "100%"},
        )
        self._cost = widgets.HTML()
        self._install = self._button(_INSTALL, self._on_install, primary=True)
        self._show_plan = self._button("Show plan", self._on_plan)
        self._cancel = self._button("Cancel", self._on_cancel)
        self._use_offer = self._button("", self._on_offer, primary=True)
        self._restart_now = self._button("Restart now", self._on_restart_now, primary=True)
        self._keep = self._button("Keep the session", self._on_keep)
        self._buttons = _row(self._install, self._show_plan)
        self._bar = widgets.FloatProgress(min=0.0, max=1.0, value=0.0, layout={"width": "100%"})
        self._words = widgets.HTML()
        self._log = widgets.HTML()
        self._log_box = widgets.Accordion(children=[self._log], titles=("Log",))
        self._log_box.selected_index = None
        self._choice.observe(self._on_choice, names="value")
        self.widget = widgets.VBox([self._facts])
        self.widget.add_class("torchenv-picker")
        self._facts.value = _title("<p class='torchenv-quiet'>Looking at this machine…</p>")
        self._built.set()

    def _checkbox(self, name: str) -> widgets.Checkbox:
        return widgets.Checkbox(description=name, indent=False, layout={"width": "auto"})

    def _button(
        self, text: str, on_click: Callable[[], None], *, primary: bool = False
    ) -> widgets.Button:
        button = widgets.Button(
            description=text,
            button_style="primary" if primary else "",
            layout={"width": "auto"},
        )

        def clicked(_: object) -> None:
            try:
                on_click()
            except Exception as error:  # noqa: BLE001  (JupyterLab shows a callback's nowhere)
                self._fail(expected(error))

        button.on_click(clicked)
        return button

    def show(self) -> None:
        """Display the picker; it fills itself in where the machine is slow to look at."""
        self._looked.wait(_WAIT_FOR_STATUS_SECONDS)
        bundle = dict(self.widget._repr_mimebundle_())
        status = self.status
        bundle["text/plain"] = str(status) if status else "PyTorch for this kernel"
        bundle["text/html"] = (
            status_html(status) if status else message_html("PyTorch for this kernel")
        )
        bundle[OUTPUT_MIME] = {"id": self.display_id}
        display(bundle, raw=True, display_id=self.display_id)  # type: ignore[no-untyped-call]

    def _look(self) -> None:
        try:
            status = read_status()
        except Exception as exception:  # noqa: BLE001  (a thread's exception would reach nobody)
            error = expected(exception)
            with self._drawn():
                self._facts.value = _title(
                    message_html(error.message, tone="bad", hint=error.hint, detail=error.detail)
                )
            self._looked.set()
            return
        with self._drawn():
            self._fill(status)
        self._looked.set()
        self._ask_index(status)

    def _ask_index(self, before: Status) -> None:
        """Look again with what the index says by now, and redraw where the choice is another."""
        if not is_stale(before.host.platform.wheel_platform, os.environ):
            return
        try:
            status = read_status(refresh="stale")
        except Exception as exception:  # noqa: BLE001  (what was shown before it stays right)
            logger.info("no second look: %s", expected(exception).message)
            return
        selection, shown = status.selection, before.selection
        differs = (selection.backend, selection.torch, selection.alternatives) != (
            shown.backend,
            shown.torch,
            shown.alternatives,
        )
        with self._drawn():
            # Never under the hand of somebody who has begun to choose.
            if differs and self.job is None and self._fields() == self._filled:
                self._fill(status)

    def _fields(self) -> tuple[object, ...]:
        fields = (self._choice, self._vision, self._audio, self._version, self._more)
        return tuple(field.value for field in fields)

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[None]:
        # The widgets are built in the magic's thread while the first look runs in its own.
        self._built.wait()
        with self._drawing:
            yield

    def _fill(self, status: Status) -> None:
        self._fill_choice(status)
        # A package that is there stays in step with torch, so it is part of what is asked.
        self._vision.value = status.environment.installed("torchvision") is not None
        self._audio.value = status.environment.installed("torchaudio") is not None
        self._cost.value = _quiet(
            "“Show plan” tells what is downloaded, installed and replaced; nothing is changed "
            "before you press the button."
        )
        self._filled = self._fields()
        self._arrange()

    def _fill_choice(self, status: Status) -> None:
        self.status = status
        selection = status.selection
        fitting = [item for item in selection.alternatives if item.fits]
        others = [item for item in selection.alternatives if not item.fits]
        chosen = selection.backend
        if chosen is not None and chosen not in [item.backend for item in fitting]:
            fitting[:0] = [item for item in others if item.backend == chosen]
            others = [item for item in others if item.backend != chosen]
        fitting.sort(key=lambda item: item.backend != chosen)
        self._facts.value = _title(facts_html(status_rows(status)))
        self._choice.options = [
            (_label(item, chosen, selection.reason), item.backend) for item in fitting
        ]
        if chosen is not None:
            self._choice.value = chosen
        count = f"{len(others)} build{'' if len(others) == 1 else 's'}"
        self._others.value = (
            f"<div class='torchenv'><details><summary>{count} that "
            f"{'does' if len(others) == 1 else 'do'} not fit here, and why</summary>"
            f"{alternatives_html(others, None)}</details></div>"
            if others
            else ""
        )
        self._by_hand = False

    def _arrange(self, *below: widgets.Widget) -> None:
        parts = [self._facts]
        if self.status is not None:
            packages = [self._packages, self._version, self._more]
            parts += [self._choice, self._others, *packages, self._cost, self._buttons]
        self.widget.children = (*parts, *below)

    def _enable(self, *, enabled: bool) -> None:
        for widget in (self._choice, self._vision, self._audio, self._version, self._more,
                       self._install, self._show_plan):  # fmt: skip
            widget.disabled = not enabled

    # ------------------------------------------------------------------------------------- asking

    def request(self) -> Request:
        """Return what the fields ask for.

        Raises
        ------
        RequestError
            A field is malformed.
        """
        version = self._version.value.strip()
        torch = "torch"
        if version:
            torch += version if version[0] in "<>=!~" else f"=={version}"
        texts = [torch]
        texts += [box.description for box in (self._vision, self._audio) if box.value]
        texts += self._more.value.replace(",", " , ").split() if self._more.value else []
        texts = _rejoined(texts)
        names = parse_request(texts, backend=str(self._choice.value or "auto"))
        return Request(backend=names.backend, requirements=tuple(texts))

    def _choose_for(self, request: Request) -> tuple[Request, Status]:
        """Return the request with the build for it, where nobody has chosen one by hand.

        The one that was chosen at first may not go with the packages and versions that were asked
        for since. Where none does, it stays, and its index has the last word.
        """
        if not self._by_hand:
            status = read_status(replace(request, backend=None))
            chosen = status.selection.backend
            if chosen is not None:
                if chosen != self._choice.value:
                    self._fill_choice(status)
                return replace(request, backend=chosen), status
        return request, read_status(request)

    def _on_choice(self, _: object) -> None:
        self._by_hand = True
        if self.job is None and self.status is not None:
            self._offer = None
            self._cost.value = _quiet("“Show plan” tells what this choice costs.")
            self._idle()

    def _on_plan(self) -> None:
        self._begin(only_plan=True, word="Planning…")

    def _on_install(self) -> None:
        self._begin(word="Installing…")

    def _on_offer(self) -> None:
        self._begin(plan=self._offer, word="Installing…")

    def _on_cancel(self) -> None:
        if self.job is not None:
            self._cancel.disabled = True
            self._words.value = _quiet("Stopping…")
            self.job.cancel()

    def _begin(self, *, only_plan: bool = False, plan: Plan | None = None, word: str) -> None:
        if self.job is not None:
            return
        with self._drawing:
            self._filled = ()  # a second look that ends from here on redraws nothing
        if plan is not None:
            request, status = plan.request, read_status(plan.request)
        else:
            request, status = self._choose_for(self.request())
        self._enable(enabled=False)
        self._install.description = word if not only_plan else _INSTALL
        self._show_plan.description = word if only_plan else "Show plan"
        self._cancel.disabled = False
        self._bar.value = 0.0
        self._bar.bar_style = ""
        self._buttons.children = (self._install, self._show_plan, self._cancel)
        self._words.value = _quiet("Starting")
        self._log.value = ""
        below = [self._words] if only_plan else [self._bar, self._words, self._log_box]
        self._arrange(*below)
        self.job = Job(
            status,
            request,
            plan=plan,
            only_plan=only_plan,
            on_change=self._on_progress,
            on_end=lambda job: self._on_end(job, only_plan=only_plan),
        )
        self._interrupt.begin(self._on_cancel)
        self.job.start()

    def _on_progress(self, job: Job) -> None:
        now = time.monotonic()
        state = job.state
        if now - self._redrawn < _REDRAW_SECONDS and state.bytes is not None:
            return
        self._redrawn = now
        text = words_html(state.message)
        if state.bytes is not None:
            self._bar.value = state.bytes.done / max(state.bytes.total, 1)
            text += f"<br>{escape(progress_words(state.bytes))}"
        self._words.value = f"<div class='torchenv' role='status'>{text}</div>"
        if state.log:
            lines = "\n".join(state.log)
            self._log.value = f"<div class='torchenv'><pre>{escape(lines)}</pre></div>"

    # ------------------------------------------------------------------------------------- ending

    def _on_end(self, job: Job, *, only_plan: bool) -> None:
        try:
            self._finish(job, only_plan=only_plan)
        except Exception as error:  # noqa: BLE001  (a thread's exception would reach nobody)
            self._fail(expected(error))

    def _finish(self, job: Job, *, only_plan: bool) -> None:
        state = job.state
        self.job = None
        self._interrupt.end()
        if state.error is not None:
            self._fail(state.error)
            return
        if only_plan and state.plan is not None:
            self._idle()
            self._cost.value = (
                f"<div class='torchenv'><p>{escape(state.plan.summary)}</p>"
                f"<p class='torchenv-quiet'>from {escape(str(state.plan.source))}</p>"
                f"{self._session_words(state.plan)}{changes_html(state.plan)}</div>"
            )
            return
        if state.result is None:
            return
        if not state.result.changed:
            self._verify_in_child(lead=str(state.result))
            return
        effects = describe_session(self._shell, state.result.changed)
        self._lead = str(state.result)
        if effects.holds_work:
            self._ask(str(effects), may_keep=not effects.must_restart)
        else:
            self._on_restart_now()

    def _session_words(self, plan: Plan) -> str:
        text = str(describe_session(self._shell, [change.name for change in plan.changes]))
        return f"<p>{words_html(text)}</p>" if text and not plan.nothing_to_do else ""

    def _ask(self, text: str, *, may_keep: bool) -> None:
        self._bar.value = 1.0
        self._bar.bar_style = "success"
        self._words.value = (
            f"<div class='torchenv' role='alert'><p><b>{escape(self._lead)}.</b> "
            f"{words_html(text)}</p></div>"
        )
        self._buttons.children = (self._restart_now, *([self._keep] if may_keep else []))
        self._arrange(self._words)

    def _on_keep(self) -> None:
        self._verify_in_child(
            lead=f"{self._lead}. Nothing of it was loaded here, so the session goes on."
        )

    def _on_restart_now(self) -> None:
        choice = self._restart.prepare()
        if not choice.restarts:
            self._verify_in_child(lead=f"{self._lead}. {choice.tell}.")
            return
        self._restart_kernel(choice)

    def _restart_kernel(self, choice: RungChoice) -> None:
        # Before the restart: a widget whose kernel is gone looks alive, and does nothing.
        self._replace(
            message_html(f"{self._lead}. Restarting the kernel…", tone="good"), self._lead
        )
        lead = f"{self._lead}; the kernel was restarted."

        def failed(error: TorchEnvError) -> None:
            self._replace(
                message_html(f"{self._lead}. {error.message}", hint=error.hint), str(error)
            )

        self._restart.run(
            choice,
            display_id=self.display_id,
            fresh_kernel_code=fresh_kernel_code(self.display_id, lead),
            after={
                "text/html": message_html(
                    f"{lead} The verification cell shows whether PyTorch works."
                ),
                "text/plain": f"{lead} The verification cell shows whether PyTorch works.",
            },
            on_failure=failed,
        )

    def _verify_in_child(self, *, lead: str) -> None:
        self._words.value = _quiet("Verifying")
        self._arrange(self._words)
        environment = read_environment()
        verification = verify(environment, read_expectation(environment.prefix), in_process=False)
        self._replace(verification_html(verification, lead=lead), f"{lead}\n{verification}")

    def _replace(self, html: str, text: str) -> None:
        bundle = {
            "text/html": html,
            "text/plain": text,
            OUTPUT_MIME: {"id": self.display_id},
        }
        display(  # type: ignore[no-untyped-call]
            bundle, raw=True, display_id=self.display_id, update=True
        )
        _close(self.widget)

    def _idle(self) -> None:
        self._install.description = _INSTALL
        self._show_plan.description = "Show plan"
        self._buttons.children = (self._install, self._show_plan)
        self._enable(enabled=True)
        self._arrange()

    def _fail(self, error: TorchEnvError) -> None:
        self._idle()
        hint, tone = error.hint, "torchenv-bad"
        if isinstance(error, IndexUnreachableError) and error.offers:
            # There is a way on, so it is no alarm.
            tone = "torchenv-warn"
            self._offer = error.offers[0]
            version = self._offer.versions.get("torch", "")
            self._use_offer.description = f"Install torch {version} from there and restart kernel"
            self._buttons.children = (self._use_offer, self._show_plan)
            hint = ""
        parts = [
            f"<div class='torchenv' role='alert'><p class='{tone}'>",
            f"{words_html(error.message)}</p>",
        ]
        if hint:
            parts.append(f"<p class='torchenv-quiet'>hint: {words_html(hint)}</p>")
        parts.append(log_html(error.detail.splitlines(), title="what uv said"))
        self._words.value = "".join([*parts, "</div>"])
        self._cost.value = ""
        self._arrange(self._words)


def _close(widget: widgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


def _row(*children: widgets.Widget) -> widgets.Box:
    box = widgets.Box(children)
    box.add_class("torchenv-row")
    return box


def _title(body: str) -> str:
    return (
        f"{STYLE}{_PICKER_STYLE}<div class='torchenv'>"
        f"<p class='torchenv-title'>PyTorch for this kernel</p>{body}</div>"
    )


def _quiet(text: str) -> str:
    return f"<div class='torchenv torchenv-quiet' role='status'>{words_html(text)}</div>"


def _label(item: Alternative, chosen: Backend | None, reason: str) -> str:
    text = item.backend.label
    if item.torch:
        text += f" · torch {item.torch}"
    return f"{text} — recommended: {reason}" if item.backend == chosen else text


def _rejoined(texts: list[str]) -> list[str]:
    """Return requirements from a field's words: `numpy >= 2` and `a>=1,<2` are one each."""
    joined: list[str] = []
    for text in texts:
        glued = joined and (text[0] in "<>=!~,;[@" or joined[-1][-1] in "<>=!~,;@")
        if glued:
            joined[-1] += text
        else:
            joined.append(text)
    return [text.strip(",") for text in joined]
