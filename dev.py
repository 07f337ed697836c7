#!/usr/bin/env python3
"""Set this checkout up and run it: one command each, with Python 3.10 or newer and nothing else.

python3 dev.py lab [ARGUMENT ...]       JupyterLab on notebooks/quickstart.ipynb
python3 dev.py test [ARGUMENT ...]      every check; with arguments, pytest alone with them
python3 dev.py lint [NAME ...]          the static checks, or those: ruff, format, mypy, tsc
python3 dev.py lock [ARGUMENT ...]      compile requirements/*.txt anew (--upgrade moves the pins)
python3 dev.py catalog [ARGUMENT ...]   make the catalog of builds from its facts (-h: what else)
python3 dev.py picture                  make the pictures of the README from the real thing
python3 dev.py docs [ARGUMENT ...]      make the site of docs/ in build/docs; a warning is an error

`lab` works in `.venv-lab`, everything else in `.venv`. Each is made when it is missing, brought up
to date when what it is made from has changed, and used as it is otherwise.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements"
BOOTSTRAP = REQUIREMENTS / "bootstrap.txt"
STAMP = "torchenv-magic.stamp"
OLDEST_PYTHON = (3, 10)
QUICKSTART = "notebooks/quickstart.ipynb"

# The order is the order of the work: the largest set is resolved first, and the others are held
# to its versions. `pyproject.toml` brings the runtime dependencies.
LOCKS = {
    "development": ["pyproject.toml", "requirements/development.in"],
    "lab": ["pyproject.toml", "requirements/lab.in"],
    "kernel": ["pyproject.toml", "requirements/kernel.in"],
    "bootstrap": ["requirements/bootstrap.in"],
    "peers": ["requirements/peers.in"],
    "oldest": ["requirements/oldest.in"],
}
# These stand beside nothing of ours.
UNHELD = ("development", "oldest")

CHECKS = {
    "ruff": [["ruff", "check"]],
    "format": [["ruff", "format", "--check"]],
    # Only Linux runs the tests here; the branches for the others are at least type-checked.
    # A cache for each: what was found for one system holds for no other.
    "mypy": [
        ["mypy", "--platform", "linux"],
        # The package is written for all three systems; the tests kill and fork as POSIX does.
        *(
            [
                *("mypy", "--platform", name, "--cache-dir", f".mypy_cache/{name}"),
                *("torchenv_magic", "catalog", "dev.py"),
            ]
            for name in ("win32", "darwin")
        ),
    ],
    # The plugin is written in JavaScript that needs no build; its types stand in comments.
    "tsc": [["tsc", "--project", "labextension"]],
}
PLUGIN = ROOT / "labextension"

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_FILES = {
    "darwin": (
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    ),
    "win32": (
        "C:/Program Files/Google/Chrome/Application/chrome.exe",
        "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
    ),
}
# What the browser tests open, if it is set; they look for a browser themselves where it is not.
CHROMIUM_VARIABLE = "TORCHENV_MAGIC_CHROMIUM"

# pip's settings that uv does not read, and uv's variable for each.
PIP_TO_UV = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}


class DevelopmentError(Exception):
    """An expected failure: what happened, and one thing to do about it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Environment:
    """A virtual environment of this checkout and the pinned set that it is made from."""

    folder: Path
    requirements: Path

    @property
    def python(self) -> Path:
        return self.executable("python")

    def executable(self, name: str) -> Path:
        """Return where the environment keeps the program `name`, whether it is there or not."""
        if sys.platform == "win32":
            return self.folder / "Scripts" / f"{name}.exe"
        return self.folder / "bin" / name


LAB = Environment(ROOT / ".venv-lab", REQUIREMENTS / "lab.txt")
DEVELOPMENT = Environment(ROOT / ".venv", REQUIREMENTS / "development.txt")


def main(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` names; return its exit status."""
    commands = {
        "lab": lab,
        "test": test,
        "lint": lint,
        "lock": lock,
        "catalog": catalog,
        "picture": picture,
        "docs": docs,
    }
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    rest = list(arguments[1:])
    if rest[:1] == ["--"]:
        rest = rest[1:]
    try:
        return commands[name](rest)
    except DevelopmentError as error:
        print(f"error: {error}\n\nhint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# ---------------------------------------------------------------------------------- the commands


def lab(arguments: Sequence[str]) -> int:
    prepare(LAB)
    # By its address and not as a file to open: so the address that is printed leads there too.
    place = [f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url=/lab/tree/{QUICKSTART}"]
    # In a container root is the only user there is, and the token still guards the server.
    consent = ["--allow-root"] if is_root() else []
    command = [str(LAB.python), "-m", "jupyterlab", *place, *consent, *arguments]
    # Without it a kernel of the same name in the person's own folder would come first.
    return hand_over(command, {"JUPYTER_PREFER_ENV_PATH": "1"})


def test(arguments: Sequence[str]) -> int:
    prepare(DEVELOPMENT)
    chromium = find_chromium()
    words = list(arguments)
    if not words:
        chromium = chromium or install_chromium()
        status = run_checks(CHECKS)
        if status:
            return status
        # A worker for each processor: more of them wait for one another until limits run out.
        # A module stays together: its tests share a kernel, a server or a page.
        workers = max(2, min(os.cpu_count() or 1, 4))
        words = ["--numprocesses", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
        # Where the time goes stands below each run.
        words += ["--durations", "25"]
        # What a second run has mended is told with its reason. More than a few are no accident.
        words += ["--rerun-show-tracebacks", "--max-suite-reruns", "5"]
    say("pytest", *words)
    return hand_over(
        [str(DEVELOPMENT.python), "-m", "pytest", *words],
        {CHROMIUM_VARIABLE: chromium} if chromium else {},
    )


def lint(arguments: Sequence[str]) -> int:
    unknown = [name for name in arguments if name not in CHECKS]
    if unknown:
        message = f"there is no check named `{unknown[0]}`"
        raise DevelopmentError(message, hint=f"the checks are: {', '.join(CHECKS)}")
    prepare(DEVELOPMENT)
    return run_checks(arguments or CHECKS)


def lock(arguments: Sequence[str]) -> int:
    # Only uv is needed, so that a set that can't be installed can still be compiled anew.
    pip = make_environment(DEVELOPMENT)
    install_uv(pip)
    settings = index_settings(pip)
    for name, sources in LOCKS.items():
        constraints = [] if name in UNHELD else ["-c", "requirements/development.txt"]
        output = f"requirements/{name}.txt"
        say("compiling", output)
        # Neither an index address nor a path may end up in the file, hence no header; universal,
        # so that one file serves every Python from 3.10 on and all three systems.
        options = ["--universal", "--python-version", "3.10", "--generate-hashes"]
        options += ["--no-header", "--no-annotate", "--quiet"]
        command = [str(DEVELOPMENT.executable("uv")), "pip", "compile", *sources, *constraints]
        status = call([*command, *options, "-o", output, *arguments], settings)
        if status:
            return status
    return 0


def catalog(arguments: Sequence[str]) -> int:
    prepare(DEVELOPMENT)
    # `--refresh` asks the package index, which pip may be set up with and uv not.
    settings = index_settings(find_pip(DEVELOPMENT)) if "--refresh" in arguments else {}
    return hand_over([str(DEVELOPMENT.python), "-m", "catalog", *arguments], settings)


def picture(arguments: Sequence[str]) -> int:
    prepare(DEVELOPMENT)
    chromium = find_chromium() or install_chromium()
    return hand_over(
        [str(DEVELOPMENT.python), "-m", "tests.browser.picture", *arguments],
        {CHROMIUM_VARIABLE: chromium} if chromium else {},
    )


def docs(arguments: Sequence[str]) -> int:
    prepare(DEVELOPMENT)
    built = ROOT / "build" / "docs"
    # A warning is a link that leads nowhere, mostly: it is an error, and all of them are told.
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-d", str(built / "doctrees")]
    command = [str(DEVELOPMENT.python), "-m", "sphinx", *options, *arguments]
    status = call([*command, str(ROOT / "docs"), str(built / "html")], {})
    if not status:
        say("made", "build/docs/html/index.html")
    return status


def run_checks(names: Sequence[str] | Mapping[str, object]) -> int:
    """Run the checks side by side, and print what each said in their order."""
    status = 0
    checks = [words for name in names for words in CHECKS[name]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for words, answer in zip(checks, pool.map(run_check, checks), strict=True):
            say(*words)
            print(answer.stdout, end="", flush=True)
            status = status or answer.returncode
    return status


def run_check(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        check_command(words),
        cwd=ROOT,
        env=child_variables({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def check_command(words: Sequence[str]) -> list[str]:
    if words[0] != "tsc":
        return [str(DEVELOPMENT.python), "-m", *words]
    install_node_modules(PLUGIN)
    compiler = PLUGIN / "node_modules" / "typescript" / "bin" / "tsc"
    return [str(DEVELOPMENT.executable("node")), str(compiler), *words[1:]]


# -------------------------------------------------------------------------------- the environment


def prepare(environment: Environment) -> None:
    """Make `environment`, or bring it up to date, unless its stamp says that it is."""
    if read_stamp(environment) == expected_stamp(environment):
        return
    started = time.monotonic()
    # From here on it is neither the old state nor the new one.
    (environment.folder / STAMP).unlink(missing_ok=True)
    pip = make_environment(environment)
    install_uv(pip)
    name = environment.requirements.relative_to(ROOT).as_posix()
    say("installing", name)
    settings = index_settings(pip)
    uv = [str(environment.executable("uv")), "pip", "install", "--python", str(environment.python)]
    # Its list of a hundred packages is noise in a log; its bars are wanted where somebody waits.
    uv += [] if sys.stderr.isatty() else ["--quiet"]
    require(
        [*uv, "--require-hashes", "-r", str(environment.requirements)],
        settings,
        failure=f"uv could not install {name}",
    )
    require(
        [*uv, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
        settings,
        failure="uv could not install this project",
    )
    (environment.folder / STAMP).write_text(expected_stamp(environment), encoding="utf-8")
    say(environment.folder.name, f"is ready ({time.monotonic() - started:.0f} s)")


def expected_stamp(environment: Environment) -> str:
    """Return a digest of all that `environment` is made from."""
    digest = hashlib.sha256()
    # An editable install and the scripts name the checkout's folder, which may have moved.
    digest.update(f"{ROOT} {python_version()}".encode())
    # An editable install has copies of what Jupyter looks for elsewhere.
    copied = sorted(
        path
        for pattern in (
            "jupyter-config/jupyter_server_config.d/*.json",
            "labextension/*.json",
            "labextension/schemas/**/*.json",
            "labextension/static/*",
        )
        for path in ROOT.glob(pattern)
    )
    for path in (BOOTSTRAP, environment.requirements, ROOT / "pyproject.toml", *copied):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp(environment: Environment) -> str | None:
    stamp = environment.folder / STAMP
    if stamp.is_file() and environment.python.exists():
        return stamp.read_text(encoding="utf-8")
    return None


def make_environment(environment: Environment) -> list[str]:
    """Create `environment` where it is missing or of another Python; return its pip command."""
    found = version_of(environment.python)
    if found != python_version():
        if found:
            say(f"{environment.folder.name} is of Python {found}; making it anew")
        say("creating", environment.folder.name, "with Python", python_version())
        builder = venv.EnvBuilder(clear=True, symlinks=sys.platform != "win32", with_pip=False)
        builder.create(environment.folder)
    return find_pip(environment)


def find_pip(environment: Environment) -> list[str]:
    """Return the command of a pip that installs into `environment`.

    Debian leaves `ensurepip` out of its Python unless the package `python3-venv` is there; the pip
    of that Python, from 22.3 on, serves as well.
    """
    own = [str(environment.python), "-m", "pip"]
    unpack = [str(environment.python), "-m", "ensurepip", "--default-pip"]
    if succeeds([*own, "--version"]) or succeeds(unpack):
        return own
    hosts = [sys.executable, "-m", "pip", "--python", str(environment.python)]
    if succeeds([*hosts, "--version"]):
        return hosts
    package = f"python{python_version()}-venv"
    if os.environ.get("CI") == "true" and apt_install(package) and succeeds(unpack):
        return own
    message = "this Python has neither `ensurepip` nor pip, so nothing can be installed with it"
    raise DevelopmentError(message, hint=f"on Debian and Ubuntu: apt-get install {package}")


def install_uv(pip: Sequence[str]) -> None:
    """Install the pinned uv by pip, which on Windows can replace it where a running uv can't."""
    say("installing uv")
    # Twice quiet: errors, but no warning about an index of the person's own that lacks uv.
    options = ["-qq", "--disable-pip-version-check", "--no-user", "--only-binary=:all:"]
    require(
        [*pip, "install", *options, "--require-hashes", "-r", str(BOOTSTRAP)],
        {},
        failure="pip could not install uv",
    )


def index_settings(pip: Sequence[str]) -> dict[str, str]:
    """Return uv's variables for the mirror and the certificates that pip is set up with."""
    listing = subprocess.run(
        [*pip, "config", "list"], stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    return uv_variables(listing.stdout, os.environ)


def uv_variables(listing: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return what `pip config list` printed as uv's variables, where `variables` set none.

    >>> uv_variables("global.index-url='https://mirror.example/simple'", {})
    {'UV_DEFAULT_INDEX': 'https://mirror.example/simple'}
    """
    rows = (row.partition("=") for row in listing.splitlines())
    settings = {key: value for key, sign, value in rows if sign}
    found = {}
    for option, variable in PIP_TO_UV.items():
        # pip's own order: the environment, then the command's section, then the global one.
        for section in (":env:", "install", "global"):
            value = settings.get(f"{section}.{option}")
            if value is not None:
                found[variable] = str(ast.literal_eval(value))
                break
    if {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & variables.keys():
        found.pop("UV_DEFAULT_INDEX", None)
    if {"SSL_CERT_FILE", "SSL_CERT_DIR"} & variables.keys():
        found.pop("SSL_CERT_FILE", None)
    return found


def install_node_modules(folder: Path) -> None:
    """Install what the folder's `package-lock.json` names, unless it is there; npm is a wheel."""
    lock_file = folder / "package-lock.json"
    stamp = folder / "node_modules" / STAMP
    expected = hashlib.sha256(lock_file.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == expected:
        return
    name = lock_file.relative_to(ROOT).as_posix()
    say("installing", name)
    # Nothing that is installed here runs: no scripts.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    require(
        [str(DEVELOPMENT.executable("npm")), "--prefix", str(folder), "ci", *options],
        {},
        failure=f"npm could not install {name}",
    )
    stamp.write_text(expected, encoding="utf-8")


# ------------------------------------------------------------------------------------ the browser


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome that is installed, if any."""
    if os.environ.get(CHROMIUM_VARIABLE):
        return os.environ[CHROMIUM_VARIABLE]
    on_path = (shutil.which(name) for name in CHROMIUM_NAMES)
    in_place = (path for path in CHROMIUM_FILES.get(sys.platform, ()) if Path(path).is_file())
    return next((path for path in (*on_path, *in_place) if path), None)


def install_chromium() -> str | None:
    """Install Chromium and return its path; None where Playwright keeps it, or nobody has it."""
    # Not on Ubuntu: the package there only fetches a snap, which a container can't run.
    if linux_distribution() == "debian" and apt_install("chromium"):
        return find_chromium()
    say("installing Chromium by Playwright")
    # The libraries that it needs are apt's business, which wants root.
    options = ["--with-deps"] if is_root() and shutil.which("apt-get") else []
    if call([str(DEVELOPMENT.python), "-m", "playwright", "install", *options, "chromium"]):
        say("no Chromium could be installed: the browser tests will be skipped")
    return None


def apt_install(package: str) -> bool:
    """Install a Debian package; return whether it is there now. Without apt or root: False."""
    apt = shutil.which("apt-get")
    if apt is None or not is_root():
        return False
    say("apt-get install", package)
    for words in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        # Two hundred lines of dpkg are worth reading only where it failed.
        answer = subprocess.run(
            [apt, "-qq", *words],
            env=child_variables({"DEBIAN_FRONTEND": "noninteractive"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if answer.returncode:
            print(answer.stdout)
            return False
    return True


def linux_distribution() -> str:
    try:
        return platform.freedesktop_os_release()["ID"]
    except OSError:
        return ""


# ------------------------------------------------------------------------------------- processes


def say(*words: str) -> None:
    print("==>", *words, flush=True)


def is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def version_of(python: Path) -> str | None:
    """Return the version of the interpreter at `python`, or None where it is missing or broken."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [str(python), "-c", program], capture_output=True, encoding="utf-8", check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def child_variables(settings: Mapping[str, str]) -> dict[str, str]:
    # An activated environment is not the one that is worked on here.
    inherited = {name: os.environ[name] for name in os.environ if name != "VIRTUAL_ENV"}
    return {**inherited, **settings}


def succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def require(command: Sequence[str], settings: Mapping[str, str], *, failure: str) -> None:
    status = call(command, settings)
    if status:
        message = f"{failure} (exit status {status})"
        raise DevelopmentError(message, hint="the lines above say why; then run the same again")


def call(command: Sequence[str], settings: Mapping[str, str] | None = None) -> int:
    """Run `command` in the checkout's root; return its exit status as a terminal would."""
    process = subprocess.Popen(command, cwd=ROOT, env=child_variables(settings or {}))
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal interrupts the child as well, and the child decides what that means:
            # JupyterLab asks whether to stop.
            continue
        return status if status >= 0 else 128 - status


def hand_over(command: list[str], settings: Mapping[str, str]) -> int:
    """Run the last step: in place of this process, so that a signal to it ends the right one."""
    if sys.platform != "win32":
        os.chdir(ROOT)
        sys.stdout.flush()
        os.execve(command[0], command, child_variables(settings))
    # Windows has no exec: what Python calls so there returns to the terminal at once.
    return call(command, settings)


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("error: Python 3.10 or newer is needed\n\nhint: run it with a newer `python3`")
    sys.exit(main(sys.argv[1:]))
