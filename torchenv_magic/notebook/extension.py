"""`%load_ext torchenv_magic`: registers, and returns. Nothing is looked at, nothing is printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchenv_magic.notebook import completion

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from torchenv_magic.verification import Verification

__all__ = ["load", "unload"]


def load(shell: InteractiveShell) -> None:
    """Register the magic and its completion."""

    def torchenv(line: str) -> object:
        """Pick, install and prove the right PyTorch build: `%torchenv -h` tells all.

        Examples
        --------
        %torchenv                        the picker
        %torchenv status                 what is here, what would be chosen, and why
        %torchenv list                   every build, with the reason for each
        %torchenv plan cu126             what an install would change
        %torchenv install                the best build; restarts the kernel and verifies
        %torchenv install cpu torch==2.13.* torchvision
        %torchenv verify                 prove that the installed PyTorch works
        %torchenv undo                   back to what was there before the last install
        """
        # Half a second of imports that loading must not cost.
        try:
            from torchenv_magic.notebook.magic import run
        except KeyboardInterrupt:
            from torchenv_magic.errors import InstallCancelled

            raise InstallCancelled("Cancelled; the environment is as it was") from None
        return run(shell, line)

    shell.register_magic_function(torchenv, "line", "torchenv")  # type: ignore[arg-type]
    completion.register(shell)
    for formatters, name in _formatters(shell):
        html = _verification_html if name == _VERIFICATION else _html
        formatters["text/html"].for_type_by_name(*name, html)
        formatters["text/plain"].for_type_by_name(*name, _text)
    bundles = _bundles(shell)
    if bundles is not None:
        bundles.for_type_by_name(*_VERIFICATION, _verification_data)


def unload(shell: InteractiveShell) -> None:
    """Take away the magic, its completion and its formatters."""
    shell.magics_manager.magics["line"].pop("torchenv", None)
    completion.unregister(shell)
    for formatters, name in _formatters(shell):
        for mime in ("text/html", "text/plain"):
            formatters[mime].pop(".".join(name), None)
    bundles = _bundles(shell)
    if bundles is not None:
        bundles.pop(".".join(_VERIFICATION), None)


# The records that are shown as tables, by name: to import them is what loading must not cost.
_VERIFICATION = ("torchenv_magic.verification.report", "Verification")
_RECORDS = (
    ("torchenv_magic.accelerators.records", "Host"),
    ("torchenv_magic.doctor.diagnosis", "Diagnosis"),
    ("torchenv_magic.installation.history", "History"),
    ("torchenv_magic.installation.plan", "Plan"),
    ("torchenv_magic.selection", "Selection"),
    ("torchenv_magic.status", "Status"),
)


def _formatters(shell: InteractiveShell) -> Iterator[tuple[Any, tuple[str, str]]]:
    if shell.display_formatter is not None:
        for name in (*_RECORDS, _VERIFICATION):
            yield shell.display_formatter.formatters, name


def _bundles(shell: InteractiveShell) -> Any:  # noqa: ANN401  (IPython's)
    return None if shell.display_formatter is None else shell.display_formatter.mimebundle_formatter


def _html(record: object) -> str:
    from torchenv_magic.notebook.rendering import record_html

    return record_html(record)


def _verification_html(verification: Verification) -> str:
    from torchenv_magic.notebook.verification_table import verification_html

    return verification_html(verification)


def _verification_data(verification: Verification) -> dict[str, Any]:
    from torchenv_magic.notebook.verification_table import verification_data

    return verification_data(verification)


def _text(record: object, printer: Any, _cycle: bool) -> None:  # noqa: ANN401, FBT001  (IPython's)
    printer.text(str(record))
