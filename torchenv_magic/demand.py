"""What the requirements ask of torch: the versions that will do, and what has to stand beside it.

Pure: nothing is looked up. `packaging` is imported where a requirement says more than a name, which
is a third of the time of `torchenv select`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import Version

from torchenv_magic.builds.catalog import Companion
from torchenv_magic.errors import RequestError
from torchenv_magic.interpreter import Interpreter

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

__all__ = ["Demand", "applies_in", "parse_requirement", "read_demand"]

_AS_WRITTEN = "write it as a package with an optional version, such as `torch==2.9.*`"


def parse_requirement(text: str, *, trusted: bool = True) -> Requirement:
    """Return the requirement written as `text`.

    `trusted` is what a person has written where it is read. What came along with a notebook, or by
    a form on a page, is not: it names packages and versions, and no address.

    Raises
    ------
    RequestError
        `text` is malformed, is an option, holds what would begin another line where uv reads one
        requirement a line, or an address that has a login in it or is not for the untrusted.
    """
    # PEP 508 admits any character in an address and in a marker's string.
    if not text.isprintable():
        raise RequestError(
            f"{text!r} holds a line break or another control character", hint=_AS_WRITTEN
        )
    if text.startswith("-"):
        raise RequestError(
            f"`{_shown(text)}` is an option, not a requirement",
            hint="set options in uv's or pip's configuration",
        )
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        if "://" in text:
            # It may hold a login, and so may the error's own words.
            message = f"`{_shown(text)}` is not a requirement"
            raise RequestError(message, hint=_AS_WRITTEN) from None
        message = f"`{text}` is not a requirement"
        raise RequestError(message, hint=_AS_WRITTEN, detail=str(error)) from error
    if requirement.url is None:
        return requirement
    if not trusted:
        raise RequestError(
            f"{requirement.name} is asked for from an address, and not by you",
            hint=f"if you trust that address, write it in a line of your own; else ask for "
            f"`{requirement.name}`",
        )
    if _holds_login(requirement.url):
        raise RequestError(
            f"The address of {requirement.name} holds a login, which would be kept in logs and "
            "locks",
            hint="put the login into your netrc file, and leave it out of the address",
        )
    return requirement


def _shown(text: str) -> str:
    """Return the text without what follows in an address, where a login may stand."""
    before, mark, _ = text.partition("://")
    return f"{before}{mark}…" if mark else text


def _holds_login(address: str) -> bool:
    """Whether the address has a password, or a name that may be a token: `ssh://git@` has none."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address)
    except ValueError:
        raise RequestError(
            f"`{_shown(address)}` is no address", hint="correct it: the part before its first `/`"
        ) from None
    return parts.password is not None or (
        parts.username is not None and not parts.scheme.endswith("ssh")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the requirements ask of torch: its own versions, and those of what goes with it."""

    torch: SpecifierSet | None = None
    companions: tuple[tuple[str, SpecifierSet], ...] = ()
    named: frozenset[str] = frozenset()
    """What goes with torch and was asked for, in whatever version, or is there already."""

    def __bool__(self) -> bool:
        return bool(self.torch) or bool(self.companions)

    def __str__(self) -> str:
        companions = [f"{name}{specifier}" for name, specifier in self.companions]
        return " with ".join([f"torch{self.torch or ''}", *companions])

    @property
    def asks_for_cpu(self) -> bool:
        """Whether the version is that of a cpu build: `torch==2.9.1+cpu` leaves a GPU unused."""
        return any(specifier.version.lower().endswith("+cpu") for specifier in self.torch or ())

    def admits(
        self,
        torch: Version,
        local: str | None = None,
        *,
        companions: Mapping[str, Companion],
    ) -> bool:
        """Return whether that release will do; `local` is the part after `+` that its wheel has.

        `companions` is what the catalog knows of those.
        """
        suffix = f"+{local}" if local else ""
        own = self.torch
        return (own is None or own.contains(f"{torch}{suffix}", prereleases=True)) and all(
            any(
                specifier.contains(f"{version}{suffix}", prereleases=True)
                for version in _companion_versions(name, companions[name], torch)
            )
            for name, specifier in self.companions
        )


# The release of each that is made for a torch: asked for alone, `torchvision==0.19.0` means torch
# 2.4.0. Source: the tables in the READMEs of pytorch/vision and pytorch/audio.
_MADE_FOR: dict[str, Callable[[Version], str]] = {
    "torchvision": lambda torch: f"0.{torch.minor + 15}.{torch.micro}",
    "torchaudio": lambda torch: f"{torch.major}.{torch.minor}.{torch.micro}",
}


def _companion_versions(name: str, companion: Companion, torch: Version) -> Iterable[str]:
    """Return the companion's releases that run with that torch; some may not be there."""
    exact = Version(_MADE_FOR[name](torch))
    yield str(exact)
    since = companion.free_since
    if torch >= companion.free_torch:
        for minor in range(since.minor, exact.minor + 1):
            for patch in range(_PATCH_RELEASES):
                if (minor, patch) >= (since.minor, since.micro):
                    yield f"{exact.major}.{minor}.{patch}"


_PATCH_RELEASES = 6


# A name alone, as PEP 508 has it.
_BARE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def read_demand(
    requirements: Iterable[str], interpreter: Interpreter, installed: Iterable[str]
) -> Demand:
    """Return what the requirements demand of torch, all together, in that interpreter.

    `installed` are the names of the packages that are there already.

    Raises
    ------
    RequestError
        A requirement is malformed.
    """
    demands: dict[str, SpecifierSet] = {}
    named = set(installed)
    for text in requirements:
        if _BARE_NAME.fullmatch(text):
            named.add(text.lower())  # and demands nothing of a version
            continue
        from packaging.utils import canonicalize_name

        requirement = parse_requirement(text)
        if applies_in(requirement, interpreter):
            name = canonicalize_name(requirement.name)
            named.add(name)
            there = demands.get(name)
            demand = requirement.specifier if requirement.url is None else _of_wheel(requirement)
            demands[name] = demand if there is None else there & demand
    return Demand(
        torch=demands.get("torch"),
        companions=tuple((name, demands[name]) for name in _MADE_FOR if demands.get(name)),
        named=frozenset(named & _MADE_FOR.keys()),
    )


def _of_wheel(requirement: Requirement) -> SpecifierSet:
    """Return the version that a wheel named by its address has; nothing for other addresses."""
    from urllib.parse import unquote, urlsplit

    from packaging.specifiers import SpecifierSet
    from packaging.utils import parse_wheel_filename

    try:
        _, _, file_name = unquote(urlsplit(requirement.url or "").path).rpartition("/")
        _, version, _, _ = parse_wheel_filename(file_name)
    except ValueError:  # which its own errors are too
        return SpecifierSet()
    return SpecifierSet(f"=={version}")


def applies_in(requirement: Requirement, interpreter: Interpreter) -> bool:
    """Return whether the requirement's marker holds for that interpreter on this system.

    Raises
    ------
    RequestError
    """
    names = {"cpython": "CPython", "pypy": "PyPy"}
    environment = {
        "implementation_name": interpreter.implementation,
        "platform_python_implementation": names.get(interpreter.implementation, ""),
        "python_version": ".".join(interpreter.version.split(".")[:2]),
        "python_full_version": interpreter.version,
    }
    try:
        return requirement.marker is None or requirement.marker.evaluate(environment)
    except ValueError as error:  # `sys_platform ~= "linux"`: no such order among names
        message = f"The marker of `{requirement}` compares what can't be compared"
        hint = 'write it such as `torch<2.9; python_version < "3.12"`'
        raise RequestError(message, hint=hint, detail=str(error)) from error
