"""Where a preinstall goes, and what a wish is taken for: decided before anything is done."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from torchenv_magic.errors import TargetError
from torchenv_magic.preinstall.launch import installer_environment
from torchenv_magic.preinstall.place import (
    HUB_VARIABLE,
    Facts,
    Place,
    choose_place,
    identity_of,
    place_of,
)
from torchenv_magic.preinstall.record import STATE_NAME, Record, read_record
from torchenv_magic.preinstall.wish import Wish, checked_requirements, wish_of

OWN, DATA = Path("/opt/server"), Path("/home/ada/.local/share/torchenv")
FACTS = Facts(
    prefix=OWN,
    is_hubs=False,
    may_change=True,
    passes=False,
    data=DATA,
    name="cp311-x86-64-linux-gnu-nvidia",
)
AT_HOME = Place(prefix=DATA / "environments" / FACTS.name, is_ours=True)


@pytest.mark.parametrize(
    ("facts", "place"),
    [
        (FACTS, Place(prefix=OWN, is_own=True)),
        (replace(FACTS, may_change=False), AT_HOME),
        (replace(FACTS, is_hubs=True), AT_HOME),
        # A container's own layer, and a home that stays.
        (replace(FACTS, passes=True), AT_HOME),
        (replace(FACTS, named=Path("/srv/mine")), Place(prefix=Path("/srv/mine"))),
        (replace(FACTS, named=OWN, may_change=False), Place(prefix=OWN, is_own=True)),
    ],
)
def test_the_servers_environment_where_it_is_the_users_else_one_at_home(
    facts: Facts, place: Place
) -> None:
    assert choose_place(facts) == place


def test_nothing_is_installed_into_the_hubs_own_environment_nor_without_a_home() -> None:
    with pytest.raises(TargetError, match="the environment that the hub itself runs in"):
        choose_place(replace(FACTS, named=OWN, named_is_hubs=True))
    with pytest.raises(TargetError, match="There is no home folder"):
        choose_place(replace(FACTS, may_change=False, data=Path("~/.local/share/torchenv")))


def test_the_hubs_own_environment_is_known_by_what_it_is_and_not_by_its_name(
    tmp_path: Path,
) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path), HUB_VARIABLE: identity_of(Path(sys.prefix))}
    assert place_of(Wish(), environ).is_ours
    link = tmp_path / "link"
    link.symlink_to(sys.prefix)
    with pytest.raises(TargetError):
        place_of(Wish(environment=link), environ)
    assert identity_of(tmp_path / "nowhere") == ""


def test_an_environment_is_named_after_the_build_that_was_asked_for(tmp_path: Path) -> None:
    environ = {"XDG_DATA_HOME": str(tmp_path), HUB_VARIABLE: identity_of(Path(sys.prefix))}
    names = {place_of(Wish(backend=name), environ).prefix.name for name in ("auto", "cu126", "cpu")}
    assert {name.rpartition("-")[2] for name in names} >= {"cu126", "cpu"}


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TORCHENV_BACKEND", "$(id)"),
        ("TORCHENV_BACKEND", "cu126\nX=1"),
        ("TORCHENV_BACKEND", "../../cpu"),
        ("TORCHENV_REQUIREMENTS", "torch 'unclosed"),
        ("TORCHENV_REQUIREMENTS", "--index-url=http://example.com torch"),
        ("TORCHENV_REQUIREMENTS", "torch@http://example.com/torch.whl"),
        ("TORCHENV_REQUIREMENTS", "gpu"),
        ("TORCHENV_PREINSTALL_WAIT", "inf"),
        ("TORCHENV_PREINSTALL_WAIT", "-5"),
        ("TORCHENV_PREINSTALL_WAIT", "soon"),
    ],
)
def test_nonsense_in_a_variable_is_a_notice_and_falls_back(variable: str, text: str) -> None:
    wish = wish_of({variable: text})
    assert replace(wish, notices=()) == Wish()
    assert len(wish.notices) == 1
    assert wish.notices[0].isprintable()


def test_what_the_hub_could_not_give_is_a_notice_too() -> None:
    told = "cu118 is no longer offered"
    assert wish_of({"TORCHENV_PREINSTALL_NOTICE": told}).notices == (told,)


def test_a_wish_is_what_the_variables_say() -> None:
    wish = wish_of(
        {
            "TORCHENV_BACKEND": "CU126",
            "TORCHENV_REQUIREMENTS": "torchvision 'torch>=2.9, <3'",
            "TORCHENV_PREINSTALL_WAIT": "60",
        }
    )
    assert wish == Wish(
        backend="cu126", requirements=("torchvision", "torch>=2.9, <3"), wait_seconds=60
    )
    assert checked_requirements(["torchvision"]) == ("torch", "torchvision")


def test_the_installer_has_no_secret_and_no_foreign_target() -> None:
    environ = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://proxy",
        "JUPYTERHUB_API_TOKEN": "x",
        "JPY_API_TOKEN": "x",
        "JUPYTERHUB_USER": "ada",
        "AWS_SECRET_ACCESS_KEY": "x",
        "VIRTUAL_ENV": "/hub",
        "PYTHONPATH": "/hub",
        "CONDA_PREFIX": "/hub",
    }
    login = {"UV_INDEX_TORCHENV_PASSWORD": "for uv alone"}
    kept = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy"}
    assert installer_environment({**environ, **login}) == {**kept, **login}


@pytest.mark.skipif(os.name != "posix", reason="pipes and users are POSIX's")
def test_a_record_that_nobody_of_us_wrote_is_none(tmp_path: Path) -> None:
    state = tmp_path / STATE_NAME
    assert read_record(tmp_path) is None
    os.mkfifo(state)
    assert read_record(tmp_path) is None
    state.unlink()
    state.symlink_to("/dev/zero")
    assert read_record(tmp_path) is None
    state.unlink()
    state.mkdir()
    assert read_record(tmp_path) is None
    state.rmdir()
    state.write_text('{"status": "done", "message": "a\\u001b[2Jb", "torch": "2"}', "ascii")
    assert read_record(tmp_path) == Record(status="done", message="", torch="2")
    assert read_record(tmp_path, owner=os.geteuid() + 1) is None
