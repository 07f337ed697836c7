"""Make the real spawner that a configuration file describes, with a user of a real database."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.objects import Hub
from jupyterhub.user import User
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

EXAMPLES = Path(__file__).resolve().parents[2] / "jupyter-config" / "examples"
# Of every Debian; LocalProcessSpawner and BatchSpawner ask the system for the home.
USER = "nobody"
TOKEN = "the-token-of-this-server"


def load(path: Path) -> Config:
    """Run a configuration file as JupyterHub does."""
    return PyFileConfigLoader(path.name, path=str(path.parent)).load_config()


def hub_of(config: Config) -> JupyterHub:
    """Return a hub with this configuration; it is not started."""
    JupyterHub.clear_instance()
    return JupyterHub(config=config, log_level=logging.WARNING)


def make_spawner(
    config: Config, *, user: str = USER, api_url: tuple[str, int] = ("127.0.0.1", 8081)
) -> Any:
    """Return the spawner that the hub would have made for this user's server."""
    hub = hub_of(config)
    database = orm.new_session_factory("sqlite:///:memory:")()
    row = orm.User(name=user)
    database.add(row)
    database.commit()
    settings = {
        "base_url": "/",
        "config": config,
        "cookie_options": {},
        "hub": Hub(ip=api_url[0], port=api_url[1], base_url="/hub/"),
        "spawner_class": hub.spawner_class,
    }
    spawner = User(row, settings, db=database).spawner
    spawner.api_token = TOKEN
    return spawner


async def choose(spawner: Any, options: Mapping[str, object] | None = None) -> None:
    """Hand the user's options over as the hub does before it calls `start`."""
    spawner.user_options = dict(options or {})
    await spawner._run_apply_user_options(spawner.user_options)


def read_yaml(path: Path) -> Any:
    return importlib.import_module("yaml").safe_load(path.read_text(encoding="utf-8"))
