"""Describe the interpreter that runs this file: stdlib only, so any Python from 3.8 on can run it.

`environment.py` calls `describe()` for the running interpreter, and runs this file as a script for
another one. What it returns is JSON's own types: parsing it into records is the caller's matter.
"""

# os.path: this reads 400 files while a person waits, and pathlib doubles the time.
# ruff: noqa: PTH112, PTH113, PTH118, PTH119, PTH120, PTH122, PTH123

from __future__ import annotations

import os
import re
import sys
from typing import Any, Iterator  # noqa: UP035  (collections.abc's can't be subscripted in 3.8)

__all__ = ["describe", "describe_interpreter"]

# PEP 508's names. pip leaves `~orch-2.13.0.dist-info` behind when an uninstall is interrupted.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXTRA = re.compile(r";.*\bextra\b")


def describe() -> dict[str, Any]:
    """Return what this interpreter is, where it installs, and what is installed there."""
    # Not above: who asks for the interpreter alone pays for none of them.
    import importlib.util
    import shutil
    import sysconfig

    purelib = sysconfig.get_path("purelib")
    platlib = sysconfig.get_path("platlib")
    return {
        **describe_interpreter(),
        "kind": _kind(),
        "prefix": sys.prefix,
        "site_packages": purelib,
        "has_pip": importlib.util.find_spec("pip") is not None,
        # A wheel with compiled code goes to platlib: lib64 beside lib on Fedora.
        "writable": all(_can_add_files(_existing(path)) for path in {purelib, platlib}),
        "externally_managed": _externally_managed(),
        "free_bytes": shutil.disk_usage(_existing(platlib)).free,
        "packages": list(_packages(purelib, platlib)),
    }


def describe_interpreter() -> dict[str, Any]:
    """Return what this interpreter is, of which nothing has to be read from the disk."""
    return {
        "executable": sys.executable,
        # `3.12.0rc1`, `3.11.2+` (a build from between two releases, as Debian's once were)
        "version": sys.version.split()[0].rstrip("+"),
        "implementation": sys.implementation.name,
        "free_threaded": _free_threaded(),
    }


def _free_threaded() -> bool:
    flags = getattr(sys, "abiflags", None)  # Windows has none before 3.14
    if flags is None:
        import sysconfig

        return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return "t" in flags


def _kind() -> str:
    if os.path.isdir(os.path.join(sys.prefix, "conda-meta")):
        return "conda"
    if sys.prefix == sys.base_prefix:
        return "system"
    try:
        path = os.path.join(sys.prefix, "pyvenv.cfg")
        with open(path, encoding="utf-8", errors="replace") as file:
            keys = {line.partition("=")[0].strip() for line in file}
    except OSError:
        return "venv"
    return "uv venv" if "uv" in keys else "venv"


def _existing(path: str) -> str:
    """Return `path`, or the nearest directory above it that is there: the one to be written to."""
    while not os.path.isdir(path):
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    return path


def _can_add_files(directory: str) -> bool:
    """Tell whether files can be added to `directory`, without adding one."""
    if sys.platform == "win32":
        return _windows_can_add_files(directory)
    effective = os.access in os.supports_effective_ids
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=effective):
        return False
    # Root passes every permission check, also on a file system that is mounted read-only.
    return not os.statvfs(directory).f_flag & os.ST_RDONLY


def _windows_can_add_files(directory: str) -> bool:
    """Tell whether the access list grants adding files; `os.access` only reads the attribute."""
    if sys.platform != "win32":
        return False
    import ctypes
    from ctypes import wintypes

    # FILE_ADD_FILE | FILE_ADD_SUBDIRECTORY; share all; OPEN_EXISTING; FILE_FLAG_BACKUP_SEMANTICS
    # (without that flag a directory can't be opened at all).
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.CreateFileW.restype = wintypes.HANDLE
    kernel32.CreateFileW.argtypes = [
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.LPVOID,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.HANDLE,
    ]
    kernel32.CloseHandle.argtypes = [wintypes.HANDLE]
    handle = kernel32.CreateFileW(directory, 0x2 | 0x4, 0x7, None, 3, 0x02000000, None)
    if handle in (None, wintypes.HANDLE(-1).value):
        return False
    kernel32.CloseHandle(handle)
    return True


def _externally_managed() -> str | None:
    """Return what EXTERNALLY-MANAGED says (PEP 668), None where it is absent or doesn't bind."""
    if sys.prefix != sys.base_prefix:  # a virtual environment is its owner's
        return None
    import sysconfig

    path = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if not os.path.isfile(path):
        return None
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            parser.read_file(file)
        return parser.get("externally-managed", "Error").strip()
    except (OSError, configparser.Error):
        # PEP 668: the file's being there is what counts.
        return "The file EXTERNALLY-MANAGED forbids installing into this Python."


def _packages(*directories: str) -> Iterator[dict[str, Any]]:
    # Only where uv installs, not all of sys.path: uv neither counts nor removes anything elsewhere.
    for directory in dict.fromkeys(map(os.path.realpath, directories)):
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.endswith((".dist-info", ".egg-info")):
                package = _package(entry.path)
                if package is not None:
                    yield package


def _package(path: str) -> dict[str, Any] | None:
    """Return one installed package, None where its directory's name is not one's."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    if suffix == ".egg-info":
        # name-version-py3.11.egg-info: a directory, or (distutils) one file that is the metadata
        stem = re.sub(r"-py\d+\.\d+(-[^-]+)?$", "", stem)
        metadata = os.path.join(path, "PKG-INFO") if os.path.isdir(path) else path
        complete = False  # nothing says which files are the package's
    else:
        metadata = os.path.join(path, "METADATA")
        complete = os.path.isfile(os.path.join(path, "RECORD"))
    headers = _headers(metadata)
    name, _, version = stem.rpartition("-")
    if not name and headers:
        name, version = (" ".join(_field(headers, key)) for key in ("name", "version"))
    if not (_NAME.fullmatch(name) and version):
        return None
    return {
        "name": re.sub(r"[-_.]+", "-", name).lower(),
        "version": version,
        "requires": [
            text for text in _field(headers or "", "requires-dist") if not _EXTRA.search(text)
        ],
        "installer": _first_line(os.path.join(path, "INSTALLER")),
        "complete": complete and headers is not None,
        "metadata_directory": path,
    }


def _headers(path: str) -> str | None:
    """Return the part of the metadata above its description, None where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().partition("\n\n")[0]
    except OSError:
        return None


def _field(headers: str, name: str) -> list[str]:
    """Return each value of a field, as `email.parser` would, in a tenth of its time."""
    values = re.findall(rf"^{name}:(.*(?:\n[ \t].*)*)", headers, re.IGNORECASE | re.MULTILINE)
    return [" ".join(value.split()) for value in values]


def _first_line(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(200).strip() or None
    except OSError:
        return None


if __name__ == "__main__":
    import json

    # On a line of its own, whatever a .pth file has printed.
    sys.stdout.write("\n" + json.dumps(describe()))
