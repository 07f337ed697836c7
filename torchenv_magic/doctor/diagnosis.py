"""The judgement as a whole: every problem, most serious first, and what was looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchenv_magic.accelerators import Host, detect
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import Catalog
from torchenv_magic.builds.current import CurrentCatalog
from torchenv_magic.doctor.case import Case, Remarks
from torchenv_magic.doctor.examination import Examination, examine
from torchenv_magic.doctor.hardware import hardware_problems
from torchenv_magic.doctor.packages import package_problems
from torchenv_magic.doctor.problem import Problem, install_cure
from torchenv_magic.doctor.process import (
    import_problems,
    path_problems,
    session_problems,
    shown_file,
)
from torchenv_magic.environment import shown_path
from torchenv_magic.errors import RequestError
from torchenv_magic.selection import Request, Selection, select
from torchenv_magic.serialization import to_json
from torchenv_magic.status import read_repaired

__all__ = ["Diagnosis", "diagnose", "diagnosis_to_json", "examine_and_judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is wrong with an installed PyTorch on this host, and what was looked at."""

    prefix: Path
    python: str
    torch: str | None
    """None where it is not installed."""
    backend: Backend | None
    problems: tuple[Problem, ...]
    """Errors first; among equals, what is likely to cause the others comes first."""
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    """What could not be known, and why."""
    notes: tuple[str, ...]
    detail: str = ""
    """The end of what a child process that failed wrote to stderr."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def title(self) -> str:
        if not self.problems:
            return "Nothing is wrong with this PyTorch"
        errors = len(self.errors)
        counts = [
            f"{number} {noun}{'' if number == 1 else 's'}"
            for number, noun in ((errors, "error"), (len(self.problems) - errors, "warning"))
            if number
        ]
        return f"Found {' and '.join(counts)}"

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What a table shows: a word, and its text."""
        rows = [("Environment", f"{shown_path(self.prefix)}, {self.python}")]
        build = f", {self.backend.label}" if self.torch and self.backend else ""
        rows.append(("PyTorch", f"{self.torch or 'not installed'}{build}"))
        for problem in self.problems:
            rows.append((problem.severity.capitalize(), str(problem)))
            rows.append(("Cure", problem.cure))
        rows += [("Note", note) for note in self.notes]
        if self.checked:
            rows.append(("Looked at", "; ".join(self.checked)))
        rows += [("Not checked", text) for text in self.unchecked]
        return tuple(rows)

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"{name:<13}{text}" for name, text in self.rows)])


def diagnosis_to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as `torchenv doctor --json` prints it."""
    return {"healthy": not diagnosis.problems, **to_json(diagnosis)}


def examine_and_judge(*, python: Path | None = None, in_session: bool = False) -> Diagnosis:
    """Look at the PyTorch of `python` and at this host, and say what is wrong.

    What an interrupted install left is repaired first, as every word does.

    Raises
    ------
    TargetError
        There is no such interpreter.
    """
    environment, recovered, unrepaired = read_repaired(python)
    host = detect()
    current = CurrentCatalog(
        "never", wheel_platform=host.platform.wheel_platform, environ=os.environ
    )
    catalog, _ = current.read()
    examination = examine(
        environment, in_session=in_session, recovered=recovered, unrepaired=unrepaired
    )
    interpreter = environment.interpreter
    try:
        selection = select(
            host, Request(), interpreter=interpreter, catalog=catalog, environ=os.environ
        )
    except RequestError:  # a misspelt UV_TORCH_BACKEND: an install will say so
        selection = select(host, Request(), interpreter=interpreter, catalog=catalog)
    return diagnose(examination, host, selection, catalog)


def diagnose(
    examination: Examination, host: Host, selection: Selection, catalog: Catalog
) -> Diagnosis:
    """Return what is wrong: a function of what was seen, and of nothing else."""
    case = Case(examination=examination, host=host, selection=selection, catalog=catalog)
    remarks = Remarks()
    problems = list(_problems(case, remarks))
    _notes(case, problems, remarks)
    environment = examination.environment
    return Diagnosis(
        prefix=environment.prefix,
        python=f"{environment.interpreter}, {environment.kind}",
        torch=case.torch.version if case.torch else None,
        backend=case.backend,
        # sorted() is stable: what is judged first stays before its equals.
        problems=tuple(sorted(problems, key=lambda problem: problem.severity != "error")),
        checked=tuple(dict.fromkeys(remarks.checked)),
        unchecked=tuple(dict.fromkeys(remarks.unchecked)),
        notes=tuple(dict.fromkeys(remarks.notes)),
        detail=examination.run.detail if examination.run else "",
    )


def _problems(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge everything, in the order in which one thing causes the next."""
    yield from session_problems(case, remarks)
    if case.torch is None:
        yield from _absent(case)
        return
    yield from path_problems(case, remarks)
    yield from package_problems(case, remarks)
    yield from hardware_problems(case, remarks)
    yield from import_problems(case, remarks)


def _absent(case: Case) -> Iterator[Problem]:
    prefix = shown_path(case.examination.environment.prefix)
    origin = case.examination.origin
    elsewhere = ""
    if origin and origin.path:
        elsewhere = f", and `import torch` takes `{shown_file(origin.path)}`"
    yield Problem(
        name="torch-missing",
        # A PyTorch of the user site, or of the Python below this environment, may work well.
        severity="warning" if origin and origin.version is not None else "error",
        found=f"PyTorch is not installed in `{prefix}`{elsewhere}",
        meaning="that one belongs to something else, and was not examined"
        if elsewhere
        else "`import torch` fails",
        cure=install_cure(),
    )


def _notes(case: Case, problems: list[Problem], remarks: Remarks) -> None:
    seen = case.examination
    remarks.notes.extend(filter(None, (seen.recovered, seen.unrepaired)))
    if any("torchenv install" in problem.cure or "uv pip" in problem.cure for problem in problems):
        remarks.notes.extend(filter(None, (seen.obstacle,)))
