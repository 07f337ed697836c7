"""Failures: what uv says becomes one sentence and one hint; each fault for real, all untouched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.standin import Fault, make_wheel
from tests.targets import Target, selected
from torchenv_magic.environment import Environment
from torchenv_magic.errors import (
    ConflictError,
    DiskSpaceError,
    InstallError,
    PlanError,
    RequestError,
    SourceError,
    TargetError,
    TorchEnvError,
    UvError,
)
from torchenv_magic.installation.failures import explain, lacks_in_cache, not_found
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.planning import IndexUnreachableError, make_plan
from torchenv_magic.installation.uv import Completed
from torchenv_magic.selection import Request

pytest_plugins = ["tests.target_fixtures"]

DATA = Path(__file__).with_name("data") / "uv" / "failures.json"
RECORDED: dict[str, dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))["failures"]
SUBJECT = "torch for cu126"


def said(stderr: str, *, status: int = 1) -> Completed:
    return Completed(arguments=(), returncode=status, stdout="", stderr=stderr)


def recorded(name: str) -> Completed:
    return said(RECORDED[name]["stderr"], status=RECORDED[name]["rc"])


FILES = "download-r2.pytorch.org"
INDEX = "download.pytorch.org"

EXPECTED: list[tuple[str, type[TorchEnvError], str]] = [
    ("page-404", PlanError, "`torch` is on none of the indexes that were asked for"),
    ("page-500", SourceError, f"{INDEX} answered HTTP 500 for {SUBJECT}"),
    ("page-429", SourceError, f"{INDEX} answered HTTP 429 for {SUBJECT}"),
    ("metadata-404", SourceError, f"{FILES} answered HTTP 404 for {SUBJECT}"),
    ("wheel-404", SourceError, f"{FILES} answered HTTP 404 for torchvision==0.28.0+cu126"),
    ("wheel-403", SourceError, f"{FILES} answered HTTP 403 for torch==2.13.0+cu126"),
    ("wheel-500", SourceError, f"{FILES} answered HTTP 500 for torch==2.13.0+cu126"),
    ("wheel-truncate", SourceError, "torch==2.13.0+cu126 was fetched: the connection ended early"),
    ("wheel-corrupt", InstallError, "for torch==2.13.0+cu126 is damaged"),
    ("wheel-stall", SourceError, "torch==2.13.0+cu126 was fetched: … network timeout"),
    ("wheel-silent", SourceError, f"fetched from {FILES}: operation timed out"),
    ("page-silent", SourceError, f"fetched from {INDEX}: operation timed out"),
    ("page-truncate", SourceError, f"fetched from {INDEX}: the connection ended early"),
    ("wrong-hash", InstallError, "for torch==2.13.0+cu126 has another hash than the index says"),
    ("down", SourceError, f"fetched from {INDEX}: tunnel error: unsuccessful"),
    ("down-wheel", SourceError, f"fetched from {FILES}: tunnel error: unsuccessful"),
    ("unknown-ca", SourceError, f"certificate of {INDEX} isn't trusted here"),
    ("dead-proxy", SourceError, f"fetched from {INDEX}: Connection refused"),
    ("pypi-down", SourceError, "fetched from 127.0.0.1: Connection refused"),
    ("unknown-version", PlanError, "there is no version of torch==99.1"),
    ("unknown-package", PlanError, "`no-such-package-x` is on none of the indexes"),
    ("conflict", ConflictError, "torchvision>=0.28.0+cu126 depends on torch==2.13.0"),
    ("direct conflict", ConflictError, "you require torch==2.12.0 and torch==2.13.0"),
    ("offline", SourceError, "told to use no network"),
    ("offline-lock", SourceError, "told to use no network"),
    ("python-3.9", PlanError, "no wheel of torch for cu126 for this Python: … `cp39`"),
    ("platform", PlanError, "no wheel of torch for cu126 for this platform"),
    ("bad-env", UvError, "uv's configuration can't be used: … `UV_HTTP_TIMEOUT`"),
    ("bad-config", UvError, "uv's configuration can't be used: … --no-config"),
    ("bad-requirement", RequestError, "uv can't read the requirements"),
    ("find-links-missing", UvError, "uv's configuration can't be used: … /no/such"),
    ("cache-full", DiskSpaceError, "The disk is full at ` … made_for_tests.bin`"),
    ("env-full", DiskSpaceError, "The disk is full at ` … site-packages/torch"),
    ("cache-ro", TargetError, "can't be written: … Read-only file system"),
    ("env-ro", TargetError, "can't be written: … Read-only file system"),
    ("externally", TargetError, "belongs to the system's package manager"),
]


@pytest.mark.parametrize(("name", "kind", "expected"), EXPECTED, ids=[row[0] for row in EXPECTED])
def test_what_uv_says_becomes_one_sentence_and_one_hint(
    name: str, kind: type[TorchEnvError], expected: str
) -> None:
    error = explain(recorded(name), subject=SUBJECT)
    assert type(error) is kind
    assert all(part in error.message for part in expected.split(" … ")), error.message
    assert "\n" not in error.message
    assert "  " not in error.message
    assert len(error.message) < 400
    assert not error.message.endswith(".")
    assert error.hint
    assert "\n" not in error.hint
    assert error.detail == RECORDED[name]["stderr"].strip()


def test_every_recorded_failure_has_an_error_of_its_own() -> None:
    for name in RECORDED:
        error = explain(recorded(name), subject=SUBJECT)
        assert type(error) is not UvError or "configuration" in error.message
        assert "os error" not in error.message
        assert "docs.rs" not in error.message


# uv 0.12 marks the same sentences otherwise.
OLD_WORDS = """  × No solution found when resolving dependencies:
  ╰─▶ Because you require torch==2.12.0 and torch==2.13.0, we can
      conclude that your requirements are unsatisfiable.
"""
OLD_NETWORK = """  × Failed to download `torch==2.13.0+cu126`
  ├─▶ Failed to fetch:
  │   `https://download-r2.pytorch.org/whl/cu126/torch.whl`
  ╰─▶ HTTP status client error (403 Forbidden) for url
      (https://download-r2.pytorch.org/whl/cu126/torch.whl)
"""


def test_the_words_of_an_older_uv_are_understood_too() -> None:
    error = explain(said(OLD_WORDS), subject=SUBJECT)
    assert type(error) is ConflictError
    assert error.message.endswith("you require torch==2.12.0 and torch==2.13.0")
    error = explain(said(OLD_NETWORK), subject=SUBJECT)
    assert type(error) is SourceError
    assert error.message == f"{FILES} answered HTTP 403 for torch==2.13.0+cu126"


def test_installed_packages_in_the_way_are_named() -> None:
    error = explain(
        recorded("constraint"),
        subject="torch==2.13.0 for cpu",
        constrained_by=("needs212 1.0 requires torch==2.12.0",),
    )
    assert type(error) is ConflictError
    assert error.message == (
        "torch==2.13.0 for cpu contradicts what is installed: needs212 1.0 requires torch==2.12.0"
    )


def test_a_warning_is_no_reason() -> None:
    text = (
        "warning: Failed to parse `pyproject.toml` during settings discovery:\n"
        "  TOML parse error at line 1, column 9\n\n" + RECORDED["page-500"]["stderr"]
    )
    error = explain(said(text, status=2), subject=SUBJECT)
    assert error.message == f"{INDEX} answered HTTP 500 for {SUBJECT}"


def test_what_is_not_recognised_is_said_as_it_is() -> None:
    error = explain(said("error: The moon is full\n", status=7), subject=SUBJECT)
    assert type(error) is UvError
    assert error.message == "uv ended with status 7: The moon is full"
    assert explain(said("", status=2), subject=SUBJECT).message.endswith("it said nothing")


def test_an_end_by_a_signal_is_told_by_its_name() -> None:
    began = "Using Python 3.11.7 environment at: env\n"
    for status, message in (
        (-9, "uv was ended from outside (SIGKILL)"),
        (-15, "uv was ended from outside (SIGTERM)"),
        (-11, "uv crashed (SIGSEGV)"),
    ):
        error = explain(said(began, status=status), subject=SUBJECT)
        assert (type(error), error.message) == (UvError, message)


@given(st.text(), st.integers())
def test_any_words_become_an_error(text: str, status: int) -> None:
    error = explain(said(text, status=status), subject=SUBJECT)
    assert error.message
    assert error.hint


def test_what_only_the_cache_lacks_is_told_from_the_rest() -> None:
    assert lacks_in_cache(recorded("offline-lock"))
    assert not lacks_in_cache(recorded("env-full"))
    assert not_found(recorded("page-403")) == "torch"
    assert not_found(recorded("unknown-dep")) == "jinja3"
    assert not_found(recorded("conflict")) is None


# --------------------------------------------------------------------------------- faults for real


@pytest.fixture
def hasty(cold_target: Target, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Return a target for which uv gives up soon."""
    monkeypatch.setattr("torchenv_magic.installation.planning._HEAD_START_SECONDS", 0.2)
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "1")
    return cold_target


TORCH_WHEEL = r"/torch-[^/]*\.whl$"
PAGE = r"/torch/$"


def assert_said(error: TorchEnvError) -> None:
    assert "\n" not in error.message
    assert error.hint
    assert "Traceback" not in error.detail
    assert "------" not in error.detail


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("status", 404, "The PyTorch index answers HTTP 404 for cu126"),
        ("status", 403, "The PyTorch index answers HTTP 403 for cu126"),
        ("status", 500, "answered HTTP 500"),
        ("silent", 0, "timed out"),
        ("truncate", 0, "ended early"),
    ],
)
def test_a_page_that_is_spoilt_ends_in_one_message(
    hasty: Target, kind: Any, status: int, expected: str
) -> None:
    hasty.standin.faults = [Fault(pattern=PAGE, kind=kind, status=status or 503)]
    before = hasty.snapshot()
    with pytest.raises(SourceError, match=expected) as caught:
        hasty.plan("cu126")
    assert_said(caught.value)
    assert hasty.snapshot() == before


@pytest.mark.parametrize(
    ("kind", "status", "error", "expected"),
    [
        ("status", 404, SourceError, r"answered HTTP 404 for torch==2\.13\.0\+cu126"),
        ("truncate", 0, SourceError, "ended early"),
        ("corrupt", 0, InstallError, "is damaged"),
        ("stall", 0, SourceError, "timeout"),
    ],
)
def test_a_wheel_that_is_spoilt_leaves_the_environment_as_it_was(
    hasty: Target, kind: Any, status: int, error: type[TorchEnvError], expected: str
) -> None:
    plan = hasty.plan("cu126", "torch", "torchvision")
    before = hasty.snapshot()
    hasty.standin.faults = [Fault(pattern=TORCH_WHEEL, kind=kind, status=status or 503)]
    with pytest.raises(error, match=expected) as caught:
        install_plan(plan)
    assert type(caught.value) is error
    assert_said(caught.value)
    assert hasty.snapshot() == before
    # What went wrong once does not stay: the very plan works as soon as the index does.
    hasty.standin.faults = []
    install_plan(plan)
    assert hasty.imported("torch", "torchvision") == "2.13.0+cu126"


def test_a_hash_that_is_not_the_wheels_is_not_installed(hasty: Target) -> None:
    hasty.standin.faults = [Fault(pattern=PAGE, kind="wrong-hash")]
    plan = hasty.plan("cu126")
    before = hasty.snapshot()
    with pytest.raises(InstallError, match="has another hash than the index says") as caught:
        install_plan(plan)
    assert_said(caught.value)
    assert hasty.snapshot() == before


def test_what_fails_twice_and_then_works_is_no_failure(
    cold_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "2")
    plan = cold_target.plan("cu126")
    cold_target.standin.faults = [Fault(pattern=TORCH_WHEEL, kind="truncate", times=1)]
    install_plan(plan)
    assert cold_target.imported() == "2.13.0+cu126"


def test_an_index_that_is_away_is_told_soon(
    cold_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold_target.standin.down = True
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    before = cold_target.snapshot()
    with pytest.raises(IndexUnreachableError, match="can't be reached from here") as caught:
        cold_target.plan("cu128")
    assert caught.value.offers == ()
    assert "--find-links" in caught.value.hint
    assert cold_target.snapshot() == before


def test_a_certificate_of_nobody_we_know_is_named_as_that(
    hasty: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The machine's own certificates, without the one of the throw-away authority.
    stand_in = hasty.standin.bundle.read_text(encoding="utf-8")
    others = stand_in.replace(hasty.standin.authority_pem, "")
    bundle = hasty.prefix.with_name("others.pem")
    bundle.write_text(others, encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with pytest.raises(SourceError, match=r"certificate of download\.pytorch\.org") as caught:
        hasty.plan("cu126")
    assert "SSL_CERT_FILE" in caught.value.hint


def test_a_proxy_that_is_not_there_is_an_index_that_is_away(
    hasty: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(IndexUnreachableError):
        hasty.plan("cu126")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:port", "nonsense", "socks5://127.0.0.1:9"])
def test_a_proxy_that_is_nonsense_is_no_traceback(
    hasty: Target, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(TorchEnvError) as caught:
        hasty.plan("cu126")
    assert_said(caught.value)


def test_an_index_without_hashes_is_used_and_nothing_is_fetched_twice(cold_target: Target) -> None:
    target, standin = cold_target, cold_target.standin
    standin.hashes = False
    target.install("cpu")
    standin.clear_log()
    plan = target.plan("cu126", "torch", "torchvision")
    assert not standin.downloads()
    assert plan.lock_format == "requirements"
    assert plan.unknown_sizes == len(plan.downloads)
    assert "of unknown size" in plan.summary
    result = install_plan(plan)
    fetched = [request.path for request in standin.downloads()]
    assert len(fetched) == len(set(fetched))
    assert "torch" in result.changed
    assert target.imported("torch", "torchvision") == "2.13.0+cu126"
    assert target.plan("cu126").nothing_to_do


def test_without_metadata_beside_the_wheels_it_works_too(cold_target: Target) -> None:
    cold_target.standin.metadata = False
    cold_target.install("cu126", "torch", "torchvision")
    assert cold_target.imported("torch", "torchvision") == "2.13.0+cu126"


def test_a_python_that_no_wheel_is_for_is_told(target: Target) -> None:
    names: Iterable[str] = [wheel.path.name for wheel in target.standin.wheels("xpu")]
    tag = target.read().interpreter.tag
    for name in names:
        if f"-{tag}-" in name:
            target.standin.remove_wheel("xpu", name)
    with pytest.raises(PlanError, match="no wheel of torch for xpu for this Python") as caught:
        target.plan("xpu")
    assert "torchenv list" in caught.value.hint


def test_a_package_that_must_be_built_and_cannot_is_told(target: Target, tmp_path: Path) -> None:
    broken = make_wheel(tmp_path, "broken", "1.0")
    broken.write_bytes(b"PK\x03\x04 no wheel at all")
    with pytest.raises(TorchEnvError) as caught:
        target.plan("cpu", "torch", f"broken @ {broken.as_uri()}")
    assert_said(caught.value)


def test_an_environment_that_vanished_is_told(target: Target) -> None:
    here: Environment = target.read()
    interpreter = replace(here.interpreter, executable=target.prefix / "bin" / "gone")
    with pytest.raises(TorchEnvError) as caught:
        make_plan(selected("cpu"), replace(here, interpreter=interpreter), Request())
    assert_said(caught.value)
    assert os.sep in caught.value.message
