"""The JupyterHub shell: what an admin writes into `jupyterhub_config.py`. Never installs anything."""
