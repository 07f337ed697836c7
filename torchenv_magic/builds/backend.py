"""`Backend`: which variant of PyTorch, in uv's words (`cpu`, `cu126`, `rocm7.2`, `xpu`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cpu", "cuda", "rocm", "xpu"]

__all__ = ["Backend", "Kind"]

# cu126 -> 12.6, cu1310 -> 13.10: the major version has had two digits since CUDA 10.
_CUDA = re.compile(r"cu(\d{2})(\d+)")
_ROCM = re.compile(r"rocm(\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True)
class Backend:
    """A variant of PyTorch, named as the PyTorch index and `uv --torch-backend` name it."""

    kind: Kind
    version: tuple[int, ...] = ()
    """The CUDA toolkit's or ROCm's version; empty for cpu and xpu."""

    @classmethod
    def parse(cls, text: str) -> Backend:
        """Return the backend that uv calls `text`.

        >>> Backend.parse("cu126")
        Backend(kind='cuda', version=(12, 6))

        Raises
        ------
        ValueError
            `text` has none of the four shapes.
        """
        if text == "cpu":
            return cls("cpu")
        if text == "xpu":
            return cls("xpu")
        if match := _CUDA.fullmatch(text):
            return cls("cuda", (int(match[1]), int(match[2])))
        if match := _ROCM.fullmatch(text):
            return cls("rocm", tuple(int(part) for part in match[1].split(".")))
        message = f"`{text}` is not a backend"
        raise ValueError(message)

    def __str__(self) -> str:
        if self.kind == "cuda":
            return "cu" + "".join(map(str, self.version))
        if self.kind == "rocm":
            return "rocm" + ".".join(map(str, self.version))
        return self.kind

    @property
    def label(self) -> str:
        """The backend in a person's words: `CUDA 12.6`, `ROCm 7.2`, `Intel XPU`, `CPU only`."""
        number = ".".join(map(str, self.version))
        return {
            "cpu": "CPU only",
            "cuda": f"CUDA {number}",
            "rocm": f"ROCm {number}",
            "xpu": "Intel XPU",
        }[self.kind]
