"""What the hub of Zero to JupyterHub makes of a chart's values, as far as the examples use them.

The chart is in no package index, so that neither its schema nor its code is here. This is a table
of its documented keys, each with the trait that its hub sets by it. A key that is not in the table
is an error: whoever adds one to an example reads its documentation first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from traitlets.config import Config

_TRAITS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "cmd": (list, "cmd"),
    "startTimeout": (int, "start_timeout"),
    "extraEnv": (dict, "environment"),
    "profileList": (list, "profile_list"),
}
_STORAGE = {"capacity": str, "homeMountPath": str, "extraVolumes": list, "extraVolumeMounts": list}


class UnknownKeyError(ValueError):
    """A value that the chart does not document, or one of another kind."""


def configuration_of(values: Mapping[str, Any]) -> Config:
    """Return the configuration of the chart's hub; raises `UnknownKeyError`."""
    config = Config()
    config.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
    # The chart's own defaults.
    config.KubeSpawner.cmd = ["jupyterhub-singleuser"]
    config.KubeSpawner.start_timeout = 300
    # What the parts hand back is of no use: they fill `config`.
    _each(values, {"singleuser": _single_user, "hub": _hub}, config)
    for code in values.get("hub", {}).get("extraConfig", {}).values():
        # As the chart's hub does, last of all.
        exec(compile(code, "hub.extraConfig", "exec"), {"c": config})  # noqa: S102
    return config


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return both values files as helm merges them: the later one wins, table by table."""
    result = dict(first)
    for key, value in second.items():
        here = result.get(key)
        if isinstance(here, dict) and isinstance(value, dict):
            result[key] = merged(here, value)
        else:
            result[key] = value
    return result


def _each(
    values: Mapping[str, Any],
    parts: Mapping[str, Callable[[Any, Config], None]],
    config: Config,
) -> None:
    for key, value in values.items():
        if key not in parts:
            raise UnknownKeyError(key)
        parts[key](value, config)


def _single_user(values: Mapping[str, Any], config: Config) -> None:
    plain = {key: value for key, value in values.items() if key in _TRAITS}
    for key, value in plain.items():
        kind, trait = _TRAITS[key]
        if not isinstance(value, kind):
            raise UnknownKeyError(f"singleuser.{key} is no {kind}")
        setattr(config.KubeSpawner, trait, value)
    rest = {key: value for key, value in values.items() if key not in _TRAITS}
    parts = {"image": _image, "storage": _storage, "networkPolicy": _network_policy}
    _each(rest, parts, config)


def _image(values: Mapping[str, Any], config: Config) -> None:
    if values.keys() - {"name", "tag"}:
        raise UnknownKeyError(str(values))
    config.KubeSpawner.image = f"{values['name']}:{values['tag']}"


def _storage(values: Mapping[str, Any], config: Config) -> None:
    for key, value in values.items():
        if key not in _STORAGE or not isinstance(value, _STORAGE[key]):
            raise UnknownKeyError(f"singleuser.storage.{key}")
    home = values.get("homeMountPath", "/home/jovyan")
    claim = "claim-{user_server}"
    config.KubeSpawner.pvc_name_template = claim
    config.KubeSpawner.storage_pvc_ensure = True
    config.KubeSpawner.storage_capacity = values.get("capacity", "10Gi")
    name = "volume-{user_server}"
    config.KubeSpawner.volumes = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}},
        *values.get("extraVolumes", []),
    ]
    config.KubeSpawner.volume_mounts = [
        {"name": name, "mountPath": home},
        *values.get("extraVolumeMounts", []),
    ]


def _network_policy(values: Mapping[str, Any], _config: Config) -> None:
    # The chart makes a NetworkPolicy of it; the spawner never sees it.
    if values.keys() - {"egress"} or not isinstance(values["egress"], list):
        raise UnknownKeyError(f"singleuser.networkPolicy: {sorted(values)}")


def _hub(values: Mapping[str, Any], config: Config) -> None:
    for key, value in values.items():
        if key == "config":
            for name, traits in value.items():
                for trait, setting in traits.items():
                    setattr(config[name], trait, setting)
        elif key == "image":
            if value.keys() - {"name", "tag"}:
                raise UnknownKeyError(str(value))
        elif key == "extraConfig":
            if not all(isinstance(code, str) for code in value.values()):
                raise UnknownKeyError("hub.extraConfig")
        else:
            raise UnknownKeyError(f"hub.{key}")
