"""What goes wrong without a signal: networks, disks, clocks, packages, and other people."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from uv import find_uv_bin

from tests.faults.arena import REQUIREMENTS, Bench, Ended, Program, copy_environment, switch_steps
from tests.faults.campaign import Fault, Skipped, Strike, finish
from tests.faults.kills import POINTS, Point, reach, send
from tests.standin import Fault as Spoiled
from tests.standin import StandIn, Wheel, make_wheel
from tests.standin.environment import system_certificates

__all__ = ["injury_faults"]

_PAGE, _METADATA = r"/whl/\w+/torchvision/$", r"/torch-2\.13.*\.metadata$"
_WHEEL = r"/torch-2\.13.*\.whl$"
_POINTS = {point.name: point for point in POINTS}
_HALF = _POINTS["50 % is here"]
_FIRST_FILE = _POINTS["the first file is linked"]


def injury_faults() -> Iterator[Fault]:
    """Yield everything but the signals."""
    yield from _network()
    yield from _disks()
    yield from _clocks()
    yield from _packages()
    yield from _requests()
    yield from _people()


def _plain(bench: Bench, *more: str, requirements: tuple[str, ...] = REQUIREMENTS) -> Strike:
    started = time.monotonic()
    return finish(bench.start(*more, requirements=requirements), started)


def _at_step(bench: Bench, part: float, blow: Callable[[], object]) -> Strike:
    """Strike at a part of the switch, and let it go on."""
    steps = switch_steps(bench.switch.steps)
    program = bench.start(step=steps[round(part * (len(steps) - 1))])
    caller = bench.knock(program)
    started = time.monotonic()
    if caller is not None:
        blow()
        with contextlib.suppress(OSError):
            caller.send(b"g")
        caller.close()
    return finish(program, started)


def _at_point(bench: Bench, point: Point, blow: Callable[[], object]) -> Strike:
    """Strike at a moment of the download, and let it go on."""

    def strike(_program: Program, _children: list[int]) -> None:
        blow()
        bench.standin.faults = ()

    started = time.monotonic()
    return finish(reach(bench, point, strike), started)


# ---------------------------------------------------------------------------------------- networks


def _network() -> Iterator[Fault]:
    places = (
        ("resolve", "an index page", _PAGE),
        ("resolve", "a wheel's metadata", _METADATA),
        ("download", "the wheel", _WHEEL),
    )
    for status in (401, 403, 404, 429, 500):
        for where, what, pattern in places:
            yield Fault(
                title=f"the index answers {status}",
                where=where,
                detail=what,
                strike=partial(
                    _spoil, Spoiled(pattern=pattern, kind="status", status=status, method="GET")
                ),
                short=status == 404 and where == "download",
            )
    for title, kind, chosen in (
        ("the connection is reset", "reset", places),
        ("nothing is answered", "silent", places),
        ("the body stalls half-way", "stall", places),
        ("the body is cut off half-way", "truncate", places),
        ("a redirect leads nowhere", "redirect", places),
        ("a bit of the body is wrong", "corrupt", places[2:]),
    ):
        for where, what, pattern in chosen:
            yield Fault(
                title=title,
                where=where,
                detail=what,
                strike=partial(_spoil, Spoiled(pattern=pattern, kind=kind, method="GET")),  # type: ignore[arg-type]
                short=kind in ("stall", "corrupt") and where == "download",
            )
    for title, where, what, spoiled in (
        (
            "the index tells a wrong hash",
            "download",
            "of torch",
            Spoiled(pattern=r"/cu126/torch/$", kind="wrong-hash"),
        ),
        (
            "the server tells a wrong size",
            "sizes",
            "of torch",
            Spoiled(pattern=_WHEEL, kind="wrong-size", method="HEAD"),
        ),
    ):
        yield Fault(title=title, where=where, detail=what, strike=partial(_spoil, spoiled))
    yield Fault(title="DNS is gone", where="resolve", detail="", strike=_no_dns)
    yield Fault(
        title="DNS is gone", where="resolve", detail="the proxy has no address", strike=_lost_proxy
    )
    yield Fault(
        title="the network is gone", where="download", detail="half-way", strike=_network_gone
    )
    yield Fault(
        title="the certificate is nobody's", where="resolve", detail="", strike=_unknown_authority
    )


def _spoil(spoiled: Spoiled, bench: Bench) -> Strike:
    bench.standin.faults = (spoiled,)
    return _plain(bench)


def _no_dns(bench: Bench) -> Strike:
    # A resolver that nobody answers for, seen by this program alone.
    nowhere = bench.folder / "resolv.conf"
    nowhere.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n", encoding="utf-8")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        bench.extra[name] = None
    script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
    bench.wrapper = _apart("--mount", "sh", "-c", script, str(nowhere))
    try:
        return _plain(bench)
    finally:
        bench.wrapper = ()
        bench.extra.clear()


def _apart(*words: str) -> tuple[str, ...]:
    """Return how a program is put into a name space of its own."""
    unshare = shutil.which("unshare") or "unshare"
    try:
        possible = subprocess.run([unshare, words[0], "true"], capture_output=True, check=False)
    except OSError as error:
        raise Skipped("there is no `unshare`") from error
    if possible.returncode != 0:
        raise Skipped("this user may make no name spaces")
    return (unshare, words[0], "--", *words[1:])


def _lost_proxy(bench: Bench) -> Strike:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        bench.extra[name] = "http://proxy.invalid:3128"
    try:
        return _plain(bench)
    finally:
        bench.extra.clear()


def _network_gone(bench: Bench) -> Strike:
    return _at_point(bench, _HALF, lambda: setattr(bench.standin, "down", True))


def _unknown_authority(bench: Bench) -> Strike:
    bundle = bench.folder / "system.pem"
    bundle.write_text(system_certificates(), encoding="utf-8")
    bench.extra["SSL_CERT_FILE"] = str(bundle)
    try:
        return _plain(bench)
    finally:
        bench.extra.clear()


# ------------------------------------------------------------------------------------------- disks


def _disks() -> Iterator[Fault]:
    full, of_cache = "the disk is full", "of uv's cache"
    yield Fault(
        title=full, where="download", detail=f"{of_cache}, from the start", strike=_small_cache
    )
    yield Fault(
        title=full,
        where="download",
        detail=f"{of_cache}, as half is here",
        strike=_cache_fills,
        short=True,
    )
    yield Fault(
        title=full, where="download", detail=f"{of_cache}, for want of inodes", strike=_few_inodes
    )
    yield Fault(
        title=full, where="plan", detail="of the environment, from the start", strike=_full_home
    )
    yield Fault(
        title=full,
        where="stage",
        detail="of the environment, as the first file is there",
        strike=_home_fills,
    )
    for part in (0.0, 0.5, 1.0):
        yield Fault(
            title=full,
            where="switch",
            detail=f"of the environment, at {part:.0%} of the steps",
            strike=partial(_home_fills_at, part),
            cold=False,
        )
    yield Fault(
        title=full, where="plan", detail="of temporary files, from the start", strike=_full_temp
    )
    frozen = "the environment's disk becomes read-only"
    yield Fault(title=frozen, where="plan", detail="before the start", strike=_frozen)
    yield Fault(
        title=frozen,
        where="download",
        detail="as half is here",
        strike=lambda bench: _asked(bench, _at_point(bench, _HALF, lambda: _freeze(bench))),
    )
    for part in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        yield Fault(
            title=frozen,
            where="switch",
            detail=f"at {part:.0%} of the steps",
            strike=partial(_freezes_at, part),
            cold=False,
            short=part == 0.4,
        )


def _mount(bench: Bench, place: Path, options: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError as error:
        raise Skipped("there is no `mount`") from error
    if done.returncode != 0:
        raise Skipped("this user may mount nothing")
    bench.end.callback(_unmount, place)


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


def _fill(bench: Bench, folder: Path, *, leave: int = 0) -> None:
    """Leave so many bytes free on the disk of a folder, until the person has made room."""
    free = shutil.disk_usage(folder).free - leave
    filler = folder / ".filler"
    bench.left.callback(filler.unlink, missing_ok=True)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        block = bytes(1 << 16)
        while free > 0:
            free -= file.write(block[:free])
        while not leave:
            file.write(block)


def _small_cache(bench: Bench) -> Strike:
    _mount(bench, bench.cache, "size=1m")
    return _plain(bench)


def _cache_fills(bench: Bench) -> Strike:
    _mount(bench, bench.cache, "size=64m")
    return _at_point(bench, _HALF, lambda: _fill(bench, bench.cache))


def _few_inodes(bench: Bench) -> Strike:
    _mount(bench, bench.cache, "size=64m,nr_inodes=300")
    return _plain(bench)


def _move_to_small_disk(bench: Bench) -> None:
    disk = bench.folder / "disk"
    _mount(bench, disk, "size=200m")
    copy_environment(bench.prefix, disk / "env")
    shutil.rmtree(bench.prefix)
    bench.prefix = disk / "env"


def _full_home(bench: Bench) -> Strike:
    _move_to_small_disk(bench)
    _fill(bench, bench.folder / "disk", leave=500_000)
    return _plain(bench)


def _home_fills(bench: Bench) -> Strike:
    _move_to_small_disk(bench)
    return _at_point(bench, _FIRST_FILE, lambda: _fill(bench, bench.folder / "disk"))


def _home_fills_at(part: float, bench: Bench) -> Strike:
    _move_to_small_disk(bench)
    return _at_step(bench, part, lambda: _fill(bench, bench.folder / "disk"))


def _full_temp(bench: Bench) -> Strike:
    temporary = bench.folder / "temporary"
    _mount(bench, temporary, "size=64k")
    _fill(bench, temporary)
    bench.extra["TMPDIR"] = str(temporary)
    return _plain(bench)


def _freeze(bench: Bench) -> None:
    """Let the environment be read-only from now on, for who runs already too.

    A remount is refused while a file is open to be written, as a lock is: so the folder is mounted
    over itself, read-only, which every path leads to from then on.
    """
    place = str(bench.prefix)
    for command in (["mount", "--bind", place, place], ["mount", "-o", "remount,bind,ro", place]):
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError as error:
            raise Skipped("there is no `mount`") from error
        if done.returncode != 0:
            raise Skipped("this user may mount nothing")
        if "--bind" in command:
            bench.left.callback(_unmount, bench.prefix)


def _asked(bench: Bench, strike: Strike) -> Strike:
    """Ask for the status while the disk is read-only still: it has to answer."""
    meanwhile = bench.contact()
    if meanwhile.status == "0":
        return strike
    return Strike(ended=strike.ended, problems=(f"status fails meanwhile: {meanwhile.said}",))


def _frozen(bench: Bench) -> Strike:
    _freeze(bench)
    return _asked(bench, _plain(bench))


def _freezes_at(part: float, bench: Bench) -> Strike:
    return _asked(bench, _at_step(bench, part, lambda: _freeze(bench)))


# ------------------------------------------------------------------------------------------ clocks

_JUMP = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long jump(void) {
    const char *flag = getenv("TORCHENV_TESTS_JUMP"), *far = getenv("TORCHENV_TESTS_JUMP_SECONDS");
    return flag && far && syscall(SYS_access, flag, F_OK) == 0 ? atol(far) : 0;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += jump();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}
"""
_MONTH = 30 * 86400


def _clocks() -> Iterator[Fault]:
    for way, seconds in (("forward", _MONTH), ("back", -_MONTH)):
        title = f"the clock jumps a month {way}"
        yield Fault(
            title=title,
            where="download",
            detail="as half is here",
            strike=partial(_jumps, seconds, None),
        )
        for part in (0.1, 0.5):
            yield Fault(
                title=title,
                where="switch",
                detail=f"at {part:.0%} of the steps",
                strike=partial(_jumps, seconds, part),
                cold=False,
            )
    for year, date in (("2099", 4_070_908_800), ("1970", 86_400)):
        yield Fault(
            title="what a killed install left is dated wrongly",
            where="switch",
            detail=f"in {year}, then the next install",
            strike=partial(_misdated, date),
            cold=False,
        )


def _jumps(seconds: int, part: float | None, bench: Bench) -> Strike:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Skipped("there is no C compiler")
    source, library = bench.folder / "jump.c", bench.folder / "jump.so"
    source.write_text(_JUMP, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise Skipped("the clock's library can't be compiled")
    flag = bench.folder / "jumped"
    bench.extra |= {
        "LD_PRELOAD": str(library),
        "TORCHENV_TESTS_JUMP": str(flag),
        "TORCHENV_TESTS_JUMP_SECONDS": str(seconds),
    }
    # The next contact has the right time again: that is the second jump.
    bench.left.callback(bench.extra.clear)
    if part is None:
        return _at_point(bench, _HALF, flag.touch)
    return _at_step(bench, part, flag.touch)


def _misdated(date: int, bench: Bench) -> Strike:
    steps = switch_steps(bench.switch.steps)
    program = bench.start(step=steps[round(0.4 * (len(steps) - 1))])
    caller = bench.knock(program)
    send(program.pid, signal.SIGKILL)
    program.wait()
    if caller is not None:
        caller.close()
    for folder in (bench.prefix / ".torchenv", *bench.site.glob(".torchenv-*")):
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (date, date), follow_symlinks=False)
    bench.left.close()
    return _plain(bench)


# ---------------------------------------------------------------------------------------- packages


def _packages() -> Iterator[Fault]:
    for title, where, strike in (
        ("a wheel without RECORD", "stage", _without_record),
        ("a wheel with a path that leads out", "stage", partial(_escaping, "../../../../evil.txt")),
        ("a wheel with an absolute path", "stage", partial(_escaping, "")),
        (
            "a wheel whose data lead out",
            "stage",
            partial(_escaping, "torch-2.13.0+cu126.data/data/../../../evil.txt"),
        ),
        ("a RECORD that names files of others", "switch", _greedy_record),
        ("a wheel of another version than its name says", "download", _misnamed),
        ("a torch that does not import", "check", _broken_torch),
        ("a torch that never ends to import", "check", _endless_torch),
        ("a source distribution of torch that runs code", "resolve", _torch_source),
        ("a source distribution that runs code", "resolve", _other_source),
    ):
        yield Fault(
            title=title,
            where=where,
            detail="",
            strike=strike,
            short=strike in (_without_record, _greedy_record, _torch_source),
        )


def _torch_wheel(standin: StandIn, backend: str = "cu126") -> Wheel:
    return next(
        wheel
        for wheel in standin.wheels(backend)
        if wheel.path.name.startswith("torch-2.13")
        and f"cp{sys.version_info.major}{sys.version_info.minor}-" in wheel.path.name
    )


def _rewrite(
    bench: Bench, change: Callable[[dict[str, bytes]], None], *, folder: str = "changed"
) -> None:
    """Serve a torch whose contents were changed."""
    original = _torch_wheel(bench.standin).path
    with zipfile.ZipFile(original) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change(contents)
    copy = bench.folder / folder / original.name
    copy.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    bench.standin.add_wheel("cu126", copy)


def _record(contents: dict[str, bytes]) -> str:
    return next(name for name in contents if name.endswith(".dist-info/RECORD"))


def _without_record(bench: Bench) -> Strike:
    def change(contents: dict[str, bytes]) -> None:
        del contents[_record(contents)]

    _rewrite(bench, change)
    return _plain(bench)


def _escaping(member: str, bench: Bench) -> Strike:
    member = member or str(bench.folder / "evil.txt")

    def change(contents: dict[str, bytes]) -> None:
        contents[member] = b"evil"
        contents[_record(contents)] += f"{member},,\n".encode()

    _rewrite(bench, change)
    strike = _plain(bench)
    places = [
        path.relative_to(bench.folder).as_posix()
        for path in bench.folder.rglob("evil.txt")
        if path.is_file()
    ]
    outside = [place for place in places if not place.startswith(("env/", "cache/"))]
    problems = (f"it wrote {outside[0]}",) if outside else ()
    return Strike(ended=strike.ended, problems=problems)


def _greedy_record(bench: Bench) -> Strike:
    """Install a torch that claims what is not its own, then leave it again."""
    victim = bench.folder / "victim.txt"
    victim.write_text("mine", encoding="utf-8")
    outside = os.path.relpath(victim, bench.site)

    def change(contents: dict[str, bytes]) -> None:
        rows = f"{outside},,\nsatellite/__init__.py,,\n../../../notes.txt,,\n"
        contents[_record(contents)] += rows.encode()

    _rewrite(bench, change)
    first = _plain(bench)
    if first.ended.status == "hangs":
        return first
    started = time.monotonic()
    strike = finish(bench.start(backend="cpu"), started)
    problems = () if victim.exists() else ("a file outside the environment was deleted",)
    return Strike(ended=strike.ended, problems=problems)


def _misnamed(bench: Bench) -> Strike:
    def change(contents: dict[str, bytes]) -> None:
        name = next(name for name in contents if name.endswith("/METADATA"))
        contents[name] = contents[name].replace(b"Version: 2.13.0", b"Version: 2.11.0")

    _rewrite(bench, change)
    # Else the page's own word for the metadata would be believed.
    bench.standin.metadata = False
    return _plain(bench)


def _broken_torch(bench: Bench) -> Strike:
    _prepend(bench, b"raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    return _plain(bench)


def _endless_torch(bench: Bench) -> Strike:
    """Interrupt an install that waits for the import of what it brought."""
    _prepend(bench, b"import time\ntime.sleep(600)\n")
    return _stop_as_it_is_tried(bench)


def _stop_as_it_is_tried(bench: Bench) -> Strike:
    started = time.monotonic()

    def strike(program: Program, _children: list[int]) -> None:
        send(program.pid, signal.SIGINT)

    point = _POINTS["the result is checked"]
    return finish(reach(bench, point, strike), started)


def _prepend(bench: Bench, code: bytes) -> None:
    def change(contents: dict[str, bytes]) -> None:
        contents["torch/__init__.py"] = code
        import base64
        import hashlib

        digest = hashlib.sha256(code).digest()
        row = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        rows = contents[_record(contents)].decode().splitlines()
        rows = [text for text in rows if not text.startswith("torch/__init__.py,")]
        rows.append(f"torch/__init__.py,sha256={row},{len(code)}")
        contents[_record(contents)] = ("\n".join(rows) + "\n").encode()

    _rewrite(bench, change)


def _source(bench: Bench, name: str, version: str, marker: Path) -> Wheel:
    """Make a source distribution whose build leaves a mark, and then fails."""
    folder = bench.folder / "source" / f"{name}-{version}"
    folder.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    code = f"open({str(marker)!r}, 'w').close()\nraise SystemExit('this code ran')\n"
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    for file_name, text in (
        ("PKG-INFO", metadata),
        ("backend.py", code),
        ("pyproject.toml", project),
    ):
        (folder / file_name).write_text(text, encoding="utf-8")
    archive = bench.folder / f"{name}-{version}.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    status = archive.stat()
    return Wheel(
        path=archive,
        name=name,
        size=status.st_size,
        modified=int(status.st_mtime),
        metadata=metadata.encode(),
    )


def _torch_source(bench: Bench) -> Strike:
    marker = bench.folder / "ran"
    standin = bench.standin
    for wheel in standin.wheels("cu126"):
        if wheel.path.name.startswith("torch-"):
            standin.remove_wheel("cu126", wheel.path.name)
    standin.add_file("cu126", _source(bench, "torch", "2.13.0+cu126", marker))
    strike = _plain(bench)
    problems = ("its code ran",) if marker.exists() else ()
    return Strike(ended=strike.ended, problems=problems)


def _other_source(bench: Bench) -> Strike:
    bench.standin.add_file(
        "simple", _source(bench, "sourceonly", "1.0", bench.folder / "it-may-run")
    )
    return _plain(bench, requirements=(*REQUIREMENTS, "sourceonly"))


# ---------------------------------------------------------------------------------------- requests


def _requests() -> Iterator[Fault]:
    title = "requirements that contradict each other"
    for detail, requirements in (
        ("two releases of torch", ("torch==2.13.0", "torch==2.12.0")),
        ("torch and torchvision", ("torch==2.13.0", "torchvision==0.27.0")),
    ):
        yield Fault(
            title=title,
            where="resolve",
            detail=detail,
            strike=partial(_requested, requirements),
            short=detail.startswith("two"),
        )
    yield Fault(
        title=title, where="resolve", detail="torch and what is installed", strike=_held_back
    )
    yield Fault(
        title="a release that there is not",
        where="resolve",
        detail="",
        strike=partial(_requested, ("torch==9.9",)),
    )
    for detail, text in (
        ("an option", "torch --index-url=http://127.0.0.1:9/"),
        ("a file that is not there", "torch @ file:///nowhere/torch-2.13.0-py3-none-any.whl"),
    ):
        yield Fault(
            title="a requirement that is something else",
            where="resolve",
            detail=detail,
            strike=partial(_requested, (text,)),
        )


def _requested(requirements: tuple[str, ...], bench: Bench) -> Strike:
    return _plain(bench, requirements=requirements)


def _held_back(bench: Bench) -> Strike:
    wheel = make_wheel(bench.folder, "needs213", "1.0", requires=["torch==2.13.0"])
    _uv(bench, "--no-deps", str(wheel))
    strike = _plain(bench, requirements=("torch==2.12.0",))
    return Strike(ended=strike.ended, also={"needs213": "1.0"})


def _uv(bench: Bench, *arguments: str) -> None:
    """Install as somebody else would meanwhile, by uv alone."""
    command = [find_uv_bin(), "pip", "install", "--quiet", f"--python={bench.python}", *arguments]
    variables = {**bench.variables, "UV_CACHE_DIR": str(bench.arena.cache)}
    subprocess.run(command, env=variables, check=True, timeout=60)


# ------------------------------------------------------------------------------------------ people


def _people() -> Iterator[Fault]:
    deleted = "the environment is deleted"
    yield Fault(
        title=deleted,
        where="download",
        detail="as half is here",
        strike=lambda bench: _gone(_at_point(bench, _HALF, partial(_delete, bench))),
    )
    for part in (0.1, 0.5, 0.9):
        yield Fault(
            title=deleted,
            where="switch",
            detail=f"at {part:.0%} of the steps",
            strike=partial(_deleted_at, part),
            cold=False,
            short=part == 0.5,
        )
    yield Fault(
        title="somebody else's uv brings a package",
        where="switch",
        detail="at the first step",
        strike=_other_package,
        cold=False,
    )
    yield Fault(
        title="somebody else's uv brings another torch",
        where="download",
        detail="as half is here",
        strike=_other_torch,
    )
    for count in (2, 8):
        for detail, backends in (
            ("that want the same", ("cu126",)),
            ("that want two builds", ("cu126", "cpu")),
        ):
            yield Fault(
                title=f"{count} installers at once",
                where="all",
                detail=detail,
                strike=partial(_many, count, backends),
                cold=False,
                short=count == 2 and len(backends) == 2,
            )


def _delete(bench: Bench) -> None:
    shutil.rmtree(bench.prefix)


def _gone(strike: Strike) -> Strike:
    return Strike(ended=strike.ended, seconds=strike.seconds, gone=True)


def _deleted_at(part: float, bench: Bench) -> Strike:
    return _gone(_at_step(bench, part, partial(_delete, bench)))


def _other_package(bench: Bench) -> Strike:
    wheel = make_wheel(bench.folder, "foreign", "1.0")
    steps = switch_steps(bench.switch.steps)
    program = bench.start(step=steps[0])
    caller = bench.knock(program)
    started = time.monotonic()
    # It waits for uv's lock, which an install holds while it switches, and then does its work.
    command = [
        find_uv_bin(), "pip", "install", "--quiet", f"--python={bench.python}", str(wheel),
    ]  # fmt: skip
    with subprocess.Popen(command, env=bench.variables) as other:
        if caller is not None:
            caller.send(b"g")
            caller.close()
        strike = finish(program, started)
        other.wait(60)
    return Strike(ended=strike.ended, also={"foreign": "1.0"})


def _other_torch(bench: Bench) -> Strike:
    older = {"torch": "2.12.0+cpu", "torchvision": "0.27.0+cpu"}
    pins = [f"{name}=={version}" for name, version in older.items()]
    strike = _at_point(bench, _HALF, lambda: _uv(bench, "--torch-backend=cpu", *pins))
    return Strike(ended=strike.ended, old=older)


def _many(count: int, backends: tuple[str, ...], bench: Bench) -> Strike:
    started = time.monotonic()
    programs = [bench.start(backend=backends[n % len(backends)]) for n in range(count)]
    ends = [program.wait() for program in programs]
    said = list(dict.fromkeys(end.said for end in ends))
    statuses = sorted({end.status for end in ends})
    return Strike(
        ended=Ended(
            status="hangs" if "hangs" in statuses else ", ".join(statuses),
            # What one was told of its own build holds no more after the next.
            said="" if len(backends) > 1 else " / ".join(said),
            everything="\n".join(end.everything for end in ends),
        ),
        seconds=time.monotonic() - started,
    )
