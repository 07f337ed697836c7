"""The Jupyter server that owns this kernel: finding it, and asking its REST API.

Only the standard library: the restart's helper loads this in a process of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import http.cookies
import ipaddress
import json
import socket
import ssl
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Answer", "Server", "ask", "find_owner", "server_candidates"]

PROBE_SECONDS = 2.0

_LARGEST_ANSWER_BYTES = 1024 * 1024
_SERVER_FILES_BOUND = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Jupyter server that may own this kernel."""

    url: str
    """With its base URL and a slash at the end; `http+unix://…` for a socket."""
    token: str = field(default="", repr=False)
    socket_path: str | None = None
    source: str = ""
    """Where it was found."""

    @property
    def base_path(self) -> str:
        path = urllib.parse.urlsplit(self.url).path
        return path if path.endswith("/") else f"{path}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes
    cookies: tuple[tuple[str, str], ...] = ()

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:  # noqa: ANN401
        """Return the decoded body, None where it isn't JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def ask(
    server: Server,
    method: Literal["GET", "POST"],
    path: str,
    *,
    timeout: float,
    cookies: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """Send one request to `path` below the server's base URL and return its answer.

    Neither proxies nor redirects are followed: the way to the server of this very kernel never
    leads through another host, and its token may not go to one.

    Raises
    ------
    OSError, http.client.HTTPException
        The server can't be reached or doesn't speak HTTP.
    """
    headers = {"Accept": "application/json"}
    if server.token:
        headers["Authorization"] = f"token {server.token}"
    if cookies:
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies)
        # jupyter_server wants the cookie once more where no token proves that it was no browser.
        for name, value in cookies:
            if name == "_xsrf":
                headers["X-XSRFToken"] = value
    body = None
    if method == "POST":
        body = b"{}"
        headers["Content-Type"] = "application/json"
    connection = _connect(server, timeout)
    try:
        connection.request(method, server.base_path + path, body=body, headers=headers)
        response = connection.getresponse()
        content = response.read(_LARGEST_ANSWER_BYTES)
        jar: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
        for line in response.headers.get_all("Set-Cookie") or ():
            with contextlib.suppress(http.cookies.CookieError):
                jar.load(line)
        return Answer(
            status=response.status,
            body=content,
            cookies=tuple((name, morsel.value) for name, morsel in jar.items()),
        )
    finally:
        connection.close()


def server_candidates(
    *,
    platform: str,
    environment: Mapping[str, str],
    directories: Iterable[Path],
    parent: int,
) -> tuple[Server, ...]:
    """Return the servers that may own this kernel, most likely first.

    Those of the runtime `directories` whose file names the kernel's parent, then the hub's. On
    Windows `JPY_PARENT_PID` is a handle and a launcher stands between the processes, so there
    every server's file counts; none owns the kernel before it says so.
    """
    found: list[Server] = []
    if platform == "win32":
        names = ["jpserver-*.json"]
    else:
        named = environment.get("JPY_PARENT_PID", "")
        names = [f"jpserver-{named if named.isdecimal() else parent}.json"]
    for directory in dict.fromkeys(directories):
        files = [file for name in names for file in _newest_first(directory, name)]
        for file in files[:_SERVER_FILES_BOUND]:
            server = _read_server_file(file)
            if server is not None and server not in found:
                found.append(server)
    hub = _hub_server(environment)
    return (*found, hub) if hub is not None else tuple(found)


def _newest_first(directory: Path, pattern: str) -> list[Path]:
    dated = []
    for file in directory.glob(pattern):
        with contextlib.suppress(OSError):
            dated.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(dated, reverse=True)]


def _read_server_file(file: Path) -> Server | None:
    try:
        description = json.loads(file.read_bytes())
        url = _loopback_url(str(description["url"]))
        token = description.get("token") or ""
        socket_path = description.get("sock") or None
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None
    return Server(url=url, token=str(token), socket_path=socket_path, source=file.name)


def _hub_server(environment: Mapping[str, str]) -> Server | None:
    url = environment.get("JUPYTERHUB_SERVICE_URL")
    token = environment.get("JUPYTERHUB_API_TOKEN")
    if not url or not token:
        return None
    prefix = environment.get("JUPYTERHUB_SERVICE_PREFIX")
    try:
        parts = urllib.parse.urlsplit(_loopback_url(url))
    except ValueError:
        return None
    if prefix:
        parts = parts._replace(path=prefix)
    return Server(url=parts.geturl(), token=token, source="JUPYTERHUB_SERVICE_URL")


def _loopback_url(url: str) -> str:
    """Return `url` with an address that can be connected to: a server may listen on all."""
    parts = urllib.parse.urlsplit(url)
    if parts.hostname in (None, "0.0.0.0", "*"):  # noqa: S104  (what it listens on)
        host = "127.0.0.1"
    elif parts.hostname == "::":
        host = "[::1]"
    else:
        return url
    if parts.scheme not in ("http", "https"):
        return url
    return parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host).geturl()


def find_owner(candidates: Sequence[Server], kernel_id: str) -> tuple[Server | None, str]:
    """Return the server that answers for this kernel, and what was answered."""
    reason = "no Jupyter server's file belongs to the kernel's parent process"
    for server in candidates:
        path = f"api/kernels/{urllib.parse.quote(kernel_id, safe='')}"
        try:
            answer = ask(server, "GET", path, timeout=PROBE_SECONDS)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"the server of {server.source} can't be reached: {error}"
            continue
        model = answer.json()
        if answer.is_success and isinstance(model, dict) and model.get("id") == kernel_id:
            return server, f"the server of {server.source} answers for this kernel"
        reason = f"the server of {server.source} answered {answer.status}"
        if answer.status in (401, 403):
            reason += " (it wants a password)"
    return None, reason


def _connect(server: Server, timeout: float) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(server.url)
    if server.socket_path is not None:
        return _UnixConnection(server.socket_path, timeout=timeout)
    host = parts.hostname or "localhost"
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            host, parts.port, timeout=timeout, context=_tls_context(host)
        )
    return http.client.HTTPConnection(host, parts.port, timeout=timeout)


def _tls_context(host: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if _is_this_machine(host):
        # A server's certificate is made out for the name that people use, or by nobody; on the
        # way to this machine itself there is nobody between, as with plain HTTP there.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False  # a name may lead anywhere, and elsewhere the next time
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # which sends nothing
        except OSError:
            return False
        # Only to itself does a machine speak from the very address that it speaks to.
        return ipaddress.ip_address(probe.getsockname()[0]) == address


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        if sys.platform == "win32":
            raise OSError("Python has no Unix sockets on Windows")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
