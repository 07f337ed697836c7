"""The grammar of the words: what each line means, and what is said of one that means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.errors import RequestError
from torchenv_magic.selection import Request
from torchenv_magic.words import (
    HelpRequested,
    Words,
    options_of,
    parse_request,
    parse_words,
    words_of,
)

AS_PIP_WRITES = "write it as a package with an optional version, such as `torch==2.9.*`"
CONFIGURE = (
    "`%torchenv {} -h` shows how it is written; set pip's and uv's own options in their "
    "configuration"
)
BACKENDS = ", ".join(map(str, load_catalog().backends()))


def in_notebook(line: str) -> Words:
    return parse_words(line.split(), notebook=True)


def in_terminal(line: str) -> Words:
    return parse_words(line.split(), notebook=False)


def refusal(line: str, *, notebook: bool = True) -> str:
    with pytest.raises(RequestError) as caught:
        parse_words(line.split(), notebook=notebook)
    assert caught.value.exit_status == 2
    return str(caught.value)


def help_on(line: str, *, notebook: bool = True) -> str:
    with pytest.raises(HelpRequested) as caught:
        parse_words(line.split(), notebook=notebook)
    return caught.value.text


# ----------------------------------------------------------------------------------- what is said


def test_nothing_is_the_picker_in_a_notebook() -> None:
    assert in_notebook("") == Words(word="", line="%torchenv")


@pytest.mark.parametrize("word", words_of(notebook=True))
def test_each_word_stands_alone(word: str) -> None:
    line = {"new-kernel": "new-kernel mine", "export": "export index"}.get(word, word)
    words = in_notebook(line)
    # What is locked and exported is what is there, unless something is named.
    expected = Request(requirements=()) if word in ("lock", "export") else Request()
    assert (words.word, words.request, words.notebooks) == (word, expected, ())
    assert (words.yes, words.restart, words.json, words.python) == (False, None, False, None)


@pytest.mark.parametrize(
    ("line", "backend", "requirements"),
    [
        ("install", None, ("torch",)),
        ("install auto", None, ("torch",)),
        ("install cpu", "cpu", ("torch",)),
        ("install CPU", "cpu", ("torch",)),
        ("install cu126 torchvision", "cu126", ("torch", "torchvision")),
        ("install torchvision cu126", "cu126", ("torch", "torchvision")),
        ("plan rocm7.2 torch==2.13.*", "rocm7.2", ("torch==2.13.*",)),
        ("list xpu Torch>=2.9", "xpu", ("Torch>=2.9",)),
        ("install torchaudio --yes cu130", "cu130", ("torch", "torchaudio")),
        # Packages whose names begin as backends do.
        ("install cuda-python", None, ("torch", "cuda-python")),
        ("install cu2qu", None, ("torch", "cu2qu")),
        ("install autoray", None, ("torch", "autoray")),
        ("install cupy", None, ("torch", "cupy")),
    ],
)
def test_what_is_asked_for(line: str, backend: str | None, requirements: tuple[str, ...]) -> None:
    expected = Backend.parse(backend) if backend else None
    assert in_notebook(line).request == Request(backend=expected, requirements=requirements)


def test_options_may_stand_anywhere() -> None:
    words = in_terminal("install --json cpu --python .venv torchvision --yes")
    assert words == Words(
        word="install",
        request=Request(backend=Backend("cpu"), requirements=("torch", "torchvision")),
        yes=True,
        json=True,
        python=Path(".venv"),
        line="torchenv install --json cpu --python .venv torchvision --yes",
    )


@pytest.mark.parametrize("line", ["install --restart=never", "install --restart never"])
def test_the_restart_is_chosen_in_a_notebook(line: str) -> None:
    assert in_notebook(line).restart == "never"


def test_what_is_asked_of_may_follow_a_name_or_a_folder() -> None:
    words = in_notebook("new-kernel mine cu126 torchvision --find-links a --find-links b")
    assert (words.name, words.find_links) == ("mine", ("a", "b"))
    assert words.request.requirements == ("torch", "torchvision")
    assert in_notebook("new-kernel mine --remove").remove
    words = in_terminal("download --python-version 3.12 wheels rocm7.2 --platform linux")
    assert (words.directory, words.python_version, words.platform) == (
        Path("wheels"), "3.12", "linux",
    )  # fmt: skip
    assert str(words.request.backend) == "rocm7.2"


@pytest.mark.parametrize("line", ["new-kernel", "new-kernel --remove"])
def test_a_kernel_has_a_name(line: str) -> None:
    assert refusal(line) == (
        "`%torchenv new-kernel` needs a NAME\n\n"
        "hint: `%torchenv new-kernel -h` shows how it is written"
    )


def test_the_backend_is_an_option_of_select_too() -> None:
    assert in_terminal("select --backend cu126 torch==2.9.*").request == Request(
        backend=Backend("cuda", (12, 6)), requirements=("torch==2.9.*",)
    )


def test_a_word_that_looks_may_ask_the_index_and_no_other_word_takes_the_wish() -> None:
    for word in ("status", "list"):
        assert in_notebook(f"{word} --refresh").refresh
        assert not in_notebook(word).refresh
    assert in_terminal("select cu126 --refresh").refresh
    for word in ("plan", "install", "verify", "detect"):
        with pytest.raises(RequestError, match="`--refresh` is not an option"):
            in_terminal(f"{word} --refresh")


def test_the_hint_of_consent_repeats_the_line_as_it_can_be_written() -> None:
    words = parse_words(["install", "cpu", "torch >=2.9, <3"], notebook=True)
    assert words.with_consent == "`%torchenv install cpu 'torch >=2.9, <3' --yes`"


def test_a_line_that_was_shorn_of_a_login_is_not_offered_to_be_typed() -> None:
    words = in_notebook("install cpu --index-base https://ada:secret@mirror.example/whl")
    assert "secret" not in words.line
    assert words.with_consent == "the same line with `--yes`"


# ------------------------------------------------------------------------------ what is not a word


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("instal", "%torchenv install"),
        ("Status", "%torchenv status"),
        ("verfy cpu", "%torchenv verify"),
        ("check", "%torchenv verify"),
        ("upgrade", "%torchenv install"),
        ("detect", "%torchenv status"),
        ("select", "%torchenv list"),
        ("cu126", "%torchenv install cu126"),
        ("cuda12.6", "%torchenv install cuda12.6"),
        ("torch==2.13.*", "%torchenv install 'torch==2.13.*'"),
        ("torchvision", "%torchenv install torchvision"),
    ],
)
def test_an_unknown_word_is_refused_with_the_likely_one(line: str, instead: str) -> None:
    first = line.split(maxsplit=1)[0]
    assert refusal(line) == (
        f"`{first}` is not a word of `%torchenv`\n\n"
        f"hint: did you mean `{instead}`? the words are status, list, plan, install, verify, "
        "doctor, undo, history, lock, restore, export, new-kernel"
    )


def test_an_unknown_word_that_is_like_none_is_refused_with_all() -> None:
    assert refusal("frobnicate", notebook=False) == (
        "`frobnicate` is not a word of `torchenv`\n\n"
        "hint: the words are status, list, plan, install, verify, doctor, undo, history, "
        "lock, restore, export, new-kernel, download, preinstall, layer, prefetch, notebook, "
        "detect, select"
    )


# ------------------------------------------------------------------------------- about notebooks


@pytest.mark.parametrize(
    ("line", "notebooks", "backends", "requirements"),
    [
        ("lock a.ipynb", ["a.ipynb"], [], ()),
        ("lock a.ipynb cpu cu126", ["a.ipynb"], ["cpu", "cu126"], ()),
        ("lock auto torchvision a.ipynb", ["a.ipynb"], [None], ("torch", "torchvision")),
        ("lock A.IPYNB torch>=2 cpu cpu", ["A.IPYNB"], ["cpu"], ("torch>=2",)),
        ("export script a.ipynb cpu", ["a.ipynb"], ["cpu"], ()),
        ("export index", [], [], ()),
        ("notebook add a.ipynb", ["a.ipynb"], [], ("torch",)),
        ("notebook check a.ipynb b.ipynb", ["a.ipynb", "b.ipynb"], [], ("torch",)),
    ],
)
def test_a_file_is_told_from_backends_and_requirements(
    line: str, notebooks: list[str], backends: list[str | None], requirements: tuple[str, ...]
) -> None:
    words = in_terminal(line)
    assert words.notebooks == tuple(map(Path, notebooks))
    assert [None if each is None else str(each) for each in words.backends] == backends
    assert words.request.requirements == requirements


def test_a_restore_takes_one_backend_and_the_options_of_an_install() -> None:
    words = in_terminal("restore a.ipynb cu126 --yes --json --python .venv --find-links w")
    assert words.request == Request(backend=Backend.parse("cu126"))
    assert (words.yes, words.json, words.python) == (True, True, Path(".venv"))
    assert words.find_links == ("w",)
    assert in_notebook("restore --restart=never").restart == "never"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "lock",
            "`torchenv lock` needs a NOTEBOOK",
            "name its file, which ends in `.ipynb`",
        ),
        (
            "restore a.py",
            "`torchenv restore` needs a NOTEBOOK",
            "name its file, which ends in `.ipynb`",
        ),
        (
            "restore a.ipynb torchvision",
            "`torchenv restore` takes no `torchvision`",
            "`torchenv restore -h` shows how it is written",
        ),
        (
            "restore a.ipynb cpu cu126",
            "`cpu` and `cu126` are two backends, and an environment has one",
            "name one of them",
        ),
        (
            "lock a.ipynb b.ipynb",
            "`torchenv lock` takes no `b.ipynb`",
            "`torchenv lock -h` shows how it is written",
        ),
        (
            "lock a.ipynb --find-links w",
            "`--find-links` is not an option of `torchenv lock`",
            "`torchenv lock -h` shows how it is written",
        ),
        (
            "lock a.ipynb --yes",
            "`--yes` is not an option of `torchenv lock`",
            "`torchenv lock -h` shows how it is written",
        ),
        (
            "export scripts",
            "`scripts` is nothing that `torchenv export` writes",
            (
                "did you mean `torchenv export script`? it is one of index, markers, extras, "
                "requirements, script, dockerfile, command"
            ),
        ),
        (
            "notebook ad a.ipynb",
            "`ad` is nothing that `torchenv notebook` does",
            "did you mean `torchenv notebook add`? it is one of add, check, remove",
        ),
        (
            "notebook add",
            "`torchenv notebook add` needs a NOTEBOOK",
            "name its file, which ends in `.ipynb`",
        ),
        (
            "notebook check a.ipynb cpu",
            "`torchenv notebook check` takes no `cpu`",
            "`torchenv notebook -h` shows how it is written",
        ),
    ],
)
def test_what_a_word_about_notebooks_does_not_take_is_refused(
    line: str, message: str, hint: str
) -> None:
    assert refusal(line, notebook=False) == f"{message}\n\nhint: {hint}"


# --------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("cu127", "cu128"),
        ("cuda12.6", "cu126"),
        ("cuda", "auto"),
        ("gpu", "auto"),
        ("mps", "cpu"),
        ("rocm", "auto"),
        # Letters in another order: there is a `cup` among the world's packages.
        ("cup", "cpu"),
        ("atuo", "auto"),
    ],
)
def test_an_unknown_backend_is_refused_with_the_nearest(text: str, instead: str) -> None:
    assert refusal(f"install {text}") == (
        f"`{text}` is not a backend\n\n"
        f"hint: did you mean `{instead}`? the backends are auto, {BACKENDS}"
    )


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "install cpu cu126",
            "`cpu` and `cu126` are two backends, and an environment has one",
            "name one of them",
        ),
        (
            "install cpu 2.13.0",
            "`2.13.0` is a version without a package",
            "did you mean `torch==2.13.0`?",
        ),
        (
            "install v2.13.*",
            "`v2.13.*` is a version without a package",
            "did you mean `torch==2.13.*`?",
        ),
        (
            "install torch=2.13.0",
            "`torch=2.13.0` is not a requirement",
            AS_PIP_WRITES,
        ),
        (
            "install torch >= 2.13",
            "`>=` is not a requirement",
            AS_PIP_WRITES,
        ),
        (
            "install ./torch.whl",
            "`./torch.whl` is not a requirement",
            AS_PIP_WRITES,
        ),
    ],
)
def test_a_malformed_request_is_refused(line: str, message: str, hint: str) -> None:
    assert refusal(line) == f"{message}\n\nhint: {hint}"


def test_a_line_break_cannot_smuggle_an_option_into_what_uv_reads() -> None:
    text = "torch; python_version == '3\n--index-url=evil'"
    with pytest.raises(RequestError, match="holds a line break"):
        parse_request([text])


def test_an_option_among_requirements_is_refused() -> None:
    # From the picker's field: on a line it would be an unknown option.
    with pytest.raises(RequestError) as caught:
        parse_request(["--index-url=x"], backend="cpu")
    assert str(caught.value) == (
        "`--index-url=x` is an option, not a requirement\n\n"
        "hint: set options in uv's or pip's configuration"
    )


# ---------------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "install --restat=never",
            "`--restat` is not an option of `%torchenv install`",
            "did you mean `--restart`? `%torchenv install -h` shows how it is written",
        ),
        (
            "install -r requirements.txt",
            "`-r` is not an option of `%torchenv install`",
            CONFIGURE.format("install"),
        ),
        (
            "install --python=/usr/bin/python3",
            "`--python` is not an option of `%torchenv install`",
            "a notebook works on its kernel's environment; `torchenv` in a terminal on any",
        ),
        (
            "install --restart",
            "`--restart` expected one argument",
            "`%torchenv install -h` shows how it is written",
        ),
        (
            "install --restart=allways",
            "`--restart` can't be `allways`",
            "did you mean `--restart=always`? it is one of always, auto, never",
        ),
        (
            "status cpu",
            "`%torchenv status` takes no `cpu`",
            "`%torchenv status -h` shows how it is written",
        ),
        (
            "verify --yes",
            "`--yes` is not an option of `%torchenv verify`",
            "`%torchenv verify -h` shows how it is written",
        ),
        (
            "plan --restart=never",
            "`--restart` is not an option of `%torchenv plan`",
            CONFIGURE.format("plan"),
        ),
    ],
)
def test_an_unknown_option_is_refused(line: str, message: str, hint: str) -> None:
    assert refusal(line) == f"{message}\n\nhint: {hint}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["install", "--ev\x1b[31mil=1"],
        ["install", "-\x1b[31mred"],
        ["status", "\x1b[2J"],
        ["\x1b[2J"],
        ["install", "--restart=\x07"],
        ["notebook", "\x1b[2J", "a.ipynb"],
        ["restore", "a.ipynb", "\x9b2J"],
    ],
    ids=range(7),
)
def test_what_acts_on_a_terminal_is_told_in_letters(arguments: list[str]) -> None:
    """A line may come out of a stranger's notebook."""
    with pytest.raises(RequestError) as caught:
        parse_words(arguments, notebook=False)
    assert caught.value.message.isprintable()
    assert caught.value.hint.isprintable()


def test_an_option_is_never_abbreviated() -> None:
    assert "did you mean `--json`?" in refusal("status --js", notebook=False)


@given(st.lists(st.text(max_size=12), max_size=4), st.booleans())
@example(["install", "%s"], True)  # noqa: FBT003  (hypothesis passes by position)
@example(["install", "--", "-x"], True)  # noqa: FBT003
@example(["help", "help"], False)  # noqa: FBT003
def test_any_line_is_understood_helped_or_refused(arguments: list[str], notebook: bool) -> None:  # noqa: FBT001
    try:
        answer = parse_words(arguments, notebook=notebook).word
    except HelpRequested as request:
        answer = request.text.partition("\n")[0]
    except RequestError as error:
        answer = error.message and error.hint
    assert answer or not arguments


# ----------------------------------------------------------------------------------------- help

OVERVIEW = """\
Pick, install and prove the right PyTorch build.

  %torchenv             the picker: what is here, what fits, one button
  %torchenv status      what is here, what would be chosen, and why
  %torchenv list        every build, best first, with the reason for each
  %torchenv plan        what an install would fetch, install, replace and remove
  %torchenv install     install PyTorch, restart the kernel, and prove that it works
  %torchenv verify      prove on the device that the installed PyTorch works
  %torchenv doctor      what is wrong with the installed PyTorch, and what cures it
  %torchenv undo        go back to what was there before the last install
  %torchenv history     what was installed here, when, by which line
  %torchenv lock        keep in a notebook what is installed, for other machines too
  %torchenv restore     install what a notebook's lock says, in this machine's build
  %torchenv export      write what is used as a pyproject.toml, a script, a Dockerfile
  %torchenv new-kernel  make a kernel of your own, with PyTorch in it

`%torchenv WORD -h` tells the rest.

examples:
  %torchenv install                      the best build for this machine
  %torchenv install cpu                  without an accelerator
  %torchenv install cu126 torchvision    CUDA 12.6, with torchvision
  %torchenv plan auto "torch==2.13.*"    what that would change"""

INSTALL_IN_NOTEBOOK = """\
usage: %torchenv install [BACKEND] [REQUIREMENT ...] [--index-base URL]
                         [--find-links DIR] [--allow-sdist] [--yes]
                         [--restart WHEN] [-h]

Install PyTorch, restart the kernel, and prove that it works.

  BACKEND      in uv's words: cpu, cu126, rocm7.2, xpu (default: auto, the best)
  REQUIREMENT  as pip writes it: torch==2.13.*, torchvision (torch is always in)

options:
  --index-base URL  a mirror of the PyTorch index: what stands before /cu126
                    (default: TORCHENV_INDEX_BASE, else the configuration, else
                    the PyTorch index)
  --find-links DIR  a folder of wheels, looked through first; may be given more
                    than once
  --allow-sdist     let torch be built from a source distribution, which runs
                    its code
  --yes             consent to wheels from a folder or PyPI where the PyTorch
                    index can't be reached, and to replacing or removing
                    packages outside the PyTorch family
  --restart WHEN    always: a fresh kernel after a change; auto: only where
                    something that changed is loaded; never: you restart it
                    (default: always, unless the session holds what took work)
  -h, --help        show this help"""

INSTALL_IN_TERMINAL = """\
usage: torchenv install [BACKEND] [REQUIREMENT ...] [--index-base URL]
                        [--find-links DIR] [--allow-sdist] [--yes] [--json]
                        [--python PATH] [-h]

Install PyTorch and prove that it works.

  BACKEND      in uv's words: cpu, cu126, rocm7.2, xpu (default: auto, the best)
  REQUIREMENT  as pip writes it: torch==2.13.*, torchvision (torch is always in)

options:
  --index-base URL  a mirror of the PyTorch index: what stands before /cu126
                    (default: TORCHENV_INDEX_BASE, else the configuration, else
                    the PyTorch index)
  --find-links DIR  a folder of wheels, looked through first; may be given more
                    than once
  --allow-sdist     let torch be built from a source distribution, which runs
                    its code
  --yes             consent to wheels from a folder or PyPI where the PyTorch
                    index can't be reached, and to replacing or removing
                    packages outside the PyTorch family
  --json            print data as JSON on stdout
  --python PATH     the interpreter, or virtual environment, to look at or
                    install into (default: the one that runs this)
  -h, --help        show this help"""


@pytest.mark.parametrize("line", ["-h", "--help", "help", "help nonsense"])
def test_the_overview(line: str) -> None:
    assert help_on(line) == OVERVIEW


@pytest.mark.parametrize("line", ["install -h", "install cpu --yes --help", "help install"])
def test_the_help_on_install(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The width of the terminal that the tests run in is not the notebook's.
    monkeypatch.setenv("COLUMNS", "40")
    assert help_on(line) == INSTALL_IN_NOTEBOOK


def test_the_help_on_install_in_a_terminal() -> None:
    assert help_on("install -h", notebook=False) == INSTALL_IN_TERMINAL


@pytest.mark.parametrize("notebook", [True, False])
def test_help_fits_a_terminal_and_names_every_option(notebook: bool) -> None:  # noqa: FBT001
    overview = help_on("-h", notebook=notebook)
    for word in words_of(notebook=notebook):
        assert f"torchenv {word} " in overview
        text = help_on(f"{word} -h", notebook=notebook)
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
        for option in options_of(word, notebook=notebook):
            assert option in text


def test_options_of_each_word() -> None:
    assert options_of("install", notebook=True) == (
        "--index-base", "--find-links", "--allow-sdist", "--yes", "--restart", "--help",
    )  # fmt: skip
    assert options_of("undo", notebook=True) == ("--yes", "--restart", "--help")
    assert options_of("lock", notebook=True) == ("--index-base", "--yes", "--help")
    assert options_of("lock", notebook=False) == ("--index-base", "--json", "--python", "--help")
    assert options_of("restore", notebook=True) == (
        "--index-base", "--find-links", "--yes", "--restart", "--help",
    )  # fmt: skip
    assert options_of("notebook", notebook=False) == ("--lock", "--json", "--help")
    assert options_of("status", notebook=True) == ("--refresh", "--help")
    assert options_of("select", notebook=False) == (
        "--backend", "--refresh", "--json", "--python", "--help",
    )  # fmt: skip
    assert options_of("detect", notebook=False) == ("--json", "--help")
