"""How a verification is shown: as a table for people, as text, and as JSON for programs."""

from __future__ import annotations

from html import escape
from typing import Any

from torchenv_magic.notebook.rendering import (
    block_html,
    facts_html,
    log_html,
    title_html,
    words_html,
)
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
    rows = [(_titled(name), words_html(text)) for name, text in verification.rows]
    return block_html(
        f"<p class='torchenv-quiet'>{words_html(lead)}</p>" if lead else "",
        title_html(verification.title, tone="good" if verification.passed else "bad"),
        facts_html(rows),
        _machine_html(verification),
        log_html(verification.detail.splitlines(), title="what Python said"),
    )


def _titled(name: str) -> str:
    return f"<strong class='torchenv-bad'>{name}</strong>" if name == "Failed" else escape(name)


def _machine_html(verification: Verification) -> str:
    """Return what only who reads an issue asks for, folded."""
    if not verification.facts:
        return ""
    rows = [(escape(fact.name), escape(fact.value)) for fact in verification.facts]
    return f"<details><summary>this machine, for an issue</summary>{facts_html(rows)}</details>"
