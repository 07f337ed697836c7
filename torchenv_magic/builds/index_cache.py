"""What the index said last, in one file of the user's cache folder.

Nothing fails because of it: what can't be read is absent, what can't be written is asked again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.index import INDEX_ADDRESS, Failure, Listing
from torchenv_magic.serialization import from_json, to_json

__all__ = [
    "Cached",
    "fresh_listings",
    "merged",
    "read_cache",
    "stale_backends",
    "write_cache",
]

logger = logging.getLogger(__name__)

_SCHEMA = 1
_LONGEST_FILE = 5_000_000

USABLE_SECONDS = 7 * 86_400
"""How long a listing is better than the shipped catalog."""
STALE_SECONDS = 86_400
"""After how long a word that goes to the index anyway asks for the listing again."""
RETRY_SECONDS = 600
"""For how long a place without a network is not asked again unasked."""
# Two machines of one home may not agree on the time to the second.
_AHEAD_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """The file's whole content."""

    schema: int = _SCHEMA
    index: str = INDEX_ADDRESS
    listings: tuple[Listing, ...] = ()
    failures: tuple[Failure, ...] = ()
    """The last try of each backend, where it failed."""


def read_cache(file: Path | None, *, index: str = INDEX_ADDRESS) -> Cached:
    """Return what the file holds of `index`; nothing where it is missing, damaged or not ours."""
    if file is None:
        return Cached(index=index)
    try:
        # Not a pipe, which would be waited for, nor a device that never ends.
        if not file.is_file() or file.stat().st_size > _LONGEST_FILE:
            return Cached(index=index)
        data = json.loads(file.read_bytes())
        cached = from_json(Cached, data)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        logger.info("%s is not used: %s", file, error)
        return Cached(index=index)
    if (cached.schema, cached.index) != (_SCHEMA, index):
        logger.info("%s was written by another version", file)
        return Cached(index=index)
    return cached


def write_cache(file: Path | None, cached: Cached) -> None:
    """Replace the file as a whole, or leave it."""
    if file is None:
        return
    # Of this process and thread, so that two never write into one.
    draft = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Never into what is there: in a folder that others write to, that may be their link.
            with draft.open("x", encoding="utf-8") as stream:
                stream.write(json.dumps(to_json(cached)))
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        logger.info("the listing of the index was not kept: %s", error)


def merged(cached: Cached, listings: Iterable[Listing], failures: Iterable[Failure]) -> Cached:
    """Return the content after a try: what failed takes no listing's place."""
    kept = {listing.backend: listing for listing in cached.listings}
    failed = {failure.backend: failure for failure in cached.failures}
    for listing in listings:
        kept[listing.backend] = listing
        failed.pop(listing.backend, None)
    for failure in failures:
        failed[failure.backend] = failure
    return Cached(
        index=cached.index, listings=tuple(kept.values()), failures=tuple(failed.values())
    )


def fresh_listings(
    cached: Cached, *, now: int, within_seconds: int = USABLE_SECONDS
) -> tuple[Listing, ...]:
    """Return the listings that are no older; what was read tomorrow tells of a wrong clock."""
    return tuple(
        listing
        for listing in cached.listings
        if -_AHEAD_SECONDS <= now - listing.read_at <= within_seconds
    )


def stale_backends(
    cached: Cached, candidates: Iterable[Backend], *, now: int
) -> tuple[Backend, ...]:
    """Return the candidates to ask for without being told to: old ones, and not just failed."""
    fresh = fresh_listings(cached, now=now, within_seconds=STALE_SECONDS)
    settled = {listing.backend for listing in fresh}
    settled |= {
        failure.backend
        for failure in cached.failures
        if -_AHEAD_SECONDS <= now - failure.failed_at <= RETRY_SECONDS
    }
    return tuple(backend for backend in candidates if backend not in settled)
