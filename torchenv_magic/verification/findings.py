"""What one try of a PyTorch saw: the probe's answer as records. Nothing in them is judged."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STEP_NAMES", "STEP_WORDS", "ExtensionFindings", "Findings", "Step"]

STEP_WORDS = {
    "product": "a matrix product",
    "convolution": "a convolution",
    "backward": "a backward pass",
    "bfloat16": "a bfloat16 product",
    "memory": "a block of memory",
}
"""The steps of the self-test in their order, as sentences name them."""
STEP_NAMES = tuple(STEP_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that the device was to do, and what came of it."""

    name: str
    """`product`, `convolution`, `backward`, `bfloat16`, `memory`."""
    seconds: float | None = None
    difference: float | None = None
    """From the CPU's result in float64, of memory from what was written; None beside a bound: not a
    number."""
    bound: float | None = None
    """The largest difference that rounding explains."""
    failure: str | None = None
    """What was raised."""
    absent: str | None = None
    """Why there is no such thing to try."""
    overdue: bool = False
    """Whether there was no answer in time."""
    block_bytes: int | None = None
    """Of memory: how much was allocated."""
    free_bytes: int | None = None
    """Of memory: before that, as the device tells it."""
    total_bytes: int | None = None

    @property
    def is_right(self) -> bool:
        """Whether it was done, and what came out is right."""
        return (
            self.failure is None
            and self.bound is not None
            and self.difference is not None
            and self.difference <= self.bound
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionFindings:
    """A package beside torch, after its import was tried."""

    name: str
    version: str | None
    requires: tuple[str, ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the probe saw, as far as it came."""

    python: str
    installed: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    """(name, its versions): none where it is not installed, several where an install was killed."""
    stale: tuple[tuple[str, str | None, str | None], ...] = ()
    """(module, version in memory, version on disk) where this process holds another one."""
    import_failure: str | None = None
    import_missing: bool = False
    """Whether what failed is that there is no module `torch`."""
    shadowed_by: str | None = None
    """The file that was imported under the name of torch, and isn't torch."""
    import_seconds: float | None = None
    torch_version: str | None = None
    libraries: tuple[str, ...] = ()
    """The shared libraries that the import loaded, as paths: Linux only."""
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    hidden_by: str | None = None
    """A variable that hides all devices: `CUDA_VISIBLE_DEVICES=-1`."""
    device: str | None = None
    devices: tuple[tuple[str, tuple[int, int] | None], ...] = ()
    """(name, compute capability) of each device of that sort."""
    device_failure: str | None = None
    architectures: tuple[str, ...] = ()
    """`sm_80`, `compute_90`: what the build has code for, where a CUDA device is."""
    steps: tuple[Step, ...] = ()
    """The self-test, as far as it came."""
    processor: str | None = None
    neural_library: str | None = None
    """`cuDNN 9.10.2`, `MIOpen 3.5.0`: what convolves on the device."""
    extensions: tuple[ExtensionFindings, ...] = ()
    notes: tuple[str, ...] = ()

    def step(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)
