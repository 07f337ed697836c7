"""The tools that choose a build too, at pinned versions, and the uv that the project runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.stage import Stage, run_program
from tests.browser.kernel_environment import PROJECT_ROOT, interpreter_of, run_uv

__all__ = ["make_peers", "uv_of"]


def make_peers(directory: Path) -> Path:
    """Return the interpreter of an environment with the peers, at pinned versions."""
    run_uv("venv", "--python", sys.executable, "--no-project", str(directory))
    python = interpreter_of(directory)
    requirements = PROJECT_ROOT / "requirements" / "peers.txt"
    run_uv("pip", "install", "--python", str(python), "--require-hashes", "-r", str(requirements))
    return python


def uv_of(stage: Stage) -> str:
    """Return the path of the uv in the environment that the project is installed in."""
    question = [str(stage.environment.python), "-I", "-c", "import uv; print(uv.find_uv_bin())"]
    return run_program(question, os.environ).strip()
