"""Lead gradients back through what the made tensors remember of how they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Tensor

__all__ = ["grad"]


def grad(outputs: Tensor, inputs: Tensor) -> tuple[Tensor]:
    """Return the gradient of one number with respect to one tensor."""
    if outputs.shape != ():
        message = "grad can be implicitly created only for scalar outputs"
        raise RuntimeError(message)
    found = _collect(outputs, type(outputs)([1.0], (), outputs.dtype), inputs)
    if found is None:
        message = "One of the differentiated Tensors appears to not have been used in the graph."
        raise RuntimeError(message)
    return (found,)


def _collect(output: Tensor, above: Tensor, wanted: Tensor) -> Tensor | None:
    if output is wanted:
        return above
    found = None
    for source, lead_back in output.made_from:
        part = _collect(source, lead_back(above), wanted)
        if part is not None:
            found = part if found is None else found + part
    return found
