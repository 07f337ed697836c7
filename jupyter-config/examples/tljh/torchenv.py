"""The Littlest JupyterHub, as a file of its configuration.

What for: a TLJH that is there already. Each user gets an environment with PyTorch in the home; the
environment that all share (`/opt/tljh/user`) stays as it is.
Where: `/opt/tljh/config/jupyterhub_config.d/torchenv.py`, then `sudo tljh-config reload hub`.
Before: install torchenv_magic for the hub and for the users,
    sudo /opt/tljh/hub/bin/python -m pip install torchenv-magic
    sudo -E /opt/tljh/user/bin/python -m pip install torchenv-magic
What to change: `variants`, to what the users may choose from. Where everybody is to have the same
build, don't use this file: `sudo -E /opt/tljh/user/bin/torchenv install` installs it once for all.
"""

from torchenv_magic.hub import configure

c = get_config()

configure(c, variants=("auto", "cpu"), wait=60)
