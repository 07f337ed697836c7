"""Name the modules whose fixtures every test may use; keep tests off the person's own cache."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

pytest_plugins = [
    "tests.browser.fixtures",
    "tests.browser.stage",
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
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, and let what waits for others be run a second time."""
    _order(items)
    for item in items:
        if _waits_for_others(item):
            # What hung until the time limit ended it doesn't get to hang again.
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=r"^Failed: Timeout \("))


def _order(items: list[pytest.Item]) -> None:
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


# ----------------------------------------------------------------------- what is run a second time


def _waits_for_others(item: pytest.Item) -> bool:
    """Whether a test waits for a browser, or for the four processes of a hub."""
    return any(item.get_closest_marker(name) for name in ("browser", "hub"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep whether a test has failed, for what tears down after it."""
    report = yield
    if call.when == "setup":
        item.stash[_FAILED] = False
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Take away all that a module shares where a test of it is about to run a second time.

    What is shared may be what has failed, or what the first run has used up: a hub's users have
    their PyTorch by then. Of pytest's own there is no way to say this, and the plugin that runs
    tests again would keep it.
    """
    if item.stash.get(_FAILED, False) and _waits_for_others(item):
        item.session._setupstate.teardown_exact(item.session)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the index said to the person, or to another test, decide nothing here."""
    monkeypatch.setenv("TORCHENV_CACHE_DIR", str(tmp_path / "torchenv-cache"))
