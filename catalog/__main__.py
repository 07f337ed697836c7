"""Make the catalog, check it, or read anew what it is made from.

python -m catalog                     write torchenv_magic/builds/catalog.jsonl from the facts
python -m catalog --check             say whether that file is what the facts make; no network
python -m catalog --refresh           read PyPI, uv and the PyTorch index; say what has changed
python -m catalog --refresh --write   and keep it: catalog/facts/read.jsonl, then the catalog
python -m catalog arch WHEEL          say what code a wheel holds, a file or an address
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from catalog.errors import CatalogError
from catalog.facts import FOLDER, READ, Row, load_facts, render_read
from catalog.maker import difference, make, render

CATALOG = Path(__file__).resolve().parent.parent / "torchenv_magic" / "builds" / "catalog.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m catalog",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--check", action="store_true", help="exit 1 where the file is another")
    does.add_argument("--refresh", action="store_true", help="read anew what can be read")
    parser.add_argument("--write", action="store_true", help="keep what --refresh has read")
    parser.add_argument(
        "--facts", type=Path, default=FOLDER, metavar="FOLDER", help="other facts than these"
    )
    parser.add_argument(
        "--output", type=Path, default=CATALOG, metavar="FILE", help="another file than the shipped"
    )
    # Not a subparser: an optional one is refused together with options that come first.
    parser.add_argument("arch", nargs="*", metavar="arch WHEEL", help="what code a wheel holds")
    asked = parser.parse_args(arguments)
    if asked.write and not asked.refresh:
        parser.error("--write goes with --refresh")
    if asked.arch and (asked.check or asked.refresh):
        parser.error("arch goes alone")
    if asked.arch and (asked.arch[0] != "arch" or len(asked.arch) != 2):
        parser.error("the one word is: arch WHEEL")
    try:
        if asked.arch:
            return show_code(asked.arch[1])
        if asked.check:
            return check(asked.facts, asked.output)
        if asked.refresh:
            return refresh(asked.facts, asked.output, keep=asked.write)
        return write(asked.facts, asked.output)
    except CatalogError as error:
        _show(error)
        return 1


def write(facts: Path, output: Path) -> int:
    """Write the catalog that the facts make."""
    _save(output, make(load_facts(facts)))
    return 0


def _save(output: Path, rows: Sequence[Row]) -> None:
    # Bytes, so that it is the same file on Windows.
    output.write_bytes(render(rows).encode("utf-8"))
    print(f"{output.name}: {len(rows)} rows")


def check(facts: Path, output: Path) -> int:
    """Say whether the file is what the facts make; the difference, where it is not."""
    made = render(make(load_facts(facts)))
    try:
        there = output.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(
            f"{output.name} can't be read: {error}", hint="make it: python -m catalog"
        ) from error
    if there == made:
        print(f"{output.name} is what the facts make")
        return 0
    print(difference(there, made, output.name))
    raise CatalogError(
        f"{output.name} is not what the facts make", hint="make it anew: python -m catalog"
    )


def refresh(facts: Path, output: Path, *, keep: bool) -> int:
    """Say what has changed out there since the facts were read; `keep` it."""
    from catalog.refresh import read_anew
    from torchenv_magic.builds.catalog import read_catalog

    known = load_facts(facts)
    today = datetime.now(tz=timezone.utc).date().isoformat()
    found = read_anew(known.read, read_catalog(render(make(known))), today=today)
    change = difference(render_read(known.read), render_read(found.read), READ)
    print(change or f"{READ}: nothing has changed")
    if found.index:
        print("\nThe PyTorch index (+) is not what wheels.toml says (-):")
        print("\n".join(found.index))
    for failure in found.failures:
        _show(failure)
    if keep and change:
        as_of = max(known.as_of, found.read.as_of)
        # First of all, so that nothing is kept that no catalog can be made of.
        rows = make(replace(known, as_of=as_of, read=found.read))
        (facts / READ).write_bytes(render_read(found.read).encode("utf-8"))
        _save(output, rows)
    return 1 if found.failures else 0


def show_code(place: str) -> int:
    """Say what code a wheel holds."""
    from catalog.wheel import read_code

    print(read_code(place))
    return 0


def _show(error: CatalogError) -> None:
    print(f"error: {error}\n\nhint: {error.hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
