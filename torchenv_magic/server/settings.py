"""What an admin sets for the server extension: traits in Jupyter's configuration, or variables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from traitlets import Bool, List, Unicode
from traitlets.config import Configurable

__all__ = ["TorchenvPreinstall"]

_SWITCH = "TORCHENV_PREINSTALL"


class TorchenvPreinstall(Configurable):
    """`c.TorchenvPreinstall` in `jupyter_server_config.py`."""

    enabled = Bool(
        default_value=None,
        allow_none=True,
        config=True,
        help="""Whether PyTorch is installed in the background once the server is up. Where nothing
        is set, TORCHENV_PREINSTALL=1 in the server's environment says so; TORCHENV_PREINSTALL=0
        there forbids it, whatever is set here.""",
    )
    backend = Unicode(
        config=True,
        help="""The build, in uv's words (cpu, cu126, ...), or auto. Where nothing is set,
        TORCHENV_BACKEND says it.""",
    )
    requirements = List(
        Unicode(),
        config=True,
        help="""The packages, as pip writes them. Where nothing is set, TORCHENV_REQUIREMENTS names
        them.""",
    )

    def is_on(self, environ: Mapping[str, str]) -> bool:
        """Return whether somebody has opted in, and nobody has forbidden it."""
        switch = environ.get(_SWITCH, "").strip()
        if switch == "0" or self.enabled is None:
            return switch == "1"
        return bool(self.enabled)

    def over(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables with what is set here in their place."""
        variables = dict(environ)
        if self.backend:
            variables["TORCHENV_BACKEND"] = self.backend
        if self.requirements:
            variables["TORCHENV_REQUIREMENTS"] = shlex.join(self.requirements)
        return variables
