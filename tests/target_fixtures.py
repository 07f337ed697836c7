"""Lend environments to install into, each fresh; apart from `targets`, which tests import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin import StandIn
from tests.targets import Target, make_environment, settle
from torchenv_magic.installation.plan import Plan


def _lead(monkeypatch: pytest.MonkeyPatch, standin: StandIn, cache: Path) -> None:
    """Let this process meet the stand-in, and no server beside it."""
    settings = standin.environment(cache, hermetic=True)
    for name in settings.unset:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.set.items():
        if name != "TORCHENV_CACHE_DIR":  # each test has its own
            monkeypatch.setenv(name, value)
    # A test that is about a second try asks for it.
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache for the tests that are not about fetching: what one fetched, all have."""
    return tmp_path_factory.mktemp("warm-cache")


@pytest.fixture(scope="session")
def empty_plans() -> dict[tuple[str, ...], Plan]:
    return {}


@pytest.fixture
def target(
    tmp_path: Path,
    fresh_standin: StandIn,
    warm_cache: Path,
    empty_plans: dict[tuple[str, ...], Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Target]:
    _lead(monkeypatch, fresh_standin, warm_cache)
    yield Target(
        prefix=make_environment(tmp_path / "target"), standin=fresh_standin, plans=empty_plans
    )
    settle()


@pytest.fixture
def cold_target(
    tmp_path: Path, fresh_standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Target]:
    """Return a target whose cache is empty."""
    _lead(monkeypatch, fresh_standin, tmp_path / "cache")
    yield Target(prefix=make_environment(tmp_path / "target"), standin=fresh_standin)
    settle()
