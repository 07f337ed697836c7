"""The doctor: each thing that can be wrong, found in real environments and in made examinations."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import packaging
import pytest
import uv
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_torch import add_to_torch, change_module
from tests.standin.wheels import make_family, make_wheel
from tests.targets import Target
from torchenv_magic.accelerators.records import (
    Accelerator,
    ComputeCapability,
    Finding,
    Host,
    Platform,
)
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.cli import main
from torchenv_magic.doctor import (
    Diagnosis,
    Problem,
    diagnose,
    diagnosis_to_json,
    examine,
    origin_probe,
)
from torchenv_magic.doctor.case import listed, stock_version
from torchenv_magic.doctor.examination import (
    Examination,
    Origin,
    examine_files,
    library_variable,
    parse_origin,
    parse_record,
    parse_version_file,
)
from torchenv_magic.doctor.problem import install_cure, quoted, uv_cure
from torchenv_magic.environment import Environment, InstalledPackage, Interpreter, read_environment
from torchenv_magic.expectation import Expectation, write_expectation
from torchenv_magic.notebook.rendering import diagnosis_html
from torchenv_magic.selection import Request, select
from torchenv_magic.verification.findings import Findings, Step
from torchenv_magic.verification.trial import ProbeRun

pytest_plugins = ["tests.target_fixtures"]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")
TAG = f"cp3{sys.version_info[1]}"
ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------ hosts


def gpu(
    capability: str | None = "8.6",
    driver: str | None = "580.95.05",
    name: str = "NVIDIA RTX A4000",
    source: str = "NVML",
) -> Accelerator:
    return Accelerator(
        vendor="nvidia",
        name=name,
        compute_capability=ComputeCapability.parse(capability) if capability else None,
        driver_version=driver,
        source=source,
    )


def amd(gfx: str = "gfx1100") -> Accelerator:
    return Accelerator(vendor="amd", name="AMD Radeon RX 7900 XTX", gfx=gfx, source="KFD")


def host(*accelerators: Accelerator, findings: tuple[Finding, ...] = ()) -> Host:
    platform = Platform(system="linux", machine="x86_64", libc="glibc", libc_version="2.36")
    return Host(platform=platform, accelerators=accelerators, findings=findings)


def judged(examination: Examination, machine: Host) -> Diagnosis:
    catalog = load_catalog()
    interpreter = examination.environment.interpreter
    selection = select(machine, Request(), interpreter=interpreter, catalog=catalog, environ={})
    return diagnose(examination, machine, selection, catalog)


def names(diagnosis: Diagnosis) -> list[str]:
    return [problem.name for problem in diagnosis.problems]


def problem(diagnosis: Diagnosis, name: str) -> Problem:
    (found,) = [each for each in diagnosis.problems if each.name == name]
    return found


# ------------------------------------------------------------------------------ real environments


class Ward:
    """A real environment without pip, whose packages a test may put in, break and take out."""

    def __init__(self, directory: Path) -> None:
        command = [uv.find_uv_bin(), "venv", "--quiet", "--offline", "--python", sys.executable]
        subprocess.run([*command, str(directory / "venv")], check=True)
        self.prefix = directory / "venv"
        self.site = read_environment(self.prefix).site_packages
        self.wheels = directory / "wheels"
        self.environ: dict[str, str] = {}

    def add(self, backend: str | None, *members: str, torch: str = "2.13.0") -> None:
        """Unpack made wheels of one backend, with what torch requires."""
        wheels = make_family(
            self.wheels, backend=backend, torch=torch, python_tags=[TAG], pad_bytes=0
        )
        for wheel in wheels:
            if wheel.name.partition("-")[0] in (*(members or ("torch",)), "triton", "triton_rocm"):
                self.unpack(wheel)
        for name in ("filelock", "typing-extensions"):
            self.package(name, "4.99")

    def package(
        self,
        name: str,
        version: str,
        *requires: str,
        files: dict[str, str | bytes] | None = None,
    ) -> None:
        # A folder for each: a wheel that is there already would be kept, whatever is in it.
        self.wheels.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.wheels))
        self.unpack(make_wheel(folder, name, version, requires=requires, files=files))

    def unpack(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.site)

    def info(self, name: str = "torch") -> Path:
        (found,) = self.site.glob(f"{name}-*.dist-info")
        return found

    def change(self, module: str, old: str, new: str) -> None:
        change_module(self.site, module, old, new)

    def add_to_torch(self, text: str) -> None:
        add_to_torch(self.site, text)

    def require(self, *texts: str) -> None:
        """Let torch require more."""
        lines = "".join(f"Requires-Dist: {text}\n" for text in texts)
        name = f"{self.info().name}/METADATA"
        self.change(name, "Summary: A made wheel for tests\n", f"Summary: made\n{lines}")

    def examine(self, *, root: Path = Path("/"), seconds: float = 60) -> Examination:
        environ = {**os.environ, **self.environ}
        return examine(
            read_environment(self.prefix), environ=environ, root=root, try_seconds=seconds
        )

    def doctor(self, *accelerators: Accelerator) -> Diagnosis:
        return judged(self.examine(), host(*accelerators))

    def run(self, script: str) -> str:
        """Run a script in the environment, with this package on its path."""
        path = os.pathsep.join([str(ROOT), str(Path(packaging.__file__).parent.parent)])
        run = subprocess.run(
            [str(read_environment(self.prefix).interpreter.executable), "-c", script],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def empty(self) -> None:
        for folder in (self.site, self.prefix / "conda-meta", self.prefix / ".torchenv"):
            for entry in folder.iterdir() if folder.exists() else ():
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        shutil.rmtree(self.prefix / "conda-meta", ignore_errors=True)
        self.environ.clear()


@pytest.fixture(scope="module")
def only_ward(tmp_path_factory: pytest.TempPathFactory) -> Ward:
    return Ward(tmp_path_factory.mktemp("ward"))


@pytest.fixture
def ward(only_ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    for name in (
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "UV_TORCH_BACKEND",
    ):
        monkeypatch.delenv(name, raising=False)
    # As where an environment was activated.
    folders = [str(Path(uv.find_uv_bin()).parent), os.environ.get("PATH", "")]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield only_ward
    only_ward.empty()


@pytest.mark.parametrize("backend", ["cpu", None])
def test_healthy_environment_has_nothing_and_says_what_was_looked_at(
    ward: Ward, backend: str | None
) -> None:
    ward.add("cpu", "torch", "torchvision", "torchaudio")
    if backend is None:  # as PyPI's wheel for Windows: without a label
        (ward.site / "torch-2.13.0+cpu.dist-info").rename(ward.site / "torch-2.13.0.dist-info")
        ward.change("torch-2.13.0.dist-info/RECORD", "torch-2.13.0+cpu", "torch-2.13.0")
    found = ward.doctor()
    assert found.problems == ()
    assert found.unchecked == ()
    assert found.title == "Nothing is wrong with this PyTorch"
    looked = "; ".join(found.checked)
    for words in (
        "which `torch` is found first",
        "files of torch, torchvision and torchaudio",
        "the 2 packages that torch requires",
        "torchvision and torchaudio beside torch",
        "a self-test on cpu, in its own process",
    ):
        assert words in looked
    assert "Looked at" in str(found)


def test_torch_that_is_not_installed(ward: Ward) -> None:
    found = ward.doctor()
    assert names(found) == ["torch-missing"]
    assert found.problems[0].severity == "error"
    assert found.problems[0].found.startswith("PyTorch is not installed in `")
    assert found.problems[0].cure == "`%torchenv install`"


# ------------------------------------------------------------------------- what belongs together


def test_companion_of_another_torch_is_an_error_with_the_install_that_cures_it(
    ward: Ward,
) -> None:
    ward.add("cpu")
    ward.add("cpu", "torchvision", torch="2.12.0")
    found = problem(ward.doctor(), "companion-mismatch")
    assert found.found == ("torchvision 0.27.0+cpu needs torch==2.12.0, and torch is 2.13.0+cpu")
    assert found.cure == "`%torchenv install cpu torch==2.13.0 torchvision`"


def test_companion_of_another_build_is_an_error(ward: Ward) -> None:
    ward.add("cu126")
    ward.add("cpu", "torchvision")
    found = problem(ward.doctor(gpu()), "companion-mismatch")
    assert found.severity == "error"
    assert found.found.startswith(
        "torchvision 0.28.0+cpu is built for CPU only, and torch 2.13.0+cu126 for CUDA 12.6"
    )


def test_companion_that_fails_for_another_reason_is_told_in_its_own_words(ward: Ward) -> None:
    ward.add("cpu", "torch", "torchvision")
    ward.change(
        "torchvision/__init__.py",
        "import torch\n",
        "raise RuntimeError('operator torchvision::nms does not exist')\n",
    )
    assert problem(ward.doctor(), "companion-mismatch").found == (
        "torchvision 0.28.0+cpu can't be imported: "
        "RuntimeError: operator torchvision::nms does not exist"
    )


def test_cure_of_a_companion_is_a_plan_that_changes_the_companion(target: Target) -> None:
    target.fill("cpu", "torch", "torchvision")
    for member, old, new in (("torchvision", "0.28.0", "0.27.0"),):
        target.uv("--no-deps", "--torch-backend=cpu", f"{member}=={new}")
        assert target.versions()[member].startswith(new), old
    found = judged(examine(target.read()), host())
    words = problem(found, "companion-mismatch").cure.strip("`").split()
    assert words[:3] == ["%torchenv", "install", "cpu"]
    changes = {change.name: change.after for change in target.plan(words[2], *words[3:]).changes}
    assert changes == {"torchvision": "0.28.0+cpu"}


def test_requirement_of_another_package_that_is_not_met(ward: Ward) -> None:
    ward.add("cpu")
    ward.package("lightning", "2.0", "torch<2.1,>=1.11", "torchvision", 'torch>9; os_name ~= "x"')
    found = ward.doctor()
    assert names(found) == ["requirement-of-another"] * 2
    assert found.problems[0].found == (
        "lightning 2.0 requires torch<2.1,>=1.11, and torch is 2.13.0+cpu"
    )
    assert found.problems[0].cure == '`%torchenv install "torch<2.1,>=1.11"`'
    assert found.problems[1].found.endswith("and torchvision is not installed")


# ------------------------------------------------------------------------------------------- conda


def book(ward: Ward, *files: str) -> None:
    (ward.prefix / "conda-meta").mkdir()
    for name in files:
        (ward.prefix / "conda-meta" / name).write_text("{}", encoding="utf-8")


def test_wheel_over_condas_torch(ward: Ward) -> None:
    ward.add("cpu")
    book(ward, "pytorch-2.3.1-cpu_generic_py311_0.json", "pytorch-cuda-12.4-0.json", "history")
    found = ward.doctor()
    assert names(found) == ["conda-mixed"]
    assert "conda has pytorch 2.3.1 on its books" in found.problems[0].found
    assert "`conda create" in found.problems[0].cure


def test_wheel_of_torchvision_beside_condas_torch(ward: Ward) -> None:
    ward.add("cpu", "torch", "torchvision")
    (ward.info() / "INSTALLER").write_text("conda\n", encoding="utf-8")
    book(ward, "pytorch-2.13.0-cpu_0.json")
    found = problem(ward.doctor(), "conda-mixed")
    assert found.found.endswith("comes from conda, and torchvision 0.28.0+cpu from a wheel")


def test_conda_alone_is_healthy(ward: Ward) -> None:
    ward.add("cpu")
    (ward.info() / "INSTALLER").write_text("conda\n", encoding="utf-8")
    book(ward, "pytorch-2.13.0-cpu_0.json", "libtorch-2.13.0-cpu_0.json")
    assert ward.doctor().problems == ()


def test_conda_of_the_pytorch_channel_leaves_an_egg_info_and_is_healthy(ward: Ward) -> None:
    ward.add("cpu", "torch", "torchvision")
    for name, version in (("torch", "2.13.0"), ("torchvision", "0.28.0")):
        info = ward.info(name)
        egg = info.with_name(f"{name}-{version}-{TAG.replace('cp3', 'py3.')}.egg-info")
        info.rename(egg)
        (egg / "METADATA").rename(egg / "PKG-INFO")
        (egg / "RECORD").unlink()
    book(ward, "pytorch-2.13.0-py_cpu_0.json", "torchvision-0.28.0-py_cpu.json")
    assert ward.doctor().problems == ()


def test_conda_and_wheel_both_registered(ward: Ward) -> None:
    ward.add("cpu")
    other = ward.site / "torch-2.3.1.dist-info"
    shutil.copytree(ward.info(), other)
    (other / "INSTALLER").write_text("conda\n", encoding="utf-8")
    found = problem(ward.doctor(), "conda-mixed")
    assert found.severity == "error"
    assert "torch is installed 2 times: 2.13.0+cpu and 2.3.1 by conda" in found.found


def test_frozen_environment_is_a_note_where_a_cure_would_change_it(ward: Ward) -> None:
    book(ward, "frozen")
    assert any("is frozen" in note for note in ward.doctor().notes)
    ward.add("cpu")
    assert not any("is frozen" in note for note in ward.doctor().notes)


# --------------------------------------------------------------------------------------- the files


def test_files_that_are_missing(ward: Ward) -> None:
    ward.add("cpu")
    (ward.site / "torch/backends/mps.py").unlink()
    (ward.site / "torchgen/__init__.py").unlink()
    shutil.rmtree(ward.site / "torch/__pycache__", ignore_errors=True)
    found = problem(ward.doctor(), "files-missing")
    assert found.severity == "error"
    assert re.match(r"2 files of torch missing, such as `torch/backends/mps.py`", found.found)
    assert re.fullmatch(
        r"`!uv pip install --reinstall-package=torch --torch-backend=cpu --python \S+ "
        r"torch==2\.13\.0`",
        found.cure,
    )


def test_compiled_files_may_be_tidied_up(ward: Ward) -> None:
    ward.add("cpu")
    with (ward.info() / "RECORD").open("a", encoding="utf-8") as record:
        record.write("torch/__pycache__/gone.cpython-311.pyc,,\n")
    assert ward.doctor().problems == ()


def test_missing_file_that_nothing_needs_is_a_warning(ward: Ward) -> None:
    ward.add("cpu")
    (ward.site / "torchgen/__init__.py").unlink()
    found = ward.doctor()
    assert [(each.name, each.severity) for each in found.problems] == [("files-missing", "warning")]


def test_library_that_was_cut_off(ward: Ward) -> None:
    ward.add("cu126")
    ward.require("nvidia-cudnn-cu12==9.10.2.21")
    library: dict[str, str | bytes] = {"nvidia/cudnn/lib/libcudnn.so.9": b"x" * 100}
    ward.package("nvidia-cudnn-cu12", "9.10.2.21", files=library)
    (ward.site / "nvidia/cudnn/lib/libcudnn.so.9").write_bytes(b"x" * 60)
    found = problem(ward.doctor(gpu()), "files-missing")
    assert found.found == "`nvidia/cudnn/lib/libcudnn.so.9` cut off"
    assert "--reinstall-package=nvidia-cudnn-cu12" in found.cure
    assert found.cure.endswith("nvidia-cudnn-cu12==9.10.2.21`")


def test_two_of_torch_and_one_in_part(ward: Ward) -> None:
    ward.add("cpu", "torch", "torchvision")
    shutil.copytree(ward.info(), ward.site / "torch-2.12.0+cpu.dist-info")
    (ward.info("torchvision") / "RECORD").unlink()
    found = ward.doctor()
    assert [each.name for each in found.errors] == ["installed-twice", "installed-in-part"]
    assert found.errors[0].cure == "`%torchenv install`" or "torch==" in found.errors[0].cure


def test_what_pip_left_behind(ward: Ward) -> None:
    ward.add("cpu")
    for name in ("~orch", "~-rch", "~orch-2.1.0.dist-info", "~umpy", "~"):
        (ward.site / name).mkdir()
    found = ward.doctor()
    assert names(found) == ["leftovers"]
    assert found.problems[0].found.startswith("`~-rch`, `~orch` and `~orch-2.1.0.dist-info` in ")


def test_editable_install_is_not_accused_of_missing_files(ward: Ward, tmp_path: Path) -> None:
    ward.add("cpu")
    shutil.move(ward.site / "torch", tmp_path / "torch")
    info = ward.info().name
    ward.change(f"{info}/RECORD", "torch/__init__.py,", "elsewhere/__init__.py,")
    (ward.site / "editable.pth").write_text(f"{tmp_path}\n", encoding="utf-8")
    found = ward.doctor()
    assert found.problems == ()
    assert "the files of torch: its metadata lists none of its module" in found.unchecked
    assert any(f"takes `{tmp_path}" in note for note in found.notes)


# ------------------------------------------------------------------------------ NVIDIA's libraries

CUDNN = "nvidia/cudnn/lib/libcudnn.so.9"


def with_cudnn(ward: Ward, suffix: str, version: str, content: bytes, *requires: str) -> None:
    ward.package(f"nvidia-cudnn-{suffix}", version, *requires, files={CUDNN: content})


def test_library_that_torch_requires_and_that_is_missing(ward: Ward) -> None:
    ward.add("cu126")
    ward.require('nvidia-cudnn-cu12==9.10.2.21; python_version >= "3"', 'x>1; extra == "y"')
    ward.add_to_torch("raise ImportError('libcudnn.so.9: cannot open shared object file')")
    found = ward.doctor(gpu())
    assert names(found) == ["requirement-missing", "import-fails"]
    assert {each.cure for each in found.problems} == {"`%torchenv install cu126 torch==2.13.0`"}
    assert found.problems[1].meaning == "the library `libcudnn.so.9` is missing"


def test_what_torch_requires_may_lie_in_the_python_below(ward: Ward, tmp_path: Path) -> None:
    """As under `--system-site-packages`, and in Debian's folder: pip takes what is there."""
    ward.add("cpu")
    shutil.move(ward.info("filelock"), tmp_path)
    (ward.site / "below.pth").write_text(f"{tmp_path}\n", encoding="utf-8")
    assert ward.doctor().problems == ()
    ward.require("filelock<4")
    found = problem(ward.doctor(), "requirement-version")
    assert "filelock is 4.99 where it needs <4" in found.found


def test_library_of_another_version_than_torch_was_built_with(ward: Ward) -> None:
    ward.add("cu126")
    ward.require("nvidia-cudnn-cu12==9.10.2.21")
    with_cudnn(ward, "cu12", "9.1.0.70", b"old")
    found = problem(ward.doctor(gpu()), "requirement-version")
    assert found.severity == "warning"
    assert "nvidia-cudnn-cu12 is 9.1.0.70 where it needs ==9.10.2.21" in found.found


def test_extras_of_what_torch_requires_are_looked_at(ward: Ward) -> None:
    ward.add("cu130")
    ward.require("cuda-toolkit[cublas]==13.0.2")
    ward.package(
        "cuda-toolkit",
        "13.0.2",
        'nvidia-cublas==13.1.0.3; extra == "cublas"',
        'nvidia-cufft==12.0.0.61; extra == "cufft"',
    )
    found = problem(ward.doctor(gpu()), "requirement-missing")
    assert "nvidia-cublas==13.1.0.3" in found.found
    assert "cufft" not in found.found


def test_libraries_of_an_earlier_build_that_nothing_needs(ward: Ward) -> None:
    ward.add("cu130")
    ward.require("nvidia-nccl-cu13==2.27.7")
    ward.package("nvidia-nccl-cu13", "2.27.7")
    ward.package("nvidia-cublas-cu12", "12.6.4.1")
    ward.package("nvidia-cusolver-cu12", "11.7.1.2", "nvidia-cublas-cu12")
    ward.package("nvidia-cufft-cu12", "11.3.0.4")
    ward.package("cupy-cuda12x", "13.0", "nvidia-cufft-cu12")
    found = problem(ward.doctor(gpu()), "library-stale")
    assert found.found.startswith(
        "nvidia-cublas-cu12 and nvidia-cusolver-cu12 belong to another build"
    )
    assert found.cure.startswith("`!uv pip uninstall --python ")
    assert found.cure.endswith("nvidia-cublas-cu12 nvidia-cusolver-cu12`")


def test_libraries_that_another_package_takes_by_an_extra_are_its_own(ward: Ward) -> None:
    """Nothing records which extra of JAX, TensorFlow or ONNX Runtime was asked for."""
    ward.add("cu130")
    ward.package("nvidia-cublas-cu12", "12.6.4.1")
    ward.package("nvidia-cudnn-cu12", "9.10", "nvidia-cublas-cu12")
    ward.package("nvidia-nccl-cu12", "2.27")
    ward.package("jax-cuda12-plugin", "0.8", 'nvidia-cudnn-cu12<10,>=9.8; extra == "with-cuda"')
    found = problem(ward.doctor(gpu()), "library-stale")
    assert found.found.startswith("nvidia-nccl-cu12 belong")
    assert found.cure.endswith(" nvidia-nccl-cu12`")


@pytest.mark.parametrize("theirs_last", [True, False])
def test_libraries_of_two_cudas_at_one_place(ward: Ward, *, theirs_last: bool) -> None:
    ward.add("cu130")
    ward.require("nvidia-cudnn-cu13==9.13")
    order = [("cu13", "9.13", b"for 13"), ("cu12", "9.10", b"for CUDA 12")]
    for suffix, version, content in order if theirs_last else order[::-1]:
        with_cudnn(ward, suffix, version, content)
    found = ward.doctor(gpu())
    if theirs_last:
        lost = problem(found, "library-overwritten")
        assert lost.found.endswith("nvidia-cudnn-cu12 over nvidia-cudnn-cu13")
        assert "--reinstall-package=nvidia-cudnn-cu13" in lost.cure
    else:
        assert "library-overwritten" not in names(found)
        assert any("would take them along" in note for note in found.notes)
    # To uninstall it would take the other's file along.
    assert "library-stale" not in names(found)


def test_library_of_two_packages_with_one_size_is_nobodys(ward: Ward) -> None:
    """Which of them lies there can't be told by the size, and nobody is accused."""
    ward.add("cu130")
    ward.require("nvidia-cudnn-cu13==9.13")
    with_cudnn(ward, "cu13", "9.13", b"13")
    with_cudnn(ward, "cu12", "9.10", b"12")
    assert "library-overwritten" not in names(ward.doctor(gpu()))


# ---------------------------------------------------------------------------- folders of libraries


def some_library() -> Path:
    """Return a real shared library that can be loaded a second time."""
    text = Path("/proc/self/maps").read_text(encoding="utf-8")
    match = re.search(r"(/\S*/lib(?:m|z|ffi|expat)[-.]\S*)$", text, re.MULTILINE)
    if match is None:
        pytest.skip("no library to copy is loaded here")
    return Path(match[1])


@LINUX
def test_library_from_the_library_path_that_is_really_loaded(
    ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = some_library().read_bytes()
    ward.add("cu126")
    ward.require("nvidia-cudnn-cu12==9.10.2.21")
    with_cudnn(ward, "cu12", "9.10.2.21", content)
    folder = tmp_path / "cuda/lib64"
    folder.mkdir(parents=True)
    (folder / "libcudnn.so.9").write_bytes(content)
    ward.add_to_torch(
        "import ctypes, os\n"
        "try: ctypes.CDLL('libcudnn.so.9')\n"
        f"except OSError: ctypes.CDLL({str(ward.site / CUDNN)!r})"
    )
    assert names(ward.doctor(gpu())) == ["gpu-not-usable"]  # its own, without the variable
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    found = problem(ward.doctor(gpu()), "library-path")
    assert found.severity == "warning"
    assert found.found == (
        f"`libcudnn.so.9` is loaded from `{folder}`, which `LD_LIBRARY_PATH` names"
    )
    assert found.cure == f"take `{folder}` out of `LD_LIBRARY_PATH`, and restart the kernel"


def test_library_from_the_library_path_where_the_import_fails_is_an_error(
    ward: Ward, tmp_path: Path
) -> None:
    ward.add("cu126")
    with_cudnn(ward, "cu12", "9.10.2.21", b"own")
    ward.add_to_torch("raise ImportError('undefined symbol: cudnnGetVersion, version libcudnn.9')")
    (tmp_path / "libcudnn.so.9").write_bytes(b"other")
    ward.environ[library_variable()] = os.pathsep.join(["", str(tmp_path), "/nowhere"])
    found = ward.doctor(gpu())
    assert problem(found, "library-path").severity == "error"
    assert problem(found, "import-fails").cure.startswith(f"unset `{library_variable()}`")


def test_library_path_without_a_library_of_the_builds_is_fine(ward: Ward, tmp_path: Path) -> None:
    ward.add("cu126")
    with_cudnn(ward, "cu12", "9.10.2.21", b"own")
    (tmp_path / "libcuda.so.1").write_bytes(b"the driver's")
    (tmp_path / "libcudart.so.11.0").write_bytes(b"of a name that no build here brings")
    # The build's own folder is no other one.
    folders = [str(tmp_path), str((ward.site / CUDNN).parent)]
    ward.environ[library_variable()] = os.pathsep.join(folders)
    found = ward.doctor(gpu())
    assert "library-path" not in names(found)
    assert not any("loads its own" in note for note in found.notes)
    assert "2 folders that are searched for libraries first" in found.checked


@LINUX
def test_library_path_that_the_build_does_not_fall_for_is_a_note(
    ward: Ward, tmp_path: Path
) -> None:
    ward.add("cu126")
    with_cudnn(ward, "cu12", "9.10.2.21", b"own")
    (tmp_path / "libcudnn.so.9").write_bytes(b"other")
    ward.environ["LD_LIBRARY_PATH"] = str(tmp_path)
    found = ward.doctor(gpu())
    assert "library-path" not in names(found)
    assert any("torch loads its own instead" in note for note in found.notes)


# ------------------------------------------------------------------------------------ which torch


def test_file_named_torch_in_the_folder_where_python_starts(ward: Ward) -> None:
    ward.add("cpu")
    here = Path.cwd() / "torch.py"
    here.write_text("answer = 42\n", encoding="utf-8")
    found = ward.doctor()
    assert names(found) == ["shadowed"]
    assert found.problems[0].severity == "error"
    assert f"takes `{here}`, found through the current directory before" in found.problems[0].found
    assert found.problems[0].cure == f"give `{here}` another name, and restart the kernel"


def test_torch_on_pythonpath(ward: Ward, tmp_path: Path) -> None:
    ward.add("cpu")
    (tmp_path / "other/torch").mkdir(parents=True)
    (tmp_path / "other/torch/__init__.py").touch()
    ward.environ["PYTHONPATH"] = str(tmp_path / "other")
    found = problem(ward.doctor(), "shadowed")
    assert found.cure == f"take `{tmp_path / 'other'}` out of `PYTHONPATH`, and restart the kernel"


def test_folder_of_data_named_torch_does_not_hide_the_package(ward: Ward) -> None:
    ward.add("cpu")
    (Path.cwd() / "torch").mkdir()
    assert ward.doctor().problems == ()


def put_aside(ward: Ward, folder: Path) -> Path:
    """Move torch's code out of the environment, into a folder that its Python looks into."""
    shutil.move(ward.site / "torch", folder / "torch")
    (ward.site / "aside.pth").write_text(f"{folder}\n", encoding="utf-8")
    return folder


def test_another_pytorch_on_the_path_is_a_warning_and_no_broken_one(
    ward: Ward, tmp_path: Path
) -> None:
    """A cluster's module and `pip install --user` do so on purpose."""
    ward.add("cpu")
    (tmp_path / "cluster").mkdir()
    shutil.copytree(ward.site / "torch", tmp_path / "cluster/torch")
    ward.environ["PYTHONPATH"] = str(tmp_path / "cluster")
    found = problem(ward.doctor(), "shadowed")
    assert found.severity == "warning"
    assert found.meaning == "torch 2.13.0+cpu is used, and only the other one was examined"


def test_pytorch_of_another_place_alone_is_a_warning(ward: Ward, tmp_path: Path) -> None:
    ward.add("cpu")
    shutil.rmtree(ward.info())
    folder = put_aside(ward, tmp_path)
    found = ward.doctor()
    assert [(each.name, each.severity) for each in found.problems] == [("torch-missing", "warning")]
    assert f"takes `{folder / 'torch' / '__init__.py'}`" in found.problems[0].found


@pytest.mark.parametrize("registered", [True, False])
def test_session_that_holds_the_torch_of_another_place_is_not_stale(
    ward: Ward, tmp_path: Path, *, registered: bool
) -> None:
    """Of the user site, of a cluster's module, of a checkout that was built after its metadata."""
    ward.add("cpu")
    put_aside(ward, tmp_path)
    if registered:
        info = ward.info()
        info.rename(info.with_name("torch-2.12.0.dist-info"))
    else:
        shutil.rmtree(ward.info())
    script = """
import json, torch
from torchenv_magic.doctor import diagnosis_to_json, examine_and_judge
print(json.dumps(diagnosis_to_json(examine_and_judge(in_session=True))))
"""
    told = json.loads(ward.run(script).splitlines()[-1])
    assert "session-stale" not in [each["name"] for each in told["problems"]]
    assert "the torch that this session holds" in told["checked"]


@POSIX
def test_session_whose_folder_was_deleted_is_examined(ward: Ward, tmp_path: Path) -> None:
    ward.add("cpu")
    (tmp_path / "gone").mkdir()
    script = f"""
import os
from torchenv_magic.doctor import examine_and_judge
os.chdir({str(tmp_path / "gone")!r})
os.rmdir(os.getcwd())
print(examine_and_judge(in_session=True).problems)
"""
    assert "shadowed" not in ward.run(script)


def test_torch_of_another_place_where_none_is_installed(ward: Ward) -> None:
    (Path.cwd() / "torch.py").touch()
    found = ward.doctor()
    assert names(found) == ["torch-missing"]
    assert f"`import torch` takes `{Path.cwd() / 'torch.py'}`" in found.problems[0].found


def test_folder_of_the_probe_itself_is_not_looked_into(ward: Ward, tmp_path: Path) -> None:
    """It is first on the path of a script, and not on that of the Python which is asked about."""
    ward.add("cpu")
    probe = shutil.copy(origin_probe.__file__, tmp_path)
    (tmp_path / "torch.py").touch()
    run = subprocess.run(
        [str(ward.examine().environment.interpreter.executable), probe],
        input='{"extra": []}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(run.stdout.splitlines()[-1])
    assert answer["origin"] == str(ward.site / "torch/__init__.py")


# ------------------------------------------------------------------------------------- the import


@pytest.mark.parametrize(
    ("words", "meaning", "cure"),
    [
        (
            "libcublas.so.12: cannot open shared object file: No such file or directory",
            "the library `libcublas.so.12` is missing",
            "--reinstall-package=torch",
        ),
        (
            "libcuda.so.1: cannot open shared object file: No such file or directory",
            "the library of NVIDIA's driver is missing",
            "`%torchenv install cpu`",
        ),
        (
            "/lib64/libc.so.6: version `GLIBC_2.28' not found (required by libtorch_cpu.so)",
            "this system is older than the build (`GLIBC_2.28` is missing)",
            '`%torchenv install "torch<2.7"`',
        ),
        (
            "/lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found (required by libtorch.so)",
            "the C++ library that is loaded is too old (`GLIBCXX_3.4.30` is missing)",
            "unset `LD_LIBRARY_PATH`",
        ),
        (
            "libtorch_cpu.so: undefined symbol: iJIT_NotifyEvent",
            "conda's newer MKL does not fit this torch",
            '`conda install "mkl<2024.1"`',
        ),
        (
            "libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version libnvJitLink",
            "a library of another version is loaded than torch was built with",
            "--reinstall-package=torch",
        ),
        (
            "[WinError 126] The specified module could not be found. Error loading c10.dll",
            "a library is missing, mostly Microsoft's Visual C++ runtime",
            "winget install",
        ),
        ("[WinError 1455] The paging file is too small", "memory has run out", "free memory"),
        (
            "No module named 'typing_extensions'",
            "`typing_extensions`, which torch needs, is missing",
            "`%torchenv install cpu torch==2.13.0`",
        ),
        ("No module named 'torch._C'", "its files are missing in part", "--reinstall-package"),
        ("\x1b[31mwhatever\n", "its files are damaged", "--reinstall-package"),
    ],
)
def test_import_that_fails_is_told_in_its_words_with_the_likely_reason(
    ward: Ward, words: str, meaning: str, cure: str
) -> None:
    ward.add("cpu")
    ward.add_to_torch(f"raise ImportError({words!r})")
    found = ward.doctor()
    assert names(found) == ["import-fails"]
    assert found.problems[0].found.startswith("torch 2.13.0+cpu can't be imported: ImportError: ")
    assert "\x1b" not in str(found)
    assert found.problems[0].meaning.startswith(meaning)
    assert cure in found.problems[0].cure


@POSIX
@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("SIGILL", "the build uses an instruction that this processor doesn't have"),
        ("SIGKILL", "the system ended it, as it does when memory runs out"),
        ("SIGSEGV", "the crash is in compiled code"),
    ],
)
def test_import_that_crashes_leaves_the_rest_of_the_examination(
    ward: Ward, name: str, meaning: str
) -> None:
    ward.add("cpu")
    ward.add("cpu", "torchvision", torch="2.12.0")
    ward.add_to_torch(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    found = ward.doctor()
    assert names(found) == ["companion-mismatch", "import-fails"]
    assert f"was ended by {name}" in found.problems[1].found
    assert found.problems[1].meaning == meaning


def test_import_that_hangs_is_bounded(ward: Ward) -> None:
    ward.add("cpu")
    ward.add_to_torch("import threading; threading.Event().wait(60)")
    found = judged(ward.examine(seconds=1.5), host())
    assert names(found) == ["import-fails"]
    assert "did not finish within 1.5 s at `import torch`" in found.problems[0].found


def test_session_that_holds_another_torch(ward: Ward) -> None:
    ward.add("cpu")
    script = """
import json, pathlib, torch
from torchenv_magic.doctor import diagnosis_to_json, examine_and_judge
told = [diagnosis_to_json(examine_and_judge(in_session=True))]
file = pathlib.Path(torch.__file__).with_name("version.py")
file.write_text(file.read_text().replace("2.13.0", "2.12.0"))
told.append(diagnosis_to_json(examine_and_judge(in_session=True)))
print(json.dumps(told))
"""
    before, after = json.loads(ward.run(script).splitlines()[-1])
    assert "session-stale" not in [each["name"] for each in before["problems"]]
    assert "the torch that this session holds" in before["checked"]
    first = after["problems"][0]
    assert (first["name"], first["severity"], first["cure"]) == (
        "session-stale",
        "error",
        "restart the kernel",
    )
    assert first["found"] == ("this session holds torch 2.13.0+cpu, and 2.12.0+cpu is installed")


# ------------------------------------------------------------------- hardware, on made examinations


def package(name: str, version: str, *requires: str, installer: str = "uv") -> InstalledPackage:
    return InstalledPackage(name=name, version=version, requires=requires, installer=installer)


def environment(*packages: InstalledPackage) -> Environment:
    return Environment(
        interpreter=Interpreter(
            executable=Path("/env/bin/python"), version="3.11.7", implementation="cpython"
        ),
        kind="venv",
        prefix=Path("/env"),
        site_packages=Path("/env/lib/python3.11/site-packages"),
        has_pip=True,
        writable=True,
        externally_managed=None,
        free_bytes=10**11,
        packages=packages,
    )


NO_KERNEL = Step(name="product", failure="no kernel")
WORKS = Findings(
    python="3.11.7",
    torch_version="2.13.0",
    device="cpu",
    devices=(("a CPU", None),),
    steps=(Step(name="product", difference=0.0, bound=1.0),),
)


def seen(
    version: str = "2.13.0+cu126",
    backend: str | None = "cu126",
    findings: Findings | None = None,
    **fields: Any,
) -> Examination:
    """Return an examination of torch alone: on a CPU, unless findings say more."""
    return Examination(
        environment=environment(package("torch", version)),
        backend=Backend.parse(backend) if backend else None,
        version_file=version,
        origin=Origin(path="/env/torch/__init__.py", is_installed=True),
        run=ProbeRun(findings=findings or replace(WORKS, torch_version=version), stage="done"),
        **fields,
    )


def on_gpu(*devices: tuple[str, tuple[int, int] | None], **fields: Any) -> Findings:
    return replace(WORKS, device="cuda:0", devices=devices, **fields)


A4000 = ("NVIDIA RTX A4000", (8, 6))


def test_gpu_that_computes_has_nothing_wrong() -> None:
    found = judged(seen(findings=on_gpu(A4000)), host(gpu()))
    assert found.problems == ()
    assert {"code for NVIDIA RTX A4000", "the NVIDIA driver 580.95.05"} <= set(found.checked)


@pytest.mark.parametrize(
    ("version", "backend", "accelerators", "expected", "cure"),
    [
        # Pascal on the newest driver for it, with a build of CUDA 13.
        ("2.14.1+cu130", "cu130", [gpu("6.1")], {"no-gpu-code": "error"}, "`%torchenv install`"),
        # Volta: cu128 lost it with 2.11.
        ("2.11.0+cu128", "cu128", [gpu("7.0")], {"no-gpu-code": "error"}, "`%torchenv install`"),
        # Blackwell with CUDA 12.6; PyPI's wheel of 2.7 is that too.
        ("2.7.1", "cu126", [gpu("12.0")], {"no-gpu-code": "error"}, "`%torchenv install`"),
        # Kepler: no build of today has code for it.
        (
            "2.13.0+cu126",
            "cu126",
            [gpu("3.5", "470.256.02")],
            {"driver-too-old": "error", "no-gpu-code": "error"},
            "`%torchenv install cpu`",
        ),
        # A driver of CUDA 12 with a build of CUDA 13: an older build runs.
        (
            "2.14.1+cu130",
            "cu130",
            [gpu("8.6", "550.54.15")],
            {"driver-too-old": "error"},
            "`%torchenv install`",
        ),
        # Other builds have its code, and a driver that ran them would not run this one.
        (
            "2.14.1+cu130",
            "cu130",
            [gpu("5.0", "390.157")],
            {"driver-too-old": "error", "no-gpu-code": "error"},
            "install NVIDIA's driver 580 or newer, and restart the machine",
        ),
        # No build runs with that driver.
        (
            "2.13.0+cu126",
            "cu126",
            [gpu("8.6", "418.67")],
            {"driver-too-old": "error"},
            "install NVIDIA's driver 525.60.13 or newer, and restart the machine",
        ),
        # Blackwell needs a driver that knows it.
        (
            "2.11.0+cu128",
            "cu128",
            [gpu("12.0", "560.35.03")],
            {"driver-too-old": "error"},
            "install NVIDIA's driver 570.26 or newer, and restart the machine",
        ),
        # A release that the catalog doesn't know is judged by its nearest relative, and mildly.
        ("2.99.0+cu130", "cu130", [gpu("6.1")], {"no-gpu-code": "warning"}, "`%torchenv install`"),
        ("2.13.0+cpu", "cpu", [gpu()], {"cpu-only": "warning"}, "`%torchenv install`"),
        ("2.13.0+cpu", "cpu", [amd()], {"cpu-only": "warning"}, "`%torchenv install`"),
        ("2.13.0+cu126", "cu126", [], {"no-gpu": "warning"}, "`%torchenv install cpu`"),
        ("2.13.0+xpu", "xpu", [], {"no-gpu": "warning"}, "`%torchenv install cpu`"),
        ("2.13.0+cu126", "cu126", [amd()], {"other-vendor": "warning"}, "`%torchenv install`"),
        ("2.13.0+rocm7.2", "rocm7.2", [gpu()], {"other-vendor": "warning"}, "`%torchenv install`"),
        (
            "2.13.0+rocm7.2",
            "rocm7.2",
            [amd("gfx803")],
            {"no-gpu-code": "error"},
            "`%torchenv install cpu`",
        ),
    ],
)
def test_build_that_does_not_fit_the_machine(
    version: str,
    backend: str,
    accelerators: list[Accelerator],
    expected: dict[str, str],
    cure: str,
) -> None:
    found = judged(seen(version, backend), host(*accelerators))
    assert {each.name: each.severity for each in found.problems} == expected
    assert found.problems[0].cure == cure


@pytest.mark.parametrize("backend", ["cpu", "cu126"])
def test_build_without_gpu_as_it_was_asked_for_is_a_note(ward: Ward, backend: str) -> None:
    ward.add(backend)
    write_expectation(
        ward.prefix,
        Expectation(
            requirements=("torch",),
            backend=Backend.parse(backend),
            versions=(("torch", f"2.13.0+{backend}"),),
        ),
    )
    found = ward.doctor(*([gpu()] if backend == "cpu" else []))
    assert found.problems == ()
    assert any("as asked for" in note for note in found.notes)


@pytest.mark.parametrize("version", ["2.9.0a0+145a3a7bda.nv25.10", "2.9.0a0+gitabc1234"])
def test_build_that_counts_up_to_a_release_meets_what_asks_for_that_release(version: str) -> None:
    others = (
        package("torchvision", "0.24.0a0+094e7af5", "torch==2.9.0"),
        package("flash-attn", "2.8.3", "torch>=2.9"),
        package("vllm", "0.10", "torch>2.9"),
    )
    examination = seen(version, "cu130", on_gpu(A4000))
    examination = replace(examination, environment=environment(package("torch", version), *others))
    found = judged(examination, host(gpu()))
    assert [each.found.split()[0] for each in found.problems] == ["vllm"]


def test_driver_of_wsl_is_windows() -> None:
    machine = host(gpu("8.6", "418.67"))
    machine = replace(machine, platform=replace(machine.platform, wsl=True))
    cure = problem(judged(seen(), machine), "driver-too-old").cure
    assert " or newer in Windows, " in cure


def test_driver_and_wheels_of_a_jetson_come_with_jetpack() -> None:
    board = Finding(message="Jetson", source="/proc/device-tree", hint="install NVIDIA's wheel")
    machine = host(gpu("8.7", "540.4.0", name="Orin (nvgpu)"), findings=(board,))
    machine = replace(machine, platform=replace(machine.platform, machine="aarch64"))
    found = judged(seen("2.14.1+cu130", "cu130"), machine)
    assert names(found) == ["driver-too-old", "no-gpu-code"]
    assert {each.cure for each in found.problems} == {"install NVIDIA's wheel"}


def test_package_of_a_distribution_needs_no_list_of_its_files(ward: Ward) -> None:
    ward.add("cpu")
    (ward.info() / "RECORD").unlink()
    assert names(ward.doctor()) == ["installed-in-part"]
    (ward.info() / "INSTALLER").write_text("rpm\n", encoding="utf-8")
    assert ward.doctor().problems == ()


def test_apple_silicon_with_the_ordinary_wheel_is_healthy() -> None:
    platform = Platform(system="macos", machine="arm64", system_version="15.1")
    machine = Host(platform=platform, accelerators=(Accelerator(vendor="apple", name="Apple M2"),))
    assert judged(seen("2.13.0", "cpu"), machine).problems == ()


@pytest.mark.parametrize(
    ("version", "backend"),
    [
        ("2.7.0a0+gitabc1234", "cu126"),
        ("2.7.0a0", "cu126"),
        ("2.9.0a0+145a3a7bda.nv25.10", "cu130"),
        ("2.5.0a0+872d972e41.nv24.08", "cu126"),
        ("2.6.0+debian", "cpu"),
    ],
)
def test_build_of_unknown_origin_is_not_accused_of_missing_code(version: str, backend: str) -> None:
    found = judged(seen(version, backend), host(gpu("8.7")))
    assert "no-gpu-code" not in names(found)
    if backend != "cpu":
        assert any("not PyTorch's own" in text for text in found.unchecked)


def test_list_of_the_build_itself_counts_more_than_the_catalog() -> None:
    """A source build tells what it holds where a device is."""
    findings = on_gpu(("a GPU", (6, 1)), architectures=("sm_80",), steps=(NO_KERNEL,))
    found = judged(seen("2.7.0a0+gitabc", "cu126", findings), host(gpu("6.1")))
    assert found.problems[0].name == "no-gpu-code"
    assert "it has sm_80" in found.problems[0].found
    held = on_gpu(A4000, ("old", (6, 1)), architectures=("sm_61", "sm_86"))
    machine = host(gpu(), gpu("6.1", name="GTX 1080"))
    assert "no-gpu-code" not in names(judged(seen("2.14.1+cu130", "cu130", held), machine))


def test_what_was_seen_to_compute_is_not_accused_by_driver_or_catalog() -> None:
    """NVIDIA's containers run CUDA 13 on older drivers, by their compatibility package."""
    old = gpu("9.0", "535.104.05", name="H100")
    findings = on_gpu(("H100", (9, 0)))
    assert judged(seen("2.14.1+cu130", "cu130", findings), host(old)).problems == ()


def test_one_gpu_of_two_without_code_is_a_warning_or_a_note() -> None:
    both = (gpu(), gpu("6.1", name="GTX 1080"))
    found = judged(seen("2.14.1+cu130", "cu130"), host(*both))
    assert (found.problems[0].name, found.problems[0].severity) == ("no-gpu-code", "warning")
    assert "GTX 1080 (compute capability 6.1)" in found.problems[0].found
    never = (gpu("12.0", name="RTX 5090"), gpu("3.5", name="K20"))
    found = judged(seen("2.13.0+cu130", "cu130", on_gpu(("RTX 5090", (12, 0)))), host(*never))
    assert "no-gpu-code" not in names(found)
    assert any("K20" in note for note in found.notes)


def test_unknown_capability_and_driver_are_said_not_judged() -> None:
    bare = gpu(None, None, name="NVIDIA GPU")
    found = judged(seen(findings=on_gpu(("NVIDIA GPU", None))), host(bare))
    assert found.problems == ()
    assert len(found.unchecked) == 2


@pytest.mark.parametrize(
    ("note", "fields", "meaning", "cure"),
    [
        (
            "CUDA initialization: CUDA unknown error - this may be due to an incorrect environment",
            {},
            "CUDA can't start, as it happens after the machine has slept",
            "rmmod nvidia_uvm",
        ),
        (
            "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up",
            {"uvm_missing": True},
            "the device node `/dev/nvidia-uvm`, which CUDA needs, is missing",
            "`sudo nvidia-modprobe -u -c=0`",
        ),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
            {},
            "the service that connects the GPUs",
            "nvidia-fabricmanager",
        ),
        (
            "Error 804: forward compatibility was attempted on non supported HW",
            {},
            "a compatibility library of CUDA",
            "take `cuda-compat` out",
        ),
        (
            "Error 803: system has unsupported display driver / cuda driver combination",
            {},
            "the driver in memory and its libraries",
            "restart the machine",
        ),
        (
            "The NVIDIA driver on your system is too old (found version 11040)",
            {},
            "the driver that answers is older",
            "install a newer NVIDIA driver",
        ),
        (
            "",
            {"visibility": (("CUDA_VISIBLE_DEVICES", "MIG-GPU-8932f937/1/0"),)},
            "`CUDA_VISIBLE_DEVICES=MIG-GPU-8932f937/1/0` may name a GPU, or a part of one (MIG)",
            "unset `CUDA_VISIBLE_DEVICES`",
        ),
        ("", {}, "the driver does not answer CUDA", "`nvidia-smi` in a terminal says more"),
    ],
)
def test_gpu_that_torch_does_not_see_though_all_fits(
    note: str, fields: dict[str, Any], meaning: str, cure: str
) -> None:
    findings = replace(WORKS, notes=(note,) if note else ())
    found = judged(seen(findings=findings, **fields), host(gpu()))
    assert names(found) == ["gpu-not-usable"]
    assert found.problems[0].severity == "error"
    assert found.problems[0].meaning.startswith(meaning)
    assert cure in found.problems[0].cure


def test_gpu_that_a_variable_hides(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    ward.add("cu126")
    found = ward.doctor(gpu())
    assert [(each.name, each.severity) for each in found.problems] == [
        ("gpu-not-usable", "warning")
    ]
    assert found.problems[0].cure == "unset `CUDA_VISIBLE_DEVICES`, and restart the kernel"


def test_device_node_that_cuda_needs_is_looked_for(ward: Ward, tmp_path: Path) -> None:
    ward.add("cu126")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert ward.examine(root=tmp_path).uvm_missing
    (tmp_path / "dev/nvidia-uvm").touch()
    assert not ward.examine(root=tmp_path).uvm_missing


def test_gpu_named_by_a_variable_of_uvs_is_not_missed() -> None:
    """`UV_CUDA_DRIVER_VERSION` names a driver, here or elsewhere; torch can't see it."""
    named = gpu("8.6", source="UV_CUDA_DRIVER_VERSION")
    assert judged(seen(), host(named)).problems == ()


def test_fewer_devices_than_gpus() -> None:
    two = (gpu(), gpu())
    found = judged(seen(findings=on_gpu(A4000)), host(*two))
    assert names(found) == ["gpu-count"]
    assert found.problems[0].found == "2 GPUs are here, and PyTorch sees 1"
    chosen = seen(findings=on_gpu(A4000), visibility=(("CUDA_VISIBLE_DEVICES", "0"),))
    assert judged(chosen, host(*two)).problems == ()


def test_wrong_product_is_an_error() -> None:
    raised = Step(name="product", failure="RuntimeError: CUDA error")
    findings = on_gpu(A4000, steps=(raised,))
    assert names(judged(seen(findings=findings), host(gpu()))) == ["compute-fails"]


def test_reason_why_no_gpu_was_found_is_told() -> None:
    finding = Finding(message="an NVIDIA card is here, bound to `nouveau`", source="PCI")
    found = judged(seen(), host(findings=(finding,)))
    assert "(an NVIDIA card is here, bound to `nouveau`)" in problem(found, "no-gpu").found
    told = replace(finding, hint="install NVIDIA's driver")
    other = Finding(message="Intel UHD is no XPU", source="PCI", hint="buy another")
    found = judged(seen(), host(findings=(other, told)))
    # It is not the build that has to change.
    assert problem(found, "no-gpu").cure == "install NVIDIA's driver"
    word = Finding(message="it is ignored", source="UV_NVIDIA_WORD", hint="unset it")
    none = problem(judged(seen(), host(findings=(other, word))), "no-gpu")
    assert none.found.endswith(", and no NVIDIA GPU is here")
    assert none.cure == "`%torchenv install cpu`"


def test_gpu_whose_driver_is_too_old_for_every_build_is_not_called_too_old_itself() -> None:
    found = judged(seen("2.14.1+cu130", "cu130"), host(gpu("5.0", "390.157")))
    code = problem(found, "no-gpu-code")
    assert "; its driver 390.157 is too old; with driver " in code.meaning
    assert code.cure.startswith("install NVIDIA's driver ")
    assert code.cure.endswith(" or newer, and restart the machine")


def test_gpu_is_named_once_and_two_are_plural() -> None:
    bare = replace(amd("gfx803"), name="AMD GPU gfx803")
    found = judged(seen("2.13.0+rocm7.2", "rocm7.2"), host(bare))
    assert " has no code for AMD GPU gfx803; " in f"{found.problems[0].found}; "
    both = judged(seen("2.13.0+cpu", "cpu"), host(gpu(), gpu(name="NVIDIA L4")))
    assert both.problems[0].found.endswith(", and NVIDIA RTX A4000 and NVIDIA L4 are here")
    found = judged(seen("2.13.0+rocm7.2", "rocm7.2"), host(gpu(), bare))
    assert " for AMD" not in found.problems[0].meaning
    assert found.problems[0].meaning.endswith("uses another GPU that is here")


# --------------------------------------------------------------------------------- telling the rest


def test_errors_come_before_warnings_and_causes_before_effects(ward: Ward) -> None:
    ward.add("cpu")
    ward.add("cpu", "torchvision", torch="2.12.0")
    (ward.site / "~orch").mkdir()
    (Path.cwd() / "torch.py").touch()
    found = ward.doctor(gpu())
    assert names(found) == ["shadowed", "companion-mismatch", "leftovers", "cpu-only"] or names(
        found
    ) == ["shadowed", "leftovers", "companion-mismatch", "cpu-only"]
    severities = [each.severity for each in found.problems]
    assert severities == sorted(severities)
    assert found.title.startswith("Found ")


def test_text_and_json_say_the_same(ward: Ward) -> None:
    ward.add("cpu")
    (ward.site / "torchgen/__init__.py").unlink()
    found = ward.doctor()
    text = str(found)
    assert text.startswith("Found 1 warning\nEnvironment  ")
    assert "\nWarning      1 file of torch missing, such as `torchgen/__init__.py`" in text
    assert "\nCure         `!uv pip install " in text
    data = json.loads(json.dumps(diagnosis_to_json(found)))
    assert list(data) == [
        "healthy",
        "prefix",
        "python",
        "torch",
        "backend",
        "problems",
        "checked",
        "unchecked",
        "notes",
        "detail",
    ]
    assert data["healthy"] is False
    assert (data["torch"], data["backend"]) == ("2.13.0+cpu", "cpu")
    assert list(data["problems"][0]) == ["name", "severity", "found", "meaning", "cure"]


def test_table_escapes_what_comes_from_outside() -> None:
    failed = replace(WORKS, torch_version=None, import_failure="ImportError: <script>`x`")
    run = ProbeRun(findings=failed, stage="done", detail="<b>stack</b>")
    html = diagnosis_html(judged(replace(seen(), run=run), host(gpu())))
    assert "<script>" not in html
    assert "<b>stack" not in html
    assert "<span class='torchenv-bad'>Error</span>" in html
    assert "<code>!uv pip install --reinstall-package=torch" in html


def test_what_an_interrupted_install_left_is_told() -> None:
    found = judged(seen(findings=on_gpu(A4000), recovered="An install was put back"), host(gpu()))
    assert found.problems == ()
    assert "An install was put back" in found.notes


def test_command_ends_with_1_where_an_error_was_found_and_0_where_none(
    ward: Ward, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json", "--python", str(ward.prefix)]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["name"] == "torch-missing"
    ward.add("cpu")
    (ward.site / "~orch").mkdir()
    assert main(["doctor", "--python", str(ward.prefix)]) == 0
    (ward.site / "torch/version.py").unlink()
    (Path.cwd() / "torch.py").touch()
    assert main(["doctor", "--python", str(ward.prefix)]) == 1
    said = capsys.readouterr()
    assert "%torchenv" not in said.out
    assert "`!" not in said.out
    assert f"Cure         give `{Path.cwd() / 'torch.py'}` another name\n" in said.out
    assert "`uv pip install --reinstall-package=torch" in said.out
    assert said.err == ""


def test_cures_name_the_interpreter_that_was_named(
    ward: Ward, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--python", str(ward.prefix)]) == 1
    assert f"`torchenv install --python {ward.prefix}`" in capsys.readouterr().out
    assert main(["doctor", "--json", "--python", str(ward.prefix)]) == 1
    [told] = json.loads(capsys.readouterr().out)["problems"]
    assert told["cure"] == f"`torchenv install --python {ward.prefix}`"


def test_cure_by_uv_starts_it_where_the_shell_would_not_find_it(
    ward: Ward, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.add("cpu")
    (ward.site / "torchgen/__init__.py").unlink()
    monkeypatch.setenv("PATH", "")
    assert main(["doctor", "--python", str(ward.prefix)]) == 0
    started = f"{quoted(sys.executable)} -m uv pip install --reinstall-package=torch "
    assert f"\nCure         `{started}" in capsys.readouterr().out


def test_missing_interpreter_is_an_error_and_no_diagnosis(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["doctor", "--python", str(tmp_path / "nothing")]) == 1
    assert "There is no Python at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "written"),
    [("cpu", "cpu"), ("torch<2.7", '"torch<2.7"'), ("C:\\My envs\\x", '"C:\\My envs\\x"')],
)
def test_cures_can_be_typed(text: str, written: str) -> None:
    assert quoted(text) == written
    assert install_cure(text) == f"`%torchenv install {written}`"
    assert uv_cure(["install"], [text], python="p") == f"`!uv pip install --python p {written}`"


def test_texts_are_listed_up_to_a_few() -> None:
    assert [listed(list("abcdef"[:count])) for count in (0, 1, 2, 3, 4, 5)] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and d",
        "a, b, c and 2 more",
    ]


# ---------------------------------------------------------------------------------- any text at all

REAL_VERSION_FILES = {
    "from typing import Optional\n\n__all__ = ['__version__', 'debug', 'cuda']\n"
    "__version__ = '2.13.0+cpu'\ndebug = False\ncuda: Optional[str] = None\n": "2.13.0+cpu",
    "__version__: str = '2.9.0a0+145a3a7bda.nv25.10'\n": "2.9.0a0+145a3a7bda.nv25.10",
    '__version__ = "2.5.1+rocm6.2"\nhip = "6.2.41133-dd7f95766"\n': "2.5.1+rocm6.2",
    "version = '2.5.1'\n": None,
}


@pytest.mark.parametrize(("text", "read"), REAL_VERSION_FILES.items())
def test_version_files_as_real_builds_have_them(text: str, read: str | None) -> None:
    assert parse_version_file(text) == read


def test_record_rows_are_read_and_what_is_none_is_left_out() -> None:
    text = 'torch/a.py,sha256=x,12\n"torch/with,comma.py",,\n\n,,\ntorch/b.so,h,x\n\0torch/c,h,7\n'
    assert parse_record(text) == (
        ("torch/a.py", 12),
        ("torch/with,comma.py", None),
        ("torch/b.so", None),
        ("torch/c", 7),
    )
    assert parse_record(f'"{"x" * 200_000}\n') == ()


@given(st.text())
def test_no_text_of_a_version_file_or_record_raises(text: str) -> None:
    parse_version_file(f"__version__ = '{text}'\ncuda = {text}")
    assert all(path for path, _ in parse_record(text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    )
    | st.fixed_dictionaries({"origin": st.text() | st.none(), "user_site": st.text() | st.none()})
)
def test_no_answer_of_the_origin_probe_raises(answer: object) -> None:
    parse_origin(answer, ["", "\0", "/x"])


PIECES = st.sampled_from(
    [
        "torch",
        "torch==2.13.0",
        "torch==2.12.0; python_version < 'x'",
        "nvidia-cudnn-cu12==9.1",
        "cuda-toolkit[a,b]==13",
        'torch; os_name ~= "x"',
        "torch @ file:///x",
        "torch===weird",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    version=st.text(max_size=20) | st.sampled_from(["2.13.0+cu126", "2.13.0", "2.9.0a0+nv25.10"]),
    requires=st.lists(st.text(max_size=30) | PIECES, max_size=4),
    files=st.fixed_dictionaries(
        {
            "torch/version.py": st.binary(max_size=80),
            "torch-1.dist-info/RECORD": st.binary(max_size=80),
            "torch-1.dist-info/METADATA": st.binary(max_size=80),
            "cuda.dist-info/METADATA": st.binary(max_size=80),
        }
    ),
    accelerators=st.lists(st.sampled_from([gpu(), gpu("6.1", "x"), amd(), gpu(None, None)])),
    words=st.text(max_size=40),
)
def test_no_metadata_and_no_words_of_an_import_raise(
    version: str,
    requires: list[str],
    files: dict[str, bytes],
    accelerators: list[Accelerator],
    words: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        for name, content in files.items():
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_bytes(content)
        texts = tuple(requires)
        packages = [
            replace(
                package("torch", version, *texts), metadata_directory=site / "torch-1.dist-info"
            ),
            replace(package("torchvision", version, *texts), metadata_directory=None),
            replace(package("nvidia-cudnn-cu12", version, *texts)),
            replace(package("cuda-toolkit", "13"), metadata_directory=site / "cuda.dist-info"),
            package("other", version, *texts),
        ]
        room = replace(environment(*packages), site_packages=site, prefix=site)
        found = examine_files(room, environ={library_variable(): words})
    failed = Findings(python="3", import_failure=words)
    run = ProbeRun(findings=failed, stage=words)
    for examination in (found, replace(found, run=run)):
        assert str(judged(examination, host(*accelerators)))


@pytest.mark.parametrize(
    "text", ["2.13.0", "2.13.0+cu126", "2.5.1+cu124.with.pypi.cudnn", "2.16.0.dev20260101+cu134"]
)
def test_pytorchs_own_versions_are_known_as_such(text: str) -> None:
    assert stock_version(text) is not None


# ------------------------------------------------------------------------------------- the real one


@pytest.mark.real_wheel
def test_real_torch_is_healthy_until_a_file_goes(
    real_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if f"-{TAG}-" not in real_wheel.name:
        pytest.skip(f"{real_wheel.name} is not for {TAG}")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    real = Ward(tmp_path)
    command = [uv.find_uv_bin(), "pip", "install", "--quiet", "--python"]
    run = subprocess.run(
        [*command, str(real.prefix), str(real_wheel)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        pytest.skip(f"torch's own requirements can't be had: {run.stderr.strip()}")
    found = real.doctor()
    assert found.problems == (), str(found)
    assert found.unchecked == ()
    real.unpack(make_wheel(tmp_path, "torchvision", "0.27.0", requires=["torch==2.12.0"]))
    assert names(real.doctor()) == ["companion-mismatch"]
    shutil.rmtree(real.site / "torchvision-0.27.0.dist-info")
    library = next((real.site / "torch/lib").glob("libtorch_cpu*"))
    # Not in place: uv links the files from its cache.
    content = library.read_bytes()[:1000]
    library.unlink()
    library.write_bytes(content)
    found = real.doctor()
    assert names(found) == ["files-missing", "import-fails"]
    assert "libtorch_cpu" in found.problems[0].found
