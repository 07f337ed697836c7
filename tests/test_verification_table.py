"""How a verification is shown: a table that survives a sanitizer, text, and JSON beside both."""

from __future__ import annotations

import atexit
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from torchenv_magic.builds.backend import Backend
from torchenv_magic.notebook import after_restart
from torchenv_magic.notebook.verification_table import (
    VERIFICATION_MIME,
    verification_bundle,
    verification_html,
)
from torchenv_magic.serialization import from_json
from torchenv_magic.verification import Check, Verification
from torchenv_magic.verification.facts import Fact
from torchenv_magic.verification.findings import Step

WORKS = Verification(
    python="3.12.3",
    prefix=Path("/lab"),
    environment_kind="venv",
    torch="2.13.0+cu130",
    backend=Backend.parse("cu130"),
    device="cuda:0",
    device_names=("NVIDIA <b>GeForce</b> RTX 4090",),
    checks=(
        Check(name="product", passed=True, message="a matrix product on cuda:0 agrees"),
        Check(name="memory", passed=True, message="64 MiB were taken"),
    ),
    versions=(),
    import_seconds=2.5,
    product_seconds=0.4,
    self_test=(
        Step(name="product", seconds=0.4, difference=1e-5, bound=4e-4),
        Step(name="memory", difference=0.0, bound=0.0, free_bytes=1 << 30, total_bytes=2 << 30),
    ),
    facts=(Fact(name="System", value="Debian <i>12</i>"), Fact(name="Variables", value="A=1")),
)
FAILS = replace(
    WORKS,
    checks=(Check(name="import", passed=False, message="no `torch`", hint="run `%torchenv`"),),
    detail="Traceback <b>",
)


def without_style(html: str) -> str:
    """Return what a sanitizer leaves: no style sheet and no classes."""
    return re.sub(r" class='[^']*'", "", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))


def test_each_row_of_the_table_has_its_header() -> None:
    html = without_style(verification_html(WORKS))
    rows = dict(re.findall(r"<tr><th scope='row'>(.*?)</th><td>(.*?)</td></tr>", html))
    assert rows == {
        "Environment": "/lab, Python 3.12.3, venv",
        "PyTorch": "2.13.0+cu130, CUDA 13.0, imported in 2.5 s",
        "Device": "cuda:0, NVIDIA &lt;b&gt;GeForce&lt;/b&gt; RTX 4090, 1.0 of 2.0 GiB free",
        "Product": "a matrix product on cuda:0 agrees",
        "Self-test": "a block of memory is right too, in 0 ms",
        "Checks": "2 of 2 passed",
        "System": "Debian &lt;i&gt;12&lt;/i&gt;",
        "Variables": "A=1",
    }


def test_what_only_an_issue_needs_is_folded_and_what_works_comes_first() -> None:
    html = without_style(verification_html(WORKS, lead="Done: `torch`."))
    before, folded = html.split("<details>")
    assert before.index("Done: <code>torch</code>.") < before.index("PyTorch works")
    assert "Checks" in before
    assert "System" not in before
    assert "System" in folded
    assert "<details>" not in verification_html(replace(WORKS, facts=()))


def test_failure_is_told_with_its_hint_and_what_python_said() -> None:
    html = without_style(verification_html(FAILS))
    assert "PyTorch does not work as asked" in html
    assert "<strong>Failed</strong></th><td>no <code>torch</code></td>" in html
    assert "<th scope='row'>hint:</th><td>run <code>%torchenv</code></td>" in html
    assert "<pre>Traceback &lt;b&gt;</pre>" in html


@pytest.mark.parametrize("verification", [WORKS, FAILS])
def test_bundle_holds_text_table_and_the_record_itself(verification: Verification) -> None:
    bundle = verification_bundle(verification, lead="Done.")
    assert bundle["text/plain"] == f"Done.\n{verification}"
    assert bundle["text/html"] == verification_html(verification, lead="Done.")
    stored = json.loads(json.dumps(bundle[VERIFICATION_MIME]))
    assert from_json(Verification, stored) == verification
    assert verification_bundle(verification)["text/plain"] == str(verification)


def test_text_is_aligned_so_that_a_code_block_shows_it_well() -> None:
    title, *lines = str(WORKS).splitlines()
    assert title == "PyTorch works"
    assert all(re.match(r"(?=.{13}\S)[A-Z][\w-]*:? +\S", line) for line in lines)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Return what is displayed, in a shell of this process."""
    configuration = Config()
    configuration.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    displayhook, excepthook = sys.displayhook, sys.excepthook
    shell = InteractiveShell.instance(config=configuration, ipython_dir=str(tmp_path / "ipython"))
    publisher = CapturingDisplayPublisher()  # type: ignore[no-untyped-call]
    shell.display_pub = publisher
    yield publisher.outputs
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()  # type: ignore[no-untyped-call]
    InteractiveShell.clear_instance()
    sys.displayhook, sys.excepthook = displayhook, excepthook


def test_fresh_kernel_puts_the_whole_bundle_into_the_output_that_asked(
    published: list[dict[str, Any]],
) -> None:
    after_restart.show("the-output", "Installed.")
    (output,) = published
    assert output["update"] is True
    assert output["transient"] == {"display_id": "the-output"}
    assert output["data"]["text/plain"].startswith("Installed.\nPyTorch ")
    assert from_json(Verification, output["data"][VERIFICATION_MIME]).prefix == Path(sys.prefix)
