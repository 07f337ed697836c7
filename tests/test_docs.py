"""The site of `docs/` builds without a warning, and says what the code says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.utils._process_common import arg_split

from docs.generation import DOCUMENTS, FENCE, PAGE_OF, PLACE, documented_keys, fill_page
from torchenv_magic.cli import main
from torchenv_magic.cli.talk import EVENTFUL
from torchenv_magic.words import parse_words, words_of

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@cache
def filled(name: str) -> str:
    """Return a page as the site has it, before it is HTML."""
    return fill_page(name, (DOCS / name).read_text(encoding="utf-8"))


class Page(HTMLParser):
    """What a built page offers as a target, what it leads to, and what it loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and (target := found.get("href")):
            self.links.append(target)
        elif target := found.get("src") or found.get("href"):
            self.loaded.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    answer = subprocess.run(
        [*command, "-d", str(built / "doctrees"), str(DOCS), str(built / "html")],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return built / "html"


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, Page]:
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }


def test_every_page_is_in_the_site_and_reached_from_the_first_one(built: dict[str, Page]) -> None:
    names = {name.removesuffix(".md") + ".html" for name in PAGES}
    assert names <= built.keys()
    assert names - {"index.html"} <= {link.partition("#")[0] for link in built["index.html"].links}


def test_every_link_inside_leads_to_a_page_and_a_place_on_it(
    site: Path, built: dict[str, Page]
) -> None:
    broken = []
    for name, page in built.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            path = (site / name).parent / unquote(target.path) if target.path else site / name
            found = path.resolve()
            inside = found.is_file() and found.is_relative_to(site.resolve())
            if not inside:
                broken.append(f"{name}: {link}")
            elif found.suffix == ".html" and target.fragment:
                other = built[found.relative_to(site.resolve()).as_posix()]
                if unquote(target.fragment) not in other.anchors:
                    broken.append(f"{name}: {link}")
    assert broken == []


def test_no_page_loads_anything_from_elsewhere(built: dict[str, Page]) -> None:
    loaded = {target for page in built.values() for target in page.loaded}
    assert loaded
    assert [target for target in loaded if urlsplit(target).netloc] == []


def test_what_a_page_takes_from_elsewhere_is_there_and_nothing_of_the_place_stays() -> None:
    for name in PAGES:
        assert not PLACE.search(filled(name)), name
    words = fill_page("reference/words.md", "<!-- from: words -->")
    for word in words_of(notebook=False):
        assert f"\n## `{word}`\n" in f"\n{words}"
        assert f"torchenv {word}" in words


def test_a_page_on_github_leads_to_what_the_site_puts_there() -> None:
    seen = 0
    for name in PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        for line in text.splitlines():
            if "<!-- from: " not in line:
                continue
            seen += 1
            links = re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", line)
            assert links or "`python3 dev.py docs`" in line, f"{name}: {line}"
            for target, anchor in links:
                file = DOCS / Path(name).parent / target
                assert file.is_file(), f"{name}: {target}"
                headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {
                    re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings
                }
                assert not anchor or anchor in anchors, f"{name}: {target}#{anchor}"
    assert seen > 20


def test_every_file_of_the_repository_that_is_a_page_is_taken_by_that_page() -> None:
    for source, page in PAGE_OF.items():
        text = (DOCS / page).read_text(encoding="utf-8")
        taken = "README.md#Limits" if source == "README.md" else source
        assert taken in text


# ---------------------------------------------------------------------------- what the pages say


def lines_of(language: str) -> list[tuple[str, str]]:
    """Return each line of a block of that language, with the name of its page."""
    found = []
    for name in PAGES:
        for block in FENCE.finditer(filled(name)):
            head, _, rest = block[0].partition("\n")
            if head == f"```{language}":
                found += [(name, line) for line in rest.splitlines()[:-1] if line]
    return found


def test_every_magic_of_a_page_is_understood() -> None:
    pattern = re.compile(r"get_ipython\(\)\.run_line_magic\('torchenv', '(.*)'\)")
    transform = TransformerManager().transform_cell  # type: ignore[no-untyped-call]
    seen = 0
    for _, line in lines_of("ipython"):
        if match := pattern.search(transform(line.strip())):
            parse_words(arg_split(match[1], posix=True), notebook=True)
            seen += 1
    assert seen > 20


def test_every_command_of_a_page_is_understood() -> None:
    seen = set()
    for name, line in lines_of("console"):
        prompt, program, *arguments = shlex.split(line)
        if program != "torchenv":
            continue
        assert prompt in "$#", name
        seen.add(parse_words(arguments, notebook=False).word)
    assert {"lock", "restore", "export", "notebook", "download"} <= seen


def test_the_hook_of_a_page_is_the_one_that_this_repository_offers() -> None:
    offered = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    named = [line.strip() for _, line in lines_of("yaml") if line.strip().startswith("- id: ")]
    assert named
    assert set(named) <= set(offered.splitlines())


def test_every_variable_of_ours_is_on_the_page_about_them() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    pattern = re.compile(r"\b(?:UV_INDEX_)?TORCHENV_[A-Z_]+[A-Z]\b")
    used = {
        name
        for path in (ROOT / "torchenv_magic").rglob("*.py")
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert "TORCHENV_INDEX_BASE" in used
    assert used == set(pattern.findall(page))


@pytest.mark.parametrize("word", ["detect", "select", "list", "status"])
def test_what_a_word_prints_as_json_has_the_fields_that_its_page_names(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    keys = set((printed[0] if word == "list" else printed).keys())
    left_out = {"exclusion"} if word == "select" else set()
    assert keys == documented_keys(word) - left_out


def test_what_is_printed_about_a_notebook_has_the_keys_that_the_page_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^- `(\w+)` (prints.*?)(?=^- |^## )", page, re.MULTILINE | re.DOTALL))
    path = tmp_path / "analysis.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import torch")]), path
    )
    for word, *rest in (
        ("notebook", "check", str(path)),
        ("notebook", "add", str(path), "cpu", "torch==2.13.0"),
        ("export", "index", str(path), "--output", str(tmp_path / "pyproject.toml")),
    ):
        main([word, *rest, "--json"])
        printed = json.loads(capsys.readouterr().out)
        inner = [item for value in printed.values() if isinstance(value, list) for item in value]
        for record in (printed, *(item for item in inner if isinstance(item, dict))):
            assert [key for key in record if not re.search(f'[`"]{key}[`"]', said[word])] == []


def test_the_page_about_json_names_each_word_that_tells_of_its_events() -> None:
    first = (DOCS / "reference" / "json.md").read_text(encoding="utf-8").split("\n\n")[1]
    assert {word for word in words_of(notebook=False) if f"`{word}`" in first} == EVENTFUL


def test_every_word_that_prints_json_has_its_record_or_a_sentence() -> None:
    page = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    for word in words_of(notebook=False):
        assert word in DOCUMENTS or f"- `{word}`" in page or word == "preinstall", word


def test_a_record_is_not_told_by_its_signature() -> None:
    assert "(*, " not in filled("reference/json.md")
