"""The kernel's Interrupt, for work that no cell waits for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Interruptible"]


class Interruptible:
    """Lets Interrupt stop a job that runs in a thread while the kernel is idle.

    ipykernel ignores the signal between two cells, and has a handler of its own while one runs:
    that cell is then what is interrupted, and not the job. Made in the magic; `begin` and `end`
    may be called from any thread, since only the main thread may set a handler.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        io_loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
        self._loop: Any = getattr(io_loop, "asyncio_loop", None)
        self._action: Callable[[], None] | None = None
        self._before: Any = None

    def begin(self, action: Callable[[], None]) -> None:
        """Call `action` at an interrupt, from as soon as no cell runs."""
        self._action = action
        self._in_main_thread(self._listen)

    def end(self) -> None:
        """Leave interrupts to the kernel again."""
        self._action = None
        self._in_main_thread(self._leave)

    def _in_main_thread(self, step: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(step)

    def _listen(self) -> None:
        if self._action is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) != self._heard:
            self._before = signal.signal(signal.SIGINT, self._heard)

    def _leave(self) -> None:
        if self._action is None and signal.getsignal(signal.SIGINT) == self._heard:
            signal.signal(signal.SIGINT, self._before)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        if self._action is not None:
            self._action()
