"""Where wheels may come from: which setting counts, who said so, and what is no setting."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from torchenv_magic import web
from torchenv_magic.errors import RequestError
from torchenv_magic.installation.settings import (
    Sites,
    goes_unencrypted,
    mirror_base,
    read_sites,
    setting_files,
)
from torchenv_magic.serialization import to_json

BASE = "https://mirror.example/whl"


@pytest.fixture(autouse=True)
def _nobody_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_logins", {})


def read(
    *files: Path,
    index_base: str | None = None,
    find_links: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Sites:
    return read_sites(
        index_base=index_base, find_links=find_links, environ=environ or {}, files=files
    )


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_nothing_is_set_where_nobody_sets_anything(tmp_path: Path) -> None:
    assert read(tmp_path / "config.toml") == Sites()


def test_the_option_counts_before_the_variable_before_the_nearest_file(tmp_path: Path) -> None:
    near = write(tmp_path / "near", 'index-base = "https://near.example/whl"')
    far = write(tmp_path / "far", 'index-base = "https://far.example/whl"')
    variable = {"TORCHENV_INDEX_BASE": "https://variable.example/whl"}
    option = read(near, far, index_base="https://option.example/whl", environ=variable)
    assert (option.index_base, option.index_origin) == (
        "https://option.example/whl",
        "--index-base",
    )
    said = read(near, far, environ=variable)
    assert (said.index_base, said.index_origin) == (
        "https://variable.example/whl",
        "TORCHENV_INDEX_BASE",
    )
    assert read(near, far).index_origin == str(near)
    assert read(far).index_base == "https://far.example/whl"
    assert read(near, environ={"TORCHENV_INDEX_BASE": ""}).index_origin == str(near)


def test_each_setting_has_an_origin_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "near" / "wheels").mkdir(parents=True)
    near = write(tmp_path / "near", 'find-links = ["wheels"]')
    far = write(tmp_path / "far", f'index-base = "{BASE}"\nfind-links = ["/none"]')
    sites = read(near, far)
    assert (sites.index_base, sites.index_origin) == (BASE, str(far))
    # A relative path is meant from where it is written.
    assert sites.find_links == (str((tmp_path / "near" / "wheels").resolve()),)
    assert sites.find_links_origin == str(near)


def test_folders_are_named_by_option_and_by_variable(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two words"
    one.mkdir()
    two.mkdir()
    environ = {"TORCHENV_FIND_LINKS": os.pathsep.join([str(one), two.as_uri(), str(one)])}
    if sys.platform != "win32":
        environ["TORCHENV_FIND_LINKS"] = os.pathsep.join([str(one), str(two), str(one)])
    assert read(environ=environ).find_links == (str(one.resolve()), str(two.resolve()))
    option = read(environ=environ, find_links=(two.as_uri(),))
    assert option.find_links == (str(two.resolve()),)
    assert option.find_links_origin == "--find-links"


@pytest.mark.parametrize("text", ["https://wheels.example/", "/not/there", ""])
def test_what_is_no_folder_is_said(text: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for each in (text or str(file),):
        with pytest.raises(RequestError) as caught:
            read(find_links=(each,))
        assert "--find-links" in caught.value.message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (f"{BASE}/", BASE),
        (f" {BASE}// ", BASE),
        ("http://localhost:8081/a/b", "http://localhost:8081/a/b"),
        # The index itself is no mirror of it.
        ("https://download.pytorch.org/whl/", None),
    ],
)
def test_an_address_is_what_stands_before_the_backend(written: str, meant: str | None) -> None:
    assert read(index_base=written).index_base == meant


def test_a_mirror_may_be_a_folder(tmp_path: Path) -> None:
    base = tmp_path / "my mirror"
    base.mkdir()
    assert read(index_base=str(base)).index_base == base.resolve().as_uri()
    assert read(index_base=base.as_uri()).index_base == base.resolve().as_uri()


@pytest.mark.parametrize(
    "text",
    [
        f"{BASE}/cu126",
        f"{BASE}/cpu/",
        "s3://bucket/whl",
        "ftp://mirror.example/whl",
        "https:///whl",
        "https://mirror.example:port/whl",
        "https://[mirror.example/whl",
        f"{BASE}?a=b",
        f"{BASE}#x",
        "https://mirror.example/a b",
        "/not/there",
        "",
    ],
)
def test_what_is_no_mirror_is_said_with_who_said_it(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(index_base=text)
    assert "--index-base" in caught.value.message
    assert "whl" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        "index_base = 'https://a.example/whl'",
        "index-base = 3",
        "index-base = ''",
        "index-base = ['https://a.example/whl']",
        "find-links = '/wheels'",
        "find-links = [3]",
        "[torchenv]\nindex-base = 'x'",
        "index-base",
        "\x00",
    ],
)
def test_garbage_in_a_file_is_one_message_that_names_it(tmp_path: Path, content: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(RequestError) as caught:
        read(file)
    assert str(file) in caught.value.message
    assert "`index-base` and `find-links`" in caught.value.hint


def test_a_file_that_is_no_text_or_endless_is_said(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for content in (b"\xff\xfe", b"#" * 200_000):
        file.write_bytes(content)
        with pytest.raises(RequestError, match=r"config\.toml"):
            read(file)


def test_the_files_are_those_of_environment_user_and_machine(tmp_path: Path) -> None:
    prefix, home = tmp_path / "env", tmp_path / "home"
    own = prefix / "etc" / "torchenv" / "config.toml"
    linux = setting_files(prefix=prefix, environ={}, system="linux", home=home)
    assert linux == (own, home / ".config/torchenv/config.toml", Path("/etc/torchenv/config.toml"))
    named = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert setting_files(environ=named, system="linux", home=home)[0] == (
        tmp_path / "xdg" / "torchenv" / "config.toml"
    )
    assert setting_files(environ={"XDG_CONFIG_HOME": "x"}, system="linux", home=home)[0] == linux[1]
    windows = {"APPDATA": "C:/roaming", "ProgramData": "C:/data"}
    assert setting_files(environ=windows, system="win32", home=home) == (
        Path("C:/roaming/torchenv/config.toml"),
        Path("C:/data/torchenv/config.toml"),
    )
    macos = setting_files(environ={}, system="darwin", home=home)
    assert macos[0] == home / "Library/Application Support/torchenv/config.toml"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://mirror.example/whl", True),
        (BASE, False),
        ("http://localhost:8081/whl", False),
        ("http://[::1]/whl", False),
        ("file:///srv/whl", False),
    ],
)
def test_what_goes_in_the_clear_through_a_network_is_known(address: str, expected: bool) -> None:  # noqa: FBT001
    assert goes_unencrypted(address) is expected


# ------------------------------------------------------------------------------------------- logins


def test_a_login_is_kept_for_that_server_and_in_no_record() -> None:
    sites = read(index_base="https://ada:s%2Fcret@mirror.example:8443/whl")
    assert sites.index_base == "https://mirror.example:8443/whl"
    assert "cret" not in json.dumps(to_json(sites))
    assert web.kept_login("https://mirror.example:8443/other") == ("ada", "s/cret")
    assert web.kept_login("https://mirror.example/whl") is None
    assert web.kept_login("http://mirror.example:8443/whl") is None


def test_the_variables_that_uv_reads_for_the_mirror_are_kept_too() -> None:
    environ = {"UV_INDEX_TORCHENV_USERNAME": "ada", "UV_INDEX_TORCHENV_PASSWORD": "secret"}
    mirror_base(BASE, environ=environ, files=())
    assert web.kept_login(BASE) == ("ada", "secret")


def test_a_refused_address_does_not_tell_its_login() -> None:
    for text in ("https://ada:secret@mirror.example/whl/cu126", "https://ada:secret@[x/whl"):
        with pytest.raises(RequestError) as caught:
            read(index_base=text)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("sign", ["/", "?", "#"])
def test_a_password_that_is_not_escaped_is_refused_and_not_told(sign: str) -> None:
    address = f"https://ada:sec{sign}ret@mirror.example/whl"
    with pytest.raises(RequestError) as caught:
        read(index_base=address)
    assert "ret" not in caught.value.message
    assert "sec" not in caught.value.message
    assert "%2F" in caught.value.hint
    line = web.without_login(f"torchenv install cpu --index-base {address}")
    assert line == "torchenv install cpu --index-base https://mirror.example/whl"


def test_a_folder_that_the_system_refuses_to_look_at_is_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not there"):
        read(find_links=(str(tmp_path / ("x" * 300)),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/x?X-Amz-Signature=s&a=1", "https://h/x?X-Amz-Signature=…&a=1"),
        ("https://h/x?a=1&access_token=s#f", "https://h/x?a=1&access_token=…#f"),
        ("at https://ada:secret@h/x and http://token@h", "at https://h/x and http://h"),
        ("https://ada:se@cret@h/x", "https://h/x"),
        ("https://h/a@b", "https://h/a@b"),
        ("ada@mail.example", "ada@mail.example"),
    ],
)
def test_every_login_is_taken_out_of_a_text(text: str, expected: str) -> None:
    assert web.without_login(text) == expected
