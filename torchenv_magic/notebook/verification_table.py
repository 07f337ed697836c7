"""How a verification is shown: as a table for people, as text, and as JSON for programs."""

from __future__ import annotations

from html import escape
from typing import Any

from torchenv_magic.notebook.rendering import block_html, facts_html, log_html, words_html
from torchenv_magic.serialization import to_json
from torchenv_magic.verification import Verification

__all__ = ["VERIFICATION_MIME", "verification_bundle", "verification_data", "verification_html"]

VERIFICATION_MIME = "application/vnd.torchenv-magic.verification+json"


def verification_bundle(verification: Verification, *, lead: str = "") -> dict[str, Any]:
    """Return the MIME bundle of a verification, after a sentence where there is one to say."""
    return {
        "text/html": verification_html(verification, lead=lead),
        "text/plain": f"{lead}\n{verification}" if lead else str(verification),
        **verification_data(verification),
    }


def verification_data(verification: Verification) -> dict[str, Any]:
    """Return the part of the bundle that is for programs."""
    return {VERIFICATION_MIME: to_json(verification)}


def verification_html(verification: Verification, *, lead: str = "") -> str:
    """Return the proof: what runs where, what was computed, and what was asked against what is."""
    title = "PyTorch works" if verification.passed else "PyTorch does not work as asked"
    tone = "good" if verification.passed else "bad"
    head, *lines = str(verification).splitlines()
    rows: list[tuple[str, str]] = []
    for line in lines:
        name, text = line[:13].strip(), line[13:]
        mark = {"Passed": "good", "Failed": "bad"}.get(name)
        word = f"<span class='torchenv-{mark}'>{escape(name)}</span>" if mark else escape(name)
        rows.append((word, words_html(text)))
    return block_html(
        f"<p class='torchenv-quiet'>{words_html(lead)}</p>" if lead else "",
        f"<p class='torchenv-title torchenv-{tone}'>{escape(title or head)}</p>",
        facts_html(rows),
        log_html(verification.detail.splitlines(), title="what Python said"),
    )
