"""What the tests of exports start from."""

from __future__ import annotations

from packaging.version import Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.project.export import Used, complete

CUDA = Backend.parse("cu126")


def used(*requirements: str, torch: str = "2.13.0") -> Used:
    """Return a CUDA build that is used with its torchvision, where that is asked for."""
    members = {"torch": Version(torch)}
    if any(text.startswith("torchvision") for text in requirements):
        members["torchvision"] = Version("0.28.0")
    return Used(
        backend=CUDA,
        requirements=complete(requirements, members),
        members=members,
        python="3.11",
    )
