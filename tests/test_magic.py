"""`%torchenv` in a real IPython shell: loading, help, records, errors, completion."""

# IPython has few annotations.
# mypy: allow-untyped-calls
from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.utils.capture import CapturedIO, capture_output
from traitlets.config import Config

from tests.kernels import PROJECT_ROOT
from tests.standin import StandIn
from tests.workplace import Workplace
from torchenv_magic.accelerators import detect
from torchenv_magic.builds.cache_folder import listing_file
from torchenv_magic.doctor import Diagnosis
from torchenv_magic.errors import RequestError, SelectionError, TorchEnvError, VerificationError
from torchenv_magic.installation.plan import Plan
from torchenv_magic.notebook import extension, rendering
from torchenv_magic.selection import Selection
from torchenv_magic.status import Status

LOAD = "%load_ext torchenv_magic"


@pytest.fixture
def bare_shell(tmp_path: Path) -> Iterator[InteractiveShell]:
    """Return plain IPython's shell, without a terminal and without a kernel."""
    configuration = Config()
    configuration.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    displayhook, excepthook = sys.displayhook, sys.excepthook
    shell = InteractiveShell.instance(config=configuration, ipython_dir=str(tmp_path / "ipython"))
    yield shell
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()
    InteractiveShell.clear_instance()
    sys.displayhook, sys.excepthook = displayhook, excepthook


@pytest.fixture
def shell(bare_shell: InteractiveShell) -> InteractiveShell:
    """Return plain IPython's shell with the extension loaded."""
    assert run(bare_shell, LOAD)[0].success
    return bare_shell


@pytest.fixture
def standin_in_reach(
    fresh_standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StandIn:
    """Lead this very process to the stand-in: what it plans, it plans for the tests' Python."""
    settings = fresh_standin.environment(tmp_path / "cache", hermetic=True)
    for name in settings.unset:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.set.items():
        monkeypatch.setenv(name, value)
    return fresh_standin


def run(shell: InteractiveShell, cell: str) -> tuple[ExecutionResult, CapturedIO]:
    with capture_output() as captured:
        result = shell.run_cell(cell, store_history=False)
    return result, captured


def failure(shell: InteractiveShell, cell: str) -> tuple[BaseException, str]:
    """Return what a cell raised, and all that was shown of it."""
    result, captured = run(shell, cell)
    assert result.error_in_exec is not None
    return result.error_in_exec, captured.stdout.strip()


def shown(shell: InteractiveShell, record: object) -> dict[str, str]:
    """Return a record as a front end gets it, by MIME type."""
    assert shell.display_formatter is not None
    data: dict[str, str] = shell.display_formatter.format(record)[0]
    return data


# --------------------------------------------------------------------------- loading and unloading

LOADING = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
import IPython.core.magics.extension
shell = InteractiveShell.instance()
before = set(sys.modules)
shell.run_line_magic("load_ext", "torchenv_magic")
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_loading_imports_next_to_nothing_and_says_nothing(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", LOADING],
        capture_output=True,
        text=True,
        env={**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(PROJECT_ROOT)},
        check=True,
        timeout=60,
    )
    assert json.loads(completed.stdout) == [
        "torchenv_magic",
        "torchenv_magic.notebook",
        "torchenv_magic.notebook.completion",
        "torchenv_magic.notebook.extension",
    ]
    assert completed.stderr == ""


def traces(shell: InteractiveShell) -> dict[str, Any]:
    """Return what an extension could have left in a shell."""
    completer: Any = shell.Completer
    display_formatter: Any = shell.display_formatter
    return {
        "magics": {kind: set(names) for kind, names in shell.magics_manager.magics.items()},
        "matchers": list(completer.custom_matchers),
        "formatters": {
            mime: (set(formatter.type_printers), set(formatter.deferred_printers))
            for mime, formatter in (
                *display_formatter.formatters.items(),
                ("a whole bundle", display_formatter.mimebundle_formatter),
            )
        },
        # IPython's own names of the last results come and go with what was displayed before.
        "names": {name for name in shell.user_ns if not name.startswith("_")},
        "events": {name: list(callbacks) for name, callbacks in shell.events.callbacks.items()},
    }


def test_unloading_undoes_everything(bare_shell: InteractiveShell) -> None:
    run(bare_shell, "pass")
    before = traces(bare_shell)
    run(bare_shell, LOAD)
    run(bare_shell, "record = %torchenv status\nprint(record)\ndel record")
    run(bare_shell, "%unload_ext torchenv_magic")
    assert traces(bare_shell) == before
    # And a second time: what is not there needs no unloading.
    run(bare_shell, f"{LOAD}\n%reload_ext torchenv_magic\n%unload_ext torchenv_magic")
    assert traces(bare_shell) == before


# ----------------------------------------------------------------------------------------- reading


def test_words_that_read_return_records_with_text_and_a_table(
    shell: InteractiveShell,
    standin_in_reach: StandIn,  # noqa: ARG001
) -> None:
    for word, kind, beginning in (
        ("status", Status, "accelerator "),
        ("list cpu", Selection, "cpu with torch "),
        ("doctor", Diagnosis, "Found 1 error\nEnvironment  "),
        ("plan cpu", Plan, "CPU only (cpu) — asked for"),
    ):
        result, captured = run(shell, f"record = %torchenv {word}")
        result.raise_error()
        record = shell.user_ns["record"]
        assert isinstance(record, kind)
        data = shown(shell, record)
        assert data["text/plain"].startswith(beginning)
        assert "<div class='torchenv" in data["text/html"]
        assert captured.stderr == ""
    plan = shell.user_ns["record"]
    assert plan.versions["torch"] == "2.13.0+cpu"
    assert str(plan.prefix) == sys.prefix


def test_a_bare_line_shows_its_record(shell: InteractiveShell) -> None:
    result, captured = run(shell, "%torchenv list")
    assert isinstance(result.result, Selection)
    assert "does not fit" in captured.stdout


def test_a_plan_for_what_does_not_fit_carries_the_warning(
    shell: InteractiveShell,
    standin_in_reach: StandIn,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UV_CUDA_DRIVER_VERSION", "300")
    run(shell, "plan = %torchenv plan cu126")[0].raise_error()
    assert any("cu126 was asked for" in note for note in shell.user_ns["plan"].notes)


def test_variables_and_quotes_on_the_line(shell: InteractiveShell) -> None:
    run(shell, "backend, demand = 'cpu', 'torch >=2.9, <2.10'")
    run(shell, 'one = %torchenv list {backend} "{demand}"')[0].raise_error()
    assert (shell.user_ns["one"].backend.kind, shell.user_ns["one"].torch) == ("cpu", "2.9.1")
    run(shell, "other = %torchenv list $backend 'torch >=2.9, <2.10'")[0].raise_error()
    assert shell.user_ns["other"] == shell.user_ns["one"]


# ------------------------------------------------------------------------------------------- help


def test_help_is_printed_and_nothing_else_happens(shell: InteractiveShell) -> None:
    result, captured = run(shell, "%torchenv -h")
    assert result.result is None
    assert captured.stdout.startswith("Pick, install and prove the right PyTorch build.\n")
    _, captured = run(shell, "%torchenv install cu126 --help")
    assert captured.stdout.startswith("usage: %torchenv install [BACKEND] [REQUIREMENT ...]")


def test_the_question_mark_shows_examples(shell: InteractiveShell) -> None:
    _, captured = run(shell, "%torchenv?")
    assert "%torchenv install cpu torch==2.13.* torchvision" in captured.stdout


# ---------------------------------------------------------------------------------------- failures


def test_an_error_is_its_message_and_its_hint(shell: InteractiveShell) -> None:
    error, text = failure(shell, "%torchenv instal")
    assert type(error) is RequestError
    assert text == (
        "`instal` is not a word of `%torchenv`\n\n"
        "hint: did you mean `%torchenv install`? the words are status, list, plan, install, "
        "verify, doctor, undo, history, lock, restore, export, new-kernel"
    )


def test_an_open_quotation_mark_is_an_error_of_ours(shell: InteractiveShell) -> None:
    error, text = failure(shell, '%torchenv install "torch==2.13')
    assert type(error) is RequestError
    assert text == (
        "`%torchenv install \"torch==2.13` can't be read: no closing quotation\n\n"
        'hint: write quotation marks in pairs: `%torchenv install "torch==2.13.*"`'
    )


def test_an_error_can_be_caught(shell: InteractiveShell) -> None:
    cell = (
        "from torchenv_magic import TorchEnvError\n"
        "try:\n"
        "    %torchenv install cuda12.6\n"
        "except TorchEnvError as error:\n"
        "    caught = error.code, error.hint[:22]"
    )
    run(shell, cell)[0].raise_error()
    assert shell.user_ns["caught"] == ("request", "did you mean `cu126`? ")


def test_what_fits_nowhere_is_said_with_what_would_fit(shell: InteractiveShell) -> None:
    error, text = failure(shell, "%torchenv plan torch==9.9")
    assert type(error) is SelectionError
    assert "No build of PyTorch fits: no build of torch==9.9 can be installed here: " in text
    assert " would fit" in text
    assert "\n\nhint: see `%torchenv list` for every build and its reason" in text


def test_verify_without_torch_shows_the_table_and_raises(shell: InteractiveShell) -> None:
    if "torch" in sys.modules:
        pytest.skip("this process has imported a torch of its own")
    result, captured = run(shell, "%torchenv verify")
    assert isinstance(result.error_in_exec, VerificationError)
    assert isinstance(result.error_in_exec, TorchEnvError)
    assert captured.stdout.strip().endswith("hint: `%torchenv` picks and installs it")
    [table] = captured.outputs
    assert table.data["text/plain"].startswith("PyTorch does not work as asked\n")
    assert "Failed       PyTorch is not installed in" in table.data["text/plain"]


# --------------------------------------------------------------------------- without any widgets


def test_the_picker_is_text_in_plain_ipython(shell: InteractiveShell) -> None:
    result, captured = run(shell, "%torchenv")
    assert isinstance(result.result, Status)
    assert captured.stdout.startswith(
        "This front end shows no widgets: `%torchenv install` does the same in words.\n"
    )
    assert "recommended " in captured.stdout


def test_the_picker_is_text_without_ipywidgets(workplace: Workplace) -> None:
    folder = workplace.environment.site_packages / "ipywidgets"
    aside = folder.with_name("ipywidgets-aside")
    with workplace.kernel() as (kernel, _):
        kernel.run(LOAD)
        folder.rename(aside)
        try:
            absent = kernel.send("%torchenv", cell_id="a")
            assert kernel.reply(absent)["status"] == "ok"
        finally:
            aside.rename(folder)
        assert kernel.printed(absent) == (
            "ipywidgets is not installed, so the picker can't be shown: `%torchenv install` does "
            "the same in words.\n"
        )
        # A version that can't be imported is as good as none.
        kernel.run("import sys; sys.modules['ipywidgets'] = None")
        broken = kernel.send("%torchenv", cell_id="b")
        assert kernel.reply(broken)["status"] == "ok"
        said = kernel.printed(broken)
        assert said.startswith("ipywidgets can't be imported (")
        assert said.endswith("`%torchenv install` does the same in words.\n")
        assert kernel.value("6 * 7") == 42


# -------------------------------------------------------------------------------------- completion


def completions(shell: InteractiveShell, line: str) -> list[str]:
    """Return how the line could go on, by the shell's own completer."""
    completer: Any = shell.Completer
    with provisionalcompleter():
        found = list(completer.completions(line, len(line)))
    assert all(line[item.start : item.end] == line[item.start :] for item in found)
    return [item.text for item in found]


COMPLETED = {
    "%torchenv ": "doctor export history install list lock new-kernel plan restore status undo "
    "verify",
    "%torchenv ins": "install",
    "plan = %torchenv pl": "plan",
    "%torchenv install cu12": "cu121 cu124 cu126 cu128 cu129",
    "%torchenv install rocm7.": "rocm7.0 rocm7.1 rocm7.14 rocm7.2",
    "%torchenv list a": "auto",
    "%torchenv plan cpu torch": "torch torchaudio torchvision",
    "%torchenv plan torch torch": "torchaudio torchvision",
    "%torchenv plan torch cu132": "cu132",
    "%torchenv install --": ("--allow-sdist --find-links --help --index-base --restart --yes"),
    "%torchenv install --restart=": "--restart=always --restart=auto --restart=never",
    "%torchenv install --restart n": "never",
    "%torchenv restore rocm7.": "rocm7.0 rocm7.1 rocm7.14 rocm7.2",
    "%torchenv restore --restart=a": "--restart=always --restart=auto",
    "%torchenv lock cpu c": "cu118 cu121 cu124 cu126 cu128 cu129 cu130 cu132",
    "%torchenv export ": "command dockerfile extras index markers requirements script",
    "%torchenv export index cpu torchv": "torchvision",
    "%torchenv undo --restart=a": "--restart=always --restart=auto",
    "%torchenv new-kernel --r": "--remove",
    "%torchenv new-kernel mine cu12": "cu121 cu124 cu126 cu128 cu129",
    "%torchenv status ": "--help --refresh",
}


def test_what_may_follow_is_completed(shell: InteractiveShell) -> None:
    found = {line: " ".join(completions(shell, line)) for line in COMPLETED}
    assert found == COMPLETED


def test_other_lines_are_completed_as_before(shell: InteractiveShell) -> None:
    run(shell, "installation = 1")
    assert completions(shell, "inst") == ["installation"]
    assert "%torchenv" in completions(shell, "%torch")
    assert "installation" in completions(shell, "print('%torchenv', inst")


def test_status_and_list_ask_the_index_where_told_to_and_plan_by_itself(
    shell: InteractiveShell, standin_in_reach: StandIn
) -> None:
    def asked() -> bool:
        pages = [request.path for request in standin_in_reach.requests]
        standin_in_reach.clear_log()
        return any(path.endswith("/cu118/torch/") for path in pages)

    def answered(code: str) -> Any:
        return run(shell, code)[0].result

    assert answered("%torchenv list").torch != "2.13.0"
    assert not asked()
    assert answered("%torchenv list --refresh").torch == "2.13.0"
    assert asked()
    assert answered("%torchenv status").selection.torch == "2.13.0"
    assert not asked()
    assert answered("%torchenv status --refresh").selection.torch == "2.13.0"
    assert asked()
    file = listing_file(os.environ)
    assert file is not None
    file.unlink()
    assert run(shell, "%torchenv plan")[0].success
    assert asked()


def test_host_is_a_table_that_tells_what_stands_in_the_way_and_what_to_do(
    shell: InteractiveShell, tmp_path: Path
) -> None:
    module = tmp_path / "sys/module/nvidia"
    module.mkdir(parents=True)
    (module / "version").write_text("580.95.05\n")
    host = detect(root=tmp_path, environ={})
    display_formatter: Any = shell.display_formatter
    display_formatter.active_types = ["text/plain", "text/html"]  # as a kernel has it

    shown, _ = display_formatter.format(host)

    assert "no GPU is here" in shown["text/html"]
    assert "hint: if this is a container" in shown["text/html"]
    assert "<code>docker run --gpus all</code>" in shown["text/html"]
    assert "(hint: if this is a container" in shown["text/plain"]


def test_loading_knows_each_record_that_has_a_table_by_its_name() -> None:
    kinds = [getattr(importlib.import_module(module), name) for module, name in extension._RECORDS]
    # By the name that a formatter looks up: where the class is made, and what it is called.
    assert [(kind.__module__, kind.__name__) for kind in kinds] == list(extension._RECORDS)
    assert {kind.__name__ for kind in kinds} == set(rendering._RENDERERS)
