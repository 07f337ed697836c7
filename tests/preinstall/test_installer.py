"""What a preinstall leaves: one install for all who ask, whole or mended by the next start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.browser.kernel_environment import run_uv
from tests.hub.campus import CampusMissingError, _python_for_everybody
from tests.preinstall.desk import (
    PATIENCE,
    TOKEN,
    Desk,
    installer_stopped,
    kill,
    make_desk,
    wait_for,
)
from tests.standin import StandIn
from torchenv_magic.preinstall.launch import _PREFIX
from torchenv_magic.preinstall.place import KERNEL_NAME, KERNEL_TITLE, jupyter_folder
from torchenv_magic.preinstall.record import (
    STATE_VARIABLE,
    Record,
    is_running,
    read_record,
)
from torchenv_magic.preinstall.stamp import read_stamp

pytest_plugins = ["tests.kernel_wheels", "tests.target_fixtures"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

CPU = ("--backend", "cpu")
VISION = (*CPU, "torch", "torchvision")


@pytest.fixture
def bare(tmp_path: Path, kernel_wheels: Path, warm_cache: Path, fresh_standin: StandIn) -> Desk:
    """Return a desk at which nobody has worked."""
    return make_desk(tmp_path, wheels=kernel_wheels, cache=warm_cache, standin=fresh_standin)


# ------------------------------------------------------------------------- one that all tests share


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
    kernel_wheels: Path,
    warm_cache: Path,
    standin: StandIn,
) -> Iterator[Desk]:
    """Return a desk at which the first preinstall is being waited for by three servers."""
    standin.reset()
    directory = tmp_path_factory.mktemp("shared")
    desk = make_desk(directory, wheels=kernel_wheels, cache=warm_cache, standin=standin)
    yield desk
    standin.reset()


def test_servers_at_once_share_one_install_that_a_stop_of_one_does_not_end(shared: Desk) -> None:
    hubs_own = shared.home / "hubs-own"
    hubs_own.mkdir()
    foreign = {"VIRTUAL_ENV": str(hubs_own), "PYTHONPATH": str(hubs_own), "MY_PASSWORD": TOKEN}
    wait = (*CPU, "--wait", "60")
    stopped = shared.start(*wait, command=("touch", str(shared.home / "started")), **foreign)
    with installer_stopped(shared), stopped:
        wait_for(shared.folders)
        first = shared.folders()[0]
        record = wait_for(lambda: _at_work(first))
        environment = Path(f"/proc/{record.pid}/environ").read_bytes()
        assert TOKEN.encode() not in environment
        assert b"VIRTUAL_ENV" not in environment
        assert b"PYTHONPATH" not in environment
        assert os.getpriority(os.PRIO_PROCESS, record.pid) == 19
        command = ("sh", "-c", f"echo $$ ${STATE_VARIABLE} $JUPYTER_PATH")
        others = [shared.start(*wait, command=command, JUPYTER_PATH="/mine") for _ in range(2)]
        began = time.monotonic()
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(timeout=PATIENCE) == -signal.SIGTERM
        assert time.monotonic() - began < 20
        for other in others:
            with other:
                out, errors = other.communicate(timeout=PATIENCE)
            assert other.returncode == 0
            assert len(errors.splitlines()) == 2
            assert "PyTorch 2.13.0+cpu is there" in errors
            pid, state, path = out.split()
            assert int(pid) == other.pid
            assert Path(state).stat().st_mode & 0o777 == 0o700
            assert path == f"{jupyter_folder(shared.environment)}:/mine"
        assert shared.ended(first).status == "done"
    assert not (shared.home / "started").exists()
    assert len(shared.history()) == 1
    assert list(hubs_own.iterdir()) == []
    assert shared.imported() == "2.13.0+cpu"
    assert TOKEN not in shared.log()
    assert not [path for path in _files(shared.home) if TOKEN.encode() in path.read_bytes()]


def _at_work(folder: Path) -> Record | None:
    record = read_record(folder)
    return record if record is not None and record.pid else None


def _files(folder: Path) -> list[Path]:
    names = (".json", ".log", ".jsonl", ".toml", ".cfg")
    return [path for path in folder.rglob("*") if path.suffix in names and path.is_file()]


def test_the_record_tells_all_who_wait_what_there_is(shared: Desk) -> None:
    record = shared.record()
    assert (record.status, record.fraction) == ("done", 1.0)
    assert (record.backend, record.torch) == ("cpu", "2.13.0+cpu")
    assert (record.kernel, record.kernel_title) == (KERNEL_NAME, KERNEL_TITLE)
    assert record.target == str(shared.environment)
    assert record.notice == ""
    assert shared.environment.name.endswith("-cpu")
    assert shared.environment.stat().st_mode & 0o777 == 0o700
    folder = jupyter_folder(shared.environment)
    assert [path.name for path in folder.iterdir()] == ["kernels"]
    assert [path.name for path in (folder / "kernels").iterdir()] == [KERNEL_NAME]


def test_a_warm_start_starts_nothing(shared: Desk) -> None:
    done = shared.run(*CPU, command=("env",))
    folder = shared.folders()[0]
    assert f"{STATE_VARIABLE}={folder}" in done.stdout.splitlines()
    assert sorted(path.name for path in folder.iterdir()) == ["server.json", "state.json"]
    assert (shared.record().status, shared.record().pid) == ("done", 0)
    assert done.stderr == "torchenv: PyTorch 2.13.0+cpu is there\n"


def test_without_a_command_the_kernel_is_offered_in_the_users_own_folder(shared: Desk) -> None:
    done = shared.run(*CPU, "--wait", "60", command=())
    assert done.returncode == 0
    assert shared.ended().status == "done"
    folder = shared.home / ".local" / "share" / "jupyter" / "kernels" / KERNEL_NAME
    specification = json.loads((folder / "kernel.json").read_text("utf-8"))
    assert specification["argv"][0] == str(shared.environment / "bin" / "python")


def test_another_image_is_looked_at_once_and_changes_nothing(shared: Desk) -> None:
    shared.run(*CPU, "--wait", "60", JUPYTER_IMAGE_SPEC="new")
    assert shared.record().pid
    assert shared.ended().status == "done"
    assert len(shared.history()) == 1
    shared.run(*CPU, JUPYTER_IMAGE_SPEC="new")
    assert shared.record().pid == 0


def test_a_cache_that_others_can_write_is_refused_with_the_reason(
    shared: Desk, tmp_path: Path
) -> None:
    cache = tmp_path / "everybodys"
    cache.mkdir()
    cache.chmod(0o777)
    shared.run(*CPU, "--wait", "60", UV_CACHE_DIR=str(cache), JUPYTER_IMAGE_SPEC="cache")
    assert "is refused" in shared.record().notice
    assert not list(cache.iterdir())


def test_an_image_whose_python_has_moved_keeps_what_a_person_installed(shared: Desk) -> None:
    (site,) = shared.environment.glob("lib/*/site-packages")
    mine = site / "mine.py"
    mine.write_text("", "utf-8")
    python = shared.environment / "bin" / "python"
    python.unlink()
    python.symlink_to("/opt/of-the-image-before/bin/python")
    shared.run(*CPU, "--wait", "60")
    assert shared.ended().status == "done", shared.log()
    assert shared.imported() == "2.13.0+cpu"
    assert mine.exists()


def test_a_python_that_does_not_answer_costs_nobody_their_packages(shared: Desk) -> None:
    (site,) = shared.environment.glob("lib/*/site-packages")
    mine = site / "mine.py"
    mine.write_text("", "utf-8")
    (site / "stop.pth").write_text("import os; os._exit(1)\n", "ascii")
    shared.run(*CPU, "--wait", "60", JUPYTER_IMAGE_SPEC="stops")
    assert shared.ended().status == "failed"
    (site / "stop.pth").unlink()
    assert mine.exists()
    shared.run(*CPU, "--wait", "60")
    assert shared.ended().status == "done", shared.log()


def test_a_wheel_folder_that_others_can_write_is_refused_with_the_reason(
    shared: Desk, tmp_path: Path
) -> None:
    folder = tmp_path / "everybodys"
    folder.mkdir()
    folder.chmod(0o777)
    told = "cu118 is no longer offered"
    shared.run(
        *CPU,
        "--wait",
        "60",
        TORCHENV_FIND_LINKS=str(folder),
        TORCHENV_PREINSTALL_NOTICE=told,
    )
    assert shared.ended().status == "done"
    notice = shared.record().notice
    assert notice.startswith(f"{told} · The wheel folder {folder} is refused: ")


def test_files_that_went_are_found_and_brought_back(shared: Desk) -> None:
    (site,) = shared.environment.glob("lib/*/site-packages")
    for path in (site / "torch").glob("*.py"):
        path.unlink()
    done = shared.run(*CPU, "--wait", "60")
    assert "PyTorch 2.13.0+cpu is there" in done.stderr, shared.log()
    assert shared.imported() == "2.13.0+cpu"


def test_a_build_that_a_person_chose_since_stays_until_another_is_named_anew(
    shared: Desk,
) -> None:
    """The desk's own environment is `--env`'s here, as one for a build at home has no other."""
    target = ("--env", str(shared.environment))
    shared.run(*CPU, "--wait", "60", *target)
    assert shared.ended().status == "done", shared.log()
    install = ["torchenv", "install", "cpu", "torch==2.12.0"]
    done = subprocess.run(
        [sys.executable, "-m", "torchenv_magic", *install[1:], "--python", str(shared.environment)],
        env=shared.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in (CPU, ("--backend", "auto")):
        for _ in ("checked", "warm"):
            done = shared.run(*line, "--wait", "60", *target)
            assert "PyTorch 2.12.0+cpu, which you installed, stays" in done.stderr, shared.log()
        assert shared.record().pid == 0
        assert shared.imported() == "2.12.0+cpu"
    # What nobody but a person has now is not what the admin newly names.
    shared.run("--backend", "cu126", "--wait", "60", *target)
    assert shared.imported() == "2.13.0+cu126"
    shared.run(*CPU, "--wait", "60", *target)
    assert shared.imported() == "2.13.0+cpu"


def test_an_index_that_is_away_is_told_with_what_to_do_and_the_server_starts(
    shared: Desk, fresh_standin: StandIn
) -> None:
    fresh_standin.down = True
    done = shared.run(*VISION, "--wait", "60", command=("echo", "up"))
    assert (done.returncode, done.stdout) == (0, "up\n")
    record = shared.ended()
    assert record.status == "failed"
    assert "can't be reached" in record.message
    assert record.hint
    assert record.message in done.stderr
    assert shared.imported() == "2.13.0+cpu"


def test_a_mirror_without_the_build_is_told_and_nobody_elses_torch_is_taken(
    shared: Desk, fresh_standin: StandIn
) -> None:
    mirror = f"{fresh_standin.mirror_base}/nothing"
    shared.run(*VISION, "--wait", "60", TORCHENV_INDEX_BASE=mirror)
    record = shared.ended()
    assert record.status == "failed"
    assert mirror in record.message
    assert shared.imported() == "2.13.0+cpu"
    # What failed is tried again, and not taken for what is there.
    assert read_stamp(shared.environment) is None


def test_what_waits_in_place_of_a_file_of_ours_keeps_nobody(shared: Desk) -> None:
    stamp = shared.environment / ".torchenv" / "preinstall.json"
    stamp.unlink(missing_ok=True)
    os.mkfifo(stamp)
    theirs = shared.runs / f"{_PREFIX}theirs"
    theirs.mkdir()
    os.mkfifo(theirs / "state.json")
    (theirs / "server.json").symlink_to("/dev/zero")
    os.utime(theirs, (0, 0))
    done = shared.run(*CPU, "--wait", "60", command=("echo", "up"))
    assert done.stdout == "up\n"
    assert shared.ended().status == "done", shared.log()
    assert read_stamp(shared.environment) is not None
    assert not theirs.exists()


HOSTILE = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a folder": lambda path: path.mkdir(),
    "garbage": lambda path: path.write_bytes(b"\xff\x00{"),
    "another kind of data": lambda path: path.write_text('{"files": 5}', "utf-8"),
    "deep data": lambda path: path.write_text("[" * 60_000, "utf-8"),
    "a file without an end": lambda path: path.write_bytes(b" " * 1_000_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_stamp_that_nobody_of_us_wrote_is_none(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / ".torchenv"
    folder.mkdir()
    HOSTILE[kind](folder / "preinstall.json")
    assert read_stamp(tmp_path) is None


# ------------------------------------------------------------------------------ a first start fails


def test_a_kill_in_the_middle_is_found_and_made_good_by_the_next_start(bare: Desk) -> None:
    with installer_stopped(bare):
        bare.run(*CPU)
        folder = bare.folders()[0]
        wait_for(lambda: list(bare.environments.glob("*/lib/*/site-packages/*.dist-info")))
        installer = psutil.Process(bare.record(folder).pid)
        for process in (installer, *installer.children(recursive=True)):
            kill(process.pid)
        assert bare.record(folder).status == "running"
        assert not is_running(bare.record(folder))
        for path in bare.environment.glob("lib/*/site-packages/*/__init__.py"):
            path.unlink()
        done = bare.run(*CPU, "--wait", "60")
    assert "PyTorch 2.13.0+cpu is there" in done.stderr, bare.log()
    assert bare.imported() == "2.13.0+cpu"
    assert list(bare.environment.glob("lib/*/site-packages/ipykernel/__init__.py"))


def on_small_disk(bare: Desk, megabytes: int, **more: str) -> tuple[Record, int]:
    """Start a server whose home is a disk of that size; return how it ended, and what is left."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(bare.home)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a disk that is full")
    try:
        done = bare.run(*CPU, "--wait", "60", command=("echo", "up"), **more)
        assert done.stdout == "up\n"
        used = shutil.disk_usage(bare.home).used
        return bare.ended(), used
    finally:
        subprocess.run(["umount", "--lazy", str(bare.home)], check=True)


def test_a_disk_that_is_too_small_stays_as_it_was(bare: Desk) -> None:
    record, used = on_small_disk(bare, 150)
    assert record.status == "failed"
    assert record.message.startswith("There is too little space: about 200.0 MB are needed")
    assert used < 1_000_000


def test_a_disk_that_fills_up_on_the_way_is_made_empty_again(bare: Desk) -> None:
    """What is free and what may be taken differ, as with a quota: the check is led by the nose."""
    lie = bare.home.parent / "lie"
    lie.mkdir()
    patch = "import shutil; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(9**12, 0, 9**12)"
    (lie / "sitecustomize.py").write_text(patch, "utf-8")
    program = "import torchenv_magic.preinstall.launch as launch, sys, os\n"
    program += "launch._FOREIGN -= {'PYTHONPATH'}\n"
    program += "from torchenv_magic.__main__ import main; main(sys.argv[1:])"
    record, used = on_small_disk(
        replace(bare, program=("-c", program)),
        60,
        PYTHONPATH=str(lie),
        UV_CACHE_DIR=str(bare.home / ".cache" / "uv"),
    )
    assert record.status == "failed"
    assert "full" in record.message, bare.log()
    assert used < 1_000_000


def test_a_home_that_can_not_be_written_is_told_and_the_server_starts(bare: Desk) -> None:
    done = bare.run(*CPU, "--wait", "60", command=("echo", "up"), XDG_DATA_HOME="/proc/mine")
    assert done.stdout == "up\n"
    record = bare.ended()
    assert record.status == "failed"
    assert "can't be written" in record.message


# ------------------------------------------------------------------------- a user without any right


USER = 61_234
KERNEL = f"""
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name={KERNEL_NAME!r})
client.execute_interactive("import torch; print(torch.__version__)", timeout=60)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


@pytest.fixture
def roots_server(
    kernel_wheels: Path, project_wheel: Path, warm_cache: Path, fresh_standin: StandIn
) -> Iterator[tuple[Path, Desk]]:
    """Lend the Python of a server that root has installed, and the desk of somebody else."""
    try:
        python = _python_for_everybody()
    except CampusMissingError as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    # What a user's process reads has to be readable for it, which pytest's folders are not.
    directory = Path(tempfile.mkdtemp(prefix="torchenv-user-"))
    try:
        directory.chmod(0o755)
        server = directory / "server"
        run_uv("venv", "--python", str(python), str(server), cache=warm_cache)
        place = ("--python", str(server / "bin" / "python"))
        packages = ("ipykernel", str(project_wheel))
        links = ("--offline", "--no-index", "--find-links", str(kernel_wheels))
        run_uv("pip", "install", *place, *links, *packages, cache=warm_cache)
        shelf = Path(shutil.copytree(kernel_wheels, directory / "wheels"))
        shelf.chmod(0o755)
        desk = make_desk(
            directory,
            wheels=shelf,
            cache=directory / "home" / "cache",
            standin=fresh_standin,
            user=USER,
            python=server / "bin" / "python",
        )
        yield Path(shutil.copy(fresh_standin.bundle, directory / "bundle.pem")), desk
    finally:
        shutil.rmtree(directory)


def test_a_user_gets_a_kernel_of_their_own_beside_a_server_that_is_roots(
    roots_server: tuple[Path, Desk],
) -> None:
    bundle, desk = roots_server
    # No hub is told of: the server's environment is root's, which is enough.
    own = {"TORCHENV_HUB_ENVIRONMENT": "", "SSL_CERT_FILE": str(bundle)}
    command = (str(desk.python), "-c", KERNEL)
    done = desk.run(*CPU, "--wait", "80", command=command, **own)
    assert done.returncode == 0, done.stderr + desk.log()
    assert done.stdout == "2.13.0+cpu\n"
    assert desk.environment.stat().st_uid == USER
    assert Path(desk.record().target) == desk.environment
    desk.home.joinpath(".local").chmod(0o500)
    (site,) = desk.environment.glob("lib/*/site-packages")
    site.chmod(0o500)
    done = desk.run(*VISION, "--wait", "80", command=("echo", "up"), **own)
    assert done.stdout == "up\n"
    assert desk.ended().status == "failed"
    assert "not writable" in desk.record().message
