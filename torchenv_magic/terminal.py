"""Tell a terminal, a log or a program what an install is at: one stream of events, three ways."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from torchenv_magic.installation.progress import (
    Bytes,
    Event,
    OnEvent,
    format_bytes,
    format_seconds,
)
from torchenv_magic.serialization import to_json

# rich takes longer to import than most words take to answer.
if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from typing_extensions import Self

__all__ = ["JsonLines", "PlainLines", "Screen", "told"]

_JSON_SECONDS = 0.5
_LINE_SECONDS = 30.0
_LINES = 10
# A download of a second needs no ten lines.
_SHORTEST_LINE_SECONDS = 2.0
_REDRAWS_A_SECOND = 8
_NARROW = 60
# The sentence or the table that follows says how these ended.
_UNTICKED = ("verify", "done")
# What the other was at last says nothing any more.
_ENDED = {"wait": "Waited for another install"}


def _unchanged(text: str) -> str:
    return text


@contextmanager
def told(
    *, as_json: bool, say: Callable[[str], str] = _unchanged, stream: TextIO | None = None
) -> Iterator[OnEvent]:
    """Lend a listener that tells events on standard error, for as long as the block runs.

    Parameters
    ----------
    as_json
        One JSON object a line, for programs.
    say
        Words a message for whoever sits at a terminal.
    """
    stream = stream or sys.stderr
    if as_json:
        yield JsonLines(stream)
    elif _can_draw(stream):
        with Screen(stream, say=say) as screen:
            yield screen
    else:
        yield PlainLines(stream, say=say)


# The last is what ipykernel calls the pseudo-terminal of `!torchenv`: a cell's output, where no
# cursor goes up.
_UNABLE = ("dumb", "unknown", "xterm-color")


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") not in _UNABLE


class JsonLines:
    """Tells each event as `{"event": {...}}` on a line of its own; bare numbers twice a second."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next = 0.0
        self._phase = ""

    def __call__(self, event: Event) -> None:
        now = self._clock()
        numbers_alone = not (event.message or event.log) and event.phase == self._phase
        if numbers_alone and now < self._next:
            return
        self._next = now + _JSON_SECONDS
        self._phase = event.phase
        # In ASCII, which every pipe of every system takes; whole lines, whichever thread speaks.
        self._stream.write(json.dumps({"event": to_json(event)}) + "\n")
        self._stream.flush()


class PlainLines:
    """Tells each sentence on a line, and how far it is every tenth of the way or half a minute."""

    def __init__(
        self,
        stream: TextIO,
        *,
        say: Callable[[str], str] = _unchanged,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._say = say
        self._clock = clock
        self._last = ""
        self._told_at = clock()
        self._told_lines = 0

    def __call__(self, event: Event) -> None:
        if event.message and event.message != self._last:
            self._last = event.message
            if not event.bytes:
                self._told_lines = 0
            text = event.message
            if event.bytes is not None and event.bytes.done < event.bytes.total:
                text += f" ({event.bytes})"
            self._tell(text)
            return
        seconds = self._clock() - self._told_at
        if event.bytes is not None:
            lines = _LINES * event.bytes.done // max(event.bytes.total, 1)
            far = lines > self._told_lines and seconds >= _SHORTEST_LINE_SECONDS
            if far or seconds >= _LINE_SECONDS:
                self._told_lines = lines
                self._tell(f"  {event.bytes}")
        elif event.count is not None and seconds >= _LINE_SECONDS:
            self._tell(f"  {_counted(event.count)}")

    def _tell(self, text: str) -> None:
        self._told_at = self._clock()
        self._stream.write(self._say(text) + "\n")
        self._stream.flush()


def _counted(count: tuple[int, int]) -> str:
    done, of = count
    return f"{done} of {of} package{'' if of == 1 else 's'}"


class Screen:
    """Draws what runs at the bottom of a terminal, and leaves a line for each thing that is done.

    Whatever ends the block, the terminal has its cursor again and nothing half drawn stays.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        say: Callable[[str], str] = _unchanged,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = ""
        self._message = ""
        self._bytes: Bytes | None = None
        self._count: tuple[int, int] | None = None
        self._began = clock()
        self._console = Console(
            file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False
        )
        utf = (self._console.encoding or "").lower().startswith("utf")
        self._tick, self._mark = ("✓", "!") if utf else ("+", "!")
        self._live = Live(
            get_renderable=self._frame,
            console=self._console,
            refresh_per_second=_REDRAWS_A_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What failed or was stopped is not ticked: whoever caught the exception says why.
        done = self._done_line() if kind is None else ""
        with self._lock:
            self._message = ""
        self._live.stop()
        if done:
            self._print(done, style="green")

    def __call__(self, event: Event) -> None:
        remark = done = ""
        with self._lock:
            if event.message and event.message != self._message:
                ended = event.bytes is None or event.bytes.done >= event.bytes.total
                if event.phase == self._phase != "wait" and not ended:
                    remark = event.message
                else:
                    done = self._done_line(event)
                    self._begin(event)
            self._phase = event.phase
            self._bytes = event.bytes or self._bytes
            self._count = event.count or self._count
        if done:
            self._print(done, style="green")
        if remark:
            self._print(f"{self._mark} {self._say(remark)}", style="yellow")

    def _begin(self, event: Event) -> None:
        same = event.phase == self._phase
        self._message = event.message
        self._count = None
        self._bytes = None
        # `Downloaded` ends what `Downloading` began, and took its time; a wait is one wait.
        if not (same and (event.bytes is not None or event.phase == "wait")):
            self._began = self._clock()

    def _done_line(self, event: Event | None = None) -> str:
        """Return the line that stays of what was shown, empty where the next one replaces it."""
        same = event is not None and event.phase == self._phase
        if not self._message or self._phase in _UNTICKED:
            return ""
        if event is not None and same and (event.bytes or event.phase == "wait"):
            return ""
        text = self._say(_ENDED.get(self._phase, self._message))
        seconds = self._clock() - self._began
        took = f" in {format_seconds(seconds)}" if seconds >= 1 else ""
        return f"{self._tick} {text}{took}"

    def _print(self, text: str, *, style: str) -> None:
        from rich.text import Text

        line = Text(text)
        line.stylize(style, 0, 1)
        self._console.print(line)

    # ------------------------------------------------------------------------------ what is drawn

    def _frame(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            message, progress, count = self._message, self._bytes, self._count
            running = self._clock() - self._began
        if not message:
            return Text("")
        parts: list[RenderableType] = [Text(self._say(message))]
        if progress is not None and progress.done < progress.total:
            parts += self._download(progress, count)
        elif count is not None:
            parts.append(self._counted(count))
        elif running >= 2:
            parts.append(Text(f"  {format_seconds(running)}", style="dim"))
        return Group(*parts)

    def _download(self, progress: Bytes, count: tuple[int, int] | None) -> Iterator[RenderableType]:
        from rich.text import Text

        narrow = self._console.width < _NARROW
        words, _, pace = str(progress).partition(" · ")
        ready = f"{_counted(count)} ready" if count is not None else ""
        table = self._grid()
        shown = progress.large[: max(self._console.height - 6, 0)]
        all_of_it = " · ".join(filter(None, [words, "" if narrow else pace]))
        self._bar(table, "total", progress.done, progress.total, all_of_it)
        for name, done, total in shown:
            size = f"{done / total:.0%}"
            if not narrow:
                size = f"{format_bytes(done)} of {format_bytes(total)}"
            self._bar(table, name, done, total, size)
        yield table
        facts = [text for text in (pace if narrow else "", ready) if text]
        hidden = len(progress.packages) - len(shown)
        if shown and hidden:
            facts.append(f"{hidden} more under way")
        for note in facts if narrow else [" · ".join(facts)]:
            yield Text(f"  {note}", style="dim", overflow="fold")

    def _counted(self, count: tuple[int, int]) -> Table:
        table = self._grid()
        self._bar(table, "", count[0], count[1], _counted(count))
        return table

    def _grid(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 1), expand=False)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=self._console.width // 3)
        table.add_column()
        table.add_column(no_wrap=True, overflow="ellipsis")
        return table

    def _bar(self, table: Table, name: str, done: int, total: int, words: str) -> None:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        width = max(8, min(30, self._console.width // 4))
        bar = ProgressBar(total=max(total, 1), completed=done, width=width)
        table.add_row(Text(f"  {name}" if name else " "), bar, Text(words))
