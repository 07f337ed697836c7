"""Detection: real texts through the parsers, made-up roots and programs through `detect` itself."""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchenv_magic.accelerators import (
    Accelerator,
    ComputeCapability,
    Host,
    Platform,
    amd,
    detect,
    nvidia,
    platform,
    probing,
    records,
)
from torchenv_magic.accelerators.amd import amd_report, gfx_name, parse_properties, read_kfd
from torchenv_magic.accelerators.apple import apple_accelerators
from torchenv_magic.accelerators.detection import apply_overrides, visibility_findings
from torchenv_magic.accelerators.nvidia import (
    driver_version_in,
    kernel_report,
    known_capability,
    nvidia_smi_report,
    read_kernel,
)
from torchenv_magic.accelerators.platform import glibc_version, musl_version, platform_of
from torchenv_magic.accelerators.probing import Completed, clean
from torchenv_magic.serialization import from_json, to_json

MACHINES = Path(__file__).parent / "machines"

posix_only = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are shell scripts")


def machine_text(name: str) -> str:
    return (MACHINES / f"{name}.txt").read_text(encoding="utf-8")


def printed(name: str, returncode: int = 0) -> Completed:
    return Completed(returncode=returncode, output=machine_text(name))


# --- nvidia-smi: the parser ---------------------------------------------------------------------


def test_one_line_of_nvidia_smi_is_one_gpu() -> None:
    report = nvidia_smi_report(printed("nvidia-smi-pascal"))

    assert report.findings == ()
    assert report.accelerators == (
        Accelerator(
            vendor="nvidia",
            name="NVIDIA GeForce GTX 1080 Ti",
            compute_capability=ComputeCapability(6, 1),
            memory_bytes=11264 << 20,
            driver_version="550.54.15",
            source="nvidia-smi",
        ),
    )


def test_several_gpus_keep_their_order_and_generations() -> None:
    report = nvidia_smi_report(printed("nvidia-smi-several"))

    assert [str(gpu.compute_capability) for gpu in report.accelerators] == ["7.0", "7.0", "8.9"]


def test_gpu_without_memory_of_its_own_has_unknown_memory() -> None:
    [gpu] = nvidia_smi_report(printed("nvidia-smi-gb10")).accelerators

    assert gpu.memory_bytes is None
    assert str(gpu) == "NVIDIA GB10, compute capability 12.1, driver 580.95.05"


def test_old_nvidia_smi_is_helped_by_the_table_and_says_so() -> None:
    fields = ("name", "driver_version", "memory.total")
    report = nvidia_smi_report(printed("nvidia-smi-old-fields"), fields)

    assert [str(gpu.compute_capability) for gpu in report.accelerators] == ["3.7", "6.1"]
    assert [finding.message for finding in report.findings] == [
        "this `nvidia-smi` is too old to tell a compute capability: Tesla K80 is known to have 3.7",
        (
            "this `nvidia-smi` is too old to tell a compute capability:"
            " GeForce GTX 1060 6GB is known to have 6.1"
        ),
    ]


def test_old_nvidia_smi_and_an_unknown_name_leave_the_capability_open() -> None:
    completed = Completed(returncode=0, output="Quantum Card 1, 470.256.02, 100\n")
    report = nvidia_smi_report(completed, ("name", "driver_version", "memory.total"))

    assert report.accelerators[0].compute_capability is None
    assert "too old to tell the compute capability of Quantum Card 1" in report.findings[0].message


@pytest.mark.parametrize(
    ("name", "returncode", "message"),
    [
        ("nvidia-smi-no-driver", 9, "NVIDIA's libraries are here, its driver is not loaded"),
        (
            "nvidia-smi-mismatch",
            18,
            "the NVIDIA driver in memory and its libraries are of different versions",
        ),
        ("nvidia-smi-no-permission", 4, "this user may not ask the NVIDIA driver"),
        ("nvidia-smi-no-devices", 6, "the NVIDIA driver answers and reports no GPU"),
        ("nvidia-smi-blocked", 17, "the operating system blocks access to the GPU"),
        (
            "nvidia-smi-unknown-error",
            255,
            "nvidia-smi failed: Failed to initialize NVML: Unknown Error",
        ),
    ],
)
def test_each_failure_of_nvidia_smi_has_its_own_words_and_a_hint(
    name: str, returncode: int, message: str
) -> None:
    report = nvidia_smi_report(printed(name, returncode))

    assert report.accelerators == ()
    [finding] = report.findings
    assert finding.message == message
    assert finding.hint


@given(st.text(), st.integers(0, 255))
def test_no_output_of_nvidia_smi_is_an_error_or_unprintable(text: str, returncode: int) -> None:
    report = nvidia_smi_report(Completed(returncode=returncode, output=text))

    assert report.accelerators or report.findings
    assert all(finding.message.isprintable() for finding in report.findings)
    assert all(gpu.name.isprintable() for gpu in report.accelerators)


KNOWN = [line.split(" | ") for line in machine_text("nvidia-names").splitlines()]


@pytest.mark.parametrize(("name", "capability"), KNOWN)
def test_name_that_a_driver_prints_is_known_by_its_capability(name: str, capability: str) -> None:
    assert str(known_capability(name)) == capability


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Matrox P4000X",
        "NVIDIA DGX Display",
        # Sold with a chip of one generation and with one of another.
        "GeForce GTX 860M",
        "GeForce GTX 870M",
        # A number that three generations have, without the word that tells which.
        "NVIDIA RTX 4000",
        # Nobody knows yet what these will be.
        "NVIDIA GeForce RTX 6090",
        "NVIDIA RTX PRO 6000 Rubin",
    ],
)
def test_name_that_tells_no_capability_stays_unknown(name: str) -> None:
    assert known_capability(name) is None


@given(st.text())
def test_known_capability_takes_any_name(name: str) -> None:
    capability = known_capability(name)

    assert capability is None or 3 <= capability.major <= 12


# --- The kernel's files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (machine_text("proc-driver-nvidia-version"), "550.54.15"),
        (machine_text("proc-driver-nvidia-version-open"), "570.124.06"),
        ("550.163.01\n", "550.163.01"),
        ("", None),
        ("NVRM version: NVIDIA UNIX", None),
        ("\x00\x00\x00", None),
        ("9" * 10_000, None),
    ],
)
def test_driver_version_in(text: str, version: str | None) -> None:
    assert driver_version_in(text) == version


def write(root: Path, path: str, text: str = "") -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def test_driver_in_a_container_without_gpus_is_no_gpu(tmp_path: Path) -> None:
    write(tmp_path, "proc/driver/nvidia/version", machine_text("proc-driver-nvidia-version"))
    write(tmp_path, "sys/module/nvidia/version", "550.54.15\n")

    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    [finding] = host.findings
    assert finding.message == (
        "the NVIDIA driver 550.54.15 is on the host, and no GPU is here: there is no device node"
    )
    assert finding.source == "/sys/module/nvidia/version"
    assert "--gpus all" in finding.hint


def test_driver_with_its_device_nodes_and_without_libraries_is_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "proc/driver/nvidia/version", machine_text("proc-driver-nvidia-version-open"))
    write(tmp_path, "dev/nvidia0")
    write(tmp_path, "dev/nvidiactl")

    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    [finding] = host.findings
    assert "its device nodes are here" in finding.message
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in finding.hint


@posix_only
def test_card_on_nouveau_is_named(tmp_path: Path) -> None:
    slot = "sys/bus/pci/devices/0000:01:00.0"
    write(tmp_path, f"{slot}/vendor", "0x10de\n")
    write(tmp_path, f"{slot}/class", "0x030000\n")
    driver = tmp_path / "sys/bus/pci/drivers/nouveau"
    driver.mkdir(parents=True)
    (tmp_path / slot / "driver").symlink_to(driver)

    host = detect(root=tmp_path, environ={})

    [finding] = host.findings
    assert finding.message == (
        "an NVIDIA card is here, bound to `nouveau`: NVIDIA's own driver is not loaded"
    )


@posix_only
def test_sound_of_an_nvidia_card_and_other_vendors_say_nothing(tmp_path: Path) -> None:
    for slot, vendor, kind in (("0", "0x10de", "0x040300"), ("1", "0x8086", "0x030000")):
        write(tmp_path, f"sys/bus/pci/devices/{slot}/vendor", vendor)
        write(tmp_path, f"sys/bus/pci/devices/{slot}/class", kind)

    assert detect(root=tmp_path, environ={}).findings == ()


def test_empty_root_has_nothing_to_say(tmp_path: Path) -> None:
    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    assert host.findings == ()
    assert not kernel_report(read_kernel(tmp_path)).findings


@posix_only
def test_hostile_files_cost_a_line_and_not_the_answer(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    os.mkfifo(tmp_path / "proc/driver/nvidia/version")  # opening it blocks for ever
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties").mkdir(parents=True)

    started = time.monotonic()
    host = detect(root=tmp_path, environ={}, timeout_seconds=0.2)

    assert time.monotonic() - started < 5
    assert host.accelerators == ()
    assert [finding.message.partition(":")[0] for finding in host.findings] == [
        "an AMD GPU could not be read",
        "the NVIDIA driver's kernel files did not answer within 0.2 s",
    ]


# --- AMD ----------------------------------------------------------------------------------------


def kfd_node(root: Path, number: int, properties: str, memory: str | None = None) -> None:
    folder = f"sys/class/kfd/kfd/topology/nodes/{number}"
    write(root, f"{folder}/properties", properties)
    if memory is not None:
        write(root, f"{folder}/mem_banks/0/properties", memory)


def amd_machine(root: Path) -> None:
    kfd_node(root, 0, machine_text("kfd-cpu"))
    kfd_node(root, 1, machine_text("kfd-gfx1036"), machine_text("kfd-memory-512m"))
    kfd_node(root, 2, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(root, "sys/class/drm/renderD128/device/product_name", "Radeon RX 7900 XTX\n")


def test_kfd_topology_names_discrete_gpu_before_integrated(tmp_path: Path) -> None:
    amd_machine(tmp_path)
    write(tmp_path, "dev/kfd")

    host = detect(root=tmp_path, environ={})

    assert [(gpu.name, gpu.gfx, gpu.memory_bytes) for gpu in host.accelerators] == [
        ("Radeon RX 7900 XTX", "gfx1100", 25753026560),
        ("AMD GPU gfx1036", "gfx1036", 536870912),
    ]
    assert host.findings == ()


def test_amd_gpu_of_the_host_is_not_one_of_the_container(tmp_path: Path) -> None:
    amd_machine(tmp_path)

    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    [finding] = host.findings
    assert finding.message == (
        "Radeon RX 7900 XTX and AMD GPU gfx1036 is on the host, and `/dev/kfd` is not here:"
        " no AMD GPU to compute on"
    )


def test_amd_gpu_without_permission_is_there_and_says_so(tmp_path: Path) -> None:
    amd_machine(tmp_path)
    write(tmp_path, "dev/kfd")
    reading = dataclasses.replace(read_kfd(tmp_path), permitted=False)

    report = amd_report(reading)

    assert len(report.accelerators) == 2
    assert "`render`" in report.findings[0].hint


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, None),
        (90010, "gfx90a"),
        (90012, "gfx90c"),
        (90402, "gfx942"),
        (100300, "gfx1030"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
    ],
)
def test_gfx_name(number: int, name: str | None) -> None:
    assert gfx_name(number) == name


@given(st.text())
def test_parse_properties_reads_anything(text: str) -> None:
    assert all(value >= 0 for value in parse_properties(text).values())


# --- nvidia-smi: the program --------------------------------------------------------------------


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that puts a shell script in nvidia-smi's place and returns the environ."""

    def install(script: str) -> dict[str, str]:
        program = write(tmp_path, "bin/nvidia-smi", f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    return install


@posix_only
def test_nvidia_smi_answers_where_there_is_no_nvml(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    environ = nvidia_smi(f"cat '{MACHINES / 'nvidia-smi-several.txt'}'")

    host = detect(root=tmp_path / "root", environ=environ)

    assert len(host.accelerators) == 3
    assert {gpu.source for gpu in host.accelerators} == {"nvidia-smi"}


@posix_only
def test_nvidia_smi_that_refuses_the_capability_is_asked_without_it(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    environ = nvidia_smi(
        'case "$1" in *compute_cap*)'
        f" cat '{MACHINES / 'nvidia-smi-refuses-compute-cap.txt'}'; exit 2;; esac\n"
        f"cat '{MACHINES / 'nvidia-smi-old-fields.txt'}'"
    )

    host = detect(root=tmp_path / "root", environ=environ)

    assert [str(gpu.compute_capability) for gpu in host.accelerators] == ["3.7", "6.1"]
    assert len(host.findings) == 2


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/PID/stat")
def test_nvidia_smi_that_hangs_is_killed_with_its_children(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    pids = tmp_path / "pids"
    environ = nvidia_smi(f"sleep 600 & echo $$ $! > '{pids}'; wait")

    started = time.monotonic()
    host = detect(root=tmp_path / "root", environ=environ, timeout_seconds=1.5)

    assert time.monotonic() - started < 5
    [finding] = host.findings
    assert finding.message == "`nvidia-smi` did not answer in time, or would not stop talking"
    deadline = time.monotonic() + 5
    children = [int(pid) for pid in pids.read_text().split()]
    while any(map(is_running, children)):
        assert time.monotonic() < deadline, "it outlived its bound"
        time.sleep(0.01)


@posix_only
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo hello; echo world",
            "`nvidia-smi` printed `hello`, which names no GPU",
        ),
        (
            "printf 'NVIDIA H100, \\033[31m, 1, 9.0\\n'",
            "`nvidia-smi` printed `NVIDIA H100, [31m, 1, 9.0`, which names no GPU",
        ),
        ("true", "`nvidia-smi` printed nothing, which names no GPU"),
        (
            f"cat '{MACHINES / 'nvidia-smi-no-driver.txt'}'; exit 9",
            "NVIDIA's libraries are here, its driver is not loaded",
        ),
        ("yes", "`nvidia-smi` did not answer in time, or would not stop talking"),
    ],
)
def test_rubbish_from_nvidia_smi_is_one_line(
    tmp_path: Path,
    nvidia_smi: Callable[[str], dict[str, str]],
    script: str,
    message: str,
) -> None:
    host = detect(root=tmp_path / "root", environ=nvidia_smi(script))

    assert host.accelerators == ()
    assert [finding.message for finding in host.findings] == [message]


@posix_only
def test_nvidia_smi_that_cannot_be_started_is_one_line(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    environ = nvidia_smi("true")
    (tmp_path / "bin/nvidia-smi").write_bytes(b"\x7fELF rubbish")

    [finding] = detect(root=tmp_path / "root", environ=environ).findings

    assert finding.message.startswith("the NVIDIA driver could not be read: ")


# --- NVML ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root that has the stand-in for NVIDIA's library where Debian has the real one."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the stand-in for NVML is compiled from C, for Linux")
    root = tmp_path_factory.mktemp("nvml")
    library = root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    subprocess.run(
        [
            compiler,
            "-shared",
            "-fPIC",
            "-Wl,-soname,libnvidia-ml.so.1",
            "-o",
            str(library),
            str(MACHINES / "fake_nvml.c"),
        ],
        check=True,
    )
    return root


_DETECT = """
import json, sys, pathlib
from torchenv_magic.accelerators import detect
from torchenv_magic.serialization import to_json
host = detect(root=pathlib.Path(sys.argv[1]), timeout_seconds=float(sys.argv[2]))
print(json.dumps(to_json(host)))
"""


def detect_in_child(
    root: Path, environ: Mapping[str, str], *, timeout_seconds: float = 10.0
) -> Host:
    """Return what a fresh process detects: a library stays loaded in the one that loaded it."""
    completed = subprocess.run(
        [sys.executable, "-c", _DETECT, str(root), str(timeout_seconds)],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], **environ},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return from_json(Host, json.loads(completed.stdout))


def test_nvml_names_every_gpu_and_the_one_that_is_lost(nvml_library: Path) -> None:
    host = detect_in_child(
        nvml_library,
        {
            "FAKE_NVML_DRIVER": "580.95.05",
            "FAKE_NVML_CUDA": "13000",
            "FAKE_NVML_DEVICES": "NVIDIA H100|9|0|85520809984;LOST|0|0|0;NVIDIA GB10|12|1|0",
            "CUDA_VISIBLE_DEVICES": "-1",
        },
    )

    assert [to_json(gpu) for gpu in host.accelerators] == [
        {
            "vendor": "nvidia",
            "name": "NVIDIA H100",
            "compute_capability": "9.0",
            "gfx": None,
            "memory_bytes": 85520809984,
            "driver_version": "580.95.05",
            "cuda_version": "13.0",
            "source": "NVML",
        },
        {
            "vendor": "nvidia",
            "name": "NVIDIA GB10",
            "compute_capability": "12.1",
            "gfx": None,
            "memory_bytes": None,
            "driver_version": "580.95.05",
            "cuda_version": "13.0",
            "source": "NVML",
        },
    ]
    assert [finding.message for finding in host.findings] == [
        "GPU 1 could not be read: GPU is lost",
        "`CUDA_VISIBLE_DEVICES=-1` hides every GPU from PyTorch",
    ]


def test_nvml_is_found_by_the_loader_too(nvml_library: Path) -> None:
    host = detect_in_child(
        Path("/"),
        {
            "LD_LIBRARY_PATH": str(nvml_library / "usr/lib/x86_64-linux-gnu"),
            "FAKE_NVML_DRIVER": "470.256.02",
            "FAKE_NVML_DEVICES": "Tesla K80|3|7|11997020160",
        },
    )

    assert [str(gpu) for gpu in host.accelerators] == [
        "Tesla K80, 11 GiB, compute capability 3.7, driver 470.256.02"
    ]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("9", "NVIDIA's libraries are here, its driver is not loaded"),
        ("18", "the NVIDIA driver in memory and its libraries are of different versions"),
        ("4", "this user may not ask the NVIDIA driver"),
        ("999", "NVML failed: Unknown Error"),
    ],
)
def test_nvml_that_fails_is_one_line_with_a_hint(
    nvml_library: Path, code: str, message: str
) -> None:
    host = detect_in_child(nvml_library, {"FAKE_NVML_INIT": code})

    assert host.accelerators == ()
    [finding] = host.findings
    assert finding.message == message
    assert finding.source == "NVML"
    assert finding.hint


def test_nvml_that_hangs_is_one_line_and_does_not_keep_the_process(nvml_library: Path) -> None:
    host = detect_in_child(nvml_library, {"FAKE_NVML_INIT": "hang"}, timeout_seconds=1)

    assert host.accelerators == ()
    [finding] = host.findings
    assert finding.message == "the NVIDIA driver did not answer within 1 s"


# --- Variables ----------------------------------------------------------------------------------

LINUX = Platform(system="linux", machine="x86_64", libc="glibc", libc_version="2.36")
NVIDIA = Accelerator(vendor="nvidia", name="Tesla T4", driver_version="550.54.15", source="NVML")
AMD = Accelerator(vendor="amd", name="AMD GPU gfx1100", gfx="gfx1100")


@pytest.mark.parametrize(
    ("environ", "hidden"),
    [
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "0"}, False),
        ({"CUDA_VISIBLE_DEVICES": "0,-1"}, False),
        ({"CUDA_VISIBLE_DEVICES": ""}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "-1,0"}, True),
        ({"HIP_VISIBLE_DEVICES": "-1"}, False),
    ],
)
def test_variables_that_hide_every_gpu(environ: dict[str, str], *, hidden: bool) -> None:
    assert bool(visibility_findings((NVIDIA,), environ)) is hidden


def test_uv_driver_version_overrides_the_driver_that_was_found() -> None:
    host = Host(platform=LINUX, accelerators=(NVIDIA, AMD))

    overridden = apply_overrides(host, {"UV_CUDA_DRIVER_VERSION": "580.65"})

    assert [(gpu.name, gpu.driver_version) for gpu in overridden.accelerators] == [
        ("Tesla T4", "580.65"),
        ("AMD GPU gfx1100", None),
    ]
    assert [str(finding) for finding in overridden.findings] == [
        "`UV_CUDA_DRIVER_VERSION=580.65` overrides what was found"
    ]


def test_uv_driver_version_stands_for_a_gpu_where_there_is_none() -> None:
    overridden = apply_overrides(Host(platform=LINUX), {"UV_CUDA_DRIVER_VERSION": "525.60.13"})

    [gpu] = overridden.accelerators
    assert (gpu.vendor, gpu.driver_version, gpu.compute_capability) == ("nvidia", "525.60.13", None)


def test_uv_amd_architecture_comes_before_what_was_found() -> None:
    host = Host(platform=LINUX, accelerators=(NVIDIA, AMD))

    overridden = apply_overrides(host, {"UV_AMD_GPU_ARCHITECTURE": "gfx942"})

    assert [gpu.gfx or gpu.name for gpu in overridden.accelerators] == ["gfx942", "Tesla T4"]


@pytest.mark.parametrize("name", ["UV_CUDA_DRIVER_VERSION", "UV_AMD_GPU_ARCHITECTURE"])
def test_malformed_override_is_ignored_and_said(name: str) -> None:
    host = apply_overrides(Host(platform=LINUX, accelerators=(NVIDIA,)), {name: "rubbish\x1b"})

    assert host.accelerators == (NVIDIA,)
    assert "is ignored" in host.findings[0].message


# --- The platform -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sys_platform", "machine", "wheel_platform"),
    [
        ("linux", "x86_64", "linux_x86_64"),
        ("linux", "aarch64", "linux_aarch64"),
        ("linux", "arm64", "linux_aarch64"),
        ("win32", "AMD64", "win_amd64"),
        ("win32", "arm64", "win_arm64"),
        ("darwin", "arm64", "macos_arm64"),
        ("darwin", "x86_64", "macos_x86_64"),
        ("freebsd14", "amd64", "other_x86_64"),
    ],
)
def test_platform_of(sys_platform: str, machine: str, wheel_platform: str) -> None:
    found = platform_of(sys_platform=sys_platform, machine=machine)

    assert found.wheel_platform == wheel_platform


def test_32_bit_python_on_a_64_bit_machine_takes_other_wheels() -> None:
    found = platform_of(sys_platform="linux", machine="x86_64", is_64_bit=False, glibc="2.36")

    assert found.wheel_platform == "linux_i686"


def test_c_library_texts() -> None:
    assert glibc_version("glibc 2.36") == "2.36"
    assert glibc_version("glibc 2.36.9000") == "2.36"
    assert glibc_version(None) is None
    assert musl_version("musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\n") == "1.2.4"
    assert musl_version("") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_this_platform_is_the_one_that_packaging_sees() -> None:
    from packaging.tags import platform_tags

    here = detect().platform
    tag = f"{here.libc_version}_{here.machine}".replace(".", "_")

    assert here.libc == "glibc"
    assert f"manylinux_{tag}" in list(platform_tags())


def test_apple_silicon_is_a_gpu_and_an_intel_mac_has_none() -> None:
    [gpu] = apple_accelerators(Platform(system="macos", machine="arm64"))

    assert gpu.vendor == "apple"
    assert apple_accelerators(Platform(system="macos", machine="x86_64")) == ()
    assert apple_accelerators(Platform(system="linux", machine="aarch64")) == ()


@pytest.mark.parametrize(
    "module", [amd, nvidia, platform, probing, records], ids=lambda module: module.__name__
)
def test_examples_in_docstrings(module: ModuleType) -> None:
    results = doctest.testmod(module)

    assert results.attempted
    assert results.failed == 0


# --- All of it ----------------------------------------------------------------------------------


def test_detecting_imports_no_heavy_module() -> None:
    script = (
        "import sys; from torchenv_magic.accelerators import detect;"
        "before = set(sys.modules); detect();"
        "print(sorted({'torch', 'IPython', 'packaging'} & set(sys.modules)),"
        " 'subprocess' in before)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )

    assert completed.stdout == "[] False\n"


@given(st.text())
def test_clean_text_is_one_short_printable_line(text: str) -> None:
    cleaned = clean(text)

    assert cleaned.isprintable()
    assert len(cleaned) <= 120
