"""Intel GPUs: the table of ids against its sources, and roots made up like machines of Linux."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchenv_magic.accelerators import Host, detect
from torchenv_magic.accelerators.intel import (
    VENDOR_INTEL,
    XPU_FAMILIES,
    IntelReading,
    PciDisplay,
    intel_report,
    known_gpus,
    read_intel,
)

SOURCES = Path(__file__).parent / "data" / "intel"

posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows makes no links without a right")

ARC_A770 = 0x56A0
ARC_B580 = 0xE20B
ARC_OF_METEOR_LAKE = 0x7D55
UHD_770 = 0xA780
LIBRARIES = ("libze_loader.so.1", "libze_intel_gpu.so.1")


# ---------------------------------------------------------------- the table against its sources


@cache
def kernel_lists() -> dict[str, tuple[int, ...]]:
    """Return the ids of each list of the kernel's header, with those of the lists inside it."""
    text = (SOURCES / "pciids.h").read_text(encoding="utf-8")
    bodies = dict(re.findall(r"#define INTEL_(\w+)_IDS\(MACRO__, \.\.\.\)((?:.*\\\n)*.*)", text))

    def ids(name: str) -> tuple[int, ...]:
        own = [int(number, 16) for number in re.findall(r"MACRO__\((0[xX]\w+)", bodies[name])]
        inner = re.findall(r"INTEL_(\w+)_IDS\(MACRO__", bodies[name])
        return (*own, *(number for part in inner for number in ids(part)))

    return {name: ids(name) for name in bodies}


@cache
def names_in_pci_ids() -> dict[int, str]:
    text = (SOURCES / "pci.ids").read_text(encoding="utf-8")
    return {int(number, 16): name for number, name in re.findall(r"\t(\w{4})  (.+)", text)}


def ids_of(*names: str) -> set[int]:
    return {number for name in names for number in kernel_lists()[name]}


def ids_of_the_documented_families() -> dict[str, set[int]]:
    """Return the kernel's ids of what PyTorch's "Getting Started on Intel GPU" lists."""
    named = names_in_pci_ids()
    # These numbers belong to graphics of old Atoms as well, which is worse than to miss a card
    # that Intel never sold under them.
    atoms = {number for number in ids_of("PVC") if "Atom" in named.get(number, "")}
    # Of Meteor Lake the H alone is listed: the kernel sets the U apart, pci.ids the M.
    small = {number for number in ids_of("MTL") if "Lake-M " in named.get(number, "")}
    return {
        "Ponte Vecchio": ids_of("PVC") - atoms,
        "Alchemist": ids_of("DG2"),
        "Battlemage": ids_of("BMG"),
        "Meteor Lake-H": ids_of("MTL") - ids_of("MTL_U") - small,
        "Arrow Lake-H": ids_of("ARL_H"),
        "Lunar Lake": ids_of("LNL"),
        "Panther Lake": ids_of("PTL"),
    }


def test_the_table_has_every_id_of_the_documented_families_and_no_other_as_an_xpu() -> None:
    wanted = ids_of_the_documented_families()
    in_table = {
        family: {number for number, gpu in known_gpus().items() if gpu.family == family}
        for family in wanted
    }
    assert in_table == wanted
    assert wanted.keys() == XPU_FAMILIES
    assert {number for number, gpu in known_gpus().items() if gpu.is_xpu} == set().union(
        *wanted.values()
    )


def test_the_table_knows_every_id_of_the_kernel_except_those_of_old_atoms() -> None:
    unknown = set().union(*kernel_lists().values()) - known_gpus().keys()
    assert {names_in_pci_ids()[number].split()[0] for number in unknown} == {"Atom"}
    assert known_gpus().keys() <= set().union(*kernel_lists().values())


def test_the_families_that_are_no_xpus_are_none() -> None:
    old = ids_of("SKL", "KBL", "CFL", "ICL", "TGL", "RKL", "ADLS", "ADLP", "ADLN", "RPLS", "RPLP")
    for number in old | ids_of("DG1", "ATS_M", "MTL_U", "ARL_U", "ARL_S", "WCL"):
        assert not known_gpus()[number].is_xpu, f"{number:04x}"


def test_the_names_are_those_of_pci_ids() -> None:
    product = re.compile(r"\bArc\b|\bIris\b|\bU?HD Graphics\b|\bData Center GPU\b")
    for number, gpu in known_gpus().items():
        theirs = names_in_pci_ids().get(number, "")
        if product.search(theirs):
            assert gpu.name.removeprefix("Intel ") in theirs, f"{number:04x}"
        else:  # a name that says nothing, or none at all
            assert gpu.name == f"Intel Graphics ({gpu.family})", f"{number:04x}"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0x56A0, "Intel Arc A770"),
        (0x56B3, "Intel Arc Pro A60"),
        (0xE20B, "Intel Arc B580"),
        (0xE212, "Intel Arc Pro B50"),
        (0x7D55, "Intel Arc Graphics"),
        (0x7D51, "Intel Arc Pro 130T/140T"),
        (0x64A0, "Intel Arc Graphics 130V/140V"),
        (0xB080, "Intel Arc B390"),
        (0x0BD5, "Intel Data Center GPU Max 1550"),
    ],
)
def test_the_well_known_xpus_are_there_by_name(number: int, name: str) -> None:
    assert known_gpus()[number].name == name
    assert known_gpus()[number].is_xpu


# ------------------------------------------------------------------------------- the judgement


def arc(device_id: int = ARC_A770, **facts: object) -> PciDisplay:
    given: dict[str, object] = {"driver": "xe", "render_node": "renderD128", **facts}
    return PciDisplay(vendor_id=VENDOR_INTEL, device_id=device_id, **given)  # type: ignore[arg-type]


def reading(*displays: PciDisplay, nodes: tuple[str, ...] = ("renderD128",)) -> IntelReading:
    return IntelReading(displays=displays, render_nodes=nodes, permitted=frozenset(nodes))


def test_an_xpu_with_its_render_node_is_an_accelerator_and_nothing_has_to_be_said() -> None:
    report = intel_report(reading(arc()))
    assert [gpu.name for gpu in report.accelerators] == ["Intel Arc A770"]
    assert [gpu.vendor for gpu in report.accelerators] == ["intel"]
    assert not report.findings


def test_an_xpu_in_a_container_without_dev_dri_says_how_to_pass_it_on() -> None:
    report = intel_report(reading(arc(), nodes=()))
    assert not report.accelerators
    assert "is on the host" in report.findings[0].message
    assert "--device /dev/dri" in report.findings[0].hint


def test_the_render_node_of_another_card_does_not_stand_for_one_that_the_kernel_names() -> None:
    assert not intel_report(reading(arc(render_node="renderD129"))).accelerators


def test_an_xpu_without_a_driver_says_so() -> None:
    report = intel_report(reading(arc(driver=None, render_node=None), nodes=()))
    assert not report.accelerators
    assert "no driver is loaded" in report.findings[0].message
    assert "`xe` or `i915`" in report.findings[0].hint


def test_a_render_node_that_belongs_to_nobody_proves_the_driver_that_sys_does_not_name() -> None:
    assert intel_report(reading(arc(driver=None, render_node=None))).accelerators


def test_a_render_node_that_belongs_to_another_card_proves_nothing() -> None:
    radeon = PciDisplay(vendor_id=0x1002, device_id=0x744C, render_node="renderD128")
    report = intel_report(reading(radeon, arc(driver=None, render_node=None)))
    assert not report.accelerators
    assert "no driver is loaded" in report.findings[0].message


def test_an_xpu_kept_for_a_virtual_machine_is_none_here() -> None:
    report = intel_report(reading(arc(driver="vfio-pci", render_node=None)))
    assert not report.accelerators
    assert "vfio-pci" in report.findings[0].message


def test_a_render_node_that_may_not_be_opened_leaves_the_accelerator_and_names_the_group() -> None:
    report = intel_report(IntelReading(displays=(arc(),), render_nodes=("renderD128",)))
    assert report.accelerators
    assert "/dev/dri/renderD128" in report.findings[0].message
    assert "`render`" in report.findings[0].hint


def test_a_missing_compute_runtime_leaves_the_accelerator_and_names_the_packages() -> None:
    report = intel_report(
        IntelReading(
            displays=(arc(),),
            render_nodes=("renderD128",),
            permitted=frozenset({"renderD128"}),
            missing_libraries=LIBRARIES,
        )
    )
    assert report.accelerators
    assert all(name in report.findings[0].message for name in LIBRARIES)
    assert "libze-intel-gpu1" in report.findings[0].hint


def test_discrete_xpus_come_before_integrated_ones_and_the_larger_memory_first() -> None:
    nodes = ("renderD128", "renderD129", "renderD130")
    report = intel_report(
        reading(
            arc(ARC_OF_METEOR_LAKE, render_node=nodes[0]),
            arc(ARC_B580, render_node=nodes[1], memory_bytes=12 << 30),
            arc(ARC_A770, render_node=nodes[2], memory_bytes=16 << 30),
            nodes=nodes,
        )
    )
    names = [gpu.name for gpu in report.accelerators]
    assert names == ["Intel Arc A770", "Intel Arc B580", "Intel Arc Graphics"]


def test_graphics_that_are_no_xpu_are_named_where_they_are_all_there_is() -> None:
    report = intel_report(reading(arc(UHD_770, driver="i915")))
    assert not report.accelerators
    [finding] = report.findings
    assert "Intel UHD Graphics 770" in finding.message
    assert "XPU builds do not support it" in finding.message


def test_graphics_that_the_table_does_not_know_are_named_by_their_number() -> None:
    [finding] = intel_report(reading(arc(0x0042))).findings
    assert "8086:0042" in finding.message


@pytest.mark.parametrize(
    "other",
    [
        PciDisplay(vendor_id=0x10DE, device_id=0x2684),
        PciDisplay(vendor_id=0x1002, device_id=0x744C),
        arc(ARC_A770),
    ],
    ids=["NVIDIA", "AMD", "Arc"],
)
def test_graphics_that_are_no_xpu_are_no_news_beside_a_gpu(other: PciDisplay) -> None:
    assert not intel_report(reading(arc(UHD_770, render_node="renderD129"), other)).findings


def test_the_display_of_a_server_board_is_no_gpu_to_speak_about() -> None:
    aspeed = PciDisplay(vendor_id=0x1A03, device_id=0x2000)
    assert intel_report(reading(arc(UHD_770), aspeed)).findings
    assert not intel_report(reading(aspeed)).findings


def test_two_cards_of_one_kind_that_lack_the_same_thing_have_one_line() -> None:
    assert len(intel_report(reading(arc(), arc(), nodes=())).findings) == 1


# ------------------------------------------------------------------------------------ the probe


def make_machine(
    root: Path,
    *,
    number: str = "0x56a0",
    driver: str | None = "xe",
    node: str | None = "renderD128",
    in_dev: bool = True,
    libraries: bool = True,
) -> Path:
    """Make a root as Linux shows an Intel GPU behind a PCI bridge, and return the GPU's folder."""
    add_device(root, "0000:00:00.0", vendor="0x8086", number="0x7d14", pci_class="0x060000")
    gpu = add_device(root, "0000:03:00.0", vendor="0x8086", number=number, pci_class="0x030000")
    if driver is not None:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
        (gpu / "driver").symlink_to(f"../../drivers/{driver}")
    (root / "dev/dri").mkdir(parents=True)
    if node is not None:
        (gpu / "drm" / node).mkdir(parents=True)
    if node is not None and in_dev:
        (root / "dev/dri" / node).touch()
    if libraries:
        folder = root / "usr/lib/x86_64-linux-gnu"
        folder.mkdir(parents=True)
        for name in LIBRARIES:
            (folder / name).touch()
    return gpu


def add_device(root: Path, address: str, *, vendor: str, number: str, pci_class: str) -> Path:
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, text in (("vendor", vendor), ("device", number), ("class", pci_class)):
        (folder / name).write_text(f"{text}\n", encoding="ascii")
    return folder


def host_of(root: Path) -> Host:
    # Empty, so that nothing of the machine that runs the tests is asked or told.
    return detect(root=root, environ={"PATH": str(root)})


@posix_only
def test_detect_finds_an_arc_card_on_the_bus(tmp_path: Path) -> None:
    make_machine(tmp_path)
    [gpu] = [item for item in host_of(tmp_path).accelerators if item.vendor == "intel"]
    assert (gpu.name, gpu.source) == ("Intel Arc A770", "/sys/bus/pci/devices")


@posix_only
def test_detect_finds_no_accelerator_in_uhd_graphics_and_says_why(tmp_path: Path) -> None:
    make_machine(tmp_path, number="0x4680", driver="i915")
    host = host_of(tmp_path)
    assert not [item for item in host.accelerators if item.vendor == "intel"]
    assert any("Intel UHD Graphics 770 is here" in str(finding) for finding in host.findings)


@posix_only
def test_the_probe_reads_driver_node_and_memory(tmp_path: Path) -> None:
    gpu = make_machine(tmp_path)
    for tile, size in (("tile0", 16 << 30), ("tile1", 16 << 30)):
        (gpu / tile).mkdir()
        (gpu / tile / "physical_vram_size_bytes").write_text(f"{size}\n", encoding="ascii")
    assert read_intel(tmp_path) == IntelReading(
        displays=(
            PciDisplay(
                vendor_id=VENDOR_INTEL,
                device_id=ARC_A770,
                driver="xe",
                render_node="renderD128",
                memory_bytes=32 << 30,
            ),
        ),
        render_nodes=("renderD128",),
        permitted=frozenset({"renderD128"}),
    )


@posix_only
def test_the_probe_reads_the_memory_that_i915_tells(tmp_path: Path) -> None:
    gpu = make_machine(tmp_path, driver="i915")
    (gpu / "drm/card1").mkdir()
    (gpu / "drm/card1/lmem_total_bytes").write_text("17070817280\n", encoding="ascii")
    assert read_intel(tmp_path).displays[0].memory_bytes == 17070817280


@posix_only
@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"driver": None, "node": None}, "no driver is loaded"),
        ({"driver": "vfio-pci", "node": None}, "vfio-pci"),
        ({"in_dev": False}, "is on the host"),
        ({"libraries": False}, "Level Zero"),
    ],
)
def test_what_is_missing_on_the_machine_is_said(
    tmp_path: Path, machine: dict[str, object], expected: str
) -> None:
    make_machine(tmp_path, **machine)  # type: ignore[arg-type]
    [finding] = intel_report(read_intel(tmp_path)).findings
    assert expected in finding.message


@posix_only
def test_a_render_node_that_cannot_be_opened_is_there_and_not_permitted(tmp_path: Path) -> None:
    make_machine(tmp_path, in_dev=False)
    # What not even root may open.
    (tmp_path / "dev/dri/renderD128").symlink_to("nothing")
    found = read_intel(tmp_path)
    assert (found.render_nodes, found.permitted) == (("renderD128",), frozenset())


@posix_only
def test_libraries_count_where_the_loader_finds_them(tmp_path: Path) -> None:
    make_machine(tmp_path, libraries=False)
    assert read_intel(tmp_path).missing_libraries == LIBRARIES
    (tmp_path / "opt/intel").mkdir(parents=True)
    (tmp_path / "opt/intel" / LIBRARIES[0]).touch()
    environ = {"LD_LIBRARY_PATH": f"/nowhere::/{'x' * 5000}:/opt/intel"}
    assert read_intel(tmp_path, environ).missing_libraries == LIBRARIES[1:]
    (tmp_path / "etc").mkdir()
    cached = b"glibc-ld.so.cache1.1\0\xff\xfelibze_intel_gpu.so.1\0/opt/x/libze_intel_gpu.so.1\0"
    (tmp_path / "etc/ld.so.cache").write_bytes(cached)
    assert read_intel(tmp_path, environ).missing_libraries == ()


def test_a_machine_without_sys_has_no_displays(tmp_path: Path) -> None:
    assert read_intel(tmp_path) == IntelReading(displays=())


@given(
    texts=st.fixed_dictionaries(
        {name: st.binary(max_size=40) for name in ("class", "vendor", "device")}
    )
)
def test_any_bytes_in_sys_are_survived(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("machine")
    folder = root / "sys/bus/pci/devices/0000:03:00.0"
    folder.mkdir(parents=True)
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    assert intel_report(read_intel(root)).accelerators == ()


def test_a_device_that_cannot_be_read_does_not_hide_the_next(tmp_path: Path) -> None:
    broken = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    (broken / "class").mkdir(parents=True)
    add_device(
        tmp_path, "0000:02:00.0", vendor="0x8086", number="0x" + "f" * 5000, pci_class="0x030000"
    )
    add_device(tmp_path, "0000:03:00.0", vendor="0x8086", number="0x56a0", pci_class="0x030000")
    assert [display.device_id for display in read_intel(tmp_path).displays] == [ARC_A770]


def test_what_a_hostile_root_names_cannot_reach_the_terminal() -> None:
    [finding] = intel_report(reading(arc(driver="\x1b[31mvfio\npci"))).findings
    assert finding.message.isprintable()
