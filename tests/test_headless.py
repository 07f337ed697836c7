"""The words where nobody watches: nbclient, `jupyter execute`, nbconvert and papermill."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tests.kernels import SECONDS
from tests.standin import make_wheel
from tests.workplace import Workplace, outputs_of
from torchenv_magic.notebook.verification_table import VERIFICATION_MIME
from torchenv_magic.serialization import from_json
from torchenv_magic.verification import Verification

LOAD = "%load_ext torchenv_magic"
INSTALL = "%torchenv install cpu"
USE = (
    "import os, torch\nprint(torch.__version__, float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()))"
)
USED = "2.13.0+cpu 8.0"
# The process that runs a cell: a restart in between would show.
PROCESS = "import os; print('process', os.getpid())"


def execute(workplace: Workplace, *sources: str) -> NotebookNode:
    """Execute a notebook of these cells with nbclient; raises what it raises."""
    return execute_notebook(workplace, nbformat.read(workplace.notebook(*sources), as_version=4))


def execute_notebook(workplace: Workplace, notebook: NotebookNode) -> NotebookNode:
    """Execute a notebook with nbclient in the kernel of the workplace; raises what it raises."""
    manager = AsyncKernelManager(
        kernel_name=workplace.kernel_name,
        kernel_spec_manager=KernelSpecManager(
            kernel_dirs=[str(workplace.directory / "data/kernels")]
        ),
    )
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=int(SECONDS),
        resources={"metadata": {"path": str(workplace.directory)}},
    )
    try:
        client.execute(env=workplace.variables)
    except CellExecutionError:
        # What a run leaves behind is part of it.
        nbformat.write(notebook, workplace.directory / "failed.ipynb")
        raise
    return notebook


def processes(notebook: NotebookNode) -> set[str]:
    text = "\n".join(outputs_of(notebook, index) for index in range(len(notebook.cells)))
    return set(re.findall(r"process (\d+)", text))


def test_one_pass_installs_verifies_and_uses(workplace: Workplace) -> None:
    notebook = execute(workplace, f"{LOAD}\n{PROCESS}", INSTALL, f"{USE}\n{PROCESS}")
    installed = outputs_of(notebook, 1)
    assert re.search(
        r"^Installed torch 2\.13\.0\+cpu and 1 other package in [\d.]+ s\. Nothing of it was "
        r"loaded here, so the session goes on\.$",
        installed,
        re.MULTILINE,
    )
    assert "PyTorch works\n" in installed
    # Of the progress only its end stays.
    assert "Downloading" not in installed
    assert USED in outputs_of(notebook, 2)
    assert len(processes(notebook)) == 1


def test_all_words_and_the_picker_in_one_pass(workplace: Workplace) -> None:
    notebook = execute(
        workplace, f"{LOAD}\n%torchenv", "%torchenv plan cpu", INSTALL, INSTALL, "%torchenv verify"
    )
    assert "This front end shows no widgets: `%torchenv install` does the same in words." in (
        outputs_of(notebook, 0)
    )
    assert "installs torch 2.13.0+cpu" in outputs_of(notebook, 1)
    assert "PyTorch works\n" in outputs_of(notebook, 2)
    # Nothing to do: no word about it but the proof.
    assert outputs_of(notebook, 3).strip().startswith("PyTorch works\n")
    assert "torch 2.13.0+cpu, as asked for" in outputs_of(notebook, 4)


def test_saved_notebook_holds_the_verification_for_programs_too(workplace: Workplace) -> None:
    notebook = execute(workplace, LOAD, INSTALL, "%torchenv verify")
    path = workplace.directory / "saved.ipynb"
    nbformat.write(notebook, path)
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    for index in (1, 2):
        found = [
            from_json(Verification, output["data"][VERIFICATION_MIME])
            for output in saved.cells[index].outputs
            if VERIFICATION_MIME in output.get("data", {})
        ]
        assert [each.torch for each in found] == ["2.13.0+cpu"]
        assert found[0].passed
        assert str(found[0]) in outputs_of(saved, index)


def test_what_is_imported_and_then_replaced_is_an_error_once(workplace: Workplace) -> None:
    execute(workplace, LOAD, "%torchenv install cpu torch==2.12.0")
    cells = ("import torch", LOAD, "%torchenv install cpu torch==2.13.0", USE)
    with pytest.raises(CellExecutionError) as caught:
        execute(workplace, *cells)
    assert caught.value.ename == "RestartError"
    failed = nbformat.read(workplace.directory / "failed.ipynb", as_version=4)
    text = outputs_of(failed, 2)
    assert text.rstrip().endswith(
        "torch was imported before the install replaced it: the environment is the new one, this "
        "process still holds the old\n\n"
        "hint: put `%torchenv install` before the first import, and run the notebook again"
    )
    assert "Traceback" not in text
    assert failed.cells[3].outputs == []
    assert workplace.versions()["torch"] == "2.13.0+cpu"
    # The second time the first import is of the new one.
    assert USED in outputs_of(execute(workplace, *cells), 3)


def serve_torch(workplace: Workplace, version: str, code: str) -> None:
    files = {"torch/__init__.py": code, "torch/version.py": f"__version__ = '{version}+cpu'\n"}
    folder = workplace.directory / "wheels"
    workplace.standin.add_wheel("cpu", make_wheel(folder, "torch", f"{version}+cpu", files=files))
    workplace.cache = workplace.directory / "cache"


def test_a_pytorch_that_does_not_work_stops_the_run(workplace: Workplace) -> None:
    serve_torch(workplace, "2.13.1", "__version__ = '2.13.1+cpu'\n")
    with pytest.raises(CellExecutionError) as caught:
        execute(workplace, LOAD, INSTALL, "print('after')")
    assert caught.value.ename == "VerificationError"
    failed = nbformat.read(workplace.directory / "failed.ipynb", as_version=4)
    text = outputs_of(failed, 1)
    assert "Installed torch 2.13.1+cpu in " in text
    assert "PyTorch does not work as asked\n" in text
    assert failed.cells[2].outputs == []


def test_a_pytorch_that_cannot_be_imported_is_not_kept(workplace: Workplace) -> None:
    serve_torch(
        workplace, "2.13.2", "raise ImportError('libbroken.so.1: cannot open shared object')\n"
    )
    with pytest.raises(CellExecutionError) as caught:
        execute(workplace, LOAD, INSTALL, "print('after')")
    assert caught.value.ename == "InstallError"
    failed = nbformat.read(workplace.directory / "failed.ipynb", as_version=4)
    assert "libbroken.so.1: cannot open shared object" in outputs_of(failed, 1)
    assert failed.cells[2].outputs == []
    assert "torch" not in workplace.versions()


def test_an_expected_failure_can_be_handled_in_the_notebook(workplace: Workplace) -> None:
    notebook = execute(
        workplace,
        LOAD,
        "from torchenv_magic import TorchEnvError\n"
        "try:\n"
        "    %torchenv install cpu no-such-package-anywhere\n"
        "except TorchEnvError as error:\n"
        "    print('handled', error.code, bool(error.hint))",
        "print('after')",
    )
    assert "handled plan True" in outputs_of(notebook, 1)
    assert outputs_of(notebook, 2) == "after\n"
    assert workplace.versions() == {}


TOOLS = {
    "jupyter execute": ("jupyter", "execute", "--inplace", "notebook.ipynb"),
    "nbconvert": (
        "jupyter",
        "nbconvert",
        "--execute",
        "--to=notebook",
        "--inplace",
        "notebook.ipynb",
    ),
    "papermill": ("papermill", "notebook.ipynb", "notebook.ipynb"),
}


def run_tool(workplace: Workplace, tool: str) -> subprocess.CompletedProcess[str]:
    program, *arguments = TOOLS[tool]
    return workplace.run(Path(sys.executable).with_name(program), *arguments)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_gets_through_in_one_pass(workplace: Workplace, tool: str) -> None:
    path = workplace.notebook(f"{LOAD}\n{PROCESS}", INSTALL, f"{USE}\n{PROCESS}")
    completed = run_tool(workplace, tool)
    assert completed.returncode == 0, completed.stderr
    notebook = nbformat.read(path, as_version=4)
    assert "PyTorch works\n" in outputs_of(notebook, 1)
    assert USED in outputs_of(notebook, 2)
    assert len(processes(notebook)) == 1


def test_a_tool_fails_where_the_words_do(workplace: Workplace) -> None:
    # Papermill, since it once ended with 0 where a cell failed without an error of its own.
    path = workplace.notebook(LOAD, "%torchenv install cpu torch==9", "print('after')")
    completed = run_tool(workplace, "papermill")
    assert completed.returncode == 1
    assert "torch==9" in completed.stderr
    notebook = nbformat.read(path, as_version=4)
    assert "after" not in outputs_of(notebook, len(notebook.cells) - 1)
