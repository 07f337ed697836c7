"""How long the picker takes to appear, beside the barest picker that ipywidgets can show."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from benchmarks.measuring import Comparison, Goal, Series, take_turns
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


def measure(stage: Stage) -> Iterator[Comparison]:
    """Show each twice in a fresh kernel that looks like JupyterLab's."""
    pairs = take_turns("picker", stage.runs, partial(_ours, stage), partial(_bare, stage))
    ours, peers = zip(*pairs, strict=True)
    first, filled, second = (tuple(times) for times in zip(*ours, strict=True))
    bare_first, bare_second = (tuple(times) for times in zip(*peers, strict=True))
    filled_after = f"filled in after {statistics.median(filled) * 1000:.1f} ms (median)"
    for title, seconds, peer, notes in (
        ("first in a fresh kernel", first, bare_first, (filled_after,)),
        ("second in the same kernel", second, bare_second, ()),
    ):
        yield Comparison(
            title=f"picker: {title}",
            ours=Series(name="%torchenv, on screen", seconds=seconds),
            peer=Series(name="a bare ipywidgets picker", seconds=peer),
            goal=Goal(kind="seconds", limit=0.3),
            notes=notes,
        )


def _ours(stage: Stage) -> tuple[float, float, float]:
    with stage.start_kernel() as kernel:
        kernel.run("%load_ext torchenv_magic", cell_id=CELL_ID)
        request, shown = _show(kernel, "%torchenv")
        filled = _filled(kernel, shown)
        second, shown_again = _show(kernel, "%torchenv")
        return (
            _seconds(request, shown),
            max(_seconds(request, shown), _seconds(request, filled)),
            _seconds(second, shown_again),
        )


def _bare(stage: Stage) -> tuple[float, float]:
    with stage.start_kernel() as kernel:
        first, second = (_seconds(*_show(kernel, _BARE_PICKER)) for _ in range(2))
        return first, second


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
