"""What an export writes into a TOML that is there, and what it refuses to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.project.exporting import used
from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import ExportError
from torchenv_magic.project.export import Configuration, configure
from torchenv_magic.project.export_toml import edited_project, edited_script, new_project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "pyproject.toml"
OWN = """\
# Ours, for years.
[build-system]
requires = ["hatchling"]  # the builder

[project]
name = "p"   # a short one
version = "1.0"
requires-python = ">=3.8"
dependencies = [
    # what reads tables
    "pandas>=2",
    "torch[opt]>=2.7",  # or newer
]

[tool.uv]
dev-dependencies = ['ruff']

[tool.ruff]
line-length = 100

[tool.uv.sources]
mine = { path = "../mine" }

[tool.other]
text = \"\"\"
[not.a.table]
\"\"\"
"""


def made(
    form: str, *backends: str, requirements: Sequence[str] = ("torch", "torchvision")
) -> Configuration:
    return configure(form, used(*requirements), [Backend.parse(text) for text in backends])


def edited(text: str, form: str = "index", *backends: str) -> str:
    configuration = made(form, *backends)
    result = edited_project(text, configuration, file=FILE)
    # A second export finds nothing to do, whatever the first one found.
    assert edited_project(result, configuration, file=FILE) == result
    return result


def read(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def refusal(text: str, form: str = "index", *backends: str) -> str:
    with pytest.raises(ExportError) as caught:
        edited(text, form, *backends)
    assert caught.value.hint
    assert "nothing was written" in caught.value.message
    return caught.value.message


def test_a_new_project_is_what_uv_needs_and_no_more() -> None:
    assert new_project("My Notes", "3.11", made("index", "cpu")) == (
        '[project]\nname = "my-notes"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n'
        'dependencies = [\n  "torch==2.13.0",\n  "torchvision",\n]\n\n'
        '[tool.uv.sources]\ntorch = [\n  { index = "pytorch-cpu" },\n]\n'
        'torchvision = [\n  { index = "pytorch-cpu" },\n]\n\n'
        '[[tool.uv.index]]\nname = "pytorch-cpu"\n'
        'url = "https://download.pytorch.org/whl/cpu"\nexplicit = true\n'
    )


@pytest.mark.parametrize("folder", ["torch", "Torch", "torchvision", "", "…", "ノート"])
def test_a_new_project_has_a_name_that_uv_takes_and_that_it_does_not_depend_on(folder: str) -> None:
    assert read(new_project(folder, "3.11", made("index")))["project"]["name"] == "notebooks"


def test_what_stands_there_stays_byte_for_byte_around_what_is_written() -> None:
    before, after = OWN.splitlines(), edited(OWN).splitlines()
    gone = [line for line in before if line not in after]
    assert gone == ['    "torch[opt]>=2.7",  # or newer']
    assert '    "torch[opt]==2.13.0",  # or newer' in after
    rest = iter(after)
    assert all(line in rest for line in before if line not in gone)
    data = read("\n".join(after))
    assert data["tool"]["uv"]["sources"]["mine"] == {"path": "../mine"}
    assert data["project"]["requires-python"] == ">=3.8"


def test_each_new_table_has_an_empty_line_above_it() -> None:
    for form in ("index", "extras"):
        lines = edited(OWN, form).splitlines()
        for number, line in enumerate(lines):
            if line.startswith("[") and "not.a.table" not in line and number:
                assert not lines[number - 1].strip() or lines[number - 1].startswith("#"), line


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_stay(end: str) -> None:
    text = edited(OWN.replace("\n", end))
    assert text.count("\r\n") == (text.count("\n") if end == "\r\n" else 0)


def test_a_file_of_both_line_ends_keeps_each() -> None:
    head, tail = OWN.split("[tool.uv]")
    text = edited(head.replace("\n", "\r\n") + "[tool.uv]" + tail)
    assert 'version = "1.0"\r\n' in text
    assert "line-length = 100\n" in text.replace("\r\n", "\x00")


def test_a_change_of_the_backend_leaves_nothing_of_the_last_one() -> None:
    text = OWN
    for form, backends in (
        ("index", ["rocm7.2"]),
        ("markers", ["xpu"]),
        ("index", ["cu126"]),
        ("index", ["cpu"]),
    ):
        text = edited(text, form, *backends)
    for trace in ("triton", "rocm", "xpu", "cu126", "marker"):
        assert trace not in text
    extras = edited(edited(text, "extras", "cpu", "rocm7.2"), "extras", "cpu", "cu130")
    data = read(extras)
    assert set(data["project"]["optional-dependencies"]) == {"cpu", "cu130"}
    assert data["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "cu130"}]]
    assert "rocm" not in extras


def test_a_comment_stays_above_its_table_whatever_comes_and_goes() -> None:
    text = edited('[project]\nname = "p"\n', "markers", "cu126")
    text += "\n# Why ruff is set up so,\n# at length.\n[tool.ruff]\nline-length = 100\n"
    for form, backends in (
        ("index", ["xpu"]),
        ("markers", ["rocm7.2"]),
        ("index", ["cpu"]),
        ("extras", ["cpu", "cu126", "xpu"]),
    ):
        text = edited(text, form, *backends)
        assert (
            "\n\n# Why ruff is set up so,\n# at length.\n[tool.ruff]\nline-length = 100\n" in text
        )


def test_an_index_that_nothing_here_was_taken_from_is_not_ours_to_remove() -> None:
    index = (
        '[[tool.uv.index]]\nname = "pytorch-cpu"\nurl = "https://download.pytorch.org/whl/cpu"\n'
        "explicit = true\n"
    )
    text = edited(f'[project]\nname = "p"\n\n{index}')
    assert index in text


def test_extras_take_the_family_out_of_what_everybody_installs() -> None:
    data = read(edited(OWN, "extras", "cpu", "cu126"))
    assert data["project"]["dependencies"] == ["pandas>=2"]
    # With what the project itself has said of it.
    assert data["project"]["optional-dependencies"]["cpu"] == ["torch[opt]==2.13.0", "torchvision"]


def test_a_member_in_a_group_comes_from_the_same_index() -> None:
    text = (
        '[project]\nname = "p"\n[dependency-groups]\n'
        'dev = ["torchaudio", { include-group = "x" }]\nx = []\n'
    )
    data = read(edited(text))
    assert data["tool"]["uv"]["sources"]["torchaudio"] == data["tool"]["uv"]["sources"]["torch"]
    again = read(edited(edited(text), "index", "cpu"))
    assert again["tool"]["uv"]["sources"]["torchaudio"] == [{"index": "pytorch-cpu"}]


@pytest.mark.parametrize(
    "asking",
    [
        '[dependency-groups]\ndev = ["torchaudio"]\n',
        '[tool.uv]\ndev-dependencies = ["torchaudio>=2"]\n',
        '[project.optional-dependencies]\nsound = ["torchaudio"]\n',
    ],
)
def test_a_member_that_is_asked_for_beside_the_extras_alone_is_refused(asking: str) -> None:
    text = f'[project]\nname = "p"\n{asking}'
    assert "asks for torchaudio outside the extras" in refusal(text, "extras", "cpu", "cu126")
    # The line names it too: each extra has it then.
    configuration = made("extras", "cpu", "cu126", requirements=("torch", "torchaudio"))
    data = read(edited_project(text, configuration, file=FILE))
    extras = [each["extra"] for each in data["tool"]["uv"]["sources"]["torchaudio"]]
    assert extras == ["cpu", "cu126"]


def test_a_member_in_one_extra_alone_has_a_source_for_that_one() -> None:
    text = '[project]\nname = "p"\n[project.optional-dependencies]\ncpu = ["torchaudio"]\n'
    sources = read(edited(text, "extras", "cpu", "cu126"))["tool"]["uv"]["sources"]
    assert sources["torchaudio"] == [{"index": "pytorch-cpu", "extra": "cpu"}]


def test_extras_and_conflicts_of_others_stay() -> None:
    text = (
        '[project]\nname = "p"\nversion = "1"\n[project.optional-dependencies]\ndocs = ["sphinx"]\n'
        'cpu = ["onnxruntime"]\n[tool.uv]\nconflicts = [[{ extra = "docs" }, { group = "x" }]]\n'
    )
    data = read(edited(text, "extras", "cpu", "cu126"))
    assert data["project"]["optional-dependencies"]["docs"] == ["sphinx"]
    assert data["project"]["optional-dependencies"]["cpu"][0] == "onnxruntime"
    assert data["tool"]["uv"]["conflicts"] == [
        [{"extra": "docs"}, {"group": "x"}],
        [{"extra": "cpu"}, {"extra": "cu126"}],
    ]


def test_a_member_that_the_project_asks_for_itself_comes_from_the_same_index() -> None:
    data = read(edited('[project]\nname = "p"\ndependencies = ["torchaudio>=2"]\n'))
    assert data["tool"]["uv"]["sources"]["torchaudio"] == data["tool"]["uv"]["sources"]["torch"]
    assert "torchaudio>=2" in data["project"]["dependencies"]


def test_the_index_that_is_there_is_used_by_its_own_name() -> None:
    text = (
        '[project]\nname = "p"\n\n[[tool.uv.index]]\nname = "torch-cuda"\n'
        'url = "https://download.pytorch.org/whl/cu126/"\nexplicit = true\n'
    )
    uv = read(edited(text))["tool"]["uv"]
    assert [index["name"] for index in uv["index"]] == ["torch-cuda"]
    assert uv["sources"]["torch"][0]["index"] == "torch-cuda"


@pytest.mark.parametrize(
    "text",
    [
        (
            '[project]\nname = "p"\n[tool.uv]\n'
            'index = [{ name = "a", url = "https://a.example" }]\n'
            'sources = { x = { index = "a" } }\n'
        ),
        'project.name = "p"\nproject.version = "1"\ntool.uv.sources.x = { path = "." }\n',
        'project = { name = "p", version = "1" }\n',
        '[[tool.uv.index]]\nname = "a"\nurl = "https://a.example"\n[project]\nname = "p"\n',
        '[project]\nname = "p"\ndependencies = ["x", ] # c\n\n\n# the end',
    ],
)
def test_a_file_in_another_style_gets_the_same_data(text: str) -> None:
    before, after = read(text), read(edited(text))
    assert "torch==2.13.0" in after["project"]["dependencies"]
    sources = after["tool"]["uv"]["sources"]
    assert sources["torch"][0]["index"] == "pytorch-cu126"
    for name, source in before.get("tool", {}).get("uv", {}).get("sources", {}).items():
        assert sources[name] == source


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[project\n", "is not TOML"),
        ("<<<<<<< HEAD\n", "is not TOML"),
        ('[tool.poetry]\nname = "p"\n', "has Poetry's own table"),
        ('[build-system]\nrequires = ["setuptools"]\n', "has no `[project]`"),
        ("[tool.ruff]\nline-length = 1\n", "has no `[project]`"),
        ('[project]\nname = "p"\ndynamic = ["dependencies"]\n', "`dependencies` are dynamic"),
        ('[project]\nname = "p"\ndependencies = "torch"\n', "no list of texts"),
        ('[project]\nname = "p"\ndependencies = ["tor ch"]\n', "what is no requirement"),
        ('[project]\nname = "p"\ndependencies = ["torch @ https://a.example/t.whl"]\n', "address"),
        (
            (
                '[project]\nname = "p"\ndependencies = ["torch<2; python_version < \'3.12\'", '
                "\"torch; python_version >= '3.12'\"]\n"
            ),
            "asks for torch in 2 entries",
        ),
        ("project = 1\n", "no table"),
        ('[project]\nname = "p"\n[tool]\nuv = 1\n', "no table"),
        ('[project]\nname = "p"\n[tool.uv]\nindex = 1\n', "no list of tables"),
        ('[project]\nname = "p"\n[tool]\nuv = { package = false }\n', "edited safely"),
        ('[project]\nname = "p"\ndynamic = 5\n', "edited safely"),
        ("tool = 5\n", "edited safely"),
        ('[project]\nname = "p"\noptional-dependencies = 5\n', "edited safely"),
        (f'[project]\nname = "p"\n[tool]\nx = {"[" * 150}{"]" * 150}\n', "edited safely"),
        (
            (
                '[project]\nname = "p"\n[[tool.uv.index]]\nname = "own"\n'
                'url = "https://download.pytorch.org/whl/cu126"\n'
            ),
            "takes every package from an index of PyTorch's first",
        ),
        (
            '[project]\nname = "p"\n[tool.uv.sources]\ntorch = { git = "https://a.example" }\n',
            "says in `tool.uv.sources` that torch comes from elsewhere",
        ),
        (
            (
                '[project]\nname = "p"\n[tool.uv.sources]\ntorch = { index = "own" }\n'
                '[[tool.uv.index]]\nname = "own"\nurl = "https://mirror.example/whl/cu126"\n'
            ),
            "says in `tool.uv.sources` that torch comes from elsewhere",
        ),
        (
            (
                '[project]\nname = "p"\n[[tool.uv.index]]\nname = "pytorch-cu126"\n'
                'url = "https://mirror.example"\n'
            ),
            "calls another index `pytorch-cu126`",
        ),
    ],
)
def test_what_contradicts_is_one_message(text: str, problem: str) -> None:
    assert problem in refusal(text)


def test_another_form_does_not_stand_beside_extras() -> None:
    text = edited('[project]\nname = "p"\n', "extras", "cpu", "cu126")
    assert "chooses PyTorch's build by an extra" in refusal(text)


def test_dynamic_extras_are_in_the_way_of_extras_alone() -> None:
    text = '[project]\nname = "p"\ndynamic = ["optional-dependencies"]\n'
    assert "torch" in edited(text)
    assert "`optional-dependencies` are dynamic" in refusal(text, "extras", "cpu", "cu126")


def test_the_metadata_of_a_script_has_no_project() -> None:
    data = read(edited_script("# mine\n", made("script"), file="x.py"))
    assert data["dependencies"] == ["torch==2.13.0", "torchvision"]
    assert data["tool"]["uv"]["index"][0]["name"] == "pytorch-cu126"
    assert "project" not in data
