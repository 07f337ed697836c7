"""Which builds the PyTorch index really offers, as of when.

The index knows its wheels better than a catalog that ends on the day it was made. What code the
wheels hold and which driver they need no index tells: that stays the catalog's.

These are the records and what is made of them; `index_client` asks, `index_page` reads the answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from packaging.version import Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Build, Catalog, CatalogOrigin

__all__ = [
    "INDEX_ADDRESS",
    "LISTED",
    "Failure",
    "ListedBuild",
    "Listing",
    "age_words",
    "candidate_backends",
    "failure_words",
    "is_listed",
    "stand_in_words",
    "with_listings",
]

INDEX_ADDRESS = "https://download.pytorch.org/whl"


# ------------------------------------------------------------------------------------- the records


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBuild:
    """One torch release for one platform, as an index lists it.

    A value type, since a listing has hundreds and every `torchenv select` reads them.
    """

    torch: Version
    wheel_platform: str
    python_tags: tuple[str, ...]
    floor: str | None
    """The oldest glibc, or macOS, that the wheel's tag allows; None on Windows."""

    @classmethod
    def parse(cls, text: str) -> ListedBuild:
        """Return the build that `str` wrote.

        >>> ListedBuild.parse("2.14.1 linux_x86_64 2.28 cp310,cp314t").floor
        '2.28'

        Raises
        ------
        ValueError, TypeError
        """
        return _parse_listed(text)

    def __str__(self) -> str:
        pythons = ",".join(self.python_tags)
        return f"{self.torch} {self.wheel_platform} {self.floor or '-'} {pythons}"

    def of(self, backend: Backend) -> Build:
        """Return it as the catalog has its builds."""
        macos = self.wheel_platform.startswith("macos")
        return Build(
            torch=self.torch,
            backend=backend,
            wheel_platform=self.wheel_platform,
            python_tags=self.python_tags,
            glibc=None if macos else self.floor,
            macos=self.floor if macos else None,
            source=LISTED,
        )


_LISTED_BUILD = re.compile(
    r"(?P<torch>\S{1,60}) (?P<platform>(?:linux|win|macos)_\w{1,20}) (?P<floor>-|\d{1,3}\.\d{1,3})"
    r" (?P<pythons>cp3\d{1,2}t?(?:,cp3\d{1,2}t?){0,99})",
    re.ASCII,
)


@lru_cache(maxsize=2048)
def _parse_listed(text: str) -> ListedBuild:
    # A release has the same wheels on most backends, and a thousand lines take 10 ms to parse.
    match = _LISTED_BUILD.fullmatch(text)
    if match is None:
        message = f"{text[:80]!r} is no listed build"
        raise ValueError(message)
    return ListedBuild(
        torch=Version(match["torch"]),
        wheel_platform=match["platform"],
        python_tags=tuple(match["pythons"].split(",")),
        floor=None if match["floor"] == "-" else match["floor"],
    )


LISTED = "the PyTorch index"
"""The source of a build that was read from the index."""


def is_listed(build: Build) -> bool:
    """Return whether the index itself told of this build, and not the catalog."""
    return build.source == LISTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the index said of one backend."""

    backend: Backend
    read_at: int
    """Seconds since the epoch."""
    builds: tuple[ListedBuild, ...] = ()
    """Newest torch first; none where there is no such index."""
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One backend whose page was not to be had."""

    backend: Backend
    failed_at: int
    """Seconds since the epoch."""
    reason: str


# --------------------------------------------------------------------------------- into the catalog


def candidate_backends(catalog: Catalog, wheel_platform: str) -> tuple[Backend, ...]:
    """Return the backends worth asking for: those of uv, of the kinds that the platform has.

    All of a kind, whether the catalog has a wheel there or not: that is what the index is asked.
    """
    kinds = {backend.kind for backend, platform in catalog.builds if platform == wheel_platform}
    return tuple(
        backend
        for backend in catalog.backends()
        if catalog.is_known_to_uv(backend) and backend.kind in kinds | {"cpu"}
    )


def with_listings(
    catalog: Catalog, listings: Iterable[Listing], *, now: int, place: str = LISTED
) -> Catalog:
    """Return the catalog with the builds that the index lists, for each backend that was listed.

    `place` says in words who listed them.

    A backend that the catalog has never heard of is left out: its code and the driver that it
    needs are not known, so it could be chosen wrongly.
    """
    listed = {listing.backend: listing for listing in listings}
    known = {backend for backend, _ in catalog.builds}
    used = [listing for backend, listing in listed.items() if backend in known]
    if not used:
        return catalog
    # A place stays where its builds went: a backend without any is still one that can be named.
    builds = {
        (backend, platform): () if backend in listed else rows
        for (backend, platform), rows in catalog.builds.items()
    }
    for listing in used:
        for row in sorted(listing.builds, key=lambda row: row.torch, reverse=True):
            if row.torch.is_prerelease:
                continue  # newer than every release of the others, and never asked for
            key = (listing.backend, row.wheel_platform)
            builds[key] = (*builds.get(key, ()), row.of(listing.backend))
    return replace(catalog, builds=builds, origin=_origin(catalog, used, now, place))


def _origin(catalog: Catalog, listings: Iterable[Listing], now: int, place: str) -> CatalogOrigin:
    ages = {listing.backend: now - listing.read_at for listing in listings}
    newest = age_words(min(ages.values()))
    older = [
        f"{backend} {words}" for backend, age in ages.items() if (words := age_words(age)) != newest
    ]
    exceptions = f" ({', '.join(older)})" if older else ""
    day = time.strftime("%Y-%m-%d", time.gmtime(now - min(ages.values())))
    return CatalogOrigin(
        as_of=day,
        source=f"{place}, read {newest}{exceptions};"
        f" code and drivers from the catalog of {catalog.origin.as_of}",
    )


def age_words(seconds: int) -> str:
    """Return how long ago that is.

    >>> age_words(200)
    '3 minutes ago'
    """
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if (count := seconds // size) >= 1:
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def failure_words(
    failures: Iterable[Failure],
    listings: Iterable[Listing],
    catalog: Catalog,
    *,
    now: int,
    place: str = LISTED,
) -> str | None:
    """Return one line on what the index did not say, and what stands in for it.

    `listings` are all that are used, earlier ones among them; `catalog` is the shipped one.
    """
    names: dict[str, list[str]] = {}
    for failure in failures:
        names.setdefault(failure.reason, []).append(str(failure.backend))
    if not names:
        return None
    failed = {name for found in names.values() for name in found}
    listings = tuple(listings)
    if all(str(listing.backend) in failed for listing in listings):
        reason = max(names, key=lambda reason: len(names[reason]))
        instead = stand_in_words(listings, catalog, now=now)
        return f"{place} did not answer ({reason}): the builds here are {instead}"
    each = "; ".join(f"{', '.join(found)}: {reason}" for reason, found in names.items())
    return f"{place} did not answer for all ({each}): what was known of these is used"


def stand_in_words(listings: Iterable[Listing], catalog: Catalog, *, now: int) -> str:
    """Return what is used, and how old it is, where the index was not asked or did not answer."""
    ages = [now - listing.read_at for listing in listings]
    if ages:
        return f"those that it listed {age_words(max(ages))}"
    return f"those of the shipped catalog of {catalog.origin.as_of}"
