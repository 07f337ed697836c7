"""The verification cell: known in a saved notebook, placed once, never from a callback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels import CellError, Kernel
from torchenv_magic.notebook import cells
from torchenv_magic.notebook.cells import (
    VERIFICATION_SOURCE,
    VERIFICATION_TAG,
    has_verification_cell,
    is_verification_cell,
)

VERIFICATION_CELL = nbformat.v4.new_code_cell(VERIFICATION_SOURCE)
TAGGED_CELL = nbformat.v4.new_code_cell(
    "import torch", metadata={"tags": ["slow", VERIFICATION_TAG]}
)


def write(path: Path, *notebook_cells: Any) -> Path:
    notebook = nbformat.v4.new_notebook(cells=notebook_cells)
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("cell", [VERIFICATION_CELL, TAGGED_CELL])
def test_a_notebook_with_the_cell_has_it(tmp_path: Path, cell: Any) -> None:
    other = nbformat.v4.new_code_cell("%torchenv")
    assert has_verification_cell(write(tmp_path / "a.ipynb", other, cell))
    assert not has_verification_cell(write(tmp_path / "b.ipynb", other))


@pytest.mark.parametrize(
    ("cell", "known"),
    [
        ({"cell_type": "code", "source": ["%load_ext torchenv_magic\n", "%torchenv verify"]}, True),
        ({"cell_type": "code", "source": " %load_ext torchenv_magic \n\n%torchenv verify\n"}, True),
        ({"cell_type": "markdown", "source": VERIFICATION_SOURCE}, False),
        ({"cell_type": "code", "source": "%torchenv verify"}, False),
        ({"cell_type": "code", "source": f"{VERIFICATION_SOURCE}\nimport torch"}, False),
        ({"cell_type": "code", "source": 3, "metadata": {"tags": "torchenv-verify"}}, False),
        ("%torchenv verify", False),
    ],
)
def test_the_cell_is_known_by_its_tag_or_by_all_of_its_source(cell: object, *, known: bool) -> None:
    assert is_verification_cell(cell) is known


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"cells": {"0": {}}}',
        b'{"cells": [null, 1, {"cell_type": "code", "source": [1, null]}]}',
        b"[" * 100_000,
    ],
)
def test_a_broken_notebook_has_no_cell_and_raises_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_bytes(content)
    assert not has_verification_cell(path)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["cell_type", "source", "metadata", "tags"]), inner)
        ),
    )
)
def test_no_json_value_is_too_strange_for_a_cell(cell: object) -> None:
    assert is_verification_cell(cell) in (True, False)


def test_an_absent_directory_or_nameless_notebook_has_no_cell(tmp_path: Path) -> None:
    assert not has_verification_cell(None)
    assert not has_verification_cell(tmp_path / "gone.ipynb")
    assert not has_verification_cell(tmp_path)


def test_a_very_large_notebook_is_left_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "large.ipynb", VERIFICATION_CELL)
    monkeypatch.setattr(cells, "LARGEST_NOTEBOOK_BYTES", path.stat().st_size)
    assert has_verification_cell(path)
    monkeypatch.setattr(cells, "LARGEST_NOTEBOOK_BYTES", path.stat().st_size - 1)
    assert not has_verification_cell(path)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    notebook = {"JPY_SESSION_NAME": str(tmp_path / "notebook.ipynb")}
    with Kernel.start(tmp_path, environment=notebook) as kernel:
        yield kernel


PLACE = """\
from torchenv_magic.notebook.cells import place_verification_cell
from torchenv_magic.notebook.front_end import read_front_end
placed = place_verification_cell(get_ipython(), read_front_end(get_ipython()))
"""


def test_the_cell_s_reply_carries_the_verification_cell_once(
    kernel: Kernel, tmp_path: Path
) -> None:
    assert kernel.run(PLACE, allow_stdin=False)["payload"] == []
    assert kernel.value("placed") is False

    write(tmp_path / "notebook.ipynb", VERIFICATION_CELL)
    assert kernel.run(PLACE)["payload"] == []

    write(tmp_path / "notebook.ipynb")
    payload = kernel.run(PLACE)["payload"]
    assert payload == [{"source": "set_next_input", "text": VERIFICATION_SOURCE, "replace": False}]
    assert kernel.value("placed") is True

    assert kernel.run(PLACE)["payload"] == []  # not saved yet, but this kernel remembers

    with pytest.raises(CellError, match="can only be placed by the running cell itself"):
        kernel.run(
            "import concurrent.futures\n"
            "with concurrent.futures.ThreadPoolExecutor() as pool:\n"
            "    pool.submit(place_verification_cell, get_ipython(), None).result()"
        )
