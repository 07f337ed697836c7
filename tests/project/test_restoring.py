"""Restoring a lock: which build of it, and that exactly what is locked comes, or nothing."""

from __future__ import annotations

import copy
import json
import shutil
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser.kernel_environment import find_python
from tests.project.test_lock import HOSTILE, metadata, table
from tests.standin import FILE_HOST, INDEX_HOST, SIMPLE, TORCH, StandIn, make_wheel
from tests.targets import Target, make_dependent, make_environment, selected
from torchenv_magic.accelerators import Host
from torchenv_magic.accelerators.platform import platform_of
from torchenv_magic.accelerators.records import Accelerator, ComputeCapability
from torchenv_magic.builds.backend import Backend
from torchenv_magic.cli import main
from torchenv_magic.environment import Environment, Interpreter
from torchenv_magic.errors import (
    ConsentError,
    InstallCancelled,
    LockError,
    TorchEnvError,
)
from torchenv_magic.expectation import read_expectation
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.project.lock import METADATA_KEY, NotebookLock, lock_to_json, read_lock
from torchenv_magic.project.lock_making import make_lock
from torchenv_magic.project.restoring import (
    UnknownServerError,
    choose_locked,
    make_restore_plan,
    restore_request,
)
from torchenv_magic.selection import Request, Selection, select
from torchenv_magic.status import Status

pytest_plugins = ["tests.target_fixtures"]

PLATFORM = platform_of(sys_platform="linux", machine="x86_64", glibc="2.36")
RTX = Accelerator(
    vendor="nvidia",
    name="NVIDIA GeForce RTX 4090",
    compute_capability=ComputeCapability(8, 9),
    driver_version="580.95.05",
    source="NVML",
)
OLDER_DRIVER = replace(RTX, driver_version="560.28.03")


@pytest.fixture(scope="session")
def kept_locks() -> dict[str, NotebookLock]:
    return {}


@pytest.fixture
def lock(target: Target, kept_locks: dict[str, NotebookLock]) -> NotebookLock:
    """Return what an environment with a CUDA build was locked as; `target` stays empty."""
    if "cu126" not in kept_locks:
        elsewhere = replace(target, prefix=make_environment(target.prefix.parent / "elsewhere"))
        elsewhere.fill("cu126", "torch", "torchvision")
        kept_locks["cu126"] = make_lock(elsewhere.read()).lock
    return kept_locks["cu126"]


def look(target: Target, selection: Selection) -> Status:
    return Status(
        host=Host(platform=PLATFORM),
        environment=target.read(),
        selection=selection,
        installed_backend=None,
    )


def plan_of(
    target: Target,
    lock: NotebookLock,
    backend: str = "cpu",
    *,
    sites: Sites | None = None,
    consent: bool = False,
) -> Plan:
    """Plan a restore on a machine that selects `backend`."""
    return make_restore_plan(lock, look(target, selected(backend)), sites=sites, consent=consent)


def pins(lock: NotebookLock, backend: str) -> dict[str, str]:
    locked = lock.of(Backend.parse(backend))
    assert locked is not None
    return locked.pins


def changed(lock: NotebookLock, change: Callable[[dict[str, Any]], object]) -> NotebookLock:
    """Return the lock after a change of what stands in the notebook."""
    data = copy.deepcopy(lock_to_json(lock))
    change(data)
    read = read_lock({METADATA_KEY: data})
    assert read is not None
    return read


# --------------------------------------------------------------------------------- which build


PYTHON = Interpreter(executable=Path("python"), version="3.11.7", implementation="cpython")
NOWHERE = Environment(
    interpreter=PYTHON,
    kind="venv",
    prefix=Path("venv"),
    site_packages=Path("venv"),
    has_pip=False,
    writable=True,
    externally_managed=None,
    free_bytes=0,
)


def on_machine(
    lock: NotebookLock, *accelerators: Accelerator, here: Environment = NOWHERE
) -> Status:
    host = Host(platform=PLATFORM, accelerators=accelerators)
    selection = select(host, restore_request(lock), interpreter=here.interpreter)
    return Status(host=host, environment=here, selection=selection, installed_backend=None)


def written(*backends: str) -> NotebookLock:
    """Return a lock that no index was asked for, of these alone."""
    data = metadata()[METADATA_KEY]
    data["backends"] = {name: table(name) for name in backends}
    data["ran"] = backends[0]
    lock = read_lock({METADATA_KEY: data})
    assert lock is not None
    return lock


def only(lock: NotebookLock, *backends: str) -> NotebookLock:
    kept = tuple(each for each in lock.backends if str(each.backend) in backends)
    return replace(lock, backends=kept)


def test_each_machine_gets_its_own_build_of_the_same_release() -> None:
    lock = written("cu126", "cu132", "cpu")
    for accelerators, chosen in (((), "cpu"), ((RTX,), "cu132"), ((OLDER_DRIVER,), "cu126")):
        assert str(choose_locked(lock, on_machine(lock, *accelerators)).backend) == chosen
    # The best of those that are locked, where the best of all is not.
    fewer = written("cpu", "cu126")
    assert str(choose_locked(fewer, on_machine(fewer, RTX)).backend) == "cu126"
    assert str(choose_locked(lock, on_machine(lock, RTX), backend=Backend("cpu")).backend) == "cpu"


def test_where_nothing_that_is_locked_runs_the_nearest_is_named() -> None:
    lock = written("cu126", "rocm7.2")
    with pytest.raises(LockError) as caught:
        choose_locked(lock, on_machine(lock))
    assert str(caught.value) == (
        "Nothing that the notebook's lock has runs here: cu126: no NVIDIA GPU here; "
        "rocm7.2: no AMD GPU here\n\n"
        f"hint: the nearest is `%torchenv install cpu torch=={TORCH} 'torchvision>=0.28'`, which "
        "is not locked"
    )
    with pytest.raises(LockError, match="has no build for cu118: it has cu126, rocm7"):
        choose_locked(lock, on_machine(lock), backend=Backend.parse("cu118"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("python", "3.9", "Python 3.9 on"),
        ("python", "3.14t", "Python 3.14 free-threaded on"),
        ("implementation", "pypy", "PyPy "),
        ("system", "windows", "on Windows "),
        ("machine", "riscv64", "riscv64"),
    ],
)
def test_a_lock_for_another_python_or_platform_is_refused_with_the_nearest(
    field: str, value: str, said: str
) -> None:
    lock = written("cpu", "cu126")
    other = replace(lock, target=replace(lock.target, **{field: value}))
    with pytest.raises(LockError) as caught:
        choose_locked(other, on_machine(lock, RTX))
    assert caught.value.message.startswith("The notebook's lock is for ")
    assert said in caught.value.message
    assert caught.value.message.endswith(", and this is Python 3.11 on Linux x86_64")
    assert f"`%torchenv install cu132 torch=={TORCH} " in caught.value.hint


@pytest.mark.parametrize(
    ("requirement", "other"),
    [
        ("jinja2; python_version >= '3.11'", "jinja2; python_version < '3.11'"),
        (
            "typing-extensions<4; python_full_version == '3.11.99'",
            "typing-extensions<4; python_full_version > '3.11.99'",
        ),
        (
            "typing-extensions<4; python_full_version == '3.11.99'",
            "typing-extensions>=4; python_full_version == '3.11.99'",
        ),
    ],
)
def test_what_was_asked_for_on_this_machine_has_to_be_locked(requirement: str, other: str) -> None:
    # By the Python of the environment, whichever one restores.
    here = replace(NOWHERE, interpreter=replace(PYTHON, version="3.11.99"))

    def chosen(text: str) -> str:
        lock = changed(written("cpu"), lambda data: data["asked"]["requirements"].append(text))
        return str(choose_locked(lock, on_machine(lock, here=here)).backend)

    assert chosen(other) == "cpu"
    with pytest.raises(LockError, match=r"what was asked for of (jinja2|typing-extensions) here"):
        chosen(requirement)


def test_a_request_for_a_restore_has_the_release_and_the_rest() -> None:
    lock = written("cpu")
    asked = replace(lock.asked, requirements=("Torch>=2", "lightning[extra]>=2"))
    request = restore_request(replace(lock, asked=asked), Backend("cpu"))
    assert request == Request(
        backend=Backend("cpu"), requirements=(f"torch=={TORCH}", "lightning[extra]>=2")
    )


# ------------------------------------------------------------------------------- exactly that


def test_another_machine_has_exactly_what_is_locked_and_twice_is_once(
    target: Target, lock: NotebookLock
) -> None:
    # What has come out since is not taken.
    target.standin.add_wheel(SIMPLE, make_wheel(target.prefix.parent / "new", "numpy", "99.0"))
    result = install_plan(plan_of(target, lock, "cu130"))
    assert target.versions() == pins(lock, "cu130")
    assert target.imported("torch", "torchvision") == f"{TORCH}+cu130"
    assert result.expectation == read_expectation(target.prefix)
    assert result.expectation is not None
    # As it was asked for where the lock was made, so that a later install is not held to it.
    assert result.expectation.requirements == ("torch", "torchvision")
    before = target.snapshot()
    target.standin.clear_log()
    target.standin.down = True
    again = plan_of(target, lock, "cu130")
    assert again.nothing_to_do
    assert install_plan(again).changes == ()
    assert target.snapshot() == before


def test_what_else_is_installed_stays_and_what_belongs_to_the_build_follows(
    target: Target, lock: NotebookLock
) -> None:
    target.fill("cpu", "torch", "torchaudio", "sympy")
    install_plan(plan_of(target, lock, "cu126"))
    there = target.versions()
    assert there.items() >= pins(lock, "cu126").items()
    assert there["torchaudio"].endswith("+cu126")
    assert "sympy" in there
    assert target.imported("torch", "torchvision", "torchaudio") == f"{TORCH}+cu126"


def test_to_replace_what_is_not_of_pytorch_is_asked_for_first(
    target: Target, lock: NotebookLock
) -> None:
    newer = make_wheel(target.prefix.parent / "new", "numpy", "99.0")
    target.uv("--no-deps", str(newer))
    plan = plan_of(target, lock)
    with pytest.raises(ConsentError, match=r"replace numpy 99\.0 by "):
        plan.check_consent()


def test_a_better_build_that_is_not_locked_is_mentioned(target: Target, lock: NotebookLock) -> None:
    status = on_machine(lock, RTX, here=target.read())
    plan = make_restore_plan(only(lock, "cpu", "cu126"), status)
    assert str(plan.backend) == "cu126"
    assert "cu132 is better here, and the lock does not have it" in plan.notes


# ------------------------------------------------------------------------------- whose files


def other_torch(standin: StandIn, folder: Path, backend: str = "cpu") -> None:
    """Serve another file by the name of torch's wheel."""
    name = f"torch-{TORCH}+{backend}-"
    [wheel] = [
        each.path
        for each in standin.wheels(backend)
        if each.path.name.startswith(f"{name}cp311-cp311-")
    ]
    python_tag, abi_tag, platform_tag = wheel.stem.split("-")[-3:]
    standin.add_wheel(
        backend,
        make_wheel(
            folder,
            "torch",
            f"{TORCH}+{backend}",
            requires=["filelock", "typing-extensions"],
            files={"torch/__init__.py": "raise SystemExit('another one')"},
            python_tag=python_tag,
            abi_tag=abi_tag,
            platform_tag=platform_tag,
        ),
    )


def test_what_is_fetched_has_a_hash_that_the_lock_names(
    cold_target: Target, lock_of_cpu: NotebookLock, tmp_path: Path
) -> None:
    target = cold_target
    other_torch(target.standin, tmp_path / "other")
    before = target.snapshot()
    with pytest.raises(LockError, match="has another file by the name of `torch-") as caught:
        plan_of(target, lock_of_cpu, consent=True)
    assert "find out who has changed it" in caught.value.hint
    # Also where the index tells no hashes: then uv holds what comes against the lock's.
    target.standin.hashes = False
    plan = plan_of(target, lock_of_cpu, consent=True)
    assert plan.lock_format == "requirements"
    with pytest.raises(TorchEnvError, match="hash"):
        install_plan(plan)
    assert target.snapshot() == before
    target.standin.reset()
    target.standin.hashes = False
    install_plan(plan_of(target, lock_of_cpu))
    assert target.versions() == pins(lock_of_cpu, "cpu")


@pytest.fixture
def lock_of_cpu(cold_target: Target, kept_locks: dict[str, NotebookLock]) -> NotebookLock:
    """Return the lock of torch alone, for tests that begin with an empty cache."""
    if "cpu" not in kept_locks:
        elsewhere = replace(cold_target, prefix=make_environment(cold_target.prefix.parent / "it"))
        elsewhere.fill("cpu")
        lock = make_lock(elsewhere.read(), backends=[None]).lock
        kept_locks["cpu"] = lock
        shutil.rmtree(cold_target.prefix.parent / "cache")
    return kept_locks["cpu"]


def test_a_server_that_nobody_named_is_an_error_and_never_asked(
    target: Target, lock: NotebookLock
) -> None:
    def lead_away(data: dict[str, Any]) -> None:
        for each in data["backends"]["cpu"]["packages"]:
            if each["name"] == "numpy":
                wheel = each["wheels"][0]
                name = wheel["url"].rpartition("/")[2]
                wheel["url"] = f"https://evil.example/{name}"

    led = changed(lock, lead_away)
    before = target.snapshot()
    with pytest.raises(UnknownServerError) as caught:
        plan_of(target, led)
    assert str(caught.value) == (
        "The notebook's lock has numpy from `evil.example`, which nothing here names\n\n"
        "hint: `%torchenv restore --yes` takes the same file, by its hash, from this machine's "
        "own index"
    )
    assert target.snapshot() == before
    plan = plan_of(target, led, consent=True)
    assert "evil.example" not in plan.lock
    install_plan(plan)
    assert target.versions() == pins(lock, "cpu")
    assert not [r for r in target.standin.requests if r.host == "evil.example"]


def source_that_runs(folder: Path, name: str) -> Path:
    """Make a source distribution in `folder` whose build leaves a trace; return where."""
    ran = folder.parent / f"{name}-ran"
    source = folder.parent / f"{name}-1.0"
    source.mkdir()
    backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (source / "pyproject.toml").write_text(backend, encoding="utf-8")
    (source / "backend.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    (source / "PKG-INFO").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
    )
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    return ran


def test_nothing_that_a_lock_names_is_ever_built(
    target: Target, lock: NotebookLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build runs the code of whoever wrote the package, which a stranger's lock may choose."""
    traces = [source_that_runs(tmp_path / "wheels", name) for name in ("asked", "locked")]
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    named = copy.deepcopy(lock_to_json(lock)["backends"]["cpu"]["packages"][0])
    named["name"], named["version"] = "locked", "1.0"
    named["wheels"][0]["url"] = f"https://{FILE_HOST}/whl/cpu/locked-1.0-py3-none-any.whl"

    asked = "asked; python_version > '3'"
    asking = changed(lock, lambda data: data["asked"]["requirements"].append(asked))
    naming = changed(lock, lambda data: data["backends"]["cpu"]["packages"].append(named))
    before = target.snapshot()
    with pytest.raises(LockError, match="what was asked for of asked here is not in its table"):
        plan_of(target, asking)
    with pytest.raises(LockError, match="What is locked can't be had here: "):
        plan_of(target, naming)
    assert [trace for trace in traces if trace.exists()] == []
    assert target.snapshot() == before


def test_a_lock_that_is_incomplete_or_has_other_wheels_is_not_kept(
    target: Target, lock: NotebookLock
) -> None:
    def drop(data: dict[str, Any]) -> None:
        table = data["backends"]["cpu"]
        table["packages"] = [each for each in table["packages"] if each["name"] != "numpy"]

    def rename(data: dict[str, Any]) -> None:
        for each in data["backends"]["cpu"]["packages"]:
            if each["name"] == "numpy":
                each["wheels"][0]["url"] = each["wheels"][0]["url"].replace("py3-none", "cp2-none")
                each["wheels"][0]["hashes"]["sha256"] = "0" * 64

    with pytest.raises(LockError, match="what is locked needs numpy here, which is not locked"):
        plan_of(target, changed(lock, drop))
    with pytest.raises(LockError, match="which is another wheel than the one that was locked"):
        plan_of(target, changed(lock, rename))
    assert target.versions() == {}


def test_a_version_that_nobody_has_is_told_with_the_nearest(
    target: Target, lock: NotebookLock
) -> None:
    def age(data: dict[str, Any]) -> None:
        for each in data["backends"]["cpu"]["packages"]:
            if each["name"] == "numpy":
                address = each["wheels"][0]["url"].replace(each["version"], "1.0")
                each["wheels"][0]["url"], each["version"] = address, "1.0"

    with pytest.raises(LockError, match="What is locked can't be had here: ") as caught:
        plan_of(target, changed(lock, age))
    assert f"`%torchenv install cpu torch=={TORCH} torchvision`" in caught.value.hint


def test_a_lock_that_would_break_what_is_installed_goes_elsewhere(
    target: Target, lock: NotebookLock
) -> None:
    target.fill("cpu", "torch==2.12.0")
    target.uv("--no-deps", str(make_dependent(target.prefix.parent / "wheels")))
    before = target.snapshot()
    with pytest.raises(LockError, match=r"needs212 1\.0 requires torch==2\.12\.0") as caught:
        plan_of(target, lock)
    assert caught.value.hint == "restore it in an environment of its own"
    assert target.snapshot() == before


def test_a_mirror_serves_what_was_locked_from_the_index(target: Target, lock: NotebookLock) -> None:
    target.standin.clear_log()
    sites = read_sites(index_base=target.standin.mirror_base, prefix=target.prefix, files=())
    plan = plan_of(target, lock, "cu126", sites=sites)
    assert plan.source.kind == "mirror"
    install_plan(plan)
    assert target.versions() == pins(lock, "cu126")
    assert not [r for r in target.standin.requests if r.host in (INDEX_HOST, FILE_HOST)]


def fill(folder: Path, target: Target, lock: NotebookLock) -> Path:
    """Lay every wheel that is locked into the folder."""
    folder.mkdir()
    wanted = {each.file_name for package in lock.backends[0].packages for each in package.wheels}
    for wheel in (*target.standin.wheels("cpu"), *target.standin.wheels(SIMPLE)):
        if wheel.path.name in wanted:
            shutil.copy(wheel.path, folder)
    return folder


def test_a_folder_serves_it_without_a_network_if_its_files_are_the_same(
    cold_target: Target, lock_of_cpu: NotebookLock, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "wheels", cold_target, lock_of_cpu)
    cold_target.standin.down = True
    sites = read_sites(find_links=[str(folder)], prefix=cold_target.prefix, files=())
    plan = plan_of(cold_target, lock_of_cpu, sites=sites)
    assert plan.source.kind == "folder"
    install_plan(plan)
    assert cold_target.versions() == pins(lock_of_cpu, "cpu")


def test_a_folder_with_other_files_hides_none_that_has_the_locked_ones(
    cold_target: Target, lock_of_cpu: NotebookLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cold_target
    good = fill(tmp_path / "good", target, lock_of_cpu)
    other_torch(target.standin, tmp_path / "other")
    bad = fill(tmp_path / "bad", target, lock_of_cpu)
    target.standin.down = True
    monkeypatch.setenv("PIP_FIND_LINKS", bad.as_uri())
    with pytest.raises(LockError, match="has another file by the name of `torch-"):
        plan_of(target, lock_of_cpu)

    monkeypatch.setenv("PIP_FIND_LINKS", f"{bad.as_uri()} {good.as_uri()}")
    with pytest.raises(
        IndexUnreachableError, match=rf"The wheel folder {good} has torch"
    ) as caught:
        plan_of(target, lock_of_cpu)
    assert [offer.source.location for offer in caught.value.offers] == [str(good)]
    plan = plan_of(target, lock_of_cpu, consent=True)
    assert any("with your consent" in note for note in plan.notes)
    install_plan(plan)
    assert target.versions() == pins(lock_of_cpu, "cpu")


def test_without_a_network_uvs_cache_restores_it(target: Target, lock: NotebookLock) -> None:
    for backend in ("cpu", "cu126"):
        install_plan(plan_of(target, lock, backend))
    target.standin.clear_log()
    target.standin.down = True
    plan = plan_of(target, lock)
    assert plan.download_bytes == 0
    assert all(download.cached for download in plan.downloads)
    assert {change.name for change in plan.of("remove")} == {"triton"}
    # Its addresses are the lock's own: what the cache has no more is not fetched from there.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_CACHE_DIR", str(target.prefix.parent / "emptied"))
        target.standin.down = False
        before = target.snapshot()
        with pytest.raises(TorchEnvError):
            install_plan(plan)
        assert target.snapshot() == before
        target.standin.down = True
    assert target.standin.downloads() == ()
    install_plan(plan)
    assert target.versions() == pins(lock, "cpu")
    assert target.imported() == f"{TORCH}+cpu"
    assert target.standin.downloads() == ()
    with pytest.raises(IndexUnreachableError) as caught:
        plan_of(target, lock, "xpu")
    assert caught.value.offers == ()


def test_a_cancelled_restore_leaves_the_environment_as_it_was(
    cold_target: Target, lock_of_cpu: NotebookLock
) -> None:
    before = cold_target.snapshot()
    plan = plan_of(cold_target, lock_of_cpu)
    cancellation = Cancellation()

    def stop(event: Event) -> None:
        if event.phase == "download":
            threading.Thread(target=cancellation.cancel).start()

    cold_target.standin.rate = 100_000
    with pytest.raises(InstallCancelled):
        install_plan(plan, on_event=stop, cancellation=cancellation)
    assert cold_target.snapshot() == before


# --------------------------------------------------------------------------------- in a terminal


def notebook(folder: Path, data: object = None) -> Path:
    path = folder / "a notebook.ipynb"
    metadata = {} if data is None else {METADATA_KEY: data}
    content = {"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def torchenv(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_terminal_locks_in_one_environment_and_restores_in_another(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = notebook(tmp_path)
    target.fill("cu126", "torch", "torchvision")
    elsewhere = replace(target, prefix=make_environment(tmp_path / "elsewhere"))
    assert torchenv("lock", file, "cpu", "--json", "--python", target.python) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"]
    assert told["left_out"] == []
    kept = file.read_bytes()
    lock = read_lock(json.loads(kept)["metadata"])
    assert lock is not None
    assert told["lock"] == lock_to_json(lock)
    assert torchenv("lock", file, "cpu", "--python", target.python) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Locked torch {TORCH} for cu126, cpu (Python 3.")
    assert f"\nThat is what stands already in `{file}`.\n" in said
    assert file.read_bytes() == kept

    assert torchenv("restore", file, "--python", elsewhere.python) == 0
    assert "PyTorch works" in capsys.readouterr().out
    assert elsewhere.versions() == pins(lock, "cpu")
    before = elsewhere.snapshot()
    assert torchenv("restore", file, "--json", "--python", elsewhere.python) == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["result"]["changes"] == []
    assert all(json.loads(line) for line in answer.err.splitlines())
    assert elsewhere.snapshot() == before
    assert file.read_bytes() == kept


@pytest.mark.parametrize("name", ["plain http", "an sdist", "an option", "a name of two lines"])
def test_a_hostile_lock_is_one_message_and_changes_nothing(
    target: Target,
    lock: NotebookLock,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = lock_to_json(only(lock, "cpu", "cu126"))
    # The changes are made to the first package.
    data["backends"]["cpu"]["packages"].sort(key=lambda package: package["name"] != "torch")
    HOSTILE[name][0](data)
    file = notebook(tmp_path, data)
    before = target.snapshot()
    target.standin.clear_log()
    assert torchenv("restore", file, "--yes", "--python", target.python) == 1
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.startswith("error: The notebook's lock is not to be trusted: ")
    assert answer.err.count("hint: ") == 1
    assert target.snapshot() == before
    assert target.standin.requests == ()


def test_a_lock_that_is_newer_or_missing_is_one_message_and_changes_nothing(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target.fill("cpu")
    file = notebook(tmp_path, {"schema": 7})
    before = (target.snapshot(), file.read_bytes())
    for word in ("lock", "restore"):
        assert torchenv(word, file, "--python", target.python) == 1
        assert "lock has schema 7: this version knows 1" in capsys.readouterr().err
    assert (target.snapshot(), file.read_bytes()) == before
    assert torchenv("restore", notebook(tmp_path), "--python", target.python) == 1
    assert f"There is no lock in `{file}`" in capsys.readouterr().err
    assert torchenv("restore", tmp_path / "none.ipynb", "--python", target.python) == 1
    assert target.snapshot() == before[0]


def test_another_python_is_refused_with_a_line_for_that_python(
    target: Target, lock: NotebookLock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = lock.target.python
    other = find_python("3.12" if here != "3.12" else "3.13")
    if other is None:
        pytest.skip("this machine has one Python")
    elsewhere = replace(target, prefix=make_environment(tmp_path / "elsewhere", other))
    before = elsewhere.snapshot()
    file = notebook(tmp_path, lock_to_json(lock))
    assert torchenv("restore", file, "--python", elsewhere.python) == 1
    said = capsys.readouterr().err
    assert f"lock is for Python {here} on " in said
    assert f"`torchenv install --python {elsewhere.python} cpu torch=={TORCH} torchvision`" in said
    assert elsewhere.snapshot() == before


def test_what_was_locked_from_a_mirror_comes_back_from_it(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = target.standin.mirror_base.replace("127.0.0.1", "localhost")
    file = notebook(tmp_path)
    there = ("--python", target.python, "--index-base", mirror)
    assert torchenv("install", "cpu", *there) == 0
    assert torchenv("lock", file, "cpu", *there) == 0
    assert "localhost" in file.read_text(encoding="utf-8")
    assert torchenv("restore", file, *there) == 0
    assert torchenv("restore", file, "--python", target.python) == 1
    assert "comes by http from `localhost`" in capsys.readouterr().err


def test_a_server_that_nobody_named_is_asked_about_with_the_same_line(
    target: Target, lock: NotebookLock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(lock_to_json(lock)).replace(
        f"{target.standin.simple_url.removesuffix('/simple/')}/files", "https://evil.example"
    )
    file = notebook(tmp_path, json.loads(text))
    assert torchenv("restore", file, "--python", target.python) == 1
    said = capsys.readouterr().err
    assert "from `evil.example`, which nothing here names" in said
    assert "hint: `torchenv restore " in said
    assert " --yes` takes the same file, by its hash" in said
