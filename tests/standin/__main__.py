"""Run the stand-in in the foreground, for a developer's shell or a demonstration.

It prints the lines that lead another shell there, and serves until Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.standin.environment import ChildEnvironment
from tests.standin.index import StandIn
from tests.standin.wheels import read_wheel


def shell_lines(environment: ChildEnvironment, *, powershell: bool) -> list[str]:
    """Return the commands that bring a shell's environment about."""
    if powershell:
        quoted = {name: value.replace("'", "''") for name, value in environment.set.items()}
        return [
            *(f"Remove-Item Env:{name}" for name in environment.unset),
            *(f"$env:{name} = '{value}'" for name, value in quoted.items()),
        ]
    return [
        *(f"unset {name}" for name in environment.unset),
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.set.items()),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.standin", description=__doc__)
    parser.add_argument(
        "--real-wheel-folder",
        type=Path,
        metavar="DIR",
        help="serve the wheels in DIR, too, each under the backend that its version names",
    )
    parser.add_argument(
        "--rate", type=int, metavar="BYTES", help="bytes per second for each connection"
    )
    parser.add_argument(
        "--hermetic",
        action="store_true",
        help="serve all other packages as well, and refuse every other host",
    )
    options = parser.parse_args(arguments)
    if options.rate is not None and options.rate <= 0:
        parser.error("--rate must be above 0")
    if options.real_wheel_folder and not options.real_wheel_folder.is_dir():
        parser.error(f"{options.real_wheel_folder} is no folder")

    stopped = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    with StandIn() as standin, tempfile.TemporaryDirectory(prefix="standin-cache-") as cache:
        standin.rate = options.rate
        if options.real_wheel_folder:
            for path in options.real_wheel_folder.glob("*.whl"):
                if backend := read_wheel(path).backend:
                    standin.add_wheel(backend, path.resolve())
        environment = standin.environment(Path(cache), hermetic=options.hermetic)
        print(*shell_lines(environment, powershell=os.name == "nt"), sep="\n")
        print("# serving; Ctrl-C ends it", flush=True)
        # With a time-out, because Windows delivers no Ctrl-C to a thread that waits for ever.
        while not stopped.wait(1):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
