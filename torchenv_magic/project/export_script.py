"""Inline metadata (PEP 723): in the first cell of a notebook, or at the top of a script."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torchenv_magic.errors import ExportError
from torchenv_magic.project.export import Configuration
from torchenv_magic.project.export_toml import edited_script
from torchenv_magic.project.notebook_cells import (
    SETUP_TAG,
    VERIFICATION_TAG,
    is_verification_cell,
)
from torchenv_magic.project.notebook_file import NotebookFile, shown_notebook, source_of

__all__ = [
    "block_of",
    "loads_extension",
    "new_block",
    "script_of",
    "with_block_in_cell",
    "with_block_in_script",
]

# As PEP 723 has it.
_BLOCK = re.compile(r"(?m)^# /// script$\n(?P<content>(?:^#(?:| .*)$\n)+?)^# ///$")
_CELL_ID = "torchenv-script"
# Where Python ends a line, and a comment: not where `splitlines` ends one too.
_LINE_END = re.compile(r"\r\n|\r|\n")
_MAGIC = re.compile(r"\s*[%!]")


def new_block(configuration: Configuration, python: str, *, file: str = "the script") -> str:
    """Return the block of a script that has none yet."""
    head = f'requires-python = ">={python}"\n'
    return _as_block(edited_script(head, configuration, file=file))


def _as_block(text: str) -> str:
    lines = [f"# {line}" if line else "#" for line in text.rstrip("\n").split("\n")]
    return "\n".join(["# /// script", *lines, "# ///"])


def _with_block(text: str, configuration: Configuration, file: str) -> str | None:
    """Return the text with its block brought up to date; None where it has none."""
    blocks = list(_BLOCK.finditer(text))
    if len(blocks) > 1:
        raise ExportError(
            f"`{file}` has {len(blocks)} blocks of inline metadata, so nothing was written",
            hint="leave one of them",
        )
    if not blocks:
        return None
    lines = blocks[0]["content"].splitlines()
    metadata = "".join(f"{line.removeprefix('#').removeprefix(' ')}\n" for line in lines)
    edited = edited_script(metadata, configuration, file=file)
    if edited == metadata:
        return text
    start, end = blocks[0].span()
    return f"{text[:start]}{_as_block(edited)}{text[end:]}"


def with_block_in_script(text: str, configuration: Configuration, python: str, *, file: str) -> str:
    """Return a script's text with the metadata in it, behind a `#!` line.

    Raises
    ------
    ExportError
    """
    plain = text.replace("\r\n", "\n")
    if (edited := _with_block(plain, configuration, file)) is not None:
        return edited
    head, rest = "", plain
    while match := re.match(r"#(?:!|.*coding[:=]).*(?:\n|\Z)", rest):
        head, rest = head + match[0].removesuffix("\n") + "\n", rest[match.end() :]
    block = new_block(configuration, python, file=file)
    return f"{head}{block}\n{chr(10) if rest else ''}{rest}"


def with_block_in_cell(
    notebook: NotebookFile, configuration: Configuration, python: str
) -> NotebookFile:
    """Return the notebook with the metadata in its first cell, hidden as juv hides it.

    Raises
    ------
    ExportError
    """
    file = shown_notebook(notebook.path)
    if (found := _block_cell(notebook)) is not None:
        index, source = found
        return notebook.with_source(index, _with_block(source, configuration, file) or "")
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"jupyter": {"source_hidden": True}},
        "outputs": [],
        "source": new_block(configuration, python, file=file),
    }
    if notebook.has_cell_ids:
        taken = {each.get("id") for each in notebook.cells}
        names = (_CELL_ID, *(f"{_CELL_ID}-{number}" for number in range(2, len(taken) + 3)))
        cell["id"] = next(name for name in names if name not in taken)
    return notebook.with_cell(0, cell)


def block_of(notebook: NotebookFile, configuration: Configuration, python: str) -> str:
    """Return the metadata of a notebook's script: its own brought up to date, else a new one.

    Raises
    ------
    ExportError
    """
    file = shown_notebook(notebook.path)
    found = _block_cell(notebook)
    if found is None or (edited := _with_block(found[1], configuration, file)) is None:
        return new_block(configuration, python)
    block = _BLOCK.search(edited)
    return new_block(configuration, python) if block is None else block[0]


def _block_cell(notebook: NotebookFile) -> tuple[int, str] | None:
    """Return where the cell with the metadata is, and its source."""
    found = [
        (index, source_of(cell))
        for index, cell in enumerate(notebook.cells)
        if cell["cell_type"] == "code" and _BLOCK.search(source_of(cell))
    ]
    if len(found) > 1:
        raise ExportError(
            f"`{shown_notebook(notebook.path)}` has {len(found)} cells of inline metadata, "
            "so nothing was written",
            hint="leave one of them",
        )
    return found[0] if found else None


def loads_extension(cells: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a cell needs this package in the environment that the notebook runs in."""
    return any("torchenv_magic" in source_of(cell) for cell in cells if cell["cell_type"] == "code")


def script_of(cells: Sequence[Mapping[str, Any]], block: str) -> tuple[str, int]:
    """Return a notebook's code as a script, and how many of its cells became comments.

    Cells as editors know them, `# %%`. What only IPython understands becomes a comment, and our own
    cells are left out: uv installs before the script begins.
    """
    parts, commented = [f"{block}\n"], 0
    for cell in cells:
        source = source_of(cell)
        kind = cell["cell_type"]
        if kind == "markdown":
            parts.append("# %% [markdown]\n" + _commented(source))
        if kind == "code" and _BLOCK.search(source):
            # It stands at the top; the code beside it stays.
            source = _BLOCK.sub("", source).strip("\n")
        if kind != "code" or not source.strip() or _is_ours(cell):
            continue
        code = source.rstrip("\n")
        if not _is_python(code):
            # Only now: a line of a text may begin like a magic.
            code = "\n".join(
                f"# {line}" if _MAGIC.match(line) else line for line in _LINE_END.split(code)
            )
            if source.lstrip().startswith("%%") or not _is_python(code):
                code = _commented(source).rstrip("\n")
            commented += 1
        parts.append(f"# %%\n{code}\n")
    return "\n".join(parts), commented


def _is_ours(cell: Mapping[str, Any]) -> bool:
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    tagged = isinstance(tags, list) and (SETUP_TAG in tags or VERIFICATION_TAG in tags)
    return tagged or is_verification_cell(cell)


def _commented(source: str) -> str:
    lines = _LINE_END.split(source.rstrip("\n"))
    # A script has one block of metadata, and this would begin another one.
    return "".join(f"#{' ' * (1 + line.startswith('///'))}{line}".rstrip() + "\n" for line in lines)


def _is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
