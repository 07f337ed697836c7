"""The facts: reads `catalog/facts`, and refuses what is not of its table's shape."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from catalog.errors import CatalogError
from torchenv_magic.builds.backend import Backend

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FOLDER",
    "PLATFORMS",
    "READ",
    "STRENGTHS",
    "Facts",
    "PypiWheels",
    "ReadFacts",
    "Row",
    "load_facts",
    "parse_facts",
    "parse_read",
    "render_read",
]

Row = Mapping[str, Any]

FOLDER = Path(__file__).parent / "facts"
READ = "read.jsonl"
"""What this script itself has read: PyPI's list of wheels, and uv's list of backends."""

PLATFORMS = ("linux_x86_64", "linux_aarch64", "win_amd64", "win_arm64", "macos_arm64")

STRENGTHS = ("primary", "strong", "medium", "weak")
"""Read from the wheel or its index itself; from PyTorch's, NVIDIA's or uv's own sources; reported
by people who looked; inferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiWheels:
    """The wheels of one torch release on PyPI that differ in nothing but their Python."""

    torch: str
    platform: str
    floor: str | None
    """The oldest glibc or macOS that the tag allows; None on Windows."""
    backend: str
    python: tuple[str, ...]
    requires_python: str | None
    date: str | None
    """The day of the first upload, where the index tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFacts:
    """What was read by this script, and on which day."""

    as_of: str
    uv_version: str
    uv_backends: tuple[str, ...]
    """Every value of `uv pip install --torch-backend` but `auto`."""
    pypi: tuple[PypiWheels, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    as_of: str
    """The day of the newest fact."""
    tables: Mapping[str, tuple[Row, ...]]
    read: ReadFacts


# What a row of each table has besides its source and strength; what may be absent ends in `?`.
_TABLES = {
    "wheels": ("torch", "platform", "backends", "python?", "glibc?", "macos?"),
    "cuda_code": ("torch", "backend", "platform", "sm"),
    "cuda_rule": ("excluded", "same_chip", "allowed_from_cuda", "allowed"),
    "gfx_code": ("torch", "backend", "gfx"),
    "hsa_override": ("gfx", "version"),
    "driver_floor": ("backends", "linux", "windows"),
    "gpu_driver": ("compute_capability", "linux", "windows"),
    "last_driver": ("compute_capability", "branch"),
    "companion": ("package", "missing", "free_since", "free_torch"),
}


def load_facts(folder: Path = FOLDER) -> Facts:
    """Return the facts in `folder`.

    Raises
    ------
    CatalogError
        A file is missing or unreadable, or a row is not of its table's shape.
    """
    try:
        curated = {
            path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.toml"))
        }
        read = (folder / READ).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(
            f"the facts can't be read: {error}", hint="get them back with git"
        ) from error
    return parse_facts(curated, read)


def parse_facts(curated: Mapping[str, str], read: str) -> Facts:
    """Return the facts that these files hold: TOML by its file's name, and the lines of `READ`.

    Raises
    ------
    CatalogError
        A file can't be parsed, or a row is not of its table's shape.
    """
    tables: dict[str, list[Row]] = {name: [] for name in _TABLES}
    known = parse_read(read)
    as_of = [known.as_of]
    for name, text in curated.items():
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise CatalogError(
                f"{name} is not TOML: {error}", hint="mend the line that it names"
            ) from error
        as_of.append(str(content.pop("as_of", "")))
        for table, rows in content.items():
            for row in rows if isinstance(rows, list) else [rows]:
                _check(name, table, row)
                tables[table].append(row)
    return Facts(
        as_of=max(as_of),
        tables={table: tuple(rows) for table, rows in tables.items()},
        read=known,
    )


def parse_read(text: str) -> ReadFacts:
    """Return what the lines of `READ` say.

    Raises
    ------
    CatalogError
        A line is not of its shape, or the first ones are missing.
    """
    try:
        head, uv, *rows = (json.loads(line) for line in text.splitlines())
        return ReadFacts(
            as_of=head["as_of"],
            uv_version=uv["version"],
            uv_backends=tuple(uv["backends"]),
            pypi=tuple(PypiWheels(**{**row, "python": tuple(row["python"])}) for row in rows),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogError(
            f"{READ} is not of its shape: {error!r}",
            hint="make it anew: python -m catalog --refresh --write",
        ) from error


def render_read(read: ReadFacts) -> str:
    """Return the lines of `READ` that say this."""
    rows: list[dict[str, Any]] = [
        {"as_of": read.as_of},
        {"version": read.uv_version, "backends": read.uv_backends},
        *(asdict(wheels) for wheels in read.pypi),
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _check(name: str, table: str, row: object) -> None:
    shown = json.dumps(row, default=str)[:200]
    try:
        _check_fields(table, row)
    except (ValueError, KeyError, TypeError) as error:
        reason = error.args[0] if error.args else "not of its table's shape"
        raise CatalogError(
            f"{name}, [[{table}]]: {reason}, in {shown}", hint="catalog/README.md says what it has"
        ) from error


def _check_fields(table: str, row: object) -> None:
    if table not in _TABLES:
        raise ValueError(f"there is no table `{table}`")
    if not isinstance(row, dict):
        raise TypeError("it is no row")
    fields = {field.rstrip("?") for field in _TABLES[table]} | {"source", "strength"}
    needed = {field for field in _TABLES[table] if not field.endswith("?")} | {"source", "strength"}
    for field in sorted(needed - row.keys()):
        raise ValueError(f"`{field}` is missing")
    for field in sorted(row.keys() - fields):
        raise ValueError(f"`{field}` is not known")
    if not isinstance(row["source"], str) or not row["source"].strip():
        raise ValueError("`source` is empty")
    if row["strength"] not in STRENGTHS:
        raise ValueError(f"`strength` is none of {', '.join(STRENGTHS)}")
    if "platform" in row and row["platform"] not in PLATFORMS:
        raise ValueError(f"`{row['platform']}` is no platform")
    for field, parse in _PARSERS.items():
        for value in _values(row.get(field, ())):
            parse(value)


def _values(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _version(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"`{value}` is no text")
    try:
        Version(value)
    except InvalidVersion as error:
        raise ValueError(f"`{value}` is no version") from error


def _backend(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"`{value}` is no text")
    Backend.parse(value)


def _number(value: object) -> None:
    if not isinstance(value, int):
        raise TypeError(f"`{value}` is no number such as 75")


def _gfx(value: object) -> None:
    if not (isinstance(value, str) and re.fullmatch(r"gfx[0-9a-f]{3,4}", value)):
        raise ValueError(f"`{value}` is no gfx name")


def _python(value: object) -> None:
    if not (isinstance(value, str) and re.fullmatch(r"cp3\d{1,2}t?", value)):
        raise ValueError(f"`{value}` is no tag of a Python")


_PARSERS: Mapping[str, Callable[[object], None]] = {
    "torch": _version,
    "backend": _backend,
    "backends": _backend,
    "branch": _version,
    "compute_capability": _version,
    "gfx": _gfx,
    "glibc": _version,
    "macos": _version,
    "python": _python,
    "sm": _number,
    "version": _version,
    "linux": _version,
    "windows": _version,
}
