"""A folder of wheels for another machine: whole, checked, and enough for it without a network."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.standin import Fault
from tests.standin.server import INDEX_HOST
from tests.targets import Target, selected
from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import (
    DiskSpaceError,
    InstallCancelled,
    InstallError,
    PlanError,
    RequestError,
    SourceError,
    TorchEnvError,
)
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.installation.wheelhouse import Wheelhouse, fetch_wheels, read_wheels
from torchenv_magic.selection import Alternative, Request

pytest_plugins = ["tests.target_fixtures"]

CU126 = Backend.parse("cu126")


def fetch(
    directory: Path,
    *requirements: str,
    sites: Sites | None = None,
    python_version: str | None = None,
    platform: str | None = None,
    cancellation: Cancellation | None = None,
    events: list[Event] | None = None,
    free: int = 10**12,
) -> Wheelhouse:
    return fetch_wheels(
        directory,
        Request(requirements=requirements or ("torch",)),
        CU126,
        sites=sites or Sites(),
        python_version=python_version,
        platform=platform,
        on_event=events.append if events is not None else None,
        cancellation=cancellation,
        free=lambda _: free,
    )


def from_folder(target: Target, folder: Path, backend: str | None, *texts: str) -> Plan:
    request = Request(
        requirements=texts or ("torch",), backend=Backend.parse(backend) if backend else None
    )
    return make_plan(
        selected(backend or "cu130"),
        target.read(),
        request,
        sites=Sites(find_links=(str(folder),), find_links_origin="--find-links"),
    )


def names(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.iterdir()}


def test_what_was_fetched_is_installed_where_there_is_no_network_and_no_cache(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my wheels"
    wheelhouse = fetch(folder, "torch", "torchvision")
    assert {"torch", "torchvision", "filelock", "triton"} <= names(folder)
    assert {path.name for path in folder.iterdir()} == {wheel.file for wheel in wheelhouse.wheels}
    assert wheelhouse.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    # Another machine: nothing can be reached, nothing was ever fetched.
    target.standin.clear_log()
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty-cache"))
    plan = from_folder(target, folder, "cu126", "torch", "torchvision")
    assert plan.source.kind == "folder"
    assert "(as --find-links says)" in str(plan)
    assert plan.download_bytes == 0
    install_plan(plan)
    assert target.imported("torch", "torchvision") == "2.13.0+cu126"
    assert target.standin.requests == ()
    assert from_folder(target, folder, "cu126", "torch", "torchvision").nothing_to_do


def test_a_second_run_fetches_nothing(target: Target, tmp_path: Path) -> None:
    first = fetch(tmp_path / "wheels")
    assert all(wheel.fetched for wheel in first.wheels)
    target.standin.clear_log()
    second = fetch(tmp_path / "wheels")
    assert not any(wheel.fetched for wheel in second.wheels)
    assert "Fetched nothing" in str(second)
    assert target.standin.downloads() == ()


def test_a_file_that_was_changed_is_fetched_anew(target: Target, tmp_path: Path) -> None:
    [torch] = [w for w in fetch(tmp_path).wheels if w.name == "torch"]
    file = tmp_path / torch.file
    file.write_bytes(b"x" * file.stat().st_size)
    target.standin.clear_log()
    again = fetch(tmp_path)
    assert [wheel.name for wheel in again.wheels if wheel.fetched] == ["torch"]


@pytest.mark.parametrize(
    ("python_version", "platform", "tag"),
    [
        ("3.12", None, "cp312"),
        ("3.10", "linux_x86_64", "cp310"),
        ("3.13", "x86_64-manylinux_2_34", "cp313"),
    ],
)
def test_the_wheels_are_those_of_the_other_python(
    target: Target, tmp_path: Path, python_version: str, platform: str | None, tag: str
) -> None:
    del target
    wheelhouse = fetch(tmp_path, python_version=python_version, platform=platform)
    [torch] = [wheel for wheel in wheelhouse.wheels if wheel.name == "torch"]
    assert f"-{tag}-" in torch.file
    assert f"Python {python_version}" in str(wheelhouse)


@pytest.mark.parametrize(
    ("python_version", "platform"),
    [("2.7", None), ("twelve", None), ("--x", None), (None, "amiga"), (None, "--all"), (None, "")],
)
def test_what_uv_does_not_know_is_said_before_anything_is_made(
    target: Target, tmp_path: Path, python_version: str | None, platform: str | None
) -> None:
    del target
    with pytest.raises(RequestError) as caught:
        fetch(tmp_path / "wheels", python_version=python_version, platform=platform)
    assert caught.value.hint
    assert not (tmp_path / "wheels").exists()


def test_wheels_that_do_not_exist_for_that_machine_are_told(target: Target, tmp_path: Path) -> None:
    del target
    with pytest.raises(PlanError):
        fetch(tmp_path, platform="win_arm64")


def test_a_download_goes_on_where_it_broke_off(target: Target, tmp_path: Path) -> None:
    target.standin.faults = (Fault(pattern=r"torch-2.*\.whl$", kind="truncate", times=1),)
    wheelhouse = fetch(tmp_path)
    [torch] = [wheel for wheel in wheelhouse.wheels if wheel.name == "torch"]
    asked = target.standin.downloads(r"/torch-2.*\.whl$")
    assert [request.status for request in asked] == [200, 206]
    assert sum(request.bytes for request in asked) == torch.size_bytes
    assert not (tmp_path / ".torchenv-parts").exists()


def test_a_cancelled_download_leaves_whole_wheels_and_goes_on_later(
    target: Target, tmp_path: Path
) -> None:
    target.standin.rate = 20_000
    cancellation = Cancellation()

    def cancel() -> None:
        target.standin.wait_for(r"/torch-2.*\.whl$", sent=10_000)
        cancellation.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(InstallCancelled):
        fetch(tmp_path, cancellation=cancellation)
    thread.join()
    left = {path.name for path in tmp_path.glob("*.whl")}
    target.standin.rate = None
    wheelhouse = fetch(tmp_path)
    by_file = {wheel.file: wheel for wheel in wheelhouse.wheels}
    assert left <= by_file.keys()
    assert not any(by_file[file].fetched for file in left)
    assert any(wheel.name == "torch" and wheel.fetched for wheel in wheelhouse.wheels)


def test_what_has_another_hash_never_gets_its_name(target: Target, tmp_path: Path) -> None:
    target.standin.faults = (Fault(pattern=r"torch-2.*\.whl$", kind="corrupt"),)
    with pytest.raises(InstallError, match="another hash"):
        fetch(tmp_path)
    assert not list(tmp_path.glob("torch-*.whl"))


def test_a_file_that_is_refused_is_an_error_at_once(target: Target, tmp_path: Path) -> None:
    target.standin.faults = (Fault(pattern=r"torch-2.*\.whl$", kind="status", status=404),)
    with pytest.raises(SourceError, match="404"):
        fetch(tmp_path)


def test_the_space_is_looked_at_before_the_first_byte(target: Target, tmp_path: Path) -> None:
    with pytest.raises(DiskSpaceError, match="are free"):
        fetch(tmp_path, free=10)
    assert target.standin.downloads() == ()


def test_the_bytes_are_told(target: Target, tmp_path: Path) -> None:
    del target
    events: list[Event] = []
    wheelhouse = fetch(tmp_path, events=events)
    last = [event.bytes for event in events if event.bytes is not None][-1]
    assert last.done == last.total == wheelhouse.size_bytes


def test_a_mirror_serves_a_wheelhouse_too(target: Target, tmp_path: Path) -> None:
    sites = Sites(index_base=target.standin.mirror_base, index_origin="--index-base")
    fetch(tmp_path, sites=sites)
    assert "torch" in names(tmp_path)
    assert [r for r in target.standin.requests if r.host == INDEX_HOST] == []
    wrong = Sites(index_base=f"{target.standin.mirror_base}l", index_origin="--index-base")
    with pytest.raises(SourceError, match="has no torch for cu126"):
        fetch(tmp_path, sites=wrong)


def lock(**entry: object) -> str:
    rows = ", ".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
    return (
        f'[[packages]]\nname = "odd"\nversion = "1"\nwheels = [{{ {rows}, '
        f'hashes = {{ sha256 = "{"a" * 64}" }} }}]\n'
    )


@pytest.mark.parametrize(
    "text",
    [
        lock(url="https://a.example/%2e%2e%2fodd-1-py3-none-any.whl", name="../odd.whl"),
        lock(url="https://a.example/x/..%5Codd-1-py3-none-any.whl"),
        lock(url="https://a.example/.hidden"),
        lock(url="https://a.example/odd-1.tar.gz"),
        '[[packages]]\nname = "odd"\nversion = "1"\nsdist = { url = "https://a/odd-1.tar.gz" }\n',
        '[[packages]]\nname = "odd"\nwheels = [{ url = "https://a/odd-1-py3-none-any.whl" }]\n',
        "packages = 3",
        "not toml",
    ],
)
def test_a_lock_names_files_of_the_folder_and_their_hashes_or_is_refused(text: str) -> None:
    with pytest.raises(TorchEnvError):
        read_wheels(text)


# --------------------------------------------------------------------------- folders that are named


def test_what_a_folder_lacks_comes_from_the_index_and_that_is_told(
    target: Target, tmp_path: Path
) -> None:
    fetch(tmp_path / "wheels")
    plan = from_folder(target, tmp_path / "wheels", "cpu")
    assert plan.source.kind == "index"
    assert any("has no torch that fits" in note for note in plan.notes)


def test_where_neither_a_folder_nor_the_index_has_it_both_are_told(
    target: Target, tmp_path: Path
) -> None:
    target.standin.down = True
    with pytest.raises(SourceError) as caught:
        from_folder(target, tmp_path, "cu126")
    assert "can't be reached" in caught.value.message
    assert f"{tmp_path} (as --find-links says): it has no torch that fits" in caught.value.message


def test_without_a_backend_the_best_of_what_lies_there_is_taken(
    target: Target, tmp_path: Path
) -> None:
    fetch(tmp_path / "wheels")
    sites = Sites(find_links=(str(tmp_path / "wheels"),), find_links_origin="--find-links")
    alternatives = tuple(
        Alternative(backend=Backend.parse(name), torch="2.13.0", fits=fits, reason=f"{name}'s own")
        for name, fits in (("cu130", True), ("cu128", False), ("cu126", True), ("cpu", True))
    )
    selection = replace(selected("cu130"), alternatives=alternatives)
    plan = make_plan(selection, target.read(), Request(), sites=sites)
    assert (str(plan.backend), plan.reason) == ("cu126", "cu126's own")
    assert plan.source.kind == "folder"
    # Who names a backend gets that one.
    named = Request(backend=Backend.parse("cu130"))
    assert str(make_plan(selection, target.read(), named, sites=sites).backend) == "cu130"


def test_what_its_wheels_need_besides_comes_from_elsewhere(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    fetch(folder)
    for path in folder.glob("filelock-*"):
        path.unlink()
    plan = from_folder(target, folder, "cu126")
    assert plan.source.kind == "folder"
    assert "filelock" in plan.versions
    install_plan(plan)
    assert target.backend() == "cu126"


def test_the_command_fetches_and_says_how_to_go_on(target: Target, tmp_path: Path) -> None:
    del target
    command = [sys.executable, "-m", "torchenv_magic", "download", "wheels", "cu126", "filelock>3"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "`torchenv install cu126 'filelock>3' --find-links wheels`" in done.stdout
    again = subprocess.run(
        [*command, "--json"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    data = json.loads(again.stdout)
    assert {wheel["fetched"] for wheel in data["wheels"]} == {False}
    assert all(json.loads(line) for line in again.stderr.splitlines())
