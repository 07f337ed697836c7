"""Run a real JupyterLab or Jupyter Notebook server on loopback, closed off from this user's own.

The server runs in the environment that runs the tests, unless another interpreter is named, with
its own configuration, data, runtime, home and root directories, so that neither the user's settings
nor an extension of theirs decides a test, and it looks for no news and no updates.
"""

from __future__ import annotations

import contextlib
import http.client
import http.cookiejar
import json
import os
import re
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final

import nbformat
import psutil
from jupyter_server.auth.security import passwd

FrontEndName = Literal["lab", "notebook"]

_MODULES: dict[FrontEndName, str] = {"lab": "jupyterlab", "notebook": "notebook"}
_EXTENSION = "torchenv-magic"
MARKER = "TORCHENV_TEST_SERVER"
"""Stands in the environment of the server and so in that of everything that it starts."""

_FOREIGN_VARIABLES = re.compile(
    r"(JUPYTER|JPY_|IPYTHON|COLAB_|KAGGLE_|VSCODE_|PYTEST_|XDG_|CONDA_|VIRTUAL_ENV|PYTHONPATH"
    # Each kernel and server of an environment would compile all of it anew.
    r"|PYTHONDONTWRITEBYTECODE)"
)
"""Variables of the shell that runs the tests which would decide something in server or kernel."""

_SETTINGS = {
    # Cells out of view have to be in the page to be read and clicked.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    # A save in the middle of a test changes what a test of saving and of unsaved edits sees.
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}


class ServerError(RuntimeError):
    """The server did not start, or refused a request; the message holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """How a server lets people in; made by the five class methods."""

    kind: Literal["automatic", "token", "password", "none", "hub"]
    secret: str = ""
    """The token, the password, or the name that one logs in by."""

    @classmethod
    def automatic(cls) -> Authentication:
        """Leave it at the default of `jupyter lab`: the server makes up a token."""
        return cls(kind="automatic")

    @classmethod
    def token(cls, token: str) -> Authentication:
        """Set a token in the configuration."""
        return cls(kind="token", secret=token)

    @classmethod
    def password(cls, password: str) -> Authentication:
        """Set a password and no token, so that nothing in a kernel can use the REST API."""
        return cls(kind="password", secret=password)

    @classmethod
    def none(cls) -> Authentication:
        """Let everybody in; a POST still needs the XSRF cookie."""
        return cls(kind="none")

    @classmethod
    def hub(cls, user: str) -> Authentication:
        """Leave it to a JupyterHub, which takes any password."""
        return cls(kind="hub", secret=user)

    def configuration(self) -> dict[str, Any]:
        """Return the traits for `jupyter_server_config.json`."""
        if self.kind == "token":
            return {"IdentityProvider": {"token": self.secret}}
        if self.kind == "password":
            hashed = passwd(self.secret, algorithm="sha256")
            return {"PasswordIdentityProvider": {"hashed_password": hashed, "token": ""}}
        if self.kind == "none":
            return {
                "IdentityProvider": {"token": ""},
                "PasswordIdentityProvider": {"hashed_password": ""},
            }
        return {}


class Server(ABC):
    """A running server as a page and a test see it: its kernels, its documents, its log."""

    has_gateway = False
    """Whether another server runs its kernels."""
    is_shared = False
    """Whether tests take it in turn, and so the tab that one of them has opened."""

    def __init__(
        self,
        directory: Path,
        *,
        front_end: FrontEndName,
        authentication: Authentication,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        plugin: bool = True,
    ) -> None:
        self.front_end: FrontEndName = front_end
        self.authentication = authentication
        self.plugin = plugin
        self.home = directory / "home"
        self.root_directory = directory / "root"
        self.configuration_directory = directory / "configuration"
        self.data_directory = directory / "data"
        self.log_file = directory / "server.log"
        self.token = ""
        """The token in force; empty for a password server and for one without authentication."""
        self.url = ""
        """The address of the server with its base URL and a slash at the end; that of a relay for a
        server on a Unix socket, to which no browser speaks."""
        self._settings = {**_SETTINGS, **(settings or {})}
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            # The tests set HTTPS_PROXY for the kernels; the way to loopback goes around it.
            urllib.request.ProxyHandler({}),
            # A server of a test has a certificate by nobody.
            urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),  # noqa: S323
            urllib.request.HTTPCookieProcessor(self._cookies),
        )

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether the server was started and has not ended."""

    def log(self) -> str:
        """Return what the server and its kernels wrote so far."""
        if not self.log_file.exists():
            return ""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    # --- kernels and documents ------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the REST API (`api/kernels`) and return the decoded answer; raises `ServerError`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"token {self.token}"
        elif method != "GET":
            headers["X-XSRFToken"] = self._log_in()
        elif self.authentication.kind == "password":
            self._log_in()
        request = urllib.request.Request(
            urllib.parse.urljoin(self.url, path), data=data, headers=headers, method=method
        )
        try:
            with self._opener.open(request, timeout=30) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise ServerError(f"{method} {path} answered {error.code}: {detail}") from None
        return json.loads(content) if content else None

    def kernels(self) -> list[dict[str, Any]]:
        """Return the models of the running kernels (`id`, `name`, `execution_state`, …)."""
        models: list[dict[str, Any]] = self.request("GET", "api/kernels")
        return models

    def sessions(self) -> list[dict[str, Any]]:
        """Return the models of the sessions (`path` of the notebook and its `kernel`)."""
        models: list[dict[str, Any]] = self.request("GET", "api/sessions")
        return models

    def start_kernel_for(self, notebook: str) -> None:
        """Start the kernel of a notebook as a front end does that opens it, unless it has one."""
        specification = self.read_notebook(notebook).metadata.kernelspec
        self.request(
            "POST",
            "api/sessions",
            {
                "path": notebook,
                "name": notebook.rsplit("/", 1)[-1],
                "type": "notebook",
                "kernel": {"name": specification.name},
            },
        )

    def restart_kernel(self, kernel_id: str) -> None:
        """Restart a kernel as the REST API does it."""
        self.request("POST", f"api/kernels/{kernel_id}/restart", {})

    def interrupt_kernel(self, kernel_id: str) -> None:
        """Interrupt a kernel as the REST API does it."""
        self.request("POST", f"api/kernels/{kernel_id}/interrupt", {})

    def shut_down_kernels(self) -> None:
        """End every kernel, for the next test on the same server."""
        for session in self.sessions():
            self.request("DELETE", f"api/sessions/{session['id']}")

    def create_notebook(
        self,
        name: str,
        cells: Sequence[str | nbformat.NotebookNode],
        *,
        kernel_name: str = "python3",
    ) -> str:
        """Write a notebook (format 4.5) below the root directory and return its name.

        A string is a code cell; other cells come from `nbformat.v4`. `name` may have folders.
        """
        specification = {
            "name": kernel_name,
            "display_name": kernel_name,
            "language": "python",
        }
        notebook = nbformat.v4.new_notebook(
            cells=[_as_cell(cell) for cell in cells], metadata={"kernelspec": specification}
        )
        notebook.nbformat_minor = 5
        path = self.root_directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return name

    def read_notebook(self, name: str) -> nbformat.NotebookNode:
        """Read a notebook as it stands on disk now."""
        notebook: nbformat.NotebookNode = nbformat.read(self.root_directory / name, as_version=4)
        return notebook

    # --- inside ---------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        for directory in (
            self.home,
            self.root_directory,
            self.configuration_directory,
            self.data_directory,
        ):
            directory.mkdir(parents=True, exist_ok=True)

    def _write_front_end_configuration(self) -> None:
        self._write(
            "jupyter_lab_config.json",
            {
                "LabApp": {
                    "expose_app_in_browser": True,
                    "extension_manager": "readonly",
                    "news_url": None,
                    "open_browser": False,
                }
            },
        )
        self._write(
            "jupyter_notebook_config.json",
            {"JupyterNotebookApp": {"expose_app_in_browser": True, "open_browser": False}},
        )
        # JupyterLab reads this file beside `overrides.json`, which would lie in the environment
        # that all servers of this machine share (jupyterlab_server/settings_utils.py).
        self._write("labconfig/default_setting_overrides.json", self._settings)
        # Whether JupyterLab itself has to be built again is nobody's question here, and it makes
        # the first page wait.
        self._write(
            "labconfig/page_config.json",
            {
                "buildAvailable": False,
                "buildCheck": False,
                "disabledExtensions": {_EXTENSION: not self.plugin},
            },
        )

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        path = self.configuration_directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _log_in(self) -> str:
        """Get the cookies of a person at the log-in page and return the XSRF token of it."""
        address = urllib.parse.urljoin(self.url, "login")
        if self._cookie("_xsrf") is None:
            try:
                self._opener.open(address, timeout=10).close()
            except urllib.error.HTTPError as error:
                # Without authentication there is no log-in page, but the answer has the cookie.
                error.close()
            if self.authentication.kind == "password":
                form = {"password": self.authentication.secret, "_xsrf": self._cookie("_xsrf")}
                data = urllib.parse.urlencode(form).encode()
                self._opener.open(address, data, timeout=10).close()
        token = self._cookie("_xsrf")
        if token is None:
            raise ServerError("the server set no XSRF cookie")
        return token

    def _cookie(self, name: str) -> str | None:
        for cookie in self._cookies:
            if cookie.name == name:
                return cookie.value
        return None


@final
class JupyterServer(Server):
    """A running server; use it as a context manager.

    `directory` is taken for all that the server writes. `environment` is added to the variables
    of the server and so of its kernels; None as a value takes a variable away. `configuration` is
    merged over the server's own by trait class. `python` is the interpreter of the environment
    whose server and front ends run. Without `plugin` these know nothing of ours, as where this
    package is in the kernel's environment only. Servers of one user share a `runtime_directory`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        front_end: FrontEndName = "lab",
        authentication: Authentication | None = None,
        base_url: str = "/",
        environment: Mapping[str, str | None] | None = None,
        configuration: Mapping[str, Mapping[str, Any]] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        python: Path | None = None,
        plugin: bool = True,
        runtime_directory: Path | None = None,
    ) -> None:
        super().__init__(
            directory,
            front_end=front_end,
            authentication=authentication or Authentication.automatic(),
            settings=settings,
            plugin=plugin,
        )
        self.base_url = base_url
        self.runtime_directory = runtime_directory or directory / "runtime"
        self._environment = dict(environment or {})
        self._configuration = configuration or {}
        self.has_gateway = "GatewayClient" in self._configuration
        self._python = python or Path(sys.executable)
        self._identity = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._relay: UnixSocketRelay | None = None

    def __enter__(self) -> JupyterServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- life ---------------------------------------------------------------------------------

    def start(self, timeout: float = 60) -> None:
        """Start the server and wait until its API answers; raises `ServerError`."""
        self.launch()
        self.wait_until_ready(timeout)

    def launch(self) -> None:
        """Start the server and return at once, so that two can start side by side."""
        self._write_configuration()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", _MODULES[self.front_end]],
                cwd=self.root_directory,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C for pytest is not one for the server, which would ask before it ends.
                start_new_session=sys.platform != "win32",
            )

    def wait_until_ready(self, timeout: float = 60) -> None:
        """Wait until the API of a launched server answers; raises `ServerError`."""
        try:
            self._wait_until_ready(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = 8) -> None:
        """End the server, its kernels and whatever these left behind."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._relay is not None:
            self._relay.stop()
        leftovers = self._processes()
        if process.poll() is None:
            # SIGTERM makes the server end its kernels itself; nobody is left to restart them.
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # Kernels have sessions of their own, so no signal to a process group reaches them, and a
        # detached helper is nobody's child: both are known by the variable that they inherited.
        leftovers += self._processes()
        for leftover in leftovers:
            try:
                leftover.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(leftovers, timeout=timeout)

    @property
    def is_running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Return every running process that comes from this server, the server left out.

        Kernels, what they started, and detached processes are among them.
        """
        server = self._process.pid if self._process is not None else None
        return [process for process in self._processes() if process.pid != server]

    # --- inside ---------------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        self._make_directories()
        self.runtime_directory.mkdir(parents=True, exist_ok=True)
        # Tokens stand in files and never on a command line, which every user can read.
        server: dict[str, Any] = {
            "ServerApp": {
                "ip": "127.0.0.1",
                "port": 0,
                "base_url": self.base_url,
                "root_dir": str(self.root_directory),
                "open_browser": False,
                "allow_root": True,
            },
            # Looking for language servers starts npm, which may go to the network.
            "LanguageServerManager": {"autodetect": False},
            **self.authentication.configuration(),
        }
        for name, traits in self._configuration.items():
            server[name] = {**server.get(name, {}), **traits}
        if "sock" in server["ServerApp"]:
            del server["ServerApp"]["port"]
        self._write("jupyter_server_config.json", server)
        self._write_front_end_configuration()

    def _variables(self) -> dict[str, str]:
        return {
            name: value
            for name, value in {
                **own_variables(),
                "HOME": str(self.home),
                "USERPROFILE": str(self.home),
                "JUPYTER_CONFIG_DIR": str(self.configuration_directory),
                "JUPYTER_DATA_DIR": str(self.data_directory),
                "JUPYTER_RUNTIME_DIR": str(self.runtime_directory),
                MARKER: self._identity,
                **self._environment,
            }.items()
            if value is not None
        }

    def _wait_until_ready(self, deadline: float) -> None:
        process = self._process
        assert process is not None
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"the server ended with {process.returncode}\n{self._log_end()}")
            if self._read_server_file() and self._answers():
                return
            time.sleep(0.05)
        raise ServerError(f"the server did not answer in time\n{self._log_end()}")

    def _read_server_file(self) -> bool:
        # The file is written before the port is open; it is the only place that tells the port
        # that the system chose and the token that the server made up.
        assert self._process is not None
        for path in self.runtime_directory.glob("jpserver-*.json"):
            try:
                description = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            if description["root_dir"] != str(self.root_directory):
                continue  # another server of the same user
            self.token = description["token"]
            if description["sock"]:
                self._relay = self._relay or UnixSocketRelay(description["sock"])
                self.url = f"http://127.0.0.1:{self._relay.port}{description['base_url']}"
            else:
                self.url = description["url"].replace("//0.0.0.0:", "//127.0.0.1:")
            return True
        return False

    def _answers(self) -> bool:
        request = urllib.request.Request(urllib.parse.urljoin(self.url, "api"))
        if self.token:
            request.add_header("Authorization", f"token {self.token}")
        try:
            with self._opener.open(request, timeout=5) as response:
                return bool(response.status == http.client.OK)
        except urllib.error.HTTPError as error:
            return error.code in {http.client.FORBIDDEN, http.client.UNAUTHORIZED}
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        return processes_of(self._identity)

    def _log_end(self) -> str:
        return self.log()[-3000:]


def own_variables() -> dict[str, str]:
    """Return this process's environment without what would decide something in a server."""
    return {
        name: value
        for name, value in os.environ.items()
        if not _FOREIGN_VARIABLES.match(name.upper())
    }


def processes_of(identity: str) -> list[psutil.Process]:
    """Return every process whose environment has this identity as its `MARKER`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == identity:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@final
class UnixSocketRelay:
    """Hand what comes to a port of loopback on to a Unix socket, and the answers back."""

    def __init__(self, path: str) -> None:
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                relay._connect(self.request, path)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections; those that are open end with the server."""
        self._server.shutdown()
        self._server.server_close()

    def _connect(self, client: socket.socket, path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            try:
                server.connect(path)
            except OSError:
                return  # not there yet: the client finds its connection closed
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _as_cell(cell: str | nbformat.NotebookNode) -> nbformat.NotebookNode:
    if not isinstance(cell, str):
        return cell
    made: nbformat.NotebookNode = nbformat.v4.new_code_cell(cell)
    return made
