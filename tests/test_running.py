"""A running install as a page shows it: steps, bars, rows, and nothing that nobody knows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from torchenv_magic.builds.backend import Backend
from torchenv_magic.installation.plan import Change, Download, Plan, Source, SpaceNeed
from torchenv_magic.installation.progress import Bytes, Phase
from torchenv_magic.notebook.rendering import plan_html, progress_html, running_html
from torchenv_magic.selection import Request

MB = 1_000_000
TORCH = Download(name="torch", version="2.13.0+cu126", size_bytes=500 * MB)
PLAN = Plan(
    request=Request(requirements=("torch",)),
    backend=Backend.parse("cu126"),
    reason="asked for",
    python=Path("python"),
    prefix=Path("environment"),
    source=Source(kind="index", location="https://download.pytorch.org/whl/cu126"),
    changes=(Change(name="torch", action="install", after="2.13.0+cu126"),),
    downloads=(TORCH,),
)


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("</style>")[2] or html).split())


def steps(plan: Plan | None, phase: Phase) -> list[str]:
    html = running_html("At work", phase=phase, plan=plan)
    return [words(item) for item in re.findall(r"<li.*?</li>", html)]


@pytest.mark.parametrize(
    ("downloads", "phase", "shown"),
    [
        ((TORCH,), "download", ["Download", "Unpack", "Link", "Switch", "Check"]),
        ((TORCH,), "link", ["✓ Download", "✓ Unpack", "Link", "Switch", "Check"]),
        ((replace(TORCH, cached=True),), "link", ["Link", "Switch", "Check"]),
        ((replace(TORCH, local=True),), "switch", ["✓ Unpack", "✓ Link", "Switch", "Check"]),
        # uv's cache was emptied since the plan was made.
        ((replace(TORCH, cached=True),), "download", ["Download", "Link", "Switch", "Check"]),
    ],
)
def test_only_steps_that_the_plan_takes_are_shown_and_ticked(
    downloads: tuple[Download, ...], phase: Phase, shown: list[str]
) -> None:
    assert steps(replace(PLAN, downloads=downloads), phase) == shown


def test_a_removal_links_nothing() -> None:
    removal = Change(name="triton", action="remove", before="3.7.1")
    plan = replace(PLAN, changes=(removal,), downloads=())
    assert steps(plan, "switch") == ["Switch", "Check"]


@pytest.mark.parametrize("phase", ["resolve", "restore", "wait", "verify"])
def test_what_is_no_step_of_an_install_shows_none(phase: Phase) -> None:
    assert steps(PLAN, phase) == []
    assert steps(None, "download") == []


def test_the_step_now_is_marked_for_who_hears_it() -> None:
    html = running_html("At work", phase="link", plan=PLAN)
    (now,) = re.findall(r"<li aria-current='step'>(.*?)</li>", html)
    assert words(now) == "Link"


def test_each_large_wheel_has_a_row_and_the_total_a_bar() -> None:
    rows = (("torch", 300 * MB, 500 * MB), ("cudnn", 60 * MB, 200 * MB), ("tiny", 1, 1000))
    progress = Bytes(done=400 * MB, total=800 * MB, per_second=20.0 * MB, packages=rows)
    html = running_html("Downloading", progress=progress, count=(3, 14), phase="download")
    text = words(html)
    assert "400.0 MB of 800.0 MB · 20.0 MB/s · about 20 s left · 3 of 14 packages ready" in text
    assert "torch 300.0 MB of 500.0 MB" in text
    assert "cudnn 60.0 MB of 200.0 MB" in text
    assert "tiny" not in text
    assert html.count("<progress") == 1
    assert "value='50.0'" in html


def test_the_numbers_are_not_said_at_each_redraw() -> None:
    progress = Bytes(done=1, total=2, per_second=None)
    (said,) = re.findall(r"role='status'>(.*?)</p>", running_html("Downloading", progress=progress))
    assert said == "Downloading"


def test_what_is_counted_has_a_bar_without_a_byte() -> None:
    html = running_html("Linking", count=(3, 14), phase="link", plan=PLAN)
    assert "3 of 14 packages" in words(html)
    assert "aria-label='Packages'" in html
    assert " B" not in words(html)


def test_names_from_outside_are_escaped() -> None:
    rows = (("<b>x</b>", 30 * MB, 500 * MB), ("y", 30 * MB, 400 * MB))
    progress = Bytes(done=60 * MB, total=900 * MB, per_second=None, packages=rows)
    html = progress_html("<i>&", progress, ["<u>"])
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<u>" not in html


def test_a_plan_says_what_does_not_fit_and_what_is_copied() -> None:
    lacking = SpaceNeed(
        place=Path("cache"), need_bytes=900 * MB, free_bytes=5 * MB, reason="uv's cache"
    )
    copied = SpaceNeed(
        place=Path("environment"),
        need_bytes=900 * MB,
        free_bytes=2000 * MB,
        reason="the environment",
        copied_bytes=900 * MB,
        copied_because="The cache of uv is on another disk",
    )
    plan = replace(PLAN, space=(lacking, copied))
    short = (
        "Too little space: about 900.0 MB are needed on the disk of `cache` (uv's cache), "
        "5.0 MB are free"
    )
    slow = (
        "The cache of uv is on another disk: about 900.0 MB are copied, not linked, which takes "
        "longer and the space once more"
    )
    sentences = (short, slow)
    assert plan.space_notes == sentences
    assert all(sentence in str(plan) for sentence in sentences)
    assert "Too little space" in words(plan_html(plan))
    fitting = replace(copied, copied_bytes=0)
    assert replace(PLAN, space=(fitting,)).space_notes == ()
