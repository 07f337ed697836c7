"""How the catalog is made: the facts, what is read anew, and the shipped file as their result."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from catalog.errors import CatalogError
from catalog.facts import (
    FOLDER,
    READ,
    PypiWheels,
    load_facts,
    parse_facts,
    parse_read,
    render_read,
)
from catalog.maker import make, render
from catalog.pypi import backend_of_metadata, package_index, parse_listing, read_pypi
from catalog.refresh import compare_index, index_backends, parse_backends
from catalog.wheel import open_wheel, parse_architectures, parse_version_file, read_code
from tests.standin.index import StandIn
from tests.standin.server import SIMPLE
from tests.standin.wheels import make_wheel
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog, read_catalog
from torchenv_magic.builds.index import ListedBuild, Listing
from torchenv_magic.installation.uv import find_uv

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "torchenv_magic" / "builds" / "catalog.jsonl"
FACTS = load_facts()
CURATED = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.toml")}
READ_TEXT = (FOLDER / READ).read_text(encoding="utf-8")
# Nobody listens there: what asks the network all the same fails.
NO_NETWORK = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")


def catalog(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "catalog", *map(str, arguments)],
        cwd=ROOT,
        env=environment or {**os.environ, **NO_NETWORK},
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )


# --- The file is what the facts make ------------------------------------------------------------


def test_the_shipped_catalog_is_what_the_facts_make() -> None:
    answer = catalog("--check")

    assert answer.stdout == "catalog.jsonl is what the facts make\n", answer.stdout
    assert answer.returncode == 0


def test_an_edited_catalog_is_found_out_and_its_lines_are_shown(tmp_path: Path) -> None:
    edited = tmp_path / "catalog.jsonl"
    text = SHIPPED.read_text(encoding="utf-8")
    edited.write_text(text.replace('"gfx1103", ', "", 1), encoding="utf-8")

    answer = catalog("--check", "--output", edited)

    assert answer.returncode == 1
    changed = [line[:1] for line in answer.stdout.splitlines() if "gfx_code" in line]
    assert changed == ["-", "+"]
    assert answer.stderr == (
        "error: catalog.jsonl is not what the facts make\n\nhint: make it anew: python -m catalog\n"
    )


def test_a_catalog_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    answer = catalog("--check", "--output", tmp_path / "none.jsonl")

    assert answer.returncode == 1
    assert "none.jsonl can't be read" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_command_writes_the_shipped_file_to_the_byte(tmp_path: Path) -> None:
    made = tmp_path / "catalog.jsonl"

    answer = catalog("--output", made)

    assert answer.returncode == 0, answer.stderr
    assert made.read_bytes() == SHIPPED.read_bytes()


def test_the_order_in_which_facts_are_written_down_does_not_matter() -> None:
    mixer = random.Random(3)  # noqa: S311 - an order, no secret
    tables = {table: tuple(mixer.sample(rows, len(rows))) for table, rows in FACTS.tables.items()}
    pypi = tuple(mixer.sample(FACTS.read.pypi, len(FACTS.read.pypi)))
    mixed = replace(FACTS, tables=tables, read=replace(FACTS.read, pypi=pypi))

    assert render(make(mixed)) == render(make(FACTS))


def test_every_row_is_a_line_that_the_package_reads() -> None:
    text = render(make(FACTS))

    assert all(json.loads(line)["source"] for line in text.splitlines())
    assert read_catalog(text) == load_catalog()


def test_a_patch_release_needs_no_edit() -> None:
    newest = [row for row in FACTS.read.pypi if row.torch == "2.14.1"]
    patched = tuple(replace(row, torch="2.14.2", date="2026-12-01") for row in newest)
    read = replace(FACTS.read, pypi=(*FACTS.read.pypi, *patched))

    made = read_catalog(render(make(replace(FACTS, read=read))))

    newest_builds = {
        name: str(made.builds_for(Backend.parse(name), "linux_x86_64")[0].torch)
        for name in ("cu126", "cu128", "rocm7.2")
    }
    assert newest_builds == {"cu126": "2.14.2", "cu128": "2.11.0", "rocm7.2": "2.14.2"}
    assert made.pypi_versions("linux_x86_64", "cp312")[1] == Version("2.14.2")


# --- Facts that can't be so ---------------------------------------------------------------------

ROW = """
as_of = "2026-11-22"
[[gfx_code]]
torch = ["2.14"]
backend = "rocm7.2"
gfx = ["gfx1100"]
source = "a wheel"
strength = "primary"
"""


def test_a_row_by_hand_is_taken() -> None:
    facts = parse_facts({"code.toml": ROW}, READ_TEXT)

    assert [row["gfx"] for row in facts.tables["gfx_code"]] == [["gfx1100"]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "a wheel"\n', "", "`source` is missing"),
        ('source = "a wheel"', 'source = " "', "`source` is empty"),
        ('source = "a wheel"', "source = 3", "`source` is empty"),
        ('strength = "primary"\n', "", "`strength` is missing"),
        ('"primary"', '"sure"', "`strength` is none of primary, strong, medium, weak"),
        ('"rocm7.2"', '"rocm"', "`rocm` is not a backend"),
        ('"rocm7.2"', "7.2", "`7.2` is no text"),
        ('["2.14"]', '["2.x"]', "`2.x` is no version"),
        ('["gfx1100"]', '["1100"]', "`1100` is no gfx name"),
        ('["gfx1100"]', "[1100]", "`1100` is no gfx name"),
        ("gfx = ", "names = ", "`gfx` is missing"),
        ('gfx = ["gfx1100"]', 'gfx = ["gfx1100"]\nptx = 1', "`ptx` is not known"),
        ("[[gfx_code]]", "[[gfx]]", "there is no table `gfx`"),
        ("[[gfx_code]]", "[gfx_code.row]", "is missing"),
        ("[[gfx_code]]", "[[gfx_code]", "is not TOML"),
    ],
)
def test_a_row_that_is_not_of_its_table_is_refused_by_name(
    old: str, new: str, message: str
) -> None:
    assert old in ROW

    with pytest.raises(CatalogError, match=re.escape(message)) as caught:
        parse_facts({"code.toml": ROW.replace(old, new)}, READ_TEXT)

    assert str(caught.value).startswith("code.toml")
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{}\n{}\n", '{"as_of": 1}\n', "[" * 100, READ_TEXT[:400], READ_TEXT + '{"torch": 1}\n'],
)
def test_what_was_read_is_refused_where_it_is_broken(text: str) -> None:
    with pytest.raises(CatalogError, match=r"read\.jsonl is not of its shape"):
        parse_facts(CURATED, text)


def test_what_was_read_survives_the_way_to_its_file_and_back() -> None:
    assert render_read(parse_read(READ_TEXT)) == READ_TEXT


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("wheels.toml", "wheels", "two facts are about torch 2.4.0 cpu for linux_x86_64"),
        ("code.toml", "cuda_code", "two facts are about the code in torch 2.4 cu118"),
        ("code.toml", "gfx_code", "two facts are about the code in torch 2.4 rocm6.0"),
    ],
)
def test_two_facts_about_one_thing_are_refused(name: str, table: str, message: str) -> None:
    first = FACTS.tables[table][0]
    doubled = {**FACTS.tables, table: (*FACTS.tables[table], first)}

    with pytest.raises(CatalogError, match=re.escape(message)) as caught:
        make(replace(FACTS, tables=doubled))

    assert name in caught.value.hint


def test_a_release_line_without_a_release_is_refused() -> None:
    row = {**FACTS.tables["wheels"][0], "torch": ["2.99"]}

    with pytest.raises(CatalogError, match=r"PyPI lists no release of torch 2\.99"):
        make(replace(FACTS, tables={**FACTS.tables, "wheels": (row,)}))


def test_a_table_without_a_row_is_refused() -> None:
    with pytest.raises(CatalogError, match="no fact is in the table `hsa_override`"):
        make(replace(FACTS, tables={**FACTS.tables, "hsa_override": ()}))


def test_broken_facts_are_one_message_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "code.toml").write_text("as_of =", encoding="utf-8")
    (tmp_path / READ).write_text(READ_TEXT, encoding="utf-8")

    answer = catalog("--facts", tmp_path)

    assert answer.returncode == 1
    assert answer.stderr.startswith("error: code.toml is not TOML")
    assert "\nhint: " in answer.stderr
    assert "Traceback" not in answer.stderr


# --- PyPI ---------------------------------------------------------------------------------------


def listed(name: str, **more: object) -> dict[str, object]:
    entry = {"filename": name, "url": f"files/{name}", "upload-time": "2026-01-21T10:00:00Z"}
    return {**entry, "requires-python": ">=3.10", "yanked": False, **more}


def listing(*files: object) -> bytes:
    return json.dumps({"meta": {"api-version": "1.1"}, "files": files}).encode()


def test_a_listing_becomes_wheels_by_release_platform_and_floor() -> None:
    page = listing(
        listed("torch-2.10.0-cp313-none-macosx_11_0_arm64.whl"),
        listed("torch-2.10.0-cp313-cp313t-macosx_14_0_arm64.whl"),
        listed(
            "torch-2.10.0-cp314-cp314-manylinux_2_28_x86_64.whl",
            **{"upload-time": "2026-01-20T23:00:00Z"},
        ),
        # The same once more, built anew.
        listed("torch-2.10.0-3-cp314-cp314-manylinux_2_28_x86_64.whl"),
        listed("torch-2.10.0-cp313-cp313-manylinux_2_28_x86_64.whl"),
        listed("torch-2.10.0-cp313-cp313-win_amd64.whl"),
        # None of these counts: yanked, too old, no wheel, another project, Macs with Intel.
        listed("torch-2.10.1-cp313-cp313-win_amd64.whl", yanked="broken"),
        listed("torch-2.3.1-cp310-cp310-win_amd64.whl"),
        # A mirror has put the wheels of the PyTorch index among PyPI's.
        listed("torch-2.11.0+cpu-cp313-cp313-win_amd64.whl"),
        listed("torch-2.11.0+cu126-cp313-cp313-win_amd64.whl"),
        listed("torch-2.10.0.tar.gz"),
        listed("torchvision-0.25.0-cp313-cp313-win_amd64.whl"),
        listed("torch-2.4.0-cp310-none-macosx_10_9_x86_64.whl"),
    )
    asked: list[str] = []

    def read_metadata(file: Mapping[str, Any]) -> str:
        asked.append(file["filename"])
        return "Name: torch\nRequires-Dist: nvidia-cuda-runtime-cu12==12.8.90\n"

    rows = parse_listing(page, read_metadata)

    def row(platform: str, floor: str | None, backend: str, *python: str, day: int) -> PypiWheels:
        return PypiWheels(
            torch="2.10.0",
            platform=platform,
            floor=floor,
            backend=backend,
            python=python,
            requires_python=">=3.10",
            date=f"2026-01-{day}",
        )

    assert rows == (
        row("linux_x86_64", "2.28", "cu128", "cp313", "cp314", day=20),
        row("macos_arm64", "11.0", "cpu", "cp313", day=21),
        row("macos_arm64", "14.0", "cpu", "cp313t", day=21),
        row("win_amd64", None, "cpu", "cp313", day=21),
    )
    assert len(asked) == 1
    assert "manylinux" in asked[0]


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>log in</html>",
        b"\xff\xfe" * 50,
        b"[" * 100_000,
        b"[]",
        b'{"meta": {"api-version": "2.0"}, "files": []}',
        listing("torch-2.10.0-cp313-cp313-win_amd64.whl"),
        listing({"filename": "torch-2.10.0-cp313-cp313-win_amd64.whl"}),
        listing(listed("torch-2.10.0-cp313-cp313-win_amd64.whl", url=7)),
        listing(listed("torch-2.10.0-cp313-cp313-win_amd64.whl", **{"upload-time": 7})),
    ],
)
def test_what_is_no_listing_is_one_message(page: bytes) -> None:
    with pytest.raises(CatalogError, match="the package index's page is no listing of torch"):
        parse_listing(page, lambda _: "")


@pytest.mark.parametrize(
    ("requires", "machine", "backend"),
    [
        # 2.10.0, 2.11.0 and 2.15.0 as they are on PyPI.
        (
            'nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux"',
            "x86_64",
            "cu128",
        ),
        ("nvidia-cuda-runtime-cu12==12.1.105; platform_machine == 'x86_64'", "aarch64", "cpu"),
        (
            "cuda-toolkit[cudart,cufft]==13.0.2; platform_system == 'Linux'",
            "aarch64",
            "cu130",
        ),
        ("cuda-toolkit[cudart]==13.2.2; platform_system == 'Linux'", "x86_64", "cu132"),
        ("cuda-toolkit[cudart]==13.2.2; platform_system == 'Windows'", "x86_64", "cpu"),
        ("nvidia-cuda-runtime==13.0.88", "x86_64", "cu130"),
        ("nvidia-cudnn-cu12==9.10.2.21", "x86_64", "cpu"),
        ("cuda-toolkit>=13", "x86_64", "cpu"),
        ("cuda-toolkit ==== rubbish", "x86_64", "cpu"),
        ("filelock", "x86_64", "cpu"),
    ],
)
def test_metadata_tells_the_cuda_of_a_linux_wheel(
    requires: str, machine: str, backend: str
) -> None:
    metadata = f"Metadata-Version: 2.4\nName: torch\nRequires-Dist: {requires}\n\nA text.\n"

    assert backend_of_metadata(metadata, machine) == backend


def test_wheels_and_their_metadata_are_read_from_a_live_index(
    fresh_standin: StandIn, tmp_path: Path
) -> None:
    for machine in ("x86_64", "aarch64"):
        wheel = make_wheel(
            tmp_path,
            "torch",
            "2.16.0",
            requires=["cuda-toolkit[cudart]==13.4.1; platform_machine == 'x86_64'"],
            python_tag="cp313",
            abi_tag="cp313",
            platform_tag=f"manylinux_2_28_{machine}",
        )
        fresh_standin.add_wheel(SIMPLE, wheel)

    rows = [row for row in read_pypi(fresh_standin.simple_url) if row.torch == "2.16.0"]

    assert [(row.platform, row.backend, row.python, row.date) for row in rows] == [
        ("linux_aarch64", "cpu", ("cp313",), None),
        ("linux_x86_64", "cu134", ("cp313",), None),
    ]


def test_metadata_is_taken_out_of_the_wheel_where_the_index_has_no_copy(
    fresh_standin: StandIn, tmp_path: Path
) -> None:
    wheel = make_wheel(
        tmp_path,
        "torch",
        "2.16.0",
        requires=["cuda-toolkit[cudart]==13.4.1"],
        python_tag="cp313",
        abi_tag="cp313",
        platform_tag="manylinux_2_28_x86_64",
        pad_bytes=3_000_000,
    )
    fresh_standin.add_wheel(SIMPLE, wheel)
    fresh_standin.metadata = False

    rows = [row for row in read_pypi(fresh_standin.simple_url) if row.torch == "2.16.0"]

    assert [row.backend for row in rows] == ["cu134"]
    # In parts, and far from all of it.
    parts = fresh_standin.downloads(re.escape(wheel.name))
    assert all(request.range for request in parts if request.path.endswith(".whl"))
    assert sum(request.bytes for request in parts) < wheel.stat().st_size / 4


def test_an_index_that_can_not_be_reached_is_one_message_without_its_login() -> None:
    with pytest.raises(CatalogError) as caught:
        read_pypi("http://someone:secret@127.0.0.1:9/simple")

    assert str(caught.value).startswith("the package index can't be read: ")
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"])
def test_the_package_index_is_the_one_of_the_set_up(name: str) -> None:
    assert package_index({name: "https://mirror.example/simple"}) == "https://mirror.example/simple"


def test_where_nothing_is_set_up_uv_names_the_package_index() -> None:
    assert re.fullmatch(r"https://\S+/simple", package_index({}))


# --- uv -----------------------------------------------------------------------------------------


def test_the_facts_are_about_the_uv_that_is_pinned() -> None:
    uv = find_uv()
    text = subprocess.run(
        [str(uv.binary), "pip", "install", "--help"], capture_output=True, text=True, check=True
    ).stdout

    assert FACTS.read.uv_version == str(uv.version), "python -m catalog --refresh --write"
    assert FACTS.read.uv_backends == parse_backends(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--torch-backend <TORCH_BACKEND>\n  The backend [env: UV_TORCH_BACKEND=]",
        "--torch-backend <TORCH_BACKEND> [possible values: auto, none]",
    ],
)
def test_a_help_that_lists_no_backends_is_said_to(text: str) -> None:
    with pytest.raises(CatalogError, match="does not list the values"):
        parse_backends(text)


# --- The PyTorch index --------------------------------------------------------------------------


def test_the_index_is_asked_for_what_is_known_and_for_what_uv_has_beyond() -> None:
    known = load_catalog().backends()
    asked = index_backends(load_catalog(), ["auto", "cpu", "cu92", "cu125", "cu134", "rocm9.1"])

    assert [str(backend) for backend in asked if backend not in known] == ["cu134", "rocm9.1"]
    assert set(known) <= set(asked)


def test_difference_to_the_index_is_told_by_wheel() -> None:
    cu132 = Backend.parse("cu132")
    [build, *older] = load_catalog().builds_for(cu132, "linux_x86_64")
    there = [
        ListedBuild(
            torch=item.torch, wheel_platform=item.wheel_platform, python_tags=tags, floor="2.28"
        )
        for item in older
        for tags in [item.python_tags]
    ]
    new = ListedBuild(
        torch=build.torch,
        wheel_platform="linux_x86_64",
        python_tags=(*(tag for tag in build.python_tags if tag != "cp313"), "cp316"),
        floor="2.28",
    )
    for platform in ("linux_aarch64", "win_amd64"):
        there += [
            ListedBuild(
                torch=item.torch, wheel_platform=platform, python_tags=item.python_tags, floor=None
            )
            for item in load_catalog().builds_for(cu132, platform)
        ]

    page = Listing(backend=cu132, read_at=0, builds=(new, *there))

    assert compare_index(load_catalog(), [page]) == [
        f"+ torch {build.torch} cu132 linux_x86_64 cp316",
        f"- torch {build.torch} cu132 linux_x86_64 cp313",
    ]


def test_refresh_says_what_changed_and_keeps_the_facts_as_they_are(
    fresh_standin: StandIn, tmp_path: Path
) -> None:
    settings = fresh_standin.environment(tmp_path / "cache", hermetic=True)
    before = (FOLDER / READ).read_bytes()

    answer = catalog("--refresh", environment=settings.apply(os.environ))

    assert answer.returncode == 0, answer.stderr
    # The stand-in has one torch where PyPI has its wheels, and none of what came after 2.13.
    assert re.search(
        r'^-\{"torch": "2\.14\.1", "platform": "win_amd64"', answer.stdout, re.MULTILINE
    )
    assert re.search(r"^- torch 2\.14\.1 cu126 linux_x86_64 cp310 ", answer.stdout, re.MULTILINE)
    assert (FOLDER / READ).read_bytes() == before


def test_refresh_can_keep_what_it_read(fresh_standin: StandIn, tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    # A release line would need a release of it, and the stand-in has one torch in all.
    wheels = """
as_of = "2026-11-22"
[[wheels]]
torch = ["2.14.1"]
platform = "linux_x86_64"
backends = ["cu126"]
python = ["cp313"]
glibc = "2.28"
source = "a wheel"
strength = "primary"
"""
    (tmp_path / "wheels.toml").write_text(wheels, encoding="utf-8")
    environment = fresh_standin.environment(tmp_path / "cache", hermetic=True).apply(os.environ)
    output = tmp_path / "catalog.jsonl"
    (tmp_path / READ).write_text(READ_TEXT.replace("2026-", "2025-", 1), encoding="utf-8")

    before = load_facts(tmp_path).read
    answer = catalog(
        "--refresh", "--write", "--facts", tmp_path, "--output", output, environment=environment
    )

    assert answer.returncode == 0, answer.stderr
    after = load_facts(tmp_path).read
    assert after.pypi != before.pypi
    assert after.as_of > before.as_of
    assert catalog("--check", "--facts", tmp_path, "--output", output).returncode == 0


def test_what_was_read_is_not_kept_where_no_catalog_can_be_made_of_it(
    fresh_standin: StandIn, tmp_path: Path
) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    environment = fresh_standin.environment(tmp_path / "cache", hermetic=True).apply(os.environ)
    output = tmp_path / "catalog.jsonl"

    answer = catalog(
        "--refresh", "--write", "--facts", tmp_path, "--output", output, environment=environment
    )

    assert answer.returncode == 1
    assert "error: PyPI lists no release of torch 2.4" in answer.stderr
    assert (tmp_path / READ).read_text(encoding="utf-8") == READ_TEXT
    assert not output.exists()


def test_what_can_not_be_read_stays_as_it_was_and_is_told(
    fresh_standin: StandIn, tmp_path: Path
) -> None:
    fresh_standin.down = True
    settings = fresh_standin.environment(tmp_path, hermetic=True).apply(os.environ)
    settings["UV_DEFAULT_INDEX"] = "http://someone:secret@127.0.0.1:9/simple"

    answer = catalog("--refresh", environment=settings)

    assert answer.returncode == 1
    assert answer.stdout == "read.jsonl: nothing has changed\n"
    assert "error: the package index can't be read: Connection refused\n" in answer.stderr
    assert "error: the PyTorch index could not be read for cu132, " in answer.stderr
    assert answer.stderr.count("\nhint: ") == 2
    assert "secret" not in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


# --- Wheels -------------------------------------------------------------------------------------

# As release 2.9.0 has it: what stands before the list is another constant, with no end of its own.
LIBRARY = (
    b"\x7fELF" + bytes(40) + b"sm_90\0"
    b"e, std::string ipc_hsm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120\0\0\0\0\0"
    b"/pytorch/torch/csrc/cuda/Module.cpp\0"
)
VERSION_FILE = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.9.0+cu128'
debug = False
cuda: Optional[str] = '12.8'
git_version = '0fabc3ba44823f257e70ce397d989c8de5e362c1'
hip: Optional[str] = None
"""
SEVEN = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.mark.parametrize(
    ("library", "architectures"),
    [
        (LIBRARY, SEVEN),
        (b"\0sm_90 sm_120 compute_120\0", ("sm_90", "sm_120", "compute_120")),
        (b"\0sm_90a sm_100f\0", ("sm_90a", "sm_100f")),
        (b"\0gfx900 gfx90a gfx1100\0", ("gfx900", "gfx90a", "gfx1100")),
        (b"\0gfx900;gfx90a:xnack+\0", ("gfx900", "gfx90a:xnack+")),
        (b"\0sm_90", ()),
        (b"\0sm_\0 gfx\0", ()),
        (b"", ()),
    ],
)
def test_list_of_architectures_is_found_in_the_library(
    library: bytes, architectures: Sequence[str]
) -> None:
    assert parse_architectures(library) == tuple(architectures)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (VERSION_FILE, ("2.9.0+cu128", "12.8", None)),
        ("__version__ = '2.14.1+rocm7.2'\nhip = '7.2.1'", ("2.14.1+rocm7.2", None, "7.2.1")),
        ('__version__ = "2.4"\ncuda = None', ("2.4", None, None)),
        ("import os; os.abort()", ("of an unknown version", None, None)),
    ],
)
def test_version_file_is_read_and_not_run(
    text: str, found: tuple[str, str | None, str | None]
) -> None:
    assert parse_version_file(text) == found


def torch_wheel(folder: Path, *, pad_bytes: int = 0) -> Path:
    return make_wheel(
        folder,
        "torch",
        "2.9.0+cu128",
        files={"torch/version.py": VERSION_FILE, "torch/lib/libtorch_python.so": LIBRARY},
        python_tag="cp313",
        abi_tag="cp313",
        platform_tag="manylinux_2_28_x86_64",
        pad_bytes=pad_bytes,
    )


def test_command_says_what_code_a_wheel_holds(tmp_path: Path) -> None:
    answer = catalog("arch", torch_wheel(tmp_path))

    assert answer.stdout == f"torch 2.9.0+cu128, CUDA 12.8: {' '.join(SEVEN)}\n"
    assert answer.returncode == 0


def test_code_is_read_out_of_a_wheel_on_a_server(fresh_standin: StandIn, tmp_path: Path) -> None:
    wheel = torch_wheel(tmp_path)
    fresh_standin.add_wheel(SIMPLE, wheel)
    address = fresh_standin.simple_url.replace("/simple/", f"/files/{wheel.name}")

    assert read_code(f"{address}#sha256=0").architectures == SEVEN


@pytest.mark.real_wheel
def test_real_cpu_wheel_holds_no_cuda_code(real_wheel: Path) -> None:
    code = read_code(str(real_wheel))

    assert code.architectures == ()
    assert str(code) == f"torch {code.torch}: no CUDA code and no ROCm code"
    assert code.torch.endswith("+cpu")


def truncated(wheel: bytes) -> bytes:
    return wheel[: len(wheel) // 2]


def lying(wheel: bytes) -> bytes:
    """Return the wheel with a directory that is said to lie far behind the end."""
    end = wheel.rindex(b"PK\5\6")
    return wheel[: end + 16] + struct.pack("<I", 2**31) + wheel[end + 20 :]


@pytest.mark.parametrize("spoil", [truncated, lying, lambda _: b"", lambda _: b"PK" * 999])
def test_wheel_that_is_none_is_one_message(tmp_path: Path, spoil: Any) -> None:
    wheel = torch_wheel(tmp_path)
    wheel.write_bytes(spoil(wheel.read_bytes()))

    with pytest.raises(CatalogError, match=r"^torch-2\.9\.0\S+ (is no whole wheel|can't be read)"):
        read_code(str(wheel))


def test_wheel_of_something_else_is_one_message(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "filelock", "3.20.0")

    with pytest.raises(CatalogError, match=r"filelock-3\.20\.0-py3-none-any\.whl is no wheel of"):
        read_code(str(path))


@pytest.mark.parametrize(
    "place",
    [
        "no-such-folder/torch-2.9.0.whl",
        "http://someone:secret@127.0.0.1:9/torch-2.9.0.whl?token=secret",
        "https://127.0.0.1:port/torch-2.9.0.whl",
    ],
)
def test_wheel_that_can_not_be_reached_is_one_message_without_its_login(place: str) -> None:
    answer = catalog("arch", place)

    assert answer.returncode == 1
    assert answer.stderr.startswith("error: torch-2.9.0.whl can't be read: ")
    assert "secret" not in answer.stderr
    assert "Traceback" not in answer.stderr


def test_server_that_sends_no_parts_is_said_to(fresh_standin: StandIn) -> None:
    # An index page is made when it is asked for, and has no parts.
    with (
        pytest.raises(CatalogError, match="the server sends no parts of files"),
        open_wheel(f"{fresh_standin.simple_url}torch/"),
    ):
        pass


def test_wheel_may_be_any_zip_file_that_seeks(tmp_path: Path) -> None:
    path = tmp_path / "plain.whl"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("torch/version.py", "__version__ = '1'")
    path.write_bytes(content.getvalue())

    assert str(read_code(str(path))) == "torch 1: no CUDA code and no ROCm code"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--write"],
        ["arch"],
        ["arch", "one", "two"],
        ["wheel", "one"],
        ["--check", "--refresh"],
        ["--check", "arch", "one"],
    ],
)
def test_arguments_that_do_not_go_together_are_a_usage_error(arguments: list[str]) -> None:
    assert catalog(*arguments).returncode == 2
