"""Space: what a plan takes on which disk, told before anything is fetched."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.targets import Target, make_environment
from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import DiskSpaceError, InstallError
from torchenv_magic.installation.failures import explain
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.plan import Download
from torchenv_magic.installation.sources import uv_setting
from torchenv_magic.installation.space import Disk, check_space, look_at_disk, needs_of
from torchenv_magic.installation.transaction import failure
from torchenv_magic.installation.uv import Completed, find_uv

pytest_plugins = ["tests.target_fixtures"]

CUDA = Backend.parse("cu126")
CACHE, SITE = Path("cache"), Path("site")


def wheel(name: str, size: int, *, cached: bool = False) -> Download:
    return Download(name=name, version="1", size_bytes=size, cached=cached)


def disks(**named: Disk) -> Callable[[Path], Disk]:
    return lambda path: named[path.name]


ONE = Disk(device=1, mount="/", free_bytes=10_000)
OTHER = Disk(device=2, mount="/mnt", free_bytes=10_000)


def test_on_one_disk_the_cache_alone_takes_room_for_what_it_lacks() -> None:
    wheels = [wheel("numpy", 1_000), wheel("pillow", 500, cached=True)]
    needs = needs_of(wheels, CUDA, cache=CACHE, site=SITE, look=disks(cache=ONE, site=ONE))
    assert [(n.place, n.need_bytes, n.copied_bytes) for n in needs] == [(CACHE, 3_650, 0)]
    assert needs[0].fits


@pytest.mark.parametrize(
    "site",
    [OTHER, replace(ONE, mount="/home")],
    ids=["another device", "another mount of the same device"],
)
def test_behind_another_mount_everything_is_copied(site: Disk) -> None:
    wheels = [wheel("numpy", 1_000), wheel("pillow", 1_000, cached=True)]
    needs = needs_of(wheels, CUDA, cache=CACHE, site=SITE, look=disks(cache=ONE, site=site))
    assert sum(need.copied_bytes for need in needs) == 7_300
    assert sum(need.need_bytes for need in needs) == 10_950
    assert len(needs) == (2 if site is OTHER else 1)
    assert all(need.fits for need in needs) is (site is OTHER)
    assert needs[-1].copied_because == "The cache of uv is on another disk"


def test_what_is_linked_by_name_takes_no_room_on_another_disk() -> None:
    look = disks(cache=ONE, site=OTHER)
    wheels = [wheel("numpy", 1_000)]
    needs = needs_of(wheels, CUDA, cache=CACHE, site=SITE, link_mode="symlink", look=look)
    assert [need.place for need in needs] == [CACHE]


def test_who_wants_copies_needs_room_for_both_on_one_disk() -> None:
    look = disks(cache=ONE, site=ONE)
    wheels = [wheel("numpy", 1_000)]
    (need,) = needs_of(wheels, CUDA, cache=CACHE, site=SITE, link_mode="copy", look=look)
    assert (need.need_bytes, need.copied_bytes) == (7_300, 3_650)
    assert need.reason == "uv's cache and the environment"


def test_a_package_that_is_there_or_has_no_size_takes_nothing() -> None:
    look = disks(cache=ONE, site=ONE)
    unknown = Download(name="torch", version="1", size_bytes=None)
    for wheels in ([], [unknown], [wheel("numpy", 1_000, cached=True)]):
        assert needs_of(wheels, CUDA, cache=CACHE, site=SITE, look=look) == ()


def test_a_folder_that_is_not_there_yet_lies_where_it_would_be_made(tmp_path: Path) -> None:
    assert look_at_disk(tmp_path / "a" / "b").device == tmp_path.stat().st_dev


def test_uvs_own_files_say_how_it_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "APPDATA": str(tmp_path / "config")}
    assert uv_setting("link-mode", environ=environ) is None
    user = tmp_path / "config" / "uv" / "uv.toml"
    user.parent.mkdir(parents=True)
    user.write_text('link-mode = "symlink"\n', encoding="utf-8")
    assert uv_setting("link-mode", environ=environ) == "symlink"
    text = '[tool.uv.pip]\nlink-mode = "copy"\n'
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    assert uv_setting("link-mode", environ=environ) == "copy"
    assert uv_setting("link-mode", environ={**environ, "UV_NO_CONFIG": "1"}) is None


# ------------------------------------------------------------------------------------- real disks


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Lend what mounts a file system of its own, and unmounts all at the end."""
    mounted: list[Path] = []

    def make(*options: str, name: str = "disk") -> Path:
        place = tmp_path / f"{name}-{len(mounted)}"
        place.mkdir()
        command = ["mount", *options, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting takes Linux and root")
    yield make
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def tmpfs(size: str) -> tuple[str, ...]:
    return ("-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def test_a_cache_that_is_too_small_is_said_in_the_plan_and_nothing_is_fetched(
    cold_target: Target, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = mount(*tmpfs("2m"))
    monkeypatch.setenv("UV_CACHE_DIR", str(small / "cache"))
    plan = cold_target.plan("cu126")
    (lacking,) = [need for need in plan.space if not need.fits]
    assert lacking.place == small / "cache"
    assert "Too little space: about" in str(plan)
    before = cold_target.snapshot()
    cold_target.standin.clear_log()
    with pytest.raises(DiskSpaceError, match="There is too little space: about") as caught:
        install_plan(plan)
    assert str(small) in caught.value.message
    assert not [r for r in cold_target.standin.requests if r.path.endswith(".whl")]
    assert cold_target.snapshot() == before


def test_an_environment_on_another_disk_is_told_to_cost_copies(
    cold_target: Target, mount: Callable[..., Path]
) -> None:
    place = mount(*tmpfs("60m")) / "target"
    other = replace(cold_target, prefix=make_environment(place))
    plan = other.plan("cu126")
    (copied,) = [need for need in plan.space if need.copied_bytes]
    assert copied.fits
    assert "copied, not linked" in str(plan)
    install_plan(plan)
    assert other.backend() == "cu126"
    library = next((other.site / "torch").rglob("*.py"))
    assert library.stat().st_nlink == 1


def test_a_bind_mount_of_the_same_disk_takes_no_links(
    cold_target: Target, mount: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    place = mount("--bind", str(folder), name="bound") / "target"
    other = replace(cold_target, prefix=make_environment(place))
    assert other.prefix.stat().st_dev == cold_target.prefix.stat().st_dev
    plan = other.plan("cu126")
    assert [need.copied_bytes > 0 for need in plan.space] == [True]
    install_plan(plan)
    library = next((other.site / "torch").rglob("*.py"))
    assert library.stat().st_nlink == 1


def test_the_room_is_measured_anew_before_the_start(cold_target: Target) -> None:
    plan = cold_target.plan("cu126")
    assert all(need.fits for need in plan.space)
    full = Disk(device=1, mount="/", free_bytes=1_000)
    with pytest.raises(DiskSpaceError, match=r"1 kB are free") as caught:
        check_space(plan, cold_target.site, uv=find_uv(), look=lambda _: full)
    assert "UV_CACHE_DIR" in caught.value.hint
    check_space(replace(plan, downloads=()), cold_target.site, uv=find_uv(), look=lambda _: full)


def test_a_full_folder_for_temporary_files_is_not_taken_for_the_environments_disk(
    cold_target: Target, mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = cold_target.plan("cu126")
    full = mount(*tmpfs("64k"))
    (full / "ballast").write_bytes(b"x" * 65536)
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    before = cold_target.snapshot()
    with pytest.raises(InstallError, match="The folder for temporary files") as caught:
        install_plan(plan)
    assert str(full) in caught.value.message
    assert "TMPDIR" in caught.value.hint
    assert cold_target.snapshot() == before


def test_uv_is_told_to_copy_and_the_plan_knows(
    cold_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_LINK_MODE", "copy")
    plan = cold_target.plan("cu126")
    (need,) = plan.space
    assert need.copied_bytes
    assert "uv is set to copy (link-mode): about" in str(plan)


def test_a_quota_that_is_used_up_is_no_full_disk() -> None:
    said = "error: Failed to write `x`\n  cause: Disk quota exceeded (os error 122)\n"
    completed = Completed(arguments=(), returncode=2, stdout="", stderr=said)
    error = explain(completed, subject="torch")
    assert isinstance(error, DiskSpaceError)
    assert "quota" in error.message
    refused = failure(OSError(errno.EDQUOT, "Disk quota exceeded", "site-packages/torch"))
    assert isinstance(refused, DiskSpaceError)
    assert "Your share" in refused.message
