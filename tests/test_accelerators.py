"""Detection: real texts through the parsers, made-up roots and programs through `detect` itself."""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nvml import LIBRARY, compile_nvml, detect_in_child
from torchenv_magic.accelerators import (
    Accelerator,
    ComputeCapability,
    Host,
    Platform,
    amd,
    capabilities,
    detect,
    nvidia,
    platform,
    probing,
    records,
)
from torchenv_magic.accelerators.amd import (
    amd_report,
    enumerator_report,
    gfx_name,
    marketing_name,
    names_in_amd_smi,
    parse_agents,
    parse_properties,
    read_kfd,
)
from torchenv_magic.accelerators.apple import apple_accelerators, apple_findings
from torchenv_magic.accelerators.detection import apply_overrides, visibility_findings
from torchenv_magic.accelerators.nvidia import (
    cuda_version_in,
    cuda_version_of,
    driver_version_in,
    find_libraries,
    kernel_report,
    known_capability,
    nvidia_smi_report,
    parse_board,
    parse_information,
    read_kernel,
)
from torchenv_magic.accelerators.platform import (
    glibc_version,
    is_wsl_kernel,
    macos_version,
    musl_version,
    platform_of,
    read_musl,
)
from torchenv_magic.accelerators.probing import Completed, clean, find_program
from torchenv_magic.serialization import to_json

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


@pytest.mark.parametrize(
    ("words", "returncode"),
    [
        ("WARNING: infoROM is corrupted at gpu 0000:65:00.0", 14),
        ("Unable to determine the device handle for GPU0000:1A:00.0: GPU is lost.", 15),
    ],
)
def test_gpus_that_a_failing_nvidia_smi_prints_are_there(words: str, returncode: int) -> None:
    output = f"NVIDIA A100-SXM4-40GB, 550.54.15, 40960, 8.0\n{words}\n"

    report = nvidia_smi_report(Completed(returncode=returncode, output=output))

    assert [gpu.name for gpu in report.accelerators] == ["NVIDIA A100-SXM4-40GB"]
    [finding] = report.findings
    assert words in finding.message


@pytest.mark.parametrize(
    ("name", "driver_version"),
    [("nvidia-smi-jetson", "540.4.0"), ("nvidia-smi-jetson-r36.3", None)],
)
def test_capability_that_nvidia_smi_does_not_tell_is_the_one_of_the_name(
    name: str, driver_version: str | None
) -> None:
    report = nvidia_smi_report(printed(name))

    [gpu] = report.accelerators
    assert (gpu.name, str(gpu.compute_capability)) == ("Orin (nvgpu)", "8.7")
    assert (gpu.memory_bytes, gpu.driver_version) == (None, driver_version)
    assert [finding.message for finding in report.findings] == [
        "`nvidia-smi` does not tell a compute capability: Orin (nvgpu) is known to have 8.7"
    ]


@pytest.mark.parametrize("value", ["[N/A]", "[Not Supported]", "[Unknown Error]", "N/A"])
def test_capability_not_told_of_an_unknown_name_stays_open(value: str) -> None:
    line = f"Quantum Card 1, 580.65.06, 8192, {value}\n"
    report = nvidia_smi_report(Completed(returncode=0, output=line))

    [gpu] = report.accelerators
    assert (gpu.compute_capability, gpu.driver_version) == (None, "580.65.06")
    [finding] = report.findings
    assert finding.message == (
        "`nvidia-smi` does not tell the compute capability of Quantum Card 1"
    )
    assert finding.hint


def test_gpu_of_which_nvidia_smi_tells_nothing_is_none() -> None:
    line = "[Unknown Error], [Unknown Error], [Unknown Error], [Unknown Error]\n"
    report = nvidia_smi_report(Completed(returncode=0, output=line))

    assert report.accelerators == ()
    assert "which names no GPU" in report.findings[0].message


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (machine_text("nvidia-smi-version"), "12.4"),
        (machine_text("nvidia-smi-version-610"), "13.3"),
        (machine_text("nvidia-smi-pascal"), None),
        ("CUDA Version : N/A\n", None),
    ],
)
def test_cuda_version_in_what_nvidia_smi_tells_of_itself(text: str, version: str | None) -> None:
    assert cuda_version_in(text) == version


@given(st.text())
def test_cuda_version_in_reads_anything(text: str) -> None:
    assert cuda_version_in(text) is None or "." in text


@pytest.mark.parametrize(
    ("number", "version"), [(12040, "12.4"), (13000, "13.0"), (11080, "11.8"), (0, None)]
)
def test_cuda_version_of_its_number(number: int, version: str | None) -> None:
    assert cuda_version_of(number) == version


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


def pci_card(root: Path, address: str, vendor: str, driver: str = "") -> None:
    """Put a display adapter on the bus, bound to `driver` as the kernel links it."""
    slot = f"sys/bus/pci/devices/{address}"
    write(root, f"{slot}/vendor", f"{vendor}\n")
    write(root, f"{slot}/class", "0x030000\n")
    write(root, f"{slot}/device", "0x1b06\n")
    if driver:
        (root / slot / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")


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


def container_with_device_nodes(root: Path) -> None:
    write(root, "proc/driver/nvidia/version", machine_text("proc-driver-nvidia-version-open"))
    write(root, "dev/nvidia0")
    write(root, "dev/nvidiactl")


def kernel_names_gpu(root: Path, address: str, text: str) -> None:
    write(root, f"proc/driver/nvidia/gpus/{address}/information", text)


def test_device_nodes_without_libcuda_are_no_gpu(tmp_path: Path) -> None:
    container_with_device_nodes(tmp_path)
    kernel_names_gpu(tmp_path, "01", machine_text("proc-driver-nvidia-gpu"))

    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    [finding] = host.findings
    assert finding.message == (
        "the NVIDIA driver 570.124.06 and its device nodes are here, and `libcuda.so.1` is not:"
        " no NVIDIA GPU to compute on"
    )
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in finding.hint


def test_device_nodes_with_libcuda_and_without_nvml_are_known_by_their_names(
    tmp_path: Path,
) -> None:
    container_with_device_nodes(tmp_path)
    write(tmp_path, "usr/lib/x86_64-linux-gnu/libcuda.so.1")
    kernel_names_gpu(tmp_path, "01", machine_text("proc-driver-nvidia-gpu"))
    # Of the host, whose `/dev/nvidia1` was not passed on.
    kernel_names_gpu(tmp_path, "02", machine_text("proc-driver-nvidia-gpu-old"))

    host = detect(root=tmp_path, environ={})

    [gpu] = host.accelerators
    assert gpu == Accelerator(
        vendor="nvidia",
        name="NVIDIA GeForce RTX 3090",
        compute_capability=ComputeCapability(8, 6),
        driver_version="570.124.06",
        source="/proc/driver/nvidia/gpus",
    )
    [finding] = host.findings
    assert finding.message == (
        "NVML is missing: the compute capability is known by name only"
        " (NVIDIA GeForce RTX 3090: 8.6)"
    )
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in finding.hint


def test_device_nodes_that_the_kernel_has_no_name_for_are_no_gpu(tmp_path: Path) -> None:
    container_with_device_nodes(tmp_path)
    write(tmp_path, "usr/lib64/libcuda.so.1")

    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    [finding] = host.findings
    assert "neither NVML nor `nvidia-smi` names a GPU" in finding.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (machine_text("proc-driver-nvidia-gpu"), ("NVIDIA GeForce RTX 3090", 0)),
        (machine_text("proc-driver-nvidia-gpu-old"), ("Tesla K80", 1)),
        (machine_text("proc-driver-nvidia-gpu").replace("No", "Yes"), ("", None)),
        (machine_text("proc-driver-nvidia-gpu-old").replace("No", "Yes"), ("", None)),
        ("Model: \t\t GeForce GTX 650\n", ("GeForce GTX 650", None)),
        ("Model: \t\t Unknown\nDevice Minor: \t 0\n", ("", 0)),
        ("", ("", None)),
    ],
)
def test_parse_information(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_information(text) == expected


@given(st.text())
def test_parse_information_reads_anything(text: str) -> None:
    model, minor = parse_information(text)

    assert model.isprintable()
    assert minor is None or 0 <= minor < 1000


def test_library_is_found_where_the_loader_looks(tmp_path: Path) -> None:
    name = "libcuda.so.1"
    write(tmp_path, f"opt/driver/{name}")
    write(tmp_path, f"custom/{name}")
    cache = (
        b"glibc-ld.so.cache1.1\0libc.so.6\0/lib/libc.so.6\0libcuda.so.1\0/opt/driver/libcuda.so.1\0"
    )
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.cache").write_bytes(cache)

    found = find_libraries(name, root=tmp_path, environ={"LD_LIBRARY_PATH": "/nowhere:/custom"})

    assert found == (tmp_path / "custom" / name, tmp_path / "opt/driver" / name)


@posix_only
@pytest.mark.parametrize(
    ("driver", "message"),
    [
        ("nouveau", "bound to `nouveau`: NVIDIA's own driver is not loaded"),
        ("vfio-pci", "bound to `vfio-pci`: it is set aside for a virtual machine"),
        ("nvidia", "on the host, bound to its driver, and no GPU is here"),
        ("", "without a driver: NVIDIA's own driver is not loaded"),
    ],
)
def test_card_that_only_the_bus_names_has_its_own_words(
    tmp_path: Path, driver: str, message: str
) -> None:
    pci_card(tmp_path, "0000:01:00.0", "0x10de", driver)

    [finding] = detect(root=tmp_path, environ={}).findings

    assert message in finding.message
    assert finding.hint


@pytest.mark.parametrize(
    ("version", "bound", "message"),
    [
        ("590.48.01", "", "the driver 590.48.01 has given up cards as old as this one"),
        ("580.95.05", "", "the NVIDIA driver 580.95.05 is on the host, and no GPU is here"),
        ("590.48.01", "nvidia", "the NVIDIA driver 590.48.01 is on the host, and no GPU is here"),
    ],
)
def test_driver_that_is_too_new_for_the_card_is_no_container(
    tmp_path: Path, version: str, bound: str, message: str
) -> None:
    write(tmp_path, "sys/module/nvidia/version", f"{version}\n")
    pci_card(tmp_path, "0000:01:00.0", "0x10de", bound)

    [finding] = detect(root=tmp_path, environ={}).findings

    assert message in finding.message
    assert finding.hint


@posix_only
def test_nvidia_smi_without_a_driver_leaves_the_word_to_the_card_on_nouveau(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    pci_card(tmp_path / "root", "0000:01:00.0", "0x10de", "nouveau")
    environ = nvidia_smi(f"cat '{MACHINES / 'nvidia-smi-no-driver.txt'}'; exit 9")

    [finding] = detect(root=tmp_path / "root", environ=environ).findings

    assert "bound to `nouveau`" in finding.message


@posix_only
def test_nvidia_smi_without_its_library_leaves_the_word_to_the_kernel(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    root = tmp_path / "root"
    container_with_device_nodes(root)
    write(root, "usr/lib/wsl/lib/libcuda.so.1")
    kernel_names_gpu(root, "01", machine_text("proc-driver-nvidia-gpu"))
    environ = nvidia_smi(f"cat '{MACHINES / 'nvidia-smi-no-library.txt'}'; exit 12")

    host = detect(root=root, environ=environ)

    assert [gpu.source for gpu in host.accelerators] == ["/proc/driver/nvidia/gpus"]
    assert len(host.findings) == 1


@posix_only
@pytest.mark.parametrize(
    ("name", "returncode", "message"),
    [
        ("nvidia-smi-mismatch", 18, "of different versions"),
        ("nvidia-smi-no-permission", 4, "this user may not ask the NVIDIA driver"),
        ("nvidia-smi-no-library", 12, "`libcuda.so.1` is not"),
    ],
)
def test_driver_that_is_loaded_and_does_not_answer_keeps_its_own_words(
    tmp_path: Path,
    nvidia_smi: Callable[[str], dict[str, str]],
    name: str,
    returncode: int,
    message: str,
) -> None:
    root = tmp_path / "root"
    container_with_device_nodes(root)
    environ = nvidia_smi(f"cat '{MACHINES / name}.txt'; exit {returncode}")

    host = detect(root=root, environ=environ)

    assert host.accelerators == ()
    [finding] = host.findings
    assert message in finding.message
    assert finding.hint


JETSON_ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": (
        "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0"
    ),
}


def test_jetson_that_answers_nothing_is_named_with_the_way_to_its_wheels(tmp_path: Path) -> None:
    for path, text in JETSON_ORIN.items():
        write(tmp_path, path, text)

    [finding] = detect(root=tmp_path, environ={}).findings

    assert finding.message == (
        "NVIDIA Jetson AGX Orin Developer Kit (compute capability 8.7) is here:"
        " NVIDIA makes its own PyTorch wheels for it"
    )
    assert "JetPack" in finding.hint


@posix_only
def test_jetson_whose_gpu_answers_keeps_the_gpu_and_the_word(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    for path, text in JETSON_ORIN.items():
        write(tmp_path / "root", path, text)
    environ = nvidia_smi(f"cat '{MACHINES / 'nvidia-smi-jetson.txt'}'")

    host = detect(root=tmp_path / "root", environ=environ)

    assert [str(gpu) for gpu in host.accelerators] == [
        "Orin (nvgpu), compute capability 8.7, driver 540.4.0"
    ]
    assert any("its own PyTorch wheels" in finding.message for finding in host.findings)


@posix_only
def test_jetson_thor_is_an_ordinary_machine_where_its_gpu_answers(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    root = tmp_path / "root"
    write(root, "proc/device-tree/model", "NVIDIA Jetson AGX Thor Developer Kit\0")
    write(root, "proc/device-tree/compatible", "nvidia,p4071-0000\0nvidia,tegra264\0")

    [silent] = detect(root=root, environ={}).findings
    environ = nvidia_smi("echo 'NVIDIA Thor, 580.00, [N/A], 11.0'")

    assert "its NVIDIA driver does not answer" in silent.message
    assert detect(root=root, environ=environ).findings == ()


@pytest.mark.parametrize(
    ("compatible", "expected"),
    [
        ("raspberrypi,4-model-b\0brcm,bcm2711\0", "no board"),
        ("nvidia,p3668\0nvidia,tegra194\0", "7.2"),
        ("nvidia,tegra999\0", "None"),
    ],
)
def test_boards_by_their_chip(compatible: str, expected: str) -> None:
    board = parse_board(model="A board\0", compatible=compatible)

    assert (str(board.compute_capability) if board else "no board") == expected


@given(st.text(), st.text())
def test_parse_board_reads_anything(model: str, compatible: str) -> None:
    board = parse_board(model=model, compatible=compatible)

    assert board is None or board.model.isprintable()


WSL_KERNEL = "5.15.167.4-microsoft-standard-WSL2\n"


def test_wsl_without_nvidia_libraries_is_one_line_that_tells_both_ways(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/kernel/osrelease", WSL_KERNEL)
    write(tmp_path, "dev/dxg")

    host = detect(root=tmp_path, environ={})

    assert host.platform.wsl
    assert host.accelerators == ()
    [finding] = host.findings
    assert "`/usr/lib/wsl/lib`" in finding.message
    assert "in Windows" in finding.hint
    assert "`xpu`" in finding.hint


@posix_only
def test_wsl_has_nvidia_smi_where_no_path_leads(tmp_path: Path) -> None:
    write(tmp_path, "proc/version", f"Linux version {WSL_KERNEL}")
    write(tmp_path, "dev/dxg")
    program = write(
        tmp_path,
        "usr/lib/wsl/lib/nvidia-smi",
        "#!/bin/sh\necho 'NVIDIA GeForce RTX 3080, 566.36, 10240, 8.6'\n",
    )
    program.chmod(0o755)

    host = detect(root=tmp_path, environ={})

    assert host.platform.driver_system == "windows"
    assert [gpu.driver_version for gpu in host.accelerators] == ["566.36"]
    assert host.findings == ()


def test_container_on_the_kernel_of_wsl_without_its_gpus_is_no_wsl(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/kernel/osrelease", WSL_KERNEL)

    host = detect(root=tmp_path, environ={})

    assert not host.platform.wsl
    assert host.findings == ()


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

    assert time.monotonic() - started < 20
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


def test_processor_with_much_memory_set_aside_still_comes_after_a_card(tmp_path: Path) -> None:
    kfd_node(tmp_path, 1, machine_text("kfd-gfx1151"), machine_text("kfd-memory-64g"))
    kfd_node(
        tmp_path,
        2,
        machine_text("kfd-gfx902-with-its-processor"),
        machine_text("kfd-memory-of-the-processor"),
    )
    kfd_node(tmp_path, 10, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(tmp_path, "dev/kfd")

    host = detect(root=tmp_path, environ={})

    assert [gpu.gfx for gpu in host.accelerators] == ["gfx1100", "gfx1151", "gfx902"]
    assert host.accelerators[2].memory_bytes is None


def test_processors_cores_and_graphics_in_one_node_are_an_integrated_gpu(tmp_path: Path) -> None:
    shared = machine_text("kfd-gfx1100").replace("cpu_cores_count 0", "cpu_cores_count 8")
    kfd_node(tmp_path, 0, shared, machine_text("kfd-memory-64g"))
    kfd_node(tmp_path, 1, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))

    report = amd_report(dataclasses.replace(read_kfd(tmp_path), device_node=True, permitted=True))

    assert [(gpu.memory_bytes or 0) >> 30 for gpu in report.accelerators] == [23, 64]


def test_gpu_without_memory_of_its_own_is_an_integrated_one(tmp_path: Path) -> None:
    kfd_node(tmp_path, 1, machine_text("kfd-gfx1100"), machine_text("kfd-memory-of-the-processor"))
    kfd_node(tmp_path, 2, machine_text("kfd-gfx1151"), machine_text("kfd-memory-64g"))
    write(tmp_path, "dev/kfd")

    host = detect(root=tmp_path, environ={})

    assert [gpu.gfx for gpu in host.accelerators] == ["gfx1151", "gfx1100"]


@posix_only
def test_kfd_files_of_any_kind_are_never_the_end(tmp_path: Path) -> None:
    nodes = "sys/class/kfd/kfd/topology/nodes"
    amd_machine(tmp_path)
    write(tmp_path, "dev/kfd")
    (tmp_path / nodes / "3/properties").mkdir(parents=True)
    (tmp_path / nodes / "4").symlink_to(tmp_path / nodes / "4")
    write(tmp_path, f"{nodes}/5/properties", f"gfx_target_version {'9' * 20}\nvendor_id 4098\n")
    (tmp_path / nodes / "6").mkdir()
    (tmp_path / nodes / "6/properties").write_bytes(b"\xff\x00gfx_target_version 1\x1b[31m\n" * 99)
    kfd_node(tmp_path, 7, machine_text("kfd-gfx1100").replace("minor 128", f"minor {'1' * 20}"))

    host = detect(root=tmp_path, environ={})

    assert [gpu.gfx for gpu in host.accelerators] == ["gfx1100", "gfx1036", "gfx1100"]
    assert all(str(line).isprintable() for line in (*host.accelerators, *host.findings))
    assert [finding.message.partition(":")[0] for finding in host.findings] == [
        "an AMD GPU could not be read",
        "an AMD GPU could not be read",
    ]


@posix_only
def test_amd_card_beside_an_nvidia_gpu_is_no_news(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    pci_card(tmp_path / "root", "0000:03:00.0", "0x1002", "amdgpu")
    environ = nvidia_smi(f"cat '{MACHINES / 'nvidia-smi-pascal.txt'}'")

    assert detect(root=tmp_path / "root", environ=environ).findings == ()


def test_name_of_a_radeon_is_the_one_of_libdrm(tmp_path: Path) -> None:
    kfd_node(tmp_path, 1, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(tmp_path, "sys/class/drm/renderD128/device/revision", "0xc8\n")
    write(tmp_path, "usr/share/libdrm/amdgpu.ids", machine_text("amdgpu-ids"))
    write(tmp_path, "dev/kfd")

    [gpu] = detect(root=tmp_path, environ={}).accelerators

    assert gpu.name == "AMD Radeon RX 7900 XTX"


def test_marketing_name_needs_the_revision_too() -> None:
    ids = machine_text("amdgpu-ids")

    assert marketing_name(ids, device_id=0x744C, revision=0xCC) == "AMD Radeon RX 7900 XT"
    assert marketing_name(ids, device_id=0x744C, revision=0x01) is None


@given(st.text(), st.integers(0, 0xFFFF), st.integers(0, 0xFF))
def test_marketing_name_reads_anything(text: str, device_id: int, revision: int) -> None:
    name = marketing_name(text, device_id=device_id, revision=revision)

    assert name is None or name.isprintable()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="hands a node to nobody but root"
)
def test_nodes_that_may_not_be_read_are_gpus_that_were_not_passed_on(tmp_path: Path) -> None:
    kfd_node(tmp_path, 0, machine_text("kfd-cpu"))
    kfd_node(tmp_path, 1, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(tmp_path, "dev/kfd")
    (tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties").chmod(0)
    temporary = Path(tempfile.gettempdir())
    for folder in [tmp_path, *tmp_path.parents]:
        # pytest makes them for one's own eyes; how many there are depends on who runs it.
        if folder != temporary and folder.is_relative_to(temporary):
            folder.chmod(0o755)

    # As somebody else, because root may read everything.
    script = (
        "import os, pathlib, sys; os.setgid(65534); os.setuid(65534);"
        "from torchenv_magic.accelerators.amd import amd_report, read_kfd;"
        "print(amd_report(read_kfd(pathlib.Path(sys.argv[1]))).findings[0])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", f"import torchenv_magic.accelerators.amd; {script}", str(tmp_path)],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )

    assert completed.stdout == (
        "the AMD GPUs of the host are not passed on to here: no AMD GPU to compute on\n"
    )


@posix_only
@pytest.mark.parametrize(
    ("driver", "message"),
    [
        ("amdgpu", "bound to `amdgpu`, and ROCm does not know it"),
        ("radeon", "bound to `radeon`, and ROCm does not know it"),
        ("vfio-pci", "set aside for a virtual machine"),
        ("", "without a driver: the `amdgpu` driver is not loaded"),
    ],
)
def test_amd_card_that_only_the_bus_names_has_its_own_words(
    tmp_path: Path, driver: str, message: str
) -> None:
    pci_card(tmp_path, "0000:03:00.0", "0x1002", driver)

    host = detect(root=tmp_path, environ={})

    assert host.accelerators == ()
    [finding] = host.findings
    assert message in finding.message
    assert finding.hint


@posix_only
def test_amd_card_that_the_topology_names_needs_no_word(tmp_path: Path) -> None:
    amd_machine(tmp_path)
    write(tmp_path, "dev/kfd")
    pci_card(tmp_path, "0000:03:00.0", "0x1002", "amdgpu")

    assert detect(root=tmp_path, environ={}).findings == ()


def rocm_program(root: Path, name: str, script: str) -> None:
    program = write(root, f"opt/rocm-6.2.0/bin/{name}", f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@posix_only
def test_rocm_agent_enumerator_is_asked_where_the_topology_names_no_gpu(tmp_path: Path) -> None:
    text = MACHINES / "rocm-agent-enumerator-5.txt"
    rocm_program(tmp_path, "rocm_agent_enumerator", f"cat '{text}'")

    host = detect(root=tmp_path, environ={"PATH": os.environ["PATH"]})

    assert [(gpu.gfx, gpu.source) for gpu in host.accelerators] == [
        ("gfx1100", "rocm_agent_enumerator"),
        ("gfx1036", "rocm_agent_enumerator"),
    ]


@posix_only
def test_rocm_programs_are_not_asked_where_the_topology_tells_all(tmp_path: Path) -> None:
    kfd_node(tmp_path, 2, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(tmp_path, "sys/class/drm/renderD128/device/product_name", "Radeon RX 7900 XTX\n")
    write(tmp_path, "dev/kfd")
    for name in ("rocm_agent_enumerator", "amd-smi"):
        rocm_program(tmp_path, name, f"touch '{tmp_path / 'asked'}'")

    detect(root=tmp_path, environ={"PATH": os.environ["PATH"]})

    assert not (tmp_path / "asked").exists()


@posix_only
def test_amd_smi_names_what_has_no_name(tmp_path: Path) -> None:
    kfd_node(tmp_path, 2, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(tmp_path, "dev/kfd")
    rocm_program(tmp_path, "amd-smi", f"cat '{MACHINES / 'amd-smi-static-6.2.json.txt'}'")

    [gpu] = detect(root=tmp_path, environ={"PATH": os.environ["PATH"]}).accelerators

    assert gpu.name == "AMD Radeon RX 7900 XTX"


@posix_only
@pytest.mark.parametrize("script", ["sleep 600", "echo rubbish", "exit 1", "echo '[[[['"])
def test_amd_smi_that_fails_costs_the_name_and_little_time(tmp_path: Path, script: str) -> None:
    kfd_node(tmp_path, 2, machine_text("kfd-gfx1100"), machine_text("kfd-memory-24g"))
    write(tmp_path, "dev/kfd")
    rocm_program(tmp_path, "amd-smi", script)

    started = time.monotonic()
    host = detect(root=tmp_path, environ={"PATH": os.environ["PATH"]}, timeout_seconds=30)

    assert time.monotonic() - started < 25
    assert [gpu.name for gpu in host.accelerators] == ["AMD GPU gfx1100"]
    assert host.findings == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("amd-smi-static-6.2.json", {"gfx1100": "AMD Radeon RX 7900 XTX"}),
        ("amd-smi-static-7.0.json", {"gfx942": "AMD Instinct MI300X"}),
    ],
)
def test_both_shapes_of_amd_smi(name: str, expected: dict[str, str]) -> None:
    assert names_in_amd_smi(machine_text(name)) == expected
    assert names_in_amd_smi(f"WARNING: a word before\n{machine_text(name)}") == expected


@given(
    st.text()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["gpu_data", "asic", "market_name", "target_graphics_version"]),
                inner,
            )
        ),
    ).map(json.dumps)
)
def test_names_in_amd_smi_reads_anything(text: str) -> None:
    assert all(name.isprintable() for name in names_in_amd_smi(text).values())


@pytest.mark.parametrize(
    ("name", "agents"),
    [
        ("rocm-agent-enumerator-5", ("gfx1036", "gfx1100")),
        ("rocm-agent-enumerator-6", ("gfx942", "gfx942")),
    ],
)
def test_agents_are_gpus_and_not_the_processor(name: str, agents: tuple[str, ...]) -> None:
    assert parse_agents(machine_text(name)) == agents


@given(st.text())
def test_parse_agents_reads_anything(text: str) -> None:
    assert all(name.startswith("gfx") and len(name) <= 8 for name in parse_agents(text))


def test_rocm_agent_enumerator_that_hangs_is_one_line_and_one_that_fails_none() -> None:
    hung = enumerator_report(Completed(returncode=None, output="gfx1100\n"))
    failed = enumerator_report(Completed(returncode=1, output="Traceback\n"))

    assert (hung.accelerators, failed.accelerators, failed.findings) == ((), (), ())
    assert [finding.message for finding in hung.findings] == [
        "`rocm_agent_enumerator` did not answer in time"
    ]


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
        (10**19, None),
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
def test_nvidia_smi_tells_its_cuda_in_another_breath(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    environ = nvidia_smi(
        f'case "$1" in --version) cat "{MACHINES / "nvidia-smi-version.txt"}"; exit;; esac\n'
        f"cat '{MACHINES / 'nvidia-smi-pascal.txt'}'"
    )

    [gpu] = detect(root=tmp_path / "root", environ=environ).accelerators

    assert (gpu.driver_version, gpu.cuda_version) == ("550.54.15", "12.4")


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

    assert time.monotonic() - started < 20
    [finding] = host.findings
    assert finding.message == "`nvidia-smi` did not answer in time, or its answer has no end"
    deadline = time.monotonic() + 20
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
        ("yes", "`nvidia-smi` did not answer in time, or its answer has no end"),
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

    assert finding.message.startswith("`nvidia-smi` can't be started: ")
    assert finding.hint


@posix_only
def test_nvidia_smi_that_hangs_says_nothing_against_the_gpus_of_the_kernel(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    root = tmp_path / "root"
    container_with_device_nodes(root)
    write(root, "usr/lib/wsl/lib/libcuda.so.1")
    kernel_names_gpu(root, "01", machine_text("proc-driver-nvidia-gpu"))

    host = detect(root=root, environ=nvidia_smi("exec sleep 600"), timeout_seconds=0.5)

    assert [gpu.source for gpu in host.accelerators] == ["/proc/driver/nvidia/gpus"]
    [finding] = host.findings
    assert "did not answer in time" in finding.message


@posix_only
def test_nvidia_smi_that_cannot_be_started_leaves_the_word_to_the_kernel(
    tmp_path: Path, nvidia_smi: Callable[[str], dict[str, str]]
) -> None:
    environ = nvidia_smi("true")
    (tmp_path / "bin/nvidia-smi").write_bytes(b"\x7fELF for another machine")
    root = tmp_path / "root"
    container_with_device_nodes(root)
    write(root, "usr/lib/wsl/lib/libcuda.so.1")
    kernel_names_gpu(root, "01", machine_text("proc-driver-nvidia-gpu"))

    host = detect(root=root, environ=environ)

    assert [gpu.source for gpu in host.accelerators] == ["/proc/driver/nvidia/gpus"]


# --- NVML ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root that has the stand-in for NVIDIA's library where Debian has the real one."""
    root = tmp_path_factory.mktemp("nvml")
    if not compile_nvml(root / LIBRARY):
        pytest.skip("the stand-in for NVML is compiled from C, for Linux")
    return root


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


def test_nvml_that_tells_no_capability_is_helped_by_the_name(nvml_library: Path) -> None:
    host = detect_in_child(
        nvml_library,
        {"FAKE_NVML_DRIVER": "540.4.0", "FAKE_NVML_DEVICES": "Orin (nvgpu)|0|0|0;Card 1|0|0|0"},
    )

    assert [str(gpu.compute_capability) for gpu in host.accelerators] == ["8.7", "None"]
    assert {gpu.cuda_version for gpu in host.accelerators} == {None}
    assert [finding.message for finding in host.findings] == [
        "NVML does not tell a compute capability: Orin (nvgpu) is known to have 8.7",
        "NVML does not tell the compute capability of Card 1",
    ]


@pytest.mark.parametrize(
    ("mig", "message"),
    [
        ("-1", None),
        ("0", "MIG is on for GPU 0 (NVIDIA A100) and has no instance: PyTorch sees no GPU"),
        ("1", "is split by MIG into one instance: a process uses one of them"),
        ("3", "GPU 0 (NVIDIA A100) is split by MIG into 3 instances: a process uses one of them"),
    ],
)
def test_what_mig_has_made_of_a_gpu_is_said(
    nvml_library: Path, mig: str, message: str | None
) -> None:
    host = detect_in_child(
        nvml_library,
        {
            "FAKE_NVML_DRIVER": "580.95.05",
            "FAKE_NVML_DEVICES": f"NVIDIA A100|8|0|42949672960|{mig}",
        },
    )

    [gpu] = host.accelerators
    assert str(gpu.compute_capability) == "8.0"
    if message is None:
        assert host.findings == ()
    else:
        [finding] = host.findings
        assert message in finding.message
        assert "nvidia-smi" in finding.hint


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
        ({"CUDA_VISIBLE_DEVICES": "none"}, True),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, True),
        ({"CUDA_VISIBLE_DEVICES": "7"}, True),
        ({"CUDA_VISIBLE_DEVICES": " +0 "}, False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, False),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-8932f937/1/0"}, False),
        ({"CUDA_VISIBLE_DEVICES": "9" * 5000}, True),
        ({"HIP_VISIBLE_DEVICES": "-1"}, False),
    ],
)
def test_variables_that_hide_every_gpu(environ: dict[str, str], *, hidden: bool) -> None:
    assert bool(visibility_findings((NVIDIA,), environ)) is hidden


def test_variable_of_cuda_hides_amd_gpus_where_their_own_is_not_set() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "-1"}

    [finding] = visibility_findings((AMD,), environ)
    [once] = visibility_findings((NVIDIA, AMD), environ)
    none = visibility_findings((AMD,), {**environ, "HIP_VISIBLE_DEVICES": "0"})

    assert finding == once
    assert finding.message == "`CUDA_VISIBLE_DEVICES=-1` hides every GPU from PyTorch"
    assert none == ()


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


@pytest.mark.parametrize("value", ["rubbish\x1b", "1" * 5000, "5.5.5.5.5"])
@pytest.mark.parametrize("name", ["UV_CUDA_DRIVER_VERSION", "UV_AMD_GPU_ARCHITECTURE"])
def test_malformed_override_is_ignored_and_said(name: str, value: str) -> None:
    host = apply_overrides(Host(platform=LINUX, accelerators=(NVIDIA,)), {name: value})

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
        ("win32", "x86", "win_x86"),
        ("darwin", "arm64", "macos_arm64"),
        ("darwin", "x86_64", "macos_x86_64"),
        ("freebsd14", "amd64", "other_x86_64"),
        ("android", "aarch64", "other_aarch64"),
    ],
)
def test_platform_of(sys_platform: str, machine: str, wheel_platform: str) -> None:
    found = platform_of(sys_platform=sys_platform, machine=machine)

    assert found.wheel_platform == wheel_platform


def test_32_bit_python_on_a_64_bit_machine_takes_other_wheels() -> None:
    found = platform_of(sys_platform="linux", machine="x86_64", is_64_bit=False, glibc="2.36")

    assert found.wheel_platform == "linux_i686"


@posix_only
def test_loader_of_another_machine_is_not_the_c_library(tmp_path: Path) -> None:
    write(tmp_path, "lib/ld-musl-aarch64.so.1", "\x7fELF for another machine").chmod(0o755)
    mine = "#!/bin/sh\nprintf 'musl libc (x86_64)\\nVersion 1.2.5\\n' >&2; exit 1\n"
    write(tmp_path, "lib/ld-musl-x86_64.so.1", mine).chmod(0o755)
    write(tmp_path, "lib/ld-musl-zz.so.1", "not to be run")

    assert read_musl(tmp_path, environ={}, timeout_seconds=10) == "1.2.5"


def test_c_library_texts() -> None:
    assert glibc_version("glibc 2.36") == "2.36"
    assert glibc_version("glibc 2.36.9000") == "2.36"
    assert glibc_version(None) is None
    assert musl_version("musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\n") == "1.2.4"
    assert musl_version("") is None


@pytest.mark.parametrize(
    ("plist", "darwin_release", "version"),
    [
        (machine_text("macos-system-version.plist"), "23.5.0", "14.5"),
        (machine_text("macos-system-version.plist").replace("14.5", "10.16"), "22.6.0", "13"),
        (machine_text("macos-system-version.plist").replace("14.5", "10.16"), "25.0.0", "26"),
        (
            machine_text("macos-system-version.plist").replace("14.5", "10.15.7"),
            "19.6.0",
            "10.15.7",
        ),
        ("", "20.6.0", "11"),
        ("", "24.1.0", "15"),
        ("", "19.6.0", None),
        ("", "rubbish", None),
    ],
)
def test_macos_version(plist: str, darwin_release: str, version: str | None) -> None:
    assert macos_version(plist, darwin_release=darwin_release) == version


@given(st.text(), st.text())
def test_macos_version_reads_anything(plist: str, darwin_release: str) -> None:
    version = macos_version(plist, darwin_release=darwin_release)

    assert version is None or version.replace(".", "").isdigit()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5.15.167.4-microsoft-standard-WSL2", True),
        ("4.4.0-19041-Microsoft", True),
        ("6.8.0-45-generic", False),
        ("", False),
    ],
)
def test_kernel_of_wsl_names_microsoft(text: str, *, expected: bool) -> None:
    assert is_wsl_kernel(text) is expected


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


def test_python_for_intel_on_apple_silicon_is_told_of_the_other_one() -> None:
    intel = Platform(system="macos", machine="x86_64")

    [finding] = apple_findings(intel, translated=True)
    assert "Rosetta" in finding.message
    assert "arm64 Python" in finding.hint
    assert apple_findings(intel, translated=False) == ()
    assert apple_findings(Platform(system="macos", machine="arm64"), translated=False) == ()
    assert apple_findings(Platform(system="linux", machine="x86_64"), translated=True) == ()


@posix_only
def test_program_is_the_first_on_path_that_can_be_run(tmp_path: Path) -> None:
    for folder in ("no-program", "a-folder/program", "first", "second", "other"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path, "no-program/program").chmod(0o644)
    for folder in ("first", "second", "other"):
        write(tmp_path, f"{folder}/program").chmod(0o755)
    path = [str(tmp_path / folder) for folder in ("no-program", "a-folder", "first", "second")]
    environ = {"PATH": os.pathsep.join(["", *path])}

    assert find_program("program", environ=environ) == str(tmp_path / "first/program")
    assert find_program("program", environ={}) is None
    assert find_program("program", environ={}, folders=[tmp_path / "other"]) == str(
        tmp_path / "other/program"
    )


@pytest.mark.parametrize(
    "module",
    [amd, capabilities, nvidia, platform, probing, records],
    ids=lambda module: module.__name__,
)
def test_examples_in_docstrings(module: ModuleType) -> None:
    results = doctest.testmod(module)

    assert results.attempted
    assert results.failed == 0


# --- All of it ----------------------------------------------------------------------------------


def loaded_by_detecting(root: Path, *names: str) -> list[str]:
    """Return which of the modules a fresh process has loaded after a look at `root`."""
    script = (
        "import pathlib, sys; from torchenv_magic.accelerators import detect;"
        "detect(root=pathlib.Path(sys.argv[1]), environ={});"
        "print(*sorted(set(sys.argv[2:]) & set(sys.modules)))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, str(root), *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    return completed.stdout.split()


def test_detecting_imports_no_heavy_module() -> None:
    assert loaded_by_detecting(Path("/"), "torch", "IPython", "packaging", "urllib.request") == []


@posix_only
def test_host_without_a_trace_of_a_gpu_pays_for_none(tmp_path: Path) -> None:
    pci_card(tmp_path, "0000:00:02.0", "0x1a03")  # a server's screen

    assert loaded_by_detecting(tmp_path, "ctypes", "pynvml", "shutil", "subprocess") == []


@given(st.text())
def test_clean_text_is_one_short_printable_line(text: str) -> None:
    cleaned = clean(text)

    assert cleaned.isprintable()
    assert len(cleaned) <= 120
