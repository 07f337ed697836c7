"""SudoSpawner: the hub runs without root's rights and starts servers by sudo.

What for: a hub that must not be root. SudoSpawner ignores `Spawner.cmd`, so that the wrapper stands
in `sudospawner-singleuser`, the script beside this file: put it next to `sudospawner`.
What to change: the path, to where `sudospawner` lies; it is the one that sudo's rules allow.
"""

from torchenv_magic.hub import configure

c = get_config()

c.JupyterHub.spawner_class = "sudo"
c.SudoSpawner.sudospawner_path = "/opt/jupyterhub/bin/sudospawner"

configure(c, variants=("auto", "cpu"), wait=60)
