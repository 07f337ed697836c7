"""Make a wheel of what is installed, so that it can be installed into another environment too.

torchenv_magic may have come from a wheel, an index, an address or a checkout, and none of these
need be in reach any more: what is certain to be there is what runs.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

__all__ = ["wheel_of"]

# What belongs to the place where it lies: a checkout's address would be a lie elsewhere, and the
# programs begin with the path of their interpreter.
_LEFT_OUT = frozenset(
    {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
)
# A wheel's time stamps begin here, and nobody reads them.
_MADE = (1980, 1, 1, 0, 0, 0)


def wheel_of(distribution: Distribution, folder: Path, *, prefix: str = sys.prefix) -> Path:
    """Write a wheel of an installed distribution into `folder`, and return it.

    A checkout that is installed editable is packed as it is now. Programs that stand among the
    entry points are left to the installer.

    Raises
    ------
    OSError
        A file that belongs to it can't be read.
    LookupError
        It has no list of its files.
    """
    name = re.sub(r"[-_.]+", "_", distribution.metadata["Name"]).lower()
    version = distribution.version
    information = f"{name}-{version}.dist-info"
    tag = _tag(distribution.read_text("WHEEL") or "")
    wheel = folder / f"{name}-{version}-{tag}.whl"
    rows = io.StringIO()
    record = csv.writer(rows, lineterminator="\n")
    # Not compressed: it is read once, on this machine.
    with zipfile.ZipFile(wheel, "w") as archive:
        for inside, file in _files(distribution, name, version, Path(prefix)):
            content = file.read_bytes()
            entry = zipfile.ZipInfo(inside, _MADE)
            mode = file.stat().st_mode & 0o777
            entry.external_attr = (0o100000 | mode | 0o644) << 16
            archive.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record.writerow([inside, f"sha256={digest.decode()}", len(content)])
        record.writerow([f"{information}/RECORD", "", ""])
        archive.writestr(zipfile.ZipInfo(f"{information}/RECORD", _MADE), rows.getvalue())
    return wheel


def _tag(text: str) -> str:
    r"""Return the tags of a WHEEL file as a wheel's name has them: `py2.py3-none-any`.

    >>> _tag("Wheel-Version: 1.0\nTag: py2-none-any\nTag: py3-none-any\n")
    'py2.py3-none-any'
    """
    tags = [tag.split("-") for tag in re.findall(r"^Tag:\s*(\S+)$", text, re.MULTILINE)]
    if not tags:
        return "py3-none-any"
    return "-".join(".".join(dict.fromkeys(column)) for column in zip(*tags, strict=True))


def _files(
    distribution: Distribution, name: str, version: str, prefix: Path
) -> Iterator[tuple[str, Path]]:
    """Give each file of the distribution with its place in a wheel."""
    listed = distribution.files
    if listed is None:
        raise LookupError(name)
    information = f"{name}-{version}.dist-info"
    editable = _is_editable(distribution)
    for path in listed:
        file = Path(str(distribution.locate_file(path)))
        if path.suffix == ".pyc" or not file.is_file():
            continue
        if path.parts[0].endswith(".dist-info"):
            if path.name not in _LEFT_OUT:
                yield str(PurePosixPath(information, *path.parts[1:])), file
        elif ".." in path.parts or path.is_absolute():
            inside = _data(file, prefix)
            # Programs are made anew from the entry points; a program that is a file of its own, as
            # uv is, comes along.
            if inside is not None and not _is_launcher(distribution, inside):
                yield f"{name}-{version}.data/{inside}", file
        elif not (editable and (path.suffix == ".pth" or path.name.startswith("_editable_"))):
            yield path.as_posix(), file
    if editable:
        # Its module lies wherever the checkout does.
        folder = Path(__file__).resolve().parents[1]
        for file in sorted(folder.rglob("*")):
            below = file.relative_to(folder.parent)
            # Bytecode, and what a checkout's tools leave.
            ours = not any(part == "__pycache__" or part.startswith(".") for part in below.parts)
            if ours and file.is_file():
                yield below.as_posix(), file


def _is_editable(distribution: Distribution) -> bool:
    try:
        content = json.loads(distribution.read_text("direct_url.json") or "{}")
        return content["dir_info"]["editable"] is True
    except (ValueError, LookupError, TypeError):
        return False


def _data(file: Path, prefix: Path) -> str | None:
    """Return a file of another folder than site-packages as a wheel places it."""
    try:
        inside = PurePosixPath(file.resolve().relative_to(prefix.resolve()))
    except ValueError:
        return None
    if inside.parts[0] in ("bin", "Scripts"):
        return f"scripts/{PurePosixPath(*inside.parts[1:])}"
    return f"data/{inside}"


def _is_launcher(distribution: Distribution, inside: str) -> bool:
    program = PurePosixPath(inside)
    names = {point.name for point in distribution.entry_points}
    return program.parts[0] == "scripts" and (program.stem in names or program.name in names)
