"""Going back to what was there before an install, and back again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.standin import TORCH, make_wheel
from tests.targets import Target, make_dependent, settle
from torchenv_magic.errors import ConsentError, DiskSpaceError, InstallCancelled, InstallError
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation import install
from torchenv_magic.installation import kept as kept_module
from torchenv_magic.installation.history import read_entries
from torchenv_magic.installation.install import Result, install_plan, recover_environment
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.undo import read_history, read_undo, undo_install
from torchenv_magic.installation.uv import Cancellation

pytest_plugins = ["tests.target_fixtures"]

POSIX = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
FAMILY = ("torch", "torchvision")
PROJECT = Path(__file__).resolve().parents[1]


def undo(target: Target, **options: object) -> Result:
    return undo_install(target.read(), **options)  # type: ignore[arg-type]


def files(target: Target) -> dict[str, object]:
    """Return what is in the environment, without what is known or kept of its installs."""
    return {n: v for n, v in target.snapshot().items() if not n.startswith(".torchenv/")
            and ".torchenv-kept-" not in n}  # fmt: skip


def kept(target: Target) -> list[Path]:
    settle()
    return list(target.site.glob(".torchenv-*"))


def test_back_and_forth_without_a_network_to_the_very_same_files(target: Target) -> None:
    target.fill("cu130", *FAMILY)
    target.uv("sympy")
    (target.site / "torch" / "mine.txt").write_text("mine", encoding="utf-8")
    wish = read_expectation(target.prefix)
    old = files(target)
    target.install("cpu")
    new = files(target)
    target.standin.clear_log()
    target.standin.down = True
    events: list[Event] = []
    result = undo(target, on_event=events.append)
    assert files(target) == old
    assert target.imported(*FAMILY) == f"{TORCH}+cu130"
    assert read_expectation(target.prefix) == wish == result.expectation
    assert str(result).startswith("Undone in ")
    assert f"torch {TORCH}+cu130 and " in str(result)
    assert "torch" in result.changed
    assert [event.phase for event in events] == ["switch", "done"]
    # An undo can be undone, and that as well.
    undo(target)
    assert files(target) == new
    assert target.imported(*FAMILY) == f"{TORCH}+cpu"
    undo(target)
    assert files(target) == old
    assert target.standin.requests == ()
    assert len(kept(target)) == 1


def test_undoing_the_first_install_takes_away_what_it_brought(target: Target) -> None:
    target.uv("filelock")
    before = files(target)
    target.install("cpu", *FAMILY)
    assert kept(target) == []
    assert str(read_undo(target.read())).startswith(f"`%torchenv undo` takes torch {TORCH}+cpu and")
    result = undo(target)
    assert files(target) == before
    assert result.expectation is None
    assert read_expectation(target.prefix) is None
    assert str(result).endswith("gone again")
    undo(target)
    assert target.imported(*FAMILY) == f"{TORCH}+cpu"


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_what_another_installer_brought_comes_back(target: Target, installer: str) -> None:
    if installer == "uv":
        target.uv("--torch-backend=cu126", "torch==2.12.0", "torchvision")
    else:
        target.fill("cu126", "torch==2.12.0", "torchvision")
        info = next(target.site.glob("torch-*.dist-info"))
        # pip compiles, and lists what it compiled.
        subprocess.run([target.python, "-m", "compileall", "-q", target.site / "torch"], check=True)
        rows = (info / "RECORD").read_text(encoding="utf-8")
        (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
        tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        (info / "RECORD").write_text(f"{rows}torch/__pycache__/version.{tag}.pyc,,\n"
                                     f"torch/__pycache__/gone.{tag}.pyc,,\n")  # fmt: skip
    old = files(target)
    target.install("cpu", f"torch=={TORCH}")
    undo(target)
    assert files(target) == old
    assert target.imported(*FAMILY) == "2.12.0+cu126"


def test_the_next_install_lets_go_of_what_the_last_kept(target: Target) -> None:
    target.fill("cu130")
    target.install("cpu")
    [first] = kept(target)
    target.install("cu126")
    [second] = kept(target)
    assert second != first
    undo(target)
    assert target.backend() == "cpu"


def test_a_failed_install_leaves_the_last_one_undoable(target: Target) -> None:
    target.fill("cu130")
    target.install("cpu")
    plan, cancellation = target.plan("cu126"), Cancellation()
    with pytest.raises(InstallCancelled):
        install_plan(
            plan,
            on_event=lambda event: cancellation.cancel() if event.phase == "check" else None,
            cancellation=cancellation,
        )
    undo(target)
    assert target.backend() == "cu130"


def test_uv_and_pip_go_on_as_if_nothing_had_been(target: Target) -> None:
    target.fill("cu130", *FAMILY)
    target.install("cpu")
    undo(target)
    listed = target.versions()
    target.uv("--torch-backend=cu126", "--reinstall", *FAMILY, "filelock")
    assert target.imported(*FAMILY) == f"{TORCH}+cu126"
    assert target.versions().keys() >= listed.keys()


# -------------------------------------------------------------------------------- when it can't be


def test_nothing_to_undo_is_one_sentence(target: Target) -> None:
    with pytest.raises(InstallError, match="There is nothing to undo") as caught:
        undo(target)
    assert "history" in caught.value.hint
    assert read_undo(target.read()) is None


def test_what_was_replaced_since_is_named_and_left_alone(target: Target) -> None:
    target.fill("cu130", *FAMILY)
    target.install("cpu")
    target.uv("--torch-backend=cu126", "torch==2.12.0", "torchvision==0.27.0")
    before = files(target)
    with pytest.raises(InstallError, match=r"as 2\.12\.0\+cu126") as caught:
        undo(target)
    assert f"`%torchenv install cu130 torch=={TORCH} torchvision==" in caught.value.hint
    assert files(target) == before


def test_what_was_removed_or_came_back_since_is_named(target: Target) -> None:
    target.fill("cu130")
    target.install("cpu")
    if "triton" in {change.name for change in read_entries(target.prefix)[-1].changes}:
        target.uv("--no-deps", "--torch-backend=cu130", "triton")
        with pytest.raises(InstallError, match=r"triton .* was installed since"):
            undo(target)
    shutil.rmtree(next(target.site.glob("torch-*.dist-info")))
    with pytest.raises(InstallError, match="torch was removed since"):
        undo(target)


def test_what_needs_the_newer_build_is_asked_for(target: Target, tmp_path: Path) -> None:
    target.fill("cu126", "torch==2.12.0")
    target.install("cu126", f"torch=={TORCH}")
    target.uv("--no-deps", str(make_dependent(tmp_path, torch=TORCH)))
    with pytest.raises(ConsentError, match=rf"needs212 1\.0 requires torch=={TORCH}") as caught:
        undo(target)
    assert "--yes" in caught.value.hint
    assert target.versions()["torch"] == f"{TORCH}+cu126"
    undo(target, consent=True)
    assert target.versions()["torch"] == "2.12.0+cu126"


def test_what_needs_a_package_that_would_go_is_asked_for(target: Target, tmp_path: Path) -> None:
    target.install("cpu", "torch", "sympy")
    target.uv("--no-deps", str(make_wheel(tmp_path, "symbols", "1", requires=["sympy>1"])))
    with pytest.raises(ConsentError, match="symbols 1 requires sympy>1"):
        undo(target)


def test_what_was_not_whole_is_not_kept(target: Target) -> None:
    target.fill("cu130")
    (next(target.site.glob("torch-*.dist-info")) / "RECORD").unlink()
    target.install("cpu")
    assert kept(target) == []
    with pytest.raises(InstallError, match="what it replaced was not whole") as caught:
        undo(target)
    assert f"install cu130 torch=={TORCH}" in caught.value.hint


def test_what_was_kept_and_deleted_by_hand_is_said(target: Target) -> None:
    target.fill("cu130")
    target.install("cpu")
    [folder] = kept(target)
    shutil.rmtree(folder)
    with pytest.raises(InstallError, match="no longer there"):
        undo(target)
    assert target.imported() == f"{TORCH}+cpu"


def test_what_was_kept_and_has_lost_its_code_is_said(target: Target) -> None:
    target.fill("cu130")
    target.install("cpu")
    [folder] = kept(target)
    next(folder.rglob("torch/version.py")).unlink()
    with pytest.raises(InstallError, match="no longer whole") as caught:
        undo(target)
    assert "%torchenv install cu130" in caught.value.hint
    assert target.imported() == f"{TORCH}+cpu"


def test_an_undo_that_brings_what_can_not_be_imported_is_put_back(target: Target) -> None:
    target.fill("cu130")
    target.install("cpu")
    [folder] = kept(target)
    file = next(folder.rglob("torch/__init__.py"))
    file.unlink()  # it is uv's link
    file.write_text("raise ImportError('broken')", encoding="utf-8")
    with pytest.raises(InstallError, match="can't be imported: ImportError: broken"):
        undo(target)
    assert target.imported() == f"{TORCH}+cpu"


def test_on_a_full_disk_only_what_costs_nothing_is_kept(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fill("cu130")
    usage = SimpleNamespace(total=10**6, free=50_000)
    monkeypatch.setattr(kept_module, "shutil", SimpleNamespace(disk_usage=lambda _: usage))
    # uv's links cost nothing.
    target.install("cpu")
    assert len(kept(target)) == 1
    (target.site / "torch" / "mine.bin").write_bytes(b"x" * 100_000)
    target.install("cu126")
    assert kept(target) == []
    with pytest.raises(InstallError, match="the disk is nearly full"):
        undo(target)
    assert (target.site / "torch" / "mine.bin").exists()


def test_what_was_kept_gives_its_room_to_the_next_install(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fill("cu130")
    copied = target.site / "torch" / "version.py"
    copied.unlink()  # it is uv's link
    copied.touch()
    os.truncate(copied, 30_000_000)
    target.install("cpu")
    assert len(kept(target)) == 1
    asked: list[bool] = []

    def check(*_: object, **__: object) -> None:
        asked.append(bool(kept(target)))
        if asked[-1]:
            raise DiskSpaceError("There is too little space", hint="free some")

    monkeypatch.setattr(install, "check_space", check)
    plan = target.plan("cu126")
    install_plan(plan)
    assert asked == [True, False]
    assert target.backend() == "cu126"


def test_hostile_words_about_what_is_kept_touch_nothing(target: Target, tmp_path: Path) -> None:
    target.fill("cu130")
    target.install("cpu")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious", encoding="utf-8")
    file = target.prefix / ".torchenv" / "undo.json"
    honest = json.loads(file.read_text(encoding="utf-8"))
    before = files(target)
    contents = [
        *({**honest, "folder": name} for name in ("..", "/", "torch", str(victim), "../../victim")),
        {**honest, "entry": {**honest["entry"], "command": "\x1b[2J"}},
        {**honest, "schema": 99},
        [],
    ]
    for content in contents:
        file.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(InstallError):
            undo(target)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").write_text(json.dumps(honest), encoding="utf-8")
    with pytest.raises(InstallError, match="nothing to undo"):
        undo(target)
    file.unlink()
    assert files(target) == before
    assert (victim / "precious").read_text(encoding="utf-8") == "precious"
    assert len(kept(target)) == 1
    file.write_text(json.dumps(honest), encoding="utf-8")
    undo(target)
    assert target.backend() == "cu130"


# ------------------------------------------------------------------------------------------ killed


def die(target: Target, step: int) -> bool:
    """Undo in a process that kills itself at a step; return whether it did."""
    file = target.prefix.with_name("environment.pickle")
    file.write_bytes(pickle.dumps(target.read()))
    command = [sys.executable, "-m", "tests.killed_install", str(file), str(step)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@POSIX
def test_an_undo_killed_at_any_step_is_done_or_was_never(target: Target) -> None:
    target.fill("cpu", "torch==2.12.0")
    target.install("cpu", f"torch=={TORCH}")
    (target.site / "torch" / "mine.txt").write_text("mine", encoding="utf-8")
    states = {target.versions()["torch"]: files(target)}
    undo(target)
    states[target.versions()["torch"]] = files(target)
    step, here = 0, target.versions()["torch"]
    outcomes = set()
    while die(target, step):
        recover_environment(target.read())
        now = target.versions()["torch"]
        assert files(target) == states[now]
        assert len(kept(target)) == 1
        outcomes.add(now != here)
        here = now
        step += 1
    assert step >= 14
    assert outcomes == {True, False}
    assert len(kept(target)) == 1
    assert target.imported() == target.versions()["torch"]
    endings = {entry.outcome for entry in read_entries(target.prefix)}
    assert endings == {"installed", "undone", "recovered-forward", "recovered-back"}


# ------------------------------------------------------------------------------------------ history


def test_the_history_says_who_did_what_when_by_which_line(target: Target) -> None:
    assert str(read_history(target.read())).startswith("Nothing was installed into ")
    install_plan(target.plan("cu126"), command="%torchenv install cu126")
    install_plan(target.plan("cpu"), command="torchenv install cpu --index-base https://a:b@m/w")
    undo(target, command="%torchenv undo")
    history = read_history(target.read())
    assert [entry.outcome for entry in history.entries] == ["undone", "installed", "installed"]
    assert [entry.backend for entry in history.entries] == ["cu126", "cpu", "cu126"]
    assert history.entries[1].command == "torchenv install cpu --index-base https://m/w"
    assert all(entry.seconds and entry.user for entry in history.entries)
    text = str(history)
    assert f"installed torch {TORCH}+cpu" in text
    assert text.endswith(f"`%torchenv undo` goes back to torch {TORCH}+cpu.")
    assert "a:b" not in (target.prefix / ".torchenv" / "history.jsonl").read_text(encoding="utf-8")


def test_the_history_keeps_what_it_does_not_understand(target: Target) -> None:
    target.fill("cpu", "torch")
    path = target.prefix / ".torchenv" / "history.jsonl"
    newer = '{"id": "newer", "form": 9}\n'
    path.write_text(newer + path.read_text(encoding="utf-8"), encoding="utf-8")
    undo(target)
    assert path.read_text(encoding="utf-8").startswith(newer)
    assert [entry.outcome for entry in read_entries(target.prefix)] == ["installed", "undone"]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_history_that_can_not_be_read_is_left_as_it_is(target: Target) -> None:
    target.fill("cpu", "torch")
    path = target.prefix / ".torchenv" / "history.jsonl"
    elsewhere = path.rename(path.with_name("elsewhere"))
    before = elsewhere.read_bytes()
    path.symlink_to(elsewhere)
    undo(target)
    assert path.is_symlink()
    assert elsewhere.read_bytes() == before


def test_what_killed_writers_had_begun_is_swept_away(target: Target) -> None:
    target.fill("cpu", "torch")
    state = target.prefix / ".torchenv"
    for name in ("journal.json.0123abcd", "progress.json.89abcdef", "mine.txt"):
        (state / name).write_text("begun", encoding="utf-8")
    os.utime(state / "journal.json.0123abcd", (0, 0))
    undo(target)
    left = {path.name for path in state.iterdir()}
    assert "journal.json.0123abcd" not in left
    assert left >= {"progress.json.89abcdef", "mine.txt"}  # one may still be being written


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_what_is_known_of_installs_is_for_its_owner_only(target: Target) -> None:
    target.fill("cpu", "torch")
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (target.prefix / ".torchenv").iterdir()
    }
    assert modes.pop("expectation.json") & 0o077 == 0o044
    assert set(modes.values()) == {0o600}
    assert modes.keys() == {"history.jsonl", "lock", "undo.json"}
