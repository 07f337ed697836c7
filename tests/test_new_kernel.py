"""Kernels of one's own: made whole or not at all, and removed with all that was made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from tests.browser.kernel_environment import PROJECT_ROOT
from tests.kernels import Kernel
from tests.targets import Target, selected
from torchenv_magic.cli import main
from torchenv_magic.environment import Environment, read_environment
from torchenv_magic.errors import (
    BusyError,
    InstallCancelled,
    PlanError,
    RequestError,
    TargetError,
)
from torchenv_magic.installation import new_kernel
from torchenv_magic.installation.new_kernel import (
    Made,
    Places,
    check_name,
    free_name,
    make_kernel,
    own_kernels,
    read_places,
    remove_kernel,
)
from torchenv_magic.installation.progress import Event, OnEvent
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.selection import Request, Selection

pytest_plugins = ["tests.kernel_wheels", "tests.target_fixtures"]


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where kernels are made by a test."""

    target: Target
    places: Places
    wheels: Path

    def make(
        self,
        name: str = "torch-cpu",
        *requirements: str,
        consent: bool = False,
        backend: str = "cpu",
        cancellation: Cancellation | None = None,
        on_event: OnEvent | None = None,
    ) -> Made:
        def choose(python: Path) -> tuple[Selection, Environment]:
            return selected(backend), read_environment(python)

        return make_kernel(
            name,
            Request(requirements=requirements or ("torch",)),
            base=Path(sys.executable),
            choose=choose,
            places=self.places,
            consent=consent,
            sites=Sites(find_links=(str(self.wheels),)),
            cancellation=cancellation,
            on_event=on_event,
        )

    def left(self) -> list[str]:
        """Return the names of all that lies where kernels lie."""
        folders = (self.places.environments, self.places.specifications)
        return sorted(
            path.name for folder in folders if folder.exists() for path in folder.iterdir()
        )


@pytest.fixture
def workshop(
    target: Target, kernel_wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workshop:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "elsewhere"))
    return Workshop(target=target, places=read_places(), wheels=kernel_wheels)


# ------------------------------------------------------------------------------------------ making


def test_a_kernel_is_made_that_starts_with_pytorch_and_the_magic_and_is_removed_again(
    workshop: Workshop, tmp_path: Path
) -> None:
    events: list[Event] = []
    made = workshop.make(on_event=events.append)

    kernel = made.kernel
    assert kernel.environment == tmp_path / "data" / "torchenv" / "kernels" / "torch-cpu"
    assert kernel.display_name == "torch-cpu (torch 2.13.0, CPU only)"
    assert events[-1].phase == "done"
    folder = tmp_path / "jupyter" / "kernels" / "torch-cpu"
    specification = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
    assert specification["display_name"] == kernel.display_name
    assert specification["argv"][0] == str(kernel.python)
    assert (folder / "logo-svg.svg").is_file()
    packages = read_environment(kernel.environment).packages
    there = {package.name: package.version for package in packages}
    assert there["torchenv-magic"] == importlib.metadata.version("torchenv-magic")
    assert there["torch"] == "2.13.0+cpu"
    assert {"ipykernel", "pip"} <= there.keys()
    (information,) = kernel.environment.rglob("torchenv_magic-*.dist-info")
    assert not (information / "direct_url.json").exists()
    assert kernel.environment.joinpath("bin", "torchenv").is_file() or sys.platform == "win32"
    assert own_kernels(workshop.places) == (kernel,)

    with started(kernel.specification) as running:
        running.run("%load_ext torchenv_magic")
        assert running.value("__import__('torch').__version__") == "2.13.0+cpu"
        assert running.value("__import__('sys').prefix") == str(kernel.environment)
        if sys.platform == "linux":
            with pytest.raises(BusyError, match="The kernel `torch-cpu` is running: process"):
                remove_kernel("torch-cpu", places=workshop.places)
            with pytest.raises(BusyError):
                workshop.make(consent=True)

    removed = remove_kernel("torch-cpu", places=workshop.places)
    assert removed.freed_bytes > 0
    assert str(removed).startswith("Removed the kernel torch-cpu and its environment: ")
    assert workshop.left() == []


@contextlib.contextmanager
def started(specification: Path) -> Iterator[Kernel]:
    """Start a kernel by its kernelspec, as a server does."""
    manager = KernelManager(
        kernel_name=specification.name,
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specification.parent)]),
        connection_file=str(specification.parent.parent / "kernel.json"),
    )
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    manager.start_kernel(env=variables)
    try:
        with Kernel.attach(Path(manager.connection_file)) as kernel:
            yield kernel
    finally:
        manager.shutdown_kernel(now=True)


def test_without_any_network_a_kernel_is_made_from_the_cache_and_the_folders(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.make()
    workshop.target.standin.down = True
    folder = tmp_path / "wheels"
    folder.mkdir()
    for wheel in workshop.target.standin.wheels("cpu"):
        if wheel.path.name.startswith("torch-2.13.0"):
            shutil.copy(wheel.path, folder)
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))

    made = workshop.make("second", consent=True)

    assert made.kernel.display_name == "second (torch 2.13.0, CPU only)"


@pytest.mark.parametrize(
    "moment", ["an environment", "magic needs", "Asking", "Switching", "Telling"]
)
def test_cancel_leaves_neither_environment_nor_kernelspec(workshop: Workshop, moment: str) -> None:
    cancellation = Cancellation()

    def hear(event: Event) -> None:
        if moment in event.message:
            cancellation.cancel()

    with pytest.raises(InstallCancelled):
        workshop.make(cancellation=cancellation, on_event=hear)

    assert workshop.left() == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
def test_what_a_killed_process_left_is_no_kernel_and_is_swept_by_the_next(
    workshop: Workshop,
) -> None:
    program = (
        "import time\n"
        "from torchenv_magic.installation import new_kernel\n"
        "with new_kernel._claimed('torch-cpu', new_kernel.read_places(), None) as folder:\n"
        "    (folder / 'half').touch()\n"
        "    print('claimed', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=PROJECT_ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        (kernel,) = own_kernels(workshop.places)
        assert not kernel.whole
        with pytest.raises(BusyError, match="is being made by another process"):
            workshop.make()
        with pytest.raises(BusyError):
            remove_kernel("torch-cpu", places=workshop.places)
    finally:
        process.kill()
        process.communicate()

    made = workshop.make()

    assert not (made.kernel.environment / "half").exists()
    assert workshop.left() == ["torch-cpu", "torch-cpu"]


def test_who_died_before_the_first_word_of_a_marker_is_in_nobodys_way(workshop: Workshop) -> None:
    folder = workshop.places.environments / "torch-cpu"
    folder.mkdir(parents=True)
    (folder / new_kernel.MARKER).touch()
    (kernel,) = own_kernels(workshop.places)
    assert not kernel.whole
    remove_kernel("torch-cpu", places=workshop.places)
    assert not folder.exists()


def test_one_of_ours_is_replaced_with_consent_only_and_stays_where_that_fails(
    workshop: Workshop,
) -> None:
    first = workshop.make()
    with pytest.raises(RequestError) as unknown:
        remove_kernel("other", places=workshop.places)
    assert unknown.value.hint == "there is `torch-cpu`"
    with pytest.raises(TargetError, match="There is a kernel `torch-cpu` already") as caught:
        workshop.make()
    assert "`--yes` replaces it" in caught.value.hint
    with pytest.raises(PlanError):
        workshop.make("torch-cpu", "no-such-package", consent=True)
    assert own_kernels(workshop.places) == (first.kernel,)

    second = workshop.make("Torch-CPU", "torch==2.12.0", consent=True)

    assert second.kernel.display_name == "torch-cpu (torch 2.12.0, CPU only)"
    assert own_kernels(workshop.places) == (second.kernel,)
    file = second.kernel.specification / "kernel.json"
    assert json.loads(file.read_text(encoding="utf-8"))["argv"][0] == str(second.kernel.python)
    assert not first.kernel.environment.exists()

    # A kernelspec of that name that starts something else is somebody's.
    file.write_text(json.dumps({"argv": ["/usr/bin/python3"], "metadata": {}}), encoding="utf-8")
    remove_kernel("torch-cpu", places=workshop.places)
    assert file.exists()
    assert not second.kernel.environment.exists()


def test_a_kernel_that_was_not_made_here_is_never_touched(
    workshop: Workshop, tmp_path: Path
) -> None:
    for folder in ("jupyter", "elsewhere"):
        theirs = tmp_path / folder / "kernels" / f"Theirs-{folder}"
        theirs.mkdir(parents=True)
        (theirs / "kernel.json").write_text("{}", encoding="utf-8")
        with pytest.raises(TargetError, match="it was not made here"):
            workshop.make(f"theirs-{folder}", consent=True)
        assert (theirs / "kernel.json").read_text(encoding="utf-8") == "{}"
    mine = workshop.places.environments / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(TargetError, match="is there already, and was not made here"):
        workshop.make("mine", consent=True)
    assert mine.is_dir()
    assert free_name("mine", workshop.places) == "mine-2"
    with pytest.raises(RequestError, match="No kernel `mine` was made here") as caught:
        remove_kernel("mine", places=workshop.places)
    assert caught.value.hint == "there is none to remove"


def test_the_command_makes_it_tells_how_to_choose_it_and_removes_it(
    workshop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", str(workshop.wheels))
    assert main(["new-kernel", "mine", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "Made the kernel “mine (torch 2.13.0, CPU only)” in " in out
    assert "Choose it in Jupyter, or run `jupyter console --kernel=mine`." in out
    assert "PyTorch works" in out

    assert main(["new-kernel", "mine", "cpu", "--json"]) == 1
    said = capfd.readouterr()
    assert json.loads(said.out)["error"]["code"] == "target"
    assert all(json.loads(line) for line in said.err.splitlines())
    hint = json.loads(said.out)["error"]["hint"]
    assert hint.endswith("`torchenv new-kernel mine --remove` removes it")

    assert main(["new-kernel", "mine", "--remove", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["name"] == "mine"
    assert workshop.left() == []


@pytest.mark.parametrize(
    "name", ["", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "python3", "ä", "x" * 101, "a\n"]
)
def test_a_name_that_jupyter_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(RequestError):
        check_name(name)
