"""`torchenv export` in a terminal: a diff first, and nothing written that nobody agreed to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pexpect  # type: ignore[import-untyped]
import pytest

from tests.kernels import PROJECT_ROOT
from tests.targets import make_environment
from torchenv_magic.cli import main


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment that says it has a torch for CUDA; nothing of it is in there."""
    prefix = make_environment(tmp_path_factory.mktemp("exported") / "env")
    site = next(prefix.rglob("site-packages"))
    folder = site / "torch-2.13.0+cu126.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: torch\nVersion: 2.13.0+cu126\n", encoding="utf-8")
    return prefix


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "p"\nversion = "1"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return path


def test_a_script_sees_the_diff_and_writes_with_yes_alone(
    project: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = project.read_text(encoding="utf-8")
    line = ["export", "index", "--python", str(prefix)]
    assert main(line) == 0
    told = capsys.readouterr()
    assert told.out.startswith("--- pyproject.toml\n+++ pyproject.toml\n")
    assert '+  "torch==2.13.0",' in told.out
    assert told.err.startswith("Nothing was written: `torchenv export index ")
    assert told.err.endswith("--yes` writes it\n")
    assert project.read_text(encoding="utf-8") == before
    assert main([*line, "--yes"]) == 0
    told = capsys.readouterr()
    assert told.err == "Wrote PyTorch 2.13.0 for CUDA 12.6 in `pyproject.toml`.\n"
    assert "torch==2.13.0" in project.read_text(encoding="utf-8")
    assert main(line) == 0
    told = capsys.readouterr()
    assert not told.out
    assert told.err == "`pyproject.toml` says so already: PyTorch 2.13.0 for CUDA 12.6\n"


def test_what_has_no_file_is_printed_as_it_is(
    project: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "command", "cpu", "--python", str(prefix), "--yes"]) == 0
    assert capsys.readouterr().out == "uv pip install --torch-backend=cpu torch==2.13.0+cpu\n"
    assert [path.name for path in project.parent.iterdir()] == [project.name]


def test_a_program_gets_what_would_be_written_and_whether_it_was(
    project: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", "extras", "cpu", "cu130", "--python", str(prefix), "--json"]
    assert main(line) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["changed"], data["written"]) == (True, False)
    assert set(data) == {
        "form", "backends", "torch", "file", "changed", "written", "text", "diff", "notes",
    }  # fmt: skip
    assert main([*line, "--yes"]) == 0
    assert json.loads(capsys.readouterr().out)["written"]
    assert project.read_text(encoding="utf-8") == data["text"]


def test_a_program_gets_the_text_of_a_file_as_it_is(
    project: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "# run `%torchenv` and `!pip install x`, restart the kernel and run it"
    project.write_text(f'{said}\n[project]\nname = "p"\n', encoding="utf-8")
    assert main(["export", "index", "--python", str(prefix), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith(f"{said}\n")


def test_what_can_not_be_written_is_one_error(
    project: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write_text('[project]\nname = "p"\ndynamic = ["dependencies"]\n', encoding="utf-8")
    before = project.read_bytes()
    assert main(["export", "index", "--yes", "--python", str(prefix)]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("error: `pyproject.toml` says that its `dependencies` are dynamic")
    assert "hint: " in told.err
    assert project.read_bytes() == before


@pytest.mark.parametrize("form", ["requirements", "dockerfile", "command", "index"])
def test_a_notebook_is_no_file_to_write_lines_into(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.IPYNB"
    path.write_text("{}", encoding="utf-8")
    assert main(["export", form, str(path), "--output", str(path), "--yes"]) == 2
    told = capsys.readouterr().err
    assert f"`torchenv export {form}` writes no notebook" in told
    assert "hint: " in told
    assert path.read_text(encoding="utf-8") == "{}"


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
@pytest.mark.parametrize("answer", ["y", "n"])
def test_at_a_terminal_it_asks(answer: str, project: Path, prefix: Path) -> None:
    before = project.read_bytes()
    child = pexpect.spawn(
        sys.executable,
        ["-m", "torchenv_magic", "export", "index", "--python", str(prefix)],
        cwd=str(project.parent),
        env={"PYTHONPATH": str(PROJECT_ROOT), "TERM": "dumb", "PATH": "/usr/bin:/bin"},
        timeout=30,
        encoding="utf-8",
    )
    child.expect_exact("Write `pyproject.toml`? [y/N] ")
    child.sendline(answer)
    child.expect_exact("Wrote PyTorch" if answer == "y" else "Nothing was written")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert (project.read_bytes() == before) == (answer == "n")
