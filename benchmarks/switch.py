"""How long an environment takes from one build to another, back, and out of a killed switch."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import BenchmarkError, Comparison, Goal, Series, take_turns
from benchmarks.stage import Stage, run_program, serve_torch
from tests.browser.kernel_environment import interpreter_of
from tests.standin import StandIn, make_wheel
from tests.standin.wheels import machine_platform_tag

__all__ = ["measure"]

_CHILD = Path(__file__).parent / "children" / "time_switch.py"
_OLD = "torch==2.13.0+cu126"
_FILES = 12_000
_BYTES = 50_000_000
_BACKENDS = ("cpu", "cu126", "cu128", "cu129", "cu130", "cu132")


def measure(stage: Stage) -> Iterator[Comparison]:
    """Switch from a made build of as many files as the real one has to the real one, and back."""
    directory = stage.directory / "switch"
    run_program([str(stage.environment.python), "-I", "-m", "torchenv_magic", "status"], os.environ)
    with StandIn() as standin:
        torch = serve_torch(standin, directory)
        standin.add_wheel("cu126", _old_wheel(directory / "old"))
        bench = _Bench(
            directory=directory,
            standin=standin,
            old=directory / "environment",
            new=f"{torch.requirement}+cpu",
            python_requirement=torch.requirement,
        )
        bench.prepare(stage.environment.directory)
        standin.rate = stage.rate
        yield bench.compare(
            f"switch: cold cache at {stage.rate / 1e6:.0f} MB/s ({torch})",
            runs=stage.runs,
            ours=bench.cold(bench.switch),
            bare=bench.cold(bench.bare_switch),
            goal=Goal(kind="ratio", limit=1.03),
            names=("detect, select, plan, install", "uv pip install --torch-backend=cpu"),
        )
        standin.rate = None
        yield bench.compare(
            "switch: warm cache",
            runs=stage.runs,
            ours=bench.warm(bench.switch),
            bare=bench.warm(bench.bare_switch),
            goal=Goal(kind="more", limit=1.0),
            names=("detect, select, plan, install", "uv pip install --torch-backend=cpu"),
        )
        yield bench.compare(
            "switch: back again",
            runs=stage.runs,
            ours=bench.warm(bench.undo),
            bare=bench.warm(bench.bare_back),
            goal=Goal(kind="seconds", limit=3.0),
            names=("undo", "uv pip install --torch-backend=cu126"),
        )
        yield bench.compare(
            "switch: repair after a kill",
            runs=stage.runs,
            ours=bench.warm(bench.repair),
            bare=bench.warm(bench.bare_repair),
            goal=Goal(kind="seconds", limit=2.0),
            names=("repair", "uv pip install --reinstall-package torch"),
        )
        yield bench.compare(
            f"switch: plans for {len(_BACKENDS)} backends",
            runs=stage.runs,
            ours=bench.warm(bench.plans),
            bare=bench.warm(bench.bare_dry_run),
            goal=Goal(kind="ratio", limit=1.5),
            names=("plans, side by side", "uv pip install --dry-run, for one"),
        )


def _old_wheel(folder: Path) -> Path:
    """Make a torch for CUDA of as many files as the real one has."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    files = {
        f"torch/include/part{number % 400}/header{number}.h": f"// made for tests {number}\n"
        for number in range(_FILES)
    }
    version = "__version__ = '2.13.0+cu126'\n"
    return make_wheel(
        folder,
        "torch",
        "2.13.0+cu126",
        files={"torch/__init__.py": version, "torch/version.py": version, **files},
        python_tag=tag,
        abi_tag=tag,
        platform_tag=machine_platform_tag(),
        pad_bytes=_BYTES,
    )


Act = Callable[[Path, Mapping[str, str]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    directory: Path
    standin: StandIn
    old: Path
    """What each run gets a copy of: the project, uv, a kernel, and the old build."""
    new: str
    """The requirement that bare uv needs, with the build in it: else it does nothing."""
    python_requirement: str

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def prepare(self, furnished: Path) -> None:
        """Make the environment with the old build, and fill the cache that is warm."""
        _copy(furnished, self.old)
        self._uv(interpreter_of(self.old), self._variables(self.cache), "cu126", _OLD)
        spare = self.directory / "spare"
        _copy(self.old, spare)
        variables = self._variables(self.cache)
        python = interpreter_of(spare)
        # uv keeps what a lock named apart from what an index named: each has its own.
        self._child(python, variables, "switch", "cpu", self.python_requirement)
        self._child(python, variables, "switch", "cu126", "torch==2.13.0")
        self._uv(python, variables, "cpu", self.new)
        shutil.rmtree(spare)

    def compare(
        self,
        title: str,
        *,
        runs: int,
        ours: Callable[[], float],
        bare: Callable[[], float],
        goal: Goal,
        names: tuple[str, str],
    ) -> Comparison:
        pairs = take_turns(title, runs, ours, bare)
        return Comparison(
            title=title,
            ours=Series(name=names[0], seconds=tuple(pair[0] for pair in pairs)),
            peer=Series(name=names[1], seconds=tuple(pair[1] for pair in pairs)),
            goal=goal,
        )

    def cold(self, act: Act) -> Callable[[], float]:
        return lambda: self._run(act, cold=True)

    def warm(self, act: Act) -> Callable[[], float]:
        return lambda: self._run(act, cold=False)

    def _run(self, act: Act, *, cold: bool) -> float:
        with _fresh(self.directory) as place:
            target = place / "target"
            _copy(self.old, target)
            if hasattr(os, "sync"):
                # Else the one waits for what the other has left to be written to the disk.
                os.sync()
            variables = self._variables(place / "cache" if cold else self.cache)
            return act(interpreter_of(target), variables)

    # What is measured

    def switch(self, python: Path, variables: Mapping[str, str]) -> float:
        return self._child(python, variables, "switch", "cpu", self.python_requirement)

    def bare_switch(self, python: Path, variables: Mapping[str, str]) -> float:
        return self._uv(python, variables, "cpu", self.new)

    def undo(self, python: Path, variables: Mapping[str, str]) -> float:
        self.switch(python, variables)
        return self._child(python, variables, "undo")

    def bare_back(self, python: Path, variables: Mapping[str, str]) -> float:
        self._uv(python, variables, "cpu", self.new)
        return self._uv(python, variables, "cu126", _OLD)

    def repair(self, python: Path, variables: Mapping[str, str]) -> float:
        command = [str(python), str(_CHILD), "die", "cpu", self.python_requirement]
        killed = subprocess.run(command, env=variables, capture_output=True, check=False)
        if killed.returncode != -signal.SIGKILL:
            raise BenchmarkError(f"the switch that was to be killed ended:\n{killed.stderr!r}")
        return self._child(python, variables, "repair")

    def bare_repair(self, python: Path, variables: Mapping[str, str]) -> float:
        process = subprocess.Popen(
            _command(python, "cpu", self.new),
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        site = next(python.parents[1].glob("lib/python*/site-packages"))
        while process.poll() is None and (site / "torch/include/part0/header0.h").exists():
            pass
        process.kill()
        process.wait()
        return self._uv(python, variables, "cpu", self.new, "--reinstall-package=torch")

    def plans(self, python: Path, variables: Mapping[str, str]) -> float:
        return self._child(python, variables, "plans", *_BACKENDS)

    def bare_dry_run(self, python: Path, variables: Mapping[str, str]) -> float:
        return self._uv(python, variables, "cpu", self.new, "--dry-run")

    # How it is done

    def _variables(self, cache: Path) -> dict[str, str]:
        return self.standin.environment(cache, hermetic=True).apply(os.environ)

    def _child(self, python: Path, variables: Mapping[str, str], *words: str) -> float:
        steps: dict[str, float] = json.loads(
            run_program([str(python), str(_CHILD), *words], variables)
        )
        return sum(steps.values())

    def _uv(self, python: Path, variables: Mapping[str, str], *words: str) -> float:
        command = _command(python, *words)
        started = time.perf_counter()
        run_program(command, variables)
        return time.perf_counter() - started


def _command(python: Path, backend: str, *words: str) -> list[str]:
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "install", f"--python={python}"]
    return [*command, f"--torch-backend={backend}", *words]


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


_numbers = itertools.count()


@contextlib.contextmanager
def _fresh(directory: Path) -> Iterator[Path]:
    place = directory / f"run-{next(_numbers)}"
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)
