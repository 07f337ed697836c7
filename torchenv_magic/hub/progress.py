"""What an install tells while its server is pending, on the page that waits for it.

The server's own process posts it, with the token that it has for its hub: so it works wherever that
process runs, nothing listens anywhere, and the hub opens no file of a person's.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from torchenv_magic.hub.options import NOTICE_VARIABLE

__all__ = ["ADDRESS", "Feed", "feed_of", "progress_handler", "read_news", "with_progress"]

logger = logging.getLogger(__name__)

ADDRESS = r"/api/torchenv/progress"
"""Below the hub's own address."""

_LARGEST = 4000
"""Bytes of what is posted."""
_LONGEST = 200
_KEPT = 30
_PER_SECOND = 2.0
_AT_ONCE = 8.0
# JupyterHub's own progress says 50 when a server is being started.
_FROM, _TO = 50, 95


@dataclass(slots=True)
class Feed:
    """What one server has told since it was started last."""

    messages: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))
    percent: int = 0
    listeners: set[asyncio.Queue[dict[str, Any]]] = field(default_factory=set)
    _allowance: float = _AT_ONCE
    _asked: float = 0.0

    def begin(self) -> None:
        """Forget what the start before has told."""
        self.messages.clear()
        self.percent = 0

    def admits(self, now: float) -> bool:
        """Whether what is posted now is heard: some at once, then two in a second."""
        self._allowance = min(_AT_ONCE, self._allowance + (now - self._asked) * _PER_SECOND)
        self._asked = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def tell(self, message: str, fraction: float | None) -> None:
        """Hand it to every page that shows this server."""
        event: dict[str, Any] = {}
        if fraction is not None:
            self.percent = round(_FROM + (_TO - _FROM) * fraction)
            event["progress"] = self.percent
        if message and (not self.messages or self.messages[-1] != message):
            self.messages.append(message)
            event["message"] = message
        if event:
            for listener in self.listeners:
                listener.put_nowait(event)

    def told(self) -> list[dict[str, Any]]:
        """Return what a page that is opened now has missed."""
        events: list[dict[str, Any]] = [{"message": message} for message in self.messages]
        return [*events, {"progress": self.percent}] if self.percent else events


_feeds: weakref.WeakKeyDictionary[Any, Feed] = weakref.WeakKeyDictionary()


def feed_of(spawner: Any) -> Feed:  # noqa: ANN401  (a Spawner)
    """Return what that spawner's server tells."""
    feed: Feed = _feeds.setdefault(spawner, Feed())
    return feed


def read_news(body: bytes) -> tuple[str, float | None]:
    """Return the message and the fraction that were posted, with nothing in it but text.

    Raises
    ------
    ValueError
        It is not what a preinstall posts.
    """
    if len(body) > _LARGEST:
        raise ValueError
    try:
        data = json.loads(body)
    except RecursionError:
        raise ValueError from None
    message, fraction = (
        (data.get("message"), data.get("fraction")) if isinstance(data, dict) else (None, None)
    )
    if not (isinstance(message, str) and _is_fraction(fraction)):
        raise ValueError
    text = "".join(letter if letter.isprintable() else " " for letter in message)
    return text[:_LONGEST].strip(), fraction


def _is_fraction(value: object) -> bool:
    if value is None:
        return True
    # True is 1 to Python, and JSON's NaN is below and above nothing.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def with_progress(spawner_class: type) -> type:
    """Return the class with what an install tells beside what its own servers do."""
    if getattr(spawner_class, "torchenv_tells", False):
        return spawner_class

    class Spawner(spawner_class):  # type: ignore[misc]
        torchenv_tells = True

        def clear_state(self) -> None:
            # The hub calls it before each start.
            feed_of(self).begin()
            super().clear_state()

        async def progress(self) -> AsyncIterator[dict[str, Any]]:
            merged = _merge(super().progress(), feed_of(self), self._torchenv_notice())
            async with aclosing(merged) as events:
                async for event in events:
                    yield event

        def _torchenv_notice(self) -> str:
            return str(self.environment.get(NOTICE_VARIABLE, ""))

    Spawner.__name__ = Spawner.__qualname__ = spawner_class.__name__
    Spawner.__doc__ = spawner_class.__doc__
    return Spawner


async def _merge(
    theirs: AsyncGenerator[dict[str, Any], None], feed: Feed, notice: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield both as they come, until whoever listens has enough.

    Neither waits for the other: KubeSpawner's ends with `start`, before the install does.
    """
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    pump = asyncio.ensure_future(_pump(theirs, queue))
    highest = 0
    try:
        # What is there at once of theirs was so before anything of ours.
        await asyncio.sleep(0)
        if notice:
            queue.put_nowait({"message": notice})
        for event in feed.told():
            queue.put_nowait(event)
        feed.listeners.add(queue)
        while True:
            event = await queue.get()
            if isinstance(percent := event.get("progress"), int):
                # A bar that goes back tells of something that begins anew.
                highest = max(highest, percent)
                event = {**event, "progress": highest}
            yield event
    finally:
        feed.listeners.discard(queue)
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(
    source: AsyncGenerator[dict[str, Any], None], queue: asyncio.Queue[dict[str, Any]]
) -> None:
    try:
        async with aclosing(source) as events:
            async for event in events:
                queue.put_nowait(event)
    except Exception:
        # The page goes on with what the install tells.
        logger.exception("what the spawner tells of its progress has ended")


def progress_handler() -> type:
    """Return the handler for `ADDRESS`: a server tells of its own install, and of no other."""
    from jupyterhub.apihandlers import APIHandler
    from tornado.web import HTTPError

    class ProgressHandler(APIHandler):  # type: ignore[misc]
        async def post(self) -> None:
            """Take what a server that is being started tells."""
            spawner = self._own_spawner()
            try:
                message, fraction = read_news(self.request.body)
            except ValueError:
                raise HTTPError(400) from None
            feed = feed_of(spawner)
            if feed.admits(time.monotonic()):
                feed.tell(message, fraction)
            self.set_status(204)

        def _own_spawner(self) -> Any:  # noqa: ANN401
            token, known = self.get_auth_token(), self.get_token()
            user = self.current_user
            if token is None or known is None or known.user is None or user is None:
                raise HTTPError(403)
            for spawner in list(user.spawners.values()):
                own = spawner.api_token or ""
                if own and hmac.compare_digest(own.encode(), token.encode()):
                    if spawner.pending != "spawn":
                        raise HTTPError(404)
                    return spawner
            raise HTTPError(403)

    return ProgressHandler
