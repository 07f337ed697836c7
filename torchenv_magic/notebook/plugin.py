"""Speak with the plugin in JupyterLab and Notebook 7: who is there, and what one of them is to do.

The other half is `labextension/static/plugin.js`. Over a comm that the kernel opens, and that
every client of the kernel gets:

```
kernel  → clients   (open) {protocol, request, output}         who is there?
clients → kernel    {event: hello, client, holds, writable,    or comm_close: there is no plugin
                     orders}
kernel  → clients   {event: restart | switch | store, …}       only the named client acts
client  → kernel    {event: accepted}                          at once; the rest it does unasked
client  → kernel    {event: done}                              of `store`, which no kernel ends with
client  → kernel    (a new comm) {event: failed, request, reason}
```

A page that was loaded again is another client, and two tabs are two: hence the names. The plugin is
the server's and may be older than this package: `orders` are those that it knows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from torchenv_magic.notebook.cells import VERIFICATION_SOURCE, VERIFICATION_TAG

__all__ = [
    "OUTPUT_MIME",
    "Client",
    "Conversation",
    "Loop",
    "Order",
    "choose_client",
    "restart_order",
    "store_order",
    "switch_order",
]

OUTPUT_MIME = "application/vnd.torchenv-magic.output+json"
"""Marks an output of ours; its value is `{"id": display_id}`. By it the plugin finds the output
that asked, and a picker whose kernel is gone."""

TARGET = "torchenv-magic"
PROTOCOL = 1

HELLO_SECONDS = 2.0
"""How long nobody has to be there before the next way is taken. Measured: a page answers within
0.03 to 0.2 s, whether it has the plugin or not, and later on a busy machine; nobody at all answers
where the notebook was closed, and then nobody waits for this either."""
ACCEPTED_SECONDS = 5.0
DONE_SECONDS = 120.0
"""A server waits for a kernel for 60 s itself."""
STORED_SECONDS = 10.0
"""Nobody waits for a page's model: it is there."""

# What the first plugin does, whose hello names no orders.
_FIRST_ORDERS = frozenset({"restart", "switch"})

Order = Mapping[str, object]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One page that shows a notebook of this kernel, and has the plugin."""

    id: str
    holds: bool
    """Whether the output that asked is in its notebook."""
    writable: bool
    orders: frozenset[str] = _FIRST_ORDERS
    """What it can be told to do."""

    @classmethod
    def from_hello(cls, data: object) -> Client | None:
        """Return who says hello; None for anything else, and for another version's plugin."""
        if not isinstance(data, dict) or data.get("event") != "hello":
            return None
        if data.get("protocol") != PROTOCOL or not isinstance(data.get("client"), str):
            return None
        orders = data.get("orders")
        return cls(
            id=data["client"],
            holds=data.get("holds") is True,
            writable=data.get("writable") is True,
            orders=frozenset(each for each in orders if isinstance(each, str))
            if isinstance(orders, list)
            else _FIRST_ORDERS,
        )

    def obstacle(self, event: str) -> str:
        """Return why it can't do that; empty where it can."""
        if event not in self.orders:
            return "the server has an older plugin, which can't do that yet"
        return "" if self.writable else "the notebook can't be written to"


def choose_client(
    asked: str | None, clients: Iterable[Client], *, event: str = "restart"
) -> Client | None:
    """Return the client that is to act: the one that asked, else one that shows the same output.

    The one that asked is gone where its page was closed or loaded again since.
    """
    able = [client for client in clients if not client.obstacle(event)]
    for client in able:
        if client.id == asked:
            return client
    return next((client for client in able if client.holds), None)


def restart_order(*, output: str | None, cell: str | None, after: Mapping[str, str]) -> Order:
    """Return the order to restart the kernel, and to place and run the verification cell.

    `after` is what stands in the output once the kernel is fresh, by MIME type.
    """
    return {
        "event": "restart",
        "output": output or "",
        "cell": cell,
        "after": dict(after),
        "verification": {"source": VERIFICATION_SOURCE, "tag": VERIFICATION_TAG},
    }


def switch_order(
    kernel: str, *, output: str | None, cell: str | None, after: Mapping[str, str]
) -> Order:
    """Return the order to give the notebook a new kernel, and to verify there.

    `kernel` is the name of its kernelspec, `after` what stands in the output by then.
    """
    return {
        **restart_order(output=output, cell=cell, after=after),
        "event": "switch",
        "kernel": kernel,
    }


def store_order(key: str, value: object, *, output: str | None) -> Order:
    """Return the order to set `key` of the notebook's metadata, in the page and not in the file.

    What a person has not saved stays as it is, and so does the decision when to save.
    """
    return {"event": "store", "output": output or "", "key": key, "value": value}


class Loop(Protocol):
    """The kernel's main thread, as a conversation needs it."""

    def between_cells(self, function: Callable[[], object]) -> None:
        """Call `function` in the main thread while no cell's code runs; from any thread."""

    def after(self, seconds: float, function: Callable[[], object]) -> None:
        """Call `function` there later; from the main thread."""

    def cells_run(self) -> int:
        """Return how many cells the kernel has run."""


class Conversation:
    """One order, given to one client. All of it runs in the kernel's main thread, between cells.

    `on_failure` is called once, with the reason, where nobody takes the order or it fails. Where
    all goes well the kernel ends, or the notebook leaves it; for an order that the kernel outlives
    `on_done` is called: then cells may run meanwhile, and what a page says waits behind them.
    """

    def __init__(
        self,
        order: Order,
        *,
        asked: str | None,
        loop: Loop,
        on_failure: Callable[[str], None],
        on_done: Callable[[], None] | None = None,
    ) -> None:
        self._order = order
        self._event = str(order["event"])
        self._on_done = on_done
        self._asked = asked
        self._loop = loop
        self._on_failure = on_failure
        self._request = uuid4().hex
        self._clients: list[Client] = []
        self._chosen: Client | None = None
        self._accepted = False
        self._over = False
        self._comm: Any = None
        self._manager: Any = None

    def begin(self) -> None:
        """Ask who is there, and go on with what is answered."""
        try:
            import comm

            self._manager = comm.get_comm_manager()
            self._manager.register_target(TARGET, self._on_open)
            self._comm = comm.create_comm(
                target_name=TARGET,
                data={
                    "protocol": PROTOCOL,
                    "request": self._request,
                    "output": self._order.get("output"),
                },
            )
        except Exception as error:  # noqa: BLE001  (whatever a kernel without comms raises)
            self._fail(f"the kernel has no comms ({type(error).__name__})")
            return
        self._comm.on_msg(self._on_message)
        self._comm.on_close(self._on_close)
        self._expect(HELLO_SECONDS, lambda: self._decide("the front end has no plugin"))

    def _expect(self, seconds: float, otherwise: Callable[[], None]) -> None:
        """Call `otherwise` later, where what was to be heard could have been heard by then."""
        before = self._loop.cells_run()

        def look() -> None:
            if self._over:
                return
            if self._on_done is not None and self._loop.cells_run() != before:
                self._expect(seconds, otherwise)
            else:
                otherwise()

        self._loop.after(seconds, look)

    # Messages come in a thread of their own where the front end uses subshells (ipykernel 7).

    def _on_message(self, message: Mapping[str, Any]) -> None:
        data = message["content"]["data"]
        self._loop.between_cells(lambda: self._hear(data))

    def _on_close(self, message: Mapping[str, Any]) -> None:
        session = message["header"].get("session")
        if not self._over:
            # One client has no plugin, a console for one; the comm is the others' still. At once,
            # as what they say comes next.
            self._comm._closed = self._chosen is not None  # noqa: SLF001
            self._manager.register_comm(self._comm)
        self._loop.between_cells(lambda: self._heard_no(session))

    def _on_open(self, comm: Any, message: Mapping[str, Any]) -> None:  # noqa: ANN401  (untyped)
        data = message["content"]["data"]
        with contextlib.suppress(Exception):
            comm.close()
        if isinstance(data, dict) and data.get("request") == self._request:
            reason = str(data.get("reason") or "the front end gave no reason")
            self._loop.between_cells(lambda: self._fail(reason))

    def _hear(self, data: object) -> None:
        if isinstance(data, dict) and data.get("event") == "accepted":
            self._accepted = True
            return
        if isinstance(data, dict) and data.get("event") == "done":
            if self._on_done is not None and self._chosen is not None and not self._over:
                self._end()
                self._on_done()
            return
        client = Client.from_hello(data)
        if client is None or self._chosen is not None:
            return
        self._clients.append(client)
        if client.id == self._asked:
            self._decide(client.obstacle(self._event))

    def _heard_no(self, session: object) -> None:
        if session == self._asked and self._chosen is None:
            self._decide("the front end has no plugin")

    def _decide(self, otherwise: str) -> None:
        if self._over or self._chosen is not None:
            return
        self._chosen = choose_client(self._asked, self._clients, event=self._event)
        if self._chosen is None:
            self._fail(otherwise)
            return
        _log.info("plugin: client %s is to %s", self._chosen.id, self._order["event"])
        self._comm.send({**self._order, "request": self._request, "client": self._chosen.id})
        # A comm that is left open is closed as the kernel ends, and a page that has let go of the
        # old kernel by then complains of it. Who was ordered sees the kernel end anyhow.
        self._comm._closed = True  # noqa: SLF001
        self._expect(ACCEPTED_SECONDS, self._expect_accepted)
        # A restart ends this kernel, and so does a switch: the server shuts down the one that was
        # left.
        seconds = DONE_SECONDS if self._on_done is None else STORED_SECONDS
        self._expect(seconds, lambda: self._fail("the front end took too long"))

    def _expect_accepted(self) -> None:
        if not self._accepted:
            self._fail("the page that asked is gone")

    def _fail(self, reason: str) -> None:
        if self._over:
            return
        self._end()
        self._on_failure(reason)

    def _end(self) -> None:
        self._over = True
        if self._comm is not None:
            # Said to those who listen: what they were ordered is done, or withdrawn. A front end
            # that has closed it already would complain of it.
            self._comm._closed = not self._clients  # noqa: SLF001
            with contextlib.suppress(Exception):
                self._comm.close()
            with contextlib.suppress(KeyError):
                self._manager.unregister_comm(self._comm)
