"""A cache is cloned for each user where files can share blocks, and is never shared itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.shelves import lead, uv
from tests.standin import StandIn
from tests.targets import make_environment
from torchenv_magic.installation.seeds import cache_problem, seed_cache

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="clones on Linux")

CACHE_FILES = 5


def make_cache(folder: Path) -> Path:
    """Make a folder that is laid out as uv's cache is."""
    unpacked = folder / "archive-v0" / "id" / "torch"
    unpacked.mkdir(parents=True)
    for number in range(CACHE_FILES - 1):
        (unpacked / f"{number}.py").write_text(f"VALUE = {number}\n" * 2000, encoding="utf-8")
    (unpacked / "empty.py").touch()
    (folder / "wheels-v8").mkdir()
    (folder / "wheels-v8" / "torch").symlink_to("../archive-v0/id")
    (folder / ".lock").touch()
    (folder / ".lock").chmod(0o666)
    return folder


@pytest.fixture(scope="module")
def sharing_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder on an XFS of its own, whose files can share blocks."""
    program = shutil.which("mkfs.xfs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or program is None:
        pytest.skip("needs root and mkfs.xfs (the package xfsprogs) to make a disk that clones")
    folder = tmp_path_factory.mktemp("disk")
    image, place = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(400 * 1024**2)
    place.mkdir()
    subprocess.run([program, "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"an image can't be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def free(place: Path) -> int:
    os.sync()
    return shutil.disk_usage(place).free


def test_a_clone_takes_no_space_and_what_a_user_does_to_it_stays_theirs(sharing_disk: Path) -> None:
    seed = make_cache(sharing_disk / "seed")
    big = seed / "archive-v0" / "id" / "torch" / "libtorch.so"
    big.write_bytes(os.urandom(50 * 1024**2))
    before = free(sharing_disk)
    cache = sharing_disk / "home" / "cache"
    seeded = seed_cache(seed, cache)
    assert seeded.cloned, seeded.reason
    assert seeded.files == CACHE_FILES + 1
    assert before - free(sharing_disk) < 5 * 1024**2
    mine = cache / "archive-v0" / "id" / "torch" / "libtorch.so"
    assert mine.read_bytes() == big.read_bytes()
    assert mine.stat().st_nlink == 1
    assert mine.stat().st_mtime_ns == big.stat().st_mtime_ns
    with mine.open("r+b") as file:
        file.write(b"mine")
    assert big.read_bytes()[:4] != b"mine"
    assert (cache / "wheels-v8" / "torch").resolve() == (cache / "archive-v0" / "id").resolve()
    assert not (cache / ".lock").exists()
    # What is there already is somebody's.
    assert "in use already" in seed_cache(seed, cache).reason


def test_uv_installs_from_a_clone_and_fetches_nothing(
    sharing_disk: Path, fresh_standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, home = sharing_disk / "uv-seed", sharing_disk / "uv-home"
    lead(monkeypatch, fresh_standin, seed)
    first = make_environment(sharing_disk / "first")
    uv("install", f"--python={first}", "--torch-backend=cpu", "torch")
    assert seed_cache(seed, home / "cache").cloned
    second = make_environment(home / "second")
    monkeypatch.setenv("UV_CACHE_DIR", str(home / "cache"))
    fresh_standin.clear_log()
    said = uv("install", f"--python={second}", "--torch-backend=cpu", "torch")
    assert "torch==2.13.0+cpu" in said
    assert fresh_standin.downloads() == ()


def test_a_disk_that_shares_nothing_is_told_and_nothing_is_copied(tmp_path: Path) -> None:
    # A file system in memory never does.
    place = Path("/dev/shm")  # noqa: S108
    if not place.is_dir() or not os.access(place, os.W_OK):
        pytest.skip("no file system in memory is here")
    folder = place / f"torchenv-seed-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        # What a killed one has left goes with the next.
        left = folder / ".torchenv-seed-1-left"
        left.mkdir()
        os.utime(left, (0, 0))
        seeded = seed_cache(make_cache(folder / "seed"), folder / "cache")
        assert not seeded.cloned
        assert "shares no blocks" in seeded.reason
        assert [path.name for path in folder.iterdir()] == ["seed"]
        seeded = seed_cache(folder / "seed", tmp_path / "cache")
        assert "two file systems" in seeded.reason
        assert list(tmp_path.iterdir()) == []
    finally:
        shutil.rmtree(folder)


def test_a_cache_that_others_can_write_is_refused_with_the_reason(tmp_path: Path) -> None:
    seed = make_cache(tmp_path / "seed")
    assert cache_problem(seed) == ""
    assert cache_problem(tmp_path / "not there yet") == ""
    inner = seed / "archive-v0" / "id" / "torch" / "0.py"
    inner.chmod(0o664)
    assert f"its group can write {inner}" in seed_cache(seed, tmp_path / "cache").reason
    inner.chmod(0o644)
    seed.chmod(0o2775)
    problem = cache_problem(seed)
    assert f"its group can write {seed}" in problem
    assert "also where hashes are required" in problem
    assert not seed_cache(seed, tmp_path / "cache").cloned
    seed.chmod(0o755)
    (seed / "archive-v0" / "out").symlink_to("/etc")
    assert "is a link" in seed_cache(seed, tmp_path / "cache").reason
    assert not (tmp_path / "cache").exists()
