"""Name the modules whose fixtures every test may use; keep tests off the person's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = [
    "tests.browser.fixtures",
    "tests.browser.stage",
    "tests.standin.fixtures",
    "tests.workplace",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what drives front ends: few tests a module, minutes each, and none to wait for."""
    items.sort(key=lambda item: "browser" not in item.path.parts and "hub" not in item.path.parts)


@pytest.fixture(autouse=True)
def _own_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the index said to the person, or to another test, decide nothing here."""
    monkeypatch.setenv("TORCHENV_CACHE_DIR", str(tmp_path / "torchenv-cache"))
