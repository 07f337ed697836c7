"""The table of front ends is true: what it calls run is a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "front-ends.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
HEADER, FRONT_ENDS = ROWS[0], ROWS[1:]
CELLS = [cell for row in FRONT_ENDS for cell in row[1:]]
TESTS = dict(re.findall(r"^(\d+)\. `(.+)`$", PAGE, re.MULTILINE))
SOURCES = re.findall(r"^- ([a-z]): [^\[\]]*\[.+\]", PAGE, re.MULTILINE)


def test_every_front_end_has_a_word_for_every_feature() -> None:
    assert len(FRONT_ENDS) >= 13
    assert {len(row) for row in FRONT_ENDS} == {len(HEADER)}
    word = re.compile(r"no|open|seen|(seen, )?run \d+(, \d+)*|read [a-z](, [a-z])*")
    assert [cell for cell in CELLS if not word.fullmatch(cell)] == []
    for feature in HEADER[1:]:
        assert f"**{feature}**" in PAGE


@pytest.mark.parametrize("name", TESTS.values())
def test_every_test_that_is_named_is_there(name: str) -> None:
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_number_and_letter_is_explained_and_every_explanation_is_used() -> None:
    prose = re.findall(r"\((\d+)\)", PAGE)
    numbers = {number for cell in CELLS for number in re.findall(r"\d+", cell)} | set(prose)
    assert numbers == set(TESTS)
    assert list(TESTS) == [str(number) for number in range(1, len(TESTS) + 1)]
    letters = {letter for cell in CELLS for letter in re.findall(r"\b[a-z]\b", cell)}
    assert letters == set(SOURCES)


def test_every_source_has_its_address() -> None:
    defined = dict(re.findall(r"^\[(.+)\]: (https://\S+)$", PAGE, re.MULTILINE))
    used = set(re.findall(r"\[([^\]\n]+)\](?!:)", PAGE))
    assert used == set(defined)
