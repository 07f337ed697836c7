"""Whether the PyTorch of an environment works, and is the one that was asked for."""

from __future__ import annotations

from torchenv_magic.verification.report import Check, Verification
from torchenv_magic.verification.trial import verify

__all__ = ["Check", "Verification", "verify"]
