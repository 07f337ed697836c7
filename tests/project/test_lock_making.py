"""Locks of what is really installed, made by real uv from the stand-in of the PyTorch index."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.standin import BACKENDS, SIMPLE, TORCH, make_wheel
from tests.targets import Target
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.errors import InstallCancelled, LockError
from torchenv_magic.expectation import Expectation, write_expectation
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.progress import Event
from torchenv_magic.installation.settings import read_sites
from torchenv_magic.installation.uv import Cancellation
from torchenv_magic.project.lock import METADATA_KEY, lock_to_json, read_lock
from torchenv_magic.project.lock_making import make_lock

pytest_plugins = ["tests.target_fixtures"]


def test_what_is_installed_is_locked_for_each_backend_that_has_it(target: Target) -> None:
    target.fill("cu126", "torch", "torchvision")
    there = target.versions()
    # What comes out later is not what ran here.
    target.standin.add_wheel(SIMPLE, make_wheel(target.prefix / "newer", "numpy", "99.0"))
    target.standin.clear_log()
    events: list[Event] = []
    made = make_lock(target.read(), on_event=events.append)
    lock = made.lock
    assert (str(lock.ran), lock.torch) == ("cu126", TORCH)
    assert lock.asked.requirements == ("torch", "torchvision")
    assert {str(each.backend) for each in lock.backends} == {*BACKENDS} - {"cu128"}
    for each in lock.backends:
        assert each.pins["torch"] == f"{TORCH}+{each.backend}"
        assert each.pins["numpy"] == there["numpy"]
    ran = lock.of(lock.ran)
    assert ran is not None
    assert ran.pins == there
    # The catalog knows of one that this index has not.
    assert [str(each.backend) for each in made.left_out] == ["rocm7.1"]
    assert "has no torch for it (HTTP 403)" in str(made)
    # To lock is to read: pages and metadata, and no wheel.
    assert target.standin.downloads() == ()

    data = json.loads(json.dumps({METADATA_KEY: lock_to_json(lock)}))
    assert read_lock(data) == lock
    again = make_lock(target.read())
    assert json.dumps(lock_to_json(again.lock)) == json.dumps(data[METADATA_KEY])


def test_named_backends_are_locked_beside_the_one_that_ran(target: Target) -> None:
    target.fill("cpu")
    named = [Backend.parse("cu130"), None, Backend.parse("rocm7.1")]
    made = make_lock(target.read(), backends=named, requirements=["torch>=2"])
    assert made.lock.names == "cpu, cu130"
    assert made.lock.asked.backend is None
    assert made.lock.asked.requirements == ("torch>=2",)
    assert [str(each.backend) for each in made.left_out] == ["rocm7.1"]


def test_a_lock_can_be_made_from_a_mirror(target: Target) -> None:
    target.fill("cpu")
    sites = read_sites(index_base=target.standin.mirror_base, files=())
    made = make_lock(target.read(), backends=[Backend.parse("cu126")], sites=sites)
    assert made.lock.names == "cpu, cu126"
    hosts = {w.host for each in made.lock.backends for p in each.packages for w in p.wheels}
    assert hosts == {"127.0.0.1"}


def test_where_the_index_tells_no_hashes_no_wheel_is_fetched_to_find_them(target: Target) -> None:
    target.fill("cu126")
    target.standin.hashes = False
    target.standin.clear_log()
    with pytest.raises(LockError, match="tells no hashes") as caught:
        make_lock(target.read())
    assert caught.value.message.startswith("The build that is installed here can't be locked: ")
    assert target.standin.downloads() == ()


def test_what_did_not_run_here_is_not_locked(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LockError, match="no PyTorch here"):
        make_lock(target.read())
    target.fill("cpu")
    environment = target.read()
    for asked, said in (
        ("torchvision", "`torchvision` is to be locked, and it is not installed here"),
        ("torch<2", f"`torch<2` is to be locked, and torch {TORCH}\\+cpu is installed here"),
        ("torch @ https://files.example/t.whl", "torch was asked for from an address"),
    ):
        with pytest.raises(LockError, match=said):
            make_lock(environment, requirements=[asked])
    # A requirement of another system asks for nothing here.
    elsewhere = "torchvision; sys_platform == 'plan9'"
    made = make_lock(environment, requirements=["torch", elsewhere], backends=[None])
    assert made.lock.asked.requirements == ("torch", elsewhere)
    last = Expectation(
        requirements=("torch @ file:///tmp/t.whl",), backend=Backend("cpu"), versions=()
    )
    write_expectation(target.prefix, last)
    with pytest.raises(LockError, match="from an address"):
        make_lock(environment)
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(LockError, match="UV_OFFLINE is set"):
        make_lock(environment)


def test_a_release_that_nobody_has_or_an_index_that_is_away_locks_nothing(target: Target) -> None:
    target.fill("cpu")
    environment = target.read()
    packages = tuple(
        replace(package, version="2.11.7+cpu") if package.name == "torch" else package
        for package in environment.packages
    )
    with pytest.raises(LockError, match="can't be locked"):
        make_lock(replace(environment, packages=packages), catalog=load_catalog())
    target.standin.down = True
    with pytest.raises(LockError, match="can't be reached"):
        make_lock(environment, backends=[None])


def test_a_backend_that_a_person_named_is_told_from_one_that_was_chosen(target: Target) -> None:
    for command, asked in (
        ("%torchenv install cpu torchvision", "cpu"),
        ("torchenv install --backend='", None),
        ("torchenv install torch --yes", None),
        ("", None),
    ):
        install_plan(target.plan("cu126"))
        install_plan(target.plan("cpu"), command=command)
        lock = make_lock(target.read(), backends=[None]).lock
        assert lock.asked.backend == (Backend.parse(asked) if asked else None)
        assert read_lock({METADATA_KEY: lock_to_json(lock)}) == lock


def test_a_cancelled_lock_is_none(target: Target) -> None:
    target.fill("cpu")
    before = target.snapshot()
    cancellation = Cancellation()
    with pytest.raises(InstallCancelled):
        make_lock(
            target.read(), on_event=lambda _: cancellation.cancel(), cancellation=cancellation
        )
    assert target.snapshot() == before
    assert target.running() == []
