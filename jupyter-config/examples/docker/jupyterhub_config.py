"""DockerSpawner: each user's server is a container, with the machine's GPUs in it.

What for: a hub on one machine with Docker and NVIDIA's container toolkit.
What to change: the image (`../image/Dockerfile` makes one), the network, the folders of wheels: an
install ends where one of them isn't there. On a machine without NVIDIA's toolkit take
`device_requests` out: Docker refuses to start a container with it.
Good to know: the environment with PyTorch lies in the user's volume and outlives the container.
uv's cache lies in the same volume, which costs no second copy.
"""

from docker.types import DeviceRequest

from torchenv_magic.hub import configure

c = get_config()

c.JupyterHub.spawner_class = "docker"
c.JupyterHub.hub_ip = "0.0.0.0"
c.DockerSpawner.image = "registry.example/notebook-torchenv:1"
c.DockerSpawner.network_name = "jupyterhub"
# A container that is kept keeps its old command and variables: another choice would change nothing.
c.DockerSpawner.remove = True
c.DockerSpawner.notebook_dir = "/home/jovyan"
c.DockerSpawner.volumes = {
    "jupyterhub-user-{username}": "/home/jovyan",
    "/srv/wheels": {"bind": "/srv/wheels", "mode": "ro"},
}
c.DockerSpawner.extra_host_config = {
    "device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])],
}

configure(
    c,
    variants=("auto", "cpu", "cu126"),
    wait=60,
    # The second is the image's own, which nobody would look into if it weren't named.
    find_links=("/srv/wheels", "/opt/torchenv/wheels"),
)
