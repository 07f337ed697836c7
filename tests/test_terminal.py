"""What a terminal, a log and a program are told of an install."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin import StandIn
from tests.targets import make_environment
from torchenv_magic.installation.progress import Bytes, Event
from torchenv_magic.serialization import from_json
from torchenv_magic.terminal import JsonLines, PlainLines, Screen

MB = 1_000_000


def download(done: int, **more: object) -> Event:
    """Return how far a download of 1 GB is."""
    torch = ("torch", done // 2, 500 * MB)
    numbers = {"per_second": 20.0 * MB, "packages": (torch, ("triton", done // 5, 200 * MB))}
    progress = Bytes(done=done, total=1000 * MB, **{**numbers, **more})  # type: ignore[arg-type]
    return Event(phase="download", bytes=progress, count=(3, 14))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------------------------ for programs


def test_each_line_is_an_event_that_can_be_read_back() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    events = [
        Event(phase="resolve", message="Asking…"),
        Event(phase="resolve", log="Resolved 3 packages"),
        download(5 * MB),
        Event(phase="link", count=(1, 3)),
        Event(phase="done", message="Installed"),
    ]
    for event in events:
        lines(event)
    text = stream.getvalue()
    assert text.isascii()
    objects = [json.loads(line) for line in text.splitlines()]
    assert [set(found) for found in objects] == [{"event"}] * len(events)
    assert [from_json(Event, found["event"]) for found in objects] == events


def test_numbers_alone_are_told_twice_a_second_and_words_always() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = JsonLines(stream, clock=clock)
    for step in range(100):
        clock.now = step / 20
        lines(download(step * MB))
    assert 8 <= len(stream.getvalue().splitlines()) <= 11
    before = len(stream.getvalue().splitlines())
    lines(Event(phase="download", message="No data for 20 s"))
    lines(Event(phase="download", log="a word of uv's"))
    lines(Event(phase="unpack", count=(1, 14)))
    assert len(stream.getvalue().splitlines()) == before + 3


# --------------------------------------------------------------------------------------- for a log


def test_a_log_gets_each_sentence_once_and_a_line_each_tenth() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, clock=clock)
    lines(Event(phase="download", message="Downloading"))
    lines(Event(phase="download", message="Downloading"))
    for second in range(101):
        clock.now = float(second)
        lines(download(second * 10 * MB))
    lines(Event(phase="download", message="Downloaded 1.0 GB", bytes=download(1000 * MB).bytes))
    told = stream.getvalue().splitlines()
    assert told[0] == "Downloading"
    assert told[-1] == "Downloaded 1.0 GB"
    assert len(told) == 12
    assert told[1] == "  100.0 MB of 1.0 GB · 20.0 MB/s · about 45 s left"


def test_a_slow_download_still_says_every_half_minute_that_it_goes_on() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, clock=clock)
    for second in range(100):
        clock.now = float(second)
        lines(download(second * MB // 10))
    assert len(stream.getvalue().splitlines()) == 3


def test_a_short_download_takes_no_ten_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainLines(stream, clock=clock)
    for step in range(20):
        clock.now = step / 20
        lines(download(step * 50 * MB))
    assert stream.getvalue() == ""


# ---------------------------------------------------------------------------------- for a terminal


class Terminal(io.StringIO):
    """A stream that says of itself that a person looks at it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[120, 40])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return int(request.param)


def drawn(screen: Screen) -> list[str]:
    """Return the lines at the bottom of the terminal, as they would be drawn now."""
    with screen._console.capture() as capture:
        screen._console.print(screen._frame())
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get()).rstrip().splitlines()


def test_a_download_has_a_bar_for_the_total_and_one_for_each_large_wheel(width: int) -> None:
    with Screen(Terminal()) as screen:
        screen(Event(phase="download", message="Downloading from the index"))
        screen(download(400 * MB))
        lines = drawn(screen)
    text = "\n".join(lines)
    assert all(len(line.rstrip()) <= width for line in lines)
    for words in ("total", "torch", "triton", "400.0 MB of 1.0 GB", "20.0 MB/s", "30 s left"):
        assert words in text
    assert "3 of 14 packages ready" in text


def test_what_is_done_leaves_a_line_and_what_failed_none() -> None:
    stream, clock = Terminal(), Clock()
    with Screen(stream, clock=clock) as screen:
        screen(Event(phase="download", message="Downloading from the index"))
        screen(download(400 * MB))
        remark = "No data for 20 s; uv tries again after 30 s without any"
        screen(Event(phase="download", message=remark, bytes=download(400 * MB).bytes))
        clock.now = 31.0
        screen(
            Event(phase="download", message="Downloaded 1.0 GB", bytes=download(1000 * MB).bytes)
        )
        screen(Event(phase="unpack", message="Unpacking"))
        screen(Event(phase="verify", message="Verifying"))
    told = [line.strip() for line in plain(stream.getvalue()).splitlines()]
    assert f"! {remark}" in told
    assert "✓ Downloaded 1.0 GB in 31 s" in told
    assert "✓ Unpacking" in told
    assert not [line for line in told if line.startswith("✓ Verifying")]
    stream = Terminal()
    with contextlib.suppress(ZeroDivisionError), Screen(stream) as screen:
        screen(Event(phase="download", message="Downloading from the index"))
        raise ZeroDivisionError
    assert "✓" not in stream.getvalue()


def test_of_a_wait_stays_that_there_was_one() -> None:
    stream, clock = Terminal(), Clock()
    with Screen(stream, clock=clock) as screen:
        for text in ("ann's install: Downloading", "ann's install: Checking"):
            screen(Event(phase="wait", message=text, bytes=download(400 * MB).bytes))
            assert text in " ".join(drawn(screen))
        clock.now = 12.0
        screen(Event(phase="resolve", message="Asking the index"))
    told = [line.strip() for line in plain(stream.getvalue()).splitlines()]
    assert [line for line in told if line.startswith(("✓", "!"))] == [
        "✓ Waited for another install in 12 s",
        "✓ Asking the index",
    ]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def test_without_colours_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with Screen(stream) as screen:
        screen(Event(phase="download", message="Downloading"))
        screen(download(400 * MB))
        screen(Event(phase="unpack", message="Unpacking"))
    assert "Downloading" in stream.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[;m]", stream.getvalue())


# ------------------------------------------------------------------------------- the real command


@pytest.fixture
def command(fresh_standin: StandIn, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """Return what installs into a fresh environment, and with which variables."""
    settings = fresh_standin.environment(tmp_path / "cache", hermetic=True)
    variables = {**settings.apply(os.environ), "TERM": "xterm-256color"}
    target = make_environment(tmp_path / "target")
    program = [sys.executable, "-m", "torchenv_magic", "install", "cpu", "--python", str(target)]
    return program, variables


def test_with_json_each_line_of_stderr_is_an_object_and_stdout_is_one_document(
    command: tuple[list[str], dict[str, str]],
) -> None:
    program, variables = command
    done = subprocess.run(
        [*program, "--json"],
        env=variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"result", "verification"}
    events = [from_json(Event, json.loads(line)["event"]) for line in done.stderr.splitlines()]
    seen = list(dict.fromkeys(event.phase for event in events))
    assert seen == [
        "resolve", "download", "unpack", "link", "switch", "check", "done", "verify",
    ]  # fmt: skip


def test_with_json_the_error_is_the_last_line_of_stderr(
    command: tuple[list[str], dict[str, str]], fresh_standin: StandIn
) -> None:
    program, variables = command
    fresh_standin.down = True
    done = subprocess.run(
        [*program, "--json"],
        env={**variables, "UV_HTTP_RETRIES": "0"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    *events, error = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(set(event) == {"event"} for event in events)
    assert error == json.loads(done.stdout)


if sys.platform != "win32":
    import pty

    def on_terminal(
        program: list[str], variables: dict[str, str]
    ) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """Run it on a pseudo-terminal; yield all that it has said, as often as that grows."""
        master, slave = pty.openpty()
        process = subprocess.Popen(
            program, env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        said = b""
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                if not select.select([master], [], [], 1)[0]:
                    continue
                try:
                    chunk = os.read(master, 65536)
                except OSError:
                    break
                if not chunk:
                    break
                said += chunk
                yield process, said.decode("utf-8", errors="replace")
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            os.close(master)

    def test_an_interrupt_leaves_a_clean_terminal(
        command: tuple[list[str], dict[str, str]], fresh_standin: StandIn
    ) -> None:
        program, variables = command
        fresh_standin.rate = 60_000
        sent = False
        text = ""
        for process, text in on_terminal(program, variables):
            if not sent and "total" in text:
                os.killpg(process.pid, signal.SIGINT)
                sent = True
        assert sent
        assert process.returncode == 1
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 1
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
        end = plain(text.rpartition("\x1b[?25h")[2]).strip()
        assert end.startswith("error: Cancelled; the environment is as it was")

    @pytest.mark.parametrize("kind", ["dumb", "xterm-color"], ids=["dumb", "a notebook's !"])
    def test_a_terminal_that_can_draw_nothing_gets_lines(
        command: tuple[list[str], dict[str, str]], kind: str
    ) -> None:
        program, variables = command
        *_, (_, text) = on_terminal(program, {**variables, "TERM": kind})
        assert "Downloading from the PyTorch index" in text
        # Colours are read in a cell too; a cursor that moves is not.
        assert not re.search(r"\x1b(?!\[[0-9;]*m)", text)


def test_who_is_no_terminal_needs_no_rich(tmp_path: Path) -> None:
    program = (
        "import sys, torchenv_magic.cli as cli\n"
        f"cli.main(['install', 'cpu', '--python', {str(tmp_path / 'none')!r}])\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'rich'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip().endswith("[]")
