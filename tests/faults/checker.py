"""Judge without any of the engine whether an environment is the old one, the new one or a third."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name
from uv import find_uv_bin

__all__ = ["Judge", "Kind", "State", "files_below"]

Kind = Literal["old", "new", "third", "gone"]

_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
print(torch.__version__, (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item())
"""
_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an environment is."""

    kind: Kind
    reasons: tuple[str, ...] = ()
    """Why it is a third one."""
    versions: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.kind} ({'; '.join(self.reasons[:3])})" if self.reasons else self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Knows the two environments that may be, and nothing of how one becomes the other."""

    old: Mapping[str, str]
    new: Mapping[str, str]
    """The version of each package."""
    base: frozenset[str]
    """Files of the environment that no package owns, from before there was a torch."""
    own: tuple[str, ...] = ()
    """Files of the person's, which must be there whatever happens."""
    modules: tuple[str, ...] = ("torch", "torchvision")

    def judge(self, prefix: Path, *, unchecked: bool = False) -> State:
        """Return the state; `unchecked` leaves out what starts processes."""
        if not (prefix / "pyvenv.cfg").exists():
            return State(kind="gone")
        versions, owned, reasons = _read(prefix)
        reasons += self._strange(prefix, owned)
        kind: Kind = "third"
        if versions == self.old:
            kind = "old"
        elif versions == self.new:
            kind = "new"
        else:
            reasons.append(_difference(versions, self.old, self.new))
        if not unchecked and not reasons:
            reasons += self._tried(prefix, kind)
        return State(
            kind="third" if reasons else kind, reasons=tuple(reasons), versions=dict(versions)
        )

    def _strange(self, prefix: Path, owned: set[Path]) -> list[str]:
        """Return what is there and should not be, and what should be and is not."""
        site = _site(prefix)
        problems = [
            f"{name} of the person's is lost" for name in self.own if not (prefix / name).exists()
        ]
        known = {prefix / name for name in (*self.base, *self.own)} | owned
        strange = [
            path.relative_to(site if path.is_relative_to(site) else prefix).as_posix()
            for path in files_below(prefix)
            if path not in known
        ]
        if strange:
            problems.append(f"{len(strange)} files of nobody, as {strange[0]}")
        return problems

    def _tried(self, prefix: Path, kind: Kind) -> Iterator[str]:
        python = prefix / "bin/python"
        wanted = (self.old if kind == "old" else self.new)["torch"]
        done = _run([str(python), "-I", "-B", "-c", _IMPORT, *self.modules])
        said = done.stdout.split()
        if done.returncode != 0 or said != [wanted, "8.0"]:
            last = (done.stderr.strip().splitlines() or [done.stdout.strip()])[-1]
            yield f"does not import: {last}"
        check = _run([find_uv_bin(), "pip", "check", "--no-config", f"--python={python}"])
        if check.returncode != 0:
            yield f"uv pip check: {check.stderr.strip().splitlines()[-1]}"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=_SECONDS, check=False
    )


def _site(prefix: Path) -> Path:
    return next((prefix / "lib").glob("python*/site-packages"), prefix / "lib")


def _read(prefix: Path) -> tuple[dict[str, str], set[Path], list[str]]:
    """Return the packages' versions, the files they own, and what is wrong with them."""
    site = _site(prefix)
    versions: dict[str, str] = {}
    owned: set[Path] = set()
    problems: list[str] = []
    for info in sorted(site.glob("*.dist-info")):
        try:
            headers = HeaderParser().parsestr((info / "METADATA").read_text("utf-8"))
            name = canonicalize_name(headers["Name"])
            rows = list(csv.reader((info / "RECORD").read_text("utf-8").splitlines()))
        except OSError as error:
            problems.append(f"{info.name}: {error.strerror}")
            continue
        if name in versions:
            problems.append(f"{name} is there twice")
        versions[name] = headers["Version"]
        broken = []
        for row in rows:
            path = Path(os.path.normpath(site / row[0]))
            owned.add(path)
            if wrong := _wrong(path, row[1]):
                broken.append(f"{row[0]} {wrong}")
        if broken:
            problems.append(f"{name}: {len(broken)} of {len(rows)} files, as {broken[0]}")
    return versions, owned, problems


_hashes: dict[tuple[int, int, int, int], str] = {}


def _wrong(path: Path, expected: str) -> str:
    try:
        status = path.stat()
    except OSError:
        # Bytecode that pip compiled belongs to a package, and may be deleted by anybody.
        return "" if path.suffix == ".pyc" else "is missing"
    if not expected:
        return ""
    algorithm, _, wanted = expected.partition("=")
    # What is linked from uv's cache has the same inode in every environment: it is read once.
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if key not in _hashes:
        digest = hashlib.new(algorithm, path.read_bytes()).digest()
        _hashes[key] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return "" if _hashes[key] == wanted else "has another content"


_OURS = (".torchenv", ".lock")


def files_below(prefix: Path) -> Iterator[Path]:
    """Yield every file but bytecode, and but what the engine keeps for itself."""
    site = _site(prefix)
    for folder, names, files in os.walk(prefix):
        here = Path(folder)
        names[:] = [
            name
            for name in names
            if name != "__pycache__" and not (here in (prefix, site) and name.startswith(_OURS))
        ]
        for name in files:
            if not name.endswith(".pyc") and not (here == prefix and name in _OURS):
                yield here / name


def _difference(versions: Mapping[str, str], *known: Mapping[str, str]) -> str:
    nearest = min(known, key=lambda each: len(set(each.items()) ^ set(versions.items())))
    changed = sorted({name for name, _ in set(nearest.items()) ^ set(versions.items())})
    return "neither the old packages nor the new: " + ", ".join(_pairs(changed, versions, nearest))


def _pairs(
    names: Iterable[str], there: Mapping[str, str], expected: Mapping[str, str]
) -> Iterator[str]:
    for name in names:
        yield f"{name} {there.get(name, 'missing')} for {expected.get(name, 'none')}"
