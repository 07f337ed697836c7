"""Programs that stand at the border: they write down what they were told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_RECORDER = """\
#!{python}
import json, os, sys
with open({file!r}, "a") as file:
    told = {{"arguments": sys.argv[1:], "variables": dict(os.environ), "user": os.getuid()}}
    told |= {{"group": os.getgid(), "groups": os.getgroups(), "pid": os.getpid()}}
    file.write(json.dumps(told) + "\\n")
{then}
"""


class Recorder:
    """A program that notes its arguments, variables and user, and then runs `then`."""

    def __init__(self, program: Path, notes: Path, *, then: str = "") -> None:
        self._notes = notes
        text = _RECORDER.format(python=sys.executable, file=str(notes), then=then)
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        # Whoever runs it is to be able to write here.
        notes.touch()
        notes.chmod(0o666)

    @property
    def calls(self) -> list[Any]:
        return [json.loads(line) for line in self._notes.read_text(encoding="utf-8").splitlines()]
