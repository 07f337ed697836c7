"""The servers that this machine's own settings name for packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from torchenv_magic.errors import RequestError
from torchenv_magic.installation.settings import Sites, mirror_base
from torchenv_magic.installation.sources import uv_indexes

__all__ = ["is_pytorchs", "own_hosts"]

_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)


def own_hosts(
    sites: Sites | None = None, *, environ: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Return the hosts, in small letters, of each index and mirror that is set here for uv or pip.

    Parameters
    ----------
    sites
        Where wheels may come from; None for what variables and configuration files say.
    """
    environ = os.environ if environ is None else environ
    base = None
    if sites is not None:
        base = sites.index_base
    else:
        try:
            base = mirror_base(prefix=Path(sys.prefix), environ=environ)
        except RequestError:
            base = None  # whoever uses it is told what is wrong with it
    named = [
        text for name in _VARIABLES for text in environ.get(name, "").replace(",", " ").split()
    ]
    return frozenset(_hosts([*named, *uv_indexes(environ=environ), *([base] if base else [])]))


def is_pytorchs(host: str) -> bool:
    """Whether PyTorch's own index is there."""
    return host == "pytorch.org" or host.endswith(".pytorch.org")


def _hosts(addresses: Iterable[str]) -> Iterable[str]:
    for address in addresses:
        # uv's own form has a name before it: `torchenv=https://mirror.example/whl`.
        _, mark, rest = address.partition("://")
        try:
            host = urlsplit(f"https://{rest}").hostname if mark else None
        except ValueError:
            continue
        if host:
            yield host.lower()
