"""What the repository promises about itself: floors, light imports, pins, notebook, commands."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import dev
import torchenv_magic

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "torchenv_magic"
QUICKSTART = "notebooks/quickstart.ipynb"
PINNED_SETS = ("bootstrap", "development", "kernel", "lab")

# Bottom to top. A module imports from the floors below its own and from its own part of the house,
# never from a neighbour on the same floor.
FLOORS = (
    {"errors"},
    {"serialization", "state", "variables", "web"},
    {"accelerators", "_environment_probe"},
    {"builds", "interpreter"},
    {"environment"},
    {"demand", "expectation"},
    {"selection"},
    {"installation", "verification", "words"},
    {"status", "terminal"},
    {"doctor", "preinstall", "project"},
    {"notebook", "cli", "hub", "server", "__main__"},
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
# `python -m torchenv_magic` is the terminal's shell under another name.
SAME_SHELL = {("__main__", "cli")}


# ----------------------------------------------------------------------------------- the floors


def part_of(path: Path) -> str:
    """Return the part of the house that the file belongs to: `builds/catalog.py` is in `builds`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Return every module name that the file imports, in functions and for the types alone too."""
    here = ("torchenv_magic", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    names = (name.split(".") for name in imported_modules(path))
    return {name[1] for name in names if name[0] == "torchenv_magic" and len(name) > 1}


def sources() -> list[Path]:
    """Return the package's modules except the facade, which may import any of them where used."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_part_of_the_package_has_a_floor_and_every_floor_its_parts() -> None:
    assert {part_of(path) for path in sources()} == FLOOR_OF.keys()


def test_imports_go_down_only() -> None:
    upward = [
        f"{path.relative_to(ROOT).as_posix()} imports {other}"
        for path in sources()
        for other in sorted(imported_parts(path) - {part_of(path), "__version__"})
        if (part_of(path), other) not in SAME_SHELL
        # What is on no floor is offered by the facade, which is above everything.
        and FLOOR_OF.get(other, len(FLOORS)) >= FLOOR_OF[part_of(path)]
    ]
    assert not upward


def test_the_package_itself_imports_nothing_of_a_front_end() -> None:
    program = "import json, sys, torchenv_magic; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(answer.stdout)}
    assert "torchenv_magic" in loaded
    assert not loaded & {"IPython", "ipywidgets", "tornado", "torch"}


# --------------------------------------------------------------------------------- what is shipped


def project_table() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]


def test_the_version_is_the_same_in_both_places() -> None:
    assert project_table()["version"] == torchenv_magic.__version__


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = git("ls-files", "-z", "torchenv_magic").split("\0")
    assert set(filter(None, tracked)) <= names
    scripts = next(name for name in names if name.endswith(".dist-info/entry_points.txt"))
    declared = zipfile.ZipFile(wheel).read(scripts).decode()
    assert "torchenv = torchenv_magic.__main__:main" in declared


def git(*arguments: str) -> str:
    """Return what git says; a copy without a repository has no answer, so the test is skipped."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is no git checkout")
    answer = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert answer.returncode in (0, 1), answer.stderr
    return answer.stdout


def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine() -> None:
    # In pieces, so that this file is not the first to match.
    pattern = "|".join(
        (
            "pyp" + "i[.]org",
            "pythonhos" + "ted",
            "npm" + "js[.]org",
            "deb[.]deb" + "ian",
            "/wo" + "rk/",
            "/opt/wh" + "eels",
            "[.]pye" + "nv/",
            "/fa" + "rm/",
        )
    )
    assert git("grep", "--cached", "-nIE", "-e", pattern, "--", ".") == ""


# ------------------------------------------------------------------------------------ the notebook


@pytest.fixture(scope="module")
def quickstart() -> nbformat.NotebookNode:
    # As git would commit it: working through the notebook rightly leaves outputs in the file.
    text = git("show", f":{QUICKSTART}")
    return nbformat.reads(text, as_version=nbformat.NO_CONVERT)


def test_the_quickstart_opens_the_picker_and_holds_one_verification_cell(
    quickstart: nbformat.NotebookNode,
) -> None:
    code = [cell for cell in quickstart.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "torchenv-verify" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in code[:2]] == ["%load_ext torchenv_magic", "%torchenv"]
    assert [cell.source for cell in tagged] == ["%load_ext torchenv_magic\n%torchenv verify"]


# ---------------------------------------------------------------------------------------- the pins


def pins(name: str) -> dict[str, list[Requirement]]:
    """Return the requirements of a pinned set by package; one package may have a pin per Python."""
    found: dict[str, list[Requirement]] = {}
    for block in blocks(name):
        requirement = Requirement(block.partition(" --hash=")[0])
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def blocks(name: str) -> list[str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    joined = text.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines()]


@pytest.mark.parametrize("name", PINNED_SETS)
def test_every_requirement_is_one_version_with_hashes_and_no_address(name: str) -> None:
    assert blocks(name)
    for block in blocks(name):
        head, *hashes = block.split(" --hash=")
        (specifier,) = Requirement(head).specifier
        assert specifier.operator == "==", block
        assert hashes, block
        assert all(digest.startswith("sha256:") for digest in hashes), block
        assert "://" not in block


@pytest.mark.parametrize("name", ["development", "kernel", "lab"])
def test_a_pinned_set_holds_every_runtime_dependency_within_its_bounds(name: str) -> None:
    pinned = pins(name)
    for line in project_table()["dependencies"]:
        dependency = Requirement(line)
        versions = [pin.specifier for pin in pinned[canonicalize_name(dependency.name)]]
        for specifier in versions:
            (exact,) = specifier
            assert dependency.specifier.contains(Version(exact.version)), line


@pytest.mark.parametrize("name", ["bootstrap", "kernel", "lab"])
def test_a_smaller_set_has_the_versions_of_the_development_set(name: str) -> None:
    development = pins("development")
    for package, requirements in pins(name).items():
        known = {str(pin.specifier) for pin in development[package]}
        assert {str(pin.specifier) for pin in requirements} <= known, package


# ------------------------------------------------------------------------------------ the commands


def test_ci_ends_in_the_test_command_that_the_readme_shows() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert commands[-1] == "python3 dev.py test"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands[-1] in readme
    assert "python3 dev.py lab" in readme


def test_an_unknown_command_is_a_usage_error_that_shows_the_commands() -> None:
    answer = subprocess.run(
        [sys.executable, "dev.py", "tset"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "python3 dev.py test" in answer.stderr


@pytest.mark.parametrize(
    ("listing", "variables", "expected"),
    [
        ("", {}, {}),
        (
            "global.index-url='https://mirror.example/simple'\nglobal.timeout='60'",
            {},
            {"UV_DEFAULT_INDEX": "https://mirror.example/simple"},
        ),
        (
            ":env:.index-url='https://first.example'\nglobal.index-url='https://last.example'",
            {},
            {"UV_DEFAULT_INDEX": "https://first.example"},
        ),
        (
            "global.index-url='https://pip.example'",
            {"UV_DEFAULT_INDEX": "https://uv.example"},
            {},
        ),
        ("global.cert='/certificates.pem'", {}, {"SSL_CERT_FILE": "/certificates.pem"}),
        ("global.cert='/certificates.pem'", {"SSL_CERT_DIR": "/certificates"}, {}),
        # Every pin is on the main index; a further one would only be asked first, and for nothing.
        ("global.extra-index-url='https://extra.example'\nglobal.find-links='/wheels'", {}, {}),
    ],
)
def test_the_set_up_gives_uv_the_mirror_of_pip_and_leaves_uvs_own(
    listing: str, variables: dict[str, str], expected: dict[str, str]
) -> None:
    assert dev.uv_variables(listing, variables) == expected
