"""JSON that somebody else has formatted: where each value stands, and edits that move nothing else.

Every function expects a text that `json.loads` takes. What an insertion did, the removal of the
same entry takes back to the last byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Entry",
    "Style",
    "beginning",
    "insert_item",
    "insert_member",
    "items_at",
    "members_at",
    "remove_entry",
    "replace_value",
    "style_of",
]

_SPACE = re.compile(r"[ \t\r\n]*")
_BREAK = re.compile(r"\r\n|\n|\r")
# Each is read to its end: the second half of `\\` begins none. ASCII is escaped by every writer.
_ESCAPE = re.compile(r"\\(?:(u(?!00[0-7]))|.)", re.DOTALL)
_DECODER = json.JSONDecoder()
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An item of a list, or a member of an object: from `start` to before `end`."""

    start: int
    value: int
    """Where the value begins, which is `start` in a list."""
    end: int
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a text is formatted."""

    line_break: str
    indent: str | None
    """What each level is moved in by; None where the text is one line."""
    item_gap: str
    """What stands behind a comma, within a line."""
    key_separator: str
    ascii: bool
    """Whether other letters are written as escapes."""


def beginning(text: str) -> int:
    """Return where the one value of the text begins."""
    return _skip(text, len(BYTE_ORDER_MARK) if text.startswith(BYTE_ORDER_MARK) else 0)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def members_at(text: str, at: int) -> list[Entry]:
    """Return the members of the object that begins at `at`, in their order."""
    return _entries(text, at, keyed=True)


def items_at(text: str, at: int) -> list[Entry]:
    """Return the items of the list that begins at `at`."""
    return _entries(text, at, keyed=False)


def _entries(text: str, at: int, *, keyed: bool) -> list[Entry]:
    entries: list[Entry] = []
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        if entries:
            at = _skip(text, at + 1)  # behind the comma
        start, key = at, ""
        if keyed:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # behind the colon
        _, end = _DECODER.raw_decode(text, at)
        entries.append(Entry(start=start, value=at, end=end, key=key))
        at = _skip(text, end)
    return entries


def style_of(text: str) -> Style:
    """Return how the text is formatted, which is one object that is not empty."""
    opening = beginning(text)
    first, *others = members_at(text, opening)
    lead = text[opening + 1 : first.start]
    broken = _BREAK.search(lead)
    key_separator = text[_DECODER.raw_decode(text, first.start)[1] : first.value]
    gap = ""
    if others:
        gap = text[text.index(",", first.end, others[0].start) + 1 : others[0].start]
    elif broken:
        gap = " "
    return Style(
        line_break=broken[0] if broken else "\n",
        indent=_last_line(lead)[len(_margin(text, opening)) :] if broken else None,
        item_gap=" " if broken or _BREAK.search(gap) else gap,
        key_separator=": " if _BREAK.search(key_separator) else key_separator,
        ascii=text.removeprefix(BYTE_ORDER_MARK).isascii()
        and any(match[1] for match in _ESCAPE.finditer(text)),
    )


def _last_line(text: str) -> str:
    return _BREAK.split(text)[-1]


def _margin(text: str, at: int) -> str:
    """Return the white space that the line of `at` begins with."""
    start = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
    match = re.compile(r"[ \t]*").match(text, start)
    return match[0] if match else ""


def insert_member(text: str, at: int, index: int, key: str, value: object, *, style: Style) -> str:
    """Return the text with a member more before that `index`, in the object that begins at `at`."""

    def write(margin: str | None) -> str:
        written_key = _dumped(key, None, style)
        return f"{written_key}{style.key_separator}{_dumped(value, margin, style)}"

    return _insert(text, at, members_at(text, at), index, write, style=style)


def insert_item(text: str, at: int, index: int, value: object, *, style: Style) -> str:
    """Return the text with an item more before that `index`, in the list that begins at `at`."""

    def write(margin: str | None) -> str:
        return _dumped(value, margin, style)

    return _insert(text, at, items_at(text, at), index, write, style=style)


def _insert(
    text: str,
    at: int,
    entries: Sequence[Entry],
    index: int,
    write: Callable[[str | None], str],
    *,
    style: Style,
) -> str:
    """Insert what `write` gives for a margin, or for None on one line."""
    if not entries:
        closing = _skip(text, at + 1)
        # What stood between the brackets stays ahead, so that a removal can leave it there.
        ahead = text[at + 1 : closing]
        if style.indent is None and not _BREAK.search(ahead):
            return f"{text[:closing]}{write(None)}{text[closing:]}"
        margin = _margin(text, at)
        inner = f"{style.line_break}{margin}{style.indent or ''}"
        written = write(margin + (style.indent or ""))
        return f"{text[:closing]}{inner}{written}{style.line_break}{margin}{text[closing:]}"
    gap = _gap(text, at, entries, index, style)
    neighbour = entries[min(index, len(entries) - 1)]
    margin = _margin(text, neighbour.start)
    written = write(margin if _is_spread(text, entries, gap) else None)
    if index == 0:
        place = entries[0].start
        return f"{text[:place]}{written},{gap}{text[place:]}"
    place = entries[index - 1].end
    return f"{text[:place]},{gap}{written}{text[place:]}"


def _gap(text: str, at: int, entries: Sequence[Entry], index: int, style: Style) -> str:
    """Return what stands behind a comma there."""
    if len(entries) == 1:
        lead = text[at + 1 : entries[0].start]
        return lead if _BREAK.search(lead) else style.item_gap
    behind = min(max(index, 1), len(entries) - 1)
    before, after = entries[behind - 1], entries[behind]
    comma = text.index(",", before.end, after.start)
    return text[comma + 1 : after.start]


def _is_spread(text: str, entries: Sequence[Entry], gap: str) -> bool:
    """Whether an entry takes several lines, as its neighbours do."""
    values = [text[entry.value : entry.end] for entry in entries]
    if any(map(_BREAK.search, values)):
        return True
    # Braces that hold something, on one line.
    if any(value[0] in "[{" and len(value) > 2 for value in values):
        return False
    return _BREAK.search(gap) is not None


def remove_entry(text: str, at: int, entries: Sequence[Entry], index: int) -> str:
    """Return the text without that entry of the object or list that begins at `at`."""
    entry = entries[index]
    if index:
        return text[: entries[index - 1].end] + text[entry.end :]
    if len(entries) > 1:
        return text[: entry.start] + text[entries[1].start :]
    ahead = text[at + 1 : entry.start]
    if breaks := list(_BREAK.finditer(ahead)):
        ahead = ahead[: breaks[-1].start()]
    return text[: at + 1] + ahead + text[_skip(text, entry.end) :]


def replace_value(text: str, entry: Entry, value: object, *, style: Style) -> str:
    """Return the text with another value in that entry, on as many lines as the entry had."""
    old = text[entry.value : entry.end]
    single = style.indent is None or (old[0] in "[{" and len(old) > 2 and not _BREAK.search(old))
    margin = None if single else _margin(text, entry.start)
    return text[: entry.value] + _dumped(value, margin, style) + text[entry.end :]


def _dumped(value: object, margin: str | None, style: Style) -> str:
    """Return the value as JSON: on one line, or on lines that begin with `margin`."""
    spread = margin is not None
    options: dict[str, Any] = {
        "allow_nan": False,
        "indent": (style.indent or "") if spread else None,
        "separators": ("," if spread else f",{style.item_gap}", style.key_separator),
    }
    text = json.dumps(value, ensure_ascii=style.ascii, **options)
    if not _is_encodable(text):
        text = json.dumps(value, ensure_ascii=True, **options)
    return text.replace("\n", f"{style.line_break}{margin}") if spread else text


def _is_encodable(text: str) -> bool:
    """Whether it is without half of a pair of surrogates, which JSON can escape and UTF-8 lacks."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
