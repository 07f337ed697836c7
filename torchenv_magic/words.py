"""The words of `%torchenv` and of the `torchenv` command: one grammar for both."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from packaging.utils import canonicalize_name

from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.errors import RequestError
from torchenv_magic.selection import Request, parse_backend, parse_requirement

__all__ = [
    "HelpRequested",
    "Restart",
    "Words",
    "options_of",
    "parse_request",
    "parse_words",
    "words_of",
]

Restart = Literal["always", "auto", "never"]

_SUMMARIES = {
    "status": "what is here, what would be chosen, and why",
    "list": "every build, best first, with the reason for each",
    "plan": "what an install would download, install, replace and remove; changes nothing",
    "install": "install PyTorch, restart the kernel, and prove that it works",
    "verify": "prove on the device that the installed PyTorch works",
    "detect": "the accelerators of this host",
    "select": "which build is chosen here, and why; asks no network",
}
_IN_NOTEBOOK = ("status", "list", "plan", "install", "verify")
_READING = ("status", "list", "plan", "verify", "detect", "select")
_ASKING = ("list", "plan", "install", "select")

_EXAMPLES = """examples:
  {prog} install                      the best build for this machine
  {prog} install cpu                  without an accelerator
  {prog} install cu126 torchvision    CUDA 12.6, with torchvision
  {prog} plan auto "torch==2.13.*"    what that would change"""

# What people write for a backend, right or nearly right; any other first word is a requirement.
_LIKE_A_BACKEND = re.compile(r"(auto|cpu|gpu|xpu|mps|hip|cuda.*|cu-?\d.*|rocm.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One parsed line."""

    word: str
    """Empty in a notebook for the picker."""
    request: Request = field(default_factory=Request)
    yes: bool = False
    """Consents to wheels from elsewhere than the PyTorch index where that can't be reached."""
    restart: Restart | None = None
    """None: a fresh kernel after a change, unless the session holds what took work."""
    json: bool = False
    python: Path | None = None
    """The interpreter to install into; None is the running one."""


class HelpRequested(Exception):  # noqa: N818  (it is no error)
    """`-h` was among the words: `text` is the answer."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _Parser(argparse.ArgumentParser):
    """Raises in place of printing and ending the process, which is a kernel here."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(
            f"{message[0].upper()}{message[1:]}.", hint=f"`{self.prog} -h` shows how it is written"
        )


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], **_: object) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show this help")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise HelpRequested(parser.format_help().rstrip())


def words_of(*, notebook: bool) -> tuple[str, ...]:
    """Return the words, in the order in which people need them."""
    return _IN_NOTEBOOK if notebook else tuple(_SUMMARIES)


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
    prog = _prog(notebook=notebook)
    if not arguments and notebook:
        return Words(word="")
    first = arguments[0] if arguments else "-h"
    if first in ("-h", "--help", "help"):
        raise HelpRequested(_overview(notebook=notebook))
    known = words_of(notebook=notebook)
    if first not in known:
        nearest = difflib.get_close_matches(first, known, n=1)
        if not nearest and _LIKE_A_BACKEND.fullmatch(first):
            instead = f"did you mean `{prog} install {first}`? "
        else:
            instead = f"did you mean `{prog} {nearest[0]}`? " if nearest else ""
        message = f"`{first}` is not a word of {prog}."
        raise RequestError(message, hint=f"{instead}the words are {', '.join(known)}")
    options = _subparser(first, notebook=notebook).parse_intermixed_args(list(arguments[1:]))
    return Words(
        word=first,
        request=parse_request(
            getattr(options, "what", []), backend=getattr(options, "backend", None)
        ),
        yes=getattr(options, "yes", False),
        restart=getattr(options, "restart", None),
        json=getattr(options, "json", False) or False,
        python=getattr(options, "python", None),
    )


def parse_request(what: Sequence[str], *, backend: str | None = None) -> Request:
    """Return the request written as `[BACKEND] [REQUIREMENT...]`; torch is always part of it.

    Raises
    ------
    RequestError
    """
    rest = list(what)
    if backend is None and rest and _LIKE_A_BACKEND.fullmatch(rest[0]):
        backend = rest.pop(0)
    for text in rest:
        if text.startswith("-"):
            message = f"`{text}` is an option, not a requirement."
            raise RequestError(message, hint="set options in uv's or pip's configuration")
    names = [canonicalize_name(parse_requirement(text).name) for text in rest]
    requirements = tuple(rest) if "torch" in names else ("torch", *rest)
    chosen = parse_backend(backend, load_catalog()) if backend else None
    return Request(backend=chosen, requirements=requirements)


def _prog(*, notebook: bool) -> str:
    return "%torchenv" if notebook else "torchenv"


def _subparser(word: str, *, notebook: bool) -> _Parser:
    parser = _Parser(
        prog=f"{_prog(notebook=notebook)} {word}",
        description=f"{_SUMMARIES[word][0].upper()}{_SUMMARIES[word][1:]}.",
        add_help=False,
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    if word in _ASKING:
        add("what", nargs="*", metavar="[BACKEND] [REQUIREMENT]",
            help="backend in uv's words (auto, cpu, cu126, rocm7.2, xpu), then packages as pip "
            "writes them (torch==2.13.*, torchvision); without any: auto and torch")  # fmt: skip
    if word == "select":
        add("--backend", dest="backend", metavar="NAME", help="same as BACKEND")
    if word in ("plan", "install"):
        add("--yes", action="store_true",
            help="consent to wheels from a folder or PyPI where the PyTorch index can't be "
            "reached")  # fmt: skip
    if word == "install" and notebook:
        add("--restart", choices=("always", "auto", "never"),
            help="always: a fresh kernel after a change; auto: only where something that "
            "changed is loaded; never: you restart it (default: always, unless the session "
            "holds what took work)")  # fmt: skip
    if not notebook:
        if word in _READING or word == "install":
            add("--json", action="store_true", help="print data as JSON on stdout")
        add(
            "--python",
            type=Path,
            metavar="PATH",
            help="the interpreter to look at or install into (default: the one that runs this)",
        )
    add("-h", "--help", action=_Help)
    return parser


def _overview(*, notebook: bool) -> str:
    prog = _prog(notebook=notebook)
    lines = ["Pick, install and prove the right PyTorch build.", ""]
    if notebook:
        lines.append(f"  {prog:<20}the picker: what is here, what fits, one button")
    lines += [f"  {f'{prog} {word}':<20}{_SUMMARIES[word]}" for word in words_of(notebook=notebook)]
    return "\n".join(
        [*lines, "", f"`{prog} WORD -h` tells the rest.", "", _EXAMPLES.format(prog=prog)]
    )
