"""Examine this machine: one command, on a machine that has PyTorch and a device.

python -m tests.gpu [--keep FILE]

Prints each check; keeps the whole record as JSON where it is told to. Exit status 0 where all
checks passed, 1 where one failed, 3 where there is no accelerator to examine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.examination import examine


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the record as JSON")
    options = parser.parse_args(arguments)
    examination = examine()
    for check in examination.checks:
        print(check)
    if options.keep is not None:
        text = json.dumps(examination.to_json(), indent=1, sort_keys=True)
        options.keep.write_text(f"{text}\n", encoding="utf-8")
        print(f"kept in {options.keep}")
    if not examination.has_accelerator:
        print("no accelerator was found here: nothing was proved on a device")
        return 3
    return 0 if examination.passed else 1


if __name__ == "__main__":
    sys.exit(main())
