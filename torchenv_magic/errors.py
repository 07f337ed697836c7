"""The error tree: every failure a person can meet is one of these, with one message and one hint.

```
TorchEnvError
├── RequestError            what was asked for is malformed or unknown              exit 2
│   └── ConfigurationError  what a hub was set up with is
├── TargetError             the environment can't be installed into
├── UvError                 uv is missing, too old, or ended in a way we don't know
├── SelectionError          no build fits the request on this host
├── PlanError               the request can't be resolved
│   ├── ConflictError       requirements, or installed packages, contradict it
│   └── SourceError         the place the wheels come from can't be used
├── NotebookError           a notebook's file can't be read as one, or can't be written now
├── LockError               what a notebook's lock says can't be had here, or isn't to be trusted
├── ExportError             what was chosen can't be written out in that form, or into that file
├── ConsentError            what would be done is to be asked for first
├── InstallError            the environment was not changed, or was put back
│   ├── DiskSpaceError
│   ├── BusyError           another install works on this environment
│   │   └── ChangedError    or has worked on it since the plan was made
│   └── InstallCancelled    the person stopped it
├── RestartError            the kernel has to be restarted by hand
└── VerificationError       PyTorch is there and does not work as asked
```
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BusyError",
    "ChangedError",
    "ConfigurationError",
    "ConflictError",
    "ConsentError",
    "DiskSpaceError",
    "ExportError",
    "InstallCancelled",
    "InstallError",
    "LockError",
    "NotebookError",
    "PlanError",
    "RequestError",
    "RestartError",
    "SelectionError",
    "SourceError",
    "TargetError",
    "TorchEnvError",
    "UvError",
    "VerificationError",
]


class TorchEnvError(Exception):
    """An expected failure: `message` says what happened and what it means, `hint` one action."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        # The tool's own words (uv's stderr): kept for the folded log, never the first thing shown.
        self.detail = detail
        # Which environment stands after a change that failed: a sentence of whoever has looked.
        self.standing = ""

    def __str__(self) -> str:
        message = f"{self.message}. {self.standing}" if self.standing else self.message
        return f"{message}\n\nhint: {self.hint}" if self.hint else message

    def _render_traceback_(self) -> list[str]:
        # IPython's documented hook: a real error output (nbclient and Run All stop) without a
        # traceback that would only show our own frames.
        return str(self).splitlines()

    def to_json(self) -> dict[str, str]:
        """Return code, message, hint and detail, as the `--json` words print them."""
        return {
            "code": self.code,
            "message": self.message,
            **({"standing": self.standing} if self.standing else {}),
            "hint": self.hint,
            "detail": self.detail,
        }


class RequestError(TorchEnvError):
    code = "request"
    exit_status = 2


class ConfigurationError(RequestError):
    code = "configuration"


class TargetError(TorchEnvError):
    code = "target"


class UvError(TorchEnvError):
    code = "uv"


class SelectionError(TorchEnvError):
    code = "selection"


class PlanError(TorchEnvError):
    code = "plan"


class ConflictError(PlanError):
    code = "conflict"


class SourceError(PlanError):
    code = "source"


class NotebookError(TorchEnvError):
    code = "notebook"


class LockError(TorchEnvError):
    code = "lock"


class ExportError(TorchEnvError):
    code = "export"


class ConsentError(TorchEnvError):
    code = "consent"


class InstallError(TorchEnvError):
    code = "install"


class DiskSpaceError(InstallError):
    code = "disk-space"


class BusyError(InstallError):
    code = "busy"


class ChangedError(BusyError):
    code = "changed"


class InstallCancelled(InstallError):  # noqa: N818  (the field's word: it was not an error to cancel)
    code = "cancelled"


class RestartError(TorchEnvError):
    code = "restart"


class VerificationError(TorchEnvError):
    code = "verification"
