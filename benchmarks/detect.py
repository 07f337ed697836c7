"""How long an answer takes: which PyTorch build for this machine, beside the tools that choose one.

Every tool runs as a fresh process and from its command line, as a person or a script runs it. uv
and light-the-torch have no word that only chooses, so theirs is the dry run of an install, which
also asks the index; it is the stand-in's, on the loopback interface, and what it serves is small.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.measuring import BenchmarkError, Comparison, Goal, Series, take_turns
from benchmarks.peers import make_peers, uv_of
from benchmarks.stage import Stage, run_program
from tests.nvml import LIBRARY, compile_nvml
from tests.standin import StandIn, make_family

__all__ = ["measure"]

_CHILDREN = Path(__file__).parent / "children"
_NO_SLOWER = Goal(kind="ratio", limit=1.0)
_GPUS = {
    "FAKE_NVML_DRIVER": "580.95.05",
    "FAKE_NVML_DEVICES": "NVIDIA H100|9|0|85520809984",
}


def measure(stage: Stage) -> Iterator[Comparison]:
    """Compare the whole answer with each peer's, then what it is made of."""
    directory = stage.directory / "detect"
    peers = make_peers(directory / "peers")
    with StandIn() as standin:
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        for wheel in make_family(directory / "wheels", backend="cpu", python_tags=(tag,)):
            standin.add_wheel("cpu", wheel)
        variables = standin.environment(directory / "cache", hermetic=True).apply(os.environ)
        # pip reads neither uv's word for the certificate nor an index of its own.
        variables = {**variables, "PIP_CERT": variables["SSL_CERT_FILE"], "PIP_NO_INPUT": "1"}
        ours = [str(stage.environment.directory / "bin" / "torchenv"), "select", "--json"]
        uv = [uv_of(stage), "pip", "install", f"--python={stage.environment.python}"]
        commands = {
            "uv pip install --torch-backend=auto --dry-run": [
                *uv, "--torch-backend=auto", "--dry-run", "torch"
            ],
            "ltt install --dry-run": [
                str(peers), "-m", "light_the_torch", "install", "--dry-run", "--no-deps", "torch"
            ],
            "python -m torchruntime info": [str(peers), "-m", "torchruntime", "info"],
        }  # fmt: skip
        for name, command in commands.items():
            yield _compare(
                stage,
                f"detect: a cold process to its answer, beside {name.split()[0]}",
                ("torchenv select", partial(_whole_run, ours, variables)),
                (name, partial(_whole_run, command, variables)),
                _NO_SLOWER,
            )
    root = _root_with_driver(directory / "root")
    yield _compare(
        stage,
        "detect: detection alone, where NVIDIA's library (a stand-in) answers",
        (
            "torchenv_magic.detect()",
            partial(_told, stage, _CHILDREN / "time_detect.py", root, extra=_GPUS),
        ),
        (
            "torchruntime.device_db.get_gpus()",
            lambda: float(run_program([str(peers), str(_CHILDREN / "time_peer_detect.py")], {})),
        ),
        Goal(kind="seconds", limit=0.05),
    )
    yield _compare(
        stage,
        "detect: import alone",
        ("import torchenv_magic", partial(_import, stage.environment.python, "torchenv_magic")),
        ("import torchruntime", partial(_import, peers, "torchruntime")),
        Goal(kind="seconds", limit=0.03),
    )


Timed = tuple[str, Callable[[], float]]


def _compare(stage: Stage, title: str, ours: Timed, peer: Timed, goal: Goal) -> Comparison:
    pairs = take_turns(title, stage.runs, ours[1], peer[1])
    mine, theirs = zip(*pairs, strict=True)
    return Comparison(
        title=title,
        ours=Series(name=ours[0], seconds=mine),
        peer=Series(name=peer[0], seconds=theirs),
        goal=goal,
    )


def _whole_run(command: list[str], variables: Mapping[str, str]) -> float:
    started = time.perf_counter()
    run_program(command, variables)
    return time.perf_counter() - started


def _told(stage: Stage, child: Path, root: Path, *, extra: Mapping[str, str]) -> float:
    command = [str(stage.environment.python), str(child), str(root)]
    return float(run_program(command, {"PATH": os.environ["PATH"], **extra}))


def _import(python: Path, module: str) -> float:
    program = (
        "import time; started = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - started)"
    )
    return float(run_program([str(python), "-c", program], {}))


def _root_with_driver(root: Path) -> Path:
    """Return a root that has the stand-in for NVIDIA's library where Debian has the real one."""
    if not compile_nvml(root / LIBRARY):
        raise BenchmarkError("the stand-in for NVIDIA's library takes a C compiler, on Linux")
    return root
