"""Which front end runs the cell: every rule on its own, and a real kernel driven in two ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.kernels import Kernel
from torchenv_magic.notebook.front_end import (
    Evidence,
    FrontEnd,
    FrontEndKind,
    classify,
    read_front_end,
)

CONNECTION_FILE = Path("/runtime/kernel-5dcbab1e-41d1-4ab6-8a26-6c8ac1d4ba6b.json")
LAB = Evidence(
    platform="linux",
    kernel_class="ipykernel.ipkernel.IPythonKernel",
    allow_stdin=True,
    connection_file=CONNECTION_FILE,
    cell_id="b1e1a1a2-8d8e-4c7b-9a4e-0a4b54bb8a2f",
    session="6f0a7c5e",
    starting_directory=Path("/home/ada/lab"),
    has_ipywidgets=True,
    variables={"JPY_SESSION_NAME": "/home/ada/lab/train.ipynb"},
)
CONSOLE = replace(LAB, cell_id=None, variables={})

CASES: tuple[tuple[FrontEndKind, Evidence], ...] = (
    ("jupyter", LAB),
    ("jupyter", replace(LAB, variables={})),
    ("jupyter", replace(LAB, cell_id=None)),
    ("console", CONSOLE),
    ("terminal", replace(LAB, kernel_class=None, allow_stdin=None, connection_file=None)),
    ("headless", replace(LAB, allow_stdin=False)),
    ("headless", replace(CONSOLE, allow_stdin=False)),
    ("vscode", replace(LAB, cell_id="vscode-notebook-cell:/home/ada/train.ipynb#W1sZmlsZQ")),
    ("vscode", replace(CONSOLE, vscode_notebook="/home/ada/train.ipynb")),
    ("headless", replace(LAB, cell_id="vscode-notebook-cell:/a.ipynb#W0", allow_stdin=False)),
    # Colab's own way to answer `input()` says nothing about `allow_stdin`.
    ("colab", replace(LAB, variables={"COLAB_RELEASE_TAG": "release-colab"}, allow_stdin=False)),
    ("kaggle", replace(LAB, variables={"KAGGLE_KERNEL_RUN_TYPE": "Interactive"})),
    ("headless", replace(LAB, variables={"KAGGLE_KERNEL_RUN_TYPE": "Batch"})),
    ("pyodide", replace(LAB, platform="emscripten", connection_file=None)),
    ("unknown", replace(LAB, kernel_class="spyder_kernels.console.kernel.SpyderKernel")),
    ("unknown", replace(LAB, connection_file=None)),
)


@pytest.mark.parametrize(("kind", "evidence"), CASES)
def test_each_front_end_is_known_by_what_it_leaves(kind: FrontEndKind, evidence: Evidence) -> None:
    front_end = classify(evidence)
    assert front_end.kind == kind
    assert front_end.reason
    assert front_end.interactive is (kind != "headless")


def test_what_identifies_the_kernel_and_the_asking_client_is_kept() -> None:
    assert classify(LAB) == FrontEnd(
        kind="jupyter",
        reason="the request carries a cell's id",
        kernel_id="5dcbab1e-41d1-4ab6-8a26-6c8ac1d4ba6b",
        connection_file=CONNECTION_FILE,
        notebook_path=Path("/home/ada/lab/train.ipynb"),
        cell_id="b1e1a1a2-8d8e-4c7b-9a4e-0a4b54bb8a2f",
        session="6f0a7c5e",
        can_display_widgets=None,
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/home/ada/lab/train.ipynb", "/home/ada/lab/train.ipynb"),
        # The path below the server's root, of a session that was made without a name.
        ("lab/train.ipynb", "/home/ada/lab/train.ipynb"),
        ("/home/ada/lab/console-1-0c8f", None),
        ("/home/ada/lab/script.py", None),
        ("", None),
    ],
)
def test_the_notebook_is_the_session_s_where_it_is_one(name: str, path: str | None) -> None:
    front_end = classify(replace(LAB, variables={"JPY_SESSION_NAME": name}))
    assert front_end.notebook_path == (Path(path) if path else None)


@pytest.mark.parametrize("name", ["kernel.json", "connection.json", "kernel-.json"])
def test_a_connection_file_of_another_name_has_no_kernel_id(name: str) -> None:
    assert classify(replace(LAB, connection_file=Path("/runtime", name))).kernel_id is None


def test_widgets_are_ruled_out_where_they_can_not_be_and_else_left_open() -> None:
    assert classify(LAB).can_display_widgets is None
    assert classify(replace(LAB, has_ipywidgets=False)).can_display_widgets is False
    assert classify(CONSOLE).can_display_widgets is False
    assert classify(replace(LAB, allow_stdin=False)).can_display_widgets is False


def test_a_shell_without_a_kernel_is_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    front_end = read_front_end(InteractiveShell())  # type: ignore[no-untyped-call]
    assert (front_end.kind, front_end.connection_file, front_end.session) == (
        "terminal",
        None,
        None,
    )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with Kernel.start(tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


READ = """\
from torchenv_magic.notebook.front_end import read_front_end
front_end = read_front_end(get_ipython())
"""


def test_a_real_kernel_tells_a_lab_a_console_and_a_run_without_a_person(kernel: Kernel) -> None:
    kernel.run(READ, cell_id="a1")
    assert kernel.value("front_end.kind, front_end.cell_id") == ["jupyter", "a1"]
    assert kernel.value("front_end.session") == kernel.client.session.session
    assert kernel.value("str(front_end.connection_file)") == str(kernel.connection_file)
    kernel.run(READ)
    assert kernel.value("front_end.kind, front_end.can_display_widgets") == ["console", False]
    kernel.run(READ, allow_stdin=False)
    assert kernel.value("front_end.kind") == "headless"


def test_reading_is_cheap(kernel: Kernel) -> None:
    kernel.run(READ)
    seconds = kernel.value(
        "min(__import__('timeit').repeat(lambda: read_front_end(get_ipython()), number=1))"
    )
    assert seconds < 0.005
