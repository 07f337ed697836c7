"""NVIDIA GPUs: NVML first, `nvidia-smi` behind it, the kernel's files to explain what is missing.

Each source is a thin probe (`read_...`) beside the pure function that understands what it read
(`..._report`).
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchenv_magic.accelerators.probing import Completed, Report, clean, read_text, run_bounded
from torchenv_magic.accelerators.records import Accelerator, ComputeCapability, Finding

if TYPE_CHECKING:
    import ctypes

__all__ = [
    "KernelReading",
    "NvmlDevice",
    "NvmlReading",
    "driver_version_in",
    "kernel_report",
    "known_capability",
    "nvidia_smi_report",
    "nvml_report",
    "read_kernel",
    "read_nvidia",
    "read_nvml",
]

# NVML's return codes (nvml.h), which are also the exit codes of `nvidia-smi`.
_NO_PERMISSION = 4
_NO_DEVICES = 6
_DRIVER_NOT_LOADED = 9
_GPU_IS_LOST = 15
_OPERATING_SYSTEM = 17
_VERSION_MISMATCH = 18

_PROBLEMS: dict[int, tuple[str, str]] = {
    _NO_PERMISSION: (
        "this user may not ask the NVIDIA driver",
        "the device nodes `/dev/nvidia*` must be readable and writable for this user",
    ),
    _NO_DEVICES: (
        "the NVIDIA driver answers and reports no GPU",
        "in a container, pass the GPUs on (`--gpus all`)",
    ),
    _DRIVER_NOT_LOADED: (
        "NVIDIA's libraries are here, its driver is not loaded",
        "install or load the NVIDIA driver, or restart after an update of the Linux kernel",
    ),
    _GPU_IS_LOST: (
        "a GPU has fallen off the bus or is in an error state",
        "restart the machine; `nvidia-smi` and the kernel's log say more",
    ),
    _OPERATING_SYSTEM: (
        "the operating system blocks access to the GPU",
        "in WSL, update Windows and its NVIDIA driver; in a container, pass the GPUs on",
    ),
    _VERSION_MISMATCH: (
        "the NVIDIA driver in memory and its libraries are of different versions",
        "restart the machine: the driver was updated while the old one was loaded",
    ),
}


# --- NVML ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlDevice:
    name: str = ""
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    """None where the GPU has no memory of its own (GB10, Jetson)."""
    error: str = ""
    """Why this one could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlReading:
    """What the management library said: nothing (`loaded` False), an error, or devices."""

    loaded: bool
    error_code: int | None = None
    error: str = ""
    driver_version: str | None = None
    devices: tuple[NvmlDevice, ...] = ()

    @property
    def settles(self) -> bool:
        """Whether asking `nvidia-smi`, which asks the same library, can't bring anything new."""
        return self.loaded and (self.error_code is None or self.error_code in _PROBLEMS)


def read_nvml(root: Path = Path("/")) -> NvmlReading:
    """Return what NVML says about driver and GPUs. It ignores CUDA_VISIBLE_DEVICES."""
    if _load_nvml(root) is None:
        return NvmlReading(loaded=False)
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return NvmlReading(loaded=True, error_code=error.value, error=clean(str(error)))
    try:
        driver_version = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
        devices = tuple(_read_nvml_device(pynvml, index) for index in range(count))
    except pynvml.NVMLError as error:
        return NvmlReading(loaded=True, error_code=error.value, error=clean(str(error)))
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return NvmlReading(loaded=True, driver_version=clean(driver_version), devices=devices)


def _read_nvml_device(pynvml: Any, index: int) -> NvmlDevice:  # noqa: ANN401  (it has no types)
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        device = NvmlDevice(
            name=clean(pynvml.nvmlDeviceGetName(handle)),
            compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        )
    except pynvml.NVMLError as error:
        return NvmlDevice(error=clean(str(error)))
    try:
        return replace(device, memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
    except pynvml.NVMLError:
        return device


def _load_nvml(root: Path) -> ctypes.CDLL | None:
    """Return the loaded library, which pynvml then finds by its name, or None.

    pynvml asks the loader for `libnvidia-ml.so.1` and nothing else; a library that is loaded
    already under that SONAME answers, so this is where other places come in: WSL's and NixOS' are
    not always in the loader's path. It also spares hosts without NVIDIA pynvml's long import.
    """
    import ctypes

    name = "libnvidia-ml.so.1"
    if sys.platform == "win32":
        import os

        windows = Path(os.environ.get("WINDIR", "C:/Windows")) / "System32/nvml.dll"
        programs = Path(os.environ.get("PROGRAMFILES", "C:/Program Files"))
        candidates = [windows, programs / "NVIDIA Corporation/NVSMI/nvml.dll"]
    else:
        folders = ["usr/lib/wsl/lib", "run/opengl-driver/lib"]
        if root != Path("/"):
            folders += ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64"]
        candidates = [root / folder / name for folder in folders]
    names = [str(path) for path in candidates if path.exists()]
    if root == Path("/") and sys.platform != "win32":
        names.insert(0, name)
    for candidate in names:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    return None


def nvml_report(reading: NvmlReading) -> Report:
    """Return the GPUs that NVML names, with a finding for each that it could not read."""
    if not reading.loaded:
        return Report()
    if reading.error_code is not None:
        return Report(findings=(_problem(reading.error_code, reading.error, source="NVML"),))
    accelerators = []
    findings = []
    for index, device in enumerate(reading.devices):
        if device.error:
            message = f"GPU {index} could not be read: {device.error}"
            findings.append(Finding(message=message, source="NVML"))
            continue
        accelerators.append(
            Accelerator(
                vendor="nvidia",
                name=device.name,
                compute_capability=(
                    ComputeCapability(*device.compute_capability)
                    if device.compute_capability
                    else None
                ),
                memory_bytes=device.memory_bytes,
                driver_version=reading.driver_version,
                source="NVML",
            )
        )
    if not reading.devices:
        findings.append(_problem(_NO_DEVICES, "", source="NVML"))
    return Report(accelerators=tuple(accelerators), findings=tuple(findings))


def _problem(code: int, words: str, *, source: str) -> Finding:
    if code in _PROBLEMS:
        message, hint = _PROBLEMS[code]
        return Finding(message=message, source=source, hint=hint)
    message = f"{source} failed: {words or f'error {code}'}"
    return Finding(message=message, source=source, hint="run `nvidia-smi` in a terminal")


# --- nvidia-smi ---------------------------------------------------------------------------------

_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def nvidia_smi_command(program: str, fields: Sequence[str] = _FIELDS) -> list[str]:
    """Return the command that prints one GPU a line."""
    return [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def read_nvidia_smi(
    *, environ: Mapping[str, str], timeout_seconds: float
) -> tuple[Completed, tuple[str, ...]] | None:
    """Return what `nvidia-smi` printed, and for which fields; None where there is no such program.

    One from before driver 510 refuses `compute_cap`, and is asked again without it.
    """
    import shutil

    program = shutil.which("nvidia-smi", path=environ.get("PATH", ""))
    if program is None:
        return None
    completed = run_bounded(
        nvidia_smi_command(program), timeout_seconds=timeout_seconds, environ=environ
    )
    if completed.returncode == 0 or "compute_cap" not in completed.output:
        return completed, _FIELDS
    completed = run_bounded(
        nvidia_smi_command(program, _FIELDS[:-1]), timeout_seconds=timeout_seconds, environ=environ
    )
    return completed, _FIELDS[:-1]


def nvidia_smi_report(completed: Completed, fields: Sequence[str] = _FIELDS) -> Report:
    """Return the GPUs in lines such as `NVIDIA GeForce GTX 1080 Ti, 550.54.15, 11264, 6.1`."""
    source = "nvidia-smi"
    if completed.returncode is None:
        message = "`nvidia-smi` did not answer in time, or would not stop talking"
        hint = "a driver that hangs usually needs a restart of the machine"
        return Report(findings=(Finding(message=message, source=source, hint=hint),))
    if completed.returncode != 0:
        words = clean(completed.output)
        return Report(findings=(_problem(completed.returncode, words, source=source),))
    accelerators: list[Accelerator] = []
    findings: list[Finding] = []
    rubbish = []
    for line in completed.output.splitlines():
        if not line.strip():
            continue
        parsed = _smi_line(line, fields)
        if parsed is None:
            rubbish.append(line)
            continue
        if len(fields) < len(_FIELDS):
            parsed, finding = _with_known_capability(parsed)
            findings.append(finding)
        accelerators.append(parsed)
    if rubbish or not accelerators:
        words = clean(rubbish[0]) if rubbish else ""
        said = f"printed `{words}`" if words else "printed nothing"
        message = f"`nvidia-smi` {said}, which names no GPU"
        findings.append(
            Finding(message=message, source=source, hint="run `nvidia-smi` in a terminal")
        )
    return Report(accelerators=tuple(accelerators), findings=tuple(dict.fromkeys(findings)))


def _smi_line(line: str, fields: Sequence[str]) -> Accelerator | None:
    # From the right: only the name, which comes first, could hold a comma itself.
    name, *values = line.strip().rsplit(",", len(fields) - 1)
    found = dict(zip(fields[1:], (value.strip() for value in values), strict=False))
    version = found.get("driver_version", "")
    if len(values) != len(fields) - 1 or not re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", version):
        return None
    capability = None
    if "compute_cap" in fields:
        if not re.fullmatch(r"[0-9]{1,2}\.[0-9]{1,2}", found["compute_cap"]):
            return None
        capability = ComputeCapability.parse(found["compute_cap"])
    # `[N/A]` where the GPU shares the system's memory. The unit that `nounits` hides is MiB.
    memory = found["memory.total"]
    return Accelerator(
        vendor="nvidia",
        name=clean(name),
        compute_capability=capability,
        memory_bytes=int(memory) << 20 if re.fullmatch("[0-9]{1,9}", memory) else None,
        driver_version=version,
        source="nvidia-smi",
    )


# Names as `nvidia-smi` prints them, for drivers that are too old to print the capability: nothing
# newer than Ampere answers those. Source: NVIDIA's tables "CUDA GPU Compute Capability" and
# "Legacy CUDA GPU Compute Capability".
_KNOWN_CAPABILITIES: tuple[tuple[str, str], ...] = (
    (r"A100|A800|A30", "8.0"),
    (r"RTX 30[5-9]0|A2|A10|A10G|A16|A40|RTX A[2-6]\d00", "8.6"),
    (r"RTX 20[5-8]0|GTX 16[3-6]0|T4|T4G|T[56]00|T1[02]00|RTX [3-8]000|TITAN RTX|MX4[5-9]0", "7.5"),
    (r"V100|V100S|TITAN V|GV100", "7.0"),
    (r"P100|GP100", "6.0"),
    (
        r"GTX 10[5-8]0|GT 10[13]0|TITAN Xp|TITAN X \(Pascal\)|P4|P6|P40|P[1-6][02]00|MX[1-3]50",
        "6.1",
    ),
    (r"GTX 9[5-8]0|GTX TITAN X|M4|M6|M40|M60|M[4-6]000", "5.2"),
    (r"GTX 750|9[2-4]0MX?|M10|M[12]000M?|MX1[13]0|K[126]20", "5.0"),
    (r"K80", "3.7"),
    (r"K40|K20|GTX 780|GTX TITAN|GT 7[123]0|K[56]000", "3.5"),
    (r"GTX 6[5-9]0|GTX 7[67]0|K10|K[1-4]000", "3.0"),
)


def known_capability(name: str) -> ComputeCapability | None:
    """Return the compute capability of the GPU sold under `name`, where the table has it.

    >>> known_capability("GeForce GTX 1080 Ti")
    ComputeCapability(major=6, minor=1)
    """
    for pattern, capability in _KNOWN_CAPABILITIES:
        if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", name):
            return ComputeCapability.parse(capability)
    return None


def _with_known_capability(accelerator: Accelerator) -> tuple[Accelerator, Finding]:
    capability = known_capability(accelerator.name)
    if capability is None:
        message = (
            f"this `nvidia-smi` is too old to tell the compute capability of {accelerator.name}"
        )
        hint = "a newer NVIDIA driver tells it"
        return accelerator, Finding(message=message, source="nvidia-smi", hint=hint)
    message = (
        f"this `nvidia-smi` is too old to tell a compute capability:"
        f" {accelerator.name} is known to have {capability}"
    )
    found = replace(accelerator, compute_capability=capability)
    return found, Finding(message=message, source="nvidia-smi")


def read_nvidia(
    *, root: Path = Path("/"), environ: Mapping[str, str], timeout_seconds: float
) -> Report:
    """Return what NVML says, or where it has nothing to say, `nvidia-smi`."""
    reading = read_nvml(root)
    report = nvml_report(reading)
    if reading.settles:
        return report
    answer = read_nvidia_smi(environ=environ, timeout_seconds=timeout_seconds)
    if answer is None:
        return report
    completed, fields = answer
    return nvidia_smi_report(completed, fields)


# --- The kernel's files -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReading:
    driver_version: str | None
    source: str
    """The file that the version was read from."""
    device_nodes: bool
    """Whether a `/dev/nvidia0` or the like is here."""
    pci_drivers: tuple[str, ...]
    """For each NVIDIA display adapter on the PCI bus, the kernel driver it is bound to, or ``."""


def read_kernel(root: Path = Path("/")) -> KernelReading:
    """Return what the kernel knows of an NVIDIA driver; in a container, it is the host's kernel."""
    module, process = "sys/module/nvidia/version", "proc/driver/nvidia/version"
    version, source = driver_version_in(read_text(root / module) or ""), f"/{module}"
    if version is None:
        version, source = driver_version_in(read_text(root / process) or ""), f"/{process}"
    devices = root / "dev"
    return KernelReading(
        driver_version=version,
        source=source,
        device_nodes=any(
            re.fullmatch("nvidia[0-9]+", path.name) for path in devices.glob("nvidia*")
        )
        or (devices / "dxg").exists(),
        pci_drivers=tuple(_pci_drivers(root)),
    )


def _pci_drivers(root: Path) -> list[str]:
    drivers = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor = (read_text(folder / "vendor") or "").strip()
        kind = (read_text(folder / "class") or "").strip()
        # 0x10de is NVIDIA; 0x03.... are display controllers, with and without a screen.
        if vendor == "0x10de" and kind.startswith("0x03"):
            driver = folder / "driver"
            drivers.append(driver.resolve().name if driver.exists() else "")
    return drivers


def driver_version_in(text: str) -> str | None:
    r"""Return the driver's version in either file's text.

    >>> driver_version_in("550.54.15\n")
    '550.54.15'
    >>> driver_version_in("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5")
    '550.54.15'
    """
    lines = text.splitlines()[:1]
    match = re.search(r"(?<![\w.])([0-9]{3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?)(?![\w.])", "".join(lines))
    return match[1] if match else None


def kernel_report(reading: KernelReading) -> Report:
    """Return why no GPU answered although the kernel has a driver, or the PCI bus a card."""
    if reading.driver_version is not None and not reading.device_nodes:
        message = (
            f"the NVIDIA driver {reading.driver_version} is on the host, and no GPU is here:"
            " there is no device node"
        )
        hint = "if this is a container, start it with its GPUs, such as `docker run --gpus all`"
    elif reading.driver_version is not None:
        message = (
            f"the NVIDIA driver {reading.driver_version} and its device nodes are here, and neither"
            " NVML nor `nvidia-smi` names a GPU"
        )
        hint = (
            "install the driver's libraries; a container needs"
            " `NVIDIA_DRIVER_CAPABILITIES=compute,utility`"
        )
    elif reading.pci_drivers:
        bound = [driver for driver in reading.pci_drivers if driver]
        to = f"bound to `{clean(bound[0])}`" if bound else "without a driver"
        message = f"an NVIDIA card is here, {to}: NVIDIA's own driver is not loaded"
        hint = "install the NVIDIA driver, and restart"
    else:
        return Report()
    return Report(findings=(Finding(message=message, source=reading.source, hint=hint),))
