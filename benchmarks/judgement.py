"""What a chosen build is worth on a machine: pure, from the machine's file and the catalog's facts.

`select` is never asked, nor is detection: which GPUs a machine has is what its file says.

`best`
    The backend and the torch release that the machine's file expects; where it expects that
    nothing fits, that the tool says so.
`runs`
    Another build that can be installed and has code for the GPUs, for a driver that they have; or,
    where no GPU build fits the machine, an older one for the CPU. A GPU that the file calls
    unsupported may be left out, any other may not.
`idle`
    A build for the CPU beside a GPU that could compute, or for which the request has no build.
`misplaced`
    A build for a GPU on a machine without one that any build could use. It would import and compute
    on the CPU: gigabytes for nothing, and a failure at the first `.to("cuda")`.
`broken`
    A build without code for a GPU that is here, or for another driver or vendor.
`failed`
    An error, no answer within the bound, or a release that the index does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from packaging.version import Version

from tests.fleet import Machine
from torchenv_magic.accelerators import Accelerator
from torchenv_magic.accelerators.amd import gfx_name, parse_agents, parse_properties
from torchenv_magic.accelerators.nvidia import known_capability, parse_information
from torchenv_magic.accelerators.records import ComputeCapability, System
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Build, Catalog, driver_number

__all__ = ["OUTCOMES", "Choice", "Outcome", "accelerators_of", "judge", "left_out"]

Outcome = Literal["best", "runs", "idle", "misplaced", "broken", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_PLATFORM = "linux_x86_64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a tool answered."""

    torch: Version | None = None
    """As the tool writes it, with the build's label: `2.14.1+cu126`."""
    refused: bool = False
    """Whether it said that no build meets the request."""
    said: str = ""
    """The end of what it printed, where it named no build."""


def judge(
    choice: Choice,
    *,
    expected_backend: str,
    expected_torch: str,
    unsupported: Collection[str],
    accelerators: Sequence[Accelerator],
    driver_system: System,
    python_tag: str,
    catalog: Catalog,
) -> Outcome:
    """Return what the choice is worth where the file expects that (`none` where nothing fits)."""
    if choice.torch is None:
        right = choice.refused and expected_backend == "none"
        return "best" if right else "failed"
    build = _build_of(choice.torch, python_tag, catalog)
    if build is None:
        return "failed"
    if (str(build.backend), str(build.torch)) == (expected_backend, expected_torch):
        return "best"
    if build.backend.kind == "cpu":
        return "runs" if expected_backend == "cpu" else "idle"
    if expected_backend == "cpu":
        return "misplaced"
    used = [item for item in accelerators if item.name not in unsupported]
    return "runs" if _computes(build, used, driver_system, catalog) else "broken"


def _build_of(torch: Version, python_tag: str, catalog: Catalog) -> Build | None:
    release = Version(torch.public)
    if torch.local is None:
        # Without a label it is PyPI's own wheel, whose build the catalog knows. The index of that
        # backend need not have it, too.
        backend = catalog.pypi_default(release, _PLATFORM)
        if backend is None or release not in catalog.pypi_versions(_PLATFORM, python_tag):
            return None
        return Build(
            torch=release,
            backend=backend,
            wheel_platform=_PLATFORM,
            python_tags=(python_tag,),
            glibc="2.28",
            source="PyPI",
        )
    for backend in catalog.backends():
        for build in catalog.builds_for(backend, _PLATFORM):
            if build.local_version == torch and python_tag in build.python_tags:
                return build
    return None


def _computes(
    build: Build, accelerators: Sequence[Accelerator], system: System, catalog: Catalog
) -> bool:
    """Return whether the build has code for every GPU of its vendor, and there is one."""
    vendor = {"cuda": "nvidia", "rocm": "amd", "xpu": "intel"}[build.backend.kind]
    mine = [item for item in accelerators if item.vendor == vendor]
    if build.backend.kind == "cuda":
        fits = [_runs_on_nvidia(build, item, system, catalog) for item in mine]
    elif build.backend.kind == "rocm":
        fits = [item.gfx in catalog.gfx_code(build).names for item in mine]
    else:
        fits = [True for _ in mine]
    return bool(fits) and all(fits)


def _runs_on_nvidia(build: Build, gpu: Accelerator, system: System, catalog: Catalog) -> bool:
    capability = gpu.compute_capability
    if capability is None or not catalog.runs_on(build, capability):
        return False
    driver = driver_number(gpu.driver_version or "") or ()
    floors = (
        catalog.driver_floor(build.backend, system),
        catalog.gpu_driver_floor(capability, system),
    )
    return all(driver >= (driver_number(floor) or ()) for floor in floors if floor is not None)


def accelerators_of(machine: Machine) -> tuple[Accelerator, ...]:
    """Return the GPUs that the machine's file gives it, named as its `unsupported` names them."""
    data = machine.data
    files: dict[str, str] = data.get("files", {})
    found = [
        _nvidia(gpu["name"], driver=gpu["driver_version"], capability=gpu.get("compute_cap"))
        for gpu in data.get("nvidia-smi", [])
    ]
    if not found:
        # Where neither NVML nor nvidia-smi is, the kernel's driver still has its names.
        driver = files.get("sys/module/nvidia/version", "").strip()
        found += [
            _nvidia(parse_information(text)[0], driver=driver, capability=None)
            for path, text in files.items()
            if path.startswith("proc/driver/nvidia/gpus/")
        ]
    agents = data.get("programs", {}).get("rocm_agent_enumerator", {}).get("output", "")
    architectures = [
        gfx_name(parse_properties(text).get("gfx_target_version", 0))
        for path, text in files.items()
        if path.startswith("sys/class/kfd/") and path.count("/") == 7
    ]
    found += [
        Accelerator(vendor="amd", name=f"AMD GPU {gfx}", gfx=gfx)
        for gfx in (*architectures, *parse_agents(agents))
        if gfx
    ]
    if machine.expected["backend"] == "xpu":
        found.append(Accelerator(vendor="intel", name="Intel GPU"))
    return tuple(found)


def _nvidia(name: str, *, driver: str, capability: str | None) -> Accelerator:
    known = ComputeCapability.parse(capability) if capability else known_capability(name)
    return Accelerator(vendor="nvidia", name=name, compute_capability=known, driver_version=driver)


def left_out(machine: Machine, *, python_tag: str, catalog: Catalog) -> str | None:
    """Return why peers that run here would not meet this machine as it is; None where they do."""
    platform = machine.platform
    if platform.system != "linux":
        return "another system than Linux"
    if platform.machine != "x86_64":
        return "another processor than x86_64"
    libc_version = tuple(map(int, (platform.libc_version or "0").split(".")))
    if platform.libc != "glibc" or libc_version < (2, 28):
        return "another C library than glibc 2.28 or newer"
    if machine.request.backend or any(
        name.startswith("UV_") for name in machine.data.get("environ", {})
    ):
        return "the backend or the GPU is named, and in uv's words, which two peers do not know"
    theirs, ours = (
        _deciding(machine, tag, catalog) for tag in (machine.interpreter.tag, python_tag)
    )
    if machine.interpreter.free_threaded or theirs != ours:
        return "it is about another Python than the one that runs here"
    return None


def _deciding(machine: Machine, python_tag: str, catalog: Catalog) -> set[tuple[Backend, Version]]:
    """Return the builds for that Python that make the expected one the best, or none fit.

    Older releases don't, nor does ROCm where other GPUs are: Python 3.12 lacks two builds of it
    from 2024 that Python 3.11 has.
    """
    expected = machine.expected
    oldest = Version(expected["torch"] or "0")
    return {
        (build.backend, build.torch)
        for backend in catalog.backends()
        if backend.kind != "rocm" or expected["backend"].startswith("rocm")
        for build in catalog.builds_for(backend, _PLATFORM)
        if python_tag in build.python_tags and build.torch >= oldest
    }
