"""From uv's last words to one message and one hint (pure).

uv's exit status does not classify (an index that answers 500 is 2, a wheel that answers 404 is 1),
and its wording changed between 0.12 and 0.13: so the words are matched loosely, and whatever is
not recognised is said as it is.
"""

from __future__ import annotations

import re

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

__all__ = ["explain"]

_NOISE = re.compile(
    r"^(Using Python|Resolved|Prepared|Downloading|Building|Audited|warning:|hint:)"
)
_MARKS = re.compile(r"^(error:|cause:|Caused by:|[×╰─▶├│\s]+)+\s*")
_UNKNOWN_PACKAGE = re.compile(r"Because (\S+) was not found in the package registry")
_NO_WHEEL = re.compile(r"no (?:wheels|wheel) with a matching (Python|platform)")
_NO_VERSION = re.compile(
    r"there (?:is|are) no versions? of (\S+)|only \S+<=?\S+ (?:is|are) available"
)


def explain(
    completed: Completed, *, subject: str, constrained_by: tuple[str, ...] = ()
) -> TorchEnvError:
    """Return the error that says what uv's failure means.

    `subject` names what was wanted (`torch for cu126`); `constrained_by` are the installed packages
    that took part in the resolution with a requirement of their own.
    """
    text = completed.stderr
    flat = " ".join(text.split())
    sentence = _sentence(text)

    def error(kind: type[TorchEnvError], message: str, hint: str) -> TorchEnvError:
        return kind(message, hint=hint, detail=text.strip())

    if "No space left" in flat or "os error 28" in flat:
        return error(
            DiskSpaceError,
            f"The disk is full: {sentence}",
            "free some space (`uv cache prune` removes what broken downloads left), then try again",
        )
    if re.search("invalid peer certificate|UnknownIssuer|certificate verify", flat):
        return error(
            SourceError,
            f"The server's certificate isn't trusted here: {sentence}",
            "set SSL_CERT_FILE to your site's certificates, then try again",
        )
    if re.search(
        "dns error|tcp connect|tunnel error|timed out|client error|connection", flat, re.IGNORECASE
    ):
        return error(
            SourceError,
            f"The network failed while fetching {subject}: {sentence}",
            "check the connection or HTTPS_PROXY, then try again",
        )
    if re.search("Hash mismatch|Bad CRC|distribution cache|unexpected end of file", flat):
        return error(
            InstallError,
            f"A download of {subject} arrived damaged: {sentence}",
            "try again; if it stays so, run `uv cache clean torch` first",
        )
    if match := _NO_WHEEL.search(flat):
        return error(
            PlanError,
            f"There is no wheel of {subject} for this {match[1]}: {sentence}",
            "choose another backend or torch version; `%torchenv list` shows what fits",
        )
    if match := _UNKNOWN_PACKAGE.search(flat):
        return error(
            PlanError,
            f"`{match[1]}` is not on the index, so {subject} can't be installed.",
            "check the name; `%torchenv list` shows the backends that have it",
        )
    if re.search("No solution found|unsatisfiable|conflict", flat, re.IGNORECASE):
        if constrained_by:
            return error(
                ConflictError,
                f"{subject} contradicts what is installed ({'; '.join(constrained_by)}): {sentence}",
                "ask for a version that they admit, or name their new version beside it",
            )
        if _NO_VERSION.search(flat):
            return error(
                PlanError,
                f"There is no such version of {subject}: {sentence}",
                "leave the version out, or see `%torchenv list`",
            )
        return error(
            ConflictError,
            f"The requirements of {subject} can't be met together: {sentence}",
            "drop or loosen one of them",
        )
    if re.search(
        "status (client|server) error|HTTP status|Failed to download|Failed to fetch", flat
    ):
        return error(
            SourceError,
            f"The index failed while serving {subject}: {sentence}",
            "try again in a moment, or choose another backend",
        )
    if re.search("Permission denied|os error 13|Read-only file system", flat):
        return error(
            TargetError,
            f"The environment or uv's cache can't be written: {sentence}",
            "choose an environment of your own as this notebook's kernel",
        )
    if "Failed to parse" in flat:
        return error(
            RequestError,
            f"uv can't read the requirements: {sentence}",
            "write them as pip does: `torch==2.13.*`",
        )
    return error(
        UvError,
        f"uv ended with status {completed.returncode}: {sentence or 'it said nothing'}",
        "the folded log has all that uv said",
    )


def _sentence(text: str) -> str:
    """Return the most telling line of uv's words: the innermost cause, without its marks."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    cleaned = [_MARKS.sub("", line) for line in lines]
    joined = " ".join(line for line in cleaned if line)
    # A resolver's explanation is one sentence over several lines; a chain of causes is one a line.
    if "Because" in joined:
        return joined[joined.index("Because") :][:600]
    causes = [c for c, line in zip(cleaned, lines, strict=True) if "cause" in line.lower() or c]
    return (causes[-1] if causes else joined)[:600].rstrip(".") + ("." if causes or joined else "")
