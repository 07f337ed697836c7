"""`torchenv lock` and `torchenv restore`: what a notebook carries to other machines."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torchenv_magic.cli.ending import carry_out
from torchenv_magic.cli.talk import listening, mention, print_data, stoppable
from torchenv_magic.errors import InstallCancelled, LockError
from torchenv_magic.serialization import to_json
from torchenv_magic.words import Words

if TYPE_CHECKING:
    from torchenv_magic.installation.plan import Plan
    from torchenv_magic.installation.settings import Sites
    from torchenv_magic.installation.uv import Cancellation
    from torchenv_magic.project.lock import NotebookLock
    from torchenv_magic.status import Status

__all__ = ["lock", "restore"]


def lock(words: Words) -> int:
    """Keep in a notebook what is installed.

    Raises
    ------
    TorchEnvError
    """
    from torchenv_magic.installation.settings import read_sites
    from torchenv_magic.project.lock import METADATA_KEY, check_schema, lock_to_json
    from torchenv_magic.project.lock_making import make_lock
    from torchenv_magic.project.notebook_file import (
        read_notebook_file,
        shown_notebook,
        write_notebook_file,
    )
    from torchenv_magic.status import read_repaired

    file = read_notebook_file(words.notebooks[0])
    check_schema(file.metadata)
    environment, recovered, _ = read_repaired(words.python)
    mention(words, recovered)
    sites = read_sites(index_base=words.index_base, prefix=environment.prefix)
    try:
        with stoppable() as cancellation, listening(words) as progress:
            made = make_lock(
                environment,
                requirements=words.request.requirements,
                backends=words.backends,
                sites=sites,
                on_event=progress,
                cancellation=cancellation,
            )
    except InstallCancelled:
        raise InstallCancelled("Cancelled; the notebook is as it was") from None
    data = lock_to_json(made.lock)
    locked = file.with_metadata(METADATA_KEY, data)
    write_notebook_file(locked)
    done = "It stands in" if locked.is_changed else "That is what stands already in"
    return print_data(
        words,
        f"{made}\n{done} `{shown_notebook(words.notebooks[0])}`.",
        {
            "notebook": str(words.notebooks[0]),
            "changed": locked.is_changed,
            "lock": data,
            "left_out": to_json(made.left_out),
        },
    )


def restore(words: Words) -> int:
    """Install what a notebook's lock says, in this machine's build, and prove that it works.

    Raises
    ------
    TorchEnvError
    """
    kept = _read(words)
    return carry_out(words, lambda cancellation: _plan(words, kept, cancellation))


def _read(words: Words) -> NotebookLock:
    from torchenv_magic.installation.settings import read_sites
    from torchenv_magic.project.hosts import own_hosts
    from torchenv_magic.project.lock import read_lock
    from torchenv_magic.project.notebook_file import read_notebook_file, shown_notebook

    notebook = words.notebooks[0]
    # A mirror that the line names is one that a lock may have been made from.
    sites = read_sites(index_base=words.index_base, prefix=Path(sys.prefix))
    kept = read_lock(read_notebook_file(notebook).metadata, plain_hosts=own_hosts(sites))
    if kept is None:
        raise LockError(
            f"There is no lock in `{shown_notebook(notebook)}`",
            hint="`torchenv lock NOTEBOOK` makes one, where its PyTorch is installed",
        )
    return kept


def _look(words: Words, kept: NotebookLock) -> tuple[Status, Sites]:
    from torchenv_magic.installation.settings import read_sites
    from torchenv_magic.project.restoring import restore_request
    from torchenv_magic.status import read_status

    status = read_status(
        restore_request(kept, words.request.backend),
        python=words.python,
        # Of the release that is locked the catalog knows all, and uv's cache may be all there is.
        refresh="never",
        index_base=words.index_base,
    )
    sites = read_sites(
        index_base=words.index_base,
        find_links=words.find_links,
        prefix=status.environment.prefix,
    )
    return status, sites


def _plan(words: Words, kept: NotebookLock, cancellation: Cancellation) -> Plan:
    from torchenv_magic.installation.planning import IndexUnreachableError
    from torchenv_magic.installation.waiting import wait_for_others
    from torchenv_magic.project.restoring import (
        UnknownServerError,
        choose_locked,
        make_restore_plan,
    )

    status, sites = _look(words, kept)
    # What can't be had here needs no waiting.
    choose_locked(kept, status, backend=words.request.backend)
    recovered = status.recovered
    with listening(words) as progress:
        waited = wait_for_others(status.environment, on_event=progress, cancellation=cancellation)
    if waited:  # it is another environment now
        status, sites = _look(words, kept)
        recovered = status.recovered or recovered
    try:
        with listening(words) as progress:
            plan = make_restore_plan(
                kept,
                status,
                backend=words.request.backend,
                sites=sites,
                consent=words.yes,
                on_event=progress,
                cancellation=cancellation,
            )
    except IndexUnreachableError as error:
        if error.offers:
            error.hint = f"{words.with_consent} uses it"
        raise
    except UnknownServerError as error:
        error.hint = (
            f"{words.with_consent} takes the same file, by its hash, from this machine's own index"
        )
        raise
    notes = (*plan.notes, *status.selection.warnings, *filter(None, [recovered]))
    return replace(plan, notes=notes)
