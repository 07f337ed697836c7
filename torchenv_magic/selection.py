"""Which build: host + request + catalog -> a choice, with the reason for every other backend.

Everything here is a pure function of its arguments: nothing is probed, read or fetched.

The rule: of the builds that this Python and system can install and that the request admits, those
that have code for the GPUs and that the driver can run; among those the newest torch; among those
the newest backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from packaging.version import Version

from torchenv_magic.accelerators.records import Accelerator, Host, Platform, Vendor
from torchenv_magic.builds.backend import Backend, Kind
from torchenv_magic.builds.catalog import (
    Build,
    Catalog,
    CatalogOrigin,
    driver_number,
    load_catalog,
)
from torchenv_magic.demand import Demand, read_demand
from torchenv_magic.errors import RequestError
from torchenv_magic.interpreter import Interpreter
from torchenv_magic.serialization import to_json

__all__ = [
    "Alternative",
    "CatalogOrigin",
    "Request",
    "Selection",
    "accelerator_to_json",
    "parse_backend",
    "select",
    "selection_to_json",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for: nothing in it was found or decided."""

    backend: Backend | None = None
    """None is `auto`."""
    requirements: tuple[str, ...] = ("torch",)

    def __str__(self) -> str:
        backend = self.backend.label if self.backend else "the best backend"
        return f"{' '.join(self.requirements)} for {backend}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One backend of the catalog, on this host, for this request."""

    backend: Backend
    torch: str | None
    """The newest torch release of the catalog that this request and Python admit there."""
    fits: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.backend!s:<10} {self.torch or '-':<8} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What was chosen, and why."""

    backend: Backend | None
    torch: str | None
    accelerators: tuple[Accelerator, ...]
    unsupported_accelerators: tuple[str, ...]
    warnings: tuple[str, ...]
    reason: str
    alternatives: tuple[Alternative, ...]
    catalog: CatalogOrigin
    exclusion: str | None = None
    """A constraint such as `torch<2.11`: the index of the chosen backend also offers newer torch
    releases that have no code for the GPUs here, and an installer would take the newest."""

    def __str__(self) -> str:
        chosen = f"{self.backend} with torch {self.torch}" if self.backend else "no backend"
        fitting = [item for item in self.alternatives if item.fits and item.backend != self.backend]
        others = [
            item for item in self.alternatives if not item.fits and item.backend != self.backend
        ]
        lines = [f"{chosen}: {self.reason}"]
        for title, items in (
            ("also fits", fitting),
            ("does not fit", others),
            ("warning", self.warnings),
        ):
            if items:
                lines += ["", title, *(f"  {item}" for item in items)]
        return "\n".join([*lines, "", str(self.catalog)])


def parse_backend(text: str, catalog: Catalog) -> Backend | None:
    """Return the backend that uv calls `text`; None for `auto`.

    Raises
    ------
    RequestError
        The catalog has no such backend; the hint names the nearest.
    """
    word = text.strip().lower()
    if word == "auto":
        return None
    known = {str(backend): backend for backend in catalog.backends()}
    if word in known:
        return known[word]
    nearest = _nearest(word, ["auto", *known])
    instead = f"did you mean `{nearest}`? " if nearest else ""
    message = f"`{text}` is not a backend"
    raise RequestError(message, hint=f"{instead}the backends are auto, {', '.join(known)}")


# Words that people use for a backend, and that are near to none in letters.
_OTHER_WORDS = {"amd": "auto", "cuda": "auto", "gpu": "auto", "mps": "cpu", "rocm": "auto"}


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` was meant to be: the likest, then the nearest number."""
    import difflib

    def number(text: str) -> int:
        return int("".join(filter(str.isdecimal, text))[:6] or 0)

    def rank(name: str) -> tuple[float, int]:
        likeness = difflib.SequenceMatcher(None, word, name).ratio()
        return likeness, -abs(number(word) - number(name))

    nearest = _OTHER_WORDS.get(word) or max(known, key=rank)
    return nearest if word in _OTHER_WORDS or rank(nearest)[0] >= 0.5 else None


def select(
    host: Host,
    request: Request,
    *,
    interpreter: Interpreter,
    catalog: Catalog | None = None,
    environ: Mapping[str, str] | None = None,
    installed: Iterable[str] = (),
) -> Selection:
    """Return the build to install for `request` into `interpreter` on `host`, with every reason.

    `environ` only lends its `UV_TORCH_BACKEND`, which is what uv would be asked for where the
    request leaves the backend open. `installed` are the names of the packages that are there: an
    install switches torchvision and torchaudio along, so the backend has to have them.

    Raises
    ------
    RequestError
        A requirement is malformed, or `UV_TORCH_BACKEND` is no backend.
    """
    catalog = catalog or load_catalog()
    question = _Question(
        host=host,
        interpreter=interpreter,
        catalog=catalog,
        demand=read_demand(request.requirements, interpreter, installed),
    )
    asked, asked_by = request.backend, "asked for"
    if asked is None and (word := (environ or {}).get("UV_TORCH_BACKEND", "").strip()):
        asked_by = "`UV_TORCH_BACKEND` asks for it"
        try:
            asked = parse_backend(word, catalog)
        except RequestError as error:
            message = f"{error.message}, and `UV_TORCH_BACKEND` asks for it"
            raise RequestError(message, hint=error.hint) from error
    if asked is None and question.demand.asks_for_cpu:
        asked = Backend("cpu")
    if asked is not None:
        return _as_asked(question, asked, asked_by)
    return _best(question)


def selection_to_json(selection: Selection) -> dict[str, Any]:
    """Return the selection as `torchenv select --json` prints it."""
    return {
        "backend": to_json(selection.backend),
        "torch": selection.torch,
        "accelerators": [accelerator_to_json(item) for item in selection.accelerators],
        "unsupported_accelerators": list(selection.unsupported_accelerators),
        "warnings": list(selection.warnings),
        "reason": selection.reason,
        "alternatives": to_json(selection.alternatives),
        "catalog": to_json(selection.catalog),
    }


def accelerator_to_json(accelerator: Accelerator) -> dict[str, Any]:
    """Return an accelerator with the keys of the contract, and of those only its vendor's."""
    data: dict[str, Any] = to_json(accelerator)
    del data["cuda_version"]
    if accelerator.vendor != "nvidia":
        del data["compute_capability"]
    if accelerator.vendor != "amd":
        del data["gfx"]
    return data


_VENDOR_OF_KIND: dict[Kind, Vendor] = {"cuda": "nvidia", "rocm": "amd", "xpu": "intel"}
_VENDOR_NAMES: dict[Vendor, str] = {
    "nvidia": "NVIDIA",
    "amd": "AMD",
    "intel": "supported Intel",
    "apple": "Apple",
}
_BY_RULE = "; the catalog does not know this release, so it is judged by the nearest that it knows"
_SYSTEM_NAMES = {"linux": "Linux", "windows": "Windows", "macos": "macOS"}


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One host, one Python, one demand on torch, and what the catalog says about them.

    No slots: `cached_property` keeps its answers in the instance.
    """

    host: Host
    interpreter: Interpreter
    catalog: Catalog
    demand: Demand

    @cached_property
    def without_demand(self) -> _Question:
        return replace(self, demand=Demand(named=self.demand.named))

    def admits(self, build: Build) -> bool:
        return not self.demand or self.demand.admits(
            build.torch, build.local_version.local, companions=self.catalog.companions
        )

    def installs(self, build: Build) -> bool:
        return (
            self.interpreter.tag in build.python_tags
            and self.has_system_for(build)
            and self.catalog.is_known_to_uv(build.backend)
            and not self.missing_on(build.backend)
        )

    def missing_on(self, backend: Backend) -> str | None:
        """Return what has to be beside torch and is not on the backend's index."""
        companions = self.catalog.companions
        named = sorted(self.demand.named)
        return next((name for name in named if backend in companions[name].missing), None)

    def has_system_for(self, build: Build) -> bool:
        """Return whether the C library, or macOS, is as new as the wheel's tag demands."""
        platform = self.host.platform
        if build.glibc is not None and platform.libc == "musl":
            return False
        for needed, version in (
            (build.glibc, platform.libc_version),
            (build.macos, platform.system_version),
        ):
            # Where it could not be read, uv's own answer comes soon enough: no reason to refuse.
            here = driver_number(version or "")
            if needed is not None and here is not None and here < _number(needed):
                return False
        return True

    def builds(self, backend: Backend) -> tuple[Build, ...]:
        return self.catalog.builds_for(backend, self.host.platform.wheel_platform)

    @cached_property
    def candidates(self) -> tuple[Build, ...]:
        """Return every build that could be installed here and that the request admits."""
        return tuple(
            build
            for backend in self.catalog.backends()
            for build in self.builds(backend)
            if self.installs(build) and self.admits(build)
        )

    def has_code(self, build: Build, accelerator: Accelerator) -> bool:
        if _VENDOR_OF_KIND.get(build.backend.kind) != accelerator.vendor:
            return False
        if accelerator.vendor == "amd":
            return accelerator.gfx in self.catalog.gfx_code(build).names
        if accelerator.vendor == "nvidia" and accelerator.compute_capability is not None:
            return self.catalog.runs_on(build, accelerator.compute_capability)
        return True

    def knows_code(self, build: Build) -> bool:
        """Return whether a source lists the code of this very release, and no neighbour's."""
        if build.backend.kind == "cuda":
            return self.catalog.cuda_code(build).known
        return build.backend.kind != "rocm" or self.catalog.gfx_code(build).known

    def driver_needed(self, build: Build, accelerators: Iterable[Accelerator]) -> str | None:
        """Return the driver that is needed and missing, or None where the driver will do."""
        if build.backend.kind != "cuda":
            return None
        system = self.host.platform.driver_system
        needed = [
            floor
            for accelerator in accelerators
            if (here := driver_number(accelerator.driver_version or "")) is not None
            for floor in (
                self.catalog.driver_floor(build.backend, system),
                accelerator.compute_capability
                and self.catalog.gpu_driver_floor(accelerator.compute_capability, system),
            )
            if floor and here < _number(floor)
        ]
        return max(needed, key=_number, default=None)

    def runs(self, build: Build, accelerator: Accelerator) -> bool:
        return (
            self.has_code(build, accelerator) and self.driver_needed(build, [accelerator]) is None
        )

    def served(self, vendor: Vendor) -> tuple[Accelerator, ...]:
        """Return the vendor's accelerators that one build can run together, most capable first.

        Empty where no candidate runs any of them.
        """
        candidates = self.candidates
        served: tuple[Accelerator, ...] = ()
        for accelerator in self.accelerators(vendor):
            running = [build for build in candidates if self.runs(build, accelerator)]
            if running:
                candidates = tuple(running)
                served += (accelerator,)
        return served

    def builds_with_code(self, accelerator: Accelerator) -> tuple[Build, ...]:
        """Return every build for this platform with code for it, newest backend first."""
        return tuple(
            build
            for backend in self.catalog.backends()
            for build in self.builds(backend)
            if self.has_code(build, accelerator)
        )

    def accelerators(self, vendor: Vendor) -> tuple[Accelerator, ...]:
        mine = [item for item in self.host.accelerators if item.vendor == vendor]
        return tuple(sorted(mine, key=_capability_rank, reverse=True))

    def vendors(self) -> tuple[Vendor, ...]:
        """Return the vendors of the host's accelerators in the order of their detection."""
        return tuple(dict.fromkeys(item.vendor for item in self.host.accelerators))

    def targets(self, vendor: Vendor) -> tuple[Accelerator, ...]:
        """Return the accelerators that a backend for `vendor` is judged by."""
        return self._targets[vendor]

    @cached_property
    def _targets(self) -> dict[Vendor, tuple[Accelerator, ...]]:
        return {
            vendor: self.served(vendor)
            or self.without_demand.served(vendor)
            or self.accelerators(vendor)[:1]
            for vendor in _VENDOR_NAMES
        }


def _number(text: str) -> tuple[int, ...]:
    """Return a version of the catalog's own as numbers to compare."""
    return driver_number(text) or ()


def _capability_rank(accelerator: Accelerator) -> tuple[int, int]:
    capability = accelerator.compute_capability
    return (capability.major, capability.minor) if capability else (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    backend: Backend
    build: Build | None
    """The newest that runs, or where none does, the newest that could at least be installed."""
    fits: bool
    reason: str

    @property
    def alternative(self) -> Alternative:
        torch = str(self.build.torch) if self.build else None
        return Alternative(backend=self.backend, torch=torch, fits=self.fits, reason=self.reason)


def _judge(question: _Question, backend: Backend) -> _Verdict:
    """Return what speaks for or against one backend: the first obstacle names the reason."""
    admitted, obstacle = _installable(question, backend)
    if not admitted:
        return _Verdict(backend=backend, build=None, fits=False, reason=obstacle)
    if backend.kind != "cpu":
        return _judge_devices(question, backend, admitted)
    apple = any(item.vendor == "apple" for item in question.host.accelerators)
    reason = (
        "computes on Apple silicon through MPS" if apple else "runs on any machine, without a GPU"
    )
    return _Verdict(backend=backend, build=admitted[0], fits=True, reason=reason)


def _installable(question: _Question, backend: Backend) -> tuple[list[Build], str]:
    """Return the builds that this system, Python and request admit, or why there is none."""
    host, interpreter = question.host, question.interpreter
    builds = list(question.builds(backend))
    if not builds:
        return [], f"no wheel for {_platform_words(host.platform)}"
    if not question.catalog.is_known_to_uv(backend):
        return [], f"uv {question.catalog.uv_version} does not know this backend"
    if missing := question.missing_on(backend):
        return [], f"no wheel of {missing} on this index"
    for_python = [build for build in builds if interpreter.tag in build.python_tags]
    if not for_python:
        return [], _python_reason(interpreter, builds)
    for_system = [build for build in for_python if question.has_system_for(build)]
    if not for_system:
        return [], _system_reason(host.platform, for_python)
    admitted = [build for build in for_system if question.admits(build)]
    if not admitted:
        there = _range_words(for_system)
        return [], f"no wheel of {question.demand} on this index for this Python: torch {there}"
    return admitted, ""


def _judge_devices(question: _Question, backend: Backend, admitted: list[Build]) -> _Verdict:
    """Return whether one of the builds runs on the devices of the backend's vendor."""

    def refused(reason: str, build: Build) -> _Verdict:
        return _Verdict(backend=backend, build=build, fits=False, reason=reason)

    vendor = _VENDOR_OF_KIND[backend.kind]
    targets = question.targets(vendor)
    if not targets:
        return refused(f"no {_VENDOR_NAMES[vendor]} GPU here", admitted[0])
    with_code = [
        build for build in admitted if all(question.has_code(build, item) for item in targets)
    ]
    if not with_code:
        return refused(_code_reason(question, admitted[0], targets), admitted[0])
    newest = with_code[0]
    # A backend's releases need the same driver: what the newest lacks, the older ones lack too.
    if needed := question.driver_needed(newest, targets):
        here = targets[0].driver_version
        return refused(f"needs driver ≥ {needed}; here {here}", newest)
    reason = f"runs here with torch {newest.torch}"
    if newest != admitted[0]:
        reason += f", the newest with code for {_code_words(targets)}"
    if not question.knows_code(newest):
        reason += _BY_RULE
    return _Verdict(backend=backend, build=newest, fits=True, reason=reason)


def _platform_words(platform: Platform) -> str:
    return f"{_SYSTEM_NAMES.get(platform.system, 'this system')} {platform.machine}"


def _python_words(interpreter: Interpreter) -> str:
    major_minor = ".".join(interpreter.version.split(".")[:2])
    name = {"cpython": "Python", "pypy": "PyPy"}.get(
        interpreter.implementation, interpreter.implementation
    )
    return f"{'free-threaded ' if interpreter.free_threaded else ''}{name} {major_minor}"


def _python_reason(interpreter: Interpreter, builds: Iterable[Build]) -> str:
    tags = {tag for build in builds for tag in build.python_tags}
    return f"no wheel for {_python_words(interpreter)}: {_python_range(interpreter, tags)}"


def _python_range(interpreter: Interpreter, tags: Iterable[str]) -> str:
    minors = sorted(int(tag.removeprefix("cp3")) for tag in tags if not tag.endswith("t"))
    name = "CPython" if interpreter.implementation != "cpython" else "Python"
    kind = "ordinary " if interpreter.free_threaded else ""
    return f"{kind}{name} 3.{minors[0]} to 3.{minors[-1]}"


def _system_reason(platform: Platform, builds: Iterable[Build]) -> str:
    if platform.libc == "musl":
        return "no wheel for musl: PyTorch's Linux wheels need glibc"
    if platform.system == "macos":
        oldest = min((build.macos for build in builds if build.macos), key=_number)
        return f"needs macOS {oldest} or newer; here {platform.system_version}"
    oldest = min((build.glibc for build in builds if build.glibc), key=_number)
    return f"needs glibc {oldest} or newer; here {platform.libc_version}"


def _range_words(builds: Iterable[Build]) -> str:
    versions = sorted(build.torch for build in builds)
    lowest, highest = versions[0], versions[-1]
    return str(lowest) if lowest == highest else f"{lowest} to {highest}"


def _code_words(accelerators: Iterable[Accelerator]) -> str:
    """Return what code the accelerators need: `compute capability 7.0 and 8.6`, `gfx1100`."""
    accelerators = tuple(accelerators)
    capabilities = sorted(
        {item.compute_capability for item in accelerators if item.compute_capability}
    )
    names = sorted({item.gfx for item in accelerators if item.gfx})
    if capabilities:
        return f"compute capability {' and '.join(map(str, capabilities))}"
    return " and ".join(names)


def _code_reason(question: _Question, build: Build, targets: tuple[Accelerator, ...]) -> str:
    missing = [item for item in targets if not question.has_code(build, item)] or list(targets)
    reason = f"no code for {_code_words(missing)}"
    if build.backend.kind != "cuda":
        return reason
    capabilities = question.catalog.cuda_code(build).capabilities
    lowest, highest = capabilities[0], capabilities[-1]
    wanted = [item.compute_capability for item in missing if item.compute_capability]
    sm = "sm_{0.major}{0.minor}".format
    if all(capability < lowest for capability in wanted):
        return f"{reason}: {sm(lowest)} and newer"
    if all(capability > highest for capability in wanted):
        return f"{reason}: up to {sm(highest)}"
    return f"{reason}: {', '.join(map(sm, capabilities))}"


def _ordered(verdicts: Iterable[_Verdict]) -> tuple[_Verdict, ...]:
    """Return the verdicts best first: newest torch, newest backend, cpu, then what does not fit."""

    def rank(verdict: _Verdict) -> tuple[bool, bool, Version, tuple[int, ...]]:
        torch = verdict.build.torch if verdict.fits and verdict.build else Version("0")
        version = verdict.backend.version if verdict.fits else ()
        return verdict.fits, verdict.backend.kind != "cpu", torch, version

    # sorted() is stable: what does not fit keeps the catalog's order, as far as rank() is equal.
    return tuple(sorted(verdicts, key=rank, reverse=True))


def _best(question: _Question) -> Selection:
    verdicts = _ordered(_judge(question, backend) for backend in question.catalog.backends())
    for vendor in question.vendors():
        for verdict in verdicts:
            if verdict.fits and _VENDOR_OF_KIND.get(verdict.backend.kind) == vendor:
                return _chosen_for_accelerators(question, verdicts, verdict, vendor)
    at_all = replace(question, demand=Demand())
    reachable = [
        vendor for vendor in question.vendors() if vendor != "apple" and at_all.served(vendor)
    ]
    cpu = next((verdict for verdict in verdicts if verdict.backend.kind == "cpu"), None)
    if reachable or cpu is None or not cpu.fits:
        return _nothing(question, verdicts, reachable)
    return _chosen_cpu(question, verdicts, cpu)


def _chosen_for_accelerators(
    question: _Question, verdicts: tuple[_Verdict, ...], chosen: _Verdict, vendor: Vendor
) -> Selection:
    served = question.targets(vendor)
    reason = f"the newest {_demand_words(question)}build"
    words = _code_words(served)
    if words:
        reason += f" with code for {words}"
    if vendor == "intel":
        reason += " for the Intel GPUs that PyTorch supports"
    driver = _limiting_driver(question, chosen, served)
    if vendor == "nvidia" and not words:
        driver = served[0].driver_version
        reason += "" if driver else " for NVIDIA GPUs"
    if driver:
        reason += f" that driver {driver} can run"
    if chosen.build is not None and not question.knows_code(chosen.build):
        reason += _BY_RULE
    left_out = [item for item in question.host.accelerators if item not in served]
    warnings = [_left_out_warning(item, served) for item in left_out]
    warnings += _unknown_warnings(question, chosen, served)
    return _selection(
        question,
        verdicts,
        chosen,
        reason=reason,
        warnings=warnings,
        unsupported=left_out,
        exclusion=_exclusion(question, chosen, served),
    )


def _chosen_cpu(question: _Question, verdicts: tuple[_Verdict, ...], cpu: _Verdict) -> Selection:
    unsupported = [item for item in question.host.accelerators if item.vendor != "apple"]
    if unsupported:
        names = " and ".join(dict.fromkeys(item.name for item in unsupported))
        reason = f"no build that can be installed here runs on {names}"
    elif question.host.accelerators:
        reason = "the ordinary wheel computes on Apple silicon through MPS"
    else:
        reason = "no accelerator was found"
    warnings = [_unsupported_warning(question, item) for item in unsupported]
    if not question.host.accelerators:
        # Whatever kept detection from a GPU is why this is the cpu.
        warnings = [finding.with_hint for finding in question.host.findings]
    return _selection(
        question, verdicts, cpu, reason=reason, warnings=warnings, unsupported=unsupported
    )


def _nothing(
    question: _Question, verdicts: tuple[_Verdict, ...], reachable: Iterable[Vendor]
) -> Selection:
    """Return that no build fits, told of the first vendor that one would be `reachable` for."""
    first = next(
        (
            question.targets(vendor)[0]
            for vendor in (*reachable, *question.vendors())
            if vendor in _VENDOR_OF_KIND.values()
        ),
        None,
    )
    on = f"runs on {first.name}" if first else "can be installed here"
    vendor = first.vendor if first else None
    judged = [item for item in verdicts if _VENDOR_OF_KIND.get(item.backend.kind) == vendor]
    # A build that can be installed and does not run says more than one that is not there.
    why = next((item.reason for item in judged if item.build is not None), judged[0].reason)
    return _selection(
        question,
        verdicts,
        None,
        reason=f"no build of {question.demand} fits this host",
        warnings=[
            f"no build of {question.demand} {on}: {why}",
            *_remedies(question, verdicts),
        ],
        unsupported=[
            item
            for item in question.host.accelerators
            if item.vendor != "apple" and not question.builds_with_code(item)
        ],
    )


def _remedies(question: _Question, verdicts: tuple[_Verdict, ...]) -> list[str]:
    """Return what would fit instead, each a line."""
    remedies = [
        _other_torch(question),
        _alone(question),
        _newer_driver(question, verdicts),
        _unused_gpu(question, verdicts),
        _pypi_wheel(question),
        _other_python(question),
        _older_torch(question),
    ]
    platform = question.host.platform
    if (platform.system, platform.machine) == ("macos", "x86_64"):
        remedies.append("torch 2.2.2 was the last with wheels for Intel Macs")
    return [remedy for remedy in remedies if remedy]


def _other_torch(question: _Question) -> str | None:
    relaxed = _best(question.without_demand) if question.demand else None
    if relaxed is None or relaxed.backend is None:
        return None
    return f"torch {relaxed.torch} as {relaxed.backend} would fit"


def _alone(question: _Question) -> str | None:
    """Return what would fit without the package that the best backend does not have."""
    if not question.demand.named:
        return None
    best = _best(replace(question, demand=Demand(torch=question.demand.torch)))
    missing = best.backend and question.missing_on(best.backend)
    return f"without {missing}, torch {best.torch} as {best.backend} would fit" if missing else None


def _newer_driver(question: _Question, verdicts: tuple[_Verdict, ...]) -> str | None:
    for verdict in verdicts:
        vendor = _VENDOR_OF_KIND.get(verdict.backend.kind)
        if verdict.build is None or vendor is None:
            continue
        targets = question.targets(vendor)
        needed = question.driver_needed(verdict.build, targets)
        if needed and all(question.has_code(verdict.build, item) for item in targets):
            build = verdict.build
            return f"driver {needed} or newer would run torch {build.torch} as {build.backend}"
    return None


def _unused_gpu(question: _Question, verdicts: tuple[_Verdict, ...]) -> str | None:
    """Return the build that computes without the GPU, or with none: the cpu, else any other."""
    builds = [verdict.build for verdict in verdicts if verdict.build is not None]
    for build in builds:
        if build.backend.kind == "cpu":
            return f"cpu has torch {build.torch}, which computes without a GPU"
    if builds and not question.host.accelerators:
        return f"{builds[0].backend} has torch {builds[0].torch}, which also computes without a GPU"
    return None


def _pypi_wheel(question: _Question) -> str | None:
    platform = question.host.platform
    if platform.libc == "musl":
        return None
    for torch in question.catalog.pypi_versions(platform.wheel_platform, question.interpreter.tag):
        backend = question.catalog.pypi_default(torch, platform.wheel_platform)
        if backend == Backend("cpu") and question.demand.admits(
            torch, companions=question.catalog.companions
        ):
            return f"PyPI's own wheel of torch {torch} is a cpu build for this system"
    return None


def _other_python(question: _Question) -> str | None:
    tags = {
        tag
        for backend in question.catalog.backends()
        for build in question.builds(backend)
        if question.admits(build) and question.has_system_for(build)
        for tag in build.python_tags
    }
    if not tags or question.interpreter.tag in tags:
        return None
    return f"{_python_range(question.interpreter, tags)} have wheels"


def _older_torch(question: _Question) -> str | None:
    """Return the way to a torch from before the catalog, which an index may well have."""
    oldest = min(build.torch for builds in question.catalog.builds.values() for build in builds)
    bounds = [
        specifier.version.removesuffix(".*")
        for specifier in question.demand.torch or ()
        if specifier.operator in {"==", "~=", "<", "<="}
    ]
    if not any(Version(bound) <= oldest for bound in bounds):
        return None
    return f"older than torch {oldest} is not known here: name a backend, and its index decides"


def _as_asked(question: _Question, backend: Backend, asked_by: str) -> Selection:
    verdicts = _ordered(_judge(question, item) for item in question.catalog.backends())
    chosen = next(verdict for verdict in verdicts if verdict.backend == backend)
    if chosen.build is None:
        warnings = [
            f"{backend} was asked for: {chosen.reason}",
            *_instead_of(question, backend, verdicts),
        ]
        return _selection(
            question,
            verdicts,
            None,
            reason=f"{backend} has no build to install here",
            warnings=warnings,
            unsupported=[],
        )
    if not chosen.fits:
        warnings = [
            f"{backend} was asked for and does not fit here: {chosen.reason}",
            *_instead_of(question, backend, verdicts),
        ]
        return _selection(
            question, verdicts, chosen, reason=asked_by, warnings=warnings, unsupported=[]
        )
    vendor = _VENDOR_OF_KIND.get(backend.kind)
    served = question.targets(vendor) if vendor else ()
    left_out = [item for item in question.host.accelerators if vendor and item not in served]
    warnings = [_left_out_warning(item, served) for item in left_out]
    warnings += _unknown_warnings(question, chosen, served)
    return _selection(
        question,
        verdicts,
        chosen,
        reason=asked_by,
        warnings=warnings,
        unsupported=left_out,
        exclusion=_exclusion(question, chosen, served),
    )


def _instead_of(question: _Question, backend: Backend, verdicts: tuple[_Verdict, ...]) -> list[str]:
    """Return what would fit instead of a backend that was asked for and does not."""
    instead = []
    relaxed = _judge(question.without_demand, backend)
    if relaxed.fits and relaxed.build is not None:
        instead.append(f"torch {relaxed.build.torch} as {backend} would fit")
    best = _best(question)
    if best.backend is not None:
        instead.append(f"torch {best.torch} as {best.backend} would fit")
    return instead or _remedies(question, verdicts)


def _selection(
    question: _Question,
    verdicts: tuple[_Verdict, ...],
    chosen: _Verdict | None,
    *,
    reason: str,
    warnings: Iterable[str],
    unsupported: Iterable[Accelerator],
    exclusion: str | None = None,
) -> Selection:
    return Selection(
        backend=chosen.backend if chosen else None,
        torch=str(chosen.build.torch) if chosen and chosen.build else None,
        accelerators=question.host.accelerators,
        unsupported_accelerators=tuple(item.name for item in unsupported),
        warnings=tuple(warnings),
        reason=reason,
        alternatives=tuple(
            replace(verdict.alternative, reason=reason)
            if verdict is chosen and verdict.fits
            else verdict.alternative
            for verdict in verdicts
        ),
        catalog=question.catalog.origin,
        exclusion=exclusion,
    )


def _demand_words(question: _Question) -> str:
    return f"{question.demand} " if question.demand else ""


def _limiting_driver(
    question: _Question, chosen: _Verdict, served: tuple[Accelerator, ...]
) -> str | None:
    """Return the driver's version where a newer driver would run a newer build."""
    if chosen.build is None:
        return None
    best = (chosen.build.torch, chosen.backend.version)
    for build in question.candidates:
        if (build.torch, build.backend.version) > best and all(
            question.has_code(build, item) for item in served
        ):
            return served[0].driver_version
    return None


def _left_out_warning(accelerator: Accelerator, served: tuple[Accelerator, ...]) -> str:
    detail = _code_words([accelerator])
    is_told = not detail or detail in accelerator.name
    name = accelerator.name if is_told else f"{accelerator.name} ({detail})"
    others = " and ".join(dict.fromkeys(item.name for item in served))
    if served and accelerator.vendor != served[0].vendor:
        return f"{name} is left out: one build computes on one vendor's devices, here on {others}"
    return f"{name} is left out: no build that runs on {others} also runs on it"


def _unsupported_warning(question: _Question, accelerator: Accelerator) -> str:
    """Return why a GPU stays unused: its driver, its age, or the system around it."""
    unused = f"{accelerator.name} stays unused"
    vendor_builds = [
        build
        for backend in question.catalog.backends()
        if _VENDOR_OF_KIND.get(backend.kind) == accelerator.vendor
        for build in question.builds(backend)
    ]
    if not vendor_builds:
        vendor, platform = _VENDOR_NAMES[accelerator.vendor], question.host.platform
        return f"{unused}: PyTorch has no build for {vendor} on {_platform_words(platform)}"
    with_code = question.builds_with_code(accelerator)
    if not with_code:
        return (
            f"{unused}: no PyTorch build for {_platform_words(question.host.platform)}"
            f" has code for {_code_words([accelerator]) or 'it'}"
            f"{_override_words(question, accelerator)}"
        )
    installable = [build for build in with_code if question.installs(build)]
    if not installable:
        _, obstacle = _installable(question.without_demand, with_code[0].backend)
        return f"{unused}: {with_code[0].backend} would run on it, but {obstacle}"
    floors = {
        needed: build.backend
        for build in reversed(installable)
        if (needed := question.driver_needed(build, [accelerator]))
    }
    if not floors:
        return f"{unused}: no build of {question.demand} runs on it"
    lowest = min(floors, key=_number)
    return (
        f"{unused}: its driver {accelerator.driver_version} is too old;"
        f" with driver {lowest} or newer, {floors[lowest]} runs on it"
    )


def _override_words(question: _Question, accelerator: Accelerator) -> str:
    """Return what people set to run an AMD GPU with the code of its neighbour, if anything."""
    override = question.catalog.hsa_override(accelerator.gfx or "")
    if override is None:
        return ""
    return (
        f"; people run it with `HSA_OVERRIDE_GFX_VERSION={override}` and a ROCm build, which AMD"
        " does not support: nothing here sets it"
    )


def _unknown_warnings(
    question: _Question, chosen: _Verdict, served: tuple[Accelerator, ...]
) -> list[str]:
    """Return what could not be checked because detection did not learn it."""
    warnings = []
    for accelerator in served:
        if accelerator.vendor != "nvidia":
            continue
        if accelerator.compute_capability is None:
            warnings.append(
                f"the compute capability of {accelerator.name} is unknown:"
                f" whether {chosen.backend} has code for it was not checked"
            )
        if driver_number(accelerator.driver_version or "") is None:
            system = question.host.platform.driver_system
            floor = question.catalog.driver_floor(chosen.backend, system)
            warnings.append(
                f"the driver version of {accelerator.name} is unknown:"
                f" {chosen.backend} needs {floor} or newer"
            )
    return warnings


def _exclusion(
    question: _Question, chosen: _Verdict, served: tuple[Accelerator, ...]
) -> str | None:
    """Return the constraint that keeps newer releases of the chosen backend out, if one must be.

    The resolver takes the newest torch of the index that the request admits, whatever GPU is here:
    cu128's 2.11 has no code for Volta, which its 2.10 has.
    """
    if chosen.build is None:
        return None
    dropped = [
        build.minor
        for build in question.builds(chosen.backend)
        if build.torch > chosen.build.torch
        and not all(question.has_code(build, item) for item in served)
    ]
    if not dropped:
        return None
    major, minor = min(dropped)
    return f"torch<{major}.{minor}"
