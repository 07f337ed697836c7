"""Write a configuration into somebody's TOML, and leave the rest of it as it is.

The text of a `pyproject.toml` or of a script's metadata comes in and goes out; nothing is read or
written here. What stands there already and says the same stays as it is written; what says the
contrary and is not what an export writes is refused.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from packaging.utils import canonicalize_name

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.index import INDEX_ADDRESS
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import FAMILY_MEMBERS
from torchenv_magic.errors import ExportError, RequestError
from torchenv_magic.project.export import (
    TRITON_NAMES,
    Configuration,
    Source,
    index_name,
    index_url,
)

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from tomlkit import TOMLDocument

__all__ = ["admitted_python", "edited_project", "edited_script", "new_project", "with_line_ends_of"]

_OTHER_TOOL = "write the project as `[project]` in `pyproject.toml`, or export into another file"


def new_project(name: str, python: str, configuration: Configuration) -> str:
    """Return a `pyproject.toml` that has the configuration, and what uv asks for beside it."""
    project = canonicalize_name("".join(sign if sign.isalnum() else "-" for sign in name)).strip(
        "-"
    )
    asked = {_parsed(text, "").name for text in configuration.dependencies}
    if not project.isascii() or not project or project in {*asked, *FAMILY_MEMBERS}:
        # uv refuses a project that depends on itself.
        project = "notebooks"
    text = f'[project]\nname = "{project}"\nversion = "0.1.0"\nrequires-python = ">={python}"\n'
    return edited_project(text, configuration, file="pyproject.toml")


def edited_project(text: str, configuration: Configuration, *, file: str) -> str:
    """Return the text of a `pyproject.toml` with the configuration in it.

    Parameters
    ----------
    file
        What it is called in a message.

    Raises
    ------
    ExportError
        It can't be read as TOML, says where its dependencies are in another way, or contradicts.
    """
    return _edited(text, configuration, file=file, in_project=True)


def admitted_python(text: str, oldest: int) -> str | None:
    """Return the oldest Python that a project admits, if it is older than `3.oldest`."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    project = _read(text, "pyproject.toml").get("project", {})
    try:
        admitted = SpecifierSet(str(project.get("requires-python", f">=3.{oldest}")))
    except InvalidSpecifier:
        return None
    versions = (f"3.{minor}" for minor in range(6, oldest))
    # Of a line of releases the last one is in, where any is.
    return next((each for each in versions if admitted.contains(f"{each}.99")), None)


def edited_script(text: str, configuration: Configuration, *, file: str) -> str:
    """Return the metadata of a script (PEP 723), its `#` left out, with the configuration in it.

    Raises
    ------
    ExportError
    """
    return _edited(text, configuration, file=file, in_project=False)


def with_line_ends_of(original: str, edited: str) -> str:
    """Return the edited text, whose line ends are Unix's, with those of the original's lines.

    A new line ends as most lines of the original do.
    """
    if "\r\n" not in original:
        return edited
    if original.count("\r\n") == original.count("\n"):
        return edited.replace("\n", "\r\n")
    before = original.splitlines(keepends=True)
    after = edited.splitlines(keepends=True)
    usual = "\r\n" if 2 * original.count("\r\n") >= original.count("\n") else "\n"
    plain = [line.replace("\r\n", "\n") for line in before]
    matcher = difflib.SequenceMatcher(None, plain, after)
    lines = [line.removesuffix("\n") + usual if line.endswith("\n") else line for line in after]
    for block in matcher.get_matching_blocks():
        lines[block.b : block.b + block.size] = before[block.a : block.a + block.size]
    return "".join(lines)


def _edited(text: str, configuration: Configuration, *, file: str, in_project: bool) -> str:
    import tomlkit

    plain = text.replace("\r\n", "\n")
    before = _read(plain, file)
    try:
        document = tomlkit.parse(plain)
        same = tomlkit.dumps(document) == plain
        if same:
            _Editor(document, configuration, file, in_project=in_project).edit()
            written = _parted(_with_comments(tomlkit.dumps(document), plain), plain)
            # The library has met few files that it can't edit; a broken one is never written.
            after = _read(written, file)
            same = after == document.unwrap()
            same = same and _rest(after, configuration) == _rest(before, configuration)
    except _ODD:
        # TOML that is valid and that the library does not edit, or a value of another kind.
        same = False
    if not same:
        _refuse(file, "is written in a way that can't be edited safely", _BY_HAND)
    return with_line_ends_of(text, written)


_BY_HAND = "export into a new file with `--output`, and copy what belongs into this one"
_ODD = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
_HEADER = re.compile(r"\[{1,2}[\w\"']")


def _parted(edited: str, original: str) -> str:
    """Return the edited text with an empty line above each header that has come to follow text."""
    lines = original.splitlines()
    adjacent = set(itertools.pairwise(lines))
    parted: list[str] = []
    for line in edited.splitlines(keepends=True):
        above = parted[-1].rstrip("\n") if parted else ""
        together = not above.strip() or above.startswith("#") or _HEADER.match(line) is None
        if not together and (above, line.rstrip("\n")) not in adjacent:
            parted.append("\n")
        parted.append(line)
    return "".join(parted)


def _with_comments(edited: str, original: str) -> str:
    """Return the edited text with the comments above each header where they were.

    For the library they are the end of the table before, which new entries come behind and which
    goes with its table.
    """
    before, lines = original.split("\n"), edited.split("\n")
    for place, header in enumerate(before):
        start = place
        while start and before[start - 1].startswith("#"):
            start -= 1
        comments = before[start:place]
        once = before.count(header) == lines.count(header) == 1
        if not comments or not once or _HEADER.match(header) is None:
            continue
        at = lines.index(header)
        if lines[max(0, at - len(comments)) : at] == comments:
            continue
        for index in range(len(lines) - len(comments) + 1):
            if lines[index : index + len(comments)] == comments:
                del lines[index : index + len(comments)]
                break
        at = lines.index(header)
        gap = [""] if at and lines[at - 1].strip() else []
        lines[at:at] = [*gap, *comments]
    return "\n".join(lines)


def _refuse(file: str, problem: str, hint: str) -> NoReturn:
    raise ExportError(f"`{file}` {problem}, so nothing was written", hint=hint)


def _read(text: str, file: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ExportError(
            f"`{file}` is not TOML that can be read, so nothing was written: {error}",
            hint="correct that line first",
        ) from None
    return data


def _rest(data: dict[str, Any], configuration: Configuration) -> dict[str, Any]:
    """Return what no export changes."""
    rest = dict(data)
    rest["tool"] = dict(rest.get("tool", {}))
    uv = rest["tool"].pop("uv", {})
    rest["uv"] = {
        key: value for key, value in uv.items() if key not in ("sources", "index", "conflicts")
    }
    project = dict(rest.pop("project", {}))
    rest["extras"] = {
        name: value
        for name, value in project.pop("optional-dependencies", {}).items()
        if not (configuration.extras and _is_backend(name))
    }
    for table in (rest, project):
        table.pop("dependencies", None)
    return {**rest, "project": project}


def _parsed(text: str, file: str) -> Requirement:
    try:
        return parse_requirement(text)
    except RequestError as error:
        raise ExportError(
            f"`{file}` asks for what is no requirement, so nothing was written: {error.message}",
            hint="correct that line first",
        ) from None


class _Editor:
    """Edits one document in place; raises before it has changed what would contradict."""

    def __init__(
        self, document: TOMLDocument, configuration: Configuration, file: str, *, in_project: bool
    ) -> None:
        self.document: MutableMapping[str, Any] = document
        self.wanted = configuration
        self.file = file
        self.in_project = in_project

    def edit(self) -> None:
        project = self._project() if self.in_project else self.document
        uv = self._table(self._table(self.document, "tool"), "uv")
        names = self._index_names(uv)
        sources = self._table(uv, "sources")
        self._check_sources(sources, names)
        referred = _referred(sources)
        asked = self._write_dependencies(project, uv, sources)
        self._write_conflicts(uv)
        wanted = {
            name: found
            for name in (*FAMILY_MEMBERS, *TRITON_NAMES)
            if name in asked and (found := self._sources_of(name, project))
        }
        ours = [name for name in (*FAMILY_MEMBERS, *TRITON_NAMES) if name in sources]
        for name in ours:
            if name not in wanted:
                del sources[name]
        for name, found in wanted.items():
            self._write_source(sources, name, found, names)
        needed = dict.fromkeys(source.backend for found in wanted.values() for source in found)
        missing = [backend for backend in needed if backend not in names]
        self._write_indexes(uv, missing, referred - _referred(sources))

    # What is there

    def _project(self) -> MutableMapping[str, Any]:
        tool = self.document.get("tool", {})
        if "project" not in self.document:
            for key, what in (("poetry", "Poetry's"), ("pdm", "PDM's"), ("flit", "Flit's")):
                if key in tool:
                    _refuse(self.file, f"has {what} own table and no `[project]`", _OTHER_TOOL)
            _refuse(
                self.file,
                "has no `[project]`, whose dependencies these would be",
                "give it one with `name`, `version` and `requires-python` first",
            )
        project = self._table(self.document, "project")
        dynamic = project.get("dynamic", [])
        fields = ["dependencies"]
        if self.wanted.extras:
            fields.append("optional-dependencies")
        for field in fields:
            if field in dynamic:
                _refuse(
                    self.file,
                    f"says that its `{field}` are dynamic: another tool makes them",
                    _OTHER_TOOL,
                )
        return project

    def _table(self, parent: MutableMapping[str, Any], key: str) -> MutableMapping[str, Any]:
        """Return a table of the document; a new one that is not part of it yet where none is."""
        import tomlkit

        if key not in parent:
            # In no text as long as nothing is in it; `[tool]` and `[tool.uv]` hold tables alone.
            return _Pending(parent, key, tomlkit.table(is_super_table=key in ("tool", "uv")))
        found = parent[key]
        if not isinstance(found, MutableMapping):
            _refuse(self.file, f"has a `{key}` that is no table", "correct that line first")
        return found

    def _entries(self, uv: MutableMapping[str, Any]) -> list[MutableMapping[str, Any]]:
        found = uv.get("index", [])
        if not isinstance(found, list) or not all(
            isinstance(entry, MutableMapping) for entry in found
        ):
            _refuse(
                self.file,
                "has a `tool.uv.index` that is no list of tables",
                "write it as `[[tool.uv.index]]`",
            )
        return list(found)

    def _index_names(self, uv: MutableMapping[str, Any]) -> dict[Backend, str]:
        """Return what the index of each backend is called here.

        Raises
        ------
        ExportError
            One of the names that an export would take is another index here.
        """
        names: dict[Backend, str] = {}
        for entry in self._entries(uv):
            name, backend = str(entry.get("name", "")), _backend_of(entry.get("url"))
            if name and backend is not None:
                names.setdefault(backend, name)
        used = {source.backend for found in self.wanted.sources.values() for source in found}
        for entry in self._entries(uv):
            if _backend_of(entry.get("url")) in used and entry.get("explicit") is not True:
                _refuse(
                    self.file,
                    "takes every package from an index of PyTorch's first, old copies too",
                    "add `explicit = true` to that index",
                )
            for backend in used:
                other = _backend_of(entry.get("url")) != backend
                if str(entry.get("name", "")) == index_name(backend) and other:
                    _refuse(
                        self.file,
                        f"calls another index `{index_name(backend)}` than PyTorch's",
                        f"give that index another name, or the address `{index_url(backend)}`",
                    )
        return names

    def _check_sources(
        self, sources: MutableMapping[str, Any], names: Mapping[Backend, str]
    ) -> None:
        """Refuse a source of the family that no export has written."""
        known = set(names.values())
        for name in sources:
            if canonicalize_name(name) not in (*FAMILY_MEMBERS, *TRITON_NAMES):
                continue
            for entry in _as_list(sources[name]):
                ours = (
                    isinstance(entry, Mapping)
                    and set(entry) <= {"index", "marker", "extra"}
                    and entry.get("index") in known
                )
                if not ours or canonicalize_name(name) != name:
                    _refuse(
                        self.file,
                        f"says in `tool.uv.sources` that {name} comes from elsewhere",
                        f"take `{name}` out of `tool.uv.sources` first",
                    )
                if "extra" in entry and not self.wanted.extras:
                    _refuse(
                        self.file,
                        "chooses PyTorch's build by an extra, which another form contradicts",
                        "run `%torchenv export extras`, or take these extras out first",
                    )

    # Dependencies

    def _write_dependencies(
        self,
        project: MutableMapping[str, Any],
        uv: Mapping[str, Any],
        sources: MutableMapping[str, Any],
    ) -> set[str]:
        """Write what is asked for; return the names of all that the document asks for then."""
        stale = {
            name for name in TRITON_NAMES if name in sources and name not in self.wanted.sources
        }
        moved: dict[str, str] = {}
        dependencies = self._array(project, "dependencies")
        if self.wanted.extras:
            for text in list(dependencies):
                name = self._name(text)
                if name in moved:
                    self._refuse_twins(name, 2)
                if name in FAMILY_MEMBERS:
                    moved[name] = str(text)
            stale |= moved.keys() | {
                name for name in TRITON_NAMES if name in sources or name in self.wanted.sources
            }
        self._drop(dependencies, stale)
        self._merge(dependencies, self.wanted.dependencies)
        _put_texts(project, "dependencies", dependencies)
        asked = {self._name(text) for text in dependencies}
        if self.wanted.extras:
            extras = self._table(project, "optional-dependencies")
            self._drop_extras(extras, uv)
            for extra, texts in self.wanted.extras.items():
                array = self._array(extras, extra)
                self._drop(array, stale - moved.keys())
                named = {self._name(text) for text in array}
                for name, text in moved.items():
                    if name not in named:
                        array.append(text)
                self._merge(array, texts)
                _put_texts(extras, extra, array)
                asked |= {self._name(text) for text in array}
        return asked | self._asked_elsewhere(project, uv)

    def _asked_elsewhere(self, project: Mapping[str, Any], uv: Mapping[str, Any]) -> set[str]:
        """Return the names in extras and groups, whose sources are the same table's."""
        groups = [
            *dict(project.get("optional-dependencies", {})).values(),
            *dict(self.document.get("dependency-groups", {})).values(),
            uv.get("dev-dependencies", []),
        ]
        found = set()
        for group in groups:
            for text in group:
                # A group may include another one, by a table.
                if isinstance(text, str):
                    with contextlib.suppress(RequestError):
                        found.add(canonicalize_name(parse_requirement(text).name))
        return {str(name) for name in found}

    def _sources_of(self, name: str, project: Mapping[str, Any]) -> Sequence[Source]:
        """Return where it comes from; uv takes a source for an extra only where that asks for it.

        Raises
        ------
        ExportError
            It is asked for, and in none of the extras that would choose its build.
        """
        wanted = self.wanted.sources.get(name, ())
        if not wanted or not self.wanted.extras:
            return wanted
        extras = project["optional-dependencies"]
        asking = {
            extra
            for extra in self.wanted.extras
            if name in {self._name(text) for text in self._array(extras, extra)}
        }
        if not asking and name in FAMILY_MEMBERS:
            _refuse(
                self.file,
                f"asks for {name} outside the extras, so that none of them chooses its build",
                f"name {name} in the line too, or run `%torchenv export markers`",
            )
        return [source for source in wanted if source.extra in asking]

    def _drop_extras(self, extras: MutableMapping[str, Any], uv: Mapping[str, Any]) -> None:
        """Take out those that an export wrote for backends that are not named any more."""
        sets = [_plain(entry) for entry in uv.get("conflicts", [])]
        written = {str(each["extra"]) for entry in sets if _is_of_backends(entry) for each in entry}
        for extra in list(extras):
            if extra in self.wanted.extras or extra not in written:
                continue
            names = {self._name(text) for text in self._array(extras, extra)}
            if names <= {*FAMILY_MEMBERS, *TRITON_NAMES}:
                del extras[extra]

    def _name(self, text: object) -> str:
        return canonicalize_name(_parsed(str(text), self.file).name)

    def _array(self, table: MutableMapping[str, Any], key: str) -> Any:  # noqa: ANN401
        found = table.get(key)
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            _refuse(self.file, f"has `{key}` that are no list of texts", "correct that line first")
        return found

    def _drop(self, array: Any, names: set[str]) -> None:  # noqa: ANN401
        for index in reversed(range(len(array))):
            if self._name(array[index]) in names:
                del array[index]

    def _refuse_twins(self, name: str, count: int) -> NoReturn:
        _refuse(
            self.file,
            f"asks for {name} in {count} entries, of which one can't be chosen",
            f"leave one entry for {name}",
        )

    def _merge(self, array: Any, texts: Iterable[str]) -> None:  # noqa: ANN401
        for text in texts:
            wanted = _parsed(text, self.file)
            name = canonicalize_name(wanted.name)
            places = [index for index, each in enumerate(array) if self._name(each) == name]
            if len(places) > 1:
                self._refuse_twins(name, len(places))
            if not places:
                array.append(text)
                continue
            there = _parsed(str(array[places[0]]), self.file)
            if there.url is not None and name in FAMILY_MEMBERS:
                _refuse(
                    self.file,
                    f"asks for {name} from an address",
                    f"take that entry for {name} out first",
                )
            if there.url is not None or not (wanted.specifier or wanted.marker):
                continue
            merged = _parsed(text, self.file)
            merged.extras |= there.extras
            merged.marker = wanted.marker or there.marker
            if merged != there:
                array[places[0]] = str(merged)

    # What uv reads

    def _write_conflicts(self, uv: MutableMapping[str, Any]) -> None:
        if not self.wanted.extras:
            return
        wanted = [{"extra": extra} for extra in self.wanted.extras]
        found = uv.get("conflicts", [])
        if not isinstance(found, list):
            _refuse(
                self.file, "has `tool.uv.conflicts` that are no list", "correct that line first"
            )
        sets = [_plain(entry) for entry in found]
        if wanted in sets:
            return
        text = "".join(f"    {{ extra = {_quoted(extra)} }},\n" for extra in self.wanted.extras)
        entry = _parse_value(f"[\n{text}  ]")
        if not sets:
            _put(uv, "conflicts", _parse_value(f"[\n  [\n{text}  ],\n]"))
            return
        for index, each in enumerate(sets):
            if _is_of_backends(each):
                found[index] = entry
                return
        found.append(entry)

    def _write_source(
        self,
        sources: MutableMapping[str, Any],
        name: str,
        wanted: Sequence[Source],
        names: Mapping[Backend, str],
    ) -> None:
        entries = []
        for source in wanted:
            entry = {"index": names.get(source.backend) or index_name(source.backend)}
            if source.extra is not None:
                entry["extra"] = source.extra
            if source.marker is not None:
                entry["marker"] = source.marker
            entries.append(entry)
        if name in sources and [_plain(each) for each in _as_list(sources[name])] == entries:
            return
        lines = "".join(
            f"  {{ {', '.join(f'{key} = {_quoted(value)}' for key, value in entry.items())} }},\n"
            for entry in entries
        )
        _put(sources, name, _parse_value(f"[\n{lines}]"))

    def _write_indexes(
        self, uv: MutableMapping[str, Any], missing: Sequence[Backend], forsaken: set[str]
    ) -> None:
        """Name the indexes that are missing, in the place of those that this export forsakes.

        A surplus one goes only where nobody has written anything to it.
        """
        import tomlkit

        indexes: Any = uv.get("index")
        places = [
            place
            for place, entry in enumerate(indexes or ())
            if str(entry.get("name")) in forsaken and _is_as_written(_plain(entry))
        ]
        rest = list(missing)
        for place in places[: len(missing)]:
            backend = rest.pop(0)
            indexes[place]["name"] = index_name(backend)
            indexes[place]["url"] = index_url(backend)
        for place in reversed(places[len(missing) :]):
            if "#" not in indexes[place].as_string():
                del indexes[place]
        if not rest:
            return
        if indexes is None or not len(indexes):
            indexes = tomlkit.aot()
        inline = not isinstance(indexes, tomlkit.items.AoT)
        for backend in rest:
            values = {"name": index_name(backend), "url": index_url(backend), "explicit": True}
            entry = tomlkit.inline_table() if inline else tomlkit.table()
            entry.update(values)
            indexes.append(entry)
        _put(uv, "index", indexes)


class _Pending(dict[str, Any]):
    """A table that becomes part of the document with its first entry."""

    def __init__(self, parent: MutableMapping[str, Any], key: str, table: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.parent, self.key, self.table = parent, key, table

    def put(self, key: str, value: object) -> None:
        self[key] = value
        self.table[key] = value
        if self.key not in self.parent:
            _put(self.parent, self.key, self.table)


def _put(table: MutableMapping[str, Any], key: str, value: object) -> None:
    if isinstance(table, _Pending):
        table.put(key, value)
    elif table.get(key) is not value:
        table[key] = value


def _put_texts(table: MutableMapping[str, Any], key: str, texts: Any) -> None:  # noqa: ANN401
    """Put a list of texts in its place, one a line where it is new."""
    if type(texts) is list:
        lines = "".join(f"  {_quoted(text)},\n" for text in texts)
        texts = _parse_value(f"[\n{lines}]" if texts else "[]")
    _put(table, key, texts)


def _parse_value(text: str) -> Any:  # noqa: ANN401
    """Return a value written as this text, so that its line breaks and spaces are these."""
    import tomlkit

    return tomlkit.parse(f"value = {text}\n")["value"]


def _quoted(text: str) -> str:
    import tomlkit

    return tomlkit.string(text).as_string()


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.unwrap() if hasattr(value, "unwrap") else value


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401
    return list(value) if isinstance(value, list) else [value]


def _backend_of(url: object) -> Backend | None:
    """Return whose index it is, None where it is not one of PyTorch's."""
    address, _, word = str(url).rstrip("/").rpartition("/")
    if address != INDEX_ADDRESS:
        return None
    try:
        return Backend.parse(word)
    except ValueError:
        return None


def _is_of_backends(entry: object) -> bool:
    """Whether a set of conflicts is one that an export writes: extras named after backends."""
    return isinstance(entry, list) and all(
        isinstance(each, dict) and set(each) == {"extra"} and _is_backend(str(each["extra"]))
        for each in entry
    )


def _is_backend(extra: str) -> bool:
    try:
        Backend.parse(extra.replace("-", "."))
    except ValueError:
        return False
    return True


def _referred(sources: Mapping[str, Any]) -> set[str]:
    """Return the names of the indexes that something is taken from."""
    return {
        str(entry.get("index"))
        for name in sources
        for entry in _as_list(sources[name])
        if isinstance(entry, Mapping)
    }


def _is_as_written(entry: Mapping[str, Any]) -> bool:
    """Whether it is an index as an export writes it."""
    backend = _backend_of(entry.get("url"))
    return backend is not None and dict(entry) == {
        "name": index_name(backend),
        "url": index_url(backend),
        "explicit": True,
    }
