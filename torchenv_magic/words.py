"""The words of `%torchenv` and of the `torchenv` command: one grammar for both."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.demand import parse_requirement
from torchenv_magic.errors import RequestError
from torchenv_magic.selection import Request, parse_backend

__all__ = [
    "EXPORT_FORMS",
    "LAYER_ACTIONS",
    "NOTEBOOK_ACTIONS",
    "RESTARTS",
    "HelpRequested",
    "Restart",
    "Words",
    "options_of",
    "overview",
    "parse_request",
    "parse_words",
    "takes_request",
    "words_of",
]

Restart = Literal["always", "auto", "never"]
RESTARTS: tuple[Restart, ...] = ("always", "auto", "never")

_SUMMARIES = {
    "status": "what is here, what would be chosen, and why",
    "list": "every build, best first, with the reason for each",
    "plan": "what an install would fetch, install, replace and remove",
    "install": "install PyTorch, restart the kernel, and prove that it works",
    "verify": "prove on the device that the installed PyTorch works",
    "doctor": "what is wrong with the installed PyTorch, and what cures it",
    "undo": "go back to what was there before the last install",
    "history": "what was installed here, when, by which line",
    "lock": "keep in a notebook what is installed, for other machines too",
    "restore": "install what a notebook's lock says, in this machine's build",
    "export": "write what is used as a pyproject.toml, a script, a Dockerfile",
    "new-kernel": "make a kernel of your own, with PyTorch in it",
    "download": "fetch the wheels for a machine without a network",
    "preinstall": "install PyTorch beside a server, which it then becomes",
    "layer": "one PyTorch that many users' environments have links to",
    "prefetch": "fill an image with wheels or layers, for several backends",
    "notebook": "put set-up and verification cells into notebooks",
    "detect": "the accelerators of this host",
    "select": "which build is chosen here, and why",
}
_IN_NOTEBOOK = (
    "status", "list", "plan", "install", "verify", "doctor", "undo", "history",
    "lock", "restore", "export", "new-kernel",
)  # fmt: skip
_ASKING = (
    "list", "plan", "install", "new-kernel", "download", "preinstall", "prefetch", "select",
)  # fmt: skip
_LOOKING = ("status", "list", "select")
_FETCHING = (
    "plan", "install", "lock", "restore", "new-kernel", "download", "layer", "prefetch",
)  # fmt: skip
_WHEELS_ALONE = ("lock", "restore", "layer", "prefetch")
_CONSENTING = {
    "plan": "consent to wheels from a folder or PyPI where the PyTorch index can't be reached",
    "install": "consent to wheels from a folder or PyPI where the PyTorch index can't be reached, "
    "and to replacing or removing packages outside the PyTorch family",
    "undo": "consent to breaking what was installed since and needs the newer build",
    "lock": "consent to writing into the file of a notebook that is open here, without its page's "
    "help: save it first, and load it anew afterwards",
    "restore": "consent to replacing or removing packages outside the PyTorch family, and to "
    "taking the same files from this machine's own indexes where the lock names others",
    "export": "write what was shown, and replace what stands there",
    "new-kernel": "consent to replacing a kernel of that name that was made here, and to wheels "
    "from a folder or PyPI where the PyTorch index can't be reached",
    "layer": "consent to removing a layer that environments may have links to",
}
_RESTARTING = ("install", "restore", "undo")

EXPORT_FORMS = {
    "index": "pyproject.toml: one index for all platforms",
    "markers": "pyproject.toml: an index for each platform, by markers",
    "extras": "pyproject.toml: an extra for each backend, one of them chosen",
    "requirements": "requirements.txt",
    "script": "PEP 723: a notebook for `juv run`, or a script for `uv run`",
    "dockerfile": "the lines of a Dockerfile",
    "command": "one line of `uv pip install --torch-backend`",
}
"""What `torchenv export` writes, and a sentence about each."""
_EXPORT_ASKED = """

  NOTEBOOK     says what is used: its lock, else its set-up cell (default: what
               is installed); `script` writes into it
  BACKEND      a build in place of the one that is used; `extras` takes several
               (auto: this machine's best)
  REQUIREMENT  what is asked for, in place of what was asked for last"""
_EXPORT_FORMS = "\n".join(f"  {form:<13} {text}" for form, text in EXPORT_FORMS.items())
_EXPORT = f"\n\n{_EXPORT_FORMS}{_EXPORT_ASKED}"

NOTEBOOK_ACTIONS = {
    "add": "NOTEBOOK [BACKEND] [REQUIREMENT ...]",
    "check": "NOTEBOOK ...",
    "remove": "NOTEBOOK ...",
}
"""What `torchenv notebook` does, and what may follow."""
_NOTEBOOK = """

  add NOTEBOOK [BACKEND] [REQUIREMENT ...]
                 put a set-up and a verification cell into it, or bring them up
                 to date; all else in the file stays byte for byte
  check NOTEBOOK ...
                 say what is missing or stale; exit 1 where anything is
  remove NOTEBOOK ...
                 take the two cells away, and with --lock its lock"""

LAYER_ACTIONS = {
    "build": "DIR [BACKEND] [REQUIREMENT ...]",
    "attach": "LAYER",
    "detach": "",
    "list": "DIR",
    "check": "LAYER",
    "remove": "LAYER",
}
"""What `torchenv layer` does, and what may follow."""
_LAYER = """

  build DIR [BACKEND] [REQUIREMENT ...]
                build one below DIR, which root should do: everybody reads it,
                and nobody else may write it or a folder above it
  attach LAYER  let an environment take its PyTorch from it: links, no copy
  detach        take the links away, and bring back what they replaced
  list DIR      which layers a folder has, and which of them are refused
  check LAYER   compare each file with what was built
  remove LAYER  delete it; nobody can know who has links to it"""

_EXAMPLES = """examples:
  {prog} install                      the best build for this machine
  {prog} install cpu                  without an accelerator
  {prog} install cu126 torchvision    CUDA 12.6, with torchvision
  {prog} plan auto "torch==2.13.*"    what that would change"""

_ASKED = """

  BACKEND      in uv's words: cpu, cu126, rocm7.2, xpu (default: auto, the best)
  REQUIREMENT  as pip writes it: torch==2.13.*, torchvision (torch is always in)"""

_LOCK = """

  BACKEND      a build to lock beside the one that is installed (default: each
               that has its torch release)
  REQUIREMENT  what is to be locked (default: what was asked for here last)"""
_RESTORE = """

  BACKEND      one of those that are locked (default: this machine's)"""
_DETAILS = {
    "layer": _LAYER,
    "lock": _LOCK,
    "restore": _RESTORE,
    "export": _EXPORT,
    "notebook": _NOTEBOOK,
}
_ASKED_LATER = ("layer", "notebook")

# What people write for a backend, right or nearly right; packages such as `cuda-python` are none.
_LIKE_A_BACKEND = re.compile(
    r"auto|cpu|gpu|xpu|mps|hip|amd|(cu|cuda|rocm)[-_ ]?(\d+(\.\d+)*)?", re.IGNORECASE
)
# Letters in another order (`cup`): were it taken for a package, a stranger's would be installed.
_SCRAMBLED = frozenset("".join(sorted(word)) for word in ("auto", "cpu", "xpu"))
# A terminal's usual width; that of a notebook's cell is not known.
_WIDTH = 80
_VERSION = re.compile(r"v?\d+(\.\d+)*(\.\*)?([-+.]?[a-z]+\d*)*", re.IGNORECASE)
_PACKAGES = ("torch", "torchvision", "torchaudio")

# Words of neighbouring tools, and ours for them.
_OTHER_WORDS = {
    "add": "install",
    "check": "verify",
    "detect": "status",
    "back": "undo",
    "diagnose": "doctor",
    "fix": "doctor",
    "fetch": "download",
    "info": "status",
    "kernel": "new-kernel",
    "log": "history",
    "revert": "undo",
    "rollback": "undo",
    "select": "list",
    "show": "status",
    "switch": "install",
    "test": "verify",
    "update": "install",
    "upgrade": "install",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One parsed line."""

    word: str
    """Empty in a notebook for the picker."""
    request: Request = field(default_factory=Request)
    yes: bool = False
    """Consents to what is otherwise asked for first: see `-h` of each word that takes it."""
    restart: Restart | None = None
    """None: a fresh kernel after a change, unless the session holds what took work."""
    refresh: bool = False
    """Asks the PyTorch index which builds it has now."""
    name: str = ""
    """The kernel that `new-kernel` makes."""
    remove: bool = False
    """Removes that kernel, and its environment."""
    directory: Path | None = None
    """Where `download` and `prefetch` put things; the folder or the layer that `layer` is about."""
    action: str = ""
    """What `layer` or `notebook` does."""
    form: str = ""
    """What `export` writes."""
    notebooks: tuple[Path, ...] = ()
    """The files that `lock`, `restore`, `export` and `notebook` are about; empty in a notebook for
    the one that runs."""
    output: Path | None = None
    """Where `export` writes."""
    lock: bool = False
    """Lets `notebook remove` take the lock away too."""
    named: bool = False
    """Whether `notebook add` was told what the cell is to install, be it `auto` or `torch`."""
    backends: tuple[Backend | None, ...] = ()
    """For which backends `prefetch`, `lock` and `export` do it; None is the best for this
    machine."""
    layers: bool = False
    """Lets `prefetch` build layers."""
    python_version: str | None = None
    """The Python that these wheels are for, as `3.12`."""
    platform: str | None = None
    """The platform that these wheels are for, in uv's words."""
    index_base: str | None = None
    """A mirror of the PyTorch index: what stands before `/cu126`."""
    find_links: tuple[str, ...] = ()
    """Folders of wheels that are looked through first."""
    allow_sdist: bool = False
    """Lets the PyTorch family be built from source distributions, which run code."""
    json: bool = False
    python: Path | None = None
    """The interpreter to install into; None is the running one."""
    line: str = ""
    """The line as it was written, with the program's name and without a login."""
    sheared: bool = False
    """Whether there was a login in it."""

    @property
    def with_consent(self) -> str:
        """How to say yes to what was asked for first: the same line, so that nothing is lost."""
        return "the same line with `--yes`" if self.sheared else f"`{self.line} --yes`"


class HelpRequested(Exception):  # noqa: N818  (it is no error)
    """`-h` was among the words: `text` is the answer."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Parser(argparse.ArgumentParser):
    """Raises in place of printing and ending the process, which is a kernel here."""

    def error(self, message: str) -> NoReturn:
        if match := re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL):
            message = f"`{match[1]}` {match[2]}"
        if match := re.match(r"the following arguments are required: (\w+)", message):
            # What may follow it is named too, by argparse's own name for it.
            article = "an" if match[1][0] in "AEIOU" else "a"
            message = f"`{self.prog}` needs {article} {match[1]}"
        raise RequestError(
            f"{message[0].upper()}{message[1:]}", hint=f"`{self.prog} -h` shows how it is written"
        )


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], **_: object) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show this help")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise HelpRequested(parser.format_help().rstrip())


def words_of(*, notebook: bool) -> tuple[str, ...]:
    """Return the words, in the order in which people need them."""
    return _IN_NOTEBOOK if notebook else tuple(_SUMMARIES)


def takes_request(word: str) -> bool:
    """Return whether a backend and requirements may follow the word."""
    return word in _ASKING


def options_of(word: str, *, notebook: bool) -> tuple[str, ...]:
    """Return the long options of one word."""
    parser = _subparser(word, notebook=notebook)
    return tuple(
        option
        for action in parser._actions  # noqa: SLF001  (argparse has no public listing)
        for option in action.option_strings
        if option.startswith("--")
    )


def parse_words(arguments: Sequence[str], *, notebook: bool) -> Words:
    """Return what a line says.

    Raises
    ------
    HelpRequested
        `-h` or `--help` is among the words.
    RequestError
        An unknown word or backend, a malformed requirement or option.
    """
    try:
        return _parsed(arguments, notebook=notebook)
    except RequestError as error:
        # A line may come out of a stranger's notebook, and a control character acts on a terminal.
        error.message, error.hint = _printable(error.message), _printable(error.hint)
        raise


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _parsed(arguments: Sequence[str], *, notebook: bool) -> Words:
    prog = _prog(notebook=notebook)
    if not arguments and notebook:
        return Words(word="", line=prog)
    first, *rest = arguments or ["-h"]
    known = words_of(notebook=notebook)
    if first in ("-h", "--help", "help"):
        if rest[:1] and rest[0] in known:
            first, rest = rest[0], ["-h"]
        else:
            raise HelpRequested(overview(notebook=notebook))
    if first not in known:
        raise _unknown_word(first, known, prog)
    parser = _subparser(first, notebook=notebook)
    options, extra = parser.parse_known_intermixed_args(rest)
    if extra:
        raise _unknown_option(extra[0], parser, options_of(first, notebook=notebook))
    notebooks: tuple[Path, ...] = ()
    if first == "layer":
        options.directory, options.what = _about_layer(options.action, options.what, parser)
    if first == "export" and options.form not in EXPORT_FORMS:
        raise _unknown_choice(options.form, tuple(EXPORT_FORMS), parser, "nothing that {} writes")
    if first == "export" and options.output is not None and options.form != "script":
        _check_output(options.output, f"{parser.prog} {options.form}")
    if first in _ABOUT_NOTEBOOKS:
        notebooks, options.what = _about_notebooks(first, options, parser, notebook=notebook)
    written = f"{prog} {_written(arguments, notebook=notebook)}"
    line = _without_login(written)
    if first in _ABOUT_SEVERAL:
        request, backends = _several(options.what)
    else:
        request = parse_request(
            getattr(options, "what", []), backend=getattr(options, "backend", None)
        )
        backends = _backends(options.backends or (), request) if first == "prefetch" else ()
    return Words(
        word=first,
        request=request,
        action=getattr(options, "action", ""),
        form=getattr(options, "form", ""),
        notebooks=notebooks,
        output=getattr(options, "output", None),
        lock=getattr(options, "lock", False),
        named=first == "notebook" and bool(options.what),
        backends=backends,
        layers=getattr(options, "layers", False),
        yes=getattr(options, "yes", False),
        restart=getattr(options, "restart", None),
        refresh=getattr(options, "refresh", False),
        name=getattr(options, "name", ""),
        remove=getattr(options, "remove", False),
        directory=getattr(options, "directory", None),
        python_version=getattr(options, "python_version", None),
        platform=getattr(options, "platform", None),
        index_base=getattr(options, "index_base", None),
        find_links=tuple(getattr(options, "find_links", None) or ()),
        allow_sdist=getattr(options, "allow_sdist", False),
        json=getattr(options, "json", False),
        python=getattr(options, "python", None),
        line=line,
        sheared=line != written,
    )


_ABOUT_NOTEBOOKS = ("lock", "restore", "export", "notebook")
_ABOUT_SEVERAL = ("lock", "export")


def _about_notebooks(
    word: str, options: argparse.Namespace, parser: _Parser, *, notebook: bool
) -> tuple[tuple[Path, ...], list[str]]:
    """Return which files it is about, and what else is said."""
    if word == "notebook" and options.action not in NOTEBOOK_ACTIONS:
        known = tuple(NOTEBOOK_ACTIONS)
        raise _unknown_choice(options.action, known, parser, "nothing that {} does")
    what = options.what
    files = [text for text in what if text.lower().endswith(".ipynb")]
    rest = [text for text in what if not text.lower().endswith(".ipynb")]
    action = f"{parser.prog} {options.action}" if word == "notebook" else parser.prog
    if not files and not notebook and word != "export":
        raise RequestError(
            f"`{action}` needs a NOTEBOOK",
            hint="name its file, which ends in `.ipynb`",
        )
    several = word == "notebook" and options.action != "add"
    takes_requirements = word != "restore" and not several
    surplus = [] if several else files[1:]
    if not takes_requirements:
        # One backend may follow `restore`, and nothing the other two.
        surplus += [text for text in rest if word == "notebook" or not _is_backend(text)]
    if surplus:
        raise RequestError(
            f"`{action}` takes no `{surplus[0]}`",
            hint=f"`{parser.prog} -h` shows how it is written",
        )
    return tuple(Path(text).expanduser() for text in files), rest


def _check_output(output: Path, action: str) -> None:
    # Two names in a line change places easily, and what is written replaces the file.
    if output.suffix.lower() == ".ipynb":
        raise RequestError(
            f"`{action}` writes no notebook, which `{output.name}` would be",
            hint="name the notebook before `--output`, and behind it the file to write",
        )


def _unknown_choice(text: str, known: tuple[str, ...], parser: _Parser, what: str) -> RequestError:
    nearest = _nearest(text.lower(), known)
    instead = f"did you mean `{parser.prog} {nearest[0]}`? " if nearest else ""
    return RequestError(
        f"`{text}` is {what.format(f'`{parser.prog}`')}",
        hint=f"{instead}it is one of {', '.join(known)}",
    )


def _several(what: Sequence[str]) -> tuple[Request, tuple[Backend | None, ...]]:
    """Return what is asked for, for any number of backends; nothing where nothing is named."""
    backends = _backends([text for text in what if _is_backend(text)], Request())
    texts = tuple(_requirement(text) for text in what if not _is_backend(text))
    if texts and not any(parse_requirement(text).name.lower() == "torch" for text in texts):
        texts = ("torch", *texts)
    named = [text for text in what if _is_backend(text)]
    return Request(requirements=texts), backends if named else ()


def _is_backend(text: str) -> bool:
    """Whether it was meant to be a backend, right or nearly right."""
    scrambled = "".join(sorted(text.lower())) in _SCRAMBLED
    return scrambled or _LIKE_A_BACKEND.fullmatch(text) is not None


def _about_layer(
    action: str, what: Sequence[str], parser: _Parser
) -> tuple[Path | None, Sequence[str]]:
    """Return which folder `layer` is about, and what is asked of it."""
    if action not in LAYER_ACTIONS:
        raise _unknown_choice(action, tuple(LAYER_ACTIONS), parser, "nothing that {} does")
    follows = LAYER_ACTIONS[action].split()
    if follows and not what:
        raise RequestError(
            f"`{parser.prog} {action}` needs a {follows[0]}",
            hint=f"`{parser.prog} -h` shows how it is written",
        )
    rest = what[1:] if follows else what
    if rest and len(follows) < 2:
        raise RequestError(
            f"`{parser.prog} {action}` takes no `{rest[0]}`",
            hint=f"`{parser.prog} -h` shows how it is written",
        )
    return Path(what[0]).expanduser() if follows else None, rest


def _backends(named: Sequence[str], request: Request) -> tuple[Backend | None, ...]:
    """Return each backend that was named, once; the request's own where none was."""
    catalog = load_catalog() if named else None
    found = [parse_backend(text, catalog) for text in named if catalog is not None]
    if request.backend is not None or not found:
        found.insert(0, request.backend)
    return tuple(dict.fromkeys(found))


def parse_request(what: Sequence[str], *, backend: str | None = None) -> Request:
    """Return the request written as `[BACKEND] [REQUIREMENT...]`; torch is always part of it.

    The backend may stand anywhere among the requirements, but only one may.

    Raises
    ------
    RequestError
    """
    named = [] if backend is None else [backend]
    texts = []
    for text in what:
        if _is_backend(text):
            named.append(text)
        else:
            texts.append(_requirement(text))
    if len(named) > 1:
        raise RequestError(
            f"`{named[0]}` and `{named[1]}` are two backends, and an environment has one",
            hint="name one of them",
        )
    chosen = parse_backend(named[0], load_catalog()) if named else None
    has_torch = any(parse_requirement(text).name.lower() == "torch" for text in texts)
    requirements = tuple(texts) if has_torch else ("torch", *texts)
    return Request(backend=chosen, requirements=requirements)


def _requirement(text: str) -> str:
    """Return the requirement `text` as uv will get it, on a line of its own."""
    if _VERSION.fullmatch(text):
        number = text.lstrip("vV")
        raise RequestError(
            f"`{text}` is a version without a package", hint=f"did you mean `torch=={number}`?"
        )
    parse_requirement(text)
    return text.strip()


def _nearest(word: str, known: Sequence[str], *, cutoff: float = 0.6) -> list[str]:
    import difflib  # only what is misspelt waits for it

    return difflib.get_close_matches(word, known, n=1, cutoff=cutoff)


def _unknown_word(first: str, known: Sequence[str], prog: str) -> RequestError:
    word = first.lower()
    nearest = _nearest(word, known)
    other = _OTHER_WORDS.get(word)
    if not nearest and other is not None and other in known:
        nearest = [other]
    name = re.split(r"[<>=!~;\[@ ]", word)[0]
    if not nearest and (_LIKE_A_BACKEND.fullmatch(first) or name in _PACKAGES):
        nearest = [_written(["install", first], notebook=prog.startswith("%"))]
    instead = f"did you mean `{prog} {nearest[0]}`? " if nearest else ""
    return RequestError(
        f"`{first}` is not a word of `{prog}`", hint=f"{instead}the words are {', '.join(known)}"
    )


def _unknown_option(text: str, parser: _Parser, options: Sequence[str]) -> RequestError:
    if not text.startswith("-"):
        return RequestError(
            f"`{parser.prog}` takes no `{text}`", hint=f"`{parser.prog} -h` shows how it is written"
        )
    name = text.partition("=")[0]
    nearest = _nearest(name, options, cutoff=0.75)
    hint = f"`{parser.prog} -h` shows how it is written"
    if nearest:
        hint = f"did you mean `{nearest[0]}`? {hint}"
    elif name == "--python" and parser.prog.startswith("%"):
        hint = "a notebook works on its kernel's environment; `torchenv` in a terminal on any"
    elif parser.prog.endswith((" plan", " install")):
        hint = f"{hint}; set pip's and uv's own options in their configuration"
    return RequestError(f"`{name}` is not an option of `{parser.prog}`", hint=hint)


def _written(arguments: Sequence[str], *, notebook: bool) -> str:
    """Return the arguments as they can be typed: `torch<2.13` would be a redirection in a shell."""
    if notebook or sys.platform != "win32":
        return shlex.join(arguments)
    plain = re.compile(r"[\w@%+=:,./\\~*-]+")
    return " ".join(text if plain.fullmatch(text) else f'"{text}"' for text in arguments)


def _without_login(line: str) -> str:
    """Return the line as it may be shown and kept: a mirror's address can hold a login."""
    if "://" not in line:
        return line
    from torchenv_magic.web import without_login  # urllib and ssl: few lines need it

    return without_login(line)


def _prog(*, notebook: bool) -> str:
    return "%torchenv" if notebook else "torchenv"


def _summary(word: str, *, notebook: bool) -> str:
    text = _SUMMARIES[word]
    return text if notebook else text.replace(", restart the kernel,", "")


def _subparser(word: str, *, notebook: bool) -> _Parser:
    prog = f"{_prog(notebook=notebook)} {word}"
    asking = word in _ASKING
    summary = _summary(word, notebook=notebook)
    parser = _Parser(
        prog=prog,
        description=f"{summary[0].upper()}{summary[1:]}."
        f"{_DETAILS.get(word, '')}{_ASKED if asking or word in _ASKED_LATER else ''}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=_WIDTH),
        add_help=False,
        allow_abbrev=False,
    )
    parser.color = False  # type: ignore[attr-defined]  # Python 3.14 colours by default
    usage = [prog]
    add: Any = parser.add_argument
    _add_what(word, usage, add, notebook=notebook)
    _add_own(word, usage, add)
    if word in _FETCHING:
        usage.append("[--index-base URL]")
        add("--index-base", metavar="URL",
            help="a mirror of the PyTorch index: what stands before /cu126 (default: "
            "TORCHENV_INDEX_BASE, else the configuration, else the PyTorch index)")  # fmt: skip
    # A lock names addresses, which a folder of one machine has none of.
    if word in _FETCHING and word != "lock":
        usage.append("[--find-links DIR]")
        add(
            "--find-links",
            metavar="DIR",
            action="append",
            help="a folder of wheels, looked through first; may be given more than once",
        )
    if word in _FETCHING and word not in _WHEELS_ALONE:
        usage.append("[--allow-sdist]")
        add(
            "--allow-sdist",
            action="store_true",
            help="let torch be built from a source distribution, which runs its code",
        )
    # In a terminal no page has the notebook open that is written.
    if word in _CONSENTING and (notebook or word != "lock"):
        usage.append("[--yes]")
        add("--yes", action="store_true", help=_CONSENTING[word])
    if word in _RESTARTING and notebook:
        usage.append("[--restart WHEN]")
        add("--restart", type=_restart, metavar="WHEN",
            help="always: a fresh kernel after a change; auto: only where something that changed "
            "is loaded; never: you restart it (default: always, unless the session holds what "
            "took work)")  # fmt: skip
    if not notebook and word != "preinstall":
        usage.append("[--json]")
        add("--json", action="store_true", help="print data as JSON on stdout")
    if not notebook and word not in ("detect", "download", "preinstall", "notebook"):
        usage.append("[--python PATH]")
        add("--python", type=Path, metavar="PATH",
            help="the interpreter, or virtual environment, to look at or install into (default: "
            "the one that runs this)")  # fmt: skip
    usage.append("[-h]")
    add("-h", "--help", action=_Help)
    if word == "preinstall":
        usage.append("[-- COMMAND ...]")
    parser.usage = _usage(usage).replace("%", "%%")
    return parser


def _add_what(word: str, usage: list[str], add: Any, *, notebook: bool) -> None:  # noqa: ANN401
    """Add what a word is about: what stands behind it without dashes."""
    if word == "new-kernel":
        usage.append("NAME")
        add("name", metavar="NAME", help="what the kernel is called")
    if word == "download":
        usage.append("DIR")
        add("directory", type=Path, metavar="DIR", help="where the wheels go")
    if word == "prefetch":
        usage.append("DIR")
        add("directory", type=Path, metavar="DIR", help="where the wheels or layers go")
    if word == "layer":
        usage.append(f"{{{','.join(LAYER_ACTIONS)}}} ...")
        add("action", metavar="ACTION", help=argparse.SUPPRESS)
        add("what", nargs="*", help=argparse.SUPPRESS)
    if word == "notebook":
        usage.append(f"{{{','.join(NOTEBOOK_ACTIONS)}}} NOTEBOOK ...")
        add("action", metavar="ACTION", help=argparse.SUPPRESS)
        add("what", nargs="*", help=argparse.SUPPRESS)
    if word in ("lock", "restore", "export"):
        if word == "export":
            usage.append("FORM")
            add("form", metavar="FORM", help=argparse.SUPPRESS)
        usage.append("[NOTEBOOK]" if notebook or word == "export" else "NOTEBOOK")
        usage.append("[BACKEND]" if word == "restore" else "[BACKEND ...] [REQUIREMENT ...]")
        add("what", nargs="*", help=argparse.SUPPRESS)
    if word in _ASKING:
        usage.append("[BACKEND] [REQUIREMENT ...]")
        add("what", nargs="*", help=argparse.SUPPRESS)


def _add_own(word: str, usage: list[str], add: Any) -> None:  # noqa: ANN401  (argparse's)
    """Add what a word alone takes, or a few do."""
    if word in ("select", "preinstall"):
        usage.append("[--backend NAME]")
        add("--backend", dest="backend", metavar="NAME", help="same as BACKEND")
    if word == "preinstall":
        usage += ["[--wait SECONDS]", "[--env DIR]"]
        # Read by the wrapper, which no other module stands before: here for the help alone.
        add("--wait", metavar="SECONDS",
            help="how long the server may be kept waiting for it (default: "
            "TORCHENV_PREINSTALL_WAIT, else 0)")  # fmt: skip
        add("--env", metavar="DIR",
            help="the environment to install into (default: the one that runs this where it is "
            "yours, else one in your home)")  # fmt: skip
    if word == "prefetch":
        usage += ["[--backend NAME]", "[--layers]"]
        add(
            "--backend",
            dest="backends",
            metavar="NAME",
            action="append",
            help="a backend; may be given more than once (default: the best for this machine)",
        )
        add("--layers", action="store_true",
            help="build layers, in place of a folder of wheels")  # fmt: skip
    if word == "export":
        usage.append("[--output FILE]")
        add("--output", type=Path, metavar="FILE",
            help="the file to write (default: pyproject.toml for its three forms; standard output "
            "for the others, or the notebook itself)")  # fmt: skip
    if word == "notebook":
        usage.append("[--lock]")
        add("--lock", action="store_true", help="let remove take the lock away too")
    if word in _LOOKING:
        usage.append("[--refresh]")
        add("--refresh", action="store_true",
            help="ask the PyTorch index which builds it has now (default: no network; what it "
            "said in the last 7 days, else the shipped catalog)")  # fmt: skip
    if word == "new-kernel":
        usage.append("[--remove]")
        add("--remove", action="store_true",
            help="remove the kernel of that name, and its environment")  # fmt: skip
    if word == "download":
        usage += ["[--python-version X.Y]", "[--platform PLATFORM]"]
        add(
            "--python-version",
            metavar="X.Y",
            help="the Python that the wheels are for (default: the one that runs this)",
        )
        add("--platform", metavar="PLATFORM",
            help="the machine that they are for, in uv's words: linux, windows, macos, "
            "aarch64-manylinux_2_28 (default: this one)")  # fmt: skip


def _usage(parts: Sequence[str]) -> str:
    """Return the usage, with a break between two parts where a line is full."""
    indent = len(f"usage: {parts[0]} ")
    text, column = parts[0], indent - 1
    for part in parts[1:]:
        if column + 1 + len(part) >= _WIDTH:
            text, column = f"{text}\n{' ' * (indent - 1)}", indent - 1
        text, column = f"{text} {part}", column + 1 + len(part)
    return text


def _restart(text: str) -> Restart:
    for word in RESTARTS:
        if text == word:
            return word
    nearest = _nearest(text.lower(), RESTARTS)
    instead = f"did you mean `--restart={nearest[0]}`? " if nearest else ""
    raise RequestError(
        f"`--restart` can't be `{text}`", hint=f"{instead}it is one of {', '.join(RESTARTS)}"
    )


def overview(*, notebook: bool) -> str:
    prog = _prog(notebook=notebook)
    lines = ["Pick, install and prove the right PyTorch build.", ""]
    if notebook:
        lines.append(f"  {prog:<22}the picker: what is here, what fits, one button")
    lines += [
        f"  {f'{prog} {word}':<22}{_summary(word, notebook=notebook)}"
        for word in words_of(notebook=notebook)
    ]
    version = "" if notebook else f", `{prog} --version` the version"
    rest = f"`{prog} WORD -h` tells the rest{version}."
    return "\n".join([*lines, "", rest, "", _EXAMPLES.format(prog=prog)])
