"""Answer as a CUDA or ROCm build does on a host without a usable GPU."""

from __future__ import annotations

from typing import NoReturn

from . import version


def is_available() -> bool:
    return False


def is_initialized() -> bool:
    return False


def device_count() -> int:
    return 0


def get_arch_list() -> list[str]:
    return []


def _refuse(device: object) -> NoReturn:
    place = "CUDA device" if device is None else f"device {device}"
    message = f"torch {version.__version__} was made for tests: it has no {place}"
    raise RuntimeError(message)


def current_device() -> int:
    _refuse(None)


def get_device_name(device: object = None) -> str:
    _refuse(device)


def get_device_capability(device: object = None) -> tuple[int, int]:
    _refuse(device)


def get_device_properties(device: object = None) -> object:
    _refuse(device)


def synchronize(device: object = None) -> None:
    _refuse(device)
