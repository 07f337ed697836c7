"""The words of an admin: what `torchenv layer` and `torchenv prefetch` do and say."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.targets import Target
from torchenv_magic.cli import main
from torchenv_magic.errors import RequestError
from torchenv_magic.installation.prefetch import HASHES
from torchenv_magic.words import parse_words

pytest_plugins = ["tests.kernel_wheels", "tests.target_fixtures"]


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


def test_an_image_is_filled_with_wheels_that_all_can_read_and_nobody_can_write(
    target: Target, kernel_wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "wheels"
    line = ["prefetch", str(folder), "--backend", "cpu", "--backend", "cu126", "--json"]
    line.append(f"--find-links={kernel_wheels}")
    assert main(line) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["backends"] == ["cpu", "cu126"]
    assert done["writable"] == ""
    names = {wheel["name"] for wheel in done["wheels"]}
    assert {"torch", "ipykernel", "pip", "ipywidgets"} <= names
    if os.name != "nt":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    lines = (folder / HASHES).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(done["wheels"])
    for text in lines:
        digest, _, name = text.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    # A user's install takes it from there, without a network and without a cache.
    target.standin.clear_log()
    monkeypatch.setenv("TORCHENV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    assert main(["install", "cu126", "--python", str(target.python), "--json"]) in (0, 1)
    assert target.imported() == "2.13.0+cu126"
    assert target.standin.downloads() == ()
