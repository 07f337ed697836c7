"""What the PyTorch index offers: its page, the asking, what is kept of it, and who asks when."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from packaging.version import Version

from tests.standin import Fault
from tests.targets import Target
from tests.workplace import Workplace
from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.accelerators.records import (
    Accelerator,
    ComputeCapability,
    Host,
    Platform,
)
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.cache_folder import cache_folder, listing_file
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.builds.index import (
    Failure,
    ListedBuild,
    Listing,
    age_words,
    candidate_backends,
    failure_words,
    is_listed,
    with_listings,
)
from torchenv_magic.builds.index_cache import (
    RETRY_SECONDS,
    STALE_SECONDS,
    USABLE_SECONDS,
    Cached,
    fresh_listings,
    merged,
    read_cache,
    stale_backends,
    write_cache,
)
from torchenv_magic.builds.index_client import Refreshing, refresh
from torchenv_magic.builds.index_page import PageError, parse_page
from torchenv_magic.cli import main
from torchenv_magic.environment import Interpreter
from torchenv_magic.notebook.front_end import FrontEnd
from torchenv_magic.notebook.picker import Picker
from torchenv_magic.selection import Request, select
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.status import read_status

pytest_plugins = ["tests.target_fixtures"]

CATALOG = load_catalog()
CPU, CU126, CU128, CU130 = map(Backend.parse, ("cpu", "cu126", "cu128", "cu130"))
ROCM72 = Backend.parse("rocm7.2")
HTML, JSON = "text/html", "application/vnd.pypi.simple.v1+json"


# ----------------------------------------------------------------------------------------- a page


def html_page(*names: str, attributes: str = "") -> bytes:
    """Return a page as the PyTorch index writes it."""
    links = "".join(
        f'    <a href="/whl/{name.replace("+", "%2B")}#sha256={"0" * 64}" {attributes}'
        f' data-dist-info-metadata="sha256={"1" * 64}">{name}</a><br/>\n'
        for name in names
    )
    return (
        f"<!DOCTYPE html>\n<html>\n  <body>\n    <h1>Links for torch</h1>\n{links}"
        "  </body>\n</html>\n<!--TIMESTAMP 1795380000-->\n"
    ).encode()


def json_page(*names: str, **fields: object) -> bytes:
    files = [{"filename": name, "url": f"/whl/{name}", "hashes": {}, **fields} for name in names]
    page = {"meta": {"api-version": "1.1"}, "name": "torch", "files": files}
    return json.dumps(page).encode()


def listed(backend: Backend, *names: str) -> list[str]:
    """Return what both forms say, which is the same."""
    from_html, from_files = (
        [*map(str, parse_page(page, kind, backend))]
        for page, kind in ((html_page(*names), HTML), (json_page(*names), JSON))
    )
    assert from_html == from_files
    return from_html


@pytest.mark.parametrize(
    ("backend", "name", "expected"),
    [
        ("cu126", "torch-2.14.1+cu126-cp311-cp311-manylinux_2_28_x86_64.whl",
         "2.14.1 linux_x86_64 2.28 cp311"),
        ("cu126", "torch-2.14.1+cu126-cp314-cp314t-manylinux_2_28_aarch64.whl",
         "2.14.1 linux_aarch64 2.28 cp314t"),
        ("cu118", "torch-2.4.0+cu118-cp39-cp39-linux_x86_64.whl", "2.4.0 linux_x86_64 2.17 cp39"),
        ("cpu", "torch-2.5.1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
         "2.5.1 linux_aarch64 2.17 cp311"),
        ("cpu", "torch-1.13.1+cpu-cp310-cp310-manylinux1_x86_64.whl",
         "1.13.1 linux_x86_64 2.5 cp310"),
        ("rocm7.2", "torch-2.14.1+rocm7.2-cp312-cp312-manylinux_2_28_x86_64.whl",
         "2.14.1 linux_x86_64 2.28 cp312"),
        ("xpu", "torch-2.14.1+xpu-cp310-cp310-win_amd64.whl", "2.14.1 win_amd64 - cp310"),
        ("cpu", "torch-2.13.0+cpu-cp312-cp312-win_arm64.whl", "2.13.0 win_arm64 - cp312"),
        ("cpu", "torch-2.14.1-cp315-cp315t-macosx_14_0_arm64.whl",
         "2.14.1 macos_arm64 14.0 cp315t"),
        ("cpu", "torch-2.2.2-cp312-none-macosx_10_9_x86_64.whl",
         "2.2.2 macos_x86_64 10.9 cp312"),
    ],
)  # fmt: skip
def test_a_wheel_is_read_in_the_words_of_the_catalog(
    backend: str, name: str, expected: str
) -> None:
    assert listed(Backend.parse(backend), name) == [expected]


@pytest.mark.parametrize(
    "name",
    [
        "torch-2.14.1+cu128-cp311-cp311-manylinux_2_28_x86_64.whl",  # of another backend
        "torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl",  # of none
        "torch-2.14.1+cu126-cp311-cp311-macosx_14_0_arm64.whl",
        "torch-2.14.1+cu126-cp311-cp311-musllinux_1_2_x86_64.whl",
        "torch-2.14.1+cu126-cp311-cp311-win32.whl",
        "torch-2.14.1+cu126-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl",
        "torch-1.0.0+cu126-cp27-cp27mu-linux_x86_64.whl",
        "torch-2.14.1+cu126-py3-none-any.whl",
    ],
)
def test_a_wheel_that_is_no_build_of_the_backend_is_none(name: str) -> None:
    assert listed(CU126, name) == []


def test_other_projects_and_broken_names_are_passed_over() -> None:
    good = "torch-2.14.1+cu126-cp311-cp311-manylinux_2_28_x86_64.whl"
    others = (
        "torch_tensorrt-2.14.1+cu126-cp311-cp311-linux_x86_64.whl",
        "torch-2.14.1.tar.gz",
        "torch-latest-cp311-cp311-linux_x86_64.whl",
        "torch-2.14.1+cu126-cp311.whl",
        "",
    )
    assert listed(CU126, *others, good) == ["2.14.1 linux_x86_64 2.28 cp311"]


def test_the_wheels_of_one_release_are_one_build_newest_release_first() -> None:
    names = [
        f"torch-{torch}+cu126-{python}-{abi}-manylinux_2_28_x86_64.whl"
        for torch in ("2.9.1", "2.14.1", "2.10.0")
        for python, abi in (("cp314", "cp314t"), ("cp313", "cp313"), ("cp39", "cp39"))
    ]
    assert listed(CU126, *names) == [
        f"{torch} linux_x86_64 2.28 cp39,cp313,cp314t" for torch in ("2.14.1", "2.10.0", "2.9.1")
    ]


def test_wheels_of_two_floors_are_two_builds() -> None:
    names = [
        "torch-2.6.0+cu126-cp312-cp312-manylinux_2_28_x86_64.whl",
        "torch-2.6.0+cu126-cp311-cp311-linux_x86_64.whl",
        # Beside a newer floor for the very same Python: who has the older system takes this one.
        "torch-2.6.0+cu126-cp311-cp311-manylinux_2_28_x86_64.whl",
    ]
    assert set(listed(CU126, *names)) == {
        "2.6.0 linux_x86_64 2.17 cp311",
        "2.6.0 linux_x86_64 2.28 cp312",
    }


def test_a_wheel_for_the_stable_abi_is_for_every_later_python() -> None:
    [build] = listed(CU126, "torch-3.0.0+cu126-cp312-abi3-manylinux_2_28_x86_64.whl")
    assert build.startswith("3.0.0 linux_x86_64 2.28 cp312,cp313,cp314,cp315,")


WHEEL = "torch-2.14.1+cu126-cp311-cp311-manylinux_2_28_x86_64.whl"


def test_a_yanked_wheel_is_not_offered() -> None:
    for attribute in ("data-yanked", 'data-yanked="broken"'):
        assert parse_page(html_page(WHEEL, attributes=attribute), HTML, CU126) == ()
    for yanked in (True, "broken", ""):
        assert parse_page(json_page(WHEEL, yanked=yanked), JSON, CU126) == ()
    assert len(parse_page(json_page(WHEEL, yanked=False), JSON, CU126)) == 1


@pytest.mark.parametrize(
    ("requires", "offered"),
    [(">=3.10", True), (">=3.12", False), ("<3.11", False), (">=3.11.4", True), ("nonsense", True)],
)
def test_a_wheel_that_refuses_its_own_python_is_not_offered(
    requires: str, *, offered: bool
) -> None:
    escaped = requires.replace(">", "&gt;").replace("<", "&lt;")
    html = html_page(WHEEL, attributes=f'data-requires-python="{escaped}"')
    assert bool(parse_page(html, HTML, CU126)) is offered
    page = json_page(WHEEL, **{"requires-python": requires})
    assert bool(parse_page(page, JSON, CU126)) is offered


def test_a_pre_release_counts_only_where_nothing_else_is() -> None:
    early = "torch-2.15.0.dev20261101+cu126-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert listed(CU126, early, WHEEL) == ["2.14.1 linux_x86_64 2.28 cp311"]
    assert listed(CU126, early) == ["2.15.0.dev20261101 linux_x86_64 2.28 cp311"]


@pytest.mark.parametrize(
    ("page", "kind", "message"),
    [
        (html_page(WHEEL)[:-60], HTML, "ends early"),
        (b"<html><body><form>Please log in</form></body></html>", HTML, "no wheel of torch"),
        (b"", HTML, "no wheel of torch"),
        (json_page(WHEEL)[:-9], JSON, "no JSON, or ends early"),
        (b"[" * 100_000, JSON, "no JSON"),
        (b'{"meta": {"api-version": "2.0"}, "files": []}', JSON, "'2.0' of the simple API"),
        (b'{"files": []}', JSON, "no `meta`"),
        (b'{"meta": {"api-version": "1.0"}, "files": {}}', JSON, "no `files`"),
        (b'{"meta": {"api-version": "1.0"}, "files": [1]}', JSON, "no `filename`"),
        (b"%PDF-1.7", "application/pdf", "no listing but application/pdf"),
    ],
)
def test_what_is_no_listing_says_so(page: bytes, kind: str, message: str) -> None:
    with pytest.raises(PageError, match=message):
        parse_page(page, kind, CU126)


def test_an_empty_listing_offers_nothing() -> None:
    assert parse_page(json_page(), JSON, CU126) == ()


@settings(deadline=None)
@given(page=st.binary(max_size=300), kind=st.sampled_from([HTML, JSON]))
@example(page=b'<a href="http://[">torch-1-</a>', kind=HTML)
@example(page=b'<a href="torch-2.0%ff+cu126-cp311-cp311-linux_x86_64.whl">', kind=HTML)
def test_any_page_is_a_listing_or_none(page: bytes, kind: str) -> None:
    try:
        builds = parse_page(page, kind, CU126)
    except PageError:
        return
    assert all(ListedBuild.parse(str(build)) == build for build in builds)


parts = st.sampled_from(
    ["2.14.1+cu126", "1!2.0.post1+cu126", "9" * 61 + "+cu126", "2.0\u0661+cu126", "cp311", "cp399",
     "cp3\u0661", "none", "abi3", "cp311t", "linux_x86_64", "linux_" + "m" * 30, "win_amd64",
     "manylinux_2_28_x86_64", "manylinux_2\u0661_28_x86_64", "manylinux_9999_1_x86_64", "1"],
)  # fmt: skip


@settings(deadline=None)
@given(names=st.lists(st.lists(parts, min_size=4, max_size=5), min_size=1, max_size=3))
@example(names=[["2.14.1+cu126", "cp311", "cp311", "linux_" + "m" * 30]])
@example(names=[["9" * 61 + "+cu126", "cp311", "cp311", "linux_x86_64"]])
def test_what_any_name_says_is_read_again_where_it_was_kept(names: list[list[str]]) -> None:
    page = json_page(*("-".join(["torch", *name]) + ".whl" for name in names))
    for build in parse_page(page, JSON, CU126):
        assert ListedBuild.parse(str(build)) == build


tags = st.from_regex(r"cp3\d{1,2}t?", fullmatch=True).filter(str.isascii)
listed_builds = st.builds(
    ListedBuild,
    torch=st.tuples(*[st.integers(0, 99)] * 3).map(
        lambda parts: Version(".".join(map(str, parts)))
    ),
    wheel_platform=st.sampled_from(["linux_x86_64", "win_amd64", "macos_arm64", "linux_aarch64"]),
    python_tags=st.lists(tags, min_size=1, max_size=4).map(tuple),
    floor=st.none()
    | st.tuples(st.integers(1, 99), st.integers(0, 99)).map(lambda f: f"{f[0]}.{f[1]}"),
)
listings = st.builds(
    Listing,
    backend=st.sampled_from(CATALOG.backends()),
    read_at=st.integers(0, 2**40),
    builds=st.lists(listed_builds, max_size=3).map(tuple),
    etag=st.none() | st.text(max_size=8),
    last_modified=st.none() | st.text(max_size=8),
)


@settings(deadline=None)
@given(listing=listings)
def test_a_listing_survives_json(listing: Listing) -> None:
    assert from_json(Listing, json.loads(json.dumps(to_json(listing)))) == listing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2.0",
        "2.0 linux_x86_64 2.28 cp27",
        "x linux_x86_64 2.28 cp311",
        "2.0 linux_x86_64 2 cp311",
        "2.0 linux_x86_64 2.28 cp311 more",
        "2.0 linux_x86_64 2.28 cp311\n",
    ],
)
def test_a_malformed_build_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no listed build|Invalid version"):
        ListedBuild.parse(text)


# ------------------------------------------------------------------------------ in the catalog

NOW = 1_795_392_000  # 2026-11-23


def listing(backend: Backend, *builds: str, age: int = 0) -> Listing:
    return Listing(backend=backend, read_at=NOW - age, builds=tuple(map(ListedBuild.parse, builds)))


def test_the_index_decides_which_builds_a_listed_backend_has() -> None:
    rows = ("2.99.0 linux_x86_64 2.34 cp311,cp399", "2.6.0 linux_x86_64 2.17 cp311")
    catalog = with_listings(CATALOG, [listing(CU126, *rows)], now=NOW)
    newest, older = catalog.builds_for(CU126, "linux_x86_64")
    assert (newest.torch, newest.python_tags, newest.glibc) == (
        Version("2.99.0"), ("cp311", "cp399"), "2.34",
    )  # fmt: skip
    assert older.torch == Version("2.6.0")
    assert is_listed(newest)
    assert catalog.builds_for(CU126, "win_amd64") == ()
    assert catalog.builds_for(CU128, "linux_x86_64") == CATALOG.builds_for(CU128, "linux_x86_64")
    assert not any(map(is_listed, catalog.builds_for(CU128, "linux_x86_64")))
    assert catalog.driver_floors == CATALOG.driver_floors
    assert catalog.backends() == CATALOG.backends()


def test_builds_stand_newest_first_whatever_the_order_of_the_listing() -> None:
    rows = [f"2.{minor}.0 linux_x86_64 2.28 cp311" for minor in (9, 14, 10)]
    catalog = with_listings(CATALOG, [listing(CU126, *rows)], now=NOW)
    versions = [build.torch.minor for build in catalog.builds_for(CU126, "linux_x86_64")]
    assert versions == [14, 10, 9]


def test_what_is_not_released_is_not_newer_than_what_is() -> None:
    rows = ("2.99.0.dev20261101 linux_x86_64 2.28 cp311", "2.98.0rc1 linux_x86_64 2.28 cp311")
    catalog = with_listings(CATALOG, [listing(CU126, *rows)], now=NOW)
    assert catalog.builds_for(CU126, "linux_x86_64") == ()
    selection = select(HOST, Request(), interpreter=PYTHON, catalog=catalog)
    assert "dev" not in (selection.torch or "")


def test_a_macos_build_has_its_floor_and_no_glibc() -> None:
    row = "2.99.0 macos_arm64 15.0 cp311"
    catalog = with_listings(CATALOG, [listing(CPU, row)], now=NOW)
    [build] = catalog.builds_for(CPU, "macos_arm64")
    assert (build.glibc, build.macos, str(build.local_version)) == (None, "15.0", "2.99.0")


def test_without_a_listing_the_catalog_stays_as_it_is() -> None:
    assert with_listings(CATALOG, [], now=NOW) is CATALOG


def test_a_backend_that_the_catalog_never_heard_of_is_left_out() -> None:
    unheard = listing(Backend.parse("cu199"), "2.99.0 linux_x86_64 2.28 cp311")
    assert with_listings(CATALOG, [unheard], now=NOW) is CATALOG


@pytest.mark.parametrize("platform", ["linux_x86_64", "win_amd64", "linux_aarch64"])
def test_a_newer_torch_has_the_code_of_the_newest_known_one(platform: str) -> None:
    floor = "-" if platform.startswith("win") else "2.28"
    catalog = with_listings(CATALOG, [listing(CU130, f"2.99.0 {platform} {floor} cp311")], now=NOW)
    [build] = catalog.builds_for(CU130, platform)
    newest = max(
        (row for row in CATALOG.builds_for(CU130, platform) if CATALOG.cuda_code(row).known),
        key=lambda row: row.torch,
    )
    code = catalog.cuda_code(build)
    assert code.capabilities == CATALOG.cuda_code(newest).capabilities != ()
    assert not code.known


def test_a_newer_torch_for_rocm_has_the_code_of_the_newest_known_one() -> None:
    row = "2.99.0 linux_x86_64 2.28 cp311"
    catalog = with_listings(CATALOG, [listing(ROCM72, row)], now=NOW)
    [build] = catalog.builds_for(ROCM72, "linux_x86_64")
    code = catalog.gfx_code(build)
    assert "gfx1100" in code.names
    assert not code.known


HOST = Host(
    platform=Platform(system="linux", machine="x86_64", libc="glibc", libc_version="2.36"),
    accelerators=(
        Accelerator(
            vendor="nvidia",
            name="NVIDIA GeForce RTX 3090",
            compute_capability=ComputeCapability(8, 6),
            driver_version="560.35.03",
        ),
    ),
)
PYTHON = Interpreter(executable=Path("python"), version="3.11.9", implementation="cpython")


def test_selection_takes_a_release_that_is_newer_than_the_catalog() -> None:
    row = "2.99.0 linux_x86_64 2.28 cp311"
    catalog = with_listings(CATALOG, [listing(CU126, row)], now=NOW)
    selection = select(HOST, Request(), interpreter=PYTHON, catalog=catalog)
    assert (str(selection.backend), selection.torch) == ("cu126", "2.99.0")
    assert selection.catalog == catalog.origin


def test_a_backend_that_the_index_has_no_more_can_be_asked_for_and_is_refused_with_the_reason() -> (
    None
):
    catalog = with_listings(CATALOG, [listing(CU126)], now=NOW)
    selection = select(HOST, Request(backend=CU126), interpreter=PYTHON, catalog=catalog)
    assert selection.backend is None
    [alternative] = [item for item in selection.alternatives if item.backend == CU126]
    assert "no wheel" in alternative.reason


def test_the_origin_says_when_the_index_was_read_and_what_is_the_catalogs() -> None:
    row = "2.14.1 linux_x86_64 2.28 cp311"
    fresh, old = listing(CU126, row, age=200), listing(CU128, row, age=3 * 86_400)
    origin = with_listings(CATALOG, [fresh], now=NOW).origin
    day = CATALOG.origin.as_of
    assert origin.as_of == "2026-11-22"
    assert origin.source == (
        f"the PyTorch index, read 3 minutes ago; code and drivers from the catalog of {day}"
    )
    origin = with_listings(CATALOG, [fresh, old], now=NOW).origin
    assert "read 3 minutes ago (cu128 3 days ago);" in origin.source


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "just now"), (59, "just now"), (60, "1 minute ago"), (7_199, "1 hour ago"),
     (7_200, "2 hours ago"), (86_400 * 6, "6 days ago")],
)  # fmt: skip
def test_an_age_in_words(seconds: int, words: str) -> None:
    assert age_words(seconds) == words


def test_every_platform_asks_for_the_kinds_that_it_has() -> None:
    kinds = {
        platform: {item.kind for item in candidate_backends(CATALOG, platform)}
        for platform in ("linux_x86_64", "win_amd64", "macos_arm64", "linux_s390x")
    }
    assert kinds == {
        "linux_x86_64": {"cuda", "rocm", "xpu", "cpu"},
        "win_amd64": {"cuda", "xpu", "cpu"},
        "macos_arm64": {"cpu"},
        "linux_s390x": {"cpu"},
    }
    everything = candidate_backends(CATALOG, "linux_x86_64")
    assert set(everything) <= CATALOG.known_to_uv


def test_one_line_says_what_did_not_answer_and_why() -> None:
    def failure(backend: Backend, reason: str) -> Failure:
        return Failure(backend=backend, failed_at=NOW, reason=reason)

    some = [failure(CU126, "HTTP 500"), failure(CU128, "timed out"), failure(CU130, "timed out")]
    assert failure_words([], [], CATALOG, now=NOW) is None
    assert failure_words(some, [listing(CPU)], CATALOG, now=NOW) == (
        "the PyTorch index did not answer for all (cu126: HTTP 500; cu128, cu130: timed out):"
        " what was known of these is used"
    )
    assert failure_words(some, [], CATALOG, now=NOW) == (
        "the PyTorch index did not answer (timed out): the builds here are"
        f" those of the shipped catalog of {CATALOG.origin.as_of}"
    )
    assert failure_words(some, [listing(CU126, age=7_300)], CATALOG, now=NOW) == (
        "the PyTorch index did not answer (timed out): the builds here are"
        " those that it listed 2 hours ago"
    )


# --------------------------------------------------------------------------------------- asking


@dataclass(kw_only=True)
class Page:
    body: bytes = b""
    status: int = 200
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    """What is announced; None is the body's own."""
    silent: bool = False
    """Says nothing until the server ends."""
    trickles: bool = False
    """Goes on with a byte now and then, for as long as the client listens."""


class Server(ThreadingHTTPServer):
    """A server of an index's pages by path, on the loopback interface."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, backend: Backend, page: Page) -> None:
        self.pages[f"/{backend}/torch/"] = page

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base's name)
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers.items())))
        page = self.server.pages.get(self.path, Page(status=403))
        if page.silent:
            self.server.ended.wait()
            self.close_connection = True
            return
        tag = page.headers.get("ETag")
        if tag and self.headers["If-None-Match"] == tag:
            page = Page(status=304)
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if page.status != 304:
            length = len(page.body) if page.length is None else page.length
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(page.body)
        while page.trickles and not self.server.ended.wait(0.02):
            self.wfile.write(b" ")
        self.close_connection = page.length is not None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Server() as serving:
        thread = threading.Thread(
            target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        yield serving
        serving.ended.set()
        serving.shutdown()
        thread.join()


def wheel(backend: Backend, torch: str = "2.14.1") -> str:
    return f"torch-{torch}+{backend}-cp311-cp311-manylinux_2_28_x86_64.whl"


def ask(
    server: Server, *backends: Backend, known: tuple[Listing, ...] = (), seconds: float = 5.0
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return what was listed, and why it was not, by backend."""
    listings, failures = refresh(
        backends, known=known, timeout_seconds=seconds, address=server.address
    )
    return (
        {str(item.backend): [*map(str, item.builds)] for item in listings},
        {str(item.backend): item.reason for item in failures},
    )


LISTED = ["2.14.1 linux_x86_64 2.28 cp311"]


def test_both_forms_are_asked_for_and_understood(server: Server) -> None:
    server.put(CU126, Page(body=json_page(wheel(CU126))))
    server.put(CU128, Page(body=html_page(wheel(CU128)), kind="text/html; charset=utf-8"))
    assert ask(server, CU126, CU128) == ({"cu126": LISTED, "cu128": LISTED}, {})
    for _, headers in server.seen:
        assert headers["Accept"].startswith(f"{JSON}, ")
        assert headers["User-Agent"].startswith("torchenv_magic/")


def test_a_packed_page_is_unpacked(server: Server) -> None:
    packed = gzip.compress(html_page(wheel(CU126)))
    headers = {"Content-Encoding": "gzip"}
    server.put(CU126, Page(body=packed, kind=HTML, headers=headers))
    server.put(CU128, Page(body=packed[:-20], kind=HTML, headers=headers))
    server.put(CU130, Page(body=b"no gzip", kind=HTML, headers=headers))
    server.put(CPU, Page(body=gzip.compress(b" " * 20_000_000), headers=headers))
    assert ask(server, CU126, CU128, CU130, CPU) == (
        {"cu126": LISTED},
        {
            "cu128": "the answer ends early",
            "cu130": "the answer is not packed as it says",
            "cpu": "the answer is longer than 10,000,000 bytes",
        },
    )


def test_what_answers_is_used_and_each_other_has_its_reason(server: Server) -> None:
    server.put(CU126, Page(body=json_page(wheel(CU126))))
    server.put(CU128, Page(status=500))
    server.put(CU130, Page(body=html_page(wheel(CU130)), kind=HTML, length=9_999))
    server.put(CPU, Page(body=b"<html>Log in</html>", kind=HTML))
    # 403 is what the real index says of a page that it does not have.
    assert ask(server, CU126, CU128, CU130, CPU, ROCM72) == (
        {"cu126": LISTED, "rocm7.2": []},
        {
            "cu128": "HTTP 500",
            "cu130": "the answer ends early",
            "cpu": "the page lists no wheel of torch",
        },
    )


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_of_everything_is_no_empty_index(server: Server, status: int) -> None:
    for backend in (CU126, CPU):
        server.put(backend, Page(status=status))
    reason = f"HTTP {status}"
    assert ask(server, CU126, CPU) == ({}, {"cu126": reason, "cpu": reason})


def test_a_slow_page_does_not_hold_up_the_others(server: Server) -> None:
    server.put(CU126, Page(body=json_page(wheel(CU126))))
    server.put(CU128, Page(silent=True))
    server.put(CU130, Page(body=b" ", trickles=True, length=1_000_000))
    begun = time.monotonic()
    listings, failures = ask(server, CU126, CU128, CU130, seconds=0.7)
    assert time.monotonic() - begun < 5
    assert listings == {"cu126": LISTED}
    assert failures.keys() == {"cu128", "cu130"}


def test_the_asking_ends_with_the_time_where_nothing_answers(server: Server) -> None:
    server.put(CU126, Page(silent=True))
    begun = time.monotonic()
    listings, failures = ask(server, CU126, seconds=0.3)
    assert time.monotonic() - begun < 5
    assert (listings, [*failures]) == ({}, ["cu126"])


def test_nobody_there_is_a_failure_at_once() -> None:
    begun = time.monotonic()
    _, [failure] = refresh([CU126], timeout_seconds=60, address="http://127.0.0.1:9")
    assert time.monotonic() - begun < 15
    assert "refused" in failure.reason


def test_an_unchanged_page_is_not_sent_again(server: Server) -> None:
    page = Page(body=json_page(wheel(CU126)), headers={"ETag": '"one"', "Last-Modified": "then"})
    server.put(CU126, page)
    [first], _ = refresh([CU126], address=server.address)
    old = replace(first, read_at=first.read_at - 90_000)
    [second], failures = refresh([CU126], known=[old], address=server.address)
    assert failures == ()
    assert second.builds == first.builds
    assert second.read_at >= first.read_at
    sent = server.seen[-1][1]
    assert (sent["If-None-Match"], sent["If-Modified-Since"]) == ('"one"', "then")
    # What is no header's value, in a file that somebody else wrote, is not sent.
    hostile = replace(old, etag='"x"\r\nHost: elsewhere', last_modified="\N{SNOWMAN}")
    assert ask(server, CU126, known=(hostile,)) == ({"cu126": LISTED}, {})
    assert "If-None-Match" not in server.seen[-1][1]


def test_a_page_that_was_there_is_not_gone_by_a_403(server: Server) -> None:
    """It is also what a server says to who asks too often; 404 leaves no doubt."""
    server.put(CPU, Page(body=json_page(wheel(CPU))))
    server.put(CU126, Page(status=403))
    server.put(CU128, Page(status=404))
    known = (listing(CU126, *LISTED), listing(CU128, *LISTED))
    assert ask(server, CPU, CU126, CU128, CU130, known=known) == (
        {"cpu": LISTED, "cu128": [], "cu130": []},
        {"cu126": "HTTP 403"},
    )


def test_an_unasked_304_is_a_failure(server: Server) -> None:
    server.put(CU126, Page(status=304))
    assert ask(server, CU126) == ({}, {"cu126": "HTTP 304"})


def test_a_redirect_is_followed_to_a_server_only(server: Server, tmp_path: Path) -> None:
    local = tmp_path / "page"
    local.write_bytes(json_page(wheel(CU128)))
    server.pages["/elsewhere"] = Page(body=json_page(wheel(CU126)))
    for backend, place in (
        (CU126, f"http://localhost:{server.server_address[1]}/elsewhere"),
        (CU128, local.as_uri()),
        (CU130, "ftp://127.0.0.1/page"),
        (CPU, "data:application/json,{}"),
    ):
        server.put(backend, Page(status=302, headers={"Location": place}))
    listings, failures = ask(server, CU126, CU128, CU130, CPU)
    assert listings == {"cu126": LISTED}
    assert failures.keys() == {"cu128", "cu130", "cpu"}


def test_a_login_goes_to_its_own_server_alone_and_is_never_shown(server: Server) -> None:
    port = server.server_address[1]
    server.pages["/elsewhere"] = Page(body=json_page(wheel(CU126)))
    server.put(CU126, Page(status=302, headers={"Location": f"http://localhost:{port}/elsewhere"}))
    server.put(CU128, Page(status=302, headers={"Location": "/elsewhere"}))
    server.put(CU130, Page(status=500))
    address = server.address.replace("://", "://ada:secret@")
    _, failures = refresh([CU126, CU128, CU130], timeout_seconds=5, address=address)
    logins = [(path, "Authorization" in headers) for path, headers in server.seen]
    assert sorted(logins) == [
        ("/cu126/torch/", True), ("/cu128/torch/", True), ("/cu130/torch/", True),
        ("/elsewhere", False), ("/elsewhere", True),
    ]  # fmt: skip
    assert "secret" not in str(failures)


def test_the_login_for_the_proxy_stays_with_the_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.server_address[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://ada:secret@127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "localhost")
    place = f"http://localhost:{port}/direct"
    server.pages["http://index.invalid/cu126/torch/"] = Page(
        status=302, headers={"Location": place}
    )
    server.pages["/direct"] = Page(body=json_page(wheel(CU126)))
    _, failures = refresh([CU126], timeout_seconds=5, address="http://index.invalid")
    assert failures == ()
    logins = ["Proxy-Authorization" in {name.title() for name in sent} for _, sent in server.seen]
    assert logins == [True, False]


def test_the_words_of_a_malformed_proxy_are_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:secret")
    _, failures = ask(server, CU126)
    assert failures == {"cu126": "no answer in HTTP: InvalidURL"}


def test_all_backends_take_no_longer_than_one(server: Server) -> None:
    backends = candidate_backends(CATALOG, "linux_x86_64")
    for backend in backends:
        names = [wheel(backend, f"2.{minor}.{patch}") for minor in range(20) for patch in range(3)]
        server.put(backend, Page(body=html_page(*names), kind=HTML))
    ask(server, CPU)  # whoever comes first waits for what is imported
    begun = time.monotonic()
    listings, failures = ask(server, *backends)
    assert time.monotonic() - begun < 5  # 0.1 s where nothing else runs
    assert (len(listings), failures) == (len(backends), {})


def test_who_begins_to_ask_does_not_wait(server: Server) -> None:
    server.put(CU126, Page(silent=True))
    begun = time.monotonic()
    asking = Refreshing([CU126], timeout_seconds=60, address=server.address)
    assert time.monotonic() - begun < 15
    server.ended.set()
    _, [failure] = asking.finish()
    assert failure.reason == "Remote end closed connection without response"


# -------------------------------------------------------------------------------- what is kept


def kept(*listings: Listing, failures: tuple[Failure, ...] = ()) -> Cached:
    return Cached(listings=listings, failures=failures)


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "index.json"
    cached = kept(
        listing(CU126, "2.14.1 linux_x86_64 2.28 cp311"),
        listing(CPU),
        failures=(Failure(backend=CU128, failed_at=NOW, reason="timed out"),),
    )
    write_cache(file, cached)
    assert read_cache(file) == cached
    assert [path.name for path in file.parent.iterdir()] == ["index.json"]
    write_cache(file, Cached())
    assert read_cache(file) == Cached()


VALID = json.dumps(
    to_json(kept(listing(CU126, "2.14.1 linux_x86_64 2.28 cp311"), listing(CPU)))
).encode()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_absent_or_still_a_listing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    start = data.draw(st.integers(0, len(VALID)))
    end = data.draw(st.integers(start, len(VALID)))
    file.write_bytes(VALID[:start] + data.draw(st.binary(max_size=12)) + VALID[end:])
    cached = read_cache(file)
    catalog = with_listings(CATALOG, fresh_listings(cached, now=NOW), now=NOW)
    select(HOST, Request(), interpreter=PYTHON, catalog=catalog)
    stale_backends(cached, [CU126], now=NOW)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"schema": 2, "listings": [], "failures": []}',
        b'{"index": "https://elsewhere.example/whl"}',
        b'{"listings": [{"backend": 5, "read_at": 1}]}',
        b'{"listings": [{"backend": "cu126", "read_at": "now"}]}',
        b'{"listings": [{"backend": "cu126", "read_at": 1, "builds": [7]}]}',
        b" " * 6_000_000,
    ],
    ids=range(11),
)
def test_a_foreign_file_is_absent(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "index.json"
    file.write_bytes(content)
    assert read_cache(file) == Cached()


def test_what_is_no_file_is_absent(tmp_path: Path) -> None:
    assert read_cache(None) == Cached()
    assert read_cache(tmp_path) == Cached()
    assert read_cache(tmp_path / "none") == Cached()
    assert read_cache(tmp_path / ("n" * 5_000)) == Cached()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert read_cache(tmp_path / "pipe") == Cached()


def test_what_can_not_be_kept_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "index.json").mkdir()
    for file in (None, tmp_path / "file" / "index.json", tmp_path / "index.json"):
        write_cache(file, kept(listing(CPU)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "index.json"]


@pytest.mark.skipif(os.name == "nt", reason="links take a privilege there")
def test_what_is_kept_is_written_through_no_link(tmp_path: Path) -> None:
    """In a folder that others write to, such as one below `/tmp`."""
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    file = tmp_path / "index.json"
    file.symlink_to(victim)
    draft = tmp_path / f"index.json.{os.getpid()}-{threading.get_ident()}"
    draft.symlink_to(victim)
    write_cache(file, kept(listing(CPU)))
    assert victim.read_text(encoding="utf-8") == "mine"
    write_cache(file, kept(listing(CPU)))
    assert victim.read_text(encoding="utf-8") == "mine"
    assert read_cache(file) == kept(listing(CPU))


@pytest.mark.parametrize(
    ("system", "environ", "folder"),
    [
        ("linux", {}, "home/.cache/torchenv_magic"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/torchenv_magic"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/torchenv_magic"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "home/Library/Caches/torchenv_magic"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/torchenv_magic"),
        ("win32", {}, "home/AppData/Local/torchenv_magic"),
        ("win32", {"TORCHENV_CACHE_DIR": "mine"}, "mine"),
    ],
)
def test_the_folder_is_the_one_that_each_system_has_for_it(
    system: str, environ: dict[str, str], folder: str
) -> None:
    assert cache_folder(environ, system=system, home=Path("home")) == Path(folder)


def test_a_failure_leaves_the_listing_and_a_listing_ends_the_failure() -> None:
    old = listing(CU126, "2.14.1 linux_x86_64 2.28 cp311", age=50)
    failure = Failure(backend=CU126, failed_at=NOW, reason="timed out")
    failed = merged(kept(old), [], [failure])
    assert failed == kept(old, failures=(failure,))
    new = listing(CU126)
    assert merged(failed, [new], []) == kept(new)


def test_a_listing_counts_for_a_week_and_one_from_tomorrow_never() -> None:
    ages = {"now": 0, "week": USABLE_SECONDS, "older": USABLE_SECONDS + 1, "tomorrow": -3_600}
    for name, age in ages.items():
        fresh = fresh_listings(kept(listing(CPU, age=age)), now=NOW)
        assert bool(fresh) is (name in ("now", "week")), name


def test_unasked_only_what_is_a_day_old_and_did_not_just_fail_is_asked_for() -> None:
    cached = kept(
        listing(CU126, age=STALE_SECONDS),
        listing(CU128, age=STALE_SECONDS + 1),
        failures=(
            Failure(backend=CU130, failed_at=NOW - RETRY_SECONDS, reason="timed out"),
            Failure(backend=CPU, failed_at=NOW - RETRY_SECONDS - 1, reason="timed out"),
        ),
    )
    asked = stale_backends(cached, (CU126, CU128, CU130, CPU, ROCM72), now=NOW)
    assert asked == (CU128, CPU, ROCM72)


# -------------------------------------------------------------------------------- who asks when


def asked(target: Target) -> int:
    """Return how many pages the stand-in was asked for since the last time."""
    count = sum(request.path.endswith("/torch/") for request in target.standin.requests)
    target.standin.clear_log()
    return count


def age(seconds: int) -> None:
    """Make what is kept that much older."""
    file = listing_file(os.environ)
    assert file is not None
    cached = read_cache(file)
    older = replace(
        cached,
        listings=tuple(replace(item, read_at=item.read_at - seconds) for item in cached.listings),
        failures=tuple(
            replace(item, failed_at=item.failed_at - seconds) for item in cached.failures
        ),
    )
    assert older.listings or older.failures
    write_cache(file, older)


AUTO = Request()
EVERYTHING = len(candidate_backends(CATALOG, read_platform(environ=os.environ).wheel_platform))


def test_without_a_refresh_nothing_is_asked_and_what_is_kept_is_used(target: Target) -> None:
    target.standin.clear_log()
    shipped = read_status(AUTO, python=target.python)
    assert shipped.selection.catalog == CATALOG.origin
    assert asked(target) == 0
    answered = read_status(AUTO, python=target.python, refresh="always")
    assert asked(target) == EVERYTHING
    assert answered.selection.torch == "2.13.0"  # the stand-in's newest
    assert answered.selection.catalog.source.startswith("the PyTorch index, read just now;")
    assert not [text for text in answered.selection.warnings if "PyTorch index" in text]
    age(3 * 86_400)
    known = read_status(AUTO, python=target.python)
    assert asked(target) == 0
    assert known.selection.torch == "2.13.0"
    assert known.selection.catalog.source.startswith("the PyTorch index, read 3 days ago;")
    age(5 * 86_400)
    assert read_status(AUTO, python=target.python).selection.catalog == CATALOG.origin


def test_a_stale_listing_is_asked_for_once_a_day_where_the_backend_is_open(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.standin.clear_log()
    # Who names the backend needs no choice.
    read_status(Request(backend=CPU), python=target.python, refresh="stale")
    monkeypatch.setenv("UV_TORCH_BACKEND", "cpu")
    read_status(AUTO, python=target.python, refresh="stale")
    monkeypatch.setenv("UV_TORCH_BACKEND", "auto")
    assert asked(target) == 0
    for seconds, expected in ((0, EVERYTHING), (3_600, 0), (86_400, EVERYTHING)):
        if seconds:
            age(seconds)
        status = read_status(AUTO, python=target.python, refresh="stale")
        assert asked(target) == expected
        assert status.selection.torch == "2.13.0"


def test_an_index_out_of_reach_is_not_tried_again_at_once(target: Target) -> None:
    target.standin.down = True
    shipped = read_status(AUTO, python=target.python)
    for _ in range(2):
        status = read_status(AUTO, python=target.python, refresh="stale")
        assert status.selection == shipped.selection  # without a word
        tried = sum(request.method == "CONNECT" for request in target.standin.requests)
        assert tried == EVERYTHING
    age(RETRY_SECONDS + 1)
    target.standin.down = False
    status = read_status(AUTO, python=target.python, refresh="stale")
    assert status.selection.torch == "2.13.0"


def test_a_refresh_that_fails_says_so_and_what_is_used_instead(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.standin.down = True
    failed = read_status(AUTO, python=target.python, refresh="always").selection
    assert failed.catalog == CATALOG.origin
    assert failed.warnings[-1] == (
        "the PyTorch index did not answer (Tunnel connection failed: 502 Bad Gateway):"
        f" the builds here are those of the shipped catalog of {CATALOG.origin.as_of}"
    )
    target.standin.down = False
    target.standin.faults = [Fault(pattern=r"/cu126/torch/$", kind="status", status=500)]
    partly = read_status(AUTO, python=target.python, refresh="always").selection
    assert partly.catalog.source.startswith("the PyTorch index, read just now;")
    assert partly.warnings[-1].startswith(
        "the PyTorch index did not answer for all (cu126: HTTP 500): what was known"
    )
    age(86_400)
    monkeypatch.setenv("UV_OFFLINE", "1")
    target.standin.clear_log()
    offline = read_status(AUTO, python=target.python, refresh="always").selection
    assert asked(target) == 0
    assert offline.warnings[-1] == (
        "UV_OFFLINE is set: the builds here are those that it listed 1 day ago"
    )


def test_a_silent_index_delays_a_plan_by_a_second_at_most(target: Target) -> None:
    target.standin.faults = [Fault(pattern=r"/torch/$", kind="silent")]
    begun = time.monotonic()
    status = read_status(AUTO, python=target.python, refresh="stale")
    assert time.monotonic() - begun < 10
    assert status.selection.catalog == CATALOG.origin


def test_the_words_that_look_refresh_where_told_to(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str) -> Any:
        assert main([*words, "--json", "--python", str(target.python)]) == 0
        return json.loads(capsys.readouterr().out)

    target.standin.clear_log()
    assert say("select")["catalog"]["as_of"] == CATALOG.origin.as_of
    assert asked(target) == 0
    selection = say("select", "--refresh")
    assert selection["torch"] == "2.13.0"
    assert selection["catalog"]["source"].startswith("the PyTorch index, read just now")
    assert asked(target) > 0
    assert say("select")["torch"] == "2.13.0"
    assert asked(target) == 0
    torches = {row["backend"]: row["torch"] for row in say("list", "--refresh")}
    assert (torches["cu130"], torches["cu118"]) == ("2.13.0", None)
    assert asked(target) > 0
    assert say("status", "--refresh")["selection"]["torch"] == "2.13.0"
    assert asked(target) > 0


def test_a_plan_for_the_best_backend_is_of_what_the_index_has(workplace: Workplace) -> None:
    """The catalog knows newer releases than the stand-in has: the choice is what can be had."""
    folder = workplace.directory / "torchenv-cache"
    plan = json.loads(workplace.run(workplace.torchenv, "plan", "--json").stdout)
    [torch] = [change["after"] for change in plan["changes"] if change["name"] == "torch"]
    assert torch.startswith("2.13.0+")
    assert not [note for note in plan["notes"] if "index" in note]
    assert [path.name for path in folder.iterdir()] == ["index.json"]


def test_the_second_look_of_a_picker_leaves_what_was_begun(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    shell = InteractiveShell()  # type: ignore[no-untyped-call]
    picker = Picker(shell, FrontEnd(kind="jupyter", reason="a test"))
    until(lambda: picker.status is not None and picker._filled != ())
    picker.view.secondary.click()
    until(lambda: picker.state == "failed")  # it can't be planned offline
    said = picker.view.said.value
    monkeypatch.delenv("UV_OFFLINE")
    assert picker.status is not None
    target.standin.clear_log()
    picker._ask_index(picker.status)
    assert asked(target) > 0
    assert picker.state == "failed"
    assert picker.view.said.value == said


def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
