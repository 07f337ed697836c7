"""PyPI's torch: which wheels it has, and which CUDA those for Linux are of.

It is asked under the address that pip and uv are set up with, whatever that is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from email.parser import HeaderParser
from typing import Any
from urllib.parse import urldefrag, urljoin

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from catalog.errors import CatalogError, reason_of
from catalog.facts import PypiWheels
from catalog.wheel import open_wheel
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.index_page import PageError, parse_page

__all__ = ["OLDEST", "backend_of_metadata", "package_index", "parse_listing", "read_pypi"]

OLDEST = Version("2.4")
"""The oldest torch that the catalog knows."""

_JSON = "application/vnd.pypi.simple.v1+json"
_LONGEST_LISTING = 50_000_000
_WAIT_SECONDS = 60.0
_MACHINES = {"linux_x86_64": "x86_64", "linux_aarch64": "aarch64"}


def package_index(variables: Mapping[str, str] = os.environ) -> str:
    """Return the address of the package index: that of the set-up, or the one that uv has built in.

    Raises
    ------
    CatalogError
        uv does not name it.
    """
    from uv import find_uv_bin

    from dev import uv_variables

    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if variables.get(name):
            return variables[name]
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    settings = uv_variables(listing.stdout if listing.returncode == 0 else "", variables)
    if "UV_DEFAULT_INDEX" in settings:
        return settings["UV_DEFAULT_INDEX"]
    text = subprocess.run(
        [find_uv_bin(), "pip", "install", "--help"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    ).stdout
    built_in = re.search(r"by\s+default:\s+<?(https://[^\s>)]+)", text)
    if built_in is None:
        raise CatalogError(
            "uv does not say which package index it asks",
            hint="name it in the environment: UV_DEFAULT_INDEX",
        )
    return built_in[1]


def read_pypi(index: str) -> tuple[PypiWheels, ...]:
    """Return every wheel of torch that the package index lists, from `OLDEST` on.

    Raises
    ------
    CatalogError
        The index, or the metadata of a wheel, can't be read.
    """
    from torchenv_magic.web import REQUEST_ERRORS, open_address, read_body

    address = f"{index.rstrip('/')}/torch/"
    try:
        with open_address(
            address,
            headers={"Accept": _JSON},
            timeout_seconds=_WAIT_SECONDS,
        ) as response:
            kind = response.headers.get_content_type()
            page = read_body(response, limit=_LONGEST_LISTING, deadline=_deadline())
    except REQUEST_ERRORS as error:
        raise CatalogError(
            f"the package index can't be read: {reason_of(error)}",
            hint="check the network, and the index that pip or uv is set up with",
        ) from error
    if kind != _JSON:
        raise CatalogError(
            f"the package index answers with {kind}",
            hint="name one that speaks JSON in the environment: UV_DEFAULT_INDEX",
        )
    # A page may name its files relative to itself.
    return parse_listing(
        page, lambda file: _read_metadata(file, urldefrag(urljoin(address, file["url"])).url)
    )


def parse_listing(
    page: bytes, read_metadata: Callable[[Mapping[str, Any]], str]
) -> tuple[PypiWheels, ...]:
    """Return the wheels that an index's page lists, oldest torch first; none that is yanked.

    `read_metadata` is asked for the METADATA of one Linux wheel of each release and machine, by its
    entry on the page.

    Raises
    ------
    CatalogError
        The page is no listing of torch's wheels.
    """
    try:
        # What has no local version, the reader takes for a cpu wheel: here that is everything.
        builds = parse_page(page, _JSON, Backend("cpu"))
        files = _files(json.loads(page))
    except (PageError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(
            f"the package index's page is no listing of torch: {error!r}",
            hint="name another one in the environment: UV_DEFAULT_INDEX",
        ) from error
    backends: dict[tuple[Version, str], str] = {}
    rows = []
    for build in builds:
        if build.torch < OLDEST or build.wheel_platform == "macos_x86_64":
            continue
        place = (build.torch, build.wheel_platform)
        here = files.get(place)
        if here is None:  # a mirror that has the PyTorch index's `+cpu` wheels among PyPI's
            continue
        machine = _MACHINES.get(build.wheel_platform)
        if place not in backends:
            backends[place] = (
                backend_of_metadata(read_metadata(here[0]), machine) if machine else "cpu"
            )
        rows.append(
            PypiWheels(
                torch=str(build.torch),
                platform=build.wheel_platform,
                floor=build.floor,
                backend=backends[place],
                python=build.python_tags,
                requires_python=here[0].get("requires-python"),
                date=_first_day(here),
            )
        )
    return tuple(
        sorted(
            rows, key=lambda row: (Version(row.torch), row.platform, row.floor or "", row.python)
        )
    )


def _files(listing: Mapping[str, Any]) -> dict[tuple[Version, str], list[Mapping[str, Any]]]:
    """Return the entries of the page by release and platform, in the order of their names."""
    found: dict[tuple[Version, str], list[Mapping[str, Any]]] = {}
    for file in sorted(listing["files"], key=lambda file: str(file["filename"])):
        try:
            _, torch, _, tags = parse_wheel_filename(file["filename"])
        except (InvalidWheelFilename, InvalidVersion):
            continue
        if file.get("yanked", False) is not False:
            continue
        if not isinstance(file["url"], str) or not isinstance(file.get("upload-time", ""), str):
            message = f"its entry for {file['filename']} is none"
            raise TypeError(message)
        for platform in {_platform(tag.platform) for tag in tags}:
            found.setdefault((torch, platform), []).append(file)
    return found


def _first_day(files: Iterable[Mapping[str, Any]]) -> str | None:
    times = [file["upload-time"] for file in files if "upload-time" in file]
    return min(times)[:10] if times else None


def _platform(tag: str) -> str:
    """Return the catalog's word for a wheel's platform, the version of the system left out."""
    if tag.startswith("macosx_"):
        return f"macos_{tag.split('_', 3)[3]}"
    if match := re.fullmatch(r"(?:many)?linux(?:\d+|_\d+_\d+)?_(\w+)", tag):
        return f"linux_{match[1]}"
    return tag


def backend_of_metadata(metadata: str, machine: str) -> str:
    """Return which build a Linux wheel is, by the NVIDIA packages that it requires there.

    Up to 2.10 they carry CUDA's major version in their name, and their version is CUDA's own:
    `nvidia-cuda-runtime-cu12==12.8.90`. Since 2.11 it is `cuda-toolkit[...]==13.0.3`.
    """
    environment = {
        "platform_system": "Linux",
        "sys_platform": "linux",
        "platform_machine": machine,
        "os_name": "posix",
        "extra": "",
    }
    for line in HeaderParser().parsestr(metadata).get_all("Requires-Dist") or ():
        try:
            requirement = Requirement(str(line))
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if re.fullmatch(r"cuda-toolkit|nvidia-cuda-runtime(?:-cu\d+)?", requirement.name):
            exact = re.match(r"==(\d+)\.(\d+)", str(requirement.specifier))
            if exact:
                return f"cu{exact[1]}{exact[2]}"
    return "cpu"


def _read_metadata(file: Mapping[str, Any], address: str) -> str:
    from torchenv_magic.web import REQUEST_ERRORS, open_address, read_body

    if file.get("core-metadata") or file.get("data-dist-info-metadata"):
        try:
            with open_address(f"{address}.metadata", timeout_seconds=_WAIT_SECONDS) as response:
                body = read_body(response, limit=_LONGEST_LISTING, deadline=_deadline())
                return body.decode("utf-8", "replace")
        except REQUEST_ERRORS:
            # A mirror may have copied the page and not the file.
            pass
    with open_wheel(address) as wheel:
        return _metadata(wheel)


def _metadata(wheel: zipfile.ZipFile) -> str:
    name = next(
        (name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), ""
    )
    if not name:
        message = "it has no METADATA"
        raise zipfile.BadZipFile(message)
    return wheel.read(name).decode("utf-8", "replace")


def _deadline() -> float:
    return time.monotonic() + _WAIT_SECONDS
