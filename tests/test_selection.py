"""Selection: a table of machines with what is chosen and said, and what holds for every machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from torchenv_magic.accelerators.records import (
    Accelerator,
    ComputeCapability,
    Finding,
    Host,
    Platform,
)
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import driver_number, load_catalog
from torchenv_magic.environment import Environment, Interpreter
from torchenv_magic.errors import RequestError
from torchenv_magic.notebook.rendering import status_html
from torchenv_magic.selection import (
    Request,
    Selection,
    parse_backend,
    select,
    selection_to_json,
)
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.status import Status, verdict

CATALOG = load_catalog()
LINUX = Platform(system="linux", machine="x86_64", libc="glibc", libc_version="2.36")
ARM = replace(LINUX, machine="aarch64")
OLD_LINUX = replace(LINUX, libc_version="2.17")
MUSL = replace(LINUX, libc="musl", libc_version="1.2.4")
WINDOWS = Platform(system="windows", machine="x86_64")
WINDOWS_ARM = Platform(system="windows", machine="arm64")
MAC = Platform(system="macos", machine="arm64")
INTEL_MAC = Platform(system="macos", machine="x86_64")


def nvidia(name: str, capability: str | None, driver: str | None = "580.95.05") -> Accelerator:
    return Accelerator(
        vendor="nvidia",
        name=name,
        compute_capability=ComputeCapability.parse(capability) if capability else None,
        driver_version=driver,
        source="NVML",
    )


def amd(name: str, gfx: str) -> Accelerator:
    return Accelerator(vendor="amd", name=name, gfx=gfx, source="KFD")


def python(version: str, *, free_threaded: bool = False, pypy: bool = False) -> Interpreter:
    return Interpreter(
        executable=Path("python"),
        version=version,
        implementation="pypy" if pypy else "cpython",
        free_threaded=free_threaded,
    )


PYTHON = python("3.12.1")
APPLE = Accelerator(vendor="apple", name="Apple silicon GPU")
PASCAL = nvidia("GTX 1080 Ti", "6.1")
VOLTA = nvidia("Tesla V100", "7.0")
TURING = nvidia("Tesla T4", "7.5")
ADA = nvidia("RTX 4090", "8.9")
BLACKWELL = nvidia("RTX 5090", "12.0")
RADEON = amd("Radeon RX 7900 XTX", "gfx1100")
INTEGRATED = amd("AMD GPU gfx1036", "gfx1036")


def driver(accelerator: Accelerator, version: str) -> Accelerator:
    return replace(accelerator, driver_version=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    name: str
    here: tuple[Accelerator, ...] = ()
    platform: Platform = LINUX
    python: Interpreter = PYTHON
    torch: str = "torch"
    asked: str = "auto"
    backend: str | None
    version: str | None
    reason: str
    warnings: tuple[str, ...] = ()
    exclusion: str | None = None
    unsupported: tuple[str, ...] = ()

    def select(self) -> Selection:
        return select(
            Host(platform=self.platform, accelerators=self.here),
            Request(backend=parse_backend(self.asked, CATALOG), requirements=(self.torch,)),
            interpreter=self.python,
        )


MACHINES = (
    Machine(
        name="nothing",
        backend="cpu",
        version="2.14.1",
        reason="no accelerator was found",
    ),
    Machine(
        name="Pascal with the last driver for it",
        here=(PASCAL,),
        backend="cu126",
        version="2.14.1",
        reason="the newest build with code for compute capability 6.1",
    ),
    Machine(
        name="Maxwell",
        here=(nvidia("GTX 980", "5.2", "535.183.01"),),
        backend="cu126",
        version="2.14.1",
        reason="the newest build with code for compute capability 5.2",
    ),
    Machine(
        name="Volta",
        here=(VOLTA,),
        backend="cu126",
        version="2.14.1",
        reason="the newest build with code for compute capability 7.0",
    ),
    Machine(
        name="Volta, cu128 asked for",
        here=(VOLTA,),
        asked="cu128",
        backend="cu128",
        version="2.10.0",
        reason="asked for",
        exclusion="torch<2.11",
    ),
    Machine(
        name="Turing with a driver of CUDA 12",
        here=(driver(TURING, "550.54.15"),),
        backend="cu126",
        version="2.14.1",
        reason=(
            "the newest build with code for compute capability 7.5 that driver 550.54.15 can run"
        ),
    ),
    Machine(
        name="Turing with a driver of CUDA 11",
        here=(driver(TURING, "470.256.02"),),
        backend="cu118",
        version="2.7.1",
        reason=(
            "the newest build with code for compute capability 7.5 that driver 470.256.02 can run"
        ),
    ),
    Machine(
        name="Turing with a driver of CUDA 10",
        here=(driver(TURING, "440.100"),),
        backend="cpu",
        version="2.14.1",
        reason="no build that can be installed here runs on Tesla T4",
        warnings=(
            (
                "Tesla T4 stays unused: its driver 440.100 is too old;"
                " with driver 450.80.02 or newer, cu118 runs on it"
            ),
        ),
        unsupported=("Tesla T4",),
    ),
    Machine(
        name="Ada",
        here=(ADA,),
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 8.9",
    ),
    Machine(
        name="Ada with Python 3.10",
        here=(ADA,),
        python=python("3.10.13"),
        backend="cu132",
        version="2.14.1",
        reason="the newest build with code for compute capability 8.9",
    ),
    Machine(
        name="Ada with free-threaded Python 3.13",
        here=(ADA,),
        python=python("3.13.0", free_threaded=True),
        backend="cu132",
        version="2.12.0",
        reason="the newest build with code for compute capability 8.9",
    ),
    Machine(
        name="Ada, torch pinned",
        here=(ADA,),
        torch="torch==2.9.*",
        backend="cu130",
        version="2.9.1",
        reason="the newest torch==2.9.* build with code for compute capability 8.9",
    ),
    Machine(
        name="Ada, build pinned",
        here=(ADA,),
        torch="torch==2.9.1+cu128",
        backend="cu128",
        version="2.9.1",
        reason="the newest torch==2.9.1+cu128 build with code for compute capability 8.9",
    ),
    Machine(
        name="Ada on glibc 2.17",
        here=(ADA,),
        platform=OLD_LINUX,
        backend="cu124",
        version="2.6.0",
        reason="the newest build with code for compute capability 8.9",
    ),
    Machine(
        name="Ada with an unknown driver",
        here=(replace(ADA, driver_version=None),),
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 8.9",
        warnings=("the driver version of RTX 4090 is unknown: cu132 needs 580 or newer",),
    ),
    Machine(
        name="Blackwell",
        here=(BLACKWELL,),
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 12.0",
    ),
    Machine(
        name="Blackwell with its first driver",
        here=(driver(BLACKWELL, "570.124.06"),),
        backend="cu129",
        version="2.13.0",
        reason=(
            "the newest build with code for compute capability 12.0 that driver 570.124.06 can run"
        ),
    ),
    Machine(
        name="Blackwell with a driver from before it",
        here=(driver(BLACKWELL, "565.57.01"),),
        backend="cpu",
        version="2.14.1",
        reason="no build that can be installed here runs on RTX 5090",
        warnings=(
            (
                "RTX 5090 stays unused: its driver 565.57.01 is too old;"
                " with driver 570.26 or newer, cu129 runs on it"
            ),
        ),
        unsupported=("RTX 5090",),
    ),
    Machine(
        name="Blackwell, torch from before it",
        here=(BLACKWELL,),
        torch="torch==2.6.0",
        backend=None,
        version=None,
        reason="no build of torch==2.6.0 fits this host",
        warnings=(
            (
                "no build of torch==2.6.0 runs on RTX 5090:"
                " no code for compute capability 12.0: up to sm_90"
            ),
            "torch 2.15.0 as cu132 would fit",
            "cpu has torch 2.6.0, which computes without a GPU",
        ),
    ),
    Machine(
        name="Blackwell on glibc 2.17",
        here=(BLACKWELL,),
        platform=OLD_LINUX,
        backend="cpu",
        version="2.6.0",
        reason="no build that can be installed here runs on RTX 5090",
        warnings=(
            (
                "RTX 5090 stays unused: cu132 would run on it,"
                " but needs glibc 2.28 or newer; here 2.17"
            ),
        ),
        unsupported=("RTX 5090",),
    ),
    Machine(
        name="Blackwell, cu126 asked for",
        here=(BLACKWELL,),
        asked="cu126",
        backend="cu126",
        version="2.14.1",
        reason="asked for",
        warnings=(
            (
                "cu126 was asked for and does not fit here:"
                " no code for compute capability 12.0: up to sm_90"
            ),
            "torch 2.15.0 as cu132 would fit",
        ),
    ),
    Machine(
        name="Kepler K80",
        here=(nvidia("Tesla K80", "3.7", "470.256.02"),),
        backend="cu118",
        version="2.6.0",
        reason="the newest build with code for compute capability 3.7",
        exclusion="torch<2.7",
    ),
    Machine(
        name="Kepler GTX 680",
        here=(nvidia("GTX 680", "3.0", "470.256.02"),),
        backend="cpu",
        version="2.14.1",
        reason="no build that can be installed here runs on GTX 680",
        warnings=(
            (
                "GTX 680 stays unused: no PyTorch build for Linux x86_64 has code for"
                " compute capability 3.0"
            ),
        ),
        unsupported=("GTX 680",),
    ),
    Machine(
        name="Volta beside Blackwell: one build has both",
        here=(VOLTA, BLACKWELL),
        backend="cu129",
        version="2.10.0",
        reason="the newest build with code for compute capability 7.0 and 12.0",
        exclusion="torch<2.11",
    ),
    Machine(
        name="Pascal beside Blackwell: no build has both",
        here=(PASCAL, BLACKWELL),
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 12.0",
        warnings=(
            (
                "GTX 1080 Ti (compute capability 6.1) is left out:"
                " no build that runs on RTX 5090 also runs on it"
            ),
        ),
        unsupported=("GTX 1080 Ti",),
    ),
    Machine(
        name="Pascal, torch from after it",
        here=(PASCAL,),
        torch="torch>=2.15",
        backend=None,
        version=None,
        reason="no build of torch>=2.15 fits this host",
        warnings=(
            (
                "no build of torch>=2.15 runs on GTX 1080 Ti:"
                " no code for compute capability 6.1: sm_75 and newer"
            ),
            "torch 2.14.1 as cu126 would fit",
        ),
    ),
    Machine(
        name="Turing, torch that needs a newer driver",
        here=(driver(TURING, "550.54.15"),),
        torch="torch==2.15.*",
        backend=None,
        version=None,
        reason="no build of torch==2.15.* fits this host",
        warnings=(
            "no build of torch==2.15.* runs on Tesla T4: needs driver ≥ 580; here 550.54.15",
            "torch 2.14.1 as cu126 would fit",
            "driver 580 or newer would run torch 2.15.0 as cu132",
        ),
    ),
    Machine(
        name="Windows, Ampere with a driver of CUDA 12",
        here=(nvidia("RTX 3080", "8.6", "560.94"),),
        platform=WINDOWS,
        backend="cu126",
        version="2.14.1",
        reason=("the newest build with code for compute capability 8.6 that driver 560.94 can run"),
    ),
    Machine(
        name="Windows, Blackwell with a driver of CUDA 12",
        here=(driver(BLACKWELL, "576.02"),),
        platform=WINDOWS,
        backend="cu128",
        version="2.11.0",
        reason="the newest build with code for compute capability 12.0 that driver 576.02 can run",
    ),
    Machine(
        name="Windows without a GPU, torch that only PyPI has",
        platform=WINDOWS,
        torch="torch==2.15.*",
        backend=None,
        version=None,
        reason="no build of torch==2.15.* fits this host",
        warnings=(
            (
                "no build of torch==2.15.* can be installed here:"
                " no wheel of torch==2.15.* on this index for this Python: torch 2.4.0 to 2.14.1"
            ),
            "torch 2.14.1 as cpu would fit",
            "PyPI's own wheel of torch 2.15.0 is a cpu build for this system",
        ),
    ),
    Machine(
        name="Windows, Radeon",
        here=(RADEON,),
        platform=WINDOWS,
        backend="cpu",
        version="2.14.1",
        reason="no build that can be installed here runs on Radeon RX 7900 XTX",
        warnings=(
            "Radeon RX 7900 XTX stays unused: PyTorch has no build for AMD on Windows x86_64",
        ),
        unsupported=("Radeon RX 7900 XTX",),
    ),
    Machine(
        name="Windows on ARM",
        platform=WINDOWS_ARM,
        backend="cpu",
        version="2.13.0",
        reason="no accelerator was found",
    ),
    Machine(
        name="Grace Hopper",
        here=(nvidia("NVIDIA GH200 480GB", "9.0"),),
        platform=ARM,
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 9.0",
    ),
    Machine(
        name="DGX Spark",
        here=(nvidia("NVIDIA GB10", "12.1"),),
        platform=ARM,
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 12.1",
    ),
    Machine(
        name="Jetson Thor, cu128 asked for",
        here=(nvidia("Thor", "11.0"),),
        platform=ARM,
        asked="cu128",
        backend="cu128",
        version="2.11.0",
        reason="asked for",
        warnings=(
            (
                "cu128 was asked for and does not fit here:"
                " no code for compute capability 11.0: sm_80, sm_90, sm_100, sm_120"
            ),
            "torch 2.15.0 as cu132 would fit",
        ),
    ),
    Machine(
        name="Jetson Orin: only CUDA 13.2 counts its exclusion off",
        here=(nvidia("Orin", "8.7"),),
        platform=ARM,
        torch="torch<2.15",
        backend="cu132",
        version="2.14.1",
        reason="the newest torch<2.15 build with code for compute capability 8.7",
    ),
    Machine(
        name="Radeon beside the integrated GPU",
        here=(RADEON, INTEGRATED),
        backend="rocm7.2",
        version="2.14.1",
        reason="the newest build with code for gfx1100",
        warnings=(
            (
                "AMD GPU gfx1036 is left out:"
                " no build that runs on Radeon RX 7900 XTX also runs on it"
            ),
        ),
        unsupported=("AMD GPU gfx1036",),
    ),
    Machine(
        name="integrated Radeon alone",
        here=(INTEGRATED,),
        backend="cpu",
        version="2.14.1",
        reason="no build that can be installed here runs on AMD GPU gfx1036",
        warnings=(
            (
                "AMD GPU gfx1036 stays unused: no PyTorch build for Linux x86_64 has code for"
                " gfx1036; people run it with `HSA_OVERRIDE_GFX_VERSION=10.3.0` and a ROCm build,"
                " which AMD does not support: nothing here sets it"
            ),
        ),
        unsupported=("AMD GPU gfx1036",),
    ),
    Machine(
        name="Strix Halo, torch pinned to before it",
        here=(amd("Radeon 8060S", "gfx1151"),),
        torch="torch==2.10.0",
        backend=None,
        version=None,
        reason="no build of torch==2.10.0 fits this host",
        warnings=(
            ("no build of torch==2.10.0 runs on Radeon 8060S: no code for gfx1151"),
            "torch 2.14.1 as rocm7.2 would fit",
            "cpu has torch 2.10.0, which computes without a GPU",
        ),
    ),
    Machine(
        name="NVIDIA beside an integrated Radeon",
        here=(ADA, INTEGRATED),
        backend="cu132",
        version="2.15.0",
        reason="the newest build with code for compute capability 8.9",
        warnings=(
            (
                "AMD GPU gfx1036 is left out:"
                " one build computes on one vendor's devices, here on RTX 4090"
            ),
        ),
        unsupported=("AMD GPU gfx1036",),
    ),
    Machine(
        name="NVIDIA without code beside a Radeon",
        here=(nvidia("GTX 680", "3.0", "470.256.02"), RADEON),
        backend="rocm7.2",
        version="2.14.1",
        reason="the newest build with code for gfx1100",
        warnings=(
            (
                "GTX 680 (compute capability 3.0) is left out:"
                " one build computes on one vendor's devices, here on Radeon RX 7900 XTX"
            ),
        ),
        unsupported=("GTX 680",),
    ),
    Machine(
        name="backend that uv does not know",
        here=(RADEON,),
        asked="rocm7.14",
        backend=None,
        version=None,
        reason="rocm7.14 has no build to install here",
        warnings=(
            "rocm7.14 was asked for: uv 0.13.9 does not know this backend",
            "torch 2.14.1 as rocm7.2 would fit",
        ),
    ),
    Machine(
        name="Ada, cu126 asked for with a torch that it never had",
        here=(ADA,),
        torch="torch==2.15.*",
        asked="cu126",
        backend=None,
        version=None,
        reason="cu126 has no build to install here",
        warnings=(
            (
                "cu126 was asked for:"
                " no wheel of torch==2.15.* on this index for this Python: torch 2.6.0 to 2.14.1"
            ),
            "torch 2.14.1 as cu126 would fit",
            "torch 2.15.0 as cu132 would fit",
        ),
    ),
    Machine(
        name="build node without a GPU, cu126 asked for",
        asked="cu126",
        backend="cu126",
        version="2.14.1",
        reason="asked for",
        warnings=(
            "cu126 was asked for and does not fit here: no NVIDIA GPU here",
            "torch 2.14.1 as cpu would fit",
        ),
    ),
    Machine(
        name="cpu asked for beside a GPU",
        here=(ADA,),
        asked="cpu",
        backend="cpu",
        version="2.14.1",
        reason="asked for",
    ),
    Machine(
        name="Apple silicon",
        here=(APPLE,),
        platform=MAC,
        backend="cpu",
        version="2.14.1",
        reason="the ordinary wheel computes on Apple silicon through MPS",
    ),
    Machine(
        name="Intel Mac",
        platform=INTEL_MAC,
        backend=None,
        version=None,
        reason="no build of torch fits this host",
        warnings=(
            "no build of torch can be installed here: no wheel for macOS x86_64",
            "torch 2.2.2 was the last with wheels for Intel Macs",
        ),
    ),
    Machine(
        name="Alpine",
        platform=MUSL,
        backend=None,
        version=None,
        reason="no build of torch fits this host",
        warnings=(
            (
                "no build of torch can be installed here:"
                " no wheel for musl: PyTorch's Linux wheels need glibc"
            ),
        ),
    ),
    Machine(
        name="Python of tomorrow",
        here=(ADA,),
        python=python("3.16.0"),
        backend=None,
        version=None,
        reason="no build of torch fits this host",
        warnings=(
            "no build of torch runs on RTX 4090: no wheel for Python 3.16: Python 3.10 to 3.15",
            "Python 3.8 to 3.15 have wheels",
        ),
    ),
    Machine(
        name="PyPy",
        python=python("3.11.1", pypy=True),
        backend=None,
        version=None,
        reason="no build of torch fits this host",
        warnings=(
            "no build of torch can be installed here: no wheel for PyPy 3.11: CPython 3.8 to 3.15",
            "CPython 3.8 to 3.15 have wheels",
        ),
    ),
)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_machine(machine: Machine) -> None:
    selection = machine.select()

    chosen = str(selection.backend) if selection.backend else None
    assert (chosen, selection.torch) == (machine.backend, machine.version)
    assert selection.reason == machine.reason
    assert selection.warnings == machine.warnings
    assert selection.exclusion == machine.exclusion
    assert selection.unsupported_accelerators == machine.unsupported


def reasons(selection: Selection) -> dict[str, str]:
    return {str(item.backend): item.reason for item in selection.alternatives}


def test_each_other_backend_has_its_reason() -> None:
    selection = select(
        Host(platform=LINUX, accelerators=(driver(TURING, "550.54.15"),)),
        Request(requirements=("torch>=2.6",)),
        interpreter=python("3.13.0"),
    )

    assert reasons(selection) == {
        "cu126": (
            "the newest torch>=2.6 build with code for compute capability 7.5"
            " that driver 550.54.15 can run"
        ),
        "cu129": "runs here with torch 2.13.0",
        "cu128": "runs here with torch 2.11.0",
        "cu118": "runs here with torch 2.7.1",
        "cu124": "runs here with torch 2.6.0",
        "cpu": "runs on any machine, without a GPU",
        "cu132": "needs driver ≥ 580; here 550.54.15",
        "cu130": "needs driver ≥ 580; here 550.54.15",
        "cu121": "no wheel for Python 3.13: Python 3.8 to 3.12",
        "rocm7.14": "uv 0.13.9 does not know this backend",
        "rocm7.2": "no AMD GPU here",
        "rocm7.1": "no AMD GPU here",
        "rocm7.0": "no AMD GPU here",
        "rocm6.4": "no AMD GPU here",
        "rocm6.3": "no AMD GPU here",
        "rocm6.2.4": "no AMD GPU here",
        "rocm6.2": "no wheel for Python 3.13: Python 3.9 to 3.12",
        "rocm6.1": "no AMD GPU here",
        "rocm6.0": "no wheel for Python 3.13: Python 3.8 to 3.11",
        "xpu": "no supported Intel GPU here",
    }
    assert [item.fits for item in selection.alternatives] == [True] * 6 + [False] * 14


def test_older_torch_of_a_backend_that_dropped_the_gpu_is_said() -> None:
    selection = select(Host(platform=LINUX, accelerators=(VOLTA,)), Request(), interpreter=PYTHON)

    assert reasons(selection)["cu128"] == (
        "runs here with torch 2.10.0, the newest with code for compute capability 7.0"
    )


def test_selection_reads_well_in_a_terminal() -> None:
    machine = next(item for item in MACHINES if item.name.startswith("Pascal beside"))

    text = str(machine.select())

    assert text.splitlines()[:8] == [
        "cu132 with torch 2.15.0: the newest build with code for compute capability 12.0",
        "",
        "also fits",
        "  cu130      2.14.1   runs here with torch 2.14.1",
        "  cu129      2.13.0   runs here with torch 2.13.0",
        "  cu128      2.11.0   runs here with torch 2.11.0",
        "  cpu        2.14.1   runs on any machine, without a GPU",
        "",
    ]
    assert text.splitlines()[-4:-1] == ["warning", f"  {machine.warnings[0]}", ""]
    assert text.splitlines()[-1].startswith("builds as of 20")
    assert "\n  rocm7.14   -        uv 0.13.9 does not know this backend\n" in text
    assert str(Request(requirements=("torch", "torchvision"))) == (
        "torch torchvision for the best backend"
    )


# --- The contract -------------------------------------------------------------------------------


def test_json_has_the_fields_of_the_contract() -> None:
    host = Host(platform=LINUX, accelerators=(PASCAL, RADEON, APPLE))
    data = json.loads(json.dumps(selection_to_json(select(host, Request(), interpreter=PYTHON))))

    assert list(data) == [
        "backend",
        "torch",
        "accelerators",
        "unsupported_accelerators",
        "warnings",
        "reason",
        "alternatives",
        "catalog",
    ]
    assert data["backend"] == "cu126"
    assert data["torch"] == "2.14.1"
    assert data["accelerators"] == [
        {
            "vendor": "nvidia",
            "name": "GTX 1080 Ti",
            "compute_capability": "6.1",
            "memory_bytes": None,
            "driver_version": "580.95.05",
            "source": "NVML",
        },
        {
            "vendor": "amd",
            "name": "Radeon RX 7900 XTX",
            "gfx": "gfx1100",
            "memory_bytes": None,
            "driver_version": None,
            "source": "KFD",
        },
        {
            "vendor": "apple",
            "name": "Apple silicon GPU",
            "memory_bytes": None,
            "driver_version": None,
            "source": "",
        },
    ]
    assert list(data["alternatives"][0]) == ["backend", "torch", "fits", "reason"]
    assert list(data["catalog"]) == ["as_of", "source"]


def test_json_of_nothing_fits_holds_nulls() -> None:
    machine = next(item for item in MACHINES if item.name == "Alpine")

    data = selection_to_json(machine.select())

    assert (data["backend"], data["torch"]) == (None, None)
    assert data["warnings"]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_selection_survives_json(machine: Machine) -> None:
    selection = machine.select()

    assert from_json(Selection, json.loads(json.dumps(to_json(selection)))) == selection


# --- What was asked -----------------------------------------------------------------------------


def test_parse_backend() -> None:
    assert parse_backend("auto", CATALOG) is None
    assert parse_backend(" CU126 ", CATALOG) == Backend("cuda", (12, 6))
    assert parse_backend("rocm7.14", CATALOG) == Backend("rocm", (7, 14))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("cu127", "cu128"),
        ("cu131", "cu132"),
        ("cu12.6", "cu126"),
        ("rocm72", "rocm7.2"),
        ("gpu", "auto"),
        ("mps", "cpu"),
        ("rocm7", "rocm7.0"),
        ("aut", "auto"),
    ],
)
def test_unknown_backend_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_backend(text, CATALOG)

    assert caught.value.message == f"`{text}` is not a backend"
    assert caught.value.hint.startswith(f"did you mean `{nearest}`? the backends are auto, cu132, ")
    assert caught.value.exit_status == 2


def test_word_that_is_near_nothing_gets_the_list_alone() -> None:
    with pytest.raises(RequestError) as caught:
        parse_backend("zzzzzzzz", CATALOG)

    assert caught.value.hint.startswith("the backends are auto, ")


def test_option_among_the_requirements_is_told_as_one() -> None:
    request = Request(requirements=("torch", "-r file"))

    with pytest.raises(RequestError, match="`-r file` is an option, not a requirement"):
        select(Host(platform=LINUX), request, interpreter=PYTHON)


@pytest.mark.parametrize("text", ["torch=2.9", "torch 2.9", "==2.9", "", "torch["])
def test_malformed_requirement_is_quoted(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        select(Host(platform=LINUX), Request(requirements=("torch", text)), interpreter=PYTHON)

    assert caught.value.message == f"`{text}` is not a requirement"
    assert (
        caught.value.hint
        == "write it as a package with an optional version, such as `torch==2.9.*`"
    )


@pytest.mark.parametrize(
    ("requirements", "torch"),
    [
        (("torchvision==0.19.0",), "2.4.0"),
        (("torchvision==0.19.*",), "2.4.1"),
        (("torchvision<0.30",), "2.15.0"),
        (("torch<2.15", "torchvision==0.29.0"), "2.14.0"),
        (("torch<2.15", "torchvision==0.29.1"), "2.14.1"),
        (("torchaudio==2.9.0",), "2.9.0"),
        (("torchaudio==2.7.*", "torchvision"), "2.7.1"),
        (("torchaudio==2.11.0",), "2.14.1"),
        (("torch<2.11", "torchaudio>=2.11"), None),
        (("torch==2.9.1", "torchaudio==2.9.0"), None),
        (("torch>=2.8", "torchvision<0.25"), "2.9.1"),
        (("Torch<2.10", "torchaudio"), "2.9.1"),
        (("torch>=2.7", "torch!=2.15.0", "torch<2.14.1"), "2.14.0"),
        (('torch<2.9; python_version < "3.12"',), "2.15.0"),
        (('torch<2.9; python_version >= "3.12"',), "2.8.0"),
        (("torch~=2.11",), "2.15.0"),
    ],
)
def test_torch_and_what_is_released_with_it_drive_the_version(
    requirements: tuple[str, ...], torch: str | None
) -> None:
    selection = select(
        Host(platform=LINUX, accelerators=(ADA,)),
        Request(requirements=requirements),
        interpreter=PYTHON,
    )

    assert selection.torch == torch


@pytest.mark.parametrize(
    "text", ['torch<2.9; sys_platform ~= "linux"', 'torch; os_name === "a" or os_name ~= "b"']
)
def test_marker_that_nobody_can_judge_is_an_error(text: str) -> None:
    with pytest.raises(RequestError, match="compares what can't be compared") as caught:
        select(Host(platform=LINUX), Request(requirements=(text,)), interpreter=PYTHON)

    assert caught.value.hint


@pytest.mark.parametrize(
    ("url", "backend", "torch"),
    [
        ("file:///wheels/torch-2.9.1%2Bcu126-cp312-cp312-linux_x86_64.whl", "cu126", "2.9.1"),
        ("https://example.org/torch-2.9.1-cp312-cp312-linux_x86_64.whl#sha256=0", "cu130", "2.9.1"),
        ("git+https://example.org/pytorch.git@main", "cu132", "2.15.0"),
        ("file:///wheels/torch-rubbish.whl", "cu132", "2.15.0"),
    ],
)
def test_wheel_that_is_named_by_its_address_tells_its_version(
    url: str, backend: str, torch: str
) -> None:
    host = Host(platform=LINUX, accelerators=(ADA,))

    selection = select(host, Request(requirements=(f"torch @ {url}",)), interpreter=PYTHON)

    assert (str(selection.backend), selection.torch) == (backend, torch)


def test_what_is_no_address_is_refused() -> None:
    request = Request(requirements=("torch @ https://[/torch-2.9.1-cp312-cp312-linux_x86_64.whl",))

    with pytest.raises(RequestError, match="is no address"):
        select(Host(platform=LINUX), request, interpreter=PYTHON)


def test_version_of_a_cpu_build_asks_for_the_cpu() -> None:
    host = Host(platform=LINUX, accelerators=(ADA,))

    selection = select(host, Request(requirements=("torch==2.9.1+cpu",)), interpreter=PYTHON)

    assert (str(selection.backend), selection.torch, selection.reason) == (
        "cpu",
        "2.9.1",
        "asked for",
    )


def test_marker_is_judged_for_the_python_that_is_installed_into() -> None:
    request = Request(requirements=('torch<2.9; implementation_name == "pypy"',))

    assert select(Host(platform=LINUX), request, interpreter=PYTHON).torch == "2.14.1"


def test_torch_from_before_the_catalog_is_left_to_an_index_that_is_named() -> None:
    host = Host(platform=LINUX, accelerators=(ADA,))
    way = "older than torch 2.4.0 is not known here: name a backend, and its index decides"

    for text in ("torch==2.1.*", "torch<2.4", "torch~=2.3.0"):
        older = select(host, Request(requirements=(text,)), interpreter=PYTHON)
        assert (older.backend, older.warnings[-1]) == (None, way)
    newer = select(host, Request(requirements=("torch==2.99",)), interpreter=PYTHON)
    assert way not in newer.warnings


def test_what_kept_detection_from_a_gpu_is_why_it_is_the_cpu() -> None:
    message = "the NVIDIA driver did not answer within 2 s"
    finding = Finding(message=message, source="NVML", hint="restart the machine")
    host = Host(platform=LINUX, findings=(finding,))

    silent = select(host, Request(), interpreter=PYTHON)
    spoken = select(replace(host, accelerators=(ADA,)), Request(), interpreter=PYTHON)

    assert (str(silent.backend), silent.warnings) == ("cpu", (finding.with_hint,))
    assert spoken.warnings == ()
    environment = Environment(
        interpreter=PYTHON,
        kind="venv",
        prefix=Path("venv"),
        site_packages=Path("venv"),
        has_pip=False,
        writable=True,
        externally_managed=None,
        free_bytes=0,
    )
    status = Status(host=host, environment=environment, selection=silent, installed_backend=None)
    assert str(status).count(message) == 1
    assert status_html(status).count(message) == 1


def test_nothing_fits_is_told_of_the_gpu_that_something_would_fit() -> None:
    host = Host(
        platform=LINUX,
        accelerators=(nvidia("GT 710", "3.5", "470.256.02"), amd("RX 7900", "gfx1100")),
    )

    selection = select(host, Request(requirements=("torch==2.99",)), interpreter=PYTHON)

    assert selection.backend is None
    assert "runs on RX 7900: " in selection.warnings[0]


def test_cpu_build_beside_a_gpu_that_another_would_use_is_said() -> None:
    host = Host(platform=LINUX, accelerators=(ADA, nvidia("GT 710", "3.5")))
    both = select(host, Request(), interpreter=PYTHON)
    idle = select(Host(platform=LINUX), Request(), interpreter=PYTHON)

    assert both.unsupported_accelerators == ("GT 710",)
    assert verdict(both, Backend("cpu")) == "does not use the accelerator"
    assert verdict(idle, Backend("cpu")) is None


def test_backend_without_a_package_that_was_asked_for_is_none() -> None:
    host = Host(platform=LINUX, accelerators=(ADA,))
    request = Request(requirements=("torch", "TorchAudio", "torchvision"))

    selection = select(host, request, interpreter=PYTHON)

    assert (str(selection.backend), selection.torch) == ("cu130", "2.14.1")
    assert reasons(selection)["cu132"] == "no wheel of torchaudio on this index"
    pinned = select(host, Request(requirements=("torch==2.15.0", "torchaudio")), interpreter=PYTHON)
    assert pinned.backend is None
    assert pinned.warnings[1:3] == (
        "torch 2.14.1 as cu130 would fit",
        "without torchaudio, torch 2.15.0 as cu132 would fit",
    )
    there = select(host, Request(), interpreter=PYTHON, installed=("numpy", "torchaudio"))
    assert (there.backend, there.torch) == (selection.backend, selection.torch)


def test_gpu_that_only_a_backend_without_the_package_has_code_for_is_not_counted_on() -> None:
    orin, card = nvidia("Orin", "8.7"), nvidia("RTX 6000 Ada", "8.9")
    request = Request(requirements=("torch", "torchaudio"))

    alone = select(Host(platform=ARM, accelerators=(orin,)), request, interpreter=PYTHON)
    both = select(Host(platform=ARM, accelerators=(orin, card)), request, interpreter=PYTHON)

    assert alone.backend is None
    assert alone.warnings[1] == "without torchaudio, torch 2.15.0 as cu132 would fit"
    assert (str(both.backend), both.unsupported_accelerators) == ("cu130", ("Orin",))


def test_uv_torch_backend_speaks_where_the_request_does_not() -> None:
    host = Host(platform=LINUX, accelerators=(ADA,))
    environ = {"UV_TORCH_BACKEND": "cu128"}

    by_variable = select(host, Request(), interpreter=PYTHON, environ=environ)
    by_request = select(host, Request(backend=Backend("cpu")), interpreter=PYTHON, environ=environ)

    assert (str(by_variable.backend), by_variable.reason) == (
        "cu128",
        "`UV_TORCH_BACKEND` asks for it",
    )
    assert str(by_request.backend) == "cpu"


@pytest.mark.parametrize("word", ["auto", "", " "])
def test_uv_torch_backend_auto_leaves_the_choice(word: str) -> None:
    host = Host(platform=LINUX, accelerators=(ADA,))

    selection = select(host, Request(), interpreter=PYTHON, environ={"UV_TORCH_BACKEND": word})

    assert str(selection.backend) == "cu132"


def test_uv_torch_backend_of_no_backend_is_an_error_that_names_it() -> None:
    with pytest.raises(RequestError, match="`cuda` is not a backend, and `UV_TORCH_BACKEND`"):
        select(
            Host(platform=LINUX),
            Request(),
            interpreter=PYTHON,
            environ={"UV_TORCH_BACKEND": "cuda"},
        )


def test_gpu_of_which_nothing_is_known_gets_the_newest_build_and_warnings() -> None:
    host = Host(platform=LINUX, accelerators=(nvidia("Quantum Card 1", None, None),))

    selection = select(host, Request(), interpreter=PYTHON)

    assert selection.reason == "the newest build for NVIDIA GPUs"
    assert len(selection.warnings) == 2


def test_driver_by_variable_and_no_gpu_chooses_by_driver_and_warns() -> None:
    gpu = nvidia("NVIDIA GPU by UV_CUDA_DRIVER_VERSION", None, "550.54")

    selection = select(Host(platform=LINUX, accelerators=(gpu,)), Request(), interpreter=PYTHON)

    assert (str(selection.backend), selection.torch) == ("cu126", "2.14.1")
    assert selection.reason == "the newest build that driver 550.54 can run"
    assert "whether cu126 has code for it was not checked" in selection.warnings[0]


# --- What holds for every machine ---------------------------------------------------------------

CAPABILITIES = [
    "3.0", "3.5", "3.7", "5.0", "5.2", "5.3", "6.0", "6.1", "6.2", "7.0", "7.2", "7.5", "8.0",
    "8.6", "8.7", "8.9", "9.0", "10.0", "10.1", "10.3", "11.0", "12.0", "12.1", "13.0",
]  # fmt: skip
DRIVERS = [
    "390.157", "440.100", "450.80.02", "470.256.02", "525.60.13", "528.33", "535.183.01",
    "550.54.15", "570.26", "570.124.06", "575.57.08", "580.65.06", "580.95.05", "595.45.04",
]  # fmt: skip
DEMANDS = ["torch", "torch<2.8", "torch==2.9.*", "torch==2.9.0", "torch>=2.12", "torch==2.15.*"]

capabilities = st.sampled_from(CAPABILITIES)
drivers = st.sampled_from(DRIVERS)
platforms = st.sampled_from([LINUX, ARM, OLD_LINUX, MUSL, WINDOWS, WINDOWS_ARM, MAC, INTEL_MAC])
pythons = st.builds(
    python,
    st.sampled_from(["3.9.18", "3.10.13", "3.11.7", "3.12.1", "3.13.0", "3.15.0", "3.16.0"]),
    free_threaded=st.booleans(),
)
requests = st.builds(
    lambda demand, backend: Request(requirements=(demand,), backend=backend),
    st.sampled_from(DEMANDS),
    st.sampled_from([None, None, None, *CATALOG.backends()]),
)
gpus = st.one_of(
    st.builds(nvidia, st.just("NVIDIA"), st.none() | capabilities, st.none() | drivers),
    st.builds(
        lambda gfx: amd(f"AMD {gfx}", gfx),
        st.sampled_from(["gfx803", "gfx90a", "gfx1036", "gfx1100", "gfx1151", "gfx1201"]),
    ),
    st.just(APPLE),
    st.just(Accelerator(vendor="intel", name="Arc A770")),
)
hosts = st.builds(
    lambda platform, accelerators: Host(platform=platform, accelerators=tuple(accelerators)),
    platforms,
    st.lists(gpus, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(hosts, requests, pythons)
def test_every_machine_gets_a_whole_answer(
    host: Host, request: Request, interpreter: Interpreter
) -> None:
    selection = select(host, request, interpreter=interpreter)

    backends = [item.backend for item in selection.alternatives]
    assert sorted(map(str, backends)) == sorted(map(str, CATALOG.backends()))
    assert all(item.reason for item in selection.alternatives)
    assert selection.reason
    fits = [item.fits for item in selection.alternatives]
    assert fits == sorted(fits, reverse=True)
    assert (selection.backend is None) == (selection.torch is None)
    if selection.backend is None:
        assert selection.warnings
    elif request.backend is None:
        assert selection.backend in [item.backend for item in selection.alternatives if item.fits]
    else:
        assert selection.backend == request.backend
    assert str(selection)
    json.dumps(selection_to_json(selection))


@settings(max_examples=60, deadline=None)
@given(hosts, requests, pythons)
def test_what_is_chosen_can_be_installed_and_has_code_or_warns(
    host: Host, request: Request, interpreter: Interpreter
) -> None:
    selection = select(host, request, interpreter=interpreter)
    if selection.backend is None or selection.torch is None:
        return

    builds = CATALOG.builds_for(selection.backend, host.platform.wheel_platform)
    chosen = next(
        item
        for item in builds
        if str(item.torch) == selection.torch and interpreter.tag in item.python_tags
    )
    assert CATALOG.is_known_to_uv(selection.backend)
    demand = request.requirements[0].removeprefix("torch")
    assert SpecifierSet(demand).contains(chosen.torch)
    asked_for_cpu = request.backend is not None and selection.backend.kind == "cpu"
    if not selection.warnings and not asked_for_cpu:
        for accelerator in host.accelerators:
            if selection.backend.kind == "cuda":
                assert accelerator.vendor == "nvidia"
                assert accelerator.compute_capability is not None
                assert CATALOG.runs_on(chosen, accelerator.compute_capability)
            elif selection.backend.kind == "rocm":
                assert accelerator.gfx in CATALOG.gfx_code(chosen).names
            elif selection.backend.kind == "cpu":
                assert accelerator.vendor == "apple"


@settings(max_examples=60, deadline=None)
@given(
    capabilities,
    st.lists(drivers, min_size=2, max_size=2, unique=True),
    st.sampled_from([LINUX, ARM, WINDOWS, OLD_LINUX]),
    st.sampled_from(DEMANDS),
    pythons,
)
def test_newer_driver_never_gives_an_older_build(
    capability: str, pair: list[str], platform: Platform, demand: str, interpreter: Interpreter
) -> None:
    def chosen(version: str) -> tuple[int, Version, tuple[int, ...]]:
        gpu = nvidia("GPU", capability, version)
        selection = select(
            Host(platform=platform, accelerators=(gpu,)),
            Request(requirements=(demand,)),
            interpreter=interpreter,
        )
        if selection.backend is None or selection.torch is None:
            return 0, Version("0"), ()
        on_gpu = int(selection.backend.kind == "cuda")
        return on_gpu, Version(selection.torch if on_gpu else "0"), selection.backend.version

    older, newer = sorted(pair, key=lambda text: driver_number(text) or ())
    assert chosen(newer) >= chosen(older)


@settings(max_examples=60, deadline=None)
@given(capabilities, drivers, st.sampled_from([LINUX, ARM, WINDOWS]), pythons)
def test_one_gpu_gets_the_best_of_all_builds(
    capability: str, version: str, platform: Platform, interpreter: Interpreter
) -> None:
    """Compare with the rule written down a second time, over every build there is."""
    gpu = nvidia("GPU", capability, version)
    number = driver_number(version)
    assert number is not None
    running = [
        (build.torch, build.backend.version)
        for (backend, wheel_platform), builds in CATALOG.builds.items()
        for build in builds
        if wheel_platform == platform.wheel_platform
        and backend.kind == "cuda"
        and interpreter.tag in build.python_tags
        and CATALOG.runs_on(build, ComputeCapability.parse(capability))
        and number >= (driver_number(CATALOG.driver_floor(backend, platform.system) or "") or ())
        and number
        >= (
            driver_number(
                CATALOG.gpu_driver_floor(ComputeCapability.parse(capability), platform.system) or ""
            )
            or ()
        )
    ]

    selection = select(
        Host(platform=platform, accelerators=(gpu,)), Request(), interpreter=interpreter
    )

    if running:
        assert selection.backend is not None
        assert (Version(selection.torch or "0"), selection.backend.version) == max(running)
    else:
        assert selection.backend in {None, Backend("cpu")}
        assert selection.warnings


@settings(max_examples=60, deadline=None)
@given(hosts, requests, pythons)
def test_exclusion_leaves_the_choice_and_drops_what_does_not_run(
    host: Host, request: Request, interpreter: Interpreter
) -> None:
    selection = select(host, request, interpreter=interpreter)
    if selection.exclusion is None:
        return

    assert selection.torch is not None
    specifier = SpecifierSet(selection.exclusion.removeprefix("torch"))
    assert specifier.contains(selection.torch)
    assert any(
        not specifier.contains(build.torch)
        for build in CATALOG.builds[
            selection.backend or Backend("cpu"), host.platform.wheel_platform
        ]
    )
