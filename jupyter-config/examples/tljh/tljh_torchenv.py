"""The Littlest JupyterHub, as a plugin: as `torchenv.py`, for a TLJH that is yet to be made.

What for: the installer takes it by `--plugin`, and installs torchenv_magic on both sides itself.
Where: a package of its own that has this module and the entry point
    [project.entry-points.tljh]
    torchenv = "tljh_torchenv"
What to change: `VARIANTS`, to what the users may choose from; the requirement, where torchenv_magic
comes from an index or a file of your own.
"""

from tljh.hooks import hookimpl

REQUIREMENT = "torchenv-magic"
VARIANTS = ("auto", "cpu")


@hookimpl
def tljh_extra_hub_pip_packages():
    return [REQUIREMENT]


@hookimpl
def tljh_extra_user_pip_packages():
    return [REQUIREMENT]


@hookimpl
def tljh_custom_jupyterhub_config(c):
    # Not at the top: the installer imports this module before it has installed torchenv_magic.
    from torchenv_magic.hub import configure

    configure(c, variants=VARIANTS, wait=60)
