"""Where wheels come from: the index and how it is asked, folders, PyPI's own; what is offered."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin import FILE_HOST, Fault, StandIn, make_family, make_wheel
from tests.targets import Target, make_environment
from torchenv_magic.accelerators.platform import read_platform
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.environment import Interpreter
from torchenv_magic.errors import SourceError
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.plan import Source
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.sources import (
    IndexAnswer,
    index_source,
    probe_index,
    sizes,
    wheel_folders,
    wheels_in,
)
from torchenv_magic.selection import Request

pytest_plugins = ["tests.target_fixtures"]

CPU, CU126, CU130 = (Backend.parse(name) for name in ("cpu", "cu126", "cu130"))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what PyPI has for Linux")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for an index that is away no longer than a test should."""
    monkeypatch.setattr("torchenv_magic.installation.planning._HEAD_START_SECONDS", 0.2)


# -------------------------------------------------------------------------------------- the folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of wheels whose name has a space."""
    path = tmp_path / "my wheels"
    path.mkdir()
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def test_nothing_is_named_where_nobody_names_anything(home: Path) -> None:
    assert (
        wheel_folders(environ={"UV_NO_CONFIG": "1", "PIP_CONFIG_FILE": os.devnull}, home=home) == ()
    )


def test_uvs_variable_has_commas_and_pips_has_spaces(
    tmp_path: Path, folder: Path, home: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    environ = {
        "UV_FIND_LINKS": f"{folder}, {other},,https://wheels.example/page.html,{tmp_path}/none",
        "PIP_FIND_LINKS": f"{other} {tmp_path.as_uri()} {folder.as_uri()}",
    }
    found = wheel_folders(environ=environ, home=home)
    assert found == (folder.resolve(), other.resolve(), tmp_path.resolve())


@pytest.mark.skipif(os.name == "nt", reason="pip.ini lies elsewhere there")
@pytest.mark.parametrize(
    "place", ["home/.config/pip/pip.conf", "home/.pip/pip.conf", "prefix/pip.conf", "named.conf"]
)
@pytest.mark.parametrize("key", ["find-links", "find_links"])
def test_pips_files_are_read(tmp_path: Path, home: Path, place: str, key: str) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        *("[global]", "timeout = 60%", f"{key} =", "    https://x.example", f"    {wheels}"),
        *("[install]", f"{key} = ~/none {tmp_path}", "[other]", f"{key} = /"),
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    environ = {"PIP_CONFIG_FILE": str(tmp_path / "named.conf")} if place == "named.conf" else {}
    found = wheel_folders(environ=environ, home=home, prefix=tmp_path / "prefix")
    assert found == (wheels.resolve(), tmp_path.resolve())
    # pip's documented way to read no file at all.
    nothing = {"PIP_CONFIG_FILE": os.devnull}
    assert wheel_folders(environ=nothing, home=home, prefix=tmp_path / "prefix") == ()


@pytest.mark.skipif(os.name == "nt", reason="uv.toml lies elsewhere there")
def test_uvs_files_are_read_from_where_uv_reads_them(
    tmp_path: Path, home: Path, folder: Path
) -> None:
    user = home / ".config" / "uv"
    user.mkdir(parents=True)
    (user / "uv.toml").write_text(f"find-links = ['{folder}', 3]\n[pip]\nfind-links = 7\n", "utf-8")
    deep = tmp_path / "project" / "notebooks"
    (tmp_path / "project" / "wheels").mkdir(parents=True)
    deep.mkdir()
    project = tmp_path / "project" / "pyproject.toml"
    project.write_text("[tool.uv.pip]\nfind-links = ['wheels']\n", encoding="utf-8")
    found = wheel_folders(environ={}, home=home, directory=deep)
    assert found == (folder.resolve(), (tmp_path / "project" / "wheels").resolve())
    named = tmp_path / "named.toml"
    named.write_text(f"find-links = ['{tmp_path.as_uri()}']\n", encoding="utf-8")
    found = wheel_folders(environ={"UV_CONFIG_FILE": str(named)}, home=home, directory=deep)
    assert found == (tmp_path.resolve(),)
    assert wheel_folders(environ={"UV_NO_CONFIG": "1"}, home=home, directory=deep) == ()


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"[global\nfind-links", b"find-links = 3", b"pip = 3", b"[tool]\nuv = 3"],
)
def test_files_that_are_broken_name_no_folder(tmp_path: Path, home: Path, content: bytes) -> None:
    for name in ("pip.conf", "uv.toml"):
        (tmp_path / name).write_bytes(content)
    for name in ("uv.toml", "pyproject.toml"):
        environ = {
            "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
            "UV_CONFIG_FILE": str(tmp_path / name),
        }
        assert wheel_folders(environ=environ, home=home) == ()


# --------------------------------------------------------------------------------- what fits in one


def interpreter(version: str = "3.11.7", *, free_threaded: bool = False) -> Interpreter:
    return Interpreter(
        executable=Path(sys.executable),
        version=version,
        implementation="cpython",
        free_threaded=free_threaded,
    )


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def wheel(name: str, version: str, tag: str = "cp311", platform: str | None = None) -> str:
    return f"{name}-{version}-{tag}-{tag}-{platform or PLATFORM}.whl"


def platform_tag() -> str:
    name = make_family.__globals__["machine_platform_tag"]()
    assert isinstance(name, str)
    return name


PLATFORM = platform_tag()
TORCH = Request(requirements=("torch",))
BOTH = Request(requirements=("torch", "torchvision"))


def test_the_newest_that_fits_host_python_backend_and_request_is_taken(folder: Path) -> None:
    fill(
        folder,
        wheel("torch", "2.11.0+cu126"),
        wheel("torch", "2.12.0+cu126"),
        wheel("torch", "2.13.0+cu126", "cp312"),
        wheel("torch", "2.13.0+cu126", platform="win_arm64"),
        wheel("torch", "2.13.0+cpu"),
        wheel("torch", "2.14.0"),
        wheel("torchvision", "0.27.0+cu126"),
        "torch-broken.whl",
        "notes.txt",
        "torch-1-2-3-4-5-6-7.whl",
    )
    offer = wheels_in(folder, BOTH, CU126, interpreter())
    assert offer is not None
    assert offer.pins == (("torch", "2.12.0+cu126"), ("torchvision", "0.27.0+cu126"))
    assert offer.missing == ()
    older = Request(requirements=("torch<2.13", "Torch!=2.12.*"))
    offer = wheels_in(folder, older, CU126, interpreter())
    assert offer is not None
    assert offer.pins == (("torch", "2.11.0+cu126"),)
    offer = wheels_in(folder, TORCH, CU126, interpreter(), exclusion="torch<2.12")
    assert offer is not None
    assert offer.pins == (("torch", "2.11.0+cu126"),)


def test_what_is_not_there_is_named_and_without_torch_there_is_no_offer(folder: Path) -> None:
    fill(folder, wheel("torch", "2.12.0+cu126"))
    offer = wheels_in(folder, BOTH, CU126, interpreter())
    assert offer is not None
    assert offer.missing == ("torchvision",)
    offer = wheels_in(folder, TORCH, CU126, interpreter(), also=["torchaudio"])
    assert offer is not None
    assert offer.missing == ("torchaudio",)
    assert wheels_in(folder, TORCH, CPU, interpreter()) is None
    assert wheels_in(folder, TORCH, CU126, interpreter("3.13.0")) is None
    assert wheels_in(folder, TORCH, CU126, interpreter(free_threaded=True)) is None
    assert wheels_in(folder, Request(requirements=("torch>=3",)), CU126, interpreter()) is None
    assert wheels_in(folder / "none", TORCH, CU126, interpreter()) is None


# --------------------------------------------------------------------------------- asking the index


def test_a_page_says_whether_it_tells_hashes() -> None:
    file = "torch-2.13.0%2Bcu126-cp311-cp311-linux_x86_64.whl"
    page = f'<a href="https://x/{file}#sha256=aa">one</a><A HREF=other>other</a><a>none</a>'
    assert not IndexAnswer(state="answered", page=page).lacks_hashes("2.13.0+cu126")
    bare = page.replace("#sha256=aa", "")
    assert IndexAnswer(state="answered", page=bare).lacks_hashes("2.13.0+cu126")
    assert not IndexAnswer(state="answered", page=bare).lacks_hashes("2.12.0+cu126")
    assert not IndexAnswer(state="unknown").lacks_hashes("2.13.0+cu126")


def test_the_index_is_asked_through_the_proxy_that_uv_takes(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = index_source(CU126)
    answer = probe_index(source)
    assert answer.state == "answered"
    assert "torch-2.13.0%2Bcu126" in answer.page
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name)
    assert probe_index(source).state == "answered"  # by ALL_PROXY alone
    target.standin.down = True
    assert probe_index(source).state == "unreachable"
    target.standin.down = False
    target.standin.faults = [Fault(pattern="/torch/$", kind="status", status=403)]
    assert probe_index(source) == IndexAnswer(state="refused", detail="HTTP 403")
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    assert probe_index(source).state == "unknown"


@pytest.fixture
def mute() -> Iterator[str]:
    """Return the address of a server that accepts, and says something that is no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["", "/path", "http://127.0.0.1:1", "http://127.0.0.1:no"])
def test_odd_addresses_are_no_traceback(mute: str, address: str) -> None:
    place = mute + address if not address.startswith("http") else address
    assert probe_index(Source(kind="index", location=place)).state in ("unknown", "unreachable")
    assert sizes([place]) == {}


def test_the_sizes_of_files_are_asked_side_by_side(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_wheel(folder, "made", "1.0")
    torch = next(w for w in target.standin.wheels("cu126") if w.path.name.startswith("torch-"))
    simple = next(w for w in target.standin.wheels("simple") if w.path.name.startswith("numpy"))
    plain = target.standin.simple_url.removesuffix("simple/") + f"files/{simple.path.name}"
    addresses = {
        f"https://{FILE_HOST}/whl/cu126/{torch.path.name.replace('+', '%2B')}": torch.size,
        plain: simple.size,
        plain.replace("http://", "http://ada:secret@"): simple.size,
        made.as_uri(): made.stat().st_size,
        str(made): made.stat().st_size,
    }
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    missing = f"https://{FILE_HOST}/whl/cu126/none.whl"
    nowhere = (missing, "ftp://x.example/a", f"{folder}/none", str(folder), "")
    assert sizes([*addresses, *nowhere]) == addresses
    assert sizes([]) == {}


# ------------------------------------------------------------------------------------------- offers


def offer_folder(standin: StandIn, folder: Path, backend: str, *names: str) -> Path:
    for made in standin.wheels(backend):
        if made.name in names and not re.search(r"2\.12\.0|0\.27\.0", made.path.name):
            shutil.copy(made.path, folder)
    return folder


def test_a_folder_that_fits_is_offered_with_its_size_and_used_on_consent(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    target.standin.down = True
    before = target.snapshot()
    with pytest.raises(IndexUnreachableError, match="which fits") as caught:
        target.plan("cpu")
    error = caught.value
    [offer] = error.offers
    assert offer.source == Source(kind="folder", location=str(folder.resolve()))
    assert offer.versions["torch"] == "2.13.0+cpu"
    assert offer.local_bytes > 1_500_000
    assert f"has torch 2.13.0+cpu, which fits ({offer.local_bytes / 1e6:.1f} MB in the folder" in (
        error.message
    )
    assert "\n" not in error.message
    assert error.hint == "`%torchenv install cpu --yes` uses it"
    assert target.snapshot() == before
    plan = target.plan("cpu", consent=True)
    assert plan.changes == offer.changes
    assert "Used with your consent: the wheel folder" in plan.notes[-1]
    events: list[Event] = []
    install_plan(plan, on_event=events.append)
    assert "from the wheel folder" in events[0].message
    assert target.imported() == "2.13.0+cpu"
    assert not [r for r in target.standin.requests if r.host == FILE_HOST]
    # Satisfied: nobody has to consent to anything.
    assert target.plan("cpu").nothing_to_do


def test_a_folder_is_enough_where_there_is_no_network_at_all(
    cold_target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(cold_target.standin, folder, "cpu", "torch", "torchvision")
    names = ("filelock", "typing-extensions", "numpy", "pillow")
    offer_folder(cold_target.standin, folder, "simple", *names)
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    cold_target.standin.down = True
    plan = cold_target.plan("cpu", "torch", "torchvision", consent=True)
    assert plan.download_bytes == 0
    assert all(download.local for download in plan.downloads)
    install_plan(plan)
    assert cold_target.imported("torch", "torchvision") == "2.13.0+cpu"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(pattern="/torch/$", kind="status", status=403),
        Fault(pattern="/torch/$", kind="status", status=500),
    ],
)
def test_an_index_that_refuses_is_an_index_that_can_not_be_used(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    target.standin.faults = [fault]
    with pytest.raises(IndexUnreachableError, match=f"HTTP {fault.status}.*which fits"):
        target.plan("cpu")
    assert target.plan("cpu", consent=True).source.kind == "folder"


def test_a_folder_that_only_pip_knows_is_not_taken_where_the_index_is_there(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    assert target.plan("cpu", consent=True).source.kind == "index"


def test_a_folder_in_uvs_own_settings_is_told_and_never_gives_another_build(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    tag = target.read().interpreter.tag
    for version in ("2.98.0+cpu", "2.99.0+cpu"):
        make_wheel(folder, "torch", version, python_tag=tag, abi_tag=tag, platform_tag=PLATFORM)
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    plan = target.plan("cpu", "torch<2.90")
    assert plan.source == Source(kind="folder", location=str(folder))
    assert plan.local_bytes > 1_500_000
    plan = target.plan("cu126")
    assert plan.source.kind == "index"
    assert plan.versions["torch"] == "2.13.0+cu126"


def test_what_does_not_fit_is_not_offered(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    target.standin.down = True
    for backend, requirements in (
        ("cu126", ("torch",)),
        ("cpu", ("torch", "torchvision")),
        ("cpu", ("torch==2.12.0",)),
    ):
        with pytest.raises(SourceError) as caught:
            target.plan(backend, *requirements, consent=True)
        assert "--find-links" in caught.value.hint
        assert not getattr(caught.value, "offers", ())


def test_a_folder_without_an_installed_companion_would_mix_builds(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.fill("cu130", "torch", "torchvision")
    offer_folder(target.standin, folder, "cpu", "torch")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    target.standin.down = True
    with pytest.raises(SourceError, match="can't be reached"):
        target.plan("cpu", consent=True)
    offer_folder(target.standin, folder, "cpu", "torchvision")
    install_plan(target.plan("cpu", consent=True))
    assert target.imported("torch", "torchvision") == "2.13.0+cpu"


def test_a_wheel_that_is_cut_off_is_no_offer_and_the_log_says_why(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    target.standin.down = True
    events: list[Event] = []
    with pytest.raises(SourceError):
        target.plan("cpu", consent=True, on_event=events.append)
    assert any(event.log.startswith("the wheel folder") for event in events)


@LINUX
def test_pypis_own_wheel_is_offered_where_it_is_the_chosen_build_and_really_there(
    target: Target,
) -> None:
    target.standin.down = True
    with pytest.raises(IndexUnreachableError, match="PyPI's own wheel has torch 2") as caught:
        target.plan("cu130", "torch", "torchvision")
    [offer] = caught.value.offers
    # The catalog knows newer ones; this index does not have them.
    assert offer.versions["torch"] == "2.13.0"
    assert offer.source.kind == "pypi"
    plan = target.plan("cu130", "torch", "torchvision", consent=True)
    install_plan(plan)
    assert target.versions()["torch"] == "2.13.0"
    assert target.backend() == "cu130"
    assert target.imported("torch", "torchvision") == "2.13.0+cu130"
    # Its build is read from its own file: nothing is to be done, and a switch moves it.
    assert target.plan("cu130").nothing_to_do
    target.standin.down = False
    target.install("cpu")
    assert target.imported("torch", "torchvision") == "2.13.0+cpu"


@LINUX
def test_pypis_wheel_of_another_build_is_never_offered(target: Target) -> None:
    target.standin.down = True
    platform = read_platform(environ=os.environ).wheel_platform
    tag = target.read().interpreter.tag
    catalog = load_catalog()
    fitting = [
        version
        for version in catalog.pypi_versions(platform, tag)
        if catalog.pypi_default(version, platform) == CU126
    ]
    assert all(version.release < (2, 13) for version in fitting)
    for backend in ("cpu", "cu126"):
        with pytest.raises(SourceError) as caught:
            target.plan(backend, consent=True)
        assert not getattr(caught.value, "offers", ())


@LINUX
def test_a_release_that_the_catalog_does_not_know_is_left_out(
    target: Target, tmp_path: Path
) -> None:
    tag = target.read().interpreter.tag
    for version in ("2.13.7", "2.13.8"):
        target.standin.add_wheel(
            "simple",
            make_wheel(
                tmp_path, "torch", version, python_tag=tag, abi_tag=tag, platform_tag=PLATFORM
            ),
        )
    target.standin.down = True
    assert target.plan("cu130", consent=True).versions["torch"] == "2.13.0"


@LINUX
def test_a_folder_in_uvs_own_settings_does_not_pass_for_pypi(
    target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_folder(target.standin, folder, "cpu", "torch")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    target.standin.down = True
    plan = target.plan("cu130", consent=True)
    assert plan.source.kind == "pypi"
    assert plan.versions["torch"] == "2.13.0"


@pytest.mark.real_wheel
def test_the_real_wheel_in_its_folder_fits_the_python_it_was_made_for(
    target: Target, real_wheel: Path
) -> None:
    offer = wheels_in(real_wheel.parent, TORCH, CPU, interpreter())
    assert offer is not None
    assert dict(offer.pins)["torch"] == real_wheel.name.split("-")[1]
    assert wheels_in(real_wheel.parent, TORCH, CPU, interpreter("3.13.0")) is None
    assert make_environment(target.prefix.with_name("other")).is_dir()
