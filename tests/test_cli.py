"""The real `torchenv` command in child processes, against the stand-in for the PyTorch index."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]
import psutil
import pytest

import torchenv_magic
from tests.browser.kernel_environment import interpreter_of, run_uv
from tests.kernels import PROJECT_ROOT, SECONDS
from tests.standin import Fault, make_wheel
from tests.workplace import Workplace
from torchenv_magic.cli import main
from torchenv_magic.environment import read_environment
from torchenv_magic.installation.locking import locked
from torchenv_magic.status import read_status

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")

Completed = subprocess.CompletedProcess[str]


@pytest.fixture
def target(workplace: Workplace) -> Path:
    """Return a bare virtual environment beside the one with the command: no pip, no kernel."""
    folder = workplace.directory / "target"
    run_uv("venv", "--python", sys.executable, "--no-project", str(folder))
    return folder


def torchenv(
    workplace: Workplace,
    *arguments: str | Path,
    status: int = 0,
    variables: Mapping[str, str | None] | None = None,
) -> Completed:
    completed = workplace.run(workplace.torchenv, *arguments, variables=variables)
    assert completed.returncode == status, completed.stdout + completed.stderr
    assert "Traceback" not in completed.stderr
    assert "%torchenv" not in completed.stdout + completed.stderr
    return completed


def installed(environment: Path) -> dict[str, str]:
    """Return name to version of what lies in a virtual environment."""
    site = next(environment.glob("lib*/python*/site-packages"), environment / "Lib/site-packages")
    found = (path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    return {name: version for name, _, version in (entry.partition("-") for entry in found)}


def everything(environment: Path) -> dict[str, tuple[int, int]]:
    """Return (size, time of change) of every file below the environment, but bytecode and locks."""
    return {
        str(path.relative_to(environment)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in environment.rglob("*")
        if not path.is_dir()
        and path.suffix != ".pyc"
        and ".torchenv" not in path.parts
        and path.name != ".lock"  # uv's
    }


# ---------------------------------------------------------------------------------------- one way


def test_plan_install_and_verify(workplace: Workplace, target: Path) -> None:
    workplace.cache = workplace.directory / "cold-cache"  # what others installed is to be fetched
    before = everything(target)
    plan = json.loads(torchenv(workplace, "plan", "cpu", "--json", "--python", target).stdout)
    assert {change["name"]: (change["action"], change["after"]) for change in plan["changes"]} == {
        "torch": ("install", "2.13.0+cpu"),
        "filelock": ("install", "3.20.0"),
        "typing-extensions": ("install", plan_version(plan, "typing-extensions")),
    }
    assert plan["backend"] == "cpu"
    assert plan["download_bytes"] > 1_500_000
    assert plan["nothing_to_do"] is False
    assert plan["summary"].startswith("Download 1.")
    assert everything(target) == before

    first = torchenv(workplace, "install", "cpu", "torchvision", "--python", target)
    assert installed(target).items() >= {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}.items()
    assert "Installed torch 2.13.0+cpu and 5 other packages in " in first.stdout
    assert "PyTorch works" in first.stdout
    assert "torch 2.13.0+cpu, torchvision 0.28.0+cpu, as asked for" in first.stdout
    # What is said while it runs is no data.
    assert "Downloading from the PyTorch index" in first.stderr
    assert "Downloading from" not in first.stdout

    after = everything(target)
    workplace.standin.clear_log()
    second = torchenv(workplace, "install", "cpu", "torchvision", "--python", target)
    assert second.stdout.startswith(
        "Nothing to do: what you asked for is installed already.\nPyTorch works\n"
    )
    assert workplace.standin.downloads() == ()
    assert everything(target) == after

    verification = json.loads(torchenv(workplace, "verify", "--json", "--python", target).stdout)
    assert verification["torch"] == "2.13.0+cpu"
    assert all(check["passed"] for check in verification["checks"])
    status = torchenv(workplace, "status", "--python", target).stdout
    assert "installed    torch 2.13.0+cpu\n" in status


def plan_version(plan: dict[str, Any], name: str) -> str:
    [version] = [change["after"] for change in plan["changes"] if change["name"] == name]
    return str(version)


def test_install_as_json_and_a_switch_that_is_proved_wrong(
    workplace: Workplace, target: Path
) -> None:
    """A CUDA build on a host without a GPU: installed as asked, and found not to work."""
    answer = torchenv(workplace, "install", "cpu", "--json", "--python", interpreter_of(target))
    data = json.loads(answer.stdout)
    assert data["result"]["expectation"]["versions"] == [["torch", "2.13.0+cpu"]]
    assert data["verification"]["device"] == "cpu"

    switch = torchenv(
        workplace, "install", "cu126", "--json", "--python", target, status=1, variables=OLD_DRIVER
    )
    data = json.loads(switch.stdout)  # one document, though it failed
    assert installed(target)["torch"] == "2.13.0+cu126"
    [failed] = [check for check in data["verification"]["checks"] if not check["passed"]]
    assert failed["message"] == "PyTorch finds no CUDA device here"
    *events, end = (json.loads(line) for line in switch.stderr.splitlines())
    messages = [line["event"]["message"] for line in events]
    assert messages[0].startswith("Warning: cu126 was asked for")
    assert "Installed" in messages
    assert (end["error"]["message"], end["error"]["hint"]) == (failed["message"], failed["hint"])

    verified = torchenv(workplace, "verify", "--python", target, status=1)
    assert verified.stdout.startswith("PyTorch does not work as asked\n")
    assert verified.stderr == "error: PyTorch does not work here: 1 of 10 checks failed\n"


# What uv's own detection, and ours, takes for the driver of a GPU that is too old for all builds.
OLD_DRIVER = {"UV_CUDA_DRIVER_VERSION": "300"}


def test_the_environment_of_the_command_is_the_default(workplace: Workplace) -> None:
    torchenv(workplace, "install", "cpu")
    assert workplace.versions()["torch"] == "2.13.0+cpu"
    verified = workplace.run(
        workplace.environment.python, "-m", "torchenv_magic", "verify", "--json"
    )
    assert json.loads(verified.stdout)["prefix"] == str(workplace.environment.directory)


def test_the_functions_are_one_way_through(workplace: Workplace, target: Path) -> None:
    """The docstring's five lines, as they stand there."""
    lines = (torchenv_magic.__doc__ or "").split("```")[1]
    code = f"from pathlib import Path\npython = Path({str(target)!r})\n{lines}\nprint(verification)"
    completed = workplace.run(workplace.environment.python, "-c", code)
    assert completed.stdout.startswith("PyTorch works\n"), completed.stderr
    assert installed(target)["torch"] == "2.13.0+cpu"


# --------------------------------------------------------------------------------------- contracts


def test_select_tells_a_decision_without_any_network(workplace: Workplace, target: Path) -> None:
    workplace.standin.clear_log()
    answer = torchenv(
        workplace, "select", "--json", "--python", target, "--backend", "cu126", "torch==2.9.*"
    )
    data = json.loads(answer.stdout)
    assert set(data) == {
        "backend", "torch", "accelerators", "unsupported_accelerators", "warnings", "reason",
        "alternatives", "catalog",
    }  # fmt: skip
    assert (data["backend"], data["torch"]) == ("cu126", "2.9.1")
    assert {"backend", "torch", "fits", "reason"} == set(data["alternatives"][0])
    assert set(data["catalog"]) == {"as_of", "source"}
    assert workplace.standin.requests == ()


def test_select_where_nothing_fits_is_a_decision_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["select", "--json", "cpu", "torch==99"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["backend"], data["torch"]) == (None, None)
    assert data["warnings"]


def test_select_minds_what_is_installed_beside_torch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UV_CUDA_DRIVER_VERSION", "580.95.05")
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def chosen() -> str:
        assert main(["select", "--json"]) == 0
        return str(json.loads(capsys.readouterr().out)["backend"])

    assert chosen() == "cu132"
    (site / "torchaudio-2.9.0.dist-info").mkdir()
    assert chosen() == "cu130"  # the index of cu132 has no torchaudio to switch along


def test_list_and_detect_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    alternatives = json.loads(capsys.readouterr().out)
    assert {"cpu", "cu126", "rocm7.2", "xpu"} <= {item["backend"] for item in alternatives}
    assert all(set(item) == {"backend", "torch", "fits", "reason"} for item in alternatives)
    assert main(["detect", "--json"]) == 0
    host = json.loads(capsys.readouterr().out)
    assert set(host) == {"platform", "accelerators", "findings"}
    assert main(["status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["environment"]["prefix"] == sys.prefix
    assert status["host"] == host


# ---------------------------------------------------------------------------------------- failures


def test_exit_status_and_words_of_a_misspelling(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["instal"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: `instal` is not a word of `torchenv`\n\n"
        "hint: did you mean `torchenv install`? the words are status, list, plan, install, verify, "
        "doctor, undo, history, lock, restore, export, new-kernel, download, preinstall, layer, "
        "prefetch, notebook, detect, select\n"
    )


def test_nothing_at_all_is_answered_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("Pick, install and prove the right PyTorch build.")
    assert main(["-h"]) == 0
    assert capsys.readouterr().out.startswith("Pick, install and prove the right PyTorch build.")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchenv {torchenv_magic.__version__}\n"


def test_an_error_as_json_is_data_and_talk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "cuda12.6"]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["code"] == "request"
    assert error["message"] == "`cuda12.6` is not a backend"
    assert error["hint"].startswith("did you mean `cu126`?")
    assert captured.err == f"error: {error['message']}\n\nhint: {error['hint']}\n"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("missing/python", "There is no Python at `missing/python`"),
        (".", "`.` is a directory without a Python"),
    ],
)
def test_no_interpreter_there(
    python: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("status", "verify", "plan"):
        assert main([word, "--python", python]) == 1
        assert capsys.readouterr().err == (
            f"error: {message}\n\nhint: name an interpreter, such as `.venv/bin/python`\n"
        )


def test_a_folder_of_wheels_is_used_with_consent_where_the_index_is_away(
    workplace: Workplace, target: Path
) -> None:
    folder = workplace.directory / "wheels"
    folder.mkdir()
    for wheel in workplace.standin.wheels("cpu"):
        (folder / wheel.path.name).hardlink_to(wheel.path)
    variables: dict[str, str | None] = {
        # Nothing listens there: what a machine without a network answers at once.
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("ALL_PROXY", "all_proxy")),
        "UV_FIND_LINKS": str(folder),
    }
    command = ("install", "cpu", "torch<2.13", "--python", target)
    refused = torchenv(workplace, *command, status=1, variables=variables)
    assert "torch 2.12.0+cpu" in refused.stderr
    assert str(folder) in refused.stderr
    # The line once more, so that nothing of it is lost.
    assert refused.stderr.endswith(
        f"hint: `torchenv install cpu 'torch<2.13' --python {target} --yes` uses it\n"
    )
    assert installed(target) == {}
    taken = torchenv(workplace, *command, "--yes", variables=variables)
    assert installed(target)["torch"] == "2.12.0+cpu"
    assert f"from the wheel folder {folder}\n" in taken.stdout


@on_posix
def test_a_package_outside_the_family_is_replaced_only_with_consent(
    workplace: Workplace, target: Path
) -> None:
    old = make_wheel(workplace.directory, "pillow", "5.0.0")
    run_uv("pip", "install", "--quiet", "--offline", f"--python={target}", str(old))
    command = ("install", "cpu", "torchvision", "--python", target)
    before = everything(target)
    refused = torchenv(workplace, *command, "--json", status=1)
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["message"]) == (
        "consent",
        "This install would replace pillow 5.0.0 by 13.0.0, which is not part of PyTorch",
    )
    assert (
        f"`torchenv install cpu torchvision --python {target} --json --yes` does it"
        in (error["hint"])
    )
    with on_a_terminal(workplace, *command, NO_COLOR="1") as child:
        child.expect(r"Go on\? \[y/N\] ")
        child.sendline("")
        child.expect("error: Not installed; the environment is as it was")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 1
    assert everything(target) == before
    with on_a_terminal(workplace, *command, NO_COLOR="1") as child:
        child.expect(r"Go on\? \[y/N\] ")
        child.sendline("y")
        child.expect("PyTorch works")
        child.expect(pexpect.EOF)
    assert installed(target)["pillow"] == "13.0.0"

    run_uv("pip", "install", "--quiet", "--offline", f"--python={target}", str(old))
    torchenv(workplace, *command, "--yes")
    # What is named was asked for.
    run_uv("pip", "install", "--quiet", "--offline", f"--python={target}", str(old))
    torchenv(workplace, *command, "pillow>=13")
    assert installed(target)["pillow"] == "13.0.0"


def test_an_index_that_fails_is_said_and_changes_nothing(
    workplace: Workplace, target: Path
) -> None:
    before = everything(target)
    workplace.standin.faults = [Fault(pattern=r"torch-2\.13.*\.whl$", kind="status", status=403)]
    workplace.cache = workplace.directory / "cache"
    command = ("install", "cpu", "--json", "--python", target)
    failed = torchenv(workplace, *command, status=1, variables={"UV_HTTP_RETRIES": "0"})
    error = json.loads(failed.stdout)["error"]
    assert error["code"] == "source"
    assert (error["standing"], bool(error["hint"])) == ("The environment is as it was", True)
    assert everything(target) == before
    assert "403" in error["detail"]
    assert json.loads(failed.stderr.splitlines()[-1]) == {"error": error}


@on_posix
def test_a_system_that_manages_itself_is_left_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    system = shutil.which("python3", path=os.defpath)
    if system is None or read_environment(Path(system)).externally_managed is None:
        pytest.skip("the system's Python is not externally managed here")
    assert main(["install", "--python", system]) == 1
    assert capsys.readouterr().err.endswith(
        "belongs to the system's package manager, which forbids installing into it\n\n"
        f"hint: `torchenv new-kernel --python {system} NAME` makes an environment of your own, "
        "with PyTorch and a kernel\n"
    )


def test_a_uv_that_is_missing_or_too_old_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    assert main(["plan", "cpu"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: uv is not installed beside torchenv_magic, so nothing can be installed\n\n"
        "hint: run `pip install uv`, then try again\n"
    )
    if sys.platform == "win32":
        return
    old = tmp_path / "uv"
    old.write_text("#!/bin/sh\necho 'uv 0.11.7 (made for tests)'\n")
    old.chmod(0o755)
    found = types.SimpleNamespace(find_uv_bin=lambda: str(old))
    monkeypatch.setitem(sys.modules, "uv", found)
    assert main(["plan", "cpu"]) == 1
    assert re.search(
        r"error: uv 0\.11\.7 is too old: .* 0\.12\.18 or newer\n\n"
        r"hint: run `pip install --upgrade uv`, then try again\n$",
        capsys.readouterr().err,
    )


def test_without_a_network_and_without_a_folder_the_hint_names_both(
    workplace: Workplace, target: Path
) -> None:
    away: dict[str, str | None] = {
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("ALL_PROXY", "all_proxy")),
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_HTTP_RETRIES": "0",
    }
    failed = torchenv(workplace, "install", "cpu", "--python", target, status=1, variables=away)
    message, _, hint = failed.stderr.rpartition("\nerror: ")[2].partition("\n\nhint: ")
    assert "can't be reached" in message
    assert "--find-links" in hint
    assert installed(target) == {}


def test_a_status_beside_a_switch_that_is_under_way(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchenv_magic.installation.install._SWITCH_SECONDS", 0.0)
    environment = read_environment(target)
    with locked(environment):
        (target / ".torchenv" / "journal.json").write_text("{}")
        status = read_status(python=target)
    assert status.recovered is None
    assert f"Another install works on `{target}`" in (status.unrepaired or "")
    assert str(status).endswith(f"note         {status.unrepaired}")


PLAN_FOR_LATER = """
import pickle, sys
from pathlib import Path
from torchenv_magic import Request, detect, plan, read_environment, select
from torchenv_magic.builds.backend import Backend
environment = read_environment(Path(sys.argv[1]))
request = Request(backend=Backend("cpu"), requirements=("torch==2.13.0",))
selection = select(detect(), request, interpreter=environment.interpreter)
Path("plan").write_bytes(pickle.dumps(plan(selection, environment, request)))
"""


@on_posix
def test_what_a_killed_install_left_is_repaired_before_anything_is_said(
    workplace: Workplace, target: Path
) -> None:
    torchenv(workplace, "install", "cpu", "torch==2.12.0", "--python", target)
    here = {"PYTHONPATH": str(PROJECT_ROOT)}
    planned = workplace.run(sys.executable, "-c", PLAN_FOR_LATER, target, variables=here)
    assert planned.returncode == 0, planned.stderr
    killed = workplace.run(
        sys.executable, "-m", "tests.killed_install", "plan", "4", variables=here
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    verified = torchenv(workplace, "verify", "--python", target)
    assert verified.stdout.startswith("PyTorch works\n")
    assert "torch 2.12.0+cpu, as asked for" in verified.stdout
    assert verified.stderr.startswith("The last install was interrupted; ")
    assert torchenv(workplace, "verify", "--python", target).stderr == ""


@on_posix
def test_a_repair_is_told_by_whatever_word_did_it(workplace: Workplace, target: Path) -> None:
    torchenv(workplace, "install", "cpu", "torch==2.12.0", "--python", target)
    here = {"PYTHONPATH": str(PROJECT_ROOT)}
    assert (
        workplace.run(sys.executable, "-c", PLAN_FOR_LATER, target, variables=here).returncode == 0
    )

    def killed() -> None:
        arguments = (sys.executable, "-m", "tests.killed_install", "plan", "4")
        assert workplace.run(*arguments, variables=here).returncode == -signal.SIGKILL

    killed()
    history = torchenv(workplace, "history", "--python", target)
    assert history.stderr.startswith("The last install was interrupted; ")
    # As it is offered it is typed: it must not change the Python that runs this.
    assert f"`torchenv undo --python {target}` takes " in history.stdout
    killed()
    asked = ("install", "cpu", "torch==2.12.0", "--python", target)
    again = torchenv(workplace, *asked)
    assert "The last install was interrupted; " in again.stderr
    assert "Nothing to do" in again.stdout
    killed()
    events = torchenv(workplace, *asked, "--json").stderr.splitlines()
    messages = [json.loads(line)["event"]["message"] for line in events]
    assert any(text.startswith("The last install was interrupted; ") for text in messages)


# --------------------------------------------------------------------------------- pipes, terminals


@on_posix
def test_a_reader_that_goes_away_is_no_error(workplace: Workplace) -> None:
    read, write = os.pipe()
    os.close(read)
    completed = subprocess.run(
        [workplace.torchenv, "list"],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        env=workplace.variables,
        timeout=SECONDS,
        check=False,
    )
    os.close(write)
    assert completed.returncode == 1
    assert completed.stderr == b""


def test_a_pipe_without_unicode_gets_question_marks_and_whole_json(workplace: Workplace) -> None:
    narrow = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    text = torchenv(workplace, "status", variables=narrow).stdout
    assert "recommended  " in text
    assert "?" in text
    data = json.loads(torchenv(workplace, "select", "--json", variables=narrow).stdout)
    assert data["backend"]


@contextlib.contextmanager
def on_a_terminal(
    workplace: Workplace, *arguments: str | Path, **variables: str
) -> Iterator[pexpect.spawn]:
    child = pexpect.spawn(
        str(workplace.torchenv),
        [str(argument) for argument in arguments],
        env={**workplace.variables, "TERM": "xterm", **variables},
        cwd=str(workplace.directory),
        encoding="utf-8",
        dimensions=(24, 100),
        timeout=SECONDS,
    )
    try:
        yield child
    finally:
        child.close(force=True)


@on_posix
@pytest.mark.parametrize("colored", [True, False])
def test_colors_are_for_terminals_that_want_them(
    workplace: Workplace,
    colored: bool,  # noqa: FBT001
) -> None:
    variables = {} if colored else {"NO_COLOR": "1"}
    with on_a_terminal(workplace, "instal", **variables) as child:
        child.expect(pexpect.EOF)
        beginning = "\x1b[31merror\x1b[0m: `instal`" if colored else "error: `instal`"
        assert child.before is not None
        assert child.before.startswith(beginning)


# --------------------------------------------------------------------------------------- stopping


def uv_processes(variables: dict[str, str]) -> list[psutil.Process]:
    """Return the uv processes that use this cache."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.name().startswith("uv")
                and process.environ().get("UV_CACHE_DIR") == variables["UV_CACHE_DIR"]
            ):
                found.append(process)
    return found


@on_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_the_download_leaves_all_as_it_was(
    workplace: Workplace, target: Path, number: signal.Signals
) -> None:
    torchenv(workplace, "install", "cpu", "torch==2.12.0", "--python", target)
    before = everything(target)
    workplace.standin.rate = 40_000
    workplace.cache = workplace.directory / "cache"
    process = subprocess.Popen(
        [workplace.torchenv, "install", "cpu", "torch==2.13.0", "--python", str(target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=workplace.variables,
    )
    workplace.standin.wait_for(r"torch-2\.13\.0.*\.whl$", sent=40_000, timeout=SECONDS)
    assert uv_processes(workplace.variables)
    # Who only looks meanwhile is answered; who would change something too waits, and may leave.
    status = torchenv(workplace, "status", "--python", target).stdout
    assert "installed    torch 2.12.0+cpu\n" in status
    with on_a_terminal(workplace, "install", "cpu", "torchaudio", "--python", target) as waiting:
        waiting.expect(f"process {process.pid}")
        waiting.sendintr()
        waiting.expect("Cancelled; the environment is as it was")
        waiting.expect(pexpect.EOF)
    assert process.poll() is None
    stopped = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=SECONDS)
    assert time.monotonic() - stopped < 15
    assert process.returncode == 1
    assert errors.endswith("error: Cancelled; the environment is as it was\n")
    assert "Traceback" not in errors
    assert not uv_processes(workplace.variables)
    assert everything(target) == before


@on_posix
def test_progress_moves_on_a_terminal_and_ctrl_c_ends_it(
    workplace: Workplace, target: Path
) -> None:
    workplace.standin.rate = 60_000
    workplace.cache = workplace.directory / "cache"
    with on_a_terminal(workplace, "install", "cpu", "--python", target) as child:
        child.expect(r"Downloading from the PyTorch index")
        # One bar for the whole, with what is there, what there will be, and then how fast.
        child.expect(r"[\d.]+ [kM]?B of 1\.\d MB")
        child.expect(r"[\d.]+ [kM]?B of 1\.\d MB · [\d.]+ [kM]?B/s")
        child.sendintr()
        child.expect(r"\x1b\[31merror\x1b\[0m: Cancelled; the environment is as it was")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 1
    assert installed(target) == {}
