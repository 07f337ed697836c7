"""The catalog: that its file is what it says, and its rules are torch's own."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from importlib.resources import files

import pytest
from packaging.version import Version

from torchenv_magic.accelerators.records import ComputeCapability
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Build, driver_number, load_catalog, read_catalog

CATALOG = load_catalog()
TEXT = (files("torchenv_magic.builds") / "catalog.jsonl").read_text(encoding="utf-8")
ROWS = [json.loads(line) for line in TEXT.splitlines()]


def build(torch: str, backend: str, platform: str = "linux_x86_64") -> Build:
    [found] = [
        item
        for item in CATALOG.builds_for(Backend.parse(backend), platform)
        if item.torch == Version(torch)
    ]
    return found


# --- Backend ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CATALOG.backends(), ids=str)
def test_every_backend_survives_its_own_word(backend: Backend) -> None:
    assert Backend.parse(str(backend)) == backend
    assert backend.label


@pytest.mark.parametrize(
    "text", ["", "cuda", "cu", "cu1", "rocm", "rocm7", "CPU", "cpu ", "cu12.6"]
)
def test_other_words_are_no_backend(text: str) -> None:
    with pytest.raises(ValueError, match="is not a backend"):
        Backend.parse(text)


# --- The file -----------------------------------------------------------------------------------


def test_every_row_names_its_table_its_source_and_how_sure_it_is() -> None:
    tables = {
        "catalog",
        "uv",
        "wheels",
        "pypi",
        "cuda_code",
        "cuda_rule",
        "gfx_code",
        "hsa_override",
        "driver_floor",
        "gpu_driver",
        "last_driver",
        "companion",
    }

    assert {row["table"] for row in ROWS} == tables
    assert [row for row in ROWS if not row["source"]] == []
    # The first row is about the file; what each fact is worth, the others say.
    assert {row["strength"] for row in ROWS[1:]} <= {"primary", "strong", "medium", "weak"}


def test_no_row_names_a_host_or_a_folder_of_a_machine() -> None:
    assert re.findall(r"https?:|\.org\b|\.com\b|(?<![\w.)])/\w+/", TEXT) == []


def test_no_wheel_stands_in_two_rows() -> None:
    for (backend, platform), builds in CATALOG.builds.items():
        wheels = [(item.torch, tag) for item in builds for tag in item.python_tags]
        versions = [item.torch for item in builds]
        assert len(set(wheels)) == len(wheels), f"{backend} on {platform}"
        assert versions == sorted(versions, reverse=True)


def test_macos_and_glibc_floors_stand_where_they_belong() -> None:
    for (_, platform), builds in CATALOG.builds.items():
        for item in builds:
            assert bool(item.glibc) is platform.startswith("linux_"), str(item)
            assert bool(item.macos) is platform.startswith("macos_"), str(item)


@pytest.mark.parametrize(
    ("torch", "python_tag", "macos"),
    [
        ("2.11.0", "cp314t", "11.0"),
        ("2.12.0", "cp310", "14.0"),
        ("2.14.1", "cp315", "14.0"),
        # Here it depends on the Python.
        ("2.10.0", "cp313", "11.0"),
        ("2.10.0", "cp313t", "14.0"),
        ("2.8.0", "cp313t", "14.0"),
    ],
)
def test_macos_that_a_wheel_needs(torch: str, python_tag: str, macos: str) -> None:
    builds = CATALOG.builds_for(Backend.parse("cpu"), "macos_arm64")
    floors = [
        item.macos
        for item in builds
        if item.torch == Version(torch) and python_tag in item.python_tags
    ]

    assert floors == [macos]


def test_newest_torch_of_each_backend_on_linux() -> None:
    newest = {
        str(backend): str(CATALOG.builds_for(backend, "linux_x86_64")[0].torch)
        for backend in CATALOG.backends()
    }

    assert newest == {
        "cu132": "2.15.0",
        "cu130": "2.14.1",
        "cu129": "2.13.0",
        "cu128": "2.11.0",
        "cu126": "2.14.1",
        "cu124": "2.6.0",
        "cu121": "2.5.1",
        "cu118": "2.7.1",
        "rocm7.14": "2.14.1",
        "rocm7.2": "2.14.1",
        "rocm7.1": "2.13.0",
        "rocm7.0": "2.10.0",
        "rocm6.4": "2.9.1",
        "rocm6.3": "2.9.1",
        "rocm6.2.4": "2.7.1",
        "rocm6.2": "2.5.1",
        "rocm6.1": "2.6.0",
        "rocm6.0": "2.4.1",
        "xpu": "2.14.1",
        "cpu": "2.14.1",
    }


def test_backends_are_newest_first_in_each_kind() -> None:
    names = [str(backend) for backend in CATALOG.backends()]

    assert names.index("cu132") < names.index("cu118") < names.index("rocm7.14")
    assert names.index("rocm7.14") < names.index("rocm7.2")
    assert names.index("rocm6.2.4") < names.index("rocm6.2")
    assert names[-2:] == ["xpu", "cpu"]


def test_backend_that_uv_does_not_know_is_marked() -> None:
    unknown = [str(item) for item in CATALOG.backends() if not CATALOG.is_known_to_uv(item)]

    assert unknown == ["rocm7.14"]


def test_cuda_wheels_of_windows_end_where_they_ended() -> None:
    assert CATALOG.builds_for(Backend.parse("cu129"), "win_amd64")[0].torch == Version("2.9.0")
    assert CATALOG.builds_for(Backend.parse("rocm7.2"), "win_amd64") == ()
    assert CATALOG.builds_for(Backend.parse("cu126"), "macos_arm64") == ()


def test_local_version_is_the_one_in_the_wheel() -> None:
    assert str(build("2.14.1", "cu126").local_version) == "2.14.1+cu126"
    assert str(build("2.14.1", "rocm7.2").local_version) == "2.14.1+rocm7.2"
    assert str(build("2.14.1", "cpu", "macos_arm64").local_version) == "2.14.1"


@pytest.mark.parametrize(
    ("torch", "platform", "backend"),
    [
        ("2.15.0", "linux_x86_64", "cu132"),
        ("2.11.0", "linux_aarch64", "cu130"),
        ("2.10.0", "linux_aarch64", "cpu"),
        ("2.15.0", "win_amd64", "cpu"),
        ("2.15.0", "macos_arm64", "cpu"),
        ("2.15.0", "win_arm64", None),
        ("1.0.0", "linux_x86_64", None),
    ],
)
def test_pypi_default(torch: str, platform: str, backend: str | None) -> None:
    default = CATALOG.pypi_default(Version(torch), platform)

    assert (str(default) if default else None) == backend


def test_pypi_versions_are_those_for_this_python() -> None:
    assert [str(item) for item in CATALOG.pypi_versions("linux_x86_64", "cp310")][:2] == [
        "2.14.1",
        "2.14.0",
    ]
    assert str(CATALOG.pypi_versions("linux_x86_64", "cp315t")[0]) == "2.15.0"
    assert CATALOG.pypi_versions("linux_x86_64", "cp37") == ()
    # 2.5 has a wheel for Python 3.13 on one platform.
    assert str(CATALOG.pypi_versions("linux_x86_64", "cp313")[-1]) == "2.5.0"
    assert str(CATALOG.pypi_versions("win_amd64", "cp313")[-1]) == "2.6.0"


def test_wheel_that_pypi_has_for_linux_is_one_that_the_index_has() -> None:
    for release in CATALOG.pypi:
        for platform, backend in release.backends.items():
            if platform.startswith("linux_"):
                builds = CATALOG.builds_for(backend, platform)
                assert release.torch in [item.torch for item in builds], f"{release.torch}"


def test_reading_is_fast_and_done_once() -> None:
    fastest = 1.0
    for _ in range(5):
        started = time.process_time()
        read_catalog(TEXT)
        fastest = min(fastest, time.process_time() - started)

    assert fastest < 0.01
    assert load_catalog() is load_catalog()


# --- What runs on what --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("torch", "backend", "platform", "capability", "runs"),
    [
        # GTX 10xx runs sm_60 code, RTX 40xx sm_86, B300 sm_100, GB10 sm_120.
        ("2.14.1", "cu126", "linux_x86_64", "6.1", True),
        ("2.14.1", "cu126", "linux_x86_64", "8.9", True),
        ("2.14.1", "cu130", "linux_x86_64", "10.3", True),
        ("2.14.1", "cu130", "linux_aarch64", "12.1", True),
        ("2.14.1", "cu126", "linux_x86_64", "12.0", False),
        ("2.14.1", "cu130", "linux_x86_64", "6.1", False),
        ("2.14.1", "cu126", "linux_x86_64", "3.5", False),
        # Volta: in 2.8 to 2.10 of cu128 and cu129, no longer in 2.11.
        ("2.7.1", "cu128", "linux_x86_64", "7.0", False),
        ("2.10.0", "cu128", "linux_x86_64", "7.0", True),
        ("2.11.0", "cu128", "linux_x86_64", "7.0", False),
        ("2.11.0", "cu129", "linux_x86_64", "7.0", False),
        # Tegra: torch excludes it although major and minor fit, for 7.2 and 8.7 up to CUDA 13.1.
        ("2.5.1", "cu124", "linux_x86_64", "5.3", False),
        ("2.5.1", "cu124", "linux_x86_64", "6.2", False),
        ("2.14.1", "cu126", "linux_aarch64", "8.7", False),
        ("2.14.1", "cu130", "linux_aarch64", "8.7", False),
        ("2.14.1", "cu132", "linux_aarch64", "8.7", True),
        # Thor: 10.1 to CUDA 12, 11.0 since CUDA 13; sm_100 code is not for it.
        ("2.14.1", "cu130", "linux_aarch64", "11.0", True),
        ("2.14.1", "cu130", "linux_aarch64", "10.1", True),
        ("2.9.1", "cu128", "linux_aarch64", "11.0", False),
        ("2.9.1", "cu128", "linux_aarch64", "10.1", False),
        # Kepler.
        ("2.6.0", "cu118", "linux_x86_64", "3.7", True),
        ("2.7.1", "cu118", "linux_x86_64", "3.7", False),
    ],
)
def test_binary_compatibility(
    torch: str, backend: str, platform: str, capability: str, *, runs: bool
) -> None:
    wheel = build(torch, backend, platform)

    assert CATALOG.runs_on(wheel, ComputeCapability.parse(capability)) is runs


def test_every_cuda_build_has_code_that_is_known_or_stood_in_for() -> None:
    for builds in CATALOG.builds.values():
        for item in builds:
            if item.backend.kind == "cuda":
                assert CATALOG.cuda_code(item).capabilities, str(item)


def test_windows_borrows_the_list_of_linux_where_it_has_none() -> None:
    windows = CATALOG.cuda_code(build("2.10.0", "cu128", "win_amd64"))

    assert windows == CATALOG.cuda_code(build("2.10.0", "cu128"))


def test_list_of_a_neighbour_is_marked_as_such() -> None:
    assert CATALOG.cuda_code(build("2.14.1", "cu126")).known
    assert not CATALOG.cuda_code(build("2.10.0", "cu130", "linux_aarch64")).known


@pytest.mark.parametrize(
    ("torch", "backend", "gfx", "runs"),
    [
        ("2.14.1", "rocm7.2", "gfx1100", True),
        ("2.14.1", "rocm7.2", "gfx1031", False),
        # gfx1103 came between 2.12 and 2.13.
        ("2.13.0", "rocm7.2", "gfx1103", True),
        ("2.12.1", "rocm7.2", "gfx1103", False),
        # The lists of one ROCm grew from release to release.
        ("2.6.0", "rocm6.1", "gfx1101", True),
        ("2.5.1", "rocm6.1", "gfx1101", False),
        ("2.7.1", "rocm6.2.4", "gfx1201", True),
        ("2.6.0", "rocm6.2.4", "gfx1201", False),
        # Sources conflict over these two, so nothing is promised.
        ("2.11.0", "rocm7.1", "gfx1151", False),
        ("2.11.0", "rocm7.2", "gfx1151", True),
    ],
)
def test_code_for_amd_depends_on_the_release(
    torch: str, backend: str, gfx: str, *, runs: bool
) -> None:
    code = CATALOG.gfx_code(build(torch, backend))

    assert code.known
    assert code.source
    assert (gfx in code.names) is runs


def test_every_rocm_build_that_uv_knows_has_code_that_is_known() -> None:
    for builds in CATALOG.builds.values():
        for item in builds:
            if item.backend.kind == "rocm" and CATALOG.is_known_to_uv(item.backend):
                assert CATALOG.gfx_code(item).known, str(item)


def test_code_of_a_newer_release_is_that_of_the_newest_known_one() -> None:
    known = build("2.14.1", "rocm7.2")
    newer = replace(known, torch=Version("2.16.0"))
    older = replace(known, torch=Version("2.3.0"))

    assert CATALOG.gfx_code(newer) == replace(CATALOG.gfx_code(known), known=False)
    assert CATALOG.gfx_code(older) == replace(
        CATALOG.gfx_code(build("2.11.0", "rocm7.2")), known=False
    )
    assert CATALOG.gfx_code(replace(known, backend=Backend.parse("rocm9.9"))).names == ()


@pytest.mark.parametrize(
    ("gfx", "version"),
    [
        ("gfx1031", "10.3.0"),
        ("gfx1036", "10.3.0"),
        ("gfx90c", "9.0.0"),
        ("gfx1103", "11.0.0"),
        # What torch is built for today crashes on these, whatever they call themselves.
        ("gfx1010", None),
        ("gfx803", None),
        ("gfx1100", None),
        ("", None),
    ],
)
def test_hsa_override(gfx: str, version: str | None) -> None:
    assert CATALOG.hsa_override(gfx) == version


def test_companions_name_what_an_index_lacks_of_them() -> None:
    missing = {name: set(map(str, item.missing)) for name, item in CATALOG.companions.items()}

    assert missing == {"torchaudio": {"cu132"}, "torchvision": set()}


def test_hsa_override_leads_to_code_that_the_wheels_hold() -> None:
    newest = CATALOG.gfx_code(build("2.14.1", "rocm7.2")).names

    for version in CATALOG.hsa_overrides.values():
        major, minor, step = version.split(".")
        assert f"gfx{major}{int(minor):x}{int(step):x}" in newest, version


# --- Drivers ------------------------------------------------------------------------------------


def test_every_cuda_backend_has_a_floor_on_each_system() -> None:
    for backend in CATALOG.backends():
        floors = [CATALOG.driver_floor(backend, system) for system in ("linux", "windows")]
        assert all(floors) is (backend.kind == "cuda")
    assert CATALOG.driver_floor(Backend.parse("cu126"), "linux") == "525.60.13"
    assert CATALOG.driver_floor(Backend.parse("cu126"), "windows") == "528.33"
    assert CATALOG.driver_floor(Backend.parse("cu126"), "macos") is None


def test_blackwell_needs_a_driver_that_knows_it() -> None:
    assert CATALOG.gpu_driver_floor(ComputeCapability(12, 0), "linux") == "570.26"
    assert CATALOG.gpu_driver_floor(ComputeCapability(9, 0), "linux") is None


@pytest.mark.parametrize(
    ("capability", "branch"),
    [
        ("3.5", "470"),
        ("3.7", "470"),
        ("5.0", "580"),
        ("6.1", "580"),
        ("7.0", "580"),
        ("7.5", None),
        ("12.0", None),
    ],
)
def test_last_driver_branch_for_old_gpus(capability: str, branch: str | None) -> None:
    assert CATALOG.last_driver_branch(ComputeCapability.parse(capability)) == branch


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("550.54.15", (550, 54, 15)),
        ("580", (580,)),
        ("", None),
        ("550.54-beta", None),
        ("1" * 5000, None),
        ("५५०.५४", None),
    ],
)
def test_driver_number(text: str, number: tuple[int, ...] | None) -> None:
    assert driver_number(text) == number
