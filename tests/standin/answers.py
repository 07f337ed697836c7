"""Compose what the stand-in answers: pages, files and ranges, from wheels alone."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.standin.wheels import Wheel


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    headers: tuple[tuple[str, str], ...]
    body: bytes | Path
    size: int
    validators: tuple[str, int] | None = None
    """The entity tag, and the time of the last change in seconds since the epoch."""


def read_range(wanted: str, size: int) -> tuple[int, int, int]:
    """Return start, stop and status for a Range header; one range only, as uv asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.strip())
    if not match or match.groups() == ("", ""):
        return 0, size, 200
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size, 206
    if int(first) >= size or (last and int(last) < int(first)):
        return 0, 0, 416
    return int(first), min(size, int(last) + 1) if last else size, 206


def listing_page(names: list[str]) -> Answer:
    links = "".join(f'<a href="{name}/">{name}</a><br/>\n' for name in names)
    body = f"<!DOCTYPE html>\n<html>\n<body>\n{links}</body>\n</html>\n".encode()
    return Answer(headers=(("Content-Type", "text/html"),), body=body, size=len(body))


def file_answer(wheels: Iterable[Wheel], name: str, *, cache_control: str | None) -> Answer | None:
    headers = (("Cache-Control", cache_control),) if cache_control else ()
    for wheel in wheels:
        if name == wheel.path.name:
            return Answer(
                headers=(("Content-Type", "binary/octet-stream"), *headers),
                body=wheel.path,
                size=wheel.size,
                validators=(f'"{wheel.sha256[:32]}"', wheel.modified),
            )
        if name == f"{wheel.path.name}.metadata":
            return Answer(
                headers=(("Content-Type", "binary/octet-stream"), *headers),
                body=wheel.metadata,
                size=len(wheel.metadata),
                validators=(f'"{wheel.metadata_sha256[:32]}"', wheel.modified),
            )
    return None


def torch_page(
    project: str,
    links: Iterable[tuple[str, Wheel]],
    *,
    hashes: bool,
    metadata: bool,
    wrong: bool,
) -> Answer:
    """Return a project's page as the PyTorch index writes it: HTML, no sizes, never cached.

    `links` pairs the address of each file with its wheel; `wrong` gives hashes of nothing.
    """
    lines = []
    for link, wheel in links:
        digest = wheel.sha256[::-1] if wrong else wheel.sha256
        target = f"{link}#sha256={digest}" if hashes else link
        attributes = f'href="{html.escape(target)}"'
        if metadata:
            attributes += f' data-dist-info-metadata="sha256={wheel.metadata_sha256}"'
            attributes += f' data-core-metadata="sha256={wheel.metadata_sha256}"'
        lines.append(f"    <a {attributes}>{html.escape(wheel.path.name)}</a><br/>")
    body = "\n".join(
        [
            "<!DOCTYPE html>",
            "<html>",
            "  <body>",
            f"    <h1>Links for {html.escape(project)}</h1>",
            *lines,
            "  </body>",
            "</html>",
            "",
        ]
    ).encode()
    headers = (
        ("Content-Type", "text/html"),
        ("Cache-Control", "no-cache,no-store,must-revalidate"),
    )
    return Answer(headers=headers, body=body, size=len(body))


def json_page(project: str, wheels: list[Wheel], *, wrong: bool) -> Answer:
    """Return a project's page in the JSON form, the only one that tells sizes (PEP 691, 700)."""
    page = {
        "meta": {"api-version": "1.1"},
        "name": project,
        "versions": sorted({wheel.path.name.split("-")[1] for wheel in wheels}),
        "files": [
            {
                "filename": wheel.path.name,
                "url": f"/files/{quote(wheel.path.name)}",
                "hashes": {"sha256": wheel.sha256[::-1] if wrong else wheel.sha256},
                "size": wheel.size,
                "requires-python": ">=3.10",
                "core-metadata": {"sha256": wheel.metadata_sha256},
            }
            for wheel in wheels
        ],
    }
    body = json.dumps(page).encode()
    headers = (
        ("Content-Type", "application/vnd.pypi.simple.v1+json"),
        ("Cache-Control", "max-age=600, public"),
    )
    return Answer(headers=headers, body=body, size=len(body))
