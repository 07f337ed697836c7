"""The verification cell: whether the notebook has it, and placing it below the cell that asked."""

from __future__ import annotations

import ast
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from torchenv_magic.notebook.front_end import FrontEnd
from torchenv_magic.project.notebook_cells import (
    VERIFICATION_SOURCE,
    VERIFICATION_TAG,
    is_verification_cell,
    is_verification_source,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "VERIFICATION_SOURCE",
    "VERIFICATION_TAG",
    "has_code_below",
    "has_verification_cell",
    "is_verification_cell",
    "is_verification_source",
    "place_verification_cell",
    "remember_placed",
]

LARGEST_NOTEBOOK_BYTES = 32 * 1024 * 1024
"""A larger notebook is not read: parsing it would hold up the cell by a second and more."""

_placed: WeakSet[Any] = WeakSet()


def has_verification_cell(notebook_path: Path | None) -> bool:
    """Return whether the saved notebook holds the verification cell, by its tag or its source.

    A missing, broken or very large file has none: a second cell is a smaller harm than an error.
    """
    if notebook_path is None:
        return False
    try:
        # Read through one handle: a size asked by name could be another file's by then.
        with notebook_path.open("rb") as file:
            text = file.read(LARGEST_NOTEBOOK_BYTES + 1)
        if len(text) > LARGEST_NOTEBOOK_BYTES:
            return False
        # The plain parser and not nbformat, whose import and validation take most of a second
        # and refuse notebooks that front ends open.
        notebook = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    return isinstance(cells, list) and any(map(is_verification_cell, cells))


def has_code_below(shell: InteractiveShell, source: str) -> bool:
    """Return whether a cell has statements behind the last one that calls `%torchenv`."""
    try:
        transformed: str = shell.transform_cell(source)  # type: ignore[no-untyped-call]
        statements = ast.parse(transformed).body
    except (SyntaxError, ValueError, RecursionError):
        return False
    calls = [any(_is_own_magic(node) for node in ast.walk(statement)) for statement in statements]
    return any(calls) and not calls[-1]


def _is_own_magic(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "run_line_magic"
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value == "torchenv"
    )


def place_verification_cell(shell: InteractiveShell, front_end: FrontEnd) -> bool:
    """Ask the front end to put the verification cell below the running one; return whether it was.

    Only for the magic's own run: from a callback the request would be delivered below whatever
    cell the person runs next.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the verification cell can only be placed by the running cell itself")
    if not front_end.interactive or shell in _placed:
        return False
    if has_verification_cell(front_end.notebook_path):
        return False
    shell.set_next_input(VERIFICATION_SOURCE, replace=False)
    remember_placed(shell)
    return True


def remember_placed(shell: InteractiveShell) -> None:
    """Remember that this kernel's notebook has the cell, saved or not."""
    _placed.add(shell)
