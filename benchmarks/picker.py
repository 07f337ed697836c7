"""How long the picker takes to appear, and what it costs while nobody clicks.

Beside it the barest picker that ipywidgets can show.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from benchmarks.measuring import Comparison, Goal, Measurement, Series, take_turns
from benchmarks.stage import CELL_ID, Stage
from tests.kernels import Kernel, Message

__all__ = ["measure"]

_BARE_PICKER = """\
import ipywidgets
from IPython.display import display
display(ipywidgets.VBox([
    ipywidgets.RadioButtons(options=["cpu", "cu126", "cu130"]),
    ipywidgets.Button(description="Show plan"),
    ipywidgets.Button(description="Install"),
]))
"""


_IDLE_SECONDS = 5.0
_IDLE_GOAL = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleLoad:
    """How much of one processor a kernel takes while a picker is shown and nobody clicks."""

    ours: tuple[float, ...]
    """Parts of one processor, one a run."""
    peer: tuple[float, ...]

    @property
    def met(self) -> bool:
        """Whether the median run is within the goal."""
        return statistics.median(self.ours) < _IDLE_GOAL

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return "\n".join(
            (
                f"picker: the kernel's processor time in {_IDLE_SECONDS:g} s without a click",
                f"  %torchenv                 {statistics.median(self.ours):.2%} (median)",
                f"  a bare ipywidgets picker  {statistics.median(self.peer):.2%} (median)",
                f"  goal                      under {_IDLE_GOAL:.0%} of a processor: {verdict}",
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return every run."""
        return {
            "title": "picker: idle",
            "ours": self.ours,
            "peer": self.peer,
            "goal": _IDLE_GOAL,
            "met": self.met,
        }


def measure(stage: Stage) -> Iterator[Measurement]:
    """Show each twice in a fresh kernel that looks like JupyterLab's, then leave it alone."""
    pairs = take_turns("picker", stage.runs, partial(_ours, stage), partial(_bare, stage))
    ours, peers = zip(*pairs, strict=True)
    first, filled, second, idle = (tuple(times) for times in zip(*ours, strict=True))
    bare_first, bare_second, bare_idle = (tuple(times) for times in zip(*peers, strict=True))
    filled_after = f"filled in after {statistics.median(filled) * 1000:.1f} ms (median)"
    for title, seconds, peer, limit, notes in (
        ("first in a fresh kernel", first, bare_first, 0.3, (filled_after,)),
        ("second in the same kernel", second, bare_second, 0.1, ()),
    ):
        yield Comparison(
            title=f"picker: {title}",
            ours=Series(name="%torchenv, on screen", seconds=seconds),
            peer=Series(name="a bare ipywidgets picker", seconds=peer),
            goal=Goal(kind="seconds", limit=limit),
            notes=notes,
        )
    yield IdleLoad(ours=idle, peer=bare_idle)


def _ours(stage: Stage) -> tuple[float, float, float, float]:
    with stage.start_kernel() as kernel:
        kernel.run("%load_ext torchenv_magic", cell_id=CELL_ID)
        request, shown = _show(kernel, "%torchenv")
        filled = _filled(kernel, shown)
        second, shown_again = _show(kernel, "%torchenv")
        return (
            _seconds(request, shown),
            max(_seconds(request, shown), _seconds(request, filled)),
            _seconds(second, shown_again),
            _idle_load(kernel),
        )


def _bare(stage: Stage) -> tuple[float, float, float]:
    with stage.start_kernel() as kernel:
        first, second = (_seconds(*_show(kernel, _BARE_PICKER)) for _ in range(2))
        return first, second, _idle_load(kernel)


def _idle_load(kernel: Kernel) -> float:
    """Return the part of one processor that the kernel takes from now on."""
    message_id = kernel.send("import os; print(os.getpid())")
    process = psutil.Process(int(kernel.printed(message_id)))

    def used() -> float:
        times = process.cpu_times()
        return times.user + times.system

    before = used()
    time.sleep(_IDLE_SECONDS)
    return (used() - before) / _IDLE_SECONDS


def _show(kernel: Kernel, code: str) -> tuple[Message, Message]:
    """Run the cell; return the message that it began, and the one that shows its widget."""
    message_id = kernel.send(code, cell_id=CELL_ID)

    def of_this_cell(message: Message) -> bool:
        return bool(message["parent_header"].get("msg_id") == message_id)

    began = kernel.wait_for(
        lambda message: (
            of_this_cell(message) and message["content"].get("execution_state") == "busy"
        )
    )
    shown = kernel.wait_for(
        lambda message: of_this_cell(message) and _widget_id(message) is not None
    )
    kernel.printed(message_id)  # until the cell has ended
    return began, shown


def _filled(kernel: Kernel, shown: Message) -> Message:
    """Return the message that gives the picker its rows, before or after it is shown."""
    widget_id = _widget_id(shown)
    return kernel.wait_for(
        lambda message: (
            message["msg_type"] == "comm_msg"
            and message["content"]["comm_id"] == widget_id
            and len(message["content"]["data"].get("state", {}).get("children", ())) > 1
        )
    )


def _widget_id(message: Message) -> str | None:
    if message["msg_type"] != "display_data":
        return None
    view = message["content"]["data"].get("application/vnd.jupyter.widget-view+json")
    return None if view is None else str(view["model_id"])


def _seconds(earlier: Message, later: Message) -> float:
    # By the kernel's own clock: the way to this process is not what is measured.
    return float((later["header"]["date"] - earlier["header"]["date"]).total_seconds())
