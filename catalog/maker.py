"""Facts to catalog: what each line of `catalog.jsonl` is made from. Reads and writes nothing."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from packaging.version import Version

from catalog.errors import CatalogError
from catalog.facts import PLATFORMS, Facts, PypiWheels, Row

__all__ = ["difference", "make", "render"]

SCHEMA = 2
_PYPI_SOURCE = "file list and dependencies on PyPI"


def render(rows: Iterable[Row]) -> str:
    """Return the rows as the file has them: one a line."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def difference(before: str, after: str, name: str) -> str:
    """Return what changes in a file from `before` to `after`, or nothing where it is the same."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{name} (now)", f"{name} (made)", "", "", 0, ""
    )
    return "\n".join(lines)


def make(facts: Facts) -> list[Row]:
    """Return the catalog's rows, in the one order that they can have.

    Raises
    ------
    CatalogError
        Two facts are about the same wheel, a release line has no release, a table no row.
    """
    for table, rows in facts.tables.items():
        if not rows:
            raise CatalogError(
                f"no fact is in the table `{table}`", hint="get the facts back with git"
            )
    wheels = sorted(_wheels(facts), key=_wheels_order)
    _refuse_doubles(wheels)
    with_wheels = {backend for row in wheels for backend in row["backends"]}
    return [
        {
            "table": "catalog",
            "schema": SCHEMA,
            "as_of": facts.as_of,
            "source": "shipped with torchenv_magic; read from wheels, PyTorch's release sources "
            "and CUDA's release notes",
        },
        {
            "table": "uv",
            "version": facts.read.uv_version,
            # uv accepts many that are long gone; nothing can be asked about those.
            "knows": [name for name in facts.read.uv_backends if name in with_wheels],
            "source": f"uv {facts.read.uv_version}: its own list of `--torch-backend` values",
            "strength": "primary",
        },
        *wheels,
        *_pypi(facts.read.pypi),
        *_code(facts, "cuda_code"),
        *_as_they_are(facts, "cuda_rule"),
        *_code(facts, "gfx_code"),
        *sorted(_as_they_are(facts, "hsa_override"), key=lambda row: _gfx_order(row["gfx"][0])),
        *sorted(_driver_floors(facts), key=lambda row: str(row["backend"])),
        *sorted(
            _as_they_are(facts, "gpu_driver"), key=lambda row: Version(row["compute_capability"])
        ),
        *sorted(
            _as_they_are(facts, "last_driver"), key=lambda row: Version(row["compute_capability"])
        ),
        *sorted(_as_they_are(facts, "companion"), key=lambda row: str(row["package"])),
    ]


# --- wheels -------------------------------------------------------------------------------------


def _wheels(facts: Facts) -> Iterator[dict[str, Any]]:
    for fact in facts.tables["wheels"]:
        releases = [
            release for line in fact["torch"] for release in _releases(facts.read.pypi, line)
        ]
        if "python" in fact:
            floors = {name: fact[name] for name in ("glibc", "macos") if name in fact}
            yield _wheels_row(fact, releases, fact["python"], floors)
            continue
        like: dict[tuple[tuple[str, ...], str | None], list[str]] = {}
        for wheels in facts.read.pypi:
            if wheels.torch in releases and wheels.platform == fact["platform"]:
                like.setdefault((wheels.python, wheels.floor), []).append(wheels.torch)
        if not like:
            raise CatalogError(
                f"PyPI has no wheel of torch {', '.join(fact['torch'])} for {fact['platform']}",
                hint="name `python` in that row of wheels.toml",
            )
        for (python, floor), same in like.items():
            yield _wheels_row(fact, same, python, _floor(fact["platform"], floor))


def _releases(pypi: Sequence[PypiWheels], line: str) -> list[str]:
    """Return the releases that a line stands for: `2.14` is 2.14.0, 2.14.1 and what comes."""
    if line.count(".") > 1:
        return [line]
    known = sorted({wheels.torch for wheels in pypi}, key=Version)
    releases = [release for release in known if release.startswith(f"{line}.")]
    if not releases:
        raise CatalogError(
            f"PyPI lists no release of torch {line}",
            hint="read its list anew: python -m catalog --refresh --write",
        )
    return releases


def _floor(platform: str, floor: str | None) -> dict[str, str]:
    if floor is None:
        return {}
    return {"macos" if platform.startswith("macos") else "glibc": floor}


def _wheels_row(
    fact: Row, releases: Sequence[str], python: Sequence[str], floors: dict[str, str]
) -> dict[str, Any]:
    return {
        "table": "wheels",
        "torch": sorted(releases, key=Version),
        "platform": fact["platform"],
        "backends": sorted(fact["backends"]),
        "python": sorted(python, key=_python_order),
        **floors,
        "source": fact["source"],
        "strength": fact["strength"],
    }


def _wheels_order(row: Row) -> tuple[Any, ...]:
    return (
        Version(row["torch"][0]),
        PLATFORMS.index(row["platform"]),
        row["backends"],
        [_python_order(tag) for tag in row["python"]],
    )


def _refuse_doubles(rows: Iterable[Row]) -> None:
    seen: set[tuple[str, str, str, str]] = set()
    for row in rows:
        for torch in row["torch"]:
            for backend in row["backends"]:
                for python in row["python"]:
                    wheel = (torch, backend, row["platform"], python)
                    if wheel in seen:
                        raise CatalogError(
                            "two facts are about torch {} {} for {} and {}".format(*wheel),
                            hint="take it out of one of the rows in wheels.toml",
                        )
                    seen.add(wheel)


# --- PyPI ---------------------------------------------------------------------------------------


def _pypi(wheels: Sequence[PypiWheels]) -> Iterator[dict[str, Any]]:
    for torch in sorted({item.torch for item in wheels}, key=Version):
        here = [item for item in wheels if item.torch == torch]
        python = {
            platform: {tag for item in here if item.platform == platform for tag in item.python}
            for platform in PLATFORMS
            if any(item.platform == platform for item in here)
        }
        everywhere = set.intersection(*python.values())
        also = {
            platform: sorted(tags - everywhere, key=_python_order)
            for platform, tags in python.items()
            if tags - everywhere
        }
        dates = sorted(item.date for item in here if item.date)
        yield {
            "table": "pypi",
            "torch": torch,
            **({"date": dates[0]} if dates else {}),
            "backends": {item.platform: item.backend for item in sorted(here, key=_place)},
            "python": sorted(everywhere, key=_python_order),
            **({"also": also} if also else {}),
            "source": _PYPI_SOURCE,
            "strength": "primary",
        }


def _place(wheels: PypiWheels) -> int:
    return PLATFORMS.index(wheels.platform)


def _python_order(tag: str) -> tuple[bool, int, str]:
    """Order `cp39`, `cp310`, `cp314`, `cp313t`, `cp314t`."""
    free_threaded = tag.endswith("t")
    return free_threaded, len(tag), tag


# --- what stays as it was written down ----------------------------------------------------------


def _as_they_are(facts: Facts, table: str) -> list[dict[str, Any]]:
    return [{"table": table, **row} for row in facts.tables[table]]


def _code(facts: Facts, table: str) -> list[dict[str, Any]]:
    rows = _as_they_are(facts, table)
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        row["torch"] = sorted(row["torch"], key=Version)
        if "sm" in row:
            row["sm"] = sorted(row["sm"])
        else:
            row["gfx"] = sorted(row["gfx"], key=_gfx_order)
        for line in row["torch"]:
            place = (line, row["backend"], row.get("platform", ""))
            if place in seen:
                raise CatalogError(
                    "two facts are about the code in torch {} {} {}".format(*place).rstrip(),
                    hint="take it out of one of the rows in code.toml",
                )
            seen.add(place)
    return sorted(
        rows, key=lambda row: (Version(row["torch"][0]), row["backend"], row.get("platform", ""))
    )


def _gfx_order(name: str) -> tuple[int, str]:
    return len(name), name


def _driver_floors(facts: Facts) -> Iterator[dict[str, Any]]:
    for fact in facts.tables["driver_floor"]:
        rest = {name: value for name, value in fact.items() if name != "backends"}
        for backend in fact["backends"]:
            yield {"table": "driver_floor", "backend": backend, **rest}
