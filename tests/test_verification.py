"""Verification: made torches that work, lie, crash and hang in real interpreters; the real one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packaging
import pytest
import uv

from tests.made_torch import add_to_torch, change_module
from tests.standin.wheels import make_family
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Environment, read_environment
from torchenv_magic.errors import VerificationError
from torchenv_magic.expectation import Expectation
from torchenv_magic.serialization import from_json, to_json
from torchenv_magic.verification import Check, Verification, verify
from torchenv_magic.verification.facts import os_release_name, shortened, told_variables
from torchenv_magic.verification.findings import ExtensionFindings, Findings, Step
from torchenv_magic.verification.judgement import has_code_for, judge
from torchenv_magic.verification.report import VersionRow
from torchenv_magic.verification.trial import describe_end

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
TAG = f"cp3{sys.version_info[1]}"
ROOT = Path(__file__).resolve().parent.parent


def asked(backend: str, **versions: str) -> Expectation:
    return Expectation(
        requirements=tuple(versions),
        backend=Backend.parse(backend),
        versions=tuple(versions.items()),
    )


CPU = asked("cpu", torch="2.13.0+cpu", torchvision="0.28.0+cpu")


class Lab:
    """A real environment without pip, whose packages a test may put in, break and take out."""

    def __init__(self, directory: Path) -> None:
        command = [uv.find_uv_bin(), "venv", "--quiet", "--offline", "--python", sys.executable]
        subprocess.run([*command, str(directory / "venv")], check=True)
        self.environment = read_environment(directory / "venv")
        self.site_packages = self.environment.site_packages
        self._wheels = directory / "wheels"

    def add(self, backend: str | None, *names: str) -> None:
        """Unpack made wheels of one backend."""
        wheels = make_family(self._wheels, backend=backend, python_tags=[TAG], pad_bytes=0)
        for wheel in wheels:
            if wheel.name.partition("-")[0] in (names or ("torch", "torchvision", "torchaudio")):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(self.site_packages)

    def change(self, module: str, old: str, new: str) -> None:
        change_module(self.site_packages, module, old, new)

    def add_to_torch(self, text: str) -> None:
        add_to_torch(self.site_packages, text)

    def empty(self) -> None:
        for entry in self.site_packages.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def verify(self, expectation: Expectation | None = None, seconds: float = 60) -> Verification:
        return verify(self.environment, expectation, in_process=False, timeout_seconds=seconds)

    def run(self, script: str, **variables: str) -> str:
        """Run a script in the environment, with this package on its path."""
        path = os.pathsep.join([str(ROOT), str(Path(packaging.__file__).parent.parent)])
        run = subprocess.run(
            [str(self.environment.interpreter.executable), "-c", IN_PROCESS + script],
            env={**os.environ, "PYTHONPATH": path, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def verify_in_process(self, before: str = "", **variables: str) -> Verification:
        """Verify in a process of the environment, after `before`."""
        said = self.run(f"{before}\nprint(json.dumps(to_json(tried())))", **variables)
        return from_json(Verification, json.loads(said.splitlines()[-1]))


IN_PROCESS = """
import json, sys
from pathlib import Path
from torchenv_magic.environment import read_environment
from torchenv_magic.serialization import to_json
from torchenv_magic.verification import verify
def tried():
    return verify(read_environment(), None, in_process=True)
"""


@pytest.fixture(scope="module")
def only_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def lab(only_lab: Lab) -> Iterator[Lab]:
    yield only_lab
    only_lab.empty()


def outcome(verification: Verification) -> dict[str, bool | None]:
    return {check.name: check.passed for check in verification.checks}


SELF_TEST = dict.fromkeys(("product", "convolution", "backward", "bfloat16", "memory"), True)


def only_failure(verification: Verification) -> Check:
    (failure,) = verification.failures
    return failure


# -------------------------------------------------------------------------------------- that works


@pytest.mark.parametrize("in_process", [False, True])
def test_torch_that_works_passes_every_check(lab: Lab, *, in_process: bool) -> None:
    lab.add("cpu")
    found = lab.verify_in_process() if in_process else lab.verify()
    assert outcome(found) == {
        "installation": True,
        "import": True,
        **SELF_TEST,
        "torchvision": True,
        "torchaudio": True,
    }
    assert found.passed
    found.raise_for_failure()
    assert (found.torch, found.backend, found.device) == ("2.13.0+cpu", Backend("cpu"), "cpu")
    assert found.prefix == lab.environment.prefix
    assert found.device_names
    assert found.versions == (
        VersionRow(name="torch", asked=None, installed="2.13.0+cpu"),
        VersionRow(name="torchvision", asked=None, installed="0.28.0+cpu"),
        VersionRow(name="torchaudio", asked=None, installed="2.11.0+cpu"),
    )
    assert found.notes == ()
    assert found.import_seconds is not None
    assert found.product_seconds is not None
    assert 0 < found.import_seconds < 60
    assert 0 < found.product_seconds < 60


def test_what_was_asked_for_is_compared(lab: Lab) -> None:
    lab.add("cpu")
    found = lab.verify(CPU)
    assert found.passed
    assert outcome(found)["versions"]
    assert outcome(found)["backend"]
    assert found.versions[:2] == (
        VersionRow(name="torch", asked="2.13.0+cpu", installed="2.13.0+cpu"),
        VersionRow(name="torchvision", asked="0.28.0+cpu", installed="0.28.0+cpu"),
    )


def test_result_reads_as_a_few_aligned_lines(lab: Lab) -> None:
    lab.add("cpu", "torch", "torchvision")
    text = re.sub(r"\d+ ms|\d+\.\d s", "TIME", str(lab.verify(CPU)))
    text = re.sub(r"\d\.\de-\d\d|\d+\.\d(?= (?:GiB|of))", "N", text)
    version = ".".join(map(str, sys.version_info[:3]))
    shown = str(lab.environment).split(", ")[0]
    device = next(line for line in text.splitlines() if line.startswith("Device"))
    assert device.startswith("Device       cpu, ")
    facts = text[text.index("\nSystem ") :]
    assert text.removesuffix(facts) == (
        "PyTorch works\n"
        f"Environment  {shown}, Python {version}, uv venv\n"
        "PyTorch      2.13.0+cpu, CPU only, imported in TIME\n"
        f"{device}\n"
        "Versions     torch 2.13.0+cpu, torchvision 0.28.0+cpu, as asked for\n"
        "Product      a matrix product on cpu agrees with the CPU's in float64 "
        "(off by N, N allowed) in TIME\n"
        "Self-test    a convolution, a backward pass, a bfloat16 product and a block of memory "
        "are right too, in TIME\n"
        "Checks       10 of 10 passed"
    )
    assert "\nPackages     torch 2.13.0+cpu, torchvision 0.28.0+cpu" in facts


def test_result_survives_json(lab: Lab) -> None:
    lab.add("cpu")
    found = lab.verify(CPU)
    assert from_json(Verification, json.loads(json.dumps(to_json(found)))) == found


def test_build_for_a_gpu_computes_on_the_cpu_where_nobody_asked_for_one(lab: Lab) -> None:
    lab.add("cu126")
    found = lab.verify()
    assert found.passed
    assert (found.backend, found.device) == (Backend.parse("cu126"), "cpu")
    assert found.notes == ("PyTorch finds no CUDA device here, and computes on the CPU",)


def test_pypi_wheel_without_a_local_version_is_known_by_its_own_word(lab: Lab) -> None:
    lab.add(None, "torch")
    build = "cu130" if sys.platform == "linux" else "cpu"
    found = lab.verify(asked(build, torch="2.13.0"))
    assert found.backend == Backend.parse(build)
    assert outcome(found)["versions"]
    assert outcome(found)["backend"]


# ---------------------------------------------------------------------------------- that does not


def test_torch_that_is_not_installed(lab: Lab) -> None:
    found = lab.verify()
    assert only_failure(found).message.startswith("PyTorch is not installed in `")
    with pytest.raises(
        VerificationError, match=r"not installed in `.*`\n\nhint: `%torchenv` picks"
    ):
        found.raise_for_failure()


def test_missing_torch_that_was_asked_for_is_missing_twice(lab: Lab) -> None:
    found = lab.verify(CPU)
    assert outcome(found) == {"import": False, "versions": False}
    assert found.failures[1].message == (
        "torch is missing, and 2.13.0+cpu was asked for; "
        "torchvision is missing, and 0.28.0+cpu was asked for"
    )


def test_other_version_and_other_backend_than_asked_for(lab: Lab) -> None:
    lab.add("cu130", "torch")
    found = lab.verify(asked("cpu", torch="2.13.0+cpu"))
    assert [failure.message for failure in found.failures] == [
        "torch is 2.13.0+cu130, and 2.13.0+cpu was asked for",
        "torch is built for CUDA 13.0, and CPU only was asked for",
    ]
    with pytest.raises(VerificationError) as caught:
        found.raise_for_failure()
    assert str(caught.value) == (
        "PyTorch failed 2 of 9 checks:\n"
        "- torch is 2.13.0+cu130, and 2.13.0+cpu was asked for\n"
        "- torch is built for CUDA 13.0, and CPU only was asked for\n\n"
        "hint: `%torchenv install cpu torch` puts it right"
    )


@pytest.mark.parametrize(
    ("backend", "words"),
    [("cu126", "CUDA device"), ("rocm7.2", "ROCm device"), ("xpu", "Intel GPU")],
)
def test_gpu_that_was_asked_for_and_is_not_there(lab: Lab, backend: str, words: str) -> None:
    lab.add(backend, "torch")
    found = lab.verify(asked(backend, torch=f"2.13.0+{backend}"))
    assert only_failure(found).message == f"PyTorch finds no {words} here"
    assert outcome(found)["product"]  # it works on the CPU, which is worth knowing


def test_variable_that_hides_the_gpu_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    lab.add("cu126", "torch")
    failure = only_failure(lab.verify(asked("cu126", torch="2.13.0+cu126")))
    assert failure.message == "PyTorch finds no CUDA device here: CUDA_VISIBLE_DEVICES=-1 hides it"


def test_wrong_product_is_caught(lab: Lab) -> None:
    lab.add("cpu", "torch")
    # One number of 4096, and only in float32.
    lab.change(
        "torch/__init__.py",
        "        return Tensor(product, (height, width), self.dtype)",
        "        if self.dtype is float32: product[77] += 0.01\n"
        "        return Tensor(product, (height, width), self.dtype)",
    )
    failure = only_failure(lab.verify())
    assert failure.name == "product"
    assert re.fullmatch(
        r"a matrix product on cpu is wrong: off by 1\.0e-02 from the CPU's in float64, "
        r"\d\.\de-04 allowed",
        failure.message,
    )


def test_product_that_is_not_a_number_is_caught(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.change(
        "torch/__init__.py",
        "        return Tensor(product, (height, width), self.dtype)",
        "        if self.dtype is float32: product = [math.nan] * len(product)\n"
        "        return Tensor(product, (height, width), self.dtype)",
    )
    assert "off by not a number" in only_failure(lab.verify()).message


def test_product_that_raises_is_a_failed_check(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.change(
        "torch/__init__.py",
        "    def __matmul__(self, other: Tensor) -> Tensor:\n",
        "    def __matmul__(self, other: Tensor) -> Tensor:\n"
        "        raise RuntimeError('CUDA error: no kernel image\\n\\x1b[31mCompile with')\n",
    )
    assert only_failure(lab.verify()).message == (
        "a matrix product on cpu failed: RuntimeError: CUDA error: no kernel image [31mCompile with"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "raise ImportError('libcudnn.so.9: cannot open')",
            "ImportError: libcudnn.so.9: cannot open",
        ),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import module_that_is_missing", "ModuleNotFoundError: No module named 'module_that_is"),
    ],
)
@pytest.mark.parametrize("in_process", [False, True])
def test_torch_that_cannot_be_imported(
    lab: Lab, text: str, words: str, *, in_process: bool
) -> None:
    lab.add("cpu", "torch")
    lab.add_to_torch(text)
    found = lab.verify_in_process() if in_process else lab.verify()
    failure = only_failure(found)
    assert failure.message.startswith(f"torch can't be imported: {words}")
    assert found.torch == "2.13.0+cpu"  # what is installed


@POSIX
@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("import os; os.abort()", "was ended by SIGABRT (a library gave up)"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "was ended by SIGSEGV (a memory error in compiled code)",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "was ended by SIGKILL (by the system, as when memory runs out)",
        ),
        ("import os; os._exit(7)", "ended with status 7 and no answer"),
    ],
)
def test_crash_is_a_failed_check_that_names_its_end_and_place(
    lab: Lab, text: str, end: str
) -> None:
    lab.add("cpu", "torch")
    lab.add_to_torch(text)
    found = lab.verify(asked("cpu", torch="2.13.0+cpu"))
    failure = only_failure(found)
    assert failure.message == f"The process that tried PyTorch {end} at `import torch`"
    assert outcome(found) == {"installation": True, "versions": True, "process": False}
    if "SIGKILL" not in end and "status" not in end:
        assert "torch/__init__.py" in found.detail  # faulthandler's stack


def test_crash_of_the_product_leaves_what_was_found_before(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.change(
        "torch/__init__.py",
        "    def __matmul__(self, other: Tensor) -> Tensor:\n",
        "    def __matmul__(self, other: Tensor) -> Tensor:\n        import os; os.abort()\n",
    )
    found = lab.verify()
    assert outcome(found) == {"installation": True, "import": True, "process": False}
    assert "at `a matrix product on cpu`" in found.failures[0].message
    assert found.torch == "2.13.0+cpu"
    assert "PyTorch does not work as asked" in str(found)


def test_hang_is_ended_and_said(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.add_to_torch("import time; time.sleep(60)")
    start = time.perf_counter()
    failure = only_failure(lab.verify(seconds=1.5))
    assert failure.message == (
        "The process that tried PyTorch did not finish within 1.5 s at `import torch`"
    )
    assert time.perf_counter() - start < 10


@POSIX
def test_interrupt_ends_the_child(lab: Lab, tmp_path: Path) -> None:
    lab.add("cpu", "torch")
    lab.add_to_torch(
        "import os, time\n"
        f"with open({str(tmp_path / 'pid')!r}, 'x') as file: file.write(str(os.getpid()))\n"
        "time.sleep(60)"
    )

    def interrupt() -> None:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_bytes()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        lab.verify()
    interrupter.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_bytes()), 0)


def test_interpreter_that_is_gone(lab: Lab, tmp_path: Path) -> None:
    interpreter = dataclasses.replace(
        lab.environment.interpreter, executable=tmp_path / "gone" / "python"
    )
    gone = dataclasses.replace(lab.environment, interpreter=interpreter)
    failure = only_failure(verify(gone, None, in_process=False))
    assert failure.message.startswith("The process that tried PyTorch could not be started (")


def test_what_torch_prints_does_not_hide_the_answer(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.add_to_torch(
        'import os; print(\'hello\'); os.write(1, b\'{"stage": "done", "findings": {}}\\n\')'
    )
    assert lab.verify().passed


def test_warnings_of_torch_become_notes(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.add_to_torch(
        "import warnings\n"
        "for _ in range(3):\n"
        "    warnings.warn('NVIDIA driver\\n too old (Triggered internally at /a/b.cpp:1.)')\n"
        "warnings.warn('use something else', DeprecationWarning)"
    )
    found = lab.verify()
    assert found.notes == ("NVIDIA driver too old",)
    assert "\nNote         NVIDIA driver too old\n" in str(found)


def test_child_is_given_no_token(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "s3cret")
    lab.add("cpu", "torch")
    lab.add_to_torch(
        f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(repr(dict(os.environ)))"
    )
    assert lab.verify().passed
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert "PATH" in seen
    assert "s3cret" not in seen


# ----------------------------------------------------------------------------------- half-done work


def test_torchvision_of_another_torch(lab: Lab) -> None:
    lab.add("cpu", "torch", "torchvision")
    metadata = "torchvision-0.28.0+cpu.dist-info/METADATA"
    lab.change(metadata, "torch==2.13.0", "torch==2.12.0")
    failure = only_failure(lab.verify())
    assert failure.message == "torchvision 0.28.0+cpu needs torch==2.12.0, and torch is 2.13.0+cpu"
    assert failure.hint.startswith("`%torchenv install torch torchvision`")


def test_torchvision_of_another_build_that_does_not_import(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.add("cu126", "torchvision")
    failure = only_failure(lab.verify())
    assert (
        failure.message == "torchvision 0.28.0+cu126 is built for CUDA 12.6, and torch for CPU only"
    )
    assert failure.hint.startswith("`%torchenv install torch torchvision`")


def test_torchvision_that_fits_and_does_not_import_is_for_the_doctor(lab: Lab) -> None:
    lab.add("cpu", "torch", "torchvision")
    lab.change("torchvision/__init__.py", "if torch", "import module_that_is_missing\nif torch")
    failure = only_failure(lab.verify())
    assert failure.message == (
        "torchvision can't be imported: "
        "ModuleNotFoundError: No module named 'module_that_is_missing'"
    )
    assert failure.hint.startswith("`%torchenv doctor`")


def test_torchaudio_of_another_build_that_imports(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.add("cu126", "torchaudio")
    lab.change("torchaudio/__init__.py", "if torch", "if False and torch")
    assert only_failure(lab.verify()).message == (
        "torchaudio 2.11.0+cu126 is built for CUDA 12.6, and torch for CPU only"
    )


def test_two_installs_of_torch_on_top_of_each_other(lab: Lab) -> None:
    lab.add("cu126", "torch")
    lab.add("cpu", "torch")
    failure = only_failure(lab.verify())
    assert failure.name == "installation"
    assert "torch is installed 2 times (2.13.0+c" in failure.message


def test_install_that_was_killed_before_its_metadata(lab: Lab) -> None:
    lab.add("cpu", "torch")
    (lab.site_packages / "torch-2.13.0+cpu.dist-info" / "METADATA").unlink()
    assert only_failure(lab.verify()).message == (
        "torch is installed in part: an install was interrupted"
    )


def test_metadata_without_its_files(lab: Lab) -> None:
    lab.add("cpu", "torch")
    shutil.rmtree(lab.site_packages / "torch")
    assert only_failure(lab.verify()).message == (
        "torch 2.13.0+cpu is registered as installed, and its files are missing"
    )


# ----------------------------------------------------------------------------------- the self-test

CONVOLVE = ("torch/nn/functional.py", "    if input.dtype is not weight.dtype:\n")
LEAD_BACK = ("torch/autograd.py", "    if outputs.shape != ():\n")
FILL = ("torch/__init__.py", "    def fill_(self, value: Any) -> Tensor:\n")


def put_first(lab: Lab, place: tuple[str, str], text: str) -> None:
    """Let a function of the made torch do something first; `place` ends where that begins."""
    module, line = place
    indented = f"{line}        {text}\n" if line.endswith("Tensor:\n") else f"    {text}\n{line}"
    lab.change(module, line, indented)


@pytest.mark.parametrize(
    ("name", "module", "old", "new"),
    [
        (
            "convolution",
            "torch/nn/functional.py",
            "return type(input)(",
            "values[7] += (str(input.dtype) == 'torch.float32') / 100\n    return type(input)(",
        ),
        (
            "backward",
            "torch/autograd.py",
            "return (found,)",
            "return (found * (1 + (str(found.dtype) == 'torch.float32') / 100),)",
        ),
        ("bfloat16", "torch/__init__.py", "bits += 0x7FFF", "bits += 0x90000"),
        (
            "memory",
            "torch/__init__.py",
            "self._values = Tensor([value]",
            "value = 1.499\n        self._values = Tensor([value]",
        ),
    ],
    ids=["convolution", "backward", "bfloat16", "memory"],
)
def test_step_that_gives_a_wrong_result_is_caught_and_only_that(
    lab: Lab, name: str, module: str, old: str, new: str
) -> None:
    lab.add("cpu", "torch")
    lab.change(module, old, new)
    found = lab.verify()
    failure = only_failure(found)
    assert failure.name == name
    assert "off by" in failure.message
    assert failure.hint
    # What is right stays so: only float32, or only bfloat16, was wrong.
    assert [step.name for step in found.self_test if not step.is_right] == [name]


@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        (CONVOLVE, "convolution", "a convolution"),
        (LEAD_BACK, "backward", "a backward pass"),
        (FILL, "memory", "a block of memory"),
    ],
)
def test_step_that_raises_is_a_failed_check_and_the_others_are_tried(
    lab: Lab, place: tuple[str, str], name: str, words: str
) -> None:
    lab.add("cpu", "torch")
    put_first(lab, place, "raise RuntimeError('CUDNN_STATUS_NOT_INITIALIZED')")
    found = lab.verify()
    assert only_failure(found).message == (
        f"{words} on cpu failed: RuntimeError: CUDNN_STATUS_NOT_INITIALIZED"
    )
    assert found.hint.startswith("`%torchenv doctor`")
    assert outcome(found) == {"installation": True, "import": True, **SELF_TEST, name: False}


def test_steps_that_fail_for_one_reason_are_told_once(lab: Lab) -> None:
    lab.add("cpu", "torch")
    for place in (CONVOLVE, LEAD_BACK, FILL):
        put_first(lab, place, "raise RuntimeError('CUDA error: unspecified launch failure')")
    assert only_failure(lab.verify()).message == (
        "a convolution, a backward pass and a block of memory on cpu failed: "
        "RuntimeError: CUDA error: unspecified launch failure"
    )


def test_crash_of_a_step_leaves_what_was_found_before(lab: Lab) -> None:
    lab.add("cpu", "torch")
    put_first(lab, CONVOLVE, "import os; os.abort()")
    found = lab.verify()
    assert outcome(found) == {
        "installation": True,
        "import": True,
        "product": True,
        "process": False,
    }
    assert "at `a convolution on cpu`" in only_failure(found).message


SHORT = "from torchenv_magic.verification import probe; probe.SELF_TEST_SECONDS = 0.5"


def test_step_that_does_not_come_back_is_a_failed_check_and_ends_the_self_test(lab: Lab) -> None:
    lab.add("cpu")
    put_first(lab, CONVOLVE, "import time; time.sleep(60)")
    start = time.perf_counter()
    found = lab.verify_in_process(SHORT)
    assert only_failure(found).name == "convolution"
    assert found.hint.startswith("see in the system's list of processes what keeps the device busy")
    assert outcome(found) == {
        "installation": True,
        "import": True,
        "product": True,
        "convolution": False,
        "self-test": None,
        "torchvision": True,
        "torchaudio": True,
    }
    assert "\nNote         a backward pass, a bfloat16 product and a block of memory " in str(found)
    assert "\nChecks       5 of 6 passed\n" in str(found)
    assert time.perf_counter() - start < 30


@POSIX
def test_interrupt_ends_the_self_test(lab: Lab) -> None:
    lab.add("cpu", "torch")
    put_first(lab, CONVOLVE, "import os, signal, time; os.kill(os.getpid(), 2); time.sleep(60)")
    start = time.perf_counter()
    said = lab.run("try:\n    tried()\nexcept KeyboardInterrupt:\n    print('interrupted')\n")
    assert said == "interrupted\n"
    assert time.perf_counter() - start < 30


def test_torch_without_bfloat16_works_and_says_so(lab: Lab) -> None:
    lab.add("cpu", "torch")
    lab.change("torch/__init__.py", "bfloat16 = dtype(", "_bfloat16 = dtype(")
    lab.change("torch/__init__.py", "if dtype is bfloat16", "if dtype is _bfloat16")
    lab.change("torch/__init__.py", '    "bfloat16",\n', "")
    found = lab.verify()
    assert found.passed
    assert outcome(found)["bfloat16"] is None
    assert "\nNote         a bfloat16 product was not tried: this torch has none\n" in str(found)
    assert "\nChecks       6 of 6 passed\n" in str(found)


def test_self_test_leaves_no_thread(lab: Lab) -> None:
    lab.add("cpu", "torch")
    said = lab.run("import threading; tried(); print(threading.active_count())")
    assert said == "1\n"


# -------------------------------------------------------------------------------------- in process


def test_another_environment_cannot_be_tried_in_process(lab: Lab) -> None:
    with pytest.raises(ValueError, match="is not this process's environment"):
        verify(lab.environment, None, in_process=True)


CHANGE_VERSION = """
import torch, torch.version
version_file = Path(torch.version.__file__)
version_file.write_text(version_file.read_text().replace("2.13.0+cpu", "2.13.0+cu126"))
"""


def test_session_that_still_has_the_old_torch_must_restart(lab: Lab) -> None:
    lab.add("cpu")
    found = lab.verify_in_process(CHANGE_VERSION)
    assert only_failure(found).message == (
        "This process still has torch 2.13.0+cpu, and 2.13.0+cu126 is installed now"
    )
    assert found.hint == "restart the kernel, then run `%torchenv verify`"
    assert "import" not in outcome(found)  # nothing more of the new one is loaded into the old one


def test_session_whose_torch_was_removed_must_restart(lab: Lab) -> None:
    lab.add("cpu", "torch")
    removal = (
        "import torch, shutil\n"
        "site = Path(torch.__file__).parent.parent\n"
        "for path in site.glob('torch*'): shutil.rmtree(path)\n"
    )
    assert only_failure(lab.verify_in_process(removal)).message == (
        "This process still has torch 2.13.0+cpu, and it is no longer installed"
    )


def test_session_with_the_remains_of_a_failed_import_must_restart(lab: Lab) -> None:
    lab.add("cpu", "torch")
    remains = "import types; sys.modules['torch._C'] = types.ModuleType('torch._C')"
    assert only_failure(lab.verify_in_process(remains)).message == (
        "This process still has what an import of torch that failed left behind"
    )


def test_session_that_has_the_installed_torch_need_not(lab: Lab) -> None:
    lab.add("cpu")
    assert lab.verify_in_process("import torch, torchvision").passed


def test_file_named_torch_is_named(lab: Lab, tmp_path: Path) -> None:
    lab.add("cpu", "torch")
    (tmp_path / "torch.py").write_text("answer = 42\n", encoding="utf-8")
    found = lab.verify_in_process(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert only_failure(found).message == (
        f"`{tmp_path / 'torch.py'}` is imported where PyTorch should be"
    )


def test_random_numbers_of_the_session_stay_as_they_were_seeded(lab: Lab) -> None:
    lab.add("cpu", "torch")
    said = lab.run(
        "import torch, random\n"
        "def numbers():\n    return torch.randn(3).tolist(), random.random()\n"
        "torch.manual_seed(7); random.seed(7); expected = numbers()\n"
        "torch.manual_seed(7); random.seed(7); tried(); print(numbers() == expected)\n"
    )
    assert said == "True\n"


# ------------------------------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def real_lab(real_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    if f"-{TAG}-" not in real_wheel.name:
        pytest.skip(f"{real_wheel.name} is not for {TAG}")
    made = Lab(tmp_path_factory.mktemp("real"))
    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--python"]
    target = [str(made.environment.prefix), str(real_wheel)]
    run = subprocess.run([*command, *target], capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"torch's own requirements can't be had: {run.stderr.strip()}")
    return made


@pytest.mark.real_wheel
def test_real_torch_passes(real_lab: Lab) -> None:
    found = real_lab.verify(asked("cpu", torch="2.13.0+cpu"))
    assert found.passed, str(found)
    assert (found.torch, found.backend, found.device) == ("2.13.0+cpu", Backend("cpu"), "cpu")
    assert found.notes == ()
    assert [step.name for step in found.self_test if step.is_right] == list(SELF_TEST)
    memory = found.self_test[-1]
    assert memory.total_bytes is None or memory.total_bytes >= (memory.free_bytes or 0) > 0


@pytest.mark.real_wheel
def test_settings_of_the_session_neither_spoil_the_self_test_nor_change(real_lab: Lab) -> None:
    said = real_lab.run(
        "import torch\n"
        "cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul\n"
        "def settings():\n"
        "    return (cuda.fp32_precision, cpu.fp32_precision, torch.get_default_dtype(),\n"
        "            torch.get_default_device(), torch.get_rng_state().tolist(),\n"
        "            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),\n"
        "            torch.is_autocast_enabled('cpu'), torch.get_deterministic_debug_mode(),\n"
        "            torch.backends.cudnn.conv.fp32_precision, torch.backends.fp32_precision)\n"
        "def tell():\n"
        "    before = settings(); found = tried(); print(found.passed, settings() == before)\n"
        "torch.set_float32_matmul_precision('medium'); tell()\n"
        # From here on `torch.get_float32_matmul_precision` raises.
        "cuda.fp32_precision = 'ieee'; cpu.fp32_precision = 'tf32'; tell()\n"
        "torch.set_default_dtype(torch.float64); torch.set_default_device('meta'); tell()\n"
        "torch.set_default_device(None); torch.use_deterministic_algorithms(True)\n"
        "with torch.inference_mode(), torch.autocast('cpu'): tell()\n"
        "with torch.no_grad(): tell()\n"
    )
    assert said == "True True\n" * 5


@pytest.mark.real_wheel
def test_precision_that_is_set_for_all_later_still_reaches_products(real_lab: Lab) -> None:
    """A setting that was read and written back would no longer follow the one above it."""
    said = real_lab.run(
        "import torch\n"
        "tried(); torch.backends.fp32_precision = 'tf32'\n"
        "print(torch.backends.cuda.matmul.fp32_precision)\n"
    )
    assert said == "tf32\n"


# --------------------------------------------------------------------- judging what a GPU has told

HERE = Environment(
    interpreter=None,  # type: ignore[arg-type]  # no judgement asks for it
    kind="venv",
    prefix=Path("/lab"),
    site_packages=Path("/lab/site-packages"),
    has_pip=True,
    writable=True,
    externally_managed=None,
    free_bytes=0,
)
CODE = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
NO_IMAGE = "AcceleratorError: CUDA error: no kernel image is available"
RIGHT = (
    Step(name="convolution", seconds=0.2, difference=1e-6, bound=1e-4),
    Step(name="backward", seconds=0.01, difference=1e-6, bound=1e-4),
    Step(name="bfloat16", seconds=0.01, difference=0.06, bound=0.5),
    Step(
        name="memory",
        seconds=0.01,
        difference=0.0,
        bound=0.0,
        block_bytes=64 << 20,
        free_bytes=22 << 30,
        total_bytes=24 << 30,
    ),
)
GPU = Findings(
    python="3.12.3",
    installed=(("torch", ("2.13.0+cu130",)),),
    import_seconds=2.5,
    torch_version="2.13.0+cu130",
    cuda="13.0",
    device="cuda:0",
    devices=(("NVIDIA GeForce RTX 4090", (8, 9)),),
    architectures=CODE,
    steps=(Step(name="product", seconds=0.4, difference=1e-5, bound=4e-4), *RIGHT),
)
CU130 = asked("cu130", torch="2.13.0+cu130")


def test_gpu_that_works() -> None:
    found = judge(GPU, HERE, CU130)
    assert found.passed
    assert [check.message for check in found.checks[-7:-4]] == [
        "PyTorch sees NVIDIA GeForce RTX 4090",
        "the build has code for compute capability 8.9 (NVIDIA GeForce RTX 4090)",
        (
            "a matrix product on cuda:0 agrees with the CPU's in float64 "
            "(off by 1.0e-05, 4.0e-04 allowed) in 400 ms"
        ),
    ]


def test_gpu_without_code_in_the_build_is_told_apart_from_other_failures() -> None:
    pascal = dataclasses.replace(
        GPU,
        devices=(("NVIDIA GeForce GTX 1080 Ti", (6, 1)),),
        steps=(Step(name="product", failure=NO_IMAGE),),
    )
    found = judge(pascal, HERE, CU130)
    code, product = found.failures
    assert code.message == (
        "NVIDIA GeForce GTX 1080 Ti has compute capability 6.1, and this build only has code for "
        "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
    )
    assert product.message == f"a matrix product on cuda:0 failed: {NO_IMAGE}"
    assert found.hint == "`%torchenv` recommends a build that has code for this GPU"


@pytest.mark.parametrize(
    ("step", "fields", "hint"),
    [
        (
            Step(name="memory", failure="OutOfMemoryError: CUDA out of memory."),
            {},
            "free memory: `nvidia-smi` shows",
        ),
        (
            Step(name="memory", failure="OutOfMemoryError: HIP out of memory."),
            {"hip": "6.2"},
            "free memory: `rocm-smi --showpids` shows",
        ),
        (
            Step(
                name="product",
                failure="CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            ),
            {},
            "end the other process on the device: `nvidia-smi` shows it",
        ),
        (
            Step(name="convolution", failure="RuntimeError: cuDNN error"),
            {},
            "`%torchenv doctor` tells",
        ),
        (
            Step(name="convolution", overdue=True),
            {},
            "see in `nvidia-smi` what keeps the device busy",
        ),
        (
            Step(name="convolution", overdue=True),
            {"hip": "6.2"},
            "restart the kernel and run `%torchenv verify` once more",
        ),
        (
            Step(name="backward", overdue=True),
            {"device": "xpu:0"},
            "see in `xpu-smi ps` what keeps",
        ),
        (Step(name="bfloat16", difference=9.0, bound=1.0), {}, "do not trust this build's results"),
        (Step(name="memory", difference=9.0, bound=0.0), {}, "restart the machine"),
    ],
    ids=lambda value: value.name if isinstance(value, Step) else "",
)
def test_each_failure_of_a_device_has_its_cure(
    step: Step, fields: dict[str, Any], hint: str
) -> None:
    steps = tuple(step if each.name == step.name else each for each in GPU.steps)
    found = judge(dataclasses.replace(GPU, steps=steps, **fields), HERE, None)
    assert only_failure(found).name == step.name
    assert found.hint.startswith(hint)


def test_memory_of_the_device_is_told() -> None:
    assert "\nDevice       cuda:0, NVIDIA GeForce RTX 4090, 22.0 of 24.0 GiB free\n" in str(
        judge(GPU, HERE, CU130)
    )


def test_gpu_that_is_older_than_bfloat16_is_told_and_works() -> None:
    why = "it begins with compute capability 8.0, and this GPU has 7.5"
    steps = (*GPU.steps[:3], Step(name="bfloat16", absent=why), GPU.steps[4])
    found = judge(dataclasses.replace(GPU, steps=steps), HERE, CU130)
    assert found.passed
    assert f"\nNote         a bfloat16 product was not tried: {why}\n" in str(found)


def test_product_has_the_last_word_about_the_first_gpu() -> None:
    orin = dataclasses.replace(GPU, devices=(("Orin", (7, 0)),))
    assert judge(orin, HERE, CU130).passed


def test_second_gpu_without_code_is_a_note() -> None:
    two = dataclasses.replace(GPU, devices=(*GPU.devices, ("NVIDIA GeForce GTX 1080", (6, 1))))
    found = judge(two, HERE, CU130)
    assert found.passed
    assert found.notes[0].startswith("NVIDIA GeForce GTX 1080 has compute capability 6.1, and this")


def test_rocm_is_compared_by_the_two_numbers_that_hip_shares() -> None:
    amd = dataclasses.replace(
        GPU,
        installed=(("torch", ("2.7.1+rocm6.2.4",)),),
        torch_version="2.7.1+rocm6.2.4",
        cuda=None,
        hip="6.2.41134-65d174c3e",
        devices=(("AMD Radeon RX 7900 XTX", None),),
        architectures=("gfx1100",),
    )
    found = judge(amd, HERE, asked("rocm6.2.4", torch="2.7.1+rocm6.2.4"))
    assert found.passed
    assert found.backend == Backend.parse("rocm6.2.4")
    assert not judge(amd, HERE, asked("rocm6.3", torch="2.7.1+rocm6.2.4")).passed


def test_backend_that_the_version_names_and_the_build_denies_is_not_believed() -> None:
    lying = dataclasses.replace(GPU, cuda=None, device="cpu", devices=(("CPU", None),))
    found = judge(lying, HERE, CU130)
    assert found.backend == Backend("cpu")
    assert not outcome(found)["backend"]


def test_device_that_fails_as_it_is_looked_at_fails_even_where_nobody_asked() -> None:
    broken = dataclasses.replace(
        GPU, device="cpu", devices=(("CPU", None),), device_failure="RuntimeError: No CUDA GPUs"
    )
    assert only_failure(judge(broken, HERE, None)).message == (
        "PyTorch finds no CUDA device here: RuntimeError: No CUDA GPUs"
    )


def test_extension_from_pypi_without_a_label_is_judged_by_its_requirement() -> None:
    plain = ExtensionFindings(
        name="torchvision",
        version="0.28.0",
        requires=("numpy", "torch==2.13.0", "scipy; extra == 'scipy'", "!"),
        failure=None,
    )
    assert judge(dataclasses.replace(GPU, extensions=(plain,)), HERE, CU130).passed


@pytest.mark.parametrize(
    ("architectures", "capability", "has"),
    [
        (["sm_60", "sm_75"], (6, 1), True),
        (["sm_75", "sm_80"], (6, 1), False),
        (["sm_75", "sm_80"], (8, 9), True),
        (["sm_86"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_120"], (12, 1), True),
        (["sm_90"], (12, 0), False),
        (["sm_90", "compute_90"], (12, 0), True),
        (["compute_120"], (9, 0), False),
        (["gfx1100"], (9, 0), False),
        ([], (9, 0), False),
    ],
)
def test_code_runs_on_its_generation_and_ptx_on_every_later_one(
    architectures: list[str], capability: tuple[int, int], *, has: bool
) -> None:
    assert has_code_for(architectures, capability) is has


# --------------------------------------------------------------------------- what an issue is told


def test_facts_for_an_issue_are_told_in_the_text(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(Path.home() / "lib"))
    lab.add("cpu")
    text = str(lab.verify())
    for line in (
        r"System       \S.*",
        r"Processor    \S.*",
        r"Accelerator  \S.*",
        r"Packages     torch 2\.13\.0\+cpu, torchvision 0\.28\.0\+cpu, torchaudio 2\.11\.0\+cpu",
        r"Variables    .*PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.*",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), text
    assert f"LD_LIBRARY_PATH=~{os.sep}lib" in text


def test_variables_that_are_told_are_those_that_matter_and_bounded() -> None:
    environ = {
        "HF_TOKEN": "hf_s3cret",
        "CUDA_VISIBLE_DEVICES": "",
        "LD_LIBRARY_PATH": "/opt/lib:" * 100,
        "OMP_NUM_THREADS": "4\n\x1b[31m",
    }
    told = told_variables(environ)
    assert "s3cret" not in told
    assert "\n" not in told
    assert "\x1b" not in told
    assert told.startswith("CUDA_VISIBLE_DEVICES=, OMP_NUM_THREADS=4 [31m, LD_LIBRARY_PATH=/opt/")
    assert len(told) < 500


@POSIX
def test_home_directory_is_told_as_a_tilde_wherever_a_path_begins_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = "/home/ada/lib:/home/adam/lib:/srv/home/ada/x '/home/ada' /home/ada"
    assert shortened(text) == "~/lib:/home/adam/lib:/srv/home/ada/x '~' ~"


def test_failure_tells_no_home_directory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(lab.environment.prefix))
    lab.add("cpu", "torch")
    lab.add_to_torch("import os; raise ImportError(os.environ['HOME'] + '/lib/libcudnn.so.9')")
    assert only_failure(lab.verify()).message.endswith("ImportError: ~/lib/libcudnn.so.9")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME=x\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\n', "Ubuntu 24.04.1 LTS"),
        ("PRETTY_NAME='Alpine Linux v3.20'", "Alpine Linux v3.20"),
        ("PRETTY_NAME=Void\n", "Void"),
        ('PRETTY_NAME="evil\x1b[31m"\n', ""),
        ("ID=debian\n", ""),
    ],
)
def test_name_of_the_system_is_its_own(text: str, name: str) -> None:
    assert os_release_name(text) == name


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "ended with status 1 and no answer"),
        (-64, "was ended by SIGRTMAX" if hasattr(signal, "SIGRTMAX") else "was ended by signal 64"),
        (-99, "was ended by signal 99"),
        (3221225477, "was ended by ACCESS_VIOLATION (a memory error in compiled code)"),
        (-1073741515, "was ended by DLL_NOT_FOUND (a library is missing)"),
    ],
)
def test_end_of_a_process_in_words(status: int, words: str) -> None:
    assert describe_end(status) == words
