"""Answer as an Intel GPU build does on a host without a usable GPU."""

from __future__ import annotations


def is_available() -> bool:
    return False


def device_count() -> int:
    return 0
