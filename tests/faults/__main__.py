"""Run the campaign, or a part of it; say what must not be, and write the page about it."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from tests.faults.arena import Arena
from tests.faults.bare import kill_bare_uv
from tests.faults.campaign import Fault, Outcome, carry_out, skipped
from tests.faults.catalog import all_faults
from tests.faults.report import PAGE, page


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return 1 where something is as it must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", help="run the faults whose name has it")
    parser.add_argument("--list", action="store_true", help="name the faults, and run none")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    parser.add_argument(
        "--package", type=Path, metavar="DIR", help="the torchenv_magic to hurt (the checkout's)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--bare", action="store_true", help="strike bare uv too")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("the page is written of the whole campaign alone")
    chosen = [
        fault for fault in all_faults() if re.search(options.only or "", fault.name, re.IGNORECASE)
    ]
    if options.list:
        print(*(fault.name for fault in chosen), sep="\n")
        return 0
    # What a shell runs in the background ignores this, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder,
        Arena(Path(folder) / "arena", package=options.package) as arena,
    ):
        for number, fault in enumerate(chosen, 1):
            outcome = _carried_out(arena, fault)
            outcomes.append(outcome)
            result = f"skipped: {outcome.skipped}" if outcome.skipped else (
                f"{outcome.at_once} → {outcome.after}"
            )  # fmt: skip
            print(f"{number}/{len(chosen)} {fault.name}: {result}", flush=True)
            for problem in outcome.problems:
                print(f"    PROBLEM {problem}", flush=True)
            if options.json:
                text = json.dumps([asdict(each) for each in outcomes], indent=1)
                options.json.write_text(text, encoding="utf-8")
        bare = list(kill_bare_uv(arena)) if options.write or options.bare else []
    seconds = time.monotonic() - started
    if options.write:
        PAGE.write_text(page(outcomes, bare, seconds=seconds), encoding="utf-8")
    for each in bare:
        print(f"bare uv, {each.signal} as {each.where}: {each.at_once} → {each.again}")
    wrong = [outcome for outcome in outcomes if outcome.problems]
    print(f"{len(outcomes)} faults, {len(wrong)} problems, {seconds:.0f} s")
    return 1 if wrong else 0


def _carried_out(arena: Arena, fault: Fault) -> Outcome:
    try:
        return carry_out(arena, fault)
    except Exception as error:  # noqa: BLE001
        # The others are still to be run; this one counts as wrong until somebody has looked.
        reason = f"the campaign failed: {str(error)[:200]!r}, {type(error).__name__}"
        return replace(skipped(fault, ""), problems=(reason,))


if __name__ == "__main__":
    sys.exit(main())
