"""The door to uv: found, checked, led, heard, stopped; with the real uv wherever it can be real."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import packaging
import psutil
import pytest
import uv as uv_package
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from tests.standin import Fault
from tests.targets import Target
from torchenv_magic.builds.current import is_offline
from torchenv_magic.errors import InstallCancelled, UvError
from torchenv_magic.installation import uv as door
from torchenv_magic.installation.uv import (
    OLDEST_UV,
    Cancellation,
    Uv,
    child_environment,
    find_uv,
    words,
)

pytest_plugins = ["tests.target_fixtures"]

POSIX = pytest.mark.skipif(os.name != "posix", reason="the stand-ins for uv are shell scripts")
PROJECT = Path(__file__).resolve().parents[1]


def write_program(path: Path, *lines: str) -> Path:
    """Write a program that stands where uv should be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# ----------------------------------------------------------------------------------------- finding


def test_the_uv_of_its_package_is_found_and_new_enough() -> None:
    found = find_uv()
    assert found.binary == Path(uv_package.find_uv_bin())
    assert found.version >= OLDEST_UV
    assert found.run(["--version"]).stdout.split()[1] == str(found.version)


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a way to run our code where uv's package lies beside a program of our choice.

    uv looks for its program in `bin` beside the folder that it was installed into.
    """
    for package in (uv_package, packaging):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, tmp_path / "house" / source.name)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path / "house"), str(PROJECT)]
        return subprocess.run(
            [base_python(), "-I", "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    return run


def base_python() -> str:
    """Return an interpreter that has no uv of its own beside it."""
    return str(Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else "bin/python3"))


FIND = """
from torchenv_magic.errors import UvError
from torchenv_magic.installation.uv import find_uv
try:
    print(find_uv())
except UvError as error:
    print(error)
"""


def test_uv_that_is_not_there_is_said(
    house: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    said = house(FIND)
    assert "uv is not installed beside torchenv_magic" in said.stdout, said.stderr
    assert "hint: run `%pip install uv`" in said.stdout
    shutil.rmtree(tmp_path / "house" / "uv")
    assert "uv is not installed beside torchenv_magic" in house(FIND).stdout


@POSIX
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["echo 'uv 0.9.0'"], "uv 0.9.0 is too old: plans need uv 0.12.18 or newer"),
        (["echo 'uv 99.0 (abc 2030-01-01)'"], "version=<Version('99.0')>"),
        (["echo hello"], "does not run, so nothing can be installed"),
        (["exit 3"], "does not run, so nothing can be installed"),
        (["kill -9 $$"], "does not run, so nothing can be installed"),
    ],
)
def test_what_stands_where_uv_should_be_is_looked_at(
    house: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    lines: list[str],
    expected: str,
) -> None:
    write_program(tmp_path / "house" / "bin" / "uv", *lines)
    said = house(FIND)
    assert expected in said.stdout, said.stderr
    assert "Traceback" not in said.stderr


@POSIX
def test_a_program_without_the_right_to_run_is_said(
    house: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    write_program(tmp_path / "house" / "bin" / "uv", "echo 'uv 99.0'").chmod(0o644)
    assert "does not run" in house(FIND).stdout


@POSIX
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Resolved 3 packages", "a form that this version of torchenv_magic does not know"),
        ('{"changes": 7}', "a form that this version of torchenv_magic does not know"),
        ("", "a form that this version of torchenv_magic does not know"),
    ],
)
def test_an_answer_that_is_no_json_ends_in_one_message(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    program = write_program(
        tmp_path / "bin" / "uv",
        'case "$1" in --version) echo "uv 99.0" ;; *) ' + f"printf '%s' '{said}' ;; esac",
    )
    monkeypatch.setattr(uv_package, "find_uv_bin", lambda: str(program))
    before = target.snapshot()
    with pytest.raises(UvError, match=expected) as caught:
        target.plan("cpu")
    assert caught.value.hint
    assert caught.value.detail == said
    assert target.snapshot() == before


# ----------------------------------------------------------------------------------------- leading


def test_nothing_of_the_session_leads_uv_to_another_target_or_silences_it() -> None:
    child = child_environment(
        {
            "PATH": "/bin",
            "VIRTUAL_ENV": "/elsewhere",
            "CONDA_PREFIX": "/conda",
            "UV_PYTHON": "3.9",
            "UV_TORCH_BACKEND": "cu118",
            "UV_PROJECT_ENVIRONMENT": "/elsewhere",
            "UV_WORKING_DIR": "/elsewhere",
            "UV_REQUIRE_HASHES": "1",
            "UV_LOCK_TIMEOUT": "1",
            "JPY_SESSION_NAME": "train.ipynb",
            "JPY_API_TOKEN": "secret",
            "JUPYTERHUB_API_TOKEN": "secret",
            "UV_NO_PROGRESS": "1",
            "PYTHONPATH": "/elsewhere",
            "UV_CACHE_DIR": "/cache",
            "HTTPS_PROXY": "http://proxy.example:3128",
        }
    )
    assert child.keys() == {
        *("PATH", "UV_CACHE_DIR", "HTTPS_PROXY"),
        *("NO_COLOR", "UV_LOCK_TIMEOUT", "UV_PYTHON_DOWNLOADS", "PYTHONIOENCODING"),
    }
    assert int(child["UV_LOCK_TIMEOUT"]) > 3600
    assert "secret" not in str(child)


def test_the_mirror_that_pip_knows_is_told_to_uv_unless_uv_knows_one() -> None:
    mirror = "https://mirror.example/simple"
    assert child_environment({"PIP_INDEX_URL": mirror})["UV_DEFAULT_INDEX"] == mirror
    own = child_environment({"PIP_INDEX_URL": mirror, "UV_DEFAULT_INDEX": "https://own.example"})
    assert own["UV_DEFAULT_INDEX"] == "https://own.example"
    old = child_environment({"PIP_INDEX_URL": mirror, "UV_INDEX_URL": "https://own.example"})
    assert "UV_DEFAULT_INDEX" not in old


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("true", True), ("", False), ("0", False), ("false", False)],
)
def test_whether_a_person_wants_no_network(value: str, expected: bool) -> None:  # noqa: FBT001
    assert is_offline({"UV_OFFLINE": value}) is expected
    assert not is_offline({})


# ----------------------------------------------------------------------------------------- hearing


def test_arguments_reach_uv_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a b; $(touch c) 'd'"
    done = find_uv().run(
        ["venv", "--offline", "--no-config", f"--python={sys.executable}", str(folder)]
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "pyvenv.cfg").is_file()


def test_what_uv_says_is_heard_whole_and_as_it_comes() -> None:
    heard: list[str] = []
    done = find_uv().run(["pip", "install", "--no-such-option"], on_text=heard.append)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "unexpected argument '--no-such-option'" in done.stderr
    assert "".join(heard).strip().startswith("error:")


def test_stdin_reaches_uv(target: Target) -> None:
    done = find_uv().run(
        ["pip", "compile", "-", "--quiet", "--no-header", f"--python={target.python}"],
        stdin="filelock\n",
    )
    assert done.stdout.startswith("filelock==3.20.0")


@POSIX
def test_a_listener_that_fails_does_not_leave_uv_with_a_full_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = write_program(tmp_path / "uv", "head -c 300000 /dev/zero | tr '\\0' x >&2")

    def listen(_text: str) -> None:
        raise ZeroDivisionError

    done = Uv(binary=program, version=Version("99")).run([], on_text=listen)
    assert len(done.stderr) == 300_000
    assert "a listener failed" in caplog.text


@POSIX
def test_an_hour_of_bars_does_not_fill_the_memory(tmp_path: Path) -> None:
    program = write_program(
        tmp_path / "uv", "head -c 3000000 /dev/zero | tr '\\0' x >&2", "echo >&2", "echo end >&2"
    )
    done = Uv(binary=program, version=Version("99")).run([], bars=True)
    assert done.stderr.endswith("end")
    assert len(done.stderr) < 500_000


def test_what_was_drawn_and_erased_is_no_word_of_uvs() -> None:
    drawn = (
        "Using CPython 3.11.7 interpreter at: v/bin/python\r\n"
        "\x1b[2K⠙ torch==2.13.0+cu130          \r\x1b[2KResolved 8 packages in 1.19s\r\n"
        "⠋ Preparing packages... (0/8)     \r\n"
        "torch      ------------------------------ 8.00 KiB/1.45 MiB    "
        "\x1b[1A\r\x1b[2K\x1b[1B\r\x1b[2K\x1b[1APrepared 8 packages in 95ms\r\n"
        "░░░░░░░░░░░░░░░░░░░░ [0/8] Installing wheels...   \r\x1b[2KInstalled 8 packages\r\n"
        " + torch==2.13.0+cu130\r\n"
    )
    assert words(drawn).splitlines() == [
        "Using CPython 3.11.7 interpreter at: v/bin/python",
        "Resolved 8 packages in 1.19s",
        "Prepared 8 packages in 95ms",
        "Installed 8 packages",
        " + torch==2.13.0+cu130",
    ]


@given(st.text())
def test_any_text_has_words(text: str) -> None:
    assert "\x1b[2K" not in words(text)


def test_the_cache_is_where_uv_says(tmp_path: Path) -> None:
    uv = find_uv()
    environ = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache of ada")}
    assert uv.cache_directory(environ) == tmp_path / "cache of ada"


def test_a_configuration_that_uv_cannot_read_is_no_cache_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uv.toml").write_text("cache-dir = \n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    with pytest.raises(UvError, match=r"uv can't name its cache.*uv\.toml"):
        find_uv().cache_directory(environ)


@POSIX
def test_a_working_directory_that_was_deleted_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    door._version.cache_clear()
    environ = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache")}
    assert find_uv().cache_directory(environ) == tmp_path / "cache"


# ---------------------------------------------------------------------------------------- stopping


def wait_until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@POSIX
def test_a_wish_to_stop_ends_uv_and_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    program = write_program(
        tmp_path / "uv",
        f"sleep 987 & echo $! > {started}.part",
        f"mv {started}.part {started}",
        "wait",
    )
    cancellation = Cancellation()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            Uv(binary=program, version=Version("99")).run([], cancellation=cancellation)
        except InstallCancelled as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(started.exists)
    child = psutil.Process(int(started.read_text()))
    asked = time.monotonic()
    cancellation.cancel()
    thread.join(30)
    assert time.monotonic() - asked < 10
    assert caught
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@POSIX
def test_a_uv_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    program = write_program(
        tmp_path / "uv", "trap '' TERM INT", f": > {started}", "while :; do sleep 1; done"
    )
    cancellation = Cancellation()

    def stop() -> None:
        wait_until(started.exists)
        cancellation.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    asked = time.monotonic()
    with pytest.raises(InstallCancelled):
        Uv(binary=program, version=Version("99")).run([], cancellation=cancellation)
    thread.join()
    assert time.monotonic() - asked < 20


def test_nothing_starts_once_it_is_to_stop(tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(InstallCancelled, match="the environment is as it was"):
        find_uv().run(["venv", str(tmp_path / "v")], cancellation=cancellation)
    assert not (tmp_path / "v").exists()


def test_a_wish_reaches_what_is_there_and_what_comes_and_not_what_is_over() -> None:
    cancellation = Cancellation()
    heard: list[str] = []
    with cancellation.stops(lambda: heard.append("over")):
        pass
    with cancellation.stops(lambda: heard.append("there")):
        cancellation.cancel()
    with cancellation.stops(lambda: heard.append("late")):
        pass
    assert heard == ["there", "late"]
    assert cancellation.requested


@POSIX
def test_uv_has_a_session_of_its_own_so_that_a_kernels_interrupt_does_not_reach_it(
    tmp_path: Path,
) -> None:
    program = write_program(tmp_path / "uv", "ps -o sid= -p $$; ps -o sid= -p $PPID")
    own, parent = Uv(binary=program, version=Version("99")).run([]).stdout.split()
    assert own != parent


@POSIX
def test_an_interrupt_of_the_calling_thread_ends_uv(target: Target) -> None:
    target.standin.faults = [Fault(pattern=r"/torch/$", kind="silent")]

    def interrupt() -> None:
        wait_until(lambda: target.standin.downloads(r"/torch/$"))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        target.plan("cpu")
    thread.join()
    wait_until(lambda: not target.running())


def test_no_secret_of_a_mirror_stands_in_an_argument(
    target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = target.standin.simple_url.removeprefix("http://")
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://ada:hunter2@{host}")
    seen: list[str] = []
    with caplog.at_level("DEBUG", logger="torchenv_magic"):
        plan = target.plan("cpu", on_event=lambda event: seen.append(f"{event}"))
    assert plan.versions["torch"] == "2.13.0+cpu"
    assert "hunter2" not in f"{seen}{caplog.text}{plan}"


# ------------------------------------------------------------------------------------ certificates


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE"])
def test_certificates_that_are_set_for_pip_and_requests_hold_for_uv(
    tmp_path: Path, name: str
) -> None:
    bundle = tmp_path / "site.pem"
    bundle.write_text("", encoding="utf-8")
    assert child_environment({name: str(bundle)})["SSL_CERT_FILE"] == str(bundle)
    assert child_environment({name: str(tmp_path)})["SSL_CERT_DIR"] == str(tmp_path)
    assert "SSL_CERT_FILE" not in child_environment({name: str(tmp_path / "none.pem")})


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "UV_SYSTEM_CERTS"])
def test_what_is_set_for_uv_itself_is_left_alone(tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "site.pem"
    bundle.write_text("", encoding="utf-8")
    child = child_environment({name: "mine", "REQUESTS_CA_BUNDLE": str(bundle)})
    assert child[name] == "mine"
    assert str(bundle) not in [child.get("SSL_CERT_FILE"), child.get("SSL_CERT_DIR")]


def may_mount() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


@pytest.mark.skipif(
    not (SYSTEM_BUNDLE.is_file() and may_mount()),
    reason="the system's certificates can't be others here: no mount namespace may be made",
)
@pytest.mark.parametrize("known", [True, False])
def test_where_uvs_own_certificates_fail_the_systems_are_tried_once(
    target: Target,
    known: bool,  # noqa: FBT001
) -> None:
    code = f"""
from pathlib import Path
from tests.targets import Target, selected
from torchenv_magic.environment import read_environment
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.selection import Request
lines = []
plan = make_plan(selected("cu126"), read_environment(Path({str(target.prefix)!r})), Request(),
                 on_event=lambda event: lines.append(event.log))
print(plan.versions["torch"], sum("those of this system" in line for line in lines))
"""
    bundle = target.standin.bundle if known else SYSTEM_BUNDLE
    mounted = f'mount --bind "{bundle}" {SYSTEM_BUNDLE} && exec "$@"'
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SSL_CERT") and not name.endswith(("CA_BUNDLE", "PIP_CERT"))
    }
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, "sh", sys.executable, "-c", code],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    if known:
        assert done.stdout.split() == ["2.13.0+cu126", "1"], done.stderr
    else:
        assert "isn't trusted here" in done.stderr
        assert "SSL_CERT_FILE" in done.stderr


def test_no_login_comes_out_of_uvs_words(tmp_path: Path) -> None:
    said = "fetching https://ada:secret@mirror.example/whl/"
    program = write_program(tmp_path / "uv", f"echo '{said}' >&2", "exit 1")
    heard: list[str] = []
    done = Uv(binary=program, version=OLDEST_UV).run(["x"], on_text=door.Lines(heard.append).feed)
    assert "secret" not in done.stderr
    assert heard == ["fetching https://mirror.example/whl/"]
