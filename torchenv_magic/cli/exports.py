"""`torchenv export`: shown as a diff first, written where that is consented to."""

from __future__ import annotations

import json
import sys

from torchenv_magic.builds.backend import Backend
from torchenv_magic.cli.talk import colored, talk
from torchenv_magic.errors import SelectionError
from torchenv_magic.words import Words

__all__ = ["export"]


def export(words: Words) -> int:
    """Print what is exported, or what it changes in a file; write it where that is consented to."""
    from torchenv_magic.project.export_writing import prepare_export

    notebook = words.notebooks[0] if words.notebooks else None
    environment = None
    if notebook is None or words.python is not None:
        from torchenv_magic.environment import read_environment

        environment = read_environment(words.python)
    made = prepare_export(
        words.form,
        environment=environment,
        notebook=notebook,
        backends=_backends(words),
        requirements=words.request.requirements,
        output=words.output,
    )
    if words.json:
        written = words.yes and made.write()
        # As it is: what stands in a file is not reworded for a terminal.
        print(
            json.dumps(
                {
                    "form": made.form,
                    "backends": [str(backend) for backend in made.backends],
                    "torch": str(made.used.torch) if made.used.torch else None,
                    "file": str(made.path) if made.path else None,
                    "changed": made.changed,
                    "written": written,
                    "text": made.text,
                    "diff": made.diff,
                    "notes": list(made.notes),
                },
                indent=2,
            )
        )
        return 0
    if made.path is None:
        print(made.text, end="", flush=True)
        for note in made.notes:
            talk(note)
        return 0
    if not made.changed:
        talk(f"`{made.name}` says so already: {made.used.label_for(made.backends)}")
        return 0
    print(made.diff, end="", flush=True)
    for note in made.notes:
        talk(note)
    if words.yes or _agreed(made.name):
        made.write()
        talk(colored(f"Wrote {made.summary}.", "32", sys.stderr))
    else:
        talk(f"Nothing was written: {words.with_consent} writes it")
    return 0


def _backends(words: Words) -> tuple[Backend, ...]:
    """Return the backends that the line names; the best for this machine in the place of `auto`."""
    found = []
    for backend in words.backends:
        if backend is None:
            from torchenv_magic.status import read_selection

            selection = read_selection(words.request, python=words.python, refresh="never")
            if selection.backend is None:
                raise SelectionError(
                    f"No build of PyTorch fits: {selection.reason}", hint="name a backend"
                )
            found.append(selection.backend)
        else:
            found.append(backend)
    return tuple(dict.fromkeys(found))


def _agreed(name: str) -> bool:
    """Ask whoever sits at the terminal; a script says `--yes`."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"Write `{name}`? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
