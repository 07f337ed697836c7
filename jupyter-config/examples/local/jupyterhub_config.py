"""One machine, users with accounts on it: JupyterHub's default LocalProcessSpawner.

What for: every user's server comes up with, or is already installing, the PyTorch build for this
host.
What to change: nothing has to be. The three lines go into the jupyterhub_config.py that you have,
below the lines that set the spawner. torchenv_magic is installed in the hub's environment, and in
the one that `jupyterhub-singleuser` runs in, where that is another one.
"""

from torchenv_magic.hub import configure

c = get_config()

configure(c)
