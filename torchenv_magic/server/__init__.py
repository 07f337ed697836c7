"""The Jupyter server extension: a preinstall once the server is up, and a route about it."""
