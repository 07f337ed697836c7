"""From uv's last words to one message and one hint (pure).

uv's exit status does not classify (an index that answers 500 is 2, a wheel that answers 404 is 1),
and its wording changed between 0.12 and 0.13: so the words are matched loosely, and whatever is
not recognised is said as it is. `tests/data/uv/failures.json` has what uv 0.13.9 really says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from torchenv_magic.environment import signal_name
from torchenv_magic.errors import (
    ConflictError,
    DiskSpaceError,
    InstallError,
    PlanError,
    RequestError,
    SourceError,
    TargetError,
    TorchEnvError,
    UvError,
)
from torchenv_magic.installation.uv import Completed

__all__ = ["explain", "lacks_in_cache", "not_found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """What uv said when it failed: the error and its causes, outermost first, and its hints."""

    causes: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def flat(self) -> str:
        return " / ".join(self.causes)


# uv 0.13: `error: …`, indented `cause: …`, `hint: …`. uv 0.12: `  × …`, `  ╰─▶ …`.
_MARK = re.compile(r"^\s*(error:|cause:|Caused by:|hint:|warning:|[×╰├]\S*)\s*")


def _read(text: str) -> _Words:
    causes: list[str] = []
    hints: list[str] = []
    current: list[str] | None = None
    for line in text.splitlines():
        match = _MARK.match(line)
        if match:
            kind = match[1]
            current = hints if kind == "hint:" else None if kind == "warning:" else causes
            if current is not None:
                current.append(line[match.end() :].strip())
        elif not line.strip():
            # An empty line ends a warning, but not an error's own text.
            current = None if current is hints else current
        elif current and line[:1] in " │":
            current[-1] += " " + line.strip(" │")
        elif current:
            current = None
    return _Words(causes=tuple(causes), hints=tuple(hints))


_CONFIGURATION = re.compile(
    r"Failed to parse environment variable|Failed to parse: \S*(?:uv\.toml|pyproject\.toml)"
    r"|TOML parse error|required-version|(?:invalid value|a value is required) .*for '--"
    r"|`--find-links` directory"
)
_CERTIFICATE = re.compile(r"invalid peer certificate|UnknownIssuer|certificate verify")
_OFFLINE = re.compile(r"network was disabled|[Nn]etwork connectivity is disabled")
_LOGIN = re.compile(r"\(401 Unauthorized\)|lack of valid authentication credentials")
_STATUS = re.compile(r"HTTP status \w+ error \((\d+)[^)]*\)(?: for url \((\S+)\))?")
_NETWORK = re.compile(
    r"error sending request|dns error|tcp connect|tunnel error|timed out|network timeout"
    r"|client error|[Cc]onnection|close_notify|response body|distribution cache",
)
_DAMAGED = re.compile(r"Hash mismatch|Bad CRC|Failed to extract|unexpected end of file")
_PERMISSION = re.compile(r"Permission denied|os error 13|Read-only file system|os error 30")
_NOT_FOUND = re.compile(r"(\S+) was not found in the package registry")
_NO_WHEEL = re.compile(r"no (?:wheels|wheel) with a matching (Python|platform)")
_NO_VERSION = re.compile(r"there (?:is|are) no versions? of|only .* (?:is|are) available")
_ADDRESS = re.compile(r"(?:fetch:|for url \(|in the cache:|index URL \() ?(https?://[^\s)`]+)")


def explain(
    completed: Completed, *, subject: str, constrained_by: tuple[str, ...] = ()
) -> TorchEnvError:
    """Return the error that says what uv's failure means.

    Parameters
    ----------
    subject
        What was wanted: `torch for cu126`.
    constrained_by
        What the installed packages require without which it would have worked.
    """
    words = _read(completed.stderr)
    kind, message, hint = (
        _of_machine(words, subject)
        or _of_network(words, subject)
        or _of_resolution(words, subject, constrained_by)
        or _of_rest(words, completed)
    )
    return kind(message, hint=hint, detail=completed.stderr.strip())


def not_found(completed: Completed) -> str | None:
    """Return the package that no index has, where that is what uv says."""
    match = _NOT_FOUND.search(_read(completed.stderr).flat)
    return match[1] if match else None


def lacks_in_cache(completed: Completed) -> bool:
    """Return whether a run without a network failed for want of what uv's cache has not."""
    words = _read(completed.stderr)
    return _OFFLINE.search(" ".join((words.flat, *words.hints))) is not None


_Explanation = tuple[type[TorchEnvError], str, str]


def _of_machine(words: _Words, subject: str) -> _Explanation | None:
    flat = words.flat
    if "No space left" in flat or "os error 28" in flat:
        path = re.search(r"`([^`]+)`: No space|to (\S+): No space", flat)
        place = f" at `{path[1] or path[2]}`" if path else ""
        return (
            DiskSpaceError,
            f"The disk is full{place}",
            "free some space (`uv cache prune` removes what broken downloads left), then try again",
        )
    if "quota exceeded" in flat.lower() or "os error 122" in flat:
        return (
            DiskSpaceError,
            "Your share of the disk is used up: its quota lets nothing more be written",
            "free some of your own space, or set UV_CACHE_DIR to a folder that counts elsewhere",
        )
    if _CONFIGURATION.search(flat):
        return (
            UvError,
            f"uv's configuration can't be used: {_innermost(words, 2)}",
            "mend or remove what it names (an environment variable, `uv.toml` or `pyproject.toml`)",
        )
    if _OFFLINE.search(" ".join((flat, *words.hints))):
        return (
            SourceError,
            f"uv is told to use no network, and its cache lacks some of {subject}",
            "unset UV_OFFLINE (or `offline` in uv's configuration), then try again",
        )
    if "externally managed" in flat:
        return (
            TargetError,
            "The environment belongs to the system's package manager, which forbids installing",
            "`%torchenv new-kernel NAME` makes an environment of your own",
        )
    if _PERMISSION.search(flat):
        return (
            TargetError,
            f"The environment or uv's cache can't be written: {_innermost(words)}",
            "set UV_CACHE_DIR to a folder of yours, or run `%torchenv new-kernel NAME`",
        )
    return None


def _of_network(words: _Words, subject: str) -> _Explanation | None:
    flat = words.flat
    host = _host(flat)
    if _CERTIFICATE.search(flat):
        return (
            SourceError,
            f"The certificate of {host or 'the server'} isn't trusted here",
            "set SSL_CERT_FILE to a file with your site's certificates, then try again",
        )
    if "Hash mismatch" in flat or "Bad CRC" in flat:
        what = "has another hash than the index says" if "Hash" in flat else "is damaged"
        return (
            InstallError,
            f"What {host or 'the server'} sent for {_package(flat) or subject} {what}",
            "try again; if it stays so, the index or something on the way to it is at fault",
        )
    told = " ".join((flat, *words.hints))
    if _LOGIN.search(told):
        place = _host(told) or "An index"
        return (
            SourceError,
            f"{place} wants a login for {_package(flat) or subject}, or another one",
            "put it into your netrc file, or see how a mirror's login is told in the README",
        )
    if match := _STATUS.search(flat):
        return (
            SourceError,
            f"{host or 'The server'} answered HTTP {match[1]} for {_package(flat) or subject}",
            "try again in a moment, or choose another backend",
        )
    if _NETWORK.search(flat):
        place = f" from {host}" if host else ""
        return (
            SourceError,
            f"The network failed while {_package(flat) or subject} was fetched{place}: "
            + _innermost(words),
            "check the connection (and HTTPS_PROXY), then try again",
        )
    if "malformed wheel" in flat or re.search(r"dist-info/\w+`: No such file", flat):
        return (
            InstallError,
            f"The wheel of {_package(flat) or subject} is malformed: {_innermost(words)}",
            "choose another version; whoever made this one should know",
        )
    if _DAMAGED.search(flat):
        return (
            InstallError,
            f"A download of {_package(flat) or subject} is damaged: {_innermost(words)}",
            "try again; if it stays so, run `uv cache clean torch` first",
        )
    return None


def _of_resolution(
    words: _Words, subject: str, constrained_by: tuple[str, ...]
) -> _Explanation | None:
    flat = words.flat
    if constrained_by:
        return (
            ConflictError,
            f"{subject} contradicts what is installed: {'; '.join(constrained_by)}",
            "ask for a version that they admit, or name them too, so that they change with it",
        )
    if match := _NO_WHEEL.search(flat):
        tags = [re.sub(r"\s+", " ", hint) for hint in words.hints]
        return (
            PlanError,
            f"There is no wheel of {subject} for this {match[1]}{f': {tags[0]}' if tags else ''}",
            "choose another backend or torch version; `%torchenv list` shows what fits",
        )
    if match := _NOT_FOUND.search(flat):
        return (
            PlanError,
            f"`{match[1]}` is on none of the indexes that were asked for {subject}",
            "check how it is written; uv says the same of an index that answers 401 or 403",
        )
    if not re.search("No solution found|unsatisfiable|onflicting", flat):
        return None
    premises = _premises(flat)
    if _NO_VERSION.search(flat):
        return (
            PlanError,
            f"{subject} can't be had: {premises}",
            "leave the version out, or see `%torchenv list`",
        )
    return (
        ConflictError,
        f"The requirements of {subject} contradict each other: {premises}",
        "drop or loosen one of them",
    )


_FROM_OUTSIDE = ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM")


def _of_rest(words: _Words, completed: Completed) -> _Explanation:
    if re.search("Couldn't parse requirement|Failed to parse", words.flat):
        return (
            RequestError,
            f"uv can't read the requirements: {_innermost(words, 2)}",
            "write them as pip does: `torch==2.13.*`",
        )
    if completed.returncode < 0:
        name = signal_name(-completed.returncode)
        how = "was ended from outside" if name in _FROM_OUTSIDE else "crashed"
        hint = "try again; where memory ran out, end what uses it first"
        return UvError, f"uv {how} ({name})", hint
    said = _innermost(words, 2) or completed.stderr.strip().rpartition("\n")[2].strip()
    return (
        UvError,
        f"uv ended with status {completed.returncode}: {said or 'it said nothing'}",
        "read the folded log: it has all that uv said",
    )


def _innermost(words: _Words, count: int = 1) -> str:
    """Return the last causes, which tell most, as one clause."""
    told = [re.sub(r"\s+", " ", cause).rstrip(".") for cause in words.causes[-count:]]
    text = re.sub(r" \(os error \d+\)", "", ": ".join(told))
    # rustls' own sentence, with a link to its manual: the download ended too early.
    return re.sub(r"peer closed connection without.*", "the connection ended early", text)[:400]


def _premises(flat: str) -> str:
    """Return what a resolver's explanation starts from, without what it concludes each time."""
    found = re.findall(r"(?:B|And b)ecause (.*?)(?:, we can conclude|$)", re.sub(r"\s+", " ", flat))
    return "; ".join(found)[:600] or flat[:600]


def _package(flat: str) -> str | None:
    match = re.search(r"Failed to download `([^`]+)`", flat)
    return match[1] if match else None


def _host(flat: str) -> str | None:
    match = _ADDRESS.search(flat)
    if match is None:
        return None
    try:
        return urlsplit(match[1]).hostname
    except ValueError:
        return None
