"""Installs, end to end: real uv, real environments, made wheels behind the stand-in."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.browser.kernel_environment import find_python
from tests.standin import BACKENDS, INDEX_HOST, TORCH, make_wheel
from tests.targets import (
    Target,
    make_dependent,
    make_environment,
    phases,
    selected,
    settle,
)
from torchenv_magic.environment import read_environment
from torchenv_magic.errors import (
    BusyError,
    ConflictError,
    InstallCancelled,
    InstallError,
    PlanError,
    SelectionError,
    SourceError,
    TargetError,
)
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation.install import install_plan, recover_environment
from torchenv_magic.installation.locking import locked
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.undo import read_undo
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.selection import Request

pytest_plugins = ["tests.target_fixtures"]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
FAMILY = ("torch", "torchvision", "torchaudio")


def tritons(target: Target) -> set[str]:
    return {name for name in target.versions() if name.startswith("triton")}


# ----------------------------------------------------------------------------- each build, each way


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_build_comes_into_an_empty_environment(target: Target, backend: str) -> None:
    events: list[Event] = []
    result = target.install(backend, *FAMILY, on_event=events.append)
    there = target.versions()
    assert [there[name].partition("+")[2] for name in FAMILY] == [backend] * 3
    assert target.backend() == backend
    assert target.imported(*FAMILY) == f"{TORCH}+{backend}"
    assert set(result.changed) == set(there)
    assert phases(events)[-4:] == ["link", "switch", "check", "done"]
    kept = read_expectation(target.prefix)
    assert kept == result.expectation
    assert kept is not None
    assert dict(kept.versions).keys() == set(FAMILY)
    assert recover_environment(target.read()) is None


@LINUX
def test_a_switch_moves_every_member_and_nothing_of_anybody_else(target: Target) -> None:
    target.fill("cu130", *FAMILY)
    target.uv("sympy")
    mine = target.site / "torch" / "my notes.txt"
    mine.write_text("mine", encoding="utf-8")
    (target.site / "torch" / "my_models").mkdir()
    (target.site / "torch" / "my_models" / "one.bin").write_bytes(b"1")
    (target.site / "torch" / "my_link").symlink_to(target.prefix)
    others = {
        name: value
        for name, value in target.snapshot().items()
        if "sympy" in name or "numpy" in name or "my" in name
    }
    for backend, triton in (("cu126", "triton"), ("cpu", None), ("rocm7.2", "triton-rocm")):
        plan = target.plan(backend)
        removed = {change.name for change in plan.of("remove")}
        result = install_plan(plan)
        there = target.versions()
        assert {there[name].partition("+")[2] for name in FAMILY} == {backend}
        assert target.backend() == backend
        assert target.imported(*FAMILY) == f"{TORCH}+{backend}"
        assert tritons(target) == ({triton} if triton else set())
        assert set(result.changed) >= {*FAMILY, *removed}
        snapshot = target.snapshot()
        assert {name: snapshot.get(name) for name in others} == others
        assert not [name for name in snapshot if ".torchenv-work" in name]
    assert mine.read_text(encoding="utf-8") == "mine"


@LINUX
def test_the_old_builds_libraries_go_and_a_persons_own_stay(target: Target, tmp_path: Path) -> None:
    target.fill("cu130")
    wheels = [
        make_wheel(tmp_path, "cupy-made", "1.0", requires=["nvidia-curand"]),
        make_wheel(tmp_path, "nvidia-curand", "10", files={"nvidia/cu13/curand.so": "x"}),
        make_wheel(tmp_path, "nvidia-cublas-cu12", "12", files={"nvidia/cublas/lib.so": "x"}),
    ]
    target.uv("--no-deps", *map(str, wheels))
    install_plan(target.plan("cpu"))
    assert tritons(target) == set()
    assert target.versions().keys() >= {"nvidia-curand", "nvidia-cublas-cu12", "cupy-made"}
    assert (target.site / "nvidia" / "cublas" / "lib.so").is_file()


def test_what_is_there_needs_no_request_and_no_index(target: Target) -> None:
    target.fill("cu126", "torch", "torchvision")
    before = target.snapshot()
    target.standin.clear_log()
    target.standin.down = True
    started = time.monotonic()
    plan = target.plan("cu126", "Torch>=2", "torchvision")
    assert time.monotonic() - started < 5
    assert plan.nothing_to_do
    events: list[Event] = []
    result = install_plan(plan, on_event=events.append)
    assert result.changed == ()
    assert str(result) == "Nothing to do: what you asked for is installed already."
    assert events == []
    assert target.standin.requests == ()
    after = target.snapshot()
    after.pop(".torchenv/expectation.json")
    before.pop(".torchenv/expectation.json")
    assert after == before
    kept = read_expectation(target.prefix)
    assert kept is not None
    assert kept.requirements == ("Torch>=2", "torchvision")


def test_a_pin_moves_its_companions_along(target: Target) -> None:
    target.fill("cu126", "torch", "torchvision")
    plan = target.plan("cu126", "torch==2.12.0")
    assert plan.versions["torchvision"] == "0.27.0+cu126"
    install_plan(plan)
    assert target.versions()["torch"] == "2.12.0+cu126"
    assert target.imported("torch", "torchvision") == "2.12.0+cu126"


def test_a_package_that_needs_the_old_torch_is_in_the_way_by_name(
    target: Target, tmp_path: Path
) -> None:
    target.fill("cu126", "torch==2.12.0")
    target.uv("--no-deps", str(make_dependent(tmp_path)))
    before = target.snapshot()
    with pytest.raises(ConflictError, match=r"needs212 1\.0 requires torch==2\.12\.0") as caught:
        target.plan("cpu", "torch==2.13.0")
    assert "\n" not in caught.value.message
    assert "name them too, so that they change with it" in caught.value.hint
    assert target.snapshot() == before
    # It admits the switch that leaves its torch alone.
    assert target.plan("cpu").versions["torch"] == "2.12.0+cpu"
    # And it is in nobody's way where its own new version comes along.
    target.standin.add_wheel("simple", make_dependent(tmp_path / "new", "2.0", "2.13.0"))
    target.install("cpu", "torch==2.13.0", "needs212>=2")
    assert target.versions()["needs212"] == "2.0"
    assert target.versions()["torch"] == "2.13.0+cpu"


def test_what_was_broken_before_is_told_and_stops_nothing(target: Target, tmp_path: Path) -> None:
    target.fill("cu126")
    target.uv("--no-deps", str(make_dependent(tmp_path)))
    plan = target.plan("cpu")
    assert plan.notes == ("needs212 1.0 requires torch==2.12.0, which is not met now either",)
    install_plan(plan)
    assert target.backend() == "cpu"


def test_a_build_for_an_older_card_stays_below_what_has_no_code_for_it(target: Target) -> None:
    plan = target.plan("cu126", exclusion="torch<2.13")
    assert plan.versions["torch"] == "2.12.0+cu126"


@pytest.mark.parametrize("minor", ["3.12", "3.13"])
def test_another_interpreter_than_ours_gets_its_own_wheels(target: Target, minor: str) -> None:
    python = find_python(minor)
    if python is None:
        pytest.skip(f"no Python {minor} here")
    other = Target(
        prefix=make_environment(target.prefix.with_name("other"), python), standin=target.standin
    )
    assert other.read().interpreter.version.startswith(minor)
    other.install("cpu", "torch", "torchvision")
    assert other.imported("torch", "torchvision") == f"{TORCH}+cpu"


def test_our_own_interpreter_is_read_in_process(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = target.plan("cpu")
    here = dataclasses.replace(plan, python=Path(sys.executable), changes=(), prefix=target.prefix)
    monkeypatch.setattr(
        "torchenv_magic.environment.run_interpreter", lambda *_, **__: pytest.fail("it was started")
    )
    monkeypatch.setattr("torchenv_magic.installation.install.write_expectation", lambda *_: None)
    assert install_plan(here).changes == ()


# ------------------------------------------------------------------------------ how it is asked for


def test_requirements_of_all_shapes(target: Target) -> None:
    target.install(
        "cu126", "torch", "Torch>=2.12", "Typing_Extensions", "numpy; python_version < '3'", "sympy"
    )
    assert target.versions().keys() >= {"torch", "typing-extensions", "sympy"}
    assert "numpy" not in target.versions()


def wheel_of(target: Target, backend: str) -> Path:
    tag = target.read().interpreter.tag
    return next(
        wheel.path
        for wheel in target.standin.wheels(backend)
        if wheel.path.name.startswith(f"torch-{TORCH}") and f"-{tag}-" in wheel.path.name
    )


def test_torch_from_an_address_is_taken_from_there(target: Target) -> None:
    plan = target.plan("cu126", f"torch @ {wheel_of(target, 'cu126').as_uri()}")
    assert plan.local_bytes > 0
    install_plan(plan)
    assert target.backend() == "cu126"
    assert target.imported() == f"{TORCH}+cu126"
    with pytest.raises(PlanError, match="a build for cpu, not for cu126"):
        target.plan("cu126", f"torch @ {wheel_of(target, 'cpu').as_uri()}")


def test_no_backend_is_no_plan(target: Target) -> None:
    nothing = dataclasses.replace(
        selected("cpu"), backend=None, warnings=("Python 3.8 is too old",)
    )
    with pytest.raises(SelectionError, match=r"Python 3\.8 is too old"):
        make_plan(nothing, target.read(), Request())


def test_what_does_not_exist_is_said_in_one_sentence(target: Target) -> None:
    with pytest.raises(PlanError, match=r"no version of torch==99\.1") as caught:
        target.plan("cu126", "torch==99.1")
    assert not isinstance(caught.value, ConflictError)
    with pytest.raises(PlanError, match="`no-such-package` is on none of the indexes"):
        target.plan("cu126", "torch", "no-such-package")
    with pytest.raises(ConflictError, match="contradict each other"):
        target.plan("cu126", "torch==2.12.0", "torchvision==0.28.0")


# ------------------------------------------------------------------ nothing is touched before it is


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  (it is looked at in the test's own thread)
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


TORCH_WHEEL = r"/torch-[^/]*\.whl$"


def test_everything_is_fetched_before_the_environment_is_touched(cold_target: Target) -> None:
    target, standin = cold_target, cold_target.standin
    target.install("cpu")
    plan = target.plan("cu126", "torch", "torchvision")
    before = target.snapshot()
    standin.rate = 60_000
    asked_at_the_switch: list[int] = []

    def listen(event: Event) -> None:
        if event.phase in ("switch", "check"):
            asked_at_the_switch.append(len(standin.requests))

    thread, errors = in_thread(lambda: install_plan(plan, on_event=listen))
    standin.wait_for(TORCH_WHEEL, sent=50_000)
    during = {n: v for n, v in target.snapshot().items() if ".torchenv-work" not in n}
    assert during == before
    assert target.imported() == f"{TORCH}+cpu"
    standin.rate = None
    thread.join(60)
    assert errors == []
    assert asked_at_the_switch
    assert set(asked_at_the_switch) == {len(standin.requests)}
    assert target.backend() == "cu126"


def test_what_one_environment_fetched_the_next_has_from_the_cache(cold_target: Target) -> None:
    first = cold_target.plan("cu126", "torch", "torchvision")
    assert first.download_bytes == sum(item.size_bytes or 0 for item in first.downloads) > 1_500_000
    assert first.unknown_sizes == 0
    install_plan(first)
    second = Target(
        prefix=make_environment(cold_target.prefix.with_name("second")), standin=cold_target.standin
    )
    plan = second.plan("cu126", "torch", "torchvision")
    assert all(item.cached for item in plan.downloads)
    assert plan.download_bytes == plan.disk_bytes == 0
    assert "No download" in plan.summary
    cold_target.standin.clear_log()
    cold_target.standin.down = True
    events: list[Event] = []
    install_plan(plan, on_event=events.append)
    assert cold_target.standin.requests == ()
    assert events[0].message == "Linking 7 packages from uv's cache"
    assert second.imported("torch", "torchvision") == f"{TORCH}+cu126"


def test_of_a_download_that_is_half_there_only_the_rest_is_fetched(cold_target: Target) -> None:
    cold_target.install("cu126")
    second = Target(
        prefix=make_environment(cold_target.prefix.with_name("second")), standin=cold_target.standin
    )
    plan = second.plan("cu126", *FAMILY)
    fetched = {item.name for item in plan.downloads if not item.cached}
    assert fetched == {"torchvision", "torchaudio", "numpy", "pillow"}
    assert 0 < plan.download_bytes < 100_000
    cold_target.standin.clear_log()
    install_plan(plan)
    assert not cold_target.standin.downloads(TORCH_WHEEL)


def test_a_cache_that_was_emptied_after_the_plan_is_filled_again(cold_target: Target) -> None:
    cold_target.install("cu126")
    second = Target(
        prefix=make_environment(cold_target.prefix.with_name("second")), standin=cold_target.standin
    )
    plan = second.plan("cu126")
    assert plan.download_bytes == 0
    settle()
    subprocess.run([find_uv_bin(), "cache", "clean", "--quiet"], check=True)
    install_plan(plan)
    assert second.imported() == f"{TORCH}+cu126"


def test_nothing_is_fetched_twice(cold_target: Target) -> None:
    cold_target.install("cu126", *FAMILY)
    wheels = [request.path for request in cold_target.standin.downloads()]
    assert len(wheels) == len(set(wheels))
    assert len([path for path in wheels if "/torch" in path]) == 3


def test_a_plan_is_not_carried_out_in_an_environment_that_changed(target: Target) -> None:
    plan = target.plan("cu126")
    target.uv("--torch-backend=cpu", "torch==2.12.0")
    before = target.snapshot()
    with pytest.raises(InstallError, match=r"torch is 2\.12\.0\+cpu now, not missing") as caught:
        install_plan(plan)
    assert caught.value.hint == "plan again"
    assert target.snapshot() == before


def test_what_changes_while_it_downloads_is_seen_before_the_switch(cold_target: Target) -> None:
    plan = cold_target.plan("cu126", "torch", "sympy")
    cold_target.standin.rate = 60_000
    thread, errors = in_thread(lambda: install_plan(plan))
    cold_target.standin.wait_for(TORCH_WHEEL, sent=50_000)
    cold_target.uv("filelock")
    before = cold_target.snapshot()
    cold_target.standin.rate = None
    thread.join(60)
    [error] = errors
    assert isinstance(error, InstallError)
    assert "filelock is 3.20.0 now, not missing" in error.message
    assert cold_target.snapshot() == {n: v for n, v in before.items() if "torchenv-work" not in n}


# ---------------------------------------------------------------------------------------- stopping


def left(target: Target) -> list[str]:
    """Return what of an install is left in the environment that was not there before."""
    settle()
    return [
        str(path.relative_to(target.prefix))
        for path in target.prefix.rglob("*torchenv*")
        if path != target.prefix / ".torchenv"
    ] + [path.name for path in (target.prefix / ".torchenv").glob("*") if path.name != "lock"]


def test_cancelled_while_it_resolves(target: Target) -> None:
    target.standin.rate = 20
    before = target.snapshot()
    cancellation = Cancellation()
    thread, errors = in_thread(lambda: target.plan("cu126", cancellation=cancellation))
    while not target.running():
        time.sleep(0.01)
    asked = time.monotonic()
    cancellation.cancel()
    thread.join(30)
    assert time.monotonic() - asked < 10
    assert [type(error) for error in errors] == [InstallCancelled]
    assert target.running() == []
    target.standin.rate = None
    assert target.snapshot() == before


def test_cancelled_while_it_downloads(cold_target: Target) -> None:
    target = cold_target
    plan = target.plan("cu126", *FAMILY)
    before = target.snapshot()
    target.standin.rate = 60_000
    cancellation = Cancellation()
    thread, errors = in_thread(lambda: install_plan(plan, cancellation=cancellation))
    target.standin.wait_for(TORCH_WHEEL, sent=50_000)
    asked = time.monotonic()
    cancellation.cancel()
    thread.join(30)
    assert time.monotonic() - asked < 10
    assert [type(error) for error in errors] == [InstallCancelled]
    assert target.running() == []
    assert target.snapshot() == before
    assert left(target) == []
    target.standin.rate = None
    install_plan(plan)
    assert target.imported(*FAMILY) == f"{TORCH}+cu126"


@pytest.mark.parametrize("start", ["empty", "cu130"])
def test_cancelled_at_each_phase(target: Target, start: str) -> None:
    if start != "empty":
        target.fill(start, *FAMILY)
    plan = target.plan("cpu", *FAMILY)
    before = target.snapshot()
    for phase in ("link", "switch", "check"):
        cancellation = Cancellation()
        events: list[Event] = []

        def listen(
            event: Event,
            phase: str = phase,
            cancellation: Cancellation = cancellation,
            events: list[Event] = events,
        ) -> None:
            events.append(event)
            if event.phase == phase:
                cancellation.cancel()

        with pytest.raises(InstallCancelled, match="the environment is as it was"):
            install_plan(plan, on_event=listen, cancellation=cancellation)
        assert target.snapshot() == before
        assert ("restore" in phases(events)) == (phase == "check")
        assert recover_environment(target.read()) is None
    if start == "empty":
        assert left(target) == []
    else:
        assert target.imported(*FAMILY) == f"{TORCH}+{start}"
    install_plan(plan)
    assert target.imported(*FAMILY) == f"{TORCH}+cpu"


@POSIX
def test_an_interrupt_of_the_calling_thread_changes_nothing(target: Target) -> None:
    target.fill("cu130", *FAMILY)
    plan = target.plan("cpu", *FAMILY)
    before = target.snapshot()
    for phase in ("link", "switch", "check", "restore"):
        cancellation = Cancellation()

        def listen(
            event: Event, phase: str = phase, cancellation: Cancellation = cancellation
        ) -> None:
            if event.phase == "check" and phase == "restore":
                cancellation.cancel()
            if event.phase == phase:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            install_plan(plan, on_event=listen, cancellation=cancellation)
        assert target.running() == []
        assert target.snapshot() == before
        assert recover_environment(target.read()) is None
    assert target.imported(*FAMILY) == f"{TORCH}+cu130"


# ---------------------------------------------------------------------------------- one at a time


def test_two_installs_at_once_are_one_and_a_message(cold_target: Target) -> None:
    target = cold_target
    plan = target.plan("cu126")
    target.standin.rate = 60_000
    cancellation = Cancellation()
    thread, errors = in_thread(lambda: install_plan(plan, cancellation=cancellation))
    target.standin.wait_for(TORCH_WHEEL, sent=1)
    with pytest.raises(BusyError, match=rf"process {os.getpid()}") as caught:
        install_plan(plan)
    assert caught.value.hint
    # A look at the environment meanwhile disturbs nobody, and is not disturbed.
    assert recover_environment(target.read()) is None
    target.standin.rate = None
    thread.join(60)
    assert errors == []
    assert target.backend() == "cu126"


def test_the_lock_of_an_environment_is_free_again_after_use(target: Target) -> None:
    with locked(target.read()), pytest.raises(BusyError), locked(target.read()):
        pass
    with locked(target.read(), wait_seconds=1):
        pass


@POSIX
def test_another_uv_at_work_is_waited_for_at_the_switch(target: Target) -> None:
    import fcntl

    plan = target.plan("cu126")
    heard: list[str] = []
    waiting = threading.Event()

    def listen(event: Event) -> None:
        heard.append(event.message)
        if event.message.startswith("Waiting for another uv"):
            waiting.set()

    with (target.prefix / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread, errors = in_thread(lambda: install_plan(plan, on_event=listen))
        assert waiting.wait(20)
        assert "torch" not in target.versions()
    thread.join(30)
    assert errors == []
    assert target.backend() == "cu126"


@POSIX
def test_another_uv_at_work_is_told_while_a_plan_waits_for_it(target: Target) -> None:
    import fcntl

    heard: list[str] = []
    told = threading.Event()

    def listen(event: Event) -> None:
        heard.append(event.message)
        if "Waiting for another uv" in event.message:
            told.set()

    with (target.prefix / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread, errors = in_thread(lambda: target.plan("cu126", on_event=listen))
        assert told.wait(20)
    thread.join(30)
    assert errors == []


# ---------------------------------------------------------------------------- what can't be changed


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no system Python")
def test_a_system_that_forbids_it_is_not_even_asked_about(target: Target) -> None:
    system = read_environment(Path("/usr/bin/python3"))
    if system.externally_managed is None:
        pytest.skip("this system's Python is not externally managed")
    target.standin.clear_log()
    with pytest.raises(TargetError, match="forbids installing") as caught:
        make_plan(selected("cpu"), system, Request())
    assert caught.value.hint
    assert target.standin.requests == ()


def test_an_environment_that_is_not_writable_is_refused_before_anything(target: Target) -> None:
    plan = target.plan("cpu")
    here = dataclasses.replace(target.read(), writable=False)
    target.standin.clear_log()
    with pytest.raises(TargetError, match="not writable"):
        make_plan(selected("cpu"), here, Request())
    assert target.standin.requests == ()
    assert recover_environment(here) is None
    assert not plan.nothing_to_do


def add_torch(target: Target, folder: Path, version: str, code: str) -> None:
    """Serve a torch whose import runs `code`; the cache, which tests share, knows its version."""
    files = {"torch/__init__.py": code, "torch/version.py": f"__version__ = '{version}+cpu'\n"}
    target.standin.add_wheel("cpu", make_wheel(folder, "torch", f"{version}+cpu", files=files))


@pytest.mark.parametrize(
    ("version", "code", "last"),
    [
        (
            "2.14.7",
            "raise ImportError('libmade.so: no luck')\n",
            r"ImportError: libmade\.so: no luck",
        ),
        ("2.14.8", "import os; os.abort()\n", "it crashed with signal 6"),
    ],
)
@POSIX
def test_a_torch_that_does_not_import_is_put_back(
    target: Target, tmp_path: Path, version: str, code: str, last: str
) -> None:
    target.fill("cpu", "torch")
    add_torch(target, tmp_path, version, code)
    plan = target.plan("cpu", f"torch=={version}")
    before = target.snapshot()
    events: list[Event] = []
    with pytest.raises(InstallError, match=rf"can't be imported: {last}") as caught:
        install_plan(plan, on_event=events.append)
    assert "what was there before is back" in caught.value.hint
    assert phases(events)[-2:] == ["check", "restore"]
    assert target.snapshot() == before
    assert target.imported() == f"{TORCH}+cpu"


@POSIX
def test_cancelled_while_the_import_is_tried(target: Target, tmp_path: Path) -> None:
    target.fill("cpu", "torch")
    started = tmp_path / "started"
    code = f"import time; open({str(started)!r}, 'w').close(); time.sleep(300)\n"
    add_torch(target, tmp_path, "2.14.9", code)
    plan = target.plan("cpu", "torch==2.14.9")
    before = target.snapshot()
    cancellation = Cancellation()
    thread, errors = in_thread(lambda: install_plan(plan, cancellation=cancellation))
    limit = time.monotonic() + 60
    while not started.exists() and time.monotonic() < limit:
        time.sleep(0.01)
    asked = time.monotonic()
    cancellation.cancel()
    thread.join(60)
    assert time.monotonic() - asked < 10
    assert [type(error) for error in errors] == [InstallCancelled]
    assert target.snapshot() == before


def test_nothing_is_imported_where_no_member_of_the_family_changes(
    target: Target, tmp_path: Path
) -> None:
    target.uv(str(make_wheel(tmp_path, "torch", "2.14.9+cpu", files={
        "torch/__init__.py": "raise ImportError\n",
        "torch/version.py": "cuda = None\n",
    })))  # fmt: skip
    target.install("cpu", "torch", "sympy")
    assert "sympy" in target.versions()


@pytest.mark.parametrize("lost", ["torch/version.py", "torchvision/__init__.py", "torch"])
def test_a_copy_that_was_killed_half_way_is_found_and_made_whole(target: Target, lost: str) -> None:
    # Of which uv says that all is installed.
    target.fill("cu130", "torch", "torchvision")
    path = target.site / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    plan = target.plan("cu130")
    assert {c.name for c in plan.changes} == {"torch", "torchvision"}
    assert {c.before for c in plan.changes} == {c.after for c in plan.changes}
    install_plan(plan)
    assert target.imported("torch", "torchvision") == f"{TORCH}+cu130"
    # Nobody wants the half of it back.
    undo = read_undo(target.read())
    assert undo is not None
    assert undo.problem == "what it replaced was not whole"
    # What was deleted to save room is no damage.
    (next((target.site / "torch").rglob("*.txt"), target.site / "none")).unlink(missing_ok=True)
    assert target.plan("cu130").nothing_to_do


@pytest.mark.parametrize("installer", [None, "pip"])
def test_what_conda_has_on_its_books_is_condas(target: Target, installer: str | None) -> None:
    target.fill("cpu", "torch")
    books = target.prefix / "conda-meta"
    books.mkdir()
    mark = next(target.site.glob("torch-*.dist-info")) / "INSTALLER"
    mark.unlink()
    if installer:
        mark.write_text(f"{installer}\n", encoding="utf-8")
    (books / "pytorch-mutex-1.0-cpu.json").write_text("{}", encoding="utf-8")
    assert target.plan("cu126").versions["torch"] == f"{TORCH}+cu126"
    (books / f"pytorch-{TORCH}+cpu-py3.11_0.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TargetError, match="was installed by conda"):
        target.plan("cu126")


def test_what_conda_installed_only_conda_replaces(target: Target) -> None:
    target.fill("cpu")
    installer = next(target.site.glob("torch-*.dist-info")) / "INSTALLER"
    installer.unlink()  # it is a link into uv's cache
    installer.write_text("conda\n", encoding="utf-8")
    with pytest.raises(TargetError, match=r"torch 2\.13\.0\+cpu was installed by conda") as caught:
        target.plan("cu126")
    assert "conda remove" in caught.value.hint
    assert target.plan("cpu").nothing_to_do


def test_a_package_without_a_list_of_its_files_is_not_touched(target: Target) -> None:
    folder = target.site / "filelock-0.1-py3.11.egg-info"
    folder.mkdir()
    metadata = "Metadata-Version: 2.1\nName: filelock\nVersion: 0.1\n"
    (folder / "PKG-INFO").write_text(metadata, encoding="utf-8")
    with pytest.raises(TargetError, match=r"filelock 0\.1 was installed without a list"):
        target.plan("cu126", "torch", "filelock>=3")


# ------------------------------------------------------------------------- what a person configured


def test_without_a_cache_it_works_too(cold_target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_NO_CACHE", "1")
    plan = cold_target.plan("cu126")
    assert not any(item.cached for item in plan.downloads)
    install_plan(plan)
    assert cold_target.imported() == f"{TORCH}+cu126"


def test_what_a_person_set_for_uv_does_not_break_a_switch(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fill("cu130", "torch", "torchvision")
    for backend, name, value in (
        ("cpu", "UV_LINK_MODE", "copy"),
        ("cu130", "UV_LINK_MODE", "symlink"),
        ("cpu", "UV_COMPILE_BYTECODE", "1"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv("UV_REQUIRE_HASHES", "1")
            patch.setenv("JPY_SESSION_NAME", "a.ipynb")
            patch.setenv(name, value)
            target.install(backend)
        assert target.imported("torch", "torchvision") == f"{TORCH}+{backend}"
        assert tritons(target) == ({"triton"} if backend == "cu130" else set())


def test_offline_means_no_request_at_all(
    cold_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold_target.install("cu126")
    cold_target.standin.clear_log()
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert cold_target.plan("cu126").nothing_to_do
    with pytest.raises(SourceError, match="told to use no network") as caught:
        cold_target.plan("cpu")
    assert "UV_OFFLINE" in caught.value.hint
    assert cold_target.standin.requests == ()


def test_the_projects_own_index_is_used_and_a_broken_file_is_said(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.delenv("UV_NO_CONFIG")
    index = os.environ["UV_DEFAULT_INDEX"]
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    text = f'[tool.uv]\nindex = [{{ url = "{index}", default = true }}]\n'
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    assert target.plan("cpu").versions["torch"] == f"{TORCH}+cpu"
    (project / "uv.toml").write_text("index-url = \n", encoding="utf-8")
    with pytest.raises(Exception, match=r"uv\.toml") as caught:
        target.plan("cu126")
    assert "mend or remove what it names" in getattr(caught.value, "hint", "")


def test_a_dependents_strange_metadata_is_no_obstacle(target: Target) -> None:
    target.fill("cu130", "torch")
    folder = target.site / "old_thing-1.0.dist-info"
    folder.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        *("Name: old-thing", "Version: 1.0"),
        *("Requires-Dist: torch (>dev)", "Requires-Dist: torch (>=1.0)", "Requires-Dist: ???"),
    ]
    (folder / "METADATA").write_text("\n".join([*lines, "", ""]), encoding="utf-8")
    (folder / "RECORD").write_text("old_thing-1.0.dist-info/METADATA,,\n", encoding="utf-8")
    target.install("cpu")
    assert target.backend() == "cpu"


# ------------------------------------------------------------------------------ files of all kinds


def add_data(wheel: Path) -> Path:
    """Give a made wheel the four kinds of `.data`, as sympy, jupyter and others have them."""
    with zipfile.ZipFile(wheel) as archive:
        items = {name: archive.read(name) for name in archive.namelist()}
    info = next(name.partition("/")[0] for name in items if ".dist-info/" in name)
    record = items.pop(f"{info}/RECORD").decode()
    data = info.replace(".dist-info", ".data")
    added = {
        f"{data}/data/share/man/man1/made.1": b"man",
        f"{data}/headers/made.h": b"#define MADE",
        f"{data}/scripts/made-script": b"#!python\nprint('made')\n",
        f"{data}/platlib/made_extra.py": b"extra = 1\n",
    }
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}"
        for name, content in added.items()
    ]
    items |= added
    items[f"{info}/RECORD"] = "\n".join([*lines, record]).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in items.items():
            archive.writestr(name, content)
    return wheel


@POSIX
def test_scripts_headers_data_and_modules_come_and_go(target: Target, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        made = make_wheel(tmp_path / version, "made", version, scripts={"made-run": "made:main"})
        target.standin.add_wheel("simple", add_data(made))
    before = target.snapshot()
    target.install("cpu", "torch", "made==1.0")
    script = subprocess.run(
        [target.prefix / "bin" / "made-script"], capture_output=True, encoding="utf-8", check=True
    )
    assert script.stdout == "made\n"
    assert f"{target.prefix}/bin/python" in (target.prefix / "bin" / "torchrun").read_text()
    assert (target.prefix / "share" / "man" / "man1" / "made.1").read_text() == "man"
    assert list((target.prefix / "include").rglob("made.h"))
    assert (target.site / "made_extra.py").is_file()
    first = target.snapshot()
    assert first.keys() > before.keys()
    target.install("cpu", "torch", "made==2.0")
    assert target.versions()["made"] == "2.0"
    there = {name for name in target.snapshot() if ".torchenv" not in name}
    assert there <= {name.replace("made-1.0", "made-2.0") for name in first}


def test_a_folder_that_lies_in_the_way_is_shared_and_a_file_is_replaced(target: Target) -> None:
    (target.site / "torch").mkdir(parents=True)
    (target.site / "torch" / "left.txt").write_text("left", encoding="utf-8")
    (target.site / "torch" / "version.py").write_text("in the way", encoding="utf-8")
    (target.site / "functorch").write_text("a file where a folder should be", encoding="utf-8")
    plan = target.plan("cpu")
    before = target.snapshot()
    cancellation = Cancellation()
    with pytest.raises(InstallCancelled):
        install_plan(
            plan,
            on_event=lambda event: cancellation.cancel() if event.phase == "check" else None,
            cancellation=cancellation,
        )
    assert target.snapshot() == before
    install_plan(plan)
    assert target.imported("torch", "functorch") == f"{TORCH}+cpu"
    assert (target.site / "torch" / "left.txt").read_text(encoding="utf-8") == "left"


def test_what_a_killed_uv_left_twice_is_made_one(target: Target) -> None:
    target.fill("cu130", "torch", "torchvision")
    info = next(target.site.glob("torch-*.dist-info"))
    shutil.copytree(info, info.with_name("torch-2.12.0+cpu.dist-info"))
    assert [p.version for p in target.read().packages if p.name == "torch"] == [
        "2.12.0+cpu",
        "2.13.0+cu130",
    ]
    target.install("cpu")
    assert [p.version for p in target.read().packages if p.name == "torch"] == ["2.13.0+cpu"]
    assert target.imported("torch", "torchvision") == "2.13.0+cpu"


@pytest.mark.parametrize("lost", ["RECORD", "METADATA"])
def test_what_a_killed_uv_left_half_is_made_whole(target: Target, lost: str) -> None:
    target.fill("cu130", "torch", "torchvision")
    (next(target.site.glob("torch-*.dist-info")) / lost).unlink()
    for backend in ("cu130", "cpu"):
        plan = target.plan(backend)
        assert not plan.nothing_to_do
        install_plan(plan)
        assert target.backend() == backend
        assert target.imported("torch", "torchvision") == f"{TORCH}+{backend}"
        (next(target.site.glob("torch-*.dist-info")) / lost).unlink()


def test_only_these_runs_of_uv_are_needed(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    target.fill("cpu")

    def runs(action: Callable[[], object]) -> list[str]:
        caplog.clear()
        with caplog.at_level("DEBUG", logger="torchenv_magic.installation.uv"):
            action()
        words = [r.getMessage() for r in caplog.records if r.getMessage().startswith("running uv")]
        return [word.split("'")[3] for word in words]

    assert runs(lambda: target.plan("cpu")) == ["install"]
    plan = target.plan("cu126")
    # A dry run, the lock, whether the cache has torch of it, and whether it has the rest.
    assert runs(lambda: target.plan("cu126")) in (
        ["install", "compile", "install"],
        ["install", "compile", "install", "install"],
    )
    assert runs(lambda: install_plan(plan)) == ["install"]


def test_requests_go_to_the_two_hosts_and_the_plain_index_alone(cold_target: Target) -> None:
    cold_target.install("cu126")
    hosts = {request.host for request in cold_target.standin.requests}
    assert INDEX_HOST in hosts
    assert "CONNECT" not in {request.method for request in cold_target.standin.requests}
