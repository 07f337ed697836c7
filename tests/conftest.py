"""Name the modules whose fixtures every test may use; keep tests off the person's own cache."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

pytest_plugins = [
    "tests.browser.fixtures",
    "tests.browser.stage",
    "tests.second_run",
    "tests.standin.fixtures",
    "tests.workplace",
]


# Who runs the tests in the background of a script ignores it, and all that they start would inherit
# that: an interrupt would stop nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_SLOW = ("hub", "faults", "browser")
_CAMPUS = ("tests/hub/test_preinstall.py", "tests/hub/test_hub_faults.py")
"""Both need the same machine with users, which takes half a minute to make."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes a module, hubs first, and take others in turn with it.

    So nobody waits for the last of them, and the processors are never left to browsers alone.
    """
    modules = dict.fromkeys(item.path for item in items)
    slow = [path for part in _SLOW for path in modules if part in path.parts]
    others = [path for path in modules if path not in slow]
    places = {path: 2 * place for place, path in enumerate(slow)}
    places |= {path: 2 * place + 1 for place, path in enumerate(others)}
    items.sort(key=lambda item: places[item.path])


class _Modules(LoadFileScheduling):  # type: ignore[misc]  # xdist has types for itself alone
    """Give a worker whole modules, and those that share a machine of users to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        module: str = super()._split_scope(nodeid)
        return "campus" if module in _CAMPUS else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return _Modules(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _own_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the index said to the person, or to another test, decide nothing here."""
    monkeypatch.setenv("TORCHENV_CACHE_DIR", str(tmp_path / "torchenv-cache"))
