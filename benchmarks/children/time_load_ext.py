"""Load an extension into a new IPython shell without a kernel; print how many seconds that took."""

import sys
import time

from IPython.core.interactiveshell import InteractiveShell


def main() -> None:
    shell = InteractiveShell.instance()
    started = time.perf_counter()
    shell.run_line_magic("load_ext", sys.argv[1])
    seconds = time.perf_counter() - started
    print(seconds)


if __name__ == "__main__":
    main()
