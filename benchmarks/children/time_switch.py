"""Change this very environment as argv[1] says; print the seconds that it took as JSON.

`switch BACKEND REQUIREMENT`, `undo` and `repair` are what `torchenv` does for these before it
verifies; `plans BACKEND…` plans for each, side by side; `die BACKEND REQUIREMENT` kills itself amid
a switch.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def main(way: str, *words: str) -> None:
    started = time.perf_counter()
    if way == "undo":
        from torchenv_magic import read_environment
        from torchenv_magic.installation.undo import undo_install

        assert "torch" in undo_install(read_environment()).changed
    elif way == "repair":
        from torchenv_magic.status import read_repaired

        _, recovered, problem = read_repaired(Path(sys.executable))
        assert recovered, problem
    elif way == "plans":
        with ThreadPoolExecutor(len(words)) as pool:
            plans = list(pool.map(lambda backend: make(backend, "torch"), words))
        assert any(plan.changes for plan in plans)
    else:
        from torchenv_magic import install

        if way == "die":
            sys.addaudithook(Die())
        assert "torch" in install(make(*words)).changed
    print(json.dumps({way: time.perf_counter() - started}))
    # What is removed in the background must not run into the next run.
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(60)


def make(backend: str, requirement: str) -> Any:
    from torchenv_magic import Request, detect, plan, read_environment, select
    from torchenv_magic.builds.backend import Backend

    request = Request(backend=Backend.parse(backend), requirements=(requirement,))
    environment = read_environment()
    selection = select(detect(), request, interpreter=environment.interpreter)
    return plan(selection, environment, request)


class Die:
    """Ends this process at the second rename of what a switch puts aside."""

    def __init__(self) -> None:
        self._left = 2

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and re.search(r"/\.torchenv-work-.*/old/", str(arguments[1])):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
