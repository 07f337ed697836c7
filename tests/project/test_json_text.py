"""JSON of any formatting: an edit moves nothing else, and its removal gives every byte back."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.project.formatting import json_values as values
from tests.project.formatting import written
from torchenv_magic.project.json_text import (
    beginning,
    insert_item,
    insert_member,
    items_at,
    members_at,
    remove_entry,
    replace_value,
    style_of,
)

roots = st.builds(
    lambda first, items, members: {"first": first, "items": items, "members": members},
    values,
    st.lists(values, max_size=4),
    st.dictionaries(st.text(max_size=4), values, max_size=4),
)


def read(text: str) -> Any:
    return json.loads(text.removeprefix("\ufeff"))


def place_of(text: str, key: str) -> int:
    members = members_at(text, beginning(text))
    return next(member.value for member in members if member.key == key)


def length_of_common_start(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def is_only_longer(text: str, edited: str) -> bool:
    """Whether every character is there still, in its order, with one piece more between them."""
    ahead = length_of_common_start(text, edited)
    behind = length_of_common_start(text[::-1], edited[::-1])
    return ahead + behind >= len(text)


@settings(max_examples=60, deadline=None)
@given(root=roots, value=values, random=st.randoms(use_true_random=False))
def test_an_item_comes_and_goes_and_nothing_else_moves(
    root: dict[str, Any], value: Any, random: Random
) -> None:
    text = written(root, random)
    index = random.randint(0, len(root["items"]))
    place = place_of(text, "items")
    edited = insert_item(text, place, index, value, style=style_of(text))
    expected = [*root["items"][:index], value, *root["items"][index:]]
    assert read(edited) == {**root, "items": expected}
    assert is_only_longer(text, edited)
    assert remove_entry(edited, place, items_at(edited, place), index) == text


@settings(max_examples=60, deadline=None)
@given(root=roots, value=values, random=st.randoms(use_true_random=False))
def test_a_member_comes_and_goes_and_nothing_else_moves(
    root: dict[str, Any], value: Any, random: Random
) -> None:
    text = written(root, random)
    index = random.randint(0, len(root["members"]))
    place = place_of(text, "members")
    edited = insert_member(text, place, index, "a new key", value, style=style_of(text))
    assert read(edited) == {**root, "members": {**root["members"], "a new key": value}}
    assert list(read(edited)["members"]).index("a new key") == index
    assert is_only_longer(text, edited)
    assert remove_entry(edited, place, members_at(edited, place), index) == text


@settings(max_examples=40, deadline=None)
@given(root=roots, value=values, random=st.randoms(use_true_random=False))
def test_another_value_leaves_all_around_it(
    root: dict[str, Any], value: Any, random: Random
) -> None:
    text = written(root, random)
    entry = next(each for each in members_at(text, beginning(text)) if each.key == "members")
    edited = replace_value(text, entry, value, style=style_of(text))
    assert read(edited) == {**root, "members": value}
    assert edited.startswith(text[: entry.value])
    assert edited.endswith(text[entry.end :])


@settings(max_examples=40, deadline=None)
@given(root=roots, random=st.randoms(use_true_random=False))
def test_any_item_can_go(root: dict[str, Any], random: Random) -> None:
    root["items"].append(None)
    text = written(root, random)
    index = random.randrange(len(root["items"]))
    place = place_of(text, "items")
    left = root["items"][:index] + root["items"][index + 1 :]
    edited = remove_entry(text, place, items_at(text, place), index)
    assert read(edited) == {**root, "items": left}


@pytest.mark.parametrize(
    "write",
    [
        lambda value: json.dumps(value, indent=1, ensure_ascii=False),
        lambda value: json.dumps(value, indent=2),
        lambda value: json.dumps(value, indent="\t").replace("\n", "\r\n"),
        lambda value: json.dumps(value, indent=0),
        lambda value: json.dumps(value, separators=(",", ":")),
        json.dumps,
    ],
    ids=["jupyter", "colab", "tabs and CRLF", "no indent", "compact", "one line"],
)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_comes_in_is_written_as_the_file_would_have_it(
    write: Callable[[Any], str], count: int
) -> None:
    cell = {"source": ["é", "b"], "metadata": {}}
    root = {"first": "è", "items": [cell] * count, "members": {"k": {"l": 1}}}
    text = write(root)
    edited = insert_item(text, place_of(text, "items"), count, cell, style=style_of(text))
    edited = insert_member(
        edited, place_of(edited, "members"), 1, "m", {"é": [1]}, style=style_of(edited)
    )
    root["items"] = [cell] * (count + 1)
    root["members"] = {"k": {"l": 1}, "m": {"é": [1]}}
    assert edited == write(root)


def test_neighbours_that_are_written_otherwise_than_the_file_are_followed() -> None:
    text = (
        '{\n  "items": [{\n    "a": 1\n  }, {\n    "a": 2\n  }],\n  "rows": [\n    {"a": 1}\n  ]\n}'
    )
    edited = insert_item(text, place_of(text, "items"), 1, {"a": 3}, style=style_of(text))
    edited = insert_item(edited, place_of(edited, "rows"), 1, {"a": 2}, style=style_of(edited))
    assert edited == (
        '{\n  "items": [{\n    "a": 1\n  }, {\n    "a": 3\n  }, {\n    "a": 2\n  }],\n'
        '  "rows": [\n    {"a": 1},\n    {"a": 2}\n  ]\n}'
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (r'{"a": "\u00e9"}', True),
        (r'{"a": "\\u00e9"}', False),
        (r'{"a": "\\\u00e9"}', True),
        (r'{"a": "\u001b\u0041\n"}', False),
        (r'{"a": "\u00e9é"}', False),
    ],
)
def test_escapes_are_written_where_the_file_has_them(text: str, *, escaped: bool) -> None:
    edited = insert_member(text, 0, 1, "b", "ü", style=style_of(text))
    assert edited.endswith(r'"b": "\u00fc"}' if escaped else '"b": "ü"}')
