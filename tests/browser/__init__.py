"""A real Jupyter server, a real browser and throw-away kernel environments for the tests."""
