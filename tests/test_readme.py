"""The README is true: its blocks run, its tables agree with the code, its pictures are there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.utils._process_common import arg_split

import dev
from tests.browser.fixtures import MakeKernelEnvironment
from tests.browser.picture import CARD, CELL_WIDTH, LARGEST_PICTURE_BYTES, SCALE
from tests.standin import TORCH, StandIn
from torchenv_magic.accelerators import detect
from torchenv_magic.accelerators.nvidia import nvidia_smi_report
from torchenv_magic.accelerators.probing import Completed
from torchenv_magic.accelerators.records import Host, Platform
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.environment import Interpreter
from torchenv_magic.selection import Request, select
from torchenv_magic.words import HelpRequested, options_of, parse_words, words_of

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SENTENCE = "Pick, install and prove the right PyTorch build from inside a notebook"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = FENCE.sub("", README)
LITERALS = re.findall(r"`([^`\n]+)`", PROSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    language: str
    text: str
    position: int

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


BLOCKS = [
    Block(language=match[1], text=match[2], position=match.start())
    for match in FENCE.finditer(README)
]


def blocks(language: str) -> list[Block]:
    found = [block for block in BLOCKS if block.language == language]
    assert found, f"the README has no block of {language}"
    return found


class Pictures(HTMLParser):
    """Collect the attributes of every picture's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[dict[str, str | None]] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(PROSE)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "source":
            self.sources.append(dict(attrs))
        elif tag == "img":
            self.images.append(dict(attrs))


PICTURES = Pictures()
PICTURE_FILES = [
    *(str(part["src"]) for part in PICTURES.images),
    *(str(part["srcset"]) for part in PICTURES.sources),
]


# ------------------------------------------------------------------------------- the first screen


def test_the_first_screen_is_name_sentence_picture_two_lines_two_commands() -> None:
    name, _, sentence = README.splitlines()[:3]
    assert name == "# torchenv_magic"
    assert sentence == f"{SENTENCE}."
    lines, lab, test = BLOCKS[:3]
    assert lines.lines == ["%load_ext torchenv_magic", "%torchenv"]
    assert lab.lines == ["python3 dev.py lab"]
    assert test.lines == ["python3 dev.py test"]
    assert 0 < README.index("<picture>") < lines.position < test.position
    assert test.position < README.index("\n## ")


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} == {"ipython", "sh", "console", "python"}


# ----------------------------------------------------------------------------- words and commands


def magics() -> Iterator[tuple[str, str]]:
    """Yield the name and the line of each magic in a block, as IPython reads them."""
    transform = TransformerManager().transform_cell  # type: ignore[no-untyped-call]
    pattern = re.compile(r"get_ipython\(\)\.run_line_magic\('(\w+)', '(.*)'\)")
    for block in blocks("ipython"):
        for line in transform(block.text).splitlines():
            match = pattern.fullmatch(line)
            assert match, f"IPython reads no magic in: {line}"
            yield match[1], match[2]


def test_every_magic_in_a_block_is_understood() -> None:
    lines = list(magics())
    assert ("load_ext", "torchenv_magic") in lines
    assert ("torchenv", "") in lines
    for name, line in lines:
        if name == "torchenv":
            assert_understood(arg_split(line, posix=True), notebook=True)
        else:
            assert (name, line) == ("load_ext", "torchenv_magic")


def test_every_magic_in_the_text_is_understood() -> None:
    texts = [text for text in LITERALS if re.search(r"%torchenv\b", text)]
    assert len(texts) >= 4
    for text in texts:
        line = text.partition("%torchenv")[2]
        if "WORD" not in line:
            assert_understood(arg_split(line, posix=True), notebook=True)


def test_every_command_of_a_terminal_is_understood() -> None:
    lines = [line for block in blocks("console") for line in block.lines]
    for line in lines:
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "torchenv")
        assert_understood(arguments, notebook=False)


def assert_understood(arguments: list[str], *, notebook: bool) -> None:
    try:
        words = parse_words(arguments, notebook=notebook)
    except HelpRequested:
        return
    assert words.word in ("", *words_of(notebook=notebook))


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_table_of_words_is_that_of_the_code() -> None:
    rows = table("Words")
    assert [row[0].strip("`") for row in rows] == list(words_of(notebook=False))
    assert [row[0].strip("`") for row in rows if row[1] == "both"] == list(words_of(notebook=True))
    assert {row[1] for row in rows} == {"both", "terminal"}
    assert all(row[2] for row in rows)


def test_every_option_in_the_text_is_one_of_ours_or_of_uv() -> None:
    known = {
        option
        for notebook in (True, False)
        for word in words_of(notebook=notebook)
        for option in options_of(word, notebook=notebook)
    }
    named = {match for text in LITERALS for match in re.findall(r"--[a-z][a-z-]*", text)}
    assert named - known == {"--torch-backend"}


def test_every_command_of_the_checkout_exists() -> None:
    named = set(re.findall(r"python3? dev\.py (\w+)", README))
    assert {"lab", "test", "picture"} <= named
    documented = set(re.findall(r"^python3 dev\.py (\w+)", str(dev.__doc__), re.MULTILINE))
    assert named <= documented
    for module in set(re.findall(r"python -m ([\w.]+)", README)):
        assert importlib.util.find_spec(module), module


# ------------------------------------------------------------------------------------- Python API


def test_the_block_of_python_installs_and_verifies_in_a_fresh_environment(
    fresh_standin: StandIn, make_kernel_environment: MakeKernelEnvironment, tmp_path: Path
) -> None:
    if detect().accelerators:
        pytest.skip("the made torch computes on the processor, and this machine has a GPU")
    # The hub's lines are held by tests/spawners.
    _, block = blocks("python")
    environment = make_kernel_environment()
    child = fresh_standin.environment(tmp_path / "uv-cache", hermetic=True)
    tell = (
        "import json\n"
        "print(json.dumps([verification.passed, str(verification), sorted(result.changed)]))\n"
        "assert plan(selection, environment, request).nothing_to_do"
    )
    completed = subprocess.run(
        [str(environment.python), "-c", f"{block.text}\n{tell}"],
        env=child.apply(os.environ),
        # `-c` imports from where it runs: the checkout must not stand in for what is installed.
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    passed, text, changed = json.loads(completed.stdout)
    assert passed, text
    assert {"torch", "torchvision"} <= set(changed)
    assert environment.packages()["torch"] == f"{TORCH}+cpu"


# ------------------------------------------------------------------------------ pictures and links


@pytest.mark.parametrize("name", PICTURE_FILES)
def test_every_picture_is_a_small_png_of_its_size(name: str) -> None:
    content = (ROOT / name).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    width, height = struct.unpack(">II", content[16:24])
    assert 0.8 * CELL_WIDTH < width / SCALE <= CELL_WIDTH
    assert height > 100
    assert len(content) <= LARGEST_PICTURE_BYTES


def test_every_picture_has_a_dark_one_and_words_for_those_who_do_not_see_it() -> None:
    assert len(PICTURES.images) == len(PICTURES.sources) == README.count("<picture>")
    for image, source in zip(PICTURES.images, PICTURES.sources, strict=True):
        assert source["media"] == "(prefers-color-scheme: dark)"
        assert source["srcset"] == str(image["src"]).replace("-light.", "-dark.")
        assert len(str(image["alt"])) > 100
        # As wide as in the notebook; a sharp picture has more pixels than that.
        width = struct.unpack(">I", (ROOT / str(image["src"])).read_bytes()[16:20])[0]
        assert int(str(image["width"])) == pytest.approx(width / SCALE, abs=1)


def test_the_words_of_the_picture_are_what_is_chosen_for_that_card_today() -> None:
    card = nvidia_smi_report(Completed(returncode=0, output=f"{CARD}\n"))
    platform = Platform(system="linux", machine="x86_64", libc="glibc", libc_version="2.36")
    selection = select(
        Host(platform=platform, accelerators=card.accelerators),
        Request(),
        interpreter=Interpreter(
            executable=Path("python"), version="3.11.7", implementation="cpython"
        ),
    )
    assert selection.backend is not None
    chosen = f"{selection.backend.label} with torch {selection.torch} as {selection.reason}"
    alt = str(PICTURES.images[0]["alt"])
    assert f"recommends {chosen}" in alt
    fitting = [item for item in selection.alternatives if item.fits]
    numbers = {4: "four", 3: "three", 5: "five"}
    assert f"Below are {numbers[len(fitting) - 1]} other builds that fit" in alt


def test_every_link_to_a_file_leads_there() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PROSE)
    files = [target for target in targets if "://" not in target]
    assert "CONTRIBUTING.md" in files
    for target in files:
        assert (ROOT / target).exists(), target


def test_every_file_that_is_named_is_there() -> None:
    for text in LITERALS:
        if re.fullmatch(r"(notebooks|torchenv_magic|docs|tests)/[\w./-]+", text):
            assert (ROOT / text).exists(), text


# ----------------------------------------------------------------------------------- other numbers


def test_the_comparison_and_the_limits_speak_of_the_uv_that_the_catalog_knows() -> None:
    catalog = load_catalog()
    assert set(re.findall(r"uv (0\.\d+\.\d+)", README)) == {catalog.uv_version}
    refused = next(item for item in catalog.backends() if not catalog.is_known_to_uv(item))
    assert f"`{refused}` with uv {catalog.uv_version}" in README
    newest = str(catalog.backends()[0])
    rows = {row[0].split(" ")[0].strip("[]`"): row for row in table("Beside other tools")}
    assert rows["torchenv_magic"][2] == newest
