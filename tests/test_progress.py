"""Progress: uv's real frames, as a pseudo-terminal gave them, and a throttled install."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.standin import StandIn
from tests.targets import Target, phases
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.progress import BarReader, Bytes, Event, format_bytes, guarded

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
    cold_target.standin.rate = 2_000_000
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
