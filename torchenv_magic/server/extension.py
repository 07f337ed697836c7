"""A server's preinstall: begun in a thread once the server is up, and told about by a route."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import authenticated

from torchenv_magic.preinstall.launch import NotBegunError, make_directory
from torchenv_magic.preinstall.record import (
    STATE_VARIABLE,
    Record,
    is_running,
    own_user,
    read_record,
    record_directory,
)

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_server.serverapp import ServerApp

    from torchenv_magic.preinstall.launch import Begun
    from torchenv_magic.server.settings import TorchenvPreinstall

__all__ = ["AUTHORIZED_RESOURCE", "load"]

AUTHORIZED_RESOURCE = "torchenv"
"""What an authorizer is asked about."""


@dataclass(slots=True)
class _Preinstall:
    """What this process knows of it; changed on the event loop only."""

    directory: Path | None = None
    failure: str = ""
    """Why there is none."""

    def read(self) -> dict[str, Any]:
        """Return how it stands, as JSON knows it; for a thread, as it reads a file."""
        record = read_record(self.directory, owner=own_user()) if self.directory else None
        if record is None:
            message = self.failure or "The preinstall is about to begin"
            if self.directory is not None:
                message = "What was known of the preinstall is gone"
            record = Record(
                status="failed" if self.failure or self.directory else "running", message=message
            )
            return {**record.to_json(), "running": record.status == "running"}
        return {**record.to_json(), "running": is_running(record)}


class StatusHandler(APIHandler):
    """`GET torchenv/status`."""

    auth_resource = AUTHORIZED_RESOURCE
    # A page that looks every second is nobody at work: a server that nobody uses may be ended.
    _track_activity = False

    def initialize(self, preinstall: _Preinstall) -> None:
        self._preinstall = preinstall

    @authenticated
    @authorized
    async def get(self) -> None:
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(None, self._preinstall.read)
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(answer))


def load(serverapp: ServerApp, settings: TorchenvPreinstall) -> None:
    """Offer the route now, and begin as soon as the server answers."""
    if serverapp.gateway_config.gateway_enabled:
        serverapp.log.info("torchenv: kernels run at a gateway, so nothing is installed here")
        return
    preinstall = _Preinstall()
    route = url_path_join(serverapp.base_url, "torchenv", "status")
    serverapp.web_app.add_handlers(".*$", [(route, StatusHandler, {"preinstall": preinstall})])

    environ = settings.over(os.environ)
    preinstall.directory = _joined(environ)
    if preinstall.directory is not None:
        return
    directory = None
    # Now, and not when it has begun: a page that was left open starts its kernel in that moment,
    # and a kernel knows what its server knew then.
    with contextlib.suppress(OSError):
        directory = make_directory(environ)
        os.environ[STATE_VARIABLE] = str(directory)

    async def start() -> None:
        try:
            await _start(serverapp, environ, directory, preinstall)
        except Exception as error:
            if isinstance(error, NotBegunError):
                _take_over(serverapp, error.variables)
            # A server that comes up without PyTorch is still the server that a person waits for.
            preinstall.failure = f"The preinstall could not begin: {error}"
            serverapp.log.exception("torchenv: the preinstall could not begin")

    serverapp.io_loop.add_callback(start)


def _joined(environ: Mapping[str, str]) -> Path | None:
    """Return the folder of what the wrapper that started this server has begun, if it did."""
    directory = record_directory(environ)
    there = directory is not None and read_record(directory, owner=own_user()) is not None
    return directory if there else None


async def _start(
    serverapp: ServerApp,
    environ: Mapping[str, str],
    directory: Path | None,
    preinstall: _Preinstall,
) -> None:
    loop = asyncio.get_running_loop()
    begun = await loop.run_in_executor(None, _begin, environ, directory)
    _take_over(serverapp, begun.variables)
    preinstall.directory = begun.directory
    state = "runs" if begun.running else "has nothing to do"
    serverapp.log.info("torchenv: the preinstall %s (%s)", state, begun.directory)


def _take_over(serverapp: ServerApp, variables: Mapping[str, str]) -> None:
    """Tell the kernels to come, which are started with the environment of this process."""
    os.environ.update(variables)
    if serverapp.kernel_spec_manager is not None:
        _offer_kernels(serverapp.kernel_spec_manager, variables)


def _begin(environ: Mapping[str, str], directory: Path | None) -> Begun:
    from torchenv_magic.preinstall.launch import begin
    from torchenv_magic.preinstall.wish import wish_of

    return begin(wish_of(environ), environ=environ, directory=directory)


def _offer_kernels(manager: KernelSpecManager, variables: Mapping[str, str]) -> None:
    """Have the running manager look where the new variables say; it read the old ones long ago."""
    folders = [
        str(Path(folder) / "kernels")
        for folder in variables.get("JUPYTER_PATH", "").split(os.pathsep)
        if folder
    ]
    known = manager.kernel_dirs
    manager.kernel_dirs = [*(folder for folder in folders if folder not in known), *known]
