"""Compute what networks are made of, plainly."""

from __future__ import annotations

from operator import mul
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import Tensor  # noqa: TID252 - the package is renamed in the wheel

__all__ = ["conv2d"]


def conv2d(input: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:  # noqa: A002
    """Return the convolution of one batch, without padding."""
    if input.dtype is not weight.dtype:
        message = f"expected one dtype, but got {input.dtype} and {weight.dtype}"
        raise RuntimeError(message)
    _, channels, *_ = input.shape
    filters, depth, height, width = weight.shape
    if depth != channels:
        message = f"expected weights for {channels} channels, but got {depth}"
        raise RuntimeError(message)
    kernels = [_flat(kernel) for kernel in weight.tolist()]
    values = []
    rows = columns = 0
    for image in input.tolist():
        tops = range(0, len(image[0]) - height + 1, stride)
        lefts = range(0, len(image[0][0]) - width + 1, stride)
        rows, columns = len(tops), len(lefts)
        patches = [
            [
                value
                for plane in image
                for row in plane[top : top + height]
                for value in row[left : left + width]
            ]
            for top in tops
            for left in lefts
        ]
        values += [sum(map(mul, kernel, patch)) for kernel in kernels for patch in patches]
    return type(input)(values, (input.shape[0], filters, rows, columns), input.dtype)


def _flat(kernel: list[list[list[float]]]) -> list[float]:
    return [value for plane in kernel for row in plane for value in row]
