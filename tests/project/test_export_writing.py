"""An export from its facts to its file, and what becomes of a file that is in the way."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from packaging.version import Version

from tests.targets import make_environment
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.environment import Environment, read_environment
from torchenv_magic.errors import ExportError, LockError, NotebookError
from torchenv_magic.project.export_writing import Export, prepare_export
from torchenv_magic.project.lock import (
    METADATA_KEY,
    Asked,
    LockedBackend,
    LockedPackage,
    LockedWheel,
    LockTarget,
    NotebookLock,
    lock_to_json,
)

FORMS = ("index", "markers", "extras", "requirements", "script", "dockerfile", "command")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment that says it has a torch for CUDA; nothing of it is in there."""
    prefix = make_environment(tmp_path_factory.mktemp("exported") / "env")
    site = next(prefix.rglob("site-packages"))
    folder = site / "torch-2.13.0+cu126.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: torch\nVersion: 2.13.0+cu126\n", encoding="utf-8")
    return read_environment(prefix)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def notebook(path: Path, *sources: str, metadata: Mapping[str, Any] | None = None) -> Path:
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources],
        metadata=dict(metadata or {}),
    )
    nbformat.write(made, path)
    return path


def lock() -> dict[str, Any]:
    versions = {"torch": "2.13.0+cu126", "torchvision": "0.28.0+cu126", "timm": "1.0.0"}
    packages = tuple(
        LockedPackage(
            name=name,
            version=version,
            wheels=(
                LockedWheel(
                    url="https://download.pytorch.org/whl/cu126/"
                    f"{name}-{version.replace('+', '%2B')}-py3-none-any.whl",
                    sha256="0" * 64,
                ),
            ),
        )
        for name, version in versions.items()
    )
    cuda = Backend.parse("cu126")
    return lock_to_json(
        NotebookLock(
            version="0.1.0",
            asked=Asked(backend=None, requirements=("torch", "timm>=1")),
            torch="2.13.0",
            target=LockTarget(
                python="3.12", implementation="cpython", system="linux", machine="x86_64"
            ),
            ran=cuda,
            backends=(LockedBackend(backend=cuda, packages=packages),),
        )
    )


# ------------------------------------------------------------------------------------------- facts


def test_each_form_is_made_of_an_environment_and_nothing_is_written(
    environment: Environment, tmp_path: Path
) -> None:
    for form in FORMS:
        made = prepare_export(form, environment=environment)
        assert "2.13.0" in made.text
        assert "cu126" in made.text
    assert not list(tmp_path.iterdir())


def test_a_lock_says_what_a_notebook_uses_and_what_came_along(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", "1", metadata={METADATA_KEY: lock()})
    used = prepare_export("command", notebook=path).used
    assert used.requirements == ("torch", "timm>=1", "torchvision")
    assert used.members == {"torch": Version("2.13.0"), "torchvision": Version("0.28.0")}
    assert used.python == "3.12"


def test_without_a_lock_the_set_up_cell_says_it(tmp_path: Path) -> None:
    cell = "%load_ext torchenv_magic\n%torchenv install cu126 torch==2.13.0 numpy"
    path = notebook(tmp_path / "a.ipynb", cell)
    assert prepare_export("command", notebook=path).text == (
        "uv pip install --torch-backend=cu126 torch==2.13.0+cu126 numpy\n"
    )


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("import torch", "no cell that installs"),
        ("%load_ext torchenv_magic\n%torchenv restore", "no cell that installs"),
        ("%torchenv install", "leaves its build of PyTorch to each machine"),
        ("%torchenv install cu126 'torch @ https://a.example/t.whl'", "does not say what it uses"),
        ("%torchenv install cu126 '--index-url=https://a.example'", "does not say what it uses"),
    ],
)
def test_a_notebook_that_does_not_say_it_is_asked_for_it(
    cell: str, problem: str, tmp_path: Path
) -> None:
    path = notebook(tmp_path / "a.ipynb", cell)
    before = path.read_bytes()
    with pytest.raises(ExportError, match=problem) as caught:
        prepare_export("script", notebook=path)
    assert caught.value.hint
    assert path.read_bytes() == before


def test_a_lock_that_a_stranger_wrote_is_not_exported(tmp_path: Path) -> None:
    hostile = lock()
    hostile["backends"]["cu126"]["packages"][0]["wheels"][0]["url"] = "file:///a.whl"
    path = notebook(tmp_path / "a.ipynb", "1", metadata={METADATA_KEY: hostile})
    with pytest.raises(LockError):
        prepare_export("index", notebook=path)


def test_what_is_no_notebook_is_refused_by_its_reader(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("<<<<<<< HEAD\n", encoding="utf-8")
    with pytest.raises(NotebookError):
        prepare_export("script", notebook=tmp_path / "a.ipynb")


def test_what_a_line_names_comes_first(environment: Environment) -> None:
    made = prepare_export(
        "command",
        environment=environment,
        backends=[Backend("cpu")],
        requirements=["torch", "numpy"],
    )
    assert made.text == "uv pip install --torch-backend=cpu torch==2.13.0+cpu numpy\n"


# ------------------------------------------------------------------------------------------ script


def test_the_metadata_goes_into_a_first_cell_that_is_hidden(
    environment: Environment, tmp_path: Path
) -> None:
    path = notebook(tmp_path / "a.ipynb", "import torch")
    before = path.read_text(encoding="utf-8")
    made = prepare_export("script", environment=environment, notebook=path)
    assert path.read_text(encoding="utf-8") == before
    assert made.write()
    read = nbformat.read(path, as_version=4)
    nbformat.validate(read)
    assert read.cells[0].metadata["jupyter"]["source_hidden"]
    assert read.cells[0].source.startswith("# /// script\n")
    assert read.cells[1].source == "import torch"
    again = prepare_export("script", environment=environment, notebook=path)
    assert not again.changed
    assert not again.write()
    cpu = prepare_export(
        "script", environment=environment, notebook=path, backends=[Backend("cpu")]
    )
    cpu.write()
    assert "pytorch-cpu" in path.read_text(encoding="utf-8")
    assert "cu126" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_a_line_does_not_ask_for_another_release_than_the_one_that_is_used(
    form: str, environment: Environment
) -> None:
    for text in ("torch==2.5.0", "torch @ https://a.example/torch.whl"):
        with pytest.raises(ExportError):
            prepare_export(form, environment=environment, requirements=[text])
    made = prepare_export(form, environment=environment, requirements=["torch[opt]==2.13.*"])
    assert "2.13.0" in made.text
    assert "[opt]" in made.text


def test_a_set_up_cell_for_a_release_that_its_backend_never_had_is_refused(tmp_path: Path) -> None:
    path = notebook(tmp_path / "a.ipynb", "%torchenv install cu118 torch==2.13.0")
    with pytest.raises(ExportError, match=r"no torch 2\.13\.0 for cu118"):
        prepare_export("command", notebook=path)


def test_metadata_of_ones_own_is_kept(environment: Environment, tmp_path: Path) -> None:
    own = '# /// script\n# dependencies = ["rich"]  # mine\n# ///\nimport rich'
    path = notebook(tmp_path / "a.ipynb", "1", own)
    prepare_export("script", environment=environment, notebook=path).write()
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) == 2
    assert '# dependencies = ["rich", "torch==2.13.0"]  # mine\n' in cells[1].source
    assert cells[1].source.endswith("# ///\nimport rich")


def test_two_blocks_of_metadata_are_one_too_many(environment: Environment, tmp_path: Path) -> None:
    own = "# /// script\n# dependencies = []\n# ///\n"
    path = notebook(tmp_path / "a.ipynb", own, own)
    with pytest.raises(ExportError, match="2 cells of inline metadata"):
        prepare_export("script", environment=environment, notebook=path)
    (tmp_path / "a.py").write_text(own * 2, encoding="utf-8")
    with pytest.raises(ExportError, match="2 blocks of inline metadata"):
        prepare_export("script", environment=environment, output=Path("a.py"))


def test_a_notebook_that_loads_the_extension_has_it_where_it_runs(
    environment: Environment, tmp_path: Path
) -> None:
    path = notebook(tmp_path / "a.ipynb", "%load_ext torchenv_magic\n%torchenv verify")
    made = prepare_export("script", environment=environment, notebook=path)
    assert "torchenv-magic" in made.text


def test_a_script_has_a_notebooks_code_and_no_line_that_only_ipython_knows(
    environment: Environment, tmp_path: Path
) -> None:
    path = notebook(
        tmp_path / "a.ipynb",
        "%load_ext torchenv_magic\n%torchenv verify",
        "%matplotlib inline\nx = 1",
        "%%bash\nls",
        "s = '''\n%d items\n!important\n'''",
        "files = !ls",
        "print(x)",
    )
    made = prepare_export("script", environment=environment, notebook=path, output=Path("a.py"))
    assert made.write()
    text = Path("a.py").read_text(encoding="utf-8")
    compile(text, "a.py", "exec")
    assert "torchenv" not in text
    assert text.endswith(
        "# %%\n# %matplotlib inline\nx = 1\n\n# %%\n# %%bash\n# ls\n\n"
        "# %%\ns = '''\n%d items\n!important\n'''\n\n"
        "# %%\n# files = !ls\n\n# %%\nprint(x)\n"
    )
    assert made.notes == ("3 cells have lines that only IPython understands: they became comments",)


def test_what_a_notebook_says_in_text_never_runs_in_its_script(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "a.ipynb"
    cells = [
        nbformat.v4.new_markdown_cell("A title\rprint('one')\r\nprint('two')\n/// script\n///"),
        nbformat.v4.new_code_cell("%pip install x\rprint('three')"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    made = prepare_export("script", environment=environment, notebook=path, output=Path("a.py"))
    code = [line for line in re.split("\r\n|\r|\n", made.text) if not line.startswith("#")]
    assert "".join(code) == "print('three')"
    assert made.text.count("\n# /// script") == 0


def test_a_script_has_what_stands_beside_a_notebooks_metadata_and_what_that_asks_for(
    environment: Environment, tmp_path: Path
) -> None:
    own = "# /// script\n# requires-python = '>=3.12'\n# dependencies = ['rich']\n# ///"
    path = notebook(tmp_path / "a.ipynb", f"before = 1\n{own}\nprint(before)")
    made = prepare_export("script", environment=environment, notebook=path, output=Path("a.py"))
    assert made.text.endswith("\n# %%\nbefore = 1\n\nprint(before)\n")
    assert made.text.count("# /// script") == 1
    assert "# requires-python = '>=3.12'\n# dependencies = ['rich', \"torch==" in made.text


def test_a_script_that_is_there_gets_the_metadata_below_its_first_line(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(b"#!/usr/bin/env python3\r\nimport torch\r\n")
    prepare_export("script", environment=environment, output=path).write()
    text = path.read_bytes()
    assert text.startswith(b"#!/usr/bin/env python3\r\n# /// script\r\n")
    assert text.endswith(b"# ///\r\n\r\nimport torch\r\n")
    assert text.count(b"\r\n") == text.count(b"\n")
    assert not prepare_export("script", environment=environment, output=path).changed


def test_a_script_with_a_mark_of_the_byte_order_stays_a_script(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(
        b"\xef\xbb\xbf# /// script\r\n# dependencies = []\r\n# ///\r\nimport torch\r\n"
    )
    prepare_export("script", environment=environment, output=path).write()
    text = path.read_bytes()
    assert text.startswith(b"\xef\xbb\xbf# /// script\r\n")
    assert text.count(b"# /// script") == 1
    compile(text, "train.py", "exec")


def test_a_script_of_a_first_line_alone_keeps_it_first(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_text("#!/usr/bin/env python3", encoding="utf-8")
    prepare_export("script", environment=environment, output=path).write()
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n# /// script\n")


def test_a_backend_that_uv_does_not_know_is_no_word_for_it(tmp_path: Path) -> None:
    catalog = load_catalog()
    unknown = [each for each in catalog.backends() if not catalog.is_known_to_uv(each)]
    if not unknown:
        pytest.skip("uv knows every backend of the catalog")
    path = notebook(tmp_path / "a.ipynb", f"%torchenv install {unknown[0]}")
    with pytest.raises(ExportError, match="uv does not take"):
        prepare_export("command", notebook=path)


# ------------------------------------------------------------------------------------- the file


def index(environment: Environment, *backends: str, output: Path | None = None) -> Export:
    named: Sequence[Backend] = [Backend.parse(text) for text in backends]
    return prepare_export("index", environment=environment, backends=named, output=output)


def test_a_file_is_written_as_a_whole_and_keeps_its_mode(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "p"\nversion = "1"\n', encoding="utf-8")
    path.chmod(0o640)
    made = index(environment)
    assert made.diff.startswith("--- pyproject.toml\n+++ pyproject.toml\n")
    assert made.write()
    assert path.read_text(encoding="utf-8") == made.text
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["pyproject.toml"]
    assert not index(environment).write()


def test_a_python_that_the_release_has_no_wheels_for_is_told_and_left_alone(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "pyproject.toml"
    text = '[project]\nname = "p"\nrequires-python = ">=3.8"\n'
    path.write_text(text, encoding="utf-8")
    made = index(environment)
    assert made.text.startswith(text)
    [note] = made.notes
    assert note.startswith("`requires-python` admits Python 3.8, and torch 2.13.0 has wheels for")
    path.write_text(text.replace("3.8", "3.11"), encoding="utf-8")
    assert not index(environment).notes


def test_a_mirror_of_this_machine_stays_on_this_machine(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHENV_INDEX_BASE", "https://mirror.example/whl")
    made = index(environment)
    assert "mirror.example" not in made.text
    assert any("mirror" in note for note in made.notes)


def test_a_mark_of_the_byte_order_stays(environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes(b'\xef\xbb\xbf[project]\nname = "p"\n')
    index(environment).write()
    assert path.read_bytes().startswith(b"\xef\xbb\xbf[project]")
    assert not index(environment).changed


@pytest.mark.skipif(sys.platform == "win32", reason="links take a privilege there")
def test_a_link_is_followed(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "pyproject.toml"
    target.write_text('[project]\nname = "p"\n', encoding="utf-8")
    (tmp_path / "pyproject.toml").symlink_to(target)
    index(environment).write()
    assert "torch" in target.read_text(encoding="utf-8")
    assert (tmp_path / "pyproject.toml").is_symlink()


def test_what_has_changed_since_it_was_read_is_left_alone(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "pyproject.toml"
    new = index(environment)
    path.write_text('[project]\nname = "theirs"\n', encoding="utf-8")
    old = index(environment)
    for made in (new, old):
        path.write_text('[project]\nname = "p"\n', encoding="utf-8")
        with pytest.raises(ExportError, match="has changed since it was read"):
            made.write()
        assert path.read_text(encoding="utf-8") == '[project]\nname = "p"\n'
    path.unlink()
    with pytest.raises(ExportError):
        old.write()
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_is_left_alone(environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "p"\n', encoding="utf-8")
    path.chmod(0o444)
    with pytest.raises(ExportError, match="is read-only"):
        index(environment).write()
    path.chmod(0o644)
    assert path.read_text(encoding="utf-8") == '[project]\nname = "p"\n'


def test_what_is_no_text_file_is_refused(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[project]\nname = "\xe9"\n')
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match="not in UTF-8"):
        index(environment, output=Path("latin.toml"))
    with pytest.raises(ExportError, match="is a folder"):
        index(environment, output=Path("folder"))
    with pytest.raises(ExportError, match="can't be read"):
        index(environment, output=Path("x" * 300))
    with pytest.raises(ExportError, match="no folder for"):
        index(environment, output=Path("nowhere/pyproject.toml"))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no names in folders there")
def test_a_pipe_keeps_nobody_waiting(environment: Environment, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pyproject.toml")
    with pytest.raises(ExportError, match="is no file"):
        index(environment)


def test_a_large_file_takes_no_longer_than_its_size(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "Dockerfile"
    path.write_bytes(b"# torchenv export: x\r\n" * 20_000 + b"y\n" * 20_000)
    made = prepare_export("dockerfile", environment=environment, output=path)
    assert made.text.encode().startswith(path.read_bytes())


def test_a_diff_shows_no_control_character(environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM python:3.12\n# \x1b[2J\n", encoding="utf-8")
    made = prepare_export("dockerfile", environment=environment, output=path)
    assert "\x1b" not in made.diff
    made.write()
    assert "\x1b[2J" in path.read_text(encoding="utf-8")


def test_requirements_that_are_there_stay_around_the_block(
    environment: Environment, tmp_path: Path
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("rich\n", encoding="utf-8")
    prepare_export("requirements", environment=environment, output=path).write()
    assert path.read_text(encoding="utf-8").startswith("rich\n\n# torchenv export: ")
    assert not prepare_export("requirements", environment=environment, output=path).changed
    shutil.copy(path, tmp_path / "other.txt")
    with (tmp_path / "other.txt").open("a", encoding="utf-8") as file:
        file.write("torch\n")
    with pytest.raises(ExportError, match="asks for torch in another line"):
        prepare_export("requirements", environment=environment, output=tmp_path / "other.txt")
