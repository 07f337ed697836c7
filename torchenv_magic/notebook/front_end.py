"""Tell which front end runs this cell, from what the kernel was told and from its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "Evidence",
    "FrontEnd",
    "FrontEndKind",
    "classify",
    "read_evidence",
    "read_front_end",
    "read_session",
]

FrontEndKind = Literal[
    "jupyter",
    "console",
    "terminal",
    "vscode",
    "colab",
    "kaggle",
    "headless",
    "pyodide",
    "unknown",
]

_VSCODE_CELL = "vscode-notebook-cell:"
# Names that decide; nothing else of the environment is kept, so that no token is either.
_VARIABLES = ("COLAB_RELEASE_TAG", "JPY_SESSION_NAME", "KAGGLE_KERNEL_RUN_TYPE")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEnd:
    """Who shows this cell, and what identifies the kernel, the notebook and the asking client."""

    kind: FrontEndKind
    """`jupyter` is JupyterLab, Notebook or another client of a Jupyter server; `headless` is a run
    in which nobody can answer (nbclient, nbconvert, papermill, Kaggle's batch runs)."""
    reason: str
    """What told it."""
    kernel_id: str | None = None
    connection_file: Path | None = None
    notebook_path: Path | None = None
    """Absolute; as the notebook was called when the kernel started."""
    cell_id: str | None = None
    cell_source: str | None = None
    """What the person runs."""
    session: str | None = None
    """The id of the client that sent the request: two tabs on one kernel differ in it."""
    can_display_widgets: bool | None = None
    """None where only the front end knows."""

    @property
    def interactive(self) -> bool:
        """Whether a person is there to read, click and press."""
        return self.kind != "headless"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What `classify` decides on: read once, in the main thread, while the cell runs."""

    platform: str
    """`sys.platform`."""
    kernel_class: str | None = None
    """Dotted name of the kernel's class; None without a kernel."""
    allow_stdin: bool | None = None
    """Whether the client that asked would answer `input()`; None where the kernel doesn't say."""
    connection_file: Path | None = None
    cell_id: str | None = None
    cell_source: str | None = None
    session: str | None = None
    vscode_notebook: str | None = None
    """`__vsc_ipynb_file__`, which VS Code's notebooks put into the user's names."""
    starting_directory: Path | None = None
    has_ipywidgets: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)


def read_front_end(shell: InteractiveShell) -> FrontEnd:
    """Return the front end of the request that runs now: call it from the cell's own thread.

    A widget's callback has another request (without a cell), so keep what the magic got.
    """
    return classify(read_evidence(shell))


def read_session(shell: InteractiveShell) -> str | None:
    """Return the id of the client whose request is handled now: a widget's callback has one too."""
    request = _request(getattr(shell, "kernel", None))
    return _text((request.get("header") or {}).get("session"))


def read_evidence(shell: InteractiveShell) -> Evidence:
    """Read what the shell, its kernel and the environment tell about the front end."""
    kernel = getattr(shell, "kernel", None)
    request = _request(kernel)
    metadata = request.get("metadata") or {}
    header = request.get("header") or {}
    allow_stdin = getattr(kernel, "_allow_stdin", None)
    vscode_notebook = shell.user_ns.get("__vsc_ipynb_file__")
    starting_directory = getattr(shell, "starting_dir", None)
    kernel_class = type(kernel)
    return Evidence(
        platform=sys.platform,
        kernel_class=None
        if kernel is None
        else f"{kernel_class.__module__}.{kernel_class.__qualname__}",
        allow_stdin=allow_stdin if isinstance(allow_stdin, bool) else None,
        connection_file=_connection_file(kernel),
        cell_id=_text(metadata.get("cellId")),
        cell_source=_text((request.get("content") or {}).get("code")),
        session=_text(header.get("session")),
        vscode_notebook=vscode_notebook if isinstance(vscode_notebook, str) else None,
        starting_directory=Path(starting_directory) if starting_directory else None,
        # VS Code's widgets, like everyone's, need the kernel's half of ipywidgets.
        has_ipywidgets="ipywidgets" in sys.modules or find_spec("ipywidgets") is not None,
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
    )


def classify(evidence: Evidence) -> FrontEnd:
    """Decide which front end it is; the first rule that holds wins."""
    kind, reason = _kind(evidence)
    connection_file = evidence.connection_file
    return FrontEnd(
        kind=kind,
        reason=reason,
        kernel_id=_kernel_id(connection_file),
        connection_file=connection_file,
        notebook_path=_notebook_path(evidence),
        cell_id=evidence.cell_id,
        cell_source=evidence.cell_source,
        session=evidence.session,
        can_display_widgets=_can_display_widgets(kind, has_ipywidgets=evidence.has_ipywidgets),
    )


def _kind(evidence: Evidence) -> tuple[FrontEndKind, str]:
    variables = evidence.variables
    if evidence.platform == "emscripten":
        return "pyodide", "Python runs in the browser (emscripten)"
    if evidence.kernel_class is None:
        return "terminal", "IPython runs without a kernel"
    # Colab and Kaggle answer `input()` by ways of their own, so they come before `allow_stdin`.
    if variables.get("COLAB_RELEASE_TAG"):
        return "colab", "COLAB_RELEASE_TAG is set"
    run_type = variables.get("KAGGLE_KERNEL_RUN_TYPE")
    if run_type:
        if run_type.lower() == "batch":
            return "headless", "KAGGLE_KERNEL_RUN_TYPE is Batch"
        return "kaggle", "KAGGLE_KERNEL_RUN_TYPE is set"
    if evidence.allow_stdin is False:
        return "headless", "the client that runs this cell takes no input"
    if evidence.cell_id is not None and evidence.cell_id.startswith(_VSCODE_CELL):
        return "vscode", "the cell's id is VS Code's"
    if evidence.vscode_notebook is not None:
        return "vscode", "VS Code named the notebook"
    if not evidence.kernel_class.startswith("ipykernel.") or evidence.connection_file is None:
        # Spyder, hosted notebooks, in-process kernels: who restarts them is not known.
        return "unknown", f"the kernel is {evidence.kernel_class}"
    if evidence.cell_id is not None:
        return "jupyter", "the request carries a cell's id"
    if variables.get("JPY_SESSION_NAME"):
        return "jupyter", "a Jupyter server named the session"
    return "console", "the request comes without a cell and without a session's name"


def _kernel_id(connection_file: Path | None) -> str | None:
    if connection_file is None:
        return None
    prefix, separator, kernel_id = connection_file.stem.partition("kernel-")
    return kernel_id if separator and not prefix and kernel_id else None


def _notebook_path(evidence: Evidence) -> Path | None:
    name = evidence.vscode_notebook or evidence.variables.get("JPY_SESSION_NAME")
    if not name:
        return None
    path = Path(name)
    if path.suffix != ".ipynb":  # a console's or a text editor's session
        return None
    if path.is_absolute():
        return path
    # A session that was made without a name has the path below the server's root, which the kernel
    # doesn't know; but the kernel starts beside its notebook.
    return evidence.starting_directory / path.name if evidence.starting_directory else None


def _can_display_widgets(kind: FrontEndKind, *, has_ipywidgets: bool) -> bool | None:
    if not has_ipywidgets or kind in ("terminal", "console", "headless", "pyodide"):
        return False
    return None


def _request(kernel: object) -> Mapping[str, Any]:
    get_parent = getattr(kernel, "get_parent", None)
    if get_parent is None:
        return {}
    try:
        request = get_parent("shell")
    except (TypeError, LookupError):
        return {}
    return request if isinstance(request, Mapping) else {}


def _connection_file(kernel: object) -> Path | None:
    if kernel is None:
        return None
    try:
        from ipykernel.connect import get_connection_file

        path = Path(get_connection_file())
    except Exception:  # noqa: BLE001  (an in-process or foreign kernel refuses in its own way)
        return None
    return path.absolute()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
