"""Install what argv[1] requires into this very environment; print the seconds of each step.

The CPU build, by the public API: what `torchenv install cpu --json` does before it verifies.
"""

import json
import sys
import threading
import time


def main() -> None:
    started = time.perf_counter()
    # The project's own imports are part of what a person waits for.
    from torchenv_magic import Request, detect, install, plan, read_environment, select
    from torchenv_magic.builds.backend import Backend

    imported = time.perf_counter()
    request = Request(backend=Backend.parse("cpu"), requirements=(sys.argv[1],))
    environment = read_environment()
    selection = select(detect(), request, interpreter=environment.interpreter)
    selected = time.perf_counter()
    planned = plan(selection, environment, request)
    ready = time.perf_counter()
    result = install(planned)
    installed = time.perf_counter()
    assert "torch" in result.changed
    steps = {
        "import": imported - started,
        "detect and select": selected - imported,
        "plan": ready - selected,
        "install": installed - ready,
    }
    print(json.dumps(steps))
    # What is removed in the background must not run into the next run.
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(60)


if __name__ == "__main__":
    main()
