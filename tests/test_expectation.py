"""What is kept in an environment: written whole, read with distrust."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import TargetError
from torchenv_magic.expectation import (
    Expectation,
    expectation_path,
    read_expectation,
    write_expectation,
)

CPU = Expectation(
    requirements=("torch", "lightning>=2"),
    backend=Backend.parse("cpu"),
    versions=(("torch", "2.13.0+cpu"), ("lightning", "2.6.0")),
)
ROCM = Expectation(
    requirements=("torch",),
    backend=Backend.parse("rocm7.2"),
    versions=(("torch", "2.13.0+rocm7.2"),),
)
AS_WRITTEN = {
    "schema": 1,
    "requirements": ["torch", "lightning>=2"],
    "backend": "cpu",
    "versions": [["torch", "2.13.0+cpu"], ["lightning", "2.6.0"]],
}


def test_what_was_asked_for_is_read_again(tmp_path: Path) -> None:
    assert read_expectation(tmp_path) is None
    for asked in (CPU, ROCM):
        write_expectation(tmp_path, asked)
        assert read_expectation(tmp_path) == asked
    assert [path.name for path in (tmp_path / ".torchenv").iterdir()] == ["expectation.json"]


def test_form_of_the_file_is_a_promise_to_later_versions(tmp_path: Path) -> None:
    write_expectation(tmp_path, CPU)
    assert json.loads((tmp_path / ".torchenv" / "expectation.json").read_bytes()) == AS_WRITTEN


def test_keys_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    write_expectation(tmp_path, CPU)
    newer = {**AS_WRITTEN, "mirror": "here"}
    expectation_path(tmp_path).write_text(json.dumps(newer), encoding="utf-8")
    assert read_expectation(tmp_path) == CPU


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_others_of_a_shared_environment_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_expectation(tmp_path, CPU)
    finally:
        os.umask(before)
    assert expectation_path(tmp_path).stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.name != "posix", reason="Windows replaces no file that is open")
def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    write_expectation(tmp_path, CPU)
    done = threading.Event()

    def write() -> None:
        for _ in range(50):
            write_expectation(tmp_path, ROCM)
            write_expectation(tmp_path, CPU)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(read_expectation(tmp_path))
    writer.join()
    assert seen <= {CPU, ROCM}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"1",
        b"[" * 100_000,
        b'{"schema": 1}',
        json.dumps({**AS_WRITTEN, "schema": 2}).encode(),
        json.dumps({**AS_WRITTEN, "backend": "cuda"}).encode(),
        json.dumps({**AS_WRITTEN, "backend": None}).encode(),
        json.dumps({**AS_WRITTEN, "requirements": "torch"}).encode(),
        json.dumps({**AS_WRITTEN, "requirements": [1]}).encode(),
        json.dumps({**AS_WRITTEN, "requirements": ["torch\x1b[2J"]}).encode(),
        json.dumps({**AS_WRITTEN, "versions": {"torch": "2.13.0"}}).encode(),
        json.dumps({**AS_WRITTEN, "versions": [["torch"]]}).encode(),
        json.dumps({**AS_WRITTEN, "versions": [["torch", "newest"]]}).encode(),
        json.dumps({**AS_WRITTEN, "versions": [["to\nrch", "2.13.0"]]}).encode(),
        json.dumps({**AS_WRITTEN, "requirements": ["x" * 2_000_000]}).encode(),
    ],
    ids=lambda content: repr(content[:60]),
)
def test_broken_or_hostile_file_is_logged_and_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = expectation_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_expectation(tmp_path) is None
    assert "is not what this version writes" in caplog.text
    assert "\x1b" not in caplog.text


def test_file_that_cannot_be_opened_is_logged_and_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expectation_path(tmp_path).mkdir(parents=True)
    assert read_expectation(tmp_path) is None
    assert "can't be read" in caplog.text


def test_environment_that_cannot_be_written_to_is_one_error(tmp_path: Path) -> None:
    (tmp_path / ".torchenv").write_text("a file", encoding="utf-8")
    with pytest.raises(TargetError, match=r"could not be kept in `.*`: .*\n\nhint: make the env"):
        write_expectation(tmp_path, CPU)
    with pytest.raises(TargetError, match="could not be kept"):
        write_expectation(tmp_path / "missing", CPU)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    expectation_path(tmp_path).mkdir(parents=True)  # nothing can be renamed over a directory
    with pytest.raises(TargetError):
        write_expectation(tmp_path, CPU)
    assert [path.name for path in (tmp_path / ".torchenv").iterdir()] == ["expectation.json"]


@settings(deadline=None, max_examples=30)  # each example waits for the disk
@given(
    requirements=some.lists(some.text(some.characters(exclude_categories=["C", "Z"]), max_size=20)),
    backend=some.sampled_from(["cpu", "xpu", "cu126", "cu1310", "rocm6.2.4"]),
    numbers=some.lists(some.tuples(some.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True))),
)
def test_all_that_can_be_asked_for_survives(
    tmp_path_factory: pytest.TempPathFactory,
    requirements: list[str],
    backend: str,
    numbers: list[tuple[str]],
) -> None:
    asked = Expectation(
        requirements=tuple(requirements),
        backend=Backend.parse(backend),
        versions=tuple((name, f"1.{index}+{backend}") for index, (name,) in enumerate(numbers)),
    )
    prefix = tmp_path_factory.mktemp("prefix")
    write_expectation(prefix, asked)
    assert read_expectation(prefix) == asked
