"""Run a test of a browser or of a hub once more where it fails; a pytest plugin.

It says what `pytest-rerunfailures` is to do, and that the second run finds nothing of the first.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what waits for others be run a second time: last, since some marks come by fixtures."""
    for item in items:
        if _waits_for_others(item):
            # What hung until the time limit ended it doesn't get to hang again.
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=r"^Failed: Timeout \("))


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
