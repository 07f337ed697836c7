"""Progress: uv's real frames, as a pseudo-terminal gave them, and a throttled install."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.standin import Fault, StandIn
from tests.targets import Target, phases
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.narrator import Narrator, Silence, http_timeout
from torchenv_magic.installation.progress import BarReader, Bytes, Event, format_bytes, guarded
from torchenv_magic.installation.staging import stage
from torchenv_magic.installation.uv import Cancellation, find_uv
from torchenv_magic.serialization import from_json, to_json

pytest_plugins = ["tests.target_fixtures"]

DATA = Path(__file__).with_name("data") / "uv"
TORCH_BYTES = 1_503_457
"""What the recorded torch wheel weighs; uv's bars say it to two digits after the point."""


class Recording:
    """What uv drew, and when; it is its own clock."""

    def __init__(self, name: str) -> None:
        lines = (DATA / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t", 1) for line in lines if not line.startswith("#")]
        self.frames = [(float(seconds), str(json.loads(text))) for seconds, text in rows]
        self.now = 0.0

    def played(self, reader: BarReader) -> Iterator[Bytes]:
        for seconds, text in self.frames:
            self.now = seconds
            if (progress := reader.feed(text)) is not None:
                yield progress

    def clock(self) -> float:
        return self.now


def test_a_recorded_download_only_grows_and_ends_at_its_total() -> None:
    recording = Recording("bars.txt")
    reader = BarReader(clock=recording.clock)
    seen = list(recording.played(reader))
    assert [b.done for b in seen] == sorted(b.done for b in seen)
    assert [b.total for b in seen] == sorted(b.total for b in seen)
    assert seen[-1].total == pytest.approx(TORCH_BYTES + 166_144 + 5_000, rel=0.01)
    end = reader.finish()
    assert end is not None
    assert end.done == end.total == seen[-1].total
    assert end.packages == ()


def test_the_total_is_the_sum_of_the_bars() -> None:
    recording = Recording("bars.txt")
    reader = BarReader(clock=recording.clock)
    for progress in recording.played(reader):
        drawn = {name: (done, total) for name, done, total in progress.packages}
        finished = progress.total - sum(total for _, total in drawn.values())
        assert progress.done == finished + sum(done for done, _ in drawn.values())


def test_the_total_stands_from_the_first_frame_where_the_sizes_are_known() -> None:
    recording = Recording("bars.txt")
    sizes = {"torch": TORCH_BYTES, "typing-extensions": 166_144, "never-drawn": 900}
    others = ("numpy", "pillow", "filelock", "torchaudio", "torchvision", "triton")
    reader = BarReader(expected={**sizes, **dict.fromkeys(others, 1_000)}, clock=recording.clock)
    seen = list(recording.played(reader))
    assert {progress.total for progress in seen} == {TORCH_BYTES + 166_144 + 900 + 6_000}
    end = reader.finish()
    assert end is not None
    assert end.done == end.total == seen[0].total


def test_the_rate_settles_near_that_of_the_connection_and_no_bar_is_missed() -> None:
    recording = Recording("bars.txt")
    reader = BarReader(clock=recording.clock)
    seen = list(recording.played(reader))
    rates = [progress.per_second for progress in seen if progress.per_second]
    # 500 kB/s a connection; two of them at first.
    assert 400_000 < rates[-1] < 700_000
    assert {name for progress in seen for name, _, _ in progress.packages} >= {"torch", "numpy"}
    assert "of 1.7 MB · " in str(seen[-5])
    assert "left" in str(next(progress for progress in seen if progress.per_second))


def test_a_retry_restarts_and_the_bar_of_the_broken_try_is_not_believed() -> None:
    recording = Recording("bars-retry.txt")
    reader = BarReader(expected={"torch": TORCH_BYTES}, clock=recording.clock)
    torch = [
        (next((done for name, done, _ in b.packages if name == "torch"), None), b.per_second)
        for b in recording.played(reader)
    ]
    shown = [done for done, _ in torch if done is not None]
    falls = [i for i in range(1, len(shown)) if shown[i] < shown[i - 1]]
    # uv draws the dead bar beside the new one to the end: it must not come back.
    assert len(falls) == 1
    assert shown[falls[0] - 1] == pytest.approx(TORCH_BYTES / 2, rel=0.02)
    assert shown[falls[0]] == 0
    assert shown[-1] > 0.9 * TORCH_BYTES
    after = [rate for _, rate in torch[-6:] if rate]
    assert after == pytest.approx([1_000_000] * len(after), rel=0.2)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(min_value=1, max_value=400), min_size=1), st.integers(0, 3))
def test_it_does_not_matter_how_the_text_is_cut(lengths: list[int], start: int) -> None:
    recording = Recording("bars.txt")
    text = "".join(part for _, part in recording.frames[start : start + 12])
    whole = BarReader(clock=recording.clock)
    whole.feed(text)
    pieces = BarReader(clock=recording.clock)
    place = turn = 0
    while place < len(text):
        length = lengths[turn % len(lengths)]
        pieces.feed(text[place : place + length])
        place, turn = place + length, turn + 1
    assert pieces.finish() == whole.finish()


def test_a_bar_that_nobody_drew_or_read_for_long_has_not_ended() -> None:
    """A busy machine gives uv, or who reads it, no processor for a while."""
    now = 0.0
    reader = BarReader(clock=lambda: now)
    head, bar = "Preparing packages... (0/2)", " {name} " + "-" * 30 + " {done} KiB/100 KiB"
    reader.feed(head + bar.format(name="right", done=10) + bar.format(name="left", done=40))
    now = 5.0
    assert reader.state().done == 50 * 1024
    # The frame comes in two pieces, and so does what a person is told of it.
    first = reader.feed(head + bar.format(name="right", done=20))
    assert first is not None
    assert first.done == 60 * 1024
    second = reader.feed(bar.format(name="left", done=60))
    assert second is not None
    assert second.done == 80 * 1024


def test_text_without_bars_is_no_progress() -> None:
    reader = BarReader()
    assert reader.feed("Resolved 3 packages in 12ms\r\n⠙ Preparing packages... (0/3)") is None
    assert reader.feed("torch ------------------------------ 0 B/0 B") is None
    assert reader.finish() is None


def test_what_is_not_drawn_any_more_has_ended() -> None:
    now = 0.0
    reader = BarReader(clock=lambda: now)
    bar = "Preparing packages... (1/2)  {name} " + "-" * 30 + " {done} KiB/100 KiB"
    reader.feed(bar.format(name="left", done=40))
    now = 0.2
    reader.feed(bar.format(name="right", done=10))
    now = 1.0
    progress = reader.feed(bar.format(name="right", done=20))
    assert progress == Bytes(
        done=120 * 1024,
        total=200 * 1024,
        per_second=None,
        packages=(("right", 20 * 1024, 100 * 1024),),
    )


def test_a_bar_that_is_drawn_but_not_believed_has_not_ended() -> None:
    # A connection that broke at its first bytes: the old bar and the new one read alike.
    now = 0.0
    reader = BarReader(clock=lambda: now)
    bar = "{name} " + "-" * 30 + " {done} KiB/100 KiB "
    head = "Preparing packages... (0/2)  "
    reader.feed(head + bar.format(name="torch", done=1))
    now = 0.1
    twice = head + 2 * bar.format(name="torch", done=1) + bar.format(name="other", done=5)
    reader.feed(twice)
    now = 2.0
    progress = reader.feed(twice)
    assert progress is not None
    assert {name: done for name, done, _ in progress.packages} == {
        "torch": 1024,
        "other": 5 * 1024,
    }


# ------------------------------------------------------------------------------ what is told of it


class Told:
    """A narrator with a clock of its own, and what it said."""

    def __init__(self, bars: BarReader, *, silence: Silence | None = None) -> None:
        self.events: list[Event] = []
        self.narrator = Narrator(bars, self.events.append, linking="Linking", silence=silence)

    @property
    def sentences(self) -> list[tuple[str, str]]:
        return [(event.phase, event.message) for event in self.events if event.message]


def test_each_phase_that_uv_draws_is_told_once_and_in_its_order() -> None:
    recording = Recording("bars.txt")
    told = Told(BarReader(clock=recording.clock))
    told.narrator.begin("download", "Downloading")
    for seconds, text in recording.frames:
        recording.now = seconds
        told.narrator.feed(text)
    assert told.sentences == [
        ("download", "Downloading"),
        ("download", "Downloaded 1.7 MB"),
        ("unpack", "Unpacking"),
        ("link", "Linking"),
    ]
    assert phases(told.events) == ["download", "unpack", "link"]
    counts = {phase: [] for phase in ("unpack", "link")}  # type: dict[str, list[tuple[int, int]]]
    for event in told.events:
        if event.phase in counts and event.count is not None:
            counts[event.phase].append(event.count)
    assert counts["unpack"][-1] == counts["link"][-1] == (8, 8)
    for seen in counts.values():
        assert seen == sorted(set(seen))
    ends = [event.bytes for event in told.events if event.message.startswith("Downloaded")]
    assert [end.done == end.total for end in ends if end] == [True]
    assert [from_json(Event, to_json(event)) for event in told.events] == told.events


def test_a_download_that_begins_again_is_told_as_uv_draws_it() -> None:
    recording = Recording("bars-retry.txt")
    told = Told(BarReader(expected={"torch": TORCH_BYTES}, clock=recording.clock))
    told.narrator.begin("download", "Downloading")
    for seconds, text in recording.frames:
        recording.now = seconds
        told.narrator.feed(text)
    broken = ("download", "The connection broke; uv fetches torch again from its beginning")
    assert told.sentences.count(broken) == 1
    assert [phase for phase, _ in told.sentences[-3:]] == ["download", "unpack", "link"]
    assert told.sentences[-3][1].startswith("Downloaded 1.")


def test_that_files_are_linked_ends_a_download_whose_end_was_not_seen() -> None:
    """A reader that had to wait has missed the frames before it."""
    told = Told(BarReader(expected={"torch": 102_400}))
    told.narrator.begin("download", "Downloading")
    bar = " torch " + "-" * 30 + " 40 KiB/100 KiB"
    told.narrator.feed(f"Preparing packages... (0/1) {bar}")
    told.narrator.feed(f"{bar}\r" + "░" * 20 + " [0/1] Installing wheels...")
    assert [phase for phase, _ in told.sentences] == ["download", "download", "unpack", "link"]


def test_without_bars_only_whole_files_count_and_that_is_said() -> None:
    # What uv 0.13.9 says on a pipe; of small files it says nothing.
    told = Told(BarReader(expected={"torch": 3_000_000, "numpy": 2_000_000, "triton": 1_000}))
    told.narrator.begin("download", "Downloading")
    told.narrator.feed("Downloading numpy (1.9MiB)\nDownloading torch (2.9MiB)\n Downloaded nu")
    assert [event.bytes for event in told.events if event.bytes] == []
    told.narrator.feed("mpy\n")
    (progress,) = [event.bytes for event in told.events if event.bytes]
    assert str(progress) == "2.0 MB of 5.0 MB, counted file by file"
    told.narrator.feed(" Downloaded torch\nPrepared 3 packages in 2.31s\n")
    assert told.sentences[1:] == [
        ("download", "Downloaded 5.0 MB"),
        ("unpack", "Unpacking"),
        ("link", "Linking"),
    ]


def test_what_has_no_size_is_said_and_no_time_is_guessed() -> None:
    now = 0.0
    reader = BarReader(unknown=frozenset({"odd"}), clock=lambda: now)
    bar = "Preparing packages... (0/2)  torch " + "-" * 30 + " {done} KiB/1000 KiB"
    reader.feed(bar.format(done=100))
    now = 2.0
    progress = reader.feed(bar.format(done=200))
    assert str(progress) == "205 kB of 1.0 MB and 1 package of unknown size · 51 kB/s"
    end = reader.finish()
    assert end is not None
    assert end.unknown == 0


def test_a_silence_is_told_counted_and_ended() -> None:
    now = 0.0
    silence = Silence(retry_seconds=45, clock=lambda: now)
    assert silence.look(0) == (0, "")
    now = 19.9
    assert silence.look(0) == (0, "")
    now = 20.4
    begins = (20, "No data for 20 s; uv tries again after 45 s without any")
    assert silence.look(0) == begins
    now = 33.0
    assert silence.look(0) == (33, "")
    now = 47.0
    assert silence.look(10) == (0, "Downloading again, after 47 s without data")
    now = 60.0
    assert silence.look(10) == (0, "")
    # From its beginning: a new connection has spoken too.
    now = 66.0
    assert silence.look(0) == (0, "")
    now = 86.0
    assert silence.look(0)[1].startswith("No data for 20 s")


def test_uvs_own_patience_is_what_is_told() -> None:
    assert http_timeout({}) == 30
    assert http_timeout({"UV_HTTP_TIMEOUT": "90", "HTTP_TIMEOUT": "5"}) == 90
    assert http_timeout({"HTTP_TIMEOUT": "5"}) == 5
    assert http_timeout({"UV_HTTP_TIMEOUT": "soon"}) == 30


@pytest.mark.skipif(os.name == "nt", reason="bars come from a pseudo-terminal")
def test_a_stalled_download_is_told_and_so_is_its_going_on(
    cold_target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = cold_target.plan("cu126")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "2")
    monkeypatch.setenv("UV_HTTP_RETRIES", "2")
    cold_target.standin.faults = [Fault(pattern=r"torch-.*\.whl$", kind="stall", times=1)]
    events: list[Event] = []
    stage(
        plan,
        tmp_path / "stage",
        uv=find_uv(),
        on_event=events.append,
        cancellation=Cancellation(),
        silence=Silence(retry_seconds=2, after_seconds=0.8),
    )
    told = [event.message for event in events if event.phase == "download" and event.message]
    assert told[0].startswith("Downloading from the PyTorch index")
    assert told[1] == "No data for 1 s; uv tries again after 2 s without any"
    assert set(told[2:4]) == {
        "The connection broke; uv fetches torch again from its beginning",
        next(text for text in told if text.startswith("Downloading again, after ")),
    }
    assert told[-1].startswith("Downloaded 1."), told
    silent = [event.bytes for event in events if event.bytes and event.bytes.silent_seconds]
    assert all(progress.per_second is None for progress in silent)
    assert any("no data for 1 s" in str(progress) for progress in silent)
    assert (tmp_path / "stage").exists()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (191_794_682, "191.8 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_001, "1.0 GB"),
        (2_740_712_590, "2.7 GB"),
    ],
)
def test_sizes_are_in_decimal_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_a_listener_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def listen(event: Event) -> None:
        raise ZeroDivisionError(event.message)

    guarded(listen)(Event(phase="download", message="Downloading"))
    assert "a listener failed" in caplog.text
    guarded(None)(Event(phase="download"))


def test_a_listener_may_end_the_whole_thing() -> None:
    def listen(_event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(listen)(Event(phase="switch"))


@pytest.mark.skipif(os.name == "nt", reason="bars come from a pseudo-terminal")
def test_bytes_grow_while_a_throttled_install_runs(cold_target: Target) -> None:
    plan = cold_target.plan("cu126", "torch", "torchvision")
    cold_target.standin.rate = 1_000_000
    events: list[Event] = []
    install_plan(plan, on_event=events.append)
    assert phases(events) == ["download", "unpack", "link", "switch", "check", "done"]
    progress = [event.bytes for event in events if event.bytes is not None]
    assert len(progress) >= 8
    assert {b.total for b in progress} == {plan.download_bytes}
    assert [b.done for b in progress] == sorted(b.done for b in progress)
    assert progress[-1].done == plan.download_bytes
    assert any(0.2 < b.done / b.total < 0.8 for b in progress)


def test_a_listener_that_fails_during_a_download_does_not_hang_it(
    cold_target: Target, fresh_standin: StandIn
) -> None:
    plan = cold_target.plan("cu126")
    fresh_standin.rate = 3_000_000

    def listen(_event: Event) -> None:
        raise BrokenPipeError

    result = install_plan(plan, on_event=listen)
    assert "torch" in result.changed
    assert cold_target.backend() == "cu126"
