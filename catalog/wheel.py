"""What a torch wheel says of itself: its metadata, its CUDA, the code in it.

A wheel is a file or an address. Of an address only the parts that matter are fetched, by HTTP range
requests: a wheel has gigabytes, its metadata a few pages.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.errors import CatalogError, reason_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["WheelCode", "open_wheel", "parse_architectures", "parse_version_file", "read_code"]

_SMALL_READ = 1 << 17
_LARGE_READ = 1 << 22
_LIBRARY = re.compile(r"torch/lib/(?:lib)?torch_python\.(?:so|dll|dylib)")
_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelCode:
    """What `torch.version` and `torch.cuda.get_arch_list()` would say."""

    torch: str
    cuda: str | None
    hip: str | None
    architectures: tuple[str, ...]
    """`sm_75`, `compute_120` (PTX), `gfx1100`; none in a wheel without GPU code."""

    def __str__(self) -> str:
        kind = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else ""
        if not kind:
            return f"torch {self.torch}: no CUDA code and no ROCm code"
        return f"torch {self.torch}, {kind}: {' '.join(self.architectures) or 'no list found'}"


def read_code(place: str) -> WheelCode:
    """Return what code the wheel at `place`, a path or an address, holds.

    Raises
    ------
    CatalogError
        It can't be read, or is no wheel of torch.
    """
    with open_wheel(place, buffer_bytes=_LARGE_READ) as wheel:
        names = wheel.namelist()
        if "torch/version.py" not in names:
            raise CatalogError(
                f"{_shown(place)} is no wheel of torch", hint="name one: torch-….whl"
            )
        torch, cuda, hip = parse_version_file(wheel.read("torch/version.py").decode("utf-8"))
        architectures: tuple[str, ...] = ()
        if cuda or hip:
            library = next((name for name in names if _LIBRARY.fullmatch(name)), None)
            architectures = parse_architectures(wheel.read(library)) if library else ()
    return WheelCode(torch=torch, cuda=cuda, hip=hip, architectures=architectures)


def parse_version_file(text: str) -> tuple[str, str | None, str | None]:
    """Return `__version__`, `cuda` and `hip` of a `torch/version.py`.

    Read and not run: it comes from outside.
    """
    found = {
        name: re.search(rf"^{name}(?:: *[\w\[\]]+)? *= *['\"]([^'\"]+)['\"]", text, re.MULTILINE)
        for name in ("__version__", "cuda", "hip")
    }
    version = found["__version__"]
    return (
        version[1] if version else "of an unknown version",
        found["cuda"][1] if found["cuda"] else None,
        found["hip"][1] if found["hip"] else None,
    )


# The one string that `torch.cuda.get_arch_list()` splits. It ends in a zero byte as in C; before it
# stands anything at all: in the wheel of 2.9.0 another constant, which has no such end.
_NAME = rb"(?:(?:sm|compute)_\d{2,3}[a-z]?|gfx[0-9a-f]{3,4}(?::[\w+:-]+)?)"
_ARCHITECTURES = re.compile(_NAME + rb"(?:[ ;]" + _NAME + rb")*(?=\0)")


def parse_architectures(library: bytes) -> tuple[str, ...]:
    """Return the architectures that `libtorch_python` names; of several such texts the longest."""
    longest = max(_ARCHITECTURES.findall(library), key=len, default=b"")
    return tuple(re.split("[ ;]", longest.decode("ascii"))) if longest else ()


@contextmanager
def open_wheel(place: str, *, buffer_bytes: int = _SMALL_READ) -> Iterator[zipfile.ZipFile]:
    """Open the wheel at `place`, a path or an address.

    Raises
    ------
    CatalogError
        It can't be reached, is no zip file, or breaks off; here or while it is read.
    """
    from torchenv_magic.web import REQUEST_ERRORS

    try:
        if re.match(r"https?://", place):
            raw = io.BufferedReader(_RangeFile(place), buffer_bytes)
            with raw, zipfile.ZipFile(raw) as wheel:
                yield wheel
        else:
            with zipfile.ZipFile(place) as wheel:
                yield wheel
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CatalogError(
            f"{_shown(place)} is no whole wheel: {error}", hint="name another one"
        ) from error
    except REQUEST_ERRORS as error:
        raise CatalogError(
            f"{_shown(place)} can't be read: {reason_of(error)}",
            hint="check the path or the address",
        ) from error


def _shown(place: str) -> str:
    """Return the file's name alone: an address may hold a login."""
    return re.split(r"[/\\]", place.partition("#")[0].partition("?")[0])[-1] or "the wheel"


class _RangeFile(io.RawIOBase):
    """A file behind an address, of which only what is read is fetched."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address.partition("#")[0]
        self._place = 0
        # A server that can't tell the length of a part can't tell parts at all.
        _, total = self._fetch(0, 1)
        self._length = total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        count = min(len(view), self._length - self._place)
        if count <= 0:
            return 0
        part, _ = self._fetch(self._place, count)
        view[: len(part)] = part
        self._place += len(part)
        return len(part)

    def _fetch(self, start: int, count: int) -> tuple[bytes, int]:
        from torchenv_magic.web import open_address

        headers = {"Range": f"bytes={start}-{start + count - 1}"}
        with open_address(
            self._address, headers=headers, timeout_seconds=_WAIT_SECONDS
        ) as response:
            extent = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "")
            )
            if response.status != 206 or extent is None or int(extent[1]) != start:
                message = "the server sends no parts of files"
                raise OSError(message)
            return response.read(count), int(extent[3])
