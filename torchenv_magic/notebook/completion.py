"""Completion of `%torchenv`: words, options, and the backends of the catalog.

IPython calls the interface provisional, so everything that depends on it is in this one place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["candidates", "register", "unregister"]

_RESTARTING = ("install", "restore", "undo")
# Words that are about any number of backends.
_ABOUT_SEVERAL = ("lock", "export")
_PACKAGES = ("torch", "torchvision", "torchaudio")
# At the start of a line, or as what a name gets: `plan = %torchenv plan`.
_LINE = re.compile(r"(?:[^#'\"=]*=)?\s*%torchenv\s(?P<rest>.*)$", re.DOTALL)


def candidates(line: str) -> tuple[str, ...] | None:
    """Return what can stand where the line ends; None where it isn't ours."""
    match = _LINE.match(line)
    if match is None:
        return None
    from torchenv_magic.words import EXPORT_FORMS, RESTARTS, options_of, takes_request, words_of

    *before, token = match["rest"].split(" ")
    before = [part for part in before if part]
    word = before[0] if before else None
    if word is None:
        options = words_of(notebook=True)
    elif word not in words_of(notebook=True):
        options = ()
    elif token.startswith("--restart=") and word in _RESTARTING:
        options = tuple(f"--restart={name}" for name in RESTARTS)
    elif before[-1] == "--restart" and word in _RESTARTING:
        options = RESTARTS
    elif before[-1] in ("--index-base", "--find-links"):
        options = ()  # IPython offers the folders here, and what else it knows
    elif token.startswith("-"):
        options = options_of(word, notebook=True)
    elif before == ["export"]:
        options = tuple(EXPORT_FORMS)
    elif word == "restore":
        options = () if len(before) > 1 else _backends()  # IPython offers the files, too
    elif word in _ABOUT_SEVERAL:
        options = tuple(each for each in (*_backends(), *_PACKAGES) if each not in before)
    elif takes_request(word) and before != ["new-kernel"]:
        options = _asked(before[1:])
    else:
        # Nothing at all would let IPython offer every name of Python.
        options = options_of(word, notebook=True)
    return tuple(option for option in options if option.startswith(token))


def _backends() -> tuple[str, ...]:
    from torchenv_magic.builds.catalog import load_catalog

    return ("auto", *map(str, load_catalog().backends()))


def _asked(before: list[str]) -> tuple[str, ...]:
    backends = _backends()
    packages = tuple(name for name in _PACKAGES if name not in before)
    # An environment has one backend.
    return packages if set(backends) & set(before) else (*backends, *packages)


def register(shell: InteractiveShell) -> None:
    """Let the shell's completer ask us; only ours are shown where the line is ours."""
    completer: Any = shell.Completer
    if completer is not None and _matcher not in completer.custom_matchers:
        completer.custom_matchers.append(_matcher)


def unregister(shell: InteractiveShell) -> None:
    """Take the matcher away again."""
    completer: Any = shell.Completer
    if completer is not None and _matcher in completer.custom_matchers:
        completer.custom_matchers.remove(_matcher)


def _matcher(context: Any) -> dict[str, Any]:  # noqa: ANN401
    from IPython.core.completer import SimpleCompletion

    line = context.text_until_cursor
    found = candidates(line)
    if found is None:
        return {"completions": []}
    fragment = re.split(r"\s", line)[-1]
    return {
        "completions": [SimpleCompletion(text=text, type="magic") for text in found],
        "matched_fragment": fragment,
        "suppress": True,
    }


# The second version of the interface passes the context, not only the token.
_matcher.matcher_api_version = 2  # type: ignore[attr-defined]
