"""How long an install takes with its plan, beside the bare uv command for the same wheel."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import BenchmarkError, Comparison, Goal, Series, take_turns
from benchmarks.stage import Stage, run_program, serve_torch
from tests.browser.kernel_environment import interpreter_of
from tests.standin import StandIn

__all__ = ["measure"]

_CHILD = Path(__file__).parent / "children" / "time_install.py"


def measure(stage: Stage) -> Iterator[Comparison]:
    """Install into a fresh environment each time, from a fresh cache and from a full one.

    The stand-in of the PyTorch index serves all packages: what torch depends on is made and small.
    """
    directory = stage.directory / "install"
    # The copies have the bytecode that this leaves in the environment.
    run_program([str(stage.environment.python), "-I", "-m", "torchenv_magic", "status"], os.environ)
    with StandIn() as standin:
        torch = serve_torch(standin, directory)
        standin.rate = stage.rate
        bench = _Bench(
            directory=directory,
            standin=standin,
            environment=stage.environment.directory,
            requirement=torch.requirement,
        )
        for title, cache, goal in (
            (
                f"cold cache at {stage.rate / 1e6:.0f} MB/s",
                None,
                Goal(kind="ratio", limit=1.03),
            ),
            ("warm cache", directory / "cache", Goal(kind="more", limit=1.0)),
        ):
            yield bench.compare(f"install: {title} ({torch})", stage.runs, cache, goal)


Install = Callable[[Path, Mapping[str, str]], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    directory: Path
    standin: StandIn
    environment: Path
    """What each run gets a copy of: the project, uv and a kernel."""
    requirement: str

    def compare(self, title: str, runs: int, cache: Path | None, goal: Goal) -> Comparison:
        numbers = itertools.count()

        def run(install: Install) -> dict[str, float]:
            place = self.directory / f"run-{next(numbers)}"
            with _fresh(place):
                return self._run(install, place, cache or place / "cache")

        pairs = take_turns(title, runs, lambda: run(self._ours), lambda: run(self._bare))
        steps = [ours for ours, _ in pairs]
        medians = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
        words = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items())
        return Comparison(
            title=title,
            ours=Series(
                name="detect, select, plan, install",
                seconds=tuple(sum(step.values()) for step in steps),
            ),
            peer=Series(
                name="uv pip install --torch-backend=cpu",
                seconds=tuple(sum(bare.values()) for _, bare in pairs),
            ),
            goal=goal,
            notes=(f"of which {words} (medians)",),
        )

    def _run(self, install: Install, place: Path, cache: Path) -> dict[str, float]:
        target = place / "target"
        shutil.copytree(self.environment, target, symlinks=True, copy_function=os.link)
        if hasattr(os, "sync"):
            # Else the one waits for what the other has left to be written to the disk.
            os.sync()
        variables = self.standin.environment(cache, hermetic=True).apply(os.environ)
        steps = install(interpreter_of(target), variables)
        if next(target.rglob("torch/version.py"), None) is None:
            raise BenchmarkError("an install ended well, but there is no torch")
        return steps

    def _ours(self, python: Path, variables: Mapping[str, str]) -> dict[str, float]:
        command = [str(python), str(_CHILD), self.requirement]
        steps: dict[str, float] = json.loads(run_program(command, variables))
        return steps

    def _bare(self, python: Path, variables: Mapping[str, str]) -> dict[str, float]:
        question = [str(python), "-I", "-c", "import uv; print(uv.find_uv_bin())"]
        uv = run_program(question, variables).strip()
        command = [uv, "pip", "install", f"--python={python}", "--torch-backend=cpu"]
        started = time.perf_counter()
        run_program([*command, self.requirement], variables)
        return {"install": time.perf_counter() - started}


@contextlib.contextmanager
def _fresh(place: Path) -> Iterator[None]:
    place.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(place)
