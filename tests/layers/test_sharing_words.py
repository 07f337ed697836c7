"""The words of an admin: what `torchenv layer` and `torchenv prefetch` do and say."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.targets import Target
from torchenv_magic.builds.backend import Backend
from torchenv_magic.cli import main
from torchenv_magic.errors import InstallError, PlanError, RequestError
from torchenv_magic.installation.layers import Layer, find_layers
from torchenv_magic.installation.prefetch import HASHES, _close, prefetch
from torchenv_magic.installation.settings import Sites
from torchenv_magic.selection import Request
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
    names = {wheel["name"] for wheel in done["wheels"]}
    assert {"torch", "ipykernel", "pip", "ipywidgets"} <= names
    if os.name != "nt":
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    if os.name != "nt":
        # What lies in lines and links leads nobody to another file.
        victim = tmp_path / "victim.whl"
        victim.write_text("mine", encoding="utf-8")
        victim.chmod(0o600)
        planted = (str(victim), "../victim.whl", "link.whl")
        (folder / "link.whl").symlink_to(victim)
        (folder / f"{HASHES}.new").symlink_to(victim)
        rewrite = (folder / HASHES).read_text(encoding="utf-8")
        (folder / HASHES).chmod(0o644)
        (folder / HASHES).write_text(
            rewrite + "".join(f"00  {name}\n" for name in planted), "utf-8"
        )
        _close(folder, {})
        assert (folder / HASHES).read_text(encoding="utf-8") == rewrite
        assert (victim.read_text(encoding="utf-8"), victim.stat().st_mode & 0o777) == (
            "mine",
            0o600,
        )
        assert main(line) == 1
        assert "is a link" in capsys.readouterr().err
        (folder / "link.whl").unlink()
        (folder / f"{HASHES}.new").unlink()
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


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="gives a folder to a stranger")
@pytest.mark.usefixtures("target")
def test_a_folder_that_somebody_else_can_write_is_not_filled(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    os.chown(folder, 54321, 54321)
    with pytest.raises(InstallError, match="belongs to user 54321"):
        prefetch(folder, Request(), [Backend.parse("cpu")], sites=Sites())
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="a layer is attached by links")
@pytest.mark.usefixtures("target")
def test_layers_that_are_whole_stay_and_the_same_line_goes_on_from_there(
    kernel_wheels: Path, tmp_path: Path
) -> None:
    sites = Sites(find_links=(str(kernel_wheels),), find_links_origin="a test")
    backends = [Backend.parse("cpu"), Backend.parse("cu126")]

    def fill(**exclusions: str) -> list[str]:
        wishes = {Backend.parse(name): text for name, text in exclusions.items()}
        done = prefetch(
            tmp_path / "shelf", Request(), backends, layers=True, sites=sites, exclusions=wishes
        )
        return [layer.made for layer in done.layers]

    with pytest.raises(PlanError):
        fill(cu126="torch<0.1")
    [first] = find_layers([tmp_path / "shelf"])
    assert isinstance(first, Layer)
    assert fill()[0] == first.made
    assert len(find_layers([tmp_path / "shelf"])) == 2
