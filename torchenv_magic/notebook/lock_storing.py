"""Where a lock that is made in a notebook is put: into its page, or into a file.

What a person has not saved is never overwritten. The page of an open notebook takes the lock
itself, where the plugin is there; a file that a page has open is written with consent alone.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchenv_magic.errors import ConsentError, NotebookError, TorchEnvError
from torchenv_magic.notebook.front_end import FrontEnd
from torchenv_magic.project.lock import METADATA_KEY
from torchenv_magic.project.notebook_file import read_notebook_file, shown_notebook, source_of

__all__ = ["Place", "choose_place", "is_same_notebook", "no_page", "notebook_to_read"]

# All notebooks of a folder together: a cell waits while they are read.
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the lock goes."""

    kind: Literal["page", "file"]
    path: Path | None
    """The notebook's file; for a page None where it is not known."""


def choose_place(front_end: FrontEnd, named: Path | None, *, consent: bool) -> Place:
    """Return where a lock goes that is made now.

    Raises
    ------
    NotebookError
        Nobody would keep it, or which file it is for is not known.
    ConsentError
        The file is open here, and its page can't be told.
    """
    if not front_end.interactive:
        raise NotebookError(
            "A run of a notebook writes its own copy when it ends, and a lock that is made in it "
            "would not be in that",
            hint="run `torchenv lock NOTEBOOK.ipynb --python "
            f"{shlex.quote(sys.executable)}` in a terminal, when it is over",
        )
    own = front_end.notebook_path
    if named is not None and not is_same_notebook(named, own):
        return Place(kind="file", path=named)
    if front_end.kind == "jupyter":
        return Place(kind="page", path=own)
    if own is None:
        raise _unknown("lock")
    if not consent:
        reason = f"`{shown_notebook(own)}` is open, and what shows it can't be told of a lock"
        raise no_page(reason, own)
    return Place(kind="file", path=own)


def no_page(
    reason: str, path: Path | None, *, with_consent: str = "`%torchenv lock --yes`"
) -> TorchEnvError:
    """Return the error where a notebook is open and only its file could be written."""
    if path is None:
        return NotebookError(reason, hint=_unknown("lock").hint)
    return ConsentError(
        reason,
        hint=f"save the notebook, then run {with_consent}, which writes into its file; load the "
        "notebook anew before you save it again",
    )


def notebook_to_read(
    front_end: FrontEnd, named: Path | None, *, folder: Path, ran: Sequence[str] = ()
) -> Path:
    """Return the notebook whose lock is restored: the one that is named, else the one that runs.

    Parameters
    ----------
    folder
        Where the kernel was started.
    ran
        The cells that this kernel was sent so far, the running one too.

    Raises
    ------
    NotebookError
    """
    path = named or front_end.notebook_path
    if path is None and not front_end.interactive:
        path = _notebook_that_runs(folder, ran)
    if path is None:
        raise _unknown("restore")
    return path


def _notebook_that_runs(folder: Path, ran: Sequence[str]) -> Path | None:
    """Return the notebook in `folder` that begins with the cells that have run.

    nbclient and all that are made of it tell a kernel no name. Where several notebooks begin so, as
    a copy that a run writes does, it is known only if all have one and the same lock: what somebody
    else has locked must not be taken for this one's.
    """
    try:
        files = sorted(folder.glob("*.ipynb"))
        if sum(path.stat().st_size for path in files) > _MOST_BYTES:
            return None
    except OSError:
        return None
    found: dict[str, Path] = {}
    for path in files:
        try:
            notebook = read_notebook_file(path)
        except NotebookError:
            continue
        code = [source_of(cell) for cell in notebook.cells if cell["cell_type"] == "code"]
        if ran and _told([text for text in code if text.strip()][: len(ran)]) == _told(ran):
            lock = notebook.metadata.get(METADATA_KEY)
            found.setdefault(json.dumps(lock, sort_keys=True), path)
    return next(iter(found.values())) if len(found) == 1 else None


def _told(sources: Sequence[str]) -> list[str]:
    """Return sources as IPython keeps them."""
    return [source.rstrip("\n") for source in sources]


def _unknown(word: str) -> NotebookError:
    return NotebookError(
        "Which notebook this is, is not known here",
        hint=f"name its file behind the word, as in `%torchenv {word} NOTEBOOK.ipynb`",
    )


def is_same_notebook(named: Path, own: Path | None) -> bool:
    """Whether both are one file, by whatever name."""
    if own is None:
        return False
    try:
        return named.samefile(own)
    except OSError:
        return named.absolute() == own
