"""Records to JSON and back: one rule for every frozen dataclass of the package.

A *value type* (a class with a `parse` classmethod and a `str`, such as `Backend`) is a JSON string.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from packaging.version import Version

Record = TypeVar("Record")

__all__ = ["from_json", "to_json"]


def to_json(value: object) -> Any:
    """Return `value` as dicts, lists, strings, numbers, booleans and None."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(type(value), "parse") or isinstance(value, (Path, Version)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    message = f"{type(value).__name__} has no JSON form"
    raise TypeError(message)


def from_json(kind: type[Record], data: object) -> Record:
    """Return the record of type `kind` that `to_json` turned into `data`.

    Unknown keys are ignored (a newer version wrote them); a missing key takes the field's default.

    Raises
    ------
    ValueError, TypeError
        `data` is not such a record.
    """
    return typing.cast(Record, _read(kind, data))


def _read(kind: Any, data: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if data is None:
            return None
        return _read(next(part for part in get_args(kind) if part is not type(None)), data)
    if origin is tuple:
        if not isinstance(data, list):
            message = f"expected a list, got {type(data).__name__}"
            raise TypeError(message)
        parts = get_args(kind)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_read(parts[0], item) for item in data)
        return tuple(_read(part, item) for part, item in zip(parts, data, strict=True))
    if origin is typing.Literal:
        if data not in get_args(kind):
            message = f"{data!r} is none of {', '.join(map(repr, get_args(kind)))}"
            raise ValueError(message)
        return data
    if dataclasses.is_dataclass(kind) and not hasattr(kind, "parse"):
        if not isinstance(data, dict):
            message = f"expected an object for {kind}, got {type(data).__name__}"
            raise TypeError(message)
        hints = get_type_hints(kind)
        return typing.cast(Any, kind)(
            **{
                field.name: _read(hints[field.name], data[field.name])
                for field in dataclasses.fields(kind)
                if field.name in data
            }
        )
    if hasattr(kind, "parse"):
        return kind.parse(data)
    if kind in (Path, Version):
        return kind(data)
    if not isinstance(data, (int, float) if kind is float else kind):
        message = f"expected {kind.__name__}, got {type(data).__name__}"
        raise TypeError(message)
    return data
