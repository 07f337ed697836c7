"""Where faults strike: environments that are copied for each, and the programs that install."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from uv import find_uv_bin

from tests.browser.kernel_environment import KernelEnvironment, build_project_wheel
from tests.faults import trigger
from tests.faults.checker import Judge, files_below
from tests.kernels import Kernel
from tests.standin import StandIn, find_real_wheels, make_wheel
from tests.standin.wheels import machine_platform_tag, make_family
from tests.targets import make_environment

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SECONDS", "Arena", "Bench", "Ended", "Program", "Switch", "poll", "switch_steps"]

SECONDS = 90.0
"""How long anything may take on a busy machine before it counts as hanging."""

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_OWN = ("lib/python{version}/site-packages/torch/notes.txt", "notes.txt")
_FOREIGN = ("COLAB_", "IPYTHON", "JPY_", "JUPYTER", "KAGGLE_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")
_TORCH_FILES = 1200
REQUIREMENTS = ("torch", "torchvision", "satellite")

Place = Literal["terminal", "notebook"]


def poll(found: Callable[[], bool], *, seconds: float = SECONDS, pause: float = 0.002) -> bool:
    """Return whether it was found within that time."""
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended, and what it said."""

    status: str
    """The exit status, or what ended it."""
    said: str
    """Its last message with the hint; empty where it could say nothing."""
    everything: str


class Program(Protocol):
    """Something that installs: the command in a terminal, or a kernel with its cell."""

    @property
    def pid(self) -> int: ...

    def alive(self) -> bool: ...

    def wait(self) -> Ended: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """What was learned of one switch that nobody disturbed."""

    template: Path
    """An environment to start from."""
    backend: str
    """What it is switched to."""
    judge: Judge
    steps: tuple[str, ...]
    """What the switching program told of each of its steps."""


def switch_steps(steps: tuple[str, ...]) -> range:
    """Return the numbers of the steps after uv's last run, up to the last that changes anything."""
    runs = [number for number, step in enumerate(steps) if step == "start uv"]
    first = runs[-1] + 1 if runs else 0
    changes = [
        number
        for number, step in enumerate(steps)
        if number >= first and not step.startswith(_CHANGES_NOTHING)
    ]
    return range(changes[0], changes[-1] + 1)


_CHANGES_NOTHING = ("start ", "open /.lock", "os.mkdir /.torchenv")


class Terminal:
    """`torchenv` in a process of its own."""

    def __init__(self, bench: Bench, words: tuple[str, ...], *, armed: bool) -> None:
        program = [str(Path(trigger.__file__))] if armed else ["-m", "torchenv_magic"]
        self._bench = bench
        self._process = subprocess.Popen(
            [*bench.wrapper, sys.executable, *program, *words],
            env=bench.variables,
            cwd=bench.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> Ended:
        try:
            out, err = self._process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, err = self._process.communicate()
            return Ended(status="hangs", said="", everything=out + err)
        code = self._process.returncode
        status = str(code) if code >= 0 else signal.Signals(-code).name
        return Ended(
            status=status,
            said="" if code < 0 else self._bench.tidy(_last_words(out, err)),
            everything=self._bench.tidy(f"{out}\n{err}"),
        )


class Notebook:
    """A kernel of the environment that is switched, with a cell that switches it."""

    def __init__(self, bench: Bench, cell: str) -> None:
        self._bench = bench
        self._left = contextlib.ExitStack()
        folder = bench.folder / "kernels" / "fault"
        folder.mkdir(parents=True)
        command = [str(bench.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        specification = {"argv": command, "display_name": "fault", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
        self._manager = KernelManager(
            kernel_name="fault",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(folder.parent)]),
            connection_file=str(bench.folder / "kernel.json"),
        )
        self._manager.start_kernel(
            cwd=str(bench.folder),
            env=bench.variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._left.callback(self._manager.shutdown_kernel, now=True)
        provisioner: Any = self._manager.provisioner
        self._pid = int(provisioner.pid)
        self._kernel = self._left.enter_context(Kernel.attach(bench.folder / "kernel.json"))
        source = Path(trigger.__file__).read_text("utf-8").replace("__main__", "__trigger__")
        self._kernel.run(f"{source}\narm()\n%load_ext torchenv_magic")
        self._request = self._kernel.send(cell, cell_id="fault")
        self._kernel.settle()

    @property
    def pid(self) -> int:
        return self._pid

    def alive(self) -> bool:
        return bool(self._manager.is_alive())

    def wait(self) -> Ended:
        with self._left:
            reply = self._reply()
            said = "" if reply is None else self._shown()
            status = "the kernel died" if reply is None else str(reply)
        return Ended(
            status=status,
            said=self._bench.tidy(_last_message(said) or _first_line(said)),
            everything=self._bench.tidy(said),
        )

    def _reply(self) -> str | None:
        """Return how the cell ended; None where its kernel did first."""
        client = self._kernel.client
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                message = client.get_shell_msg(timeout=0.1)
                if message["parent_header"]["msg_id"] == self._request:
                    content = message["content"]
                    return str(content.get("ename") or content["status"])
                continue
            if not self.alive():
                return None
        return "hangs"

    def _shown(self) -> str:
        """Return what stands below the cell at its end."""
        self._kernel.printed(self._request)
        outputs: dict[str, str] = {}
        for number, message in enumerate(self._kernel.iopub):
            content = message["content"]
            if message["parent_header"].get("msg_id") != self._request:
                continue
            if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
                place = content.get("transient", {}).get("display_id", str(number))
                outputs[place] = content["data"].get("text/plain", "")
            elif message["msg_type"] == "error":
                outputs[str(number)] = "error: " + "\n".join(content["traceback"])
            elif message["msg_type"] == "stream":
                outputs[str(number)] = content["text"]
        return "\n".join(outputs.values())


_ERROR = re.compile(
    r"^error: (?P<message>.*?)(?:\n\s*\nhint: (?P<hint>.*?))?\s*\Z", re.MULTILINE | re.DOTALL
)


def _last_message(text: str) -> str:
    starts = [found.start() for found in re.finditer(r"^error: ", text, re.MULTILINE)]
    match = _ERROR.match(text[starts[-1] :]) if starts else None
    if match is None:
        return ""
    hint = f" — hint: {match['hint']}" if match["hint"] else ""
    return " ".join(f"{match['message']}{hint}".split())


_ENDS = ("Installed ", "Nothing ", "Undone ")


def _last_line(text: str) -> str:
    installed = [line for line in text.splitlines() if line.startswith(_ENDS)]
    return installed[-1] if installed else (text.strip().splitlines() or [""])[-1]


def _last_words(out: str, err: str) -> str:
    installed = re.search(r"^Installed .*$", out, re.MULTILINE)
    error = _last_message(err)
    if installed and error:
        return f"{installed[0]} · {error}"
    return error or _last_line(out)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@dataclass(kw_only=True)
class Bench:
    """One environment to be hurt, with caches of its own or shared ones."""

    arena: Arena
    folder: Path
    prefix: Path
    switch: Switch
    place: Place
    extra: dict[str, str | None] = field(default_factory=dict)
    """Variables of this fault alone; None takes one away."""
    wrapper: tuple[str, ...] = ()
    """What the program is started through."""
    cold: bool = False
    left: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What lifts the fault: a disk that is writable again, a network that is back."""
    end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What is taken down with the bench, as the disk that it lies on."""
    door: socket.socket | None = None

    @property
    def standin(self) -> StandIn:
        return self.arena.standin

    @property
    def python(self) -> Path:
        return self.prefix / "bin/python"

    @property
    def site(self) -> Path:
        return next((self.prefix / "lib").glob("python*/site-packages"))

    @property
    def cache(self) -> Path:
        return self.folder / "cache" if self.cold else self.arena.cache

    @property
    def variables(self) -> dict[str, str]:
        """All that a program of this bench knows."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        led = self.standin.environment(self.cache, hermetic=True).apply(own)
        settings = {
            "TORCHENV_CACHE_DIR": str(self.folder / "torchenv-cache"),
            # A fault that is tried four times is the same fault, later.
            "UV_HTTP_RETRIES": "0",
            "UV_HTTP_TIMEOUT": "2",
            "HOME": str(self.folder),
            "IPYTHONDIR": str(self.folder / "ipython"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_CONFIG_DIR": str(self.folder / "configuration"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        if self.place == "terminal":
            settings["PYTHONPATH"] = str(self.arena.engine)
        every = {**led, **settings, **self.extra}
        return {name: value for name, value in every.items() if value is not None}

    def start(
        self,
        *more: str,
        step: int | None = None,
        record: Path | None = None,
        requirements: tuple[str, ...] = REQUIREMENTS,
        backend: str | None = None,
        word: str = "install",
    ) -> Program:
        """Begin to switch; at `step` of it the program knocks at the door and waits."""
        settings: dict[str, str | int | None] = {"prefix": str(self.prefix), "step": step}
        if record is not None:
            settings["record"] = str(record)
        if step is not None:
            self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.left.callback(self.door.close)
            door = str(self.folder / "door")
            settings["door"] = door
            self.door.bind(door)
            self.door.listen()
            self.door.settimeout(0.1)
        armed = step is not None or record is not None
        if armed:
            self.extra[trigger.SETTINGS] = json.dumps(settings)
        words: tuple[str, ...] = (word, *more)
        if word == "install":
            words = (word, backend or self.switch.backend, *requirements, *more)
        if self.place == "terminal":
            consent = () if word == "status" else ("--yes",)
            program: Program = Terminal(
                self, (*words, f"--python={self.python}", *consent), armed=armed
            )
        else:
            line = " ".join((*words, "--yes"))
            program = Notebook(self, f"%torchenv {line} --restart=never")
        self.extra.pop(trigger.SETTINGS, None)
        return program

    def knock(self, program: Program) -> socket.socket | None:
        """Wait until the program knocks; None where it ends without."""
        assert self.door is not None
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                caller = self.door.accept()[0]
                caller.recv(4096)
                return caller
            if not program.alive():
                return None
        return None

    def contact(self, *words: str) -> Ended:
        """Do what a person does next: ask for the status, from another process."""
        place, self.place = self.place, "terminal"
        try:
            return Terminal(
                self, (*(words or ("status",)), f"--python={self.python}"), armed=False
            ).wait()
        finally:
            self.place = place

    def tidy(self, text: str) -> str:
        """Take from a text what differs from machine to machine and from run to run."""
        for path in (str(self.prefix), "~/env"):
            text = text.replace(path, "ENV")
        text = text.replace(str(self.folder), "…")
        text = text.replace(str(self.arena.folder), "…").replace(socket.gethostname(), "HOST")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def workers(self) -> list[int]:
        """Return the processes that have to do with this bench."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if os.fsencode(self.folder) in line:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Lift what still holds, end what still runs, and remove all of it."""
        with contextlib.suppress(OSError):
            self.left.close()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        poll(lambda: not self.workers(), seconds=10, pause=0.02)
        self.end.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Arena:
    """The stand-in, the templates that environments are copied from, and a cache of all wheels."""

    def __init__(
        self, folder: Path, *, package: Path | None = None, project_wheel: Path | None = None
    ) -> None:
        self.folder = folder
        self._package = package or PROJECT_ROOT / "torchenv_magic"
        self._project_wheel = project_wheel
        self.cache = folder / "cache"
        # The made torch has the same address as the real one, and is not the same.
        self._real_cache = folder / "real-cache"
        self.engine = folder / "engine"
        self._numbers = itertools.count()
        self._open = contextlib.ExitStack()
        self._switches: dict[tuple[Place, str], Switch] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        # What is under test must not change while it is.
        shutil.copytree(
            self._package,
            self.engine / "torchenv_magic",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        self.standin = self._open.enter_context(StandIn())
        self.furnish()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def reset(self) -> None:
        """Let the stand-in serve what it serves when nothing is wrong."""
        self.standin.reset()
        self.furnish()

    def furnish(self) -> None:
        """Serve a torch of many files, as the real one is, and a package that hangs on it."""
        shelf = self.folder / "wheels"
        for backend in ("cpu", "cu126"):
            family = make_family(
                shelf / backend, backend=backend, python_tags=(_tag(),), pad_bytes=1_500_000
            )
            for path in family:
                if path.name.startswith("torch-"):
                    path = _with_many_files(path, shelf / "many" / backend)  # noqa: PLW2901
                self.standin.add_wheel(backend, path)
        self.standin.add_wheel(
            "simple", make_wheel(shelf, "satellite", "1.0", requires=["torch>=2.12"])
        )

    @functools.cached_property
    def undo_steps(self) -> tuple[str, ...]:
        """What an undo that nobody disturbs tells of each of its steps."""
        with self.bench() as bench:
            bench.start().wait()
            record = bench.folder / "record"
            ended = bench.start(word="undo", record=record).wait()
            if bench.switch.judge.judge(bench.prefix).kind != "old":
                raise AssertionError(f"the undisturbed undo failed:\n{ended.everything}")
            return tuple(record.read_text("utf-8").splitlines())

    @functools.cached_property
    def real_switch(self) -> Switch | None:
        """A switch to the real torch, which is learned once; None where there is no such wheel."""
        found = [path for path in find_real_wheels(os.environ) if f"+cpu-{_tag()}-" in path.name]
        if not found:
            return None
        self._real_wheel = found[0]
        known = self.switch("terminal", "cpu")
        self.standin.add_wheel("cpu", found[0])
        bench = self._bench(known, "terminal", cold=False)
        bench.extra["UV_CACHE_DIR"] = str(self._real_cache)
        record = bench.folder / "record"
        ended = bench.start(record=record).wait()
        after = _versions(bench.prefix)
        if after == known.judge.old:
            raise AssertionError(f"the undisturbed switch failed:\n{ended.everything}")
        steps = tuple(record.read_text("utf-8").splitlines())
        bench.close()
        return replace(known, judge=replace(known.judge, new=after), steps=steps)

    @contextlib.contextmanager
    def real_bench(self) -> Iterator[Bench]:
        """Lend a copy of an environment that is to be switched to the real torch."""
        switch = self.real_switch
        if switch is None:
            raise LookupError("PIP_FIND_LINKS names no folder with a real torch for this Python")
        self.standin.add_wheel("cpu", self._real_wheel)
        bench = self._bench(switch, "terminal", cold=False)
        bench.extra["UV_CACHE_DIR"] = str(self._real_cache)
        try:
            yield bench
        finally:
            bench.close()

    @contextlib.contextmanager
    def bench(
        self, place: Place = "terminal", target: str = "cu126", *, cold: bool = False
    ) -> Iterator[Bench]:
        """Lend a copy of an environment that is to be switched to `target`."""
        bench = self._bench(self.switch(place, target), place, cold=cold)
        try:
            yield bench
        finally:
            bench.close()

    def switch(self, place: Place, target: str) -> Switch:
        """Return what is known of a switch; it is learned when it is asked for."""
        if (place, target) not in self._switches:
            self._learn(place)
        return self._switches[place, target]

    def _bench(self, switch: Switch, place: Place, *, cold: bool) -> Bench:
        folder = self.folder / f"bench-{next(self._numbers)}"
        folder.mkdir()
        copy_environment(switch.template, folder / "env")
        return Bench(
            arena=self,
            folder=folder,
            prefix=folder / "env",
            switch=switch,
            place=place,
            cold=cold,
        )

    def _learn(self, place: Place) -> None:
        """Make both environments, switch them undisturbed, and note what that is like."""
        home = self.folder / place
        home.mkdir()
        if place == "terminal":
            first = make_environment(home / "cpu")
        else:
            wheel = self._project_wheel or build_project_wheel(home / "project")
            first = KernelEnvironment.create(
                home / "cpu", python=sys.executable, project_wheel=wheel
            ).directory
        self._install_plainly(first)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        own = tuple(name.format(version=version) for name in _OWN)
        for name in own:
            (first / name).write_text("mine", encoding="utf-8")
        versions = {"cpu": _versions(first)}
        base = frozenset(_unowned(first) - set(own))
        second = home / "cu126"
        for template, backend in ((first, "cu126"), (second, "cpu")):
            start = "cpu" if backend == "cu126" else "cu126"
            draft = Switch(
                template=template,
                backend=backend,
                judge=Judge(old={}, new={}, base=base, own=own),
                steps=(),
            )
            bench = self._bench(draft, place, cold=False)
            record = bench.folder / "record"
            ended = bench.start(record=record).wait()
            after = _versions(bench.prefix)
            if after["torch"].partition("+")[2] != backend:
                raise AssertionError(f"the undisturbed switch failed:\n{ended.everything}")
            versions[f"{backend} again"] = after
            self._switches[place, backend] = Switch(
                template=template,
                backend=backend,
                judge=Judge(old=versions[start], new=after, base=base, own=own),
                steps=tuple(record.read_text("utf-8").splitlines()),
            )
            if backend == "cu126":
                versions["cu126"] = after
                copy_environment(bench.prefix, second)
            bench.close()

    def _install_plainly(self, prefix: Path) -> None:
        """Fill an environment by bare uv, as a person's is."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        subprocess.run(
            [
                find_uv_bin(), "pip", "install", "--quiet", f"--python={prefix}/bin/python",
                "--torch-backend=cpu", *REQUIREMENTS,
            ],
            env=self.standin.environment(self.cache, hermetic=True).apply(own),
            check=True,
        )  # fmt: skip


def copy_environment(template: Path, copy: Path) -> None:
    """Copy an environment by hard links, but for what is written on in place."""
    one_disk = template.stat().st_dev == copy.parent.stat().st_dev

    def link(source: str, target: str) -> None:
        if (
            not one_disk
            or "/.torchenv" in source
            or source.endswith((".pyc", "/.lock", "notes.txt"))
        ):
            shutil.copy2(source, target)
        else:
            os.link(source, target)

    shutil.copytree(template, copy, symlinks=True, copy_function=link)


def _tag() -> str:
    return f"cp{sys.version_info.major}{sys.version_info.minor}"


def _with_many_files(wheel: Path, folder: Path) -> Path:
    """Make a torch of as many files that its linking can be watched."""
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        files: dict[str, str | bytes] = {name: archive.read(name) for name in names}
        info = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(info).decode()
    backend = wheel.name.split("-")[1]
    for number in range(_TORCH_FILES):
        files[f"torch/include/part{number % 40}/header{number}.h"] = f"// {backend} {number}\n"
    requires = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    return make_wheel(
        folder,
        "torch",
        backend,
        requires=requires,
        files=files,
        scripts={"torchrun": "torch.distributed.run:main"},
        python_tag=_tag(),
        abi_tag=_tag(),
        platform_tag=machine_platform_tag(),
    )


def _versions(prefix: Path) -> Mapping[str, str]:
    judge = Judge(old={}, new={}, base=frozenset())
    return judge.judge(prefix, unchecked=True).versions or {}


def _unowned(prefix: Path) -> set[str]:
    """Return the files that no package owns, seen from the prefix."""
    import csv

    site = next((prefix / "lib").glob("python*/site-packages"))
    owned = {
        os.path.normpath(site / row[0])
        for record in site.glob("*.dist-info/RECORD")
        for row in csv.reader(record.read_text("utf-8").splitlines())
    }
    return {
        path.relative_to(prefix).as_posix()
        for path in files_below(prefix)
        if str(path) not in owned
    }
