"""Which PyTorch builds exist, what hardware each has code for, and which driver each needs.

The knowledge is data: `catalog.jsonl`, one fact a line, each with its source. This module reads it
and answers questions about it; it decides nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pkgutil import get_data
from typing import Any

from packaging.version import Version

from torchenv_magic.accelerators.records import ComputeCapability, System
from torchenv_magic.builds.backend import Backend

__all__ = [
    "Build",
    "Catalog",
    "CatalogOrigin",
    "Companion",
    "CudaCode",
    "GfxCode",
    "PypiRelease",
    "driver_number",
    "load_catalog",
    "read_catalog",
]

Minor = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogOrigin:
    as_of: str
    """The day of the newest fact: `2026-11-22`."""
    source: str

    def __str__(self) -> str:
        return f"builds as of {self.as_of}: {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One torch release, as one backend, for one platform."""

    torch: Version
    backend: Backend
    wheel_platform: str
    """The platform as `Platform.wheel_platform` calls it."""
    # One release can be two builds for macOS: its wheels for some Pythons need a newer system.
    python_tags: tuple[str, ...]
    """As `Interpreter.tag` calls them: `cp311`, `cp314t`."""
    glibc: str | None
    """The oldest glibc that the wheel's tag allows; None where there is no glibc."""
    macos: str | None = None
    """The oldest macOS that the wheel's tag allows, `14.0`; None elsewhere."""
    source: str

    @property
    def minor(self) -> Minor:
        """The release line, whose patch releases are built alike: `(2, 14)`."""
        return self.torch.major, self.torch.minor

    @property
    def local_version(self) -> Version:
        """The version that the wheel carries: `2.14.1+cu126`; macOS wheels have no local part."""
        if self.wheel_platform.startswith("macos"):
            return self.torch
        return Version(f"{self.torch}+{self.backend}")

    def __str__(self) -> str:
        return f"torch {self.torch} for {self.backend.label}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaCode:
    """The compute capabilities that a build has machine code for."""

    capabilities: tuple[ComputeCapability, ...]
    """Ascending."""
    known: bool
    """False where no source lists this very release, and its nearest relative's list stands in."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A package whose releases are made for one torch each, until one is free of that."""

    missing: frozenset[Backend]
    """The backends whose index does not have it."""
    free_since: Version
    """Its first release that does not demand one torch alone."""
    free_torch: Version
    """The oldest torch that this one runs with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GfxCode:
    """The AMD architectures that a build has machine code for."""

    names: tuple[str, ...]
    """As the kernel driver calls them: `gfx1100`."""
    known: bool
    """False where no source lists this very release, and its nearest relative's list stands in."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PypiRelease:
    """One torch release on PyPI, which has one wheel for each Python and platform."""

    torch: Version
    backends: Mapping[str, Backend]
    """What that wheel is, for each wheel platform."""
    python_tags: tuple[str, ...]
    """The Pythons that it is there for on each of them."""
    more_python_tags: Mapping[str, tuple[str, ...]]
    """Further ones on some platforms: 2.5 has Python 3.13 on Linux x86_64 alone."""

    def has(self, wheel_platform: str, python_tag: str) -> bool:
        """Return whether there is a wheel for them."""
        return wheel_platform in self.backends and (
            python_tag in self.python_tags
            or python_tag in self.more_python_tags.get(wheel_platform, ())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _CudaRule:
    excluded: frozenset[tuple[ComputeCapability, ComputeCapability]]
    """(code, device) pairs that do not go together although major and minor say they do."""
    same_chip: tuple[tuple[ComputeCapability, ComputeCapability], ...]
    """(old name, new name) of one chip."""
    allowed_from_cuda: tuple[int, ...]
    allowed: frozenset[tuple[ComputeCapability, ComputeCapability]]
    """Excluded pairs that go together in builds of `allowed_from_cuda` and newer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The catalog's facts, indexed for the questions that selection asks."""

    origin: CatalogOrigin
    uv_version: str
    """The uv release whose list of backends `known_to_uv` is."""
    known_to_uv: frozenset[Backend]
    builds: Mapping[tuple[Backend, str], tuple[Build, ...]]
    """The builds of each backend for each wheel platform, newest torch first."""
    cuda_code_rows: Mapping[tuple[Minor, Backend, str], CudaCode]
    gfx_code_rows: Mapping[tuple[Minor, Backend], GfxCode]
    hsa_overrides: Mapping[str, str]
    cuda_rule: _CudaRule
    driver_floors: Mapping[tuple[Backend, System], str]
    gpu_driver_floors: tuple[tuple[ComputeCapability, System, str], ...]
    last_driver_branches: tuple[tuple[ComputeCapability, str], ...]
    """(newest compute capability, branch), oldest GPUs first."""
    companions: Mapping[str, Companion]
    """By name: `torchaudio`, `torchvision`."""
    pypi: tuple[PypiRelease, ...]
    """Newest torch first."""

    def backends(self) -> tuple[Backend, ...]:
        """Return every backend that has a wheel somewhere: CUDA, ROCm, XPU, CPU, newest first."""
        newest_first = sorted(
            {backend for backend, _ in self.builds},
            key=lambda backend: backend.version,
            reverse=True,
        )
        kinds = ("cuda", "rocm", "xpu", "cpu")
        return tuple(sorted(newest_first, key=lambda backend: kinds.index(backend.kind)))

    def is_known_to_uv(self, backend: Backend) -> bool:
        """Return whether `uv --torch-backend` accepts it: what it refuses can't be installed."""
        return backend in self.known_to_uv

    def builds_for(self, backend: Backend, wheel_platform: str) -> tuple[Build, ...]:
        """Return the builds of `backend` for that platform, newest torch first."""
        return self.builds.get((backend, wheel_platform), ())

    def cuda_code(self, build: Build) -> CudaCode:
        """Return what code a CUDA build holds; where it is not known, what its relatives hold.

        The relatives, nearest first: the same release for Linux (PyTorch gives one list for Linux
        x86_64 and Windows), the next older release of the backend, the next newer one.
        """
        candidates = [build.wheel_platform]
        if build.wheel_platform == "win_amd64":
            candidates.append("linux_x86_64")
        for platform in candidates:
            if code := self.cuda_code_rows.get((build.minor, build.backend, platform)):
                return code
        for platform in candidates:
            rows = {
                minor: code
                for (minor, backend, row_platform), code in self.cuda_code_rows.items()
                if (backend, row_platform) == (build.backend, platform)
            }
            if rows:
                code = rows[_nearest(build.minor, rows)]
                return CudaCode(capabilities=code.capabilities, known=False, source=code.source)
        return CudaCode(capabilities=(), known=False, source=build.source)

    def gfx_code(self, build: Build) -> GfxCode:
        """Return what code a ROCm build holds; where it is not known, what its relatives hold.

        The relatives, nearest first: the next older release of the backend, the next newer one.
        """
        rows = {
            minor: code
            for (minor, backend), code in self.gfx_code_rows.items()
            if backend == build.backend
        }
        if build.minor in rows:
            return rows[build.minor]
        if rows:
            code = rows[_nearest(build.minor, rows)]
            return GfxCode(names=code.names, known=False, source=code.source)
        return GfxCode(names=(), known=False, source=build.source)

    def hsa_override(self, gfx: str) -> str | None:
        """Return the `HSA_OVERRIDE_GFX_VERSION` that people run such a GPU with, if there is one.

        AMD does not support it, and it can hang the machine: to be named, never to be set.
        """
        return self.hsa_overrides.get(gfx)

    def runs_on(self, build: Build, compute_capability: ComputeCapability) -> bool:
        """Return whether a CUDA build has code that this GPU can run: torch's own rule.

        Code for `x.y` runs on devices of the same major version with at least that minor version,
        but for a few pairs that `torch/cuda/__init__.py` lists.
        """
        return any(
            self._code_runs_on(code, compute_capability, build.backend)
            for code in self.cuda_code(build).capabilities
        )

    def _code_runs_on(
        self, code: ComputeCapability, device: ComputeCapability, backend: Backend
    ) -> bool:
        rule = self.cuda_rule
        renamed = dict(rule.same_chip)
        pair = (code, device)
        if renamed.get(code, code) == renamed.get(device, device):
            return True
        if pair in rule.excluded and not (
            pair in rule.allowed and backend.version >= rule.allowed_from_cuda
        ):
            return False
        return code.major == device.major and code.minor <= device.minor

    def driver_floor(self, backend: Backend, system: System) -> str | None:
        """Return the oldest NVIDIA driver that runs `backend`, or None where it needs none."""
        return self.driver_floors.get((backend, system))

    def gpu_driver_floor(self, compute_capability: ComputeCapability, system: System) -> str | None:
        """Return the oldest NVIDIA driver that knows such a GPU, where that is known."""
        floors = [
            floor
            for lowest, row_system, floor in self.gpu_driver_floors
            if row_system == system and compute_capability >= lowest
        ]
        return max(floors, key=lambda floor: driver_number(floor) or (), default=None)

    def last_driver_branch(self, compute_capability: ComputeCapability) -> str | None:
        """Return the newest branch of NVIDIA drivers that knows such a GPU: `580`.

        None where the branches go on.
        """
        for newest, branch in self.last_driver_branches:
            if compute_capability <= newest:
                return branch
        return None

    def pypi_versions(self, wheel_platform: str, python_tag: str) -> tuple[Version, ...]:
        """Return the torch releases that PyPI itself has for them, newest first."""
        return tuple(
            release.torch for release in self.pypi if release.has(wheel_platform, python_tag)
        )

    def pypi_default(self, torch: Version, wheel_platform: str) -> Backend | None:
        """Return which backend PyPI's own wheel of that release is, where PyPI has one."""
        for release in self.pypi:
            if release.torch == torch:
                return release.backends.get(wheel_platform)
        return None


def driver_number(text: str) -> tuple[int, ...] | None:
    """Return an NVIDIA driver version as numbers to compare, or None for anything else.

    >>> driver_number("550.54.15") >= driver_number("525.60.13")
    True
    """
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}", text.strip()):
        return None
    return tuple(int(part) for part in text.strip().split("."))


@cache
def load_catalog() -> Catalog:
    """Return the catalog that ships with the package."""
    # Not by importlib.resources, whose import alone takes as long as all that follows.
    content = get_data(__package__, "catalog.jsonl")
    if content is None:
        message = "the loader of this package reads no files"
        raise FileNotFoundError(message)
    return read_catalog(content.decode("utf-8"))


def read_catalog(text: str) -> Catalog:
    """Return the catalog written as one JSON object a line, each naming its `table`.

    It is read by each `torchenv select`, hence no value is parsed twice. A table that is not known
    is left alone.

    Raises
    ------
    ValueError, KeyError
        A row is not of its table's shape, or the `catalog` or `uv` row is missing.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    # One call for all lines takes half the time of one for each.
    for row in json.loads(f"[{','.join(text.splitlines())}]"):
        rows.setdefault(row["table"], []).append(row)
    [head] = rows["catalog"]
    [uv] = rows["uv"]
    [rule] = rows["cuda_rule"]
    backend = cache(Backend.parse)
    version = cache(Version)
    return Catalog(
        origin=CatalogOrigin(as_of=head["as_of"], source=head["source"]),
        uv_version=uv["version"],
        known_to_uv=frozenset(map(backend, uv["knows"])),
        builds=_builds(rows["wheels"], backend, version),
        cuda_code_rows={
            (_minor(minor), backend(row["backend"]), row["platform"]): code
            for row in rows["cuda_code"]
            for code in [
                CudaCode(
                    capabilities=tuple(sorted(map(_capability, row["sm"]))),
                    known=True,
                    source=row["source"],
                )
            ]
            for minor in row["torch"]
        },
        gfx_code_rows={
            (_minor(minor), backend(row["backend"])): GfxCode(
                names=tuple(row["gfx"]), known=True, source=row["source"]
            )
            for row in rows["gfx_code"]
            for minor in row["torch"]
        },
        companions={
            row["package"]: Companion(
                missing=frozenset(map(backend, row["missing"])),
                free_since=version(row["free_since"]),
                free_torch=version(row["free_torch"]),
            )
            for row in rows["companion"]
        },
        hsa_overrides={gfx: row["version"] for row in rows["hsa_override"] for gfx in row["gfx"]},
        cuda_rule=_CudaRule(
            excluded=_pairs(rule["excluded"]),
            same_chip=tuple(_pairs(rule["same_chip"])),
            allowed_from_cuda=tuple(map(int, rule["allowed_from_cuda"].split("."))),
            allowed=_pairs(rule["allowed"]),
        ),
        driver_floors={
            (backend(row["backend"]), system): row[system]
            for row in rows["driver_floor"]
            for system in _DRIVER_SYSTEMS
        },
        gpu_driver_floors=tuple(
            (ComputeCapability.parse(row["compute_capability"]), system, row[system])
            for row in rows["gpu_driver"]
            for system in _DRIVER_SYSTEMS
        ),
        last_driver_branches=tuple(
            sorted(
                (ComputeCapability.parse(row["compute_capability"]), row["branch"])
                for row in rows["last_driver"]
            )
        ),
        pypi=_pypi_releases(rows["pypi"], backend, version),
    )


_DRIVER_SYSTEMS: tuple[System, ...] = ("linux", "windows")


def _builds(
    rows: Iterable[dict[str, Any]],
    backend: Callable[[str], Backend],
    version: Callable[[str], Version],
) -> dict[tuple[Backend, str], tuple[Build, ...]]:
    builds: dict[tuple[Backend, str], list[Build]] = {}
    for row in rows:
        python_tags = tuple(row["python"])
        for name in row["backends"]:
            builds.setdefault((backend(name), row["platform"]), []).extend(
                Build(
                    torch=version(torch),
                    backend=backend(name),
                    wheel_platform=row["platform"],
                    python_tags=python_tags,
                    glibc=row.get("glibc"),
                    macos=row.get("macos"),
                    source=row["source"],
                )
                for torch in row["torch"]
            )
    return {
        place: tuple(sorted(found, key=lambda build: build.torch, reverse=True))
        for place, found in builds.items()
    }


def _pypi_releases(
    rows: Iterable[dict[str, Any]],
    backend: Callable[[str], Backend],
    version: Callable[[str], Version],
) -> tuple[PypiRelease, ...]:
    releases = [
        PypiRelease(
            torch=version(row["torch"]),
            backends={platform: backend(name) for platform, name in row["backends"].items()},
            python_tags=tuple(row["python"]),
            more_python_tags={
                platform: tuple(tags) for platform, tags in row.get("also", {}).items()
            },
        )
        for row in rows
    ]
    return tuple(sorted(releases, key=lambda release: release.torch, reverse=True))


def _nearest(minor: Minor, known_minors: Collection[Minor]) -> Minor:
    """Return the release line whose code stands in for that of `minor`: the next older one."""
    older = [known for known in known_minors if known < minor]
    return max(older) if older else min(known_minors)


def _minor(text: str) -> Minor:
    major, minor = text.split(".")
    return int(major), int(minor)


def _capability(sm: int) -> ComputeCapability:
    # sm_75 is 7.5 and sm_120 is 12.0: the last digit is the minor version.
    return ComputeCapability(*divmod(sm, 10))


def _pairs(pairs: list[list[int]]) -> frozenset[tuple[ComputeCapability, ComputeCapability]]:
    return frozenset((_capability(code), _capability(device)) for code, device in pairs)
