"""The benchmark of choices: what an answer is worth, and a process put on another machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from packaging.version import Version

from benchmarks.choices import Answer, Choices, choice_of_json, choice_of_text
from benchmarks.judgement import Choice, Outcome, accelerators_of, judge, left_out
from benchmarks.measuring import BenchmarkError
from benchmarks.placing import check_place, lay_out, run_on_machine
from tests.fleet import Machine, machines
from torchenv_magic.builds.catalog import load_catalog

FLEET = {machine.name: machine for machine in machines()}
CATALOG = load_catalog()
WITH_GPU_BUILD = [
    machine
    for machine in FLEET.values()
    if machine.expected["backend"] not in {"cpu", "none"}
    and left_out(machine, python_tag="cp312", catalog=CATALOG) is None
]


def _why_not_here() -> str:
    try:
        check_place()
    except BenchmarkError as error:
        return str(error)
    return ""


on_other_machines = pytest.mark.skipif(bool(_why_not_here()), reason=_why_not_here() or "here")


def outcome(name: str, torch: str | None, *, refused: bool = False) -> Outcome:
    """Return what that torch is worth on a machine of the fleet, with Python 3.12."""
    machine = FLEET[name]
    return judge(
        Choice(torch=Version(torch) if torch else None, refused=refused),
        expected_backend=machine.expected["backend"],
        expected_torch=machine.expected["torch"],
        unsupported=machine.expected.get("unsupported", ()),
        accelerators=accelerators_of(machine),
        driver_system="windows" if machine.expected.get("wsl") else "linux",
        python_tag="cp312",
        catalog=CATALOG,
    )


@pytest.mark.parametrize(
    ("machine", "torch", "worth"),
    [
        ("rtx-4090-driver-560", "2.14.1+cu126", "best"),
        ("rtx-4090-driver-560", "2.13.0+cu129", "runs"),
        ("rtx-4090-driver-560", "2.14.1+cpu", "idle"),
        # Its driver is older than CUDA 13.
        ("rtx-4090-driver-560", "2.14.1+cu130", "broken"),
        ("rtx-4090-driver-560", "2.14.1+rocm7.2", "broken"),
        ("rtx-4090-driver-560", "9.9.9+cu126", "failed"),
        ("rtx-4090-driver-560", "2.14.1+cu90", "failed"),
        ("gtx-1080-ti-driver-580", "2.15.0+cu132", "broken"),
        ("gtx-1080-ti-driver-580", "2.6.0+cu124", "runs"),
        ("gtx-1080-ti-and-rtx-4090", "2.15.0+cu132", "broken"),
        # The file says that the first of the two may be left out.
        ("gtx-1080-ti-and-rtx-5090", "2.14.1+cu130", "runs"),
        # Windows' driver 526 is not Linux' 526.
        ("wsl-rtx-3080-driver-526", "2.14.1+cu126", "broken"),
        ("tesla-k80-driver-470", "2.5.1+cu118", "runs"),
        ("container-compute-only", "2.13.0+cu129", "runs"),
        ("rx-7900-xtx", "2.5.1+rocm6.2", "runs"),
        ("strix-halo", "2.5.1+rocm6.2", "broken"),
        ("rocm-agent-enumerator", "2.13.0+rocm7.1", "runs"),
        ("arc-a770", "2.13.0+xpu", "runs"),
        ("uhd-770", "2.14.1+xpu", "misplaced"),
        ("uhd-770", "2.9.1+cpu", "runs"),
        ("rtx-5090-torch-2.6", "2.6.0+cu126", "broken"),
        ("rtx-5090-torch-2.6", "2.6.0+cpu", "idle"),
        # Without a label it is PyPI's: CUDA 13.2 since torch 2.15.
        ("cloud-vm", "2.15.0", "misplaced"),
        ("rtx-3090-driver-580", "2.15.0", "best"),
        ("rtx-3090-driver-580", "2.3.1", "failed"),
    ],
)
def test_an_answer_is_worth_what_the_machine_can_do_with_it(
    machine: str, torch: str, worth: str
) -> None:
    assert outcome(machine, torch) == worth


def test_refusing_is_right_where_nothing_fits_and_only_there() -> None:
    assert outcome("rtx-5090-torch-2.6", None, refused=True) == "best"
    assert outcome("rtx-5090-torch-2.6", None) == "failed"
    assert outcome("rtx-5090-driver-580", None, refused=True) == "failed"


@pytest.mark.parametrize("machine", WITH_GPU_BUILD, ids=lambda machine: machine.name)
def test_the_expected_build_computes_on_every_gpu_that_the_file_does_not_leave_out(
    machine: Machine,
) -> None:
    expected = machine.expected
    worth = judge(
        Choice(torch=Version(f"{expected['torch']}+{expected['backend']}")),
        # Another expectation, so that the build is judged and not compared.
        expected_backend="none",
        expected_torch="",
        unsupported=expected.get("unsupported", ()),
        accelerators=accelerators_of(machine),
        driver_system="windows" if expected.get("wsl") else "linux",
        python_tag="cp312",
        catalog=CATALOG,
    )
    assert worth == "runs"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("windows-gtx-1060", "system"),
        ("gb10", "processor"),
        ("alpine", "C library"),
        ("tesla-v100-centos-7", "C library"),
        ("backend-by-variable", "named"),
        ("build-node-cu126-asked", "named"),
        ("rtx-3060-python-3.9", "Python"),
        ("rtx-3060-python-3.14t", "Python"),
    ],
)
def test_a_machine_that_no_process_here_can_meet_is_left_out(machine: str, words: str) -> None:
    reason = left_out(FLEET[machine], python_tag="cp312", catalog=CATALOG)
    assert words in (reason or "")


def test_two_pythons_with_the_same_newest_builds_meet_the_same_machines() -> None:
    # 2.15 ended Python 3.10, so it makes another build the best one where CUDA 13 runs.
    for tag, met in (("cp311", True), ("cp312", True), ("cp310", False)):
        reason = left_out(FLEET["rtx-5090-driver-580"], python_tag=tag, catalog=CATALOG)
        assert (reason is None) is met


@pytest.mark.parametrize(
    ("output", "torch"),
    [
        (
            "Collecting torch\nWould install torch-2.9.1+cu129 torchvision-0.24.1+cu129\n",
            "2.9.1+cu129",
        ),
        ("Would install numpy-2.4.6 torch-2.15.0\nWould install torch-9.9\n", "2.15.0"),
        ("filelock==3.20.0\ntorch==2.13.0+cu129\n", "2.13.0+cu129"),
        ("Would install torchvision-0.24.1\n", None),
        ("torch==rubbish\n", None),
    ],
)
def test_the_torch_that_a_tool_names_is_read(output: str, torch: str | None) -> None:
    assert choice_of_text(output, "").torch == (Version(torch) if torch else None)


def test_that_no_build_meets_the_request_is_an_answer_and_a_traceback_is_none() -> None:
    pip = choice_of_text("", "ERROR: No matching distribution found for torch==2.15.*\n")
    uv = choice_of_text("", "error: No solution found when resolving dependencies\n")
    broken = choice_of_text("", "Traceback (most recent call last):\nKeyError: 1\n")
    assert [pip.refused, uv.refused, broken.refused] == [True, True, False]
    assert broken.said.endswith("KeyError: 1")
    assert choice_of_json('{"backend": null, "warnings": ["too old"]}', "").refused
    assert choice_of_json('{"backend": "cpu", "torch": "2.14.1"}', "").torch == Version(
        "2.14.1+cpu"
    )
    assert choice_of_json("", "error: no\n") == Choice(said="error: no")


def test_the_table_names_each_machine_where_a_peer_chose_better() -> None:
    def answer(tool: str, machine: str, torch: str, worth: Outcome) -> Answer:
        choice = Choice(torch=Version(torch))
        return Answer(tool=tool, machine=FLEET[machine], choice=choice, outcome=worth)

    choices = Choices(
        tools=("ours", "theirs"),
        answers=(
            answer("ours", "arc-a770", "2.13.0+xpu", "runs"),
            answer("theirs", "arc-a770", "2.14.1+xpu", "best"),
            answer("ours", "uhd-770", "2.14.1+cpu", "best"),
            answer("theirs", "uhd-770", "2.14.1+xpu", "misplaced"),
        ),
        left_out={"a reason": 3},
    )
    lines = [" ".join(line.split()) for line in str(choices).splitlines()]
    assert "ours 2 1 0 0 0 0" in lines
    assert "theirs 1 1 0 1 0 0" in lines
    assert "goal: the best build on each machine: MISSED" in lines
    [beaten] = [line for line in lines if line.startswith("arc-a770")]
    assert "theirs chose 2.14.1+xpu" in beaten
    assert "left out: 3 × a reason" in lines
    content: dict[str, Any] = choices.to_json()
    assert (content["machines"], len(content["answers"])) == (2, 4)


def _see(machine: str, folder: Path, command: Sequence[str]) -> str:
    place = lay_out(FLEET[machine], folder)
    completed = run_on_machine(place, command, dict(os.environ), seconds=30)
    assert completed is not None
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@on_other_machines
def test_a_process_sees_the_files_of_its_machine_and_none_of_this_one(tmp_path: Path) -> None:
    shell = [sys.executable, "-I", "-c"]
    listing = "import os; print(*os.listdir('/sys'), *os.listdir('/dev'))"
    before = sorted(Path("/sys").iterdir())
    seen = _see("wsl-rtx-3080-driver-566", tmp_path / "wsl", [*shell, listing]).split()
    assert {"bus", "null", "dxg"} <= set(seen)
    assert not {"kernel", "console"} & set(seen)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv"]
    ask = f"import subprocess; print(subprocess.check_output({asked}, text=True))"
    assert _see("wsl-rtx-3080-driver-566", tmp_path / "smi", [*shell, ask]).strip() == "566.36"
    read = "print(open('/proc/sys/kernel/osrelease').read(), open('/usr/lib/wsl/lib/libcuda.so.1'))"
    assert "microsoft" in _see("wsl-rtx-3080-driver-566", tmp_path / "read", [*shell, read])
    cards = "import subprocess; print(subprocess.check_output(['lspci', '-nn'], text=True))"
    assert _see("gt-710-and-rtx-4090", tmp_path / "cards", [*shell, cards]).split("\n")[:2] == [
        "01:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:128b]",
        "02:00.0 VGA compatible controller [0300]: NVIDIA Corporation Device [10de:2684]",
    ]
    assert sorted(Path("/sys").iterdir()) == before


@on_other_machines
def test_who_asks_a_program_that_hangs_is_ended_at_the_bound_with_the_program(
    tmp_path: Path,
) -> None:
    place = lay_out(FLEET["nvidia-smi-hangs"], tmp_path / "machine")
    note = tmp_path / "process"
    ask = (
        "import pathlib, subprocess; process = subprocess.Popen(['nvidia-smi']); "
        f"pathlib.Path({str(note)!r}).write_text(str(process.pid)); process.wait()"
    )
    command = [sys.executable, "-I", "-c", ask]
    assert run_on_machine(place, command, dict(os.environ), seconds=5) is None
    with contextlib.suppress(psutil.NoSuchProcess):
        program = psutil.Process(int(note.read_text()))
        # Nobody may be there to reap it: then it has ended all the same.
        if program.status() != psutil.STATUS_ZOMBIE:
            program.wait(timeout=30)
