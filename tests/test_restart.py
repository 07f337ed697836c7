"""Restarts of real kernels, under real Jupyter servers and without one; no browser."""

from __future__ import annotations

import contextlib
import http.cookiejar
import http.server
import json
import os
import socketserver
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import trustme
from nbclient import NotebookClient

from tests.browser.server import Authentication
from tests.kernels import PROJECT_ROOT, SECONDS, Kernel
from torchenv_magic.notebook import restart_helper
from torchenv_magic.notebook.front_end import FrontEnd, FrontEndKind
from torchenv_magic.notebook.own_server import (
    Server,
    _is_this_machine,
    ask,
    find_owner,
    server_candidates,
)
from torchenv_magic.notebook.re_exec import launch_environment, re_exec_obstacle
from torchenv_magic.notebook.restart import (
    RestartFacts,
    Rung,
    colab_restart_button,
    helper_command,
    helper_environment,
    how_to_restart,
    ladder,
)
from torchenv_magic.notebook.restart_helper import Job, ServerRefusedError, restart_kernel

PASSWORD = "correct horse"
AUTHENTICATIONS = {
    "token": Authentication.automatic(),
    "password": Authentication.password(PASSWORD),
    "none": Authentication.none(),
}

# `jsonschema` takes two seconds to make a parser for a format that no server here uses; a module
# that is None counts as not installed.
RUN_SERVER = """\
import sys
sys.modules["rfc3987_syntax"] = None
from jupyter_server.serverapp import main
main()
"""


@dataclass(kw_only=True)
class JupyterServer:
    """A Jupyter server with nothing but its API, whose kernels can import the checkout."""

    directory: Path
    authentication: Authentication
    base_url: str
    url: str = ""
    token: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _cookies: http.cookiejar.CookieJar = field(default_factory=http.cookiejar.CookieJar)

    def start(self) -> None:
        for name in ("configuration", "runtime", "data", "temporary", "ipython", "work"):
            (self.directory / name).mkdir()
        extensions = ("jupyterlab", "notebook", "notebook_shim", "jupyter_lsp", "nbclassic")
        configuration = {
            "ServerApp": {
                "allow_root": True,
                "base_url": self.base_url,
                "ip": "127.0.0.1",
                "open_browser": False,
                "port": 0,
                "root_dir": str(self.directory),
                "jpserver_extensions": {
                    **dict.fromkeys(extensions, False),
                    "jupyter_server_terminals": False,
                },
            },
            # Looks at its kernels more often than it would, to find every one that seems dead.
            "KernelRestarter": {"time_to_dead": 0.2},
            **self.authentication.configuration(),
        }
        file = self.directory / "configuration" / "jupyter_server_config.json"
        file.write_text(json.dumps(configuration))
        # Under pytest a kernel would not capture what is written to descriptors.
        foreign = ("JPY_", "JUPYTER", "COLAB_", "KAGGLE_", "VSCODE_", "PYTHON", "PYTEST_")
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "IPYTHONDIR": str(self.directory / "ipython"),
            "JUPYTER_CONFIG_DIR": str(self.directory / "configuration"),
            "JUPYTER_DATA_DIR": str(self.directory / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.runtime_directory),
            "PYTHONPATH": str(PROJECT_ROOT),
            "TMPDIR": str(self.temporary_directory),
        }
        with (self.directory / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN_SERVER],
                cwd=self.directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        [file] = wait_until(lambda: list(self.runtime_directory.glob("jpserver-*.json")), self.log)
        description = wait_until(lambda: read_json(file), self.log)
        self.url, self.token = description["url"], description["token"]
        wait_until(self._get_cookies, self.log)
        if self.authentication.kind == "password":
            form = {"password": PASSWORD, "_xsrf": self._xsrf()}
            self._open("login", urllib.parse.urlencode(form).encode()).close()

    def stop(self) -> None:
        process = self._process
        assert process is not None
        # Kernels have sessions of their own; all of them have this directory in the environment.
        processes = [*self.processes()]
        process.terminate()
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            for other in [*processes, *self.processes()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    other.kill()

    def processes(self) -> Iterator[psutil.Process]:
        """Yield the kernels, and the helpers, of this server."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("TMPDIR") == str(self.temporary_directory):
                    yield process

    @property
    def runtime_directory(self) -> Path:
        return self.directory / "runtime"

    @property
    def temporary_directory(self) -> Path:
        return self.directory / "temporary"

    def log(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")

    def deaths(self) -> int:
        """Return how often the server found a kernel dead: a dialog would have said so."""
        return self.log().count("KernelRestarter: restarting kernel")

    @contextlib.contextmanager
    def notebook(self, name: str) -> Iterator[Kernel]:
        """Open a notebook as JupyterLab does, and speak to its kernel."""
        model = {"path": f"work/{name}", "name": name, "type": "notebook"}
        session = self.request("POST", "api/sessions", {**model, "kernel": {"name": "python3"}})
        file = self.runtime_directory / f"kernel-{session['kernel']['id']}.json"
        with Kernel.attach(file) as kernel:
            yield kernel
        self.request("DELETE", f"api/sessions/{session['id']}")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the API as a browser does that has logged in."""
        with self._open(path, json.dumps(body).encode(), method=method) as response:
            content = response.read()
        return json.loads(content) if content else None

    def _get_cookies(self) -> bool:
        # The file is there before the port is open.
        with contextlib.suppress(urllib.error.HTTPError, ConnectionError, urllib.error.URLError):
            self._open("login").close()
        return bool(self._xsrf())

    def _open(self, path: str, body: bytes | None = None, *, method: str | None = None) -> Any:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self._cookies)
        )
        headers = {"X-XSRFToken": self._xsrf()} if self._xsrf() else {}
        if self.token:
            headers["Authorization"] = f"token {self.token}"
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        return opener.open(request, timeout=SECONDS)

    def _xsrf(self) -> str:
        return next((str(cookie.value) for cookie in self._cookies if cookie.name == "_xsrf"), "")


def wait_until(answer: Callable[[], Any], complaint: Callable[[], str] = str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (result := answer()):
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.02)
    return result


def read_json(file: Path) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(file.read_text())
    return None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, JupyterServer]]:
    """One server for each way to let people in; started side by side."""
    servers = {
        kind: JupyterServer(
            directory=tmp_path_factory.mktemp(kind),
            authentication=authentication,
            base_url="/user/ada/" if kind == "token" else "/",
        )
        for kind, authentication in AUTHENTICATIONS.items()
    }
    with contextlib.ExitStack() as stack:
        for server in servers.values():
            server.start()
            stack.callback(server.stop)
        for server in servers.values():
            server.wait_until_ready()
        yield servers


PREPARE = """\
import os, time
from IPython.display import display
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.restart import Restart

def here():
    return {"pid": os.getpid(), "cwd": os.getcwd(), "leak": os.environ.get("LEAK")}

def fail(error):
    failures.append(error)
    display({"text/plain": str(error)}, raw=True, display_id="failed")

before = here()
failures = []
restart = Restart(get_ipython(), read_front_end(get_ipython()))
choice = restart.prepare()
display({"text/plain": "restarting"}, raw=True, display_id="shown")
"""
PREPARED = "[(rung.name, rung.available, rung.reason) for rung in choice.rungs]"
RUN = """\
restart.run(
    choice, display_id="shown", fresh_kernel_code={code!r}, after={{}}, on_failure=fail
)
restart.abort_queue()
"""
# Holds the cell until those behind it are there.
GATE = """
while not os.path.exists({gate!r}):
    time.sleep(0.01)
"""
SHOW = (
    "__import__('IPython.display', fromlist=['display']).display("
    "{'text/plain': __import__('json').dumps({"
    "'pid': __import__('os').getpid(), 'cwd': __import__('os').getcwd(),"
    "'leak': __import__('os').environ.get('LEAK'), 'restart': 'restart' in globals()"
    "})}, raw=True, display_id='shown', update=True)"
)
# While the cell runs: what others could read of the helper.
SPY = """\
import glob, json, stat, tempfile
def spy():
    while True:
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                command = open(path, "rb").read()
                if b"restart_helper" in command:
                    log, = glob.glob(tempfile.gettempdir() + "/torchenv-restart-*")
                    mode = oct(stat.S_IMODE(os.stat(log).st_mode))
                    environment = open(path.replace("cmdline", "environ"), "rb").read()
                    if b"TMPDIR" in environment:
                        return command.decode(), environment.decode(), mode
            except OSError:
                pass
print(json.dumps([spy(), repr(choice), [r.getMessage() for r in records]]))
"""
LISTEN = """\
import logging
records = []
class Records(logging.Handler):
    def emit(self, record):
        records.append(record)
logging.getLogger("torchenv_magic").addHandler(Records())
logging.getLogger("torchenv_magic").setLevel(logging.DEBUG)
"""


def assert_idle(kernel: Kernel, display_id: str) -> None:
    """Wait until the kernel is said to be idle by what showed the result."""
    shown = kernel.wait_for(
        lambda message: (
            message["msg_type"] == "update_display_data"
            and message["content"]["transient"]["display_id"] == display_id
        )
    )
    kernel.wait_for(
        lambda message: (
            message["content"].get("execution_state") == "idle"
            and message["parent_header"]["msg_id"] == shown["parent_header"]["msg_id"]
        )
    )


# --- server ---------------------------------------------------------------------------------------


def test_the_server_restarts_the_kernel_and_the_result_comes_into_the_old_output(
    servers: Mapping[str, JupyterServer],
) -> None:
    server = servers["token"]
    assert server.token
    ran = server.directory / "ran"
    # In the kernel's directory: nothing that the helper imports may come from there.
    (server.directory / "work" / "json.py").write_text("raise RuntimeError")
    with server.notebook("restart.ipynb") as kernel:
        kernel.run(LISTEN + PREPARE)
        before = kernel.value("before")
        assert kernel.value(PREPARED)[1] == [
            "server",
            True,
            f"the server of jpserver-{server._process.pid}.json answers for this kernel",  # type: ignore[union-attr]
        ]
        gate = server.directory / "gate"
        # Without the plugin's rung, so that the helper is there while the cell runs.
        kernel.run("import dataclasses; rungs = choice.rungs[1:]")
        kernel.run("choice = dataclasses.replace(choice, rungs=rungs)")
        asking = kernel.send(RUN.format(code=SHOW) + SPY + GATE.format(gate=str(gate)))
        queued = [kernel.send(f"open({str(ran)!r}, 'w')") for _ in range(3)]
        kernel.settle()
        gate.touch()
        assert kernel.reply(asking)["status"] == "ok"
        assert [kernel.reply(cell)["status"] for cell in queued] == ["aborted"] * 3

        fresh = json.loads(kernel.updated("shown"))
        assert fresh["pid"] != before["pid"]
        assert not fresh["restart"]
        assert_idle(kernel, "shown")
        assert kernel.run("pass")["execution_count"] == 1
        assert not ran.exists()

        spied = json.loads(kernel.printed(asking))
        [command, environment, mode], choice, records = spied
        assert command.split("\0")[1:] == ["-m", "torchenv_magic.notebook.restart_helper", ""]
        assert mode == "0o600"
        assert any("server is open" in record for record in records)
        assert server.token not in f"{command}{environment}{choice}{records}"

        wait_until(lambda: not list(server.temporary_directory.glob("torchenv-restart-*")))
    assert server.deaths() == 0


def test_a_server_without_authentication_restarts_the_kernel_too(
    servers: Mapping[str, JupyterServer],
) -> None:
    server = servers["none"]
    with server.notebook("open.ipynb") as kernel:
        kernel.run(PREPARE)
        before = kernel.value("before")
        assert kernel.value("[rung.name for rung in choice.rungs if rung.available][1]") == "server"
        kernel.run(RUN.format(code=SHOW))
        assert json.loads(kernel.updated("shown"))["pid"] != before["pid"]
    assert server.deaths() == 0


def test_a_fresh_kernel_that_dies_while_it_verifies_is_told_in_the_old_output(
    servers: Mapping[str, JupyterServer],
) -> None:
    server = servers["none"]
    deaths = server.deaths()
    with server.notebook("crash.ipynb") as kernel:
        kernel.run(PREPARE)
        kernel.run(RUN.format(code="__import__('os')._exit(1)"))
        assert kernel.updated("shown") == (
            "The kernel was restarted, but the verification did not run: the kernel died\n\n"
            "hint: run the verification cell (`%torchenv verify`)"
        )
    assert server.deaths() == deaths + 1
    # The log is kept where something went wrong.
    logs = server.temporary_directory.glob("torchenv-restart-*")
    [log] = [log for log in logs if "the kernel died" in log.read_text()]
    log.unlink()


# --- re-exec --------------------------------------------------------------------------------------


def test_under_a_password_the_process_replaces_itself_and_leaks_nothing(
    servers: Mapping[str, JupyterServer],
) -> None:
    server = servers["password"]
    ran = server.directory / "ran"
    with server.notebook("password.ipynb") as kernel:
        kernel.run("import os; os.environ['LEAK'] = 'of a cell before'")
        kernel.run(PREPARE)
        before = kernel.value("before")
        rungs = kernel.value(PREPARED)
        assert rungs[1][:2] == ["server", False]
        assert rungs[1][2].endswith("answered 403 (it wants a password)")
        assert rungs[2][:2] == ["re-exec", True]

        child = kernel.value(
            "__import__('subprocess').Popen(['sleep', '600']).pid, os.chdir('/'), os.pipe2(0)"
        )[0]
        gate = server.directory / "gate"
        asking = kernel.send(RUN.format(code=SHOW) + GATE.format(gate=str(gate)))
        queued = kernel.send(f"open({str(ran)!r}, 'w')")
        kernel.settle()
        gate.touch()
        assert kernel.reply(asking)["status"] == "ok"
        assert kernel.reply(queued)["status"] == "aborted"

        fresh = json.loads(kernel.updated("shown"))
        assert fresh == {
            "pid": before["pid"],
            "cwd": before["cwd"],
            "leak": None,
            "restart": False,
        }
        assert_idle(kernel, "shown")
        assert kernel.run("pass")["execution_count"] == 1
        assert not ran.exists()
        assert not psutil.pid_exists(child)
        assert psutil.Process(fresh["pid"]).children() == []  # nor a zombie
        kernel.run("import os; os.write(1, b'to the descriptor')")
        kernel.wait_for(lambda message: message["content"].get("text") == "to the descriptor")
    assert server.deaths() == 0


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Kernel]:
    """Start a kernel that no server owns."""
    with Kernel.start(tmp_path, environment={"TMPDIR": str(tmp_path)}) as kernel:
        kernel.run(PREPARE)
        yield kernel


def test_a_widget_s_thread_restarts_after_the_cell_that_runs_and_before_the_next(
    console: Kernel, tmp_path: Path
) -> None:
    before = console.value("before")
    assert console.value(PREPARED)[:2] == [
        ["plugin", False, "only JupyterLab and Notebook have the plugin"],
        ["server", False, "no Jupyter server's file belongs to the kernel's parent process"],
    ]
    console.run(
        "import threading\n"
        "clicked, scheduled = threading.Event(), threading.Event()\n"
        "def click():\n"
        "    clicked.wait()\n"
        f"    {RUN.format(code=SHOW).splitlines()[0]}\n"
        f"    {RUN.format(code=SHOW).splitlines()[1]}\n"
        "    )\n"
        "    scheduled.set()\n"
        "threading.Thread(target=click).start()"
    )
    gate = tmp_path / "gate"
    running = console.send("clicked.set(); print(scheduled.wait(60))" + GATE.format(gate=str(gate)))
    queued = console.send(f"open({str(tmp_path / 'ran')!r}, 'w')")
    console.settle()
    gate.touch()
    assert console.reply(running)["status"] == "ok"
    assert console.printed(running) == "True\n"
    assert console.reply(queued)["status"] == "aborted"
    assert json.loads(console.updated("shown"))["pid"] == before["pid"]
    assert not (tmp_path / "ran").exists()


def test_cells_that_are_run_while_the_restart_comes_go_back_to_not_having_run(
    console: Kernel, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    console.run(
        "import threading\n"
        "def release():\n"
        f"{textwrap.indent(GATE.format(gate=str(gate)), '    ')}"
        "    restart._process.between_cells(restart._process.release_queue)\n"
        "restart._process.hold_queue()\n"
        "threading.Thread(target=release).start()"
    )
    for _ in range(3):
        assert console.reply(console.send("before = None"))["status"] == "aborted"
    gate.touch()
    wait_until(lambda: console.reply(console.send("before"))["status"] == "ok")
    assert console.value("before") == console.value("here()")


def test_a_rung_that_fails_gives_way_to_the_next(console: Kernel) -> None:
    before = console.value("before")
    console.run(
        "import dataclasses\n"
        "from torchenv_magic.notebook.own_server import Server\n"
        "from torchenv_magic.notebook.restart import Rung\n"
        "gone = Rung(name='server', available=True, reason='it answered a moment ago')\n"
        "choice = dataclasses.replace(\n"
        "    choice, rungs=(gone, *choice.rungs[2:]), server=Server(url='http://127.0.0.1:1/')\n"
        ")\n" + RUN.format(code=SHOW)
    )
    fresh = json.loads(console.updated("shown"))
    assert (fresh["pid"], fresh["restart"]) == (before["pid"], False)


def failure_of(kernel: Kernel) -> str:
    """Wait until the restart is given up, in a kernel that lives, and return what was said."""
    message = kernel.wait_for(
        lambda message: message["content"].get("transient", {}).get("display_id") == "failed"
    )
    kernel.iopub.remove(message)
    return str(message["content"]["data"]["text/plain"])


def test_where_the_system_refuses_the_kernel_lives_on_and_says_what_to_press(
    console: Kernel, tmp_path: Path
) -> None:
    console.run(RUN.format(code=SHOW) + "import sys; sys.executable = '/gone/python'")
    assert failure_of(console) == (
        "The kernel was not restarted: the kernel can't replace itself: "
        "[Errno 2] No such file or directory: '/gone/python'\n\n"
        "hint: Leave the console and start it again, then run `%torchenv verify`"
    )
    # Streams and directory are what they were, and a second try is free to fail earlier.
    assert console.value("here() == before")
    console.run("os.write(1, b'still here')")
    console.wait_for(lambda message: message["content"].get("text") == "still here")
    console.run(RUN.format(code=SHOW))
    assert "the restart's helper can't be started" in failure_of(console)
    wait_until(lambda: not list(tmp_path.glob("torchenv-restart-*")))


def test_a_helper_that_breaks_is_a_failure_with_its_last_words(console: Kernel) -> None:
    console.run(
        "choice = __import__('dataclasses').replace(choice, rungs=choice.rungs[2:])\n"
        "restart._process.environment['PYTHONHOME'] = '/gone'\n" + RUN.format(code=SHOW)
    )
    assert "the restart's helper ended unexpectedly" in failure_of(console)
    assert "/gone" in console.value("failures[0].detail")


def test_code_that_raises_in_the_fresh_kernel_is_told_in_the_old_output(console: Kernel) -> None:
    console.run(RUN.format(code="raise RuntimeError('it\\'s broken')"))
    assert console.updated("shown") == (
        "The kernel was restarted, but the verification did not run: RuntimeError: it's broken"
        "\n\nhint: run the verification cell (`%torchenv verify`)"
    )


def test_two_restarts_at_once_are_refused(console: Kernel) -> None:
    console.run(
        RUN.format(code=SHOW) + "try:\n"
        "    restart.run(choice, display_id='', fresh_kernel_code='', after={}, on_failure=print)\n"
        "except RuntimeError as error:\n"
        "    display({'text/plain': str(error)}, raw=True, display_id='second')\n"
    )
    said = console.wait_for(
        lambda message: message["content"].get("transient", {}).get("display_id") == "second"
    )
    assert said["content"]["data"]["text/plain"] == "the kernel is being restarted already"
    console.updated("shown")


# --- tell -----------------------------------------------------------------------------------------


def test_a_run_that_nobody_watches_is_never_restarted(tmp_path: Path) -> None:
    cells = [
        PREPARE + RUN.format(code=SHOW).replace("restart.abort_queue()", ""),
        "print(choice.restarts, before == here())",
        "print(failures[0])",
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells]
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "IPYTHONDIR": str(tmp_path)}
    NotebookClient(notebook, timeout=60).execute(cwd=str(tmp_path), env=environment)
    assert notebook.cells[1].outputs[0].text == "False True\n"
    assert notebook.cells[2].outputs[0].text == (
        "The kernel was not restarted: a restart would end a run that nobody watches "
        "(the client that runs this cell takes no input)\n\n"
        "hint: Run the notebook again: a new kernel uses what is installed now\n"
    )


ALL_OPEN = RestartFacts(
    plugin_obstacle=None, server_answered=True, server_reason="it answers", re_exec_obstacle=None
)
ALL_CLOSED = RestartFacts(
    plugin_obstacle="no pages",
    server_answered=False,
    server_reason="403",
    re_exec_obstacle="another launcher",
)


@pytest.mark.parametrize("kind", ["jupyter", "console"])
def test_the_ladder_goes_from_the_plugin_to_the_server_to_re_exec_to_telling(
    kind: FrontEndKind,
) -> None:
    front_end = FrontEnd(kind=kind, reason="")
    assert [rung.name for rung in ladder(front_end, ALL_OPEN) if rung.available] == [
        "plugin",
        "server",
        "re-exec",
        "tell",
    ]
    assert ladder(front_end, ALL_CLOSED) == (
        Rung(name="plugin", available=False, reason="no pages"),
        Rung(name="server", available=False, reason="403"),
        Rung(name="re-exec", available=False, reason="another launcher"),
        Rung(name="tell", available=True, reason="a person can always restart the kernel"),
    )


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("vscode", "Press Restart in the notebook's toolbar, then run `%torchenv verify`"),
        ("colab", "Press Runtime ▸ Restart session, then run `%torchenv verify`"),
        ("kaggle", "Restart the session from the Run menu, then run `%torchenv verify`"),
        ("headless", "Run the notebook again: a new kernel uses what is installed now"),
        ("terminal", "Leave IPython and start it again, then run `%torchenv verify`"),
        ("pyodide", "Open the notebook in a Jupyter that runs Python outside the browser"),
        ("unknown", "Restart the kernel, then run `%torchenv verify`"),
    ],
)
def test_elsewhere_nothing_is_restarted_and_one_sentence_tells_what_to_press(
    kind: FrontEndKind, sentence: str
) -> None:
    rungs = ladder(FrontEnd(kind=kind, reason="as seen"), ALL_OPEN)
    assert [rung.name for rung in rungs if rung.available] == ["tell"]
    assert all(rung.reason.endswith("(as seen)") for rung in rungs)
    assert how_to_restart(kind) == sentence


def test_colab_is_given_its_own_button() -> None:
    bundle = colab_restart_button(["torch", "torchvision"])
    [(mime, content)] = bundle.items()
    assert mime == "application/vnd.colab-display-data+json"
    assert isinstance(content, dict)
    assert content["pip_warning"] == {"packages": ["torch", "torchvision"]}
    assert len(content["id"]) == 32


# --- finding out ----------------------------------------------------------------------------------

CONNECTION_FILE = Path("/runtime/kernel-1.json")
LAUNCHED = ["python", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{file}"]


@pytest.mark.parametrize(
    ("platform", "arguments", "obstacle"),
    [
        ("linux", LAUNCHED, None),
        ("darwin", LAUNCHED, None),
        ("win32", LAUNCHED, "can't replace itself on this system"),
        ("linux", ["python", "-m", "spyder_kernels.console"], "not started by ipykernel_launcher"),
        ("linux", ["python", "-m", "ipykernel_launcher"], "names no connection file"),
        ("linux", ["python", "-m", "ipykernel_launcher", "-f"], "names no connection file"),
        (
            "linux",
            ["python", "-m", "ipykernel_launcher", "-f", "/elsewhere/kernel-1.json"],
            "names another connection file",
        ),
    ],
)
def test_only_a_launcher_that_names_this_connection_file_is_started_over(
    platform: str, arguments: list[str], obstacle: str | None
) -> None:
    reason = re_exec_obstacle(
        platform=platform,
        arguments=[word.replace("{file}", str(CONNECTION_FILE)) for word in arguments],
        executable="/usr/bin/python3",
        connection_file=CONNECTION_FILE,
    )
    assert (reason is None) if obstacle is None else (reason is not None and obstacle in reason)


def test_the_launch_environment_is_the_process_s_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "1")
    monkeypatch.delenv("PATH")
    environment = launch_environment()
    assert "LEAK" not in environment
    assert "PATH" in environment


def describe(directory: Path, pid: int, **description: Any) -> None:
    content = {"url": f"http://127.0.0.1:{pid}/", "token": f"token of {pid}", **description}
    (directory / f"jpserver-{pid}.json").write_text(json.dumps(content))


def test_only_the_server_that_is_this_kernel_s_parent_is_asked(tmp_path: Path) -> None:
    for pid in (10, 20):
        describe(tmp_path, pid)

    def found(platform: str, **environment: str) -> list[str]:
        candidates = server_candidates(
            platform=platform,
            environment=environment,
            directories=(tmp_path, tmp_path, tmp_path / "gone"),
            parent=20,
        )
        return [server.source for server in candidates]

    assert found("linux", JPY_PARENT_PID="10") == ["jpserver-10.json"]
    assert found("linux") == ["jpserver-20.json"]
    assert found("linux", JPY_PARENT_PID="30") == []
    assert found("linux", JPY_PARENT_PID="*") == ["jpserver-20.json"]
    assert sorted(found("win32", JPY_PARENT_PID="712")) == ["jpserver-10.json", "jpserver-20.json"]
    assert found(
        "linux",
        JPY_PARENT_PID="10",
        JUPYTERHUB_SERVICE_URL="http://127.0.0.1:1/",
        JUPYTERHUB_API_TOKEN="made up",
    ) == ["jpserver-10.json", "JUPYTERHUB_SERVICE_URL"]


@pytest.mark.parametrize(
    ("listens_on", "connects_to"),
    [
        ("http://0.0.0.0:8888/lab/", "http://127.0.0.1:8888/lab/"),
        ("https://[::]:8888/", "https://[::1]:8888/"),
        ("http://localhost:8888/", "http://localhost:8888/"),
        ("http+unix://%2Frun%2Fjupyter.sock/", "http+unix://%2Frun%2Fjupyter.sock/"),
    ],
)
def test_a_server_that_listens_everywhere_is_asked_on_loopback(
    tmp_path: Path, listens_on: str, connects_to: str
) -> None:
    describe(tmp_path, 1, url=listens_on)
    [server] = server_candidates(platform="linux", environment={}, directories=[tmp_path], parent=1)
    assert server.url == connects_to


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"token": "x"}', '{"url": "http://["}']
)
def test_a_broken_server_file_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "jpserver-1.json").write_text(content)
    assert not server_candidates(platform="linux", environment={}, directories=[tmp_path], parent=1)


def test_the_hub_s_variables_lead_to_the_server_and_only_its_own_kernel_counts(
    servers: Mapping[str, JupyterServer],
) -> None:
    server = servers["token"]
    port = urllib.parse.urlsplit(server.url).port
    candidates = server_candidates(
        platform="linux",
        environment={
            "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{port}",
            "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
            "JUPYTERHUB_API_TOKEN": server.token,
        },
        directories=(),
        parent=1,
    )
    kernel = server.request("POST", "api/kernels", {"name": "python3"})
    owner, reason = find_owner(candidates, kernel["id"])
    assert owner == candidates[0]
    assert reason == "the server of JUPYTERHUB_SERVICE_URL answers for this kernel"
    assert server.token not in repr(owner)
    nobody, reason = find_owner(candidates, "0f0e0d0c-0000-4000-8000-000000000000")
    assert nobody is None
    assert reason == "the server of JUPYTERHUB_SERVICE_URL answered 404"
    server.request("DELETE", f"api/kernels/{kernel['id']}")


# --- the way to the server ------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the server object holds; 0 hangs up."""

    def do_GET(self) -> None:
        status = getattr(self.server, "status", 200)
        if status:
            body = json.dumps({"path": self.path, "token": self.headers["Authorization"]}).encode()
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_https_on_loopback_needs_no_certificate_that_is_known() -> None:
    certificate = trustme.CA().issue_cert("jupyter.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        url = f"https://127.0.0.1:{server.server_port}/base/"
        answer = ask(Server(url=url, token="secret"), "GET", "api", timeout=30)
    assert (answer.status, answer.json()) == (200, {"path": "/base/api", "token": "token secret"})


def test_only_on_the_way_to_this_machine_is_a_certificate_passed_over() -> None:
    own = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name == "AF_INET"
    ]
    assert all(map(_is_this_machine, ["localhost", "127.0.0.1", "127.3.2.1", "::1", *own]))
    elsewhere = ["198.51.100.7", "2001:db8::7", "255.255.255.255", "jupyter.example", "localhost.x"]
    assert not any(map(_is_this_machine, elsewhere))


@pytest.mark.skipif(sys.platform == "win32", reason="Python has no Unix sockets on Windows")
def test_a_server_on_a_unix_socket_is_asked_there(tmp_path: Path) -> None:
    class UnixServer(socketserver.ThreadingUnixStreamServer):
        def get_request(self) -> tuple[Any, Any]:
            request, _ = super().get_request()
            return request, ("local", 0)

    path = str(tmp_path / "jupyter.sock")
    with serving(UnixServer(path, Answers)):
        server = Server(url="http+unix://somewhere/base/", token="secret", socket_path=path)
        answer = ask(server, "GET", "api", timeout=30)
    assert answer.json() == {"path": "/base/api", "token": "token secret"}


@pytest.mark.parametrize(
    ("status", "reason", "ambiguous"),
    [
        (403, "the Jupyter server answered 403", False),
        (302, "the Jupyter server answered 302", False),
        (500, "the Jupyter server answered 500", True),
        (0, "the Jupyter server hung up", True),
    ],
)
def test_a_refused_restart_is_only_passed_on_where_it_surely_does_not_happen(
    status: int, reason: str, *, ambiguous: bool
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.status = status  # type: ignore[attr-defined]
    with serving(server), pytest.raises(ServerRefusedError) as refusal:
        restart_kernel(Server(url=f"http://127.0.0.1:{server.server_port}/", token="secret"), "k")
    assert (refusal.value.reason, refusal.value.ambiguous) == (reason, ambiguous)


def test_a_server_that_is_gone_is_a_sure_refusal() -> None:
    with pytest.raises(ServerRefusedError, match="can't be reached") as refusal:
        restart_kernel(Server(url="http://127.0.0.1:1/"), "k")
    assert not refusal.value.ambiguous


# --- the helper -----------------------------------------------------------------------------------


def test_the_helper_is_told_nothing_that_others_can_read() -> None:
    assert helper_command("/usr/bin/python3") == [
        "/usr/bin/python3",
        "-m",
        "torchenv_magic.notebook.restart_helper",
    ]
    kept = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/opt/cuda", "PYTHONPATH": "/opt/lib"}
    dropped = {
        "JUPYTERHUB_API_TOKEN": "t",
        "JPY_API_TOKEN": "t",
        "JPY_PARENT_PID": "1",
        "JUPYTER_TOKEN": "t",
        "HF_TOKEN": "t",
        "AWS_SECRET_ACCESS_KEY": "t",
        "PGPASSWORD": "t",
        "OPENAI_API_KEY": "t",
    }
    assert helper_environment({**kept, **dropped}) == kept


def test_the_helper_does_not_outlive_a_kernel_that_is_shut_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_helper, "_ALIVE_SECONDS", 0.2)
    results: list[bool] = []
    with Kernel.start(tmp_path) as kernel:
        job = Job(
            kernel_id="",
            connection_file=str(kernel.connection_file),
            code="print('verifying', flush=True); __import__('time').sleep(600)",
            display_id="shown",
        )
        thread = threading.Thread(
            target=lambda: results.append(restart_helper.run_in_fresh_kernel(job))
        )
        thread.start()
        kernel.wait_for(lambda message: message["content"].get("text") == "verifying\n")
    thread.join(SECONDS)
    assert results == [False]


def test_a_job_survives_its_way_over_the_pipe() -> None:
    server = Server(url="http://127.0.0.1:8888/", token="secret", source="jpserver-1.json")
    job = Job(
        kernel_id="k",
        connection_file="/runtime/kernel-k.json",
        code="show('it\\'s\\n')",
        display_id="d",
        server=server,
    )
    line = job.to_line()
    assert "\n" not in line
    assert Job.from_line(line) == job
    assert "secret" not in repr(job)


@pytest.mark.parametrize(("stdin", "status"), [("", 0), ("{}\n", 2), ("secret\n", 2)])
def test_a_helper_without_a_job_ends(stdin: str, status: int) -> None:
    # Without the fork, whose parent ends at once with 0.
    program = (
        "import sys; from torchenv_magic.notebook import restart_helper as helper\n"
        "helper._detach = lambda: None\nsys.exit(helper.main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=stdin,
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == status
    assert "secret" not in ended.stdout + ended.stderr
