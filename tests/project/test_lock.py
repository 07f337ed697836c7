"""The lock in a notebook's metadata: what is read, and what is refused as a whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import LockError
from torchenv_magic.installation.plan import read_lock as read_pylock
from torchenv_magic.installation.settings import Sites
from torchenv_magic.project.hosts import is_pytorchs, own_hosts
from torchenv_magic.project.lock import (
    METADATA_KEY,
    check_schema,
    lock_to_json,
    pylock_of,
    pylock_text,
    read_lock,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHA = "0123456789abcdef" * 4


def wheel(name: str, version: str, *, where: str = "https://files.example/a") -> dict[str, Any]:
    file = f"{name}-{version.replace('+', '%2B')}-cp311-cp311-manylinux_2_28_x86_64.whl"
    return {"url": f"{where}/{file}", "size": 1000, "hashes": {"sha256": SHA}}


def package(name: str, version: str, **of_wheel: str) -> dict[str, Any]:
    file_name = name.replace("-", "_")
    return {"name": name, "version": version, "wheels": [wheel(file_name, version, **of_wheel)]}


def table(backend: str) -> dict[str, Any]:
    index = f"https://download-r2.pytorch.org/whl/{backend}"
    packages = [
        package("torch", f"2.13.0+{backend}", where=index),
        package("torchvision", f"0.28.0+{backend}", where=index),
        package("typing-extensions", "4.16.0"),
    ]
    return {
        "lock-version": "1.0",
        "created-by": "torchenv-magic",
        "requires-python": ">=3.11",
        "packages": packages,
    }


def metadata() -> dict[str, Any]:
    return {
        METADATA_KEY: {
            "schema": 1,
            "version": "0.1.0",
            "asked": {"backend": None, "requirements": ["torch", "torchvision>=0.28"]},
            "torch": "2.13.0",
            "target": {
                "python": "3.11",
                "implementation": "cpython",
                "system": "linux",
                "machine": "x86_64",
            },
            "ran": "cu126",
            "backends": {name: table(name) for name in ("cpu", "cu126", "cu130")},
        }
    }


def refusal(data: dict[str, Any], *, plain_hosts: Iterable[str] = ()) -> str:
    with pytest.raises(LockError) as caught:
        read_lock(data, plain_hosts=frozenset(plain_hosts))
    assert caught.value.hint
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 1500
    return caught.value.message


# ------------------------------------------------------------------------------ what is read


def test_a_notebook_without_a_lock_has_none() -> None:
    assert read_lock({"kernelspec": {}}) is None


def test_a_lock_is_read_as_it_was_written() -> None:
    data = metadata()
    lock = read_lock(data)
    assert lock is not None
    assert lock.asked.requirements == ("torch", "torchvision>=0.28")
    assert str(lock) == "torch 2.13.0 for cu126, cu130, cpu (Python 3.11 on Linux x86_64)"
    assert lock_to_json(lock) == data[METADATA_KEY]


def test_the_order_of_keys_says_nothing() -> None:
    """Who saves a notebook sorts the keys of its metadata."""
    by_name = json.loads(json.dumps(metadata(), sort_keys=True))
    backwards = metadata()
    tables = backwards[METADATA_KEY]["backends"]
    backwards[METADATA_KEY]["backends"] = dict(reversed(tables.items()))
    one, other = read_lock(by_name), read_lock(backwards)
    assert one is not None
    assert one == other
    assert json.dumps(lock_to_json(one)) == json.dumps(lock_to_json(other))


def test_a_backends_table_is_a_pylock_that_is_read_as_uvs_own() -> None:
    lock = read_lock(metadata())
    assert lock is not None
    locked = lock.of(Backend.parse("cu130"))
    assert locked is not None
    text = pylock_text(lock.target, locked)
    assert tomllib.loads(text) == pylock_of(lock.target, locked)
    assert {each.name: each.version for each in read_pylock(text)} == locked.pins
    assert lock.of(Backend.parse("rocm7.2")) is None


def test_a_newer_schema_is_neither_read_nor_written_over() -> None:
    data = {METADATA_KEY: {"schema": 2, "version": "9.0\x1b[2J", "what": "nobody knows"}}
    assert refusal(data) == (
        "The notebook's lock has schema 2, written by torchenv_magic '9.0\\x1b[2J': this version "
        "knows 1"
    )
    with pytest.raises(LockError):
        check_schema(data)
    check_schema({METADATA_KEY: {"schema": "malformed"}})
    check_schema({METADATA_KEY: None})


def test_http_is_for_servers_that_are_set_here() -> None:
    data = metadata()
    numpy = package("numpy", "2.4.6", where="http://127.0.0.1:8080/files")
    data[METADATA_KEY]["backends"]["cpu"]["packages"].append(numpy)
    assert "numpy comes by http from `127.0.0.1`" in refusal(data)
    assert read_lock(data, plain_hosts={"127.0.0.1"}) is not None


# ------------------------------------------------------------------------------ what is refused

Change = Callable[[dict[str, Any]], object]


def of_torch(**fields: object) -> Change:
    """Change the package that everything is about."""
    return lambda lock: lock["backends"]["cpu"]["packages"][0].update(fields)


def of_wheel(**fields: object) -> Change:
    return lambda lock: lock["backends"]["cpu"]["packages"][0]["wheels"][0].update(fields)


def address(text: str) -> Change:
    return of_wheel(url=text)


def asking(*texts: object) -> Change:
    return lambda lock: lock["asked"].update(requirements=list(texts))


def without(*path: str) -> Change:
    def change(lock: dict[str, Any]) -> None:
        place = lock
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


FILE = "torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl"
TORCHS = "https://download-r2.pytorch.org/whl/cpu"

HOSTILE: dict[str, tuple[Change, str]] = {
    "a file of the reader's": (address(f"file:///tmp/{FILE}"), "address of no server"),
    "a folder": (of_wheel(path="/tmp/x.whl"), "a file of another machine"),  # noqa: S108
    "plain http": (address(f"http://evil.example/{FILE}"), "by http from `evil.example`"),
    "ftp": (address(f"ftp://evil.example/{FILE}"), "address of no server (`ftp`)"),
    "git": (address(f"git+https://evil.example/{FILE}"), "address of no server"),
    "a login": (address(f"https://user:secret@evil.example/{FILE}"), "has a login"),
    "no server": (address(f"https:///{FILE}"), "address of no server"),
    "a broken address": (address(f"https://[::1/{FILE}"), "an address that is none"),
    "a space": (address(f"https://evil.example/ {FILE}"), "an address that is none"),
    "a line break": (address(f"{TORCHS}/\n--index-url"), "an address that is none"),
    "an escape": (address(f"{TORCHS}/\x1b[2J{FILE}"), "an address that is none"),
    "another alphabet": (address(f"https://pytorсh.example/{FILE}"), "an address that is none"),  # noqa: RUF001
    "a query": (address(f"{TORCHS}/{FILE}?to=evil"), "asks a server for something"),
    "a fragment": (address(f"{TORCHS}/{FILE}#sha256={SHA}"), "asks a server for something"),
    "a page": (address(f"{TORCHS}/"), "is no wheel"),
    "a source distribution": (address(f"{TORCHS}/torch-2.13.0.tar.gz"), "is no wheel"),
    "another package": (address(f"{TORCHS}/evil-2.13.0-py3-none-any.whl"), "is not torch"),
    "another version": (address(f"{TORCHS}/torch-2.0-py3-none-any.whl"), "is not torch"),
    "a name longer than any": (address(f"{TORCHS}/{'a' * 300}-1-py3-none-any.whl"), "is no wheel"),
    # Three hundred of each would be 27 million tags, and gigabytes.
    "tags without end": (
        address(f"{TORCHS}/torch-2.13.0%2Bcpu-{'.'.join('a' * 50)}-{'.'.join('a' * 50)}-any.whl"),
        "is no wheel",
    ),
    "an absurd address": (address(f"https://a.example/{'a' * 3000}/{FILE}"), "that is none"),
    "no hash": (of_wheel(hashes={}), "has no sha256"),
    "a weak hash": (of_wheel(hashes={"md5": "0" * 32}), "has no sha256"),
    "a short hash": (of_wheel(hashes={"sha256": "0" * 63}), "has no sha256"),
    "a hash with more": (of_wheel(hashes={"sha256": f"{SHA}\n"}), "has no sha256"),
    "an sdist": (of_torch(sdist={"url": "https://evil.example/torch.tar.gz"}), "run its code"),
    "a repository": (of_torch(vcs={"type": "git", "url": "https://evil.example"}), "run its code"),
    "a directory": (of_torch(directory={"path": "."}), "run its code"),
    "an archive": (of_torch(archive={"url": "https://evil.example/a.zip"}), "run its code"),
    "an option for a name": (of_torch(name="--index-url"), "is no name of a package"),
    "a name of two lines": (of_torch(name="torch\n--pre"), "is no name of a package"),
    "an absurd name": (of_torch(name="a" * 5000), "is no name of a package"),
    "an option": (asking("--index-url=https://evil.example"), "is an option"),
    "an address": (asking("torch @ https://evil.example/t.whl"), "from an address"),
    "an escape asked for": (asking("torch\x1b[2J"), "control characters"),
    "two lines": (asking("torch\n-e ."), "control characters"),
    "nonsense": (asking("torch =!= 3"), "is not a requirement"),
}

MALFORMED: dict[str, tuple[Change, str]] = {
    "no torch": (lambda lock: lock["backends"]["cpu"]["packages"].pop(0), "another torch"),
    "another release": (lambda lock: lock.update(torch="2.12.0"), "another torch than 2.12.0"),
    "another build": (
        lambda lock: lock["backends"].update(cpu=lock["backends"]["cu130"]),
        "has torch 2.13.0+cu130",
    ),
    "what ran is missing": (lambda lock: lock.update(ran="rocm7.2"), "contradict each other"),
    "no backends": (lambda lock: lock.update(backends={}), "has 0 backends"),
    "too many": (
        lambda lock: lock.update(backends={f"cu12{n}": {} for n in range(100)}),
        "has 100 backends",
    ),
    "a list of them": (lambda lock: lock.update(backends=["cpu"]), "is no table"),
    "a strange backend": (lambda lock: lock["backends"].update(quantum={}), "is no backend"),
    "a version spelt anew": (of_torch(version="2.13.00+cpu"), "is no version of torch"),
    "no version": (of_torch(version=None), "is no version of torch"),
    "no wheels": (of_torch(wheels=[]), "has no list of wheels"),
    "too many wheels": (of_torch(wheels=[{}] * 1000), "has no list of wheels"),
    "too many packages": (
        lambda lock: lock["backends"]["cpu"].update(packages=[{}] * 5000),
        "no list of packages",
    ),
    "one twice": (
        lambda lock: lock["backends"]["cpu"]["packages"].append(package("Typing.Extensions", "1")),
        "one package twice",
    ),
    "a size below zero": (of_wheel(size=-1), "absurd size"),
    "a size beyond all": (of_wheel(size=10**30), "absurd size"),
    "a size that is none": (of_wheel(size=True), "absurd size"),
    "a key more": (of_torch(attestation="x"), "`attestation`, which is not known"),
    "a key more in it": (lambda lock: lock.update(hook="x"), "`hook`, which is not known"),
    "no target": (without("target"), "has no `target`"),
    "half a target": (without("target", "machine"), "has no `machine`"),
    "a Python that is none": (lambda lock: lock["target"].update(python="3"), "version of Python"),
    "a system that acts": (lambda lock: lock["target"].update(system="a\x07"), "control"),
    "a machine in words": (lambda lock: lock["target"].update(machine="a b"), "no machine"),
    "nothing asked": (asking(), "no list of requirements"),
    "too much asked": (asking(*["torch"] * 500), "no list of requirements"),
    "another version asked": (asking("torch==2.12.0"), "`torch==2.12.0` was asked for and is not"),
    "what is not locked": (asking("torch", "jinja2"), "`jinja2` was asked for and is not"),
    "a number asked": (asking(3), "is no text"),
    "schema 0": (lambda lock: lock.update(schema=0), "its schema"),
    "schema true": (lambda lock: lock.update(schema=True), "its schema"),
    "a lock of another kind": (
        lambda lock: lock["backends"]["cpu"].update({"lock-version": "9"}),
        "`lock-version`",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_index_would_say_is_refused(name: str) -> None:
    data = metadata()
    change, said = HOSTILE[name]
    change(data[METADATA_KEY])
    message = refusal(data)
    assert message.startswith(
        ("The notebook's lock is not to be trusted: ", "The notebook's lock can't be read: ")
    )
    assert said in message
    assert "secret" not in message


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_as_it_is_written_is_refused(name: str) -> None:
    data = metadata()
    change, said = MALFORMED[name]
    change(data[METADATA_KEY])
    message = refusal(data)
    assert message.startswith("The notebook's lock can't be read: ")
    assert said in message


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.data())
def test_anything_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    lock = metadata()
    place: Any = lock
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0]))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            break
        place = inner
    # As text, in which `true` is not 1.
    before = json.dumps(lock)
    place[key] = data.draw(ANYTHING)
    try:
        read = read_lock(lock, plain_hosts=())
    except LockError:
        assert json.dumps(lock) != before
    else:
        assert read is not None
        assert read_lock({METADATA_KEY: lock_to_json(read)}, plain_hosts=()) == read


# ------------------------------------------------------------------------------ whose servers


def test_the_servers_of_this_machine_are_those_that_its_settings_name(tmp_path: Path) -> None:
    settings = tmp_path / "uv.toml"
    settings.write_text(
        'index-url = "https://Files.example/simple"\n'
        'extra-index-url = ["https://more.example/simple"]\n'
        '[[index]]\nname = "own"\nurl = "https://own.example/simple"\n',
        encoding="utf-8",
    )
    environ = {
        "UV_INDEX": "named=https://user:secret@a.example/simple https://b.example:8080/simple",
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "UV_FIND_LINKS": "/wheels",
        "TORCHENV_INDEX_BASE": "https://mirror.example/whl",
        "UV_CONFIG_FILE": str(settings),
    }
    named = {"files", "more", "own", "a", "b", "mirror"}
    assert own_hosts(environ=environ) == {"127.0.0.1", *(f"{name}.example" for name in named)}
    assert own_hosts(Sites(index_base="https://Other.example/whl"), environ={}) >= {"other.example"}
    assert own_hosts(Sites(), environ={"UV_NO_CONFIG": "1", "UV_INDEX": "https://[broken"}) == set()


def test_pytorchs_servers_are_below_its_name() -> None:
    assert is_pytorchs("download-r2.pytorch.org")
    assert not is_pytorchs("pytorch.org.example")
    assert not is_pytorchs("evilpytorch.org")
