"""What a further user of a host takes, in seconds and in space, beside a plain install for each.

Ours is an environment of a layer: links, and what is the user's own. The peers are what a user does
without: a virtual environment and `uv pip install`, each with a cache of their own as users have,
and the same with pip. Users come one after another; their environments stay until all are there, as
on a real host, as far as the disk bears it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import BenchmarkError
from benchmarks.stage import Stage, run_program, serve_torch
from tests.kernel_wheels import pack_kernel_wheels
from tests.standin import StandIn
from torchenv_magic.builds.backend import Backend
from torchenv_magic.installation.layers import Layer, attach_new
from torchenv_magic.installation.layers_build import build_layer
from torchenv_magic.installation.settings import Sites
from torchenv_magic.selection import Request

__all__ = ["Sharing", "measure"]

_USERS = (1, 10, 50)
_GOAL_SECONDS = 0.5
_GOAL_BYTES = 5 * 1024**2
_RESERVE_BYTES = 30_000_000_000
"""What is left free on the disk, for others who work on it."""
_LONGEST_SECONDS = 120.0
"""Of one way: each user of an install of their own takes what the one before took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """What it took until that many users had their PyTorch."""

    count: int
    """Fewer than were asked for where the disk or our patience would not have borne more."""
    seconds: tuple[float, ...]
    bytes: int
    """On the disk, links counted once."""

    def __str__(self) -> str:
        number = f"{self.count} user{'' if self.count == 1 else 's'}"
        return (
            f"{number}: {statistics.median(self.seconds):.2f} s each (median; "
            f"{max(self.seconds):.2f} s the slowest), {self.each / 1024**2:.1f} MiB each"
        )

    @property
    def each(self) -> float:
        return self.bytes / self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """One number of users, by each of the ways."""

    title: str
    asked: int
    ours: Users
    peers: tuple[tuple[str, Users], ...]

    @property
    def met(self) -> bool:
        return (
            statistics.median(self.ours.seconds) <= _GOAL_SECONDS and self.ours.each <= _GOAL_BYTES
        )

    def __str__(self) -> str:
        lines = [self.title, f"  {'a layer, attached':<22}{self.ours}"]
        for name, users in self.peers:
            lines.append(f"  {name:<22}{users}")
            if users.count < self.asked:
                lines.append(f"    (ended before {self.asked}: too much disk, or too long)")
            time_ratio = statistics.median(self.ours.seconds) / statistics.median(users.seconds)
            lines.append(
                f"    ratio               {time_ratio:.3f} of the time, "
                f"{self.ours.each / users.each:.4f} of the space"
            )
        goal = f"at most {_GOAL_SECONDS} s and {_GOAL_BYTES / 1024**2:.0f} MiB a user"
        lines.append(f"  goal                  {goal}: {'met' if self.met else 'MISSED'}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return every single value."""
        return {
            "title": self.title,
            "asked": self.asked,
            "met": self.met,
            "ways": {
                name: {"users": users.count, "seconds": users.seconds, "bytes": users.bytes}
                for name, users in (("layer", self.ours), *self.peers)
            },
        }


def measure(stage: Stage) -> Iterator[Sharing]:
    """Bring PyTorch to 1, 10 and 50 users, by a layer and by installs of their own."""
    directory = stage.directory / "hub"
    directory.mkdir(mode=0o755)
    with StandIn() as standin:
        torch = serve_torch(standin, directory)
        bench = _Bench(directory=directory, standin=standin, requirement=torch.requirement)
        wheels = directory / "kernel-wheels"
        wheels.mkdir()
        layer, seconds = bench.layer(pack_kernel_wheels(wheels))
        print(f"a layer was built in {seconds:.1f} s: {layer}", file=sys.stderr)
        ways: tuple[tuple[str, Callable[[Path], None]], ...] = (
            ("uv pip install", bench.by_uv),
            ("pip install", bench.by_pip),
        )

        def attached(home: Path) -> None:
            attach_new(layer, home / "environment", Path(sys.executable))

        # Not counted: it compiles to bytecode and fills the system's file cache.
        for work in (attached, *(work for _, work in ways)):
            bench.users(1, work)
        for count in _USERS:
            yield Sharing(
                title=f"hub: {count} more user{'' if count == 1 else 's'} of a host ({torch})",
                asked=count,
                ours=bench.users(count, attached),
                peers=tuple((name, bench.users(count, work)) for name, work in ways),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    directory: Path
    standin: StandIn
    requirement: str

    def layer(self, wheels: Path) -> tuple[Layer, float]:
        """Build the layer that all share, which an admin does once."""
        started = time.perf_counter()
        before = dict(os.environ)
        # The engine works in this very process.
        os.environ.update(self._variables(self.directory / "admin"))
        try:
            layer = build_layer(
                self.directory / "layers",
                Request(requirements=(self.requirement,)),
                Backend.parse("cpu"),
                sites=Sites(find_links=(str(wheels),), find_links_origin="the benchmark"),
            )
        finally:
            os.environ.clear()
            os.environ.update(before)
        return layer, time.perf_counter() - started

    def _variables(self, home: Path) -> dict[str, str]:
        variables = self.standin.environment(home / "cache", hermetic=True).apply(os.environ)
        return {**variables, "HOME": str(home)}

    def users(self, count: int, bring: Callable[[Path], None]) -> Users:
        """Let users come one after another; take all of them away again at the end."""
        place = self.directory / "homes"
        place.mkdir()
        seconds = []
        try:
            before = free = _free(place)
            for number in range(count):
                home = place / str(number)
                home.mkdir()
                started = time.perf_counter()
                bring(home)
                seconds.append(time.perf_counter() - started)
                if not any(home.glob("environment/lib/python*/site-packages/torch/version.py")):
                    raise BenchmarkError("a user was to have torch, and has none")
                free = _free(place)
                used = (before - free) / len(seconds)
                if free - used < _RESERVE_BYTES or sum(seconds) > _LONGEST_SECONDS:
                    break
            return Users(count=len(seconds), seconds=tuple(seconds), bytes=_taken(place))
        finally:
            shutil.rmtree(place)
            os.sync()

    def by_uv(self, home: Path) -> None:
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
        variables = self._variables(home)
        environment = home / "environment"
        run_program([uv, "venv", "--quiet", f"--python={sys.executable}", str(environment)],
                    variables)  # fmt: skip
        install = [uv, "pip", "install", f"--python={environment}", "--torch-backend=cpu"]
        run_program([*install, self.requirement], variables)

    def by_pip(self, home: Path) -> None:
        variables = self._variables(home)
        environment = home / "environment"
        run_program([sys.executable, "-m", "venv", str(environment)], variables)
        install = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        indexes = [
            f"--index-url={self.standin.mirror_url('cpu')}",
            f"--extra-index-url={self.standin.simple_url}",
        ]
        run_program([*install, *indexes, self.requirement], variables)


def _free(place: Path) -> int:
    os.sync()
    return shutil.disk_usage(place).free


def _taken(place: Path) -> int:
    """Return what lies below, in blocks, files with several names once."""
    counted = subprocess.run(
        ["du", "--summarize", "--block-size=1", str(place)], capture_output=True, check=True
    )
    return int(counted.stdout.split()[0])
