"""Say which file `import torch` would take, without importing it: stdlib only, Python 3.8 on.

`examination.py` calls `find_torch()` in the kernel's own process, or runs this file as a script in
another interpreter: one that starts as a person's does, so not isolated (`-I`), where neither the
user site nor PYTHONPATH would be seen.
"""

# os.path: any Python runs this, and a str is what the finders take.
# ruff: noqa: PTH109, PTH120

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.path.dirname(os.path.abspath(__file__))]:  # noqa: PTH100
    # Before any other import: our folder is not on the path of the Python that we speak for.
    del sys.path[0]

import json
import site
from typing import Any

__all__ = ["find_torch"]


def find_torch(extra: list[str]) -> dict[str, Any]:
    """Return where `torch` would be imported from, with `extra` searched before everything.

    The finders are asked, and not the list of folders alone: an editable install is one of them.
    """
    before = list(sys.path)
    sys.path[:0] = extra
    try:
        origin, namespace = _origin()
    finally:
        sys.path[:] = before
    return {
        "origin": origin,
        "namespace": namespace,
        "user_site": site.getusersitepackages() if site.ENABLE_USER_SITE else None,
        "folder": _folder(),
    }


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _origin() -> tuple[str | None, bool]:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            # Not importlib.util.find_spec: it answers for what is loaded, which may be gone.
            spec = find("torch", None) if find is not None else None
        except Exception:  # noqa: BLE001, S112  (a stranger's import hook)
            continue
        if spec is None:
            continue
        places = list(spec.submodule_search_locations or [])
        if spec.origin and spec.has_location:
            return os.path.abspath(spec.origin), False  # noqa: PTH100
        return (os.path.abspath(places[0]) if places else None), True  # noqa: PTH100
    return None, False


if __name__ == "__main__":
    question = json.loads(sys.stdin.readline())
    # On a line of its own, whatever a .pth file has printed.
    sys.stdout.write("\n" + json.dumps(find_torch(question["extra"])))
