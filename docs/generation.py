"""What pages of this site take from elsewhere: the code, the README, the notebooks.

A page says where by a line that ends in `<!-- from: KIND ARGUMENT -->`; `fill_page` puts the
Markdown in its place. What the line begins with is for those who read the page on GitHub.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import posixpath
import re
import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from packaging.version import Version

import torchenv_magic
from torchenv_magic import errors
from torchenv_magic.words import HelpRequested, parse_words, words_of

__all__ = ["DOCUMENTS", "FENCE", "PAGE_OF", "PLACE", "documented_keys", "fill_page"]

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

# Files of the repository that are a page of the site, by the line that takes them in.
PAGE_OF = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "explanation/benchmarks.md",
    "catalog/README.md": "explanation/catalog.md",
    "jupyter-config/examples/README.md": "how-to/hub-examples.md",
    "tests/fleet/README.md": "explanation/fleet.md",
}
# Sections of the README that other texts link to, and the page that has each.
SECTION_OF = {
    "what-it-touches-on-your-machine": "explanation/what-it-touches.md",
}
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
PLACE = re.compile(r"^.*<!-- from: ([a-z]+)(?: (.+?))? -->$", re.MULTILINE)

# What a word prints with `--json`, as a record; its own page tells what stands beside.
DOCUMENTS = {
    "status": ("torchenv_magic.status", "Status"),
    "list": ("torchenv_magic.selection", "Alternative"),
    "plan": ("torchenv_magic.installation.plan", "Plan"),
    "install": ("torchenv_magic.installation.install", "Result"),
    "verify": ("torchenv_magic.verification", "Verification"),
    "doctor": ("torchenv_magic.doctor.diagnosis", "Diagnosis"),
    "undo": ("torchenv_magic.installation.install", "Result"),
    "history": ("torchenv_magic.installation.history", "History"),
    "download": ("torchenv_magic.installation.wheelhouse", "Wheelhouse"),
    "detect": ("torchenv_magic.accelerators.records", "Host"),
    "select": ("torchenv_magic.selection", "Selection"),
    "events": ("torchenv_magic.installation.progress", "Event"),
}
FACADE = tuple(
    name for name in torchenv_magic.__all__ if not name.startswith("__") and "extension" not in name
)


def fill_page(page: str, text: str) -> str:
    """Return the text of the page (`how-to/ci.md`) with what it takes from elsewhere in it."""
    pieces, end = [], 0
    for place in PLACE.finditer(text):
        pieces.append(_relinked(text[end : place.start()], source=f"docs/{page}", page=page))
        pieces.append(KINDS[place[1]](place[2] or "", page))
        end = place.end()
    pieces.append(_relinked(text[end:], source=f"docs/{page}", page=page))
    return "".join(pieces)


# ------------------------------------------------------------------------------ texts of elsewhere


def _section(argument: str, page: str) -> str:
    """Return what stands below a heading of a file: `README.md#How it decides`."""
    name, _, heading = argument.partition("#")
    text = (ROOT / name).read_text(encoding="utf-8")
    start = text.index(f"\n## {heading}\n") + len(f"\n## {heading}\n")
    end = text.find("\n## ", start)
    body = text[start : end if end >= 0 else None]
    # Marks of those who write into the file.
    body = re.sub(r"^<!-- .*? -->\n", "", body, flags=re.MULTILINE)
    return _relinked(body.strip(), source=name, page=page)


def _file(argument: str, page: str) -> str:
    text = (ROOT / argument).read_text(encoding="utf-8")
    return _relinked(text, source=argument, page=page)


def _relinked(text: str, *, source: str, page: str) -> str:
    """Return the text of `source` with its links as they are from the page."""
    pieces, end = [], 0
    for fence in FENCE.finditer(text):
        pieces += [_prose_relinked(text[end : fence.start()], source, page), fence[0]]
        end = fence.end()
    pieces.append(_prose_relinked(text[end:], source, page))
    return "".join(pieces)


def _prose_relinked(text: str, source: str, page: str) -> str:
    def link(match: re.Match[str]) -> str:
        return f"{match[1]}{_target(match[2], source, page)}{match[3]}"

    return LINK.sub(link, text)


def _target(target: str, source: str, page: str) -> str:
    if "://" in target or target.startswith(("#", "mailto:")):
        return target
    path, _, anchor = target.partition("#")
    full = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    here = posixpath.dirname(f"docs/{page}")
    if full == "README.md" and anchor:
        full, anchor = f"docs/{SECTION_OF[anchor]}", ""
    elif full in PAGE_OF:
        full = f"docs/{PAGE_OF[full]}"
    found = posixpath.relpath(full, here)
    return f"{found}#{anchor}" if anchor else found


def _notebook(argument: str, page: str) -> str:
    """Return a notebook as it reads: its text, and its code in blocks."""
    file = f"notebooks/{argument}.ipynb"
    notebook = json.loads((ROOT / file).read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_relinked(source, source=file, page=page))
        else:
            parts.append(f"```{_language(source)}\n{source}\n```")
    up = posixpath.relpath(".", posixpath.dirname(f"docs/{page}"))
    parts.append(f"---\n\nThis page is the notebook [`{file}`]({up}/{file}), which the tests run.")
    return "\n\n".join(parts)


def _language(source: str) -> str:
    if source.startswith("%%bash"):
        return "text"
    return "ipython" if re.search(r"^[%!]", source, re.MULTILINE) else "python"


# --------------------------------------------------------------------------------------- the words


def _words(_argument: str, _page: str) -> str:
    """Return what `-h` says to each word: in a terminal and, where it is another, in a notebook."""
    parts = []
    for word in words_of(notebook=False):
        parts.append(f"## `{word}`")
        terminal = _help(word, notebook=False)
        parts.append(f"```text\n{terminal}\n```")
        if word in words_of(notebook=True):
            notebook = _help(word, notebook=True)
            parts.append(f"In a notebook:\n\n```text\n{notebook}\n```")
    return "\n\n".join(parts)


def _overview(argument: str, _page: str) -> str:
    return f"```text\n{_help('', notebook=argument == 'notebook')}\n```"


def _help(word: str, *, notebook: bool) -> str:
    try:
        parse_words([word, "-h"] if word else ["-h"], notebook=notebook)
    except HelpRequested as requested:
        return requested.text
    message = f"`{word} -h` is no question for help"
    raise ValueError(message)


# -------------------------------------------------------------------------------------- the facade


def _facade(_argument: str, _page: str) -> str:
    """Return the functions of the package: how each is called, and what its text says."""
    parts = []
    for name in FACADE:
        thing = getattr(torchenv_magic, name)
        directive = "py:function"
        if isinstance(thing, type):
            directive = "py:exception" if issubclass(thing, Exception) else "py:class"
        parts.append(
            f"::::{{{directive}}} {name}{_signature(thing)}\n"
            f":module: torchenv_magic\n\n{_docstring(thing)}\n::::"
        )
        if dataclasses.is_dataclass(thing):
            parts.append(f"Its fields: [`{name}`](#record-{name.lower()}).")
    return "\n\n".join(parts)


def _signature(thing: Any) -> str:  # noqa: ANN401  (a class or a function)
    """Return the parameters without their types, which the text below tells where they matter."""
    signature = inspect.signature(thing)
    plain = [
        parameter.replace(
            annotation=parameter.empty,
            # A machine's own path is no default that anybody types.
            default="/" if isinstance(parameter.default, Path) else parameter.default,
        )
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))


def _docstring(thing: object) -> str:
    """Return a docstring as Markdown: its sections become lists."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    found: list[str] = []
    sectioned = False
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if following and set(following) == {"-"} and len(following) == len(line):
            sectioned = True
            found += [f"**{line}**", ""]
        elif set(line) == {"-"} and line:
            continue
        elif sectioned and line and not line.startswith(" "):
            names = ", ".join(f"`{name}`" for name in line.split(", "))
            found.append(f"- {names}{':' if following.startswith(' ') else ''}")
        elif sectioned and line:
            found.append(f"  {line.strip()}")
        else:
            found.append(line)
    return "\n".join(found)


def _errors(_argument: str, _page: str) -> str:
    """Return the tree of errors, and what a program sees of each."""
    tree = (inspect.getdoc(errors) or "").partition("```\n")[2].partition("\n```")[0]
    rows = ["| Error | `code` | Exit status |", "|---|---|---|"]
    for name in errors.__all__:
        kind = getattr(errors, name)
        rows.append(f"| `{name}` | `{kind.code}` | {kind.exit_status} |")
    table = "\n".join(rows)
    return f"```text\n{tree}\n```\n\n{table}"


# ------------------------------------------------------------------------------------- the records


def _record_named(module: str, name: str) -> type:
    return typing.cast(type, getattr(importlib.import_module(module), name))


def documented_keys(word: str) -> set[str]:
    """Return the fields of the record that a word prints."""
    return {field.name for field in dataclasses.fields(_record_named(*DOCUMENTS[word]))}


def _documents(_argument: str, _page: str) -> str:
    rows = ["| Word | Record |", "|---|---|"]
    for word, (_, name) in DOCUMENTS.items():
        if word != "events":
            rows.append(f"| `{word}` | [`{name}`](#record-{name.lower()}) |")
    return "\n".join(rows)


def _records(_argument: str, _page: str) -> str:
    """Return each record that a document holds, at any depth, with what its fields mean."""
    roots = [_record_named(*place) for place in DOCUMENTS.values()]
    roots += [
        thing
        for thing in (getattr(torchenv_magic, name) for name in FACADE)
        if dataclasses.is_dataclass(thing) and isinstance(thing, type)
    ]
    found: dict[str, type] = {}
    for root in roots:
        _reach(root, found)
    return "\n\n".join(_record(found[name]) for name in sorted(found))


def _reach(kind: type, found: dict[str, type]) -> None:
    if found.get(kind.__name__, kind) is not kind:
        message = f"two records are called {kind.__name__}, and a page has one anchor for both"
        raise ValueError(message)
    if kind.__name__ in found:
        return
    found[kind.__name__] = kind
    for hint in _hints(kind).values():
        for part in _parts(hint):
            if _is_record(part):
                _reach(part, found)


def _hints(kind: type) -> dict[str, Any]:
    """Return the types of the fields, those too that the module imports for its checker alone."""
    return get_type_hints(kind, localns=_for_the_checker(kind.__module__))


@cache
def _for_the_checker(module: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    source = inspect.getsource(importlib.import_module(module))
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    home = importlib.import_module(line.module)
                    names |= {each.name: getattr(home, each.name) for each in line.names}
    return names


def _parts(hint: Any) -> Iterator[Any]:  # noqa: ANN401  (a type as Python has it)
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _is_record(kind: object) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind) and not hasattr(kind, "parse")


def _record(kind: type) -> str:
    name = kind.__name__
    meanings = _meanings(kind)
    hints = _hints(kind)
    rows = ["| Field | Value | Meaning |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        value = _value(hints[field.name]).replace("|", "\\|")
        meaning = meanings.get(field.name, "").replace("|", "\\|")
        rows.append(f"| `{field.name}` | {value} | {meaning} |")
    table = "\n".join(rows)
    text = inspect.getdoc(kind) or ""
    # Python gives a dataclass that has no text of its own its signature for one.
    told = "" if text.startswith(f"{name}(") else f"{text}\n\n"
    return f"(record-{name.lower()})=\n\n### {name}\n\n{told}{table}"


def _meanings(kind: type) -> dict[str, str]:
    """Return the text below each field; Python itself keeps none of them."""
    tree = ast.parse(inspect.getsource(kind))
    lines = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    found: dict[str, str] = {}
    for before, after in pairwise(lines):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[before.target.id] = " ".join(after.value.value.split())
    return found


_PLAIN: dict[object, str] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Path: "string",
    Version: "string",
}


def _value(hint: Any) -> str:  # noqa: ANN401  (a type as Python has it)
    """Return what stands in the JSON for a field of this type."""
    origin = get_origin(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_value(part) for part in get_args(hint))
    if origin is tuple:
        parts = get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return f"list of {_value(parts[0])}"
        return f"list of {len(parts)}: {', '.join(_value(part) for part in parts)}"
    if origin in (dict, typing.Mapping):
        return "object"
    if _is_record(hint):
        return f"[`{hint.__name__}`](#record-{hint.__name__.lower()})"
    # A type that has a text of its own, as a backend does.
    return "string"


KINDS: dict[str, Callable[[str, str], str]] = {
    "documents": _documents,
    "errors": _errors,
    "facade": _facade,
    "file": _file,
    "notebook": _notebook,
    "overview": _overview,
    "records": _records,
    "section": _section,
    "words": _words,
}
