"""Lock, restore and export in a notebook: where a lock goes, what is said of it, real kernels."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tests.browser.picker_gallery import MODELS
from tests.test_headless import execute, execute_notebook
from tests.test_plugin import Page
from tests.test_words_in_kernel import LOAD, run, shown
from tests.workplace import Workplace, outputs_of
from torchenv_magic.environment import Environment, InstalledPackage
from torchenv_magic.errors import ConsentError, LockError, NotebookError
from torchenv_magic.notebook.front_end import FrontEnd, FrontEndKind
from torchenv_magic.notebook.lock_offer import LockOffer, offer_for, read_saved_metadata
from torchenv_magic.notebook.lock_storing import choose_place, notebook_to_read
from torchenv_magic.notebook.magic import _read_lock
from torchenv_magic.notebook.picker_look import PickerModel, look
from torchenv_magic.project.lock import NotebookLock, lock_to_json, read_lock
from torchenv_magic.project.lock_making import lock_target
from torchenv_magic.status import Status
from torchenv_magic.words import parse_words

LOCKED = MODELS["locked"]
STANDIN = ("127.0.0.1",)


def parts() -> tuple[Status, NotebookLock]:
    """Return made-up facts: a machine with a GTX 1080 Ti, and a lock for such machines."""
    assert LOCKED.status is not None
    assert LOCKED.lock is not None
    assert LOCKED.lock.lock is not None
    status = LOCKED.status
    target = lock_target(status.environment.interpreter, status.host.platform)
    assert LOCKED.lock.lock.target == target
    return status, LOCKED.lock.lock


def with_torch(environment: Environment, version: str) -> Environment:
    """Return an environment that has what the lock has, and that torch."""
    versions = {"torch": version, "jinja2": "3.1.6", "nvidia-cublas-cu12": "12.6.4.1"}
    return replace(
        environment,
        packages=tuple(
            InstalledPackage(name=name, version=each, installer="uv")
            for name, each in versions.items()
        ),
    )


# ------------------------------------------------------------------------------------- the offer


def test_a_lock_that_is_not_here_is_offered_in_this_machine_s_build() -> None:
    status, lock = parts()
    offer = offer_for(lock, status)
    assert (offer.stage, str(offer.backend)) == ("open", "cu126")
    assert offer.title == "torch 2.14.1, for cpu, cu126 and 2 more"
    two = replace(lock, backends=lock.backends[:2])
    assert replace(offer, lock=two).title == "torch 2.14.1, for cpu and cu126"


@pytest.mark.parametrize("backend", ["cu126", "cpu"])
def test_a_lock_that_is_here_is_met_also_where_another_build_was_restored_by_name(
    backend: str,
) -> None:
    status, lock = parts()
    environment = with_torch(status.environment, f"2.14.1+{backend}")
    offer = offer_for(lock, replace(status, environment=environment))
    assert (offer.stage, str(offer.backend)) == ("met", backend)
    other = with_torch(status.environment, f"2.13.0+{backend}")
    assert offer_for(lock, replace(status, environment=other)).stage == "open"


def test_the_offer_names_what_comes_with_pytorch_before_a_click() -> None:
    status, lock = parts()
    asking = replace(lock, asked=replace(lock.asked, requirements=("torch", "jinja2<4")))
    offer = offer_for(asking, status)
    assert [each.name for each in offer.brings(status.environment)] == [
        "jinja2",
        "torch",
        "nvidia-cublas-cu12",
    ]
    seen = look(PickerModel(state="locked", status=status, lock=offer))
    assert "With PyTorch it installs jinja2." in seen.said
    assert "nvidia-cublas-cu12 12.6.4.1" in seen.said
    # What is here already is not brought.
    here = replace(status, environment=with_torch(status.environment, "2.13.0+cpu"))
    assert "With PyTorch" not in look(PickerModel(state="locked", status=here, lock=offer)).said


def test_a_lock_for_another_python_says_so_and_what_is_nearest() -> None:
    status, lock = parts()
    elsewhere = replace(lock, target=replace(lock.target, python="3.9"))
    offer = offer_for(elsewhere, status)
    assert offer.stage == "closed"
    seen = look(PickerModel(state="ready", status=status, lock=offer))
    assert (
        "It can&#x27;t be restored here: the notebook&#x27;s lock is for Python 3.9" in seen.facts
    )
    assert "<code>%torchenv install cu126 torch==2.14.1</code>" in seen.facts
    assert seen.primary == "Install and restart kernel"


def test_what_a_stranger_has_written_into_a_lock_is_text_in_the_picker() -> None:
    status, _ = parts()
    error = NotebookError("The notebook's lock is not used: `<img src=x>`", hint="ask")
    offer = LockOffer(stage="closed", error=error)
    assert "<img" not in look(PickerModel(state="ready", status=status, lock=offer)).facts


# ------------------------------------------------------------------------- what a saved file says


def written(folder: Path, text: str) -> Path:
    path = folder / "notebook.ipynb"
    path.write_text(text, encoding="utf-8")
    return path


def notebook_text(**changes: Any) -> str:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell('print({"metadata": {"torchenv": 1}})')]
    notebook.cells[0].metadata["torchenv"] = {"schema": 1}
    notebook.metadata.update(changes)
    return str(nbformat.writes(notebook))


def test_the_metadata_of_a_notebook_with_a_lock_is_read_from_its_end(tmp_path: Path) -> None:
    value = {"schema": 1, "note": 'a "metadata" of its own', "metadata": {"torchenv": 2}}
    metadata = read_saved_metadata(written(tmp_path, notebook_text(torchenv=value)))
    assert metadata == {"torchenv": value}


def test_what_stands_before_the_metadata_is_not_parsed(tmp_path: Path) -> None:
    """A notebook with megabytes of outputs would else keep the picker waiting."""
    text = notebook_text(torchenv={"schema": 1})
    broken = text.replace('"cells": [', '"cells": [ broken', 1)
    assert read_saved_metadata(written(tmp_path, broken)) == {"torchenv": {"schema": 1}}


def test_metadata_that_stands_before_the_cells_is_found_too(tmp_path: Path) -> None:
    data = json.loads(notebook_text(torchenv={"schema": 1}))
    ordered = {key: data[key] for key in ("metadata", "nbformat", "nbformat_minor", "cells")}
    found = read_saved_metadata(written(tmp_path, json.dumps(ordered)))
    assert found == {"torchenv": {"schema": 1}}


@pytest.mark.parametrize("text", ["", "{", "[]", '"torchenv"', '{"metadata": ["torchenv"]}'])
def test_a_file_that_is_no_notebook_has_no_lock(tmp_path: Path, text: str) -> None:
    assert read_saved_metadata(written(tmp_path, text)) is None


def test_a_key_of_a_cell_is_no_lock(tmp_path: Path) -> None:
    assert read_saved_metadata(written(tmp_path, notebook_text())) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_pipe_by_the_name_of_a_notebook_is_not_waited_for(tmp_path: Path) -> None:
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.ipynb")
    assert read_saved_metadata(tmp_path / "pipe.ipynb") is None
    assert read_saved_metadata(tmp_path / "none.ipynb") is None
    assert read_saved_metadata(None) is None


def test_a_lock_that_was_made_from_the_mirror_that_the_line_names_is_read(tmp_path: Path) -> None:
    _, lock = parts()
    data = json.dumps(lock_to_json(lock))
    data = data.replace("https://download.pytorch.org/whl", "http://mirror.example/whl")
    path = written(tmp_path, notebook_text(torchenv=json.loads(data)))
    line = ["restore", str(path), "--index-base", "http://mirror.example/whl"]
    assert _read_lock(path, parse_words(line, notebook=True), is_own=False).torch == "2.14.1"
    with pytest.raises(LockError, match="http"):
        _read_lock(path, parse_words(line[:2], notebook=True), is_own=False)


# ------------------------------------------------------------------------------- where a lock goes


def front_end(kind: FrontEndKind, path: Path | None) -> FrontEnd:
    return FrontEnd(kind=kind, reason="a test", notebook_path=path)


@pytest.mark.parametrize(
    ("kind", "named", "consent", "place"),
    [
        ("jupyter", None, False, "page"),
        ("jupyter", "own", True, "page"),
        ("jupyter", "other", False, "file"),
        ("vscode", None, True, "file"),
        ("vscode", "other", False, "file"),
        ("console", "other", False, "file"),
    ],
)
def test_a_lock_goes_into_the_page_of_an_open_notebook_and_into_the_file_of_another(
    tmp_path: Path, kind: FrontEndKind, named: str | None, *, consent: bool, place: str
) -> None:
    own, other = tmp_path / "own.ipynb", tmp_path / "other.ipynb"
    own.touch()
    path = {None: None, "own": tmp_path / "." / "own.ipynb", "other": other}[named]
    found = choose_place(front_end(kind, own), path, consent=consent)
    assert found.kind == place
    assert found.path == (other if named == "other" else own)


def test_an_open_file_is_not_written_without_consent(tmp_path: Path) -> None:
    own = tmp_path / "own.ipynb"
    own.touch()
    for named in (None, own):
        with pytest.raises(ConsentError, match="is open") as caught:
            choose_place(front_end("vscode", own), named, consent=False)
        assert caught.value.hint.startswith("save the notebook, then run `%torchenv lock --yes`")


def test_where_the_notebook_is_not_known_its_file_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match="not known") as caught:
        choose_place(front_end("terminal", None), None, consent=True)
    assert "`%torchenv lock NOTEBOOK.ipynb`" in caught.value.hint
    with pytest.raises(NotebookError, match="not known") as caught:
        notebook_to_read(front_end("headless", None), None, folder=tmp_path)
    assert "`%torchenv restore NOTEBOOK.ipynb`" in caught.value.hint


def test_a_run_that_names_no_notebook_finds_the_one_that_begins_with_what_has_run(
    tmp_path: Path,
) -> None:
    def write(name: str, *sources: str, **metadata: object) -> Path:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells.insert(0, nbformat.v4.new_markdown_cell("# A title"))
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata.update(metadata)
        nbformat.write(notebook, tmp_path / name)
        return tmp_path / name

    def found(*ran: str) -> Path:
        return notebook_to_read(front_end("headless", None), None, folder=tmp_path, ran=ran)

    restore = "%torchenv restore"
    lock = {"schema": 1}
    write("another.ipynb", "print(1)", restore, torchenv=lock)
    (tmp_path / "broken.ipynb").write_text("{", encoding="utf-8")
    own = write("own.ipynb", LOAD, "", restore, "print(2)", torchenv=lock)
    assert found(LOAD, restore) == own
    # What papermill writes meanwhile is a copy.
    write("written-by-the-run.ipynb", LOAD, restore, torchenv=lock)
    assert found(LOAD, restore) == own
    for ran in ([restore], [LOAD, "print(1)", restore], []):
        with pytest.raises(NotebookError, match="not known"):
            found(*ran)


@pytest.mark.parametrize("metadata", [{}, {"torchenv": {"schema": 2}}])
def test_a_lock_is_not_taken_for_that_of_a_notebook_with_the_same_cells(
    tmp_path: Path, metadata: dict[str, object]
) -> None:
    for name, each in (("a.ipynb", {"torchenv": {"schema": 1}}), ("b.ipynb", metadata)):
        cells = [nbformat.v4.new_code_cell("%torchenv restore")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=each), tmp_path / name)
    with pytest.raises(NotebookError, match="not known"):
        notebook_to_read(
            front_end("headless", None), None, folder=tmp_path, ran=["%torchenv restore"]
        )


@pytest.mark.parametrize("consent", [False, True])
def test_a_run_that_writes_its_own_copy_makes_no_lock(tmp_path: Path, *, consent: bool) -> None:
    for named in (None, tmp_path / "other.ipynb"):
        with pytest.raises(NotebookError, match="its own copy") as caught:
            choose_place(front_end("headless", None), named, consent=consent)
        assert f"`torchenv lock NOTEBOOK.ipynb --python {sys.executable}`" in caught.value.hint


# ------------------------------------------------------------------------------------ real kernels


def with_cells(path: Path, *sources: str) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return notebook


def metadata_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))["metadata"])


@pytest.mark.skipif(sys.platform == "win32", reason="a kernel needs a server there to be restarted")
def test_a_lock_goes_from_a_cell_into_the_notebook_and_from_that_into_an_environment(
    workplace: Workplace,
) -> None:
    path = workplace.notebook("1", name="locked.ipynb")
    before = path.read_bytes()
    with workplace.kernel() as (kernel, _):
        run(kernel, f"{LOAD}\nimport os; os.environ['JPY_SESSION_NAME'] = {str(path)!r}")
        run(kernel, "%torchenv install cpu torch==2.12.0 --restart=never")
        page = Page(kernel)

        # A page with the plugin takes it, and nobody writes the file.
        request = kernel.send("%torchenv lock cpu", cell_id="lock")
        offer = page.offer()
        page.hello(offer["comm_id"], orders=["store"])
        order = page.order()
        lock = read_lock({order["key"]: order["value"]}, plain_hosts=STANDIN)
        assert lock is not None
        assert (lock.torch, str(lock.ran)) == ("2.12.0", "cpu")
        page.send(offer["comm_id"], event="accepted")
        page.send(offer["comm_id"], event="done")
        kernel.wait_for(
            lambda each: "save the notebook to keep it" in str(each["content"].get("data"))
        )
        assert "Locked torch 2.12.0" in "\n".join(shown(kernel, request))
        assert path.read_bytes() == before

        # Without the plugin it is said what to do, and with consent the file is written.
        kernel.iopub.clear()
        kernel.send("%torchenv lock cpu", cell_id="lock")
        page.close(page.offer()["comm_id"])
        kernel.wait_for(
            lambda each: "`%torchenv lock cpu --yes`" in str(each["content"].get("data"))
        )
        assert path.read_bytes() == before
        kernel.iopub.clear()
        kernel.send("%torchenv lock cpu --yes", cell_id="lock")
        page.close(page.offer()["comm_id"])
        kernel.wait_for(lambda each: "Load the notebook anew" in str(each["content"].get("data")))
        assert read_lock(metadata_of(path), plain_hosts=STANDIN) == lock
        exported = kernel.printed(kernel.send("%torchenv export requirements", cell_id="export"))
        assert "torch==2.12.0" in exported

    workplace.clear()
    # A run tells its kernel no name: the notebook is found by its cell.
    nbformat.write(with_cells(path, LOAD, "%torchenv restore", "import torch"), path)
    locked = path.read_bytes()
    notebook = execute_notebook(workplace, nbformat.read(path, as_version=4))
    assert "Installed torch 2.12.0+cpu" in outputs_of(notebook, 1)
    assert "PyTorch works\n" in outputs_of(notebook, 1)
    assert workplace.versions()["torch"] == "2.12.0+cpu"
    assert path.read_bytes() == locked

    with pytest.raises(CellExecutionError) as caught:
        execute(workplace, LOAD, "%torchenv lock")
    assert caught.value.ename == "NotebookError"
