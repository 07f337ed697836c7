r"""Display adapters of Windows: what its registry holds, through the parser and the judgement.

The texts are in the form in which `reg query` prints a device's own key (`…\Enum\PCI\…`) and its
driver's (`…\Control\Class\…`), put together by hand from what people have published.
"""

from __future__ import annotations

import doctest
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchenv_magic.accelerators import windows
from torchenv_magic.accelerators.windows import (
    DisplayAdapter,
    adapter_of,
    adapters_report,
    nvidia_adapter_findings,
    nvidia_driver_version,
    read_adapters,
)

ARC_A770 = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_8086&DEV_56A0&SUBSYS_10208086&REV_08\6&1c8b1d9d&0&00080008
    DeviceDesc    REG_SZ    @oem42.inf,%idg2%;Intel(R) Arc(TM) A770 Graphics
    CompatibleIDs    REG_MULTI_SZ    PCI\VEN_8086&DEV_56A0&REV_08\0PCI\VEN_8086&CC_0300\0PCI\CC_0300
    ClassGUID    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}
    Service    REG_SZ    igfxnd
    Driver    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}\0001

HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}\0001
    DriverDesc    REG_SZ    Intel(R) Arc(TM) A770 Graphics
    ProviderName    REG_SZ    Intel Corporation
    DriverVersion    REG_SZ    32.0.101.6913
    MatchingDeviceId    REG_SZ    PCI\VEN_8086&DEV_56A0
    HardwareInformation.MemorySize    REG_BINARY    00000000
    HardwareInformation.qwMemorySize    REG_QWORD    0x400000000
"""

IRIS_XE = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_8086&DEV_9A49&SUBSYS_0A201028&REV_01\3&11583659&0&10
    CompatibleIDs    REG_MULTI_SZ    PCI\VEN_8086&DEV_9A49&REV_01\0PCI\CC_0300
    ClassGUID    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}
    Service    REG_SZ    igfx
    Driver    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}\0001

HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}\0001
    DriverDesc    REG_SZ    Intel(R) Iris(R) Xe Graphics
    ProviderName    REG_SZ    Intel Corporation
    DriverVersion    REG_SZ    32.0.101.7092
    MatchingDeviceId    REG_SZ    PCI\VEN_8086&DEV_9A49
    HardwareInformation.MemorySize    REG_BINARY    00F0FF7F
"""

RX_7900_XTX = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_1002&DEV_744C&SUBSYS_0E3B1002&REV_C8\6&1f5a4bc6&0&00000009
    ClassGUID    REG_SZ    {4D36E968-E325-11CE-BFC1-08002BE10318}
    Service    REG_SZ    amdwddmg
    Driver    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}\0000

HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}\0000
    DriverDesc    REG_SZ    AMD Radeon RX 7900 XTX
    DriverVersion    REG_SZ    32.0.12033.1030
    MatchingDeviceId    REG_SZ    PCI\VEN_1002&DEV_744C&REV_C8
    HardwareInformation.MemorySize    REG_DWORD    0xfff00000
    HardwareInformation.qwMemorySize    REG_BINARY    0000000006000000
"""

GTX_1060 = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_10DE&DEV_1C03&SUBSYS_32871462&REV_A1\4&2283f625&0&0019
    CompatibleIDs    REG_MULTI_SZ    PCI\VEN_10DE&DEV_1C03&REV_A1\0PCI\VEN_10DE&CC_0300\0PCI\CC_0300
    ClassGUID    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}
    Service    REG_SZ    nvlddmkm
    Driver    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}\0000

HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}\0000
    DriverDesc    REG_SZ    NVIDIA GeForce GTX 1060 6GB
    ProviderName    REG_SZ    NVIDIA
    DriverVersion    REG_SZ    21.21.13.7254
    MatchingDeviceId    REG_SZ    pci\ven_10de&dev_1c03
    HardwareInformation.qwMemorySize    REG_QWORD    0x180000000
"""

BASIC_DISPLAY = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_10DE&DEV_2684&SUBSYS_889A1043&REV_A1\4&1b2f3c44&0&0008
    CompatibleIDs    REG_MULTI_SZ    PCI\VEN_10DE&DEV_2684&REV_A1\0PCI\VEN_10DE&CC_0300\0PCI\CC_0300
    ClassGUID    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}
    Service    REG_SZ    BasicDisplay
    Driver    REG_SZ    {4d36e968-e325-11ce-bfc1-08002be10318}\0000

HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}\0000
    DriverDesc    REG_SZ    Microsoft Basic Display Adapter
    ProviderName    REG_SZ    Microsoft
    DriverVersion    REG_SZ    10.0.26100.1
    MatchingDeviceId    REG_SZ    PCI\CC_0300
"""

WITHOUT_DRIVER = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_10DE&DEV_1EB8&SUBSYS_12A210DE&REV_A1\3&11583659&0&E8
    DeviceDesc    REG_SZ    @system32\drivers\pci.sys,#65536;3D Video Controller
    CompatibleIDs    REG_MULTI_SZ    PCI\VEN_10DE&DEV_1EB8&REV_A1\0PCI\VEN_10DE&CC_0302\0PCI\CC_0302
"""

SOUND_OF_THE_CARD = r"""
HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Enum\PCI\VEN_10DE&DEV_10F1&SUBSYS_32871462&REV_A1\4&2283f625&0&0119
    CompatibleIDs    REG_MULTI_SZ    PCI\VEN_10DE&DEV_10F1&REV_A1\0PCI\VEN_10DE&CC_0403\0PCI\CC_0403
    ClassGUID    REG_SZ    {4d36e97d-e325-11ce-bfc1-08002be10318}
    Service    REG_SZ    HDAudBus
"""


def registry_values(printed: str) -> dict[str, dict[str, object]]:
    """Return what `reg query` has printed as Python's `winreg` would have returned it, by key."""
    keys: dict[str, dict[str, object]] = {}
    values: dict[str, object] = {}
    for line in printed.splitlines():
        if line.startswith("HKEY_"):
            values = keys.setdefault(line.partition("CurrentControlSet\\")[2], {})
        elif line.strip():
            name, kind, text = line.strip().split("    ", 2)
            values[name] = {
                "REG_SZ": lambda text: text,
                "REG_MULTI_SZ": lambda text: text.split(r"\0"),
                "REG_DWORD": lambda text: int(text, 16),
                "REG_QWORD": lambda text: int(text, 16),
                "REG_BINARY": bytes.fromhex,
            }[kind](text)
    return keys


def adapter(printed: str, *, problem: int = 0) -> DisplayAdapter | None:
    keys = registry_values(printed)
    path, device = next((key, values) for key, values in keys.items() if key.startswith("Enum\\"))
    driver = keys.get(f"Control\\Class\\{device.get('Driver')}", {})
    return adapter_of(path.removeprefix("Enum\\"), device=device, driver=driver, problem=problem)


def adapters(*printed: str, problem: int = 0) -> list[DisplayAdapter]:
    return [found for text in printed if (found := adapter(text, problem=problem))]


# --------------------------------------------------------------------------------- the registry


def test_an_adapter_is_read_from_its_own_key_and_that_of_its_driver() -> None:
    assert adapter(ARC_A770) == DisplayAdapter(
        vendor_id=0x8086,
        device_id=0x56A0,
        name="Intel(R) Arc(TM) A770 Graphics",
        driver_version="32.0.101.6913",
        memory_bytes=16 << 30,
    )


def test_the_memory_is_read_as_a_number_or_as_its_bytes() -> None:
    [radeon, geforce] = adapters(RX_7900_XTX, GTX_1060)
    assert (radeon.memory_bytes, geforce.memory_bytes) == (24 << 30, 6 << 30)


def test_a_memory_that_is_not_told_in_full_is_not_guessed() -> None:
    [iris] = adapters(IRIS_XE)
    assert iris.memory_bytes is None


def test_microsofts_basic_driver_is_no_driver_of_the_card() -> None:
    [card] = adapters(BASIC_DISPLAY)
    assert (card.device_id, card.name, card.driver_version) == (0x2684, None, None)


def test_a_card_without_any_driver_is_known_by_its_pci_class() -> None:
    [card] = adapters(WITHOUT_DRIVER)
    assert (card.vendor_id, card.device_id, card.driver_version) == (0x10DE, 0x1EB8, None)


def test_the_sound_of_a_card_is_no_display_adapter() -> None:
    assert adapter(SOUND_OF_THE_CARD) is None


@pytest.mark.parametrize(
    "instance",
    [
        "",
        "ROOT\\BASICRENDER\\0000",
        "PCI\\VEN_8086",
        "PCI\\VEN_80860&DEV_56A0",
        "SWD\\PCI\\VEN_8086&DEV_56A0",
    ],
)
def test_a_device_that_is_not_on_the_pci_bus_is_left_out(instance: str) -> None:
    device = {"ClassGUID": "{4d36e968-e325-11ce-bfc1-08002be10318}"}
    assert adapter_of(instance, device=device, driver={}) is None


anything = st.one_of(
    st.none(), st.text(), st.binary(), st.integers(), st.lists(st.one_of(st.text(), st.none()))
)


@given(
    device=st.fixed_dictionaries(
        {"ClassGUID": st.one_of(st.just("{4d36e968-e325-11ce-bfc1-08002be10318}"), anything)},
        optional={"CompatibleIDs": anything},
    ),
    driver=st.fixed_dictionaries(
        {"MatchingDeviceId": st.one_of(st.just("PCI\\VEN_8086&DEV_56A0"), anything)},
        optional={
            "DriverDesc": anything,
            "DriverVersion": anything,
            "HardwareInformation.qwMemorySize": anything,
        },
    ),
    vendor=st.sampled_from(["8086", "10DE", "1002", "1414"]),
)
def test_any_values_in_the_registry_are_survived_and_shown_as_printable_lines(
    device: dict[str, object], driver: dict[str, object], vendor: str
) -> None:
    found = adapter_of(f"PCI\\VEN_{vendor}&DEV_56A0&REV_08\\3&1", device=device, driver=driver)
    known = [found] if found else []
    report = adapters_report(known, nvidia=False)
    for finding in report.findings:
        assert finding.message.isprintable()
    for accelerator in report.accelerators:
        assert str(accelerator).isprintable()


def test_a_name_in_the_registry_cannot_reach_the_terminal_as_it_is() -> None:
    hostile = ARC_A770.replace("REG_SZ    Intel(R) Arc(TM)", "REG_SZ    \x1b[31mIntel(R)\tArc(TM)")
    [found] = adapters(hostile)
    assert found.name == "[31mIntel(R) Arc(TM) A770 Graphics"


@pytest.mark.skipif(sys.platform == "win32", reason="here Windows answers")
def test_other_systems_have_no_adapters() -> None:
    assert read_adapters() == ()


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has the list of devices")
def test_windows_lists_its_adapters() -> None:
    for found in read_adapters():
        assert found.vendor_id


# -------------------------------------------------------------------------------- the judgement


def test_an_arc_card_is_an_accelerator_with_the_name_and_number_of_its_driver() -> None:
    [gpu] = adapters_report(adapters(ARC_A770), nvidia=True).accelerators
    assert (gpu.vendor, gpu.name) == ("intel", "Intel(R) Arc(TM) A770 Graphics")
    assert (gpu.driver_version, gpu.memory_bytes) == ("32.0.101.6913", 16 << 30)


def test_iris_xe_is_no_accelerator_and_is_named_where_it_is_all_there_is() -> None:
    report = adapters_report(adapters(IRIS_XE), nvidia=True)
    assert not report.accelerators
    assert "XPU builds do not support it" in report.findings[0].message
    assert not adapters_report(adapters(IRIS_XE, GTX_1060), nvidia=True).findings


def test_an_amd_gpu_is_reported_without_an_architecture() -> None:
    [gpu] = adapters_report(adapters(RX_7900_XTX), nvidia=True).accelerators
    assert (gpu.vendor, gpu.name, gpu.gfx) == ("amd", "AMD Radeon RX 7900 XTX", None)


def test_discrete_adapters_come_before_integrated_ones() -> None:
    meteor_lake = ARC_A770.replace("DEV_56A0", "DEV_7D55").replace(" A770", "")
    report = adapters_report(adapters(meteor_lake, ARC_A770), nvidia=True)
    assert [gpu.name for gpu in report.accelerators] == [
        "Intel(R) Arc(TM) A770 Graphics",
        "Intel(R) Arc(TM) Graphics",
    ]


@pytest.mark.parametrize(
    ("printed", "problem", "message", "hint"),
    [
        (ARC_A770, 22, "is disabled in Windows", "enable it"),
        (ARC_A770, 43, "code 43", "install Intel's driver again"),
        (
            BASIC_DISPLAY.replace("VEN_10DE&DEV_2684", "VEN_8086&DEV_56A0"),
            0,
            "Intel Arc A770 is here, and Intel's driver is not installed",
            "install Intel's graphics driver",
        ),
    ],
)
def test_an_arc_card_that_does_not_work_is_no_accelerator_and_says_why(
    printed: str, problem: int, message: str, hint: str
) -> None:
    report = adapters_report(adapters(printed, problem=problem), nvidia=True)
    assert not report.accelerators
    assert message in report.findings[0].message
    assert hint in report.findings[0].hint


@pytest.mark.parametrize(
    ("printed", "problem", "message", "hint"),
    [
        (BASIC_DISPLAY, 0, "NVIDIA GPU 10de:2684 is here, and NVIDIA's driver is not", "install"),
        (WITHOUT_DRIVER, 28, "NVIDIA GPU 10de:1eb8 is here, and NVIDIA's driver is not", "install"),
        (GTX_1060, 43, "Windows has stopped NVIDIA GeForce GTX 1060 6GB: code 43", "restart"),
        (GTX_1060, 22, "NVIDIA GeForce GTX 1060 6GB is disabled", "enable"),
        (GTX_1060, 0, "and its driver 372.54 does not answer", "restart"),
    ],
)
def test_an_nvidia_gpu_that_its_driver_does_not_report_is_explained(
    printed: str, problem: int, message: str, hint: str
) -> None:
    [finding] = nvidia_adapter_findings(adapters(printed, problem=problem))
    assert message in finding.message
    assert hint in finding.hint


def test_an_nvidia_gpu_that_its_driver_reports_needs_no_word() -> None:
    broken = adapters(GTX_1060, problem=43)
    assert not adapters_report(broken, nvidia=True).findings
    assert adapters_report(broken, nvidia=False).findings == nvidia_adapter_findings(broken)


def test_adapters_of_others_say_nothing_of_nvidia() -> None:
    assert nvidia_adapter_findings(adapters(ARC_A770, RX_7900_XTX, SOUND_OF_THE_CARD)) == ()


@pytest.mark.parametrize(
    ("windows_version", "version"),
    [
        ("21.21.13.7254", "372.54"),
        ("27.21.14.5671", "456.71"),
        ("31.0.15.3623", "536.23"),
        ("32.0.15.6094", "560.94"),
        ("9.18.13.697", "306.97"),
        ("10.0.26100", None),
        ("1.2.3.x", None),
        ("", None),
    ],
)
def test_nvidias_number_is_the_end_of_the_one_that_windows_shows(
    windows_version: str, version: str | None
) -> None:
    assert nvidia_driver_version(windows_version) == version


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(windows).failed == 0
