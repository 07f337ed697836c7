"""The file of a notebook: what is refused, what an edit leaves, and how it is written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.project.formatting import json_values, written
from torchenv_magic.errors import NotebookError
from torchenv_magic.project.notebook_file import (
    LARGEST_BYTES,
    NotebookFile,
    read_notebook_file,
    write_notebook_file,
)

CELL: dict[str, Any] = {
    "cell_type": "code",
    "execution_count": None,
    "id": "ours",
    "metadata": {"tags": ["ours"]},
    "outputs": [],
    "source": "%load_ext torchenv_magic\n%torchenv verify",
}


def notebook(*cells: Any, metadata: Any = None, minor: int = 5) -> dict[str, Any]:
    return {
        "cells": list(cells),
        "metadata": metadata or {},
        "nbformat": 4,
        "nbformat_minor": minor,
    }


def saved(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a notebook in a folder of its own, as Jupyter would save it."""
    data = notebook(
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Größe"]},
        {
            "cell_type": "code",
            "execution_count": 3,
            "id": "b",
            "metadata": {},
            "outputs": [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}],
            "source": ["print(1)"],
        },
        metadata={"kernelspec": {"display_name": "P", "name": "python3"}, "zoom": 1},
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    return saved(folder / "n.ipynb", json.dumps(data, indent=1, ensure_ascii=False) + "\n")


# --- edits ----------------------------------------------------------------------------------------

cells = st.fixed_dictionaries(
    {
        "cell_type": st.sampled_from(["code", "markdown", "raw", "of another kind"]),
        "metadata": st.dictionaries(st.text(max_size=3), json_values, max_size=2),
        "source": st.text(max_size=9) | st.lists(st.text(max_size=5), max_size=3),
    },
    optional={"outputs": st.lists(json_values, max_size=2), "id": st.text(max_size=3)},
)
notebooks = st.builds(
    lambda cells, metadata, minor, order: dict(
        sorted(
            notebook(*cells, metadata=metadata, minor=minor).items(),
            key=lambda item: order[item[0]],
        )
    ),
    st.lists(cells, max_size=3),
    st.dictionaries(st.text(max_size=3), json_values, max_size=3),
    st.integers(0, 5),
    st.permutations(range(4)).map(
        lambda order: dict(
            zip(("cells", "metadata", "nbformat", "nbformat_minor"), order, strict=True)
        )
    ),
)


@settings(max_examples=25, deadline=None)
@given(data=notebooks, value=json_values, random=st.randoms(use_true_random=False))
def test_what_is_added_and_removed_again_leaves_every_byte(
    data: dict[str, Any], value: Any, random: Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = saved(tmp_path_factory.getbasetemp() / "any.ipynb", written(data, random))
    file = read_notebook_file(path)
    assert not file.is_changed
    index = random.randint(0, len(file.cells))
    edited = file.with_cell(index, CELL).with_metadata("torchenv", {"value": value})
    assert edited.metadata == {**data["metadata"], "torchenv": {"value": value}}
    others = [cell for place, cell in enumerate(edited.cells) if place != index]
    assert others == data["cells"]
    assert edited.cells[index]["metadata"] == {"tags": ["ours"]}
    gone = edited.with_metadata("torchenv", None).without_cell(index)
    assert gone.text.encode() == path.read_bytes()
    write_notebook_file(edited)
    assert read_notebook_file(path).data == edited.data
    write_notebook_file(
        read_notebook_file(path).without_cell(index).with_metadata("torchenv", None)
    )
    assert path.read_bytes() == file.read


def test_a_diff_shows_what_came_and_nothing_else(path: Path) -> None:
    before = path.read_text(encoding="utf-8").splitlines()
    file = read_notebook_file(path).with_cell(1, CELL).with_metadata("torchenv", {"b": 1, "a": 2})
    lines = file.text.splitlines()
    start = lines.index('   "id": "ours",') - 3
    assert lines[start : start + 15] == [
        "  {",
        '   "cell_type": "code",',
        '   "execution_count": null,',
        '   "id": "ours",',
        '   "metadata": {',
        '    "tags": [',
        '     "ours"',
        "    ]",
        "   },",
        '   "outputs": [],',
        '   "source": [',
        '    "%load_ext torchenv_magic\\n",',
        '    "%torchenv verify"',
        "   ]",
        "  },",
    ]
    rest = lines[:start] + lines[start + 15 :]
    # Between its neighbours, as nbformat would sort it at the next save.
    place = rest.index('  "torchenv": {')
    assert rest[place : place + 4] == ['  "torchenv": {', '   "a": 2,', '   "b": 1', "  },"]
    assert rest[:place] + rest[place + 4 :] == before


def test_what_nbformat_saves_is_what_was_written(path: Path) -> None:
    file = read_notebook_file(path).with_cell(0, CELL).with_metadata("torchenv", {"b": [], "a": {}})
    write_notebook_file(file)
    before = path.read_bytes()
    read = nbformat.read(path, as_version=4)
    nbformat.validate(read)
    nbformat.write(read, path)
    assert path.read_bytes() == before


def test_a_source_is_replaced_in_the_form_that_it_had(path: Path) -> None:
    file = read_notebook_file(path).with_source(1, "a = 'ß'\nb")
    assert file.cells[1]["source"] == ["a = 'ß'\n", "b"]
    assert file.cells[1]["outputs"]
    assert "a = 'ß'" in file.text
    assert file.with_source(1, "print(1)").text.encode() == path.read_bytes()
    as_text = notebook({**CELL, "source": "1"})
    file = read_notebook_file(saved(path, json.dumps(as_text)))
    assert file.with_source(0, "a\nb").cells[0]["source"] == "a\nb"
    assert file.with_cell(0, CELL).cells[0]["source"] == CELL["source"]


def test_the_same_again_is_no_change(path: Path) -> None:
    file = read_notebook_file(path).with_metadata("torchenv", {"b": 1, "a": [True]})
    write_notebook_file(file)
    again = read_notebook_file(path)
    assert again.with_metadata("torchenv", {"a": [True], "b": 1}) is again
    assert again.with_metadata("torchenv", {"a": [1], "b": 1}) is not again
    assert again.with_metadata("not there", None) is again
    assert again.with_source(1, "print(1)") is again


# --- what is refused ------------------------------------------------------------------------------

CONFLICT = """{
<<<<<<< HEAD
 "cells": [],
=======
 "cells": [1],
>>>>>>> branch
 "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
"""

REFUSED = {
    "empty": (b" \n", "`n.ipynb` is empty"),
    "text": (b"import torch\n", "is not JSON, as a notebook is: it can't be read in line 1"),
    "cut off": (b'{"cells": [],\n"metadata": {', "it can't be read in line 2"),
    "UTF-16": (json.dumps(notebook()).encode("utf-16"), "is not in UTF-8"),
    "Latin-1": ('{"cells": "é"}'.encode("latin-1"), "is not in UTF-8, as a notebook is: byte 11"),
    "a conflict": (CONFLICT.encode(), "marks of a merge conflict, the first one in line 2"),
    "a conflict, CRLF": (CONFLICT.replace("\n", "\r\n").encode(), "conflict, the first one in"),
    "nested": (b'{"a": ' + b"[" * 200_000, "is nested too deeply"),
    "a huge number": (b'{"a": ' + b"1" * 5_000 + b"}", "is not JSON"),
    "a list": (b"[]", "and no notebook: it holds no object"),
    "no format": (b"{}", "it does not say its `nbformat`"),
    "a format that is a word": (b'{"nbformat": "4"}', "it does not say its `nbformat`"),
    "nbformat 3": (
        b'{"metadata": {}, "nbformat": 3, "nbformat_minor": 0, "worksheets": []}',
        "version 3 of the notebook format",
    ),
    "nbformat 5": (b'{"nbformat": 5, "nbformat_minor": 0}', "this release knows version 4"),
    "no metadata": (b'{"cells": [], "nbformat": 4, "nbformat_minor": 5}', "it has no `metadata`"),
    "no cells": (b'{"metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "no list of `cells`"),
    "a cell that is none": (json.dumps(notebook(CELL, 1)).encode(), "cell 2 is none"),
    "cells twice": (
        json.dumps(notebook()).replace("{", '{"cells": [], ', 1).encode(),
        "says `cells` twice in the notebook",
    ),
    "a key twice in other letters": (
        json.dumps(notebook()).replace("{", '{"c\\u0065lls": [], ', 1).encode(),
        "says `cells` twice in the notebook",
    ),
    "metadata twice": (
        json.dumps(notebook(metadata={"a": 1}))
        .replace('"a": 1', '"\\u001b": 1, "\\u001b": 2')
        .encode(),
        "says `?` twice in its metadata",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_notebook_is_refused_in_one_sentence(
    case: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = REFUSED[case]
    path.write_bytes(content)
    monkeypatch.chdir(path.parent)
    with pytest.raises(NotebookError) as caught:
        read_notebook_file(Path("n.ipynb"))
    assert message in caught.value.message
    assert caught.value.hint
    assert str(caught.value).isascii()
    assert path.read_bytes() == content


def test_a_conflict_that_stands_in_a_cell_is_text(path: Path) -> None:
    cell = {**CELL, "source": "<<<<<<< local\n=======\n>>>>>>> remote"}
    saved(path, json.dumps(notebook(cell), indent=1))
    assert read_notebook_file(path).cells == [cell]


def test_a_format_that_is_a_little_newer_is_read(path: Path) -> None:
    file = read_notebook_file(saved(path, json.dumps(notebook(minor=99))))
    assert file.has_cell_ids
    assert not read_notebook_file(saved(path, json.dumps(notebook(minor=4)))).has_cell_ids


def test_a_key_that_a_cell_has_twice_is_not_edited(path: Path) -> None:
    text = json.dumps(notebook({**CELL, "source": "1"}))
    file = read_notebook_file(saved(path, text.replace('"source"', '"source": "2", "source"')))
    with pytest.raises(NotebookError, match="says `source` twice in cell 1"):
        file.with_source(0, "3")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match="There is no notebook"):
        read_notebook_file(tmp_path / "missing.ipynb")
    with pytest.raises(NotebookError, match="is a folder, and no notebook"):
        read_notebook_file(tmp_path)
    with pytest.raises(NotebookError, match="can't be read"):
        read_notebook_file(Path("a\0.ipynb"))
    with pytest.raises(NotebookError, match="can't be read"):
        read_notebook_file(tmp_path / f"{'a' * 300}.ipynb")
    large = tmp_path / "large.ipynb"
    with large.open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    with pytest.raises(NotebookError, match="is larger than 256 MB, the largest to edit"):
        read_notebook_file(large)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among its files")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.ipynb")
    with pytest.raises(NotebookError, match="is a device or a pipe"):
        read_notebook_file(tmp_path / "pipe.ipynb")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows takes no such names")
def test_a_name_that_acts_on_a_terminal_does_not_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b]0;b\n\udc80.ipynb"
    with pytest.raises(NotebookError) as caught:
        read_notebook_file(path)
    assert "a?]0;b??.ipynb" in caught.value.message


def edited_by_deep_code(file: NotebookFile, frames: int) -> NotebookFile:
    """Edit it that many calls further down."""
    if frames:
        return edited_by_deep_code(file, frames - 1)
    return file.with_cell(0, CELL).with_metadata("torchenv", {"a": 1})


def test_metadata_is_nested_so_deeply_that_it_is_refused_or_can_be_edited(path: Path) -> None:
    edited = None
    for depth in range(760, 1000, 4):
        text = json.dumps(notebook()).replace("{}", '{"a": ' + "[" * depth + "]" * depth + "}")
        saved(path, text)
        try:
            file = read_notebook_file(path)
        except NotebookError as error:
            assert "nested too deeply" in error.message  # noqa: PT017
        else:
            edited = edited_by_deep_code(file, 40)
            assert edited.without_cell(0).with_metadata("torchenv", None).text == text
    assert edited is not None


# --- writing --------------------------------------------------------------------------------------


@pytest.fixture
def edited(path: Path) -> Iterator[NotebookFile]:
    """Return an edit that is not written yet; nothing may be left beside the file afterwards."""
    yield read_notebook_file(path).with_cell(0, CELL)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_file_is_replaced_as_a_whole(edited: NotebookFile, path: Path) -> None:
    before = path.stat()
    with path.open("rb") as reader:
        write_notebook_file(edited)
        # Who reads it meanwhile has the old one to its end.
        assert reader.read() == edited.read
    assert path.read_text(encoding="utf-8") == edited.text
    assert path.stat().st_mtime_ns > before.st_mtime_ns


def test_nothing_is_written_where_nothing_changed(edited: NotebookFile, path: Path) -> None:
    before = path.stat()
    write_notebook_file(edited.without_cell(0))
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_changed_meanwhile_stays_as_it_is(edited: NotebookFile, path: Path) -> None:
    path.write_bytes(edited.read + b"\n")
    with pytest.raises(NotebookError, match="has changed since it was read, so nothing"):
        write_notebook_file(edited)
    assert path.read_bytes() == edited.read + b"\n"


def test_a_file_that_is_gone_is_not_made_anew(edited: NotebookFile, path: Path) -> None:
    path.rename(path.with_name("other.ipynb"))
    with pytest.raises(NotebookError, match="can't be written, so it is as it was"):
        write_notebook_file(edited)
    path.with_name("other.ipynb").rename(path)


def test_a_read_only_file_stays_as_it_is(edited: NotebookFile, path: Path) -> None:
    path.chmod(0o444)
    with pytest.raises(NotebookError, match="is read-only, so nothing was written"):
        write_notebook_file(edited)
    assert path.read_bytes() == edited.read
    path.chmod(0o644)


@pytest.mark.skipif(sys.platform == "win32", reason="the limit of a process is a thing of Unix")
def test_a_disk_that_is_full_in_the_middle_leaves_the_file(
    edited: NotebookFile, path: Path
) -> None:
    if sys.platform != "win32":
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(edited.read), limits[1]))
        try:
            with pytest.raises(NotebookError, match="can't be written, so it is as it was"):
                write_notebook_file(edited)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == edited.read


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_its_rights_and_its_owner_stay(edited: NotebookFile, path: Path) -> None:
    path.chmod(0o640)
    if os.getuid() == 0:
        shutil.chown(path, 1234, 2345)
    before = path.stat()
    write_notebook_file(edited)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_a_name_may_be_as_long_as_names_can_be(path: Path) -> None:
    long = path.with_name("書" * 82 + ".ipynb")  # 252 bytes
    path.rename(long)
    edited = read_notebook_file(long).with_cell(0, CELL)
    write_notebook_file(edited)
    assert long.read_text(encoding="utf-8") == edited.text


@pytest.mark.skipif(sys.platform == "win32", reason="a link there takes a right of its own")
def test_a_link_stays_one(edited: NotebookFile, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.ipynb"
    link.symlink_to(path.relative_to(tmp_path))
    write_notebook_file(read_notebook_file(link).with_cell(0, CELL))
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == edited.text
