"""The Jupyter server extension: a preinstall after the server is up, and a route that tells of it."""
