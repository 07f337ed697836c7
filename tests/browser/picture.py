"""Make the README's pictures from the real thing: `python dev.py picture`.

A real JupyterLab in Chromium runs the real extension in a real environment of its own. Two things
are arranged, and both are outside the product. For the picker, a program named `nvidia-smi` on the
`PATH` answers detection's one question in the words of a GeForce GTX 1080 Ti: this is a card for
which a look at the driver alone picks a build without code for it. For the verification, the
PyTorch index is the tests' stand-in, which serves the real wheel of torch for the processor;
without that wheel on this machine only the pictures of the picker are made.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from playwright.sync_api import Page

from tests.browser.front_end import Browser, BrowserMissingError, FrontEndPage, Theme
from tests.browser.kernel_environment import PROJECT_ROOT, KernelEnvironment, run_uv
from tests.browser.server import JupyterServer
from tests.standin import StandIn, find_real_wheels
from torchenv_magic.accelerators import detect
from torchenv_magic.accelerators.nvidia import nvidia_smi_command

DEFAULT_FOLDER = PROJECT_ROOT / "docs" / "images"
THEMES: tuple[Theme, ...] = ("light", "dark")
CELL_WIDTH = 760
"""Of the cell in CSS pixels: what a README column shows without shrinking it."""
WINDOW_HEIGHT = 1400
"""Enough for the whole cell to be on the screen."""
MARGIN = 2
"""Around the cell in CSS pixels; more would show the frame of the one below."""
SCALE = 1.5
LARGEST_PICTURE_BYTES = 150_000

CARD = "NVIDIA GeForce GTX 1080 Ti, 580.95.05, 11264, 6.1"
PICKER = "%load_ext torchenv_magic\n%torchenv"
INSTALL = "Install and restart kernel"


class PictureError(Exception):
    """No picture can be made here; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pictures; return the exit status."""
    parser = argparse.ArgumentParser(prog="python dev.py picture", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    options = parser.parse_args(arguments)
    try:
        for path in make_pictures(options.folder):
            print(f"{os.path.relpath(path)}  {path.stat().st_size / 1000:.0f} kB")
    except (PictureError, BrowserMissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make_pictures(folder: Path) -> Iterator[Path]:
    """Write the pictures into `folder` and return each path once its file is there.

    Raises
    ------
    PictureError
        This machine can't be a machine with that card, or a picture is too large for a README.
    BrowserMissingError
        There is no Chromium.
    """
    if sys.platform != "linux" or detect().accelerators:
        raise PictureError("the pictures are made on a Linux machine without an accelerator")
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="picture-", ignore_cleanup_errors=True) as work,
        Browser() as browser,
    ):
        yield from _picker(browser, Path(work, "picker"), folder)
        if wheel := _real_wheel():
            yield from _verification(browser, Path(work, "verification"), folder, wheel)
        else:
            print("no real torch wheel for this Python: the verification's pictures stay")


def _picker(browser: Browser, work: Path, folder: Path) -> Iterator[Path]:
    programs = work / "programs"
    _write_nvidia_smi(programs)
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    server = JupyterServer(work, environment={"PATH": path})
    kernel = _make_kernel(server)
    with server:
        page = _open(browser, server, kernel)
        page.wait_for_output(0, f"GTX 1080 Ti[^$]*recommended[^$]*{INSTALL}")
        # The cell that was placed below: the toolbar of the active one would cover the code.
        page.select_cell(1)
        yield from _photographs(page, folder, "picker", cell=0)


def _verification(browser: Browser, work: Path, folder: Path, wheel: Path) -> Iterator[Path]:
    with StandIn() as standin:
        standin.add_wheel("cpu", wheel)
        child = standin.environment(work / "uv-cache", hermetic=False)
        variables: dict[str, str | None] = {**dict.fromkeys(child.unset), **child.set}
        server = JupyterServer(work, environment=variables)
        kernel = _make_kernel(server)
        with server:
            page = _open(browser, server, kernel)
            page.wait_for_output(0, INSTALL)
            page.click(0, INSTALL)
            # In the cell that was placed below: the picker has made room for one sentence.
            page.wait_for_output(1, "PyTorch works", timeout=300)
            page.wait_for_kernel("idle")
            page.select_cell(0)
            yield from _photographs(page, folder, "verification", cell=1)


def _real_wheel() -> Path | None:
    tag = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    return next((path for path in find_real_wheels(os.environ) if tag in path.name), None)


def _write_nvidia_smi(folder: Path) -> None:
    """Write the program that knows one question and the answer to it."""
    question = " ".join(nvidia_smi_command("nvidia-smi")[1:])
    folder.mkdir(parents=True)
    program = folder / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\nif [ "$*" != "{question}" ]; then exit 2; fi\necho "{CARD}"\n',
        encoding="ascii",
    )
    program.chmod(0o755)


def _make_kernel(server: JupyterServer) -> str:
    """Make an environment where a person would have it, `~/lab/.venv`; return the kernel's name."""
    environment = KernelEnvironment.create(
        server.home / "lab" / ".venv",
        python=sys.executable,
        cache=Path(run_uv("cache", "dir").strip()),
    )
    return environment.write_kernelspec(server.data_directory, name="lab")


def _open(browser: Browser, server: JupyterServer, kernel: str) -> FrontEndPage:
    """Open a notebook with one cell, run it, and return its page."""
    notebook = server.create_notebook("quickstart.ipynb", [PICKER], kernel_name=kernel)
    page = browser.open(server, notebook, scale=SCALE)
    page.execute_command("application:toggle-left-area")
    page.run_cell(0)
    return page


def _photographs(page: FrontEndPage, folder: Path, name: str, *, cell: int) -> Iterator[Path]:
    for theme in THEMES:
        page.set_theme(theme)
        _fit(page)
        path = folder / f"{name}-{theme}.png"
        path.write_bytes(page.perform(lambda inner: _photograph(inner, cell)))
        if path.stat().st_size > LARGEST_PICTURE_BYTES:
            raise PictureError(f"{path.name} is larger than {LARGEST_PICTURE_BYTES // 1000} kB")
        yield path


def _photograph(page: Page, cell: int) -> bytes:
    return page.screenshot(clip=page.evaluate(_FRAME, [MARGIN, cell]), animations="disabled")


# From the prompt's text to the end of the outputs, without the frame of the active cell below.
_FRAME = """async ([margin, index]) => {
  await document.fonts.ready;
  const cells = document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell');
  const cell = cells[index];
  const prompt = document.createRange();
  prompt.selectNodeContents(cell.querySelector('.jp-InputPrompt'));
  const input = cell.querySelector('.jp-Editor, .jp-CodeMirrorEditor').getBoundingClientRect();
  const outputs = cell.querySelector('.jp-Cell-outputArea').getBoundingClientRect();
  const x = prompt.getBoundingClientRect().left - margin, y = input.top - margin;
  return {x, y, width: input.right + margin - x, height: outputs.bottom + margin - y};
}"""


def _fit(page: FrontEndPage) -> None:
    """Give the window the width at which the cell is as wide as it should be."""
    width = CELL_WIDTH
    for _ in range(10):
        page.resize(width, WINDOW_HEIGHT)
        found: float = page.perform(lambda inner: inner.evaluate(_WIDTH))
        if round(found) == CELL_WIDTH:
            return
        width += round(CELL_WIDTH - found)
    raise PictureError(f"the cell does not get {CELL_WIDTH} pixels wide")


# The panels get their new sizes in a frame after the window's, and the cell in the next.
_WIDTH = """async () => {
  const frame = () => new Promise(resolve => requestAnimationFrame(resolve));
  const cell = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell');
  const width = () => cell.getBoundingClientRect().width;
  let still = 0;
  for (let last = width(); still < 10; last = width()) {
    await frame();
    still = width() === last ? still + 1 : 0;
  }
  return width();
}"""


if __name__ == "__main__":
    sys.exit(main())
