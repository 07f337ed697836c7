# The hub's image with torchenv_magic in it. Nothing of PyTorch is installed at the hub.
#
# What for: `values-hub.yaml`, whose `configure` runs in the hub.
# What to change: the tag, to that of your chart; the wheel, which `python -m build` makes.
ARG BASE=quay.io/jupyterhub/k8s-hub:latest
FROM ${BASE}

COPY torchenv_magic-*.whl /tmp/
RUN python3 -m pip install --no-cache-dir /tmp/torchenv_magic-*.whl
