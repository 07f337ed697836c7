"""Speak HTTP for the stand-in: the proxy, the two hosts behind it, and the plain index."""

from __future__ import annotations

import base64
import email.utils
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote, urlsplit

from packaging.utils import canonicalize_name

from tests.standin.answers import (
    Answer,
    file_answer,
    json_page,
    listing_page,
    read_range,
    torch_page,
)

if TYPE_CHECKING:
    from tests.standin.index import StandIn

INDEX_HOST = "download.pytorch.org"
FILE_HOST = "download-r2.pytorch.org"
SIMPLE = "simple"
"""The shelf of the plain index, beside the shelves that bear backends' names."""

FaultKind = Literal[
    "status",
    "silent",
    "reset",
    "redirect",
    "stall",
    "truncate",
    "corrupt",
    "wrong-size",
    "wrong-hash",
]
NOWHERE = "nowhere.invalid"
"""A host that can't be: where a redirect that goes wrong leads."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Describe how requests for some paths go wrong.

    `status` answers with that status and nothing else; `silent` never answers; `reset` breaks the
    connection off instead; `redirect` sends the client to a host that is not there; `stall` and
    `truncate` send a part of the body, then nothing or the end of the connection; `corrupt` flips
    a bit in the middle; `wrong-size` announces a body of twice its length to HEAD; `wrong-hash`
    lets an index page give its files hashes that are not theirs.
    """

    pattern: str
    """A regular expression, searched in the request's path with `%2B` read as `+`."""
    kind: FaultKind
    status: int = 503
    times: int | None = None
    """How many requests it spoils; `None` means all."""
    skip: int = 0
    """How many requests it lets pass first."""
    method: str = ""
    """`GET` or `HEAD`, where it spoils only these."""
    part: float = 0.5
    """How much of the body `stall` and `truncate` send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Record one request as it stood when the log was read."""

    method: str
    """`CONNECT` for connections to other hosts, and for refused ones."""
    host: str
    path: str
    range: str | None
    status: int
    """0 where no answer was given."""
    bytes: int
    """How much of the body was sent."""
    finished: bool


@dataclass(slots=True, kw_only=True)
class Entry:
    """Count one request while it is being answered; the log holds these, and lends copies."""

    method: str
    host: str
    path: str
    range: str | None = None
    status: int = 0
    sent: int = 0
    finished: bool = False
    changes: int = 0
    """How often the faults had changed when they were asked."""

    def read(self) -> Request:
        return Request(
            method=self.method,
            host=self.host,
            path=self.path,
            range=self.range,
            status=self.status,
            bytes=self.sent,
            finished=self.finished,
        )


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, standin: StandIn, handler: type[_Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.standin = standin
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

        self._serving = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    def start(self) -> None:
        self._serving.start()

    def stop(self) -> None:
        # A server that never served would wait for its end for ever.
        if self._serving.is_alive():
            self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of lost connections: clients that hang up are what many tests are about."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms for each page otherwise
    server: Server

    @property
    def standin(self) -> StandIn:
        return self.server.standin

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the log is the stand-in's."""

    def refuse(self, status: int, entry: Entry) -> None:
        """Answer with a status and no body; what follows is unclear, so end the connection."""
        entry.status = status
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="mirror"')
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True


class _IndexHandler(_Handler):
    """Answer for the index's pages and files; subclasses say under which name."""

    host = "127.0.0.1"

    def do_GET(self) -> None:
        """Answer with headers and body."""
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with headers."""
        self._respond(with_body=False)

    def find(self, entry: Entry) -> Answer | None:
        """Return what lies under the path that was asked for."""
        raise NotImplementedError

    missing = 404

    def _respond(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        entry = Entry(
            method=self.command, host=self.host, path=path, range=self.headers.get("Range")
        )
        with self.standin._logged(entry):
            if self._unreachable():
                self.close_connection = True
                return
            kinds: tuple[FaultKind, ...] = ("status", "silent", "reset", "redirect")
            kinds += ("stall", "truncate", "corrupt") if with_body else ("wrong-size",)
            fault = self.standin._take_fault(entry, *kinds)
            if not self._may(path):
                self.refuse(401, entry)
                return
            if fault and fault.kind == "silent":
                self.standin._hold(self.connection, entry)
                self.close_connection = True
                return
            if fault and fault.kind == "reset":
                self._break_off()
                return
            answer = self.find(entry)
            if fault and fault.kind == "status":
                self.refuse(fault.status, entry)
            elif fault and fault.kind == "redirect":
                self._send_away(entry)
            elif answer is None:
                self.refuse(self.missing, entry)
            else:
                self._send(answer, entry, fault, with_body=with_body)

    def _break_off(self) -> None:
        """End the connection by a reset, as a gateway that drops it does."""
        no_time_to_linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_time_to_linger)
        self.close_connection = True

    def _send_away(self, entry: Entry) -> None:
        entry.status = 302
        self.send_response(302)
        self.send_header("Location", f"https://{NOWHERE}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _unreachable(self) -> bool:
        return self.standin.down and self.host != "127.0.0.1"

    def _may(self, path: str) -> bool:
        """Whether who asks the mirror for something has said who it is, where that is demanded."""
        login = self.standin.login
        if login is None or self.host != "127.0.0.1" or not path.startswith("/whl/"):
            return True
        expected = base64.b64encode(":".join(login).encode()).decode()
        return self.headers.get("Authorization") == f"Basic {expected}"

    def _send(self, answer: Answer, entry: Entry, fault: Fault | None, *, with_body: bool) -> None:
        start, stop, status = 0, answer.size, 200
        if answer.validators and self._unchanged(*answer.validators):
            start, stop, status = 0, 0, 304
        elif answer.validators and (wanted := self.headers.get("Range")):
            start, stop, status = read_range(wanted, answer.size)
        entry.status = status
        self.send_response(status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.validators:
            tag, modified = answer.validators
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", email.utils.formatdate(modified, usegmt=True))
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{answer.size}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{answer.size}")
        if status != 304:
            lie = 2 if fault and fault.kind == "wrong-size" else 1
            self.send_header("Content-Length", str((stop - start) * lie))
        self.end_headers()
        if with_body:
            self._send_body(answer.body, start, stop, entry, fault)

    def _unchanged(self, tag: str, modified: int) -> bool:
        if "If-None-Match" in self.headers:
            # A tag decides alone; the date beside it is for servers that know no tags.
            return tag in [part.strip() for part in self.headers["If-None-Match"].split(",")]
        if since := self.headers.get("If-Modified-Since"):
            with suppress(ValueError):
                return modified <= email.utils.parsedate_to_datetime(since).timestamp()
        return False

    def _send_body(
        self, body: bytes | Path, start: int, stop: int, entry: Entry, fault: Fault | None
    ) -> None:
        middle = (start + stop) // 2
        kind = fault.kind if fault else None
        end = stop
        if fault and fault.kind in {"stall", "truncate"}:
            end = start + int((stop - start) * fault.part)
        standin = self.standin
        resets = standin._resets
        pace: int | None = None
        due = 0.0
        for place, block in self._blocks(body, start, end):
            if kind == "corrupt" and place <= middle < place + len(block):
                block[middle - place] ^= 1
            try:
                self.wfile.write(block)
            except OSError:
                self.close_connection = True
                return
            standin._count(entry, len(block))
            if standin._resets != resets or self._unreachable():
                self.close_connection = True
                return
            rate = standin.rate
            if rate is not None:
                # The clock starts anew where the rate changed, so that no old debt is paid.
                due = (due if pace == rate else time.monotonic()) + len(block) / rate
                standin._wait_until(due, rate)
            pace = rate
        if kind == "stall":
            standin._hold(self.connection, entry)
        if kind in {"stall", "truncate"}:
            self.close_connection = True

    def _blocks(
        self, body: bytes | Path, start: int, stop: int
    ) -> Iterator[tuple[int, memoryview]]:
        """Yield parts of the body with their places, each in the same buffer."""
        buffer = memoryview(bytearray(min(_CHUNK, max(1, stop - start))))
        place = start
        if isinstance(body, Path):
            with body.open("rb", buffering=0) as file:
                file.seek(start)
                while place < stop and (
                    count := file.readinto(buffer[: min(self._portion(), stop - place)])
                ):
                    yield place, buffer[:count]
                    place += count
        else:
            while place < stop:
                count = min(self._portion(), stop - place)
                buffer[:count] = body[place : place + count]
                yield place, buffer[:count]
                place += count

    def _portion(self) -> int:
        # Twenty parts a second look like a flow to whoever watches the progress.
        rate = self.standin.rate
        return _CHUNK if rate is None else max(1, min(_CHUNK, rate // 20))


class _TorchTree(_IndexHandler):
    """Answer for the tree under `/whl/`, as the real index lays it out."""

    file_base: str
    """Where the files of the tree are, seen from a page; ends with a slash."""

    def find(self, entry: Entry) -> Answer | None:
        match entry.path.split("/")[1:]:
            case ["whl", shelf, ""] if shelf in self.standin._shelf_names():
                names = {wheel.name for wheel in self.standin.wheels(shelf)}
                return listing_page(sorted(names))
            case ["whl", project, ""]:
                shelves = self.standin._shelf_names()
                return self._page(entry, shelves, project)
            case ["whl", shelf, project, ""]:
                return self._page(entry, (shelf,), project)
            case ["whl", shelf, name] if name:
                return file_answer(self.standin.wheels(shelf), name, cache_control=None)
        return None

    def _page(self, entry: Entry, shelves: tuple[str, ...], project: str) -> Answer | None:
        links = [
            (f"{self.file_base}whl/{shelf}/{quote(wheel.path.name)}", wheel)
            for shelf in shelves
            for wheel in self.standin.wheels(shelf)
            if wheel.name == canonicalize_name(project)
        ]
        if not links:
            return None
        return torch_page(
            project,
            links,
            hashes=self.standin.hashes,
            metadata=self.standin.metadata,
            wrong=self.standin._take_fault(entry, "wrong-hash") is not None,
        )


class PlainHandler(_TorchTree):
    """Answer on plain HTTP: an index of ordinary packages as PyPI has it, and a mirror."""

    file_base = "/"

    def find(self, entry: Entry) -> Answer | None:
        wheels = self.standin.wheels(SIMPLE)
        match entry.path.split("/")[1:]:
            case ["simple", ""]:
                return listing_page(sorted({wheel.name for wheel in wheels}))
            case ["simple", project, ""]:
                chosen = [wheel for wheel in wheels if wheel.name == canonicalize_name(project)]
                wrong = self.standin._take_fault(entry, "wrong-hash") is not None
                return json_page(project, chosen, wrong=wrong) if chosen else None
            case ["files", name]:
                return file_answer(
                    wheels, name, cache_control="max-age=365000000, immutable, public"
                )
        return super().find(entry)


class _OriginHandler(_TorchTree):
    """Answer as one of the two PyTorch hosts, inside TLS."""

    file_base = f"https://{FILE_HOST}/"
    missing = 403  # what the real bucket says of a key that it does not have

    def __init__(
        self, connection: ssl.SSLSocket, client: tuple[str, int], server: Server, *, host: str
    ) -> None:
        self.host = host
        super().__init__(connection, client, server)

    def find(self, entry: Entry) -> Answer | None:
        # The second host carries the files alone.
        if self.host == FILE_HOST and entry.path.endswith("/"):
            return None
        return super().find(entry)


class ProxyHandler(_Handler):
    """Take CONNECT: play the two PyTorch hosts, pass the others through."""

    rbufsize = 0  # a buffer could swallow the client's first TLS bytes
    closed = False

    def do_CONNECT(self) -> None:
        """Become the host that was asked for, or its tunnel."""
        host, _, port = self.path.rpartition(":")
        entry = Entry(method="CONNECT", host=host, path="")
        self.close_connection = True
        if host in {INDEX_HOST, FILE_HOST}:
            if self.standin.down:
                with self.standin._logged(entry):
                    self.refuse(502, entry)
            else:
                self._play(host)
            return
        with self.standin._logged(entry):
            if self.closed or not self.standin.direct or not port.isdigit():
                self.refuse(403, entry)
                return
            try:
                remote = self.standin._connect(host, int(port))
            except OSError:
                self.refuse(502, entry)
                return
            entry.status = 200
            with self.standin._tracked(remote), self.standin._tracked(self.connection):
                self._accept()
                _relay(self.connection, remote)

    def _accept(self) -> None:
        self.send_response_only(200, "Connection established")
        self.end_headers()

    def _play(self, host: str) -> None:
        self._accept()
        # The wrapped socket takes over the descriptor, so it is the one to keep track of.
        self.connection.settimeout(30)
        connection = self.standin._tls.wrap_socket(
            self.connection, server_side=True, do_handshake_on_connect=False
        )
        with self.standin._tracked(connection):
            connection.do_handshake()
            connection.settimeout(None)
            _OriginHandler(connection, self.client_address, self.server, host=host)


class ClosedProxyHandler(ProxyHandler):
    closed = True


def _relay(left: socket.socket, right: socket.socket) -> None:
    """Copy both ways until both sides have ended."""
    other = {left: right, right: left}
    for connection in other:
        connection.settimeout(None)
    open_sides = [left, right]
    while open_sides:
        for source in select.select(open_sides, [], [])[0]:
            data = source.recv(1 << 18)
            if data:
                other[source].sendall(data)
            else:
                open_sides.remove(source)
                with suppress(OSError):
                    other[source].shutdown(socket.SHUT_WR)
