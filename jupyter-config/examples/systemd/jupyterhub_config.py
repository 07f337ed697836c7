"""SystemdSpawner: each user's server is a systemd unit of its own.

What for: one machine whose users' servers have bounds of memory and processor.
What to change: the bounds; `variants`. Don't set `isolate_devices` where there is a GPU: it hides
/dev/nvidia*, and the build for the processor is chosen then.
Good to know: stopping the server ends all of its unit, an install that still runs included. The
next start finds and finishes it.
"""

from torchenv_magic.hub import configure

c = get_config()

c.JupyterHub.spawner_class = "systemd"
c.SystemdSpawner.mem_limit = "8G"
c.SystemdSpawner.isolate_tmp = True

configure(c, variants=("auto", "cpu"), wait=60)
