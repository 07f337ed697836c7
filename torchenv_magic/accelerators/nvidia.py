"""NVIDIA GPUs: NVML first, `nvidia-smi` behind it, then the names that the kernel has for them.

The kernel's other files explain what is missing where none of these finds a GPU.

Each source is a thin probe (`read_...`) beside the pure function that understands what it read
(`..._report`).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchenv_magic.accelerators.capabilities import known_capability
from torchenv_magic.accelerators.probing import (
    NO_ANSWER_HINT,
    Completed,
    PciCard,
    Probe,
    Report,
    clean,
    find_program,
    read_text,
    run_bounded,
)
from torchenv_magic.accelerators.records import Accelerator, ComputeCapability, Finding

if TYPE_CHECKING:
    import ctypes

__all__ = [
    "KernelReading",
    "NamedReading",
    "NvmlDevice",
    "NvmlReading",
    "SmiReading",
    "TegraBoard",
    "board_finding",
    "cuda_version_in",
    "cuda_version_of",
    "driver_version_in",
    "find_libraries",
    "kernel_report",
    "known_capability",
    "named_report",
    "nvidia_part",
    "nvidia_smi_command",
    "nvidia_smi_report",
    "nvml_report",
    "parse_board",
    "parse_information",
    "read_kernel",
    "read_named_gpus",
    "read_nvidia",
    "read_nvml",
]

# NVML's return codes (nvml.h), which are also the exit codes of `nvidia-smi`.
_NO_PERMISSION = 4
_NO_DEVICES = 6
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_GPU_IS_LOST = 15
_OPERATING_SYSTEM = 17
_VERSION_MISMATCH = 18

_MISSING_LIBRARIES_HINT = (
    "install the driver's libraries; a container needs `NVIDIA_DRIVER_CAPABILITIES=compute,utility`"
)

_PROBLEMS: dict[int, tuple[str, str]] = {
    _NO_PERMISSION: (
        "this user may not ask the NVIDIA driver",
        "the device nodes `/dev/nvidia*` must be readable and writable for this user",
    ),
    _NO_DEVICES: (
        "the NVIDIA driver answers and reports no GPU",
        "in a container, pass the GPUs on (`--gpus all`); in a batch job, ask for one",
    ),
    _DRIVER_NOT_LOADED: (
        "NVIDIA's libraries are here, its driver is not loaded",
        "install or load the NVIDIA driver, or restart after an update of the Linux kernel",
    ),
    _LIBRARY_NOT_FOUND: (
        "`nvidia-smi` is here, and NVML, the library that it asks, is not",
        _MISSING_LIBRARIES_HINT,
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
    """None where NVML does not tell it (some Jetson boards)."""
    memory_bytes: int | None = None
    """None where the GPU has no memory of its own (GB10, Jetson)."""
    mig_instances: int | None = None
    """How many parts MIG has split this GPU into; None where MIG is off or unknown to it."""
    error: str = ""
    """Why this one could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlReading:
    """What the management library said: nothing (`loaded` False), an error, or devices."""

    loaded: bool
    error_code: int | None = None
    error: str = ""
    driver_version: str | None = None
    cuda_version: str | None = None
    devices: tuple[NvmlDevice, ...] = ()

    @property
    def settles(self) -> bool:
        """Whether asking `nvidia-smi`, which asks the same library, can't bring anything new."""
        return self.loaded and (self.error_code is None or self.error_code in _PROBLEMS)


def read_nvml(root: Path = Path("/"), *, environ: Mapping[str, str]) -> NvmlReading:
    """Return what NVML says about driver and GPUs. It ignores CUDA_VISIBLE_DEVICES."""
    if _load_nvml(root, environ) is None:
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
        cuda_version = _read_cuda_version(pynvml)
    except pynvml.NVMLError as error:
        return NvmlReading(loaded=True, error_code=error.value, error=clean(str(error)))
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return NvmlReading(
        loaded=True,
        driver_version=clean(driver_version),
        cuda_version=cuda_version,
        devices=devices,
    )


def _read_cuda_version(pynvml: Any) -> str | None:  # noqa: ANN401  (it has no types)
    # The second one asks libcuda itself and fails where there is none; the first one then tells
    # what the driver was made for. Libraries from before CUDA 10 have neither.
    for ask in (pynvml.nvmlSystemGetCudaDriverVersion_v2, pynvml.nvmlSystemGetCudaDriverVersion):
        with contextlib.suppress(pynvml.NVMLError):
            return cuda_version_of(int(ask()))
    return None


def cuda_version_of(number: int) -> str | None:
    """Return the version that CUDA writes as 1000 times the major plus 10 times the minor.

    >>> cuda_version_of(12040), cuda_version_of(13000)
    ('12.4', '13.0')
    """
    return f"{number // 1000}.{number % 1000 // 10}" if number >= 1000 else None


def _read_nvml_device(pynvml: Any, index: int) -> NvmlDevice:  # noqa: ANN401  (it has no types)
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        device = NvmlDevice(name=clean(pynvml.nvmlDeviceGetName(handle)))
    except pynvml.NVMLError as error:
        return NvmlDevice(error=clean(str(error)))
    with contextlib.suppress(pynvml.NVMLError):
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        device = replace(device, compute_capability=(int(major), int(minor)))
    with contextlib.suppress(pynvml.NVMLError):
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        device = replace(device, memory_bytes=memory or None)
    with contextlib.suppress(pynvml.NVMLError):
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
        if current:
            device = replace(device, mig_instances=_count_mig_instances(pynvml, handle))
    return device


def _count_mig_instances(pynvml: Any, handle: Any) -> int:  # noqa: ANN401  (it has no types)
    count = 0
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        # The places that no instance has been made in answer "not found".
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            count += 1
    return count


def _load_nvml(root: Path, environ: Mapping[str, str]) -> ctypes.CDLL | None:
    """Return the loaded library, which pynvml then finds by its name, or None.

    pynvml asks the loader for `libnvidia-ml.so.1` and nothing else; a library that is loaded
    already under that SONAME answers, so this is where other places come in: WSL's and NixOS' are
    not always in the loader's path. A host without any trace of NVIDIA pays neither for ctypes nor
    for pynvml's long import.
    """
    name = "libnvidia-ml.so.1"
    if sys.platform == "win32":
        windows = Path(environ.get("WINDIR", "C:/Windows")) / "System32/nvml.dll"
        programs = Path(environ.get("PROGRAMFILES", "C:/Program Files"))
        candidates = [windows, programs / "NVIDIA Corporation/NVSMI/nvml.dll"]
        names = [str(path) for path in candidates if path.exists()]
    else:
        names = [str(path) for path in find_libraries(name, root=root, environ=environ)]
        traces = ("proc/driver/nvidia", "sys/module/nvidia", "dev/nvidiactl", "dev/dxg")
        if root == Path("/") and (names or any((root / trace).exists() for trace in traces)):
            names.insert(0, name)
    if not names:
        return None
    import ctypes

    for candidate in names:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    return None


# Where distributions, container runtimes and WSL put NVIDIA's libraries: Debian, Fedora, Arch, WSL,
# NixOS, Kubernetes' device plugin on Google's nodes, JetPack 5 and 6.
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
    "usr/local/nvidia/lib64",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
)


def find_libraries(name: str, *, root: Path, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the files called `name` where the loader looks, and in the usual folders; none twice.

    Looking loads nothing: `libcuda` in particular stays out of this process.
    """
    folders = [part for part in environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    places = [Path(folder.lstrip("/")) / name for folder in folders]
    try:
        cache = read_text(root / "etc/ld.so.cache") or ""
    except OSError:
        cache = ""
    # The cache ends in strings with a NUL after each: a library's name, then its path.
    pattern = rf"/([^\x00-\x1f]{{1,400}}/{re.escape(name)})\x00"
    places += [Path(match) for match in re.findall(pattern, cache)]
    places += [Path(folder) / name for folder in _LIBRARY_FOLDERS]
    found = (root / place for place in places)
    return tuple(dict.fromkeys(path for path in found if os.access(path, os.R_OK)))


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
        accelerator = Accelerator(
            vendor="nvidia",
            name=device.name,
            compute_capability=(
                ComputeCapability(*device.compute_capability) if device.compute_capability else None
            ),
            memory_bytes=device.memory_bytes,
            driver_version=reading.driver_version,
            cuda_version=reading.cuda_version,
            source="NVML",
        )
        if accelerator.compute_capability is None:
            accelerator, finding = _with_known_capability(accelerator, "NVML does not tell")
            findings.append(finding)
        accelerators.append(accelerator)
        if device.mig_instances is not None:
            findings.append(_mig_finding(index, device.name, device.mig_instances))
    if not reading.devices:
        findings.append(_problem(_NO_DEVICES, "", source="NVML"))
    return Report(accelerators=tuple(accelerators), findings=tuple(dict.fromkeys(findings)))


def _mig_finding(index: int, name: str, instances: int) -> Finding:
    if instances == 0:
        message = f"MIG is on for GPU {index} ({name}) and has no instance: PyTorch sees no GPU"
        hint = (
            f"make one (`sudo nvidia-smi mig -i {index} -cgi 0 -C`),"
            f" or turn MIG off (`sudo nvidia-smi -i {index} -mig 0`)"
        )
        return Finding(message=message, source="NVML", hint=hint)
    parts = "one instance" if instances == 1 else f"{instances} instances"
    message = f"GPU {index} ({name}) is split by MIG into {parts}: a process uses one of them"
    hint = "choose one by its name from `nvidia-smi -L`: `CUDA_VISIBLE_DEVICES=MIG-...`"
    return Finding(message=message, source="NVML", hint=hint)


def _problem(code: int, words: str, *, source: str) -> Finding:
    if code in _PROBLEMS:
        message, hint = _PROBLEMS[code]
        return Finding(message=message, source=source, hint=hint)
    message = f"{source} failed: {words or f'error {code}'}"
    return Finding(message=message, source=source, hint="run `nvidia-smi` in a terminal")


# --- nvidia-smi ---------------------------------------------------------------------------------

_FIELDS: tuple[str, ...] = ("name", "driver_version", "memory.total", "compute_cap")

# `[N/A]`, `[Not Supported]`, `[Unknown Error]`, `[GPU requires reset]`: the field is known, and its
# value is not told. Without brackets on some Jetson boards.
_NOT_TOLD = re.compile(r"\[[A-Za-z/ ]{1,60}\]|N/A|ERR!?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmiReading:
    completed: Completed
    fields: tuple[str, ...] = _FIELDS
    """What was asked for: one from before driver 510 refuses `compute_cap`."""
    cuda_version: str | None = None


def nvidia_smi_command(program: str, fields: Sequence[str] = _FIELDS) -> list[str]:
    """Return the command that prints one GPU a line."""
    return [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def read_nvidia_smi(
    *, root: Path = Path("/"), environ: Mapping[str, str], timeout_seconds: float
) -> SmiReading | None:
    """Return what `nvidia-smi` printed, and for which fields; None where there is no such program.

    One from before driver 510 refuses `compute_cap`, and is asked again without it.
    """
    program = find_program("nvidia-smi", environ=environ, folders=_smi_folders(root, environ))
    if program is None:
        return None
    deadline = time.monotonic() + timeout_seconds

    def ask(command: Sequence[str]) -> Completed:
        remaining = max(deadline - time.monotonic(), 0.05)
        return run_bounded(command, timeout_seconds=remaining, environ=environ)

    # Side by side: the version of CUDA is told by no field of the query.
    version = Probe("nvidia-smi --version", lambda: ask([program, "--version"]))
    fields = _FIELDS
    completed = ask(nvidia_smi_command(program))
    if completed.returncode not in {0, None} and "compute_cap" in completed.output:
        fields = _FIELDS[:-1]
        completed = ask(nvidia_smi_command(program, fields))
    told = None
    if completed.returncode == 0:
        told, _ = version.answer(timeout_seconds=timeout_seconds)
    return SmiReading(
        completed=completed,
        fields=fields,
        cuda_version=cuda_version_in(told.output) if told is not None else None,
    )


def _smi_folders(root: Path, environ: Mapping[str, str]) -> list[Path]:
    if sys.platform == "win32":
        programs = Path(environ.get("PROGRAMFILES", "C:/Program Files"))
        windows = Path(environ.get("WINDIR", "C:/Windows"))
        return [windows / "System32", programs / "NVIDIA Corporation/NVSMI"]
    # A service starts with a short PATH; WSL's folder and that of Google's nodes are in few.
    return [root / "usr/bin", root / "usr/lib/wsl/lib", root / "usr/local/nvidia/bin"]


def cuda_version_in(text: str) -> str | None:
    r"""Return the newest CUDA that the driver speaks, in what `nvidia-smi --version` prints.

    Driver 610 renamed the line, and kept the old one to say so.

    >>> cuda_version_in("NVML version        : 550.54\nCUDA Version        : 12.4\n")
    '12.4'
    """
    pattern = r"^CUDA (?:UMD )?version *: *([0-9]{1,2}\.[0-9]{1,2}) *$"
    match = re.search(pattern, text, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None


def nvidia_smi_report(
    completed: Completed, fields: Sequence[str] = _FIELDS, *, cuda_version: str | None = None
) -> Report:
    """Return the GPUs in lines such as `NVIDIA GeForce GTX 1080 Ti, 550.54.15, 11264, 6.1`."""
    source = "nvidia-smi"
    if completed.returncode is None:
        message = "`nvidia-smi` did not answer in time, or its answer has no end"
        return Report(findings=(Finding(message=message, source=source, hint=NO_ANSWER_HINT),))
    lines = [line for line in completed.output.splitlines() if line.strip()]
    gpus = [(line, _smi_line(line, fields)) for line in lines]
    # A card whose infoROM is corrupted, or one of several that is lost, makes it fail (14, 15), and
    # it prints the others all the same.
    if completed.returncode != 0 and not any(gpu for _, gpu in gpus):
        words = clean(completed.output)
        return Report(findings=(_problem(completed.returncode, words, source=source),))
    asked = "compute_cap" in fields
    teller = "`nvidia-smi` does not tell" if asked else "this `nvidia-smi` is too old to tell"
    accelerators: list[Accelerator] = []
    findings: list[Finding] = []
    rubbish = []
    for line, gpu in gpus:
        if gpu is None:
            rubbish.append(line)
            continue
        accelerator = replace(gpu, cuda_version=cuda_version)
        if accelerator.compute_capability is None:
            accelerator, finding = _with_known_capability(accelerator, teller)
            findings.append(finding)
        accelerators.append(accelerator)
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
    if len(values) != len(fields) - 1 or _NOT_TOLD.fullmatch(name.strip()):
        return None
    found: dict[str, str | None] = {}
    for field, value in zip(fields[1:], values, strict=True):
        found[field] = None if _NOT_TOLD.fullmatch(value.strip()) else value.strip()
    version, capability = found["driver_version"], found.get("compute_cap")
    if version is not None and not re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", version):
        return None
    if capability is not None and not re.fullmatch(r"[0-9]{1,2}\.[0-9]{1,2}", capability):
        return None
    # Not told where the GPU shares the system's memory. The unit that `nounits` hides is MiB.
    memory = found["memory.total"] or ""
    return Accelerator(
        vendor="nvidia",
        name=clean(name),
        compute_capability=ComputeCapability.parse(capability) if capability else None,
        memory_bytes=int(memory) << 20 if re.fullmatch("[0-9]{1,9}", memory) else None,
        driver_version=version,
        source="nvidia-smi",
    )


def _with_known_capability(accelerator: Accelerator, teller: str) -> tuple[Accelerator, Finding]:
    capability = known_capability(accelerator.name)
    if capability is None:
        message = f"{teller} the compute capability of {accelerator.name}"
        hint = "a newer NVIDIA driver tells it"
        return accelerator, Finding(message=message, source=accelerator.source, hint=hint)
    message = f"{teller} a compute capability: {accelerator.name} is known to have {capability}"
    found = replace(accelerator, compute_capability=capability)
    return found, Finding(message=message, source=accelerator.source)


def read_nvidia(
    *, root: Path = Path("/"), environ: Mapping[str, str], timeout_seconds: float
) -> Report:
    """Return what NVML says, or `nvidia-smi`, or what the kernel's names for the GPUs tell."""
    reading = read_nvml(root, environ=environ)
    report = nvml_report(reading)
    if reading.settles:
        return report
    try:
        answer = read_nvidia_smi(root=root, environ=environ, timeout_seconds=timeout_seconds)
    except OSError as error:
        answer = None
        report = Report(findings=(_not_started(error),))
    if answer is not None:
        completed = answer.completed
        report = nvidia_smi_report(completed, answer.fields, cuda_version=answer.cuda_version)
        if completed.returncode not in {_LIBRARY_NOT_FOUND, None}:
            return report
    elif reading.loaded:
        return report
    named = named_report(read_named_gpus(root, environ=environ))
    if answer is not None and answer.completed.returncode is None:
        # That it hangs says nothing against the GPUs that the kernel names.
        return replace(report, accelerators=named.accelerators)
    return named if named.accelerators or named.findings else report


def _not_started(error: OSError) -> Finding:
    message = f"`nvidia-smi` can't be started: {clean(error.strerror or str(error))}"
    hint = "it is made for another system: use the one of this machine's NVIDIA driver"
    return Finding(message=message, source="nvidia-smi", hint=hint)


# --- The kernel's names for its GPUs ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedReading:
    """What is known of the GPUs where neither NVML nor `nvidia-smi` can be asked."""

    driver_version: str | None
    models: tuple[str, ...]
    """The names of the GPUs whose device nodes are here."""
    device_nodes: bool
    cuda_library: bool
    """Whether `libcuda.so.1` is here, without which PyTorch reaches no GPU."""


_GPUS = "proc/driver/nvidia/gpus"


def read_named_gpus(root: Path = Path("/"), *, environ: Mapping[str, str]) -> NamedReading:
    """Return the names in `/proc/driver/nvidia/gpus/*/information`, for devices that are here.

    Only for when nothing else answers: reading such a file wakes a sleeping laptop GPU.
    """
    minors = _device_minors(root)
    if not minors:
        return NamedReading(driver_version=None, models=(), device_nodes=False, cuda_library=False)
    version, _ = _driver_version(root)
    models = []
    for path in sorted((root / _GPUS).glob("*/information")):
        model, minor = parse_information(read_text(path) or "")
        # A container sees all GPUs of the host here, and has the nodes of its own ones.
        if model and (minor is None or minor in minors):
            models.append(model)
    return NamedReading(
        driver_version=version,
        models=tuple(models),
        device_nodes=True,
        cuda_library=bool(find_libraries("libcuda.so.1", root=root, environ=environ)),
    )


def parse_information(text: str) -> tuple[str, int | None]:
    r"""Return a GPU's name and the number of its device node; no name where it is excluded.

    Source: `nv_procfs_read_gpu_info` in NVIDIA's open kernel modules. The number is missing before
    driver 3xx, and "GPU Excluded" was called "Blacklisted".

    >>> parse_information("Model: \t\t NVIDIA A100-SXM4-40GB\nDevice Minor: \t 3\n")
    ('NVIDIA A100-SXM4-40GB', 3)
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            values.setdefault(name.strip(), clean(value))
    if "Yes" in {values.get("GPU Excluded"), values.get("Blacklisted")}:
        return "", None
    model, minor = values.get("Model", ""), values.get("Device Minor", "")
    return (
        "" if model.lower() == "unknown" else model,
        int(minor) if re.fullmatch("[0-9]{1,3}", minor) else None,
    )


def named_report(reading: NamedReading) -> Report:
    """Return the GPUs with the capabilities that their names are known to have."""
    if reading.driver_version is None or not reading.device_nodes:
        return Report()
    source = f"/{_GPUS}"
    if not reading.cuda_library:
        message = (
            f"the NVIDIA driver {reading.driver_version} and its device nodes are here,"
            " and `libcuda.so.1` is not: no NVIDIA GPU to compute on"
        )
        hint = _MISSING_LIBRARIES_HINT
        return Report(findings=(Finding(message=message, source=source, hint=hint),))
    accelerators = tuple(
        Accelerator(
            vendor="nvidia",
            name=model,
            compute_capability=known_capability(model),
            driver_version=reading.driver_version,
            source=source,
        )
        for model in reading.models
    )
    if not accelerators:
        return Report()
    known = ", ".join(
        f"{item.name}: {item.compute_capability or 'unknown'}"
        for item in dict.fromkeys(accelerators)
    )
    message = f"NVML is missing: the compute capability is known by name only ({known})"
    hint = "in a container, set `NVIDIA_DRIVER_CAPABILITIES=compute,utility`"
    finding = Finding(message=message, source=source, hint=hint)
    return Report(accelerators=accelerators, findings=(finding,))


# --- The kernel's other files -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TegraBoard:
    """A Jetson or another board with NVIDIA's own processor."""

    model: str
    compute_capability: ComputeCapability | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReading:
    driver_version: str | None
    source: str
    """The file that the version was read from."""
    device_nodes: bool
    """Whether a `/dev/nvidia0` or the like is here."""
    wsl_device: bool = False
    """Whether `/dev/dxg` is here, through which WSL reaches the GPUs of Windows."""
    board: TegraBoard | None = None


def read_kernel(root: Path = Path("/")) -> KernelReading:
    """Return what the kernel knows of an NVIDIA driver; in a container, it is the host's kernel."""
    version, source = _driver_version(root)
    tree = root / "proc/device-tree"
    return KernelReading(
        driver_version=version,
        source=source,
        device_nodes=bool(_device_minors(root)),
        wsl_device=(root / "dev/dxg").exists(),
        board=parse_board(
            model=read_text(tree / "model") or "", compatible=read_text(tree / "compatible") or ""
        ),
    )


def _driver_version(root: Path) -> tuple[str | None, str]:
    module, process = "sys/module/nvidia/version", "proc/driver/nvidia/version"
    version = driver_version_in(read_text(root / module) or "")
    if version is not None:
        return version, f"/{module}"
    return driver_version_in(read_text(root / process) or ""), f"/{process}"


def _device_minors(root: Path) -> frozenset[int]:
    names = (path.name for path in (root / "dev").glob("nvidia*"))
    matches = (re.fullmatch("nvidia([0-9]{1,3})", name) for name in names)
    return frozenset(int(match[1]) for match in matches if match)


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


# The chips by the name that a device tree gives them. Source: NVIDIA's table "CUDA GPU Compute
# Capability" (Jetson) and Linux `arch/arm64/boot/dts/nvidia`.
_TEGRA = {
    "nvidia,tegra264": "11.0",
    "nvidia,tegra234": "8.7",
    "nvidia,tegra194": "7.2",
    "nvidia,tegra186": "6.2",
    "nvidia,tegra210": "5.3",
    "nvidia,tegra124": "3.2",
}


def parse_board(*, model: str, compatible: str) -> TegraBoard | None:
    r"""Return the board that a device tree describes, where its processor is NVIDIA's.

    >>> parse_board(model="Jetson AGX Orin\0", compatible="nvidia,p3701\0nvidia,tegra234\0").model
    'Jetson AGX Orin'
    """
    names = compatible.split("\0")
    if not any(name.startswith("nvidia,tegra") for name in names):
        return None
    capability = next((_TEGRA[name] for name in names if name in _TEGRA), None)
    return TegraBoard(
        model=clean(model.replace("\0", " ")) or "NVIDIA Tegra board",
        compute_capability=ComputeCapability.parse(capability) if capability else None,
    )


def board_finding(board: TegraBoard, *, found: bool) -> Finding | None:
    """Return what to say about a Jetson: the wheels of the PyTorch index are hardly made for it.

    Thor is the exception, with code of its own in the ordinary aarch64 wheels since CUDA 13; it is
    worth a word only where no GPU was `found`.
    """
    ordinary = board.compute_capability is not None and board.compute_capability.major >= 11
    if ordinary and found:
        return None
    capability = (
        f" (compute capability {board.compute_capability})" if board.compute_capability else ""
    )
    if ordinary:
        message = f"{board.model}{capability} is here, and its NVIDIA driver does not answer"
        hint = "install JetPack's driver and libraries; a container needs `--runtime nvidia`"
    else:
        message = f"{board.model}{capability} is here: NVIDIA makes its own PyTorch wheels for it"
        hint = "install the wheel that NVIDIA made for this release of JetPack"
    return Finding(message=message, source="/proc/device-tree", hint=hint)


def kernel_report(reading: KernelReading, cards: Sequence[PciCard] = ()) -> Report:
    """Return why no GPU answered although the kernel has a driver, or the PCI bus a card."""
    cards = [card for card in cards if card.vendor == "0x10de"]
    source = reading.source
    if _is_too_new(reading, cards):
        message = (
            f"an NVIDIA card is here, and the driver {reading.driver_version} has given up cards"
            " as old as this one"
        )
        hint = "install NVIDIA's driver 580, the last for the GTX 10 series, Volta and Maxwell"
    elif reading.driver_version is not None and not reading.device_nodes:
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
        hint = _MISSING_LIBRARIES_HINT
    elif reading.wsl_device:
        source = "/dev/dxg"
        message = (
            "this is WSL with the GPUs of Windows (`/dev/dxg`), and NVIDIA's libraries are not"
        )
        message += " in `/usr/lib/wsl/lib`: no NVIDIA GPU to compute on"
        hint = (
            "for an NVIDIA GPU install its driver in Windows and run `wsl --shutdown`;"
            " for an Intel Arc ask for `xpu`"
        )
    elif cards:
        source = "/sys/bus/pci/devices"
        message, hint = _card_words(next((card.driver for card in cards if card.driver), ""))
    else:
        return Report()
    return Report(findings=(Finding(message=message, source=source, hint=hint),))


# The PCI ids of Turing begin here, and those of all older chips end before (pci.ids).
_FIRST_TURING_ID = 0x1E00


def _is_too_new(reading: KernelReading, cards: Sequence[PciCard]) -> bool:
    """Return whether the driver is one from after 580, and all that is here are older cards.

    It is loaded then and leaves them alone.
    """
    if reading.driver_version is None or int(reading.driver_version.partition(".")[0]) < 590:
        return False
    return bool(cards) and all(
        not card.driver
        and re.fullmatch("0x[0-9a-f]{4}", card.device) is not None
        and int(card.device, 16) < _FIRST_TURING_ID
        for card in cards
    )


def _card_words(driver: str) -> tuple[str, str]:
    if driver == "vfio-pci":
        return (
            "an NVIDIA card is here, bound to `vfio-pci`: it is set aside for a virtual machine",
            "use it in that virtual machine, or give it back to NVIDIA's driver",
        )
    if driver == "nvidia":
        return (
            "an NVIDIA card is on the host, bound to its driver, and no GPU is here",
            "if this is a container, start it with its GPUs, such as `docker run --gpus all`",
        )
    to = f"bound to `{driver}`" if driver else "without a driver"
    return (
        f"an NVIDIA card is here, {to}: NVIDIA's own driver is not loaded",
        "install the NVIDIA driver, and restart",
    )


def nvidia_part(
    report: Report,
    kernel: KernelReading | None,
    cards: Sequence[PciCard] = (),
    *,
    failed: bool,
) -> Report:
    """Return the report with the kernel's words, which speak only where no GPU was found.

    A host's driver seen from a container without GPUs explains whatever else `failed` there; a
    driver that is loaded, with its devices, is worth a word only where nothing else was said.
    """
    if kernel is None:
        return report
    board = None
    if kernel.board is not None:
        board = board_finding(kernel.board, found=bool(report.accelerators))
    if report.accelerators or board is not None:
        findings = (*report.findings, board) if board is not None else report.findings
        return replace(report, findings=findings)
    explained = kernel_report(kernel, cards)
    missing = kernel.driver_version is None or not kernel.device_nodes
    if explained.findings and missing and not failed:
        return explained
    return report if report.findings or failed else explained
