"""Machine after machine: what lies in its files and programs, and what is chosen for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fleet import Machine, machines
from tests.nvml import compile_nvml
from torchenv_magic.builds.catalog import load_catalog

FLEET = machines()

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are scripts")


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    library = tmp_path_factory.mktemp("fleet") / "libnvidia-ml.so.1"
    return library if compile_nvml(library) else None


def test_the_fleet_is_large_and_of_every_kind() -> None:
    systems = [
        f"{machine.platform.system} {machine.data['system']['machine']}"
        if "machine" in machine.data["system"]
        else machine.platform.system
        for machine in FLEET
    ]
    assert len(FLEET) >= 60
    assert {"linux x86_64", "linux aarch64", "windows x86_64", "macos arm64"} <= set(systems)


@pytest.mark.parametrize("machine", FLEET, ids=lambda machine: machine.name)
def test_machine_gets_the_best_build_that_runs_on_it(
    machine: Machine, tmp_path: Path, nvml: Path | None
) -> None:
    if "nvml" in machine.data and nvml is None:
        pytest.skip("the stand-in for NVML is compiled from C, for Linux")
    expected = machine.expected

    host = machine.detect(tmp_path, nvml=nvml)
    selection = machine.select(host)

    context = f"\n{host}\n\n{selection}"
    assert str(selection.backend or "none") == expected["backend"], context
    assert (selection.torch or "") == expected["torch"], context
    for said, wanted in (
        ([str(item) for item in host.findings], expected.get("findings", [])),
        (selection.warnings, expected.get("warnings", [])),
    ):
        for words in wanted:
            assert any(words in line for line in said), (words, context)
    if "reason" in expected:
        assert selection.reason == expected["reason"]
    if "unsupported" in expected:
        assert list(selection.unsupported_accelerators) == expected["unsupported"]
    if "accelerators" in expected:
        assert [str(item) for item in host.accelerators] == expected["accelerators"]
    if "vendors" in expected:
        assert [item.vendor for item in host.accelerators] == expected["vendors"]
    if "source" in expected:
        assert {item.source for item in host.accelerators} == {expected["source"]}
    assert host.platform.wsl is expected.get("wsl", False)
    reasons = {str(item.backend): item.reason for item in selection.alternatives}
    assert reasons.keys() == set(map(str, load_catalog().backends()))
    for backend, reason in expected.get("refused", {}).items():
        assert reason in reasons[backend], context
    # Whatever else it is: never silent about a GPU that the choice leaves idle.
    if selection.backend is not None and selection.backend.kind == "cpu":
        assert selection.warnings or all(item.vendor == "apple" for item in host.accelerators)
