"""Answer for cuDNN, which the made build never has."""

from __future__ import annotations


def is_available() -> bool:
    return False


def version() -> int | None:
    return None
