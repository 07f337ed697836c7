"""An environment at home: what is in it is a person's, and goes for no passing reason."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from torchenv_magic.errors import DiskSpaceError, SourceError, TargetError
from torchenv_magic.installation.settings import Sites
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.preinstall import home
from torchenv_magic.preinstall.home import leaving_room, prepare
from torchenv_magic.preinstall.place import Place
from torchenv_magic.preinstall.room import check_room

pytestmark = pytest.mark.skipif(os.name != "posix", reason="made of links")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return an environment that somebody works in, whose Python went with an image."""
    prefix = tmp_path / "environments" / "cp311-linux-rocm7.2"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to("/opt/of-the-image-before/bin/python")
    (prefix / "mine").write_text("weeks of work", "utf-8")
    (prefix / ".torchenv").mkdir()
    note(prefix, made=True, version="0.1.0")
    return Place(prefix=prefix, is_ours=True)


def note(prefix: Path, **noted: object) -> None:
    (prefix / ".torchenv" / "furnished.json").write_text(json.dumps(noted), "ascii")


FAILURES = (
    DiskSpaceError("The disk is full"),
    OSError(errno.ENOSPC, "No space left on device"),
    SourceError("The index is away"),
    TargetError("It did not answer within 10 s"),
    RuntimeError("ours"),
)


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_what_a_person_works_in_stays_whatever_fails(place: Place, failure: Exception) -> None:
    cache = place.prefix.parent / "cache"
    with pytest.raises(type(failure)), leaving_room(place, cache):
        raise failure
    assert (place.prefix / "mine").exists()


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_what_was_only_just_begun_goes(place: Place, failure: Exception) -> None:
    """Its cache stays unless it fills the disk: the next attempt has it then."""
    cache = place.prefix.parent / "cache"
    place.prefix.rename(place.prefix.with_name("elsewhere"))

    def attempt() -> None:
        with leaving_room(place, cache):
            cache.mkdir()
            (place.prefix / ".torchenv").mkdir(parents=True)
            note(place.prefix, made=True)
            raise failure

    with pytest.raises(type(failure)):
        attempt()
    assert not place.prefix.exists()
    assert cache.exists() == (failure not in FAILURES[:2])


def test_a_python_that_fails_costs_nothing_where_no_other_one_can_be_given(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        message = "it is the machine's bad day"
        raise TargetError(message)

    monkeypatch.setattr(home, "make_environment", fail)
    with pytest.raises(TargetError, match="bad day"):
        prepare(
            place,
            layer=None,
            sites=Sites(),
            tell=lambda _: None,
            cancellation=Cancellation(),
        )
    assert (place.prefix / "mine").exists()


def test_only_what_belongs_to_an_environment_is_swept_beside_it(place: Place) -> None:
    beside = place.prefix.parent
    gone = (f".{place.prefix.name}.removed-0a", f".{place.prefix.name}.torchenv-12-34")
    # The lock of another environment, whose name goes on where this one ends.
    stays = (f".{place.prefix.name}.1", f".{place.prefix.name}", place.prefix.name)
    for name in (*gone, *stays):
        (beside / name).mkdir(exist_ok=True)
    home._sweep(place.prefix)
    assert sorted(path.name for path in beside.iterdir()) == sorted(stays)


def test_a_disk_has_to_have_room_for_it_and_for_the_server(tmp_path: Path) -> None:
    check_room([tmp_path / "not" / "there"], 0)
    with pytest.raises(DiskSpaceError, match="There is too little space: about 1000000"):
        check_room([tmp_path], 10**18)
