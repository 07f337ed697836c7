"""The JupyterHub shell: what an admin puts into `jupyterhub_config.py`. It installs nothing."""
