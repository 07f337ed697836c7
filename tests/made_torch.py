"""Change a made PyTorch where it is installed: what the tests of verification and doctor share."""

from __future__ import annotations

from pathlib import Path

__all__ = ["add_to_torch", "change_module"]


def change_module(site_packages: Path, module: str, old: str, new: str) -> None:
    """Replace a text of a module, which has to be there."""
    path = site_packages / module
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def add_to_torch(site_packages: Path, text: str) -> None:
    """Let `import torch` do something first."""
    begin = "from __future__ import annotations\n"
    change_module(site_packages, "torch/__init__.py", begin, f"{begin}{text}\n")
