"""Run a real JupyterHub on loopback: hub, proxy, and the servers that it spawns for its users."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import psutil

from tests.browser.server import (
    MARKER,
    Authentication,
    FrontEndName,
    Server,
    ServerError,
    own_variables,
    processes_of,
)

_HERE = Path(__file__).parent
_TOKEN = "the-token-of-the-test-that-drives-the-hub"
_CONFIGURATION = """\
import json
from pathlib import Path

facts = json.loads(Path({facts!r}).read_text())
of_user = facts["directory"] + "/{{spawner.user.name}}"
c.JupyterHub.bind_url = facts["url"]
c.JupyterHub.hub_bind_url = facts["hub_url"]
c.ConfigurableHTTPProxy.api_url = facts["proxy_url"]
c.ConfigurableHTTPProxy.command = facts["proxy"]
# Else a hub that is started again is a stranger to the proxy of the one before.
c.ConfigurableHTTPProxy.auth_token = facts["token"]
c.ConfigurableHTTPProxy.pid_file = facts["directory"] + "/proxy.pid"
c.JupyterHub.db_url = "sqlite:///" + facts["directory"] + "/hub.sqlite"
c.JupyterHub.cookie_secret_file = facts["directory"] + "/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.Spawner.cmd = facts["single_user"]
c.Spawner.default_url = "/lab"
c.Spawner.environment = facts["environment"]
if not facts["has_users"]:
    c.JupyterHub.spawner_class = "simple"
    c.SimpleLocalProcessSpawner.home_dir_template = facts["directory"] + "/{{username}}/home"
    c.Spawner.notebook_dir = facts["directory"] + "/{{username}}/root"
    c.Spawner.args = ["--allow-root"]
    c.Spawner.http_timeout = 60
    c.Spawner.environment |= {{
        "JUPYTER_CONFIG_DIR": lambda spawner: of_user.format(spawner=spawner) + "/configuration",
        "JUPYTER_DATA_DIR": lambda spawner: of_user.format(spawner=spawner) + "/data",
    }}
c.JupyterHub.services = [{{"name": "driver", "api_token": facts["token"]}}]
c.JupyterHub.load_roles = [
    {{
        "name": "driver",
        "services": ["driver"],
        "scopes": ["admin:users", "admin:servers", "access:servers", "read:hub"],
    }}
]
{lines}
"""


class HubMissingError(RuntimeError):
    """No hub can be started here; the message says what is missing."""


@final
class HubServer(Server):
    """A user's server, the default one or one with a name; made by `Hub.spawn`."""

    def __init__(
        self, hub: Hub, user: str, name: str, *, front_end: FrontEndName, plugin: bool
    ) -> None:
        super().__init__(
            hub.directory / user,
            front_end=front_end,
            authentication=Authentication.hub(user),
            plugin=plugin,
        )
        self.log_file = hub.log_file
        self.token = _TOKEN
        self.path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        """Where the hub's API has it."""
        self._hub = hub
        self._ended = False
        self._make_directories()
        self._write_front_end_configuration()
        # Looking for language servers starts npm, which may go to the network.
        self._write("jupyter_server_config.json", {"LanguageServerManager": {"autodetect": False}})

    @property
    def is_running(self) -> bool:
        """Whether neither the server nor its hub has ended."""
        return self._hub.is_running and not self._ended

    def stop(self) -> None:
        """End the server and its kernels."""
        self._ended = True
        self._hub.end(self)


@final
class Hub:
    """A hub with its proxy.

    `environment` is added to the variables of the users' servers and so of their kernels; None as a
    value takes a variable away. `lines` end the hub's configuration. With `single_user`, the
    program that is their server, the users are this machine's own.
    """

    def __init__(
        self,
        directory: Path,
        *,
        proxy: Path,
        environment: Mapping[str, str | None] | None = None,
        lines: str = "",
        single_user: Path | None = None,
    ) -> None:
        self.directory = directory
        self._proxy = proxy
        self._lines = lines
        self._single_user = single_user
        self.log_file = directory / "hub.log"
        self.url = ""
        self.token = _TOKEN
        """Of a service that may do what the tests have it do."""
        self._environment = environment or {}
        self._identity = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start hub and proxy, and wait until they answer.

        Raises `HubMissingError` where Node or the proxy can't be had, else `ServerError`.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def is_running(self) -> bool:
        """Whether the hub was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return what the hub, the proxy and the users' servers wrote so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def spawn(
        self,
        user: str,
        *,
        name: str = "",
        front_end: FrontEndName = "lab",
        plugin: bool = True,
        timeout: float = 90,
    ) -> HubServer:
        """Start a user's server and wait until it answers; raises `ServerError`."""
        server = HubServer(self, user, name, front_end=front_end, plugin=plugin)
        self.ask("POST", f"users/{user}", accept=409)  # where the user is there already
        self.ask("POST", server.path)
        server.url = self.wait_until_ready(user, name=name, timeout=timeout)
        return server

    def wait_until_ready(self, user: str, *, name: str = "", timeout: float = 90) -> str:
        """Wait until a server that was asked for answers; return its address."""
        deadline = time.monotonic() + timeout
        while True:
            model = self.ask("GET", f"users/{user}")["servers"].get(name, {})
            if model.get("ready"):
                return f"{self.url}{model['url'].lstrip('/')}"
            if time.monotonic() > deadline or not model.get("pending"):
                raise ServerError(f"the server was not ready in time\n{self.log()[-3000:]}")
            time.sleep(0.25)

    def end(self, server: HubServer) -> None:
        """End a user's server and its kernels; its files stay."""
        here = urllib.parse.urlsplit(server.url).path
        for process in processes_of(self._identity):
            # Asked kindly it takes seconds to go, for which no test has to wait.
            with contextlib.suppress(psutil.Error):
                if process.environ().get("JUPYTERHUB_SERVICE_PREFIX") == here:
                    process.kill()
        self.ask("DELETE", server.path)

    def kill(self) -> None:
        """End the hub alone, as a crash does; the servers live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def start_again(self) -> None:
        """Start the hub anew with the same configuration and what it has kept."""
        self._launch()

    def stop(self, timeout: float = 15) -> None:
        """End hub, proxy, the users' servers, and whatever these left behind."""
        process, self._process = self._process, None
        if process is None:
            return
        # Asked kindly it would give each server its time to end.
        process.kill()
        process.wait()
        leftovers = processes_of(self._identity)
        for leftover in leftovers:
            try:
                leftover.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(leftovers, timeout=timeout)

    # --- inside ---------------------------------------------------------------------------------

    def _start(self) -> None:
        path = _search_path()
        ports = _free_ports(3)
        self.url = f"http://127.0.0.1:{ports[0]}/"
        facts = {
            "directory": str(self.directory),
            "url": self.url,
            "hub_url": f"http://127.0.0.1:{ports[1]}",
            "proxy_url": f"http://127.0.0.1:{ports[2]}",
            "proxy": [_find("node", path), str(self._proxy)],
            "has_users": self._single_user is not None,
            "single_user": (
                [str(self._single_user)]
                if self._single_user
                else [sys.executable, "-m", "jupyterhub.singleuser"]
            ),
            "environment": {
                MARKER: self._identity,
                **{name: value for name, value in self._environment.items() if value is not None},
            },
            "token": _TOKEN,
        }
        # Private: it has the token.
        file = self.directory / "facts.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        self._configuration.write_text(
            _CONFIGURATION.format(facts=str(file), lines=self._lines), encoding="utf-8"
        )
        self._launch()

    @property
    def _configuration(self) -> Path:
        return self.directory / "jupyterhub_config.py"

    def _launch(self) -> None:
        variables = {**own_variables(), "PATH": _search_path(), MARKER: self._identity}
        for name in self._environment:
            variables.pop(name, None)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self._configuration)],
                cwd=self.directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_ready()

    def _wait_until_ready(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if not self.is_running:
                raise ServerError(f"the hub ended\n{self.log()[-3000:]}")
            try:
                self.ask("GET", "info")
            except (ServerError, OSError):
                # The proxy answers before it knows the hub.
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the hub did not answer in time\n{self.log()[-3000:]}"
                    ) from None
                time.sleep(0.1)
            else:
                return

    def ask(self, method: str, path: str, body: Any = None, *, accept: int | None = None) -> Any:
        """Ask the hub's API and return the decoded answer; raises `ServerError`.

        `accept` is a status that is no answer and no error.
        """
        return self.ask_at(f"{self.url}hub/api/", method, path, body, accept=accept)

    def ask_at(
        self,
        address: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: int | None = None,
    ) -> Any:
        """Ask a user's server, at the address that the hub gave for it, as `ask` does the hub."""
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            f"{address}{path}",
            data=data,
            headers={"Authorization": f"token {_TOKEN}"},
            method=method,
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            if error.code == accept:
                return None
            detail = error.read().decode(errors="replace")[:500]
            raise ServerError(f"{method} {path} answered {error.code}: {detail}") from None
        return json.loads(content) if content else None


def _search_path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def install_proxy(directory: Path) -> Path:
    """Install the pinned proxy of a hub; return its program.

    Raises `HubMissingError` where that can't be had.
    """
    path = _search_path()
    directory.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_HERE / name, directory)
    completed = subprocess.run(
        [_find("npm", path), "ci", "--no-audit", "--no-fund", "--prefer-offline"],
        cwd=directory,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if completed.returncode:
        words = re.sub(r"https?://\S+", "…", completed.stderr.strip())
        raise HubMissingError(f"the hub's proxy can't be installed: {words[-500:]}")
    return proxy_in(directory)


def proxy_in(directory: Path) -> Path:
    """Return the program of the proxy that was installed there."""
    package = directory / "node_modules" / "configurable-http-proxy"
    return package / "bin" / "configurable-http-proxy"


def _find(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is None:
        raise HubMissingError(f"there is no {name} on this machine")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
