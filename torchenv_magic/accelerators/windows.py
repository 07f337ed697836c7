r"""The display adapters of Windows, by its registry: needs no driver and no vendor's library.

NVIDIA's GPUs are found through their driver; this says what is wrong where that finds none. Intel's
are judged by the same table of PCI ids as on Linux. AMD's are reported with their name alone.

A device's own key is `HKLM\SYSTEM\CurrentControlSet\Enum\<instance>`, which names its driver's
key below `…\Control\Class`. Both keep devices that are long gone, so the instances come from the
Configuration Manager (`cfgmgr32.h`: CM_Get_Device_ID_ListW), which tells those that are present.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torchenv_magic.accelerators.intel import VENDOR_INTEL, known_gpus, unsupported_findings
from torchenv_magic.accelerators.probing import Report, clean
from torchenv_magic.accelerators.records import Accelerator, Finding

__all__ = [
    "DisplayAdapter",
    "adapter_of",
    "adapters_report",
    "nvidia_adapter_findings",
    "nvidia_driver_version",
    "read_adapters",
]

_VENDOR_AMD = 0x1002
_VENDOR_NVIDIA = 0x10DE
_SOURCE = "Windows' list of devices"

_DISPLAY_CLASS = "{4d36e968-e325-11ce-bfc1-08002be10318}"
_DEVICE_VALUES = ("ClassGUID", "CompatibleIDs", "Driver")
_DRIVER_VALUES = (
    "DriverDesc",
    "DriverVersion",
    "HardwareInformation.qwMemorySize",
    "MatchingDeviceId",
)

# cfgmgr32.h and cfg.h
_FILTER_ENUMERATOR = 0x1
_FILTER_PRESENT = 0x100
_BUFFER_SMALL = 0x1A
_HAS_PROBLEM = 0x400
_DISABLED = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayAdapter:
    """A display adapter on the PCI bus that is present, with a driver or without."""

    vendor_id: int
    device_id: int
    name: str | None = None
    """What its maker's driver calls it; None without one."""
    driver_version: str | None = None
    """In Windows' own numbers: `32.0.15.6094`. None where the driver is not its maker's."""
    memory_bytes: int | None = None
    problem: int = 0
    """The code that the Device Manager shows for a device that does not work; 0 for one that does.

    Source: Microsoft, "Device Manager Error Messages".
    """


def read_adapters() -> tuple[DisplayAdapter, ...]:
    """Return the display adapters that are present; none on a system that is not Windows.

    Raises
    ------
    OSError
        Windows does not tell.
    """
    if sys.platform == "win32":
        return tuple(_present_adapters())
    return ()


if sys.platform == "win32":

    def _present_adapters() -> Iterator[DisplayAdapter]:
        for instance, problem in _present_pci_devices():
            path = rf"SYSTEM\CurrentControlSet\Enum\{instance}"
            device = _registry_values(path, _DEVICE_VALUES)
            driver: Mapping[str, object] = {}
            if isinstance(key := device.get("Driver"), str):
                path = rf"SYSTEM\CurrentControlSet\Control\Class\{key}"
                driver = _registry_values(path, _DRIVER_VALUES)
            if adapter := adapter_of(instance, device=device, driver=driver, problem=problem):
                yield adapter

    def _present_pci_devices() -> list[tuple[str, int]]:
        """Return each device's instance, and its problem code."""
        import ctypes

        manager = ctypes.WinDLL("cfgmgr32")
        flags = _FILTER_ENUMERATOR | _FILTER_PRESENT
        length = ctypes.c_ulong()
        result = _BUFFER_SMALL
        for _ in range(3):  # a device may arrive between the two calls
            manager.CM_Get_Device_ID_List_SizeW(ctypes.byref(length), "PCI", flags)
            buffer = ctypes.create_unicode_buffer(max(length.value, 1))
            result = manager.CM_Get_Device_ID_ListW("PCI", buffer, len(buffer), flags)
            if result != _BUFFER_SMALL:
                break
        if result != 0:
            message = f"the Configuration Manager answers {result:#x}"
            raise OSError(message)
        listed = ctypes.wstring_at(buffer, len(buffer))  # each ends in a NUL
        devices = []
        for instance in filter(None, listed.split("\0")):
            node, status, problem = ctypes.c_ulong(), ctypes.c_ulong(), ctypes.c_ulong()
            if manager.CM_Locate_DevNodeW(ctypes.byref(node), instance, 0) == 0:
                manager.CM_Get_DevNode_Status(ctypes.byref(status), ctypes.byref(problem), node, 0)
            devices.append((instance, problem.value if status.value & _HAS_PROBLEM else 0))
        return devices

    def _registry_values(path: str, names: Iterable[str]) -> dict[str, object]:
        """Return those of the key's values that are there; none where the key is not."""
        import contextlib
        import winreg

        values: dict[str, object] = {}
        with (
            contextlib.suppress(OSError),
            winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key,
        ):
            for name in names:
                with contextlib.suppress(OSError):
                    values[name] = winreg.QueryValueEx(key, name)[0]
        return values


def adapter_of(
    instance: str, *, device: Mapping[str, object], driver: Mapping[str, object], problem: int = 0
) -> DisplayAdapter | None:
    """Return the display adapter that these keys' values describe; None for any other device.

    `device` are values of its own key, `driver` of its driver's. A GPU without any driver has no
    class yet, and is known by the PCI class among its compatible ids.
    """
    ids = re.match(r"PCI\\VEN_([0-9A-F]{4})&DEV_([0-9A-F]{4})", instance, re.IGNORECASE)
    if ids is None or not _is_display(device):
        return None
    # Microsoft's basic driver drives any maker's card, and is matched by the PCI class alone.
    is_the_makers = "VEN_" in _text(driver.get("MatchingDeviceId")).upper()
    return DisplayAdapter(
        vendor_id=int(ids[1], 16),
        device_id=int(ids[2], 16),
        name=_text(driver.get("DriverDesc")) or None if is_the_makers else None,
        driver_version=_text(driver.get("DriverVersion")) or None if is_the_makers else None,
        memory_bytes=_memory(driver.get("HardwareInformation.qwMemorySize")),
        problem=problem,
    )


def _is_display(device: Mapping[str, object]) -> bool:
    if _text(device.get("ClassGUID")).lower() == _DISPLAY_CLASS:
        return True
    compatible = device.get("CompatibleIDs")
    names = compatible if isinstance(compatible, list) else []
    return any(_text(name).upper().startswith(r"PCI\CC_03") for name in names)


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


def _memory(value: object) -> int | None:
    """Return the bytes: drivers write a number (REG_QWORD) or its eight bytes (REG_BINARY)."""
    if isinstance(value, bytes) and len(value) == 8:
        value = int.from_bytes(value, "little")
    return value if isinstance(value, int) and value > 0 else None


def adapters_report(adapters: Iterable[DisplayAdapter], *, nvidia: bool) -> Report:
    """Return the GPUs of Intel and AMD, and what is wrong with NVIDIA's where there is one to miss.

    `nvidia` says that NVIDIA's driver has reported its GPUs itself. PyTorch's index has no build
    for AMD's GPUs on Windows: they are here so that this can be said.
    """
    adapters = tuple(adapters)
    found: list[tuple[bool, Accelerator]] = []
    findings = list(() if nvidia else nvidia_adapter_findings(adapters))
    unsupported: list[str] = []
    for adapter in adapters:
        if adapter.vendor_id == _VENDOR_AMD:
            name = adapter.name or f"AMD GPU 1002:{adapter.device_id:04x}"
            found.append((True, _accelerator("amd", name, adapter)))
        if adapter.vendor_id != VENDOR_INTEL:
            continue
        gpu = known_gpus().get(adapter.device_id)
        name = adapter.name or (gpu.name if gpu else f"Intel graphics 8086:{adapter.device_id:04x}")
        if gpu is None or not gpu.is_xpu:
            unsupported.append(name)
        elif problem := _problem(name, adapter, maker="Intel"):
            findings.append(problem)
        else:
            found.append((gpu.is_discrete, _accelerator("intel", name, adapter)))
    others = any(adapter.vendor_id in {_VENDOR_AMD, _VENDOR_NVIDIA} for adapter in adapters)
    if not (found or findings or others):
        findings.extend(unsupported_findings(unsupported, source=_SOURCE))
    found.sort(key=lambda pair: (not pair[0], -(pair[1].memory_bytes or 0)))
    return Report(
        accelerators=tuple(accelerator for _, accelerator in found),
        findings=tuple(dict.fromkeys(findings)),
    )


def _accelerator(
    vendor: Literal["amd", "intel"], name: str, adapter: DisplayAdapter
) -> Accelerator:
    return Accelerator(
        vendor=vendor,
        name=name,
        memory_bytes=adapter.memory_bytes,
        driver_version=adapter.driver_version,
        source=_SOURCE,
    )


def nvidia_adapter_findings(adapters: Iterable[DisplayAdapter]) -> tuple[Finding, ...]:
    """Return what is wrong with each NVIDIA GPU here, for a host where its driver reported none."""
    findings = []
    for adapter in adapters:
        if adapter.vendor_id != _VENDOR_NVIDIA:
            continue
        name = adapter.name or f"NVIDIA GPU 10de:{adapter.device_id:04x}"
        finding = _problem(name, adapter, maker="NVIDIA")
        if finding is None:
            version = nvidia_driver_version(adapter.driver_version or "")
            named = f"its driver {version}" if version else "its driver"
            message = f"{name} is here, and {named} does not answer"
            hint = "restart Windows; where that does not help, install NVIDIA's driver again"
            finding = Finding(message=message, source=_SOURCE, hint=hint)
        findings.append(finding)
    return tuple(dict.fromkeys(findings))


def _problem(name: str, adapter: DisplayAdapter, *, maker: str) -> Finding | None:
    if adapter.problem == _DISABLED:
        message = f"{name} is disabled in Windows"
        hint = "enable it in the Device Manager"
    elif adapter.driver_version is None:
        message = f"{name} is here, and {maker}'s driver is not installed"
        hint = f"install {maker}'s graphics driver for Windows"
    elif adapter.problem:
        message = f"Windows has stopped {name}: code {adapter.problem} in the Device Manager"
        hint = f"restart Windows; where that does not help, install {maker}'s driver again"
    else:
        return None
    return Finding(message=message, source=_SOURCE, hint=hint)


def nvidia_driver_version(windows_version: str) -> str | None:
    """Return NVIDIA's own number: the last five digits of the one that Windows shows.

    >>> nvidia_driver_version("21.21.13.7254"), nvidia_driver_version("32.0.15.6094")
    ('372.54', '560.94')
    """
    parts = windows_version.split(".")
    if len(parts) != 4 or not all(re.fullmatch(r"[0-9]{1,5}", part) for part in parts):
        return None
    digits = (parts[2] + parts[3].zfill(4))[-5:]
    return f"{int(digits[:3])}.{digits[3:]}"
