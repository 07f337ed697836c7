"""Every text that tells a person of a failure, read from the code and written as one page.

```
python -m tests.message_collection            # print the page
python -m tests.message_collection --write    # write it to tests/messages.txt
```

Nothing is run: what reaches an error, a finding, a check or a problem is followed through
variables, branches, tables and functions. A text that is put together shows its parts in braces,
and below it what they can be.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

__all__ = ["PAGE", "Collection", "Entry", "collect"]

PACKAGE = Path(__file__).resolve().parent.parent / "torchenv_magic"
PAGE = Path(__file__).with_name("messages.txt")

# What a record is made with, and which of its fields a person reads.
RECORDS = {
    "Finding": ("message", "hint"),
    "Check": ("message", "hint"),
    "Problem": ("found", "meaning", "cure"),
    "Rung": ("reason",),
    "RestartFacts": ("plugin_obstacle", "server_reason", "re_exec_obstacle"),
    "_Verdict": ("reason",),
}
# Lists of sentences, by the name of the variable, attribute or argument.
LISTS = frozenset({"warnings", "notes", "unchecked"})
# Tables that are read by their keys, one sentence each.
TABLES = {"notebook.restart": ("_PRESS", "_NEVER_RESTARTED")}
# Exceptions whose text becomes a part of an error's.
REASONS = frozenset({"AnswerError", "PageError", "ServerRefusedError", "_UnfitError"})
# Functions that are told why a rung failed.
REPORTS = frozenset({"_decide", "_fail", "_next", "_report"})
# Functions whose answer becomes a part of an error's text.
ANSWERS = {
    "installation.kept": ("room_problem",),
    "installation.undo": ("_difference", "_loss", "_other_way"),
    "notebook.front_end": ("_kind",),
    "notebook.own_server": ("find_owner",),
    "notebook.re_exec": ("re_exec_obstacle",),
}
# The same, where the answer is a sentence of its own.
SENTENCES = {"notebook.session": ("loaded_words", "lost_by")}
# What the plugin says is written once more in its own language.
_TRANSLATED = re.compile(r"""\.__\(\s*((?:(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")[\s+]*)+)""")

# Functions that write what they are given in another form, and add no words of their own.
_FORMATTERS = frozenset(
    {"duration", "format_bytes", "joined", "listed", "_list", "quoted", "shown_path"}
)

_MOST_VARIANTS = 24
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


# --- what is collected ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way that a text can come out."""

    text: str
    branch: tuple[int, ...] = ()
    """The blocks that it was assigned in: a message and a hint of one branch belong together."""
    parts: tuple[tuple[str, ast.expr], ...] = ()
    """What the braces hold."""

    @property
    def words(self) -> str:
        """What of the text is written, and not filled in."""
        return re.sub(r"[(|)]", "", _PLACEHOLDER.sub("", self.text))

    @property
    def says_something(self) -> bool:
        return re.search(r"[A-Za-z]{2}", self.words) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One place in the code where a text for a person is made."""

    module: str
    line: int
    place: str
    """The function."""
    kind: str
    """The error's class, the record's name, or `warning`."""
    texts: tuple[tuple[str, ...], ...]
    """For each variant its texts, in the order of `labels`."""
    labels: tuple[str, ...] = ("message", "hint")
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What the braces can hold, where that is prose as well."""

    def values(self, label: str) -> tuple[str, ...]:
        """Return every text of that field."""
        if label not in self.labels:
            return ()
        index = self.labels.index(label)
        return tuple(dict.fromkeys(text[index] for text in self.texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    entries: tuple[Entry, ...]
    error_classes: frozenset[str]
    unknown: tuple[str, ...]
    """Calls that take a hint and belong to nothing that is collected: `module: source`."""

    def page(self) -> str:
        """Return all of it as text that is read from top to bottom."""
        lines = [_HEAD]
        for module, entries in itertools.groupby(self.entries, key=lambda entry: entry.module):
            lines += ["", "", module, "=" * len(module)]
            seen = set()
            for entry in entries:
                if (entry.kind, entry.texts) not in seen:
                    seen.add((entry.kind, entry.texts))
                    lines += ["", f"[{entry.kind}] {entry.place}", *_shown(entry)]
        return "\n".join(lines) + "\n"


_HEAD = """\
Every text that tells a person of a failure, in the order of the code.

`python -m tests.message_collection --write` writes this page. Read it where it changes: a message
says what happened and what that means, its hint names one action. {braces} are filled in as the
program runs; where that is prose as well, it stands below. (a | b) is one of the two, and (a |) is
a or nothing."""


def _shown(entry: Entry) -> Iterator[str]:
    together: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for first, rest in itertools.groupby(entry.texts, key=lambda texts: texts[0]):
        together.setdefault(tuple(texts[1:] for texts in rest), []).append(first)
    for index, (rests, firsts) in enumerate(together.items()):
        if index:
            yield "  or"
        yield from _either("", firsts)
        columns = [list(dict.fromkeys(column)) for column in zip(*rests, strict=True)]
        if set(itertools.product(*columns)) == set(rests):  # each with each
            for label, column in zip(entry.labels[1:], columns, strict=True):
                yield from _either(f"{label}: ", column)
            continue
        for position, row in enumerate(rests):
            for label, text in zip(entry.labels[1:], row, strict=True):
                if text:
                    lead = f"{'or ' if position else ''}{label}: "
                    yield from _wrapped(f"{lead}{text}", indent=4)
    for name, variants in entry.parts:
        start, *more = (text or "(nothing)" for text in variants)
        yield from _wrapped(f"{{{name}}}: {start}", indent=8)
        for text in more:
            yield from _wrapped(f"or: {text}", indent=8 + len(name) - 1)


def _either(lead: str, texts: list[str]) -> Iterator[str]:
    for position, text in enumerate(text for text in texts if text):
        yield from _wrapped(f"{'or: ' if position else lead}{text}", indent=4)


def _wrapped(text: str, *, indent: int) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(
            line,
            width=100,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )


def collect(package: Path = PACKAGE) -> Collection:
    """Read the package's code."""
    return _Package(package).collection()


# --- how the code is read -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Definition:
    """What a name was given last, on one way to where it is used."""

    value: ast.expr | ast.AugAssign
    statement: ast.AST
    index: int | None = None
    """Which element of the value, where a tuple was unpacked."""


@dataclass(eq=False)
class _Module:
    name: str
    tree: ast.Module
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    functions: dict[str, _Function] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    self.imports[name.asname or name.name] = (node.module, name.name)
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.constants[statement.targets[0].id] = statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                self.constants[_name(statement.target)] = statement.value

    def function_of(self, node: ast.AST) -> _Function | None:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return node
        return None

    def place(self, node: ast.AST) -> str:
        names = []
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.append(node.name)
        return ".".join(reversed(names)) or "(module)"

    def branch(self, node: ast.AST) -> tuple[int, ...]:
        """Return the blocks that the node stands in, the outermost first."""
        path: list[int] = []
        while node in self.parents:
            parent = self.parents[node]
            path += [id(block[0]) for block in _blocks(parent) if node in block]
            if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef)):
                break
            node = parent
        return tuple(reversed(path))

    def definitions(self, name: str, use: ast.AST) -> list[_Definition]:
        """Return what `name` can be at `use`: walk back through the statements before it."""
        found: list[_Definition] = []
        node = use
        while node in self.parents:
            parent = self.parents[node]
            for block in _blocks(parent):
                if node in block:
                    before = block[: block.index(node)]
                    if _reaches(name, before, found):
                        return found
            if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return found
            if isinstance(parent, (ast.For, ast.If, ast.While, ast.IfExp)):
                _named_in_test(name, parent, found)
            node = parent
        return found


def _blocks(node: ast.AST) -> Iterator[list[ast.AST]]:
    for _, value in ast.iter_fields(node):
        if (
            isinstance(value, list)
            and value
            and isinstance(value[0], (ast.stmt, ast.excepthandler))
        ):
            yield value


def _named_in_test(name: str, node: ast.AST, found: list[_Definition]) -> None:
    test = getattr(node, "test", None)
    found += [
        _Definition(inner.value, node)
        for inner in (ast.walk(test) if test is not None else ())
        if isinstance(inner, ast.NamedExpr) and inner.target.id == name
    ]


def _reaches(name: str, statements: Sequence[ast.AST], found: list[_Definition]) -> bool:
    """Add what these statements give `name`; return whether they always give it something."""
    return any(_given(name, statement, found) for statement in reversed(statements))


def _given(name: str, statement: ast.AST, found: list[_Definition]) -> bool:
    match statement:
        case ast.AugAssign(target=ast.Name(id=target)) if target == name:
            found.append(_Definition(statement, statement))
            return True
        case ast.Assign(targets=targets, value=value):
            given = [_assigned(name, target, value, statement, found) for target in targets]
            return any(given)
        case ast.AnnAssign(target=single, value=ast.expr() as value):
            return _assigned(name, single, value, statement, found)
        case ast.If(body=body, orelse=orelse):
            _named_in_test(name, statement, found)
            return all([_branch(name, body, found), _branch(name, orelse, found)])
        case ast.Try(body=body, orelse=orelse, handlers=handlers):
            parts = [[*body, *orelse], *(handler.body for handler in handlers)]
            given = [_branch(name, part, found) for part in parts]
            return all(given)
        case ast.For(body=body) | ast.While(body=body):
            _branch(name, body, found)
            for block in (block for inner in ast.walk(statement) for block in _blocks(inner)):
                if isinstance(block[-1], (ast.Continue, ast.Break)):
                    _branch(name, block, found)
        case ast.With(body=body):
            return _branch(name, body, found)
    return False


def _assigned(
    name: str,
    target: ast.expr,
    value: ast.expr,
    statement: ast.AST,
    found: list[_Definition],
) -> bool:
    if isinstance(target, ast.Name) and target.id == name:
        found.append(_Definition(value, statement))
        return True
    if not isinstance(target, ast.Tuple) or name not in [_name(each) for each in target.elts]:
        return False
    index = [_name(each) for each in target.elts].index(name)
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        found.append(_Definition(value.elts[index], statement))
    else:
        found.append(_Definition(value, statement, index))
    return True


def _branch(name: str, block: Sequence[ast.AST], found: list[_Definition]) -> bool:
    # What a branch that leaves the function has assigned goes nowhere.
    if block and isinstance(block[-1], (ast.Return, ast.Raise)):
        return True
    return bool(block) and _reaches(name, block, found)


def _of_plugin(package: Path) -> Iterator[Entry]:
    path = package.parent / "labextension" / "static" / "plugin.js"
    code = path.read_text(encoding="utf-8") if path.exists() else ""
    for match in _TRANSLATED.finditer(code):
        # Its strings have no escapes that Python reads in another way.
        text = str(ast.literal_eval(f"({match[1].replace('+', ' ')})"))
        yield Entry(
            module="labextension",
            line=code.count("\n", 0, match.start()) + 1,
            place=path.name,
            kind="plugin",
            texts=((text,),),
            labels=("message",),
        )


class _Package:
    def __init__(self, folder: Path) -> None:
        self.modules: dict[str, _Module] = {}
        self._folder = folder
        for path in sorted(folder.rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.modules[name.removesuffix(".__init__")] = _Module(name=name, tree=tree)
        self._open: set[tuple[int, int]] = set()

    @cached_property
    def error_classes(self) -> frozenset[str]:
        known = {"TorchEnvError"}
        classes = [
            node
            for module in self.modules.values()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef)
        ]
        while (
            more := {node.name for node in classes if known & {_name(base) for base in node.bases}}
            - known
        ):
            known |= more
        return frozenset(known)

    @cached_property
    def _calls(self) -> dict[str, list[tuple[_Module, ast.Call]]]:
        calls: dict[str, list[tuple[_Module, ast.Call]]] = {}
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call):
                    calls.setdefault(_name(node.func), []).append((module, node))
        return calls

    def collection(self) -> Collection:
        entries: list[Entry] = []
        unknown: list[str] = []
        for module in self.modules.values():
            entries += sorted(self._entries(module, unknown), key=lambda entry: entry.line)
        return Collection(
            entries=(*entries, *_of_plugin(self._folder)),
            error_classes=self.error_classes,
            unknown=tuple(unknown),
        )

    # --- where texts are made ---------------------------------------------------------------------

    def _entries(self, module: _Module, unknown: list[str]) -> Iterator[Entry]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                yield from self._of_call(module, node, unknown)
            elif isinstance(node, ast.Tuple) and len(node.elts) == 3:
                # `return SourceError, message, hint`: what raises it comes later.
                if _name(node.elts[0]) in self.error_classes:
                    kind = _name(node.elts[0])
                    yield from self._entry(module, node, kind, ("message", "hint"), node.elts[1:])
            elif isinstance(node, (ast.Assign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if _name(targets[0]) in LISTS:
                    yield from self._sentences(module, node.value)
        for name in TABLES.get(module.name, ()):
            table = module.constants[name]
            assert isinstance(table, ast.Dict)
            variants = [each for value in table.values for each in self._variants(module, value)]
            yield self._made(module, table, name, ("reason",), [variants])
        for name in (*ANSWERS.get(module.name, ()), *SENTENCES.get(module.name, ())):
            function = module.functions[name]
            variants = [
                variant
                for index in (None, 1)
                for variant in self._returned(module, function, index)
                if variant.says_something
            ]
            kind = "reason" if name in ANSWERS.get(module.name, ()) else "sentence"
            yield self._made(module, function, kind, ("reason",), [variants])

    def _of_call(self, module: _Module, call: ast.Call, unknown: list[str]) -> Iterator[Entry]:
        name = _name(call.func)
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in self.error_classes:
            message = call.args[0] if call.args else given.get("message")
            yield from self._entry(
                module, call, name, ("message", "hint"), [message, given.get("hint")]
            )
        elif name in RECORDS:
            labels = RECORDS[name]
            yield from self._entry(module, call, name, labels, [given.get(key) for key in labels])
        elif name in REASONS:
            yield from self._entry(module, call, name, ("reason",), call.args[:1])
        elif name == "append" and isinstance(call.func, ast.Attribute):
            if _name(call.func.value) in LISTS:
                yield from self._entry(module, call, "warning", ("message",), call.args[:1])
        elif name in REPORTS:
            reason = given.get("reason", call.args[0] if name != "_report" else None)
            entries = self._entry(module, call, "reason", ("reason",), [reason])
            for entry in entries if reason is not None else ():
                if any(Variant(text=text).says_something for text in entry.values("reason")):
                    yield entry
        elif "hint" in given:
            unknown.append(f"{module.name}: {ast.unparse(call.func)}")
        if name not in RECORDS:
            for keyword in call.keywords:
                if keyword.arg in LISTS:
                    yield from self._sentences(module, keyword.value)

    def _sentences(self, module: _Module, expression: ast.expr) -> Iterator[Entry]:
        for element in _elements(expression):
            for entry in self._entry(module, element, "warning", ("message",), [element]):
                if any(
                    Variant(text=text).says_something for texts in entry.texts for text in texts
                ):
                    yield entry

    def _entry(
        self,
        module: _Module,
        node: ast.AST,
        kind: str,
        labels: tuple[str, ...],
        expressions: Iterable[ast.expr | None],
    ) -> Iterator[Entry]:
        columns = [
            [Variant(text="")] if expression is None else self._variants(module, expression)
            for expression in expressions
        ]
        yield self._made(module, node, kind, labels, columns)

    def _made(
        self,
        module: _Module,
        node: ast.AST,
        kind: str,
        labels: tuple[str, ...],
        columns: list[list[Variant]],
    ) -> Entry:
        rows = list(_paired(columns)) if columns else []
        rows = [row for row in rows if row[0].text] or rows
        parts: dict[str, tuple[str, ...]] = {}
        for row in rows:
            for variant in row:
                self._explain(module, variant, parts, depth=0)
        return Entry(
            module=module.name,
            line=getattr(node, "lineno", 0),
            place=module.place(node) if not isinstance(node, ast.FunctionDef) else node.name,
            kind=kind,
            texts=tuple(dict.fromkeys(tuple(variant.text for variant in row) for row in rows)),
            labels=labels,
            parts=tuple(parts.items()),
        )

    def _explain(
        self, module: _Module, variant: Variant, parts: dict[str, tuple[str, ...]], *, depth: int
    ) -> None:
        for name, expression in variant.parts:
            if name in parts or depth > 3:
                continue
            home = next(
                (each for each in self.modules.values() if expression in each.parents), module
            )
            variants = self._variants(home, expression)
            texts = tuple(dict.fromkeys(each.text for each in variants))
            if any(each.says_something for each in variants) and texts != (f"{{{name}}}",):
                parts[name] = texts
                for each in variants:
                    self._explain(home, each, parts, depth=depth + 1)

    # --- what an expression can be ----------------------------------------------------------------

    def _variants(
        self, module: _Module, expression: ast.expr, index: int | None = None
    ) -> list[Variant]:
        """Return each text that the expression can be, or its name in braces."""
        key = (id(expression), -1 if index is None else index)
        if key in self._open:  # it refers to itself
            return [self._unknown(expression)]
        self._open.add(key)
        try:
            variants = self._followed(module, expression, index)
        finally:
            self._open.discard(key)
        unique = {(variant.text, variant.branch): variant for variant in variants}
        if not 0 < len(unique) <= _MOST_VARIANTS:
            return [self._unknown(expression)]
        return list(unique.values())

    def _followed(self, module: _Module, expression: ast.expr, index: int | None) -> list[Variant]:
        match expression:
            case ast.Constant(value=str(text)) if index is None:
                return [Variant(text=text)]
            case ast.Constant(value=None):
                return [Variant(text="")]
            case ast.JoinedStr(values=values):
                return self._joined(module, values)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return _product(self._variants(module, left), self._variants(module, right))
            case ast.BinOp(op=ast.Mult(), left=left):
                return [*self._variants(module, left), Variant(text="")]
            case ast.IfExp(body=body, orelse=orelse):
                return [
                    *self._variants(module, body, index),
                    *self._variants(module, orelse, index),
                ]
            case ast.BoolOp(values=[*values, last]):
                return [
                    variant
                    for value in values
                    for variant in self._variants(module, value, index)
                    if variant.text
                ] + self._variants(module, last, index)
            case ast.Tuple(elts=elements) if index is not None and index < len(elements):
                return [
                    Variant(text=each.text, branch=(id(expression), *each.branch), parts=each.parts)
                    for each in self._variants(module, elements[index])
                ]
            case ast.NamedExpr(value=value):
                return self._variants(module, value, index)
        return self._looked_up(module, expression, index)

    def _looked_up(self, module: _Module, expression: ast.expr, index: int | None) -> list[Variant]:
        match expression:
            case ast.Name(id=name):
                return self._of_name(module, name, expression, index)
            case ast.Subscript(value=ast.Name(id=name)) if table := self._table(module, name):
                return [
                    variant
                    for value in table.values
                    for variant in self._variants(module, value, index)
                ]
            case ast.Call(func=ast.Attribute(attr="join"), args=[argument]):
                return self._of_list(module, argument)
            case ast.Call(func=ast.Attribute(value=value, attr="rstrip" | "strip")):
                return self._variants(module, value)
            case ast.Call(func=ast.Name(id=name), args=[argument, *_]) if name in _FORMATTERS:
                return self._of_list(module, argument)
            case ast.Call(func=function):
                found = self._function(module, function)
                if found is not None:
                    return self._returned(*found, index)
        return []

    def _of_list(self, module: _Module, expression: ast.expr) -> list[Variant]:
        if isinstance(expression, ast.Subscript):
            return self._of_list(module, expression.value)
        found = list(_elements(expression))
        if isinstance(expression, ast.Name) and (function := module.function_of(expression)):
            for each in module.definitions(expression.id, expression):
                value = each.value
                found += _elements(value.value if isinstance(value, ast.AugAssign) else value)
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and ast.unparse(node.func) == f"{expression.id}.append"
                ):
                    found += node.args
        return [variant for element in found for variant in self._variants(module, element)]

    def _of_name(
        self, module: _Module, name: str, use: ast.Name, index: int | None
    ) -> list[Variant]:
        found: list[Variant] = []
        for definition in module.definitions(name, use):
            if isinstance(definition.value, ast.AugAssign):
                augmented = definition.value
                left = self._of_name_before(module, name, augmented)
                variants = _product(left, self._variants(module, augmented.value))
            else:
                variants = self._variants(module, definition.value, definition.index)
            branch = module.branch(definition.statement)
            found += [
                Variant(text=each.text, branch=(*branch, *each.branch), parts=each.parts)
                for each in variants
            ]
        if found:
            return found
        function = module.function_of(use)
        if function is not None and name in _parameters(function):
            return self._passed(function, name)
        if name in module.constants:
            return self._variants(module, module.constants[name], index)
        if (home := self._imported(module, name)) is not None and home[1] in home[0].constants:
            return self._variants(home[0], home[0].constants[home[1]], index)
        return []

    def _of_name_before(
        self, module: _Module, name: str, statement: ast.AugAssign
    ) -> list[Variant]:
        return [
            variant
            for definition in module.definitions(name, statement)
            if isinstance(definition.value, ast.expr)
            for variant in self._variants(module, definition.value, definition.index)
        ]

    def _passed(self, function: _Function, name: str) -> list[Variant]:
        """Return what the callers give for a parameter."""
        found: list[Variant] = []
        position = [each.arg for each in function.args.args if each.arg != "self"]
        for home, call in self._calls.get(function.name, []):
            known = self._function(home, call.func)
            if known is None or known[1] is not function:
                continue
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            argument = given.get(name)
            if argument is None and name in position and position.index(name) < len(call.args):
                argument = call.args[position.index(name)]
            if argument is not None:
                found += self._variants(home, argument)
        return found

    def _returned(self, module: _Module, function: _Function, index: int | None) -> list[Variant]:
        return [
            variant
            for node in ast.walk(function)
            if isinstance(node, (ast.Return, ast.Yield)) and node.value is not None
            for variant in self._variants(module, node.value, index)
        ]

    def _joined(self, module: _Module, values: list[ast.expr]) -> list[Variant]:
        texts: list[str] = []
        parts: list[tuple[str, ast.expr]] = []
        for value in values:
            if isinstance(value, ast.FormattedValue):
                text, more = self._filled(module, value.value)
                if not texts or texts[-1] != text:  # a first letter, and the rest
                    texts.append(text)
                parts += more
            elif isinstance(value, ast.Constant):
                texts.append(str(value.value))
        return [Variant(text="".join(texts), parts=tuple(parts))]

    def _filled(self, module: _Module, value: ast.expr) -> tuple[str, list[tuple[str, ast.expr]]]:
        """Return how a part of an f-string is shown, and what it can be explained by."""
        if isinstance(value, (ast.IfExp, ast.BoolOp)):
            ways = (
                [value.body, value.orelse] if isinstance(value, ast.IfExp) else list(value.values)
            )
            texts: list[str] = []
            parts: list[tuple[str, ast.expr]] = []
            for way in ways:
                if isinstance(way, (ast.Constant, ast.JoinedStr)):
                    variant = self._variants(module, way)[0]
                    texts.append(variant.text)
                    parts += variant.parts
                else:
                    text, more = self._filled(module, way)
                    texts.append(text)
                    parts += more
            return f"({' | '.join(texts)})".replace("| )", "|)"), parts
        match value:
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(value=str(between)), attr="join"),
                args=[ast.List(elts=elements)],
            ):
                filled = [
                    self._filled(module, each.args[-1] if isinstance(each, ast.Call) else each)
                    for each in (
                        each.value if isinstance(each, ast.Starred) else each for each in elements
                    )
                ]
                inner = [part for _, more in filled for part in more]
                return between.join(text for text, _ in filled), inner
            case ast.Constant(value=written):
                return str(written), []
            case ast.Name(id=name) if isinstance(module.constants.get(name), ast.Constant):
                variants = self._variants(module, value)
                if len(variants) == 1 and variants[0].says_something:
                    return variants[0].text, []
        name = self._shown_name(module, value)
        return f"{{{name}}}", [(name, value)]

    def _unknown(self, expression: ast.expr) -> Variant:
        return Variant(text=f"{{{_short(expression)}}}")

    def _shown_name(self, module: _Module, value: ast.expr) -> str:
        if isinstance(value, ast.Call) and (found := self._function(module, value.func)):
            says = any(variant.says_something for variant in self._returned(*found, None))
            if says and found[1].name not in _FORMATTERS:
                return found[1].name.lstrip("_")
        return _short(value)

    # --- where a name comes from ------------------------------------------------------------------

    def _imported(self, module: _Module, name: str) -> tuple[_Module, str] | None:
        origin, original = module.imports.get(name, ("", ""))
        home = self.modules.get(origin.removeprefix("torchenv_magic").lstrip("."))
        return None if home is None or not origin.startswith("torchenv_magic") else (home, original)

    def _table(self, module: _Module, name: str) -> ast.Dict | None:
        value = module.constants.get(name)
        if value is None and (home := self._imported(module, name)) is not None:
            value = home[0].constants.get(home[1])
        return value if isinstance(value, ast.Dict) else None

    def _function(self, module: _Module, function: ast.expr) -> tuple[_Module, _Function] | None:
        name = _name(function)
        if isinstance(function, ast.Name):
            if name in module.functions:
                return module, module.functions[name]
            if (home := self._imported(module, name)) is not None and home[1] in home[0].functions:
                return home[0], home[0].functions[home[1]]
            return None
        # A method: the one of this module, or the only one of that name.
        if name in module.functions:
            return module, module.functions[name]
        homes = [each for each in self.modules.values() if name in each.functions]
        if len(homes) == 1 and not any(hasattr(kind, name) for kind in (str, list, dict, Path)):
            return homes[0], homes[0].functions[name]
        return None


def _paired(columns: list[list[Variant]]) -> Iterator[tuple[Variant, ...]]:
    """Yield the rows of texts: those that can come out of one run together."""
    for row in itertools.product(*columns):
        pairs = itertools.combinations(zip(row, columns, strict=True), 2)
        if all(_go_together(one, other, ones, others) for (one, ones), (other, others) in pairs):
            yield row


def _go_together(one: Variant, other: Variant, ones: list[Variant], others: list[Variant]) -> bool:
    def fit(one: Variant, other: Variant) -> bool:
        first, second = sorted((one.branch, other.branch), key=len)
        return second[: len(first)] == first

    def replaced(early: Variant, late: Variant, among: list[Variant]) -> bool:
        # In the block of `late` the name of `early` was given something else.
        return any(
            len(early.branch) < len(each.branch) and late.branch[: len(each.branch)] == each.branch
            for each in among
        )

    if not any(fit(one, each) for each in others) or not any(fit(each, other) for each in ones):
        return True
    return fit(one, other) and not replaced(one, other, ones) and not replaced(other, one, others)


def _product(left: list[Variant], right: list[Variant]) -> list[Variant]:
    return [
        Variant(
            text=first.text + second.text,
            branch=first.branch or second.branch,
            parts=(*first.parts, *second.parts),
        )
        for first in left
        for second in right
    ]


def _elements(expression: ast.expr) -> Iterator[ast.expr]:
    match expression:
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            for element in elements:
                yield from (
                    _elements(element.value) if isinstance(element, ast.Starred) else [element]
                )
        case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
            yield element
        case ast.IfExp(body=body, orelse=orelse):
            yield from _elements(body)
            yield from _elements(orelse)
        case ast.Call(func=ast.Name(id="tuple" | "list"), args=[argument]):
            yield from _elements(argument)


def _parameters(function: _Function) -> set[str]:
    given = function.args
    return {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self"}


def _name(expression: ast.AST) -> str:
    """Return the last name of `a.b.c`."""
    return str(getattr(expression, "attr", getattr(expression, "id", "")))


def _short(expression: ast.expr) -> str:
    """Return a name for what the expression holds: of `clean(words)` the `words`."""
    match expression:
        case ast.Call(func=ast.Attribute(attr="join"), args=[argument]):
            return _short(argument)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr="sub"), args=[*_, value]):
            return _short(value)
        case ast.Call(func=ast.Attribute(value=value, attr="lower" | "upper" | "strip" | "decode")):
            return _short(value)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="case"), attr=name)):
            return name
        case ast.Call(func=ast.Attribute(value=ast.Name() | ast.Attribute() | ast.Call() as value)):
            return _short(value)
        case ast.Call(func=ast.Name(id=name), args=[first, *_]):
            inside = _short(first)
            return inside if len(inside) <= 40 and "…" not in inside else f"{name}(…)"
        case ast.Call(func=function):
            return f"{_name(function).lstrip('_')}(…)"
        case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
            return _short(element)
        case (
            ast.BoolOp(values=[value, *_])
            | ast.Subscript(value=value, slice=ast.Slice() | ast.Constant(value=0))
        ):
            return _short(value)
    text = ast.unparse(expression)
    return text if len(text) <= 40 else "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    page = collect().page()
    if parser.parse_args().write:
        PAGE.write_text(page, encoding="utf-8", newline="\n")
        print(f"wrote {PAGE.name}")
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
