"""How long a restart takes by each rung of the ladder, beside the front end's own Restart button.

In a real JupyterLab in Chromium, with PyTorch loaded before each restart. The peer is what a person
does by hand: Restart, and a cell with `import torch`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient

from benchmarks.measuring import BenchmarkError, Comparison, Goal, Series, take_turns
from benchmarks.stage import Stage, Torch, run_program, serve_torch
from tests.browser.front_end import Browser, FrontEndPage
from tests.browser.kernel_environment import KernelEnvironment
from tests.browser.server import Authentication, JupyterServer
from tests.kernels import SECONDS
from tests.standin import StandIn
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE

__all__ = ["measure"]

# What `%torchenv install` does after an install that changed something.
_RESTART = """\
import torch
from uuid import uuid4
from IPython.display import display
from torchenv_magic.notebook.after_restart import fresh_kernel_code
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.plugin import OUTPUT_MIME
from torchenv_magic.notebook.restart import Restart
output = uuid4().hex
display(
    {"text/plain": "Restarting…", OUTPUT_MIME: {"id": output}}, raw=True, display_id=output
)
restart = Restart(get_ipython(), read_front_end(get_ipython()))
restart.run(
    restart.prepare(),
    display_id=output,
    fresh_kernel_code=fresh_kernel_code(output, "The kernel was restarted."),
    after={"text/plain": "The kernel was restarted."},
    on_failure=print,
)
restart.abort_queue();
"""
_IMPORT = "import torch\nprint('imported')"
_ASK, _PROOF, _BY_HAND = range(3)
_EVERY_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rung:
    name: str
    plugin: bool
    authentication: Authentication
    shown_in: int
    """The cell that shows the verification: its own one, or the one that asked."""


_RUNGS = (
    _Rung(name="plugin", plugin=True, authentication=Authentication.automatic(), shown_in=_PROOF),
    _Rung(name="server", plugin=False, authentication=Authentication.automatic(), shown_in=_ASK),
    _Rung(
        name="re-exec",
        plugin=False,
        # Nothing in a kernel can ask such a server for a restart.
        authentication=Authentication.password("a password"),
        shown_in=_ASK,
    ),
)


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds since the request."""

    answering: float
    """Until the fresh kernel answers."""
    shown: float
    """Until the verification, or what follows the import, is on the screen."""


def measure(stage: Stage) -> Iterator[Comparison]:
    """Restart the kernel of one notebook again and again, for each rung."""
    directory = stage.directory / "restart"
    with StandIn() as standin:
        torch = serve_torch(standin, directory)
        environment = stage.make_environment("restarted")
        _install_torch(environment, standin, directory, torch)
    with Browser() as browser:
        for rung in _RUNGS:
            yield from _measure_rung(rung, stage, browser, environment, torch)


def _measure_rung(
    rung: _Rung, stage: Stage, browser: Browser, environment: KernelEnvironment, torch: Torch
) -> Iterator[Comparison]:
    server = JupyterServer(
        stage.directory / "restart" / rung.name,
        plugin=rung.plugin,
        authentication=rung.authentication,
    )
    with server:
        kernel = environment.write_kernelspec(server.data_directory)
        cells = [_RESTART, VERIFICATION_SOURCE, _IMPORT]
        notebook = server.create_notebook("restart.ipynb", cells, kernel_name=kernel)
        page = browser.open(server, notebook)
        connection_file = server.runtime_directory / f"kernel-{page.kernel_id()}.json"
        pairs = take_turns(
            f"restart by {rung.name}",
            stage.runs,
            lambda: _by_rung(page, connection_file, rung),
            lambda: _by_hand(page, connection_file),
        )
        page.close()
    ours, peer = zip(*pairs, strict=True)
    yield Comparison(
        title=f"restart by {rung.name}: until the fresh kernel answers",
        ours=Series(name=rung.name, seconds=tuple(each.answering for each in ours)),
        peer=Series(name="the Restart button", seconds=tuple(each.answering for each in peer)),
    )
    yield Comparison(
        title=f"restart by {rung.name}: until PyTorch is verified ({torch})",
        ours=Series(
            name=f"{rung.name}, until the verification is shown",
            seconds=tuple(each.shown for each in ours),
        ),
        peer=Series(
            name="the Restart button, then `import torch`",
            seconds=tuple(each.shown for each in peer),
        ),
        # A made torch imports in no time: nothing would be left but what we add.
        goal=Goal(kind="ratio", limit=1.2) if torch.is_real else None,
    )


def _install_torch(
    environment: KernelEnvironment, standin: StandIn, directory: Path, torch: Torch
) -> None:
    # By the project, as then there is something that the verification has to compare with.
    variables = standin.environment(directory / "cache", hermetic=True)
    command = [str(environment.python), "-I", "-m", "torchenv_magic", "install", "cpu"]
    run_program([*command, torch.requirement], variables.apply(os.environ))


def _by_rung(page: FrontEndPage, connection_file: Path, rung: _Rung) -> _Times:
    page.execute_command("notebook:clear-all-cell-outputs")
    with _FreshKernel.watch(connection_file) as fresh:
        started = time.perf_counter()
        page.run_cell(_ASK, wait=False)
        page.wait_for_output(rung.shown_in, "PyTorch (works|does not)", timeout=SECONDS)
        shown = time.perf_counter()
        times = _Times(fresh.answered() - started, shown - started)
    if "PyTorch works" not in page.cell_output_text(rung.shown_in):
        raise BenchmarkError(f"not verified:\n{page.cell_output_text(rung.shown_in)}")
    page.wait_for_kernel("idle")
    return times


def _by_hand(page: FrontEndPage, connection_file: Path) -> _Times:
    page.execute_command("notebook:clear-all-cell-outputs")
    # The same is in memory as before our own restart.
    page.run_cell(_BY_HAND)
    page.execute_command("notebook:clear-all-cell-outputs")
    page.perform(
        lambda inner: inner.evaluate(
            "() => { void window.jupyterapp.commands.execute('notebook:restart-kernel'); }"
        )
    )
    page.wait_for_dialog("Restart")
    with _FreshKernel.watch(connection_file) as fresh:
        started = time.perf_counter()
        page.answer_dialog("Restart")
        # A cell that is run before would go to the old kernel.
        page.perform(lambda inner: inner.wait_for_function(_NOT_IDLE, polling="raf"))
        page.run_cell(_BY_HAND, wait=False)
        page.wait_for_output(_BY_HAND, "imported", timeout=SECONDS)
        shown = time.perf_counter()
        times = _Times(fresh.answered() - started, shown - started)
    page.wait_for_kernel("idle")
    return times


_NOT_IDLE = (
    "() => window.jupyterapp.shell.currentWidget.sessionContext.kernelDisplayStatus !== 'idle'"
)


class _FreshKernel:
    """Asks a kernel who it is, again and again, until it is another process than before."""

    @classmethod
    @contextlib.contextmanager
    def watch(cls, connection_file: Path) -> Iterator[_FreshKernel]:
        """Ask until the block ends."""
        client = BlockingKernelClient()
        client.load_connection_file(str(connection_file))
        client.start_channels(iopub=False, stdin=False, hb=False, control=False)
        try:
            fresh = cls(client)
            thread = threading.Thread(target=fresh._ask, daemon=True)
            thread.start()
            yield fresh
            fresh._over.set()
            thread.join()
        finally:
            client.stop_channels()

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client
        self._times: queue.Queue[float] = queue.Queue()
        self._over = threading.Event()
        self._before = self._answer(SECONDS)

    def answered(self) -> float:
        """Return when the fresh process answered first, on the clock of `perf_counter`."""
        return self._times.get(timeout=SECONDS)

    def _ask(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Empty):
                if self._answer(_EVERY_SECONDS) != self._before:
                    self._times.put(time.perf_counter())
                    return

    def _answer(self, seconds: float) -> str:
        self._client.kernel_info()
        return str(self._client.get_shell_msg(timeout=seconds)["header"]["session"])
