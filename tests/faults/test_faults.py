"""A sample of the campaign, the checker that judges it, and the page that all of it has written."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.arena import Arena, Bench
from tests.faults.campaign import Fault, carry_out, told
from tests.faults.catalog import all_faults
from tests.faults.report import PAGE, groups, rows_of

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the campaign looks at processes by /proc, and mounts disks"
)

SHORT = tuple(fault for fault in all_faults() if fault.short)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, project_wheel: Path) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena") / "arena"
    with Arena(folder, project_wheel=project_wheel) as arena:
        yield arena


@pytest.fixture
def bench(arena: Arena) -> Iterator[Bench]:
    arena.reset()
    with arena.bench() as bench:
        yield bench


# ------------------------------------------------------------------------------------- the campaign


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
def test_an_install_that_is_hurt_leaves_the_old_or_the_new_and_says_which(
    arena: Arena, fault: Fault
) -> None:
    outcome = carry_out(arena, fault)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.problems == (), outcome.everything


def test_a_campaign_has_two_hundred_faults_and_twenty_points_for_each_signal() -> None:
    faults = all_faults()
    names = [fault.name for fault in faults]
    assert len(names) == len(set(names)) >= 200
    for signal in ("SIGINT", "SIGTERM", "SIGKILL"):
        struck = {fault.detail for fault in faults if fault.title.startswith(signal)}
        assert len(struck) >= 20


def test_the_page_was_written_by_this_campaign() -> None:
    assert rows_of(PAGE.read_text(encoding="utf-8")) == groups(all_faults()), (
        "run `python -m tests.faults --write`"
    )


def test_the_page_names_no_third_environment() -> None:
    assert "## Not as it has to be" not in PAGE.read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------- the checker


def judged(bench: Bench) -> str:
    return str(bench.switch.judge.judge(bench.prefix))


def test_an_environment_that_nobody_touched_is_the_old_one(bench: Bench) -> None:
    assert judged(bench) == "old"


def test_an_environment_without_one_of_its_files_is_a_third(bench: Bench) -> None:
    (bench.site / "torch/include/part7/header7.h").unlink()
    assert judged(bench).startswith("third (torch: 1 of ")


def test_an_environment_with_a_file_that_was_changed_is_a_third(bench: Bench) -> None:
    path = bench.site / "torch/version.py"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    path.write_text(text.replace("2.13.0", "2.12.0"), encoding="utf-8")
    assert "torch/version.py has another content" in judged(bench)


def test_an_environment_with_a_file_of_nobody_is_a_third(bench: Bench) -> None:
    (bench.site / "torch/left-over.py").touch()
    assert "1 files of nobody, as torch/left-over.py" in judged(bench)


def test_an_environment_that_lost_a_file_of_the_person_is_a_third(bench: Bench) -> None:
    (bench.site / "torch/notes.txt").unlink()
    assert "notes.txt of the person's is lost" in judged(bench)


def test_an_environment_with_two_torches_is_a_third(bench: Bench, arena: Arena) -> None:
    other = arena.switch("terminal", "cpu").template
    name = "torch-2.13.0+cu126.dist-info"
    shutil.copytree(next(other.rglob(name)), bench.site / name)
    assert "torch is there twice" in judged(bench)


def test_an_environment_of_both_builds_is_a_third(bench: Bench, arena: Arena) -> None:
    other = arena.switch("terminal", "cpu").template
    for name in ("torchvision", "torchvision-0.28.0+cpu.dist-info"):
        shutil.rmtree(bench.site / name)
    for name in ("torchvision", "torchvision-0.28.0+cu126.dist-info"):
        shutil.copytree(next(other.rglob(name)), bench.site / name)
    assert "neither the old packages nor the new" in judged(bench)


def test_an_environment_that_does_not_import_is_a_third(bench: Bench) -> None:
    # What RECORD does not know, and Python reads before anything else.
    (bench.site / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    judge = bench.switch.judge
    known = judge.base | {f"lib/{bench.site.parent.name}/site-packages/sitecustomize.py"}
    state = type(judge)(old=judge.old, new=judge.new, base=known, own=judge.own).judge(bench.prefix)
    assert state.reasons[0].startswith("does not import: ")


def test_an_environment_that_was_deleted_is_gone(bench: Bench) -> None:
    shutil.rmtree(bench.prefix)
    assert judged(bench) == "gone"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cancelled; the environment is as it was", {"old"}),
        ("installed    torch 2.13.0+cpu", {"old"}),
        ("installed    torch 2.13.0+cu126 — no NVIDIA GPU here", {"new"}),
        ("Installed torch 2.13.0+cu126 and 2 other packages in 0.3 s", {"new"}),
        ("The last install was interrupted; the packages that it replaced are back.", {"old"}),
        ("The last install was interrupted when all its files were there; it stands.", {"new"}),
        ("installed    torch 2.13.0+cpu\nrepaired     …; it stands.", {"old", "new"}),
        ("uv ended with status 2", set()),
    ],
)
def test_a_text_is_read_for_what_it_says_of_the_environment(text: str, expected: set[str]) -> None:
    assert told(text, "2.13.0+cpu", "2.13.0+cu126") == expected


def test_what_is_as_it_was_after_an_undo_is_the_new() -> None:
    text = "Cancelled; the environment is as it was"
    assert told(text, "2.13.0+cpu", "2.13.0+cu126", undo=True) == {"new"}
