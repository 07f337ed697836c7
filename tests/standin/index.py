"""Stand in for the PyTorch index on the loopback interface, slow, failing or lying on demand.

uv's `--torch-backend` has the index's address compiled in, so the stand-in answers under the
real names: a CONNECT proxy takes the two hosts and speaks TLS for them with a certificate of a
throw-away authority, on the very connection that the proxy accepted. All other hosts are passed
through, or refused. A plain-HTTP server beside it carries a small index of ordinary packages
and, for tests of mirrors, the same PyTorch tree once more.
"""

from __future__ import annotations

import base64
import re
import select
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import trustme

from tests.standin.environment import ChildEnvironment, child_environment, system_certificates
from tests.standin.server import (
    FILE_HOST,
    INDEX_HOST,
    SIMPLE,
    ClosedProxyHandler,
    Entry,
    Fault,
    FaultKind,
    PlainHandler,
    ProxyHandler,
    Request,
    Server,
)
from tests.standin.wheels import (
    BACKENDS,
    OLDER_TORCH,
    PAD_BYTES,
    Wheel,
    make_family,
    make_wheel,
    read_wheel,
    repack_installed,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class StandIn:
    """Serve made wheels as the PyTorch index, until the `with` block ends.

    The attributes `rate`, `faults`, `hashes`, `metadata`, `login`, `down` and `direct` may be set
    at any time and from any thread; they hold from the next request on, and `rate`, `faults` and
    `down` at once. `login` is the user and the password that the mirror demands. Each of
    `BACKENDS` has torch 2.13.0, `cpu` and `cu126` also 2.12.0.
    """

    def __init__(self, *, pad_bytes: int = PAD_BYTES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="standin-", ignore_cleanup_errors=True)
        self._pad_bytes = pad_bytes
        self._state = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._log: list[Entry] = []
        self._shelves: dict[str, dict[str, Wheel]] = {}
        self._made_shelves: dict[str, dict[str, Wheel]] = {}
        self._resets = 0
        self._changes = 0
        self._closed = False
        self._set_knobs()
        authority = trustme.CA(organization_name="torchenv_magic test stand-in")
        self.authority_pem = authority.cert_pem.bytes().decode()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.set_alpn_protocols(["http/1.1"])
        authority.issue_cert(INDEX_HOST, FILE_HOST).configure_cert(self._tls)
        # Read once: a test may later lead this very process to the stand-in.
        self._upstream = getproxies().get("https")
        self._proxy = Server(self, ProxyHandler)
        self._closed_proxy = Server(self, ClosedProxyHandler)
        self._plain = Server(self, PlainHandler)

    def _set_knobs(self) -> None:
        self._rate: int | None = None
        self._faults: list[tuple[Fault, int | None]] = []
        self._passed: list[int] = []
        self.hashes = True
        self.metadata = True
        self.login: tuple[str, str] | None = None
        self._down = False
        self.direct = True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Life

    def start(self) -> None:
        """Make the wheels and begin to answer."""
        folder = Path(self._folder.name)
        pad = self._pad_bytes
        paths: dict[str, list[Path]] = {}
        for backend in BACKENDS:
            paths[backend] = [*make_family(folder / backend, backend=backend, pad_bytes=pad)]
        for backend in ("cpu", "cu126"):
            older = make_family(folder / backend, backend=backend, torch=OLDER_TORCH, pad_bytes=pad)
            paths[backend] += older
        paths[SIMPLE] = [*_simple_wheels(folder / SIMPLE, pad_bytes=pad)]
        self._made_shelves = {
            shelf: {path.name: read_wheel(path) for path in members}
            for shelf, members in paths.items()
        }
        self._shelves = {shelf: dict(members) for shelf, members in self._made_shelves.items()}
        self.bundle.write_text(system_certificates() + "\n" + self.authority_pem, "utf-8")
        for server in self._servers:
            server.start()

    def close(self) -> None:
        """Stop answering, end every connection, and remove the wheels."""
        with self._state:
            self._closed = True
            self._cut()
            sockets = tuple(self._sockets)
        for server in self._servers:
            server.stop()
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._folder.cleanup()

    def reset(self) -> None:
        """Return to the state after `start`: knobs, log and shelves; end answers under way."""
        with self._state:
            self._set_knobs()
            self._shelves = {shelf: dict(members) for shelf, members in self._made_shelves.items()}
            self._log.clear()
            self._cut()

    def _cut(self) -> None:
        self._resets += 1
        self._changes += 1
        self._state.notify_all()

    @property
    def _servers(self) -> tuple[Server, ...]:
        return self._proxy, self._closed_proxy, self._plain

    # What it serves

    def add_wheel(self, shelf: str, path: Path) -> None:
        """Serve the file at `path` under a backend's name or `SIMPLE`, in place of a namesake."""
        self.add_file(shelf, read_wheel(path))

    def add_file(self, shelf: str, file: Wheel) -> None:
        """Serve what was described already, as a source distribution has to be."""
        with self._state:
            self._shelves.setdefault(shelf, {})[file.path.name] = file

    def remove_wheel(self, shelf: str, name: str) -> None:
        """Stop serving the file called `name`; raises `KeyError` where it is not served."""
        with self._state:
            del self._shelves[shelf][name]

    def wheels(self, shelf: str) -> tuple[Wheel, ...]:
        """Return what lies on a shelf now."""
        with self._state:
            return tuple(self._shelves.get(shelf, {}).values())

    def _shelf_names(self) -> tuple[str, ...]:
        with self._state:
            return tuple(name for name in self._shelves if name != SIMPLE)

    # How to reach it

    @property
    def proxy_url(self) -> str:
        """The proxy that passes other hosts through while `direct` is true."""
        return self._proxy.url

    @property
    def closed_proxy_url(self) -> str:
        """The proxy that refuses all other hosts."""
        return self._closed_proxy.url

    @property
    def simple_url(self) -> str:
        """The plain index, for `UV_DEFAULT_INDEX`."""
        return f"{self._plain.url}/simple/"

    @property
    def mirror_base(self) -> str:
        """The mirror on the plain server: what stands before a backend's name."""
        return f"{self._plain.url}/whl"

    def mirror_url(self, backend: str) -> str:
        """Return the address of a backend's index on the plain server, as a mirror has it."""
        return f"{self.mirror_base}/{backend}"

    @property
    def bundle(self) -> Path:
        """The machine's certificates and the throw-away authority's, in one file."""
        return Path(self._folder.name) / "bundle.pem"

    def environment(self, cache: Path, *, hermetic: bool) -> ChildEnvironment:
        """Return what a child needs in its environment to meet this index instead of the real one.

        With `hermetic` all other packages come from the plain index, pip's configuration is hidden
        too, and every other host is refused; without it they come from where they always do.
        """
        return child_environment(
            proxy=self.closed_proxy_url if hermetic else self.proxy_url,
            bundle=self.bundle,
            cache=cache,
            default_index=self.simple_url if hermetic else None,
        )

    # Knobs

    @property
    def rate(self) -> int | None:
        """Bytes per second on each connection; `None` for as fast as it goes."""
        return self._rate

    @rate.setter
    def rate(self, value: int | None) -> None:
        with self._state:
            self._rate = value
            self._state.notify_all()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that will still happen; setting them ends answers that stall."""
        with self._state:
            return tuple(fault for fault, left in self._faults if left != 0)

    @faults.setter
    def faults(self, value: Iterable[Fault]) -> None:
        with self._state:
            self._faults = [(fault, fault.times) for fault in value]
            self._passed = [0] * len(self._faults)
            self._changes += 1

    @property
    def down(self) -> bool:
        """Whether the proxy refuses the PyTorch hosts; setting it ends answers under way."""
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        with self._state:
            self._down = value
            self._state.notify_all()

    def _take_fault(self, entry: Entry, *kinds: FaultKind) -> Fault | None:
        with self._state:
            entry.changes = self._changes
            for place, (fault, left) in enumerate(self._faults):
                if (
                    fault.kind not in kinds
                    or left == 0
                    or fault.method not in ("", entry.method)
                    or not re.search(fault.pattern, entry.path)
                ):
                    continue
                if self._passed[place] < fault.skip:
                    self._passed[place] += 1
                    continue
                self._faults[place] = (fault, None if left is None else left - 1)
                return fault
        return None

    # Log

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request so far, in order of arrival."""
        with self._state:
            return tuple(entry.read() for entry in self._log)

    def downloads(self, pattern: str = r"\.whl$") -> tuple[Request, ...]:
        """Return the GET requests whose path matches, as `requests` has them."""
        return tuple(
            request
            for request in self.requests
            if request.method == "GET" and re.search(pattern, request.path)
        )

    def clear_log(self) -> None:
        """Forget the requests so far."""
        with self._state:
            self._log.clear()

    def wait_for(self, pattern: str, *, sent: int = 1, timeout: float = 30) -> Request:
        """Return the first download whose path matches once `sent` bytes of its body are out.

        Raises `TimeoutError` after `timeout` seconds, with the log.
        """

        def find() -> Request | None:
            return next((r for r in self.downloads(pattern) if r.bytes >= sent), None)

        with self._state:
            found = self._state.wait_for(find, timeout)
        if found is None:
            seen = "\n".join(f"  {request}" for request in self.requests)
            message = f"no download of {pattern} within {timeout} s; seen:\n{seen}"
            raise TimeoutError(message)
        return found

    @contextmanager
    def _logged(self, entry: Entry) -> Iterator[Entry]:
        with self._state:
            self._log.append(entry)
        try:
            yield entry
        finally:
            with self._state:
                entry.finished = True
                self._state.notify_all()

    def _count(self, entry: Entry, sent: int) -> None:
        with self._state:
            entry.sent += sent
            self._state.notify_all()

    # Waiting, for the handlers

    def _wait_until(self, due: float, rate: int | None) -> None:
        """Wait until `due` on the monotonic clock, or until something changes."""
        with self._state:
            resets = self._resets
            self._state.wait_for(
                lambda: self._resets != resets or self._down or self._rate != rate,
                max(0.0, due - time.monotonic()),
            )

    def _hold(self, connection: socket.socket, entry: Entry) -> None:
        """Wait until the client leaves, or the faults are not those that `entry` met any more."""
        while self._changes == entry.changes and not self._down:
            # The client says nothing before it is answered: what can be read is its farewell.
            if select.select([connection], [], [], 0.1)[0]:
                return

    # Connections, for the handlers

    @contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        with self._state:
            if self._closed:
                raise ConnectionAbortedError
            self._sockets.add(connection)
        try:
            yield
        finally:
            with self._state:
                self._sockets.discard(connection)
            connection.close()

    def _connect(self, host: str, port: int) -> socket.socket:
        """Connect to another host as this process would, through its proxy if it has one."""
        if not self._upstream or proxy_bypass(host):
            return socket.create_connection((host, port), timeout=30)
        upstream = urlsplit(self._upstream)
        connection = socket.create_connection(
            (upstream.hostname or "", upstream.port or 80), timeout=30
        )
        lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
        if upstream.username:
            login = f"{unquote(upstream.username)}:{unquote(upstream.password or '')}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            # One byte at a time, so that none of the tunnel's own is taken.
            byte = connection.recv(1)
            if not byte:
                break
            answer += byte
        if b" 200 " not in answer.partition(b"\r\n")[0] + b" ":
            connection.close()
            raise ConnectionRefusedError
        return connection


def _simple_wheels(directory: Path, *, pad_bytes: int) -> Iterator[Path]:
    """Make the ordinary packages that torch and its companions, made or real, ask for.

    The torch among them has no local label, as PyPI's has none: who falls back to it unasked
    shows it. typing-extensions is a copy of the installed one, because the real torch uses it at
    import; the others it only names. numpy it uses where it can be imported, so it cannot be.
    """
    absence = "this numpy was made for tests"
    yield repack_installed(directory, "typing-extensions")
    for name, version in (
        ("filelock", "3.20.0"),
        ("fsspec", "2026.9.0"),
        ("jinja2", "3.1.6"),
        ("mpmath", "1.3.0"),
        ("networkx", "3.6.1"),
        ("setuptools", "81.0.0"),
        ("sympy", "1.14.0"),
    ):
        yield make_wheel(directory, name, version)
    yield make_wheel(
        directory,
        "numpy",
        "2.4.6",
        files={"numpy/__init__.py": f"raise ModuleNotFoundError({absence!r}, name='numpy')\n"},
    )
    yield make_wheel(
        directory, "pillow", "13.0.0", files={"PIL/__init__.py": '__version__ = "13.0.0"\n'}
    )
    yield from make_family(directory, backend=None, pad_bytes=pad_bytes)
