"""What an index's page says: torch's wheels in the catalog's words, from HTML or JSON.

The two forms of the simple API: PEP 503 and PEP 691, with PEP 592 on yanked files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.index import ListedBuild

__all__ = ["ACCEPT", "PageError", "parse_page"]

ACCEPT = (
    "application/vnd.pypi.simple.v1+json, "
    "application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
)
_JSON_TYPES = {"application/vnd.pypi.simple.v1+json", "application/json"}
_HTML_TYPES = {"application/vnd.pypi.simple.v1+html", "text/html"}


class PageError(ValueError):
    """The page is no listing of torch's wheels, or not all of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    name: str
    yanked: bool
    requires_python: str | None


def parse_page(page: bytes, content_type: str, backend: Backend) -> tuple[ListedBuild, ...]:
    """Return the builds of torch that the page of `backend` offers, newest first.

    Raises
    ------
    PageError
        `page` is neither form, ends early, or names no wheel of torch at all: a login page of a
        network that wants one is HTML too.
    """
    text = page.decode("utf-8", "replace")
    if content_type in _JSON_TYPES:
        return _builds(_json_files(text), backend)
    if content_type in _HTML_TYPES:
        files = _html_files(text)
        if not any(True for _ in _torch_wheels(files)):
            message = "the page lists no wheel of torch"
            raise PageError(message)
        return _builds(files, backend)
    message = f"the answer is no listing but {content_type}"
    raise PageError(message)


def _json_files(text: str) -> list[_File]:
    try:
        page = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = "the listing is no JSON, or ends early"
        raise PageError(message) from error
    api = _field(_field(page, "meta", dict), "api-version", str)
    if api.partition(".")[0] != "1":
        message = f"the listing is of version {api[:20]!r} of the simple API, which is not known"
        raise PageError(message)
    files = []
    for file in _field(page, "files", list):
        requires = file.get("requires-python") if isinstance(file, dict) else None
        files.append(
            _File(
                name=_field(file, "filename", str),
                # A reason is given as a text, which may be empty.
                yanked=file.get("yanked", False) is not False,
                requires_python=requires if isinstance(requires, str) else None,
            )
        )
    return files


def _field(value: Any, name: str, kind: type) -> Any:  # noqa: ANN401
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        message = f"the listing has no `{name}`"
        raise PageError(message)
    return found


def _html_files(text: str) -> list[_File]:
    reader = _Anchors()
    reader.feed(text)
    reader.close()
    if reader.begun and not reader.ended:
        message = "the page ends early"
        raise PageError(message)
    return reader.files


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.files: list[_File] = []
        self.begun = False
        self.ended = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.begun = self.begun or tag == "html"
        if tag != "a":
            return
        attributes = dict(attrs)
        try:
            path = urlsplit(attributes.get("href") or "").path
        except ValueError:
            return
        self.files.append(
            _File(
                name=unquote(path.rpartition("/")[2]),
                yanked="data-yanked" in attributes,
                requires_python=attributes.get("data-requires-python"),
            )
        )

    def handle_endtag(self, tag: str) -> None:
        self.ended = self.ended or tag == "html"


# What is longer is no release; the kept listing would not read it again.
_LONGEST_VERSION = 60


def _torch_wheels(files: Iterable[_File]) -> Iterator[tuple[_File, Version, frozenset[Tag]]]:
    for file in files:
        if not file.name.lower().startswith("torch-"):
            continue
        try:
            name, version, _, tags = parse_wheel_filename(file.name)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        if name == "torch" and len(str(version)) <= _LONGEST_VERSION:
            yield file, version, tags


def _builds(files: Iterable[_File], backend: Backend) -> tuple[ListedBuild, ...]:
    wheels = [wheel for wheel in _torch_wheels(files) if not wheel[0].yanked]
    # The indexes of releases hold none; where there is nothing else, that is what they offer.
    final = [wheel for wheel in wheels if not wheel[1].is_prerelease]
    floors: dict[tuple[Version, str, str], str | None] = {}
    for file, version, tags in final or wheels:
        for tag in tags:
            for platform, floor in _platforms(tag.platform):
                if not _is_of(backend, version, platform):
                    continue
                for python in _python_tags(tag):
                    if _admits(file.requires_python, python):
                        place = (Version(version.public), platform, python)
                        # Of two names for one system, the older one lets in more machines.
                        floors[place] = _lower(floors.get(place, floor), floor)
    rows: dict[tuple[Version, str, str | None], list[str]] = {}
    for (version, platform, python), floor in floors.items():
        rows.setdefault((version, platform, floor), []).append(python)
    builds = [
        ListedBuild(
            torch=torch,
            wheel_platform=platform,
            python_tags=tuple(sorted(pythons, key=_python_rank)),
            floor=floor,
        )
        for (torch, platform, floor), pythons in rows.items()
    ]
    builds.sort(key=lambda build: (build.wheel_platform, build.python_tags))
    return tuple(sorted(builds, key=lambda build: build.torch, reverse=True))


def _is_of(backend: Backend, version: Version, platform: str) -> bool:
    if version.local is None:
        # macOS wheels have no local part, and the cpu wheels for aarch64 had none up to 2.5.
        return backend.kind == "cpu"
    return version.local == str(backend) and not platform.startswith("macos")


_PLATFORM = re.compile(
    r"(?:(?P<windows>win_(?:amd64|arm64))"
    r"|manylinux_(?P<glibc>\d{1,3}_\d{1,3})_(?P<modern>\w{1,20})"
    r"|(?P<linux>linux|manylinux1|manylinux2010|manylinux2014)_(?P<machine>\w{1,20})"
    r"|macosx_(?P<macos>\d{1,3}_\d{1,3})_(?P<apple>x86_64|arm64|universal2))",
    re.ASCII,
)
# PEPs 513, 571 and 599. What is called `linux` alone was built in the image of manylinux2014.
_GLIBC = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17", "linux": "2.17"}


def _platforms(tag: str) -> list[tuple[str, str | None]]:
    """Return the catalog's word for a platform tag, with the oldest system that it allows."""
    match = _PLATFORM.fullmatch(tag)
    if match is None:
        return []
    if match["windows"]:
        return [(match["windows"], None)]
    if match["modern"]:
        return [(f"linux_{match['modern']}", match["glibc"].replace("_", "."))]
    if match["linux"]:
        return [(f"linux_{match['machine']}", _GLIBC[match["linux"]])]
    machines = ("x86_64", "arm64") if match["apple"] == "universal2" else (match["apple"],)
    return [(f"macos_{machine}", match["macos"].replace("_", ".")) for machine in machines]


def _lower(one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return None
    return min(one, other, key=lambda floor: tuple(map(int, floor.split("."))))


# One past the newest that anybody builds for today: a wheel for the stable ABI runs on all.
_NEWEST_MINOR = 16


def _python_tags(tag: Tag) -> list[str]:
    match = re.fullmatch(r"cp3([0-9]{1,2})", tag.interpreter)
    if match is None:
        return []
    if tag.abi == "abi3":
        return [f"cp3{minor}" for minor in range(int(match[1]), _NEWEST_MINOR + 1)]
    # macOS wheels call their ABI `none`, and are of the interpreter that they name all the same.
    if tag.abi in (tag.interpreter, "none"):
        return [tag.interpreter]
    return [tag.abi] if tag.abi == f"{tag.interpreter}t" else []


def _python_rank(python: str) -> tuple[bool, int]:
    return python.endswith("t"), int(python.removeprefix("cp3").removesuffix("t"))


def _admits(requires_python: str | None, python: str) -> bool:
    specifier = _specifier(requires_python) if requires_python else None
    minor = _python_rank(python)[1]
    # Which patch release it will be is not known: an early and a late one stand for all.
    return specifier is None or any(f"3.{minor}.{patch}" in specifier for patch in (0, 99))


@lru_cache(maxsize=64)
def _specifier(text: str) -> SpecifierSet | None:
    try:
        return SpecifierSet(text)
    except InvalidSpecifier:
        return None  # as pip does
