"""The Jupyter server extension: a preinstall once the server is up, and a route about it.

Every server of an environment with this package loads it, and next to nothing more where nobody
has opted in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

__all__: list[str] = []


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Tell Jupyter what to load."""
    return [{"module": "torchenv_magic.server"}]


def _load_jupyter_server_extension(serverapp: ServerApp) -> None:
    """Begin where somebody has opted in, and do nothing where not."""
    import os

    from torchenv_magic.server.settings import TorchenvPreinstall

    settings = TorchenvPreinstall(parent=serverapp)
    if settings.is_on(os.environ):
        from torchenv_magic.server.extension import load

        load(serverapp, settings)
