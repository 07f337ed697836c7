"""Asking the PyTorch index which builds it has: every page side by side, within a bound."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.index import INDEX_ADDRESS, Failure, Listing
from torchenv_magic.builds.index_page import ACCEPT, PageError, parse_page
from torchenv_magic.web import (
    REQUEST_ERRORS,
    AnswerError,
    open_address,
    read_body,
    reason_words,
)

__all__ = ["REFRESH_SECONDS", "Answer", "Refreshing", "judge_answers", "refresh"]

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
_LONGEST_PAGE = 10_000_000


def refresh(
    backends: Iterable[Backend],
    *,
    known: Iterable[Listing] = (),
    timeout_seconds: float = REFRESH_SECONDS,
    address: str = INDEX_ADDRESS,
) -> tuple[tuple[Listing, ...], tuple[Failure, ...]]:
    """Return what the index lists of each backend, and of which ones it was not to be learned."""
    return Refreshing(
        backends, known=known, timeout_seconds=timeout_seconds, address=address
    ).finish()


class Refreshing:
    """The index being asked for each backend, in threads of their own that nobody has to end.

    `known` are earlier listings: the index may say that they still hold.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        known: Iterable[Listing] = (),
        timeout_seconds: float = REFRESH_SECONDS,
        address: str = INDEX_ADDRESS,
    ) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        self._timeout_seconds = timeout_seconds
        self._backends = tuple(dict.fromkeys(backends))
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        earlier = {listing.backend: listing for listing in known}
        for backend in self._backends:
            threading.Thread(
                target=self._ask,
                args=(backend, earlier.get(backend), address),
                name=f"torchenv-index-{backend}",
                daemon=True,
            ).start()

    def _ask(self, backend: Backend, earlier: Listing | None, address: str) -> None:
        try:
            answer = _fetch(backend, earlier, address, self._deadline)
        except Exception as error:  # whatever it is, the others count
            logger.warning("the listing of %s failed", backend, exc_info=True)
            answer = Answer(backend=backend, reason=type(error).__name__)
        self._answers.put(answer)

    def finish(self) -> tuple[tuple[Listing, ...], tuple[Failure, ...]]:
        """Return what has come by the end of the time, and who has not answered by then."""
        late = f"no answer within {self._timeout_seconds:g} s"
        answers = {backend: Answer(backend=backend, reason=late) for backend in self._backends}
        for _ in self._backends:
            try:
                left = self._deadline - time.monotonic()
                answer = self._answers.get(timeout=max(0.0, left))
            except queue.Empty:
                break
            answers[answer.backend] = answer
        return judge_answers(answers.values(), now=int(time.time()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One of three: a listing, a status that can mean that there is none, or why there is none."""

    backend: Backend
    listing: Listing | None = None
    status: int | None = None
    reason: str = ""


def judge_answers(
    answers: Iterable[Answer], *, now: int
) -> tuple[tuple[Listing, ...], tuple[Failure, ...]]:
    """Return the listings and the failures that the answers are.

    403 is what the real bucket says of an index that it does not have. It is also what a company's
    proxy says of everything, so it is believed only where another page did come.
    """
    answers = tuple(answers)
    listings, failures = [], []
    believed = any(answer.listing is not None for answer in answers)
    for answer in answers:
        if answer.listing is not None:
            listings.append(answer.listing)
        elif answer.status is not None and believed:
            listings.append(Listing(backend=answer.backend, read_at=now))
        else:
            # A proxy's words may be among them.
            reason = "".join(filter(str.isprintable, answer.reason))[:200]
            reason = reason or f"HTTP {answer.status}"
            failures.append(Failure(backend=answer.backend, failed_at=now, reason=reason))
    return tuple(listings), tuple(failures)


def _fetch(backend: Backend, earlier: Listing | None, address: str, deadline: float) -> Answer:
    now = int(time.time())
    if address.startswith("file:"):
        return _read(backend, address, now)
    headers = {"Accept": ACCEPT, "Accept-Encoding": "gzip", **_conditions(earlier)}
    try:
        with open_address(
            f"{address}/{backend}/torch/",
            headers=headers,
            timeout_seconds=max(0.01, deadline - time.monotonic()),
        ) as response:
            page = read_body(response, limit=_LONGEST_PAGE, deadline=deadline)
            builds = parse_page(page, response.headers.get_content_type(), backend)
            listing = Listing(
                backend=backend,
                read_at=now,
                builds=builds,
                etag=response.headers["ETag"],
                last_modified=response.headers["Last-Modified"],
            )
            return Answer(backend=backend, listing=listing)
    except HTTPError as error:
        error.close()
        if error.code == 304 and earlier is not None:
            return Answer(backend=backend, listing=replace(earlier, read_at=now))
        # An index that was there is not gone: who asks too often is told 403 as well.
        was_there = earlier is not None and bool(earlier.builds)
        if error.code in (404, 410) or (error.code == 403 and not was_there):
            return Answer(backend=backend, status=error.code)
        return Answer(backend=backend, reason=f"HTTP {error.code}")
    except URLError as error:
        return Answer(backend=backend, reason=reason_words(error.reason))
    except (PageError, AnswerError) as error:
        return Answer(backend=backend, reason=str(error))
    except REQUEST_ERRORS as error:
        # Not the words of what is no `OSError`: they quote the address of a proxy, with its login.
        words = reason_words(error) if isinstance(error, OSError) else ""
        return Answer(backend=backend, reason=words or f"no answer in HTTP: {type(error).__name__}")


def _read(backend: Backend, address: str, now: int) -> Answer:
    """Return what a mirror that is a folder says."""
    file = Path(url2pathname(urlsplit(address).path), str(backend), "torch", "index.html")
    try:
        builds = parse_page(file.read_bytes(), "text/html", backend)
    except FileNotFoundError:
        return Answer(backend=backend, status=404)
    except OSError as error:
        return Answer(backend=backend, reason=reason_words(error))
    except PageError as error:
        return Answer(backend=backend, reason=str(error))
    return Answer(backend=backend, listing=Listing(backend=backend, read_at=now, builds=builds))


def _conditions(earlier: Listing | None) -> dict[str, str]:
    """Return the headers that let the index say that nothing changed."""
    if earlier is None:
        return {}
    wanted = {"If-None-Match": earlier.etag, "If-Modified-Since": earlier.last_modified}
    # They come from a file: what is no header's value would be an error, at every refresh.
    return {
        name: value
        for name, value in wanted.items()
        if value and len(value) < 200 and value.isascii() and value.isprintable()
    }
