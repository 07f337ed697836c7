"""Name the modules whose fixtures every test may use."""

from __future__ import annotations

pytest_plugins = ["tests.browser.fixtures", "tests.standin.fixtures", "tests.workplace"]
