"""One export from beginning to end: what is used, the text, what it changes, and the file."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.environment import FAMILY_MEMBERS, Environment
from torchenv_magic.errors import ExportError, RequestError
from torchenv_magic.installation.settings import mirror_base
from torchenv_magic.project.export import (
    Used,
    check_releases,
    complete,
    configure,
    oldest_python,
    used_in_environment,
    with_choice,
)
from torchenv_magic.project.export_lines import (
    command_text,
    dockerfile_text,
    requirements_text,
    with_block,
)
from torchenv_magic.project.export_script import (
    block_of,
    loads_extension,
    new_block,
    script_of,
    with_block_in_cell,
    with_block_in_script,
)
from torchenv_magic.project.export_toml import (
    admitted_python,
    edited_project,
    new_project,
    with_line_ends_of,
)
from torchenv_magic.project.notebook_file import (
    NotebookFile,
    read_notebook_file,
    shown_notebook,
    write_notebook_file,
)
from torchenv_magic.project.whole_file import UnfitError, read_whole, replace_whole

if TYPE_CHECKING:
    from torchenv_magic.project.lock import NotebookLock

__all__ = ["Export", "prepare_export"]

PROJECT_FORMS = ("index", "markers", "extras")
_LARGEST_BYTES = 16 * 1024 * 1024
_LONGEST_LINE = 1_000
_MARK = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What an export says, and what it would change. Nothing is written before `write`."""

    form: str
    used: Used
    backends: tuple[Backend, ...]
    """The builds that are written, the one that is used or others."""
    text: str
    """All that is to stand in the file, or to be printed where there is none."""
    path: Path | None = None
    """None: it is printed."""
    before: str | None = None
    """What stands there now; None where there is no such file."""
    read: bytes = b""
    notebook: NotebookFile | None = None
    """The notebook that is written; None where it is another file."""
    notes: tuple[str, ...] = ()
    """What somebody who reads it should know, a sentence each."""

    @property
    def changed(self) -> bool:
        """Whether there is a file, and it is to say something else than it does."""
        return self.path is not None and self.text != self.before

    @property
    def name(self) -> str:
        """The file as a message may call it."""
        return "" if self.path is None else shown_notebook(self.path)

    @property
    def diff(self) -> str:
        """What changes in the file, as `diff -u` writes it; empty where nothing does."""
        if not self.changed:
            return ""
        before = [] if self.before is None else self.before.splitlines()
        old = self.name if self.before is not None else os.devnull
        lines = difflib.unified_diff(before, self.text.splitlines(), old, self.name, lineterm="")
        # The file is anybody's, and this is shown in a terminal, where a control character acts.
        shown = (
            "".join(c if c.isprintable() or c == "\t" else "?" for c in line[:_LONGEST_LINE])
            + "…" * (len(line) > _LONGEST_LINE)
            for line in lines
        )
        return "\n".join(shown) + "\n"

    @property
    def summary(self) -> str:
        """One sentence: what was exported, and where it stands now or would."""
        label = self.used.label_for(self.backends)
        return f"{label} as {self.form}" if self.path is None else f"{label} in `{self.name}`"

    def write(self) -> bool:
        """Write the file, as a whole; return whether there was anything to write.

        Raises
        ------
        ExportError, NotebookError
            It may not be written, has changed since it was read, or there is no room: it is as it
            was.
        """
        if self.path is None or not self.changed:
            return False
        if self.notebook is not None:
            write_notebook_file(self.notebook)
        else:
            _write(self.path, self.text.encode("utf-8"), None if self.before is None else self.read)
        return True


def prepare_export(
    form: str,
    *,
    environment: Environment | None = None,
    notebook: Path | None = None,
    backends: Sequence[Backend] = (),
    requirements: Sequence[str] = (),
    output: Path | None = None,
) -> Export:
    """Return what an export in that form is, without writing it.

    Parameters
    ----------
    environment
        Where it is used; None for what the notebook says: its lock, else its set-up cell.
    notebook
        The notebook that `script` writes into, and that says what is used where no environment
        does.
    backends
        Those that a line names, in place of the one that is used.
    requirements
        What a line asks for, in place of what was asked for.
    output
        The file to write; None for `pyproject.toml`, the notebook, or none.

    Raises
    ------
    ExportError
        It can't be written in that form, or into that file.
    NotebookError, LockError, RequestError
        The notebook can't be used, or its lock, or its set-up cell.
    """
    file = None if notebook is None else read_notebook_file(notebook)
    one = backends[0] if len(backends) == 1 else None
    if environment is not None:
        used = used_in_environment(environment, backend=one)
    elif file is not None:
        used = _used_in_notebook(file, backends)
    else:
        raise ExportError("There is nothing to export from", hint="name a notebook")
    used = with_choice(used, backend=one, requirements=requirements)
    check_releases(used, backends or (used.backend,))
    made = _made(form, used, backends, file, output)
    if mirror_base() is not None:
        note = "The mirror that is set here is not written: the export names PyTorch's own index"
        made = replace(made, notes=(*made.notes, note))
    return made


def _made(
    form: str,
    used: Used,
    backends: Sequence[Backend],
    file: NotebookFile | None,
    output: Path | None,
) -> Export:
    if form in PROJECT_FORMS:
        return _project(form, used, backends, output or Path("pyproject.toml"))
    if form == "script":
        return _script(used, backends, file, output)
    if len(backends) > 1:
        raise ExportError(
            f"`export {form}` writes one backend, not {' and '.join(map(str, backends))}",
            hint="name one of them",
        )
    if form != "requirements" and not load_catalog().is_known_to_uv(used.backend):
        raise ExportError(
            f"uv does not take {used.backend} for `--torch-backend`",
            hint="run `%torchenv export requirements`, which names the wheels' pages",
        )
    texts = {
        "requirements": requirements_text,
        "dockerfile": dockerfile_text,
        "command": command_text,
    }
    text = texts[form](used)
    if output is None:
        return Export(form=form, used=used, backends=(used.backend,), text=text)
    before, read = _read_text(output)
    if form != "command":
        text = _joined(before, text, output, are_requirements=form == "requirements")
    return Export(
        form=form,
        used=used,
        backends=(used.backend,),
        text=text,
        path=output,
        before=before,
        read=read,
    )


def _joined(before: str | None, block: str, path: Path, *, are_requirements: bool) -> str:
    if before is None:
        return block
    name = shown_notebook(path)
    plain = before.replace("\r\n", "\n")
    joined = with_block(plain, block, file=name, are_requirements=are_requirements)
    return with_line_ends_of(before, joined)


# --------------------------------------------------------------------------------- from a notebook


def _used_in_notebook(file: NotebookFile, backends: Sequence[Backend]) -> Used:
    from torchenv_magic.project.lock import read_lock
    from torchenv_magic.project.notebook_cells import setup_words

    if (lock := read_lock(file.metadata)) is not None:
        return _used_by_lock(lock)
    name = shown_notebook(file.path)
    try:
        words = setup_words(file.cells)
    except RequestError as error:
        raise ExportError(
            f"`{name}` does not say what it uses: {error.message}", hint=error.hint
        ) from None
    if words is None or words.word == "restore":
        raise ExportError(
            f"`{name}` does not say what it uses: it has no lock, and no cell that installs",
            hint="name the environment that it runs in with `--python`, or lock it first",
        )
    backend = words.request.backend or (backends[0] if backends else None)
    if backend is None:
        raise ExportError(
            f"`{name}` leaves its build of PyTorch to each machine, so none can be written down",
            hint="name a backend, such as `cu126`, or lock the notebook first",
        )
    # The words put it in where the cell names none.
    used = Used(backend=backend, requirements=words.request.requirements, members={}, python="")
    return replace(used, members=_pins(words.request.requirements), python=_python_of(file))


def _pins(requirements: Sequence[str]) -> dict[str, Version]:
    """Return the releases that requirements name exactly."""
    from packaging.utils import canonicalize_name

    from torchenv_magic.demand import parse_requirement

    found: dict[str, Version] = {}
    for text in requirements:
        requirement = parse_requirement(text, trusted=False)
        name = canonicalize_name(requirement.name)
        exact = [each for each in requirement.specifier if each.operator == "=="]
        if name in FAMILY_MEMBERS and len(exact) == 1 and "*" not in exact[0].version:
            found[name] = Version(Version(exact[0].version).public)
    return found


def _python_of(file: NotebookFile) -> str:
    """Return the Python that the notebook ran in last, else the oldest that PyTorch runs with."""
    import re

    info = file.metadata.get("language_info")
    text = info.get("version") if isinstance(info, dict) else None
    match = re.fullmatch(r"(3\.\d{1,3})(\..*)?", text) if isinstance(text, str) else None
    return match[1] if match else "3.10"


def _used_by_lock(lock: NotebookLock) -> Used:
    locked = lock.of(lock.ran)
    pins = locked.pins if locked is not None else {}
    members = {name: Version(Version(pins[name]).public) for name in FAMILY_MEMBERS if name in pins}
    return Used(
        backend=lock.ran,
        requirements=complete(lock.asked.requirements, members),
        members=members,
        python=lock.target.python.removesuffix("t"),
        on_macos=lock.target.system == "macos",
    )


# ---------------------------------------------------------------------------------------- the forms


def _project(form: str, used: Used, backends: Sequence[Backend], path: Path) -> Export:
    configuration = configure(form, used, backends)
    before, read = _read_text(path)
    if before is None:
        text = new_project(path.absolute().parent.name, used.python, configuration)
    else:
        mark = _MARK if before.startswith(_MARK) else ""
        text = mark + edited_project(
            before.removeprefix(_MARK), configuration, file=shown_notebook(path)
        )
    notes: tuple[str, ...] = ()
    oldest = oldest_python(used, configuration.backends)
    if oldest is not None and (admitted := admitted_python(text.removeprefix(_MARK), oldest)):
        told = f"`requires-python` admits Python {admitted}, and torch {used.torch} has wheels for "
        notes = (f"{told}3.{oldest} and newer: `uv lock` refuses that",)
    return Export(
        form=form,
        used=used,
        backends=configuration.backends,
        text=text,
        path=path,
        before=before,
        read=read,
        notes=notes,
    )


def _script(
    used: Used, backends: Sequence[Backend], file: NotebookFile | None, output: Path | None
) -> Export:
    in_notebook = output is None or output.suffix.lower() == ".ipynb"
    if in_notebook and file is not None and loads_extension(file.cells):
        # `%load_ext` takes it from the environment that uv makes of this.
        used = replace(used, requirements=(*used.requirements, "torchenv-magic"))
    configuration = configure("script", used, backends)
    if output is None or in_notebook:
        if file is None:
            if output is not None:
                raise ExportError(
                    "There is no notebook to write the metadata into",
                    hint="name it before `--output`, or name a file that ends in `.py`",
                )
            text = new_block(configuration, used.python) + "\n"
            return Export(form="script", used=used, backends=(used.backend,), text=text)
        edited = with_block_in_cell(file, configuration, used.python)
        if output is None:
            return Export(
                form="script",
                used=used,
                backends=(used.backend,),
                text=edited.text,
                path=file.path,
                before=file.read.decode("utf-8"),
                notebook=edited,
            )
        before, read = _read_text(output)
        return Export(
            form="script",
            used=used,
            backends=(used.backend,),
            text=edited.text,
            path=output,
            before=before,
            read=read,
        )
    before, read = _read_text(output)
    notes: tuple[str, ...] = ()
    if file is not None:
        text, commented = script_of(file.cells, block_of(file, configuration, used.python))
        if commented:
            cells = "1 cell has" if commented == 1 else f"{commented} cells have"
            notes = (f"{cells} lines that only IPython understands: they became comments",)
    else:
        mark = _MARK if before and before.startswith(_MARK) else ""
        text = mark + with_block_in_script(
            (before or "").removeprefix(_MARK),
            configuration,
            used.python,
            file=shown_notebook(output),
        )
    text = with_line_ends_of(before or "", text)
    return Export(
        form="script",
        used=used,
        backends=(used.backend,),
        text=text,
        path=output,
        before=before,
        read=read,
        notes=notes,
    )


# -------------------------------------------------------------------------------------- the file


def _read_text(path: Path) -> tuple[str | None, bytes]:
    """Return what stands in the file, as text and as it is; None where there is none."""
    name = shown_notebook(path)
    try:
        content = _read(path)
    except FileNotFoundError:
        if not path.absolute().parent.is_dir():
            raise ExportError(
                f"There is no folder for `{name}`", hint="make it first, or check the name"
            ) from None
        return None, b""
    try:
        return content.decode("utf-8"), content
    except UnicodeDecodeError as error:
        raise ExportError(
            f"`{name}` is not in UTF-8, so nothing was written: byte {error.start} is none of it",
            hint="save it as UTF-8 first",
        ) from None


def _read(path: Path) -> bytes:
    name = shown_notebook(path)
    try:
        return read_whole(path, largest=_LARGEST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ExportError(
            f"`{name}` can't be read: {error.strerror}", hint="check who may read it"
        ) from None
    except UnfitError as unfit:
        message, hint = f"`{name}` is no file", "name a file with `--output`"
        if unfit.kind == "folder":
            message, hint = f"`{name}` is a folder", "name a file in it with `--output`"
        elif unfit.kind == "too large":
            message = (
                f"`{name}` is larger than {_LARGEST_BYTES // 1024**2} MB, which no such file is"
            )
            hint = "name another file with `--output`"
        raise ExportError(message, hint=hint) from None


def _write(path: Path, content: bytes, read: bytes | None) -> None:
    """Replace the file as a whole, if it is still as it was read; None is that there was none."""
    name = shown_notebook(path)
    try:
        replace_whole(path, content, read=read)
    except OSError as error:
        hint = "check who may write it, and make files in its folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space"
        raise ExportError(
            f"`{name}` can't be written, so it is as it was: {error.strerror}", hint=hint
        ) from None
    except UnfitError as unfit:
        message, hint = f"`{name}` has changed since it was read", "run the same line again"
        if unfit.kind == "read-only":
            message = f"`{name}` is read-only"
            hint = "make it writable, or name another file with `--output`"
        raise ExportError(f"{message}, so nothing was written", hint=hint) from None
