"""The pure half of planning: what uv is asked, and what is made of its answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from torchenv_magic.builds.backend import Backend
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import Environment, InstalledPackage, Interpreter
from torchenv_magic.errors import ConsentError, RequestError, UvError
from torchenv_magic.installation.plan import (
    Change,
    Download,
    LockedPackage,
    Plan,
    Question,
    Source,
    ask,
    broken_by,
    by_importance,
    dry_run_arguments,
    is_met,
    lock_of,
    looks_satisfied,
    orphans,
    read_changes,
    read_lock,
    source_arguments,
    unpacked_bytes,
)
from torchenv_magic.installation.planning import check_requirements
from torchenv_magic.selection import Request
from torchenv_magic.serialization import to_json

CPU, CU126, CU130 = (Backend.parse(name) for name in ("cpu", "cu126", "cu130"))
INDEX = Source(kind="index", location="https://download.pytorch.org/whl/cu126")


def package(
    name: str, version: str, *requires: str, complete: bool = True, installer: str = "uv"
) -> InstalledPackage:
    return InstalledPackage(
        name=name, version=version, requires=requires, complete=complete, installer=installer
    )


def environment(*packages: InstalledPackage) -> Environment:
    return Environment(
        interpreter=Interpreter(
            executable=Path("/home/ada/env/bin/python"), version="3.12.1", implementation="cpython"
        ),
        kind="venv",
        prefix=Path("/home/ada/env"),
        site_packages=Path("/home/ada/env/lib/python3.12/site-packages"),
        has_pip=False,
        writable=True,
        externally_managed=None,
        free_bytes=10**12,
        packages=packages,
    )


TORCH_130 = package("torch", "2.13.0+cu130", "filelock", 'triton==3.7.1; sys_platform == "linux"')
VISION_130 = package("torchvision", "0.28.0+cu130", "torch==2.13.0")


# ---------------------------------------------------------------------------------- what is asked


def test_an_empty_environment_is_asked_for_what_the_person_asks() -> None:
    question = ask(Request(requirements=("torch", "lightning>=2")), environment(), CU126)
    assert question == Question(
        requirements=("torch", "lightning>=2"), constraints=(), reinstall=()
    )


def test_every_installed_member_is_asked_for_and_reinstalled_where_one_is_of_another_build() -> (
    None
):
    question = ask(Request(), environment(TORCH_130, VISION_130, package("numpy", "2.4")), CU126)
    assert question.requirements == ("torch", "torchvision")
    assert question.reinstall == ("torch", "torchvision")


def test_one_foreign_member_pulls_all_of_them_along() -> None:
    here = environment(TORCH_130, package("torchvision", "0.28.0+cpu", "torch==2.13.0"))
    assert ask(Request(), here, CU130).reinstall == ("torch", "torchvision")


def test_what_is_of_the_chosen_build_is_not_reinstalled() -> None:
    assert ask(Request(), environment(TORCH_130, VISION_130), CU130).reinstall == ()


@pytest.mark.parametrize(
    "version", ["2.4.0+cu130.with.pypi.cudnn", "2.13.0+cu130", "2.14.0.dev20260101+cu130"]
)
def test_the_build_is_read_from_the_start_of_the_local_version(version: str) -> None:
    assert ask(Request(), environment(package("torch", version)), CU130).reinstall == ()
    assert ask(Request(), environment(package("torch", version)), CPU).reinstall == ("torch",)


def test_a_member_that_lacks_its_record_or_is_there_twice_is_reinstalled() -> None:
    broken = environment(package("torch", "2.13.0+cpu", complete=False))
    assert ask(Request(), broken, CPU).reinstall == ("torch",)
    twice = environment(package("torch", "2.12.0+cpu"), package("torch", "2.13.0+cpu"))
    question = ask(Request(), twice, CPU)
    assert question.reinstall == ("torch",)
    assert question.requirements == ("torch",)


def test_a_name_is_recognised_however_it_is_written() -> None:
    here = environment(TORCH_130, VISION_130)
    question = ask(Request(requirements=("Torch==2.12.0", "TorchVision")), here, CU130)
    assert question.requirements == ("Torch==2.12.0", "TorchVision")


def test_requirements_may_repeat_and_carry_extras_and_markers() -> None:
    texts = ("torch", "torch>=2.12", "torch[opt-einsum]; python_version >= '3.10'")
    assert ask(Request(requirements=texts), environment(TORCH_130), CU130).requirements == texts


def test_what_installed_packages_require_of_the_family_constrains_the_answer() -> None:
    here = environment(
        TORCH_130, package("needs213", "1.0", "torch<2.14", "numpy"), package("other", "1", "numpy")
    )
    assert ask(Request(), here, CU126).constraints == ("torch<2.14",)


def test_a_dependent_that_is_asked_for_anew_constrains_nothing() -> None:
    here = environment(TORCH_130, package("needs-213", "1.0", "torch<2.14"))
    question = ask(Request(requirements=("torch", "needs_213>1")), here, CU126)
    assert question.constraints == ()


def test_what_is_broken_already_is_told_and_constrains_nothing() -> None:
    here = environment(TORCH_130, package("needs212", "1.0", "torch==2.12.0"))
    question = ask(Request(), here, CU126)
    assert question.constraints == ()
    assert question.broken == ("needs212 1.0 requires torch==2.12.0",)


def test_a_dependent_of_a_member_that_is_missing_constrains_it() -> None:
    here = environment(package("needs212", "1.0", "torch==2.12.0"))
    assert ask(Request(), here, CU126).constraints == ("torch==2.12.0",)


def test_the_address_in_a_dependents_requirement_is_not_fetched_to_compare() -> None:
    url = "torch @ https://wheels.example/torch-2.13.0-cp312-cp312-linux_x86_64.whl"
    assert ask(Request(), environment(TORCH_130, package("odd", "1", url)), CU126).constraints == ()


def test_the_newer_torch_without_code_for_the_card_is_excluded() -> None:
    question = ask(Request(), environment(), CU126, exclusion="torch<2.11")
    assert question.constraints == ("torch<2.11",)


def test_pins_take_the_place_of_the_members_requirements() -> None:
    question = ask(
        Request(requirements=("torch>=2", "numpy", "Torch[opt]")),
        environment(),
        CPU,
        pins={"torch": "==2.13.0+cpu"},
    )
    assert question.requirements == ("numpy", "torch==2.13.0+cpu")


def test_the_arguments_of_the_dry_run_send_uv_where_it_should_go() -> None:
    question = Question(requirements=("torch",), constraints=("torch<3",), reinstall=("torch",))
    arguments = dry_run_arguments(
        question,
        python=Path("/home/ada/my env/bin/python"),
        backend=CU126,
        source=INDEX,
        requirements_file=Path("/home/ada/r.txt"),
        constraints_file=Path("/home/ada/c.txt"),
    )
    assert "--torch-backend=cu126" in arguments
    assert "--python=/home/ada/my env/bin/python" in arguments
    assert "--reinstall-package=torch" in arguments
    assert "--constraints=/home/ada/c.txt" in arguments


def test_a_folder_and_pypi_are_asked_without_the_index() -> None:
    folder = Source(kind="folder", location="/wheels of ada")
    assert source_arguments(folder, CPU) == ["--find-links=/wheels of ada"]
    assert source_arguments(Source(kind="pypi", location="PyPI"), CU130) == []


@pytest.mark.parametrize(
    "text",
    ["--index-url=https://x", "-e .", "torch==", "torch 2.13", "torch @ https://a\n--no-deps", ""],
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_requirements(("torch", text))
    assert caught.value.hint


def test_extras_markers_and_addresses_are_requirements() -> None:
    texts = ("torch[opt]>=2", "numpy; python_version<'4'", "torch @ https://a.example/t.whl")
    assert check_requirements(texts) == texts


# ----------------------------------------------------------------------------- what looks satisfied


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("torch",), True),
        (("torch==2.13.0", "Torch>=2"), True),
        (("torch==2.12.0",), False),
        (("torch", "numpy"), False),
        (("torch", "numpy; python_version < '3'"), True),
        (("torch @ https://a.example/torch-2.13.0-py3-none-any.whl",), False),
    ],
)
def test_whether_a_request_looks_satisfied(texts: tuple[str, ...], expected: bool) -> None:  # noqa: FBT001
    here = environment(TORCH_130)
    question = ask(Request(requirements=texts), here, CU130)
    assert looks_satisfied(question, here) is expected


def test_another_build_is_never_satisfied() -> None:
    here = environment(TORCH_130)
    assert not looks_satisfied(ask(Request(), here, CPU), here)


def test_a_requirement_is_met_by_a_build_of_its_version() -> None:
    here = environment(TORCH_130, package("odd", "not-a-version"))
    assert is_met("torch==2.13.0", here) is True
    assert is_met("torch<2.13", here) is False
    assert is_met("torchvision", here) is None
    assert is_met("odd>1", here) is None


# ----------------------------------------------------------------------------------- uv's answers


def answer(*rows: tuple[str, str, str]) -> str:
    changes = [{"name": n, "version": v, "action": a} for n, v, a in rows]
    return json.dumps({"schema": {"version": "preview"}, "changes": changes, "dry_run": True})


def test_changes_are_read_as_what_is_installed_replaced_and_removed() -> None:
    text = answer(
        ("torch", "2.13.0+cu130", "uninstalled"),
        ("torch", "2.13.0+cu126", "installed"),
        ("Typing_Extensions", "4.16.0", "installed"),
        ("numpy", "2.4.0", "reinstalled"),
        ("old-thing", "1.0", "uninstalled"),
    )
    here = environment(TORCH_130, package("numpy", "2.4.0"), package("old-thing", "1.0"))
    assert read_changes(text, here) == (
        Change(name="torch", action="replace", before="2.13.0+cu130", after="2.13.0+cu126"),
        Change(name="typing-extensions", action="install", after="4.16.0"),
        Change(name="numpy", action="replace", before="2.4.0", after="2.4.0"),
        Change(name="old-thing", action="remove", before="1.0"),
    )


def test_no_changes_are_no_changes() -> None:
    assert read_changes(answer(), environment()) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Resolved 3 packages",
        "[]",
        "null",
        '{"changes": 3}',
        '{"changes": [{"name": "torch"}]}',
        '{"changes": [{"name": "torch", "version": "one", "action": "installed"}]}',
        '{"changes": [{"name": 3, "version": "1", "action": "installed"}]}',
    ],
)
def test_an_answer_of_another_form_is_said_plainly(text: str) -> None:
    with pytest.raises(UvError, match="a form that this version of torchenv_magic"):
        read_changes(text, environment())


LOCK = """lock-version = "1.0"
created-by = "uv"

[[packages]]
name = "Filelock"
version = "3.20.0"
sdist = { url = "https://files.example/filelock.tar.gz", size = 9 }
wheels = [{ url = "https://files.example/filelock.whl", size = 12, hashes = { sha256 = "aa" } }]

[[packages]]
name = "torch"
version = "2.13.0+cu126"
wheels = [{ url = "https://download-r2.pytorch.org/torch.whl", hashes = { sha256 = "bb" } }]

[[packages]]
name = "made"
version = "1"
wheels = [{ path = "wheels/made-1-py3-none-any.whl", hashes = { sha256 = "cc" } }]

[[packages]]
name = "from-git"
vcs = { type = "git", url = "https://git.example/x", commit-id = "00" }
"""


def test_a_lock_is_read_with_what_it_tells_of_sizes() -> None:
    filelock = "https://files.example/filelock.whl"
    torch = "https://download-r2.pytorch.org/torch.whl"
    wheel = "wheels/made-1-py3-none-any.whl"
    assert read_lock(LOCK) == (
        LockedPackage(name="filelock", version="3.20.0", address=filelock, size_bytes=12),
        LockedPackage(name="torch", version="2.13.0+cu126", address=torch, size_bytes=None),
        LockedPackage(name="made", version="1", address=wheel, size_bytes=None),
        LockedPackage(name="from-git", version="", address=None, size_bytes=None),
    )


@pytest.mark.parametrize("text", ["[[packages]", "packages = 3", "[[packages]]\nversion = '1'"])
def test_a_lock_of_another_form_is_said_plainly(text: str) -> None:
    with pytest.raises(UvError, match="a lock that this version of torchenv_magic"):
        read_lock(text)


def test_a_lock_can_be_cut_to_some_of_its_packages() -> None:
    part = lock_of(LOCK, ["filelock", "made"])
    assert [locked.name for locked in read_lock(part)] == ["filelock", "made"]
    assert part.startswith('lock-version = "1.0"')
    assert lock_of(LOCK, [locked.name for locked in read_lock(LOCK)]) == LOCK


# ---------------------------------------------------------------------------------------- orphans


def switched(after: str) -> tuple[Change, ...]:
    return (Change(name="torch", action="replace", before="2.13.0+cu130", after=after),)


REQUIRES = {
    "torch": ("filelock", "triton", "cuda-toolkit", "nvidia-cudnn-cu13"),
    "cuda-toolkit": ("nvidia-cublas", "nvidia-npp"),
    "nvidia-cudnn-cu13": ("nvidia-cublas",),
    "filelock": (),
}
OLD_BUILD = (
    TORCH_130,
    package("triton", "3.7.1"),
    package("cuda-toolkit", "13.0.3"),
    package("nvidia-cublas", "13.1"),
    package("nvidia-cudnn-cu13", "9.20"),
    package("filelock", "3.20"),
)


def removed(here: Environment, needed: tuple[str, ...], **requires: tuple[str, ...]) -> list[str]:
    found = orphans(here, switched("2.13.0+cpu"), needed, {**REQUIRES, **requires})
    assert {change.action for change in found} <= {"remove"}
    return [change.name for change in found]


def test_what_only_the_old_build_needed_goes_also_what_an_extra_brought() -> None:
    assert removed(environment(*OLD_BUILD), ("torch", "filelock")) == [
        "cuda-toolkit",
        "nvidia-cublas",
        "nvidia-cudnn-cu13",
        "triton",
    ]


def test_what_the_new_build_needs_too_stays() -> None:
    assert removed(environment(*OLD_BUILD), ("torch", "triton", "nvidia-cudnn-cu13")) == [
        "cuda-toolkit"
    ]


def test_what_another_package_requires_stays_with_what_that_requires() -> None:
    here = environment(*OLD_BUILD, package("jax-cuda", "1", "nvidia-cudnn-cu13"))
    jax = {"jax-cuda": ("nvidia-cudnn-cu13",)}
    assert removed(here, (), **jax) == ["cuda-toolkit", "triton"]


def test_what_the_old_build_did_not_bring_is_a_persons_own() -> None:
    # faster-whisper's users install these by hand: nothing requires them by name.
    own = package("nvidia-cublas-cu12", "12.9")
    assert "nvidia-cublas-cu12" not in removed(environment(*OLD_BUILD, own), ())
    cpu = package("torch", "2.13.0+cpu")
    found = orphans(environment(cpu, own), switched("2.13.0+cu130"), (), {"torch": ("filelock",)})
    assert found == ()


def test_a_satellite_that_is_installed_anew_is_no_orphan() -> None:
    changes = (
        *switched("2.12.0+cu130"),
        Change(name="triton", action="replace", before="3.7.1", after="3.7.0"),
    )
    found = orphans(environment(*OLD_BUILD), changes, (), REQUIRES)
    assert "triton" not in [change.name for change in found]


def test_only_requirements_that_a_change_would_break_are_named() -> None:
    here = environment(
        TORCH_130,
        package("needs213", "1.0", "torch==2.13.0"),
        package("fine", "2.0", "torch>=2"),
        package("elsewhere", "1", "numpy"),
    )
    changes = switched("2.12.0+cu126")
    assert broken_by(changes, here) == ("needs213 1.0 requires torch==2.13.0",)
    assert broken_by(switched("2.13.0+cu126"), here) == ()


# -------------------------------------------------------------------------------- what it all costs


def plan(*changes: Change, downloads: tuple[Download, ...] = (), backend: Backend = CU126) -> Plan:
    return Plan(
        request=Request(),
        backend=backend,
        reason="it fits",
        python=Path("/home/ada/env/bin/python"),
        prefix=Path("/home/ada/env"),
        source=INDEX,
        changes=changes,
        downloads=downloads,
    )


def download(name: str, size: int | None, *, cached: bool = False, local: bool = False) -> Download:
    return Download(name=name, version="1", size_bytes=size, cached=cached, local=local)


def test_only_what_is_fetched_counts_as_download() -> None:
    made = plan(
        *switched("2.13.0+cu126"),
        downloads=(
            download("torch", 500_000_000),
            download("numpy", 20_000_000, cached=True),
            download("torchvision", 7_000_000, local=True),
            download("triton", None),
            download("filelock", None, cached=True),
        ),
    )
    assert made.download_bytes == 500_000_000
    assert made.local_bytes == 7_000_000
    assert made.unknown_sizes == 1
    assert made.summary.startswith("Download 500.0 MB and 1 package of unknown size")
    assert "unpack 7.0 MB from the folder" in made.summary


def test_the_disk_that_is_needed_follows_what_the_wheels_unpack_to() -> None:
    assert unpacked_bytes(download("torch", 192_000_000), CPU) == pytest.approx(699e6, rel=0.01)
    assert unpacked_bytes(download("torch", 526_600_000), CU130) == pytest.approx(1095e6, rel=0.02)
    assert unpacked_bytes(download("nvidia-cublas", 423_100_000), CU130) < 600e6
    assert unpacked_bytes(download("triton", None), CU130) == 0


def test_a_plan_reads_as_a_person_would_say_it() -> None:
    made = plan(
        *switched("2.13.0+cu126"),
        Change(name="zlib-ng", action="install", after="1"),
        Change(name="torchvision", action="install", after="0.28.0+cu126"),
        Change(name="triton", action="remove", before="3.7.1"),
        downloads=(download("torch", 1_000_000_000),),
    )
    lines = str(made).splitlines()
    assert lines[0] == "CUDA 12.6 (cu126) — it fits"
    assert lines[2] == (
        "Download 1.0 GB · on disk about 2.1 GB · installs torchvision 0.28.0+cu126 and 1 more "
        "package · replaces torch 2.13.0+cu130 · removes 1 package of the old build · "
        "your other packages stay"
    )
    assert lines[3:] == [
        "  ~ torch 2.13.0+cu130 → 2.13.0+cu126",
        "  + torchvision 0.28.0+cu126",
        "  + zlib-ng 1",
        "  - triton 3.7.1",
    ]


def test_a_plan_without_changes_says_so() -> None:
    assert plan().nothing_to_do
    assert plan().summary == "Nothing to do: what you asked for is installed already."


def test_a_plan_from_the_cache_promises_no_download() -> None:
    made = plan(*switched("2.13.0+cu126"), downloads=(download("torch", 5, cached=True),))
    assert made.summary.startswith("No download: everything is in uv's cache · replaces torch")


def test_the_family_comes_first() -> None:
    names = ("numpy", "torchvision", "triton", "torch")
    changes = [Change(name=name, action="install", after="1") for name in names]
    assert [c.name for c in by_importance(changes)] == ["torch", "torchvision", "numpy", "triton"]


def test_a_plan_has_a_json_form() -> None:
    made = replace(plan(*switched("2.13.0+cu126")), notes=("a note",))
    data = json.loads(json.dumps(to_json(made)))
    assert data["backend"] == "cu126"
    assert data["changes"][0]["after"] == "2.13.0+cu126"
    assert Requirement(data["request"]["requirements"][0]).name == "torch"


def change(name: str, before: str | None, after: str | None) -> Change:
    if before is None:
        return Change(name=name, action="install", after=after)
    return Change(name=name, action="replace" if after else "remove", before=before, after=after)


def planned(*changes: Change, asked: tuple[str, ...] = ("torch",)) -> Plan:
    return Plan(
        request=Request(requirements=asked),
        backend=CU126,
        reason="the driver runs it",
        python=Path("/home/ada/env/bin/python"),
        prefix=Path("/home/ada/env"),
        source=INDEX,
        changes=changes,
    )


def test_what_a_person_would_miss_is_lost_and_nothing_else() -> None:
    plan = planned(
        change("torch", "2.12.0+cu130", "2.13.0+cu126"),
        change("triton", "3.7.0", None),
        change("nvidia-cublas", "13.0", "12.6"),
        change("sympy", None, "1.14.0"),
        change("filelock", "3.20.0", "3.20.0"),
        change("pillow", "5.0.0", "13.0.0"),
        change("numpy", "2.4.6", "1.26.4"),
        change("fsspec", "2026.9.0", None),
        asked=("torch", "Pillow>=13"),
    )
    assert [each.name for each in plan.losses] == ["numpy", "fsspec"]
    with pytest.raises(ConsentError) as caught:
        plan.check_consent()
    assert caught.value.message == (
        "This install would replace numpy 2.4.6 by 1.26.4, remove fsspec 2026.9.0, which are not "
        "part of PyTorch"
    )
    planned(change("torch", "2.12.0", "2.13.0+cu126")).check_consent()


def test_many_losses_are_counted() -> None:
    plan = planned(*(change(f"package{number}", "1", "2") for number in range(5)))
    with pytest.raises(ConsentError, match="package2 1 by 2 and 2 more packages, which are not"):
        plan.check_consent()


# ------------------------------------------------------------------------ who is to be trusted


@pytest.mark.parametrize(
    "text",
    [
        "--index-url=https://x.example",
        "-e .",
        "-r other.txt",
        "torch @ https://a.example/torch-2.13.0-py3-none-any.whl",
        "torch @ file:///tmp/torch-2.13.0-py3-none-any.whl",
        "torch@file:torch.whl",
        "torch @ git+https://github.com/pytorch/pytorch",
        "torch @ git+ssh://git@github.com/pytorch/pytorch",
        "git+https://github.com/pytorch/pytorch",
        "https://a.example/torch-2.13.0-py3-none-any.whl",
        "./torch-2.13.0-py3-none-any.whl",
        "torch\n--index-url=https://x.example",
        "torch ; --index-url=https://x.example",
        "torch --index-url=https://x.example",
    ],
)
def test_what_came_along_with_a_file_names_no_option_and_no_address(text: str) -> None:
    with pytest.raises(RequestError):
        parse_requirement(text, trusted=False)


@pytest.mark.parametrize("text", ["torch", "torch==2.13.*", "numpy[x]>=2; python_version<'4'"])
def test_what_came_along_with_a_file_names_packages_and_versions(text: str) -> None:
    assert str(parse_requirement(text, trusted=False).name) in text


@pytest.mark.parametrize(
    "text",
    [
        "torch @ https://ada:secret@a.example/t.whl",
        "torch @ https://secret@a.example/t.whl",
        "torch @ git+https://secret@github.com/pytorch/pytorch",
        "torch @ https://ada:secret@[a.example/t.whl",
        "https://ada:secret@a.example/t.whl",
        "--index-url=https://ada:secret@a.example/simple",
    ],
)
def test_a_login_in_a_requirement_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_requirements((text,))
    assert "secret" not in json.dumps(caught.value.to_json())


def test_the_user_that_git_has_over_ssh_is_no_login() -> None:
    text = "torch @ git+ssh://git@github.com/pytorch/pytorch"
    assert check_requirements((text,)) == (text,)
