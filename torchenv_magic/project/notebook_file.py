"""The file of a notebook: read strictly, edited without a byte of the rest, replaced as a whole.

nbformat would write the whole notebook anew: in its own order, its own indent, its own escapes. A
diff would then show every line, where two cells have come.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torchenv_magic.environment import shown_path
from torchenv_magic.errors import NotebookError
from torchenv_magic.project.json_text import (
    BYTE_ORDER_MARK,
    Entry,
    beginning,
    insert_item,
    insert_member,
    items_at,
    members_at,
    remove_entry,
    replace_value,
    style_of,
)
from torchenv_magic.project.whole_file import UnfitError, read_whole, replace_whole

__all__ = [
    "NotebookFile",
    "read_notebook_file",
    "shown_notebook",
    "source_of",
    "write_notebook_file",
]

LARGEST_BYTES = 256 * 1024 * 1024
"""A notebook is held in memory several times while it is edited."""

_FORMAT = 4
_IDS_SINCE = 5
"""The minor version of the format from which on each cell has an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotebookFile:
    """A notebook as its file has it. Each edit returns another one; nothing is written by them."""

    path: Path
    """As named; a link is followed when the file is written."""
    text: str
    """What is to stand in the file."""
    read: bytes
    """What stood there when it was read."""
    data: dict[str, Any]
    """`text`, parsed."""

    @property
    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = self.data["metadata"]
        return found

    @property
    def cells(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.data["cells"]
        return found

    @property
    def is_changed(self) -> bool:
        return self.text.encode("utf-8") != self.read

    @property
    def has_cell_ids(self) -> bool:
        """Whether cells of this version of the format have an `id`."""
        minor: int = self.data.get("nbformat_minor", 0)
        return minor >= _IDS_SINCE

    def with_metadata(self, key: str, value: object | None) -> NotebookFile:
        """Return the notebook with that key of its metadata set, or removed where it is None."""
        if value is None and key not in self.metadata:
            return self
        if key in self.metadata and _is_same(self.metadata[key], value):
            return self
        place = self._member("metadata").value
        members = members_at(self.text, place)
        keys = [member.key for member in members]
        if value is None:
            return self._with(remove_entry(self.text, place, members, keys.index(key)))
        style = style_of(self.text)
        # As nbformat sorts them, so that a front end that saves it moves nothing.
        value = _sorted(value)
        if key in keys:
            return self._with(
                replace_value(self.text, members[keys.index(key)], value, style=style)
            )
        index = len(keys)
        if keys == sorted(keys):
            index = sum(each < key for each in keys)
        return self._with(insert_member(self.text, place, index, key, value, style=style))

    def with_cell(self, index: int, cell: Mapping[str, Any]) -> NotebookFile:
        """Return the notebook with a cell more, before the one that has that index now.

        Its source is written as the other cells have theirs, a text or a list of lines.
        """
        place = self._member("cells").value
        as_text = any(isinstance(each.get("source"), str) for each in self.cells)
        written = {**cell, "source": _as_source(source_of(cell), as_text=as_text)}
        style = style_of(self.text)
        return self._with(insert_item(self.text, place, index, _sorted(written), style=style))

    def with_source(self, index: int, source: str) -> NotebookFile:
        """Return the notebook with another source in that cell, whose outputs stay.

        Raises
        ------
        NotebookError
            The cell has one of its keys twice.
        """
        cell = self.cells[index]
        if source_of(cell) == source:
            return self
        place = items_at(self.text, self._member("cells").value)[index].value
        members = members_at(self.text, place)
        written = _as_source(source, as_text=isinstance(cell.get("source"), str))
        style = style_of(self.text)
        if "source" not in cell:
            return self._with(
                insert_member(self.text, place, len(members), "source", written, style=style)
            )
        _refuse_twins(members, self.path, f"cell {index + 1}")
        entry = next(member for member in members if member.key == "source")
        return self._with(replace_value(self.text, entry, written, style=style))

    def without_cell(self, index: int) -> NotebookFile:
        """Return the notebook without that cell, and without what it has put out."""
        place = self._member("cells").value
        return self._with(remove_entry(self.text, place, items_at(self.text, place), index))

    def _member(self, key: str) -> Entry:
        members = members_at(self.text, beginning(self.text))
        return next(member for member in members if member.key == key)

    def _with(self, text: str) -> NotebookFile:
        return replace(self, text=text, data=json.loads(text.removeprefix(BYTE_ORDER_MARK)))


def source_of(cell: Mapping[str, Any]) -> str:
    """Return the source of a cell, which its file has as a text or as a list of lines."""
    source = cell.get("source", "")
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def shown_notebook(path: Path) -> str:
    """Return the path as a message may hold it: a file's name can have control characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in shown_path(path))


def _as_source(source: str, *, as_text: bool) -> str | list[str]:
    return source if as_text else source.splitlines(keepends=True)


def _sorted(value: object) -> Any:  # noqa: ANN401  (JSON)
    return json.loads(json.dumps(value, sort_keys=True))


def _is_same(one: object, other: object) -> bool:
    """Whether both are the same JSON; `1 == True` is Python's."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# ----------------------------------------------------------------------------------------- reading


def read_notebook_file(path: Path) -> NotebookFile:
    """Read and check the notebook at `path`.

    Raises
    ------
    NotebookError
        There is none, it can't be read, or it is no notebook that could be edited safely.
    """
    content = _read(path)
    name = shown_notebook(path)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotebookError(
            f"`{name}` is not in UTF-8, as a notebook is: byte {error.start} is none of it",
            hint="open it where it was written, and save it as UTF-8",
        ) from None
    data = _parsed(text, name)
    _check_format(data, name)
    _check_shape(data, name)
    members = members_at(text, beginning(text))
    _refuse_twins(members, path, "the notebook")
    metadata = next(member for member in members if member.key == "metadata")
    _refuse_twins(members_at(text, metadata.value), path, "its metadata")
    return NotebookFile(path=path, text=text, read=content, data=data)


def _read(path: Path) -> bytes:
    name = shown_notebook(path)
    try:
        return read_whole(path, largest=LARGEST_BYTES)
    except FileNotFoundError:
        raise NotebookError(
            f"There is no notebook `{name}`", hint="check the name, and the folder it is seen from"
        ) from None
    except OSError as error:
        raise NotebookError(
            f"`{name}` can't be read: {error.strerror}", hint="check who may read it"
        ) from None
    except UnfitError as unfit:
        message, hint = f"`{name}` is a device or a pipe, and no file", "name a notebook's file"
        if unfit.kind == "folder":
            message, hint = f"`{name}` is a folder, and no notebook", "name the notebooks in it"
        elif unfit.kind == "too large":
            message = f"`{name}` is larger than {LARGEST_BYTES // 1024**2} MB, the largest to edit"
            hint = "clear its outputs in Jupyter, and save it"
        raise NotebookError(message, hint=hint) from None


_CONFLICT = re.compile(r"^(?:<{7}|\|{7}|={7}|>{7})(?!\S)", re.MULTILINE)


_MARGIN = 60


def _loads(text: str, *, frames: int) -> Any:  # noqa: ANN401  (JSON)
    """Parse it deeper in the stack than any edit will: none is the first to find it too deep."""
    return _loads(text, frames=frames - 1) if frames else json.loads(text)


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        data = _loads(text.removeprefix(BYTE_ORDER_MARK), frames=_MARGIN)
    except RecursionError:
        raise NotebookError(
            f"`{name}` is nested too deeply to be read", hint="name another notebook"
        ) from None
    except ValueError as error:
        # No line of JSON begins so: within a text a line break is an escape.
        if conflict := _CONFLICT.search(text):
            line = text.count("\n", 0, conflict.start()) + 1
            raise NotebookError(
                f"`{name}` has the marks of a merge conflict, the first one in line {line}",
                hint="resolve the conflict first; `nbdime` merges notebooks cell by cell",
            ) from None
        if not text.strip():
            raise NotebookError(
                f"`{name}` is empty", hint="open it in Jupyter, which makes a notebook of it"
            ) from None
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise NotebookError(
            f"`{name}` is not JSON, as a notebook is: it can't be read{where}",
            hint="bring back an earlier version of it, from git or Jupyter's checkpoints",
        ) from None
    if not isinstance(data, dict):
        _refuse_shape(name, "it holds no object")
    return data


def _check_format(data: Mapping[str, Any], name: str) -> None:
    major, minor = data.get("nbformat"), data.get("nbformat_minor", 0)
    if type(major) is not int or type(minor) is not int:
        _refuse_shape(name, "it does not say its `nbformat`")
    if major < _FORMAT:
        raise NotebookError(
            f"`{name}` is written in version {major} of the notebook format, from before 2015",
            hint="bring it to version 4: `jupyter nbconvert --to notebook --inplace NOTEBOOK`",
        )
    if major > _FORMAT:
        raise NotebookError(
            f"`{name}` is written in version {major} of the notebook format, and this release "
            f"knows version {_FORMAT}",
            hint="install a newer torchenv-magic",
        )


def _check_shape(data: Mapping[str, Any], name: str) -> None:
    if not isinstance(data.get("metadata"), dict):
        _refuse_shape(name, "it has no `metadata`")
    cells = data.get("cells")
    if not isinstance(cells, list):
        _refuse_shape(name, "it has no list of `cells`")
    for index, cell in enumerate(cells):
        if not isinstance(cell, dict) or not isinstance(cell.get("cell_type"), str):
            _refuse_shape(name, f"cell {index + 1} is none")


def _refuse_shape(name: str, reason: str) -> NoReturn:
    raise NotebookError(
        f"`{name}` is JSON, and no notebook: {reason}", hint="name a notebook that Jupyter opens"
    )


def _refuse_twins(members: Sequence[Entry], path: Path, where: str) -> None:
    """Refuse a key that is there twice: of two, one reader takes the first, another the last."""
    seen: set[str] = set()
    for member in members:
        if member.key in seen:
            key = "".join(sign if sign.isprintable() else "?" for sign in member.key)
            raise NotebookError(
                f"`{shown_notebook(path)}` says `{key}` twice in {where}, so which one holds can't "
                "be known",
                hint="open it in Jupyter and save it: one of the two is left",
            )
        seen.add(member.key)


# ----------------------------------------------------------------------------------------- writing


def write_notebook_file(file: NotebookFile) -> None:
    """Replace the file by what `file` has as its text, as a whole; nothing where it is the same.

    Raises
    ------
    NotebookError
        It may not be written, has changed since it was read, or there is no room: it is as it was.
    """
    if not file.is_changed:
        return
    name = shown_notebook(file.path)
    try:
        replace_whole(file.path, file.text.encode("utf-8"), read=file.read)
    except OSError as error:
        hint = "check who may write it, and make files in its folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space"
        raise NotebookError(
            f"`{name}` can't be written, so it is as it was: {error.strerror}", hint=hint
        ) from None
    except UnfitError as unfit:
        message, hint = f"`{name}` has changed since it was read", "run the same line again"
        if unfit.kind == "read-only":
            message, hint = f"`{name}` is read-only", "make it writable, or work on a copy"
        raise NotebookError(f"{message}, so nothing was written", hint=hint) from None
