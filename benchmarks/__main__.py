"""Measure every promise, each beside its peers in the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import choices, detect, hub, hub_login, install, load_ext, picker, restart, switch
from benchmarks.measuring import BenchmarkError, Measurement, busy_warning
from benchmarks.stage import Stage
from tests.browser.kernel_environment import EnvironmentMakingError, run_uv
from tests.browser.server import ServerError

MEASUREMENTS: dict[str, Callable[[Stage], Iterator[Measurement]]] = {
    "detect": detect.measure,
    "load_ext": load_ext.measure,
    "picker": picker.measure,
    "install": install.measure,
    "switch": switch.measure,
    "restart": restart.measure,
    # Last: these take root, and where one ends the run the others are done.
    "hub": hub.measure,
    "hub_login": hub_login.measure,
    "choices": choices.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 where all could be measured, whether goals are met or not."""
    options = _parse(arguments)
    _like_a_user()
    machine = _machine()
    print(" · ".join(str(fact) for fact in machine.values()))
    load_before = psutil.getloadavg()[0]
    if warning := busy_warning(load_before, psutil.cpu_count() or 1):
        print(warning)
    measurements: list[Measurement] = []
    status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="torchenv-benchmarks-") as folder:
            stage = Stage(
                directory=Path(folder).resolve(),
                runs=options.runs,
                rate=round(options.rate * 1e6),
            )
            for name in options.only or MEASUREMENTS:
                for measurement in MEASUREMENTS[name](stage):
                    print(f"\n{measurement}", flush=True)
                    measurements.append(measurement)
    except (AssertionError, BenchmarkError, EnvironmentMakingError, ServerError) as error:
        print(f"error: {error}\n\nhint: see benchmarks/README.md", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        return 1
    load_after = psutil.getloadavg()[0]
    print(f"\nload average {load_before:.1f} before, {load_after:.1f} after")
    # What was measured before something failed took minutes, and is as true as before.
    if options.export_json and measurements:
        content = {
            "machine": machine,
            "load_average": {"before": load_before, "after": load_after},
            "rate": stage.rate,
            "measurements": [measurement.to_json() for measurement in measurements],
        }
        options.export_json.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="rounds (default: 10)")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        help="measure this alone; may be given again",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=25,
        metavar="MB",
        help="megabytes per second that a download gets (default: 25)",
    )
    parser.add_argument("--export-json", type=Path, metavar="FILE", help="write every single time")
    options = parser.parse_args(arguments)
    if options.runs < 1 or options.rate <= 0:
        parser.error("--runs and --rate must be above 0")
    return options


def _like_a_user() -> None:
    """Take away what a developer's machine sets for Python and a user's does not."""
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]
        print(f"note: {name} does not hold for what is measured", file=sys.stderr)


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": f"{psutil.cpu_count()} processors",
        "python": f"Python {platform.python_version()}",
        "uv": run_uv("--version").strip(),
    }


if __name__ == "__main__":
    sys.exit(main())
