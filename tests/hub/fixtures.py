"""Lend what the tests of hubs share: the proxy, which npm installs, and a machine with users.

A pytest plugin, beside `tests.kernel_wheels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.campus import Campus, CampusMissingError, make_campus
from tests.hub.hub import HubMissingError, install_proxy, proxy_in
from tests.once import make_once
from tests.standin import StandIn


@pytest.fixture(scope="session")
def hub_proxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the proxy of a hub, once in a run."""
    try:
        return proxy_in(make_once(tmp_path_factory, "proxy", install_proxy))
    except HubMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def campus(
    standin: StandIn,
    kernel_wheels: Path,
    project_wheel: Path,
    uv_cache: Path,
    hub_proxy: Path,
) -> Iterator[Campus]:
    """Make what hubs of real unix users share."""
    try:
        with make_campus(
            standin=standin,
            wheels=kernel_wheels,
            wheel=project_wheel,
            cache=uv_cache,
            proxy=hub_proxy,
        ) as made:
            yield made
    except CampusMissingError as error:
        pytest.skip(str(error))
