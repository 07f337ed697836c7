"""Hurt installs in every way that we could think of, and judge what is left of the environment.

`python -m tests.faults` runs all of it, and `--write` writes the table of docs/reliability.md. Real
uv and real kernels install from the stand-in of the PyTorch index; nothing of the engine is
patched.
"""
