"""What an export says, without a file: the indexes, the markers, the tritons, the lines."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from tests.project.exporting import CUDA, used
from tests.targets import make_environment
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.environment import read_environment
from torchenv_magic.errors import ExportError
from torchenv_magic.expectation import Expectation, write_expectation
from torchenv_magic.project.export import (
    Source,
    Used,
    check_releases,
    configure,
    triton_of,
    used_in_environment,
    with_choice,
)
from torchenv_magic.project.export_lines import (
    command_text,
    dockerfile_text,
    requirements_text,
    with_block,
)

LINUX = {"sys_platform": "linux", "platform_machine": "x86_64"}
ARM = {"sys_platform": "linux", "platform_machine": "aarch64"}
WINDOWS = {"sys_platform": "win32", "platform_machine": "AMD64"}
MACOS = {"sys_platform": "darwin", "platform_machine": "arm64"}
PLATFORMS = {"linux": LINUX, "arm": ARM, "windows": WINDOWS, "macos": MACOS}


def sources(form: str, *backends: str, name: str = "torch", torch: str = "2.13.0") -> list[Source]:
    found = configure(form, used(torch=torch), [Backend.parse(text) for text in backends])
    return list(found.sources[name])


def taken(found: list[Source]) -> dict[str, str]:
    """Return which index each platform takes it from; where it is none, PyPI."""
    return {
        place: str(source.backend)
        for place, values in PLATFORMS.items()
        for source in found
        if source.marker is None or Marker(source.marker).evaluate(values)
    }


@pytest.mark.parametrize(
    ("backend", "places"),
    [
        ("cpu", ["linux", "arm", "windows", "macos"]),
        ("cu126", ["linux", "arm", "windows"]),
        ("rocm7.2", ["linux"]),
        ("xpu", ["linux", "windows"]),
    ],
)
def test_a_platform_without_a_build_falls_back_to_pypi(backend: str, places: list[str]) -> None:
    assert taken(sources("index", backend)) == dict.fromkeys(places, backend)


@pytest.mark.parametrize(
    ("backend", "places"),
    [("cu126", ["linux", "arm"]), ("rocm7.2", ["linux"]), ("xpu", ["linux", "windows"])],
)
def test_by_markers_each_platform_has_one_index_and_the_rest_is_cpu(
    backend: str, places: list[str]
) -> None:
    found = sources("markers", backend)
    assert taken(found) == {place: backend if place in places else "cpu" for place in PLATFORMS}
    for one, other in itertools.combinations(found, 2):
        for values in PLATFORMS.values():
            markers = [Marker(source.marker or "") for source in (one, other)]
            assert [marker.evaluate(values) for marker in markers].count(True) == 1


def test_every_build_of_the_catalog_is_offered_where_it_has_wheels() -> None:
    catalog = load_catalog()
    torch = Version("2.13.0")
    for backend in catalog.backends():
        platforms = {
            platform
            for owner, platform in catalog.builds
            if owner == backend
            and any(build.torch == torch for build in catalog.builds_for(backend, platform))
        }
        if not platforms:
            continue
        found = taken(sources("index", str(backend)))
        assert ("linux" in found) == ("linux_x86_64" in platforms)
        assert ("arm" in found) == ("linux_aarch64" in platforms)
        assert ("windows" in found) == ("win_amd64" in platforms)


@pytest.mark.parametrize(
    ("backend", "torch", "name"),
    [
        ("cu126", "2.13.0", None),
        ("cpu", "2.13.0", None),
        ("rocm7.2", "2.13.0", "triton-rocm"),
        ("rocm7.1", "2.10.0", "triton-rocm"),
        ("rocm6.4", "2.9.1", "pytorch-triton-rocm"),
        ("xpu", "2.13.0", "triton-xpu"),
        ("xpu", "2.9.1", "pytorch-triton-xpu"),
    ],
)
def test_the_triton_of_a_build_has_the_name_that_its_release_asks_for(
    backend: str, torch: str, name: str | None
) -> None:
    assert triton_of(Backend.parse(backend), Version(torch)) == name


def test_the_triton_of_a_build_is_asked_for_where_the_build_is() -> None:
    made = configure("index", used(), [Backend.parse("xpu")])
    triton = Requirement(made.dependencies[-1])
    assert triton.name == "triton-xpu"
    assert triton.marker is not None
    assert [name for name in PLATFORMS if triton.marker.evaluate(PLATFORMS[name])] == [
        "linux",
        "windows",
    ]


def test_the_first_xpu_builds_have_no_triton_on_windows() -> None:
    found = sources("index", "xpu", name="pytorch-triton-xpu", torch="2.6.0")
    assert taken(found) == {"linux": "xpu"}


def test_torch_is_pinned_to_the_release_that_is_used_and_the_rest_is_as_asked() -> None:
    made = configure("index", used("torch>=2", "torchvision", "lightning>=2"))
    assert made.dependencies == ("torch==2.13.0", "torchvision", "lightning>=2")


def test_extras_keep_what_is_not_pytorch_out_of_the_choice() -> None:
    made = configure(
        "extras", used("torch", "torchvision", "numpy>=2"), [CUDA, Backend.parse("rocm7.2")]
    )
    assert made.dependencies == ("numpy>=2",)
    assert list(made.extras) == ["cu126", "rocm7-2"]
    assert made.extras["cu126"] == ("torch==2.13.0", "torchvision")
    assert made.extras["rocm7-2"][-1].startswith("triton-rocm ;")
    assert {source.extra for source in made.sources["torch"]} == {"cu126", "rocm7-2"}


def test_one_extra_stands_beside_cpu() -> None:
    assert list(configure("extras", used()).extras) == ["cpu", "cu126"]


def test_a_member_that_an_index_lacks_comes_from_pypi() -> None:
    assert not sources("index", "cu132", name="torchaudio")
    assert sources("index", "cu130", name="torchaudio")


@pytest.mark.parametrize(
    ("form", "backends", "problem"),
    [
        ("index", ("cpu", "cu126"), "writes one backend, not cpu and cu126"),
        ("script", ("cpu", "cu126"), "writes one backend, not cpu and cu126"),
        ("markers", ("cpu",), "none was named"),
        ("markers", ("cu126", "xpu"), "one backend beside `cpu`, not cu126 and xpu"),
        ("extras", ("cpu",), "`cpu` alone was named"),
    ],
)
def test_a_form_says_how_many_backends_it_is_for(
    form: str, backends: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ExportError, match=problem):
        configure(form, used(), [Backend.parse(text) for text in backends])


def test_a_release_that_a_backend_never_had_is_refused_with_those_that_have_it() -> None:
    with pytest.raises(ExportError, match=r"no torch 2.13.0 for cu118") as caught:
        check_releases(used(), [Backend.parse("cu118")])
    assert "cu126" in caught.value.hint


def test_a_release_that_the_catalog_does_not_know_is_left_to_the_index() -> None:
    check_releases(used(torch="3.1.0"), [CUDA])
    assert taken(sources("index", "cu126", torch="3.1.0"))["linux"] == "cu126"


def test_torch_from_an_address_can_not_be_pinned_to_an_index() -> None:
    with pytest.raises(ExportError, match="from an address"):
        configure("index", used("torch @ https://wheels.example/torch.whl"))


def test_what_came_along_is_asked_for_too_since_sources_bind_direct_dependencies_alone() -> None:
    chosen = with_choice(
        used("torch", "torchvision"), backend=Backend.parse("cpu"), requirements=["timm"]
    )
    assert chosen.requirements == ("torch", "timm", "torchvision")
    assert str(chosen.backend) == "cpu"


# ------------------------------------------------------------------------------------ environments


def test_an_environment_says_what_it_has_and_what_was_asked_of_it(tmp_path: Path) -> None:
    prefix = make_environment(tmp_path / "env")
    with pytest.raises(ExportError, match="not installed"):
        used_in_environment(read_environment(prefix))
    site = next(prefix.rglob("site-packages"))
    for name, version in (("torch", "2.13.0+cu126"), ("torchvision", "0.28.0+cu126")):
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n", encoding="utf-8")
    write_expectation(
        prefix,
        Expectation(requirements=("torch", "numpy>=2"), backend=CUDA, versions=()),
    )
    found = used_in_environment(read_environment(prefix))
    assert found.requirements == ("torch", "numpy>=2", "torchvision")
    assert found.members == {"torch": Version("2.13.0"), "torchvision": Version("0.28.0")}
    assert found.label == "PyTorch 2.13.0 for CUDA 12.6"


# ------------------------------------------------------------------------------------------- lines


def test_requirements_name_the_pages_of_the_family_alone_and_pin_the_build() -> None:
    text = requirements_text(used("torch", "torchvision", "numpy>=2"))
    lines = text.splitlines()
    assert "--find-links https://download.pytorch.org/whl/cu126/torch/" in lines
    assert not [line for line in lines if "index-url" in line]
    assert "numpy>=2" in lines
    pins = [Requirement(line) for line in lines if line.startswith("torch==")]
    for values in PLATFORMS.values():
        [pin] = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(values)]
        local = values["sys_platform"] != "darwin"
        assert str(pin.specifier) == ("==2.13.0+cu126" if local else "==2.13.0")


def test_requirements_keep_the_marker_that_was_asked_for() -> None:
    text = requirements_text(used("torch", 'torchvision ; python_version < "3.14"'))
    pins = [Requirement(line) for line in text.splitlines() if line.startswith("torchvision==")]
    assert len(pins) == 2
    for pin in pins:
        assert pin.marker is not None
        assert not pin.marker.evaluate({**LINUX, "python_version": "3.14"})


def test_requirements_need_the_release_of_each_member() -> None:
    unknown = Used(backend=CUDA, requirements=("torch",), members={}, python="3.11")
    with pytest.raises(ExportError, match="Which torch is used is not known"):
        requirements_text(unknown)


def test_a_command_names_the_exact_build_as_a_shell_takes_it() -> None:
    assert command_text(used("torch", "torchvision", "numpy>=2")) == (
        "uv pip install --torch-backend=cu126 torch==2.13.0+cu126 torchvision==0.28.0+cu126 "
        "'numpy>=2'\n"
    )


def test_a_wheel_for_macos_has_no_local_version() -> None:
    on_macos = Used(
        backend=Backend("cpu"),
        requirements=("torch",),
        members={"torch": Version("2.13.0")},
        python="3.11",
        on_macos=True,
    )
    assert command_text(on_macos) == "uv pip install --torch-backend=cpu torch==2.13.0\n"


def test_a_dockerfile_copies_uv_and_installs_in_one_layer() -> None:
    lines = dockerfile_text(used("torch", "numpy>=2")).splitlines()
    assert lines[0].startswith("# torchenv export: PyTorch 2.13.0 for CUDA 12.6.")
    assert lines[2].startswith("COPY --from=ghcr.io/astral-sh/uv:")
    assert lines[3] == "RUN uv pip install --system --no-cache --torch-backend=cu126 \\"
    assert lines[-2] == "    'numpy>=2'"


def test_a_block_in_a_file_is_replaced_and_what_stands_around_it_stays() -> None:
    text = with_block("FROM python:3.11\n", dockerfile_text(used()), file="Dockerfile")
    text += "CMD jupyter\n"
    assert with_block(text, dockerfile_text(used()), file="Dockerfile") == text
    cpu = dockerfile_text(with_choice(used(), backend=Backend("cpu"), requirements=()))
    other = with_block(text, cpu, file="Dockerfile")
    assert other.startswith("FROM python:3.11\n\n# torchenv export: PyTorch 2.13.0 for CPU only.")
    assert other.endswith("# torchenv export: end\nCMD jupyter\n")
    assert "cu126" not in other


@pytest.mark.parametrize("line", ["torch", "Torch>=2  # why", "torchvision==0.28.0 --hash=x:0"])
def test_a_second_line_for_pytorch_in_requirements_is_refused(line: str) -> None:
    with pytest.raises(ExportError, match="in another line too"):
        with_block(
            f"numpy\n{line}\n",
            requirements_text(used()),
            file="requirements.txt",
            are_requirements=True,
        )
