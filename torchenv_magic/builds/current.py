"""The catalog as it is to be used now: the shipped one, with what the index said last or says now.

Three ways: the kept listing alone, without any network; asked again where it is a day old; asked.
What takes a listing is imported only where there is one, or one is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.cache_folder import listing_file
from torchenv_magic.builds.catalog import Catalog, load_catalog

if TYPE_CHECKING:
    from torchenv_magic.builds.index import Failure
    from torchenv_magic.builds.index_cache import Cached

__all__ = ["CurrentCatalog", "Refresh", "backends_to_ask", "is_offline", "is_stale"]

Refresh = Literal["never", "stale", "always"]

# Beside the look at host and environment: who did not ask for it should hardly notice.
_STALE_SECONDS = 1.0


def backends_to_ask(
    refresh: Refresh,
    cached: Cached,
    candidates: tuple[Backend, ...],
    *,
    now: int,
    environ: Mapping[str, str],
) -> tuple[Backend, ...]:
    """Return which backends' pages the index is asked for."""
    from torchenv_magic.builds.index_cache import stale_backends

    if refresh == "never" or is_offline(environ):
        return ()
    return candidates if refresh == "always" else stale_backends(cached, candidates, now=now)


def is_stale(wheel_platform: str, environ: Mapping[str, str], *, mirror: str | None = None) -> bool:
    """Return whether `stale` would ask the index, or its mirror, for anything now."""
    from torchenv_magic.builds.index import INDEX_ADDRESS, candidate_backends
    from torchenv_magic.builds.index_cache import read_cache

    cached = read_cache(listing_file(environ, mirror=mirror), index=mirror or INDEX_ADDRESS)
    candidates = candidate_backends(load_catalog(), wheel_platform)
    return bool(backends_to_ask("stale", cached, candidates, now=int(time.time()), environ=environ))


def is_offline(environ: Mapping[str, str]) -> bool:
    """Return whether a person told uv to use no network; then we use none either."""
    return environ.get("UV_OFFLINE", "").lower() in ("1", "true", "t", "yes", "y", "on")


def _is_there(file: Path | None) -> bool:
    try:
        return file is not None and file.exists()
    except OSError:
        return False  # in a folder of somebody else's


class CurrentCatalog:
    """One use of the catalog. Making it starts what `refresh` takes; `read` waits for the rest.

    `mirror` is asked in place of the PyTorch index, of which then nothing is asked.
    """

    def __init__(
        self,
        refresh: Refresh,
        *,
        wheel_platform: str,
        environ: Mapping[str, str],
        mirror: str | None = None,
    ) -> None:
        self._refresh = refresh
        self._environ = environ
        self._mirror = mirror
        self._file = listing_file(environ, mirror=mirror)
        self._asking = None
        if refresh == "never":
            return
        from torchenv_magic.builds.index import INDEX_ADDRESS, candidate_backends
        from torchenv_magic.builds.index_cache import read_cache

        candidates = candidate_backends(load_catalog(), wheel_platform)
        cached = read_cache(self._file, index=mirror or INDEX_ADDRESS)
        backends = backends_to_ask(
            refresh, cached, candidates, now=int(time.time()), environ=environ
        )
        if backends:
            # urllib and ssl: a third of the time of a word that needs neither.
            from torchenv_magic.builds.index_client import REFRESH_SECONDS, Refreshing

            seconds = REFRESH_SECONDS if refresh == "always" else _STALE_SECONDS
            self._asking = Refreshing(
                backends,
                known=cached.listings,
                timeout_seconds=seconds,
                address=mirror or INDEX_ADDRESS,
            )

    def read(self) -> tuple[Catalog, str | None]:
        """Return the catalog, and where a refresh that was asked for failed, one line on that."""
        shipped = load_catalog()
        if self._refresh == "never" and not _is_there(self._file):
            return shipped, None
        from torchenv_magic.builds.index import (
            INDEX_ADDRESS,
            LISTED,
            failure_words,
            stand_in_words,
            with_listings,
        )
        from torchenv_magic.builds.index_cache import (
            fresh_listings,
            merged,
            read_cache,
            write_cache,
        )

        place = f"the mirror {self._mirror}" if self._mirror else LISTED
        cached = read_cache(self._file, index=self._mirror or INDEX_ADDRESS)
        failures: tuple[Failure, ...] = ()
        if self._asking is not None:
            listings, failures = self._asking.finish()
            cached = merged(cached, listings, failures)
            write_cache(self._file, cached)
            import logging

            logger = logging.getLogger(__name__)
            for failure in failures:
                logger.info("no listing of %s: %s", failure.backend, failure.reason)
        now = int(time.time())
        usable = fresh_listings(cached, now=now)
        catalog = with_listings(shipped, usable, now=now, place=place)
        if self._refresh != "always":
            return catalog, None
        if is_offline(self._environ):
            instead = stand_in_words(usable, shipped, now=now)
            return catalog, f"UV_OFFLINE is set: the builds here are {instead}"
        return catalog, failure_words(failures, usable, shipped, now=now, place=place)
