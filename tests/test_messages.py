"""Every text that tells a person of a failure: none is missed, each is read, and rules hold."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.message_collection import PACKAGE, PAGE, Collection, Entry, Variant, collect
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.cli.talk import for_terminal
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import read_environment
from torchenv_magic.errors import TorchEnvError
from torchenv_magic.notebook.front_end import FrontEndKind
from torchenv_magic.notebook.restart import how_to_restart
from torchenv_magic.selection import parse_backend
from torchenv_magic.words import parse_words

COLLECTION = collect()
ERRORS = [entry for entry in COLLECTION.entries if entry.kind in COLLECTION.error_classes]

# Messages that are only handed on, and where they are made.
BUILT_ELSEWHERE = {
    ("notebook.magic", "{effects.loaded_words}{kept}"): "notebook.session, tested there",
    ("notebook.magic", "{effects.loaded_words}"): "the same, where nothing is kept",
    ("verification.report", "- {each}"): "the checks that failed",
    ("verification.report", "{messages}"): "the one check that failed",
    ("verification.judgement", "{text}"): "how a package is there twice or in part, above it",
    ("words", "{message}"): "argparse",
    ("cli.notebooks", "{error.message}"): "of a notebook that can't be read, in its file's module",
    ("project.notebook_cells", "{error.message}"): "of a lock or a line, where each is read",
}
# Calls that take a hint without making a text.
HANDED_ON = {
    "installation.failures: kind": "its texts are the tuples in that module, collected one by one",
    "installation.planning: super().__init__": "what IndexUnreachableError is made with",
    "installation.undo: Undo": "what its errors are made with",
    "notebook.magic: message_html": "shows what `view.tell` was given",
    "notebook.magic: view.tell": "shows an error that a cell can't raise any more",
    "notebook.picker: message_html": "shows an error",
    "preinstall.launch: Record": "keeps an error's texts",
    "preinstall.launch: replace": "keeps an error's texts",
    "preinstall.report: replace": "keeps an error's texts",
}
# Errors without a hint, and why there is none.
NO_HINT = {
    "InstallCancelled": "the person stopped it, and nothing is to be done",
}

LONGEST_MESSAGE = 170
LONGEST_HINT = 150


# --- the page -------------------------------------------------------------------------------------


def test_the_page_holds_the_texts_that_the_code_has_now() -> None:
    kept = PAGE.read_text(encoding="utf-8")
    now = COLLECTION.page()
    difference = difflib.unified_diff(
        kept.splitlines(), now.splitlines(), "kept", "now", lineterm="", n=1
    )
    assert kept == now, (
        "texts have changed: read them, then `python -m tests.message_collection --write`\n"
        + "\n".join(difference)
    )


def test_no_error_that_the_code_makes_is_missed() -> None:
    """Counted by a search in the text, which knows nothing of how the collection reads code."""
    made = re.compile(rf"(?<!class )\b({'|'.join(sorted(COLLECTION.error_classes))})\(")
    collected = {(entry.module, entry.line) for entry in ERRORS}
    missed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if made.search(line) and (module, number) not in collected:
                missed.append(f"{module}:{number}: {line.strip()}")
    assert not missed


def test_every_class_of_errors_that_the_code_names_has_a_text() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.name != "errors.py"
    ]
    raised = {
        name
        for name in COLLECTION.error_classes
        # `(SourceError, message, hint)`, `raise TargetError(…)`; not `except`, not a docstring.
        if any(re.search(rf"\b{name}\(\s*[^\s:)]|\({name}|^\s+{name},$", text) for text in sources)
    }
    assert raised - {entry.kind for entry in ERRORS} == set()


def test_what_takes_a_hint_is_collected_or_known_to_hand_it_on() -> None:
    assert set(COLLECTION.unknown) == set(HANDED_ON)


def test_a_text_that_is_made_elsewhere_is_followed_or_known() -> None:
    labelled = [
        (entry.module, text)
        for entry in COLLECTION.entries
        if entry.kind in COLLECTION.error_classes or entry.kind in ("Check", "Finding", "Problem")
        for text in entry.values(entry.labels[0])
    ]
    empty = {(module, text) for module, text in labelled if not Variant(text=text).says_something}
    assert empty == set(BUILT_ELSEWHERE)


# --- the collection -------------------------------------------------------------------------------


def collected(folder: Path, code: str, **others: str) -> Collection:
    for name, text in {
        "errors": "class TorchEnvError(Exception): ...",
        "main": code,
        **others,
    }.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return collect(folder)


def only(collection: Collection, kind: str = "TorchEnvError") -> Entry:
    (entry,) = [entry for entry in collection.entries if entry.kind == kind]
    return entry


def test_a_message_and_its_hint_are_followed_through_the_branches_of_one_run(
    tmp_path: Path,
) -> None:
    code = """
        def fail(full, late):
            message, hint = "It went wrong", "try again"
            if full:
                message = f"The disk {name} is full"
                hint = "free some space"
            elif late:
                message, hint = _late(1)
            raise TorchEnvError(message, hint=hint)

        def _late(seconds):
            if seconds:
                return "It was late", "wait"
            return "It was too late", "give up"
    """
    assert set(only(collected(tmp_path, code)).texts) == {
        ("It went wrong", "try again"),
        ("The disk {name} is full", "free some space"),
        ("It was late", "wait"),
        ("It was too late", "give up"),
    }


def test_what_a_branch_assigns_that_leaves_is_not_taken(tmp_path: Path) -> None:
    code = """
        def fail(early):
            message = "It went wrong"
            if early:
                message = "Never shown"
                return message
            raise TorchEnvError(message)
    """
    assert only(collected(tmp_path, code)).values("message") == ("It went wrong",)


def test_tables_parameters_and_constants_of_other_modules_are_followed(tmp_path: Path) -> None:
    code = """
        from torchenv_magic.words import HINT, WORDS

        def outer(kind):
            inner(WORDS[kind])
            inner(f"Nothing is at {kind}")

        def inner(message):
            raise TorchEnvError(message, hint=HINT)
    """
    words = """
        HINT = "look again"
        WORDS = {"a": "There is no a", "b": "There is no b"}
    """
    entry = only(collected(tmp_path, code, words=words))
    assert entry.values("message") == ("There is no a", "There is no b", "Nothing is at {kind}")
    assert entry.values("hint") == ("look again",)


def test_prose_in_a_part_of_a_text_is_shown_with_it(tmp_path: Path) -> None:
    code = """
        def fail(names, holder):
            where = f" (held by {holder})" if holder else ""
            several = "are" if len(names) > 1 else "is"
            raise TorchEnvError(f"{', '.join(names)} {several} locked{where}")
    """
    page = collected(tmp_path, code).page()
    assert "    {names} {several} locked{where}\n" in page
    assert "{where}:  (held by {holder})\n" in page
    assert "{several}: are\n" in page


def test_subclasses_wherever_they_are_defined_are_errors(tmp_path: Path) -> None:
    code = """
        from torchenv_magic.errors import TorchEnvError

        class First(TorchEnvError): ...

        class Second(First): ...

        def fail():
            raise Second("It went wrong")
    """
    assert only(collected(tmp_path, code), "Second").values("message") == ("It went wrong",)


def test_an_error_that_is_made_by_a_tuple_is_collected(tmp_path: Path) -> None:
    code = """
        def explain(text):
            return TorchEnvError, f"It said {text}", "ask again"
    """
    assert only(collected(tmp_path, code)).texts == (("It said {text}", "ask again"),)


# --- how they are written -------------------------------------------------------------------------


def texts(*kinds: str, label: str) -> Iterator[tuple[str, str]]:
    """Yield where a text stands, and the text."""
    for entry in COLLECTION.entries:
        if not kinds or entry.kind in kinds:
            for text in entry.values(label):
                if text:
                    yield f"{entry.module}, {entry.place}", text


def breaking(rule: Callable[[str], bool], found: Iterator[tuple[str, str]]) -> list[str]:
    return [f"{place}: {text}" for place, text in found if not rule(text)]


MESSAGES = [
    pytest.param(tuple(COLLECTION.error_classes), "message", id="errors"),
    pytest.param(("Finding",), "message", id="findings"),
    pytest.param(("Check",), "message", id="checks"),
    pytest.param(("Problem",), "found", id="problems"),
    pytest.param(("Problem",), "meaning", id="meanings"),
    pytest.param(("warning",), "message", id="warnings"),
    pytest.param(("Rung", "reason", "_NEVER_RESTARTED", "_PRESS"), "reason", id="reasons"),
]
SENTENCES = [
    pytest.param(("sentence",), "reason", id="sentences"),
    pytest.param(("plugin",), "message", id="plugin"),
]
HINTS = [
    pytest.param(tuple(COLLECTION.error_classes), "hint", id="errors"),
    pytest.param(("Finding",), "hint", id="findings"),
    pytest.param(("Check",), "hint", id="checks"),
    pytest.param(("Problem",), "cure", id="problems"),
]


@pytest.mark.parametrize(("kinds", "label"), [*MESSAGES, *SENTENCES, *HINTS])
def test_a_text_is_calm_and_plain(kinds: tuple[str, ...], label: str) -> None:
    loud = re.compile(
        r"!(?!\{uv\})|\b(please|sorry|oops|unfortunately|simply|just|illegal|fatal|abort"
        r"|invalid|bad)\b|\berror:|—|\.\.\.(?!`)",
        re.IGNORECASE,
    )
    assert not breaking(lambda text: loud.search(text) is None, texts(*kinds, label=label))


@pytest.mark.parametrize(("kinds", "label"), [*MESSAGES, *HINTS])
def test_a_clause_ends_without_a_full_stop(kinds: tuple[str, ...], label: str) -> None:
    """What shows it adds one where a sentence follows."""
    given = (each for each in texts(*kinds, label=label) if "Used with your consent" not in each[1])
    assert not breaking(lambda text: not text.rstrip().endswith((".", ":", ";")), given)


@pytest.mark.parametrize(("kinds", "label"), [*MESSAGES, *SENTENCES])
def test_a_message_is_short_enough_to_be_read(kinds: tuple[str, ...], label: str) -> None:
    found = texts(*kinds, label=label)
    assert not breaking(lambda text: len(text) <= LONGEST_MESSAGE, found)


@pytest.mark.parametrize(("kinds", "label"), HINTS)
def test_a_hint_is_one_action_in_one_line(kinds: tuple[str, ...], label: str) -> None:
    def one_line(text: str) -> bool:
        return len(text) <= LONGEST_HINT and "\n" not in text and "hint:" not in text

    assert not breaking(one_line, texts(*kinds, label=label))


def test_an_errors_message_starts_as_a_sentence() -> None:
    """With a capital, or with a name that is written as it is: in backticks, filled in, or `uv`."""
    start = re.compile(r"[A-Z`({]|uv\b|torch\b|- ")
    kinds = tuple(COLLECTION.error_classes)
    assert not breaking(lambda text: start.match(text) is not None, texts(*kinds, label="message"))


@pytest.mark.parametrize(("kinds", "label"), HINTS)
def test_a_hint_starts_small(kinds: tuple[str, ...], label: str) -> None:
    """It follows `hint:`. Names keep their capital."""
    start = re.compile(r"[a-z`{!]|(PyTorch|Intel|NVIDIA|AMD)\b")
    assert not breaking(lambda text: start.match(text) is not None, texts(*kinds, label=label))


def test_an_error_has_a_hint() -> None:
    without = {
        f"{entry.module}: {text[0]}"
        for entry in ERRORS
        for text in entry.texts
        if not text[1] and entry.kind not in NO_HINT
    }
    assert without == set()


def test_what_is_typed_stands_in_backticks() -> None:
    """A command in a text can be told from its words, and is shown as code in a notebook."""
    command = re.compile(r"(?<![`\w/.])(%torchenv|%pip|uv (cache|pip) |torchenv (install|list))")

    def written(text: str) -> bool:
        return command.search(re.sub(r"`[^`]*`", "", text)) is None

    # A dialog of the plugin shows no code.
    plugin = set(texts("plugin", label="message"))
    every = [pair for label in ("message", "hint", "found", "meaning", "cure", "reason")
             for pair in texts(label=label)]  # fmt: skip
    assert not breaking(written, (pair for pair in every if pair not in plugin))


def test_a_terminal_is_told_of_no_kernel_and_no_cell() -> None:
    """Texts are written for a notebook, and said in a terminal's words there."""
    notebooks = re.compile(
        r"%(?![0-9A-F]{2}\b)|\bfolded\b|\bcell\b|(?<!Linux )\b[Kk]ernel\b(?!'s log| image)|`!(?!\{)"
    )
    # What is said of the session that asks, and of what only a notebook's line can have.
    of_a_session = ("doctor.process, session_problems", "words, _unknown_option")
    # And of a kernel that a terminal makes.
    of_new_kernels = (
        "installation.new_kernel",
        "cli.__init__, _new_kernel",
        "environment, check_target",
    )
    # And of what stands in a notebook's file.
    of_files = ("project.notebook_", "project.export_")
    every = [
        (place, for_terminal(text))
        for label in ("message", "hint", "found", "meaning", "cure")
        for place, text in texts(label=label)
        if not place.startswith(
            ("notebook.", "labextension", *of_a_session, *of_new_kernels, *of_files)
        )
    ]
    word = "`torchenv new-kernel NAME`"
    assert not breaking(lambda text: not notebooks.search(text.replace(word, "")), iter(every))


def test_what_a_person_presses_is_a_sentence_of_its_own() -> None:
    """It is shown behind "hint:" as well as alone."""
    for kind in FrontEndKind.__args__:  # type: ignore[attr-defined]
        sentence = how_to_restart(kind)
        assert re.match(r"[A-Z][a-z]+ ", sentence), sentence
        assert not sentence.endswith("."), sentence


# --- the texts that are met -----------------------------------------------------------------------

MET: list[tuple[str, Callable[[], object]]] = [
    ("a word", lambda: parse_words(["instal"], notebook=True)),
    ("an option", lambda: parse_words(["install", "--yess"], notebook=True)),
    ("two backends", lambda: parse_words(["install", "cu126", "cpu"], notebook=True)),
    ("a version", lambda: parse_words(["install", "2.9"], notebook=True)),
    ("when to restart", lambda: parse_words(["install", "--restart=no"], notebook=True)),
    ("a backend", lambda: parse_backend("cu1", load_catalog())),
    ("a requirement", lambda: parse_requirement("torch=2")),
    ("an option of pip", lambda: parse_requirement("--pre")),
    ("no Python", lambda: read_environment(Path("there") / "is" / "none")),
    ("a folder", lambda: read_environment(Path(__file__).parent)),
    ("no interpreter", lambda: read_environment(Path(__file__))),
]


@pytest.mark.parametrize("provoke", [call for _, call in MET], ids=[name for name, _ in MET])
def test_an_error_that_is_met_stands_on_the_page(provoke: Callable[[], object]) -> None:
    with pytest.raises(TorchEnvError) as met:
        provoke()
    known = [
        text
        for entry in ERRORS
        if entry.kind == type(met.value).__name__
        for text in entry.texts
        if fits(text[0], met.value.message) and fits(text[1], met.value.hint)
    ]
    assert known, f"{met.value!r} is not on the page"


def fits(template: str, text: str) -> bool:
    """Tell whether `text` can have come from what the page has."""
    filled = re.compile(r"\{[^{}]*\}|\([^()|]*\|[^()]*\)")
    pattern = ".*".join(map(re.escape, filled.split(template)))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def test_a_template_does_not_fit_everything() -> None:
    assert fits("`{word}` is not a word of `{prog}`", "`instal` is not a word of `%torchenv`")
    assert fits("uv failed: ({said} | it said nothing)", "uv failed: no such file (os error 2)")
    assert not fits("`{word}` is not a word of `{prog}`", "`instal` is no word of `%torchenv`")
