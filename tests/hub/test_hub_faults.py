"""What goes wrong while a hub's servers get their PyTorch: each comes up, and the words say why.

All of it happens at once, to one user each, since that is how a hub is used: while one disk is full
and one installer is killed, the others and the hub go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.hub.campus import Campus, UnixUser
from tests.hub.hub import Hub
from torchenv_magic.preinstall.record import Record, read_record

pytest_plugins = ["tests.hub.fixtures", "tests.kernel_wheels"]
pytestmark = pytest.mark.hub

LINES = """
from torchenv_magic.hub import configure

configure(c, wait=60, find_links=({wheels!r},), form=False)
variables = {variables!r}


def differ(spawner):
    spawner.environment.update(variables.get(spawner.user.name, {{}}))


c.Spawner.pre_spawn_hook = differ
"""
NOWHERE = "http://127.0.0.1:9"
ENVIRONMENTS = ".local/share/torchenv/environments"
SMALL_HOME = "size=24m"
PATIENCE = 110


@dataclass(slots=True)
class Spawned:
    """How the start of one user's server went."""

    user: UnixUser
    is_ready: bool = False
    told: list[str] = field(default_factory=list)
    """What the page that waits was told."""
    log: str = ""

    def record(self) -> Record:
        """Return the last thing that the installer said."""
        records = [read_record(folder) for folder in self.user.preinstalls()]
        *_, last = (record for record in records if record is not None)
        return last


@dataclass(slots=True)
class Scene:
    """A hub on which everything has gone wrong once."""

    hub: Hub
    spawned: dict[str, Spawned]
    slowest_answer: float = 0.0


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, campus: Campus) -> Iterator[Scene]:
    names = ("no network", "no mirror", "full disk", "killed uv", "killed installer", "traps")
    with campus.users(len(names)) as people:
        users = dict(zip(names, people, strict=True))
        variables = {
            users["no network"].name: dict.fromkeys(
                ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), NOWHERE
            ),
            users["no mirror"].name: {"TORCHENV_INDEX_BASE": f"{NOWHERE}/whl"},
        }
        lines = LINES.format(wheels=str(campus.wheels), variables=variables)
        hub = campus.hub(tmp_path_factory.mktemp("hub-faults"), lines)
        with small_disk(users["full disk"]):
            set_traps(users["traps"], campus.directory)
            try:
                hub.start()
                yield play(hub, users)
            finally:
                hub.stop()


def play(hub: Hub, users: dict[str, UnixUser]) -> Scene:
    """Start everybody's server at once, and let go wrong what goes wrong in the middle."""
    scene = Scene(hub=hub, spawned={name: Spawned(each) for name, each in users.items()})
    over = threading.Event()
    disturbances: list[Callable[[], None]] = [
        lambda: keep_killing(users["killed uv"], is_uv, over),
        lambda: kill_once(users["killed installer"], over),
        lambda: ask_steadily(scene, over),
    ]
    threads = [threading.Thread(target=each, daemon=True) for each in disturbances]
    for thread in threads:
        thread.start()
    starts = [
        threading.Thread(target=start, args=(hub, each), daemon=True)
        for each in scene.spawned.values()
    ]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    over.set()
    for thread in threads:
        thread.join()
    return scene


def start(hub: Hub, spawned: Spawned) -> None:
    name = spawned.user.name
    hub.ask("POST", f"users/{name}")
    hub.ask("POST", f"users/{name}/server")
    listener = threading.Thread(target=listen, args=(hub, spawned), daemon=True)
    listener.start()
    with suppress(Exception):
        hub.wait_until_ready(name, timeout=PATIENCE)
        spawned.is_ready = True
    listener.join(10)
    spawned.log = hub.log()[-5000:]


def listen(hub: Hub, spawned: Spawned) -> None:
    """Read what the page that waits would show, until the server is there."""
    request = urllib.request.Request(
        f"{hub.url}hub/api/users/{spawned.user.name}/server/progress",
        headers={"Authorization": f"token {hub.token}"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError), direct.open(request, timeout=PATIENCE) as stream:
        for line in stream:
            name, _, text = line.decode().partition(":")
            if name == "data":
                spawned.told.append(json.loads(text).get("message", ""))


# ------------------------------------------------------------------------------------ disturbances


def ask_steadily(scene: Scene, over: threading.Event) -> None:
    """Ask the hub all the while, and keep how long the slowest answer took."""
    while not over.wait(0.5):
        began = time.monotonic()
        scene.hub.ask("GET", "info")
        scene.slowest_answer = max(scene.slowest_answer, time.monotonic() - began)


def is_uv(process: psutil.Process) -> bool:
    # Not the ones that are asked for a version or a place: they are gone in milliseconds, and what
    # is said of their end is another sentence.
    return process.name() == "uv" and "pip" in process.cmdline()


def keep_killing(
    user: UnixUser, is_meant: Callable[[psutil.Process], bool], over: threading.Event
) -> None:
    """Kill each such process of the user's as soon as it is seen, as a machine without memory."""
    while not over.wait(0.05):
        for process in user.processes():
            with suppress(psutil.Error):
                if is_meant(process):
                    process.kill()


def kill_once(user: UnixUser, over: threading.Event) -> None:
    """Kill the installer when the environment is there in part."""
    environments = user.home / ENVIRONMENTS
    while not over.wait(0.05):
        if any(environments.glob("*/lib/python*/site-packages")):
            with suppress(ValueError, OSError):
                os.kill(Spawned(user).record().pid, signal.SIGKILL)
                return


class small_disk:  # noqa: N801  (reads as what it is)
    """Let a user's home be on a disk that a server fits on, and PyTorch doesn't."""

    def __init__(self, user: UnixUser) -> None:
        self._user = user

    def __enter__(self) -> None:
        home = str(self._user.home)
        owner = f"uid={self._user.uid},gid={self._user.gid},mode=700"
        command = ["mount", "-t", "tmpfs", "-o", f"{SMALL_HOME},{owner}", "tmpfs", home]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            pytest.skip(f"no small disk can be made here: {done.stderr.strip()}")

    def __exit__(self, *_: object) -> None:
        # Whoever still has a file open there is about to be ended, with the user.
        command = ["umount", "--lazy", str(self._user.home)]
        subprocess.run(command, capture_output=True, timeout=30, check=False)


def set_traps(user: UnixUser, foreign: Path) -> None:
    """Put pipes and a link where our files go: who opens a pipe carelessly waits for ever.

    A link is the user's own word, which leads where their own rights do, and to nothing of root's.
    """
    for name in (".config/torchenv/config.toml", ".cache/torchenv_magic"):
        pipe = user.home / name
        pipe.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(pipe)
    environments = user.home / ENVIRONMENTS
    environments.parent.mkdir(parents=True)
    environments.symlink_to(foreign)
    for path in user.home.rglob("*"):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


# ------------------------------------------------------------------------------------------- tests


def test_every_server_comes_up_whatever_became_of_its_install(scene: Scene) -> None:
    missing = [name for name, spawned in scene.spawned.items() if not spawned.is_ready]
    assert missing == [], scene.hub.log()[-5000:]


def test_the_hub_answers_all_the_while(scene: Scene) -> None:
    assert 0 < scene.slowest_answer < 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no network", "can't be reached"),
        ("no mirror", "can't be reached"),
        ("full disk", "space"),
        ("killed uv", "ended from outside"),
        ("traps", "can't be written: Permission denied"),
    ],
)
def test_the_record_and_the_waiting_page_say_what_happened(
    name: str, words: str, scene: Scene
) -> None:
    spawned = scene.spawned[name]
    record = spawned.record()
    assert record.status == "failed", record
    assert words in f"{record.message} {record.hint}", record
    assert record.hint
    assert any(record.message[:60] in told for told in spawned.told), spawned.told


def test_after_a_kill_the_next_start_makes_it_whole(scene: Scene) -> None:
    spawned = scene.spawned["killed installer"]
    user = spawned.user
    assert spawned.record().status == "running"
    (python,) = (user.home / ENVIRONMENTS).glob("*/bin/python")
    assert user.run(python, "-c", "import torch").returncode != 0
    for process in user.processes():
        # Asked kindly it would take seconds to go.
        with suppress(psutil.NoSuchProcess):
            process.kill()
    scene.hub.ask("DELETE", f"users/{user.name}/server")
    scene.hub.ask("POST", f"users/{user.name}/server")
    scene.hub.wait_until_ready(user.name, timeout=PATIENCE)
    assert spawned.record().status == "done", spawned.record()
    told = user.run(python, "-c", "import torch; print(torch.__version__)")
    assert told.stdout == "2.13.0+cpu\n", told.stderr


def test_no_server_s_token_is_in_a_log(scene: Scene) -> None:
    tokens = set()
    for spawned in scene.spawned.values():
        for process in spawned.user.processes():
            with suppress(psutil.NoSuchProcess):
                tokens.add(process.environ().get("JUPYTERHUB_API_TOKEN", ""))
    tokens.discard("")
    assert len(tokens) >= sum(spawned.is_ready for spawned in scene.spawned.values()) > 0
    folders = [folder for each in scene.spawned.values() for folder in each.user.preinstalls()]
    logs = [scene.hub.log_file, *(path for folder in folders for path in folder.iterdir())]
    texts = [log.read_text(errors="replace") for log in logs if log.is_file()]
    assert len(texts) > len(scene.spawned)
    assert [token for token in tokens if any(token in text for text in texts)] == []
