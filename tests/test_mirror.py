"""A mirror of the PyTorch index: the same pins, nothing of the index itself, never PyPI's torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.standin import FILE_HOST, Fault, StandIn, make_wheel
from tests.standin.server import INDEX_HOST
from tests.targets import Target, selected
from tests.workplace import Workplace
from torchenv_magic.errors import RequestError, SourceError, TorchEnvError
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.plan import Plan, Source
from torchenv_magic.installation.planning import make_plan
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.sources import source_environment
from torchenv_magic.selection import Request
from torchenv_magic.serialization import to_json
from torchenv_magic.status import read_selection
from torchenv_magic.words import parse_words

pytest_plugins = ["tests.target_fixtures"]

SECRET = "s3cret-of-ada"


def plan_from(
    target: Target,
    base: str,
    backend: str = "cu126",
    *requirements: str,
    consent: bool = False,
    events: list[Event] | None = None,
) -> Plan:
    return make_plan(
        selected(backend),
        target.read(),
        Request(requirements=requirements or ("torch",)),
        sites=read_sites(index_base=base, prefix=target.prefix, files=()),
        consent=consent,
        on_event=events.append if events is not None else None,
    )


@contextmanager
def configuration_file(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.toml")
        file.write_text(text, encoding="utf-8")
        yield file


def asked_of_pytorch(standin: StandIn) -> list[str]:
    return [r.path for r in standin.requests if r.host in (INDEX_HOST, FILE_HOST)]


@pytest.mark.parametrize("backend", ["cpu", "cu126", "rocm7.2", "xpu"])
def test_a_mirror_gives_the_pins_that_the_index_gives(target: Target, backend: str) -> None:
    names = ("torch", "torchvision", "torchaudio")
    ours = plan_from(target, target.standin.mirror_base, backend, *names)
    assert asked_of_pytorch(target.standin) == []
    assert ours.versions == target.plan(backend, *names).versions


def test_what_a_mirror_has_is_installed_without_a_word_to_the_index(target: Target) -> None:
    plan = plan_from(target, target.standin.mirror_base, "cu126", "torch", "torchvision")
    assert "(as --index-base says)" in str(plan)
    install_plan(plan)
    assert target.backend() == "cu126"
    assert target.versions()["torchvision"].endswith("+cu126")
    assert asked_of_pytorch(target.standin) == []
    again = plan_from(target, target.standin.mirror_base, "cu126", "torch", "torchvision")
    assert again.nothing_to_do


def test_a_switch_from_a_mirror_takes_every_member_along(target: Target) -> None:
    target.fill("cpu", "torch", "torchvision")
    target.standin.clear_log()
    plan = plan_from(target, target.standin.mirror_base, "cu126")
    assert {plan.versions[name].partition("+")[2] for name in ("torch", "torchvision")} == {"cu126"}
    assert asked_of_pytorch(target.standin) == []


@pytest.mark.parametrize("consent", [False, True])
def test_a_misspelt_mirror_never_ends_in_pypis_torch(target: Target, consent: bool) -> None:  # noqa: FBT001
    with pytest.raises(SourceError, match="has no PyTorch for cu126: HTTP 404") as caught:
        plan_from(target, f"{target.standin.mirror_base}l", consent=consent)
    assert "mirror" in caught.value.hint


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_mirror_that_refuses_never_ends_in_pypis_torch(target: Target, status: int) -> None:
    target.standin.faults = (Fault(pattern="/whl/", kind="status", status=status),)
    with pytest.raises(SourceError):
        plan_from(target, target.standin.mirror_base, consent=True)


def test_a_mirror_that_is_away_is_told_and_pypi_is_not_offered(target: Target) -> None:
    with pytest.raises(SourceError, match="can't be reached") as caught:
        plan_from(target, "http://127.0.0.1:9/whl", "cu130", consent=True)
    assert getattr(caught.value, "offers", ()) == ()


def test_a_member_that_the_mirror_lacks_is_not_taken_from_pypi(target: Target) -> None:
    for wheel in target.standin.wheels("cu126"):
        if wheel.name == "torchvision":
            target.standin.remove_wheel("cu126", wheel.path.name)
    with pytest.raises(SourceError, match="has no torchvision for cu126"):
        plan_from(target, target.standin.mirror_base, "cu126", "torch", "torchvision")


def test_a_cpu_wheel_without_a_build_in_its_version_has_to_come_from_the_mirror(
    target: Target, tmp_path: Path
) -> None:
    for wheel in target.standin.wheels("cpu"):
        if wheel.name == "torch":
            target.standin.remove_wheel("cpu", wheel.path.name)
    target.standin.add_wheel("cpu", make_wheel(tmp_path, "torch", "2.13.0"))
    plan = plan_from(target, target.standin.mirror_base, "cpu")
    assert plan.versions["torch"] == "2.13.0"
    assert "/whl/cpu/torch-2.13.0-" in plan.lock


def test_a_mirror_without_hashes_is_installed_from(target: Target) -> None:
    target.standin.hashes = False
    plan = plan_from(target, target.standin.mirror_base)
    assert plan.lock_format == "requirements"
    install_plan(plan)
    assert target.backend() == "cu126"
    assert asked_of_pytorch(target.standin) == []


def test_a_mirror_may_be_a_folder(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "my mirror"
    by_name: dict[str, list[Path]] = {}
    for wheel in target.standin.wheels("cu126"):
        by_name.setdefault(wheel.name, []).append(wheel.path)
    for name, paths in by_name.items():
        page = base / "cu126" / name
        page.mkdir(parents=True)
        links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in paths)
        (page / "index.html").write_text(f"<html><body>{links}</body></html>", encoding="utf-8")
        for path in paths:
            shutil.copy(path, page)
    plan = plan_from(target, str(base))
    install_plan(plan)
    assert target.backend() == "cu126"
    assert asked_of_pytorch(target.standin) == []
    with pytest.raises(SourceError, match="has no PyTorch for cu130"):
        plan_from(target, str(base), "cu130")
    monkeypatch.setenv("TORCHENV_INDEX_BASE", str(base))
    listed = {str(a.backend): a for a in read_selection(refresh="always").alternatives}
    assert listed["cu126"].torch == "2.13.0"
    assert listed["cu130"].torch is None
    assert asked_of_pytorch(target.standin) == []


def test_the_variable_is_heard_where_nobody_passes_anything(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHENV_INDEX_BASE", target.standin.mirror_base)
    plan = target.plan("cu126")
    assert plan.source.origin == "TORCHENV_INDEX_BASE"
    assert asked_of_pytorch(target.standin) == []


# ----------------------------------------------------------------------------------------- secrets


@pytest.fixture
def guarded(target: Target, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Return a target whose mirror demands a login, which nobody remembers."""
    monkeypatch.setattr("torchenv_magic.web._logins", {})
    target.standin.login = ("ada", SECRET)
    # Nothing that a test before fetched: every file is asked for with the login.
    monkeypatch.setenv("UV_CACHE_DIR", str(target.prefix.parent / "own-cache"))
    return target


def _watch(found: list[str], stop: threading.Event) -> None:
    while not stop.is_set():
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if SECRET in line:
                found.append(line)
        stop.wait(0.01)


def _with_login(base: str) -> str:
    return base.replace("http://", f"http://ada:{SECRET}@")


@pytest.mark.parametrize("hashes", [True, False])
def test_a_login_in_the_address_opens_the_mirror_and_is_seen_nowhere(
    guarded: Target,
    hashes: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    guarded.standin.hashes = hashes
    caplog.set_level("DEBUG")
    events: list[Event] = []
    seen: list[str] = []
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, stop))
    watcher.start()
    try:
        plan = plan_from(
            guarded,
            _with_login(guarded.standin.mirror_base),
            "cu126",
            "torch",
            "torchvision",
            events=events,
        )
        install_plan(plan, on_event=events.append)
    finally:
        stop.set()
        watcher.join()
    assert guarded.backend() == "cu126"
    kept = "".join(
        path.read_text("utf-8", "replace")
        for path in (guarded.prefix / ".torchenv").rglob("*")
        if path.is_file()
    )
    told = (json.dumps(to_json(plan)), str(plan), str(events), caplog.text, kept, plan.lock)
    assert [text for text in told if SECRET in text] == []
    assert seen == []
    assert not plan.unknown_sizes or not hashes


@pytest.mark.parametrize("way", ["variables", "netrc"])
def test_a_login_is_taken_from_where_uv_takes_it(
    guarded: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "netrc":
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine 127.0.0.1 login ada password {SECRET}\n", encoding="utf-8")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
    else:
        monkeypatch.setenv("UV_INDEX_TORCHENV_USERNAME", "ada")
        monkeypatch.setenv("UV_INDEX_TORCHENV_PASSWORD", SECRET)
    plan = plan_from(guarded, guarded.standin.mirror_base)
    assert plan.unknown_sizes == 0
    install_plan(plan)
    assert guarded.backend() == "cu126"


@pytest.mark.parametrize("login", ["", "ada:wrong-password@"])
def test_a_mirror_that_wants_another_login_says_so_without_telling_it(
    guarded: Target, login: str
) -> None:
    base = guarded.standin.mirror_base.replace("http://", f"http://{login}")
    with pytest.raises(TorchEnvError, match="login") as caught:
        plan_from(guarded, base)
    assert "wrong-password" not in json.dumps(caught.value.to_json())
    assert "netrc" in caught.value.hint
    assert os.environ.get("UV_INDEX_TORCHENV_PASSWORD") is None


# ------------------------------------------------------------------------------------- the listing


def test_the_listing_is_the_mirrors_and_is_kept_apart_from_the_indexs(
    guarded: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = guarded.standin
    monkeypatch.setenv("TORCHENV_INDEX_BASE", _with_login(standin.mirror_base))
    selection = read_selection(refresh="always")
    assert f"the mirror {standin.mirror_base}, read just now" in selection.catalog.source
    assert {item.torch for item in selection.alternatives if item.fits} == {"2.13.0"}
    assert asked_of_pytorch(standin) == []
    # What it said is remembered without a request, and is nothing that the index has said.
    standin.clear_log()
    assert read_selection().catalog.source == selection.catalog.source
    monkeypatch.delenv("TORCHENV_INDEX_BASE")
    assert "mirror" not in read_selection().catalog.source
    assert standin.requests == ()


@pytest.mark.parametrize("word", ["list", "plan", "install"])
def test_no_word_asks_the_index_where_a_mirror_is_named(
    guarded: Target, tmp_path: Path, word: str
) -> None:
    standin = guarded.standin
    configuration = guarded.prefix / "etc" / "torchenv" / "config.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f'index-base = "{_with_login(standin.mirror_base)}"\n', "utf-8")
    command = [sys.executable, "-m", "torchenv_magic", word, f"--python={guarded.python}"]
    command += ["--refresh"] if word == "list" else ["cu126", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False, timeout=120
    )
    if word != "install":  # a made torch proves nothing on this machine
        assert done.returncode == 0, done.stderr
    else:
        assert guarded.backend() == "cu126"
    assert asked_of_pytorch(standin) == []
    assert any(request.path.startswith("/whl/cu126/torch/") for request in standin.requests)
    assert SECRET not in done.stdout + done.stderr
    kept = "".join(
        path.read_text("utf-8", "replace")
        for path in (guarded.prefix / ".torchenv").rglob("*")
        if path.is_file()
    )
    assert SECRET not in kept


def test_a_login_in_the_line_is_not_repeated() -> None:
    words = parse_words(
        ["install", "cu126", f"--index-base=https://ada:{SECRET}@mirror.example/whl"],
        notebook=True,
    )
    assert words.index_base is not None
    assert SECRET in words.index_base
    assert words.line == "%torchenv install cu126 --index-base=https://mirror.example/whl"


def test_an_address_from_a_persons_own_hand_is_warned_of(target: Target) -> None:
    [wheel] = [
        wheel
        for wheel in target.standin.wheels("cu126")
        if wheel.name == "torch" and f"-{target.read().interpreter.tag}-" in wheel.path.name
        if "2.13.0" in wheel.path.name
    ]
    address = f"{target.standin.mirror_url('cu126')}/{wheel.path.name.replace('+', '%2B')}"
    plan = target.plan("cu126", f"torch @ {address}")
    assert any(address in note and "vouches" in note for note in plan.notes)


@pytest.mark.parametrize(
    "address",
    ["https://a.example/torch-2.13.0.tar.gz", "git+https://a.example/pytorch", "file:///src/torch"],
)
def test_the_family_is_not_built_unless_that_is_asked_for(target: Target, address: str) -> None:
    with pytest.raises(RequestError, match="would be built here") as caught:
        target.plan("cu126", f"torch @ {address}")
    assert "--allow-sdist" in caught.value.hint


def test_a_source_distribution_of_torch_is_not_taken_from_uvs_own_folders(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    source = tmp_path / "torch-2.99.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with tarfile.open(wheels / "torch-2.99.0.tar.gz", "w:gz") as archive:
        archive.add(source, "torch-2.99.0")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    assert target.plan("cu126").versions["torch"] == "2.13.0+cu126"
    assert not ran.exists()
    # Asked for, it is taken; what builds it is not there in this index.
    with pytest.raises(TorchEnvError) as caught:
        make_plan(selected("cu126"), target.read(), Request(), sites=Sites(allow_sdist=True))
    assert "2.99.0" in caught.value.detail


def test_a_mirror_of_pages_alone_is_told_and_not_followed(target: Target, tmp_path: Path) -> None:
    for name in ("torch", "triton"):
        links = "".join(
            f'<a href="https://{FILE_HOST}/whl/cu126/{wheel.path.name.replace("+", "%2B")}'
            f'#sha256={wheel.sha256}">{wheel.path.name}</a>'
            for wheel in target.standin.wheels("cu126")
            if wheel.name == name
        )
        (tmp_path / "cu126" / name).mkdir(parents=True)
        (tmp_path / "cu126" / name / "index.html").write_text(f"<html>{links}</html>", "utf-8")
    with pytest.raises(SourceError, match=f"to {FILE_HOST}") as caught:
        plan_from(target, str(tmp_path))
    assert "files" in caught.value.hint


def test_a_persons_own_indexes_stay_behind_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchenv_magic.web._logins", {})
    source = Source(kind="mirror", location="https://mirror.example/whl/cu126")
    child = source_environment(source, {"UV_INDEX": "own=https://own.example/simple"})
    assert child["UV_INDEX"].split() == [
        "torchenv=https://mirror.example/whl/cu126/",
        "own=https://own.example/simple",
    ]
    assert "UV_INDEX_TORCHENV_PASSWORD" not in child
    index = Source(kind="index", location="https://download.pytorch.org/whl/cu126")
    assert source_environment(index, {"UV_INDEX": "own"}) == {"UV_INDEX": "own"}


def test_every_line_of_the_page_on_mirrors_is_understood() -> None:
    page = Path(__file__).parents[1].joinpath("docs", "mirrors.md").read_text("utf-8")
    lines = re.findall(r"^\$ torchenv (.*)$", page, re.MULTILINE)
    assert lines
    for line in lines:
        assert parse_words(shlex.split(line), notebook=False).word
    configuration = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert configuration is not None
    with configuration_file(configuration[1]) as file, pytest.raises(RequestError, match="/srv"):
        # The address is understood; the folder is one of the page's.
        read_sites(environ={}, files=(file,))


def test_a_line_of_a_notebook_takes_its_mirror(workplace: Workplace) -> None:
    workplace.standin.login = ("ada", SECRET)
    base = _with_login(workplace.standin.mirror_base)
    with workplace.kernel() as (kernel, _):
        kernel.run("%load_ext torchenv_magic", cell_id="cell")
        request = kernel.send(
            f"plan = %torchenv plan cu126 --index-base {base}\nprint(plan)", cell_id="cell"
        )
        said = kernel.printed(request)
    assert "(as --index-base says)" in said
    assert "torch 2.13.0+cu126" in said
    assert SECRET not in said
    assert asked_of_pytorch(workplace.standin) == []
