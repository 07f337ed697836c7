"""One at a time: across processes, hosts, crashes and clocks; and what those who wait are told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standin import TORCH
from tests.targets import Target, settle
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment
from torchenv_magic.errors import BusyError, InstallCancelled, TargetError
from torchenv_magic.installation import locking, waiting
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.locking import locked, read_holder
from torchenv_magic.installation.progress import Bytes, Event
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.installation.waiting import holding, wait_for_others
from torchenv_magic.interpreter import Interpreter

pytest_plugins = ["tests.target_fixtures"]

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
PROJECT = Path(__file__).resolve().parents[1]
FOREIGN: dict[str, Any] = {
    "host": "elsewhere",
    "machine": "m2",
    "boot": "b2",
    "space": "s2",
    "started": "1",
}


def environment_at(prefix: Path) -> Environment:
    return Environment(
        interpreter=Interpreter(
            executable=prefix / "bin" / "python", version="3.12.1", implementation="cpython"
        ),
        kind="venv",
        prefix=prefix,
        site_packages=prefix,
        has_pip=False,
        writable=True,
        externally_managed=None,
        free_bytes=0,
    )


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return environment_at(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a heartbeat be a tenth of what it is, so that nobody waits for half a minute."""
    monkeypatch.setattr(locking, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locking, "_WATCH_SECONDS", 0.5)
    monkeypatch.setattr(locking, "_POLL_SECONDS", 0.02)


@pytest.fixture
def no_system_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a network drive that knows no locks: the record alone decides."""
    monkeypatch.setattr(locking, "_acquire", lambda _: "unknown")


def record(environment: Environment) -> Path:
    return environment.prefix / ".torchenv" / "holder.json"


def leave(environment: Environment, *, age: float = 0.0, **changes: Any) -> None:
    """Leave the record of a holder that is not there any more, touched `age` seconds ago."""
    record(environment).unlink(missing_ok=True)
    with locked(environment, command="torchenv install cpu"):
        holder = json.loads(record(environment).read_bytes())
    record(environment).write_text(json.dumps({**holder, **changes}), encoding="utf-8")
    then = time.time() - age
    os.utime(record(environment), (then, then))


def is_free(environment: Environment, *, wait_seconds: float = 0.0) -> bool:
    try:
        with locked(environment, wait_seconds=wait_seconds):
            return True
    except BusyError:
        return False


HOLD = """
import sys, time
from pathlib import Path
from tests.test_locking import environment_at
from torchenv_magic.installation import locking
locking._BEAT_SECONDS = 0.1
if sys.argv[2] == "record":
    locking._acquire = lambda _: "unknown"
with locking.locked(environment_at(Path(sys.argv[1])), command="torchenv install cu126"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another(environment: Environment, kind: str = "system") -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(environment.prefix), kind],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()


# ------------------------------------------------------------------------------ who is in the way


@pytest.mark.parametrize("kind", ["system", "record"])
def test_who_asks_second_is_told_who_works_by_which_line(
    environment: Environment, kind: str
) -> None:
    with another(environment, kind) as process:
        with pytest.raises(BusyError) as caught, locked(environment):
            pass
        assert "`torchenv install cu126`" in caught.value.message
        assert f"(process {process.pid}, since " in caught.value.message
        assert process.stdin is not None
        process.stdin.close()
        with locked(environment, wait_seconds=10):
            pass
    assert not record(environment).exists()


def test_of_two_in_one_process_one_has_it(environment: Environment) -> None:
    with locked(environment):
        assert not is_free(environment)
    assert is_free(environment)


@POSIX
def test_a_child_that_outlives_the_holder_does_not_hold_it(environment: Environment) -> None:
    with locked(environment), locking.uv_locked(environment.prefix):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with locked(environment):
            pass
        assert not locking.uv_is_locked(environment.prefix)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("kind", ["system", "record"])
@POSIX
def test_a_killed_holder_is_in_nobodys_way(environment: Environment, kind: str) -> None:
    with another(environment, kind) as process:
        assert not is_free(environment)
        process.kill()
        process.wait()
        assert record(environment).exists()
        assert is_free(environment)


@LINUX
@pytest.mark.usefixtures("no_system_locks")
def test_a_record_is_judged_by_process_start_and_boot(environment: Environment) -> None:
    leave(environment)
    assert not is_free(environment)  # it says that this very process holds it
    leave(environment, started="1")
    assert is_free(environment)  # its number was given out again
    leave(environment, pid=2**22 + 1)
    assert is_free(environment)
    leave(environment, boot="another", machine="m")
    assert not is_free(environment)


@LINUX
@pytest.mark.usefixtures("no_system_locks")
def test_after_a_restart_of_the_machine_nobody_holds_anything(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = dataclasses.replace(locking._here(), machine="a-machine")
    monkeypatch.setattr(locking, "_here", lambda: here)
    leave(environment, boot="the boot before")
    assert is_free(environment)


@LINUX
def test_a_container_of_this_machine_is_told_from_another_machine(environment: Environment) -> None:
    # The system's lock holds between containers; the number of a process does not.
    leave(environment, host="container", space="pid:[1]", pid=1, by_system=True)
    assert is_free(environment)
    leave(environment, host="container", space="pid:[1]", pid=1, by_system=False)
    assert not is_free(environment)


# ------------------------------------------------------------------------- heartbeats and clocks


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("age", [3600.0, -3600.0, 0.0])
def test_a_holder_elsewhere_that_is_alive_is_waited_for_whatever_the_clocks_say(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    monkeypatch.setattr(locking, "_QUIET_SECONDS", 1.0)
    leave(environment, **FOREIGN)
    ended = threading.Event()

    def beat() -> None:
        then = time.time() - age
        while not ended.wait(0.1):
            then += 0.1
            os.utime(record(environment), (then, then))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        assert not is_free(environment, wait_seconds=2.5)
    finally:
        ended.set()
        heart.join()


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_is_dead_for_long_is_replaced_soon(
    environment: Environment,
) -> None:
    leave(environment, age=60, **FOREIGN)
    assert not is_free(environment)
    started = time.monotonic()
    assert is_free(environment, wait_seconds=20)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("age", [0.0, -3600.0])
def test_a_holder_elsewhere_that_has_just_died_is_replaced_after_its_time(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    monkeypatch.setattr(locking, "_QUIET_SECONDS", 1.5)
    leave(environment, age=age, **FOREIGN)
    assert not is_free(environment, wait_seconds=0.3)
    assert is_free(environment, wait_seconds=20)


def test_the_heart_beats_while_it_is_held(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "_BEAT_SECONDS", 0.05)
    with locked(environment):
        os.utime(record(environment), (0, 0))
        limit = time.monotonic() + 30
        while record(environment).stat().st_mtime == 0 and time.monotonic() < limit:
            time.sleep(0.01)
        assert record(environment).stat().st_mtime > 0


def test_who_lost_the_lock_while_it_stood_still_is_told(environment: Environment) -> None:
    with locked(environment) as check:
        check()
        content = json.loads(record(environment).read_bytes())
        record(environment).unlink()
        record(environment).write_text(json.dumps({**content, **FOREIGN, "token": "x"}))
        with pytest.raises(BusyError, match="on elsewhere"):
            check()
    assert record(environment).exists()  # the other's


TAKE = """
import sys, time
from pathlib import Path
from tests.test_locking import environment_at
from torchenv_magic.errors import BusyError
from torchenv_magic.installation import locking
locking._acquire = lambda _: "unknown"
locking._WATCH_SECONDS = 0.3
locking._POLL_SECONDS = 0.001
environment, log = environment_at(Path(sys.argv[1])), Path(sys.argv[2])
sys.stdin.read(1)
with locking.locked(environment, wait_seconds=60):
    with log.open("a") as file:
        file.write("in\\n")
        file.flush()
        time.sleep(0.05)
        file.write("out\\n")
"""


@pytest.mark.usefixtures("quick")
def test_of_many_who_find_a_dead_holder_at_once_one_wins_at_a_time(
    environment: Environment, tmp_path: Path
) -> None:
    leave(environment, age=60, **FOREIGN)
    log = tmp_path / "log"
    command = [sys.executable, "-c", TAKE, str(environment.prefix), str(log)]
    takers = [
        subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, text=True) for _ in range(6)
    ]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("x")
        taker.stdin.close()
    assert [taker.wait(90) for taker in takers] == [0] * 6
    assert log.read_text(encoding="utf-8") == "in\nout\n" * 6
    left = {path.name for path in (environment.prefix / ".torchenv").iterdir()}
    assert left == {"lock"}


@pytest.mark.usefixtures("quick")
def test_who_died_while_he_took_over_is_in_nobodys_way(environment: Environment) -> None:
    leave(environment, age=60, **FOREIGN)
    claim = record(environment).with_name("holder.next")
    claim.write_text("{}", encoding="utf-8")
    assert not is_free(environment, wait_seconds=1)
    os.utime(claim, (0, 0))
    assert is_free(environment, wait_seconds=20)


# ------------------------------------------------------------------------------------ odd folders


@POSIX
def test_no_link_is_followed_to_a_lock(environment: Environment, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    folder = environment.prefix / ".torchenv"
    folder.symlink_to(victim)
    with pytest.raises(TargetError, match="can't be written"), locked(environment):
        pass
    folder.unlink()
    folder.mkdir()
    (folder / "lock").symlink_to(victim / "lock")
    with pytest.raises(TargetError, match="can't be written"), locked(environment):
        pass
    assert list(victim.iterdir()) == []


@POSIX
def test_what_stands_in_the_record_is_not_believed_blindly(environment: Environment) -> None:
    leave(environment, **FOREIGN)
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 10_000, b'{"host": "\\u001b[2J", "pid": 1}'):
        record(environment).write_bytes(content)
        assert read_holder(environment) is None
        assert not is_free(environment)
    record(environment).unlink()
    os.mkfifo(record(environment))
    assert not is_free(environment)  # and nobody waits for a writer
    record(environment).unlink()
    assert is_free(environment)


def test_a_login_in_the_line_is_not_written_down(environment: Environment) -> None:
    line = "torchenv install --index-base https://me:secret@mirror/whl"
    with locked(environment, command=line):
        assert "secret" not in record(environment).read_text(encoding="utf-8")
        holder = read_holder(environment)
        assert holder is not None
        assert holder.command == "torchenv install --index-base https://mirror/whl"


# ------------------------------------------------------------------------------------ the waiting


def test_who_waits_hears_what_the_other_does_and_may_give_up(environment: Environment) -> None:
    heard: list[Event] = []
    cancellation = Cancellation()

    def listen(event: Event) -> None:
        heard.append(event)
        if event.bytes is not None:
            cancellation.cancel()

    def nothing(_: Event) -> None:
        pass

    with holding(
        environment,
        command="%torchenv install cu126",
        on_event=nothing,
        cancellation=Cancellation(),
    ) as hold:
        hold.tell(Event(phase="download", message="Downloading from the PyTorch index"))
        hold.tell(Event(phase="link", bytes=Bytes(done=3, total=7, per_second=None)))
        with pytest.raises(InstallCancelled):
            wait_for_others(environment, on_event=listen, cancellation=cancellation)
        assert record(environment).exists()
    assert {event.phase for event in heard} == {"wait"}
    assert heard[-1].bytes == Bytes(done=3, total=7, per_second=None)
    assert "`%torchenv install cu126`" in heard[-1].message
    assert "Downloading from the PyTorch index" in heard[-1].message
    assert not (environment.prefix / ".torchenv" / "progress.json").exists()


def test_hostile_progress_is_not_shown(environment: Environment) -> None:
    with locked(environment):
        path = environment.prefix / ".torchenv" / "progress.json"
        for content in ("{", '{"phase": "x"}', '{"phase": "link", "message": "\\u001b[2J"}'):
            path.write_text(content, encoding="utf-8")
            assert waiting.read_progress(environment.prefix) is None


def test_nobody_to_wait_for_changes_nothing(environment: Environment) -> None:
    assert not wait_for_others(environment, on_event=None, cancellation=Cancellation())
    assert list(environment.prefix.iterdir()) == []


@POSIX
def test_a_wait_goes_on_when_the_other_dies(environment: Environment) -> None:
    with another(environment) as process:
        timer = threading.Timer(0.5, lambda: process.send_signal(signal.SIGKILL))
        timer.start()
        assert wait_for_others(environment, on_event=None, cancellation=Cancellation())


def test_a_plan_that_waits_is_carried_out_if_it_still_holds(target: Target) -> None:
    plan = target.plan("cpu")
    heard: list[Event] = []
    with another(target.read()) as process:

        def listen(event: Event) -> None:
            heard.append(event)
            if process.stdin is not None and not process.stdin.closed:
                process.stdin.close()

        install_plan(plan, on_event=listen, wait=True)
    assert heard[0].phase == "wait"
    assert target.imported() == f"{TORCH}+cpu"


@pytest.mark.parametrize("count", [2, 8])
def test_installers_at_once_end_with_one_consistent_environment(target: Target, count: int) -> None:
    backends = ["cpu", "cu126"] * (count // 2)
    for backend in set(backends):  # what one asks is in the cache for all
        target.plan(backend, "torch", "torchvision")
    program = "from torchenv_magic.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, "install", backend, "torchvision", "--python",
             str(target.prefix)],
            cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for backend in backends
    ]  # fmt: skip
    outcomes = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, outcomes, strict=True):
        assert "Traceback" not in errors
        assert "Another install" not in errors.splitlines()[-1], errors
        assert process.returncode in (0, 1)
        # The made torch proves nothing; what fails is at most that.
        assert process.returncode == 0 or "PyTorch does not work here" in errors, errors
    settle()
    there = target.versions()
    assert there["torch"].partition("+")[2] == there["torchvision"].partition("+")[2]
    assert target.imported("torch", "torchvision") == there["torch"]
    assert Backend.parse(target.backend()) in map(Backend.parse, backends)
    assert not list(target.site.glob(".torchenv-work*"))
    assert len(list(target.site.glob("torch-*.dist-info"))) == 1
