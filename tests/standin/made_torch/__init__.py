"""A made `torch` for tests: small, pure Python, CPU only, and really computing.

It is not PyTorch and contains nothing of it. `tests.standin.wheels` packs it under the name
`torch`, so that an installation can be followed by an import and a checked matrix product
within milliseconds. What is here behaves as the real thing does as far as it goes: float32
values are rounded to 32 bits, dtypes do not mix silently, and no build of it has a device.
"""

# The public names are PyTorch's, so they are lower case and some shadow builtins.
# ruff: noqa: A001, A002, N801

from __future__ import annotations

import builtins
import math
import operator
import random
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import accelerator, autograd, backends, cuda, nn, version, xpu
from .version import __version__

__all__ = [
    "Tensor",
    "__version__",
    "accelerator",
    "allclose",
    "autograd",
    "backends",
    "bfloat16",
    "bool",
    "cuda",
    "device",
    "dtype",
    "empty",
    "eye",
    "float32",
    "float64",
    "get_default_dtype",
    "get_num_threads",
    "inference_mode",
    "isfinite",
    "made_for_tests",
    "manual_seed",
    "matmul",
    "mm",
    "nn",
    "no_grad",
    "ones",
    "rand",
    "randn",
    "tensor",
    "version",
    "xpu",
    "zeros",
]

made_for_tests = True

_truth = builtins.bool  # `torch.bool` takes the builtin's name below
_generator = random.Random(0)  # noqa: S311 - numbers, no secrets


class dtype:
    """Name an element type."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"torch.{self._name}"


float32 = float = dtype("float32")
float64 = double = dtype("float64")
bfloat16 = dtype("bfloat16")
bool = dtype("bool")


class device:
    """Name a place for tensors; every name is understood, only `cpu` exists."""

    def __init__(self, type: str | device, index: int | None = None) -> None:
        text = str(type)
        self.type, _, number = text.partition(":")
        self.index = int(number) if number else index

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"

    def __eq__(self, other: object) -> _truth:
        return isinstance(other, device) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def _place(where: str | device | None) -> device:
    place = device("cpu" if where is None else where)
    if place.type != "cpu":
        message = f"torch {__version__} was made for tests: it has no device {place}"
        raise RuntimeError(message)
    return place


def _to_bfloat16(value: Any) -> Any:
    """Round to the upper half of a float32, to the nearest, ties to even."""
    if not math.isfinite(value):
        return value
    bits = int.from_bytes(struct.pack("<f", value), "little")
    bits += 0x7FFF + (bits >> 16 & 1)
    return struct.unpack("<f", (bits & 0xFFFF0000).to_bytes(4, "little"))[0]


Gradient = Callable[["Tensor"], "Tensor"]


class Tensor:
    """Hold numbers of one dtype on the CPU, in row-major order."""

    def __init__(self, values: list[Any], shape: tuple[int, ...], dtype: dtype) -> None:
        # Rounding here, and only here, makes every float32 result differ from the float64 one
        # as a real one does: a check with too tight a tolerance fails.
        self._values = array("f", values).tolist() if dtype is float32 else list(values)
        if dtype is bfloat16:
            self._values = list(map(_to_bfloat16, values))
        self.shape = shape
        self.dtype = dtype
        self.device = device("cpu")
        self.requires_grad = False
        self.made_from: tuple[tuple[Tensor, Gradient], ...] = ()

    def _from(self, *inputs: tuple[Tensor, Gradient]) -> Tensor:
        """Remember what leads back to the inputs that want a gradient."""
        self.made_from = tuple(each for each in inputs if each[0].requires_grad)
        self.requires_grad = _truth(self.made_from)
        return self

    def requires_grad_(self) -> Tensor:
        self.requires_grad = True
        return self

    def clone(self) -> Tensor:
        copy = Tensor(self._values, self.shape, self.dtype)
        return copy._from((self, lambda above: above))

    def reshape(self, *shape: int) -> Tensor:
        if math.prod(shape) != len(self._values):
            message = f"shape {shape} is invalid for input of size {len(self._values)}"
            raise RuntimeError(message)
        return Tensor(self._values, shape, self.dtype)

    def fill_(self, value: Any) -> Tensor:
        self._values = Tensor([value], (), self.dtype)._values * len(self._values)
        return self

    def t(self) -> Tensor:
        height, width = self.shape
        values = [value for column in range(width) for value in self._values[column::width]]
        return Tensor(values, (width, height), self.dtype)

    def _map(self, function: Callable[[Any], Any], dtype: dtype | None = None) -> Tensor:
        return Tensor([function(value) for value in self._values], self.shape, dtype or self.dtype)

    def _combine(self, other: Any, function: Callable[[Any, Any], Any]) -> Tensor:
        if not isinstance(other, Tensor):
            return self._map(lambda value: function(value, other))
        if self.shape != other.shape:
            message = f"shapes {self.shape} and {other.shape} differ"
            raise RuntimeError(message)
        wide = float64 if float64 in (self.dtype, other.dtype) else self.dtype
        return Tensor(list(map(function, self._values, other._values)), self.shape, wide)

    def __add__(self, other: Any) -> Tensor:
        return self._combine(other, operator.add)

    def __sub__(self, other: Any) -> Tensor:
        return self._combine(other, operator.sub)

    def __mul__(self, other: Any) -> Tensor:
        product = self._combine(other, operator.mul)
        if not isinstance(other, Tensor):
            return product._from((self, lambda above: above * other))
        return product._from(
            (self, lambda above: above * other), (other, lambda above: above * self)
        )

    def __truediv__(self, other: Any) -> Tensor:
        return self._combine(other, operator.truediv)

    def __neg__(self) -> Tensor:
        return self._map(operator.neg)

    def __matmul__(self, other: Tensor) -> Tensor:
        if len(self.shape) != 2 or len(other.shape) != 2 or self.shape[1] != other.shape[0]:
            message = f"shapes {self.shape} and {other.shape} cannot be multiplied"
            raise RuntimeError(message)
        if self.dtype is not other.dtype:
            message = f"expected one dtype, but got {self.dtype} and {other.dtype}"
            raise RuntimeError(message)
        (height, depth), width = self.shape, other.shape[1]
        rows = [self._values[row * depth : (row + 1) * depth] for row in range(height)]
        columns = [other._values[column::width] for column in range(width)]
        product = [sum(map(operator.mul, row, column)) for row in rows for column in columns]
        return Tensor(product, (height, width), self.dtype)._from(
            (self, lambda above: above @ other.t()), (other, lambda above: self.t() @ above)
        )

    def abs(self) -> Tensor:
        return self._map(abs)

    def sum(self) -> Tensor:
        total = Tensor([math.fsum(self._values)], (), self.dtype)
        return total._from((self, lambda above: ones(*self.shape, dtype=self.dtype) * above.item()))

    def mean(self) -> Tensor:
        return Tensor([math.fsum(self._values) / len(self._values)], (), self.dtype)

    def max(self) -> Tensor:
        return Tensor([max(self._values)], (), self.dtype)

    def min(self) -> Tensor:
        return Tensor([min(self._values)], (), self.dtype)

    def all(self) -> Tensor:
        return Tensor([all(self._values)], (), bool)

    def item(self) -> Any:
        if len(self._values) != 1:
            message = f"a tensor of {len(self._values)} elements is not a number"
            raise RuntimeError(message)
        return self._values[0]

    def numel(self) -> int:
        return len(self._values)

    def size(self) -> tuple[int, ...]:
        return self.shape

    def tolist(self) -> Any:
        nested: list[Any] = list(self._values)
        for width in reversed(self.shape):
            nested = [nested[start : start + width] for start in range(0, len(nested), width)]
        return nested[0]

    def to(self, target: str | device | dtype) -> Tensor:
        if isinstance(target, dtype):
            return Tensor(self._values, self.shape, target)
        _place(target)
        return self

    def cpu(self) -> Tensor:
        return self

    def cuda(self) -> Tensor:
        return self.to("cuda")

    def double(self) -> Tensor:
        return self.to(float64)

    def float(self) -> Tensor:
        return self.to(float32)

    def __float__(self) -> Any:
        return self.item()

    def __bool__(self) -> _truth:
        return _truth(self.item())

    def __repr__(self) -> str:
        kind = "" if self.dtype is float32 else f", dtype={self.dtype}"
        return f"tensor({self.tolist()}{kind})"


def _fill(
    size: tuple[Any, ...],
    make: Callable[[], Any],
    kind: dtype | None,
    where: str | device | None,
) -> Tensor:
    _place(where)
    shape = tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
    return Tensor([make() for _ in range(math.prod(shape))], shape, kind or float32)


def randn(*size: Any, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    return _fill(size, lambda: _generator.gauss(0.0, 1.0), dtype, device)


def rand(*size: Any, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    return _fill(size, _generator.random, dtype, device)


def ones(*size: Any, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    return _fill(size, lambda: 1.0, dtype, device)


def empty(*size: Any, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    return _fill(size, lambda: math.nan, dtype, device)


def zeros(*size: Any, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    return _fill(size, lambda: 0.0, dtype, device)


def eye(size: int, *, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    places = iter(range(size * size))
    return _fill((size, size), lambda: next(places) % (size + 1) == 0, dtype, device)


def tensor(data: Any, *, dtype: dtype | None = None, device: str | device | None = None) -> Tensor:
    _place(device)
    kind = dtype or float32
    if not isinstance(data, (list, tuple)):
        return Tensor([data], (), kind)
    if data and isinstance(data[0], (list, tuple)):
        return Tensor([value for row in data for value in row], (len(data), len(data[0])), kind)
    return Tensor(list(data), (len(data),), kind)


def mm(left: Tensor, right: Tensor) -> Tensor:
    return left @ right


matmul = mm


def isfinite(input: Tensor) -> Tensor:
    return input._map(math.isfinite, bool)


def allclose(input: Tensor, other: Tensor, rtol: Any = 1e-05, atol: Any = 1e-08) -> _truth:
    if input.dtype is not other.dtype:
        message = f"{input.dtype} did not match {other.dtype}"
        raise RuntimeError(message)
    return all(
        abs(left - right) <= atol + rtol * abs(right)
        for left, right in zip(input._values, other._values, strict=True)
    )


def manual_seed(seed: int) -> random.Random:
    _generator.seed(seed)
    return _generator


def get_num_threads() -> int:
    return 1


def get_default_dtype() -> dtype:
    return float32


@contextmanager
def no_grad() -> Iterator[None]:
    yield


inference_mode = no_grad
