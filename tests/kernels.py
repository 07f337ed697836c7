"""Drive a real kernel by its connection file, as a front end would do it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

PROJECT_ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60.0
"""How long anything may take on a busy machine before a test gives up."""

Message = dict[str, Any]


class CellError(AssertionError):
    """A cell that was to run well did not."""


@dataclass(kw_only=True)
class Kernel:
    """A client of a running kernel; the kernel may be replaced meanwhile."""

    connection_file: Path
    client: BlockingKernelClient
    iopub: list[Message] = field(default_factory=list)
    """All that was published so far, oldest first."""
    _replies: dict[str, Message] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def attach(cls, connection_file: Path) -> Iterator[Kernel]:
        """Speak to the kernel behind `connection_file` until the block ends."""
        client = BlockingKernelClient()
        client.load_connection_file(str(connection_file))
        client.start_channels(stdin=False, hb=False)
        kernel = cls(connection_file=connection_file, client=client)
        try:
            kernel._wait_for_iopub()
            yield kernel
        finally:
            client.stop_channels()

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, directory: Path, *, environment: Mapping[str, str] | None = None
    ) -> Iterator[Kernel]:
        """Start a kernel that no server owns, as `jupyter console` does, and speak to it."""
        manager = KernelManager(
            connection_file=str(directory / f"kernel-{os.urandom(4).hex()}.json")
        )
        variables = {
            # Under pytest a kernel would not capture what is written to descriptors.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("JPY_", "PYTEST_"))
            },
            "PYTHONPATH": str(PROJECT_ROOT),
            "IPYTHONDIR": str(directory / "ipython"),
            **(environment or {}),
        }
        manager.start_kernel(cwd=str(directory), env=variables)
        try:
            with cls.attach(Path(manager.connection_file)) as kernel:
                yield kernel
        finally:
            manager.shutdown_kernel(now=True)

    def send(self, code: str, *, cell_id: str | None = None, allow_stdin: bool = True) -> str:
        """Send a cell and return the id of its request."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": True,
        }
        metadata = {} if cell_id is None else {"cellId": cell_id}
        message = self.client.session.msg("execute_request", content, metadata=metadata)
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def settle(self) -> None:
        """Return once the kernel's process has received what was sent, also while a cell runs.

        The control channel is answered meanwhile, and what came before lies on the same thread.
        """
        message = self.client.session.msg("kernel_info_request")
        self.client.control_channel.send(message)
        deadline = time.monotonic() + SECONDS
        while True:
            left = max(0, deadline - time.monotonic())
            reply = self.client.get_control_msg(timeout=left)
            if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
                return

    def run(self, code: str, **options: Any) -> Message:
        """Run a cell and return the content of its reply; raises `CellError` where it fails."""
        reply = self.reply(self.send(code, **options))
        if reply["status"] != "ok":
            raise CellError("\n".join(reply.get("traceback", [reply["status"]])))
        return reply

    def value(self, expression: str) -> Any:
        """Return what `expression` is in the kernel, by way of JSON."""
        deadline = time.monotonic() + SECONDS
        while True:
            message_id = self.send(f"print(__import__('json').dumps(({expression})))")
            reply = self.reply(message_id)
            # What waits as a cell fails is dropped, and so is what comes a moment later.
            if reply["status"] != "aborted" or time.monotonic() > deadline:
                break
        if reply["status"] != "ok":
            raise CellError("\n".join(reply.get("traceback", [reply["status"]])))
        return json.loads(self.printed(message_id))

    def reply(self, message_id: str) -> Message:
        """Wait for the reply to a request and return its content."""
        deadline = time.monotonic() + SECONDS
        while message_id not in self._replies:
            message = self.client.get_shell_msg(timeout=max(0, deadline - time.monotonic()))
            self._replies[message["parent_header"]["msg_id"]] = message["content"]
        return self._replies[message_id]

    def printed(self, message_id: str) -> str:
        """Wait until a request's outputs are complete and return what it printed."""
        self.wait_for(
            lambda message: (
                message["content"].get("execution_state") == "idle"
                and message["parent_header"].get("msg_id") == message_id
            )
        )
        return "".join(
            message["content"]["text"]
            for message in self.iopub
            if message["msg_type"] == "stream"
            and message["parent_header"].get("msg_id") == message_id
        )

    def updated(self, display_id: str) -> str:
        """Wait for the next update of a display and return its text."""
        message = self.wait_for(
            lambda message: (
                message["msg_type"] == "update_display_data"
                and message["content"]["transient"]["display_id"] == display_id
            )
        )
        return str(message["content"]["data"]["text/plain"])

    def wait_for(self, matches: Callable[[Message], bool]) -> Message:
        """Return the first published message that `matches`, one that came already too."""
        deadline = time.monotonic() + SECONDS
        seen = 0
        while True:
            for message in self.iopub[seen:]:
                if matches(message):
                    return message
            seen = len(self.iopub)
            left = deadline - time.monotonic()
            if left <= 0:
                kinds = [message["msg_type"] for message in self.iopub]
                raise AssertionError(f"not published in time; there were {kinds}")
            with contextlib.suppress(queue.Empty):
                self.iopub.append(self.client.get_iopub_msg(timeout=left))

    def _wait_for_iopub(self) -> None:
        # A subscription takes effect some time after it is made: ask until an answer is heard.
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            self.client.kernel_info()
            with contextlib.suppress(queue.Empty):
                self.client.get_iopub_msg(timeout=0.3)
                return
        raise AssertionError("the kernel did not answer in time")
