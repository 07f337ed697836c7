"""The notebooks of `notebooks/` do what they say, from top to bottom, in a real kernel."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tests.standin import TORCH
from tests.test_headless import execute_notebook
from tests.test_repository import git
from tests.workplace import Workplace, outputs_of

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = (
    "quickstart",
    "picking-by-hand",
    "headless-and-ci",
    "locks-on-other-hardware",
    "jupyterhub-tour",
)
INSTALLED = f"torch {TORCH}+cpu"


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def run(workplace: Workplace, name: str) -> dict[str, str]:
    """Run a notebook as it is, in a folder of its own; return what each cell showed, by its id."""
    done = execute_notebook(workplace, read(name))
    return {cell.id: outputs_of(done, number) for number, cell in enumerate(done.cells)}


def test_every_notebook_is_run_here_and_a_page_of_the_site() -> None:
    tracked = git("ls-files", "--", "notebooks").splitlines()
    assert {Path(path).stem for path in tracked} == set(NAMES)
    pages = FOLDER.parent / "docs" / "notebooks"
    for name in NAMES:
        page = (pages / f"{name}.md").read_text(encoding="utf-8")
        assert page.endswith(f"<!-- from: notebook {name} -->\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_begins_with_its_title_and_has_no_outputs(name: str) -> None:
    # As git would commit it: working through a notebook rightly leaves outputs in the file.
    text = git("show", f":notebooks/{name}.ipynb")
    notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.execution_count, cell.outputs) for cell in code] == [(None, [])] * len(code)
    # A notebook is a text to read: no two cells of code without a word between all of them.
    assert sum(cell.cell_type == "markdown" for cell in notebook.cells) * 2 >= len(code) - 1


def test_the_quickstart_stops_at_its_proof_until_something_is_installed(
    workplace: Workplace,
) -> None:
    with pytest.raises(CellExecutionError) as caught:
        run(workplace, "quickstart")
    assert caught.value.ename == "VerificationError"
    assert workplace.run(workplace.torchenv, "install", "cpu").returncode == 0
    shown = run(workplace, "quickstart")
    assert f"{INSTALLED}, as asked for" in shown["torchenv-verify"]


def test_picking_by_hand_shows_each_reason_and_installs_what_was_picked(
    workplace: Workplace,
) -> None:
    shown = run(workplace, "picking-by-hand")
    assert "'cpu': " in shown["list"]
    assert "xpu: " in shown["refused"]
    assert f"installs torch {TORCH}+cpu" in shown["plan"]
    assert f"('torch', None, '{TORCH}+cpu')" in shown["changes"]
    assert "cu126" in shown["another-machine"]
    assert "PyTorch works\n" in shown["torchenv-verify"]
    assert "%torchenv install cpu 'torch==2.13.*'" in shown["history"]
    assert workplace.versions()["torch"] == f"{TORCH}+cpu"


def test_headless_and_ci_installs_proves_and_works_in_one_pass(workplace: Workplace) -> None:
    shown = run(workplace, "headless-and-ci")
    assert f"Installed {INSTALLED}" in shown["torchenv-setup"]
    assert "PyTorch works\n" in shown["torchenv-verify"]
    assert shown["work-cell"] == "8.0"
    assert "('cpu', '" in shown["select"]
    assert "False" not in shown["verify-json"]
    assert "True" in shown["verify-json"]


def test_locks_on_other_hardware_restores_what_was_locked(workplace: Workplace) -> None:
    shown = run(workplace, "locks-on-other-hardware")
    assert f"at torch {TORCH} for " in shown["look"]
    for backend in ("cpu", "cu126"):
        assert f"'torch': '{TORCH}+{backend}'" in shown["look"]
    assert "%torchenv restore" in shown["sources"]
    assert "%torchenv verify" in shown["sources"]
    assert "PyTorch works\n" in shown["torchenv-verify"]
    demo = json.loads((workplace.directory / "demo.ipynb").read_text(encoding="utf-8"))
    assert set(demo["metadata"]["torchenv"]["backends"]) == {"cpu", "cu126"}
    assert workplace.versions()["torch"] == f"{TORCH}+cpu"


def test_the_tour_of_a_hub_installs_before_its_server_starts(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What passes beside a server lies in the temporary folder; its home is a person's own.
    monkeypatch.setenv("TMPDIR", str(workplace.directory))
    monkeypatch.setenv("HOME", str(workplace.directory))
    shown = run(workplace, "jupyterhub-tour")
    assert "['torchenv', 'preinstall', '--', 'jupyterhub-singleuser']" in shown["spawner-command"]
    assert "'TORCHENV_FIND_LINKS'" in shown["spawner-environment"]
    assert "Automatic: " in shown["variants"]
    assert "Now this process is the server" in shown["preinstall"]
    assert float(shown["warm-start"].splitlines()[-1]) < 60
    assert f"{TORCH}+cpu" in shown["status"]
    assert "PyTorch works\n" in shown["torchenv-verify"]
