"""What an export has written, taken at its word by the real uv, pip and juv."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from uv import find_uv_bin

from tests.standin import SIMPLE, StandIn, make_wheel
from tests.targets import make_environment
from torchenv_magic.builds.backend import Backend
from torchenv_magic.project.export_writing import prepare_export

SETUP = "%torchenv install cu126 torch==2.13.0 torchvision==0.28.0 'numpy>=2'"
ARM = "aarch64-manylinux_2_28"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    folder: Path
    standin: StandIn
    variables: Mapping[str, str]

    def run(self, *command: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*map(str, command)],
            cwd=self.folder,
            env=dict(self.variables),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def uv(self, *arguments: str | Path, status: int = 0) -> str:
        done = self.run(find_uv_bin(), *arguments, status=status)
        return done.stdout + done.stderr

    def export(self, form: str, *backends: str, output: Path | None = None) -> str:
        made = prepare_export(
            form,
            notebook=notebook(self.folder),
            backends=[Backend.parse(text) for text in backends],
            output=output,
        )
        made.write()
        return made.text

    def synced(self, *arguments: str, platform: str = "") -> dict[str, str]:
        """Return what `uv sync` would install, on another platform where one is named."""
        at = [f"--python-platform={platform}"] if platform else []
        told = self.uv("sync", "--dry-run", f"--python={sys.executable}", *at, *arguments)
        return dict(re.findall(r"^ \+ (\S+)==(\S+)$", told, re.MULTILINE))


def notebook(folder: Path) -> Path:
    path = folder / "notebook.ipynb"
    if not path.exists():
        cells = [
            nbformat.v4.new_markdown_cell("# A title"),
            nbformat.v4.new_code_cell(SETUP),
            nbformat.v4.new_code_cell("import torch\nprint('ran with', torch.__version__)"),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export-cache")


@pytest.fixture
def project(
    tmp_path: Path, fresh_standin: StandIn, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """Return a folder whose uv meets the stand-in, with wheels for other platforms in it."""
    variables = fresh_standin.environment(cache, hermetic=True).apply(os.environ)
    variables.pop("VIRTUAL_ENV", None)
    wheels = cache / "wheels"
    # The index of packages has what other platforms fall back to.
    for shelf, local, tag in (
        ("cpu", "+cpu", "win_amd64"),
        ("cpu", "+cpu", "manylinux_2_28_aarch64"),
        ("cpu", "", "macosx_11_0_arm64"),
        ("cu126", "+cu126", "win_amd64"),
        ("cu126", "+cu126", "manylinux_2_28_aarch64"),
        ("xpu", "+xpu", "win_amd64"),
        (SIMPLE, "", "win_amd64"),
        (SIMPLE, "", "macosx_11_0_arm64"),
        (SIMPLE, "", "manylinux_2_28_aarch64"),
    ):
        for name, version in (("torch", "2.13.0"), ("torchvision", "0.28.0")):
            requires = ["torch==2.13.0"] if name == "torchvision" else []
            if name == "torch" and shelf == "xpu":
                requires = ["triton-xpu==3.7.2"]
            fresh_standin.add_wheel(
                shelf,
                make_wheel(
                    wheels / shelf,
                    name,
                    f"{version}{local}",
                    requires=requires,
                    platform_tag=tag,
                ),
            )
    fresh_standin.add_wheel(
        "xpu", make_wheel(wheels, "triton-xpu", "3.7.2", platform_tag="win_amd64")
    )
    arm = make_wheel(wheels, "triton", "3.7.1", platform_tag="manylinux_2_28_aarch64")
    fresh_standin.add_wheel(SIMPLE, arm)
    # An index of PyTorch's has old copies of what its wheels need.
    for shelf in ("cpu", "cu126", "rocm7.2", "xpu"):
        fresh_standin.add_wheel(shelf, make_wheel(wheels / shelf, "numpy", "1.0.0"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Project(folder=folder, standin=fresh_standin, variables=variables)


def test_one_index_serves_the_platforms_that_it_has_wheels_for(project: Project) -> None:
    project.export("index")
    project.uv("lock")
    here = project.synced()
    assert here["torch"] == "2.13.0+cu126"
    assert here["torchvision"] == "0.28.0+cu126"
    assert here["numpy"] == "2.4.6"
    assert project.synced(platform="windows")["torch"] == "2.13.0+cu126"
    assert project.synced(platform=ARM)["torch"] == "2.13.0+cu126"
    assert project.synced(platform="macos")["torch"] == "2.13.0"


@pytest.mark.parametrize("backend", ["cu130", "xpu"])
def test_each_kind_of_build_is_locked_with_its_own_triton(backend: str, project: Project) -> None:
    project.export("index", backend)
    project.uv("lock")
    found = project.synced()
    assert found["torch"] == f"2.13.0+{backend}"
    tritons = [name for name in found if "triton" in name]
    assert tritons == ["triton" if backend == "cu130" else "triton-xpu"]


@pytest.mark.parametrize(
    ("backend", "versions"),
    [
        ("cu126", {"": "+cu126", "windows": "+cpu", "macos": ""}),
        ("rocm7.2", {"": "+rocm7.2", ARM: "+cpu", "windows": "+cpu", "macos": ""}),
        ("xpu", {"": "+xpu", "windows": "+xpu", "macos": ""}),
    ],
)
def test_markers_give_each_platform_its_build(
    backend: str, versions: dict[str, str], project: Project
) -> None:
    project.export("markers", backend)
    project.uv("lock")
    for platform, local in versions.items():
        found = project.synced(platform=platform)
        assert found["torch"] == f"2.13.0{local}"
        assert ("triton-xpu" in found) == (local == "+xpu")
        assert ("triton-rocm" in found) == (local == "+rocm7.2")


def test_one_extra_is_chosen_and_two_are_refused(project: Project) -> None:
    project.export("extras", "cpu", "cu126", "rocm7.2")
    project.uv("lock")
    for extra, local in (("cpu", "cpu"), ("cu126", "cu126"), ("rocm7.2", "rocm7.2")):
        found = project.synced("--extra", extra)
        assert found["torch"] == f"2.13.0+{local}"
        assert found["torchvision"] == f"0.28.0+{local}"
    assert "torch" not in project.synced()
    both = project.uv("sync", "--dry-run", "--extra", "cpu", "--extra", "cu126", status=2)
    assert "incompatible" in both


def test_extras_stand_beside_a_group_and_an_extra_that_ask_for_members(project: Project) -> None:
    path = project.folder / "pyproject.toml"
    path.write_text(
        '[project]\nname = "p"\nversion = "1"\nrequires-python = ">=3.10"\n'
        '[project.optional-dependencies]\ncpu = ["torchaudio"]\nv = ["torchvision"]\n'
        '[dependency-groups]\ndev = ["torch"]\n',
        encoding="utf-8",
    )
    project.export("extras", "cpu", "cu126")
    project.uv("lock")
    for extra in ("cpu", "cu126"):
        found = project.synced("--extra", extra, "--extra", "v")
        assert found["torch"] == f"2.13.0+{extra}"
        assert found["torchvision"] == f"0.28.0+{extra}"
        assert ("torchaudio" in found) == (extra == "cpu")


def test_uv_refuses_a_python_that_the_release_has_no_wheels_for(project: Project) -> None:
    path = project.folder / "pyproject.toml"
    path.write_text(
        '[project]\nname = "p"\nversion = "1"\nrequires-python = ">=3.8"\n', encoding="utf-8"
    )
    project.export("index")
    assert "Python" in project.uv("lock", status=1)


def test_an_export_over_an_older_one_is_locked_anew(project: Project) -> None:
    project.export("index")
    project.uv("lock")
    project.export("markers", "rocm7.2")
    project.uv("lock")
    assert project.synced()["torch"] == "2.13.0+rocm7.2"
    assert "cu126" not in (project.folder / "uv.lock").read_text(encoding="utf-8")


def test_requirements_give_uv_and_pip_the_same_and_no_old_copies(project: Project) -> None:
    file = project.folder / "requirements.txt"
    project.export("requirements", output=file)
    environment = make_environment(project.folder / "env")
    told = project.uv("pip", "install", "--dry-run", f"--python={environment}", "-r", file)
    by_uv = dict(re.findall(r"^ \+ (\S+)==(\S+)$", told, re.MULTILINE))
    assert by_uv["torch"] == "2.13.0+cu126"
    assert by_uv["torchvision"] == "0.28.0+cu126"
    assert by_uv["numpy"] == "2.4.6"
    variables = {**project.variables, "REQUESTS_CA_BUNDLE": str(project.standin.bundle)}
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment,
        "install",
        "--dry-run",
    ]
    options = ["--quiet", "--no-cache-dir", "--report=-"]
    index = f"--index-url={project.standin.simple_url}"
    done = subprocess.run(
        [*pip, *options, index, "-r", file],
        env=variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    assert {each["name"].replace("_", "-"): each["version"] for each in report} == by_uv


def test_requirements_of_a_rocm_build_find_its_triton(project: Project) -> None:
    file = project.folder / "requirements.txt"
    project.export("requirements", "rocm7.2", output=file)
    environment = make_environment(project.folder / "env")
    told = project.uv("pip", "install", "--dry-run", f"--python={environment}", "-r", file)
    assert "+ triton-rocm==3.7.1" in told


def test_uv_runs_the_script_of_a_notebook(project: Project) -> None:
    project.export("script", output=project.folder / "notebook.py")
    told = project.uv("run", f"--python={sys.executable}", "notebook.py")
    assert "ran with 2.13.0+cu126" in told


def test_juv_runs_the_notebook_itself(project: Project) -> None:
    project.export("script", "cpu")
    juv = Path(sys.executable).with_name("juv.exe" if os.name == "nt" else "juv")
    told = project.run(juv, "exec", f"--python={sys.executable}", "notebook.ipynb").stdout
    assert "ran with 2.13.0+cpu" in told


def test_the_line_of_a_dockerfile_and_the_command_switch_a_build(project: Project) -> None:
    environment = make_environment(project.folder / "env")
    python = f"--python={environment}"
    project.uv("pip", "install", "--quiet", python, "--torch-backend=cpu", "torch")
    uv, *arguments = shlex.split(project.export("command"))
    assert uv == "uv"
    told = project.uv(*arguments, python, "--dry-run")
    assert "+ torch==2.13.0+cu126" in told
    # What Docker's shell would read.
    text = project.export("dockerfile").replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if line.startswith("RUN ")]
    words = [word for word in shlex.split(line)[2:] if word != "--system"]
    told = project.uv(*words, python, "--dry-run")
    assert "+ torch==2.13.0+cu126" in told
    assert "+ torchvision==0.28.0+cu126" in told
