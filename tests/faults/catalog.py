"""Every fault of the campaign, in the order of the page."""

from __future__ import annotations

from tests.faults.campaign import Fault
from tests.faults.injuries import injury_faults
from tests.faults.kills import kill_faults

__all__ = ["all_faults"]


def all_faults() -> tuple[Fault, ...]:
    """Return the whole campaign."""
    return (*kill_faults(), *injury_faults())
