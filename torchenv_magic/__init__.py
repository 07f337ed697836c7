"""Pick, install and prove the right PyTorch build from inside a notebook.

In a notebook: `%load_ext torchenv_magic`, then `%torchenv`. From Python, one way through:

```
from torchenv_magic import Request, detect, install, plan, read_environment, select, verify

environment = read_environment(python)  # a path; None is the running interpreter
request = Request(requirements=("torch",))
selection = select(detect(), request, interpreter=environment.interpreter)
prepared = plan(selection, environment, request)  # asks uv; changes nothing
result = install(prepared)  # the only step that changes anything
verification = verify(environment, result.expectation, in_process=False)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from torchenv_magic.accelerators import detect
    from torchenv_magic.environment import read_environment
    from torchenv_magic.errors import TorchEnvError
    from torchenv_magic.installation.install import install_plan as install
    from torchenv_magic.installation.planning import make_plan as plan
    from torchenv_magic.selection import Request, select
    from torchenv_magic.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Request",
    "TorchEnvError",
    "__version__",
    "detect",
    "install",
    "load_ipython_extension",
    "plan",
    "read_environment",
    "select",
    "unload_ipython_extension",
    "verify",
]

# `import torchenv_magic` is part of `%load_ext`: what a word needs is imported when it is used.
_HOME = {
    "Request": ("torchenv_magic.selection", "Request"),
    "TorchEnvError": ("torchenv_magic.errors", "TorchEnvError"),
    "detect": ("torchenv_magic.accelerators", "detect"),
    "install": ("torchenv_magic.installation.install", "install_plan"),
    "plan": ("torchenv_magic.installation.planning", "make_plan"),
    "read_environment": ("torchenv_magic.environment", "read_environment"),
    "select": ("torchenv_magic.selection", "select"),
    "verify": ("torchenv_magic.verification", "verify"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%torchenv`. Looks at nothing and prints nothing."""
    from torchenv_magic.notebook.extension import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take away everything that loading registered."""
    from torchenv_magic.notebook.extension import unload

    unload(shell)
