"""The values for Zero to JupyterHub: the pods that the real KubeSpawner would ask a cluster for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.app import JupyterHub
from traitlets.config import Config

from tests.spawners.stage import EXAMPLES, choose, make_spawner, read_yaml
from tests.spawners.zero_to_jupyterhub import UnknownKeyError, configuration_of, merged
from torchenv_magic.hub import OPTION

FOLDER = EXAMPLES / "kubernetes"
VALUES = read_yaml(FOLDER / "values.yaml")
WITH_HUB = merged(VALUES, read_yaml(FOLDER / "values-hub.yaml"))
WRAPPED = ["torchenv", "preinstall", "--", "jupyterhub-singleuser"]


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name a cluster that nobody asks: a pod's manifest is made without one."""
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: none\n"
        "clusters: [{name: none, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "contexts: [{name: none, context: {cluster: none, user: none}}]\n"
        "users: [{name: none, user: {}}]\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("KUBECONFIG", str(file))
    module = import_module("kubernetes_asyncio.config.kube_config")
    monkeypatch.setattr(module, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    yield
    JupyterHub.clear_instance()


def pod_of(config: Config, options: dict[str, object]) -> tuple[Any, dict[str, Any]]:
    """Return the spawner, and the pod as it would be sent to the cluster."""

    async def make() -> tuple[Any, dict[str, Any]]:
        spawner = make_spawner(config, user="ada")
        try:
            await choose(spawner, options)
            # What `start` does before it talks to the cluster.
            await spawner.load_user_options()
            pod = await spawner.get_pod_manifest()
            return spawner, spawner.api.api_client.sanitize_for_serialization(pod)
        finally:
            await spawner.api.api_client.close()

    return asyncio.run(make())


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def variables_of(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container_of(pod)["env"]}


@pytest.mark.parametrize("values", [VALUES, WITH_HUB], ids=["values", "with the hub's own"])
def test_the_wrapper_follows_what_the_image_starts_first(values: dict[str, Any]) -> None:
    spawner, pod = pod_of(configuration_of(values), {"profile": "cpu"})
    container = container_of(pod)
    # `command` would take the place of the image's ENTRYPOINT; `args` follow it.
    assert "command" not in container
    assert container["args"][:4] == WRAPPED
    assert container["args"].count("preinstall") == 1
    wait = float(variables_of(pod)["TORCHENV_PREINSTALL_WAIT"])
    assert 0 < wait <= spawner.http_timeout - 60
    assert spawner.start_timeout == 600


@pytest.mark.parametrize("values", [VALUES, WITH_HUB], ids=["values", "with the hub's own"])
def test_pods_with_and_without_a_gpu_differ_in_resources_and_the_build_is_chosen_inside(
    values: dict[str, Any],
) -> None:
    pods = {name: pod_of(configuration_of(values), {"profile": name})[1] for name in ("cpu", "gpu")}
    limits = {name: container_of(pod)["resources"].get("limits", {}) for name, pod in pods.items()}
    assert limits["gpu"].pop("nvidia.com/gpu") == "1"
    assert limits["gpu"] == limits["cpu"]
    assert {each["key"] for each in pods["gpu"]["spec"]["tolerations"]} >= {"nvidia.com/gpu"}
    assert variables_of(pods["cpu"]) == variables_of(pods["gpu"])
    assert variables_of(pods["cpu"])["TORCHENV_BACKEND"] == "auto"
    for key in ("args", "image", "volumeMounts"):
        assert container_of(pods["cpu"])[key] == container_of(pods["gpu"])[key]


def test_home_and_cache_lie_on_one_volume_and_the_wheels_can_only_be_read() -> None:
    _, pod = pod_of(configuration_of(VALUES), {"profile": "gpu"})
    mounts = {each["mountPath"]: each for each in container_of(pod)["volumeMounts"]}
    assert mounts.keys() == {"/home/jovyan", "/srv/wheels"}
    assert mounts["/srv/wheels"]["readOnly"] is True
    volumes = {each["name"]: each["persistentVolumeClaim"] for each in pod["spec"]["volumes"]}
    assert volumes["torchenv-wheels"] == {"claimName": "torchenv-wheels", "readOnly": True}
    assert mounts["/home/jovyan"]["name"] in volumes
    variables = variables_of(pod)
    assert variables["TORCHENV_FIND_LINKS"] == "/srv/wheels:/opt/torchenv/wheels"
    # Elsewhere each file of the environment would be a copy and no link.
    assert "UV_CACHE_DIR" not in variables


def test_a_choice_on_the_page_reaches_the_pod_beside_the_profile() -> None:
    config = configuration_of(WITH_HUB)
    spawner, pod = pod_of(config, {"profile": "gpu", OPTION: "cu126"})
    assert variables_of(pod)["TORCHENV_BACKEND"] == "cu126"
    assert container_of(pod)["resources"]["limits"]["nvidia.com/gpu"] == "1"

    async def form() -> str:
        return await spawner.get_options_form()

    page = asyncio.run(form())
    for name in ('name="profile"', f'name="{OPTION}"', "cu126"):
        assert name in page


def test_a_pod_may_talk_to_the_mirror_in_its_cluster() -> None:
    (rule,) = VALUES["singleuser"]["networkPolicy"]["egress"]
    models = import_module("kubernetes_asyncio.client")
    known = models.V1NetworkPolicyEgressRule.attribute_map.values()
    assert rule.keys() <= set(known)
    (peer,), (port,) = rule["to"], rule["ports"]
    assert peer.keys() <= set(models.V1NetworkPolicyPeer.attribute_map.values())
    assert peer["podSelector"].keys() <= set(models.V1LabelSelector.attribute_map.values())
    assert port.keys() <= set(models.V1NetworkPolicyPort.attribute_map.values())


def test_a_key_that_the_chart_does_not_document_is_noticed() -> None:
    with pytest.raises(UnknownKeyError):
        configuration_of(merged(VALUES, {"singleuser": {"command": ["x"]}}))
    with pytest.raises(UnknownKeyError):
        configuration_of(merged(VALUES, {"singleuser": {"storage": {"size": "1Gi"}}}))
