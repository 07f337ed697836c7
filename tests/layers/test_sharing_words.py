"""The words of an admin: what `torchenv layer` and `torchenv prefetch` do and say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.layers.shelves import Shelf
from tests.targets import Target, settle
from torchenv_magic.cli import main
from torchenv_magic.errors import RequestError
from torchenv_magic.installation.layers import attached
from torchenv_magic.installation.prefetch import HASHES
from torchenv_magic.words import parse_words

pytest_plugins = ["tests.kernel_wheels", "tests.layers.fixtures", "tests.target_fixtures"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="a layer is attached by links")


def refusal(*words: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse_words(words, notebook=False)
    return str(caught.value)


def test_what_a_layer_word_needs_is_said() -> None:
    assert "did you mean `torchenv layer attach`?" in refusal("layer", "atach", "x")
    assert refusal("layer", "build").startswith("`torchenv layer build` needs a DIR")
    assert refusal("layer", "check").startswith("`torchenv layer check` needs a LAYER")
    assert refusal("layer", "detach", "x").startswith("`torchenv layer detach` takes no `x`")
    words = parse_words(["layer", "build", "/srv/torch", "cu126", "torchvision"], notebook=False)
    assert (words.action, words.directory) == ("build", Path("/srv/torch"))
    assert str(words.request.backend) == "cu126"
    assert words.request.requirements == ("torch", "torchvision")


def test_backends_of_prefetch_are_named_each_once() -> None:
    line = ["prefetch", "wheels", "--backend", "cpu", "--backend=cu126", "torch", "--backend=cpu"]
    words = parse_words(line, notebook=False)
    assert list(map(str, words.backends)) == ["cpu", "cu126"]
    assert parse_words(["prefetch", "wheels"], notebook=False).backends == (None,)
    assert "did you mean" in refusal("prefetch", "wheels", "--backend", "cu127")


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
    shutil.copytree(layer, copy, copy_function=os.link)
    assert main(["layer", "remove", str(copy), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == shelf.layer.size_bytes
    assert not copy.exists()


def test_an_image_is_filled_with_wheels_that_all_can_read_and_nobody_can_write(
    target: Target, shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "wheels"
    links = [f"--find-links={place}" for place in shelf.sites.find_links]
    line = ["prefetch", str(folder), "--backend", "cpu", "--backend", "cu126", *links, "--json"]
    assert main(line) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["backends"] == ["cpu", "cu126"]
    assert done["writable"] == ""
    names = {wheel["name"] for wheel in done["wheels"]}
    assert {"torch", "ipykernel", "pip", "ipywidgets"} <= names
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", HASHES], cwd=folder, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count(b"OK") == len(done["wheels"])
    # A user's install takes it from there, without a network and without a cache.
    target.standin.clear_log()
    monkeypatch.setenv("TORCHENV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    assert main(["install", "cu126", "--python", str(target.python), "--json"]) in (0, 1)
    assert target.imported() == "2.13.0+cu126"
    assert target.standin.downloads() == ()
