"""What became of a verification: the record that people read and programs store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import EnvironmentKind, shown_path
from torchenv_magic.errors import VerificationError
from torchenv_magic.verification.facts import Fact
from torchenv_magic.verification.findings import STEP_WORDS, Step

__all__ = ["Check", "Verification", "VersionRow", "duration", "joined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question about the environment, and its answer."""

    name: str
    passed: bool | None
    """None where it was not tried: the message says why."""
    message: str
    hint: str = ""
    """What to do about it, where it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """A package, as it was asked for and as it is."""

    name: str
    asked: str | None
    """None where nothing says what was asked for."""
    installed: str | None

    @property
    def agrees(self) -> bool:
        """Whether what is installed is what was asked for; True where nothing was."""
        return self.asked is None or _same_version(self.asked, self.installed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What became of the question: does this PyTorch work, and is it the one that was asked for."""

    python: str
    """Full version."""
    prefix: Path
    environment_kind: EnvironmentKind
    torch: str | None
    """What the imported torch says; what is installed, where it can't be imported."""
    backend: Backend | None
    """What the build was made for, by its own word."""
    device: str | None
    """What was computed on: `cpu`, `cuda:0`, `xpu:0`, `mps`."""
    device_names: tuple[str, ...]
    checks: tuple[Check, ...]
    versions: tuple[VersionRow, ...]
    import_seconds: float | None
    product_seconds: float | None
    """The first product on the device, with what starting the device takes."""
    self_test: tuple[Step, ...] = ()
    """What the device was let do, in this order."""
    facts: tuple[Fact, ...] = ()
    """What else an issue about this PyTorch has to tell."""
    notes: tuple[str, ...] = ()
    """What torch warned of."""
    detail: str = ""
    """The end of what a child process that failed wrote to stderr."""

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def tried(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is not None)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def title(self) -> str:
        return "PyTorch works" if self.passed else "PyTorch does not work as asked"

    @property
    def hint(self) -> str:
        """What to do about the first failure."""
        return next((check.hint for check in self.failures if check.hint), "")

    def raise_for_failure(self) -> None:
        """Do nothing where all checks passed.

        Raises
        ------
        VerificationError
            Names each check that failed.
        """
        if self.passed:
            return
        messages = [check.message for check in self.failures]
        text = messages[0] if len(messages) == 1 else "\n".join(f"- {each}" for each in messages)
        if len(messages) > 1:
            text = f"PyTorch failed {len(messages)} of {len(self.tried)} checks:\n{text}"
        raise VerificationError(text, hint=self.hint, detail=self.detail)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What was asked and what came of it, as (title, text)."""
        kind = "system Python" if self.environment_kind == "system" else self.environment_kind
        rows = [("Environment", f"{shown_path(self.prefix)}, Python {self.python}, {kind}")]
        if self.torch:
            build = f", {self.backend.label}" if self.backend else ""
            took = self.import_seconds
            seconds = f", imported in {duration(took)}" if took is not None else ""
            rows.append(("PyTorch", f"{self.torch}{build}{seconds}"))
        if self.device:
            names = (self.device, *self.device_names)
            rows.append(("Device", ", ".join((*names, *self._free_memory))))
        rows += [
            (each.name.capitalize(), each.message)
            for each in self.checks
            if each.passed and each.name in ("product", "versions")
        ]
        right = [step for step in self.self_test if step.is_right and step.name != "product"]
        if right:
            took = sum(step.seconds or 0 for step in right)
            words = f"{joined([STEP_WORDS[step.name] for step in right])}"
            verb = "is" if len(right) == 1 else "are"
            rows.append(("Self-test", f"{words} {verb} right too, in {duration(took)}"))
        rows += [("Failed", failure.message) for failure in self.failures]
        rows += [("Note", each.message) for each in self.checks if each.passed is None]
        rows += [("Note", note) for note in self.notes]
        passed = len(self.tried) - len(self.failures)
        rows.append(("Checks", f"{passed} of {len(self.tried)} passed"))
        if self.hint:
            rows.append(("hint:", self.hint))
        return tuple(rows)

    @property
    def _free_memory(self) -> tuple[str, ...]:
        for step in self.self_test:
            if step.total_bytes and step.free_bytes is not None:
                return (f"{_gib(step.free_bytes)} of {_gib(step.total_bytes)} GiB free",)
            if step.total_bytes:
                return (f"{_gib(step.total_bytes)} GiB",)
        return ()

    def __str__(self) -> str:
        facts = [(fact.name, fact.value) for fact in self.facts]
        lines = [f"{name:<13}{text}" for name, text in self.rows]
        return "\n".join([self.title, *lines, *(f"{name:<13}{text}" for name, text in facts)])


def _same_version(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def joined(texts: list[str]) -> str:
    """Return the texts as a sentence has them.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([part for part in (", ".join(texts[:-1]), texts[-1]) if part])


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
