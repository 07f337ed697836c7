"""What can go wrong while the catalog is made."""

from __future__ import annotations

__all__ = ["CatalogError", "reason_of"]


class CatalogError(Exception):
    """An expected failure: what happened, and one thing to do about it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def reason_of(error: Exception) -> str:
    """Return why a request failed, without the address: it may hold a login."""
    from urllib.error import HTTPError, URLError

    from torchenv_magic.web import reason_words

    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    reason = error.reason if isinstance(error, URLError) else error
    return reason_words(reason) or type(error).__name__
