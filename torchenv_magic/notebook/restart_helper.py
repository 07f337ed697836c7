"""Restart a kernel from outside and run code in the fresh one: the detached process.

A kernel can't ask its own server for a restart and wait: the server interrupts and ends it
meanwhile. So this process asks, outlives the old kernel, and speaks to the fresh one over the same
connection file. Everything it needs comes as one JSON line over stdin, because a command line and
an environment can be read by others; then it takes orders, one a line, and answers on stdout:

```
kernel → helper    {job}              what to do; the helper loads what it needs meanwhile
                   go                 say when the running cell is over and its reply is sent
                   exec               (re-exec) the kernel now replaces itself: stdin closes
helper → kernel    {"event": "idle"}  the cell is over; a server restart is asked for now
                   {"event": "failed", "reason": …, "ambiguous": …}
```

When stdin ends without `exec`, the old kernel is gone or has thought better of it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchenv_magic.notebook.own_server import PROBE_SECONDS, Server, ask
from torchenv_magic.notebook.plugin import OUTPUT_MIME

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

__all__ = [
    "Job",
    "ServerRefusedError",
    "main",
    "restart_kernel",
    "run_in_fresh_kernel",
]

RESTART_SECONDS = 120.0
"""How long the server may take to answer the restart: it waits 60 s for the kernel itself."""
FRESH_KERNEL_SECONDS = 60.0
CODE_SECONDS = 600.0
_DISPLAY_SECONDS = 30.0
_HEARD_SECONDS = (0.5, 2.0)
"""How long after the fresh kernel's first answer an update is published again."""
_ASK_AGAIN_SECONDS = 0.5
_ASK_AGAIN_AT_MOST_SECONDS = 30.0
_ALIVE_SECONDS = 2.0
_ROUNDS_WITHOUT_FILE = 3

_log = logging.getLogger("torchenv_magic.restart")


# --- the server -----------------------------------------------------------------------------------


class ServerRefusedError(Exception):
    """The server did not restart the kernel."""

    def __init__(self, reason: str, *, ambiguous: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        # No answer came: the restart may still happen, so nothing else may be tried.
        self.ambiguous = ambiguous


def restart_kernel(server: Server, kernel_id: str) -> None:
    """Have the server restart the kernel; raise `ServerRefusedError` where it doesn't."""
    try:
        cookies: tuple[tuple[str, str], ...] = ()
        if not server.token:
            # Without authentication a POST still needs the XSRF cookie. There is no log-in page
            # then, but its 404 sets the cookie.
            cookies = ask(server, "GET", "login", timeout=PROBE_SECONDS).cookies
        path = f"api/kernels/{urllib.parse.quote(kernel_id, safe='')}/restart"
        answer = ask(server, "POST", path, timeout=RESTART_SECONDS, cookies=cookies)
    except TimeoutError as error:
        raise ServerRefusedError("the Jupyter server gave no answer", ambiguous=True) from error
    except http.client.RemoteDisconnected as error:
        raise ServerRefusedError("the Jupyter server hung up", ambiguous=True) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServerRefusedError(f"the Jupyter server can't be reached: {error}") from error
    if not answer.is_success:
        # A 5xx comes after the old kernel was told to end.
        raise ServerRefusedError(
            f"the Jupyter server answered {answer.status}", ambiguous=answer.status >= 500
        )


# --- the job --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the old kernel hands over."""

    kernel_id: str
    connection_file: str
    code: str = field(repr=False)
    """What the fresh kernel runs, silently and outside its history."""
    display_id: str | None = None
    """Of the output that says so where the code can't."""
    server: Server | None = None
    """Who restarts the kernel; None where it replaces itself."""
    log_file: str | None = None

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Job:
        """Return the job of `to_line`; raise ValueError, TypeError or KeyError for another."""
        data = json.loads(line)
        server = data.pop("server")
        return cls(server=Server(**server) if server is not None else None, **data)


class _Orders:
    """The lines of stdin, read in a thread so that waiting for them can have an end."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def next(self, timeout: float | None = None) -> str | None:
        """Return the next line, None at the end; raise `queue.Empty` after `timeout` seconds."""
        if self.ended:
            return None
        line = self._lines.get(timeout=timeout)
        self.ended = line is None
        return line

    def have_ended(self) -> bool:
        """Return whether stdin is closed, passing over what else came."""
        with contextlib.suppress(queue.Empty):
            while not self.ended:
                self.next(timeout=0)
        return self.ended


def main() -> int:
    """Do the job that stands on stdin; return the exit status."""
    _detach()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    orders = _Orders()
    line = orders.next()
    if line is None:
        return 0
    try:
        job = Job.from_line(line)
    except (ValueError, TypeError, KeyError) as error:
        # The line itself has secrets.
        _log.error("the job can't be read: %s", type(error).__name__)
        return 2
    try:
        done = _do(job, orders)
    except Exception as error:  # noqa: BLE001  (the last place that can say so)
        _log.exception("the restart failed")
        _report("failed", reason=f"the restart's helper failed: {error}", ambiguous=False)
        done = False
    if done and job.log_file is not None:
        # Windows doesn't remove an open file.
        with contextlib.suppress(OSError):
            os.close(2)
        with contextlib.suppress(OSError):
            Path(job.log_file).unlink()
    return 0 if done else 1


def _do(job: Job, orders: _Orders) -> bool:
    # Takes a few tenths of a second, while the cell that asked is still coming to its end.
    import jupyter_client.blocking.client  # noqa: F401

    while True:
        order = orders.next()
        if order == "go":
            client = _open_client(job)
            try:
                if not _meet(client, give_up=orders.have_ended):
                    return True
            finally:
                client.stop_channels()
            _report("idle", pid=os.getpid())
            if job.server is not None:
                return _restart_by_server(job, job.server)
        elif order == "exec":
            # The old process's end of this pipe closes as it replaces itself.
            if orders.next(timeout=FRESH_KERNEL_SECONDS) is not None:
                return True
            return run_in_fresh_kernel(job)
        else:
            return True


def _restart_by_server(job: Job, server: Server) -> bool:
    try:
        restart_kernel(server, job.kernel_id)
    except ServerRefusedError as error:
        _log.warning("%s", error.reason)
        _report("failed", reason=error.reason, ambiguous=error.ambiguous)
        return True
    _log.info("the server restarted kernel %s", job.kernel_id)
    return run_in_fresh_kernel(job)


def _report(event: str, **details: object) -> None:
    # The old kernel may be gone, and its end of the pipe with it.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
        sys.stdout.flush()


def _detach() -> None:
    """Leave the kernel's children, which it may end with itself and would have to wait for."""
    if sys.platform != "win32":
        # Already in a session of its own; after a re-exec the kernel would not know that it has
        # a child to wait for.
        if os.fork():
            os._exit(0)
        return
    # Not measured: a kernel on Windows ends all of its children, and theirs, when it ends; a
    # process whose parent is gone is none of them.
    if "--detached" in sys.argv:
        return
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    subprocess.Popen(
        [sys.executable, "-m", "torchenv_magic.notebook.restart_helper", "--detached"],
        stdin=sys.stdin,
        stdout=sys.stdout,
        stderr=sys.stderr,
        creationflags=flags,
    )
    os._exit(0)


# --- the kernel -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    failure: str | None = None
    """What went wrong; None where the code ran well."""
    update: dict[str, Any] | None = None
    """The last update of the job's display that the code published."""


def run_in_fresh_kernel(job: Job) -> bool:
    """Run the job's code in the kernel behind the connection file; return whether it ran well.

    Where it does not, the display that the old kernel left says so.
    """
    client = _open_client(job)
    try:
        if not _meet(client, give_up=_after(FRESH_KERNEL_SECONDS)):
            _log.error("the fresh kernel gave no answer within %.0f s", FRESH_KERNEL_SECONDS)
            return False
        met = time.monotonic()
        outcome = _execute(client, job, job.code, seconds=CODE_SECONDS)
        update = outcome.update
        if outcome.failure is not None:
            _log.error("the code in the fresh kernel: %s", outcome.failure)
            if job.display_id is None or not Path(job.connection_file).exists():
                return False
            # Another process, where the first one died of it.
            if not _meet(client, give_up=_after(FRESH_KERNEL_SECONDS)):
                return False
            text = f"The kernel was restarted, but the verification did not run: {outcome.failure}"
            text += "\n\nhint: run the verification cell (`%torchenv verify`)"
            mark = {OUTPUT_MIME: {"id": job.display_id}}
            code = _display_code({"data": {"text/plain": text, **mark}}, job.display_id)
            met = time.monotonic()
            update = _execute(client, job, code, seconds=_DISPLAY_SECONDS).update
        if update is not None:
            _repeat(client, job, update, since=met)
        return outcome.failure is None
    finally:
        client.stop_channels()


def _repeat(
    client: BlockingKernelClient, job: Job, update: dict[str, Any], *, since: float
) -> None:
    """Publish an early update again, for those who listen from a moment later.

    The front end's own connection finds the fresh kernel when it tries again, at intervals of some
    tenths of a second, and nobody else knows when. The same update twice changes nothing.
    """
    shown = time.monotonic() - since
    code = _display_code(update, str(job.display_id))
    for seconds in _HEARD_SECONDS:
        if shown < seconds:
            time.sleep(max(0.0, since + seconds - time.monotonic()))
            _execute(client, job, code, seconds=_DISPLAY_SECONDS)


def _open_client(job: Job) -> BlockingKernelClient:
    from jupyter_client.blocking.client import BlockingKernelClient

    client = BlockingKernelClient()
    client.load_connection_file(job.connection_file)
    # No heartbeat: a busy machine misses beats of a kernel that lives.
    client.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=False)  # noqa: S604
    return client


def _after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() > deadline


def _meet(client: BlockingKernelClient, *, give_up: Callable[[], bool]) -> bool:
    """Wait until the kernel has answered and is heard to be idle; return whether it was.

    A kernel handles one request of the shell channel at a time, and sends in order: once this one
    is answered and its `idle` is seen, the replies and outputs of earlier ones have gone out, and
    what it publishes from now on is heard.
    """
    asked: set[str] = set()
    answered = False
    pause = _ASK_AGAIN_SECONDS
    while not give_up():
        # More than once: a request may go to a process that ends, and a subscription to IOPub
        # takes effect some time after it is made.
        asked.add(client.kernel_info())
        until = time.monotonic() + pause
        pause = min(2 * pause, _ASK_AGAIN_AT_MOST_SECONDS)
        while (left := until - time.monotonic()) > 0:
            try:
                if answered:
                    message = client.get_iopub_msg(timeout=min(left, _ASK_AGAIN_SECONDS))
                    state = message["content"].get("execution_state")
                    if state == "idle" and _parent(message) in asked:
                        return True
                elif _parent(client.get_shell_msg(timeout=min(left, _ASK_AGAIN_SECONDS))) in asked:
                    answered = True
                    pause = _ASK_AGAIN_SECONDS
                    until = time.monotonic() + pause
            except queue.Empty:
                if give_up():
                    return False
    return False


def _execute(client: BlockingKernelClient, job: Job, code: str, *, seconds: float) -> _Outcome:
    """Run `code` silently.

    What it displays is shown, and the kernel says `idle` for an execution, which takes the front
    end's status from "Starting".
    """
    message_id = client.execute(
        code, silent=True, store_history=False, allow_stdin=False, stop_on_error=False
    )
    failure = _reply_to(client, message_id, job, seconds=seconds)
    update = None
    deadline = time.monotonic() + (_DISPLAY_SECONDS if failure is None else 0)
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = client.get_iopub_msg(timeout=left)
        except queue.Empty:
            break
        if _parent(message) != message_id:
            continue
        content = message["content"]
        if content.get("execution_state") == "idle":
            break
        if (
            message["msg_type"] == "update_display_data"
            and content.get("transient", {}).get("display_id") == job.display_id
        ):
            update = content
    return _Outcome(failure=failure, update=update)


def _reply_to(
    client: BlockingKernelClient, message_id: str, job: Job, *, seconds: float
) -> str | None:
    """Wait for the reply to an execution; return what went wrong, None where nothing did."""
    deadline = time.monotonic() + seconds
    later: set[str] = set()
    rounds_without_file = 0
    while time.monotonic() < deadline:
        later.add(client.kernel_info())
        # Who shuts a kernel down removes the file; one that starts again has it back soon, but not
        # at once on a busy machine.
        exists = Path(job.connection_file).exists()
        rounds_without_file = 0 if exists else rounds_without_file + 1
        if rounds_without_file > _ROUNDS_WITHOUT_FILE:
            return "the kernel was shut down"
        again = min(deadline, time.monotonic() + _ALIVE_SECONDS)
        while (left := again - time.monotonic()) > 0:
            try:
                message = client.get_shell_msg(timeout=left)
            except queue.Empty:
                break
            parent = _parent(message)
            if parent == message_id:
                content = message["content"]
                if content["status"] == "ok":
                    return None
                name = content.get("ename") or content["status"]
                return f"{name}: {content.get('evalue', '')}".rstrip(": ")
            if parent in later:
                # The answer to the earlier request never comes before this one's from the same
                # process: another one has taken its place.
                return "the kernel died"
    return f"no answer within {seconds:.0f} s"


def _display_code(update: Mapping[str, Any], display_id: str) -> str:
    # One expression, so that no name is left among the user's; plain IPython, as our own package
    # may be what is broken.
    return (
        "__import__('IPython.display', fromlist=['display']).display("
        f"__import__('json').loads({json.dumps(update['data'])!r}), "
        f"metadata=__import__('json').loads({json.dumps(update.get('metadata') or {})!r}), "
        f"raw=True, display_id={display_id!r}, update=True)"
    )


def _parent(message: dict[str, Any]) -> str:
    return str(message["parent_header"].get("msg_id", ""))


if __name__ == "__main__":
    raise SystemExit(main())
