"""The command that a spawner starts: whatever comes of the install, it becomes the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.preinstall.desk import Desk, wait_for
from tests.standin import StandIn
from torchenv_magic.preinstall.posting import Poster
from torchenv_magic.preinstall.record import STATE_VARIABLE, Record
from torchenv_magic.preinstall.wrapper import OPTIONS
from torchenv_magic.words import options_of

pytest_plugins = ["tests.kernel_wheels", "tests.target_fixtures"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and exec are POSIX's")

# Refused at once, and told by the record: what follows costs no install.
REFUSED = ("--env", sys.prefix)
PROGRAM = "import os, sys; print(os.getpid(), *sys.argv[1:])"


@pytest.fixture
def desk(tmp_path: Path, standin: StandIn, warm_cache: Path) -> Desk:
    home = tmp_path / "home"
    desk = Desk(home=home, wheels=tmp_path, cache=warm_cache, standin=standin)
    home.mkdir()
    desk.runs.mkdir()
    return desk


def test_the_command_is_the_same_process_and_its_exit_status_the_wrappers(desk: Desk) -> None:
    command = (sys.executable, "-c", f"{PROGRAM}; sys.exit(7)", "--port=5", "--", "{a}", "b c")
    with desk.start(*REFUSED, command=command) as process:
        out, _ = process.communicate(timeout=60)
    assert out.split() == [str(process.pid), "--port=5", "--", "{a}", "b", "c"]
    assert process.returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_signals_reach_the_server_and_it_ignores_none_that_python_ignores(desk: Desk) -> None:
    with desk.start(*REFUSED, command=("sh", "-c", "cat /proc/self/status; exec sleep 60")) as run:
        assert run.stdout is not None
        ignored = next(line for line in run.stdout if line.startswith("SigIgn"))
        # Who runs the tests under `nohup` ignores one more, which is handed on.
        handed_on = (
            1 << (signal.SIGHUP - 1) if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else 0
        )
        assert int(ignored.split()[1], 16) == handed_on
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=30) == -signal.SIGTERM


FAULTS = {
    "an option that is misspelt": ("--wiat", "5"),
    "an option without its value": ("--wait",),
    "a wait that is no number": ("--wait", "soon"),
    "a backend that is none": ("--backend", "$(id)"),
    "a requirement that is an option": ("torch", "--index-url=http://example.com"),
    "an address": ("torch @ http://example.com/torch.whl",),
    "an environment that is refused": REFUSED,
    "a word that is no package": ("gpu",),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_server_starts_whatever_is_wrong_with_the_line(desk: Desk, fault: str) -> None:
    done = desk.run(*FAULTS[fault], command=("echo", "up"))
    assert (done.returncode, done.stdout) == (0, "up\n")
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("torchenv: ") for line in lines)
    assert not desk.environments.exists()


@pytest.mark.parametrize(
    "broken",
    [
        "launch._temporary = lambda environ: []",
        "launch.place_of = lambda *_: 1 / 0",
        "launch.sys.executable = '/nowhere'",
        "wrapper.wish_of = None",
    ],
)
def test_the_server_starts_whatever_is_wrong_with_us(desk: Desk, broken: str) -> None:
    program = (
        "from torchenv_magic.preinstall import launch, wrapper\n"
        f"{broken}\n"
        "wrapper.main(['--backend', 'cpu', '--', 'echo', 'up'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=desk.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "up\n")
    assert "PyTorch is not being installed" in done.stderr


def test_a_command_that_is_not_there_is_told_as_a_shell_does(desk: Desk) -> None:
    done = desk.run(*REFUSED, command=("no-such-program",))
    assert done.returncode == 127
    assert done.stderr.endswith("torchenv: there is no program `no-such-program`\n")
    assert desk.run(*REFUSED, command=(str(desk.home),)).returncode == 126


def test_without_a_command_a_misspelt_line_fails_and_help_is_data(desk: Desk) -> None:
    assert desk.run("--wiat", "5", command=()).returncode == 2
    assert desk.run(*REFUSED, command=()).returncode == 0
    done = desk.run("-h", command=())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: torchenv preinstall ")


def test_a_command_whose_dashes_were_forgotten_is_taken_for_no_package(desk: Desk) -> None:
    for word in ("jupyterhub-singleuser", "cat"):
        done = desk.run(word, command=())
        assert done.returncode == 2
        assert f"`{word}` is a program: write `--`" in done.stderr
    assert not desk.environments.exists()


def test_a_login_in_a_line_stands_in_no_log(desk: Desk) -> None:
    done = desk.run("torch @ https://me:secret@mirror.example/torch.whl", command=("true",))
    assert "secret" not in done.stderr
    assert "`torch`" in done.stderr


def test_without_room_for_a_record_an_earlier_kernel_is_offered_all_the_same(desk: Desk) -> None:
    program = (
        "from torchenv_magic.preinstall import launch, wrapper\n"
        "launch._temporary = lambda environ: []\n"
        "wrapper.main(['--backend', 'cpu', '--', 'env'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=desk.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"JUPYTER_PATH={desk.environments}" in done.stdout
    assert STATE_VARIABLE not in done.stdout


def test_an_installer_that_can_not_be_loaded_keeps_nobody_waiting(desk: Desk) -> None:
    broken = desk.home / "broken" / "packaging"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError", "utf-8")
    first = f"import sys; sys.path.insert(0, {str(broken.parent)!r}); "
    program = (
        "from torchenv_magic.preinstall import launch, wrapper\n"
        f"launch._PROGRAM = {first!r} + launch._PROGRAM\n"
        "wrapper.main(['--backend', 'cpu', '--wait', '50', '--', 'echo', 'up'])\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=desk.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - began < 40
    assert done.stdout == "up\n"
    assert "The installer could not be loaded: ImportError" in done.stderr
    assert desk.record().status == "failed"


def test_the_options_are_those_of_the_words() -> None:
    assert set(OPTIONS) == {*options_of("preinstall", notebook=False)} - {"--help"}


def test_an_admin_switches_it_off_by_a_variable(desk: Desk) -> None:
    done = desk.run(command=("env",), TORCHENV_PREINSTALL="0")
    assert STATE_VARIABLE not in done.stdout
    assert done.stderr == ""
    assert not list(desk.runs.iterdir())


def test_what_stands_before_each_start_of_a_server_is_the_standard_library_alone(
    desk: Desk,
) -> None:
    program = (
        "import os, sys; from torchenv_magic.__main__ import main\n"
        "os.execvpe = lambda *_: print(*sys.modules)\n"
        f"main(['preinstall', *{REFUSED!r}, '--', 'true'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {program}"],
        env=desk.variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "torchenv_magic.preinstall.wrapper" in loaded
    ours = {name for name in loaded if name.startswith("torchenv_magic.")}
    assert not {name for name in ours if name.split(".")[1] in {"words", "cli", "selection"}}
    assert not loaded & {"argparse", "packaging", "subprocess", "tempfile", "logging", "threading"}


# ----------------------------------------------------------------------------------- what is posted


@contextmanager
def hub(status: int) -> Iterator[tuple[str, list[tuple[str, str, dict[str, object]]]]]:
    """Lend what stands for a hub: its address, and what it was told."""
    told: list[tuple[str, str, dict[str, object]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hub/api", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_hub_is_told_what_goes_on_and_how_it_ended() -> None:
    with hub(204) as (address, told):
        poster = Poster({"JUPYTERHUB_API_URL": address, "JUPYTERHUB_API_TOKEN": "mine"})
        poster.tell(Record(status="running", message="x" * 500, fraction=0.5))
        wait_for(lambda: told)
        poster.finish(Record(status="failed", message="It failed", hint="do this"))
    assert told == [
        (
            "/hub/api/torchenv/progress",
            "token mine",
            {"message": "x" * 200, "fraction": 0.5},
        ),
        (
            "/hub/api/torchenv/progress",
            "token mine",
            {"message": "It failed (hint: do this)", "fraction": None},
        ),
    ]


@pytest.mark.parametrize("status", [403, 404])
def test_a_hub_that_does_not_listen_is_asked_once(status: int) -> None:
    with hub(status) as (address, told):
        poster = Poster({"JUPYTERHUB_API_URL": address, "JUPYTERHUB_API_TOKEN": "mine"})
        poster.tell(Record(status="running", message="one"))
        wait_for(lambda: told)
        poster.tell(Record(status="running", message="two"))
        poster.finish(Record(status="done", message="three"))
        assert len(told) == 1


def test_nobody_is_asked_where_no_hub_is() -> None:
    poster = Poster({})
    poster.tell(Record(status="running", message="one"))
    assert poster._thread is None
