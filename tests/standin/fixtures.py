"""Lend the stand-in to tests: one for the whole session, tidied up for each test that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin.index import StandIn
from tests.standin.wheels import find_real_wheels


@pytest.fixture(scope="session")
def standin() -> Iterator[StandIn]:
    """Return the session's stand-in, whose knobs nobody turns."""
    with StandIn() as serving:
        yield serving


@pytest.fixture
def fresh_standin(standin: StandIn) -> Iterator[StandIn]:
    """Return the session's stand-in as it was at the start, free to be slowed, broken and read."""
    standin.reset()
    yield standin
    standin.reset()


@pytest.fixture(scope="session")
def real_wheel() -> Path:
    """Return the path of the real torch wheel, or skip the test where the machine has none."""
    found = find_real_wheels(os.environ)
    if not found:
        pytest.skip("PIP_FIND_LINKS names no folder with a real torch wheel")
    return found[0]
