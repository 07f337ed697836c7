"""A layer is shared by links: pip and uv see packages, and nobody's hand reaches the layer."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.layers.shelves import CPU, Shelf, run, uv
from tests.preinstall.desk import make_desk
from tests.standin import StandIn, make_wheel
from tests.targets import Target, selected, settle
from torchenv_magic.cli import main
from torchenv_magic.environment import read_environment
from torchenv_magic.errors import ConflictError, InstallError, TargetError
from torchenv_magic.installation.layers import (
    Layer,
    attach,
    attach_new,
    attached,
    choose_layer,
    detach,
    find_layers,
    read_layer,
)
from torchenv_magic.installation.layers_build import build_layer, check_layer, remove_layer
from torchenv_magic.installation.layers_links import pieces_of, write_pieces
from torchenv_magic.installation.layers_record import MANIFEST, Unusable
from torchenv_magic.installation.layers_trust import path_problem, tree_problem
from torchenv_magic.installation.seeds import cache_problem, seed_cache
from torchenv_magic.installation.undo import undo_install
from torchenv_magic.interpreter import running_interpreter
from torchenv_magic.preinstall.place import KERNEL_NAME, KERNEL_TITLE, jupyter_folder
from torchenv_magic.selection import Request
from torchenv_magic.verification import verify

pytest_plugins = ["tests.kernel_wheels", "tests.layers.fixtures", "tests.target_fixtures"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a layer is attached by links")

STRANGER = 54321


@pytest.fixture
def user(target: Target, shelf: Shelf, tmp_path: Path) -> Target:
    """Return an environment that was made of the layer, led to the stand-in."""
    folder = tmp_path / "own"
    attach_new(shelf.layer, folder, Path(sys.executable), command="a test")
    return replace(target, prefix=folder, plans={})


def copy_of(layer: Layer, goal: Path) -> None:
    """Give a layer a second place; a file is one with the first's until it is rewritten."""
    shutil.copytree(layer.directory, goal, copy_function=os.link)


def rewrite(path: Path, content: bytes) -> Path:
    path.unlink()
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------- what a layer is


def test_an_environment_of_a_layer_is_a_kernel_and_works(user: Target, shelf: Shelf) -> None:
    before = shelf.state()
    code = "import ipykernel, torch, torchenv_magic.notebook.magic; print(torch.__file__)"
    assert run(user.python, "-I", "-c", code) == str(user.site / "torch" / "__init__.py")
    assert user.versions() == shelf.layer.versions
    environment = user.read()
    assert environment.kind == "venv"
    assert str(verify(environment, None, in_process=False)).startswith("PyTorch works")
    # Byte-compiled for everybody: who imports it writes nothing, there or here.
    assert shelf.state() == before
    assert not [path for path in user.prefix.rglob("*.pyc") if not path.is_symlink()]


def test_a_further_environment_takes_few_bytes(shelf: Shelf, tmp_path: Path) -> None:
    attach_new(shelf.layer, tmp_path / "own", Path(sys.executable))
    taken = sum(path.lstat().st_blocks * 512 for path in (tmp_path / "own").rglob("*"))
    assert taken < 5 * 1024**2


def test_a_layer_that_was_not_built_to_its_end_is_none(shelf: Shelf, tmp_path: Path) -> None:
    half = tmp_path / "half"
    (half / shelf.layer.site).mkdir(parents=True)
    assert find_layers([tmp_path]) == ()
    with pytest.raises(InstallError, match="no layer that can be used"):
        read_layer(half)


def test_a_failed_build_leaves_nothing(target: Target, shelf: Shelf, tmp_path: Path) -> None:
    target.standin.reset()
    request = Request(requirements=("torch", "no-such-package-of-anybody"))
    with pytest.raises(Exception, match="no-such-package"):
        build_layer(tmp_path / "shelf", request, CPU, sites=shelf.sites)
    assert list((tmp_path / "shelf").iterdir()) == []


@pytest.mark.usefixtures("target")
def test_a_layer_is_never_replaced_under_those_who_have_links_to_it(shelf: Shelf) -> None:
    before = shelf.state()
    with pytest.raises(InstallError, match="is there already"):
        build_layer(shelf.folder, Request(), CPU, sites=shelf.sites)
    assert [path.name for path in shelf.folder.iterdir()] == [shelf.layer.directory.name]
    assert shelf.state() == before


def test_a_look_through_a_layer_finds_what_was_changed(shelf: Shelf, tmp_path: Path) -> None:
    copy = tmp_path / shelf.layer.directory.name
    copy_of(shelf.layer, copy)
    assert check_layer(copy).ok
    torch = copy / shelf.layer.site / "torch"
    rewrite(torch / "version.py", (torch / "version.py").read_bytes()).chmod(0o666)
    rewrite(torch / "__init__.py", b"#")
    (torch / "added.py").write_bytes(b"#")
    checked = check_layer(copy)
    assert checked.problems == (
        f"{shelf.layer.site}/torch/__init__.py was changed",
        f"{shelf.layer.site}/torch/added.py was added",
    )
    assert "everybody can write" in checked.writable
    assert remove_layer(copy) == shelf.layer.size_bytes
    assert not copy.exists()


# ------------------------------------------------------------------------------- pip, uv and links


def test_pip_and_uv_take_what_is_attached_for_installed(user: Target, tmp_path: Path) -> None:
    said = uv("check", f"--python={user.python}")
    assert "compatible" in said
    wheel = make_wheel(tmp_path / "wheels", "needs_any", "1.0", requires=["torch>=2", "filelock"])
    said = uv("install", f"--python={user.python}", f"--find-links={wheel.parent}", "needs-any")
    assert "Installed 1 package" in said
    said = pip(user, "install", "--no-index", f"--find-links={wheel.parent}", "needs-any")
    assert said.count("Requirement already satisfied") >= 3
    assert "No broken requirements" in pip(user, "check")


def pip(user: Target, *arguments: str) -> str:
    """Run the real pip, as `%pip` in a notebook does."""
    return run(Path(sys.executable), "-m", "pip", f"--python={user.python}", *arguments)


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_what_is_uninstalled_takes_its_own_links_and_nobody_elses(
    user: Target, shelf: Shelf, tool: str
) -> None:
    before = shelf.state()
    gone, stays = "nvidia-left", "nvidia-right"
    if tool == "uv":
        uv("uninstall", f"--python={user.python}", gone)
    else:
        pip(user, "uninstall", "--yes", gone)
    piece = {package.name: package.piece for package in shelf.layer.packages}
    assert not [link for link in piece[gone].links if os.path.lexists(user.prefix / link)]
    assert all(os.path.lexists(user.prefix / link) for link in piece[stays].links)
    uv("uninstall", f"--python={user.python}", stays)
    assert not (user.site / "nvidia").exists()
    assert shelf.state() == before


@pytest.mark.parametrize("tool", ["pip", "uv", "torchenv"])
def test_another_build_is_installed_over_a_layer_that_stays_as_it_is(
    user: Target, shelf: Shelf, tool: str, tmp_path: Path
) -> None:
    before = shelf.state()
    if tool == "torchenv":
        user.install("cu126")
    elif tool == "uv":
        uv("install", f"--python={user.python}", "--torch-backend=cu126", "--reinstall", "torch")
    else:
        wheel = make_wheel(
            tmp_path / "w", "torch", "2.99", files={"torch/__init__.py": "__version__ = '2.99'"}
        )
        pip(user, "install", "--no-index", f"--find-links={wheel.parent}", "-U", "torch")
    assert user.imported() == ("2.99" if tool == "pip" else "2.13.0+cu126")
    assert not (user.site / "torch").is_symlink()
    assert shelf.state() == before
    if tool == "torchenv":
        undo_install(user.read())
        settle()
        assert (user.site / "torch").is_symlink()
        assert user.imported() == "2.13.0+cpu"
        assert user.versions() == shelf.layer.versions
        assert shelf.state() == before


# --------------------------------------------------------------- an environment that was there


def test_detaching_brings_back_what_attaching_replaced(target: Target, shelf: Shelf) -> None:
    target.fill("cu126")
    mine = target.site / "torch" / "notes of mine.txt"
    mine.write_text("mine", encoding="utf-8")
    before, layer = target.versions(), shelf.state()
    result = attach(shelf.layer, target.read(), command="torchenv layer attach")
    settle()
    assert result.expectation is not None
    assert target.imported() == "2.13.0+cpu"
    assert target.backend() == "cpu"
    assert (target.site / "torch").is_symlink()
    # What a person had put there is theirs still, and has not gone through the link.
    assert (target.site / "torch.kept" / mine.name).read_text(encoding="utf-8") == "mine"
    assert [one.directory for one in attached(target.read())] == [shelf.layer.directory]
    assert attach(shelf.layer, target.read()).changes == ()
    result = detach(target.read())
    settle()
    assert target.imported() == "2.13.0+cu126"
    assert target.versions() == before
    assert attached(target.read()) == ()
    assert shelf.state() == layer


def test_detaching_takes_the_links_alone_where_something_was_installed_since(
    target: Target, shelf: Shelf, tmp_path: Path
) -> None:
    attach(shelf.layer, target.read())
    wheel = make_wheel(tmp_path / "w", "filelock", "99", files={"filelock/__init__.py": ""})
    uv("install", f"--python={target.python}", "--no-index", f"--find-links={wheel.parent}",
       "filelock==99")  # fmt: skip
    detach(target.read())
    settle()
    assert target.versions() == {"filelock": "99"}
    with pytest.raises(InstallError, match="No layer is attached"):
        detach(target.read())


def test_detaching_leaves_what_was_installed_after_somebody_looked(
    target: Target, shelf: Shelf
) -> None:
    attach(shelf.layer, target.read())
    before = target.read()
    target.install("cu126")
    detach(before)
    settle()
    assert target.imported() == "2.13.0+cu126"
    assert attached(target.read()) == ()


def test_detaching_puts_back_first_what_a_killed_install_has_set_aside(
    target: Target, shelf: Shelf, tmp_path: Path
) -> None:
    attach(shelf.layer, target.read())
    plan = tmp_path / "plan.pickle"
    plan.write_bytes(pickle.dumps(target.plan("cu126")))
    command = [sys.executable, "-m", "tests.killed_install", str(plan), "9"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (target.prefix / ".torchenv" / "journal.json").exists()
    result = detach(target.read())
    settle()
    assert result.recovered
    assert target.versions() == {}
    assert not list((target.prefix / ".torchenv").glob("journal*"))


def test_attaching_leaves_what_fits_and_refuses_what_would_break(
    target: Target, shelf: Shelf, tmp_path: Path
) -> None:
    folder = tmp_path / "w"
    make_wheel(folder, "filelock", "99", files={"filelock/__init__.py": ""})
    make_wheel(folder, "picky", "1.0", requires=["torch==2.99"])
    make_wheel(folder, "torch", "2.99", files={"torch/__init__.py": ""})
    find = (f"--python={target.python}", "--no-index", f"--find-links={folder}")
    uv("install", *find, "filelock==99", "picky")
    before = target.snapshot()
    with pytest.raises(ConflictError, match=r"picky 1\.0 requires torch==2\.99"):
        attach(shelf.layer, target.read())
    assert target.snapshot() == before
    uv("uninstall", f"--python={target.python}", "picky")
    attach(shelf.layer, target.read())
    assert target.versions()["filelock"] == "99"
    assert not (target.site / "filelock").is_symlink()


def test_a_folder_that_others_have_a_part_in_is_not_linked(target: Target, shelf: Shelf) -> None:
    mine = target.site / "nvidia" / "of_mine.py"
    mine.parent.mkdir()
    mine.write_text("ANSWER = 42", encoding="utf-8")
    attach(shelf.layer, target.read())
    assert not mine.parent.is_symlink()
    code = "import torch, nvidia.of_mine; print(nvidia.of_mine.ANSWER)"
    assert run(target.python, "-I", "-B", "-c", code) == "42"


def test_a_folder_that_others_may_get_a_part_in_is_not_linked(tmp_path: Path) -> None:
    headers = [f"nvidia/cu13/include/cub/{number}.h" for number in range(80)]
    shapes = {
        "protobuf": [f"google/protobuf/{name}.py" for name in ("__init__", *range(80))],
        "nvidia-cub": [f"nvidia/cu13/include/{number}.cuh" for number in range(80)] + headers,
        "backports-one": ["backports/__init__.py", "backports/one/__init__.py"],
    }
    for name, paths in shapes.items():
        information = tmp_path / "site" / f"{name}.dist-info"
        information.mkdir(parents=True)
        (information / "RECORD").write_text("".join(f"{path},,\n" for path in paths), "utf-8")
    beginning = tmp_path / "site" / "backports" / "__init__.py"
    beginning.parent.mkdir()
    beginning.write_text(
        "__path__ = __import__('pkgutil').extend_path(__path__, __name__)", "utf-8"
    )
    pieces = pieces_of(tmp_path, "site", {name: f"{name}.dist-info" for name in shapes})
    links = {piece.name: piece.links for piece in pieces}
    assert links["protobuf"] == ("site/google/protobuf",)
    assert links["backports-one"] == ("site/backports/__init__.py", "site/backports/one")
    assert "site/nvidia/cu13/include/cub" in links["nvidia-cub"]
    assert "site/nvidia/cu13/include/0.cuh" in links["nvidia-cub"]
    assert len(links["nvidia-cub"]) == 81


def test_attaching_that_fails_leaves_the_environment_as_it_was(
    target: Target, shelf: Shelf, tmp_path: Path
) -> None:
    target.fill("cu126")
    before = target.snapshot()
    copy = tmp_path / "copy" / shelf.layer.directory.name
    copy_of(shelf.layer, copy)
    broken = read_layer(copy)
    shutil.rmtree(copy / shelf.layer.site / "torch")
    with pytest.raises(InstallError, match="was not attached"):
        attach(broken, target.read())
    assert target.snapshot() == before
    assert target.imported() == "2.13.0+cu126"


def test_a_layer_of_another_python_is_refused(target: Target, shelf: Shelf, tmp_path: Path) -> None:
    other = replace(shelf.layer, python="cp309")
    with pytest.raises(TargetError, match="cp309"):
        attach(other, target.read())
    with pytest.raises(TargetError, match=r"no `python3\.09`"):
        attach_new(other, tmp_path / "own", Path(sys.executable))
    assert not (tmp_path / "own").exists()


def test_an_environment_that_is_there_already_stays(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(TargetError, match="is there already"):
        attach_new(shelf.layer, tmp_path / "own", Path(sys.executable))
    assert [path.name for path in tmp_path.iterdir() if "own" in path.name] == ["own"]


def test_what_a_killed_one_has_left_goes_with_the_next(shelf: Shelf, tmp_path: Path) -> None:
    old, new = (tmp_path / f".own[1].torchenv-1-{number}" for number in (1, 2))
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    attach_new(shelf.layer, tmp_path / "own[1]", Path(sys.executable))
    assert not old.exists()
    assert new.exists()


# ------------------------------------------------------------------------------ who else may write


@pytest.fixture
def copied(shelf: Shelf, tmp_path: Path) -> Layer:
    copy = tmp_path / "shelf" / shelf.layer.directory.name
    copy_of(shelf.layer, copy)
    return read_layer(copy)


def test_a_layer_that_others_can_write_is_refused_with_the_reason(
    copied: Layer, target: Target, tmp_path: Path
) -> None:
    place = copied.directory / copied.site / "torch"
    rewrite(place / "version.py", b"")
    for path, mode, reason in (
        (place / "version.py", 0o664, "its group can write"),
        (place, 0o777, "everybody can write"),
        (copied.directory.parent, 0o775, "its group can write"),
    ):
        kept = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(InstallError, match=reason) as caught:
            attach(copied, target.read())
        assert str(path) in caught.value.message
        if path.is_dir():
            with pytest.raises(InstallError, match=reason):
                attach_new(copied, tmp_path / "own", Path(sys.executable))
        path.chmod(kept)
    assert attach(copied, target.read()).changes


def test_who_finds_layers_is_told_which_are_not_to_be_trusted(copied: Layer) -> None:
    copied.directory.parent.chmod(0o777)
    [found] = find_layers([copied.directory.parent])
    assert isinstance(found, Unusable)
    assert found.untrusted
    choice = choose_layer([found], selected("cu126"), running_interpreter(), ["torch"])
    assert choice.layer is None
    assert "everybody can write" in choice.reasons[0]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="gives files to a stranger")
def test_nothing_of_another_user_is_taken(copied: Layer, tmp_path: Path) -> None:
    place = copied.directory / copied.site / "torch"
    os.chown(place, STRANGER, STRANGER)
    assert f"belongs to user {STRANGER}" in tree_problem(copied.directory)
    # To that user it is their own, and root's is everybody's.
    assert tree_problem(copied.directory, user=STRANGER) == ""
    link = tmp_path / "link"
    link.symlink_to(copied.directory)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    assert f"is a link of user {STRANGER}" in path_problem(link)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="becomes another user")
def test_a_folder_that_a_user_may_not_enter_is_told_and_ends_nothing() -> None:
    closed = Path(tempfile.mkdtemp(prefix="torchenv-closed-"))
    (closed / "seed").mkdir()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setuid(STRANGER)
            [found] = find_layers([closed / "layers"])
            told = isinstance(found, Unusable) and "Permission denied" in found.problem
            seeded = seed_cache(closed / "seed", Path("/nonexistent/cache"))
            told = told and "can be looked into" in seeded.reason
            told = told and "Permission" in seed_cache(Path("/usr/bin"), closed / "seed").reason
            os._exit(0 if told and cache_problem(closed / "seed") == "" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shutil.rmtree(closed)


def test_a_link_is_followed_to_what_others_can_write(copied: Layer, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "shelf").symlink_to(copied.directory.parent)
    (tmp_path / "way").symlink_to("open/shelf")
    assert "everybody can write" in path_problem(tmp_path / "way" / copied.directory.name)
    assert path_problem(copied.directory) == ""
    (copied.directory / "bin" / "new").symlink_to(tmp_path)
    assert "is a link" in tree_problem(copied.directory)


def test_a_manifest_that_leads_out_of_its_layer_is_not_believed(copied: Layer) -> None:
    manifest = copied.directory / MANIFEST
    text = manifest.read_text(encoding="utf-8")
    first = copied.packages[0].piece.links[0]
    rewrite(manifest, text.replace(first, f"../../{first}").encode())
    with pytest.raises(InstallError, match="outside of it"):
        read_layer(copied.directory)


def system_python(layer: Layer) -> Path:
    """Return a Python of the layer's version that every user can run."""
    digits = layer.python.removeprefix("cp")
    python = Path(f"/usr/bin/python{digits[0]}.{digits[1:]}")
    if os.geteuid() != 0 or not python.exists():
        pytest.skip(f"needs root, and {python} for another user to run")
    return python


def test_a_user_without_rights_attaches_uninstalls_and_detaches(shelf: Shelf) -> None:
    base = system_python(shelf.layer)
    before = shelf.state()
    home = shelf.folder.parent / "home"
    home.mkdir()
    os.chown(home, STRANGER, STRANGER)

    def as_user(*arguments: object) -> str:
        done = subprocess.run(
            [*map(str, arguments)],
            user=STRANGER, group=STRANGER, extra_groups=[], cwd=home,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    code = "import os, sys, pathlib\n"
    code += f"sys.path.insert(0, {str(shelf.layer.directory / shelf.layer.site)!r})\n"
    code += "from torchenv_magic.installation.layers import attach_new, read_layer\n"
    code += f"layer = read_layer(pathlib.Path({str(shelf.layer.directory)!r}))\n"
    code += f"print(attach_new(layer, pathlib.Path('own').absolute(), pathlib.Path({str(base)!r})))"
    python = Path(as_user(base, "-B", "-c", code).strip())
    assert python == home / "own" / "bin" / "python"
    assert "2.13.0+cpu" in as_user(python, "-c", "import torch; print(torch.__version__)")
    assert "PyTorch works" in as_user(home / "own" / "bin" / "torchenv", "verify")
    program = home / "own" / "bin" / "uv"
    as_user(program, "pip", "uninstall", f"--python={python}", "torch", "filelock")
    assert not (home / "own" / shelf.layer.site / "torch").exists()
    as_user(home / "own" / "bin" / "torchenv", "layer", "detach")
    assert attached(read_environment(python)) == ()
    assert shelf.state() == before


# ------------------------------------------------------------------------------------ by its words


def test_a_layer_is_listed_attached_detached_and_removed_by_words(
    target: Target, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = str(shelf.layer.directory)
    assert main(["layer", "list", str(shelf.folder)]) == 0
    assert "torch 2.13.0+cpu for cp3" in capsys.readouterr().out
    assert main(["layer", "list", str(tmp_path)]) == 0
    assert "There is no layer in" in capsys.readouterr().out
    assert main(["layer", "attach", layer, "--python", str(target.python)]) == 0
    assert "Installed torch 2.13.0+cpu and" in capsys.readouterr().out
    assert target.imported() == "2.13.0+cpu"
    assert main(["layer", "detach", "--python", str(target.python)]) == 0
    settle()
    assert attached(target.read()) == ()
    capsys.readouterr()
    assert main(["layer", "remove", layer]) == 1
    assert "Nobody can know who has links to" in capsys.readouterr().err
    assert shelf.layer.directory.exists()
    copy = tmp_path / "copy" / shelf.layer.directory.name
    copy_of(shelf.layer, copy)
    assert main(["layer", "remove", str(copy), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == shelf.layer.size_bytes
    assert not copy.exists()


# ----------------------------------------------------------------------------------------- choosing


def test_the_layer_is_taken_that_fits_choice_python_system_and_requirements(shelf: Shelf) -> None:
    here, layer = running_interpreter(), shelf.layer
    cpu, older = selected("cpu"), replace(layer, torch="2.12.0+cpu")

    def reason(*texts: str, **fields: str) -> str:
        choice = choose_layer([replace(layer, **fields)], cpu, here, texts or ["torch"])  # type: ignore[arg-type]
        assert choice.layer is None
        return choice.reasons[0].partition(": ")[2]

    assert choose_layer([older, layer], cpu, here, ["torch>=2.12"]).layer == layer
    assert choose_layer([layer], cpu, here, ["torch==2.13.*", "filelock"]).layer == layer
    assert reason("torch<2.13") == "it has torch 2.13.0+cpu, not <2.13"
    assert reason("torchvision") == "it has no torchvision"
    assert reason("torch[opt]") == "it was not built with `torch[opt]`"
    assert reason(python="cp39") == f"it is for cp39, not for {here.tag}"
    assert reason(platform="linux_riscv64").startswith("it is for linux_riscv64")
    choice = choose_layer([layer], selected("cu126"), here, ["torch"])
    assert "it has PyTorch for cpu, not for cu126" in choice.reasons[0]
    choice = choose_layer([layer], selected("cpu", exclusion="torch<2.11"), here, ["torch"])
    assert "not <2.11" in choice.reasons[0]
    old = replace(layer, glibc="2.34")
    choice = choose_layer([old], cpu, here, ["torch"], glibc="2.28")
    assert choice.reasons[0].endswith("it needs glibc 2.34, and 2.28 is here")
    assert choose_layer([old], cpu, here, ["torch"], glibc="2.100").layer == old


@pytest.mark.real_wheel
def test_the_real_torch_works_through_links(
    real_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its libraries find each other, its sources and its headers are found."""
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    root, site = tmp_path / "layer", f"lib/python3.{sys.version_info[1]}/site-packages"
    uv("install", f"--python={sys.executable}", f"--prefix={root}", "--no-deps", str(real_wheel))
    [information] = (root / site).glob("torch-*.dist-info")
    own = tmp_path / "own"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own], check=True)
    pieces = pieces_of(root, site, {"torch": information.name})
    write_pieces(pieces, root=root, site=site, prefix=own, python=own / "bin" / "python")
    for name in ("typing_extensions.py", "sympy", "mpmath", "networkx", "filelock", "jinja2",
                 "markupsafe", "fsspec"):  # fmt: skip
        found = Path(read_environment(None).site_packages, name)
        if found.exists():
            (own / site / name).symlink_to(found)
    code = (
        "import inspect, os, torch, torch.nn\n"
        "assert (torch.ones(3) @ torch.ones(3)).item() == 3\n"
        "assert 'class Linear' in inspect.getsource(torch.nn.Linear)\n"
        "assert os.path.isdir(os.path.join(os.path.dirname(torch.__file__), 'include', 'ATen'))\n"
        "print(torch.__file__)"
    )
    assert run(own / "bin" / "python", "-I", "-B", "-c", code).endswith(
        str(own / site / "torch" / "__init__.py")
    )
    assert all((own / site / name).is_symlink() for name in ("torch", "functorch", "torchgen"))


# ------------------------------------------------------------------------- a user of a hub has one


def test_a_preinstall_takes_a_layer_without_a_network_and_finds_that_it_has_gone(
    shelf: Shelf, kernel_wheels: Path, warm_cache: Path, fresh_standin: StandIn, tmp_path: Path
) -> None:
    fresh_standin.down = True
    bare = make_desk(tmp_path, wheels=kernel_wheels, cache=warm_cache, standin=fresh_standin)
    done = bare.run("--backend", "cpu", "--wait", "60", TORCHENV_LAYERS=str(shelf.folder))
    assert "PyTorch 2.13.0+cpu is there" in done.stderr, bare.log()
    assert bare.imported() == "2.13.0+cpu"
    files = [path for path in bare.environment.rglob("*") if not path.is_symlink()]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 5_000_000
    specification = jupyter_folder(bare.environment) / "kernels" / KERNEL_NAME / "kernel.json"
    described = json.loads(specification.read_text("utf-8"))
    assert described["display_name"] == KERNEL_TITLE
    start = [*described["argv"][:3], "--version"]
    assert subprocess.run(start, capture_output=True, check=False).returncode == 0
    bare.run("--backend", "cpu", TORCHENV_LAYERS=str(shelf.folder))
    assert bare.record().pid == 0
    fresh_standin.down = False
    away = shelf.folder.with_name("away")
    shelf.folder.rename(away)
    try:
        bare.run("--backend", "cpu", "--wait", "60", TORCHENV_LAYERS=str(shelf.folder))
        assert bare.ended().status == "done", bare.log()
        assert bare.imported() == "2.13.0+cpu"
    finally:
        away.rename(shelf.folder)
