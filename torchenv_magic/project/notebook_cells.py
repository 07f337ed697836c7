"""The cells that install and verify when a notebook is run, and whether it has them as it should.

Pure: a notebook comes in, another one or what is wrong with it goes out.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import FAMILY_MEMBERS
from torchenv_magic.errors import LockError, NotebookError, RequestError
from torchenv_magic.project.notebook_file import NotebookFile, shown_notebook, source_of
from torchenv_magic.selection import Request
from torchenv_magic.words import HelpRequested, Words, parse_words

if TYPE_CHECKING:
    from torchenv_magic.project.lock import NotebookLock

__all__ = [
    "SETUP_TAG",
    "VERIFICATION_SOURCE",
    "VERIFICATION_TAG",
    "CellChange",
    "Edited",
    "Finding",
    "add_cells",
    "check_cells",
    "imported_family",
    "is_verification_cell",
    "is_verification_source",
    "remove_cells",
    "setup_words",
]

_LOAD = "%load_ext torchenv_magic"
SETUP_TAG = "torchenv-setup"
VERIFICATION_SOURCE = f"{_LOAD}\n%torchenv verify"
VERIFICATION_TAG = "torchenv-verify"

_ASSIGNED = r"([ \t]*)((?:[\w.]+[ \t]*=[ \t]*)?)%torchenv[ \t]+"
_SETUP_LINE = re.compile(_ASSIGNED + r"((?:install|restore)(?!\S).*)")
_VERIFICATION_LINE = re.compile(_ASSIGNED + r"verify(?!\S).*")
_WITH_BREAK = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
_LOAD_LINE = re.compile(r"[ \t]*%(?:re)?load_ext[ \t]+torchenv_magic[ \t]*")
_SCRIPT = re.compile(r"^# /// script[ \t]*$", re.MULTILINE)
# Their body is Python; that of others is a shell's, a page's, a file's.
_PYTHON_MAGICS = frozenset({"capture", "prun", "time", "timeit"})

_Cell = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChange:
    """What became of one of our cells, or of the lock."""

    part: Literal["setup", "verification", "lock"]
    change: Literal["added", "updated", "kept", "removed"]
    index: int | None = None
    """Where the cell stands, counted from 0; where it stood, if it was removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A notebook as it is to be, which is not written yet."""

    file: NotebookFile
    changes: tuple[CellChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is missing or stale."""

    code: str
    message: str
    hint: str


# ------------------------------------------------------------------------------ which cell is which


def is_verification_cell(cell: object) -> bool:
    """Return whether a cell in nbformat's JSON form is the verification cell."""
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return False
    return _has_tag(cell, VERIFICATION_TAG) or is_verification_source(source_of(cell))


def is_verification_source(source: str) -> bool:
    """Return whether that is what stands in the verification cell."""
    return _lines(source) == _lines(VERIFICATION_SOURCE)


def _lines(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if line.strip()]


def _has_tag(cell: _Cell, tag: str) -> bool:
    """Whether it is code with that tag: a text that somebody has tagged so is no cell of ours."""
    if cell.get("cell_type") != "code":
        return False
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return isinstance(tags, list) and tag in tags


def _is_setup_source(source: str) -> bool:
    """Return whether it installs and does nothing else, as a cell that a person wrote may."""
    lines = [line for line in _lines(source) if not line.startswith("#")]
    return any(map(_SETUP_LINE.fullmatch, lines)) and all(
        _SETUP_LINE.fullmatch(line) or _LOAD_LINE.fullmatch(line) for line in lines
    )


def _tagged(cells: Sequence[_Cell], tag: str) -> list[int]:
    return [index for index, cell in enumerate(cells) if _has_tag(cell, tag)]


def _with_both(cells: Sequence[_Cell]) -> list[int]:
    """Return which cells would have to be both of ours."""
    setup, verification = _tagged(cells, SETUP_TAG), _tagged(cells, VERIFICATION_TAG)
    return [index for index in setup if index in verification]


def _find(cells: Sequence[_Cell]) -> tuple[list[int], list[int]]:
    """Return where the set-up and the verification cells stand: by tag, else by what they say."""
    code = [index for index, cell in enumerate(cells) if cell.get("cell_type") == "code"]
    setup = _tagged(cells, SETUP_TAG) or [
        index for index in code if _is_setup_source(source_of(cells[index]))
    ]
    verification = _tagged(cells, VERIFICATION_TAG) or [
        index for index in code if is_verification_source(source_of(cells[index]))
    ]
    return setup, verification


def _setup_line(source: str) -> str | None:
    """Return what the first line that installs says behind `%torchenv`."""
    lines = _WITH_BREAK.findall(source)
    if (found := _find_setup_line(lines)) is None:
        return None
    start, end, match = found
    parts = (match[3], *(line.rstrip("\r\n") for line in lines[start + 1 : end]))
    return " ".join(part.removesuffix("\\").strip() for part in parts)


def _find_setup_line(lines: Sequence[str]) -> tuple[int, int, re.Match[str]] | None:
    """Return where the line that installs begins and ends, with the lines that continue it."""
    for start, line in enumerate(lines):
        if match := _SETUP_LINE.fullmatch(line.rstrip("\r\n")):
            end = start + 1
            while end < len(lines) and lines[end - 1].rstrip("\r\n").endswith("\\"):
                end += 1
            return start, end, match
    return None


def setup_words(cells: Sequence[_Cell]) -> Words | None:
    """Return what the set-up cell says, None where there is none or it installs nothing.

    A notebook may come from anybody: an address in it is refused, as everything that is no request.

    Raises
    ------
    RequestError
    """
    setup, _ = _find(cells)
    line = _setup_line(source_of(cells[setup[0]])) if setup else None
    return None if line is None else _parsed(line)


def _parsed(line: str) -> Words:
    line = line.expandtabs(1)
    if not line.isprintable():  # before an error says any of it
        raise RequestError(
            f"The set-up cell's line `{_shown(line)}` holds control characters",
            hint="write it anew: `torchenv notebook add NOTEBOOK torchvision`",
        )
    try:
        words = parse_words(shlex.split(line), notebook=True)
    except (ValueError, HelpRequested):
        raise RequestError(
            f"The set-up cell's line `{_shown(line)}` can't be read",
            hint="write it anew: `torchenv notebook add NOTEBOOK torchvision`",
        ) from None
    for text in words.request.requirements:
        parse_requirement(text, trusted=False)
    return words


def _shown(text: str) -> str:
    shown = "".join(sign if sign.isprintable() else "?" for sign in text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


# ------------------------------------------------------------------------------ adding and removing


def add_cells(file: NotebookFile, request: Request | None) -> Edited:
    """Return the notebook with both cells, as they should be for that request.

    Without a request a cell that a person has written is left as it is, and a new one restores
    the notebook's lock where it has one.

    Raises
    ------
    NotebookError, LockError, RequestError
    """
    # `%load_ext` reads this module for what stands in a cell, and needs no lock.
    from torchenv_magic.project.lock import read_lock

    _check_language(file)
    for tag, what in ((SETUP_TAG, "set-up"), (VERIFICATION_TAG, "verification")):
        if (count := len(_tagged(file.cells, tag))) > 1:
            raise NotebookError(
                f"`{shown_notebook(file.path)}` has {count} {what} cells, and which one counts "
                "can't be known",
                hint="delete all but one of them",
            )
    if both := _with_both(file.cells):
        raise NotebookError(
            f"Cell {both[0] + 1} of `{shown_notebook(file.path)}` has both tags, `{SETUP_TAG}` and "
            f"`{VERIFICATION_TAG}`",
            hint="take one of its tags away",
        )
    lock = read_lock(file.metadata) if request is None else None
    line = _install_line(request) if request else "%torchenv restore" if lock else None
    file, setup = _with_setup(file, line or "%torchenv install", request, lock)
    file, verification = _with_verification(file, setup.index or 0)
    if verification.index is not None and setup.index is not None:
        pushed = verification.change == "added" and verification.index <= setup.index
        setup = CellChange(part="setup", change=setup.change, index=setup.index + pushed)
    return Edited(file=file, changes=(setup, verification))


def _with_setup(
    file: NotebookFile, line: str, request: Request | None, lock: NotebookLock | None
) -> tuple[NotebookFile, CellChange]:
    setup, _ = _find(file.cells)
    if not setup:
        index = _place(file.cells)
        cell = _new_cell(file, f"{_LOAD}\n{line}", SETUP_TAG)
        return file.with_cell(index, cell), CellChange(part="setup", change="added", index=index)
    index = setup[0]
    source = source_of(file.cells[index])
    wanted = source
    if request is not None:
        if _setup_line(source) is None:
            _check_plain(file, index)
        wanted = _with_line(source, line)
    elif _is_untouched(source, lock):
        wanted = f"{_LOAD}\n{line}"
    file, change = _with_source(file, index, wanted)
    return file, CellChange(part="setup", change=change, index=index)


def _with_verification(file: NotebookFile, setup: int) -> tuple[NotebookFile, CellChange]:
    _, verification = _find(file.cells)
    if not verification:
        index = setup + 1
        cell = _new_cell(file, VERIFICATION_SOURCE, VERIFICATION_TAG)
        file = file.with_cell(index, cell)
        return file, CellChange(part="verification", change="added", index=index)
    index = verification[0]
    wanted = source_of(file.cells[index])
    if not _verifies(wanted):
        _check_plain(file, index)
        wanted = _with_lines_above(wanted, VERIFICATION_SOURCE)
    file, change = _with_source(file, index, wanted)
    return file, CellChange(part="verification", change=change, index=index)


def _with_source(
    file: NotebookFile, index: int, source: str
) -> tuple[NotebookFile, Literal["updated", "kept"]]:
    edited = file.with_source(index, source)
    return edited, "kept" if edited is file else "updated"


def _verifies(source: str) -> bool:
    return any(map(_VERIFICATION_LINE.fullmatch, _lines(source)))


def _check_plain(file: NotebookFile, index: int) -> None:
    """Refuse to put a line above `%%time` or `%%bash`, which have to stand first."""
    if source_of(file.cells[index]).lstrip().startswith("%%"):
        raise NotebookError(
            f"Cell {index + 1} of `{shown_notebook(file.path)}` is tagged as ours, and begins with "
            "a magic for all of it",
            hint="take its tag away, or delete it",
        )


def _is_untouched(source: str, lock: NotebookLock | None) -> bool:
    """Whether the cell is as it was added, and asks for nothing that the lock would not bring.

    Then it restores where there is a lock, and installs where there is none.
    """
    lines = _lines(source)
    if lines in ([_LOAD, "%torchenv install"], [_LOAD, "%torchenv restore"]):
        return True
    line = _setup_line(source)
    if lock is None or line is None:
        return False
    try:
        request = _parsed(line).request
        # A backend that is named is meant; a lock leaves it to each machine.
        as_added = request.backend is None and lines == [_LOAD, _install_line(request)]
    except RequestError:
        return False
    return as_added and not tuple(_lacking(lock, request))


def _with_line(source: str, line: str) -> str:
    """Return the source with that line in place of the one that installs; the rest stays."""
    lines = _WITH_BREAK.findall(source)
    if (found := _find_setup_line(lines)) is None:
        return _with_lines_above(source, f"{_LOAD}\n{line}")
    start, end, match = found
    written = lines[end - 1]
    ending = written[len(written.rstrip("\r\n")) :]
    indent, assigned = match[1], match[2]
    new = [f"{indent}{assigned}{line}{ending}"]
    if not any(_LOAD_LINE.fullmatch(each.rstrip("\r\n")) for each in lines[:start]):
        new.insert(0, f"{indent}{_LOAD}{ending or chr(10)}")
    return "".join([*lines[:start], *new, *lines[end:]])


def _with_lines_above(source: str, lines: str) -> str:
    """Return the source below these lines: what a person has written there is not ours to lose."""
    return f"{lines}\n{source}" if source.strip() else lines


def _place(cells: Sequence[_Cell]) -> int:
    """Return where the set-up cell goes: before the first code, but for a script's metadata."""
    for index, cell in enumerate(cells):
        if cell.get("cell_type") == "code" and not _SCRIPT.search(source_of(cell)):
            return index
    return len(cells)


def _new_cell(file: NotebookFile, source: str, tag: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": [tag]},
        "outputs": [],
        "source": source,
    }
    if file.has_cell_ids:
        # One that is the same each time: to add twice from one file is the same bytes.
        taken = [each.get("id") for each in file.cells]
        names = (tag, *(f"{tag}-{number}" for number in range(2, len(taken) + 3)))
        cell["id"] = next(name for name in names if name not in taken)
    return cell


def _install_line(request: Request) -> str:
    """Return the line of a notebook that asks for it.

    Raises
    ------
    RequestError
        IPython would read something else: it fills in braces and variables.
    """
    texts = list(request.requirements)
    if texts[:1] == ["torch"]:  # which is always in
        texts = texts[1:]
    for text in texts:
        if re.search(r"[{}$\\]", text):
            raise RequestError(
                f"`{_shown(text)}` can't stand in a notebook's line, where IPython fills in `$` "
                "and braces",
                hint="ask for the package by its name and version",
            )
    backend = [str(request.backend)] if request.backend else []
    return shlex.join(["%torchenv", "install", *backend, *texts]).replace(
        "'%torchenv'", "%torchenv"
    )


def _check_language(file: NotebookFile) -> None:
    """Refuse a notebook for R or Julia, whose kernels know no `%torchenv`."""
    # The kernel's own word goes first: Sage has a language by name, and runs Python.
    for key, field in (("language_info", "name"), ("kernelspec", "language")):
        table = file.metadata.get(key)
        language = table.get(field) if isinstance(table, dict) else None
        if not isinstance(language, str):
            continue
        if "python" in language.lower():
            return
        raise NotebookError(
            f"`{shown_notebook(file.path)}` is a notebook for {_shown(language)}, and these "
            "cells are Python",
            hint="name a notebook with a Python kernel",
        )


def remove_cells(file: NotebookFile, *, lock: bool) -> Edited:
    """Return the notebook without what is tagged as ours, and without its lock if `lock` says so.

    Raises
    ------
    LockError
        The lock is of a newer schema: what it holds is not known here.
    """
    from torchenv_magic.project.lock import METADATA_KEY, check_schema

    changes = []
    cells = file.cells
    for index in reversed(range(len(cells))):
        if _has_tag(cells[index], SETUP_TAG):
            changes.append(CellChange(part="setup", change="removed", index=index))
        elif _has_tag(cells[index], VERIFICATION_TAG):
            changes.append(CellChange(part="verification", change="removed", index=index))
        else:
            continue
        file = file.without_cell(index)
    changes.reverse()
    if lock and METADATA_KEY in file.metadata:
        check_schema(file.metadata)
        file = file.with_metadata(METADATA_KEY, None)
        changes.append(CellChange(part="lock", change="removed"))
    return Edited(file=file, changes=tuple(changes))


# ----------------------------------------------------------------------------------------- checking


def check_cells(file: NotebookFile) -> tuple[Finding, ...]:
    """Return what of the cells and the lock is missing or stale, nothing where all is well."""
    from torchenv_magic.project.lock import read_lock

    findings = list(_cell_findings(file))
    lock, known = None, True
    try:
        lock = read_lock(file.metadata)
    except LockError as error:
        findings.append(Finding(code="lock", message=error.message, hint=error.hint))
        known = False
    return (*findings, *_lock_findings(file, lock, known=known))


def _cell_findings(file: NotebookFile) -> Iterator[Finding]:
    setup, verification = _find(file.cells)
    add = "run `torchenv notebook add` on it"
    if not setup:
        yield Finding(code="setup-missing", message="It has no set-up cell", hint=add)
    if not verification:
        yield Finding(code="verification-missing", message="It has no verification cell", hint=add)
    for tag, what, code in (
        (SETUP_TAG, "set-up", "setup-twice"),
        (VERIFICATION_TAG, "verification", "verification-twice"),
    ):
        if len(numbers := _tagged(file.cells, tag)) > 1:
            yield Finding(
                code=code,
                message=f"It has {len(numbers)} {what} cells: {_numbered(numbers)}",
                hint="delete all but one of them",
            )
    if both := _with_both(file.cells):
        yield Finding(
            code="both-tags",
            message=f"Cell {both[0] + 1} has both tags, `{SETUP_TAG}` and `{VERIFICATION_TAG}`",
            hint="take one of its tags away",
        )
        return
    first = next(iter(_importing(file.cells)), None)
    if setup and first is not None and first[0] < setup[0]:
        index, name = first
        yield Finding(
            code="setup-late",
            message=f"Cell {index + 1} imports {name} before cell {setup[0] + 1} installs it",
            hint="move the set-up cell up",
        )
    if setup and verification and verification[0] < setup[0]:
        yield Finding(
            code="verification-early",
            message=f"Cell {verification[0] + 1} verifies before cell {setup[0] + 1} installs",
            hint="move the verification cell below the set-up cell",
        )
    if verification and not _verifies(source_of(file.cells[verification[0]])):
        yield Finding(
            code="verification-stale",
            message=f"The verification cell, cell {verification[0] + 1}, verifies nothing",
            hint=add,
        )


def _lock_findings(
    file: NotebookFile, lock: NotebookLock | None, *, known: bool
) -> Iterator[Finding]:
    """Say what of the set-up cell can't be done, or is not in the lock; `known`: it can be read."""
    setup, _ = _find(file.cells)
    words = None
    if setup:
        line = _setup_line(source_of(file.cells[setup[0]]))
        try:
            words = None if line is None or "{" in line or "$" in line else _parsed(line)
        except RequestError as error:
            yield Finding(code="setup-stale", message=error.message, hint=error.hint)
        if line is None:
            yield Finding(
                code="setup-stale",
                message=f"The set-up cell, cell {setup[0] + 1}, installs nothing",
                hint="name what it is to install: `torchenv notebook add NOTEBOOK auto`",
            )
    if lock is None:
        if known and words is not None and words.word == "restore" and not words.notebooks:
            yield Finding(
                code="lock-missing",
                message="The set-up cell restores a lock, and the notebook has none",
                hint="run `torchenv lock` on it, or `torchenv notebook add` to install instead",
            )
        return
    asked = words.request if words is not None and words.word == "install" else None
    if asked is not None and asked.backend is not None and lock.of(asked.backend) is None:
        yield Finding(
            code="lock-stale",
            message=f"The set-up cell asks for {asked.backend}, which the lock has not",
            hint=f"lock it for that build too: `torchenv lock NOTEBOOK {asked.backend}`",
        )
    lacking = list(_lacking(lock, asked)) if asked is not None else []
    held = {package.name for each in lock.backends for package in each.packages}
    lacking += [
        name
        for name in dict.fromkeys(name for _, name in _importing(file.cells))
        if name not in held and name not in lacking
    ]
    if lacking:
        yield Finding(
            code="lock-stale",
            message=f"The notebook uses {', '.join(map(_shown, lacking))}, which its lock has not",
            hint="install it, then run `torchenv lock` on the notebook",
        )


def _numbered(indices: Sequence[int]) -> str:
    return ", ".join(str(index + 1) for index in indices)


def _lacking(lock: NotebookLock, request: Request) -> Iterator[str]:
    """Name what of the request the lock would not bring."""
    from packaging.utils import canonicalize_name

    ran = lock.of(lock.ran)
    for text in request.requirements:
        requirement = parse_requirement(text)
        # What holds for one platform alone is asked on another machine.
        if requirement.marker is not None:
            continue
        package = ran.package(canonicalize_name(requirement.name)) if ran else None
        if package is None or not requirement.specifier.contains(package.version, prereleases=True):
            yield text


def _importing(cells: Sequence[_Cell]) -> Iterator[tuple[int, str]]:
    """Return each cell that imports a member of PyTorch's family, and which."""
    for index, cell in enumerate(cells):
        if cell.get("cell_type") == "code":
            for name in imported_family(source_of(cell)):
                yield index, name


# IPython's own syntax behind the indent: magics, shell commands, and questions.
_IPYTHON_LINE = re.compile(r"[%!?].*|[\w.,\[\] \t]+=[ \t]*[%!].*|[^#\"']*\?")
# What is longer is data more than code, and a tokenizer may take for ever over it.
_LONGEST_CELL = 100_000
_LONGEST_LINE = 1_000


def imported_family(source: str) -> tuple[str, ...]:
    r"""Return which members of PyTorch's family a cell imports, each once, in its order.

    >>> imported_family("%matplotlib inline\nimport torchvision.transforms as T, torch")
    ('torchvision', 'torch')
    """
    if not any(name in source for name in FAMILY_MEMBERS):
        return ()
    lines = re.split(r"\r\n|\n|\r", source)  # as Python does, and `splitlines` does not
    while lines and not lines[0].strip():
        del lines[0]
    if lines and lines[0].startswith("%%"):
        if lines[0][2:].split()[:1] and lines[0][2:].split()[0] not in _PYTHON_MAGICS:
            return ()
        del lines[0]
    modules: Iterable[str] = _imported_by_line(lines)
    if len(source) <= _LONGEST_CELL and all(len(line) <= _LONGEST_LINE for line in lines):
        # Where it is no Python, the lines that look like imports have to do.
        with contextlib.suppress(tokenize.TokenError, SyntaxError):
            modules = list(_imported("\n".join(map(_as_python, lines))))
    return tuple(dict.fromkeys(name for name in modules if name in FAMILY_MEMBERS))


def _as_python(line: str) -> str:
    body = line.lstrip(" \t")
    return f"{line[: -len(body)]}pass" if body and _IPYTHON_LINE.fullmatch(body) else line


def _imported(code: str) -> Iterator[str]:
    """Return the first name of each module that is imported.

    By its tokens, which a string or a comment is one of; to build a tree of what a stranger wrote
    can end Python 3.10 by a segmentation fault.
    """
    statement, awaits = "", False
    begins = True
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type == tokenize.NEWLINE or token.string in (";", ":"):
            begins = True
        elif begins:
            statement, awaits, begins = token.string, True, False
        elif statement in ("import", "from"):
            # A dot in place of a name: from the package that it stands in.
            if awaits and token.type == tokenize.NAME:
                yield token.string
            awaits = statement == "import" and token.string == ","


def _imported_by_line(lines: Iterable[str]) -> list[str]:
    matches = (re.match(r"(?:import|from)[ \t]+(\w+)", line) for line in lines)
    return [match[1] for match in matches if match]
