"""How long `%load_ext torchenv_magic` takes, beside an extension that comes with IPython."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.measuring import Comparison, Goal, Series, take_turns
from benchmarks.stage import Stage, run_program

__all__ = ["measure"]

_CHILD = Path(__file__).parent / "children" / "time_load_ext.py"
_OURS, _PEER = "torchenv_magic", "autoreload"
_CELL = """\
import time
started = time.perf_counter()
%load_ext {}
seconds = time.perf_counter() - started
"""


def measure(stage: Stage) -> Iterator[Comparison]:
    """Load each in a fresh process every time: the second load in one would find it imported."""
    for place, load in (("a kernel", _in_kernel), ("IPython", _in_interpreter)):
        title = f"load_ext: in a fresh process of {place}"
        pairs = take_turns(
            title, stage.runs, partial(load, stage, _OURS), partial(load, stage, _PEER)
        )
        ours, peer = zip(*pairs, strict=True)
        yield Comparison(
            title=title,
            ours=Series(name=f"%load_ext {_OURS}", seconds=ours),
            peer=Series(name=f"%load_ext {_PEER}", seconds=peer),
            goal=Goal(kind="seconds", limit=0.03),
        )


def _in_kernel(stage: Stage, extension: str) -> float:
    with stage.start_kernel() as kernel:
        kernel.run(_CELL.format(extension))
        return float(kernel.value("seconds"))


def _in_interpreter(stage: Stage, extension: str) -> float:
    command = [str(stage.environment.python), str(_CHILD), extension]
    variables = {**os.environ, "IPYTHONDIR": str(stage.ipython_directory)}
    return float(run_program(command, variables))
