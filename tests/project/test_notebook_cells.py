"""The cells that a notebook gets: where they go, what stays, what a check finds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.test_headless import execute_notebook
from tests.workplace import Workplace, outputs_of
from torchenv_magic.builds.backend import Backend
from torchenv_magic.cli import main
from torchenv_magic.errors import LockError, NotebookError, RequestError
from torchenv_magic.project.lock import (
    Asked,
    LockedBackend,
    LockedPackage,
    LockedWheel,
    LockTarget,
    NotebookLock,
    lock_to_json,
)
from torchenv_magic.project.notebook_cells import (
    SETUP_TAG,
    VERIFICATION_SOURCE,
    VERIFICATION_TAG,
    add_cells,
    check_cells,
    imported_family,
    remove_cells,
    setup_words,
)
from torchenv_magic.project.notebook_file import NotebookFile, read_notebook_file, source_of
from torchenv_magic.selection import Request
from torchenv_magic.words import parse_request, parse_words

HOOKS = Path(__file__).resolve().parents[2] / ".pre-commit-hooks.yaml"
LOAD = "%load_ext torchenv_magic"
INSTALL = f"{LOAD}\n%torchenv install"
RESTORE = f"{LOAD}\n%torchenv restore"


def code(source: str, *tags: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": [],
        "source": source,
    }


def text(source: str, kind: str = "markdown") -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": source}


def setup(source: str) -> dict[str, Any]:
    return code(source, SETUP_TAG)


VERIFICATION = code(VERIFICATION_SOURCE, VERIFICATION_TAG)


def lock(*names: str) -> dict[str, Any]:
    """Return the metadata of a notebook whose lock has these packages, for cpu and cu126."""

    def locked(backend: str, name: str) -> LockedPackage:
        version = f"2.13.0+{backend}" if name == "torch" else f"0.28.0+{backend}"
        file = f"{name}-{version}-cp311-cp311-manylinux_2_28_x86_64.whl"
        wheel = LockedWheel(
            url=f"https://download.pytorch.org/whl/{backend}/{file.replace('+', '%2B')}",
            sha256="0" * 64,
        )
        return LockedPackage(name=name, version=version, wheels=(wheel,))

    made = NotebookLock(
        version="0.1.0",
        asked=Asked(),
        torch="2.13.0",
        target=LockTarget(
            python="3.11", implementation="cpython", system="linux", machine="x86_64"
        ),
        ran=Backend.parse("cpu"),
        backends=tuple(
            LockedBackend(
                backend=Backend.parse(backend),
                packages=tuple(locked(backend, name) for name in ("torch", *names)),
            )
            for backend in ("cpu", "cu126")
        ),
    )
    return {"torchenv": lock_to_json(made)}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., NotebookFile]:
    def make(*cells: Any, metadata: Any = None, minor: int = 4) -> NotebookFile:
        data = {
            "cells": list(cells),
            "metadata": metadata or {},
            "nbformat": 4,
            "nbformat_minor": minor,
        }
        path = tmp_path / "n.ipynb"
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return read_notebook_file(path)

    return make


Make = Callable[..., NotebookFile]


def sources(file: NotebookFile) -> list[str]:
    return [source_of(cell) for cell in file.cells]


def changes(edited: Any) -> list[tuple[str, str, int | None]]:
    return [(each.part, each.change, each.index) for each in edited.changes]


# --- adding ---------------------------------------------------------------------------------------

SCRIPT = "# /// script\n# dependencies = []\n# ///"


@pytest.mark.parametrize(
    ("cells", "place"),
    [
        ((), 0),
        ((code("1"),), 0),
        ((text("# A"), text("b", "raw"), code("1"), text("c")), 2),
        ((text("# A"),), 1),
        ((code(SCRIPT), code("1")), 1),
        ((code(SCRIPT), text("# A"), code("1")), 2),
        ((text("# A"), code(SCRIPT), code("1")), 2),
    ],
    ids=["empty", "code", "below the text", "text alone", "script", "script, text", "text, script"],
)
def test_the_cells_stand_before_the_first_code_but_for_a_script(
    make: Make, cells: tuple[Any, ...], place: int
) -> None:
    before = [source_of(cell) for cell in cells]
    edited = add_cells(make(*cells), None)
    expected = [*before[:place], INSTALL, VERIFICATION_SOURCE, *before[place:]]
    assert sources(edited.file) == expected
    assert changes(edited) == [("setup", "added", place), ("verification", "added", place + 1)]


@pytest.mark.parametrize("minor", [0, 4, 5])
def test_the_notebook_is_valid_with_them(make: Make, minor: int) -> None:
    others = [{**code("1"), "id": "torchenv-setup"}] if minor == 5 else [code("1")]
    edited = add_cells(make(*others, minor=minor), None).file
    assert [cell.get("id") for cell in edited.cells[:2]] == (
        ["torchenv-setup-2", "torchenv-verify"] if minor == 5 else [None, None]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what nbformat has to mend it tells by a warning
        nbformat.validate(json.loads(edited.text))


@pytest.mark.parametrize("request_", [None, Request(), parse_request(["cu126", "torchvision"])])
@pytest.mark.parametrize("locked", [False, True])
def test_adding_twice_is_adding_once(make: Make, request_: Request | None, *, locked: bool) -> None:
    file = make(code("import torch"), metadata=lock() if locked else {})
    once = add_cells(file, request_).file
    again = add_cells(once, request_)
    assert again.file is once
    assert {each.change for each in again.changes} == {"kept"}
    assert remove_cells(once, lock=False).file.text == file.text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "%torchenv install"),
        (["cpu"], "%torchenv install cpu"),
        (["cu126", "torchvision"], "%torchenv install cu126 torchvision"),
        (["torch==2.13.*", "xpu"], "%torchenv install xpu 'torch==2.13.*'"),
        (
            ["lightning>=2; python_version < '3.12'"],
            """%torchenv install 'lightning>=2; python_version < '"'"'3.12'"'"''""",
        ),
    ],
)
def test_what_is_asked_for_stands_in_the_line_as_ipython_reads_it(
    make: Make, words: list[str], line: str
) -> None:
    request = parse_request(words)
    file = add_cells(make(), request).file
    assert sources(file)[0] == f"{LOAD}\n{line}"
    found = setup_words(file.cells)
    assert found is not None
    assert found.request == request


def test_what_ipython_would_fill_in_is_refused(make: Make) -> None:
    with pytest.raises(RequestError, match="can't stand in a notebook's line"):
        add_cells(make(), parse_request(["a; sys_platform == '{b}'"]))


@pytest.mark.parametrize(
    ("source", "words", "locked", "expected"),
    [
        (INSTALL, None, False, INSTALL),
        (INSTALL, None, True, RESTORE),
        (RESTORE, None, True, RESTORE),
        (RESTORE, None, False, INSTALL),
        # The lock has all of it, and would leave the backend to the machine.
        (f"{INSTALL} torchvision", None, True, RESTORE),
        (f"{INSTALL} torchaudio", None, True, f"{INSTALL} torchaudio"),
        (f"{INSTALL} cu126", None, True, f"{INSTALL} cu126"),
        # A person's own words stay.
        (f"{INSTALL} --yes", None, True, f"{INSTALL} --yes"),
        (f"# mine\n{INSTALL}", None, True, f"# mine\n{INSTALL}"),
        ("print('mine')", None, True, "print('mine')"),
        (f"{INSTALL} {{what}}", None, True, f"{INSTALL} {{what}}"),
        # A request replaces the line, and no other.
        (f"{INSTALL} xpu", ["cpu"], True, f"{INSTALL} cpu"),
        (RESTORE, ["cpu"], True, f"{INSTALL} cpu"),
        (f"# mine\n{INSTALL}\nx = 1\n", ["cpu"], False, f"# mine\n{INSTALL} cpu\nx = 1\n"),
        ("%torchenv install xpu", ["cpu"], False, f"{INSTALL} cpu"),
        ("print('mine')", ["cpu"], False, f"{INSTALL} cpu\nprint('mine')"),
        (" \n", ["cpu"], False, f"{INSTALL} cpu"),
        ("v = %torchenv install xpu\nw", ["cpu"], False, f"{LOAD}\nv = %torchenv install cpu\nw"),
        (
            "if True:\n    %torchenv install xpu\n",
            ["cpu"],
            False,
            f"if True:\n    {LOAD}\n    %torchenv install cpu\n",
        ),
        (
            f"{LOAD}\r\n%torchenv install xpu\r\nx = 1\r\n",
            ["cpu"],
            False,
            f"{LOAD}\r\n%torchenv install cpu\r\nx = 1\r\n",
        ),
        (f"{INSTALL} xpu \\\n  torchvision\nx = 1", ["cpu"], False, f"{INSTALL} cpu\nx = 1"),
    ],
)
def test_a_set_up_cell_is_brought_up_to_date_in_its_place(
    make: Make, source: str, words: list[str] | None, expected: str, *, locked: bool
) -> None:
    metadata = lock("torchvision") if locked else {}
    file = make(text("a"), VERIFICATION, code("1"), setup(source), metadata=metadata)
    edited = add_cells(file, None if words is None else parse_request(words))
    assert sources(edited.file) == ["a", VERIFICATION_SOURCE, "1", expected]
    assert changes(edited)[0] == ("setup", "kept" if source == expected else "updated", 3)


def test_a_cell_that_a_person_wrote_without_a_tag_counts_as_well(make: Make) -> None:
    file = make(code(f"# as I like it\n{INSTALL} cpu"), code("1"), code(VERIFICATION_SOURCE + "\n"))
    assert add_cells(file, None).file is file
    edited = add_cells(file, parse_request(["xpu"])).file
    assert sources(edited)[0] == f"# as I like it\n{INSTALL} xpu"
    # What is not ours is not taken away.
    assert remove_cells(edited, lock=True).file is edited


def test_a_verification_that_verifies_stays_and_another_gets_to(make: Make) -> None:
    mine = f"{VERIFICATION_SOURCE}\nprint('mine')"
    file = make(setup(INSTALL), code(mine, VERIFICATION_TAG))
    assert add_cells(file, None).file is file
    assert not check_cells(file)
    file = make(setup(INSTALL), code("print('mine')", VERIFICATION_TAG))
    assert sources(add_cells(file, None).file) == [INSTALL, mine]
    file = make(setup(INSTALL), code("", VERIFICATION_TAG))
    assert sources(add_cells(file, None).file) == [INSTALL, VERIFICATION_SOURCE]


def test_nothing_is_put_above_what_has_to_stand_first(make: Make) -> None:
    with pytest.raises(NotebookError, match=r"Cell 1 of `.*` is tagged as ours, and begins with"):
        add_cells(make(setup("%%bash\nls")), parse_request(["cpu"]))
    with pytest.raises(NotebookError, match=r"Cell 2 of `.*` is tagged as ours, and begins with"):
        add_cells(make(setup(INSTALL), code("%%time\n1", VERIFICATION_TAG)), None)
    captured = f"%%capture\n{INSTALL}"
    edited = add_cells(make(setup(captured)), parse_request(["cpu"])).file
    assert sources(edited)[0] == f"{captured} cpu"


def test_of_two_cells_none_is_guessed(make: Make) -> None:
    with pytest.raises(NotebookError, match="has 2 set-up cells"):
        add_cells(make(setup(INSTALL), setup(INSTALL)), None)
    with pytest.raises(NotebookError, match="has 2 verification cells"):
        add_cells(make(VERIFICATION, VERIFICATION), None)


@pytest.mark.parametrize(
    "metadata",
    [
        {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}},
        {"language_info": {"name": "julia\x1b"}},
    ],
    ids=["R", "Julia"],
)
def test_another_language_gets_no_cells(make: Make, metadata: Any) -> None:
    with pytest.raises(NotebookError, match=r"is a notebook for (R|julia\?), and these"):
        add_cells(make(metadata=metadata), None)


def test_what_the_kernel_says_of_its_language_goes_first(make: Make) -> None:
    sage = {"kernelspec": {"language": "sage"}, "language_info": {"name": "python"}}
    assert len(add_cells(make(metadata=sage), None).file.cells) == 2


def test_a_tagged_cell_that_was_made_a_text_does_not_count(make: Make) -> None:
    for cell in (setup(INSTALL), VERIFICATION):
        file = make({**cell, "cell_type": "raw"}, {**code("1"), "id": []}, minor=5)
        assert len(check_cells(file)) == 2
        assert len(add_cells(file, None).file.cells) == 4
        assert remove_cells(file, lock=False).file is file


def test_a_cell_with_both_tags_is_neither(make: Make) -> None:
    file = make(code(INSTALL, SETUP_TAG, VERIFICATION_TAG))
    with pytest.raises(NotebookError, match=r"Cell 1 of `.*` has both tags"):
        add_cells(file, None)
    assert [each.code for each in check_cells(file)] == ["both-tags"]


def test_a_lock_that_is_not_trusted_stops_what_would_restore_it(make: Make) -> None:
    file = make(metadata={"torchenv": {"schema": 1}})
    with pytest.raises(LockError):
        add_cells(file, None)
    assert sources(add_cells(file, parse_request(["cpu"])).file)[0] == f"{INSTALL} cpu"


# --- removing -------------------------------------------------------------------------------------


def test_what_is_tagged_goes_and_the_lock_where_it_is_named(make: Make) -> None:
    file = make(text("a"), setup("print('mine')"), code("1"), VERIFICATION, metadata=lock())
    edited = remove_cells(file, lock=False)
    assert sources(edited.file) == ["a", "1"]
    assert changes(edited) == [("setup", "removed", 1), ("verification", "removed", 3)]
    assert "torchenv" in edited.file.metadata
    edited = remove_cells(file, lock=True)
    assert edited.file.metadata == {}
    assert changes(edited)[2] == ("lock", "removed", None)


def test_a_lock_of_a_newer_schema_is_not_removed(make: Make) -> None:
    with pytest.raises(LockError, match="schema 2"):
        remove_cells(make(metadata={"torchenv": {"schema": 2}}), lock=True)


# --- checking -------------------------------------------------------------------------------------

IMPORTS = code("import torch")
CHECKS: dict[str, tuple[tuple[Any, ...], Any, list[str]]] = {
    "well": ((setup(INSTALL), VERIFICATION, IMPORTS), {}, []),
    "well, with a lock": ((setup(RESTORE), VERIFICATION, IMPORTS), lock(), []),
    "well, by hand": ((code(f"{INSTALL} cpu"), code(VERIFICATION_SOURCE)), {}, []),
    "nothing": ((), {}, ["setup-missing", "verification-missing"]),
    "set-up alone": ((setup(INSTALL),), {}, ["verification-missing"]),
    "twice": (
        (setup(INSTALL), setup(INSTALL), VERIFICATION, VERIFICATION),
        {},
        ["setup-twice", "verification-twice"],
    ),
    "late": ((IMPORTS, setup(INSTALL), VERIFICATION), {}, ["setup-late"]),
    "early": ((VERIFICATION, setup(INSTALL)), {}, ["verification-early"]),
    "another verification": (
        (setup(INSTALL), code("%torchenv status", VERIFICATION_TAG)),
        {},
        ["verification-stale"],
    ),
    "installs nothing": ((setup("print(1)"), VERIFICATION), {}, ["setup-stale"]),
    "well, with more lines": (
        (setup("v = %torchenv install \\\n  torchvision"), VERIFICATION),
        lock("torchvision"),
        [],
    ),
    "no words": ((setup(f"{INSTALL} 'a"), VERIFICATION), {}, ["setup-stale"]),
    "help": ((setup(f"{INSTALL} -h"), VERIFICATION), {}, ["setup-stale"]),
    "no backend": ((setup(f"{INSTALL} cu1"), VERIFICATION), {}, ["setup-stale"]),
    "what acts on a terminal": (
        (setup(f"{INSTALL} '--ev\x1b[31mil=1'"), VERIFICATION),
        {},
        ["setup-stale"],
    ),
    "an address": (
        (setup(f"{INSTALL} 'torch @ https://a.example/b.whl'"), VERIFICATION),
        {},
        ["setup-stale"],
    ),
    "by a variable": ((setup(f"{INSTALL} {{what}}"), VERIFICATION), lock(), []),
    "no lock": ((setup(RESTORE), VERIFICATION), {}, ["lock-missing"]),
    "another's lock": ((setup(f"{RESTORE} other.ipynb"), VERIFICATION), {}, []),
    "a newer lock": ((setup(RESTORE), VERIFICATION), {"torchenv": {"schema": 2}}, ["lock"]),
    "no lock at all": ((setup(RESTORE), VERIFICATION), {"torchenv": 1}, ["lock"]),
    "lacks what is asked": (
        (setup(f"{INSTALL} torchvision"), VERIFICATION),
        lock(),
        ["lock-stale"],
    ),
    "has what is asked": (
        (setup(f"{INSTALL} torchvision 'torch>=2.12'"), VERIFICATION),
        lock("torchvision"),
        [],
    ),
    "asks elsewhere": (
        (setup(f"{INSTALL}\t'numpy; sys_platform == \"win32\"'"), VERIFICATION),
        lock(),
        [],
    ),
    "another version": ((setup(f"{INSTALL} 'torch<2.13'"), VERIFICATION), lock(), ["lock-stale"]),
    "another backend": ((setup(f"{INSTALL} xpu"), VERIFICATION), lock(), ["lock-stale"]),
    "another import": (
        (setup(RESTORE), VERIFICATION, code("from torchaudio import io")),
        lock(),
        ["lock-stale"],
    ),
}


@pytest.mark.parametrize("case", CHECKS)
def test_a_check_finds_what_is_missing_or_stale(make: Make, case: str) -> None:
    cells, metadata, codes = CHECKS[case]
    findings = check_cells(make(*cells, metadata=metadata))
    assert [each.code for each in findings] == codes
    assert all(each.message.isprintable() and each.hint.isprintable() for each in findings)
    assert all(each.message and each.hint for each in findings)


def test_what_add_has_made_passes_the_check(make: Make) -> None:
    for file in (make(IMPORTS), make(text("a"), IMPORTS, metadata=lock())):
        assert not check_cells(add_cells(file, None).file)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import numpy, torch.nn as nn\nfrom torchvision import io", ("torch", "torchvision")),
        ("try:\n    import torch\nexcept ImportError:\n    pass", ("torch",)),
        ("%matplotlib inline\n!pip list\nx = !ls\ntorch?\nimport torch", ("torch",)),
        ("if 1:\n    %time 1\n    import torch", ("torch",)),
        ("%%time\nimport torch", ("torch",)),
        ("%%bash\nimport torch", ()),
        ("text = '''\nimport torch\n'''", ()),
        ("# import torch\nfrom .torch import a\nimport torchmetrics", ()),
        ("import torch\nprint 1", ("torch",)),
        ("'\\d'\nimport torch", ("torch",)),
        ("if 1: import torch; import torchaudio", ("torch", "torchaudio")),
        ("from torch import (\n    nn,\n    Tensor as torchaudio)", ("torch",)),
        ("a = 'x\u2028'\nimport torch\\\n, torchvision", ("torch", "torchvision")),
        ("(" * 10_000, ()),
        ("(" * 100 + "\nimport torch", ("torch",)),
    ],
)
def test_imports_are_read_from_what_a_cell_says(source: str, names: tuple[str, ...]) -> None:
    assert imported_family(source) == names


@pytest.mark.parametrize(
    "source",
    [" " * 200_000 + "x", "(\n" + "1+\n" * 200_000 + "1)", '"' + '\\"' * 50_000, "a." * 100_000],
    ids=["blanks", "a sum", "quotes", "dots"],
)
def test_what_a_stranger_wrote_into_a_cell_takes_no_time(source: str) -> None:
    begin = time.perf_counter()
    assert imported_family(f"{source}\nimport torch") == ("torch",)
    assert time.perf_counter() - begin < 5


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: str | Path) -> int:
    return main(["notebook", *map(str, arguments)])


def test_the_command_adds_checks_and_removes(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(text("a"), IMPORTS)
    monkeypatch.chdir(file.path.parent)
    assert run("check", "n.ipynb") == 1
    assert (
        "  It has no set-up cell\n    hint: run `torchenv notebook add`" in capsys.readouterr().out
    )
    assert run("add", "n.ipynb", "cu126") == 0
    answer = capsys.readouterr()
    assert answer.out == ("n.ipynb: set-up cell added (cell 2), verification cell added (cell 3)\n")
    assert answer.err == "Where it is open in a front end, load it anew there.\n"
    assert run("check", "n.ipynb") == 0
    capsys.readouterr()
    assert run("add", "n.ipynb", "cu126") == 0
    answer = capsys.readouterr()
    assert (answer.out, answer.err) == ("n.ipynb: nothing to do\n", "")
    assert run("add", "n.ipynb", "auto") == 0
    assert sources(read_notebook_file(file.path))[1] == INSTALL
    capsys.readouterr()
    assert run("remove", "n.ipynb", "./n.ipynb") == 0
    assert capsys.readouterr().out == "n.ipynb: set-up cell removed, verification cell removed\n"
    assert file.path.read_bytes() == file.read


def test_programs_get_json(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(IMPORTS, metadata=lock()).path
    assert run("add", path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "notebook": str(path),
        "written": True,
        "changes": [
            {"part": "setup", "change": "added", "index": 0},
            {"part": "verification", "change": "added", "index": 1},
        ],
    }
    missing = path.with_name("missing.ipynb")
    assert run("check", path, missing, "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert data["notebooks"][0] == {"notebook": str(path), "ok": True, "findings": []}
    assert not data["notebooks"][1]["ok"]
    assert [each["code"] for each in data["notebooks"][1]["findings"]] == ["notebook"]
    assert run("remove", path, "--lock", "--json") == 0
    answer = capsys.readouterr()
    data = json.loads(answer.out)
    assert [each["part"] for each in data["notebooks"][0]["changes"]] == [
        "setup",
        "verification",
        "lock",
    ]
    assert answer.err == ""


def test_one_name_that_is_wrong_leaves_all_notebooks_as_they_were(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make(setup(INSTALL), VERIFICATION)
    assert run("remove", file.path, file.path.with_name("missing.ipynb")) == 1
    assert "There is no notebook" in capsys.readouterr().err
    assert file.path.read_bytes() == file.read
    assert run("add", file.path, "--lock") == 2


def test_a_check_needs_no_kernel_and_no_ipython(make: Make) -> None:
    """It runs at each commit."""
    path = make(setup(INSTALL), VERIFICATION).path
    program = (
        "import sys; from torchenv_magic.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'IPython', 'nbformat', 'ipywidgets', 'torch', 'tomlkit'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else status)"
    )
    arguments = [sys.executable, "-c", program, "notebook", "check", str(path)]
    answer = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""}
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_hook_for_other_repositories_is_valid_and_its_line_is_one_of_ours() -> None:
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-manifest", str(HOOKS)], check=True
    )
    (entry,) = re.findall(
        r"^  entry: torchenv (.+)$", HOOKS.read_text(encoding="utf-8"), re.MULTILINE
    )
    words = parse_words([*entry.split(), "a.ipynb", "b/c.ipynb"], notebook=False)
    assert (words.word, words.action) == ("notebook", "check")
    assert words.notebooks == (Path("a.ipynb"), Path("b/c.ipynb"))


def test_the_cells_install_and_verify_when_the_notebook_is_run(workplace: Workplace) -> None:
    path = workplace.notebook("import torch\nprint(torch.__version__)")
    answer = workplace.run(workplace.torchenv, "notebook", "add", path, "cpu")
    assert answer.returncode == 0, answer.stderr
    executed = execute_notebook(workplace, nbformat.read(path, as_version=4))
    assert "Installed torch 2.13.0+cpu" in outputs_of(executed, 0)
    assert "PyTorch works\n" in outputs_of(executed, 1)
    assert outputs_of(executed, 2) == "2.13.0+cpu\n"
    # A run has left outputs, and the cells are as they should be.
    nbformat.write(executed, path)
    assert workplace.run(workplace.torchenv, "notebook", "check", path).returncode == 0
