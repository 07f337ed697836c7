"""How the `torchenv` command talks: data on stdout, all else on stderr, and what stops it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from torchenv_magic.errors import InstallCancelled, TorchEnvError
from torchenv_magic.words import Words

if TYPE_CHECKING:
    from torchenv_magic.installation.progress import OnEvent
    from torchenv_magic.installation.uv import Cancellation

__all__ = [
    "EVENTFUL",
    "FAILED",
    "colored",
    "for_terminal",
    "listening",
    "mention",
    "print_data",
    "print_json",
    "print_text",
    "speaks_json",
    "stoppable",
    "talk",
    "tell_error",
]

FAILED = 1
_DETAIL_LINES = 40

# Their stderr is read by programs too: a JSON object a line, events and at most one error.
EVENTFUL = frozenset(
    {
        "plan",
        "install",
        "undo",
        "lock",
        "restore",
        "new-kernel",
        "download",
        "layer",
        "prefetch",
    }
)


def speaks_json(texts: Sequence[str]) -> bool:
    return "--json" in texts and not EVENTFUL.isdisjoint(texts[:1])


@contextlib.contextmanager
def stoppable() -> Iterator[Cancellation]:
    """Turn Ctrl-C, and a polite end from outside, into a wish that puts everything back first."""
    from torchenv_magic.installation.uv import Cancellation

    cancellation = Cancellation()
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # Who started this may have had one ignored (`nohup`), and so it stays.
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    def stop(_number: int, _frame: object) -> None:
        # In a thread of its own: the interrupted code may hold the very lock that this takes.
        threading.Thread(target=cancellation.cancel, name="torchenv-stop").start()

    if threading.current_thread() is not threading.main_thread():
        yield cancellation
        return
    previous = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield cancellation
    except InstallCancelled as error:
        raise InstallCancelled("Cancelled; the environment is as it was") from error
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def print_data(words: Words, text: str, data: Any) -> int:  # noqa: ANN401
    if words.json:
        print_json(data)
    else:
        print_text(text)
    return 0


def print_text(text: str) -> None:
    print(for_terminal(text))


def print_json(data: Any) -> None:  # noqa: ANN401
    # In ASCII, which every pipe of every system takes.
    print(for_terminal(json.dumps(data, indent=2)))


def tell_error(error: TorchEnvError, *, as_json: bool = False) -> None:
    if as_json:
        talk(json.dumps({"error": error.to_json()}))
        return
    lines = [line.rstrip() for line in error.detail.splitlines() if line.strip()]
    if len(lines) > _DETAIL_LINES:
        lines = [f"… {len(lines) - _DETAIL_LINES} lines more", *lines[-_DETAIL_LINES:]]
    for line in lines:
        talk(f"  {line}")
    talk(f"{colored('error', '31', sys.stderr)}: {error}")


def mention(words: Words, *texts: str | None) -> None:
    """Say what was found on the way, as an event where programs read what is said."""
    for text in filter(None, texts):
        if words.json and words.word in EVENTFUL:
            from torchenv_magic.installation.progress import Event

            with listening(words) as progress:
                progress(Event(phase="resolve", message=text))
        else:
            talk(text)


def talk(text: str) -> None:
    print(for_terminal(text), file=sys.stderr, flush=True)


# What is written for a notebook, in the words of a terminal.
_IN_A_TERMINAL = (
    (re.compile(r"`%torchenv`"), "`torchenv install`"),
    (re.compile(r"`[%!](?=torchenv |pip |uv |[^`]* -m uv pip )"), "`"),
    (
        re.compile(r"choose another one as this notebook's kernel"),
        r"name another one with `--python`",
    ),
    (re.compile(r"\brestart the kernel(?: and|, then) (?=run )"), ""),
    (re.compile(r", (?:and|then) restart the kernel\b"), ""),
    (re.compile(r"read the folded log: it has all that uv said"), "read above all that uv said"),
    (re.compile(r"with the folded text\b"), "with the text above"),
)  # fmt: skip


def for_terminal(text: str) -> str:
    for pattern, replacement in _IN_A_TERMINAL:
        text = pattern.sub(replacement, text)
    return text


def colored(text: str, code: str, stream: TextIO) -> str:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


@contextlib.contextmanager
def listening(words: Words) -> Iterator[OnEvent]:
    """Lend a listener that tells on stderr what goes on: drawn, in lines, or as JSON."""
    from torchenv_magic.terminal import told

    with told(as_json=words.json, say=for_terminal) as on_event:
        yield on_event
