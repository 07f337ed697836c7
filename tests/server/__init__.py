"""The Jupyter server extension, in real servers."""
