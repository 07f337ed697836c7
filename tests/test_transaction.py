"""The switch under attack: killed at every step, foreign hands, hostile journals, odd disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.standin import TORCH, make_wheel
from tests.targets import Target, make_dependent, make_environment, settle
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment, InstalledPackage, Interpreter
from torchenv_magic.errors import BusyError, DiskSpaceError, InstallError
from torchenv_magic.expectation import Expectation, read_expectation
from torchenv_magic.installation import transaction
from torchenv_magic.installation.footprint import missing_files, placements, roots
from torchenv_magic.installation.install import install_plan, recover_environment
from torchenv_magic.installation.locking import locked
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.transaction import has_left_overs, recover

pytest_plugins = ["tests.target_fixtures"]

POSIX = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
FAMILY = ("torch", "torchvision")
PROJECT = Path(__file__).resolve().parents[1]


def die(target: Target, plan: Plan, step: int) -> bool:
    """Carry out the plan in a process that kills itself at a step; return whether it did."""
    file = target.prefix.with_name("plan.pickle")
    file.write_bytes(pickle.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_install", str(file), str(step)],
        cwd=PROJECT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def journal_of(target: Target) -> Path:
    return target.prefix / ".torchenv" / "journal.json"


def clean(target: Target) -> bool:
    """Whether nothing of an interrupted install is left."""
    settle()
    left = list(target.site.glob(".torchenv-work*"))
    return not journal_of(target).exists() and not left and len(kept(target)) <= 1


def kept(target: Target) -> list[Path]:
    return list(target.site.glob(".torchenv-kept-*"))


# ------------------------------------------------------------------------------------------ killed


@POSIX
def test_killed_at_any_step_the_environment_is_the_old_or_the_new(target: Target) -> None:
    target.fill("cpu", "torch==2.12.0")
    mine = target.site / "torch" / "mine.txt"
    mine.write_text("mine", encoding="utf-8")
    plans = {"2.12.0+cpu": target.plan("cpu", f"torch=={TORCH}")}
    install_plan(plans["2.12.0+cpu"])
    here = f"{TORCH}+cpu"
    plans[here] = target.plan("cpu", "torch==2.12.0")
    outcomes, step = [], 0
    before = target.snapshot()
    while die(target, plans[here], step):
        interrupted = journal_of(target).exists()
        sentence = recover_environment(target.read())
        assert (sentence is not None) == interrupted
        now = target.versions()["torch"]
        outcomes.append(now != here)
        if now == here:
            assert target.snapshot() == before
        else:
            kept = read_expectation(target.prefix)
            assert kept is not None
            assert kept.versions == (("torch", now),)
            here, before = now, target.snapshot()
        assert clean(target)
        assert mine.read_text(encoding="utf-8") == "mine"
        assert recover_environment(target.read()) is None
        step += 1
    # It lived through the last one: every step had its turn.
    assert step >= 14
    assert True in outcomes
    assert False in outcomes
    assert target.imported() == target.versions()["torch"]
    assert clean(target)


@POSIX
@pytest.mark.parametrize("step", [4, 9, 14])
def test_what_a_person_installed_after_the_kill_is_kept(
    target: Target, tmp_path: Path, step: int
) -> None:
    target.fill("cu130", *FAMILY)
    assert die(target, target.plan("cpu"), step)
    target.uv("--no-deps", str(make_dependent(tmp_path)), "sympy")
    (target.site / "torch").mkdir(exist_ok=True)
    (target.site / "torch" / "after.txt").write_text("after", encoding="utf-8")
    assert recover_environment(target.read()) is not None
    assert target.versions()["needs212"] == "1.0"
    assert "sympy" in target.versions()
    assert (target.site / "torch" / "after.txt").read_text(encoding="utf-8") == "after"
    assert target.imported(*FAMILY) in (f"{TORCH}+cu130", f"{TORCH}+cpu")
    assert clean(target)


@POSIX
def test_a_torch_that_a_person_put_there_after_the_kill_is_not_replaced(target: Target) -> None:
    target.fill("cu130")
    plan = target.plan("cpu")
    # The journal, seven renames, the journal again: all is aside, and nothing new in its place.
    assert die(target, plan, 9)
    assert not (target.site / "torch").exists()
    assert not list(target.site.glob("t*.dist-info"))[1:]
    target.uv("--torch-backend=cu126", "torch==2.12.0")
    assert recover_environment(target.read()) is not None
    assert [p.version for p in target.read().packages if p.name == "torch"] == ["2.12.0+cu126"]
    assert target.imported() == "2.12.0+cu126"
    assert clean(target)


@POSIX
def test_a_recovery_that_is_killed_too_is_recovered(target: Target) -> None:
    target.fill("cu130", *FAMILY)
    before = target.snapshot()
    plan = target.plan("cpu")
    environment = target.read()
    for step in (0, 1, 4, 7):
        assert die(target, plan, 13)
        assert journal_of(target).exists()
        left = step

        def dying(source: Path, to: Path) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            source.rename(to)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transaction, "_rename", dying)
            with pytest.raises(KeyboardInterrupt):
                recover_environment(environment)
        assert recover_environment(environment) is not None
        assert target.snapshot() == before
        assert clean(target)


@POSIX
def test_the_next_install_recovers_first(target: Target) -> None:
    target.fill("cu130")
    plan = target.plan("cpu")
    assert die(target, plan, 8)
    result = install_plan(plan)
    assert result.recovered is not None
    assert "are back" in result.recovered
    assert target.backend() == "cpu"
    assert clean(target)


@POSIX
def test_the_lock_of_a_killed_install_is_free(target: Target) -> None:
    plan = target.plan("cpu")
    assert die(target, plan, 0)
    assert (target.prefix / ".torchenv" / "holder.json").exists()
    with locked(target.read()):
        pass
    assert recover_environment(target.read()) is None
    assert clean(target)


def test_who_looks_while_a_switch_is_under_way_waits_and_is_told(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchenv_magic.installation.install._SWITCH_SECONDS", 0.3)
    environment = target.read()
    with locked(environment):
        journal_of(target).write_text("{}", encoding="utf-8")
        with pytest.raises(BusyError, match=rf"\(process {os.getpid()}, since"):
            recover_environment(environment)


# ---------------------------------------------------------------------------------------- journals


@pytest.fixture
def killed(target: Target) -> dict[str, Any]:
    """Return the journal of an install that was killed in the middle of its switch."""
    if os.name != "posix":
        pytest.skip("SIGKILL is POSIX's")
    target.fill("cu130")
    assert die(target, target.plan("cpu"), 9)
    journal: dict[str, Any] = json.loads(journal_of(target).read_text(encoding="utf-8"))
    return journal


def outside(journal: dict[str, Any], victim: Path) -> Iterator[dict[str, Any]]:
    """Return journals that would reach a file outside of the environment."""
    aside, placed = journal["asides"][0], journal["placed"][0]
    for path in (str(victim), f"{aside['path']}/../../../../../../{victim.name}", "victim", "/"):
        yield {**journal, "asides": [{**aside, "path": path}]}
        yield {**journal, "placed": [{**placed, "path": path}], "asides": []}
        yield {**journal, "state": "committed", "asides": [{**aside, "path": path}]}
    for source in ("new/../../../../../../victim", "/victim", "old/0", "new/", ""):
        yield {**journal, "placed": [{**placed, "source": source}]}
    for slot in ("../../../..", "", "0/..", "victim"):
        yield {**journal, "asides": [{**aside, "slot": slot}]}
    for work in ("..", "", ".torchenv-work-../..", "/", "torch", ".torchenv-work-000000000000/.."):
        yield {**journal, "work": work}
    yield {**journal, "schema": 99}
    yield {**journal, "state": "sideways"}
    yield {**journal, "asides": "all"}


def test_a_hostile_journal_touches_nothing(
    target: Target, killed: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious", encoding="utf-8")
    environment = target.read()
    before = target.snapshot()
    count = 0
    for hostile in outside(killed, victim):
        journal_of(target).write_text(json.dumps(hostile), encoding="utf-8")
        caplog.clear()
        assert recover_environment(environment) is None, hostile
        assert "is ignored" in caplog.text
        count += 1
    journal_of(target).write_text(json.dumps(killed), encoding="utf-8")
    after, expected = target.snapshot(), before
    for snapshot in (after, expected):
        snapshot.pop(".torchenv/journal.json")
    assert count > 20
    assert after == expected
    assert (victim / "precious").read_text(encoding="utf-8") == "precious"
    # The honest one still works.
    assert recover_environment(environment) is not None
    assert target.imported().startswith(TORCH)


def test_a_journal_that_is_cut_off_or_no_journal_is_ignored(
    target: Target, killed: dict[str, Any]
) -> None:
    text = json.dumps(killed)
    environment = target.read()
    contents = [text[:cut] for cut in range(0, len(text), 97)]
    for content in (*contents, "null", "[]", "{}", "3", '"x"', "\x00", "[" * 100_000):
        journal_of(target).write_text(content, encoding="utf-8")
        assert recover_environment(environment) is None
    journal_of(target).write_bytes(b"\xff\xfe\x00")
    assert recover_environment(environment) is None
    journal_of(target).write_text(text, encoding="utf-8")
    assert recover_environment(environment) is not None
    assert clean(target)


def test_a_journal_of_a_newer_version_and_what_it_speaks_of_outlive_an_install(
    target: Target, killed: dict[str, Any]
) -> None:
    text = json.dumps({**killed, "schema": 99})
    journal_of(target).write_text(text, encoding="utf-8")
    target.install("cu126")
    recover_environment(target.read())
    settle()
    [journal] = journal_of(target).parent.glob("journal.unknown-*.json")
    assert journal.read_text(encoding="utf-8") == text
    assert (target.site / killed["work"] / "old").is_dir()


def test_a_link_that_leads_out_of_the_environment_is_not_followed(
    target: Target, tmp_path: Path
) -> None:
    target.fill("cpu")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.txt").write_text("data", encoding="utf-8")
    (target.site / "triton").symlink_to(elsewhere)
    target.install("cu130")
    assert (elsewhere / "data.txt").read_text(encoding="utf-8") == "data"
    assert [path.name for path in elsewhere.iterdir()] == ["data.txt"]
    assert target.imported("torch", "triton") == f"{TORCH}+cu130"


# ------------------------------------------------------------------------------- failures half-way


def failing(at: int, error: Callable[[], OSError]) -> Callable[[Path, Path], None]:
    left = at

    def rename(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error()
        source.rename(target)

    return rename


@pytest.mark.parametrize("at", [1, 5, 9, 12])
def test_a_rename_that_fails_is_undone(
    target: Target, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    target.fill("cu130", *FAMILY)
    plan = target.plan("cpu")
    before = target.snapshot()
    refused = failing(at, lambda: PermissionError(13, "in use", "libtorch.so"))
    monkeypatch.setattr(transaction, "_rename", refused)
    with pytest.raises(InstallError, match=r"`libtorch\.so` can't be changed: in use") as caught:
        install_plan(plan)
    assert "close the notebooks" in caught.value.hint
    assert target.snapshot() == before
    assert clean(target)


def test_a_disk_that_fills_up_half_way_is_named_as_that(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fill("cu130")
    plan = target.plan("cpu")
    before = target.snapshot()
    full = failing(4, lambda: OSError(28, "No space left on device", "torch"))
    monkeypatch.setattr(transaction, "_rename", full)
    with pytest.raises(DiskSpaceError):
        install_plan(plan)
    assert target.snapshot() == before


def test_what_cannot_be_put_back_now_is_put_back_later(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fill("cu130", *FAMILY)
    plan = target.plan("cpu")
    before = target.snapshot()
    left = 9

    def rename(source: Path, to: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise PermissionError(13, "in use", str(source))
        source.rename(to)

    with monkeypatch.context() as patch:
        patch.setattr(transaction, "_rename", rename)
        with pytest.raises(InstallError, match="can't all be put back yet") as caught:
            install_plan(plan)
        assert "torchenv status" in caught.value.hint
        with pytest.raises(InstallError):
            recover_environment(target.read())
    assert recover_environment(target.read()) is not None
    assert target.snapshot() == before
    assert clean(target)


def test_an_unexpected_error_is_undone_too(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.fill("cu130")
    plan = target.plan("cpu")
    before = target.snapshot()

    def surprise(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("torchenv_magic.installation.install.check_switched", surprise)
    with pytest.raises(ZeroDivisionError):
        install_plan(plan)
    assert target.snapshot() == before
    assert clean(target)


# -------------------------------------------------------------------------------------- odd disks


def mounted(kind: str, place: Path, options: str) -> bool:
    """Mount a file system of a kind; only root may, and not in every container."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    command = ["mount", "-t", kind, "-o", options, kind, str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    places: list[Path] = []

    def make(kind: str, options: str) -> Path:
        place = tmp_path / f"mount-{len(places)}"
        place.mkdir()
        if not mounted(kind, place, options):
            pytest.skip(f"a {kind} can't be mounted here: only root may")
        places.append(place)
        return place

    yield make
    settle()
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def moved(target: Target, prefix: Path) -> Target:
    """Make the same kind of environment elsewhere."""
    return replace(target, prefix=make_environment(prefix))


def test_a_disk_too_small_for_the_plan_is_told_before_anything_is_fetched(
    cold_target: Target, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = mount("tmpfs", "size=5m")
    plan = cold_target.plan("cpu")
    before = cold_target.snapshot()
    monkeypatch.setenv("UV_CACHE_DIR", str(small / "cache"))
    cold_target.standin.clear_log()
    with pytest.raises(DiskSpaceError, match=r"about 6\.\d MB .* are free") as caught:
        install_plan(plan)
    assert "UV_CACHE_DIR" in caught.value.hint
    assert cold_target.standin.requests == ()
    assert cold_target.snapshot() == before


def test_an_environment_on_another_disk_needs_room_for_a_copy(
    target: Target, mount: Callable[..., Path]
) -> None:
    other = moved(target, mount("tmpfs", "size=5m") / "env")
    plan = other.plan("cpu")
    with pytest.raises(DiskSpaceError, match="about 6") as caught:
        install_plan(plan)
    assert str(other.prefix.parent) in caught.value.message
    assert "torch" not in other.versions()


def test_an_environment_on_another_disk_gets_copies(
    target: Target, mount: Callable[..., Path]
) -> None:
    other = moved(target, mount("tmpfs", "size=60m") / "env")
    other.install("cu130", *FAMILY)
    other.install("cpu")
    assert other.imported(*FAMILY) == f"{TORCH}+cpu"
    assert clean(other)


def test_a_disk_that_fills_while_it_is_unpacked_leaves_the_environment_alone(
    target: Target, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = mount("tmpfs", "size=2400k")
    other = moved(target, small / "env")
    other.uv("filelock")
    plan = other.plan("cpu")
    before = other.snapshot()
    # As if the plan's sizes were not known.
    monkeypatch.setattr("torchenv_magic.installation.install.check_space", lambda *_, **__: None)
    (small / "ballast").write_bytes(b"x" * 1_400_000)
    with pytest.raises(DiskSpaceError, match="disk is full"):
        install_plan(plan)
    assert other.snapshot() == before
    assert clean(other)


def test_a_container_whose_image_has_the_old_torch_is_switched_and_undone(
    target: Target, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # overlayfs refuses to rename a folder that comes from the image.
    target.fill("cu130", *FAMILY)
    (target.site / "torch" / "mine.txt").write_text("mine", encoding="utf-8")
    layers = mount("tmpfs", "size=60m")  # an overlay can't lie on an overlay
    for name in ("upper", "work"):
        (layers / name).mkdir()
    options = f"lowerdir={target.prefix},upperdir={layers}/upper,workdir={layers}/work"
    container = replace(target, prefix=mount("overlay", options))
    with pytest.raises(OSError, match="cross-device"):
        (container.site / "torch").rename(container.site / "torch-elsewhere")
    plan = container.plan("cpu")
    before = container.snapshot()
    real = transaction._rename
    for at in (3, 12, 24):
        left = at

        def rename(source: Path, to: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            real(source, to)

        with monkeypatch.context() as patch:
            patch.setattr(transaction, "_rename", rename)
            with pytest.raises(KeyboardInterrupt):
                install_plan(plan)
        assert container.snapshot() == before
        assert clean(container)
    install_plan(plan)
    assert container.imported(*FAMILY) == f"{TORCH}+cpu"
    assert (container.site / "torch" / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert clean(container)


@pytest.mark.parametrize("at", [2, 14, 25, 40])
def test_what_can_only_be_moved_entry_by_entry_is_there_whole_or_not_at_all(
    target: Target, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    target.fill("cu130")
    plan = target.plan("cpu")
    before = target.snapshot()
    real, renames = transaction._rename, 0

    def rename(source: Path, to: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == at:
            raise KeyboardInterrupt
        if source.is_dir() and not source.name.endswith(".part"):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        real(source, to)

    with monkeypatch.context() as patch:
        patch.setattr(transaction, "_rename", rename)
        with pytest.raises(KeyboardInterrupt):
            install_plan(plan)
        assert target.snapshot() == before
        renames = at
        install_plan(plan)
    assert target.imported() == f"{TORCH}+cpu"
    assert clean(target)
    assert not list(target.prefix.rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_told(
    target: Target, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only = mount("tmpfs", "ro,size=1m")
    monkeypatch.setenv("UV_CACHE_DIR", str(read_only / "cache"))
    before = target.snapshot()
    with pytest.raises(Exception, match="can't be written") as caught:
        target.plan("cpu")
    assert "UV_CACHE_DIR" in getattr(caught.value, "hint", "")
    assert target.snapshot() == before


# -------------------------------------------------------------------------------------- footprints


def listed(site: Path, name: str, *paths: str, version: str = "1") -> Path:
    """Put files and a RECORD of them into a folder of packages; return the dist-info."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    for path in paths:
        file = site / path
        if file.name != ".." and file.parent.resolve().is_relative_to(site.parents[2]):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name, encoding="utf-8")
    rows = [*paths, f"{info.name}/RECORD"]
    (info / "RECORD").write_text("".join(f"{row},,\n" for row in rows), encoding="utf-8")
    return info


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "env" / "lib" / "python3.12" / "site-packages"
    path.mkdir(parents=True)
    return path.resolve()


def names(found: dict[str, frozenset[str]], prefix: Path) -> set[str]:
    return {Path(path).relative_to(prefix).as_posix() for path in found}


def test_a_folder_of_ones_own_moves_whole_and_a_shared_one_by_its_parts(site: Path) -> None:
    prefix = site.parents[2]
    torch = listed(site, "torch", "torch/a.py", "torch/lib/b.so", "../../../bin/torchrun", "one.py")
    cublas = listed(site, "nvidia_cublas", "nvidia/__init__.py", "nvidia/cublas/lib.so")
    cudnn = listed(site, "nvidia_cudnn", "nvidia/__init__.py", "nvidia/cudnn/lib.so")
    found, guessed = roots({torch: "torch", cublas: "nvidia-cublas"}, [cudnn], prefix=prefix)
    here = "lib/python3.12/site-packages"
    assert names(found, prefix) == {
        f"{here}/torch",
        f"{here}/one.py",
        "bin/torchrun",
        f"{here}/nvidia/cublas",
        f"{here}/torch-1.dist-info",
        f"{here}/nvidia_cublas-1.dist-info",
    }
    assert found[str(site / "torch")] == {"torch"}
    assert not guessed
    both, _ = roots({cublas: "nvidia-cublas", cudnn: "nvidia-cudnn"}, [torch], prefix=prefix)
    assert both[str(site / "nvidia")] == {"nvidia-cublas", "nvidia-cudnn"}


def test_what_a_record_says_of_files_elsewhere_is_not_believed(site: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    evil = listed(site, "evil", "evil.py", "../../../../precious", str(precious), "..", "../..")
    found, _ = roots({evil: "evil"}, [], prefix=site.parents[2])
    assert {Path(path).name for path in found} == {"evil.py", "evil-1.dist-info"}


def test_without_a_record_the_folder_of_that_name_is_meant(site: Path) -> None:
    torch = listed(site, "torch", "torch/a.py")
    (torch / "RECORD").unlink()
    found, guessed = roots({torch: "torch"}, [], prefix=site.parents[2])
    assert {Path(path).name for path in found} == {"torch", "torch-1.dist-info"}
    assert str(site / "torch") in guessed


def test_what_python_compiled_of_a_module_goes_with_it(site: Path) -> None:
    one = listed(site, "one", "one.py", "__pycache__/one.cpython-312.pyc")
    listed(site, "other", "oneness.py", "__pycache__/oneness.cpython-312.pyc")
    found, whole = roots({one: "one"}, [], prefix=site.parents[2])
    compiled = site / "__pycache__" / "one.cpython-312.pyc"
    assert {Path(path).name for path in found} == {"one.py", compiled.name, "one-1.dist-info"}
    assert whole == {str(compiled)}


def test_the_new_is_placed_in_the_largest_pieces_that_are_free(site: Path, tmp_path: Path) -> None:
    stage = tmp_path / "env" / "stage" / "lib" / "python3.12" / "site-packages"
    new = listed(stage, "new", "new/a.py", "new/b.py", "shared/new.py", "../../../bin/new", "t.py")
    listed(site, "other", "shared/other.py")
    (site / "t.py").write_text("in the way", encoding="utf-8")
    (site.parents[2] / "bin").mkdir()
    moves, taken = placements(
        {new: "new"}, site, leaving=[str(site / "old")], prefix=site.parents[2]
    )
    found = {Path(path).relative_to(site.parents[2]).as_posix() for path in moves}
    here = "lib/python3.12/site-packages"
    expected = {"new", "shared/new.py", "t.py", "new-1.dist-info"}
    assert found == {"bin/new", *(f"{here}/{name}" for name in expected)}
    assert taken == {str(site / "t.py")}
    assert moves[str(site / "new")] == (str(stage / "new"), frozenset({"new"}))


def test_what_is_missing_is_found_by_name_and_size(site: Path) -> None:
    info = listed(site, "torch", "torch/a.py", "torch/b.py")
    assert missing_files(site, ["Torch"]) == ()
    (info / "RECORD").write_text(
        "torch/a.py,sha256=x,5\ntorch/b.py,,77\ntorch/gone.py,,\nodd,,many\n", encoding="utf-8"
    )
    assert missing_files(site, ["torch"]) == (
        "torch/b.py: 5 bytes, not 77",
        "torch/gone.py",
        "odd",
    )
    assert missing_files(site, ["other"]) == ("other: not installed",)
    listed(site, "torch", "torch/a.py", version="2")
    assert missing_files(site, ["torch"]) == ("torch: there twice",)


def test_a_package_that_shares_its_folder_with_a_stranger_is_switched(
    target: Target, tmp_path: Path
) -> None:
    target.fill("cu130")
    plugin = make_wheel(tmp_path, "plugin", "1", files={"torch/plugins/mine.py": "mine = 1\n"})
    target.uv(str(plugin))
    target.install("cpu")
    assert target.imported("torch.plugins.mine", "torch") == f"{TORCH}+cpu"
    assert missing_files(target.site, ["plugin"]) == ()


# ---------------------------------------------------------------------- any files, any interruption

PLACES = (
    *("one.py", "two.py", "torch/a.py", "torch/b.py", "torch/lib/c.so", "torch/lib/deep/d.so"),
    *("nvidia/__init__.py", "nvidia/cublas/lib.so", "nvidia/cudnn/lib.so", "nvidia/cu13/x/y.so"),
    *("../../../bin/torchrun", "../../../share/man/man1/torch.1", "../../../include/torch.h"),
)


def strewn(root: Path, owner: str, places: frozenset[str]) -> None:
    """Write files into a folder of packages, where none is yet in the way of a folder."""
    for place in sorted(places):
        file = Path(os.path.normpath(root / place))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{owner} {place}", encoding="utf-8")


def recorded(root: Path, name: str, version: str, places: frozenset[str]) -> InstalledPackage:
    info = root / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    rows = [*sorted(places), f"{info.name}/RECORD"]
    (info / "RECORD").write_text("".join(f"{row},,\n" for row in rows), encoding="utf-8")
    return InstalledPackage(name=name, version=version, metadata_directory=info)


def contents(prefix: Path) -> dict[str, str]:
    settle()
    return {
        path.relative_to(prefix).as_posix(): path.read_text(encoding="utf-8")
        for path in prefix.rglob("*")
        if path.is_file() and ".torchenv" not in path.relative_to(prefix).as_posix()
    }


some = st.frozensets(st.sampled_from(PLACES))


@settings(max_examples=80, deadline=None)
@given(
    old=some,
    new=some,
    other=some,
    mine=some,
    steps=st.lists(st.integers(1, 24), max_size=3).map(list),
)
def test_any_switch_is_whole_or_was_never(
    *,
    tmp_path_factory: pytest.TempPathFactory,
    old: frozenset[str],
    new: frozenset[str],
    other: frozenset[str],
    mine: frozenset[str],
    steps: list[int],
) -> None:
    other -= old | new
    mine -= old | other
    prefix = tmp_path_factory.mktemp("env").resolve()
    site = prefix / "lib" / "python3.12" / "site-packages"
    strewn(site, "old", old)
    strewn(site, "other", other)
    strewn(site, "mine", mine)
    packages = [recorded(site, "torch", "1", old), recorded(site, "other", "1", other)]
    environment = Environment(
        interpreter=Interpreter(
            executable=prefix / "bin" / "python", version="3.12.1", implementation="cpython"
        ),
        kind="venv",
        prefix=prefix,
        site_packages=site,
        has_pip=False,
        writable=True,
        externally_managed=None,
        free_bytes=0,
        packages=tuple(packages),
    )
    before = contents(prefix)
    wish = Expectation(requirements=("torch",), backend=Backend("cpu"), versions=(("torch", "2"),))
    waits = iter(steps)
    left = next(waits, 0)

    def rename(source: Path, to: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            left = next(waits, 0)
            raise KeyboardInterrupt
        source.rename(to)

    def attempt() -> None:
        with locked(environment), transaction.Transaction(environment) as change:
            stage = change.stage / "lib" / "python3.12" / "site-packages"
            strewn(stage, "new", new)
            recorded(stage, "torch", "2", new)
            change.switch(["torch"], incoming=["torch"], expectation=wish)
            change.commit()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transaction, "_rename", rename)
        with contextlib.suppress(KeyboardInterrupt):
            attempt()
        # Another interrupt on the way back leaves the journal to the next contact.
        with contextlib.suppress(KeyboardInterrupt), locked(environment):
            recover(environment)
    with locked(environment):
        recover(environment)
    now = contents(prefix)
    if read_expectation(prefix) is None:
        assert now == before
        attempt()
        now = contents(prefix)
    expected = {name: text for name, text in before.items() if not text.startswith("old ")}
    expected.pop("lib/python3.12/site-packages/torch-1.dist-info/RECORD")
    for place in new:
        path = Path(os.path.normpath(site / place)).relative_to(prefix).as_posix()
        expected[path] = f"new {place}"
    now.pop("lib/python3.12/site-packages/torch-2.dist-info/RECORD")
    assert now == expected
    settle()
    assert not has_left_overs(environment)
