"""The page for admins is true: its names are in the code, and its links lead somewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from traitlets.config import Config

from torchenv_magic.hub import OPTION, configure
from torchenv_magic.words import parse_words

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "jupyterhub.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "torchenv_magic").rglob("*.py")
)


def test_the_first_lines_are_all_that_a_configuration_needs() -> None:
    block = PAGE.split("```python\n")[1].split("```")[0]
    config = Config()
    exec(compile(block, "docs/jupyterhub.md", "exec"), {"c": config})  # noqa: S102
    assert block in (ROOT / "README.md").read_text(encoding="utf-8")
    assert config.Spawner.http_timeout == 120
    assert "wait=60" in PAGE
    assert inspect.signature(configure).parameters["wait"].default == 60


def test_each_setting_of_the_table_is_one_that_configure_takes() -> None:
    table = PAGE.split("| `configure(c, …)` | Means |")[1].split("\n\n")[0]
    for code in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE):
        for setting in code.split("`, `"):
            given: dict[str, Any] = eval(f"dict({setting.strip('`')})")  # noqa: S307
            # The one setting that needs another beside it, as its row says.
            if "backend" in given:
                given["variants"] = ("auto", given["backend"])
            configure(Config(), **given)


def test_each_variable_is_one_that_the_package_reads() -> None:
    names = set(re.findall(r"`(TORCHENV_[A-Z_]+)", PAGE))
    assert len(names) > 6
    assert {name for name in names if f'"{name}"' not in SOURCES} == set()


def test_each_command_is_in_our_own_words() -> None:
    lines = re.findall(r"^# torchenv (.+)$", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        parse_words(line.split(), notebook=False)


def test_a_link_chooses_by_the_option_s_name() -> None:
    assert f"opt-{OPTION}=" in PAGE


def test_each_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)#]+)", PAGE)
    assert len(targets) > 12
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target


def test_each_example_is_on_the_page() -> None:
    for file in (ROOT / "jupyter-config" / "examples").rglob("jupyterhub_config.py"):
        assert f"../jupyter-config/examples/{file.parent.name}/{file.name}" in PAGE
