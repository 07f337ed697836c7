"""What can go wrong while the catalog is made."""

from __future__ import annotations

__all__ = ["CatalogError"]


class CatalogError(Exception):
    """An expected failure: what happened, and one thing to do about it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
