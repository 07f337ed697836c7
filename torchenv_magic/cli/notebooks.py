"""`torchenv notebook`: the set-up and verification cells of notebooks that no kernel runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchenv_magic.cli.talk import FAILED, print_data, talk
from torchenv_magic.errors import NotebookError, RequestError
from torchenv_magic.serialization import to_json
from torchenv_magic.words import Words

if TYPE_CHECKING:
    from torchenv_magic.project.notebook_cells import Edited, Finding

__all__ = ["notebook"]

_NAMES = {"setup": "set-up cell", "verification": "verification cell", "lock": "lock"}


def notebook(words: Words) -> int:
    """Add, check or remove; return 1 where a check finds anything."""
    if words.lock and words.action != "remove":
        raise RequestError(
            f"`--lock` is not an option of `torchenv notebook {words.action}`",
            hint="`torchenv notebook remove NOTEBOOK --lock` takes a lock away",
        )
    if words.action == "add":
        return _add(words)
    return _check(words) if words.action == "check" else _remove(words)


def _add(words: Words) -> int:
    from torchenv_magic.project.notebook_cells import add_cells
    from torchenv_magic.project.notebook_file import read_notebook_file

    (path,) = words.notebooks
    edited = add_cells(read_notebook_file(path), words.request if words.named else None)
    return _write(words, [edited], _edit_to_json(edited))


def _remove(words: Words) -> int:
    from torchenv_magic.project.notebook_cells import remove_cells
    from torchenv_magic.project.notebook_file import read_notebook_file

    # All are read before one is written: a name that is misspelt leaves all as they were.
    files = [read_notebook_file(path) for path in _each(words.notebooks)]
    edited = [remove_cells(file, lock=words.lock) for file in files]
    return _write(words, edited, {"notebooks": [_edit_to_json(each) for each in edited]})


def _write(words: Words, edited: Sequence[Edited], data: dict[str, Any]) -> int:
    from torchenv_magic.project.notebook_file import write_notebook_file

    for each in edited:
        write_notebook_file(each.file)
    print_data(words, "\n".join(map(_told, edited)), data)
    if not words.json and any(each.file.is_changed for each in edited):
        talk("Where it is open in a front end, load it anew there.")
    return 0


def _check(words: Words) -> int:
    from torchenv_magic.project.notebook_cells import Finding, check_cells
    from torchenv_magic.project.notebook_file import read_notebook_file, shown_notebook

    lines: list[str] = []
    data: list[dict[str, Any]] = []
    for path in _each(words.notebooks):
        findings: tuple[Finding, ...]
        try:
            findings = check_cells(read_notebook_file(path))
        except NotebookError as error:
            # One that can't be read is what a check is to find, and the others are checked still.
            findings = (Finding(code=error.code, message=error.message, hint=error.hint),)
        lines += _check_told(shown_notebook(path), findings)
        data.append(
            {"notebook": str(path), "ok": not findings, "findings": to_json(findings)},
        )
    print_data(words, "\n".join(lines), {"notebooks": data})
    return 0 if all(each["ok"] for each in data) else FAILED


def _each(paths: Sequence[Path]) -> list[Path]:
    """Return each notebook once, however often it is named: the first edit changes it."""
    return list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _check_told(name: str, findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return [f"{name}: its cells and its lock are as they should be"]
    lines = [f"{name}:"]
    for each in findings:
        lines += [f"  {each.message}", f"    hint: {each.hint}"]
    return lines


def _told(edited: Edited) -> str:
    from torchenv_magic.project.notebook_file import shown_notebook

    name = shown_notebook(edited.file.path)
    parts = [
        f"{_NAMES[each.part]} {each.change}" + _place(each.index, gone=each.change == "removed")
        for each in edited.changes
    ]
    if not edited.file.is_changed:
        return f"{name}: nothing to do"
    return f"{name}: {', '.join(parts)}"


def _place(index: int | None, *, gone: bool) -> str:
    return "" if index is None or gone else f" (cell {index + 1})"


def _edit_to_json(edited: Edited) -> dict[str, Any]:
    return {
        "notebook": str(edited.file.path),
        "written": edited.file.is_changed,
        "changes": to_json(edited.changes),
    }
