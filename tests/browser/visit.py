"""A notebook in which a person installs, on whatever server: what has to be so when it is done."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.browser.fixtures import OpenPage
from tests.browser.front_end import FrontEndPage
from tests.browser.kernel_environment import KernelEnvironment
from tests.browser.server import FrontEndName, Server
from tests.browser.stage import OWN
from tests.standin import StandIn
from tests.workplace import Workplace
from torchenv_magic.notebook.cells import VERIFICATION_SOURCE

KERNEL = "workplace"
INSTALL = "%load_ext torchenv_magic\n%torchenv install cpu"
PROOF = re.compile(r"^PyTorch works$", re.MULTILINE)
UNSAVED = "# typed, and never saved"
OTHERS_COMM = "Comm not found for comm id"
"""Said by a front end of a comm that another page of the kernel, or the page before, has opened."""
KEPT = 2
"""The cell whose source a test changes without saving it."""


@dataclass(kw_only=True)
class Visit:
    """A notebook in which a person installs: what was there before, and what has to be after."""

    page: FrontEndPage
    log: Path | None
    kernel_id: str
    process: str
    plugin: bool

    @property
    def rungs(self) -> list[str]:
        """The rungs that were tried, in order, as the log has them."""
        return re.findall(r"restart: trying ([\w-]+)", self._log_text())

    @property
    def failures(self) -> list[str]:
        """What the log says of rungs that failed."""
        return re.findall(r"^WARNING restart: (.*)", self._log_text(), re.MULTILINE)

    def install(self) -> None:
        """Run the magic, and wait for the proof, wherever it comes."""
        self.page.run_cell(1, wait=False)
        self.wait_until_verified()

    def wait_until_verified(self, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not any(PROOF.search(text) for text in self.outputs()):
            assert time.monotonic() < deadline, "\n".join(self.page.describe())
            # The page's own clock: its events are handled meanwhile.
            self.page.perform(lambda raw: raw.wait_for_timeout(40))

    def _log_text(self) -> str:
        assert self.log is not None
        return self.log.read_text(encoding="utf-8")

    def outputs(self) -> list[str]:
        return [self.page.cell_output_text(index) for index in range(len(self.page.cells()))]

    def assert_kept(self, *, process: str = "another", console: tuple[str, ...] = ()) -> None:
        """Nothing of the person's is lost, nothing frightens, and the kernel is a fresh one.

        `console` is what the front end itself may say to the console.
        """
        page = self.page
        page.wait_for_kernel("idle")
        assert page.dialogs() == []
        assert page.kernel_id() == self.kernel_id
        cells = page.cells()
        sources = [cell.source for cell in cells]
        assert sources.count(VERIFICATION_SOURCE) == 1
        assert sources[2] == VERIFICATION_SOURCE
        assert sources[3] == UNSAVED
        assert page.is_dirty()
        assert page.cell_output_text(0).strip() == self.process
        assert "the kernel was restarted" in page.cell_output_text(1)
        assert not [
            output
            for cell in cells
            for output in cell.outputs
            if output["output_type"] == "error" or output.get("name") == "stderr"
        ]
        # Said by a front end when the kernel asks for a plugin that it doesn't have.
        known = (*OWN, *console, *(() if self.plugin else ("Exception opening new comm",)))
        assert [
            error for error in page.console_errors() if not any(part in error for part in known)
        ] == []
        asking = page.add_cell("import os\nprint(os.getpid(), 'held' in globals())")
        assert page.run_cell(asking) == "ok"
        now, held = page.cell_output_text(asking).split()
        assert held == "False"
        assert (now == self.process) == (process == "the same")


def start_visit(
    open_page: OpenPage,
    server: Server,
    *,
    log: Path | None,
    front_end: FrontEndName | None = None,
) -> Visit:
    """Open a notebook, run its first cell, save it, then type into another cell and leave that."""
    # Written by the process that goes: after the restart nobody listens any more.
    listen = (
        "import logging\n"
        f"logging.basicConfig(filename={str(log)!r}, format='%(levelname)s %(message)s')\n"
        "logging.getLogger('torchenv_magic').setLevel('INFO')\n"
    )
    notebook = server.create_notebook(
        "ladder.ipynb",
        [
            f"{listen if log else ''}import os\nheld = 1\nprint(os.getpid())",
            INSTALL,
            "print('not run')",
        ],
        kernel_name=KERNEL,
    )
    page = open_page(server, notebook, front_end=front_end)
    assert page.run_cell(0) == "ok"
    page.save()
    page.edit_cell(KEPT, UNSAVED)
    return Visit(
        page=page,
        log=log,
        kernel_id=page.kernel_id(),
        process=page.cell_output_text(0).strip(),
        plugin=server.plugin,
    )


def restarts(server: Server, kernel_id: str) -> int:
    """Return how often a server was asked to restart a kernel, and did."""
    return server.log().count(f"Kernel restarted: {kernel_id}")


def make_place(directory: Path, *, standin: StandIn, cache: Path, wheel: Path) -> Workplace:
    """Make the environment of the kernels, with nothing of PyTorch in it."""
    place = Workplace(
        environment=KernelEnvironment.create(
            directory / "kernel", python=sys.executable, cache=cache, project_wheel=wheel
        ),
        standin=standin,
        directory=directory,
        cache=directory / "uv-cache",
        kernel_name=KERNEL,
    )
    place._base = frozenset(place._dist_infos())
    return place


def place_variables(place: Workplace) -> dict[str, str | None]:
    """Return what a server needs in its environment so that its kernels meet the stand-in."""
    child = place.standin.environment(place.cache, hermetic=True)
    return {
        **dict.fromkeys(child.unset),
        **child.set,
        # Else the wheel in that folder would be an offer.
        "PIP_FIND_LINKS": None,
        "TORCHENV_CACHE_DIR": str(place.directory / "torchenv-cache"),
    }
