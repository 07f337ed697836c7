"""JSON as any program may have written it, and as none would."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import strategies as st

__all__ = ["json_values", "written"]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(['"', "\\", "\\u00e9", "é\u2028", "\x1b[2J", "😀", "}],{[", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
SPACES = ("", "", "", " ", "\n", "\r\n", "\t", "\n  ", " \n\n\t")


def scattered(value: Any, random: Random) -> str:
    """Return JSON with any white space between any two of its parts, and any escapes."""

    def space() -> str:
        return random.choice(SPACES)

    if isinstance(value, (dict, list)):
        brackets = "{}" if isinstance(value, dict) else "[]"
        parts = [
            f"{space()}{scattered(part[0], random)}{space()}:{space()}"
            f"{scattered(part[1], random)}{space()}"
            if isinstance(value, dict)
            else f"{space()}{scattered(part, random)}{space()}"
            for part in (value.items() if isinstance(value, dict) else value)
        ]
        return brackets[0] + (",".join(parts) or space()) + brackets[1]
    return json.dumps(value, ensure_ascii=random.random() < 0.5)


def written(value: Any, random: Random) -> str:
    """Return JSON as some program writes it, or as none does."""
    if random.random() < 0.4:
        text = f"{random.choice(SPACES)}{scattered(value, random)}{random.choice(SPACES)}"
    else:
        indent = random.choice((None, None, 0, 1, 2, 4, "\t"))
        separators = random.choice(((",", ":"), (", ", ": "), (",", " : "), (", ", ":")))
        text = json.dumps(
            value,
            indent=indent,
            separators=separators if indent is None else (",", separators[1]),
            ensure_ascii=random.random() < 0.5,
        )
        text = text.replace("\n", random.choice(("\n", "\r\n"))) + random.choice(("", "\n"))
    # Half of a pair has no place in UTF-8, but for its escape.
    return random.choice(("", "", "\ufeff")) + text.replace("\ud800", "\\ud800")
