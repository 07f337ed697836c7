"""How long it takes from a restart to the verification's result, beside the least it could take.

That least is a restart by the server's REST API and `import torch` in the fresh kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from jupyter_client.blocking.client import BlockingKernelClient

from benchmarks.measuring import BenchmarkError, Comparison, Goal, Series, take_turns
from benchmarks.stage import CELL_ID, Stage, Torch, run_program, serve_torch
from tests.browser.kernel_environment import KernelEnvironment
from tests.browser.server import JupyterServer
from tests.kernels import SECONDS, Kernel
from tests.standin import StandIn

__all__ = ["measure"]

# What `%torchenv install` does after an install that changed something.
_RESTART = """\
from IPython.display import display
from torchenv_magic.notebook.after_restart import fresh_kernel_code
from torchenv_magic.notebook.front_end import read_front_end
from torchenv_magic.notebook.restart import Restart
display({{"text/plain": "before"}}, raw=True, display_id={display_id!r})
restart = Restart(get_ipython(), read_front_end(get_ipython()))
choice = restart.prepare()
assert choice.first.name == "server", choice
restart.run(
    choice,
    display_id={display_id!r},
    fresh_kernel_code=fresh_kernel_code({display_id!r}, "The kernel was restarted."),
    on_failure=print,
)
restart.abort_queue();
"""


def measure(stage: Stage) -> Iterator[Comparison]:
    """Restart the kernel of one notebook again and again; it has torch loaded each time."""
    directory = stage.directory / "restart"
    with StandIn() as standin:
        torch = serve_torch(standin, directory)
        environment = stage.make_environment("restarted")
        _install_torch(environment, standin, directory, torch)
    with JupyterServer(directory) as server:
        kernel_name = environment.write_kernelspec(server.data_directory)
        server.start_kernel_for(server.create_notebook("a.ipynb", [], kernel_name=kernel_name))
        (session,) = server.sessions()
        kernel_id = session["kernel"]["id"]
        connection_file = server.runtime_directory / f"kernel-{kernel_id}.json"
        title = f"restart: to a verified torch ({torch})"
        pairs = take_turns(
            title,
            stage.runs,
            lambda: _to_verified(connection_file),
            lambda: _to_imported(server, kernel_id, connection_file),
        )
    ours, peer = zip(*pairs, strict=True)
    yield Comparison(
        title=title,
        ours=Series(name="restart, until the verification is shown", seconds=ours),
        peer=Series(name="REST restart, until `import torch` is done", seconds=peer),
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


def _to_verified(connection_file: Path) -> float:
    display_id = uuid4().hex
    with Kernel.attach(connection_file) as kernel:
        kernel.run(_RESTART.format(display_id=display_id), cell_id=CELL_ID)
        started = time.perf_counter()
        text = kernel.updated(display_id)
        seconds = time.perf_counter() - started
    if "PyTorch works" not in text:
        raise BenchmarkError(f"the verification did not pass:\n{text}")
    return seconds


def _to_imported(server: JupyterServer, kernel_id: str, connection_file: Path) -> float:
    client = BlockingKernelClient()
    client.load_connection_file(str(connection_file))
    started = time.perf_counter()
    # The server answers when the fresh kernel has answered it.
    server.restart_kernel(kernel_id)
    client.start_channels(iopub=False, stdin=False, hb=False, control=False)
    try:
        message_id = client.execute("import torch")
        reply = client.get_shell_msg(timeout=SECONDS)
        seconds = time.perf_counter() - started
    finally:
        client.stop_channels()
    if reply["parent_header"]["msg_id"] != message_id or reply["content"]["status"] != "ok":
        raise BenchmarkError(f"`import torch` failed: {reply['content']}")
    return seconds
