"""Load what `import torch` loads from shared libraries: a script for the interpreter to be tried.

`import torch` takes two seconds, and five where nothing is compiled yet; a switch takes a tenth of
one. What breaks the import of files that are all there is a library that lacks another, or that
does not fit the system. So the libraries are loaded, as the import would, and Python's own modules
are not. It ends with 0 where that went well. Where it did not, nothing is said
about torch: the whole import decides.
"""

# os.path: as little as possible is imported here.
# ruff: noqa: PTH118, PTH120, PTH207

from __future__ import annotations

import ctypes
import glob
import importlib
import importlib.util
import os
import sys


def main() -> None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(3)
    folder = os.path.dirname(spec.origin)
    # A torch of Python alone, or with libraries that are found in another way.
    if sys.platform == "win32" or not glob.glob(os.path.join(folder, "_C*.so")):
        importlib.import_module("torch")
        return
    # The package without its code, so that `torch._C` finds where it is.
    sys.modules["torch"] = importlib.util.module_from_spec(spec)
    for library in glob.glob(os.path.join(folder, "lib", "libtorch_global_deps.*")):
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    importlib.import_module("torch._C")


if __name__ == "__main__":
    main()
