"""The picker's looks: what a screen reader, the keyboard and the eye find in each state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.front_end import Browser, FrontEndPage
from tests.browser.kernel_environment import PROJECT_ROOT
from tests.browser.picker_gallery import MODELS
from tests.browser.server import JupyterServer

pytestmark = pytest.mark.browser

SNAPSHOTS = PROJECT_ROOT / "tests" / "data" / "picker"
REWRITE = "TORCHENV_REWRITE_SNAPSHOTS"
"""Set, it has the snapshots written anew instead of compared."""

NAMES = list(MODELS)
AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def gallery(browser: Browser, lab_server: JupyterServer) -> Iterator[FrontEndPage]:
    """Give a page with one cell for each state of the picker, in the order of `NAMES`."""
    head = (
        f"import sys; sys.path.insert(0, {str(PROJECT_ROOT)!r})\n"
        "from tests.browser.picker_gallery import show\n"
    )
    cells = [f"{head}show({name!r})" for name in NAMES]
    page = browser.open(lab_server, lab_server.create_notebook("gallery.ipynb", cells))
    page.run_all(timeout=120)
    for index in range(len(NAMES)):
        page.wait_for_output(index, "PyTorch for this kernel")
    yield page
    page.close()
    lab_server.shut_down_kernels()


@pytest.mark.parametrize("name", NAMES)
def test_each_state_tells_a_screen_reader_what_the_snapshot_says(
    name: str, gallery: FrontEndPage
) -> None:
    found = gallery.aria_snapshot(NAMES.index(name)) + "\n"
    file = SNAPSHOTS / f"{name}.aria.yaml"
    if os.environ.get(REWRITE):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")


# JupyterLab's body has no height and hides what flows over, so that axe takes everything in it for
# invisible, and what is invisible has no contrast. All pickers at once: most of what axe does is to
# read the whole page.
_EXAMINE = """async rules => {
  document.body.style.height = '100vh';
  const pickers = [...document.querySelectorAll('.torchenv-picker')];
  const place = node => pickers.findIndex(picker => picker.contains(node.element));
  const told = results => results.flatMap(rule => rule.nodes.map(node => ({
    place: place(node),
    rule: rule.id,
    html: node.html,
    message: node.any[0]?.message ?? '',
  })));
  try {
    const report = await axe.run({ include: pickers }, {
      elementRef: true, ...(rules.length ? { runOnly: rules } : {})
    });
    return {
      pickers: pickers.length,
      faults: told([...report.violations, ...report.incomplete]),
      passes: told(report.passes),
    };
  } finally { document.body.style.height = ''; }
}"""
# What is out of sight has no contrast either. JupyterLab takes a moment to follow the window.
_ALL_IN_SIGHT = """() => {
  document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0;
  return [...document.querySelectorAll('.torchenv-picker')].every(picker => {
    const { top, bottom } = picker.getBoundingClientRect();
    const { bottom: end } = picker.closest('.jp-WindowedPanel-outer').getBoundingClientRect();
    return top >= 0 && bottom <= end;
  });
}"""
# What a theme changes; the rest is the same in each of them, and looked at in one.
_COLORS = ("color-contrast",)


def faults(page: FrontEndPage, *rules: str) -> dict[str, list[str]]:
    """Return what axe-core finds fault with in each state, by the rules or by all."""

    def run(inner: Page) -> Any:
        if not inner.evaluate("'axe' in window"):
            inner.evaluate(AXE)
        inner.wait_for_function(_ALL_IN_SIGHT)
        return inner.evaluate(_EXAMINE, list(rules))

    page.resize(1100, 1000 * len(NAMES))
    report = page.perform(run)
    page.resize(1100, 1400)
    assert report["pickers"] == len(NAMES)
    seen = {node["place"] for node in report["passes"] if node["rule"] == "color-contrast"}
    assert seen == {*range(len(NAMES))}, "not all were seen"
    found: dict[str, list[str]] = {}
    for node in report["faults"]:
        text = f"{node['rule']}: {node['html'][:200]} {node['message']}"
        found.setdefault(NAMES[node["place"]], []).append(text)
    return found


@pytest.mark.parametrize(("theme", "rules"), [("light", ()), ("dark", _COLORS)])
def test_axe_finds_no_fault_in_any_state(
    theme: Any, rules: tuple[str, ...], gallery: FrontEndPage
) -> None:
    gallery.set_theme(theme)
    assert faults(gallery, *rules) == {}


def test_axe_finds_no_fault_in_the_high_contrast_theme(gallery: FrontEndPage) -> None:
    name = "JupyterLab Dark High Contrast"
    gallery.execute_command("apputils:change-theme", {"theme": name})
    gallery.perform(
        lambda page: page.wait_for_function(
            "name => document.body.dataset.jpThemeName === name"
            " && document.getElementById('jupyterlab-splash') === null",
            arg=name,
        )
    )
    found = faults(gallery, *_COLORS)
    gallery.set_theme("light")
    assert found == {}


_UNFOLD = """open => {
  for (const details of document.querySelectorAll('.torchenv-picker details')) details.open = open;
}"""
# Whatever sticks out of its picker, or is cut off in it.
_OVERFLOWS = """() => [...document.querySelectorAll('.torchenv-picker')].flatMap(picker => {
  const frame = picker.getBoundingClientRect();
  return [...picker.querySelectorAll('*')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > frame.right + 1 || box.left < frame.left - 1);
  }).map(element => element.outerHTML.slice(0, 120));
})"""


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
@pytest.mark.parametrize("width", [320, 400, 1100])
def test_nothing_sticks_out_of_the_picker(
    width: int, direction: str, gallery: FrontEndPage
) -> None:
    def shape(page: Page) -> Any:
        page.evaluate("direction => { document.documentElement.dir = direction; }", direction)
        page.evaluate(_UNFOLD, arg=True)
        cell = page.locator(".jp-Notebook").first
        cell.evaluate("(notebook, width) => { notebook.style.maxWidth = width + 'px'; }", width)
        page.wait_for_function(
            "width => document.querySelector('.torchenv-picker').offsetWidth < width", arg=width
        )
        found = page.evaluate(_OVERFLOWS)
        page.evaluate("document.documentElement.dir = ''")
        page.evaluate(_UNFOLD, arg=False)
        cell.evaluate("notebook => { notebook.style.maxWidth = ''; }")
        return found

    assert gallery.perform(shape) == []


def test_in_right_to_left_the_reading_begins_at_the_right(gallery: FrontEndPage) -> None:
    index = NAMES.index("ready")

    def places(page: Page) -> Any:
        page.evaluate("document.documentElement.dir = 'rtl'")
        found = (
            gallery.output(index)
            .locator(".torchenv-picker")
            .evaluate(
                """picker => {
              const left = selector => picker.querySelector(selector).getBoundingClientRect().left;
              const [primary, secondary] = picker.querySelectorAll('button');
              return {
                radio: left('.widget-radio-box input') > left('.widget-radio-box label'),
                title: left('th') > left('td'),
                field: left('.widget-text label') > left('.widget-text input'),
                buttons: primary.getBoundingClientRect().left
                  > secondary.getBoundingClientRect().left,
              };
            }"""
            )
        )
        page.evaluate("document.documentElement.dir = ''")
        return found

    assert set(gallery.perform(places).values()) == {True}


def test_buttons_have_an_edge_for_the_system_to_paint(gallery: FrontEndPage) -> None:
    """Where colours are forced, a button without a border looks like a word."""

    def edges(page: Page) -> Any:
        return page.evaluate(
            """() => [...document.querySelectorAll('.torchenv-picker button')].map(button => {
              const style = getComputedStyle(button);
              return style.borderStyle === 'solid' && parseFloat(style.borderWidth) >= 1;
            })"""
        )

    assert set(gallery.perform(edges)) == {True}


def test_a_build_is_chosen_by_keyboard(gallery: FrontEndPage) -> None:
    """Tab goes from one build to the next, and Space takes the one that has the keyboard."""
    index = NAMES.index("ready")

    def checked() -> list[bool]:
        return gallery.perform(
            lambda _: [
                radio.is_checked()
                for radio in gallery.output(index).locator("input[type=radio]").all()
            ]
        )

    assert checked() == [True, False, False]
    gallery.perform(lambda _: gallery.output(index).locator("input[type=radio]").first.focus())
    gallery.press("Tab")
    focus = gallery.focused()
    assert focus is not None
    assert focus.ring
    assert focus.name.startswith("CUDA 11.8")
    gallery.press("Space")
    assert checked() == [False, True, False]


def test_the_log_is_opened_by_keyboard_and_shows_the_last_lines(gallery: FrontEndPage) -> None:
    index = NAMES.index("installing")
    assert "Resolved 17 packages" not in gallery.cell_output_text(index)
    gallery.perform(lambda _: gallery.output(index).locator(".torchenv-log-switch summary").focus())
    gallery.press("Enter")
    gallery.wait_for_output(index, "Resolved 17 packages")
    gallery.press("Enter")
