"""Which variables of an environment hold secrets, by their names.

Only the standard library: the start of each server asks.
"""

from __future__ import annotations

import re

__all__ = ["is_secret"]

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return whether a variable of that name holds what no other program is to get.

    >>> is_secret("JUPYTERHUB_API_TOKEN"), is_secret("PATH")
    (True, False)
    """
    return _SECRET.search(name) is not None
