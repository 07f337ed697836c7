"""A second run is for what waits for a browser or a hub, and it finds nothing of the first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.browser.kernel_environment import PROJECT_ROOT

MODULE = """
import time
import pytest

made, runs = [], []

@pytest.fixture(scope="session")
def machine():
    made.append("machine")

@pytest.fixture(scope="module")
def users(machine):
    made.append("users")
    return []

@pytest.mark.hub
def test_comes_through_with_users_of_its_own(users):
    users.append("used up")
    runs.append(len(users))
    assert runs == [1, 1]

@pytest.mark.hub
def test_that_made_the_users_anew_and_not_the_machine():
    assert made == ["machine", "users", "users"]

@pytest.mark.hub
def test_fails_twice():
    raise AssertionError

@pytest.mark.hub
@pytest.mark.timeout(0.2)
def test_hangs():
    time.sleep(60)

def test_is_strict():
    raise AssertionError
"""


def test_a_test_of_a_hub_is_run_twice_with_users_of_its_own_and_no_other_test(
    tmp_path: Path,
) -> None:
    module = tmp_path / "test_module.py"
    module.write_text(MODULE, encoding="utf-8")
    options = ["-p", "tests.second_run", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-v"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, str(module)],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = [
        tuple(line.split("::test_")[1].split()[:2])
        for line in done.stdout.partition("FAILURES")[0].splitlines()
        if "::test_" in line
    ]
    assert told == [
        ("comes_through_with_users_of_its_own", "RERUN"),
        ("comes_through_with_users_of_its_own", "PASSED"),
        ("that_made_the_users_anew_and_not_the_machine", "PASSED"),
        ("fails_twice", "RERUN"),
        ("fails_twice", "FAILED"),
        ("hangs", "FAILED"),
        ("is_strict", "FAILED"),
    ], done.stdout + done.stderr
