"""The JupyterHub shell: what an admin puts into `jupyterhub_config.py`. It installs nothing.

```
from torchenv_magic.hub import configure

configure(c)  # at the end of the file
```

The pieces that `configure` puts together can be used one by one. Importing this imports neither
JupyterHub nor anything that looks at a machine: the hub is not where PyTorch is installed.
"""

from __future__ import annotations

from torchenv_magic.hub.command import spawner_command
from torchenv_magic.hub.configuration import configure
from torchenv_magic.hub.environment import environment
from torchenv_magic.hub.options import apply_user_options, options_form, options_from_form
from torchenv_magic.hub.progress import progress_handler, with_progress
from torchenv_magic.hub.variants import OPTION, Variant

__all__ = [
    "OPTION",
    "Variant",
    "apply_user_options",
    "configure",
    "environment",
    "options_form",
    "options_from_form",
    "progress_handler",
    "spawner_command",
    "with_progress",
]
