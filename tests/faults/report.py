"""Write what the campaign has seen as a page, which nobody edits and a test holds to be whole."""

from __future__ import annotations

import datetime as dt
import platform
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.faults.bare import Bare
from tests.faults.campaign import Fault, Outcome

__all__ = ["PAGE", "groups", "page", "rows_of"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"

_LONGEST = 260

_HEAD = """\
# What an install survives

An install that is hurt leaves the environment as it was, or as it was to become, and says which.
This page is what came of trying to prove the opposite. It is written by the campaign itself:

```
.venv/bin/python -m tests.faults --write          # all of it, as root for the small disks
.venv/bin/python -m tests.faults --only kernel    # a part of it, which writes nothing
```

Each fault gets an environment of its own, with torch, torchvision, a package that needs torch, and
a file of the person's inside the folder `torch`. The real `torchenv` (for `kernel`: the magic in a
real kernel) switches it to another build with the real uv, from a stand-in of the PyTorch index
over TLS. While it does, the fault strikes. Then somebody asks for `torchenv status`.

A checker that shares no code with the installer looks twice, at once and after that contact: every
file of every RECORD has to be there with its hash, no file may be there that nobody owns, the
packages have to be exactly the old ones or exactly the new ones, a fresh interpreter has to import
them, and `uv pip check` has to agree. Anything else is a third environment. The message of the run,
or that of the next contact, has to say which of the two stands. The processes are stopped at exact
places, by requests that the index leaves open and by Python's audit hook; nothing is slept for.
"""

_COLUMNS = """\
| Fault | Where | n | The person saw | Environment after | Seconds to usable |
|---|---|---|---|---|---|
"""

_NOTES = """\
- **The person saw** is the last message of the run, the most frequent one where they differ. After
  a kill there is none: then it is what the next `torchenv status` said. The made builds for CUDA
  find no GPU on the machine of the campaign, so the proof after an install says so.
- **Environment after** counts the environments after the next contact. "At first neither" counts
  those which that contact had to repair.
- **Seconds to usable** is 0 where the environment could be used all the time, else how long that
  next contact took, the longest of the row.
- `gone` is the environment that the person deleted; nothing of it may come back.
"""

_LIMITS = """\
## What this does not cover

- Linux on one machine. Windows and macOS, network drives, a power cut (only processes are killed,
  not the system, so what the disk's own cache loses is not seen), and failing memory are not here.
- The read-only disk is a read-only mount over the environment, since a remount is refused while a
  lock is open. The clock jumps for the installer and uv alone, by a library loaded before theirs;
  dates of files in 2099 and 1970 stand for other hosts' clocks.
- Two or eight installers are processes of one machine.
- The wheels are made, of 1,200 files, but where a row says "the real torch".
"""


def groups(faults: Iterable[Fault]) -> dict[tuple[str, str], int]:
    """Return how many faults each row of the table stands for."""
    return dict(Counter((fault.title, fault.where) for fault in faults))


def rows_of(text: str) -> dict[tuple[str, str], int]:
    """Return the same from a page that was written."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 8 and cells[3].isdigit():
            found[cells[1], cells[2]] = int(cells[3])
    return found


def page(outcomes: Sequence[Outcome], bare: Sequence[Bare], *, seconds: float) -> str:
    """Return the page."""
    return "\n".join(
        [
            _HEAD,
            _summary(outcomes, bare, seconds),
            _COLUMNS + "".join(f"{row}\n" for row in _rows(outcomes)),
            _NOTES,
            _wrong(outcomes),
            _of_bare_uv(bare),
            _LIMITS,
        ]
    ).replace("\n\n\n", "\n\n")


def _summary(outcomes: Sequence[Outcome], bare: Sequence[Bare], seconds: float) -> str:
    struck = [outcome for outcome in outcomes if not outcome.skipped]
    kinds = Counter(outcome.after for outcome in struck)
    repaired = [outcome for outcome in struck if outcome.at_once == "third"]
    times = [outcome.seconds for outcome in repaired]
    today = dt.datetime.now(tz=dt.timezone.utc).date()
    wrong = [outcome for outcome in struck if outcome.problems]
    third = len(struck) - kinds["old"] - kinds["new"] - kinds["gone"]
    ends = (
        f"{len(struck)} faults: {kinds['old']} ended with the old environment, {kinds['new']} with "
        f"the new one, {kinds['gone']} with none, as the person had deleted it, and {third} with a "
        "third."
    )
    lines = ["## What came of it", "", ends]
    if repaired:
        lines.append(
            f"In {len(repaired)} of them the environment was neither for a while; the next contact "
            f"took {statistics.median(times):.1f} s in the median and {max(times):.1f} s at most, "
            "its own start included."
        )
    if bare:
        once = sum(each.at_once == "third" for each in bare)
        again = sum(each.again == "third" for each in bare)
        lines.append(
            f"Of {len(bare)} such signals to bare uv, {once} left a third environment, and {again} "
            "still after the same command was run again."
        )
    lines.append(
        "Everything was as it has to be."
        if not wrong
        else f"{len(wrong)} were not as they have to be; they are named below the table."
    )
    skipped = Counter(outcome.skipped for outcome in outcomes if outcome.skipped)
    lines += [f"{count} were left out: {reason}." for reason, count in skipped.items()]
    made = (
        f"{today}, torchenv_magic {version('torchenv-magic')}, uv {version('uv')}, Python "
        f"{platform.python_version()} on {platform.system()} {platform.release().split('-')[0]}; "
        f"{seconds / 60:.0f} minutes."
    )
    lines += ["", made, ""]
    return "\n".join(lines)


def _rows(outcomes: Sequence[Outcome]) -> Iterable[str]:
    grouped: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault((outcome.title, outcome.where), []).append(outcome)
    for (title, where), members in grouped.items():
        struck = [outcome for outcome in members if not outcome.skipped]
        saw = Counter(_saw(outcome) for outcome in struck).most_common(1)
        seconds = max((outcome.seconds for outcome in struck), default=0.0)
        cells = (
            title,
            where,
            str(len(members)),
            saw[0][0] if saw else "(left out)",
            _states(struck),
            f"{seconds:.1f}" if seconds else "0",
        )
        yield f"| {' | '.join(cells)} |"


def _states(outcomes: Sequence[Outcome]) -> str:
    counted = Counter(outcome.after for outcome in outcomes)
    repaired = sum(outcome.at_once == "third" for outcome in outcomes)
    text = ", ".join(f"{kind} {counted[kind]}" for kind in sorted(counted, reverse=True))
    return f"{text}; at first neither: {repaired}" if repaired else text


def _saw(outcome: Outcome) -> str:
    text = outcome.said or f"(killed) {outcome.next_said}"
    for pattern, replacement in (
        (r"\.tmp\w+", ".tmp…"),
        (r"process \d+", "process N"),
        (r"since \d\d:\d\d UTC", "since …"),
        (r"-work-[0-9a-f]{8}", "-work-…"),
        (r"in [\d.]+ ?(m?s)\b", r"in N \1"),
        (r"(?:/[\w.+@-]+){3,}", "…"),
        (r"…(?:/?…)+", "…"),
    ):
        text = re.sub(pattern, replacement, text)
    text = " ".join(text.split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST].rsplit(' ', 1)[0]} …"
    return text.replace("|", "\\|").replace("<", "&lt;")


def _wrong(outcomes: Sequence[Outcome]) -> str:
    wrong = [outcome for outcome in outcomes if outcome.problems]
    if not wrong:
        return ""
    lines = ["## Not as it has to be", ""]
    lines += [f"- {outcome.fault}: {'; '.join(outcome.problems)}" for outcome in wrong]
    return "\n".join([*lines, ""])


def _of_bare_uv(bare: Sequence[Bare]) -> str:
    if not bare:
        return ""
    lines = [
        "## The same signals to bare uv",
        "",
        "`uv pip install --torch-backend=cu126` with the same pins, struck by SIGINT, SIGTERM and",
        'SIGKILL, and looked at by the same checker. "Again" is after the same command once more.',
        "",
        "| Where | n | At once | Again | uv said that all was well |",
        "|---|---|---|---|---|",
    ]
    for where in dict.fromkeys(each.where for each in bare):
        members = [each for each in bare if each.where == where]
        once = Counter(each.at_once for each in members)
        again = Counter(each.again for each in members)
        fooled = sum(each.again == "third" and each.status == 0 for each in members)
        lines.append(
            f"| {where} | {len(members)} | {_counted(once)} | {_counted(again)} | "
            f"{f'{fooled} times, wrongly' if fooled else ''} |"
        )
    return "\n".join([*lines, ""])


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{kind} {counter[kind]}" for kind in sorted(counter))
